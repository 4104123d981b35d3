"""Read the tables of a LONI export: find files, clean values, and collect participants and visits across tables."""

from __future__ import annotations

import re
from datetime import date
from functools import cached_property
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.forms import values
from mrpipe.datasets.adni.tables import ADNIMERGE, DXSUM, KEYS, PEOPLE, PTID_PATTERN, QC_RID, Field, LoniTable
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import ROW, Column, read_csv

_DATED = r"(?:.*_)?(?:{stem})(?:_(?P<date>\d{{2}}[A-Za-z]{{3}}\d{{4}}))?\.csv"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def _file_date(text: str | None) -> date:
    """Parse the date in a file name; a file without a date counts as the oldest."""
    if text is None:
        return date.min
    month = _MONTHS.index(text[2:5].lower()) + 1 if text[2:5].lower() in _MONTHS else 1
    try:
        return date(int(text[5:]), month, int(text[:2]))
    except ValueError:
        return date.min


def table_files(raw: Path) -> list[Path]:
    """CSV files in the export folder and its direct subfolders; deeper folders (images) are not searched."""
    return sorted(p for pattern in ("*.csv", "*/*.csv") for p in raw.glob(pattern) if p.is_file())


def find_table(raw: Path, table: LoniTable) -> Path | None:
    """Find the newest file of a table: latest date in the file name, then newest table name. None if absent.

    Raises:
        DataError: several files have the same table name and date.
    """
    expressions = [re.compile(_DATED.format(stem=stem), re.IGNORECASE) for stem in table.stems]
    found: list[tuple[date, int, Path]] = []
    for path in table_files(raw):
        for age, expression in enumerate(expressions):
            if match := expression.fullmatch(path.name):
                found.append((_file_date(match["date"]), -age, path))
                break
    if not found:
        return None
    newest = max(f[:2] for f in found)
    best = [path for *age, path in found if tuple(age) == newest]
    if len(best) > 1:
        names = ", ".join(p.relative_to(raw).as_posix() for p in best)
        raise DataError(
            Fault(
                file=f"{table.name}_ddMonYYYY.csv",
                expected=f"a single newest file of {table.name}",
                found=names,
                fix="Remove the copies that you do not want to use.",
            )
        )
    return best[0]


def _masked(value: str) -> str:
    """Replace the digits of an identifier by 9, so that error messages do not disclose it."""
    return re.sub(r"\d", "9", value)


def _people(frame: pl.DataFrame, shown_as: str) -> pl.DataFrame:
    """Add `rid` (Int32) and `ptid` (String). A table without RID takes it from the last part of the PTID."""
    if "RID" not in frame.columns and "PTID" not in frame.columns:
        raise DataError(
            Fault(
                file=shown_as,
                column="RID",
                expected="this column, or PTID",
                found="neither",
                fix="Check whether the column was renamed or dropped.",
            )
        )
    frame = frame.with_columns(pl.lit(None, pl.String).alias(c) for c in ("RID", "PTID") if c not in frame.columns)
    ptid = pl.col("PTID").str.to_uppercase()
    rid = pl.coalesce(
        values.plain_code("RID").cast(pl.Int32, strict=False), ptid.str.extract(r"_(\d+)$").cast(pl.Int32, strict=False)
    )
    frame = frame.with_columns(ptid.alias("ptid"), rid.alias("rid"))
    for column, bad in (("PTID", ~pl.col("ptid").str.contains(PTID_PATTERN)), ("RID", pl.col("rid").is_null())):
        wrong = frame.filter(bad)
        if len(wrong):
            value = wrong[column][0]
            raise DataError(
                Fault(
                    file=shown_as,
                    column=column,
                    row=int(wrong[ROW][0]),
                    expected="SSS_S_RRRR" if column == "PTID" else "a roster number",
                    found=f"{_masked(value)!r} (digits hidden)" if value else "an empty field",
                    fix=f"{len(wrong)} rows are affected.",
                )
            )
    return frame


