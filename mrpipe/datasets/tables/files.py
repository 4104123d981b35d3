"""Reading the tables as text, and resolving references to columns and rows.

Legend: n rows of a file, d features.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import polars as pl

from mrpipe import delimited
from mrpipe.budget import require_parquet
from mrpipe.datasets.tables.config import MISSING, Ref, Rules, TablesConfig, matches
from mrpipe.datasets.tables.texts import CODED, canonical_text, has_name, id_text, plain_name
from mrpipe.delimited import COMMA, SIGN, TextTable, line_of
from mrpipe.errors import DataError, Fault, FaultCollector, cell, did_you_mean
from mrpipe.forms import COMPRESSIONS, UNREAD, zone_notes

ID, ROW = "__sample_id", "__row"
LISTED = 12
# Bytes of a file beyond which its columns are read when they are needed; rows per batch of a long and a wide table.
LARGE, BATCH_ROWS, HELD_ROWS = 2**25, 2**17, 2**16
_SAMPLE = 1000


@dataclass(frozen=True)
class RawTable:
    """A file as text.

    Attributes:
        header: names of its columns.
        source: `__row` (1-based record of the file) and the columns, stripped; of a large file not in memory.
        n_rows: number of rows, without blank lines.
        separator: None for a form whose rows have no lines.
        notes: what was found in the file, such as its separator.
        odd: columns that are not plain values (Duration, List, Binary, …) and their dtypes; read as empty.
        pointed: in a file with decimal commas, columns with decimal points in numbers, and the row of the first.
        unstripped: `source` before its texts are stripped, if few need it and nothing is changed after that.
        large, held, coded: whether the file is larger than LARGE, and then its columns in memory (see `hold`).
        rows: of a large file, the rows without those that `drop` and repeated ids remove (see `features.rows_of`).
        key: column of the samples that joins the table: row, sample_id, or subject_id if it has subjects but no ids.
    """

    shown_as: str
    config: TablesConfig
    path: Path
    separator: str | None
    header: list[str]
    source: pl.LazyFrame
    unstripped: pl.LazyFrame
    n_rows: int
    odd: dict[str, str]
    pointed: dict[str, int]
    notes: list[str]
    large: bool
    held: dict[str, pl.Series] = field(default_factory=dict)
    coded: set[str] = field(default_factory=set)
    rows: dict[Rules, tuple[pl.DataFrame, pl.Series | None]] = field(default_factory=dict)

    @property
    def id(self) -> Ref | None:
        return self.config.of_file("id", self.shown_as)  # type: ignore[no-any-return]

    @property
    def subject(self) -> Ref | None:
        return self.config.of_file("subject", self.shown_as)  # type: ignore[no-any-return]

    @property
    def key(self) -> str:
        if self.config.by_order:
            return "row"
        if level := self.config.of_file("level", self.shown_as):
            return f"{level}_id"
        only_subjects = (isinstance(self.id, str) and self.id not in self.header) or self.id is None
        return "subject_id" if only_subjects and self.subject in self.header else "sample_id"

    def read(self, columns: Iterable[str]) -> pl.DataFrame:
        """`__row` and some columns."""
        return self.source.select(ROW, *dict.fromkeys(columns)).collect(engine="streaming")

    def batches(self, columns: Iterable[str], n_rows: int | None = None) -> Iterator[pl.DataFrame]:
        """`__row` and some columns, some rows at a time."""
        selected = self.source.select(ROW, *dict.fromkeys(columns))
        yield from selected.collect_batches(chunk_size=n_rows or BATCH_ROWS, maintain_order=True)

    def hold(self, columns: Mapping[str, type[pl.DataType]]) -> None:
        """Add columns of a large file, read in one pass, to `held`: as String, Categorical or Float32.

        Columns requested as Float32 are held as categorical text unless they have only finite numbers and common words
        for missing, which become null. `coded` has those in which numbers are written like codes.
        """
        lacking = [c for c in columns if c not in self.held or self.held[c].dtype == pl.Float32 != columns[c]]
        parts: dict[str, list[pl.Series]] = {c: [] for c in (ROW, *lacking)}
        numeric, failed = [c for c in lacking if columns[c] == pl.Float32], set[str]()
        source, whole = self.unstripped.select(ROW, *lacking), (pl.all() == pl.all().round()).any()
        needed = bool(lacking) or ROW not in self.held
        for batch in source.collect_batches(chunk_size=HELD_ROWS, maintain_order=True) if needed else ():
            text = batch.select(numeric)
            exact = text.select(pl.all().cast(pl.Float64, strict=False))
            number = exact.select(pl.all().cast(pl.Float32))
            number = number.select(pl.when(pl.col(c).is_finite()).then(c).alias(c) for c in numeric)
            lost = [c for c in numeric if number[c].null_count() > text[c].null_count()]
            words = {c: text[c].filter(number[c].is_null()).drop_nulls().str.strip_chars() for c in lost}
            failed.update(c for c in lost if not words[c].is_in(MISSING).all())
            some_whole = exact.select(c for c in numeric if c not in self.coded).select(whole)
            for c in (column.name for column in some_whole if column.item()):
                written = text[c].filter(exact[c] == exact[c].round()).unique()
                self.coded.update([c] if written.str.contains(CODED).any() else [])
            numeric = [c for c in numeric if c not in failed]
            others = {c: columns[c] if columns[c] == pl.String else pl.Categorical for c in lacking if c not in numeric}
            texts = [pl.col(c).str.strip_chars().cast(dtype) for c, dtype in others.items()]
            for series in (*batch.select(ROW, *texts), *number.select(numeric)):
                parts[series.name].append(series)
        # The first numbers of a column that turned out to be text are needed as text.
        again = {c for c in failed if parts[c][0].dtype == pl.Float32}
        self.held.update({c: pl.concat(series) for c, series in parts.items() if series and c not in again})
        if again:
            self.hold(dict.fromkeys(again, pl.Categorical))

    def reserved(self) -> list[str]:
        """Columns of ids, labels, splits, paths or the time of the prediction, which are never features."""
        config, file = self.config, self.shown_as
        own = {f for key, f, _ in config.by_file if key in ("id", "subject")}
        # A position given for all files is that of the samples' file.
        named = file in (config.cohort_file, *own)
        refs = [r for r in (self.id, self.subject) if isinstance(r, str) or (r is not None and named)]
        places = [(label.file, label.column) for label in config.labels]
        places += [(config.split.file, config.split.column)] if config.split else []
        places += [(f, config.prediction_time) for f in config.cohort_files if config.prediction_time is not None]
        places += [(m.file, m.columns[0]) for m in config.modalities if m.files]
        refs += [column for of, column in places if of == file]
        return self.columns(refs, "", FaultCollector(), optional=True)

    def subgroups(self) -> list[str]:
        """Columns that the samples keep to divide results by."""
        refs = [group.column for group in self.config.subgroups if group.file == self.shown_as]
        return self.columns(refs, "", FaultCollector(), optional=True)

    def fault(
        self, expected: str, found: str, fix: str = "", *, column: str | None = None, rows: pl.Series | None = None
    ) -> Fault:
        """A fault of this file; of the affected `rows`, the first is its place, and some are listed."""
        fault = Fault(file=self.shown_as, column=column, expected=expected, found=found, fix=fix)
        if rows is None or not len(rows):
            return fault
        places: list[int] = rows[:4].to_list()
        if self.separator is not None:
            encoding = self.config.of_file("encoding", self.shown_as)
            places = [line_of(self.path, r, separator=self.separator, encoding=encoding) for r in places]
        if len(rows) > 1:
            listed = ", ".join(map(str, places)) + (", …" if len(rows) > 4 else "")
            fault = dataclasses.replace(fault, found=f"{found} ({'lines' if self.separator else 'rows'} {listed})")
        return dataclasses.replace(fault, **{"line" if self.separator else "row": places[0]})  # type: ignore[arg-type]

    def alike(self, name: str) -> list[str]:
        """Columns that have this name apart from case, padding and the number that tells repeated names apart."""
        return self._by_plain_name.get(plain_name(name), [])

    @cached_property
    def _by_plain_name(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for column in self.header:
            names.setdefault(plain_name(column), []).append(column)
        return names

    def columns(self, refs: Sequence[Ref], place: str, faults: FaultCollector, *, optional: bool = False) -> list[str]:
        """The columns that names, patterns and positions refer to, in file order.

        Each must refer to at least one, unless they are optional; a name that several columns share is an error.
        """
        header = self.header
        chosen: set[str] = set()
        for ref in refs:
            if isinstance(ref, int):
                if 1 <= abs(ref) <= len(header):
                    chosen.add(header[ref - 1 if ref > 0 else ref])
                elif not optional:
                    faults.add(self.fault(f"one of {len(header)} positions ({place})", str(ref), column=str(ref)))
                continue
            near = self.alike(ref)
            found = [ref] if ref in near else [h for h in header if matches(h, ref) and has_name(h)]
            if ref in near and len(near) > 1:
                shown = f"{len(near)} columns of this name: {', '.join(map(repr, near))}"
                fix = "Rename one in the file, or give its position: 1 is the first, -1 the last."
                faults.add(self.fault(f"this column once ({place})", shown, fix, column=ref))
            if not found and not optional:
                fix = f"Did you mean {near[0]!r}?" if near else did_you_mean(ref, header, otherwise="")
                shown = f"columns {', '.join(header[:LISTED])}{' …' if len(header) > LISTED else ''}"
                faults.add(self.fault(f"this column ({place})", shown, fix, column=ref))
            chosen.update(found)
        return [h for h in header if h in chosen]

    def column(self, ref: Ref, place: str, faults: FaultCollector) -> str | None:
        """The single column that a reference refers to."""
        local = FaultCollector()
        found = self.columns([ref], place, local)
        if not local.faults and len(found) > 1:
            local.add(self.fault(f"one column ({place})", ", ".join(found), column=str(ref)))
        self.require_plain(found, local)
        faults.faults += local.faults
        return None if local.faults or not found else found[0]

    def require_plain(self, columns: Sequence[str], faults: FaultCollector) -> None:
        """Report columns that are not plain values."""
        for column in (c for c in columns if c in self.odd):
            found, fix = f"values of type {self.odd[column]}", "`exclude` it, or convert it to numbers or text."
            faults.add(self.fault("numbers or text", found, fix, column=column))

    def require_commas(self, column: str, faults: FaultCollector) -> None:
        """Report a numeric column that has decimal points although the file has decimal commas."""
        if column in self.pointed:
            rows = self.read([column]).filter(pl.col(ROW) == self.pointed[column])
            fix = 'It may be a thousands separator: declare `thousands: "."`, or correct the key `decimal`.'
            expected, found = "numbers with a decimal comma", cell(rows[column][0])
            faults.add(self.fault(expected, found, fix, column=column, rows=rows[ROW]))

    def drop(
        self, frame: pl.DataFrame, rules: Rules, place: str, faults: FaultCollector
    ) -> list[tuple[str, pl.DataFrame]]:
        """Apply the rules in order; for each, the reason and the remaining rows."""
        steps = []
        for ref, values in rules:
            column = self.column(ref, f"{place}.drop", faults)
            if column is not None:
                frame = frame.filter(~canonical_text(column).is_in(values).fill_null(False))
                steps.append((f"{column} is {' or '.join(values)}", frame))
        return steps

    def with_ids(self, faults: FaultCollector, others: Iterable[str] = ()) -> pl.DataFrame:
        """`__row`, the reserved columns and `others`, with `__sample_id`: the id or subject, or the row number.

        If joined by order, only the cohort file may name the samples; in other files `to_samples` finds the ids.
        """
        names = dict.fromkeys([*self.reserved(), *others])
        if self.large:
            self.hold(dict.fromkeys(names, pl.String))
        held = self.held if self.large else self.read(names)
        frame = pl.DataFrame([held[ROW], *(held[c].cast(pl.String) for c in names)])
        if self.key == "row":
            return frame.with_columns(pl.col(ROW).cast(pl.String).alias(ID))
        column = self.id_column(faults)
        if column is None:
            return frame.with_columns(pl.lit(None, dtype=pl.String).alias(ID))
        frame = frame.with_columns(id_text(column, self.config.missing).alias(ID))
        empty = frame.filter(pl.col(ID).is_null())[ROW]
        if len(empty):
            faults.add(self.fault("an id in every row", f"{len(empty)} rows without one", column=column, rows=empty))
        return frame

    def id_column(self, faults: FaultCollector) -> str | None:
        """The column that joins the table: its ids or subjects."""
        key = self.key.removesuffix("_id").replace("sample", "id")
        ref = self.subject if key == "subject" else self.id
        if ref is None:
            expected = f"the column with the {key}s of {self.shown_as}"
            faults.add(Fault(file=self.config.shown_as, column=key, expected=expected, found="none for this file"))
            return None
        return self.column(ref, key, faults)

    def unique(self, frame: pl.DataFrame, faults: FaultCollector) -> pl.DataFrame:
        """The rows without those that repeat an id, which are reported."""
        repeated = frame.filter(pl.col(ID).is_duplicated() & pl.col(ID).is_not_null()).sort(ID, ROW)
        if len(repeated):
            n_ids = repeated[ID].n_unique()
            rows = self.source.filter(pl.col(ROW).is_in(repeated[ROW].implode())).collect()
            values = "different" if rows.drop(ROW).unique().height > n_ids else "equal"
            found = f"{len(repeated)} rows of {n_ids} repeated ids, with {values} values"
            fix = "Aggregate the rows, declare them as `long`, or remove some with `drop`."
            per = "subject" if self.key == "subject_id" else "id"
            faults.add(self.fault(f"one row per {per}", found, fix, column="id", rows=repeated[ROW]))
        return frame.unique(subset=ID, keep="first", maintain_order=True)

    def to_samples(self, rows: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
        """The rows (`__sample_id`, `__row`, …) that belong to samples, with the columns of `samples`."""
        on = ROW if self.key == "row" else ID
        return rows.join(samples, left_on=on, right_on=self.key, how="inner", coalesce=False)


def locate(raw: Path, file: str) -> tuple[Path, str]:
    """Path of the file, or of its compressed form, and the sheet that the name gives after #.

    Raises:
        DataError: if there is no such file; suggests the nearest name.
    """
    name, _, sheet = file.partition("#")
    for path in (raw / file, raw / name, *(raw / f"{name}{ending}" for ending in COMPRESSIONS)):
        if path.is_file():
            return path, "" if path.name.endswith(f"#{sheet}") else sheet
    files = sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file())
    found = f"no such file; files found: {', '.join(files[:8])}" if files else "no files"
    fix = did_you_mean(name, files, otherwise="Give its path relative to the export folder.")
    raise DataError(Fault(file=f"{raw.name}/{name}", expected="a table", found=found, fix=fix))


_Opened = tuple[pl.LazyFrame, TextTable, int]


def _open(path: Path, file: str, sheet: str, config: TablesConfig, notes: list[str]) -> _Opened:
    """All columns of a table as text, what was found on reading it (or the first rows of a large file), and a count.

    The count is the number of rows if all are known to have a first value, else 0.
    """
    separator, encoding, decimal = (config.of_file(key, file) for key in ("separator", "encoding", "decimal"))
    large = path.stat().st_size > LARGE
    if large and path.name.lower().endswith(".parquet"):
        require_parquet(path, file)
        source = pl.scan_parquet(path)
        odd = {c: str(t) for c, t in source.collect_schema().items() if isinstance(t, UNREAD)}
        notes += zone_notes(source.collect_schema(), file)
        times = [c for c, t in source.collect_schema().items() if t == pl.Datetime]
        local = [pl.col(c).dt.replace_time_zone(None) for c in times]
        text = source.with_columns(*(pl.lit(None).alias(c) for c in odd), *local).cast(pl.String)
        # Times of day that are midnight are dates, as in small files.
        text = text.with_columns(pl.col(c).str.replace(r"( 00:00:00)?\.0+$", "") for c in times)
        return text, TextTable(pl.DataFrame(), None, odd), 0
    read = partial(delimited.read_table, path, shown_as=file, encoding=encoding, strict=True)
    # Decimal commas that are declared are converted by `read_table`, with a check.
    table = read(
        separator=separator, decimal=decimal and ".", sheet=sheet, notes=notes, n_rows=_SAMPLE if large else None
    )
    if not large or table.separator is None:
        return table.frame.lazy(), table, 0
    # Compressed by another program than gzip or zstd, in another encoding, or damaged.
    n_separators = delimited.require_lines(path, file, table.separator)
    with suppress(pl.exceptions.PolarsError):
        source = pl.scan_csv(path, infer_schema=False, separator=table.separator)
        counted = pl.len().alias("all"), pl.first().count().alias("first"), pl.last().count().alias("last")
        n_rows, n_first, n_last = source.select(counted).collect(engine="streaming").row(0)
        # No row has more fields than the header, so that a table with all separators has no row with fewer.
        if n_last < n_rows and n_separators != (n_rows + 1) * (table.frame.width - 1):
            delimited.note_short_rows(path, table.separator, shown_as=file, notes=notes)
        return source, table, n_rows if n_first == n_rows else 0
    table = read(separator=table.separator, decimal=".")
    return table.frame.lazy(), table, 0


def read_table(raw: Path, file: str, config: TablesConfig) -> RawTable:
    """Open a table as stripped text, with the encoding, separator and marks of numbers that the YAML declares.

    Raises:
        DataError: if the file is missing, damaged or undecodable, or has no header or no rows.
    """
    path, sheet = locate(raw, file)
    read = _read_table if path.stat().st_size > LARGE else _read_table.__wrapped__
    return read(path, file, sheet, config, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)  # the large files of a process, with the columns that they hold
def _read_table(path: Path, file: str, sheet: str, config: TablesConfig, changed: int) -> RawTable:
    notes, large = list[str](), path.stat().st_size > LARGE
    text, decimal, thousands = pl.col(pl.String), *(config.of_file(key, file) for key in ("decimal", "thousands"))
    if thousands == (decimal or "."):
        found = f"{thousands!r}, which is the decimal mark of {file}"
        raise DataError(Fault(file=config.shown_as, column="thousands", expected="another mark", found=found))
    try:
        source, table, n_rows = _open(path, file, sheet, config, notes)
    except DataError as error:
        # Faults of a line are undecodable bytes and unexpected separators.
        hint = f" Or declare it in {config.shown_as}: `encoding:`, `separator:` and `decimal:` (docs/tables.md)."
        raise DataError(dataclasses.replace(f, fix=f.fix + hint * (f.line is not None)) for f in error.faults) from None
    columns = source.collect_schema().names()
    if ROW in columns:
        raise DataError(Fault(file=file, column=ROW, expected="another column name", found="a reserved name"))
    source = source.with_row_index(ROW, offset=1).with_columns(pl.col(ROW).cast(pl.Int32))
    source = source.rename({c: c.strip() for c in columns if c != c.strip() and c.strip() not in columns})
    header = [c for c in source.collect_schema().names() if c != ROW]
    # No row is blank if all have a first value; it is usually an id, and reading it alone takes a third of the time.
    known = pl.select(pl.int_range(1, n_rows + 1, dtype=pl.Int32).alias(ROW), known=True)
    for some in () if n_rows else (pl.col(header[0]), text):
        known = source.select(ROW, pl.any_horizontal(some.is_not_null()).alias("known")).collect(engine="streaming")
        if known["known"].all():
            break
    unstripped, source = source, source.with_columns(text.str.strip_chars())
    stripped = source
    if thousands:
        # A space is also the no-break space of French and Swiss exports.
        marks = " \u00a0\u202f" if thousands == " " else thousands
        grouped = rf"^{SIGN}[0-9]{{1,3}}([{marks}][0-9]{{3}})+([{decimal or '.'}][0-9]+)?$"
        whole = text.str.replace_all(f"[{marks}]", "")
        source = source.with_columns(pl.when(text.str.contains(grouped)).then(whole).otherwise(text))
    pointed: dict[str, int] = {}
    # A small file in which they were found has points by now, and had none before.
    if decimal == "," or (large and any(note.endswith("decimal comma") for note in notes)):
        pattern = rf"^{SIGN}[0-9]+\.[0-9]+$"
        first = source.select(pl.when(pl.col(c).str.contains(pattern)).then(ROW).min().alias(c) for c in header)
        places = first.collect(engine="streaming").row(0, named=True)
        pointed = {c: row for c, row in places.items() if row is not None}
        source = source.with_columns(text.str.replace(COMMA, "$1.$2"))
    rows = known
    if table.separator is not None:
        # Rows that are joined by order keep their places; blank lines at the end are no rows.
        last = known.filter("known")[ROW].max() or 0
        rows = known.filter(pl.col(ROW) <= last if config.by_order else pl.col("known"))
        if len(rows) < len(known):
            blank = known.join(rows, on=ROW, how="anti")[ROW]
            source = source.filter(~pl.col(ROW).is_in(blank.implode()))
    if source is not stripped or (large and delimited.any_matches(table.frame, r"^\s|\s$")):
        unstripped = source
    if rows.is_empty():
        raise DataError(Fault(file=file, expected="at least one row", found="a header without rows"))
    return RawTable(
        file, config, path, table.separator, header, source, unstripped, len(rows), table.odd, pointed, notes, large
    )
