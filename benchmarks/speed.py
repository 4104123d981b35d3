"""Compare this project's MoE-Retriever with the authors' per-sample loop (benchmarks/peer.py), in the same process.

    python -m benchmarks.speed --out benchmarks/out/speed                # all rows of benchmarks/speed.md, one thread
    python -m benchmarks.speed --out benchmarks/out/speed --quick        # the same at toy sizes, in a minute
    python -m benchmarks.speed --out benchmarks/out/speed --device cuda --only steps inference
    python -m benchmarks.speed --out benchmarks/out/speed --threads 2 --only steps

Variants run interleaved in turns. Ratios are computed within each turn; the median, minimum and maximum over all turns
are reported. With one CPU thread, times are CPU seconds, which hardly depend on other load on the machine; otherwise,
they are wall seconds. `limit` is the ratio if this project's matrix products ran at the rate of a large sgemm, measured
in the same turns, and everything else were free. Writes speed.json and speed.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import genotype_loading, shapes
from benchmarks.peer import Peer, Samples, Settings, collate
from moe_retriever.config import make_config
from moe_retriever.evaluation.flops import flop_counter
from moe_retriever.methods import get
from moe_retriever.methods.base import Method
from moe_retriever.nn.kernels.allocator import keep_freed_memory
from moe_retriever.training.loop import make_optimiser, train_epoch, train_step
from moe_retriever.training.predict import predict

Variant = Callable[[int], None]

SECTIONS = ("steps", "inference", "images", "loading", "memory")


@dataclass(frozen=True)
class Plan:
    """Device, number of turns, sizes, and whether variants run once before they are timed."""

    device: torch.device
    threads: int
    repeats: int
    quick: bool
    warm: bool = True

    def shapes(self) -> list[shapes.Shape]:
        if self.quick:
            return [shapes.adni(400, 120), shapes.mimic(120)]
        return [shapes.adni(144_746, 1400), shapes.adni(10_000, 1400), shapes.mimic(3000)]

    def seconds(self, run: Callable[[], None]) -> float:
        """Time of one call."""
        alone = self.device.type == "cpu" and self.threads == 1
        clock = time.process_time if alone else time.perf_counter
        self.wait()
        started = clock()
        run()
        self.wait()
        return clock() - started

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def turns(self, variants: dict[str, Variant]) -> dict[str, list[float]]:
        """Seconds per variant and turn. The order of the variants rotates from turn to turn."""
        for run in variants.values() if self.warm else ():
            run(0)
        found: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(1, self.repeats + 1):
            names = list(variants)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(self.seconds(partial(variants[name], turn)))
        return found

    def sgemm(self, turn: int) -> None:
        """A large matrix product with 2 · 10⁹ floating-point operations (10¹² on a GPU)."""
        size, n = (1000, 1) if self.device.type == "cpu" else (5000, 4)
        a = torch.ones(size, size, device=self.device)
        for _ in range(n):
            a @ a

    @property
    def sgemm_flops(self) -> float:
        return 2e9 if self.device.type == "cpu" else 1e12


def ratio(peer: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of the ratios of paired times."""
    each = [p / o for p, o in zip(peer, ours, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def our_method(both: shapes.Both, plan: Plan, **overrides: Any) -> Method:
    """MoE-Retriever with its defaults and the encoders of the released code, retrieving from the first epoch."""
    settings = {"vector_encoder": "linear", "warmup": 0, "encoder_hidden": 128, **overrides}
    cls = get("moe_retriever")
    method = cls.create(both.data.spec, make_config(cls, preset="paper", seed=0, overrides=settings)).to(plan.device)
    method.prepare(both.data, both.data.rows("train"))
    method.begin_epoch(0, method.config.common.epochs)
    return method


def peer_model(both: shapes.Both, plan: Plan, *, released: bool) -> Peer:
    """The authors' loop on the same numbers, as dense arrays."""
    sizes = [a.shape[1:] for a in both.arrays]
    train = both.data.rows("train")
    return Peer(sizes, both.shape.n_classes, Settings(), both.arrays, both.data.observed, train, released=released).to(
        plan.device
    )


def peer_batches(both: shapes.Both, rows: np.ndarray, size: int) -> Any:
    return collate(Samples(both.arrays, both.data.observed, both.data.label, rows), size)


def our_training(both: shapes.Both, method: Method, chunks: Callable[[int], list[np.ndarray]]) -> Variant:
    """Training steps on the batches of a turn."""
    optimiser = make_optimiser(method)

    def run(turn: int) -> None:
        method.train()
        for i, index in enumerate(chunks(turn)):
            train_step(method, both.data.batch(index, f"epoch {turn}.{i}"), optimiser)

    return run


def our_inference(both: shapes.Both, method: Method, rows: np.ndarray, *, same_weights: bool) -> Variant:
    def run(turn: int) -> None:
        predict(method, both.data, rows, same_weights=same_weights)

    return run


def peer_training(both: shapes.Both, peer: Peer, chunks: Callable[[int], list[np.ndarray]], size: int) -> Variant:
    adam = torch.optim.Adam(peer.parameters(), lr=1e-4)

    def run(turn: int) -> None:
        peer.train()
        for rows in chunks(turn):
            for batch in peer_batches(both, rows, size):
                peer.train_step(batch, adam)

    return run


def peer_inference(both: shapes.Both, peer: Peer, rows: np.ndarray, size: int) -> Variant:
    @torch.no_grad()
    def run(turn: int) -> None:
        peer.eval()
        for batch in peer_batches(both, rows, size):
            peer(batch)
        peer.retriever.gate.loss = 0.0

    return run


def batches(rows: np.ndarray, size: int, n: int, turn: int) -> list[np.ndarray]:
    """The n batches of a turn, which are the same for all variants and differ between turns."""
    n_orders = 1 + n * size // len(rows)
    order = np.concatenate([np.random.default_rng([turn, i]).permutation(rows) for i in range(n_orders)])
    return [order[i * size : (i + 1) * size] for i in range(n)]


def steps(plan: Plan) -> list[dict[str, Any]]:
    """Training steps at batch sizes 16 and 64: time compared with both peers, and fraction of the sgemm rate."""
    rows = []
    for shape in plan.shapes():
        both = shapes.make(shape, plan.device)
        for size in (16, 64):
            n = 1 if plan.quick else {16: 4, 64: 2}[size]
            chunks = partial(batches, both.data.rows("train"), size, n)
            ours = our_training(both, our_method(both, plan, batch_size=size), chunks)
            variants = {"ours": ours, "sgemm": plan.sgemm}
            for name, released in (("fixed", False), ("released", True)):
                variants[name] = peer_training(both, peer_model(both, plan, released=released), chunks, size)
            rows += _measure(f"training step, batch {size}", both, variants, plan, n)
    return rows


def inference(plan: Plan) -> list[dict[str, Any]]:
    """One epoch over the validation set, encoding everything and with all embeddings in the bank."""
    rows = []
    for shape in plan.shapes():
        both = shapes.make(shape, plan.device)
        val, method = both.data.rows("val"), our_method(both, plan)
        loop = peer_inference(both, peer_model(both, plan, released=False), val, 16)
        for name, known in (("encoding included", False), ("bank cached", True)):
            ours = our_inference(both, method, val, same_weights=known)
            variants = {"ours": ours, "sgemm": plan.sgemm, "fixed": loop}
            rows += _measure(f"inference epoch, {name}", both, variants, plan)
    return rows


def images(plan: Plan) -> list[dict[str, Any]]:
    """Training with 3-D images (ours cropped to the bounding box of the mask), and repeated inference from the bank."""
    box, grid = ((6, 7, 5), (9, 9, 8)) if plan.quick else (shapes.BOX, shapes.VOLUME)
    both = shapes.make(shapes.adni(1000, 8 if plan.quick else 24, volume=box), plan.device, grid=grid)
    # Volumes take seconds each: one turn, without a warm-up call.
    few = plan if plan.quick else replace(plan, repeats=1, warm=False)
    train, every = both.data.rows("train"), np.arange(8)
    method, peer = our_method(both, plan, batch_size=4), peer_model(both, plan, released=False)
    optimiser = make_optimiser(method)

    def epoch(turn: int) -> None:
        train_epoch(method, both.data, train, optimiser, turn)

    loop = peer_training(both, peer, lambda turn: [train], 4)
    rows = _measure(
        "training epoch with 3-D images, cropped", both, {"ours": epoch, "sgemm": few.sgemm, "fixed": loop}, few
    )
    again = our_inference(both, method, every, same_weights=True)
    predict(method, both.data, every)
    variants = {"ours": again, "sgemm": few.sgemm, "fixed": peer_inference(both, peer, every, 4)}
    return rows + _measure("repeated inference, images in the bank", both, variants, few)


def _measure(
    what: str, both: shapes.Both, variants: dict[str, Variant], plan: Plan, n: int = 1
) -> list[dict[str, Any]]:
    """One row per peer in `variants`; each call of a variant runs n units of `what`."""
    times = plan.turns(variants)
    with flop_counter() as counter:
        variants["ours"](1)
    flops = counter.get_total_flops()
    rate = [plan.sgemm_flops / t for t in times["sgemm"]]
    share = [flops / t / r for t, r in zip(times["ours"], rate, strict=True)]
    rows = []
    for peer in times.keys() - {"ours", "sgemm"}:
        limit = [t / (flops / r) for t, r in zip(times[peer], rate, strict=True)]
        rows.append(
            {
                "what": what,
                "shape": both.shape.name,
                "against": peer,
                "ours_ms": statistics.median(times["ours"]) / n * 1e3,
                "peer_ms": statistics.median(times[peer]) / n * 1e3,
                "ratio": ratio(times[peer], times["ours"]),
                "limit": statistics.median(limit),
                "sgemm_share": statistics.median(share),
                "sgemm_gflops": statistics.median(rate) / 1e9,
            }
        )
    return sorted(rows, key=lambda row: str(row["against"]))


def loading(plan: Plan) -> list[dict[str, Any]]:
    """Genotypes from file to encoder input, each side in a separate process."""
    n, n_snps = (60, 2000) if plan.quick else (2380, 144_746)
    return genotype_loading.measure(n, n_snps)


def memory(plan: Plan) -> list[dict[str, Any]]:
    """Resident memory after each epoch of training and validation."""
    both = shapes.make(plan.shapes()[-1], plan.device)
    train, val = both.data.rows("train"), both.data.rows("val")
    if not plan.quick:
        train = train[:640]
    method = our_method(both, plan, batch_size=16)
    optimiser = make_optimiser(method)
    mb = []
    for epoch in range(4 if plan.quick else 8):
        train_epoch(method, both.data, train, optimiser, epoch)
        predict(method, both.data, val)
        gc.collect()
        mb.append(resident_mb(plan.device))
    return [{"what": "memory over epochs", "shape": both.shape.name, "mb": mb, "growth_mb": mb[-1] - mb[1]}]


def resident_mb(device: torch.device) -> float:
    """Memory in MB: resident in the process, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def markdown(rows: Sequence[dict[str, Any]], state: dict[str, Any]) -> str:
    """Format the results as Markdown tables."""
    lines = [
        ", ".join(f"{k}: {v}" for k, v in state.items()),
        "",
        "| what | shape | against | ours | peer | ratio (min–max) | limit | sgemm share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "peer_ms" in r:
            x = r["ratio"]
            lines.append(
                f"| {r['what']} | {r['shape']} | {r['against']} | {_time(r['ours_ms'])} | {_time(r['peer_ms'])} | "
                f"**{x['median']:.2f}×** ({x['min']:.2f}–{x['max']:.2f}) | {r['limit']:.1f}× | {r['sgemm_share']:.0%} |"
            )
    loads = [r for r in rows if r["what"] == "genotype loading"]
    if loads:
        lines += ["", "| genotypes | ours | pandas | ratio |", "|---|---|---|---|"]
        for r in loads:
            for key, unit in (("seconds", "s"), ("mb", "MB")):
                ours, peer = r["ours"][key], r["pandas"][key]
                lines.append(f"| {r['shape']}: {key} | {ours:.2f} {unit} | {peer:.1f} {unit} | {peer / ours:.0f}× |")
    for r in rows:
        if "growth_mb" in r:
            values = ", ".join(f"{v:.0f}" for v in r["mb"])
            lines += ["", f"Memory after each epoch ({r['shape']}, MB): {values}."]
    return "\n".join(lines) + "\n"


def _time(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for speed.json and speed.md")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=7, help="number of turns")
    parser.add_argument("--quick", action="store_true", help="smoke test with toy sizes and two turns")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    random.seed(0)
    torch.manual_seed(0)
    keep_freed_memory()
    plan = Plan(torch.device(options.device), options.threads, 2 if options.quick else options.repeats, options.quick)
    rows: list[dict[str, Any]] = []
    options.out.mkdir(parents=True, exist_ok=True)
    state = {
        "device": _device(plan.device),
        "threads": options.threads,
        "torch": torch.__version__,
        "turns": plan.repeats,
        "load at start": f"{os.getloadavg()[0]:.1f}",
    }
    for name in options.only:
        rows += globals()[name](plan)
        (options.out / "speed.json").write_text(json.dumps({"state": state, "rows": rows}, indent=2) + "\n")
        (options.out / "speed.md").write_text(markdown(rows, state))
    print(markdown(rows, state))
    return rows


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()} × {os.cpu_count()}"


if __name__ == "__main__":
    main()