def _validate(frame: pl.DataFrame, field: Field, shown_as: str) -> tuple[Fault | None, str | None]:
    """Return an error for values that cannot be parsed, or a note on codes outside the code list."""
    written = frame.select(ROW, pl.col(field.name).str.strip_chars().alias("v")).drop_nulls()
    if field.kind in ("number", "assay"):
        bad = ~pl.col("v").str.contains(values.NUMBER)
        if field.kind == "assay":
            bad &= ~pl.col("v").str.contains(values.BELOW)
        expected = "a number" + (", >LIMIT, <LIMIT, <LLOQ or <LOD" if field.kind == "assay" else "")
    elif field.kind in ("code", "codes"):
        bad = ~pl.col("v").str.contains(r"^-?\d+(?:\.0+)?(?:[|:]-?\d+)*$")
        expected = f"codes {', '.join(c for c, _ in field.codes)}"
    else:
        return None, None
    wrong = written.filter(bad)
    if len(wrong):
        fix = f"{len(wrong)} rows are affected. The file may be another table, or an export with decoded values."
        fault = Fault(
            file=shown_as,
            column=field.name,
            row=int(wrong[ROW][0]),
            expected=expected,
            found=repr(wrong["v"][0]),
            fix=fix,
        )
        return fault, None
    if field.kind == "code":
        stray = frame.filter(pl.col(field.name).is_not_null() & values.level_of(field.name, field.codes).is_null())
        if len(stray):
            codes = ", ".join(sorted(set(stray[field.name].to_list()))[:5])
            return (
                None,
                f"{shown_as}, column {field.name}: {len(stray)} values outside the code list ({codes}) set to missing",
            )
    return None, None


def _cleaned(field: Field) -> list[pl.Expr]:
    name = field.name
    match field.kind:
        case "number":
            return [values.number(name)]
        case "assay":
            return [values.number(name), values.limit(name).alias(f"{name}.limit")]
        case "code":
            return [values.level_of(name, field.codes)]
        case "codes":
            return [values.selections(name)]
        case "date":
            return [values.date(name)]
        case "year":
            return [values.year(name)]
    return [pl.col(name)]


