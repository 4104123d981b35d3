"""Paired difference of two rows, pooled over several columns of rendered suites, such as all missingness rates.

    python -m benchmarks.pooled --results results --suites findings_mosi findings_mosi_p --row MoE-Retriever \\
        --against "attention mask" "released code"

Each (column, seed) counts as one run; a resample draws these runs and the test subjects. Prints differences in
percentage points of a metric, for all test samples and for each combination of modalities.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from moe_retriever.evaluation.paired import Comparison, Estimate, Predicted
from moe_retriever.evaluation.run_folders import finished, tested
from moe_retriever.suites.spec import SuiteColumn, read_suite

ALL = "all"


def predictions(results: Path, columns: Sequence[SuiteColumn], row: str) -> dict[int, tuple[Predicted, pl.Series]]:
    """Map (column, seed) numbers to the row's predictions and each sample's modalities; finished runs only."""
    found = {}
    for number, column in enumerate(columns):
        for name, seed, folder in column.runs():
            run = results / "runs" / folder
            if name == row and finished(run):
                frame = pl.read_parquet(run / "predictions.parquet").sort("sample_id")
                found[1000 * number + seed] = tested(run), frame["modalities"]
    return found


def differences(
    results: Path, columns: Sequence[SuiteColumn], row: str, other: str, metric: str
) -> dict[str, Estimate]:
    """Map `all` and each combination of modalities to the difference row − other."""
    ours, theirs = (predictions(results, columns, name) for name in (row, other))
    groups = sorted({name for _, observed in ours.values() for name in observed})
    found = {}
    for group in (ALL, *groups):
        runs = {
            name: {number: _subset(predicted, observed, group) for number, (predicted, observed) in runs_of.items()}
            for name, runs_of in ((row, ours), (other, theirs))
        }
        estimate = Comparison(runs).difference(row, other, metric)
        if estimate is not None:
            found[group] = estimate
    return found


def _subset(predicted: Predicted, observed: pl.Series, group: str) -> Predicted:
    keep = observed.len() * [True] if group == ALL else (observed == group).to_list()
    return Predicted(predicted.label[keep], predicted.prediction[keep], predicted.subject[keep])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="results folder of the workflow")
    parser.add_argument("--suites", nargs="+", required=True, help="rendered suites whose columns are pooled")
    parser.add_argument("--row", required=True)
    parser.add_argument("--against", nargs="+", required=True, metavar="ROW")
    parser.add_argument("--metric", default="accuracy")
    options = parser.parse_args(arguments)
    files = [options.results / "suites" / name / "suite.json" for name in options.suites]
    columns = [column for file in files for column in read_suite(file).columns]
    table = Table("against", "samples with", f"{options.row} − other, {options.metric}", "95 % interval", box=None)
    for other in options.against:
        for group, e in differences(options.results, columns, options.row, other, options.metric).items():
            bounds = "" if e.low is None or e.high is None else f"{100 * e.low:+.1f} … {100 * e.high:+.1f}"
            table.add_row(other, group, f"{100 * e.value:+.1f}", bounds)
    Console().print(table)


if __name__ == "__main__":
    main()
