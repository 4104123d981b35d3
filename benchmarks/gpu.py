"""Everything that needs a GPU, in one run of ten minutes; the exit status is 1 if a section fails or misses its bar.

    python -m benchmarks.gpu --out benchmarks/out/gpu                         # on a machine with one GPU
    python -m benchmarks.gpu --out benchmarks/out/gpu --device cpu --quick    # whether it runs, without a GPU

Sections: environment; precision (a training step of each method in bfloat16 and float32); grouped (torch's grouped
product and the loop over experts: equality and time); waits (times that the host waits for the GPU, per training step
and evaluated batch); speed (this project and the authors' loop, batch 64: at least 20 times as fast); sharing (four
trainings one after the other and at once); suite (table 2 at smoke size, with `cells_per_gpu`). Writes gpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import shapes, speed
from moe_retriever.config import make_config
from moe_retriever.device import autocast, usable_device
from moe_retriever.methods import get, names
from moe_retriever.methods.base import Method
from moe_retriever.nn import moe
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import build
from moe_retriever.training.loop import make_optimiser, train_step
from moe_retriever.training.predict import predict

BAR = 20.0
SECTIONS = ("environment", "precision", "grouped", "waits", "speed", "sharing", "suite")
GRADIENT = [name for name in names() if get(name).gradient]
ROOT = Path(__file__).parents[1]


def synchronise(options: argparse.Namespace) -> None:
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()


def data_of(options: argparse.Namespace) -> shapes.Both:
    return shapes.make(shapes.mimic(200 if options.quick else 3000), torch.device(options.device))


def made(both: shapes.Both, options: argparse.Namespace, name: str = "moe_retriever", **overrides: Any) -> Method:
    """A method with its defaults (small if quick), in an epoch that trains all of it."""
    small = {"hidden": 32, "tokens": 4, "encoder_hidden": 32} if options.quick else {}
    cls = get(name)
    config = make_config(cls, preset="paper", seed=0, overrides={"epochs": 20, **small, **overrides})
    method = cls.create(both.data.spec, config).to(options.device)
    method.prepare(both.data, both.data.rows("train"))
    method.begin_epoch(19, 20)
    return method


def environment(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cpus": os.cpu_count()}
    if options.device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(options.device)
        capability = torch.cuda.get_device_capability(options.device)
        found |= {"gpu": properties.name, "memory_gb": properties.total_memory / 1e9, "capability": capability}
    return found


def precision(options: argparse.Namespace) -> dict[str, Any]:
    """Relative difference of the loss, and largest difference of a probability after one step."""
    both = data_of(options)
    train, test = both.data.rows("train")[:128], both.data.rows("test")[:256]
    rows = {}
    for name in GRADIENT:
        found = []
        for kind in ("float32", "bfloat16"):
            method = made(both, options, name, precision=kind, dropout=0.0)
            loss = train_step(method.train(), both.data.batch(train, "epoch 19"), make_optimiser(method))["loss"]
            found.append((float(loss), predict(method, both.data, test).scored))
        (loss, scored), (other, other_scored) = found
        rows[name] = {"loss": abs(other / loss - 1), "probability": float(abs(scored - other_scored).max())}
    ok = all(row["loss"] < 0.02 and row["probability"] < 0.05 for row in rows.values())
    return {"ok": ok, "methods": rows}


def grouped(options: argparse.Namespace) -> dict[str, Any]:
    """Experts of MoE-Retriever on the tokens of a MIMIC batch of 64; first with half of the experts unvisited."""
    device = torch.device(options.device)
    n, hidden, ffn, n_experts = (500, 32, 64, 8) if options.quick else (6000, 128, 256, 28)
    noise, g = Noise(0), torch.Generator().manual_seed(0)
    experts = build(lambda: moe.Experts(n_experts, hidden, ffn, 0.0, noise), 0, "experts").to(device)
    x = torch.randn(n, hidden, generator=g).to(device).requires_grad_()
    weight = torch.rand(n, 4, generator=g).to(device)
    result: dict[str, Any] = {}
    for case, visited in (("half of the experts", n_experts // 2), ("all experts", n_experts)):
        expert = torch.stack([torch.randperm(visited, generator=g)[:4] for _ in range(n)]).to(device)
        routing = moe.Routing(expert, weight, weight)

        def step(routing: moe.Routing = routing) -> list[torch.Tensor]:
            with autocast("bfloat16", device):
                y = experts(x, routing, row_T=torch.arange(n, device=device) // 3, n_rows=n)
            return [y, *torch.autograd.grad(y.square().sum(), [x, *experts.parameters()])]

        found, seconds = [], {}
        for name, chosen in (("loop", False), ("kernel", True)):
            with patch.object(moe, "grouped", return_value=chosen):
                found.append(step())
                times = []
                for _ in range(3 if options.quick else 20):
                    synchronise(options)
                    started = time.perf_counter()
                    step()
                    synchronise(options)
                    times.append(time.perf_counter() - started)
            seconds[name] = statistics.median(times)
        worst = max(float((a - b).norm() / a.norm().clamp_min(1e-9)) for a, b in zip(*found, strict=True))
        result[case] = {"difference": worst, "ms": {k: v * 1e3 for k, v in seconds.items()}}
    return {"ok": all(row["difference"] < 0.02 for row in result.values()), **result}


@contextmanager
def counted_waits(options: argparse.Namespace) -> Iterator[list[str]]:
    """Places at which the host waits for the GPU, as torch reports them."""
    places: list[str] = []
    if not options.device.startswith("cuda"):
        yield places
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
        places += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def waits(options: argparse.Namespace) -> dict[str, Any]:
    """Per training step, and per evaluation of three batches, which reads its result once."""
    both = data_of(options)
    train, test = both.data.rows("train"), both.data.rows("test")
    rows = {}
    for name in GRADIENT:
        method = made(both, options, name, eval_batch_size=max(1, len(test) // 3))
        optimiser = make_optimiser(method)
        train_step(method.train(), both.data.batch(train[:64], "epoch 18"), optimiser)
        with counted_waits(options) as training:
            train_step(method, both.data.batch(train[64:128], "epoch 19"), optimiser)
        predict(method, both.data, test)
        with counted_waits(options) as evaluation:
            predict(method, both.data, test, same_weights=True)
        rows[name] = {"training": training, "evaluation": evaluation}
    return {"ok": not any(row["training"] for row in rows.values()), "methods": rows}


def speed_(options: argparse.Namespace) -> dict[str, Any]:
    quick = ["--quick"] if options.quick else []
    where = ["--out", str(options.out / "speed"), "--device", options.device, "--repeats", "5"]
    rows = speed.main([*where, "--only", "steps", "inference", *quick])
    compared = [r for r in rows if r["against"] == "fixed" and "batch 16" not in r["what"]]
    reached = all(r["ratio"]["median"] >= BAR for r in compared) or not options.device.startswith("cuda")
    return {"ok": reached, "ratios": {f"{r['what']}, {r['shape']}": r["ratio"] for r in compared}}


def worker(options: argparse.Namespace) -> None:
    """A training of a few hundred steps; prints the time without imports and data."""
    both = data_of(options)
    method, train = made(both, options), both.data.rows("train")
    optimiser = make_optimiser(method.train())
    synchronise(options)
    started = time.perf_counter()
    for i in range(3 if options.quick else 300):
        train_step(method, both.data.batch(train[i * 32 % 1024 :][:32], f"epoch {i}"), optimiser)
    synchronise(options)
    print(time.perf_counter() - started)


def sharing(options: argparse.Namespace) -> dict[str, Any]:
    """Wall seconds of four trainings of 300 steps, imports and data included, and median seconds of their steps."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", "--out", str(options.out)]
    command += ["--device", options.device, *(["--quick"] if options.quick else [])]
    n = 2 if options.quick else 4
    result = {}
    for name, at_once in (("one after the other", 1), ("at once", n)):
        started, steps = time.perf_counter(), []
        for _ in range(n // at_once):
            running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(at_once)]
            texts = [process.communicate()[0] for process in running]
            assert not any(process.returncode for process in running)
            steps += [float(text.split()[-1]) for text in texts]
        result[name] = {"seconds": time.perf_counter() - started, "steps": statistics.median(steps)}
    return {"ok": True, **result}


