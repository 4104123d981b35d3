"""Tables of a MIMIC-IV export: columns, locations and release (docs/raw-formats.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from mrpipe.datasets.mimic.options import MimicOptions, within
from mrpipe.datasets.mimic.scan.scanner import Scan
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Column, find_one, read_csv

PROVIDER = "https://physionet.org/content/mimiciv/ (notes: https://physionet.org/content/mimic-iv-note/)"
GET = f"Download it from {PROVIDER}."
SECONDS = pl.Datetime("us")

_SUBJECT = Column(name="subject_id", dtype=pl.Int64, nullable=False)
_HADM = Column(name="hadm_id", dtype=pl.Int64, nullable=False)
_HADM_OR_NONE = Column(name="hadm_id", dtype=pl.Int64)

# Small tables, which are read at once; the large tables in EVENTS and NOTES are scanned.
TABLES: Mapping[str, tuple[Column, ...]] = {
    "hosp/patients": (
        _SUBJECT,
        Column(name="gender"),
        Column(name="anchor_age", dtype=pl.Int32, nullable=False),
        Column(name="anchor_year", dtype=pl.Int32, nullable=False),
        Column(name="anchor_year_group"),
        Column(name="dod", dtype=pl.Date),
    ),
    "hosp/admissions": (
        _SUBJECT,
        _HADM,
        Column(name="admittime", dtype=SECONDS, nullable=False),
        Column(name="dischtime", dtype=SECONDS, nullable=False),
        Column(name="deathtime", dtype=SECONDS),
        Column(name="admission_type", required=False),
        Column(name="discharge_location", required=False),
        Column(name="race", aliases=("ethnicity",), required=False),
        Column(name="hospital_expire_flag", dtype=pl.Int8, nullable=False),
    ),
    "hosp/diagnoses_icd": (
        _SUBJECT,
        _HADM,
        Column(name="seq_num", dtype=pl.Int32, nullable=False),
        Column(name="icd_code", nullable=False),
        Column(name="icd_version", dtype=pl.Int8, nullable=False),
    ),
    "hosp/procedures_icd": (
        _SUBJECT,
        _HADM,
        Column(name="seq_num", dtype=pl.Int32, nullable=False),
        Column(name="chartdate", required=False),
        Column(name="icd_code", nullable=False),
        Column(name="icd_version", dtype=pl.Int8, nullable=False),
    ),
    "hosp/d_icd_diagnoses": (
        Column(name="icd_code"),
        Column(name="icd_version", dtype=pl.Int8),
        Column(name="long_title"),
    ),
    "hosp/d_icd_procedures": (
        Column(name="icd_code"),
        Column(name="icd_version", dtype=pl.Int8),
        Column(name="long_title"),
    ),
    "hosp/d_labitems": (
        Column(name="itemid", dtype=pl.Int64, nullable=False),
        Column(name="label"),
        Column(name="fluid", required=False),
        Column(name="category", required=False),
    ),
    "icu/icustays": (
        _SUBJECT,
        _HADM,
        Column(name="stay_id", dtype=pl.Int64, nullable=False),
        Column(name="intime", dtype=SECONDS),
    ),
    "icu/d_items": (
        Column(name="itemid", dtype=pl.Int64, nullable=False),
        Column(name="label"),
        Column(name="category", required=False),
        Column(name="unitname", required=False),
    ),
}
_MEASUREMENT = (
    Column(name="subject_id", dtype=pl.Int64, nullable=False),
    _HADM_OR_NONE,
    Column(name="itemid", dtype=pl.Int64, nullable=False),
    Column(name="charttime", dtype=SECONDS, nullable=False),
    Column(name="value"),
    Column(name="valuenum", dtype=pl.Float64),
    Column(name="valueuom"),
)
_NOTE = (
    Column(name="note_id", nullable=False),
    Column(name="subject_id", dtype=pl.Int64, nullable=False),
    _HADM_OR_NONE,
    Column(name="note_seq", dtype=pl.Int32, required=False),
    Column(name="charttime", dtype=SECONDS, nullable=False),
    Column(name="storetime", dtype=SECONDS, required=False),
    Column(name="text"),
)
SCANNED = ("hosp/diagnoses_icd", "hosp/procedures_icd")
EVENTS: Mapping[str, tuple[Column, ...]] = {"labevents": _MEASUREMENT, "chartevents": _MEASUREMENT}
NOTES: Mapping[str, tuple[Column, ...]] = {"discharge": _NOTE, "radiology": _NOTE}
PLACES = {
    "labevents": "hosp/labevents",
    "chartevents": "icu/chartevents",
    "discharge": "note/discharge",
    "radiology": "note/radiology",
}


def table_patterns(name: str) -> list[str]:
    """Path patterns of a table such as `hosp/patients`, at the top level or in nested folders, .csv or .csv.gz."""
    return [rf"{name}\.csv\.gz", rf"{name}\.csv", rf"(?:.*/)?{name}\.csv(?:\.gz)?"]


def find_table(raw: Path, name: str, faults: FaultCollector) -> Path | None:
    """Path of a table; adds a fault if there is none or more than one."""
    return find_one(raw, table_patterns(name), what=f"{name}.csv.gz or .csv of MIMIC-IV", fix=GET, faults=faults)


def has_table(raw: Path, name: str) -> bool:
    """Whether the export has at least one file of the table."""
    folder, base = name.split("/")
    return any(p.parent.name == folder for e in (".csv", ".csv.gz") for p in raw.rglob(base + e))


def open_table(raw: Path, name: str) -> pl.DataFrame:
    """Read and check a small table.

    Raises:
        DataError: the table is missing or damaged, lacks a column, or has a value of the wrong type.
    """
    faults = FaultCollector()
    path = find_table(raw, name, faults)
    faults.raise_if_any()
    assert path is not None
    return read_table(raw, path, name)


def read_table(raw: Path, path: Path, name: str) -> pl.DataFrame:
    """Read a small table with the checks of `read_csv`; the code tables have millions of rows and are scanned."""
    if name not in SCANNED:
        return read_csv(path, TABLES[name], shown_as=within(raw, path))
    scan = Scan(path, TABLES[name], None, shown_as=within(raw, path))
    frames = list(scan)
    if not frames:
        raise DataError(
            Fault(file=within(raw, path), expected="at least one row", found="a header without rows", fix=GET)
        )
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
