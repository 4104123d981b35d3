"""Scores of all finished runs in one tidy table, and the predictions of single runs for comparisons."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl

from moe_retriever.data.scores import PLAIN, SCORE_COLUMNS, Rules
from moe_retriever.evaluation.paired import Predicted
from mrpipe.errors import DataError, Fault
from mrpipe.experiment.missingness import ALL
from mrpipe.experiment.truth import ANY
from mrpipe.reading import RUN_AGAIN, read_frame, read_json, reading
from mrpipe.store.masks import combination_name
from mrpipe.store.parquet import write_frame

# The configuration is a long text, identical in all rows of a run; a categorical column stores it once.
_TEXTS = ("run", "dataset", "store_id", "origin", "task", "scheme", "modalities", "test", "mechanism")
SCHEMA = pl.Schema(
    {**dict.fromkeys(_TEXTS, pl.String), "p": pl.Float64, "hidden": pl.Float64}
    | {"method": pl.String, "preset": pl.String, "seed": pl.Int64}
    | {**SCORE_COLUMNS, "code_hash": pl.String, "config": pl.Categorical()}
)
# Keys of metrics.json that all readers of runs use.
NEEDED = ("dataset", "store_id", "origin", "task", "scheme", "method", "preset", "seed", "mask", "modalities")


def finished(run: Path) -> bool:
    """Whether a run was trained and evaluated; metrics.json is written last."""
    return (run / "metrics.json").is_file()


def read_metrics(run: Path) -> dict[str, Any]:
    """Content of the metrics.json of a run or of its evaluation under a protocol.

    Raises:
        DataError: the file is damaged, or another version wrote it.
    """
    return read_json(run / "metrics.json", "the metrics of an evaluated run", keys=(*NEEDED, "training"))


def write_results(root: Path, out: Path) -> pl.DataFrame:
    """Write one row per evaluation of a run below `root`, group of samples and metric; see `SCHEMA`.

    `run` is the folder relative to `root`; `by` and `group` define the samples as in metrics.csv; `low` and `high` are
    the run's bootstrap interval; `mechanism` and `p` describe the simulated missingness of the training (null if there
    is none; p also if it differs by modality); `test` is the name of the evaluation's protocol; `hidden` is the
    realised rate of the evaluated samples; `config` is the content of config.json.
    """
    frames = [SCHEMA.to_frame()]
    for path in sorted([*root.glob("*/*/seed*/metrics.json"), *root.glob("*/*/seed*/tests/*/metrics.json")]):
        folder = path.parent
        said = read_metrics(folder)
        test = said.get("test")
        run = folder.parents[1] if test else folder
        config = read_json(run / "config.json", keys=("common",))
        mask = said["mask"] or {}
        known = {
            **{k: said[k] for k in ("dataset", "store_id", "origin", "task", "scheme", "method", "preset", "seed")},
            "run": run.relative_to(root).as_posix(),
            "modalities": combination_name(said["modalities"]),
            "mechanism": mask.get("mechanism"),
            "p": None if isinstance(mask.get("p"), dict) else mask.get("p"),
            "test": test["name"] if test else "",
            "hidden": hidden_rate(test or said),
            "code_hash": said["training"]["code_hash"],
            "config": json.dumps(config, sort_keys=True),
        }
        scores = read_scores(folder).with_columns(pl.lit(value).alias(name) for name, value in known.items())
        frames.append(scores.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()))
    frame = pl.concat(frames)
    write_frame(out, frame)
    return frame


def read_scores(run: Path) -> pl.DataFrame:
    """Content of the metrics.csv of a run or of its evaluation under a protocol; damage is a DataError."""
    path = run / "metrics.csv"
    with reading(path, "the scores of an evaluated run", RUN_AGAIN):
        if not (data := path.read_bytes()).endswith(b"\n"):
            raise ValueError("the last line is cut short")
        frame = pl.read_csv(data, schema_overrides={"group": pl.String}, infer_schema_length=None)
        return frame.select(pl.col(name).cast(dtype) for name, dtype in SCORE_COLUMNS.items())


def hidden_rate(content: Mapping[str, Any]) -> float | None:
    """Realised rate of the mask in the content of a metrics.json, or of the protocol in it; None without a mask."""
    rate: float | None = content.get("mask_realised", {}).get(ALL)
    return rate


def with_hidden(mask: Mapping[str, Any] | None, contents: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Settings of missingness with `hidden`, the mean realised rate of the masks of evaluations, if known."""
    rates = {c["mask_sha256"]: rate for c in contents if (rate := hidden_rate(c)) is not None}
    return None if mask is None else {**mask, **({"hidden": fmean(rates.values())} if rates else {})}


def tested(run: Path, pattern: str = "") -> Predicted:  # noqa: PT028
    """Read a run's predictions for the test samples; with a pattern, only those from this combination of modalities.

    Raises:
        DataError: the predictions were written by an older version and lack subjects.
    """
    said = read_metrics(run) if finished(run) else {}
    threshold = said.get("decision", {}).get("threshold", PLAIN.threshold)
    return replace(_predicted(predictions_of(run, pattern)), rules=Rules(said.get("convention", ""), threshold))


def best_possible(run: Path, best: pl.DataFrame | None, pattern: str = "") -> Predicted | None:
    """Best possible predictions for a run's test samples, which the simulator knows, given their observed modalities.

    Args:
        best: result of `mrpipe.experiment.truth.read_best`.
        pattern: as for `tested`.

    Returns:
        None if `best` is None or lacks a sample or a combination.
    """
    frame = predictions_of(run, pattern)
    classes = [c for c in frame.columns if c.startswith("p_")]
    if best is None or not classes:
        return None
    samples = frame.drop(classes)
    best_of_any = best.filter(modalities=ANY).drop("modalities")
    of_any = samples.join(best_of_any, on="sample_id", how="left", maintain_order="left")
    exact = samples.join(best, on=["sample_id", "modalities"], how="left", maintain_order="left")
    found = exact.with_columns(pl.coalesce(c, of_any[c]).alias(c) for c in classes)
    return None if any(found[c].null_count() for c in classes) else _predicted(found)


def predictions_of(run: Path, pattern: str = "") -> pl.DataFrame:
    """A run's predictions.parquet in order of sample_id; with a pattern, only this combination of modalities."""
    frame = read_frame(run / "predictions.parquet").sort("sample_id", maintain_order=True)
    frame = frame.filter(modalities=pattern) if pattern else frame
    if "subject_id" not in frame.columns:
        path = str(run / "predictions.parquet")
        fix = "Evaluate the run again: mrpipe evaluate."
        raise DataError(Fault(file=path, column="subject_id", expected="this column", found="none", fix=fix))
    return frame


def _predicted(frame: pl.DataFrame) -> Predicted:
    subject = frame["subject_id"].to_numpy().astype(np.str_)
    classes = [c.removeprefix("p_") for c in frame.columns if c.startswith("p_")]
    if not classes:
        return Predicted(frame["label"].to_numpy(), frame["predicted"].to_numpy(), subject)
    label = frame["label"].replace_strict({name: i for i, name in enumerate(classes)}, return_dtype=pl.Int64).to_numpy()
    return Predicted(label, frame.select(f"p_{c}" for c in classes).to_numpy(), subject)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, required=True, metavar="FOLDER", help="folder of all runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet file to write")


def run(args: argparse.Namespace) -> None:
    frame = write_results(args.runs, args.out)
    print(f"{args.out}: {frame['run'].n_unique()} runs, {len(frame)} scores")
