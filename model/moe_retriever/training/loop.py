"""Training with Adam, early stopping on the validation split, and resumable, reproducible runs.

The result is a function of store, options and seed: random draws for batches, dropout and retrieval are keyed by
epoch, so a killed run that is restarted continues after its last complete epoch and produces identical bytes.
"""

import dataclasses
import hashlib
import json
import logging
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from moe_retriever.catalogue import module_of
from moe_retriever.config import EVALUATION, AnyConfig
from moe_retriever.data.load import Batch, Data, load
from moe_retriever.data.tables import Rows
from moe_retriever.device import precision_of
from moe_retriever.methods import get
from moe_retriever.methods.base import AnyMethod
from moe_retriever.nn.kernels.allocator import keep_freed_memory, release_if_grown
from moe_retriever.training import checkpoint, gradients, selection
from moe_retriever.training.checkpoint import EpochRow, Origin, TrainingRecord, describe
from moe_retriever.training.log import Log, describe_epoch, notes, opening_line, summarise_epoch
from moe_retriever.training.predict import validate
from mrpipe import keyed
from mrpipe.codehash import code_hash
from mrpipe.errors import UsageError
from mrpipe.experiment.missingness import mask_hash, read_masks
from mrpipe.raw import sha256
from mrpipe.reading import read_json
from mrpipe.store.content import data_identity
from mrpipe.store.parquet import replacing, write_frame, write_text
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS
from mrpipe.text import used_encoder
from mrpipe.transforms.options import TransformOptions


class State(TypedDict):
    """Where a training is after an epoch."""

    next_epoch: int
    best_score: tuple[float, float]
    best_epoch: int
    best_state: dict[str, Tensor] | None
    history: list[EpochRow]
    gradients: list[gradients.GradientRow]


