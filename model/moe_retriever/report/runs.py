"""Finished run folders, their grouping into experiments, and all scores as one tidy frame."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from moe_retriever.catalogue import about
from moe_retriever.data.scores import SCORE_COLUMNS
from moe_retriever.evaluation.run_folders import hidden_rate, read_metrics, read_scores, with_hidden
from moe_retriever.report.stores import public
from moe_retriever.suites.published import dataset_title, missingness_title
from moe_retriever.suites.spec import SuiteRow
from moe_retriever.suites.tables import strongest_controls
from mrpipe.errors import UsageError
from mrpipe.experiment.missingness import non_default, p_text
from mrpipe.reading import read_json
from mrpipe.store.masks import combination_name

# Properties shared by the runs of an experiment, and keys of a run.
EXPERIMENT = ("dataset", "store_id", "origin", "task", "scheme", "modalities", "missingness", "transforms")
KEYS = (*EXPERIMENT, "method", "preset", "seed")
_SCORES = {**dict.fromkeys(KEYS[:-1], pl.String), "seed": pl.Int64, "hidden": pl.Float64, **SCORE_COLUMNS}


@dataclass(frozen=True)
class ReportedRun:
    """One finished run folder.

    Attributes:
        metrics, config: contents of metrics.json and config.json.
        cost, test_cost: contents of cost.json and test_cost.json: times and software versions.
        variant: options that distinguish the run from others of the same name; empty if there are none.
    """

    folder: Path
    metrics: dict[str, Any]
    config: dict[str, Any]
    cost: dict[str, Any]
    test_cost: dict[str, Any]
    variant: str = ""

    @property
    def method(self) -> str:
        return str(self.metrics["method"])

    @property
    def seed(self) -> int:
        return int(self.metrics["seed"])

    @property
    def label(self) -> str:
        preset = self.metrics["preset"]
        name = self.method + ("" if preset == "paper" else f" ({preset})")
        return f"{name} [{self.variant}]" if self.variant else name

    @property
    def options(self) -> dict[str, Any]:
        """All options of the run except its seed; runs of a method with equal options are repetitions."""
        return {**self.config["common"], **self.config["options"]}

    @property
    def changed(self) -> dict[str, Any]:
        """Options that differ from those of the preset in the present version."""
        from moe_retriever.config import make_config
        from moe_retriever.methods import get

        try:
            preset = make_config(get(self.method), preset=self.config["preset"], seed=0, overrides={})
        except UsageError:
            return {}
        usual = {**asdict(preset.common), **asdict(preset.own)}
        return {k: v for k, v in sorted(self.options.items()) if k in usual and v != usual[k]}

    @property
    def missingness(self) -> str:
        """The simulated missingness in results.csv, without the seed; includes non-default settings."""
        mask = self.metrics["mask"]
        if not mask:
            return "as observed"
        own = (f"{k}={v}" for k, v in non_default(mask).items())
        return " ".join([f"{mask['mechanism']} p={p_text(mask['p'])}", *own])

    @property
    def transforms(self) -> dict[str, Any]:
        """Transform options that differ from their defaults."""
        return dict(self.metrics.get("transforms", {}))

    @property
    def dataset(self) -> str:
        return dataset_title(self.metrics["dataset"], self.metrics.get("title", ""))

    @property
    def experiment(self) -> tuple[str, ...]:
        """Key of the experiment: runs of one table, which share data, view, missingness and transforms."""
        m = self.metrics
        shared = (*(m[k] for k in EXPERIMENT[:5]), combination_name(m["modalities"]), self.missingness)
        return *shared, ", ".join(f"{k}={v}" for k, v in sorted(self.transforms.items()))

    def rows(self) -> Iterable[dict[str, Any]]:
        """Tidy rows, one per group and metric."""
        frame = read_scores(self.folder)
        key = dict(zip(KEYS, (*self.experiment, self.label, self.metrics["preset"], self.seed), strict=True))
        return (key | row | {"hidden": hidden_rate(self.metrics)} for row in frame.iter_rows(named=True))


def masked(runs: Sequence[ReportedRun]) -> dict[str, Any] | None:
    """Mechanism, p and non-default settings of the missingness, with the mean realised rate of the masks."""
    first = runs[0].metrics
    mask = with_hidden(first["mask"] or None, (run.metrics for run in runs))
    # The task is named only if it differs from that of the runs.
    own = {k: v for k, v in non_default(mask or {}).items() if (k, v) != ("task", first["task"])}
    return mask and {"mechanism": mask["mechanism"], "p": mask["p"], **own}


def missingness_of(runs: Sequence[ReportedRun]) -> str:
    """The simulated missingness of an experiment as displayed."""
    return missingness_title(masked(runs))


def read_run(folder: Path) -> ReportedRun:
    """Read a run folder.

    Raises:
        DataError: the run is not finished, or a file of it is damaged.
    """
    metrics = read_metrics(folder)
    config = read_json(folder / "config.json", "the settings of a run", keys=("common", "options"))
    cost, test = (read_json(p) if p.is_file() else {} for p in (folder / "cost.json", folder / "test_cost.json"))
    return ReportedRun(folder, metrics, config, cost, test)


def tell_apart(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """Mark runs with equal labels but different options as variants, named by the differing options."""
    together: defaultdict[tuple[tuple[str, ...], str], list[ReportedRun]] = defaultdict(list)
    for run in runs:
        together[run.experiment, run.label].append(run)
    differing = {}
    for key, members in together.items():
        names = {name for run in members for name in run.options}
        differing[key] = sorted(n for n in names if len({json.dumps(run.options.get(n)) for run in members}) > 1)

    def variant(run: ReportedRun) -> str:
        return ", ".join(f"{k}={public(run.options.get(k))}" for k in differing[run.experiment, run.label])

    return [replace(run, variant=variant(run)) for run in runs]


def by_experiment(runs: Sequence[ReportedRun]) -> dict[tuple[str, ...], list[ReportedRun]]:
    groups: defaultdict[tuple[str, ...], list[ReportedRun]] = defaultdict(list)
    for run in runs:
        groups[run.experiment].append(run)
    return dict(groups)


def strongest_control(runs: Sequence[ReportedRun], metric: str) -> str | None:
    """Label of the control of an experiment with the best mean validation score; None if there is no choice."""
    rows = {run.label: SuiteRow(run.label, run.method, "", "", about(run.method).control) for run in runs}
    validation: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for run in runs:
        validation[run.label].append(run.metrics["training"].get("val", {}))
    return strongest_controls(list(rows.values()), validation).get(metric)


def tidy(runs: Sequence[ReportedRun]) -> pl.DataFrame:
    """All scores, one row per run, group of samples and metric."""
    return pl.DataFrame([row for run in runs for row in run.rows()], schema=_SCORES)
