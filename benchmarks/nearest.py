"""Time of a training step of MoE-Retriever with nearest supporting samples, relative to uniform ones.

    python -m benchmarks.nearest --out benchmarks/out/nearest        # the rows of benchmarks/speed.md, one thread
    python -m benchmarks.nearest --out benchmarks/out/nearest --quick

Simulated data of the sizes of MIMIC-IV (`benchmarks/shapes.py`), 30 % missing, defaults of the method, batches of 32.
Variants run interleaved in turns of some steps each; ratios are computed within each turn. Times are CPU seconds of one
thread. The embeddings of `nearest_metric=embedding` are renewed in every turn, which is charged to it in proportion to
the steps of an epoch. Writes nearest.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import shapes
from moe_retriever.config import make_config
from moe_retriever.data.load import Data
from moe_retriever.methods import get
from moe_retriever.methods.base import Method
from moe_retriever.nn.kernels.allocator import keep_freed_memory
from moe_retriever.training.loop import make_optimiser, train_step

VARIANTS: dict[str, dict[str, object]] = {
    "uniform": {},
    "features": {"support": "nearest"},
    "embedding": {"support": "nearest", "nearest_metric": "embedding"},
}


def made(data: Data, hide: float, options: dict[str, object]) -> Method:
    """The method with default sizes, prepared with the training samples, retrieving from the first epoch."""
    cls = get("moe_retriever")
    overrides = {"warmup": 0, "drop_modalities": hide, **options}
    method = cls.create(data.spec, make_config(cls, preset="paper", seed=0, overrides=overrides))
    method.prepare(data, data.rows("train"))
    method.begin_epoch(0, 100)
    return method


def measure(n_train: int, hide: float, n_turns: int, n_steps: int) -> list[dict[str, object]]:
    """One record per variant: seconds per step, and the ratio to uniform draws."""
    data = shapes.make(shapes.mimic(round(n_train / 0.7)), torch.device("cpu")).data
    rows, size = data.rows("train"), 32
    rng = np.random.default_rng(0)
    methods = {name: made(data, hide, options) for name, options in VARIANTS.items()}
    optimisers = {name: make_optimiser(method) for name, method in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(n_turns + 1):
        batches = [rng.choice(rows, size, replace=False) for _ in range(n_steps)]
        names = list(VARIANTS)
        for name in names[turn % 3 :] + names[: turn % 3]:
            method = methods[name].train()
            # Renewal of what depends on weights: once per epoch, that is len(rows) / 32 steps.
            method.refresh()
            batch = data.batch(batches[0], f"turn {turn}", hide=hide)
            started = time.process_time()
            train_step(method, batch, optimisers[name])
            once = time.process_time() - started
            started = time.process_time()
            for index in batches:
                train_step(method, data.batch(index, f"turn {turn}", hide=hide), optimisers[name])
            step = (time.process_time() - started) / n_steps
            if turn:
                seconds[name].append(step + max(once - step, 0.0) * size / len(rows))
    records = []
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(found, seconds["uniform"], strict=True)]
        ms, limits = 1000 * statistics.median(found), (min(ratios), max(ratios))
        records.append(
            {"n_train": n_train, "hide": hide, "support": name, "ms": ms, "ratio": statistics.median(ratios)}
            | {"min": limits[0], "max": limits[1]}
        )
    return records


def main() -> None:
    """Measure, write JSON, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="small data, few turns")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    sizes, turns, steps = ((300,), 2, 2) if arguments.quick else ((2_000, 20_000), arguments.turns, 10)
    records = [r for n in sizes for hide in (0.0, 0.2) for r in measure(n, hide, turns, steps)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "nearest.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    lines = ["| training samples | hidden | support | step | ratio |", "|---|---|---|---|---|"]
    for r in records:
        ratio = f"{r['ratio']:.2f}× ({r['min']:.2f}–{r['max']:.2f})"
        lines.append(
            f"| {r['n_train']:,} | {100 * float(str(r['hide'])):.0f} % | {r['support']} | {r['ms']:.1f} ms | {ratio} |"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
