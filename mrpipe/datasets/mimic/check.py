"""Check of a MIMIC-IV export: every fault that a build would meet, found before it starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from mrpipe.datasets.mimic.cohort import _require_consistent
from mrpipe.datasets.mimic.options import MimicOptions, within
from mrpipe.datasets.mimic.scan.scanner import check_columns, inflate_to_end, sample_rows
from mrpipe.datasets.mimic.tables import (
    EVENTS,
    GET,
    NOTES,
    PLACES,
    TABLES,
    find_table,
    has_table,
    note_tables,
    read_table,
    tell_release,
)
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import sha256
from mrpipe.schema import Checked

SUMS = "SHA256SUMS.txt"
T = TypeVar("T")
# A full export without these is no export; the others can be left out, each with its consequence.
OPTIONAL = {
    "hosp/procedures_icd": "no procedures enter the code sequence",
    "hosp/d_icd_diagnoses": "diagnoses have no titles in the dictionary",
    "hosp/d_icd_procedures": "procedures have no titles in the dictionary",
    "hosp/d_labitems": "laboratory items have no names in the dictionary",
    "icu/d_items": "chart items have no names in the dictionary",
}


def _attempt(faults: FaultCollector, function: Callable[..., T], *arguments: Any, **named: Any) -> T | None:
    try:
        return function(*arguments, **named)
    except DataError as error:
        faults.absorb(error)
        return None


def provider_sums(raw: Path) -> dict[Path, str]:
    """File → SHA-256 as the provider's SHA256SUMS.txt files state it (hosp, icu and note may have one each)."""
    sums = {}
    for listing in sorted(raw.rglob(SUMS)):
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            match = re.fullmatch(r"([0-9a-f]{64})\s+\*?(.+)", line.strip())
            if match:
                sums[listing.parent / match[2]] = match[1]
    return sums


def _verify(raw: Path, files: list[Path], options: MimicOptions, faults: FaultCollector, notes: list[str]) -> None:
    """Compare with the provider's checksums; what has none, or may differ, is inflated to its end."""
    sums = provider_sums(raw) if options.checksums != "skip" else {}
    unlisted = {within(raw, f) for f in sums} & set(options.rebuilt)
    strange = sorted(set(options.rebuilt) - unlisted)
    if strange and options.checksums != "skip":
        faults.add(
            Fault(file="options", column="rebuilt", expected=f"files that a {SUMS} names", found=", ".join(strange))
        )
    proven = 0
    for path in files:
        name = within(raw, path)
        if path in sums and name not in options.rebuilt:
            found = sha256(path)
            if found == sums[path]:
                proven += 1
                continue
            if options.checksums == "verify":
                faults.add(
                    Fault(
                        file=name,
                        expected=f"SHA-256 {sums[path][:16]}… of {SUMS}",
                        found=f"{found[:16]}…",
                        fix="Download it again; or, if it was changed on purpose, say so: "
                        f"--set 'rebuilt=[\"{name}\"]' (checksums=note accepts any, checksums=skip does not look).",
                    )
                )
                continue
            notes.append(f"{name} is not the provider's: its SHA-256 differs from {SUMS}")
        elif name in options.rebuilt:
            notes.append(f"{name} is not the provider's: declared as rebuilt")
        if path.suffix == ".gz" and options.integrity == "full":
            _attempt(faults, inflate_to_end, path, name)
    if sums:
        notes.append(f"{proven} of {len(files)} files carry the provider's SHA-256")


def check_export(raw: Path, options: MimicOptions) -> Checked:
    """Read every small table, the header and the first rows of every large one, and the provider's checksums.

    Raises:
        DataError: with every fault of options, files, columns and values.
    """
    options.validate()
    faults, notes, files = FaultCollector(), [], []
    if not has_table(raw, "hosp/patients") and (has_table(raw, "core/patients") or list(raw.rglob("PATIENTS.csv*"))):
        faults.add(
            Fault(
                file=raw.name,
                expected="MIMIC-IV 2.0 or later (hosp/patients)",
                fix=GET,
                found="the layout of MIMIC-III"
                if not has_table(raw, "core/patients")
                else "the core module of MIMIC-IV 1.0",
            )
        )
        faults.raise_if_any()
    frames: dict[str, pl.DataFrame] = {}
    for name in TABLES:
        if name == "icu/icustays" and options.require_icu == "no":
            continue
        if name in OPTIONAL and not has_table(raw, name):
            notes.append(f"{name} is absent: {OPTIONAL[name]}")
            continue
        path = find_table(raw, name, faults)
        if path is None:
            continue
        files.append(path)
        frame = _attempt(faults, read_table, raw, path, name)
        if frame is not None:
            frames[name] = frame
    release = "unknown"
    if {"hosp/patients", "hosp/admissions"} <= set(frames):
        _attempt(faults, _require_consistent, frames["hosp/patients"], frames["hosp/admissions"])
        told = _attempt(faults, tell_release, raw, frames["hosp/patients"], frames["hosp/admissions"], options)
        release = told or release
        notes += _oddities(frames)
    large = {n: EVENTS[n] for n in options.event_sources} | {n: NOTES[n] for n in note_tables(raw, options)}
    for name, columns in large.items():
        path = find_table(raw, PLACES[name], faults)
        if path is None:
            continue
        files.append(path)
        if _attempt(faults, check_columns, path, columns, within(raw, path)) is not None:
            _attempt(faults, sample_rows, path, columns, shown_as=within(raw, path))
    for name in options.notes:
        if not has_table(raw, PLACES[name]):
            notes.append(f"{PLACES[name]} is absent (a project of its own at the provider): no such notes")
    if not faults.faults:
        _verify(raw, files, options, faults, notes)
    faults.raise_if_any()
    return Checked(release=release, files=tuple(files), notes=tuple(notes))


def _oddities(frames: dict[str, pl.DataFrame]) -> list[str]:
    """What B.3 warns of, counted."""
    admissions, patients = frames["hosp/admissions"], frames["hosp/patients"]
    joined = admissions.join(patients.select("subject_id", "dod"), on="subject_id", how="left")
    died = pl.col("hospital_expire_flag") == 1
    earlier = pl.col("dischtime").cum_max().shift(1).over("subject_id")
    counts = {
        "visits are admitted after their discharge": joined.filter(pl.col("admittime") > pl.col("dischtime")),
        "visits begin before an earlier one has ended": joined.sort("subject_id", "admittime", "hadm_id").filter(
            pl.col("admittime") < earlier
        ),
        "visits are flagged as died without a deathtime": joined.filter(died & pl.col("deathtime").is_null()),
        "deathtimes are later than the discharge": joined.filter(pl.col("deathtime") > pl.col("dischtime")),
        "deathtimes are on another day than dod": joined.filter(pl.col("deathtime").dt.date() != pl.col("dod")),
        "in-hospital deaths have no dod": joined.filter(died & pl.col("dod").is_null()),
    }
    lines = [f"{len(rows)} {what}" for what, rows in counts.items() if len(rows)]
    diagnoses = frames.get("hosp/diagnoses_icd")
    if diagnoses is not None:
        per_visit = diagnoses.group_by("hadm_id").agg((pl.col("icd_version") == 10).all().alias("ten"))
        ten = int(per_visit["ten"].sum())
        lines.append(
            f"{ten} of {len(per_visit)} visits have ICD-10 diagnoses only; they are not translated to ICD-9 "
            "(a general equivalence mapping is many-to-many)"
        )
    return lines