class AdniExport:
    """The tables of one export. Each table is read at most once.

    Attributes:
        raw: export folder.
        notes: values outside code lists, for the report of `mrpipe check`.
    """

    def __init__(self, raw: Path):
        self.raw = raw
        self.notes: list[str] = []
        self._read: dict[str, pl.DataFrame | None] = {}

    def path(self, table: LoniTable) -> Path | None:
        return find_table(self.raw, table)

    def layout(self) -> str:
        """Generation of the export, detected from the header of DXSUM: old (no PTID), 2024 or 2025."""
        path = self.path(DXSUM)
        header = set() if path is None else {c.lower() for c in pl.read_csv(path, n_rows=0, infer_schema=False).columns}
        if "ptid" not in header:
            return "old"
        return "2025" if "language_code" in header else "2024"

    def require(self, table: LoniTable) -> pl.DataFrame:
        frame = self.table(table)
        if frame is None:
            raise DataError(table.absent())
        return frame

    def table(self, table: LoniTable) -> pl.DataFrame | None:
        """Return a cleaned table, or None if the export does not contain it.

        Columns: `rid` (Int32), `ptid`, `phase`, `viscode`, `month` (Int32, since baseline), `rank` (Int32, order of
        visits within a month), `date`, `stamp` (time of the last edit, sortable text), `row` (1-based row in the
        file), and the declared fields under their names.

        Raises:
            DataError: the file is unreadable, lacks a required column, or has values of the wrong kind.
        """
        if table.name not in self._read:
            path = self.path(table)
            self._read[table.name] = None if path is None else self._load(table, path)
        return self._read[table.name]

    def _load(self, table: LoniTable, path: Path) -> pl.DataFrame:
        shown_as = path.relative_to(self.raw).as_posix()
        columns = [*KEYS, *(f.column() for f in table.fields)]
        frame = read_csv(path, columns, shown_as=shown_as, notes=self.notes, numbered=True)
        missing = [c for c in (*(k.name for k in KEYS[2:]), *(f.name for f in table.fields)) if c not in frame.columns]
        frame = _people(frame, shown_as).with_columns(pl.lit(None, pl.String).alias(c) for c in missing)
        frame = frame.filter(pl.col("rid") != QC_RID)
        frame = frame.with_columns(
            pl.coalesce(values.phase("PHASE"), values.original_phase(pl.col("rid"))).alias("phase")
        )
        frame = frame.with_columns(
            pl.when(~values.is_missing_code(f.name, positive=f.positive)).then(pl.col(f.name)).alias(f.name)
            for f in table.fields
        )
        faults = FaultCollector()
        for field in table.fields:
            fault, note = _validate(frame, field, shown_as)
            faults.add(fault)
            if note:
                self.notes.append(note)
        faults.raise_if_any()
        keys = [
            pl.col("rid"),
            pl.col("ptid"),
            pl.col("phase"),
            pl.coalesce("VISCODE2", "VISCODE").alias("viscode"),
            values.visit_month("VISCODE", "VISCODE2").alias("month"),
            values.visit_rank("VISCODE", "VISCODE2").alias("rank"),
            values.date("DATE").alias("date"),
            pl.col("UPDATE_STAMP").alias("stamp"),
        ]
        cleaned = [e for f in table.fields for e in _cleaned(f)]
        return frame.select(pl.col(ROW).alias("row"), *keys, *cleaned)

    def as_written(self, table: LoniTable) -> pl.DataFrame | None:
        """Every column of a table as text, named in upper case, plus `rid` and `stamp` (for `profile=paper`)."""
        path = self.path(table)
        if path is None:
            return None
        shown_as = path.relative_to(self.raw).as_posix()
        header = pl.read_csv(path, n_rows=0, infer_schema=False).columns
        columns = [Column(name=h, required=False) for h in header]
        frame = read_csv(path, columns, shown_as=shown_as, notes=self.notes, numbered=True)
        frame = frame.rename({h: h.strip().upper() for h in frame.columns if h != ROW})
        frame = _people(frame, shown_as).filter(pl.col("rid") != QC_RID)
        stamp = "UPDATE_STAMP" if "UPDATE_STAMP" in frame.columns else None
        return frame.with_columns((pl.col(stamp) if stamp else pl.lit(None, pl.String)).alias("stamp")).drop(ROW)

    def _present(self) -> list[pl.DataFrame]:
        return [frame for t in PEOPLE if (frame := self.table(t)) is not None]

    @cached_property
    def roster(self) -> pl.DataFrame:
        """`rid`, `ptid`: one PTID per participant.

        Participants who changed site have several PTIDs. The most frequent one in the first table that lists the
        participant is used (order: DXSUM, PTDEMOG, …, ROSTER); ties take the smallest.
        """
        listed = [
            frame.filter(pl.col("ptid").is_not_null())
            .group_by("rid", "ptid")
            .len()
            .with_columns(pl.lit(i).alias("table"))
            for i, frame in enumerate(self._present())
        ]
        if not listed:
            return pl.DataFrame(schema={"rid": pl.Int32, "ptid": pl.String})
        ordered = pl.concat(listed).sort("rid", "table", -pl.col("len").cast(pl.Int64), "ptid")
        roster = ordered.group_by("rid", maintain_order=True).first().select("rid", "ptid")
        if roster["ptid"].is_duplicated().any():
            n = int(roster["ptid"].is_duplicated().sum())
            raise DataError(
                Fault(
                    file="all tables",
                    column="PTID",
                    expected="one RID per PTID",
                    found=f"{n} RIDs that share a PTID",
                    fix="Check that all tables are from the same export.",
                )
            )
        return roster

    @cached_property
    def visits(self) -> pl.DataFrame:
        """`rid`, `month`, `date`: date of each visit, from the first table that records it."""
        known = [
            frame.filter(pl.col("date").is_not_null() & pl.col("month").is_not_null())
            .sort("rid", "month", -pl.col("rank"), "date")
            .select("rid", "month", "date", pl.lit(i).alias("table"))
            for i, frame in enumerate(self._present())
        ]
        if not known:
            return pl.DataFrame(schema={"rid": pl.Int32, "month": pl.Int32, "date": pl.Date})
        ordered = pl.concat(known).sort("rid", "month", "table", maintain_order=True)
        return ordered.group_by("rid", "month", maintain_order=True).first().select("rid", "month", "date")

    def timed(self, table: LoniTable) -> pl.DataFrame | None:
        """A table with blank dates filled from other tables, and months of unscheduled visits derived from dates."""
        frame = self.table(table)
        if frame is None:
            return None
        baseline = self.visits.filter(pl.col("month") == 0).select("rid", pl.col("date").alias("date0"))
        frame = frame.join(self.visits.rename({"date": "visit_date"}), on=["rid", "month"], how="left")
        frame = frame.join(baseline, on="rid", how="left")
        since = ((pl.col("date") - pl.col("date0")).dt.total_days() / 30.4375).round().cast(pl.Int32)
        return (
            frame.with_columns(
                pl.coalesce("date", "visit_date").alias("date"), pl.coalesce("month", since).alias("month")
            )
            .drop("visit_date", "date0")
            .sort("row")
        )


