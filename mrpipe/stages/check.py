"""check: validate all inputs of a run, report all problems at once, and record the inventory of the export."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.forms import recognise
from mrpipe.kept import keeping
from mrpipe.options import parse_options
from mrpipe.raw import input_sha256, remember, require_folder
from mrpipe.schema import Checked, Dataset, Scheme, Task
from mrpipe.stages.declaration import DECLARED, declaration
from mrpipe.stages.reads import read_inputs, require_unchanged, state_of, write_inputs
from mrpipe.stages.simulate import is_simulated
from mrpipe.store.layout import StoreLayout, WorkLayout
from mrpipe.store.leaks import find_leaks, mask_columns
from mrpipe.store.manifest import read_manifest
from mrpipe.store.parquet import write_text
from mrpipe.store.splits import assign, label_faults, split_faults

# Folders with more files (screens, scans) are listed as one entry, because their file names may be patient ids.
LISTED_FILES = 40
# Names of unread files or folders that a check prints.
LISTED_UNREAD = 5


def _as_one(label: str, root: Path, members: Sequence[Path]) -> dict[str, Any]:
    digest = hashlib.sha256("".join(f"{f.relative_to(root).as_posix()} {input_sha256(f)}\n" for f in members).encode())
    size = sum(f.stat().st_size for f in members)
    return {"path": label, "size": size, "sha256": digest.hexdigest(), "n_files": len(members)}


def inventory(
    raw: Path, files: tuple[Path, ...], groups: Mapping[str, tuple[Path, ...]] | None = None
) -> list[dict[str, Any]]:
    """Path relative to the export, size in bytes and SHA-256 of all input files.

    Each large folder is one entry, and so is each of `groups` (label → files).
    """
    by_folder: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in sorted(set(files)):
        by_folder[file.parent].append(file)
    entries: list[dict[str, Any]] = []
    for folder, members in sorted(by_folder.items()):
        if len(members) > LISTED_FILES:
            entries.append(_as_one(f"{folder.relative_to(raw).as_posix()}/*", folder, members))
            continue
        for file in members:
            # Files outside of the export (declarations) are listed by name, because paths differ between machines.
            name = file.relative_to(raw).as_posix() if file.is_relative_to(raw) else file.name
            entries.append({"path": name, "size": file.stat().st_size, "sha256": input_sha256(file)})
    return entries + [_as_one(label, raw, sorted(set(members))) for label, members in sorted((groups or {}).items())]


def _portable(value: Any) -> Any:
    """Option value for the manifest: of absolute paths only the name, because folders differ between machines."""
    if isinstance(value, tuple):
        return [_portable(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


@keeping()
def check(
    dataset: Dataset,
    raw: Path,
    settings: Mapping[str, Any],
    *,
    modalities: Sequence[str] | None = None,
    schemes: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Check an export, its cohort and its splits; returns the content of `checked.json`.

    Args:
        modalities, schemes, seed: those of the build; default: all of the export and of the dataset.

    Raises:
        UsageError: an option is invalid, or no such modality or scheme.
        DataError: lists all problems of the files, the labels and the splits.
    """
    options = parse_options(dataset.options, settings, context=f"options of {dataset.name}")
    require_folder(raw)
    declared = dataset.declared(raw, options)
    # Classes that the export declares can be changed there; those of a published dataset are only noted.
    own = dataset.resolve is not None
    _require_known(dataset, "split scheme", schemes, declared.schemes)
    chosen = {name: scheme for name, scheme in declared.schemes.items() if schemes is None or name in schemes}
    try:
        checked = dataset.check(raw, options)
    except DataError as error:
        faults = list(error.faults)
        packed = [f for f in _unread(raw, Checked(release="", files=()))["forms"] if "archives (" in f]
        if packed and any(f.found.startswith(("no such file", "neither", "none")) for f in faults):
            found = ", ".join(line.partition(":")[0] for line in packed)
            fix = "Unpack them, if the missing files may be in them."
            faults.append(Fault(file=raw.name, expected="all files, unpacked", found=found, fix=fix))
        # Anything that fails in the cohort of an invalid export follows from the problems already found.
        with suppress(Exception), redirect_stderr(io.StringIO()):
            cohort = dataset.cohort(raw, options)
            faults += _cohort_faults(declared, cohort.samples, cohort.labels, chosen, {}, seed, own)
        raise type(error)(faults) from error
    seen = state_of(file for files in (checked.files, *checked.groups.values()) for file in files)
    present = dataset.modalities_of(raw, options) if dataset.modalities_of else tuple(declared.modalities)
    _require_known(dataset, "modality", modalities, present)
    present = tuple(m for m in present if modalities is None or m in modalities)
    # The step `cohort` reports its own progress.
    with redirect_stderr(io.StringIO()):
        cohort = dataset.cohort(raw, options)
    samples = cohort.samples
    ids, known = samples["sample_id"], [m for m in present if m in checked.observed]
    observed = {m: ids.filter(ids.is_in(checked.observed[m].implode())) for m in known}
    if observed and len(observed) == len(present):
        # A build drops the samples without any modality.
        samples = samples.filter(pl.col("sample_id").is_in(pl.concat(observed.values()).implode()))
    labels = {name: label.join(samples, on="sample_id", how="semi") for name, label in cohort.labels.items()}
    if faults := list(_cohort_faults(declared, samples, labels, chosen, observed, seed, own)):
        raise DataError(faults)
    small = () if own else _cohort_faults(declared, samples, labels, chosen, {}, seed, True)
    notes = [*checked.notes, *(str(dataclasses.replace(fault, fix="")) for fault in small)]
    return {
        **({} if dataset.resolve is None else {DECLARED: declaration(declared)}),
        "dataset": dataset.name,
        "release": checked.release,
        "origin": "simulated" if is_simulated(raw) else "export",
        "options": {name: _portable(value) for name, value in dataclasses.asdict(options).items()}
        | dict(checked.options),
        "modalities": list(present),
        "notes": [*notes, *_class_notes(declared.tasks, labels), *_mask_notes(declared.tasks, labels, observed)],
        "inputs": inventory(raw, checked.files, checked.groups),
        "n_samples": len(samples),
        "observed": {m: len(observed[m]) if m in observed else None for m in present},
        "lacking": [m for m in declared.modalities if m not in present and (modalities is None or m in modalities)],
        "unused": dict(checked.unused),
        **_unread(raw, checked),
        "splits": dict.fromkeys(chosen, seed),
        "seen": seen,
    }


