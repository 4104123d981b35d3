"""Commands that train, evaluate and report; they are entry points in the group `mrpipe.commands`.

torch and matplotlib are imported inside the functions, so that `--help` is fast and threads are set before torch loads.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from moe_retriever.catalogue import help_text, names
from moe_retriever.cli import arguments as arguments_of
from mrpipe.cli.command import Command
from mrpipe.errors import UsageError
from mrpipe.locks import Claim, output_file, output_folder, writing
from mrpipe.terminal import print_table


def machine(arguments: argparse.Namespace) -> str:
    """Set the number of threads and return the device."""
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from moe_retriever.device import usable_device
    from moe_retriever.nn import kernels

    kernels.plain = arguments.kernels == "plain"
    torch.set_num_threads(arguments.threads)
    return usable_device(arguments.device)


def _config(method: str, preset: str, arguments: argparse.Namespace, first: Mapping[str, Any] | None = None) -> Any:
    """The configuration: preset, overridden by `first`, overridden by --set."""
    from moe_retriever.config import make_config
    from moe_retriever.methods import get
    from mrpipe.options import parse_assignments

    overrides = {**(first or {}), **parse_assignments(arguments.set)}
    return make_config(get(method), preset=preset, seed=arguments.seed, overrides=overrides)


def _train_config(arguments: argparse.Namespace) -> Any:
    """The configuration of a run; `arguments` gets the transforms of the search."""
    method, preset = arguments.method, arguments.preset
    if arguments.options is None:
        return _config(method or "moe_retriever", preset or "paper", arguments)
    from moe_retriever.training.search_result import read_best

    best = read_best(arguments.options)
    arguments.transform = [f"{k}={v}" for k, v in best.get("transforms", {}).items()] + arguments.transform
    for name, given, found in (("method", method, best["method"]), ("preset", preset, best["preset"])):
        if given not in (None, found):
            raise UsageError(f"--options {arguments.options} has {name} {found}, not {given}")
    return _config(best["method"], best["preset"], arguments, best["overrides"])


def _data(arguments: argparse.Namespace, store: Any = None) -> dict[str, Any]:
    """The data of a training or benchmark, as keyword arguments of `Job` and `measure`; `store` if already opened."""
    from mrpipe.options import parse_assignments, parse_options
    from mrpipe.store.reader import open_verified
    from mrpipe.transforms.options import TransformOptions

    values = parse_assignments(arguments.transform, "--transform")
    return {
        "store": store or open_verified(arguments.store),
        "task": arguments.task,
        "scheme": arguments.scheme,
        "modalities": tuple(arguments.modalities) if arguments.modalities else None,
        "mask_file": arguments.mask,
        "transform": parse_options(TransformOptions, values, context="--transform"),
    }


def _job(arguments: argparse.Namespace, config: Any, device: str, store: Any = None, **more: Any) -> Any:
    from moe_retriever.training.loop import Job

    how = {"device": device, "overwrite": arguments.overwrite, **more}
    return Job(run=arguments.out, config=config, **_data(arguments, store), **how)


def training_job(arguments: argparse.Namespace, device: str, **more: Any) -> Any:
    """The `Job` of `mrpipe train`; `more` are further fields, and the store if it is already opened."""
    return _job(arguments, _train_config(arguments), device, **more)


def _train(arguments: argparse.Namespace) -> None:
    device = machine(arguments)
    from moe_retriever.training.loop import run_training

    job = training_job(arguments, device)
    if not run_training(job):
        print(f"{arguments.out} already contains this run (same options, data and code)")
    from moe_retriever.plots.curves import write_curves

    write_curves(arguments.out)
    if not arguments.no_test:
        from moe_retriever.evaluation.evaluate import evaluate_run

        _print_metrics(evaluate_run(arguments.out, job.store, device=device))


def _typed(config: Any, texts: Mapping[str, str]) -> dict[str, Any]:
    """The options of `--set`, with values parsed by the configuration."""
    values = dataclasses.asdict(config.common) | dataclasses.asdict(config.own)
    return {name: values[name] for name in texts}


def _search(arguments: argparse.Namespace) -> None:
    device = machine(arguments)
    from moe_retriever.methods import get
    from moe_retriever.training.search import read_space, search, show
    from mrpipe.options import parse_assignments

    method = get(arguments.method)
    config = _config(arguments.method, arguments.preset, arguments)
    space = None if arguments.space is None else read_space(arguments.space)
    if not method.gradient:
        print(f"{method.name} is not trained with gradients, so only trial 0 is run; it compares its settings itself")
    job, fixed = _job(arguments, config, device), _typed(config, parse_assignments(arguments.set))
    content = search(job, method, preset=arguments.preset, fixed=fixed, space=space, n_trials=arguments.trials)
    show(content, arguments.out)


def _print_metrics(content: dict[str, Any]) -> None:
    from moe_retriever.metrics import METRIC_NAMES
    from moe_retriever.suites.published import dataset_title

    title = f"{content['method']} on {dataset_title(content['dataset'], content['title'])} ({content['origin']})"
    rows = []
    for name, v in content["metrics"].items():
        interval = "" if v["low"] is None else f"{v['low']:.4f} … {v['high']:.4f}"
        value = "undefined" if v["value"] is None else f"{v['value']:.4f}"
        rows.append((METRIC_NAMES.get(name, name), value, interval))
    if content["majority"]["accuracy"] is not None:
        name = f"accuracy of the majority class ({content['majority']['class']})"
        rows.append((name, f"{content['majority']['accuracy']:.4f}", ""))
    for name in ("temperature", "threshold") if content["decision"]["n_validation"] else ():
        rows.append((f"{name} (validation samples)", f"{content['decision'][name]:.4f}", ""))
    print_table(f"{title}, {content['part']}, n = {content['n_evaluated']}", ("metric", "value", "95% interval"), rows)


def evaluation_options(a: argparse.Namespace, device: str) -> dict[str, Any]:
    """Keyword arguments of `evaluate_run` for the arguments of `mrpipe evaluate`, without stores."""
    if not a.name and (a.mask or a.patterns or a.reference_store):
        raise UsageError("--mask, --patterns and --reference-store require --name: the folder in RUN/tests to write to")
    how = {"part": a.part, "draws": a.draws, "n_resamples": a.resamples, "device": device}
    given = {"calibration": a.calibration, "decision_threshold": a.decision_threshold}
    given["subgroups"] = a.subgroups and " ".join(a.subgroups)
    how["options"] = {name: value for name, value in given.items() if value is not None}
    return how | {"name": a.name, "mask_file": a.mask, "patterns": a.patterns}


def _evaluate(arguments: argparse.Namespace) -> None:
    device = machine(arguments)
    from moe_retriever.evaluation.evaluate import evaluate_run
    from mrpipe.store.reader import open_verified

    a, how = arguments, evaluation_options(arguments, device)
    reference = a.reference_store and open_verified(a.reference_store)
    _print_metrics(evaluate_run(a.run, open_verified(a.store), reference=reference, **how))


def _evaluating(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """Hold the lock of the result. Evaluations under other protocols and of other parts may run at the same time."""
    run, name = arguments.run, arguments.name
    if not re.fullmatch(r"(\w[\w.=+-]*)?", name):
        raise UsageError(f"--name {name}: expected the name of a folder: letters, digits and . _ = + -")
    if not run.is_dir():
        return nullcontext()
    return writing(run / "tests" / name if name else run / f"metrics_{arguments.part}", part_of=run)


def _predict(arguments: argparse.Namespace) -> None:
    device = machine(arguments)
    import numpy as np

    from moe_retriever.evaluation.calibration import decide
    from moe_retriever.evaluation.evaluate import load_like, prepare
    from moe_retriever.training.checkpoint import load_run
    from moe_retriever.training.predict import predict, prediction_frame
    from mrpipe.store.parquet import write_frame
    from mrpipe.store.reader import open_verified

    trained = load_run(arguments.run, device)
    store = open_verified(arguments.store)
    trained.origin.require_same_kind(store)
    data = load_like(trained, store, device, mask_file=arguments.mask, unlabelled=True)
    reference, common = arguments.reference_store, trained.config.common
    if common.calibration != "none" and trained.origin.is_of(store):
        reference = arguments.store
    training = prepare(trained, arguments.run, reference and open_verified(reference), device)
    # The threshold concerns metrics only.
    common = dataclasses.replace(common, decision_threshold="0.5")
    temperature = decide(common, trained.method, training, draws=arguments.draws)["temperature"]
    found = predict(trained.method, data, np.arange(len(data)), draws=arguments.draws)
    found = dataclasses.replace(found, logits=found.logits / np.float32(temperature))
    write_frame(arguments.out, prediction_frame(data, found))
    gone = sum(data.n_without.values())
    left_out = f"; {gone} samples without any of {', '.join(trained.spec.names)} were skipped" if gone else ""
    print(f"{len(data)} predictions in {arguments.out}{left_out}")


def _analyse(arguments: argparse.Namespace) -> None:
    device = machine(arguments)
    from moe_retriever.evaluation.analysis import analyse
    from mrpipe.store.reader import open_verified

    what = {name: getattr(arguments, name) for name in ("out", "what", "part", "combination")}
    for path in analyse(arguments.run, open_verified(arguments.store), device=device, **what):
        print(path)


def _benchmark(arguments: argparse.Namespace) -> None:
    device = machine(arguments)
    from moe_retriever.evaluation.cost import measure, show
    from moe_retriever.methods import names

    methods = names() if arguments.method == ["all"] else arguments.method
    configs = [_config(m, arguments.preset, arguments) for m in methods]
    frame = measure(configs=configs, device=device, steps=arguments.steps, **_data(arguments))
    show(frame)
    if arguments.out is not None:
        from mrpipe.store.parquet import write_csv

        write_csv(arguments.out, frame)


def _methods(arguments: argparse.Namespace) -> None:
    from moe_retriever.config import Common
    from moe_retriever.methods import get, names
    from mrpipe.transforms.options import TransformOptions

    if arguments.method is None:
        presets = {name: ", ".join(p for p in get(name).presets if p != "paper") for name in names()}
        print(help_text({name: f"presets: paper, {p}" for name, p in presets.items() if p}))
        print("\n`mrpipe methods NAME` lists the options of a method.")
        return
    method = get(arguments.method)
    groups = {f"options of {method.name}": method.Options, "options of all methods": Common}
    for title, cls in (groups | {"options of --transform": TransformOptions}).items():
        rows = []
        for f in dataclasses.fields(cls):
            choices = f"  [{' | '.join(map(str, f.metadata['choices']))}]" if f.metadata.get("choices") else ""
            rows.append((f.name, json.dumps(f.default), f.metadata["help"] + choices))
        print_table(title, ("option", "default", "meaning"), rows)
    for name, values in method.space.items():
        print(f"additional candidates for {name} in a search: {', '.join(map(str, values))}")
    for name, overrides in method.presets.items():
        print(f"preset {name}: {', '.join(f'{k}={v}' for k, v in overrides.items()) or 'the defaults'}")


def _settings(arguments: argparse.Namespace) -> int:
    """Print the full settings of each label as JSON; exit code 2 and all error messages if any are invalid."""
    from moe_retriever.config import make_config
    from moe_retriever.methods import get

    settings, faults = {}, []
    for label, entry in json.loads(arguments.requested).items():
        try:
            config = make_config(get(entry["method"]), preset=entry["preset"], seed=0, overrides=entry["overrides"])
            settings[label] = {k: v for k, v in config.to_dict().items() if k != "seed"}
        except UsageError as error:
            faults.append(str(error))
    if faults:
        print("\n".join(dict.fromkeys(faults)), file=sys.stderr)
        return UsageError.exit_code
    print(json.dumps(settings, indent=1))
    return 0


def _of_module(name: str, summary: str, claim: Claim, *, step: bool = True) -> Command:
    """A command implemented by a module with `add_arguments` and `run`, which is imported only when needed."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        import_module(name).add_arguments(parser)

    def run(arguments: argparse.Namespace) -> int | None:
        code: int | None = import_module(name).run(arguments)
        return code

    return Command(summary=summary, add_arguments=add_arguments, run=run, claim=claim, step=step)


