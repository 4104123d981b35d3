"""Summary printed at the end of a workflow run: the answer, scores, and the paths of the stores and the reports."""

from collections.abc import Collection, Iterator
from pathlib import Path
from statistics import fmean, stdev

import polars as pl
from rich.console import Console
from rich.table import Table

from moe_retriever.catalogue import method_title
from moe_retriever.metrics import METRIC
from moe_retriever.suites.published import dataset_title, missingness_from_text, task_title
from mrpipe.errors import MrpipeError
from mrpipe.store.reader import open_store

SHOWN = ("accuracy", "macro_f1", "auroc", "mae", "corr")
EXPERIMENT = ["dataset", "store_id", "origin", "task", "scheme", "modalities", "missingness"]


def print_summary(results: Path, reports: Collection[Path] | None = None) -> None:
    """Print the contents of a results folder, skipping whatever has not been built.

    Args:
        reports: folders of the requested reports; default: that of the configuration.
    """
    console = Console(soft_wrap=True)
    reports = [results / "report"] if reports is None else reports
    scores = results / "report" / "results.csv"
    for folder in reports:
        answer = folder / "answer.md"  # its sentences are a list, followed by tables; a suite's are printed as well
        text = answer.read_text(encoding="utf-8").strip() if answer.is_file() else ""
        if folder == scores.parent:
            text = "\n".join(line for line in text.splitlines() if line.startswith("* "))
        if text:
            console.print(f"{text}\n", markup=False, highlight=False)
    if scores.is_file() and scores.parent in reports:
        numbers = dict.fromkeys(("value", "hidden"), pl.Float64)
        # Without runs the file has only a header, from which types cannot be inferred.
        frame = pl.read_csv(scores, schema_overrides={"group": pl.String, "seed": pl.Int64, **numbers})
        for table in score_tables(frame):
            console.print(table)
        if "simulated" in frame["origin"]:
            console.print("Simulated exports: the scores only show that the pipeline works.")
    for manifest in sorted(results.glob("stores/*/manifest.json")):
        try:
            store = open_store(manifest.parent)
        except MrpipeError as error:
            console.print(f"store   {manifest.parent}: {error}")
            continue
        kind = f"{store.manifest.n_samples} samples, {store.manifest.origin}, {store.store_id}"
        console.print(f"store   {manifest.parent}  ({kind})", highlight=False)
    for page in (folder / "index.html" for folder in reports):
        if page.is_file():
            console.print(f"report  {page}", highlight=False, markup=False)


def score_tables(scores: pl.DataFrame) -> Iterator[Table]:
    """Test scores over all samples: one table per experiment, one row per method, mean ± SD over seeds.

    Args:
        scores: `results.csv`, one row per run, group of samples and metric.
    """
    overall = scores.filter(by="all")
    for key, experiment in overall.group_by(*EXPERIMENT, maintain_order=True):
        dataset, store_id, origin, task, scheme, modalities, missingness = key
        data = f"{dataset_title(dataset)} ({origin}, store {store_id}, {scheme} split)"
        rates = experiment["hidden"].drop_nulls().to_list()
        missing = missingness_from_text(missingness, fmean(rates) if rates else None)
        task = f"{task_title(task)} from {modalities.replace('+', ' + ')}"
        title = f"{data}: {task}, {missing}, n = {experiment['n'][0]}"
        table = Table(title=title, title_justify="left")
        shown = [m for m in SHOWN if m in experiment["metric"]]
        for name in ("method", "seeds", *(METRIC[m].titled.replace(" (%)", " %") for m in shown)):
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for (method,), runs in experiment.group_by("method", maintain_order=True):
            seeds = str(runs["seed"].n_unique())
            table.add_row(method_title(method), seeds, *(_cell(runs.filter(metric=m)["value"], m) for m in shown))
        yield table


def _cell(values: pl.Series, metric: str) -> str:
    known: list[float] = (values.drop_nulls() * METRIC[metric].factor).to_list()
    if not known:
        return "–"
    digits = 1 if METRIC[metric].percent else 3
    return f"{fmean(known):.{digits}f}" + (f" ± {stdev(known):.{digits}f}" if len(known) > 1 else "")
