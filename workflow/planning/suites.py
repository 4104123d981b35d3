"""Expand `suites.yaml` into cells, the runs that tables and figures consist of.

The folder name of a cell is derived from its settings, so suites that request the same run share it. Suites are read
on each start of Snakemake but expanded only when they are requested.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moe_retriever.catalogue import gradient_steps
from moe_retriever.catalogue import names as method_names
from mrpipe.errors import MrpipeError
from mrpipe.experiment.missingness import Missingness
from mrpipe.fetch.download import FOLDER, catalogue
from mrpipe.store.masks import combination_name

from .batches import CellBatch, make_batches
from .plan import (
    SIMULATED,
    ConfigError,
    StorePlan,
    WorkflowPlan,
    parse_transforms,
    plan_store,
    task_and_scheme_errors,
    unknown_name,
)
from .runs import PlannedRun, PlannedTest, masks_of
from .suite_cells import PlannedColumn, PlannedRow, PlannedSuite
from .suite_files import OWN, read_suites

INHERITED = ("methods", "variants", "hiding", "preset", "missingness", "test", "seeds", "search")


class Suites:
    """All suites that a configuration can request.

    Raises:
        ConfigError: missing files, unknown keys or unknown names; lists every error.
    """

    def __init__(self, config: Mapping[str, Any], plan: WorkflowPlan):
        self.plan = plan
        self.size: str = config["size"]
        own = config["suites"]
        self._config = config
        self._said = read_suites([OWN, *map(Path, [own] if isinstance(own, str) else own)])
        known, datasets = catalogue(), self._said["datasets"]
        self._open = {name: known[entry["fetch"]] for name, entry in datasets.items() if "fetch" in entry}
        self._sizes = self._said["sizes"][self.size]
        self._stores: dict[str, StorePlan] = {}
        self._suites: dict[str, PlannedSuite] = {}
        if faults := list(self._faults()):
            raise ConfigError(faults)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._said["suites"])

    @property
    def collections(self) -> tuple[str, ...]:
        """Names of the suites that consist of other suites."""
        return tuple(name for name, said in self._said["suites"].items() if "of" in said)

    @property
    def store_names(self) -> tuple[str, ...]:
        """Names of the stores that suites can simulate, or build from the data of `mrpipe fetch`."""
        return tuple(map(self._store_name, self._said["datasets"]))

    def _store_name(self, entry: str) -> str:
        return entry if entry in self._open else f"{entry}-{self.size}"

    @property
    def readers(self) -> set[str]:
        """Names of the datasets that suites can simulate or build."""
        simulated = {entry.get("dataset", name) for name, entry in self._said["datasets"].items()}
        return simulated - set(self._open) | {data.reader for data in self._open.values()}

    def _not_fetched(self, suite: str) -> list[str]:
        """Data sets of a suite that `mrpipe fetch` has yet to download."""
        entries = {b["dataset"] for b in self._said["suites"][suite].get("blocks", ())} - set(self.plan.stores)
        return [data.name for entry, data in self._open.items() if entry in entries and not data.present]

    def store(self, name: str) -> StorePlan:
        """The plan of a store: one of the configuration, or one simulated for the suites."""
        if name in self.plan.stores:
            return self.plan.stores[name]
        if name not in self._stores:
            entry = name.removesuffix(f"-{self.size}")
            said = self._said["datasets"][entry]
            of_size = {key: said.get(self.size, {}).get(key, {}) for key in ("simulation", "options")}
            settings = {"dataset": said.get("dataset", entry), "raw": SIMULATED, **of_size}
            if data := self._open.get(entry):
                settings |= {"dataset": data.reader, "raw": str(FOLDER / data.name), "options": dict(data.options)}
            self._stores[name] = plan_store(name, settings)
        return self._stores[name]

    def suite(self, name: str) -> PlannedSuite:
        """The expanded suite.

        Raises:
            ConfigError: names that do not exist in the suite's stores.
        """
        if name not in self._suites:
            self._suites[name] = self._expand(name)
        return self._suites[name]

    def parts(self, name: str) -> list[PlannedSuite]:
        """The suites that a target builds: the members of a collection, otherwise the suite itself."""
        suite = self.suite(name)
        return [part for other in suite.of for part in self.parts(other)] if suite.of else [suite]

    @cached_property
    def runs(self) -> dict[str, PlannedRun]:
        """All evaluations of all suites, by folder."""
        known = (self.suite(name) for name in self.names if not self._not_fetched(name))
        return {folder: run for suite in known for folder, run in suite.cells.items()}

    @cached_property
    def batches(self) -> dict[str, CellBatch]:
        """The jobs that train and evaluate the cells of all suites, by name."""
        of = {name: self.suite(name).runs for name in self.names if not self._not_fetched(name)}
        needed = ((run, [name for name in of if tested in of[name]]) for tested, run in self.runs.items())
        owned = (entry for entry in needed if entry[1])
        return make_batches(owned, per_job=self._config.get("cells_per_job"), small=self.size == "smoke")

    @cached_property
    def first_seeds(self) -> dict[tuple[str, str], PlannedRun]:
        """(experiment, label) → cell with the first seed."""
        return {(run.experiment, run.label): run for run in reversed(self.runs.values())}

    @property
    def benchmark_steps(self) -> int:
        """Number of timed steps of a cost measurement."""
        return int(self._sizes.get("benchmark_steps", 20))

    @cached_property
    def masks(self) -> dict[tuple[str, str], Missingness]:
        """(store, name of the mask file) → settings."""
        return masks_of(self.runs.values())

    def _faults(self) -> Iterator[str]:
        """Errors that can be found without planning the stores."""
        said = self._said
        for name in (set(self.store_names) - set(self._open)) & set(self.plan.stores):
            yield f"datasets.{name}: the suites simulate a store of this name; choose another name"
        for name in said["groups"]:
            yield from self._method_faults(f"groups.{name}", said["groups"][name], (name,))
        for name, suite in said["suites"].items():
            place = f"suites.{name}"
            kinds = [k for k in ("of", "blocks") if k in suite]
            if len(kinds) != 1:
                yield f"{place}: set either `blocks`, or `of` with the names of other suites"
            if "of" in suite:
                yield from (f"{place}: {k!r} has no effect with `of`" for k in suite if k not in ("of", "title"))
                unknown = [n for n in suite["of"] if n not in said["suites"]]
                yield from (unknown_name(f"{place}.of", "suite", n, said["suites"]) for n in unknown)
            if "figure" in suite:
                given = set(suite).union(*suite.get("blocks", ()))
                tables = [k for k in ("metrics", "published", "test") if k in given]
                yield from (f"{place}: {k!r} has no effect on a figure" for k in tables)
            if (suite.get("figure") == "embedding") != ("missing" in suite):
                yield f"{place}: `missing` (a modality) is required by the figure `embedding` and only by it"
            if suite.get("figure") == "cost" and any("views" in block for block in suite.get("blocks", ())):
                yield f"{place}: the figure `cost` measures every combination of modalities; remove `views`"
            yield from _transform_faults(place, suite)
            for number, block in enumerate(suite.get("blocks", ())):
                at = f"{place}.blocks.{number}"
                yield from _transform_faults(at, block)
                known = {**said["datasets"], **self.plan.stores}
                if block["dataset"] not in known:
                    yield unknown_name(f"{at}.dataset", "dataset", block["dataset"], known)
                methods = block.get("methods", suite.get("methods"))
                if methods is None:
                    yield f"{at}: set `methods`, here or for the suite"
                else:
                    yield from self._method_faults(f"{at}.methods", methods, ())
        yield from self._circles()

    def _circles(self) -> Iterator[str]:
        for name in self._said["suites"]:
            waiting, seen = list(self._said["suites"][name].get("of", ())), set()
            while waiting:
                other = waiting.pop()
                if other == name:
                    yield f"suites.{name}.of: the suite contains itself"
                    break
                if other not in seen:
                    seen.add(other)
                    waiting += self._said["suites"].get(other, {}).get("of", ())

    def _method_faults(self, place: str, methods: Any, inside: tuple[str, ...]) -> Iterator[str]:
        for method in [methods] if isinstance(methods, str | dict) else methods:
            name = method if isinstance(method, str) else method["method"]
            if isinstance(method, str) and name in self._said["groups"]:
                if name in inside:
                    yield f"{place}: the group {name!r} contains itself"
                elif inside:
                    yield from self._method_faults(place, self._said["groups"][name], (*inside, name))
            elif name not in method_names():
                known = {**self._said["groups"], **dict.fromkeys(method_names())}
                yield unknown_name(place, "method or group", name, known)

    def _expand(self, name: str) -> PlannedSuite:
        said = self._said["suites"][name]
        rows: dict[str, PlannedRow] = {}
        columns: dict[tuple[str, ...], PlannedColumn] = {}
        faults: list[str] = []
        notes: list[str] = []
        if absent := self._not_fetched(name):
            raise ConfigError([f"suites.{name}: no data in {FOLDER}; download them: mrpipe fetch {' '.join(absent)}"])
        for number, own in enumerate(said.get("blocks", ())):
            if own.get("optional") and self._configured(own["dataset"]) is None:
                notes.append(f"{own['dataset']}: omitted, because the configuration has no export of this name.")
                continue
            block = {k: said[k] for k in INHERITED if k in said} | own
            block |= {k: {**said.get(k, {}), **own.get(k, {})} for k in ("overrides", "transforms")}
            try:
                self._expand_block(block, rows, columns)
            except ConfigError as error:
                faults += [f"suites.{name}.blocks.{number}: {fault}" for fault in error.faults]
            except MrpipeError as error:
                faults.append(f"suites.{name}.blocks.{number}: {error}")
        if faults:
            raise ConfigError(faults)
        return PlannedSuite(
            name=name,
            title=said["title"],
            **{k: said.get(k, "") for k in ("figure", "published", "missing")},
            metrics=tuple(said.get("metrics", ("accuracy",))),
            of=tuple(said.get("of", ())),
            notes=tuple(notes),
            rows=rows,
            columns=tuple(columns.values()),
        )

    def _expand_block(
        self, block: Mapping[str, Any], rows: dict[str, PlannedRow], columns: dict[tuple[str, ...], PlannedColumn]
    ) -> None:
        store = self._store_of(block["dataset"])
        own_rows = self._rows(block)
        for row in own_rows:
            if rows.setdefault(row.name, row) != row:
                raise ConfigError([f"another block has a row {row.name!r} with other settings; set another `name`"])
        views: list[list[str]] = block.get("views", [list(store.modalities)])
        levels = _levels(block.get("missingness"), block)
        tested = [t.missingness for t in self._tests(block, store, ()) if t]
        rates = [m.p for m in (*levels, *tested) if m and isinstance(m.p, Mapping)]
        unknown = [m for m in dict.fromkeys(itertools.chain(*views, *rates)) if m not in store.possible]
        faults = [unknown_name("views", "modality", m, store.possible, store.dataset.name) for m in unknown]
        faults += task_and_scheme_errors("", block, store)
        if faults:
            raise ConfigError(faults)
        transforms = parse_transforms(block["transforms"], "block")
        ordered = [tuple(m for m in store.possible if m in view) for view in views]
        each = ((v, m, test) for v, m in itertools.product(ordered, levels) for test in self._tests(block, store, v))
        for view, missing, test in each:
            column = PlannedColumn(
                dataset=store.dataset.name,
                store=store.name,
                view=view,
                absent=tuple(m for m in view if m not in store.modalities),
                missingness=missing,
                task=block.get("task"),
                scheme=block.get("scheme"),
                transforms=transforms,
                test=test,
            )
            name = (test.name, test.pattern) if test else ()
            column = columns.setdefault((column.store, column.experiment, *name), column)
            if not column.absent:
                for row in own_rows:
                    column.cells[row.name] = list(self._cells(block, column, row))

    def _tests(self, block: Mapping[str, Any], store: StorePlan, view: Sequence[str]) -> Iterator[PlannedTest | None]:
        """The protocols of a view; None for the test split with the mask of the training."""
        for said in _listed(block.get("test", "same")):
            if said == "same":
                yield None
            elif said == "patterns":
                patterns = itertools.chain(*(itertools.combinations(view, n + 1) for n in range(len(view))))
                yield from (PlannedTest(pattern=combination_name(p)) for p in patterns)
            else:
                entry, known = said.get("store"), {**self._said["datasets"], **self.plan.stores}
                if entry not in (None, *known):
                    raise ConfigError([unknown_name("test.store", "dataset", entry, known)])
                other = self._store_of(entry) if entry else store
                if other.dataset.name != store.dataset.name:
                    raise ConfigError(
                        [f"test.store: {entry!r} is of {other.dataset.name}, not of {store.dataset.name}"]
                    )
                for missing in _levels({k: v for k, v in said.items() if k != "store"}, block):
                    yield PlannedTest(store=other.name if entry else "", missingness=missing)

    def _store_of(self, entry: str) -> StorePlan:
        """Prefer a real export or store in the configuration, then the suites' simulation, then the configuration's."""
        return self._configured(entry) or self.store(self._store_name(entry))

    def _configured(self, entry: str) -> StorePlan | None:
        found = self.plan.stores.get(entry)
        return None if found is None or (found.simulated and entry in self._said["datasets"]) else found

    def _rows(self, block: Mapping[str, Any]) -> list[PlannedRow]:
        given = [_row(method) for method in self._flat(block["methods"])]
        rows = [each for row in given for each in _with_hiding(row, block.get("hiding"))]
        if "variants" not in block:
            return rows
        return [
            replace(
                row,
                name=v["name"] if len(rows) == 1 else f"{row.name}: {v['name']}",
                preset=v.get("preset", row.preset),
                overrides={**row.overrides, **v.get("overrides", {})},
                published=v.get("published", ""),
            )
            for row in rows
            for v in block["variants"]
        ]

    def _flat(self, methods: Any) -> Iterator[dict[str, Any]]:
        for method in [methods] if isinstance(methods, str | dict) else methods:
            if isinstance(method, str) and method in self._said["groups"]:
                yield from self._flat(self._said["groups"][method])
            else:
                yield {"method": method} if isinstance(method, str) else method

    def _cells(self, block: Mapping[str, Any], column: PlannedColumn, row: PlannedRow) -> Iterator[PlannedRun]:
        dataset = self._said["datasets"].get(block["dataset"], {})
        size, of_dataset = self._sizes, dataset.get(self.size, {})
        # Overrides of the size take precedence, except over those that distinguish the rows.
        overrides = dataset.get("overrides", {}) | block["overrides"] | size.get("overrides", {})
        overrides |= size.get("of_methods", {}).get(row.method, {}) | of_dataset.get("overrides", {}) | row.overrides
        search = block.get("search")
        trials = min(search["trials"], size.get("most_trials", search["trials"])) if search and row.search else 0
        preset = row.preset or block.get("preset", "paper")
        label = [row.method] + [preset] * (preset != "paper")
        label += [hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:8]] * bool(overrides)
        label += [f"tuned{trials}"] * (trials > 0)
        seeds: Sequence[int] = block.get("seeds", size["seeds"]) if self.size == "full" else size["seeds"]
        for seed in seeds:
            yield PlannedRun(
                experiment=column.experiment,
                label="-".join(label),
                method=row.method,
                seed=seed,
                store=column.store,
                preset=preset,
                task=column.task,
                scheme=column.scheme,
                modalities=column.view,
                missingness=(column.missingness and replace(column.missingness, seed=seed, modalities=column.view)),
                overrides=overrides,
                transforms=column.transforms,
                trials=trials,
                first_seed=seeds[0],
                test=column.test,
            )


def _row(said: Mapping[str, Any]) -> PlannedRow:
    name = said["method"] + (f" ({said['preset']})" if "preset" in said else "")
    return PlannedRow(**{"name": name, **said})


def _with_hiding(row: PlannedRow, rates: Sequence[float] | None) -> list[PlannedRow]:
    """One row per rate of hiding modalities in training; methods without gradient steps have one row in any case."""
    if rates is None or not gradient_steps(row.method):
        return [row]
    rows = [replace(row, name=f"{row.name}, hiding {r:g}", published="" if r else row.published) for r in rates]
    given = [{**row.overrides, "drop_modalities": float(rate)} for rate in rates]
    return [replace(row, overrides=overrides) for row, overrides in zip(rows, given, strict=True)]


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [said]


def _transform_faults(place: str, entry: Mapping[str, Any]) -> Iterator[str]:
    try:
        parse_transforms(entry.get("transforms", {}), place)
    except MrpipeError as error:
        yield str(error)


def _levels(said: Mapping[str, Any] | None, block: Mapping[str, Any]) -> list[Missingness | None]:
    """The given missingness settings of a block, one per value of `p`."""
    if not said:
        return [None]
    task = block.get("task") if said.get("mechanism") == "mnar_label" else None
    return [Missingness(**{**said, "p": value}, task=task) for value in _listed(said["p"])]
