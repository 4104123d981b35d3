"""Tables of a MIMIC-IV export: columns, locations and release (docs/raw-formats.md)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.mimic.options import MimicOptions, within
from mrpipe.datasets.mimic.scan.kept import KeptScan
from mrpipe.datasets.mimic.scan.scanner import Ids, TableScan
from mrpipe.delimited import decode
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.forms import is_table
from mrpipe.kept import is_kept, keep, place
from mrpipe.raw import Column, few

PROVIDER = "https://physionet.org/content/mimiciv/ (notes: https://physionet.org/content/mimic-iv-note/)"
GET = f"Download it from {PROVIDER}."
SECONDS = pl.Datetime("us")

_TYPES = {"": pl.String, "i8": pl.Int8, "i32": pl.Int32, "id": pl.Int64, "float": pl.Float64, "date": pl.Date}

Columns = tuple[Column, ...]


def _columns(text: str) -> Columns:
    """Columns from `name:type` items; `!` marks columns without blanks, `?` columns that an export may lack."""
    split = [item.partition(":") for item in text.split()]
    dtypes = [(_TYPES | {"time": SECONDS})[t.strip("!?")] for _, _, t in split]
    return tuple(
        Column(name=name, dtype=dtype, nullable="!" not in t, required="?" not in t)
        for (name, _, t), dtype in zip(split, dtypes, strict=True)
    )


_CODES = _columns("subject_id:id! hadm_id:id! seq_num:i32! icd_code:! icd_version:i8!")
_TITLES = _columns("icd_code icd_version:i8 long_title")
# Small tables, which are read as a whole; the rows of EVENTS and NOTES are read patient by patient.
TABLES: Mapping[str, Columns] = {
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
EVENTS: Mapping[str, Columns] = {"labevents": _MEASUREMENT, "chartevents": _MEASUREMENT}
NOTES: Mapping[str, Columns] = {"discharge": _NOTE, "radiology": _NOTE}
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
_NAMES = "|".join([*TABLES, *PLACES.values(), *sorted(UNUSED), "core/patients"])
# A table in one file, in numbered files (of BigQuery, Spark, `split`), or in a folder of files with any names.
_TABLE = re.compile(
    rf"(?P<place>(?:.*/)?(?:mimic[-_]?iv[-_]?)?(?P<name>{_NAMES}))"
    r"(?:[-_.]?(?:part[-_.]?)?(?P<number>\d+)(?:[-_]of[-_]\d+)?|(?P<folder>(?:\.\w+)?/).+)?"
    r"\.(?P<form>csv|csv\.gz|parquet)",
    re.IGNORECASE,
)
_OF = re.compile(r"(\d+)[-_]of[-_](\d+)", re.IGNORECASE)
SUMS = "SHA256SUMS.txt"
DEFAULTS = MimicOptions()
# The files of a table in one of its forms, in order.
Form = tuple[Path, ...]


def provider_sums(raw: Path) -> dict[Path, str]:
    """SHA-256 of each file listed in the provider's SHA256SUMS.txt (hosp, icu and note may have one each)."""
    sums = {}
    for listing in sorted(raw.rglob(SUMS)):
        for line in decode(listing.read_bytes(), shown_as=within(raw, listing)).splitlines():
            match = re.fullmatch(r"([0-9a-f]{64})\s+\*?(.+)", line.strip())
            if match:
                sums[listing.parent / match[2]] = match[1]
    return sums


def tables_of(raw: Path) -> dict[str, list[Form]]:
    """Table name in lower case, such as `hosp/patients` → its forms, in order of preference: .csv.gz, .csv, Parquet."""
    found: dict[tuple[str, str, str], list[tuple[int, Path]]] = {}
    for path in sorted(raw.rglob("*")):
        match = _TABLE.fullmatch(within(raw, path))
        if match and path.is_file() and not path.name.startswith((".", "_")):
            form, parts = match["form"].lower(), "folder" if match["folder"] else "parts" if match["number"] else ""
            key = match["name"].lower(), f"{['csv.gz', 'csv', 'parquet'].index(form)}{parts}", match["place"]
            found.setdefault(key, []).append((int(match["number"] or 0), path))
    tables: dict[str, list[Form]] = {}
    for (name, *_), files in sorted(found.items()):
        tables.setdefault(name, []).append(tuple(path for _, path in sorted(files)))
    return tables


def _misplaced(raw: Path, name: str) -> list[str]:
    """Files with the name of a table that is not in its folder, or in a form that is not read."""
    files = (p for p in sorted(raw.rglob("*")) if p.name.lower().split(".")[0] == name.split("/")[-1] and is_table(p))
    return [] if name in tables_of(raw) else [within(raw, p) for p in files]


def has_table(raw: Path, name: str) -> bool:
    """Whether the export has at least one file of the table, even if it cannot be read (`find_table` tells why)."""
    return name in tables_of(raw) or bool(_misplaced(raw, name))


def forms_of(raw: Path, name: str, options: MimicOptions = DEFAULTS) -> list[Form]:
    """Forms of a table among which neither the option `form` nor SHA256SUMS.txt decides, the preferred one first."""
    forms = tables_of(raw).get(name, [])
    if len(forms) > 1 and options.form != "auto":
        forms = [f for f in forms if f[0].name.lower().endswith(f".{options.form}")] or forms
    if len(forms) > 1:
        listed = provider_sums(raw)
        forms = [f for f in forms if all(path in listed for path in f)] or forms
    return forms