def suite(options: argparse.Namespace) -> dict[str, Any]:
    if options.quick:
        return {"ok": True, "skipped": "quick"}
    folder = options.out / "suite"
    folder.mkdir(parents=True, exist_ok=True)
    settings = ["size=smoke", "gpu=true", "cells_per_gpu=4"]
    command = [sys.executable, "-m", "mrpipe", "run", "table2", "--profile", "local", "--", "--config", *settings]
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "model")])}
        status = subprocess.run(
            command, cwd=folder, env=os.environ | paths, stdout=log, stderr=subprocess.STDOUT, timeout=240, check=False
        ).returncode
    costs = [json.loads(path.read_text()) for path in folder.glob("results/runs/*/*/seed*/cost.json")]
    machines = sorted({f"{cost['device']}, {cost['precision']}" for cost in costs})
    return {"ok": status == 0, "seconds": time.perf_counter() - started, "runs": len(costs), "machines": machines}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to run")
    parser.add_argument("--quick", action="store_true", help="toy sizes, without the suite")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.device = usable_device(options.device)
    torch.set_num_threads(1)
    if options.worker:
        worker(options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in options.only:
        section: Callable[[argparse.Namespace], dict[str, Any]] = speed_ if name == "speed" else globals()[name]
        started = time.perf_counter()
        try:
            results[name] = section(options)
        except Exception:
            # The other sections are worth their result.
            results[name] = {"ok": False, "error": traceback.format_exc()}
        results[name]["section_seconds"] = round(time.perf_counter() - started, 1)
        print(f"{name}: {json.dumps(results[name], indent=1)}", flush=True)
        (options.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
    return int(not all(result.get("ok", True) for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
