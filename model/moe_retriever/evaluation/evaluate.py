"""Evaluation of a finished run on one split of its store or under a protocol: metrics, predictions and routing.

A protocol is another mask, every combination of modalities, or another store. Predictions use the training samples of
the training in any case.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from moe_retriever.config import parse_subgroups
from moe_retriever.data.load import Data, load
from moe_retriever.data.scores import Rules
from moe_retriever.data.tables import Rows
from moe_retriever.evaluation.bootstrap import table
from moe_retriever.evaluation.calibration import decide, risk_coverage
from moe_retriever.evaluation.groups import pattern_rows, subgroups
from moe_retriever.nn.kernels.allocator import keep_freed_memory
from moe_retriever.training.checkpoint import MASK_NAME, NAME, Trained, load_run, reading_entry, require_training_store
from moe_retriever.training.predict import predict, prediction_frame
from mrpipe.errors import UsageError
from mrpipe.experiment.missingness import mask_hash, read_masks, read_realised
from mrpipe.store import masks
from mrpipe.store.parquet import write_csv, write_frame, write_text
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS

MOST_MODALITIES = 8


def every_pattern(data: Data, rows: Rows) -> Data:
    """Those of the rows that have all modalities, once with each non-empty set of modalities: n (2^M - 1) samples."""
    n_modalities = data.observed.shape[1]
    if n_modalities > MOST_MODALITIES:
        raise UsageError(f"patterns of more than {MOST_MODALITIES} modalities are too many; choose a smaller view")
    rows = rows[data.observed[rows].all(axis=1)]
    patterns = masks.unpack(np.arange(1, 1 << n_modalities), n_modalities)
    index, observed = np.tile(rows, len(patterns)), np.repeat(patterns, len(rows), axis=0)
    columns = {k: getattr(data, k)[index] for k in ("sample_id", "subject_id", "keys", "label", "part")}
    return replace(data, **columns, observed=observed, row=np.where(observed, data.row[index], -1))


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


def with_validation_of(training: Data, data: Data) -> Data:
    """Data of the training store with the training's validation samples, which may be cut from the training split."""
    cut = np.isin(data.sample_id, training.sample_id[training.part == PARTS.index("val")])
    return replace(data, part=np.where(cut, PARTS.index("val"), data.part).astype(np.int8))


def _load_tested(
    trained: Trained, store: Store, part: str, mask: Path | None, patterns: bool, device: str, training: Data | None
) -> Data:
    """Load the samples of a protocol; all labelled samples of another store belong to the part."""
    trained.origin.require_same_kind(store)
    data = load_like(trained, store, device, mask_file=mask, unlabelled=True)
    if not trained.origin.is_of(store):
        data = replace(data, part=np.full_like(data.part, PARTS.index(part)))
    elif training is not None:
        data = with_validation_of(training, data)
    data = every_pattern(data, data.rows(part)) if patterns else data
    if not len(data.rows(part)):
        raise UsageError(f"{store.path} has no samples to evaluate with a label of task {trained.origin.task}")
    return data


def _mask_record(path: Path | None) -> dict[str, Any]:
    """Settings, hash and realised rates of a mask file."""
    settings, hidden = (None, {}) if path is None else (asdict(read_masks(path)[1]), read_realised(path))
    return {"mask": settings, "mask_sha256": "" if path is None else mask_hash(path), "mask_realised": hidden}


def prepare(trained: Trained, run: Path, reference: Store | None, device: str, data: Data | None = None) -> Data | None:
    """Give the method its training samples: those of the training store or, without it, the bank in the checkpoint.

    Args:
        data: that of the training store, if it is already loaded.

    Raises:
        UsageError: the checkpoint has no bank.
    """
    if reference is not None:
        data = load_for(trained, run, reference, device) if data is None else data
        trained.method.prepare(data, data.rows("train"))
        return data
    if trained.reference is None:
        raise UsageError("the run has no stored retrieval bank (larger than bank_mb); pass --reference-store")
    with reading_entry(run / NAME, "reference"):
        trained.method.load_reference(trained.reference)
    return None


