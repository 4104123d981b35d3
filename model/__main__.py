"""`python -m model`: train, search, evaluate, predict, analyse, benchmark, options; report, results, tables, figures"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from model.catalogue import help_text
from mrpipe.errors import MrpipeError, UsageError

# torch is imported by the commands, not here: `--help` answers at once, and thread counts are set before it loads.


def _add_train(commands: Any, methods: str = "") -> None:
    p = commands.add_parser(
        "train", help="train a method on a sealed store",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train one method on one view of a sealed store and evaluate it once on the test part.\n"
        "A killed run continues when the same command is given again, and ends with the same result.",
        epilog="example:\n  python -m model train --store results/stores/mosi --out runs/a --mask masks/p30.parquet "
        f"--set tokens=4 --set epochs=30\n\n{methods}\n\n"
        "`python -m model options --method NAME` lists all options of one.",
    )  # fmt: skip
    _add_data(p)
    p.add_argument("--out", required=True, type=Path, help="run folder; metrics.json comes last")
    p.add_argument("--method", help="default: moe_retriever, or the one that --options names")
    p.add_argument("--preset", help="named settings of the method; default: paper, or the one that --options names")
    p.add_argument("--seed", type=int, default=0, help="initial weights, batches, dropout, retrieval; default: 0")
    p.add_argument("--options", type=Path, metavar="FILE", help="best.json of a search; --set comes after it")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="options")
    p.add_argument("--no-test", action="store_true", help="leave the test part to `evaluate`")
    _add_machine(p)
    p.set_defaults(call=_train)


def _add_data(p: argparse.ArgumentParser) -> None:
    p.add_argument("--store", required=True, type=Path, help="sealed feature store")
    p.add_argument("--task", help="classification task; default: the store's first")
    p.add_argument("--scheme", help="split; default: the store's own")
    p.add_argument("--modalities", nargs="+", metavar="NAME", help="the view; default: all")
    p.add_argument("--mask", type=Path, metavar="FILE", help="simulated missingness (`mrpipe mask`)")


def _add_search(commands: Any) -> None:
    p = commands.add_parser(
        "search", help="hyper-parameter search on the validation part",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Try settings of one method and name the best by the validation score; the test part is not used.\n"
        "Trial 0 is the preset, the others are drawn from the candidates, which are the same for every method:\n"
        "lr 1e-4, 3e-4, 1e-3; weight_decay 0, 1e-4; dropout 0.1, 0.3, 0.5; and a method's own, if it has any.\n"
        "A killed search continues when the same command is given again; more --trials add to the ones that are done.",
        epilog="example:\n  python -m model search --store results/stores/mosi --method shaspec --out searches/shaspec "
        "--set epochs=50\n  python -m model train --store results/stores/mosi --options searches/shaspec/best.json "
        "--out runs/b --set epochs=50",
    )  # fmt: skip
    _add_data(p)
    p.add_argument("--out", required=True, type=Path, help="folder: trials/, trials.parquet and, last, best.json")
    p.add_argument("--method", default="moe_retriever", help="default: moe_retriever")
    p.add_argument("--preset", default="paper", help="named settings of the method; default: paper")
    p.add_argument("--trials", type=int, default=12, help="number of settings, the preset's own included; default: 12")
    p.add_argument("--seed", type=int, default=0, help="of the draws, and of every trial's run; default: 0")
    p.add_argument("--space", type=Path, metavar="FILE", help="other candidates: YAML or JSON, option: [values]")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                   help="options of all trials; one that is a candidate is not varied")  # fmt: skip
    _add_machine(p)
    p.set_defaults(call=_search)


def _add_machine(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", default="auto", help="auto (CUDA if there is one, else CPU), cpu, cuda, mps")
    p.add_argument("--threads", type=int, help="CPU threads; default: OMP_NUM_THREADS or torch's choice")
    p.add_argument("--quiet", action="store_true", help="no progress line")


def _add_evaluate(commands: Any) -> None:
    p = commands.add_parser(
        "evaluate", help="metrics of a finished run on a part of its store",
        description="Evaluate a finished run on a part of its training store. Writes metrics.json, metrics.csv (by "
        "modality combination), predictions.parquet and routing.parquet into the run folder and prints a table.",
    )  # fmt: skip
    p.add_argument("--run", required=True, type=Path)
    p.add_argument("--store", required=True, type=Path, help="the training store")
    p.add_argument("--part", default="test", choices=("train", "val", "test"), help="default: test")
    p.add_argument("--draws", type=int, help="retrieval draws to average; default: as trained")
    p.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples of the subjects; default: 1000")
    _add_machine(p)
    p.set_defaults(call=_evaluate)


def _add_predict(commands: Any) -> None:
    p = commands.add_parser(
        "predict", help="predict every sample of a store, labelled or not",
        description="Predict every sample of a store of the same dataset. Supporting samples are the training samples "
        "only: from the checkpoint's bank or, where that was too large to keep, from --reference-store.",
    )  # fmt: skip
    p.add_argument("--run", required=True, type=Path)
    p.add_argument("--store", required=True, type=Path)
    p.add_argument("--out", required=True, type=Path, help="Parquet file")
    p.add_argument("--reference-store", type=Path, help="the training store")
    p.add_argument("--mask", type=Path, metavar="FILE", help="simulated missingness of --store")
    p.add_argument("--draws", type=int, help="retrieval draws to average; default: as trained")
    _add_machine(p)
    p.set_defaults(call=_predict)


def _add_analyse(commands: Any) -> None:
    p = commands.add_parser(
        "analyse", help="pictures of routing, gradients and retrieved embeddings",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Tables (Parquet, CSV) and pictures (SVG, PNG) of finished runs:\n"
        "  routing    which experts the tokens of a modality combination visit, and the inverse (Figure 3)\n"
        "  gradients  cosine similarity of the modalities' gradients over the epochs (Figure 5);\n"
        "             recorded by `train --set gradient_rows=128`; several runs are drawn side by side\n"
        "  embedding  t-SNE of samples that lack a modality, before and after its retrieval (Figure 6)",
        epilog="example:\n  python -m model analyse --run runs/a --store results/stores/mosi --out runs/a/analysis",
    )  # fmt: skip
    p.add_argument("--run", required=True, type=Path, nargs="+", help="finished runs")
    p.add_argument("--store", required=True, type=Path, help="the store that they were trained on")
    p.add_argument("--out", required=True, type=Path, help="folder for the files")
    p.add_argument("--what", nargs="+", default=["routing", "gradients", "embedding"],
                   choices=("routing", "gradients", "embedding"), help="default: all three")  # fmt: skip
    p.add_argument("--part", default="test", choices=("train", "val", "test"), help="whose samples; default: test")
    p.add_argument("--combination", metavar="A+B", help="whose embeddings; default: the most frequent that lacks one")
    _add_machine(p)
    p.set_defaults(call=_analyse)


def _add_benchmark(commands: Any) -> None:
    p = commands.add_parser("benchmark", help="speed, memory, parameters and FLOPs of methods on a store")
    p.add_argument("--store", required=True, type=Path)
    p.add_argument("--method", nargs="+", default=["moe_retriever"], metavar="NAME")
    p.add_argument("--preset", default="paper")
    p.add_argument("--task")
    p.add_argument("--scheme")
    p.add_argument("--modalities", nargs="+", metavar="NAME", help="default: every configuration of the modalities")
    p.add_argument("--mask", type=Path, metavar="FILE")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    p.add_argument("--steps", type=int, default=20, help="timed steps; default: 20")
    p.add_argument("--out", type=Path, help="also write the table as CSV")
    _add_machine(p)
    p.set_defaults(call=_benchmark)


def _add_options(commands: Any) -> None:
    p = commands.add_parser("options", help="methods, their presets and options")
    p.add_argument("--method", help="all options of this method")
    p.set_defaults(call=_options)


# Commands that bring their own arguments, and matplotlib or scikit-learn, only when they are asked for.
OTHERS = {
    "report": "results page of finished runs",
    "results": "all scores of finished runs as one tidy table",
    "tables": "tables of a suite from its finished cells",
    "figures": "figures of a suite from its finished cells",
}


def parser(asked: str = "") -> argparse.ArgumentParser:
    """The command line; `asked` is the command whose own arguments are wanted, where it brings them itself."""
    top = argparse.ArgumentParser(prog="python -m model", description="Train and evaluate methods from feature stores.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands, methods=help_text())
    for add in (_add_search, _add_evaluate, _add_predict, _add_analyse, _add_benchmark, _add_options):
        add(commands)
    for name, help_ in OTHERS.items():
        p = commands.add_parser(name, help=help_)
        if name == asked:
            module = import_module(f"model.{name}")
            module.add_arguments(p)
            p.set_defaults(call=module.run)
    return top


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
    from model.search import read_best

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
    from model.analyse import Request, analyse
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

    configs = [_config(m, arguments.preset, arguments) for m in arguments.method]
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


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one message and an exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser(*argv[:1]).parse_args(argv)
    call: Callable[[argparse.Namespace], None] = arguments.call
    try:
        call(arguments)
    except MrpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
