"""Computational cost of a method on a store: samples/s, memory, parameters and FLOPs, per modality configuration."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
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
from mrpipe.store.masks import combination_name
from mrpipe.store.reader import Store
from mrpipe.transforms.options import TransformOptions


def _configurations(names: Sequence[str], asked: Sequence[str] | None) -> list[tuple[str, ...]]:
    if asked is not None:
        return [tuple(asked)]
    sizes = range(min(2, len(names)), len(names) + 1)
    return [c for k in sizes for c in combinations(names, k)]


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
    times = []
    for number, index in enumerate(_steps(data, rows, c.batch_size, n + 2)):
        _wait(data.device)
        started = time.perf_counter()
        batch = data.batch(index, f"epoch {number}", hide=c.drop_modalities)
        train_step(method, batch, optimiser)
        _wait(data.device)
        times.append((time.perf_counter() - started) / len(index))
    return float(np.median(times[2:]))


def _time_inference(method: Method, data: Data, rows: Rows) -> float:
    """Seconds per sample to predict the rows, including all encoding; median of three after one untimed prediction."""
    times = []
    for _ in range(4):
        _wait(data.device)
        started = time.perf_counter()
        predict(method, data, rows, draws=1)
        _wait(data.device)
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:])) / len(rows)


def _flops(method: Method, data: Data, rows: Rows) -> float:
    """FLOPs per predicted sample (a multiply-add counts as two); supporting samples are encoded once per batch."""
    index = rows[: method.config.common.eval_batch_size]
    with flop_counter() as counter:
        predict(method, data, index, draws=1)
    return counter.get_total_flops() / len(index)


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

    Columns: method, modalities, parameters, train_samples_per_s, train_epoch_s, test_samples_per_s, test_epoch_s,
    mflop_per_sample (of a prediction; null for methods without a network), peak_mb (during training and prediction:
    allocated memory on a GPU, otherwise the resident memory of the process, interpreter and data included).

    Raises:
        UsageError: unknown names, or a configuration without labelled training or test samples.
        DataError: the mask file belongs to another store or lacks samples.
    """
    rows: list[dict[str, Any]] = []
    for names in _configurations([m.name for m in store.modalities], modalities):
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
                started = time.perf_counter()
                method.fit(data, train, data.rows("val"))
                per_train = (time.perf_counter() - started) / len(train)
            few = test[: max(1, steps // 4) * config.common.eval_batch_size]
            per_test = _time_inference(method, data, few)
            rows.append(
                {
                    "method": config.method,
                    "modalities": combination_name(names),
                    "parameters": sum(p.numel() for p in method.parameters()),
                    "train_samples_per_s": 1 / per_train,
                    "train_epoch_s": per_train * len(train),
                    "test_samples_per_s": 1 / per_test,
                    "test_epoch_s": per_test * len(test),
                    "mflop_per_sample": _flops(method, data, test) / 1e6 if method.gradient else None,
                    "peak_mb": peak_memory_mb(data.device),
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def show(frame: pl.DataFrame) -> None:
    """Print a table of measurements."""
    from rich.console import Console
    from rich.table import Table

    cells = {name: [_cell(value) for value in frame[name]] for name in frame.columns}
    cells["modalities"] = [names.replace("+", " + ") for names in cells["modalities"]]
    # In a narrow terminal, names wrap to the next line, but numbers are neither truncated nor wrapped.
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name, column in cells.items():
        if frame.schema[name].is_numeric():
            table.add_column(name.replace("_", " "), justify="right", min_width=max(map(len, column)), overflow="fold")
        else:
            table.add_column(name, overflow="fold")
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    Console().print(table)


def _cell(value: Any) -> str:
    """Format large numbers in full and small ones with three significant digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
