"""Random hyper-parameter search with the same number of trials and the same common candidates for every method.

Trial 0 uses the values of the preset. The others are drawn without replacement from the grid of all candidates. The
draws depend only on the seed and the candidates, and increasing the number of trials keeps the previous ones. A trial
is an ordinary run; its score is the validation score of the selected epoch. The test split is never evaluated.
A method without gradient steps compares as many settings, if it has the option `trials`, in one run.
"""

import dataclasses
import itertools
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import polars as pl
import torch

from moe_retriever.config import AnyConfig, OptionValue, make_config
from moe_retriever.data.load import Data
from moe_retriever.data.scores import lower_is_better
from moe_retriever.methods.base import AnyMethod
from moe_retriever.training import checkpoint
from moe_retriever.training.checkpoint import load_run
from moe_retriever.training.log import progress_display
from moe_retriever.training.loop import Job, described, fingerprint, load_data, origin_of, require_same, run_training
from moe_retriever.training.search_result import SearchData, SearchResult
from moe_retriever.training.selection import DivergedError
from mrpipe import keyed
from mrpipe.budget import MAX_YAML, load_yaml, read_small
from mrpipe.errors import DataError, Fault, MrpipeError, UsageError
from mrpipe.reading import read_frame, read_json, reading
from mrpipe.store.parquet import write_frame, write_text
from mrpipe.terminal import print_table

COMMON_SPACE: Mapping[str, tuple[OptionValue, ...]] = {
    "lr": (1e-4, 3e-4, 1e-3),
    "weight_decay": (0.0, 1e-4),
    "dropout": (0.1, 0.3, 0.5),
}
_LOG = logging.getLogger(__name__)
MOST_COMBINATIONS = 100_000
Space = Mapping[str, Sequence[OptionValue]]
Overrides = dict[str, OptionValue]


class TrialResult(TypedDict, total=False):
    """The content of a trial's result.json."""

    status: str
    score: float | None
    best_epoch: int | None
    epochs: int | None
    error: str
    seconds: float | None


class SearchFailedError(MrpipeError):
    """No trial produced a validation score."""


def read_space(path: Path) -> dict[str, list[OptionValue]]:
    """Read candidates from a YAML or JSON file: option → list of values.

    Raises:
        DataError: the file is not such a mapping; lists every error.
    """
    fix = "Write one option per line, e.g.  lr: [0.0001, 0.001]"
    with reading(path, "a YAML or JSON file", fix):
        content = load_yaml(read_small(path, str(path), MAX_YAML).decode("utf-8-sig"), str(path))
        if not isinstance(content, dict) or not content:
            raise ValueError(f"a {type(content).__name__} instead of a mapping of options to lists of values")
    faults = []
    for name, values in content.items():
        if not isinstance(values, list) or not values:
            faults.append(Fault(file=str(path), column=str(name), expected="a list of values", found=repr(values)))
        elif len({repr(v) for v in values}) < len(values):
            faults.append(Fault(file=str(path), column=str(name), expected="distinct values", found=repr(values)))
    if faults:
        raise DataError(faults)
    return {str(name): values for name, values in content.items()}


def draw_trials(
    method: type[AnyMethod], *, preset: str, seed: int, fixed: Overrides, space: Space, n_trials: int
) -> list[tuple[Overrides, AnyConfig]]:
    """The varied options and the configuration of each trial; fewer than `n_trials` if the space is smaller.

    Raises:
        UsageError: unknown option, invalid value, invalid combination of values, or too many combinations; lists every
            invalid candidate.
    """
    if n_trials < 1:
        raise UsageError(f"--trials {n_trials} must be at least 1")

    def config(chosen: Overrides) -> AnyConfig:
        return make_config(method, preset=preset, seed=seed, overrides={**fixed, **chosen})

    first = config({})
    # select_metric determines the score that ranks the trials.
    faults = ["select_metric cannot be searched"] if "select_metric" in space else []
    for name, values in space.items():
        for value in values:
            try:
                config({name: value})
            except UsageError as error:
                faults.append(str(error))
    if faults:
        raise UsageError("\n".join(["invalid search space:", *(f"  - {f}" for f in dict.fromkeys(faults))]))
    names = sorted(space)
    n_combinations = math.prod(len(space[name]) for name in names)
    if n_combinations > MOST_COMBINATIONS:
        raise UsageError(f"the search space has {n_combinations} combinations; the maximum is {MOST_COMBINATIONS}")
    products = itertools.product(*(space[name] for name in names))
    combinations = [dict(zip(names, values, strict=True)) for values in products]
    keys = keyed.id_keys(json.dumps(c, sort_keys=True) for c in combinations)
    order = np.argsort(keyed.bits(keys, seed, "search trials")[:, 0], kind="stable")
    trials = [({name: _value(first, name) for name in names}, first)]
    for place in order.tolist():
        if len(trials) == n_trials:
            break
        made = config(combinations[place])
        if made != first:
            trials.append(({name: _value(made, name) for name in names}, made))
    return trials


