"""Read the tables of a LONI export: clean values, and collect participants and visits across tables."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni import tables as loni
from mrpipe.datasets.adni.files import find_tables, table_files
from mrpipe.datasets.adni.forms import values
from mrpipe.delimited import line_of, read_table
from mrpipe.errors import DataError, Fault, FaultCollector, cell, shape
from mrpipe.raw import ROW, Column, match_header, read_csv

# A visit code and a date that differ by more months than this contradict each other.
TOLERANCE, DAYS_PER_MONTH = 6, 30.4375
# The newest file of a table may lack this fraction of the participants of an older file.
MAX_LOST = 0.2


def _people(frame: pl.DataFrame, path: Path, shown_as: str) -> pl.DataFrame:
    """Add `rid` (Int32) and `ptid` (String). A table without RID takes it from the last part of the PTID."""
    if "RID" not in frame.columns and "PTID" not in frame.columns:
        fix = "Check whether the column was renamed or dropped."
        raise DataError(Fault(file=shown_as, column="RID", expected="this column, or PTID", found="neither", fix=fix))
    frame = frame.with_columns(pl.lit(None, pl.String).alias(c) for c in ("RID", "PTID") if c not in frame.columns)
    ptid = pl.col("PTID").str.to_uppercase()
    rid = pl.coalesce(
        values.plain_code("RID").cast(pl.Int32, strict=False), ptid.str.extract(r"_(\d+)$").cast(pl.Int32, strict=False)
    )
    frame = frame.with_columns(ptid.alias("ptid"), rid.alias("rid"))
    for column, bad in (("PTID", ~pl.col("ptid").str.contains(loni.PTID_PATTERN)), ("RID", pl.col("rid").is_null())):
        wrong = frame.filter(bad)
        if len(wrong):
            value, line = wrong[column][0], line_of(path, int(wrong[ROW][0]))
            expected, fix = "SSS_S_RRRR" if column == "PTID" else "a roster number", f"{len(wrong)} rows are affected."
            found = shape(value) if value else cell(value)
            raise DataError(Fault(file=shown_as, column=column, line=line, expected=expected, found=found, fix=fix))
    return frame


def _validate(frame: pl.DataFrame, field: loni.Field, path: Path, shown_as: str) -> tuple[Fault | None, str | None]:
    """Return an error for values that cannot be parsed, or a note on values that are set to missing."""
    written = frame.select(ROW, pl.col(field.name).str.strip_chars().alias("v")).drop_nulls()
    if field.kind in ("number", "assay"):
        bad = ~pl.col("v").str.contains(values.NUMBER)
        if field.kind == "assay":
            bad &= ~pl.col("v").str.contains(values.BELOW)
        expected = "a number" + (", >LIMIT, <LIMIT, <LLOQ or <LOD" if field.kind == "assay" else "")
    elif field.kind in ("code", "codes"):
        bad = ~pl.col("v").str.contains(r"^-?\d+(?:\.0+)?(?:[|:]-?\d+(?:\.0+)?)*[|:]?$")
        expected = f"codes {', '.join(c for c, _ in field.codes)}"
    else:
        return None, None
    wrong = written.filter(bad)
    if len(wrong):
        fix = f"{len(wrong)} rows are affected. The file may be another table, or an export with decoded values."
        line, found = line_of(path, int(wrong[ROW][0])), cell(wrong["v"][0])
        return Fault(file=shown_as, column=field.name, line=line, expected=expected, found=found, fix=fix), None
    place, effect = f"{shown_as}, column {field.name}:", "values outside the code list"
    match field.kind:
        case "code":
            stray = frame.filter(pl.col(field.name).is_not_null() & values.level_of(field.name, field.codes).is_null())
            shown, consequence = stray[field.name], "set to missing"
        case "codes":
            shown = frame.select(values.selections(field.name).explode()).to_series().drop_nulls()
            shown = shown.filter(~shown.is_in([c for c, _ in field.codes]))
            consequence = "make the options that are not selected unknown"
        case _:
            shown, effect = written["v"].filter(written["v"].str.contains(r"^[<>]")), "limits instead of values"
            consequence = "read as the limit" if field.kind == "number" else ""
    if not len(shown) or not consequence:
        return None, None
    return None, f"{place} {len(shown)} {effect} ({', '.join(sorted(set(shown.to_list()))[:5])}) {consequence}"


def _cleaned(field: loni.Field) -> list[pl.Expr]:
    name = field.name
    if field.kind == "code":
        return [values.level_of(name, field.codes)]
    if field.kind == "assay":
        return [values.number(name), values.limit(name).alias(f"{name}.limit")]
    parsers = {"number": values.number, "codes": values.selections, "date": values.date, "year": values.year}
    return [parsers.get(field.kind, pl.col)(name)]


class AdniExport:
    """The tables of one export. Each table is read at most once.

    Attributes:
        raw: export folder.
        notes: contradictions, losses and choices found while reading, for the report of `mrpipe check`.
    """

    def __init__(self, raw: Path):
        self.raw = raw
        self.notes: list[str] = []
        self._read: dict[str, pl.DataFrame | None] = {}
        self._timed: dict[str, pl.DataFrame] = {}
        self._found: dict[str, tuple[list[Path], list[Path]]] = {}

    @cached_property
    def listing(self) -> list[Path]:
        return table_files(self.raw)

    def files(self, table: loni.LoniTable) -> tuple[list[Path], list[Path]]:
        if table.name not in self._found:
            self._found[table.name] = find_tables(self.raw, self.listing, table)
        return self._found[table.name]

    def path(self, table: loni.LoniTable, *, merged: bool = True) -> Path | None:
        """The file to read; None if the export has neither the table nor an older version of it.

        Args:
            merged: take a table in which it is merged instead, if that has one of its columns.
        """
        own = next(iter(self.files(table)[0]), None)
        columns = [f.column() for f in table.fields]
        others = (self.path(t) for t in (loni.ADNIMERGE, loni.ADSL) if merged and t.name in table.merged_in)
        return own or next((p for p in others if p and match_header(self._header(p), columns)), None)

    def shown(self, table: loni.LoniTable) -> str:
        """Path of the table in error messages, relative to the export."""
        path = self.path(table)
        return f"{table.name}_ddMonYYYY.csv" if path is None else path.relative_to(self.raw).as_posix()

    def fault(
        self, table: loni.LoniTable, row: int, column: str, expected: str, found: object, fix: str = ""
    ) -> DataError:
        """An invalid value in record `row` of a table that was read."""
        name = self.shown(table)
        line = line_of(self.raw / name, row)
        return DataError(Fault(file=name, column=column, line=line, expected=expected, found=cell(found), fix=fix))

    def _header(self, path: Path) -> list[str]:
        return read_table(path, shown_as=path.relative_to(self.raw).as_posix(), notes=[], n_rows=0).frame.columns

    def layout(self) -> str:
        """Generation of the export, detected from the header of DXSUM: old (no PTID), 2024 or 2025; else ADNIMERGE."""
        path = self.path(loni.DXSUM)
        if path is None and self.path(loni.ADNIMERGE):
            return "ADNIMERGE"
        header = set() if path is None else {c.lower() for c in self._header(path)}
        if "ptid" not in header:
            return "old"
        return "2025" if "language_code" in header else "2024"

    def require(self, table: loni.LoniTable) -> pl.DataFrame:
        frame = self.table(table)
        if frame is None:
            raise DataError(table.absent())
        return frame

    def table(self, table: loni.LoniTable) -> pl.DataFrame | None:
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

    def _load(self, table: loni.LoniTable, path: Path) -> pl.DataFrame:
        shown_as = path.relative_to(self.raw).as_posix()
        merged = path != self.path(table, merged=False)
        fields = [replace(f, required=f.required and not merged) for f in table.fields]
        columns = [*loni.KEYS, *(f.column() for f in fields)]
        frame = read_csv(path, columns, shown_as=shown_as, notes=self.notes, numbered=True)
        names = [*(k.name for k in loni.KEYS[2:]), *(f.name for f in table.fields)]
        missing = [name for name in names if name not in frame.columns]
        frame = _people(frame, path, shown_as).with_columns(pl.lit(None, pl.String).alias(c) for c in missing)
        frame = frame.filter(pl.col("rid") != loni.QC_RID).with_columns(values.phase("PHASE", "VISCODE").alias("phase"))
        if merged:
            for name in (n for n in loni.DECODED if n in frame.columns):
                text = f"{shown_as}, column {name}: {{n}} unknown texts set to missing"
                self.note(~pl.col(name).is_in(list(loni.DECODED[name])), frame, text)
                code = pl.col(name).replace_strict(loni.DECODED[name], default=None, return_dtype=pl.String)
                frame = frame.with_columns(code)
            if not {"VISCODE", "VISCODE2", "DATE"} - set(missing):
                frame = frame.with_columns(VISCODE2=pl.lit("bl"))
        else:
            self._compare_copies(table, frame["rid"])
        text = "rows have a RID that is not the last part of their PTID; the RID is used"
        differ = pl.col("ptid").str.extract(r"_(\d+)$").cast(pl.Int32) != pl.col("rid")
        self.note(differ, frame, f"{shown_as}: {{n}} {text}")
        text = "visit dates are not YYYY-MM-DD or M/D/YYYY (or D/M/YYYY, D.M.YYYY, D-Mon-YYYY) and count as unknown"
        self.note(pl.col("DATE").is_not_null() & values.date("DATE").is_null(), frame, f"{shown_as}: {{n}} {text}")
        frame = frame.with_columns(
            pl.when(~values.is_missing_code(f.name, positive=f.positive)).then(pl.col(f.name)).alias(f.name)
            for f in table.fields
        )
        faults = FaultCollector()
        for field in table.fields:
            fault, note = _validate(frame, field, path, shown_as)
            faults.add(fault)
            if note:
                self.notes.append(note)
        faults.raise_if_any()
        keys = [
            pl.col("rid", "ptid", "phase"),
            pl.coalesce("VISCODE2", "VISCODE").alias("viscode"),
            values.visit_month("VISCODE", "VISCODE2").alias("month"),
            values.visit_rank("VISCODE", "VISCODE2").alias("rank"),
            values.date("DATE").alias("date"),
            values.stamp("UPDATE_STAMP").alias("stamp"),
        ]
        return frame.select(pl.col(ROW).alias("row"), *keys, *[e for f in table.fields for e in _cleaned(f)])

    def note(self, condition: pl.Expr, frame: pl.DataFrame, text: str) -> None:
        """Add a note on the rows that meet a condition; `{n}` and `{people}` in the text are their counts."""
        rows = frame.filter(condition)
        if len(rows):
            self.notes.append(text.format(n=len(rows), people=rows["rid"].n_unique()))

    def _compare_copies(self, table: loni.LoniTable, rids: pl.Series) -> None:
        """Note the other files of a table.

        Raises:
            DataError: the file that is read lacks many participants of another file of the same table.
        """
        (used, *copies), versions = self.files(table)
        name = used.relative_to(self.raw).as_posix()
        for other in (*copies, *versions):
            shown_as = other.relative_to(self.raw).as_posix()
            try:
                frame = read_csv(other, loni.KEYS[:2], shown_as=shown_as, notes=[], numbered=True)
                frame = _people(frame, other, shown_as)
            except DataError:
                self.notes.append(f"{name} is read for {table.name}; {shown_as} is not, and is no valid table")
                continue
            people = frame["rid"].filter(frame["rid"] != loni.QC_RID).unique()
            lost = int((~people.is_in(rids.unique().to_list())).sum())
            kind = "another assay or version, " if other in versions else ""
            found = f"{rids.n_unique()} participants; {shown_as} ({kind}not read) has {len(people)}, {lost} not in it"
            self.notes.append(f"{name} is read for {table.name} and has {found}")
            if other in copies and lost > MAX_LOST * len(people):
                expected = f"the newest file of {table.name} to have the participants of older files"
                fix = "Download the table again, or move the file that you do not want to use out of the export."
                raise DataError(Fault(file=name, expected=expected, found=found, fix=fix))

    def as_written(self, table: loni.LoniTable) -> pl.DataFrame:
        """Every column of a table as text, named in upper case, plus `rid` (for `profile=paper`)."""
        self.require(table)
        shown_as = self.shown(table)
        path = self.raw / shown_as
        columns = [Column(name=h, required=False, null_values=("", "NA")) for h in self._header(path)]
        frame = read_csv(path, columns, shown_as=shown_as, notes=self.notes, numbered=True)
        frame = frame.rename({h: h.strip().upper() for h in frame.columns if h != ROW})
        return _people(frame, path, shown_as).filter(pl.col("rid") != loni.QC_RID).drop(ROW)

    def _present(self) -> list[pl.DataFrame]:
        return [frame for t in loni.PEOPLE if (frame := self.table(t)) is not None]

    @cached_property
    def roster(self) -> pl.DataFrame:
        """`rid`, `ptid`: one PTID per participant.

        Participants who changed site have several PTIDs. The most frequent one in the first table that lists the
        participant is used (order: DXSUM, PTDEMOG, …, ROSTER); ties take the smallest.
        """
        pairs = (frame.drop_nulls("ptid").group_by("rid", "ptid").len() for frame in self._present())
        listed = [counted.with_columns(pl.lit(i).alias("table")) for i, counted in enumerate(pairs)]
        if not listed:
            return pl.DataFrame(schema={"rid": pl.Int32, "ptid": pl.String})
        ordered = pl.concat(listed).sort("rid", "table", -pl.col("len").cast(pl.Int64), "ptid")
        several = ordered.filter(pl.col("ptid").n_unique().over("rid") > 1)["rid"].n_unique()
        if several:
            self.notes.append(f"{several} participants have several PTIDs; the most frequent is used")
        roster = ordered.group_by("rid", maintain_order=True).first().select("rid", "ptid")
        if roster["ptid"].is_duplicated().any():
            n = int(roster["ptid"].is_duplicated().sum())
            found, fix = f"{n} RIDs that share a PTID", "Check that all tables are from the same export."
            raise DataError(Fault(file="all tables", column="PTID", expected="one RID per PTID", found=found, fix=fix))
        return roster

    @cached_property
    def _coded(self) -> pl.DataFrame:
        """Dated records with a visit code of all tables, and the baseline date (`start`) that each implies.

        Sorted by preference for each participant; records far from the median date of the baseline visit are last.
        """
        known = [
            frame.filter(pl.col("date").is_not_null() & pl.col("month").is_not_null()).select(
                "rid",
                "month",
                "date",
                -pl.col("rank"),
                (pl.col("phase") != values.original_phase(pl.col("rid"))).alias("later_phase"),
                pl.col("date").dt.offset_by(pl.format("-{}mo", "month")).alias("start"),
                pl.lit(i).alias("table"),
            )
            for i, frame in enumerate(self._present())
        ]
        if not known:
            return pl.DataFrame(schema={"rid": pl.Int32, "month": pl.Int32, "date": pl.Date, "start": pl.Date})
        day = pl.col("start").dt.epoch("d")
        # Later visits do not count: they must not change what is known about the baseline.
        median = pl.when(pl.col("month") == 0).then(day).median().over("rid")
        wrong = ((day - median).abs() > TOLERANCE * DAYS_PER_MONTH).fill_null(False).alias("wrong")
        order = ("rid", "wrong", "month", "rank", "later_phase", "table", "date")
        return pl.concat(known).with_columns(wrong).sort(order)

    @cached_property
    def baselines(self) -> pl.DataFrame:
        """`rid`, `date0`: date of the baseline visit, estimated from the first visit with a code if it is not dated."""
        return self._coded.group_by("rid", maintain_order=True).agg(pl.col("start").first().alias("date0"))

    @cached_property
    def visits(self) -> pl.DataFrame:
        """`rid`, `month`, `date`: date of each visit, from the first table whose date does not contradict the code."""
        dated = self._coded.join(self.baselines, on="rid", how="left", maintain_order="left")
        dated = dated.filter((_since() - pl.col("month")).abs() <= TOLERANCE)
        return dated.group_by("rid", "month", maintain_order=True).agg(pl.col("date").first())

    def timed(self, table: loni.LoniTable) -> pl.DataFrame:
        """A table with blank dates filled from other tables, and months reconciled with the dates.

        `month` is that of the visit code, or without one the time from the baseline visit to the date (null for dates
        more than six months before baseline). If code and date differ by more than six months, `month` is the later
        of the two, so that no record counts as earlier than it may be. `when` is the date, or an estimate of it.

        Raises:
            DataError: the export does not contain the table, or it is invalid.
        """
        frame = self.require(table)
        if table.name not in self._timed:
            frame = frame.join(self.visits.rename({"date": "visit_date"}), on=["rid", "month"], how="left")
            frame = frame.join(self.baselines, on="rid", how="left").with_columns(_since().alias("since"))
            apart = ((pl.col("since") - pl.col("month")).abs() > TOLERANCE).fill_null(False)
            early = pl.col("month").is_null() & (pl.col("since") < -TOLERANCE)
            name = self.shown(table)
            text = "records of {people} participants have a visit code and a date that differ by more than six months"
            self.note(apart, frame, f"{name}: {{n}} {text}; the later of the two is used")
            text = "records without a month in their visit code are dated more than six months before baseline"
            self.note(early, frame, f"{name}: {{n}} {text}; their month is unknown")
            if table is not loni.APOERES:  # constant over time, and without dates
                unknown = pl.col("month").is_null() & pl.col("since").is_null()
                text = "records have no month in their visit code and no date since baseline; their time is unknown"
                self.note(unknown, frame, f"{name}: {{n}} {text}")
            of_code = pl.coalesce("month", pl.when(~early).then(pl.col("since")))
            month = pl.when(apart).then(pl.max_horizontal("month", "since")).otherwise(of_code)
            frame = frame.with_columns(month.alias("month"), pl.coalesce("date", "visit_date").alias("date"))
            estimate = pl.col("date0").dt.offset_by(pl.format("{}mo", "month"))
            frame = frame.with_columns(pl.coalesce("date", estimate).alias("when"))
            self._timed[table.name] = frame.drop("visit_date", "date0", "since").sort("row")
        return self._timed[table.name]


def _since() -> pl.Expr:
    """Months from `date0` to `date` (Int32)."""
    return ((pl.col("date") - pl.col("date0")).dt.total_days() / DAYS_PER_MONTH).round().cast(pl.Int32)
