"""Arguments of the commands that train and evaluate. This module imports no large packages, so `--help` is fast."""

import argparse
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """Argument type for integers that are at least `least`."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
        return value

    return integer


def _add_data(parser: ArgumentParser, modalities: str = "modalities to use (default: all)") -> None:
    parser.add_argument("--store", required=True, type=Path, help="sealed feature store")
    parser.add_argument("--task", help="task (default: the first of the store)")
    parser.add_argument("--scheme", help="split scheme (default: that of the store)")
    parser.add_argument("--modalities", nargs="+", metavar="NAME", help=modalities)
    parser.add_argument("--mask", type=Path, metavar="FILE", help="simulated missingness, from `mrpipe mask`")
    transform = "imputation, scaling and encoding of the features (`mrpipe methods NAME` lists the options)"
    _add_assignments(parser, "--transform", transform)


def _add_finished(parser: ArgumentParser, store: str) -> None:
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--store", required=True, type=Path, help=store)
    draws = "retrieval draws to average per prediction (default: as in training)"
    parser.add_argument("--draws", type=at_least(1), help=draws)


def _add_reference(parser: ArgumentParser) -> None:
    reference = "the store the run was trained on, if --store is another one and model.pt has no retrieval bank"
    parser.add_argument("--reference-store", type=Path, help=reference)


def add_machine(parser: ArgumentParser) -> None:
    """Add device, threads and kernels."""
    parser.add_argument("--device", default="auto", help="auto (CUDA if available, else CPU), cpu, cuda or mps")
    threads = "CPU threads; another number changes the last digits of results (default: 1, on every machine)"
    parser.add_argument("--threads", type=at_least(1), default=1, help=threads)
    kernels = "implementation of experts and recurrences on a CPU; plain: standard torch operations"
    parser.add_argument("--kernels", default="fast", choices=("fast", "plain"), help=kernels)


def _add_assignments(parser: ArgumentParser, flag: str, help: str) -> None:
    parser.add_argument(flag, nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=help)


def _add_part(parser: ArgumentParser, help: str) -> None:
    parser.add_argument("--part", default="test", choices=("train", "val", "test"), help=f"{help} (default: test)")


def train_arguments(parser: ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--out", required=True, type=Path, help="run folder; metrics.json is written last")
    parser.add_argument("--method", help="default: moe_retriever, or the method of the --options file")
    parser.add_argument("--preset", help="named settings of the method (default: paper, or that of the --options file)")
    seed = "seed of initial weights, batches, dropout and retrieval (default: 0)"
    parser.add_argument("--seed", type=int, default=0, help=seed)
    parser.add_argument("--options", type=Path, metavar="FILE", help="best.json of a search; --set overrides it")
    _add_assignments(parser, "--set", "options of the method (`mrpipe methods NAME` lists them)")
    parser.add_argument("--no-test", action="store_true", help="do not evaluate on the test set")
    parser.add_argument("--overwrite", action="store_true", help="first remove an earlier run in --out")
    add_machine(parser)


def search_arguments(parser: ArgumentParser) -> None:
    _add_data(parser)
    out = "folder of trials/, trials.parquet and, written last, best.json"
    parser.add_argument("--out", required=True, type=Path, help=out)
    parser.add_argument("--method", default="moe_retriever", help="default: moe_retriever")
    parser.add_argument("--preset", default="paper", help="named settings of the method (default: paper)")
    parser.add_argument("--trials", type=int, default=12, help="number of trials, including the preset (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search and of every trial (default: 0)")
    space = "YAML or JSON file with other candidates, option: [values]"
    parser.add_argument("--space", type=Path, metavar="FILE", help=space)
    _add_assignments(parser, "--set", "fixed options of all trials; an option given here is not searched")
    parser.add_argument("--overwrite", action="store_true", help="first remove an earlier search in --out")
    add_machine(parser)


def evaluate_arguments(parser: ArgumentParser) -> None:
    _add_finished(parser, store="the store the run was trained on or, with --name, another one")
    _add_part(parser, "samples to evaluate")
    parser.add_argument("--name", default="", help="evaluate under another protocol and write to RUN/tests/NAME")
    mask = "simulated missingness of the evaluated samples, from `mrpipe mask` (default: as observed)"
    parser.add_argument("--mask", type=Path, metavar="FILE", help=mask)
    patterns = "evaluate samples with all modalities, once with each combination of them"
    parser.add_argument("--patterns", action="store_true", help=patterns)
    _add_reference(parser)
    resamples = "bootstrap resamples, 0 for no intervals (default: 1000)"
    parser.add_argument("--resamples", type=at_least(0), default=1000, help=resamples)
    calibrate = "divide the logits by a temperature that is fitted on validation samples"
    parser.add_argument("--calibrate", dest="calibration", action="store_const", const="temperature", help=calibrate)
    threshold = (
        "probability from which the second of two classes is predicted, youden, sensitivity=0.9 or specificity=0.9"
    )
    parser.add_argument("--threshold", dest="decision_threshold", metavar="RULE", help=threshold)
    by = "metrics by columns of samples.parquet, if numeric by quartiles or with cuts: sex age=40,65"
    parser.add_argument("--by", dest="subgroups", nargs="+", metavar="COLUMN", help=by)
    add_machine(parser)


def predict_arguments(parser: ArgumentParser) -> None:
    _add_finished(parser, store="the store whose samples are predicted")
    parser.add_argument("--out", required=True, type=Path, help="Parquet file to write")
    _add_reference(parser)
    parser.add_argument("--mask", type=Path, metavar="FILE", help="simulated missingness of --store")
    add_machine(parser)


def analyse_arguments(parser: ArgumentParser) -> None:
    kinds = ("routing", "gradients", "embedding")
    parser.add_argument("--run", required=True, type=Path, nargs="+", help="finished runs")
    parser.add_argument("--store", required=True, type=Path, help="the store the runs were trained on")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--what", nargs="+", default=list(kinds), choices=kinds, help="default: all three")
    _add_part(parser, "samples to analyse")
    combination = "modality combination of the embedded samples (default: the most frequent incomplete one)"
    parser.add_argument("--combination", metavar="A+B", help=combination)
    add_machine(parser)


def benchmark_arguments(parser: ArgumentParser) -> None:
    _add_data(parser, modalities="a single combination (default: every combination of at least two modalities)")
    method = 'names or "all"; default: moe_retriever'
    parser.add_argument("--method", nargs="+", default=["moe_retriever"], metavar="NAME", help=method)
    parser.add_argument("--preset", default="paper", help="named settings of the methods (default: paper)")
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights and draws (default: 0)")
    _add_assignments(parser, "--set", "options of all methods")
    parser.add_argument("--steps", type=at_least(1), default=20, help="number of timed steps (default: 20)")
    parser.add_argument("--out", type=Path, help="also write the table as CSV")
    add_machine(parser)


def methods_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("method", nargs="?", metavar="METHOD", help="default: list the methods")


def settings_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("requested", metavar="JSON", help="label → method, preset and overrides")
