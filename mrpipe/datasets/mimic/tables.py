"""Tables of a MIMIC-IV export: columns, locations and release (docs/raw-formats.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from mrpipe.datasets.mimic.options import MimicOptions, within
from mrpipe.datasets.mimic.scan.scanner import TableScan
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Column, find_one, read_csv

PROVIDER = "https://physionet.org/content/mimiciv/ (notes: https://physionet.org/content/mimic-iv-note/)"
GET = f"Download it from {PROVIDER}."
SECONDS = pl.Datetime("us")

_TYPES = {"": pl.String, "i8": pl.Int8, "i32": pl.Int32, "id": pl.Int64, "float": pl.Float64, "date": pl.Date}


def _columns(text: str) -> tuple[Column, ...]:
    """Columns from `name:type` items; `!` marks columns without blanks, `?` columns that an export may lack."""
    split = [item.partition(":") for item in text.split()]
    dtypes = [(_TYPES | {"time": SECONDS})[t.strip("!?")] for _, _, t in split]
    return tuple(
        Column(name=name, dtype=dtype, nullable="!" not in t, required="?" not in t)
        for (name, _, t), dtype in zip(split, dtypes, strict=True)
    )


_CODES = _columns("subject_id:id! hadm_id:id! seq_num:i32! icd_code:! icd_version:i8!")
_TITLES = _columns("icd_code icd_version:i8 long_title")
# Small tables, which are read at once; the large tables in EVENTS and NOTES are scanned.
TABLES: Mapping[str, tuple[Column, ...]] = {
    "hosp/patients": _columns("subject_id:id! gender anchor_age:i32! anchor_year:i32! anchor_year_group dod:date"),
    "hosp/admissions": _columns(
        "subject_id:id! hadm_id:id! admittime:time! dischtime:time! deathtime:time hospital_expire_flag:i8!"
    ),
    "hosp/diagnoses_icd": _CODES,
    "hosp/procedures_icd": _CODES,
    "hosp/d_icd_diagnoses": _TITLES,
    "hosp/d_icd_procedures": _TITLES,
    "hosp/d_labitems": _columns("itemid:id! label fluid:?"),
    "icu/icustays": _columns("subject_id:id! hadm_id:id! stay_id:id! intime:time"),
    "icu/d_items": _columns("itemid:id! label"),
}
_MEASUREMENT = _columns(
    "subject_id:id! hadm_id:id itemid:id! charttime:time! storetime:time? value valuenum:float valueuom"
)
_NOTE = _columns("note_id:! subject_id:id! hadm_id:id note_seq:i32? charttime:time! storetime:time? text")
SCANNED = ("hosp/diagnoses_icd", "hosp/procedures_icd")
EVENTS: Mapping[str, tuple[Column, ...]] = {"labevents": _MEASUREMENT, "chartevents": _MEASUREMENT}
NOTES: Mapping[str, tuple[Column, ...]] = {"discharge": _NOTE, "radiology": _NOTE}
PLACES = {
    "labevents": "hosp/labevents",
    "chartevents": "icu/chartevents",
    "discharge": "note/discharge",
    "radiology": "note/radiology",
}


# Tables of MIMIC-IV and its modules that no modality of this reader uses.
UNUSED = frozenset(
    f"{module}/{table}"
    for module, tables in {
        "hosp": "d_hcpcs drgcodes emar emar_detail hcpcsevents microbiologyevents omr pharmacy poe poe_detail "
        "prescriptions provider services transfers",
        "icu": "caregiver datetimeevents ingredientevents inputevents outputevents procedureevents",
        "ed": "diagnosis edstays medrecon pyxis triage vitalsign",
        "note": "discharge_detail radiology_detail",
    }.items()
    for table in tables.split()
)
_TABLE = re.compile(r"(?:.*/)?([^/]+/[^/]+)\.csv(?:\.gz)?", re.IGNORECASE)


def find_table(raw: Path, name: str, faults: FaultCollector) -> Path | None:
    """Path of a table such as `hosp/patients`, in any folder and case; a fault if there is not exactly one file."""
    patterns = [rf"{name}\.csv\.gz", rf"(?:.*/)?{name}\.csv(?:\.gz)?"]
    return find_one(raw, patterns, what=f"{name}.csv.gz or .csv of MIMIC-IV", fix=GET, faults=faults)


def tables_of(raw: Path) -> dict[str, list[Path]]:
    """Table name in lower case, such as `hosp/patients` → its files; the case of file names is ignored."""
    found: dict[str, list[Path]] = {}
    for path in sorted(raw.rglob("*")):
        if match := _TABLE.fullmatch(f"/{within(raw, path)}"):
            found.setdefault(match[1].lower(), []).append(path)
    return found


def has_table(raw: Path, name: str) -> bool:
    """Whether the export has at least one file of the table."""
    return name in tables_of(raw)


def open_table(raw: Path, name: str) -> pl.DataFrame:
    """Read and check a small table.

    Raises:
        DataError: the table is missing or damaged, lacks a column, or has a value of the wrong type.
    """
    faults = FaultCollector()
    path = find_table(raw, name, faults)
    faults.raise_if_any()
    assert path is not None
    return read_table(raw, path, name, [])


def read_table(raw: Path, path: Path, name: str, notes: list[str]) -> pl.DataFrame:
    """Read a small table with the checks of `read_csv`; the code tables have millions of rows and are scanned.

    Adds a note if the table is not UTF-8. Tables that are not scanned have the column `ROW`.
    """
    if name not in SCANNED:
        return read_csv(path, TABLES[name], shown_as=within(raw, path), notes=notes, numbered=True)
    scan = TableScan(path, TABLES[name], None, shown_as=within(raw, path))
    frames = list(scan)
    if not frames:
        raise DataError(
            Fault(file=within(raw, path), expected="at least one row", found="a header without rows", fix=GET)
        )
    if scan.n_cp1252:
        notes.append(f"{within(raw, path)}: {scan.n_cp1252} rows are not UTF-8; they were read as Windows-1252")
    return pl.concat(frames).with_columns(pl.col("icd_code").str.strip_chars())


def open_optional(raw: Path, name: str) -> pl.DataFrame | None:
    """A small table, or None if the export does not have it."""
    return open_table(raw, name) if has_table(raw, name) else None


def note_tables(raw: Path, options: MimicOptions) -> tuple[str, ...]:
    """Note tables selected by the option `notes` that the export has."""
    return tuple(n for n in ("discharge", "radiology") if n in options.notes and has_table(raw, PLACES[n]))


# Published row counts of patients and admissions.
PUBLISHED = {(299_712, 431_231): "2.2", (364_627, 546_028): "3.1", (100, 275): "2.2 (demo)"}
_GROUPS_2 = {"2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019"}
_GROUPS_3 = _GROUPS_2 | {"2020 - 2022"}


def detect_release(patients: pl.DataFrame, admissions: pl.DataFrame, options: MimicOptions) -> str:
    """Release of the export: the option `release`, else by published row counts or the anchor years 2020 - 2022 (3.x).

    Raises:
        DataError: an anchor_year_group of no supported release, unless the option `release` is set.
    """
    if options.release != "auto":
        return f"MIMIC-IV {options.release}"
    groups = set(patients["anchor_year_group"].drop_nulls().unique().to_list())
    if unknown := sorted(groups - _GROUPS_3):
        raise DataError(
            Fault(
                file="hosp/patients",
                column="anchor_year_group",
                expected="year groups of releases 2.0 to 3.1 (2008 - 2010 ... 2020 - 2022)",
                found=", ".join(unknown[:5]),
                fix="The release is not supported; if its tables have not changed, set the option release.",
            )
        )
    exact = PUBLISHED.get((len(patients), len(admissions)))
    if exact:
        return f"MIMIC-IV {exact}"
    return "MIMIC-IV 3.x" if groups - _GROUPS_2 else "MIMIC-IV 2.x"


def modalities_of(raw: Path, options: MimicOptions) -> tuple[str, ...]:
    """Modalities in the export; notes are a separate PhysioNet project and may be missing."""
    return tuple(m for m in ("lab", "note", "code", "lab_summary") if m != "note" or note_tables(raw, options))
