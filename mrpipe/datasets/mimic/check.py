"""Check of a MIMIC-IV export: report every error before a build starts."""

from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.datasets.mimic import tables as mimic
from mrpipe.datasets.mimic.codes import codes_of
from mrpipe.datasets.mimic.cohort import birth, ended, possible, require_consistent, visits
from mrpipe.datasets.mimic.options import MimicOptions, within
from mrpipe.datasets.mimic.scan.kept import write_rows
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.kept import keep, place
from mrpipe.raw import few, input_sha256, state_of_file
from mrpipe.schema import Checked
from mrpipe.text.encoders import recorded

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


def _verify(raw: Path, files: list[Path], options: MimicOptions, faults: FaultCollector, notes: list[str]) -> set[Path]:
    """Compare files with the provider's checksums; returns the verified files."""
    sums = mimic.provider_sums(raw) if options.checksums != "skip" else {}
    unlisted = sorted(set(options.rebuilt) - {within(raw, f) for f in sums})
    if unlisted and options.checksums != "skip":
        expected, found = f"files listed in {mimic.SUMS}", ", ".join(unlisted)
        faults.add(Fault(file="options", column="rebuilt", expected=expected, found=found))
    # Files whose checksum was verified by an earlier check are not read again, whatever the option is now.
    listing = mimic.provider_sums(raw)
    verified = {path for path in files if path in listing and not sums and state_of_file(path)[-1] == listing[path]}
    for path in files:
        name = within(raw, path)
        listed = path in sums and name not in options.rebuilt
        found = input_sha256(path) if listed else ""
        if listed and found == sums[path]:
            verified.add(path)
        elif listed and options.checksums == "verify":
            expected = f"SHA-256 {sums[path][:16]}… as in {mimic.SUMS}"
            declared = f"--set 'rebuilt=[\"{name}\"]'; checksums=note accepts all mismatches."
            fix = f"Download the file again or, if it was changed on purpose, declare it with {declared}"
            faults.add(Fault(file=name, expected=expected, found=f"{found[:16]}…", fix=fix))
        elif listed:
            notes.append(f"{name} was modified: its SHA-256 differs from {mimic.SUMS}")
        elif name in options.rebuilt:
            notes.append(f"{name} was modified: declared in the option rebuilt")
    if sums:
        notes.append(f"{len(verified)} of {len(files)} files match the provider's SHA-256")
    return verified


def _content(raw: Path, files: mimic.Form, columns: mimic.Columns) -> tuple[int, int, list[str]]:
    """Number of rows, sum of their hashes, and columns of one form of a table, whatever its order."""
    scan, total, names = mimic.scan_table(raw, files, columns), 0, []
    for frame in scan:
        names = sorted(frame.columns)
        hashes = frame.select(names).with_columns(pl.col(pl.String).str.strip_chars()).hash_rows(seed=0)
        total = (total + int(hashes.to_numpy().sum(dtype=np.uint64))) % 2**64
    return scan.n_rows, total, names


def _decide(raw: Path, table: str, columns: mimic.Columns, options: MimicOptions, notes: list[str]) -> None:
    """Note which form of a table is read if there are several.

    Raises:
        DataError: the contents of the forms differ, and neither SHA256SUMS.txt nor the option `form` decides.
    """
    every, forms = mimic.tables_of(raw).get(table, []), mimic.forms_of(raw, table, options)
    if len(every) < 2:
        return
    shown = {f: within(raw, f[0]) + (f" (and {len(f) - 1} more files)" if len(f) > 1 else "") for f in every}
    reason = f"as listed in {mimic.SUMS}" if options.form == "auto" else f"form={options.form}"
    if len(forms) > 1:
        if len({str(_content(raw, f, columns)) for f in forms}) > 1:
            expected, found = "one table, or equal contents", f"different contents in {' and '.join(shown.values())}"
            fix = "Remove one of them, or choose with --set form=csv.gz, form=csv or form=parquet."
            raise DataError(Fault(file=table, expected=expected, found=found, fix=fix))
        reason = "their contents are equal"
    others = few([shown[f] for f in every if f != forms[0]])
    notes.append(f"{table}: read from {shown[forms[0]]}, not from {others}; {reason}")