def _value(config: AnyConfig, name: str) -> OptionValue:
    group = config.common if hasattr(config.common, name) else config.own
    value: OptionValue = getattr(group, name)
    return value


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Result of a trial.

    Attributes:
        status: "finished", "diverged" or "out of memory".
        score: validation score (`select_metric`) of the selected epoch, or None.
        seconds: training time in this process; less than the total if the trial was resumed.
    """

    number: int
    options: Overrides
    status: str
    score: float | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    error: str = ""
    seconds: float | None = None


def run_search(job: Job, trials: Sequence[tuple[Overrides, AnyConfig]], data: Data | None = None) -> list[Trial]:
    """Run the trials that are not finished yet; `job.run` is the folder of the search, and `job.config` is ignored.

    Files in `trials/<n>/`: those of a run (with a checkpoint only for the best trial) and result.json, which marks the
    trial as finished. `data` is as in `run_training`.

    Raises:
        UsageError: no validation samples.
    """
    data = load_data(job) if data is None else data
    if not len(data.rows("val")):
        raise UsageError("a search needs labelled validation samples to select the best trial")
    done: list[Trial] = []
    metric = selected_by(job, data)
    progress = progress_display()
    task = progress.add_task("trials", total=len(trials), state="")
    base = dataclasses.replace(job, overwrite=False, replace=True, progress=progress)
    with progress:
        for number, (options, config) in enumerate(trials):
            progress.update(task, description=f"trial {number + 1} of {len(trials)}")
            own = dataclasses.replace(base, run=job.run / "trials" / str(number), config=config)
            done.append(_run_trial(number, options, own, data))
            at = best_of(done, metric)
            _keep_only(at, done, job.run)
            progress.update(task, completed=number + 1, state="" if at is None else f"best {at.score:.4f}")
            _LOG.info(_line(done[-1], len(trials), metric))
    return done


def selected_by(job: Job, data: Data) -> str:
    """The metric that selects the trial: `select_metric`, with `auto` resolved for the task."""
    return job.config.for_task(data.spec.kinds).common.select_metric


def _run_trial(number: int, options: Overrides, job: Job, data: Data) -> Trial:
    mark = fingerprint(described(job, data), job.config)
    path = job.run / "result.json"
    before = read_json(path, "the result of a trial") if path.is_file() else {}
    if before.get("fingerprint") == mark:
        return Trial(number=number, options=options, **before["result"])
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    result: TrialResult
    try:
        run_training(job, data)
        record = load_run(job.run).training
        result = {"status": "finished", "score": record["val"].get(selected_by(job, data))}
        result |= {"best_epoch": record.get("best_epoch"), "epochs": record.get("epochs")}
    except DivergedError as error:
        result = {"status": "diverged", "error": str(error)}
    except torch.cuda.OutOfMemoryError as error:
        # No result is recorded, so that the next search retries the trial, perhaps on a machine with more memory.
        first_line = str(error).splitlines()[0]
        return Trial(number=number, options=options, status="out of memory", error=first_line)
    result["seconds"] = time.perf_counter() - started
    write_text(path, json.dumps({"fingerprint": mark, "result": result}, indent=2, sort_keys=True) + "\n")
    return Trial(number=number, options=options, **result)


def best_of(trials: Sequence[Trial], metric: str) -> Trial | None:
    """The trial with the best score; the first one if scores are tied."""
    scored = [t for t in trials if t.score is not None]
    sign = -1 if lower_is_better(metric) else 1
    return max(scored, key=lambda t: sign * (t.score or 0.0), default=None)


def _keep_only(best: Trial | None, done: Sequence[Trial], folder: Path) -> None:
    """Remove the checkpoints of all other trials; their options, histories and logs are kept."""
    for trial in done:
        if trial is not best and trial.status != "out of memory":
            for name in (checkpoint.NAME, checkpoint.RESUME_NAME, checkpoint.MASK_NAME):
                (folder / "trials" / str(trial.number) / name).unlink(missing_ok=True)


def _line(trial: Trial, n_trials: int, metric: str) -> str:
    options = ", ".join(f"{k}={v}" for k, v in trial.options.items())
    if trial.score is None:
        result = trial.error or "no score"
    else:
        result = f"{metric} {trial.score:.4f}"
        result += f", epoch {trial.best_epoch} of {trial.epochs}" if trial.epochs else ""
    return f"trial {trial.number} ({trial.number + 1} of {n_trials}): {result}; {options or 'the preset'}"


def trials_frame(trials: Sequence[Trial]) -> pl.DataFrame:
    """One row per trial: `trial, <each varied option>, status, score, best_epoch, epochs, error`."""
    recorded = ("status", "score", "best_epoch", "epochs", "error")
    rows = [{"trial": t.number, **t.options, **{k: getattr(t, k) for k in recorded}} for t in trials]
    schema = {"trial": pl.Int32, "score": pl.Float64, "best_epoch": pl.Int32, "epochs": pl.Int32, "error": pl.String}
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)


def search(
    job: Job, method: type[AnyMethod], *, preset: str, fixed: Overrides, space: Space | None = None, n_trials: int = 12
) -> SearchResult:
    """Run the search and write its folder; return the content of best.json.

    Files: trials/<n>/ (see `run_search`), cost.json (seconds per trial, not reproducible to the byte), trials.parquet
    (see `trials_frame`) and, last, best.json, which `train --options` and the report read.

    Args:
        job: data, seed (in its config), device and folder of the search.
        fixed: options with the same value in every trial; they are removed from the space.
        space: candidates; default: the common candidates and those of the method.

    Raises:
        UsageError: another finished search in the folder; also see `draw_trials` and `run_search`.
        SearchFailedError: no trial produced a validation score.
    """
    folder, seed = job.run, job.config.seed
    candidates = {**COMMON_SPACE, **method.space} if space is None else space
    candidates = {k: v for k, v in candidates.items() if k not in fixed} if method.gradient else {}
    # Methods without gradient steps compare the settings themselves, e.g. by cross-validation.
    own = {f.name for f in dataclasses.fields(method.Options)}
    budget = {"trials": n_trials} if "trials" in own and not method.gradient else {}
    trials = draw_trials(method, preset=preset, seed=seed, fixed=budget | fixed, space=candidates, n_trials=n_trials)
    data = load_data(job)
    metric = selected_by(job, data)
    if job.overwrite:
        shutil.rmtree(folder / "trials", ignore_errors=True)
    elif (folder / "best.json").is_file():
        origin, names = origin_of(job, data), ("store_id", "task", "scheme", "mask_sha256")
        named = {k: getattr(origin, k) for k in names} | {"modalities": list(data.spec.names)}
        named |= {"method": method.name, "preset": preset, "seed": seed, "metric": metric}
        require_same(folder / "best.json", named, "search")
    for name in ("best.json", "trials.parquet", "cost.json"):
        (folder / name).unlink(missing_ok=True)
    done = run_search(job, trials, data)
    cost = {"trial_seconds": [t.seconds for t in done], "threads": torch.get_num_threads(), "device": job.device}
    write_text(folder / "cost.json", json.dumps(cost, indent=2, sort_keys=True) + "\n")
    write_frame(folder / "trials.parquet", trials_frame(done))
    best = best_of(done, metric)
    if best is None:
        errors = "; ".join(dict.fromkeys(t.error for t in done if t.error))
        raise SearchFailedError(f"none of {len(done)} trials produced a validation score: {errors or metric}")
    chosen = cast(Overrides, load_run(folder / "trials" / str(best.number)).training.get("chosen", {}))
    content: SearchResult = {
        "method": method.name,
        "preset": preset,
        "overrides": {**fixed, **best.options, **{k: v for k, v in chosen.items() if k in own - {"trials"}}},
        "score": best.score,
        "metric": metric,
        "trial": best.number,
        "n_trials": cast(int, chosen.get("trials", len(done))),
        "n_failed": sum(t.status != "finished" for t in done),
        "space": {k: list(v) for k, v in candidates.items()},
        "seed": seed,
        **_data_of(folder / "trials" / str(best.number) / "config.json"),
    }
    write_text(folder / "best.json", json.dumps(content, indent=2, sort_keys=True) + "\n")
    return content


def _data_of(path: Path) -> SearchData:
    data = read_json(path, "the settings of a run", keys=("data",))["data"]
    known = {k: data[k] for k in SearchData.__annotations__ if k in data}
    return cast(SearchData, {**known, "modalities": [m["name"] for m in data["modalities"]]})


def show(content: SearchResult, folder: Path) -> None:
    """Print the trials, best first, and the command that trains with the best options."""
    frame = read_frame(folder / "trials.parquet")
    seconds = read_json(folder / "cost.json", keys=("trial_seconds",))["trial_seconds"]
    options = [c for c in frame.columns if c not in ("trial", "status", "score", "best_epoch", "epochs", "error")]
    metric = content["metric"]
    timed = frame.with_columns(seconds=pl.Series(seconds, dtype=pl.Float64))
    order = timed.sort(["score", "trial"], descending=[not lower_is_better(metric), False], nulls_last=True)
    rows = []
    for row in order.iter_rows(named=True):
        score = row["status"] if row["score"] is None else f"{row['score']:.4f}"
        epoch = "" if row["epochs"] is None else f"{row['best_epoch']} of {row['epochs']}"
        took = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        rows.append([row["trial"], *(str(row[o]) for o in options), score, epoch, took])
    title = f"{content['method']} on {content['dataset']} ({content['origin']}), validation scores"
    print_table(title, ["trial", *options, metric, "epoch", "seconds"], rows)
    print(f"to train with the best options: mrpipe train … --options {folder / 'best.json'}")
