"""What a method costs on a store: samples/s, memory, parameters, FLOPs per sample, by configuration of modalities."""

from __future__ import annotations

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
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from model.config import Config
from model.data import Data, load
from model.inputs import Rows
from model.methods import get
from model.methods.base import Method
from model.train import _optimiser, batches
from mrpipe.store import Store


def _configurations(names: Sequence[str], asked: Sequence[str] | None) -> list[tuple[str, ...]]:
    if asked is not None:
        return [tuple(asked)]
    sizes = range(min(2, len(names)), len(names) + 1)
    return [c for k in sizes for c in combinations(names, k)]


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far: of the process on the CPU, allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _steps(data: Data, rows: Rows, size: int, n: int) -> list[Rows]:
    """n batches of exactly `size` rows (or all rows, if there are fewer), in keyed order."""
    size = min(size, len(rows))
    n_epochs = 1 + n * size // len(rows)
    order = np.concatenate([index for epoch in range(n_epochs) for index in batches(rows, size, 0, epoch)])
    return [order[i * size : (i + 1) * size] for i in range(n)]


def _time_training(method: Method, data: Data, rows: Rows, n: int) -> float:
    """Seconds a sample of a training step after the warm-up, median over n steps."""
    c = method.config.common
    optimiser = _optimiser(method)
    method.begin_epoch(c.epochs - 1, c.epochs)
    method.train()
    times = []
    for number, index in enumerate(_steps(data, rows, c.batch_size, n + 2)):
        _wait(data.device)
        started = time.perf_counter()
        batch = data.batch(index, f"epoch {number}", hide=c.drop_modalities)
        out = method(batch)
        loss = F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        _wait(data.device)
        times.append((time.perf_counter() - started) / len(index))
    return float(np.median(times[2:]))


@torch.no_grad()
def _time_inference(method: Method, data: Data, rows: Rows, n: int) -> float:
    """Seconds a sample of inference, supports already embedded, median over n steps."""
    method.eval()
    method.refresh()
    times = []
    steps = _steps(data, rows, method.config.common.eval_batch_size, n + 1)
    for index in [*steps, *steps]:
        _wait(data.device)
        started = time.perf_counter()
        method(data.batch(index, "evaluation"))
        _wait(data.device)
        times.append((time.perf_counter() - started) / len(index))
    return float(np.median(times[len(steps) :]))


@torch.no_grad()
def _flops(method: Method, data: Data, rows: Rows) -> float:
    """FLOPs of a forward pass a sample (multiply and add counted apart), its supports encoded once a batch."""
    method.eval()
    method.refresh()
    index = rows[: method.config.common.eval_batch_size]
    with FlopCounterMode(display=False) as counter:
        method(data.batch(index, "evaluation"))
    return counter.get_total_flops() / len(index)


def measure(
    store: Store,
    configs: Sequence[Config],
    *,
    task: str | None = None,
    scheme: str | None = None,
    modalities: Sequence[str] | None = None,
    mask_file: Path | None = None,
    device: str = "cpu",
    steps: int = 20,
) -> pl.DataFrame:
    """One row a (method, configuration of modalities): Figure 4 of the paper.

    Columns: method, modalities, parameters, train_samples_per_s, train_epoch_s, test_samples_per_s, test_epoch_s,
    mflop_per_sample (forward; recurrent layers are not counted by torch's counter), peak_mb.
    """
    rows: list[dict[str, Any]] = []
    for names in _configurations([m.name for m in store.modalities], modalities):
        data = load(store, task=task, scheme=scheme, modalities=names, mask_file=mask_file, device=device)
        train, test = data.rows("train"), data.rows("test")
        for config in configs:
            method = get(config.method).create(data.spec, config).to(device)
            method.prepare(data, train)
            if method.gradient:
                per_train = _time_training(method, data, train, steps)
            else:
                started = time.perf_counter()
                method.fit(data, train, data.rows("val"))
                per_train = (time.perf_counter() - started) / len(train)
            per_test = _time_inference(method, data, test, max(1, steps // 4))
            rows.append(
                {"method": config.method, "modalities": "+".join(names),
                 "parameters": sum(p.numel() for p in method.parameters()),
                 "train_samples_per_s": 1 / per_train, "train_epoch_s": per_train * len(train),
                 "test_samples_per_s": 1 / per_test, "test_epoch_s": per_test * len(test),
                 "mflop_per_sample": _flops(method, data, test) / 1e6, "peak_mb": peak_memory_mb(data.device)}
            )  # fmt: skip
    return pl.DataFrame(rows)


def show(frame: pl.DataFrame) -> None:
    """Print a benchmark table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*frame.columns)
    for row in frame.iter_rows():
        table.add_row(*(f"{v:,.3g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row))
    Console().print(table)
