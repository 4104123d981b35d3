"""Cost of training and inference, from the measurements in the run folders."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from moe_retriever.catalogue import method_title
from moe_retriever.report.runs import ReportedRun


def of_experiment(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """One entry per method: parameters, devices, and epochs, times and samples per second as means over seeds."""
    rows = []
    for label in dict.fromkeys(run.label for run in runs):
        mine = [run for run in runs if run.label == label]
        measured = {
            "epochs": [run.metrics["training"].get("epochs") for run in mine],
            **{name: [run.cost.get(name) for run in mine] for name in ("epoch_seconds", "train_seconds")},
            "train_rate": [run.cost.get("samples_per_second") for run in mine],
            "test_rate": [run.test_cost.get("samples_per_second") for run in mine],
        }
        row = {k: pl.Series(values, dtype=pl.Float64).mean() for k, values in measured.items()}
        row |= {"method": method_title(label), "seeds": len(mine)}
        row["parameters"] = mine[0].metrics["training"]["parameters"]
        rows.append(row | {"device": ", ".join(sorted({_device(run) for run in mine if run.cost}))})
    return rows


def _device(run: ReportedRun) -> str:
    threads = run.cost.get("threads")
    return f"{str(run.cost['device']).replace('cpu', 'CPU')}, {threads} thread{'' if threads == 1 else 's'}"
