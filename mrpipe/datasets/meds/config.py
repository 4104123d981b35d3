"""The YAML that declares samples, labels and modalities of a MEDS dataset (docs/meds.md), and its parser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.declared import Declaration, canonical, config_path, listed, read_text
from mrpipe.options import option
from mrpipe.schema import Task

PAGE, SCHEMA = "docs/meds.md", Path(__file__).with_name("schema.yaml")
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
    return parse_meds(*read_text(config_path(raw, options.config, PAGE)))


def parse_meds(text: str, shown_as: str) -> MedsConfig:
    """Parse the text of a YAML; all of its errors are one DataError."""
    parser = _MedsParser(shown_as)
    config = parser.config(parser.load(text, SCHEMA))
    parser.raise_if_any()
    return config


class _MedsParser(Declaration):
    """Converts plain values to the dataclasses of a MEDS declaration."""

    def config(self, top: Mapping[str, Any]) -> MedsConfig:
        self.rules: dict[str, Codes] = {}
        samples = self.samples(top.get("samples", {}))
        labels = tuple(self.label(str(name), entry, samples) for name, entry in top.get("labels", {}).items())
        modalities = tuple(self.modality(str(name), entry) for name, entry in top.get("modalities", {}).items())
        return MedsConfig(
            shown_as=self.shown_as, samples=samples, labels=labels, modalities=modalities, rules=self.rules
        )

    def codes(self, entry: Mapping[str, Any], key: str, place: str) -> Codes:
        if key not in entry:
            return Codes()
        prefixes = [p for p in listed(entry[key]) if p[0] != "!"]
        found = Codes(tuple(prefixes), tuple(p[1:] for p in listed(entry[key]) if p[0] == "!"))
        self.rules[f"{place}.{key}"] = found
        return found

    def samples(self, entry: Mapping[str, Any]) -> MedsSamples:
        file = self.inside(entry.get("file", ""), "samples.file")
        event, end = (self.codes(entry, key, "samples") for key in ("event", "end"))
        return MedsSamples(file=file, event=event, end=end, at=_seconds(entry, "at"), which=entry.get("which", "all"))

    def label(self, name: str, entry: Mapping[str, Any], samples: MedsSamples) -> MedsLabel:
        place, column = f"labels.{name}", entry.get("column", "")
        if column and samples.event.prefixes:
            self.fault(f"{place}.column", "`event`, without samples.file", column)
        default = ["no", "yes"] if column in ("", "boolean_value") else []
        classes = tuple(map(canonical, entry.get("classes", default)))
        if len(set(classes)) < len(classes):
            self.fault(f"{place}.classes", "each class once", list(classes))
        return MedsLabel(
            task=Task(name=name, kind="classification" if classes else "regression", classes=classes),
            column=column,
            event=self.codes(entry, "event", place),
            within=_seconds(entry, "within"),
            until=self.codes(entry, "until", place),
            follow_up=entry.get("follow_up", False),
        )

    def modality(self, name: str, entry: Mapping[str, Any]) -> MedsModality:
        codes = self.codes(entry, "codes", f"modalities.{name}")
        return MedsModality(name=name, codes=codes, form=entry.get("form", "values"), window=_seconds(entry, "window"))


def _seconds(entry: Mapping[str, str], key: str) -> int | None:
    value = entry.get(key)
    return None if value is None else round(float(value[:-1]) * _SECONDS[value[-1]])