def find_table(raw: Path, name: str, faults: FaultCollector, options: MimicOptions = DEFAULTS) -> Form | None:
    """Files of a table such as `hosp/patients`, in any folder, case and form; a fault if any is missing."""
    forms = forms_of(raw, name, options)
    if not forms:
        expected = f"exactly one file ({name}.csv.gz, .csv or .parquet of MIMIC-IV)"
        other = few(_misplaced(raw, name))
        fix = f"Move it to {name.split('/')[0]}/, in one of these forms; or out of the export." if other else GET
        faults.add(Fault(file=f"{raw.name}/{name}.csv.gz", expected=expected, found=other or "no such file", fix=fix))
        return None
    parts = [(int(m[1]), int(m[2])) for p in forms[0] if (m := _OF.search(p.stem))]
    numbers = [int(m["number"]) for p in forms[0] if (m := _TABLE.fullmatch(within(raw, p))) and m["number"]]
    if numbers := [number for number, _ in parts] or numbers:
        first = min(1, *numbers)
        stop = first + parts[0][1] if parts else max(numbers) + 1
        if missing := sorted(set(range(first, stop)) - set(numbers)):
            found, fix = f"none with number {few([str(n) for n in missing])}", "Export or copy the missing files."
            faults.add(Fault(file=within(raw, forms[0][0]), expected="all files of the table", found=found, fix=fix))
            return None
    return forms[0]


def scan_table(raw: Path, files: Form, columns: Columns, subjects: Ids | None = None, **more: Any) -> TableScan:
    """Scan of a table whose files are named within the export."""
    return TableScan(files, columns, subjects, shown_as=[within(raw, f) for f in files], **more)


def scan_patients(raw: Path, files: Form, columns: Columns, subjects: Ids) -> TableScan:
    """Scan of a large table for the rows of these patients, or those that `check` kept if it has read all of them."""
    path = place(files, columns, lasting=True)
    if path and is_kept(path) and (kept := KeptScan(path, subjects)).complete:
        return kept
    return scan_table(raw, files, columns, subjects, known=open_table(raw, "hosp/patients")["subject_id"].to_numpy())


def open_table(raw: Path, name: str, options: MimicOptions = DEFAULTS) -> pl.DataFrame:
    """Read and check a small table.

    Raises:
        DataError: the table is missing or damaged, lacks a column, or has a value of the wrong type.
    """
    faults = FaultCollector()
    files = find_table(raw, name, faults, options)
    faults.raise_if_any()
    assert files is not None
    return read_table(raw, files, name, [], options)


def read_table(raw: Path, files: Form, name: str, notes: list[str], options: MimicOptions = DEFAULTS) -> pl.DataFrame:
    """Read a small table, with the column `ROW`; adds a note if it is not UTF-8.

    The first reading of a build keeps the table, so that each file is decompressed once.
    """
    ignored = [c for c in TABLES[name] if c.name == "dod" and options.death_date == "hospital"]
    columns = tuple(c for c in TABLES[name] if c not in ignored)
    path = place(files, columns)
    if path is not None and is_kept(path):
        return pl.read_parquet(path).with_columns(pl.lit(None, dtype=c.dtype).alias(c.name) for c in ignored)
    scan = scan_table(raw, files, columns, numbered=True)
    frame = pl.concat(scan, how="diagonal").with_columns(pl.col(pl.String).str.strip_chars())
    if path is not None:
        keep(path, lambda temporary: frame.write_parquet(temporary, compression="lz4"))
    if scan.n_cp1252:
        notes.append(f"{within(raw, files[0])}: {scan.n_cp1252} rows are not UTF-8; they were read as Windows-1252")
    return frame.with_columns(pl.lit(None, dtype=c.dtype).alias(c.name) for c in ignored)


def open_optional(raw: Path, name: str, options: MimicOptions = DEFAULTS) -> pl.DataFrame | None:
    """A small table, or None if the export does not have it."""
    return open_table(raw, name, options) if has_table(raw, name) else None


def note_tables(raw: Path, options: MimicOptions) -> tuple[str, ...]:
    """Note tables selected by the option `notes` that the export has."""
    return tuple(n for n in ("discharge", "radiology") if n in options.notes and has_table(raw, PLACES[n]))


# Published row counts by release: `validate.sql` of https://github.com/MIT-LCP/mimic-code, and of the demo.
ROWS: Mapping[str, Mapping[str, int]] = {
    release: {table: n for table, n in zip([*TABLES, *PLACES.values()][:11], counts, strict=True)}
    for release, counts in {
        "2.2": (299_712, 431_231, 4_756_326, 669_186, 109_775, 85_257, 1622, 73_181, 4014, 118_171_367, 313_645_063),
        "3.1": (364_627, 546_028, 6_364_488, 859_655, 112_107, 86_423, 1650, 94_458, 4095, 158_374_764, 432_997_491),
        "2.2 (demo)": (100, 275, 4506, 722, 109_775, 85_257, 1622, 140, 4014, 107_727, 668_862),
    }.items()
}
# Numbers of patients and admissions → release.
PUBLISHED = {(rows["hosp/patients"], rows["hosp/admissions"]): release for release, rows in ROWS.items()}
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
        column, found = "anchor_year_group", ", ".join(unknown[:5])
        expected = "year groups of releases 2.0 to 3.1 (2008 - 2010 ... 2020 - 2022)"
        fix = "The release is not supported; if its tables have not changed, set the option release."
        raise DataError(Fault(file="hosp/patients", column=column, expected=expected, found=found, fix=fix))
    exact = PUBLISHED.get((len(patients), len(admissions)))
    if exact:
        return f"MIMIC-IV {exact}"
    return "MIMIC-IV 3.x" if groups - _GROUPS_2 else "MIMIC-IV 2.x"


def modalities_of(raw: Path, options: MimicOptions) -> tuple[str, ...]:
    """Modalities in the export; notes are a separate PhysioNet project and may be missing."""
    return tuple(m for m in ("lab", "note", "code", "lab_summary") if m != "note" or note_tables(raw, options))