class ResumePoint(State):
    """The content of `.resume.pt`, apart from its format."""

    fingerprint: str
    state: dict[str, Tensor]
    optimiser: dict[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One training run: its data, options and output folder.

    Attributes:
        run: run folder.
        task, scheme, modalities: default: the store's default task and split scheme, and all modalities.
        mask_file: simulated missingness (`mrpipe mask`).
        transform: how transforms are fitted.
        device: torch device.
        overwrite: whether to remove everything of an earlier run in the folder first.
        replace: whether an earlier run with other settings may be replaced, e.g. a trial of a search.
        progress: display in which this run is one line, e.g. that of a search; default: a display of its own.
    """

    store: Store
    run: Path
    config: AnyConfig
    task: str | None = None
    scheme: str | None = None
    modalities: tuple[str, ...] | None = None
    mask_file: Path | None = None
    transform: TransformOptions = dataclasses.field(default_factory=TransformOptions)
    device: str = "cpu"
    overwrite: bool = False
    replace: bool = False
    progress: Progress | None = None


def origin_of(job: Job, data: Data) -> Origin:
    """Provenance of the job's data, for the checkpoint and the metrics."""
    store = job.store
    declared = {m.name: m for m in store.modalities}
    mask: dict[str, object] | None = None
    if job.mask_file is not None:
        mask = json.loads(json.dumps(dataclasses.asdict(read_masks(job.mask_file)[1])))
    return Origin(
        dataset=store.manifest.dataset,
        store_id=store.store_id,
        origin=store.manifest.origin,
        task=store.task(job.task).name,
        scheme=job.scheme or store.manifest.default_scheme,
        modalities=tuple(describe(declared[m.name]) for m in data.spec.modalities),
        mask=mask,
        mask_sha256="" if job.mask_file is None else mask_hash(job.mask_file),
        data_id=data_identity(store.manifest, data.spec.names, store.task(job.task).name, job.scheme),
    )


def load_data(job: Job) -> Data:
    """Load the job's data."""
    return load(
        job.store,
        task=job.task,
        scheme=job.scheme,
        modalities=job.modalities,
        mask_file=job.mask_file,
        transform=job.transform,
        device=job.device,
    )


def described(job: Job, data: Data) -> dict[str, object]:
    """Content of config.json: options, data, and device, precision and CPU threads, on which the last digits depend."""
    origin = origin_of(job, data)
    settings = {**vars(origin), "modalities": list(origin.modalities), **data.fitted.settings}
    settings |= {"validation_cut_from_training": data.n_cut} if data.n_cut else {}
    device = torch.device(job.device)
    machine = {"device": device.type, "precision": precision_of(job.config.common.precision, device)}
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {**job.config.to_dict(), **machine, **threads, "data": settings}


def run_training(job: Job, data: Data | None = None) -> bool:
    """Train and write the run folder; return False if it already contains the result of these options, data and code.

    Files: config.json, mask.parquet (a copy of the mask file), log.txt, history.parquet, gradients.parquet (if
    `gradient_rows` > 0), cost.json (run times, not reproducible to the byte) and, last, model.pt. During training,
    `.resume.pt` is the checkpoint from which a killed run continues.

    Args:
        data: the job's data if several jobs share them; default: loaded from the store.

    Raises:
        UsageError: unknown name, fewer than two classes in training, or another finished run in the folder.
        DivergedError: a loss is no longer finite.
        DataError: invalid mask file or weights file.
    """
    started = time.perf_counter()
    run = job.run
    data = load_data(job) if data is None else data
    loaded = time.perf_counter()
    keep_freed_memory()
    parts = {part: data.rows(part) for part in PARTS}
    if len(np.unique(data.label[parts["train"]])) < 2:
        needed = "different values" if data.spec.regression else "at least two classes"
        raise UsageError(f"the training split needs labelled samples of {needed}")
    config = job.config.for_samples(len(parts["train"])).for_task(data.spec.kinds)
    job = dataclasses.replace(job, config=config)
    origin, content = origin_of(job, data), described(job, data)
    mark = fingerprint(content, config)
    if not job.overwrite:
        if _finished(run, mark):
            _keep_options(run, content, origin)
            return False
        if not job.replace and (run / checkpoint.NAME).is_file():
            require_same(run / "config.json", content, "run")
    method = get(config.method).create(data.spec, config).to(job.device)
    method.prepare(data, parts["train"])

    run.mkdir(parents=True, exist_ok=True)
    checkpoint.clear(run, keep=() if job.overwrite else (checkpoint.RESUME_NAME, "log.txt"))
    write_text(run / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")
    if job.mask_file is not None:
        with replacing(run / checkpoint.MASK_NAME) as temporary:
            shutil.copyfile(job.mask_file, temporary)
    before = _resume_point(run, mark, job.device)
    common = config.common
    log = Log(run / "log.txt", n_epochs=common.epochs, progress=job.progress, fresh=before is None)
    log.line(opening_line(method, data, parts, origin))
    noted, used = notes(data, parts), [m for m in job.store.modalities if m.name in data.spec.names and m.encoder]
    again = "an interrupted training with other options, data, threads or code is not continued but replaced"
    replaced = [again] if before is None and (run / checkpoint.RESUME_NAME).is_file() else []
    for note in [*(f"{m.name}: {used_encoder(m.encoder)}" for m in used), *noted, *replaced]:
        log.line(f"note: {note}", logging.INFO if job.progress is None else logging.DEBUG)
    seconds: list[float] = []
    outcome: TrainingRecord
    with log.shown():
        if method.gradient:
            state = _descend(method, data, parts, run, mark, before, log, seconds)
            history = selection.history_frame(state["history"], state["best_epoch"], common.select_metric)
            write_frame(run / "history.parquet", history)
            if common.gradient_rows:
                write_frame(run / gradients.NAME, gradients.frame(state["gradients"]))
            outcome = {"best_epoch": state["best_epoch"], "epochs": len(state["history"])}
            kept = state["history"][state["best_epoch"] - 1]
            scores = {k.removeprefix("val_"): v for k, v in kept.items() if k.startswith("val_")}
        else:
            outcome = {"chosen": method.fit(data, parts["train"], parts["val"])}
            log.line(f"chosen: {outcome['chosen']}")
            scores = validate(method, data, parts["val"]) if len(parts["val"]) else {}
    outcome |= {
        "val": {name: value for name, value in scores.items() if math.isfinite(value)},
        "n": {part: len(rows) for part, rows in parts.items()},
        "parameters": sum(p.numel() for p in method.parameters()),
        "code_hash": _code_hash(config.method),
        "notes": noted,
    }
    if common.image_weights and method.encoded and any(m.kind == "image" for m in data.spec.modalities):
        outcome["image_weights_sha256"] = sha256(Path(common.image_weights))
    cost = {
        "load_seconds": loaded - started,
        "train_seconds": time.perf_counter() - loaded,
        "epoch_seconds": float(np.median(seconds)) if seconds else None,
        "samples_per_second": len(parts["train"]) / float(np.median(seconds)) if seconds else None,
        "threads": torch.get_num_threads(),
        **{name: content[name] for name in ("device", "precision")},
        "versions": _versions(),
    }
    write_text(run / "cost.json", json.dumps(cost, indent=2, sort_keys=True) + "\n")
    keep_bank = method.reference_bytes() <= common.bank_mb * 1e6
    reference = method.reference_state() if keep_bank else None
    trained = checkpoint.Trained(method.eval(), config, data.spec, data.fitted, origin, reference, outcome)
    checkpoint.save_run(run / checkpoint.NAME, trained, mark)
    (run / checkpoint.RESUME_NAME).unlink(missing_ok=True)
    return True


def _versions() -> dict[str, str]:
    """Versions of the software that results can depend on."""
    packages = ("mrpipe", "torch", "numpy", "scikit-learn", "polars")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}


def _code_hash(method: str) -> str:
    return code_hash("moe_retriever.training.loop:run_training", module_of(method))


def fingerprint(described: dict[str, object], config: AnyConfig) -> str:
    """Hash of everything that determines a trained model: options, data, initial weights and code."""
    weights, common = config.common.image_weights, vars(config.common)
    used = described | {"common": {name: value for name, value in common.items() if name not in EVALUATION}}
    used |= {"data": {k: v for k, v in cast(dict[str, object], described.get("data", {})).items() if k != "store_id"}}
    parts = [json.dumps(used, sort_keys=True), _code_hash(config.method)]
    parts += [torch.__version__, sha256(Path(weights)) if weights and Path(weights).is_file() else ""]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _finished(run: Path, mark: str) -> bool:
    path = run / checkpoint.NAME
    return path.is_file() and checkpoint.read(path)["fingerprint"] == mark


def _keep_options(run: Path, described: Mapping[str, object], origin: Origin) -> None:
    """Replace what does not affect the model of a finished run: options of the evaluation, and the id of the store."""
    if read_json(run / "config.json") != json.loads(json.dumps(described)):
        keys = ("method", "preset", "seed", "common", "options")
        model = checkpoint.read(run / checkpoint.NAME) | {"config": {key: described[key] for key in keys}}
        model |= {"store_id": origin.store_id, "origin": json.dumps(vars(origin))}
        checkpoint.write(run / checkpoint.NAME, model)
        write_text(run / "config.json", json.dumps(described, indent=2, sort_keys=True) + "\n")


def require_same(path: Path, settings: Mapping[str, object], what: str) -> None:
    """Raise a UsageError if the JSON file of a finished run or search has other settings."""
    before = read_json(path)
    differing = [k for k, v in json.loads(json.dumps(settings)).items() if before.get(k) != v]
    if differing:
        found = f"{path.parent} contains a finished {what} that differs in {', '.join(differing)}"
        raise UsageError(f"{found}. Choose another --out, or replace it with --overwrite.")


def _resume_point(run: Path, mark: str, device: str) -> ResumePoint | None:
    path = run / checkpoint.RESUME_NAME
    if not path.is_file():
        return None
    state = cast(ResumePoint, checkpoint.read(path, device))
    return state if state["fingerprint"] == mark else None


def batches(rows: Rows, size: int, seed: int, epoch: int, arrange: Callable[[Rows], Rows] | None = None) -> list[Rows]:
    """The training rows in keyed random order, rearranged by `arrange`, in nearly equal batches of at most `size`."""
    order = keyed.generator(seed, "batches", str(epoch)).permutation(rows)
    return np.array_split(order if arrange is None else arrange(order), math.ceil(len(rows) / size))


def make_optimiser(method: AnyMethod) -> torch.optim.Optimizer:
    c = method.config.common
    parameters = [p for p in method.parameters() if p.requires_grad]
    # The fused optimiser passes over the weights once instead of a dozen times; on the CPU it needs torch 2.4.
    fused = tuple(int(v) for v in torch.__version__.split(".")[:2]) >= (2, 4) and method.device.type in ("cpu", "cuda")
    return torch.optim.Adam(parameters, lr=c.lr, weight_decay=c.weight_decay, fused=fused)


def train_step(
    method: AnyMethod, batch: Batch, optimiser: torch.optim.Optimizer, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Perform one gradient step; return the task loss as "loss" and every named loss, detached."""
    c = method.config.common
    out = method(batch)
    task = method.task_loss(out.logits, batch.label, weight=weight)
    loss = task + sum(out.losses.values())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if c.clip > 0:
        torch.nn.utils.clip_grad_norm_(method.parameters(), c.clip)
    optimiser.step()
    return {name: value.detach() for name, value in {"loss": task, **out.losses}.items()}


def train_epoch(
    method: AnyMethod,
    data: Data,
    rows: Rows,
    optimiser: torch.optim.Optimizer,
    epoch: int,
    weight: Tensor | None = None,
) -> dict[str, float]:
    """Train for one epoch over the training rows; return the mean of the task loss and of every named loss."""
    c, seed = method.config.common, method.config.seed
    method.noise.reset("epoch", epoch)
    method.begin_epoch(epoch, c.epochs)
    method.refresh()
    method.train()
    sums: dict[str, Tensor] = {}
    resident = 0
    for index in batches(rows, c.batch_size, seed, epoch, partial(method.arrange, data)):
        batch = data.batch(index, f"epoch {epoch}", hide=c.drop_modalities, seed=seed)
        for name, value in train_step(method, batch, optimiser, weight).items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(index)
        resident = release_if_grown(resident)
    method.refresh()
    return {name: float(total) / len(rows) for name, total in sums.items()}


def _descend(
    method: AnyMethod,
    data: Data,
    parts: dict[str, Rows],
    run: Path,
    mark: str,
    before: ResumePoint | None,
    log: Log,
    seconds: list[float],
) -> State:
    """Gradient training with early stopping; the method ends with the best weights, and `seconds` gets epoch times."""
    c = method.config.common
    train_rows, val_rows = parts["train"], parts["val"]
    compared = gradients.keyed_rows(data, train_rows, c.gradient_rows, method.config.seed)
    optimiser = make_optimiser(method)
    weight = data.class_weight(train_rows, c.class_weight)
    state: State = {
        "next_epoch": 0,
        "best_score": (-math.inf, -math.inf),
        "best_epoch": -1,
        "best_state": None,
        "history": [],
        "gradients": [],
    }
    if before is not None:
        path = run / checkpoint.RESUME_NAME
        with checkpoint.reading_entry(path, "state"):
            state = cast(State, {k: before[k] for k in state})  # type: ignore[literal-required]
            for weights in (before["state"], state["best_state"] or before["state"]):
                checkpoint.require_weights(path, method, weights)
            method.load_state_dict(before["state"])
            optimiser.load_state_dict(before["optimiser"])
        log.line(f"continuing after epoch {state['next_epoch']}")
    for epoch in range(state["next_epoch"], c.epochs):
        if selection.patience_over(state["history"], state["best_epoch"], c.patience, c.select_metric):
            break
        started = time.perf_counter()
        row: EpochRow = {"epoch": epoch + 1}
        row |= {f"train_{k}": v for k, v in train_epoch(method, data, train_rows, optimiser, epoch, weight).items()}
        seconds.append(time.perf_counter() - started)
        if len(val_rows):
            row |= {f"val_{k}": v for k, v in validate(method, data, val_rows).items()}
        selection.require_finite(row)
        row["selectable"] = method.selectable
        state["history"].append(row)
        score = selection.epoch_score(row, c.select_metric)
        if method.selectable and (score > state["best_score"] or state["best_state"] is None):
            best = {k: v.detach().clone() for k, v in method.state_dict().items()}
            state.update({"best_score": score, "best_epoch": epoch + 1, "best_state": best})
        if len(compared):
            state["gradients"] += gradients.gradient_similarity(method, data, compared, epoch + 1)
        state["next_epoch"] = epoch + 1
        best_score = state["best_score"][0]
        log.epoch(epoch + 1, describe_epoch(row, c.select_metric), summarise_epoch(row, c.select_metric, best_score))
        if (epoch + 1) % c.checkpoint_every == 0:
            resume = {**state, "state": method.state_dict(), "optimiser": optimiser.state_dict()}
            checkpoint.write(run / checkpoint.RESUME_NAME, {"format": checkpoint.FORMAT, "fingerprint": mark, **resume})
    method.begin_epoch(state["best_epoch"] - 1, c.epochs)
    assert state["best_state"] is not None
    method.load_state_dict(state["best_state"])
    method.refresh()
    return state
