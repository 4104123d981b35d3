"""`python -m model`: runs one command; `model.arguments` says which there are."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from model.arguments import parser
from model.catalogue import help_text
from mrpipe.errors import MrpipeError, UsageError

# torch is imported by the commands, not here: `--help` answers at once, and thread counts are set before it loads.


def _machine(arguments: argparse.Namespace) -> str:
    """Set threads, name the device."""
    if arguments.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    n = arguments.threads or int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
    if n > 0:
        torch.set_num_threads(n)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def _config(method: str, preset: str, arguments: argparse.Namespace, first: Mapping[str, Any] | None = None) -> Any:
    """The configuration: preset, then `first`, then --set."""
    from model.config import make_config, parse_assignments
    from model.methods import get

    overrides = {**(first or {}), **parse_assignments(arguments.set)}
    return make_config(get(method), preset=preset, seed=arguments.seed, overrides=overrides)


def _train_config(arguments: argparse.Namespace) -> Any:
    method, preset = arguments.method, arguments.preset
    if arguments.options is None:
        return _config(method or "moe_retriever", preset or "paper", arguments)
    from model.best import read_best

    best = read_best(arguments.options)
    for name, given in (("method", method), ("preset", preset)):
        if given not in (None, best[name]):
            raise UsageError(f"--options {arguments.options} is of {name} {best[name]}, not {given}")
    return _config(best["method"], best["preset"], arguments, best["overrides"])


def _job(arguments: argparse.Namespace, config: Any, device: str) -> Any:
    from model.train import Job
    from mrpipe import open_store

    return Job(
        store=open_store(arguments.store), run=arguments.out, config=config, task=arguments.task,
        scheme=arguments.scheme, modalities=tuple(arguments.modalities) if arguments.modalities else None,
        mask_file=arguments.mask, device=device, quiet=arguments.quiet,
    )  # fmt: skip


def _train(arguments: argparse.Namespace) -> None:
    device = _machine(arguments)
    from model.train import run_training

    job = _job(arguments, _train_config(arguments), device)
    if not run_training(job):
        print(f"{arguments.out} already holds this run: same options, data and code")
    from model.curves import write_curves

    write_curves(arguments.out)
    if not arguments.no_test:
        from model.evaluate import evaluate_run

        _print_metrics(evaluate_run(arguments.out, job.store, device=device))


def _search(arguments: argparse.Namespace) -> None:
    device = _machine(arguments)
    from model.config import parse_assignments
    from model.methods import get
    from model.search import read_space, search, show

    method = get(arguments.method)
    config = _config(arguments.method, arguments.preset, arguments)
    space = None if arguments.space is None else read_space(arguments.space)
    if not method.gradient:
        print(
            f"{method.name} has no gradient steps, and what it can choose it chooses on validation itself: trial 0 only"
        )
    content = search(
        _job(arguments, config, device), method, preset=arguments.preset, fixed=parse_assignments(arguments.set),
        space=space, n_trials=arguments.trials,
    )  # fmt: skip
    show(content, arguments.out)


def _print_metrics(content: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{content['method']} on {content['dataset']} ({content['origin']}), {content['part']}"
    table = Table("metric", "value", "95 % interval", title=f"{title}, n = {content['n_evaluated']}")
    for name, v in content["metrics"].items():
        interval = "" if v["low"] is None else f"{v['low']:.4f} … {v['high']:.4f}"
        table.add_row(name, "not defined" if v["value"] is None else f"{v['value']:.4f}", interval)
    if content["majority"]["accuracy"] is not None:
        table.add_row(f"always {content['majority']['class']}", f"{content['majority']['accuracy']:.4f}", "")
    Console().print(table)


def _evaluate(arguments: argparse.Namespace) -> None:
    device = _machine(arguments)
    from model.evaluate import evaluate_run
    from mrpipe import open_store

    content = evaluate_run(
        arguments.run, open_store(arguments.store), part=arguments.part, draws=arguments.draws,
        n_resamples=arguments.resamples, device=device,
    )  # fmt: skip
    _print_metrics(content)


def _predict(arguments: argparse.Namespace) -> None:
    device = _machine(arguments)
    import numpy as np

    from model.checkpoint import load_run
    from model.data import load
    from model.evaluate import load_for
    from model.predict import predict, prediction_frame
    from mrpipe import open_store
    from mrpipe.parquet import write_frame

    trained = load_run(arguments.run, device)
    store, origin = open_store(arguments.store), trained.origin
    origin.require_same_kind(store)
    data = load(
        store, task=origin.task, scheme=origin.scheme, modalities=trained.spec.names, mask_file=arguments.mask,
        fitted=trained.fitted, classes=trained.spec.classes, device=device,
    )  # fmt: skip
    if arguments.reference_store is not None:
        reference = load_for(trained, arguments.run, open_store(arguments.reference_store), device)
        trained.method.prepare(reference, reference.rows("train"))
    elif trained.reference is not None:
        trained.method.load_reference(trained.reference)
    else:
        raise UsageError("this run carries no support bank (it exceeded bank_mb): give --reference-store")
    found = predict(trained.method, data, np.arange(len(data)), draws=arguments.draws)
    write_frame(arguments.out, prediction_frame(data, found))
    gone = sum(data.n_without.values())
    left_out = f"; {gone} samples have none of {', '.join(trained.spec.names)}" if gone else ""
    print(f"{len(data)} predictions in {arguments.out}{left_out}")


def _analyse(arguments: argparse.Namespace) -> None:
    device = _machine(arguments)
    from model.analysis import Request, analyse
    from mrpipe import open_store

    written = analyse(
        Request(
            runs=arguments.run, store=open_store(arguments.store), out=arguments.out, what=arguments.what,
            part=arguments.part, combination=arguments.combination, device=device,
        )
    )  # fmt: skip
    for path in written:
        print(path)


def _benchmark(arguments: argparse.Namespace) -> None:
    device = _machine(arguments)
    from model.benchmark import measure, show
    from model.methods import names

    methods = names() if arguments.method == ["all"] else arguments.method
    configs = [_config(m, arguments.preset, arguments) for m in methods]
    from mrpipe import open_store

    frame = measure(
        open_store(arguments.store), configs, task=arguments.task, scheme=arguments.scheme,
        modalities=arguments.modalities, mask_file=arguments.mask, device=device, steps=arguments.steps,
    )  # fmt: skip
    show(frame)
    if arguments.out is not None:
        from mrpipe.parquet import write_text

        write_text(arguments.out, frame.write_csv())


def _options(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from model.config import Common
    from model.methods import get, names

    console = Console()
    if arguments.method is None:
        presets = {name: ", ".join(p for p in get(name).presets if p != "paper") for name in names()}
        print(help_text({name: f"presets: paper, {p}" for name, p in presets.items() if p}))
        print("\n`python -m model options --method NAME` lists all options of one.")
        return
    method = get(arguments.method)
    for title, cls in ((f"options of {method.name}", method.Options), ("options of every method", Common)):
        table = Table("option", "default", "meaning", title=title)
        for f in dataclasses.fields(cls):
            choices = f"  [{' | '.join(map(str, f.metadata['choices']))}]" if f.metadata.get("choices") else ""
            table.add_row(f.name, json.dumps(f.default), f.metadata["help"] + choices.replace("[", "\\["))
        console.print(table)
    for name, values in method.space.items():
        console.print(f"search also tries {name}: {', '.join(map(str, values))}")
    for name, overrides in method.presets.items():
        console.print(f"preset {name}: {', '.join(f'{k}={v}' for k, v in overrides.items()) or 'the defaults'}")


COMMANDS = {
    "train": _train, "search": _search, "evaluate": _evaluate, "predict": _predict, "analyse": _analyse,
    "benchmark": _benchmark, "options": _options,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one message and an exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser(*argv[:1]).parse_args(argv)
    try:
        call: Callable[[argparse.Namespace], None] = getattr(arguments, "call", None) or COMMANDS[arguments.command]
        call(arguments)
    except MrpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