def check_export(raw: Path, options: MimicOptions) -> Checked:
    """Read all small tables and the header and first rows of all large ones, and verify the provider's checksums.

    Raises:
        DataError: all errors in options, files, columns and values.
    """
    options.validate()
    counts = options.text_encoder == "counts"
    encoder, *notes = ("counts",) if counts else recorded(options.text_encoder, ("auto", "counts"))
    faults = FaultCollector()
    files: list[Path] = []
    present = mimic.tables_of(raw)
    _require_layout(raw, present)
    frames: dict[str, pl.DataFrame] = {}
    for name in mimic.TABLES:
        if name == "icu/icustays" and options.require_icu == "no":
            continue
        if name in OPTIONAL and not mimic.has_table(raw, name):
            notes.append(f"{name} is missing: {OPTIONAL[name]}")
            continue
        form = mimic.find_table(raw, name, faults, options)
        if form is None:
            continue
        files += form
        faults.attempt(_decide, raw, name, mimic.TABLES[name], options, notes)
        frame = faults.attempt(mimic.read_table, raw, form, name, notes, options)
        if frame is not None:
            frames[name] = frame
    release = "unknown"
    if {"hosp/patients", "hosp/admissions"} <= set(frames):
        tables = frames["hosp/patients"], frames["hosp/admissions"]
        faults.attempt(require_consistent, raw, *tables, frames.get("icu/icustays"), options)
        release = faults.attempt(mimic.detect_release, *tables, options) or release
        notes += _oddities(frames)
    large = {n: mimic.EVENTS[n] for n in options.event_sources}
    large |= {n: mimic.NOTES[n] for n in mimic.note_tables(raw, options)}
    forms: dict[str, mimic.Form] = {}
    for name, columns in large.items():
        form = mimic.find_table(raw, mimic.PLACES[name], faults, options)
        if form is None:
            continue
        files += form
        forms[name] = form
        if (scan := faults.attempt(mimic.scan_table, raw, form, columns)) is not None:
            faults.attempt(scan.sample)
            faults.attempt(_decide, raw, mimic.PLACES[name], columns, options, notes)
    for name in options.notes:
        if not mimic.has_table(raw, mimic.PLACES[name]):
            notes.append(
                f"{mimic.PLACES[name]} is missing (MIMIC-IV-Note is a separate PhysioNet project): no {name} notes"
            )
    observed: dict[str, pl.Series] = {}
    verified = set[Path]()
    if not faults.faults:
        known = frames["hosp/patients"]["subject_id"].to_numpy()
        n_rows = {name: len(frame) for name, frame in frames.items()}
        frames.clear()  # the diagnoses of the whole database take 0.4 GB
        kept = visits(raw, options).kept
        codes = codes_of(raw, ended(kept), options)
        notes += _code_notes(codes, options)
        observed["code"] = codes["subject_id"].unique().sort().cast(pl.String)
        verified = _verify(raw, files, options, faults, notes)
        subjects = kept["subject_id"].unique().to_numpy()
        for name, form in forms.items() if options.integrity == "full" else ():
            if not verified.issuperset(form):
                # As the build does, which finds all errors of the rows that it uses.
                whole = mimic.scan_table(raw, form, large[name], subjects, known=known)
                if path := place(form, large[name], lasting=True):
                    faults.attempt(keep, path, partial(write_rows, whole, subjects))
                else:
                    faults.attempt(deque, whole, maxlen=0)
                n_rows[mimic.PLACES[name]] = whole.n_rows
        notes += _count_notes(n_rows, release)
    faults.raise_if_any()
    read = {name for name, of_table in present.items() if any(form[0] in files for form in of_table)}
    unused = {
        within(raw, path): "another form of the table is read"
        if name in read
        else UNREAD.get(name, "not a modality of this reader")
        for name, of_table in present.items()
        for form in of_table
        for path in form
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


def _require_layout(raw: Path, present: Mapping[str, list[mimic.Form]]) -> None:
    """Raise a DataError for exports of MIMIC-III, whose patients have a date of birth, and of MIMIC-IV 1.0."""
    found = "the core module of MIMIC-IV 1.0" if "core/patients" in present and "hosp/patients" not in present else ""
    for path in raw.rglob("*"):
        patients = path.name.lower() in ("patients.csv", "patients.csv.gz", "patients.parquet") and path.is_file()
        if patients and "dob" in (h.lower() for h in mimic.scan_table(raw, (path,), ()).header):
            found = "MIMIC-III tables"
    if found:
        expected = "MIMIC-IV 2.0 or later (hosp/patients)"
        raise DataError(Fault(file=raw.name, expected=expected, found=found, fix=mimic.GET))


def _count_notes(counts: Mapping[str, int], release: str) -> list[str]:
    """Notes on tables whose number of rows is not that of the release."""
    published = mimic.ROWS.get(release.removeprefix("MIMIC-IV "), {})
    return [
        f"{name} has {n:,} rows; in {release} as published it has {published[name]:,}"
        for name, n in counts.items()
        if published.get(name, n) != n
    ]


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
