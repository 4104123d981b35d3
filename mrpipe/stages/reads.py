"""What each step of a build reads: its options, and its files of the export.

The workflow reruns a step if one of them changes. `seal` compares what the steps read with the last check, so that a
store never combines tables of different options or files.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mrpipe.errors import LISTED_FAULTS, DataError, Fault
from mrpipe.options import active, narrowed, parse_options, step_values
from mrpipe.raw import state_of_file
from mrpipe.reading import read_json
from mrpipe.schema import Dataset
from mrpipe.stages.declaration import read_checked
from mrpipe.store.layout import WorkLayout
from mrpipe.store.parquet import write_text


def is_read(dataset: Dataset, step: str, options: Any, file: str) -> bool:
    """Whether a step reads a file of the export, given by its path in it."""
    patterns = dataset.files.get(step.partition(".")[0], ("*",))
    found = [p for p in active(patterns, options) if fnmatchcase(file.lower(), p.removeprefix("!"))]
    return bool(found) and not any(p.startswith("!") for p in found)


def step_options(dataset: Dataset, step: str, settings: Mapping[str, Any], work: Path) -> tuple[Any, Any]:
    """All options of a build, and those that a step reads (`narrowed`).

    What `check` chose for `auto` remains, even if another choice has been installed since.
    """
    options = parse_options(dataset.options, settings, context=f"options of {dataset.name}")
    if WorkLayout(work).checked.exists():
        chosen = read_checked(work)["options"]
        automatic = [f.name for f in dataclasses.fields(options) if getattr(options, f.name) == "auto"]
        options = dataclasses.replace(options, **{name: chosen.get(name, "auto") for name in automatic})
    return options, narrowed(options, step)


def write_inputs(work: Path, raw: Path, options: Any, seen: Mapping[str, list[Any]]) -> None:
    """Record what a check read: the options, and the files as `state_of`, with the hashes known by now."""
    hashed = {path: now for path, now in state_of(seen).items() if now[:3] == seen[path][:3]}
    content = {"raw": os.path.abspath(raw), "options": dataclasses.asdict(options), "files": {**seen, **hashed}}
    paths = WorkLayout(work)
    write_text(paths.inputs, json.dumps(content) + "\n")
    paths.record(paths.inputs)


def read_inputs(work: Path) -> dict[str, Any]:
    """What the last check read, as it wrote it; empty before the first one."""
    paths = WorkLayout(work)
    return read_json(paths.require(paths.inputs, "check --work")) if paths.inputs.is_file() else {}


def state_of(files: Iterable[Path | str]) -> dict[str, list[int | str | None]]:
    """Absolute path → size in bytes, modification time in ns, inode and known SHA-256, of the files that exist."""
    return {os.path.abspath(file): state_of_file(file) for file in files if os.path.exists(file)}


def require_unchanged(work: Path, *outputs: Path) -> None:
    """Raise a DataError that names the input files that changed since the check, and remove outputs made from them."""
    before = read_inputs(work).get("files", {})
    now = state_of(before)
    if changed := [path for path, state in before.items() if now.get(path, [])[:2] != state[:2]]:
        for output in outputs:
            output.unlink(missing_ok=True)
        expected, fix = "the file as the check read it", "Check the export again"
        fix += f"; if a workflow does not do so by itself, delete {WorkLayout(work).checked}."
        found = {path: "another size or modification time" if path in now else "no such file" for path in changed}
        faults = [Fault(file=path, expected=expected, found=f, fix=fix) for path, f in found.items()]
        raise DataError(faults[:LISTED_FAULTS])


def record_reads(dataset: Dataset, step: str, options: Any, work: Path) -> None:
    """Record the options and files that a finished step read."""
    write_text(WorkLayout(work).reads(step), json.dumps(_reads(dataset, step, options, read_inputs(work))) + "\n")


def outdated_steps(dataset: Dataset, steps: Iterable[str], work: Path) -> Iterator[Fault]:
    """Faults of the steps that read other options or files than the last check."""
    inputs = read_inputs(work)
    for step in steps if inputs else ():
        path, name = WorkLayout(work).reads(step), step.partition(".")[0]
        options, _ = step_options(dataset, step, inputs["options"], work)
        now, before = _reads(dataset, step, options, inputs), read_json(path) if path.is_file() else {}
        if now != before:
            values = said if isinstance(said := before.get("options"), dict) else {}
            differing = [f"{k}={values.get(k)}" for k, v in now["options"].items() if values.get(k) != v]
            verb = name if name == "cohort" else f"ingest {dataset.name} {name}"
            expected, found = "the options and files of the last check", ", ".join(differing) or "other files"
            fix = f"Run mrpipe {verb} again; if a workflow does not do so by itself, delete its output in {work}."
            yield Fault(file=f"result of {verb}", expected=expected, found=found, fix=fix)


def _reads(dataset: Dataset, step: str, options: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the options, and a hash of the sizes and modification times of the files, that a step reads."""
    raw = inputs.get("raw", "")
    files = ((os.path.relpath(path, raw), state[:2]) for path, state in inputs.get("files", {}).items())
    read = sorted((f, s) for f, s in files if f.startswith("..") or is_read(dataset, step, options, Path(f).as_posix()))
    digest = hashlib.sha256(json.dumps(read).encode()).hexdigest()
    return {"options": json.loads(json.dumps(step_values(options, step))), "files": digest}
