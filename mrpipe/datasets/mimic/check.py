"""Check of a MIMIC-IV export: report every error before a build starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from mrpipe.datasets.mimic.codes import codes_of
from mrpipe.datasets.mimic.cohort import birth, ended, possible, require_consistent, visits
from mrpipe.datasets.mimic.options import MimicOptions, within
from mrpipe.datasets.mimic.scan.scanner import check_columns, inflate_to_end, is_gzip, read_header, sample_rows
from mrpipe.datasets.mimic.tables import (
    EVENTS,
    GET,
    NOTES,
    PLACES,
    TABLES,
    UNUSED,
    detect_release,
    find_table,
    has_table,
    note_tables,
    read_table,
    tables_of,
)
from mrpipe.delimited import decode
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import sha256
from mrpipe.schema import Checked
from mrpipe.text.encoders import recorded

SUMS = "SHA256SUMS.txt"
T = TypeVar("T")
# Tables that an export may lack, with the consequence; all other tables are required.
OPTIONAL = {
    "hosp/procedures_icd": "the code sequences have no procedures",
    "hosp/d_icd_diagnoses": "diagnoses have no titles in the dictionary",
    "hosp/d_icd_procedures": "procedures have no titles in the dictionary",
    "hosp/d_labitems": "laboratory items have no names in the dictionary",
    "icu/d_items": "chart items have no names in the dictionary",
}
# Tables that are read only with some options.
UNREAD = {
    "note/discharge": 'not in the option notes; read with --set \'notes=["discharge", "radiology"]\'',
    "note/radiology": 'not in the option notes; read with --set \'notes=["discharge", "radiology"]\'',
    "hosp/labevents": "not in the option event_sources",
    "icu/chartevents": "not in the option event_sources",
    "icu/icustays": "not needed with require_icu=no",
}


def _attempt(faults: FaultCollector, function: Callable[..., T], *arguments: Any, **named: Any) -> T | None:
    """Result of the function, or None after adding its faults."""
    try:
        return function(*arguments, **named)
    except DataError as error:
        faults.absorb(error)
        return None


def provider_sums(raw: Path) -> dict[Path, str]:
    """SHA-256 of each file listed in the provider's SHA256SUMS.txt (hosp, icu and note may have one each)."""
    sums = {}
    for listing in sorted(raw.rglob(SUMS)):
        for line in decode(listing.read_bytes(), shown_as=within(raw, listing)).splitlines():
            match = re.fullmatch(r"([0-9a-f]{64})\s+\*?(.+)", line.strip())
            if match:
                sums[listing.parent / match[2]] = match[1]
    return sums


def _verify(raw: Path, files: list[Path], options: MimicOptions, faults: FaultCollector, notes: list[str]) -> None:
    """Compare files with the provider's checksums; decompress files whose checksum is not verified."""
    sums = provider_sums(raw) if options.checksums != "skip" else {}
    unlisted = sorted(set(options.rebuilt) - {within(raw, f) for f in sums})
    if unlisted and options.checksums != "skip":
        expected, found = f"files listed in {SUMS}", ", ".join(unlisted)
        faults.add(Fault(file="options", column="rebuilt", expected=expected, found=found))
    n_verified = 0
    for path in files:
        name = within(raw, path)
        if path in sums and name not in options.rebuilt:
            found = sha256(path)
            if found == sums[path]:
                n_verified += 1
                continue
            if options.checksums == "verify":
                faults.add(
                    Fault(
                        file=name,
                        expected=f"SHA-256 {sums[path][:16]}… as in {SUMS}",
                        found=f"{found[:16]}…",
                        fix="Download the file again or, if it was changed on purpose, declare it with "
                        f"--set 'rebuilt=[\"{name}\"]'; checksums=note accepts all mismatches.",
                    )
                )
                continue
            notes.append(f"{name} was modified: its SHA-256 differs from {SUMS}")
        elif name in options.rebuilt:
            notes.append(f"{name} was modified: declared in the option rebuilt")
        if is_gzip(path) and options.integrity == "full":
            _attempt(faults, inflate_to_end, path, name)
    if sums:
        notes.append(f"{n_verified} of {len(files)} files match the provider's SHA-256")