def diagnoses(export: AdniExport, source: str) -> pl.DataFrame:
    """Diagnostic records sorted by visit: `rid, month, rank, viscode, date, row, dx` (0 CN, 1 MCI, 2 Dementia).

    DXSUM: DIAGNOSIS, else DXCHANGE (ADNIGO/2), else DXCURREN (ADNI1). ADNIMERGE: DX. Conversions and reversions count
    as their new state.

    Raises:
        DataError: no diagnosis column is filled, a code is unknown, or DIAGNOSIS uses the five-level coding of an
            older data dictionary (1 CN, 5 SMC, 2 EMCI, 3 LMCI, 4 AD), recognised by codes 4 and 5.
    """
    table = ADNIMERGE if source == "adnimerge" else DXSUM
    export.require(table)
    frame = export.timed(table)
    path = export.path(table)
    assert frame is not None
    assert path is not None
    shown_as = path.relative_to(export.raw).as_posix()
    if source == "adnimerge":
        last = pl.col("DX").str.split(" to ").list.last().str.strip_chars()
        names = {"CN": 0, "NL": 0, "MCI": 1, "Dementia": 2, "AD": 2}
        frame = frame.with_columns(last.replace_strict(names, default=None, return_dtype=pl.Int8).alias("dx"))
        unknown = frame.filter(pl.col("DX").is_not_null() & pl.col("dx").is_null())
        if len(unknown):
            raise DataError(
                Fault(
                    file=shown_as,
                    column="DX",
                    row=int(unknown["row"][0]),
                    expected="CN, MCI, Dementia",
                    found=repr(unknown["DX"][0]),
                )
            )
    else:
        maps = {
            "DIAGNOSIS": {"1": 0, "2": 1, "3": 2},
            "DXCHANGE": {"1": 0, "7": 0, "9": 0, "2": 1, "4": 1, "8": 1, "3": 2, "5": 2, "6": 2},
            "DXCURREN": {"1": 0, "2": 1, "3": 2},
        }
        for column, codes in maps.items():
            value = values.plain_code(column)
            frame = frame.with_columns(
                value.replace_strict(codes, default=None, return_dtype=pl.Int8).alias(f"dx.{column}")
            )
            stray = frame.filter(pl.col(column).is_not_null() & pl.col(f"dx.{column}").is_null())
            if len(stray):
                five = column == "DIAGNOSIS" and stray.select(value.is_in(["4", "5"]).any()).item()
                fix = (
                    (
                        "The file uses the coding 1 CN, 5 SMC, 2 EMCI, 3 LMCI, 4 AD of an older data dictionary, in "
                        "which 3 is not dementia. Download DXSUM again."
                    )
                    if five
                    else f"{len(stray)} rows are affected."
                )
                raise DataError(
                    Fault(
                        file=shown_as,
                        column=column,
                        row=int(stray["row"][0]),
                        expected=f"codes {', '.join(codes)}",
                        found=repr(stray[column][0]),
                        fix=fix,
                    )
                )
        if all(frame[c].null_count() == len(frame) for c in maps):
            raise DataError(
                Fault(
                    file=shown_as,
                    column="DIAGNOSIS",
                    expected="values in this column, DXCHANGE or DXCURREN",
                    found="no diagnosis in any row",
                    fix="Check whether the column was renamed or dropped.",
                )
            )
        frame = frame.with_columns(pl.coalesce(*(f"dx.{c}" for c in maps)).alias("dx"))
    ordered = frame.sort("rid", "month", "rank", "date", "stamp", "row", nulls_last=False)
    return ordered.select("rid", "month", "rank", "viscode", "date", "row", "dx")