train = Command(
    summary="train a method on a sealed store",
    description="Trains one method on a sealed store and evaluates it once on the test set.\n"
    "Rerunning the same command after an interruption continues the training, with the same result.",
    epilog=lambda: (
        "example:\n  mrpipe train --store results/stores/mosi --out runs/a --mask masks/p30.parquet"
        f" --set tokens=4 epochs=30\n\n{help_text()}\n\n`mrpipe methods NAME` lists the options of a method."
    ),
    add_arguments=arguments_of.train_arguments,
    words={"method": names},
    run=_train,
    claim=output_folder("a run", "config.json log.txt .resume.pt", "store"),
)
evaluate = Command(
    summary="evaluate a finished run",
    description="Writes metrics.json, metrics.csv (by modality combination and subgroup), risk_coverage.csv,\n"
    "predictions.parquet and routing.parquet to the run folder and prints a table. With --name, the run is evaluated\n"
    "under another protocol, and the files are written to RUN/tests/NAME: test samples as observed, with another\n"
    "--mask, with every combination of their modalities (--patterns), or all labelled samples of another --store of\n"
    "the same dataset.",
    epilog="example:\n  mrpipe mask stores/mosi --p 0.5 --out masks/p50.parquet\n"
    "  mrpipe evaluate --run runs/a --store stores/mosi --mask masks/p50.parquet --name p50",
    add_arguments=arguments_of.evaluate_arguments,
    run=_evaluate,
    claim=_evaluating,
)
predict = Command(
    summary="predict all samples of a store, labelled or not",
    description="The store must be of the same dataset. Supporting samples are always training samples: from the\n"
    "bank in the checkpoint or, if that was too large to store, from --reference-store.",
    add_arguments=arguments_of.predict_arguments,
    run=_predict,
    claim=output_file("store", "reference_store"),
)
search = Command(
    summary="hyper-parameter search on the validation set",
    description="Trial 0 uses the preset. The others are drawn from candidates that are the same for every method:\n"
    "lr 1e-4, 3e-4, 1e-3; weight_decay 0, 1e-4; dropout 0.1, 0.3, 0.5; and those of the method, if any.\n"
    "The best trial is the one with the best validation score; the test set is not used. Rerunning the same\n"
    "command after an interruption continues the search; a larger --trials adds to the finished trials.",
    epilog="example:\n  mrpipe search --store stores/mosi --method shaspec --out searches/shaspec --set epochs=50\n"
    "  mrpipe train --store stores/mosi --options searches/shaspec/best.json --out runs/b --set epochs=50",
    add_arguments=arguments_of.search_arguments,
    words={"method": names},
    run=_search,
    claim=output_folder("a search", "best.json trials trials.parquet", "store"),
)
analyse = Command(
    summary="plot expert routing, gradient similarity and retrieved embeddings",
    description="Writes tables (Parquet, CSV) and figures (SVG, PNG) of finished runs:\n"
    "  routing    experts visited by the tokens of each modality combination, and vice versa (Figure 3)\n"
    "  gradients  cosine similarity of the modalities' gradients by epoch (Figure 5);\n"
    "             recorded by `train --set gradient_rows=128`; several runs are drawn side by side\n"
    "  embedding  t-SNE of incomplete samples before and after retrieval (Figure 6)",
    epilog="example:\n  mrpipe analyse --run runs/a --store results/stores/mosi --out runs/a/analysis",
    add_arguments=arguments_of.analyse_arguments,
    run=_analyse,
    claim=output_folder("an analysis", "[vge]*.* */[ve]*.* config.json", "store"),
)
benchmark = Command(
    summary="measure speed, memory, parameters and FLOPs of methods",
    add_arguments=arguments_of.benchmark_arguments,
    words={"method": names},
    run=_benchmark,
    claim=output_file("store"),
)
methods = Command(
    summary="list the methods, or the options and presets of a method",
    epilog=help_text,
    add_arguments=arguments_of.methods_arguments,
    words={"method": names},
    run=_methods,
)
settings = Command(
    summary="validate methods and hyper-parameters",
    add_arguments=arguments_of.settings_arguments,
    run=_settings,
    step=True,
)
_cells = "moe_retriever.cli.cells"
cells = _of_module(_cells, "train and evaluate several runs in one process, skipping finished ones", output_file())
_RENDERED = output_folder("tables or figures of a suite", "suite.json table.* finished")
# Pages in one folder share their table and figures.
_PAGE = output_file("stores", lock=lambda page: page.parent / "figures")
report = _of_module("moe_retriever.report.page", "render stores and runs as one HTML page", _PAGE, step=False)
_runs = "moe_retriever.evaluation.run_folders"
results = _of_module(_runs, "collect the metrics of all runs in one table", output_file(), step=False)
suite_tables = _of_module("moe_retriever.suites.tables", "render the tables of a suite", _RENDERED)
suite_figures = _of_module("moe_retriever.suites.figures", "render the figures of a suite", _RENDERED)