def require_same_store(store: Path, checked: Mapping[str, Any], seed: int) -> None:
    """Raise a UsageError if the folder has a finished store that a build of the checked export would not make again."""
    if StoreLayout(store).manifest.is_file():
        manifest = read_manifest(store)
        before = {key: getattr(manifest, key) for key in ("dataset", "release", "origin", "options", "inputs")}
        before["modalities"] = [m["name"] for m in manifest.modalities]
        before["splits"] = {s["scheme"]: s.get("seed", seed) for s in manifest.splits}
        plain_before, plain_now = (json.loads(json.dumps(settings)) for settings in (before, checked))
        if differing := [key for key, value in plain_before.items() if value != plain_now[key]]:
            found = f"{store} contains a finished store that differs in {', '.join(differing)}"
            raise UsageError(f"{found}. Choose another --out, or replace it with --overwrite")


def _require_known(dataset: Dataset, kind: str, names: Sequence[str] | None, known: Iterable[str]) -> None:
    if unknown := [n for n in names or () if n not in known]:
        raise UsageError(f"{dataset.name}: no {kind} {unknown[0]!r} in this export; it has {', '.join(known)}")


def _cohort_faults(
    dataset: Dataset,
    samples: pl.DataFrame,
    labels: Mapping[str, pl.DataFrame],
    schemes: Mapping[str, Scheme],
    observed: Mapping[str, pl.Series],
    seed: int,
    every_class: bool,
) -> Iterator[Fault]:
    """Problems of labels and splits for which `build` would refuse the export."""
    yield from label_faults(dataset.tasks, labels) if every_class else ()
    for name, scheme in schemes.items():
        try:
            split = assign(scheme, samples, labels, seed)
        except DataError as error:
            yield from error.faults
        else:
            yield from split_faults(name, scheme, split, dataset.tasks, labels, observed, every_class=every_class)


def _class_notes(tasks: Sequence[Task], labels: Mapping[str, pl.DataFrame]) -> Iterator[str]:
    """Notes on labels with one class, which no method can be trained on."""
    for task in tasks:
        classes = labels[task.name]["value"].drop_nulls().unique()
        if task.kind == "classification" and len(classes) == 1:
            yield f"label {task.name}: every labelled sample is of class {task.classes[classes[0]]}"


