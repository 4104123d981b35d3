"""`mrpipe cells`: train and evaluate several runs in one process, as the workflow requests them.

A complete run is skipped without loading torch or data, so a job that was killed continues with its next run. A run
that fails is reported, and the others follow.
"""

import argparse
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from moe_retriever.cli import arguments as arguments_of
from moe_retriever.cli.commands import evaluation_options, machine, train, training_job
from mrpipe.cli.command import outcome
from mrpipe.errors import MrpipeError
from mrpipe.experiment.missingness import mask_hash
from mrpipe.locks import writing
from mrpipe.raw import sha256
from mrpipe.reading import read_json
from mrpipe.store.content import data_identity
from mrpipe.store.manifest import digest
from mrpipe.store.parquet import write_text
from mrpipe.store.reader import open_store, open_verified

# Beside metrics.json: what it was made from.
RECORD = "cell.json"
# Arguments that name a store; the first is that of the training.
STORES = ("--store", "--reference-store")
# Files without which a training and an evaluation are incomplete.
FILES = ("model.pt", "config.json"), ("metrics.json", "metrics.csv", "predictions.parquet", RECORD)

_opened = cache(open_verified)
# The data of the last run, which the next one often shares; two are not held at a time.
_LOADED: dict[object, Any] = {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    requested = 'list of {"run": folder, "train": arguments, "tests": {name: arguments}, "code": hash}'
    parser.add_argument("requested", metavar="JSON", help=requested)
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the results, written if all runs succeed")
    arguments_of.add_machine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Complete all runs; the exit code is that of the last one that failed."""
    done: dict[str, str] = {}
    failed, code = [], 0
    for cell in json.loads(arguments.requested):
        try:
            # Another batch may train the same run for other evaluations.
            with writing(Path(cell["run"]), patience=-1), train.claim(_train_arguments(cell)):
                done |= _complete(cell, arguments)
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
    else:
        write_text(arguments.out, json.dumps(done, indent=0, sort_keys=True) + "\n")
    return code


def finished(cell: Mapping[str, Any], test: str) -> bool:
    """Whether an evaluation has a result of the requested options and code."""
    record = _folder(cell, test) / RECORD
    done = record.is_file() and record.with_name("metrics.json").is_file()
    return done and read_json(record).get("request") == _hash(cell, test)


def _complete(cell: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, str]:
    """Do what is missing of a run; folder of each evaluation → hash of its metrics."""
    made_from = {test: _hash(cell, test, *_inputs(cell, test)) for test in cell["tests"]}
    missing = [test for test, mark in made_from.items() if not _is_complete(cell, test, mark)]
    for test in made_from.keys() - missing:
        _name_store(cell, test)
    try:
        if missing and _train(cell, arguments):
            missing = list(made_from)  # the training removed all evaluations
        for test in missing:
            _evaluate(cell, test, arguments)
            found = {"made_from": made_from[test], "metrics": sha256(_folder(cell, test) / "metrics.json")}
            write_text(_folder(cell, test) / RECORD, json.dumps({"request": _hash(cell, test), **found}) + "\n")
    except BaseException:
        for test in missing:  # no result of earlier options or data remains
            if not _is_complete(cell, test, made_from[test]):
                (_folder(cell, test) / "metrics.json").unlink(missing_ok=True)
        raise
    print(f"{cell['run']}: {len(missing)} of {len(made_from)} evaluations were missing", flush=True)
    return {str(_folder(cell, test)): sha256(_folder(cell, test) / "metrics.json") for test in made_from}


def _train(cell: Mapping[str, Any], arguments: argparse.Namespace) -> bool:
    """Load the data; train unless the model is that of these options, data and code."""
    device, asked = machine(arguments), _train_arguments(cell)
    from moe_retriever.plots.curves import write_curves
    from moe_retriever.training.loop import load_data, run_training

    job = training_job(asked, device, store=_opened(asked.store), replace=True)
    key = (asked.store, job.task, job.scheme, job.modalities, job.mask_file, job.transform)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = load_data(job)
    trained = run_training(job, _LOADED[key])
    if trained:
        write_curves(job.run)
    return trained


def _evaluate(cell: Mapping[str, Any], test: str, arguments: argparse.Namespace) -> None:
    from moe_retriever.evaluation.evaluate import evaluate_run

    a = _parsed(arguments_of.evaluate_arguments, ["--run", cell["run"], *cell["tests"][test]])
    how = evaluation_options(a, machine(arguments)) | {"data": next(iter(_LOADED.values()))}
    evaluate_run(a.run, _opened(a.store), reference=a.reference_store and _opened(a.reference_store), **how)


def _folder(cell: Mapping[str, Any], test: str) -> Path:
    return Path(cell["run"], *(["tests", test] if test else []))


def _hash(cell: Mapping[str, Any], test: str, *inputs: str) -> str:
    """Hash of a requested run with one of its evaluations (options, paths, code) and of its inputs."""
    text = json.dumps([{**cell, "tests": {test: cell["tests"][test]}}, *inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _inputs(cell: Mapping[str, Any], test: str) -> list[str]:
    """Identities of the stores, masks, selected options and initial weights, and the version of torch."""
    words, trained = [*cell["train"], *cell["tests"][test]], _train_arguments(cell)
    manifests = [open_store(value).manifest for flag, value in pairwise(words) if flag in STORES]
    found = [data_identity(manifest, trained.modalities, trained.task, trained.scheme) for manifest in manifests]
    found += [mask_hash(Path(value)) for flag, value in pairwise(words) if flag == "--mask" and Path(value).is_file()]
    if trained.options and trained.options.is_file():
        found.append(digest({key: value for key, value in read_json(trained.options).items() if key != "store_id"}))
    files = [word.partition("=")[2] for word in words if word.startswith("image_weights=")]
    return [*found, *(sha256(Path(file)) for file in files if Path(file).is_file()), metadata.version("torch")]


def _name_store(cell: Mapping[str, Any], test: str) -> None:
    """Write the present ids of the stores into a complete result, in case one was sealed again with the same tables."""
    file, record = _folder(cell, test) / "metrics.json", _folder(cell, test) / RECORD
    stores = [w[w.index("--store") + 1] for w in (cell["train"], cell["tests"][test])]
    trained_on, tested = (open_store(store).store_id for store in stores)
    before, found = read_json(file), read_json(record)
    content = before | {"store_id": trained_on} | ({"test": before["test"] | {"store_id": tested}} if test else {})
    if content != before:
        write_text(file, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
        write_text(record, json.dumps(found | {"metrics": sha256(file)}) + "\n")


def _is_complete(cell: Mapping[str, Any], test: str, made_from: str) -> bool:
    """Whether a training and its evaluation have all files, made from these inputs and not replaced since."""
    folders = Path(cell["run"]), _folder(cell, test)
    if not all((folder / name).is_file() for folder, names in zip(folders, FILES, strict=True) for name in names):
        return False
    record = read_json(folders[1] / RECORD)
    return (record.get("made_from"), record.get("metrics")) == (made_from, sha256(folders[1] / "metrics.json"))


def _train_arguments(cell: Mapping[str, Any]) -> argparse.Namespace:
    return _parsed(arguments_of.train_arguments, ["--out", cell["run"], *cell["train"]])


def _parsed(add: Callable[[argparse.ArgumentParser], None], words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add(parser)
    return parser.parse_args(words)
