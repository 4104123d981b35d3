"""The YAML that declares samples, labels and modalities of a MEDS dataset (docs/meds.md), and its parser."""

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

    file: str = ""
    event: Codes = Codes()
    end: Codes = Codes()
    at: int | None = None
    which: str = "all"


@dataclass(frozen=True, kw_only=True)
class MedsLabel:
    """A task and its label: a column of the label file, or whether an event follows the prediction time.

    The window of the event ends after `within` seconds or with the first event of `until`; without both, it does not.
    `follow_up`: samples without the event have a label only if their record reaches the end of the window.
    """

    task: Task
    column: str = ""
    event: Codes = Codes()
    within: int | None = None
    until: Codes = Codes()
    follow_up: bool = False


@dataclass(frozen=True, kw_only=True)
class MedsModality:
    """One modality: events of some codes, from the `window` seconds before the prediction time (None: all history)."""

    name: str
    codes: Codes = Codes()
    form: str = "values"
    window: int | None = None


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
        samples = MedsSamples(**self.values(top.get("samples", {}), "samples"))
        self.inside(samples.file, "samples.file")
        labels = tuple(self.label(str(name), entry, samples) for name, entry in top.get("labels", {}).items())
        modalities = tuple(
            MedsModality(name=str(name), **self.values(entry, f"modalities.{name}"))
            for name, entry in top.get("modalities", {}).items()
        )
        return MedsConfig(
            shown_as=self.shown_as, samples=samples, labels=labels, modalities=modalities, rules=self.rules
        )

    def values(self, entry: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Arguments of a dataclass: prefixes become `Codes`, and durations seconds."""
        found: dict[str, Any] = {}
        for key, value in entry.items():
            if key in ("event", "end", "until", "codes"):
                no, yes = ([p.removeprefix("!") for p in listed(value) if (p[0] == "!") is x] for x in (True, False))
                found[key] = self.rules[f"{place}.{key}"] = Codes(tuple(yes), tuple(no))
            else:
                seconds = key in ("at", "within", "window")
                found[key] = round(float(value[:-1]) * _SECONDS[value[-1]]) if seconds else value
        return found

    def label(self, name: str, entry: Mapping[str, Any], samples: MedsSamples) -> MedsLabel:
        place, values = f"labels.{name}", self.values(entry, f"labels.{name}")
        column = entry.get("column", "")
        if column and samples.event.prefixes:
            self.fault(f"{place}.column", "`event`, without samples.file", column)
        default = ["no", "yes"] if column in ("", "boolean_value") else []
        classes = tuple(map(canonical, values.pop("classes", default)))
        if len(set(classes)) < len(classes):
            self.fault(f"{place}.classes", "each class once", list(classes))
        task = Task(name=name, kind="classification" if classes else "regression", classes=classes)
        return MedsLabel(task=task, **values)
