"""Paired difference of two rows over several columns of rendered suites together, such as all rates of missingness.

    python -m benchmarks.pooled --results results --suites findings_mosi findings_mosi_p --row MoE-Retriever \\
        --against "attention mask" "released code"

Each (column, seed) counts as one run; a resample draws these runs and the test subjects (`model.compare`). Beside all
test samples, those that have one combination of modalities. Prints percentage points of a metric.
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
    """Number of a (column, seed) → the row's predictions and what each sample has; finished runs only."""
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
    """`all` or a combination of modalities → row − other."""
    ours, theirs = (predictions(results, columns, name) for name in (row, other))
    groups = sorted({name for _, having in ours.values() for name in having})
    found = {}
    for group in (ALL, *groups):
        runs = {
            name: {number: _part(told, having, group) for number, (told, having) in of.items()}
            for name, of in ((row, ours), (other, theirs))
        }
        estimate = Comparison(runs).difference(row, other, metric)
        if estimate is not None:
            found[group] = estimate
    return found


def _part(told: Predicted, having: pl.Series, group: str) -> Predicted:
    keep = having.len() * [True] if group == ALL else (having == group).to_list()
    return Predicted(told.label[keep], told.probability[keep], told.subject[keep])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the workflow's folder of results")
    parser.add_argument("--suites", nargs="+", required=True, help="rendered tables whose columns are pooled")
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
