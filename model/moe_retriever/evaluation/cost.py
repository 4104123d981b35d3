"""Computational cost of a method on a store: samples/s, memory, parameters and FLOPs, per modality configuration."""

import contextlib
import gc
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import torch

from moe_retriever.config import Config
from moe_retriever.data.load import Data, load
from moe_retriever.data.tables import Rows
from moe_retriever.evaluation.flops import flop_counter
from moe_retriever.methods import get
from moe_retriever.methods.base import Method
from moe_retriever.nn.kernels.allocator import keep_freed_memory, release_freed_memory
from moe_retriever.training.loop import batches, make_optimiser, train_step
from moe_retriever.training.predict import predict
from mrpipe.errors import UsageError
from mrpipe.experiment.missingness import ALL, read_realised
from mrpipe.store.masks import combination_name
from mrpipe.store.reader import Store
from mrpipe.terminal import print_table
from mrpipe.transforms.options import TransformOptions


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement for `peak_memory_mb`, after returning freed memory to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform.startswith("linux"):
        release_freed_memory()
        # "5" resets the high-water mark of resident memory (man 5 proc).
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since `reset_peak_memory`: allocated memory on a GPU, otherwise the resident memory of the process.

    If the system cannot reset the peak (macOS, some containers), the peak since the process started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _steps(data: Data, rows: Rows, size: int, n: int) -> list[Rows]:
    """n batches of exactly `size` rows (or all rows, if there are fewer), in keyed random order."""
    size = min(size, len(rows))
    n_epochs = 1 + n * size // len(rows)
    order = np.concatenate([index for epoch in range(n_epochs) for index in batches(rows, size, 0, epoch)])
    return [order[i * size : (i + 1) * size] for i in range(n)]


def _time_training(method: Method, data: Data, rows: Rows, n: int) -> float:
    """Seconds per sample of a training step, as in the last epoch; median over n steps after two untimed ones."""
    c = method.config.common
    optimiser = make_optimiser(method)
    method.begin_epoch(c.epochs - 1, c.epochs)
    method.train()

    def step(number: int, index: Rows) -> None:
        train_step(method, data.batch(index, f"epoch {number}", hide=c.drop_modalities), optimiser)

    steps = enumerate(_steps(data, rows, c.batch_size, n + 2))
    times = [_seconds(data.device, partial(step, number, index)) / len(index) for number, index in steps]
    return float(np.median(times[2:]))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _mflop(method: Method, work: Callable[[], object]) -> float:
    """FLOPs in millions (a multiply-add counts as two); NaN for a method without gradient steps."""
    with flop_counter() as counter:
        work()
    return counter.get_total_flops() / 1e6 if method.gradient else math.nan


def measure_inference(method: Method, data: Data, train: Rows, test: Rows) -> dict[str, float]:
    """Cost of the references per training sample, and of a prediction per test sample once they are available.

    References are everything that a method computes from the training samples before it predicts, i.e. its
    `reference_state`. The method keeps it afterwards, as if it had been loaded from a checkpoint. Time of a prediction:
    median of three after an untimed one, including all encoding. Its FLOPs are counted on one batch.
    """
    method.eval()
    method.refresh()
    reference = _mflop(method, method.reference_state) / len(train)
    method.refresh()
    reference_s = _seconds(data.device, method.reference_state) / len(train)
    method.load_reference(method.reference_state())
    times = [_seconds(data.device, partial(predict, method, data, test, draws=1)) for _ in range(4)]
    batch = test[: method.config.common.eval_batch_size]
    return {
        "test_samples_per_s": len(test) / float(np.median(times[1:])),
        "mflop_per_sample": _mflop(method, partial(predict, method, data, batch, draws=1)) / len(batch),
        "reference_s_per_sample": reference_s,
        "reference_mflop_per_sample": reference,
    }


def measure(
    store: Store,
    configs: Sequence[Config],
    *,
    task: str | None = None,
    scheme: str | None = None,
    modalities: Sequence[str] | None = None,
    mask_file: Path | None = None,
    transform: TransformOptions | None = None,
    device: str = "cpu",
    steps: int = 20,
) -> pl.DataFrame:
    """Measure methods on modality configurations (Figure 4 of the paper); one row per method and configuration.

    Columns: method, modalities, parameters, train_samples_per_s, train_epoch_s, those of `measure_inference`,
    test_epoch_s, peak_mb (during training and prediction: allocated memory on a GPU, otherwise the resident memory of
    the process, interpreter and data included), hidden (realised rate of the mask; null without one).

    Raises:
        UsageError: unknown names, or a configuration without labelled training or test samples.
        DataError: the mask file belongs to another store or lacks samples.
    """
    rows: list[dict[str, Any]] = []
    every, least = [m.name for m in store.modalities], min(2, len(store.modalities))
    several = [c for k in range(least, len(every) + 1) for c in combinations(every, k)]
    for names in several if modalities is None else [tuple(modalities)]:
        data = load(
            store, task=task, scheme=scheme, modalities=names, mask_file=mask_file, transform=transform, device=device
        )
        keep_freed_memory()
        train, test = data.rows("train"), data.rows("test")
        for part, those in (("training", train), ("test", test)):
            if len(those) == 0:
                found = f"no labelled {part} sample has any of {', '.join(names)}"
                raise UsageError(f"{found}, so there is nothing to time. Choose other --modalities.")
        for config in (c.for_samples(len(train)) for c in configs):
            reset_peak_memory(data.device)
            method = get(config.method).create(data.spec, config).to(device)
            method.prepare(data, train)
            if method.gradient:
                per_train = _time_training(method, data, train, steps)
            else:
                per_train = _seconds(data.device, partial(method.fit, data, train, data.rows("val"))) / len(train)
            few = test[: max(1, steps // 4) * config.common.eval_batch_size]
            inference = measure_inference(method, data, train, few)
            rows.append(
                {
                    "method": config.method,
                    "modalities": combination_name(names),
                    "parameters": sum(p.numel() for p in method.parameters()),
                    "train_samples_per_s": 1 / per_train,
                    "train_epoch_s": per_train * len(train),
                    **inference,
                    "test_epoch_s": len(test) / inference["test_samples_per_s"],
                    "peak_mb": peak_memory_mb(data.device),
                    "hidden": None if mask_file is None else read_realised(mask_file).get(ALL),
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(cs.float().fill_nan(None))


def show(frame: pl.DataFrame) -> None:
    named = frame.with_columns(pl.col("modalities").str.replace_all("+", " + ", literal=True))
    print_table("", [name.replace("_", " ") for name in frame.columns], named.rows())