def evaluate_run(
    run: Path,
    store: Store,
    *,
    part: str = "test",
    draws: int | None = None,
    n_resamples: int = 1000,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    name: str = "",
    mask_file: Path | None = None,
    patterns: bool = False,
    reference: Store | None = None,
    data: Data | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run; return the content of metrics.json.

    Files for the test split: predictions.parquet, routing.parquet (methods that route), metrics.csv (by modality
    combination, number of observed modalities and subgroup), risk_coverage.csv (classes), validation.parquet (two
    classes: predictions of the validation samples, with which thresholds are chosen later), test_cost.json (run times,
    not reproducible to the byte) and, last, metrics.json. Files of another split contain its name: metrics_val.json.

    Args:
        draws: number of retrieval draws to average; default: from the method's options.
        n_resamples: number of bootstrap resamples of the subjects; 0 for no intervals.
        options: options of the evaluation (calibration, decision_threshold, subgroups) that replace those of the run.
        name: name of a protocol; its files are in the folder tests/NAME. Only a protocol uses the following options,
            and may evaluate another store of the same dataset.
        mask_file: simulated missingness of the evaluated samples; None: as observed.
        patterns: whether to evaluate the samples that have all modalities, once with each combination of modalities.
        reference: the training store, if another store is evaluated; default: the bank in the checkpoint.
        data: data of the training, if they are already loaded.

    Raises:
        DataError: the store is of another dataset, or the mask belongs to another store.
        UsageError: no samples to evaluate, no bank, or options that contradict each other.
    """
    if patterns and mask_file is not None:
        raise UsageError("patterns hide modalities of complete samples, so they cannot be combined with a mask")
    suffix = "" if part == "test" else f"_{part}"
    out = run / "tests" / name if name else run
    result = out / f"metrics{suffix}.json"
    trained = load_run(run, device)
    same = not name or trained.origin.is_of(store)
    data = training = prepare(trained, run, store if same else reference, device, data)
    if name or data is None:
        data = _load_tested(trained, store, part, mask_file, patterns, device, training)
    rows, common = data.rows(part), replace(trained.config.common, **(options or {}))
    common = replace(trained.config, common=common).for_task(data.spec.kinds).common
    evaluated, known = (store, data.sample_id[rows]), (store, data.sample_id[:0])
    if training is not None:
        known = (store if same or reference is None else reference, training.sample_id[training.rows("train")])
    more = subgroups(parse_subgroups(common.subgroups), evaluated, known)
    decision = decide(common, trained.method, training, draws=draws)
    for file in ("metrics.json", "metrics.csv", "risk_coverage.csv", "predictions.parquet", "routing.parquet"):
        (out / file.replace(".", f"{suffix}.")).unlink(missing_ok=True)
    keep_freed_memory()
    started = time.perf_counter()
    found = predict(trained.method, data, rows, draws=draws, detail=True)
    seconds = time.perf_counter() - started
    found = replace(found, logits=found.logits / np.float32(decision["temperature"]))
    rules, observed = Rules(data.spec.convention, decision["threshold"]), data.observed[rows]
    scored = data.label[rows], found.scored, data.subject_id[rows], data.combination(observed), observed.sum(axis=1)
    metrics = table(*scored, seed=trained.config.seed, n_resamples=n_resamples, more=more, rules=rules)
    metrics = pl.concat([metrics, pattern_rows(metrics)])
    if len(rows) and not data.spec.regression:
        write_csv(out / f"risk_coverage{suffix}.csv", risk_coverage(data.label[rows], found.scored))
    predicted = prediction_frame(data, found)
    if more:
        names = [pl.when(pl.lit(pl.Series(chosen))).then(pl.lit(group)) for _, group, chosen in more]
        predicted = predicted.with_columns(subgroups=pl.concat_list(names).list.drop_nulls())
    write_frame(out / f"predictions{suffix}.parquet", predicted)
    if training is not None and not name and part == "test" and len(data.spec.classes) == 2:
        validation = predict(trained.method, data, data.rows("val"), draws=draws)
        validation = replace(validation, logits=validation.logits / np.float32(decision["temperature"]))
        write_frame(out / "validation.parquet", prediction_frame(data, validation).drop("sample_id", "subject_id"))
    if found.routing is not None:
        write_frame(out / f"routing{suffix}.parquet", found.routing)
    write_csv(out / f"metrics{suffix}.csv", metrics)
    config, origin = trained.config, trained.origin
    test = {"name": name, "patterns": patterns, "store_id": store.store_id, "origin": store.manifest.origin}
    content = {
        **{k: getattr(config, k) for k in ("method", "preset", "seed")},
        **{k: getattr(origin, k) for k in ("dataset", "origin", "task", "scheme")},
        "store_id": store.store_id if same else origin.store_id,
        "title": store.manifest.title,
        **_mask_record(run / MASK_NAME if origin.mask is not None else None),
        "test": test | _mask_record(mask_file) if name else None,
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
        "majority": majority(training, data, part),
        "bootstrap": n_resamples,
        "draws": draws or trained.method.n_draws,
        "draw_std": None if found.draw_std is None else float(found.draw_std.mean()),
        "support": found.support,
        "training": trained.training,
    }
    rate = len(rows) / max(seconds, 1e-9)
    cost = {"seconds": seconds, "samples_per_second": rate, "threads": torch.get_num_threads(), "device": device}
    write_text(out / f"{part}_cost.json", json.dumps(cost, indent=2, sort_keys=True) + "\n")
    write_text(result, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
    return content


def majority(training: Data | None, data: Data, part: str) -> dict[str, Any]:
    """The most frequent training class and the accuracy of predicting it; neither without training classes."""
    if training is None or data.spec.regression:
        return {"class": None, "accuracy": None}
    label, train = data.label[data.rows(part)], training.label[training.rows("train")]
    best = int(torch.bincount(torch.from_numpy(train)).argmax())
    return {"class": data.spec.classes[best], "accuracy": float((label == best).mean()) if len(label) else None}


def summary(metrics: pl.DataFrame, by: str = "all", *more: str) -> dict[str, Any]:
    """Metrics of one group, by default of all samples: name → value, low, high and further columns."""
    rows = metrics.filter(by=by).to_dicts()
    return {r["metric"]: {name: r[name] for name in ("value", "low", "high", *more)} for r in rows}
