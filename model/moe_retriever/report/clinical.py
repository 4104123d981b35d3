"""Clinical performance in the experiments with two classes."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from moe_retriever.catalogue import method_title
from moe_retriever.evaluation.clinical import measure, read_binary
from moe_retriever.plots.clinical import FIGURES, clinical_figure
from moe_retriever.report.drawing import draw
from moe_retriever.report.experiments import anchor_of, experiment_title
from moe_retriever.report.runs import ReportedRun, missingness_of, strongest_control
from moe_retriever.suites.spec import REFERENCE
from mrpipe.privacy import SMALL, rounded


def describe_clinical(
    runs: Sequence[ReportedRun], figures: Path, more: Sequence[str], public: Collection[str]
) -> dict[str, Any]:
    """Template variables of an experiment with two classes, with `table`, all its numbers.

    Args:
        more: threshold rules of the user.
        public: ids of the stores of which small groups are shown, and sizes are not rounded.
    """
    key, first, size = runs[0].experiment, runs[0].metrics, pl.col("n", "events")
    exact, anchor = first["store_id"] in public, f"clinical-{anchor_of(key)}"
    found = {}
    for label in dict.fromkeys(run.label for run in runs):
        tested = [read_binary(run.folder) for run in runs if run.label == label]
        frame = measure(tested, more, seed=runs[0].seed, smallest=0 if exact else SMALL)
        # A threshold is the probability of a validation sample, and is rounded as well.
        hidden = () if exact else (pl.when(size >= SMALL).then(rounded(size)), pl.col("x").round(3))
        named = pl.lit(anchor_of(key)).alias("experiment"), pl.lit(label).alias("method")
        found[label] = frame.with_columns(*hidden).select(*named, pl.all())
    chosen = _chosen(runs, found)
    shown = {label: found[label] for label in dict.fromkeys(chosen.values())}
    curves = {method_title(label): frame for label, frame in shown.items()}
    pictures = []
    for name, (title, *_) in FIGURES.items():
        label, path = f"{title} of {', '.join(curves)}.", figures / f"{anchor}-{name}.svg"
        pictures.append(draw(clinical_figure(name, curves), path, label=label, caption=f"{title}."))
    table = pl.concat(found.values())
    cells: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for row in table.filter(pl.col("by") != "curve").iter_rows(named=True):
        of_method = cells.setdefault(row["by"], {}).setdefault(row["group"], {}).setdefault(row["method"], dict(row))
        of_method[row["metric"]] = row
    return {
        **{"anchor": anchor, "chosen": chosen, "shown": list(shown), "pictures": pictures, "cells": cells},
        **{"table": table, "others": [m for m in found if m not in shown], "event": first["classes"][1]},
        "heading": f"{experiment_title(runs[0])}, {missingness_of(runs)}",
        "rule": next(rule for rule in (*reversed(more), "youden", "0.5") if rule in cells["threshold"]),
        "without_validation": [m for m in found if m not in cells["threshold"].get("youden", {})],
    }


def _chosen(runs: Sequence[ReportedRun], found: Mapping[str, pl.DataFrame]) -> dict[str, str]:
    """Role → method: MoE-Retriever, the control with the best mean validation AUROC, and the best test AUROC."""
    control = strongest_control(runs, "auroc") or ""
    best = pl.concat(found.values()).filter(by="overall", metric="auroc").sort("value")["method"][-1]
    chosen = {"reference": next((run.label for run in runs if run.method == REFERENCE), "")}
    chosen |= {"strongest control on validation samples": control, "highest AUROC on test samples": best}
    return {role: label for role, label in chosen.items() if label}
