"""`mrpipe cells`: train and evaluate several runs in one process, as the workflow requests them.

A run that is already complete is skipped without loading torch or data, so a job that was killed continues with its
next run. A run that fails is reported, and the others follow.
"""

import argparse
import gc
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from moe_retriever.cli import arguments as arguments_of
from moe_retriever.cli.commands import evaluation_options, machine, train, training_job
from mrpipe.errors import MrpipeError
from mrpipe.locks import writing
from mrpipe.raw import sha256
from mrpipe.reading import read_json
from mrpipe.store.parquet import write_text
from mrpipe.store.reader import Store, open_store, open_verified

# Beside metrics.json: from what it was made.
RECORD = "cell.json"
# Files of a training and of an evaluation without which they count as unfinished.
TRAINED = ("model.pt", "config.json")
EVALUATED = ("metrics.json", "metrics.csv", "predictions.parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    requested = 'list of {"run": folder, "train": arguments, "tests": {name: arguments}, "code": hash}'
    parser.add_argument("requested", metavar="JSON", help=requested)
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the results, written if all runs succeed")
    arguments_of.add_machine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Complete all runs; the exit code is that of the last one that failed."""
    from mrpipe.cli.main import outcome

    process, done, failed, code = _Process(arguments), {}, [], 0
    for cell in json.loads(arguments.requested):
        try:
            # Another batch may train the same run for other evaluations.
            with writing(Path(cell["run"]), patience=-1), train.claim(_parsed_train(cell)):
                done |= process.complete(cell)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # panics of polars are no Exception
            if os.environ.get("MRPIPE_DEBUG") and not isinstance(error, MrpipeError):
                traceback.print_exception(error)
            message, code = outcome(error)
            failed.append(f"{cell['run']}: {message}")
            print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
    if failed:
        print("\n".join([f"{len(failed)} runs failed:", *failed]), file=sys.stderr)
        return code
    write_text(arguments.out, json.dumps(done, indent=0, sort_keys=True) + "\n")
    return 0


class _Process:
    """What the runs of a process share: the device, opened stores, and the data of the last run."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        self._opened = cache(open_verified)
        self._data: tuple[object, Any] = (None, None)

    def complete(self, cell: Mapping[str, Any]) -> dict[str, str]:
        """Train and evaluate a run as far as that is not done; folder of each evaluation → hash of its metrics."""
        run = Path(cell["run"])
        tests = {name: run / "tests" / name if name else run for name in cell["tests"]}
        marks = {name: _mark(cell, name) for name in tests}
        missing = [name for name, folder in tests.items() if not _complete(run, folder, marks[name])]
        if missing:
            try:
                self._make(cell, run, tests, missing)
            except BaseException:
                for name in missing:  # results of earlier options or data
                    (tests[name] / "metrics.json").unlink(missing_ok=True)
                raise
        else:
            print(f"{run} is complete", flush=True)
        found = {str(folder): sha256(folder / "metrics.json") for folder in tests.values()}
        for name in missing:
            record = {"request": request_hash(cell, name), "made_from": marks[name], "metrics": found[str(tests[name])]}
            write_text(tests[name] / RECORD, json.dumps(record, indent=1) + "\n")
        return found

    def _make(self, cell: Mapping[str, Any], run: Path, tests: dict[str, Path], missing: list[str]) -> None:
        """Train if the model is not that of these options, data and code; evaluate the tests in `missing`."""
        device = machine(self._arguments)
        from moe_retriever.evaluation.evaluate import evaluate_run
        from moe_retriever.plots.curves import write_curves
        from moe_retriever.training.loop import load_data, run_training

        asked = _parsed_train(cell)
        job = training_job(asked, device, store=self._opened(asked.store), replace=True)
        key = (asked.store, job.task, job.scheme, job.modalities, job.mask_file, job.transform)
        if self._data[0] != key:
            self._data = None, None  # two are not held at a time
            gc.collect()
            self._data = key, load_data(job)
        data = self._data[1]
        if run_training(job, data):
            write_curves(run)
            missing[:] = tests  # the training removed all evaluations
        for name in missing:
            (tests[name] / RECORD).unlink(missing_ok=True)
            a = _parsed(arguments_of.evaluate_arguments, ["--run", cell["run"], *cell["tests"][name]])
            reference = a.reference_store and self._opened(a.reference_store)
            evaluate_run(run, self._opened(a.store), reference=reference, data=data, **evaluation_options(a, device))
        print(f"{run}: {', '.join(name or 'test split' for name in missing)} evaluated", flush=True)


def finished(cell: Mapping[str, Any], test: str) -> bool:
    """Whether an evaluation has a result and was requested with these options and code."""
    folder = Path(cell["run"], *(["tests", test] if test else []))
    there = (folder / RECORD).is_file() and (folder / EVALUATED[0]).is_file()
    return there and read_json(folder / RECORD).get("request") == request_hash(cell, test)


def request_hash(cell: Mapping[str, Any], test: str) -> str:
    """Hash of a requested run and one of its evaluations."""
    whole = {**cell, "tests": {test: cell["tests"][test]}}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def _mark(cell: Mapping[str, Any], test: str) -> str:
    """Hash of everything that an evaluation is made from: options, stores, masks, selected options, code, torch."""
    words = [*cell["train"], *cell["tests"][test]]
    parts = [request_hash(cell, test), *_contents(words), metadata.version("torch")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _contents(words: list[str]) -> Iterator[str]:
    """Identities of the stores and files among the arguments of a command."""
    for flag, value in pairwise(words):
        if flag in ("--store", "--reference-store"):
            yield _store_id(value)
        elif flag in ("--mask", "--options"):
            yield sha256(Path(value))
    for name, _, value in (word.partition("=") for word in words):
        if name == "image_weights" and Path(value).is_file():
            yield sha256(Path(value))


@cache
def _store_id(path: str) -> str:
    store: Store = open_store(path)
    return store.store_id


def _complete(run: Path, folder: Path, mark: str) -> bool:
    """Whether an evaluation and its training are there, made from these options, data and code."""
    files = [*(run / name for name in TRAINED), *(folder / name for name in EVALUATED), folder / RECORD]
    if not all(file.is_file() for file in files):
        return False
    record = read_json(folder / RECORD)
    return record.get("made_from") == mark and record.get("metrics") == sha256(folder / "metrics.json")


def _parsed_train(cell: Mapping[str, Any]) -> argparse.Namespace:
    return _parsed(arguments_of.train_arguments, ["--out", cell["run"], *cell["train"]])


def _parsed(add: Any, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add(parser)
    return parser.parse_args(words)
