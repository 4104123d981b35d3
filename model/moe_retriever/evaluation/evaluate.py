"""Evaluation of a finished run on one split of its store: metrics with intervals, predictions and routing."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from moe_retriever.config import parse_subgroups
from moe_retriever.data.load import Data, load
from moe_retriever.data.scores import Rules
from moe_retriever.evaluation.bootstrap import table
from moe_retriever.evaluation.calibration import decide, risk_coverage
from moe_retriever.evaluation.groups import pattern_rows, subgroups
from moe_retriever.nn.kernels.allocator import keep_freed_memory
from moe_retriever.training.checkpoint import MASK_NAME, Trained, load_run, require_training_store
from moe_retriever.training.predict import predict, prediction_frame
from mrpipe.store.parquet import write_frame, write_text
from mrpipe.store.reader import Store


def load_for(trained: Trained, run: Path, store: Store, device: str) -> Data:
    """Load the data that a run was trained on, with the same modalities, mask and transforms.

    Raises:
        DataError: the store is not the training store, or the run folder lacks its mask file.
    """
    require_training_store(trained.origin, store)
    mask_file = run / MASK_NAME if trained.origin.mask is not None else None
    return load_like(trained, store, device, mask_file=mask_file, unlabelled=False)


def load_like(trained: Trained, store: Store, device: str, *, mask_file: Path | None, unlabelled: bool) -> Data:
    """Load a store with the task, split scheme, modalities and transforms of a run.

    Args:
        unlabelled: whether the store may lack labels and split.
    """
    return load(
        store,
        task=trained.origin.task,
        scheme=trained.origin.scheme,
        modalities=trained.spec.names,
        mask_file=mask_file,
        fitted=trained.fitted,
        trained=trained.spec if unlabelled else None,
        device=device,
    )


def evaluate_run(
    run: Path,
    store: Store,
    *,
    part: str = "test",
    draws: int | None = None,
    n_resamples: int = 1000,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate a finished run; return the content of metrics.json.

    Files for the test split: predictions.parquet, routing.parquet (methods that route), metrics.csv (by modality
    combination, number of observed modalities and subgroup), risk_coverage.csv (classes), test_cost.json (run times,
    not reproducible to the byte) and, last, metrics.json. Files of another split contain its name: metrics_val.json.

    Args:
        draws: number of retrieval draws to average; default: from the method's options.
        n_resamples: number of bootstrap resamples of the subjects; 0 for no intervals.
        options: options of the evaluation (calibration, decision_threshold, subgroups) that replace those of the run.
    """
    suffix = "" if part == "test" else f"_{part}"
    result = run / f"metrics{suffix}.json"
    trained = load_run(run, device)
    data = load_for(trained, run, store, device)
    common = dataclasses.replace(trained.config.common, **(options or {}))
    common = dataclasses.replace(trained.config, common=common).for_task(data.spec.kinds).common
    rows, train = data.rows(part), data.rows("train")
    more = subgroups(parse_subgroups(common.subgroups), store, data.sample_id, rows, train)
    keep_freed_memory()
    trained.method.prepare(data, train)
    decision = decide(common, trained.method, data, draws=draws)
    for name in ("metrics.json", "metrics.csv", "risk_coverage.csv", "predictions.parquet", "routing.parquet"):
        (run / name.replace(".", f"{suffix}.")).unlink(missing_ok=True)
    started = time.perf_counter()
    found = predict(trained.method, data, rows, draws=draws, detail=True)
    seconds = time.perf_counter() - started
    found = dataclasses.replace(found, logits=found.logits / np.float32(decision["temperature"]))
    rules, observed = Rules(data.spec.convention, decision["threshold"]), data.observed[rows]
    scored = data.label[rows], found.scored, data.subject_id[rows], data.combination(observed), observed.sum(axis=1)
    metrics = table(*scored, seed=trained.config.seed, n_resamples=n_resamples, more=more, rules=rules)
    metrics = pl.concat([metrics, pattern_rows(metrics)])
    if len(rows) and not data.spec.regression:
        curve = risk_coverage(data.label[rows], found.scored)
        write_text(run / f"risk_coverage{suffix}.csv", curve.write_csv())
    write_frame(run / f"predictions{suffix}.parquet", prediction_frame(data, found))
    if found.routing is not None:
        write_frame(run / f"routing{suffix}.parquet", found.routing)
    write_text(run / f"metrics{suffix}.csv", metrics.write_csv())
    config, origin = trained.config, trained.origin
    content = {
        **{k: getattr(config, k) for k in ("method", "preset", "seed")},
        **{k: getattr(origin, k) for k in ("dataset", "store_id", "origin", "task", "scheme", "mask", "mask_sha256")},
        "modalities": list(data.spec.names),
        "encoders": {m["name"]: m["encoder"] for m in origin.modalities},
        "classes": list(data.spec.classes),
        **trained.fitted.settings,
        "n_without_modality": data.n_without,
        "part": part,
        "n": trained.training["n"],
        "n_evaluated": len(rows),
        "metrics": summary(metrics),
        "worst_pattern": summary(metrics, "worst_pattern", "group", "n"),
        "mean_over_patterns": summary(metrics, "mean_over_patterns"),
        "decision": decision,
        "convention": data.spec.convention,
        "majority": majority(data, part),
        "bootstrap": n_resamples,
        "draws": draws or trained.method.n_draws,
        "draw_std": None if found.draw_std is None else float(found.draw_std.mean()),
        "support": found.support,
        "training": trained.training,
    }
    cost = {
        "seconds": seconds,
        "samples_per_second": len(rows) / max(seconds, 1e-9),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    write_text(run / f"{part}_cost.json", json.dumps(cost, indent=2, sort_keys=True) + "\n")
    write_text(result, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
    return content


def majority(data: Data, part: str) -> dict[str, Any]:
    """The most frequent training class, and the accuracy of always predicting it; neither for a regression."""
    if data.spec.regression:
        return {"class": None, "accuracy": None}
    label, train = data.label[data.rows(part)], data.label[data.rows("train")]
    best = int(torch.bincount(torch.from_numpy(train)).argmax())
    accuracy = float((label == best).mean()) if len(label) else None
    return {"class": data.spec.classes[best], "accuracy": accuracy}


def summary(metrics: pl.DataFrame, by: str = "all", *more: str) -> dict[str, Any]:
    """Metrics of one group, by default of all samples: name → value, low, high and further columns."""
    rows = metrics.filter(by=by).to_dicts()
    return {r["metric"]: {name: r[name] for name in ("value", "low", "high", *more)} for r in rows}
