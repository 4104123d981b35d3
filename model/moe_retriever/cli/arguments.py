"""`python -m model`: the arguments of its commands.

Nothing heavy is imported here: `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from model.catalogue import help_text


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
    p.set_defaults(command="train")


def _at_least(least: int) -> Callable[[str], int]:
    """Type of an argument: a whole number that is not smaller."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
        return value

    return whole


def _add_data(p: argparse.ArgumentParser, modalities: str = "the view; default: all") -> None:
    p.add_argument("--store", required=True, type=Path, help="sealed feature store")
    p.add_argument("--task", help="classification task; default: the store's first")
    p.add_argument("--scheme", help="split; default: the store's own")
    p.add_argument("--modalities", nargs="+", metavar="NAME", help=modalities)
    p.add_argument("--mask", type=Path, metavar="FILE", help="simulated missingness (`mrpipe mask`)")


def _add_finished(p: argparse.ArgumentParser, store: str) -> None:
    p.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    p.add_argument("--store", required=True, type=Path, help=store)
    p.add_argument("--draws", type=_at_least(1), help="retrieval draws to average; default: as trained")


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
    p.set_defaults(command="search")


def _add_machine(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", default="auto", help="auto (CUDA if there is one, else CPU), cpu, cuda, mps")
    p.add_argument("--threads", type=_at_least(1), help="CPU threads; default: OMP_NUM_THREADS or torch's choice")
    p.add_argument("--quiet", action="store_true", help="no progress line")


def _add_evaluate(commands: Any) -> None:
    p = commands.add_parser(
        "evaluate", help="metrics of a finished run on a part of its store",
        description="Evaluate a finished run on a part of its training store. Writes metrics.json, metrics.csv (by "
        "modality combination), predictions.parquet and routing.parquet into the run folder and prints a table.",
    )  # fmt: skip
    _add_finished(p, store="the training store")
    p.add_argument("--part", default="test", choices=("train", "val", "test"), help="default: test")
    p.add_argument("--resamples", type=_at_least(0), default=1000,
                   help="bootstrap resamples of the subjects, 0: no intervals; default: 1000")  # fmt: skip
    _add_machine(p)
    p.set_defaults(command="evaluate")


def _add_predict(commands: Any) -> None:
    p = commands.add_parser(
        "predict", help="predict every sample of a store, labelled or not",
        description="Predict every sample of a store of the same dataset. Supporting samples are the training samples "
        "only: from the checkpoint's bank or, where that was too large to keep, from --reference-store.",
    )  # fmt: skip
    _add_finished(p, store="whose samples are predicted")
    p.add_argument("--out", required=True, type=Path, help="Parquet file")
    p.add_argument("--reference-store", type=Path, help="the training store")
    p.add_argument("--mask", type=Path, metavar="FILE", help="simulated missingness of --store")
    _add_machine(p)
    p.set_defaults(command="predict")


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
    p.set_defaults(command="analyse")


def _add_benchmark(commands: Any) -> None:
    p = commands.add_parser("benchmark", help="speed, memory, parameters and FLOPs of methods on a store")
    _add_data(p, modalities="one configuration; default: every one of at least two")
    p.add_argument("--method", nargs="+", default=["moe_retriever"], metavar="NAME",
                   help='names, or "all"; default: moe_retriever')  # fmt: skip
    p.add_argument("--preset", default="paper", help="named settings of the methods; default: paper")
    p.add_argument("--seed", type=int, default=0, help="initial weights and draws; default: 0")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="options of all methods")
    p.add_argument("--steps", type=_at_least(1), default=20, help="timed steps; default: 20")
    p.add_argument("--out", type=Path, help="also write the table as CSV")
    _add_machine(p)
    p.set_defaults(command="benchmark")


def _add_options(commands: Any) -> None:
    p = commands.add_parser("options", help="methods, their presets and options")
    p.add_argument("--method", help="all options of this method")
    p.set_defaults(command="options")


# Commands that bring their own arguments, and matplotlib or scikit-learn, only when they are asked for.
OTHERS = {
    "report": "results page of finished runs",
    "results": "all scores of finished runs as one tidy table",
    "tables": "tables of a suite from its finished cells",
    "figures": "figures of a suite from its finished cells",
    "comparison": "every published value beside ours, over all tables",
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
