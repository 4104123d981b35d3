"""The raw tables of MIMIC-IV as declared columns (raw-formats.md B.1), and where they lie in an export."""

from __future__ import annotations

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

_SUBJECT = Column(name="subject_id", dtype=pl.Int64, nullable=False)
_HADM = Column(name="hadm_id", dtype=pl.Int64, nullable=False)
_HADM_OR_NONE = Column(name="hadm_id", dtype=pl.Int64)

# Small tables: read whole. Large ones (EVENTS, NOTES) are scanned.
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
    """Where `name` (`hosp/patients`) may lie: at the top or inside PhysioNet's folders, .csv or .csv.gz."""
    return [rf"{name}\.csv\.gz", rf"{name}\.csv", rf"(?:.*/)?{name}\.csv(?:\.gz)?"]


def find_table(raw: Path, name: str, faults: FaultCollector) -> Path | None:
    """The file of a table; a fault where none or several are there."""
    return find_one(raw, table_patterns(name), what=f"{name}.csv.gz or .csv of MIMIC-IV", fix=GET, faults=faults)


def has_table(raw: Path, name: str) -> bool:
    """Whether at least one file of this table is there."""
    folder, base = name.split("/")
    return any(p.parent.name == folder for e in (".csv", ".csv.gz") for p in raw.rglob(base + e))


def open_table(raw: Path, name: str) -> pl.DataFrame:
    """A small table, read and checked.

    Raises:
        DataError: missing, damaged, a column that is not there, a value of another type.
    """
    faults = FaultCollector()
    path = find_table(raw, name, faults)
    faults.raise_if_any()
    assert path is not None
    return read_table(raw, path, name)


def read_table(raw: Path, path: Path, name: str) -> pl.DataFrame:
    """A table's file, with the checks of `read_csv`; the code tables have millions of rows and are scanned."""
    if name not in SCANNED:
        return read_csv(path, TABLES[name], shown_as=within(raw, path))
    scan = TableScan(path, TABLES[name], None, shown_as=within(raw, path))
    frames = list(scan)
    if not frames:
        raise DataError(
            Fault(file=within(raw, path), expected="at least one row", found="a header without rows", fix=GET)
        )
    return pl.concat(frames).with_columns(pl.col("icd_code").str.strip_chars())


def open_optional(raw: Path, name: str) -> pl.DataFrame | None:
    """A small table, or None where the export has no such file."""
    return open_table(raw, name) if has_table(raw, name) else None


def note_tables(raw: Path, options: MimicOptions) -> tuple[str, ...]:
    """Of the chosen kinds of notes, those that this export holds."""
    return tuple(n for n in ("discharge", "radiology") if n in options.notes and has_table(raw, PLACES[n]))


# Published row counts (raw-formats.md B.1): patients, admissions.
PUBLISHED = {(299_712, 431_231): "2.2", (364_627, 546_028): "3.1", (100, 275): "2.2 (demo)"}
_GROUPS_2 = {"2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019"}
_GROUPS_3 = _GROUPS_2 | {"2020 - 2022"}


def tell_release(raw: Path, patients: pl.DataFrame, admissions: pl.DataFrame, options: MimicOptions) -> str:
    """The release of an export, from its tables: 3.x has the anchor years 2020 - 2022, a full export its row counts.

    Raises:
        DataError: anchor year groups that no known release has, and no `release` option that vouches for it.
    """
    if options.release != "auto":
        return f"MIMIC-IV {options.release}"
    groups = set(patients["anchor_year_group"].drop_nulls().unique().to_list())
    if strange := sorted(groups - _GROUPS_3):
        raise DataError(
            Fault(
                file="hosp/patients",
                column="anchor_year_group",
                expected="the year groups of a release from 2.0 to 3.1 (2008 - 2010 ... 2020 - 2022)",
                found=", ".join(strange[:5]),
                fix="This is a release that these readers do not know; if its tables are as before, set release.",
            )
        )
    exact = PUBLISHED.get((len(patients), len(admissions)))
    if exact:
        return f"MIMIC-IV {exact}"
    return "MIMIC-IV 3.x" if groups - _GROUPS_2 else "MIMIC-IV 2.x"


def modalities_of(raw: Path, options: MimicOptions) -> tuple[str, ...]:
    """Modalities that this export holds: notes are a project of their own at the provider and may be absent."""
    return tuple(m for m in ("lab", "note", "code", "lab_summary") if m != "note" or note_tables(raw, options))