def check_export(raw: Path, options: MimicOptions) -> Checked:
    """Read all small tables and the header and first rows of all large ones, and verify the provider's checksums.

    Raises:
        DataError: all errors in options, files, columns and values.
    """
    options.validate()
    counts = options.text_encoder == "counts"
    encoder, *notes = ("counts",) if counts else recorded(options.text_encoder, ("auto", "counts"))
    faults, files = FaultCollector(), []
    present = tables_of(raw)
    _require_layout(raw, present)
    frames: dict[str, pl.DataFrame] = {}
    for name in TABLES:
        if name == "icu/icustays" and options.require_icu == "no":
            continue
        if name in OPTIONAL and not has_table(raw, name):
            notes.append(f"{name} is missing: {OPTIONAL[name]}")
            continue
        path = find_table(raw, name, faults)
        if path is None:
            continue
        files.append(path)
        frame = _attempt(faults, read_table, raw, path, name, notes)
        if frame is not None:
            frames[name] = frame
    release = "unknown"
    if {"hosp/patients", "hosp/admissions"} <= set(frames):
        tables = frames["hosp/patients"], frames["hosp/admissions"]
        _attempt(faults, require_consistent, raw, *tables, frames.get("icu/icustays"))
        release = _attempt(faults, detect_release, *tables, options) or release
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
            notes.append(f"{PLACES[name]} is missing (MIMIC-IV-Note is a separate PhysioNet project): no {name} notes")
    observed = {}
    if not faults.faults:
        kept = visits(raw, options).kept
        codes = codes_of(raw, ended(kept))
        notes += _code_notes(codes, options)
        observed["code"] = codes["subject_id"].unique().sort().cast(pl.String)
        _verify(raw, files, options, faults, notes)
    faults.raise_if_any()
    unused = {
        within(raw, path): UNREAD.get(name, "not a modality of this reader")
        for name, paths in present.items()
        if name in UNUSED or name in UNREAD
        for path in paths
        if path not in files
    }
    return Checked(
        release=release,
        files=tuple(files),
        notes=tuple(notes),
        observed=observed,
        unused=unused,
        options={"text_encoder": encoder},
    )


def _require_layout(raw: Path, present: Mapping[str, list[Path]]) -> None:
    """Raise a DataError for exports of MIMIC-III, whose patients have a date of birth, and of MIMIC-IV 1.0."""
    found = "the core module of MIMIC-IV 1.0" if "core/patients" in present and "hosp/patients" not in present else ""
    for path in raw.rglob("*"):
        patients = path.name.lower() in ("patients.csv", "patients.csv.gz") and path.is_file()
        if patients and "dob" in (h.lower() for h in read_header(path, within(raw, path))[0]):
            found = "MIMIC-III tables"
    if found:
        raise DataError(Fault(file=raw.name, expected="MIMIC-IV 2.0 or later (hosp/patients)", found=found, fix=GET))


def _code_notes(codes: pl.DataFrame, options: MimicOptions) -> list[str]:
    """Notes on codes of the cohort without a title or in another spelling, and on options that match no code."""
    recoded, untitled = codes.filter("recoded"), codes.filter(pl.col("long_title").is_null())
    lines = []
    if len(recoded):
        example = recoded["icd_code"][0]
        lines.append(
            f"{len(recoded)} ICD codes with lost zeros, or with dots, were corrected by d_icd_*, e.g. to {example}"
        )
    if 0 < len(untitled) < len(codes):
        example = untitled["icd_code"][0]
        lines.append(f"{len(untitled)} of {len(codes)} ICD codes have no title in d_icd_*, e.g. {example}")
    if options.icd_versions != "both" and not (codes["icd_version"] == int(options.icd_versions)).any():
        lines.append(f"icd_versions={options.icd_versions} matches no code of the included visits")
    return lines


def _oddities(frames: dict[str, pl.DataFrame]) -> list[str]:
    """Counts of known inconsistencies of MIMIC-IV (docs/raw-formats.md) and of visits without ICD-9 diagnoses."""
    admissions, patients = frames["hosp/admissions"], frames["hosp/patients"]
    person = patients.select("subject_id", "dod", pl.col("dod").alias("death"), birth.alias("born"))
    joined = admissions.join(person, on="subject_id", how="left")
    died = pl.col("hospital_expire_flag") == 1
    earlier = pl.col("dischtime").cum_max().shift(1).over("subject_id")
    counts = {
        "visits with admittime after dischtime": joined.filter(pl.col("admittime") > pl.col("dischtime")),
        "visits that begin before an earlier one ends": joined.sort("subject_id", "admittime", "hadm_id").filter(
            pl.col("admittime") < earlier
        ),
        "visits with hospital_expire_flag but without deathtime": joined.filter(died & pl.col("deathtime").is_null()),
        "visits with deathtime after dischtime": joined.filter(pl.col("deathtime") > pl.col("dischtime")),
        "visits with deathtime on another day than dod": joined.filter(pl.col("deathtime").dt.date() != pl.col("dod")),
        "visits with in-hospital death but without dod": joined.filter(died & pl.col("dod").is_null()),
        "visits before birth or after dod, which are not used": joined.filter(~possible),
        "visits of more than a year": joined.filter(pl.col("dischtime") > pl.col("admittime").dt.offset_by("1y")),
    }
    lines = [f"{len(rows)} {kind}" for kind, rows in counts.items() if len(rows)]
    for name in ("hosp/diagnoses_icd", "hosp/procedures_icd", "icu/icustays"):
        if name in frames:
            lost = frames[name].join(admissions, on=["subject_id", "hadm_id"], how="anti")
            if len(lost):
                share = len(lost) / len(frames[name])
                lines.append(
                    f"{len(lost)} rows of {name} ({share:.1%}) name no visit of their patient in hosp/admissions"
                )
    diagnoses = frames.get("hosp/diagnoses_icd")
    if diagnoses is not None:
        per_visit = diagnoses.group_by("hadm_id").agg((pl.col("icd_version") == 10).all().alias("ten"))
        ten = int(per_visit["ten"].sum())
        lines.append(
            f"{ten} of {len(per_visit)} visits with ICD-10 diagnoses only, which are not mapped to ICD-9 "
            "(general equivalence mappings are many-to-many)"
        )
    return lines
