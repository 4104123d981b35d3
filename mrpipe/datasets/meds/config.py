"""The YAML that declares samples, labels and modalities of a MEDS dataset (docs/meds.md), and its parser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.tables.parser import MAX_MODALITIES, Declaration, config_path, load_yaml
from mrpipe.delimited import decode
from mrpipe.errors import DataError
from mrpipe.options import option
from mrpipe.schema import Task

FORMS = ("values", "summary", "codes", "counts")
# Columns of a MEDS label file; numbers without a list of classes are a regression.
LABEL_COLUMNS = ("boolean_value", "integer_value", "float_value", "categorical_value")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Codes:
    """The codes that begin with one of `prefixes`, but with none of `exclude`; none without prefixes."""

    prefixes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def chosen(self) -> pl.Expr:
        """Whether the column `code` is one of them."""
        yes, no = ([pl.col("code").str.starts_with(p) for p in part] for part in (self.prefixes, self.exclude))
        return pl.any_horizontal(pl.lit(False), *yes) & ~pl.any_horizontal(pl.lit(False), *no)


@dataclass(frozen=True, kw_only=True)
class MedsSamples:
    """Samples and prediction times: the rows of a label file, or events (all, or the first or last of a subject).

    The prediction time is `at` seconds after the event; None: when its stay ends, at the next event of `end`.
    """

    file: str
    event: Codes
    end: Codes
    at: int | None
    which: str


@dataclass(frozen=True, kw_only=True)
class MedsLabel:
    """A task and its label: a column of the label file, or whether an event follows the prediction time.

    The window of the event ends after `within` seconds or with the first event of `until`; without both, it does not.
    `follow_up`: samples without the event have a label only if their record reaches the end of the window.
    """

    task: Task
    column: str
    event: Codes
    within: int | None
    until: Codes
    follow_up: bool


@dataclass(frozen=True, kw_only=True)
class MedsModality:
    """One modality: events of some codes, from the `window` seconds before the prediction time (None: all history)."""

    name: str
    codes: Codes
    form: str
    window: int | None


@dataclass(frozen=True, kw_only=True)
class MedsConfig:
    """A declared dataset; `rules` are the codes of all entries, by their place in the YAML."""

    shown_as: str
    samples: MedsSamples
    labels: tuple[MedsLabel, ...]
    modalities: tuple[MedsModality, ...]
    rules: Mapping[str, Codes]


@dataclass(frozen=True, kw_only=True)
class MedsOptions:
    """Options of the reader."""

    config: str = option("meds.yaml", "YAML file that declares the dataset: a file in the export folder, or any path")


def read_config(raw: Path, options: MedsOptions) -> MedsConfig:
    """Read and validate the YAML; no other file is opened. All of its errors are one DataError."""
    path = config_path(raw, options, "docs/meds.md")
    return parse_meds(decode(path.read_bytes(), shown_as=path.name), path.name)


def parse_meds(text: str, shown_as: str) -> MedsConfig:
    """Parse the text of a YAML; all of its errors are one DataError."""
    parser = _MedsParser(shown_as)
    top = parser.section(load_yaml(text, shown_as), "top level", ("samples", "labels", "modalities"))
    samples = parser.samples(top.get("samples"))
    labels = tuple(parser.label(*entry, samples) for entry in parser.named(top, "labels"))
    modalities = tuple(parser.modality(*entry) for entry in parser.named(top, "modalities"))
    if parser.faults:
        raise DataError(parser.faults)
    return MedsConfig(shown_as=shown_as, samples=samples, labels=labels, modalities=modalities, rules=parser.rules)


class _MedsParser(Declaration):
    """Converts plain values to the dataclasses of a MEDS declaration."""

    def __init__(self, shown_as: str):
        super().__init__(shown_as)
        self.rules: dict[str, Codes] = {}

    def named(self, top: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
        entries: Any = top.get(key)
        names = list(entries) if isinstance(entries, Mapping) else []
        if not 0 < len(names) <= MAX_MODALITIES or any(not re.fullmatch(r"[A-Za-z]\w*", str(n), re.A) for n in names):
            expected = f"1 to {MAX_MODALITIES} entries, each below a name of letters, digits and _"
            self.fault(key, expected, "nothing" if entries is None else names)
        return [(str(name), entries[name]) for name in names]

    def codes(self, entry: Mapping[str, Any], key: str, place: str) -> Codes:
        if key not in entry:
            return Codes()
        value: Any = entry[key]
        items: list[Any] = list(value) if isinstance(value, list) else [value]
        if any(not isinstance(v, str) or not v.strip("!") for v in items) or all(v.startswith("!") for v in items):
            self.fault(f"{place}.{key}", "prefixes of codes, as text; those after a ! are excluded", value)
            return Codes()
        found = Codes(*(tuple(v.strip("!") for v in items if (v[0] == "!") is no) for no in (False, True)))
        self.rules[f"{place}.{key}"] = found
        return found

    def seconds(self, entry: Mapping[str, Any], key: str, place: str) -> int | None:
        match = re.fullmatch(r"(-?\d+(?:\.\d+)?) ?([mhdw])", str(entry.get(key)), re.ASCII)
        if key in entry and not match:
            self.fault(f"{place}.{key}", "a duration, such as 90m, 24h, 30d or 2w", entry[key])
        return round(float(match[1]) * _SECONDS[match[2]]) if match else None

    def choice(self, entry: Mapping[str, Any], key: str, place: str, known: tuple[Any, ...]) -> Any:
        value = entry.get(key, known[0])
        if value not in known:
            self.fault(f"{place}.{key}", f"one of {', '.join(map(str, known))}", value)
        return value

    def samples(self, value: Any) -> MedsSamples:
        entry = self.section(value, "samples", ("file", "event", "end", "at", "which"))
        file = self.text(entry, "file", "samples.")
        if (len(entry) != 1) if file else not ("event" in entry and {"at", "end"} & entry.keys()):
            expected = "`file`, a label file, alone; or `event` and the prediction time: `at` after it, or at its `end`"
            self.fault("samples", expected, ", ".join(entry) or "nothing")
        if Path(file).is_absolute() or ".." in Path(file).parts:
            self.fault("samples.file", "a path inside the export folder", file)
        event, end = (self.codes(entry, key, "samples") for key in ("event", "end"))
        which = self.choice(entry, "which", "samples", ("all", "first", "last"))
        return MedsSamples(file=file, event=event, end=end, at=self.seconds(entry, "at", "samples"), which=which)

    def label(self, name: str, value: Any, samples: MedsSamples) -> MedsLabel:
        place = f"labels.{name}"
        entry = self.section(value, place, ("column", "classes", "event", "within", "until", "follow_up"))
        if ("event" in entry) == ("column" in entry) or ("column" in entry and not samples.file):
            self.fault(place, "`event` or, with samples.file, `column`", ", ".join(entry) or "nothing")
        column = self.choice(entry, "column", place, ("", *LABEL_COLUMNS))
        binary = column in ("", "boolean_value")
        classes = self.values(entry.get("classes", ["no", "yes"] if binary else []), f"{place}.classes")
        task = Task(name=name, kind="classification" if classes else "regression", classes=classes)
        n = len(set(classes))
        if n < len(classes) or n == 1 or (binary and n != 2) or (not n and column == "categorical_value"):
            self.fault(f"{place}.classes", "two names" if binary else "at least two values, each once", list(classes))
        event, until = (self.codes(entry, key, place) for key in ("event", "until"))
        within, follow_up = self.seconds(entry, "within", place), self.choice(entry, "follow_up", place, (False, True))
        return MedsLabel(task=task, column=column, event=event, within=within, until=until, follow_up=follow_up)

    def modality(self, name: str, value: Any) -> MedsModality:
        place = f"modalities.{name}"
        entry = {"codes": None, **self.section(value, place, ("codes", "form", "window"))}
        codes, form = self.codes(entry, "codes", place), self.choice(entry, "form", place, FORMS)
        return MedsModality(name=name, codes=codes, form=form, window=self.seconds(entry, "window", place))
