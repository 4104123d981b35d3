"""Suite specification: rows, columns and the runs of each cell, as the workflow writes them to suite.json."""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jsonschema

from moe_retriever.suites.published import DATASETS, missingness_title, short
from mrpipe.reading import read_json, reading
from mrpipe.store.masks import name_parts

SCHEMA = Path(__file__).resolve().with_name("suite.schema.json")
REFERENCE = "moe_retriever"
# Row of the best possible prediction, which is known for simulated data.
BEST = "best possible"


@dataclass(frozen=True)
class SuiteRow:
    name: str
    method: str
    preset: str
    published: str
    control: bool


@dataclass(frozen=True)
class SuiteColumn:
    """A column: a view of a store.

    Attributes:
        store: folder of the store.
        missingness: `mechanism`, `p` and non-default settings; None for as observed.
        cells: name of the row → folder of its runs and their seeds.
        test: protocol of the evaluation: `name`, `store` (or ""), `pattern` (or "") and `missingness`; None for the
            test split with the mask of the training.
        task, scheme: None for the store's default.
        transforms: transform options that differ from their defaults.
        joined: name of the row → seed → folder of one of the user's own runs.
    """

    dataset: str
    experiment: str
    store: str
    truth: str | None
    modalities: tuple[str, ...]
    absent: tuple[str, ...]
    missingness: Mapping[str, Any] | None
    cells: Mapping[str, tuple[str, list[int]]]
    test: Mapping[str, Any] | None = None
    task: str | None = None
    scheme: str | None = None
    transforms: Mapping[str, Any] = field(default_factory=dict)
    joined: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        p = (self.missingness or {}).get("p")
        return None if isinstance(p, dict) else p

    @property
    def data(self) -> str:
        """Name of the data set in the paper; for other data sets and those of `mrpipe fetch`, name of the store."""
        store = Path(self.store).name
        return DATASETS[self.dataset][0] if self.dataset in DATASETS and not store.startswith("open_") else store

    @property
    def view(self) -> str:
        return short(self.dataset, self.modalities)

    @property
    def name(self) -> str:
        """Header of the column: view, missingness, and task and split scheme if they are not the default."""
        # As in the paper, MCAR is not named.
        parts, t = [self.view], self.test
        parts += [missingness_title(self.missingness).removeprefix("MCAR, ")] * (self.missingness is not None)
        if t is not None:
            said = [f"only {short(self.dataset, name_parts(t['pattern']))}"] * bool(t["pattern"])
            said += [f"store {t['store']}"] * bool(t["store"])
            said += [missingness_title(t["missingness"]).removeprefix("MCAR, ")] * (t["missingness"] is not None)
            parts.append(f"tested: {', '.join(said)}")
        parts += [f"task {self.task}"] * (self.task is not None)
        parts += [f"{self.scheme} split"] * (self.scheme is not None)
        parts += [f"{k} = {v}" for k, v in self.transforms.items()]
        return ", ".join(parts)

    def runs(self) -> Iterator[tuple[str, int, str]]:
        """(row, seed, folder of the evaluation relative to the folder of all runs; absolute for joined runs)."""
        test = f"/tests/{self.test['name']}" if self.test else ""
        for row, (label, seeds) in self.cells.items():
            for seed in seeds:
                yield row, seed, f"{self.experiment}/{label}/seed{seed}{test}"
        for row, folders in self.joined.items():
            yield from ((row, seed, folder) for seed, folder in folders.items())


@dataclass(frozen=True)
class SuiteSpec:
    """Specification of a table or figure.

    Attributes:
        figure: kind of the figure; "" for a table.
        missing: modality that the samples of an embedding figure lack.
        trials: numbers of trials of the hyper-parameter searches.
        unfinished: folders of runs to ignore even if they contain results.
        notes: blocks that are omitted, and runs that could not be joined.
    """

    name: str
    title: str
    size: str
    metrics: tuple[str, ...]
    published: str
    rows: tuple[SuiteRow, ...]
    columns: tuple[SuiteColumn, ...]
    figure: str = ""
    missing: str = ""
    trials: tuple[int, ...] = ()
    unfinished: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def every_row(self) -> tuple[SuiteRow, ...]:
        """The rows, followed by the row of the best possible prediction."""
        return (*self.rows, SuiteRow(BEST, "", "", "", control=True))

    @property
    def reference(self) -> str | None:
        """Reference row for differences: the first row of MoE-Retriever."""
        return next((r.name for r in self.rows if r.method == REFERENCE and not r.control), None)


def parse_suite(said: Mapping[str, Any]) -> SuiteSpec:
    columns = [c | {"modalities": tuple(c["modalities"]), "absent": tuple(c["absent"])} for c in said["columns"]]
    plain = {f.name: said[f.name] for f in fields(SuiteSpec) if f.name in said}
    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    known["rows"] = tuple(SuiteRow(**row) for row in said["rows"])
    known |= {"name": said["suite"], "columns": tuple(SuiteColumn(**column) for column in columns)}
    return SuiteSpec(**known)


def add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", type=Path, required=True, metavar="FILE", help="suite.json of the workflow")
    parser.add_argument("--runs", type=Path, required=True, metavar="FOLDER", help="folder of all runs")


def read_suite(path: Path) -> SuiteSpec:
    """Read a suite.json (`suite.schema.json`).

    Raises:
        DataError: the file is not a suite.json of format 1.
    """
    fix = "The workflow writes this file: mrpipe run SUITE."
    content = read_json(path, "a suite.json", fix)
    with reading(path, "a suite.json", fix):
        jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))
        return parse_suite(content)
