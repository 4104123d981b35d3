"""Cost of training and inference, from the measurements in the run folders."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from moe_retriever.report.runs import ReportedRun


def of_experiment(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """One entry per method: parameters, devices, and epochs, times and samples per second as means over seeds."""
    rows = []
    for label in dict.fromkeys(run.label for run in runs):
        mine = [run for run in runs if run.label == label]
        rows.append(
            {
                "method": label,
                "seeds": len(mine),
                "parameters": mine[0].metrics["training"]["parameters"],
                "epochs": _mean([run.metrics["training"].get("epochs") for run in mine]),
                "epoch_seconds": _mean([run.cost.get("epoch_seconds") for run in mine]),
                "train_seconds": _mean([run.cost.get("train_seconds") for run in mine]),
                "train_rate": _mean([run.cost.get("samples_per_second") for run in mine]),
                "test_rate": _mean([run.test_cost.get("samples_per_second") for run in mine]),
                "device": ", ".join(sorted({_device(run) for run in mine if run.cost})),
            }
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None


def _device(run: ReportedRun) -> str:
    threads = run.cost.get("threads")
    return f"{str(run.cost['device']).replace('cpu', 'CPU')}, {threads} thread{'' if threads == 1 else 's'}"
