"""Command-line arguments for the planned runs, as the `mrpipe` commands expect them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mrpipe.experiment.missingness import Missingness, p_text

from .runs import PlannedRun


def mask_arguments(settings: Missingness) -> list[str]:
    """Arguments of `mrpipe mask` for simulated missingness."""
    arguments = ["--mechanism", settings.mechanism, "--p", p_text(settings.p), "--rate", settings.rate]
    arguments += ["--seed", str(settings.seed)]
    arguments += ["--strength", f"{settings.strength:g}", "--blocks", str(settings.n_blocks)]
    arguments += ["--task", settings.task] if settings.task else []
    arguments += ["--modalities", *settings.modalities] if settings.modalities else []
    return arguments if settings.redraw else [*arguments, "--no-redraw"]


def train_arguments(run: PlannedRun) -> list[str]:
    """Arguments of `mrpipe train` for a run; the rule adds the store, the output folder and the mask file."""
    arguments = ["--method", run.method, "--preset", run.preset, "--seed", str(run.seed)]
    arguments += ["--task", run.task] if run.task else []
    arguments += ["--scheme", run.scheme] if run.scheme else []
    arguments += ["--modalities", *run.modalities] if run.modalities else []
    return arguments + set_arguments(run.transforms, "--transform") + set_arguments(dict(sorted(run.overrides.items())))


def protocol_arguments(run: PlannedRun, mask: Iterable[str], store: str) -> list[str]:
    """Arguments of `mrpipe evaluate` for a run with a protocol; `store` is the folder of the training store."""
    if run.test is None:
        return []
    arguments = ["--name", run.test.name, *(word for file in mask for word in ("--mask", file))]
    return [*arguments, *["--patterns"] * bool(run.test.pattern), *["--reference-store", store] * bool(run.test.store)]


def search_arguments(run: PlannedRun) -> list[str]:
    """Arguments of `mrpipe search` for a run; all seeds of the run share one search."""
    return [*train_arguments(replace(run, seed=run.first_seed)), "--trials", str(run.trials)]


def benchmark_arguments(run: PlannedRun, steps: int) -> list[str]:
    """Arguments of `mrpipe benchmark`, which measures a run's method on every modality configuration."""
    return [*train_arguments(replace(run, modalities=())), "--steps", str(steps)]


def settings_asked(runs: Iterable[PlannedRun]) -> str:
    """Methods and overrides of the given runs as JSON, for the check that precedes all other jobs."""
    asked = {r.label: {"method": r.method, "preset": r.preset, "overrides": r.overrides} for r in runs}
    return json.dumps(asked, sort_keys=True)


def set_arguments(values: Mapping[str, Any], flag: str = "--set") -> list[str]:
    """Options in command-line form: `--set key=value ...`, or an empty list."""
    pairs = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]
    return [flag, *pairs] if pairs else []