def _mask_notes(
    tasks: Sequence[Task], labels: Mapping[str, pl.DataFrame], observed: Mapping[str, pl.Series]
) -> Iterator[str]:
    """Notes on modalities whose presence nearly determines a label (`leaks.find_leaks`)."""
    names = list(observed)
    for task in tasks if names else ():
        label = labels[task.name].drop_nulls("value")
        bits = label.select(pl.col("sample_id").is_in(observed[m].implode()).alias(m) for m in names).to_numpy()
        found = find_leaks([mask_columns(bits)], label["value"].to_numpy(), task.classes)
        for position, _, of_class, auroc, _ in found.iter_rows():
            whom = f"class {of_class} of {task.name}" if of_class else task.name
            yield f"{names[position]}: whether a sample has it nearly determines {whom} (AUROC {auroc:.3f})"


def _unread(raw: Path, checked: Checked) -> dict[str, Any]:
    """Files of the export that a build does not read.

    Returns:
        `unread`: name of a file or, with /, of a folder → number of files; `forms`: one line for each recognised form.
    """
    read = {os.path.abspath(f) for files in (checked.files, *checked.groups.values()) for f in files}
    found: Counter[str] = Counter()
    forms: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for folder, _, names in os.walk(raw):
        place = Path(folder).relative_to(raw)
        # The reader reports a file or a folder by its name or its path.
        if checked.unused.keys() & {part for p in (place, *place.parents) for part in (p.name, p.as_posix())}:
            continue
        for name in names:
            path = Path(folder, name)
            reported = checked.unused.keys() & {name, (place / name).as_posix()} or name.startswith(".")
            if not reported and os.path.abspath(path) not in read:
                # Names of files in folders may be ids of patients.
                shown = f"{place.parts[0]}/" if place.parts else name
                found[shown] += 1
                if (form := recognise(path)) and form.advice:
                    forms[form.name, form.advice].append(shown)
    lines = [f"{len(at)} {name} ({', '.join(sorted(set(at))[:3])}): {advice}" for (name, advice), at in forms.items()]
    return {"unread": dict(sorted(found.items())), "forms": sorted(lines)}


def closing(result: Mapping[str, Any]) -> str:
    lacking = ", ".join(result["lacking"])
    return "no errors" + (f"; the store will lack {lacking}" if lacking else "")


def summary(result: Mapping[str, Any]) -> list[str]:
    """Lines on what a build would make of the export: modalities with their samples, and files that it does not use."""
    n = {m: "unknown before build" if k is None else str(k) for m, k in result["observed"].items()}
    n |= dict.fromkeys(result["lacking"], "not in this export")
    width = max(len("modality"), *map(len, n))
    lines = [f"{'modality':<{width}}  samples (of {result['n_samples']})"]
    lines += [f"{m:<{width}}  {text}" for m, text in n.items()]
    lines += [f"not used: {file}: {reason}" for file, reason in result["unused"].items()]
    unread = result["unread"]
    lines += [f"not read: {text}" for text in result["forms"]]
    if unread:
        some = [f"{name} ({k})" if name.endswith("/") else name for name, k in list(unread.items())[:LISTED_UNREAD]]
        more = ", …" if len(unread) > LISTED_UNREAD else ""
        lines.append(f"not read: {sum(unread.values())} files ({', '.join(some)}{more})")
    return lines


def write_check(dataset: Dataset, raw: Path, work: Path, settings: Mapping[str, Any], **chosen: Any) -> dict[str, Any]:
    """Check an export and write `checked.json`; after a failed check, no older `checked.json` remains."""
    path = WorkLayout(work).checked
    path.unlink(missing_ok=True)
    known: dict[str, Any] = {}
    with suppress(DataError):  # a damaged record is replaced
        known = read_inputs(work).get("files", {})
    remember(known)
    # Kept tables are those that this code has read, never those of an earlier version.
    shutil.rmtree(kept := WorkLayout(work).kept, ignore_errors=True)
    with keeping(kept):
        result = check(dataset, raw, settings, **chosen)
    options = parse_options(dataset.options, settings, context=f"options of {dataset.name}")
    write_inputs(work, raw, options, result.pop("seen"))
    require_unchanged(work)
    write_text(path, json.dumps(result, indent=1, sort_keys=True) + "\n")
    WorkLayout(work).record(path)
    return result
