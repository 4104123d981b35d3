"""One modality: columns of one table as numbers and codes; a row without any value lacks the modality.

Legend: n rows, d features.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.features import record_batch
from mrpipe.datasets.tables.cohort import times_of
from mrpipe.datasets.tables.config import Kind, ModalityTable, TablesConfig, codes_of, matches
from mrpipe.datasets.tables.files import ID, ROW, RawTable
from mrpipe.datasets.tables.texts import CODED, canonical_text, known_text, too_large
from mrpipe.errors import Fault, FaultCollector, cell, cells
from mrpipe.schema import Modality
from mrpipe.text.encoders import get_encoder

# Text columns with more distinct values are not categorical, unless there is a code list.
MAX_LEVELS = 50
# Text columns with more values that look like numbers than this, and than other values, are numbers with errors.
FEW_NUMBERS = 6
_NUMBER_LIKE = r"^[<>=≤≥~+-]*\s*[0-9.,]*[0-9][0-9.,]*([eE][-+]?[0-9]+)?\s*%?$"
# Values that are no numbers, and the declaration that reads them.
_HINTS = {
    "^[<>≤≥=]*-?[0-9.]+,[0-9]+$": 'If it is a decimal comma, declare `decimal: ","`; if not, `thousands: ","`.',
    r"^[<>≤≥]=?\s*[0-9]": "If they are limits of measurement, declare `kinds: {{{}: censored}}`.",
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}|^[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{2,4}": "Declare dates: `kinds: {{{}: date}}`.",
    r"\pL\s+\pL+\s+\pL": "If they are texts, declare `kinds: {{{}: text}}`.",
}
CENSORED = ("exact", "below", "above")
# Cells that are held as text at a time.
CELLS = 2**26
BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class TableFeature:
    """One feature: its name, its column, the levels of a categorical one, and whether the YAML gives its kind.

    `note` is its description; `coded` is whether some of its numbers are written like codes; `late` is its number of
    dates after the prediction.
    """

    name: str
    column: str
    levels: tuple[str, ...] | None = None
    declared: bool = True
    kind: str = "numeric"
    unit: str = ""
    note: str = ""
    coded: bool = False
    late: int = 0


@dataclass(frozen=True)
class Parsed:
    """A modality's table as numbers.

    Attributes:
        features: the features (d,).
        rows: `__sample_id` and `__row` of the rows of the table.
        samples: `sample_id` of the samples that have a value (n,), ascending.
        x: (n, d) float; codes of levels for categorical columns; NaN where missing.
    """

    features: list[TableFeature]
    rows: pl.DataFrame
    samples: pl.Series
    x: NDArray[Any]


def feature_columns(
    table: RawTable, config: TablesConfig, modality: ModalityTable, faults: FaultCollector
) -> list[str]:
    """Features of a modality, in file order.

    Patterns never match ids, labels or splits; naming one of these explicitly is an error.
    """
    place = f"modalities.{modality.name}"
    reserved = set(table.reserved())
    unresolved = FaultCollector()
    chosen = table.columns(modality.columns, f"{place}.columns", unresolved)
    faults.faults += unresolved.faults
    for column in sorted(reserved & {c for c in modality.columns if isinstance(c, str)}):
        found = f"{column!r}, which is an id, a label or a split"
        faults.add(Fault(file=config.shown_as, column=f"{place}.columns", expected="features only", found=found))
    # Exclusions may match nothing: one that is declared for all modalities need not occur in each of their files.
    excluded = set(table.columns(modality.exclude, f"{place}.exclude", faults, optional=True))
    left = [c for c in chosen if c not in reserved and c not in excluded]
    table.require_plain(left, faults)
    if not left and not unresolved.faults:
        faults.add(Fault(file=config.shown_as, column=place, expected="at least one feature", found="none left"))
    return left


def kind_of(column: str, modality: ModalityTable) -> Kind | None:
    """The last declared kind whose column or pattern matches."""
    matching = [kind for pattern, kind in modality.kinds if matches(column, pattern)]
    return matching[-1] if matching else None


def inferred_kind(text: pl.Series, number: pl.Series, bad: pl.Series) -> Kind:
    """Categorical for text with few values, unless most of them look like numbers, such as <0.5, 3,14 or inf."""
    distinct = text.drop_nulls().unique() if bad.any() else text.clear()
    like = int(distinct.str.contains(_NUMBER_LIKE).sum())
    numeric = not len(distinct) or number.is_infinite().any() or like > max(FEW_NUMBERS, len(distinct) / 2)
    return Kind(kind="numeric" if numeric or len(distinct) > MAX_LEVELS else "categorical")


def rows_of(table: RawTable, modality: ModalityTable, faults: FaultCollector) -> tuple[pl.DataFrame, pl.Series | None]:
    """`__sample_id` and `__row` of the rows of a modality, each id once, and which rows they are (None: all)."""
    if modality.drop in table.rows:
        return table.rows[modality.drop]
    dropped = table.columns([ref for ref, _ in modality.drop], "", FaultCollector(), optional=True)
    n_faults, whole = len(faults.faults), table.with_ids(faults, dropped)
    frame = whole
    for _, left in table.drop(frame, modality.drop, f"modalities.{modality.name}", faults):
        frame = left
    frame = table.unique(frame, faults).select(ID, ROW)
    found = frame, None if len(frame) == len(whole) else whole[ROW].is_in(frame[ROW].implode())
    if table.large and len(faults.faults) == n_faults:
        table.rows[modality.drop] = found
    return found


def parse(
    table: RawTable, modality: ModalityTable, samples: pl.DataFrame, faults: FaultCollector, *, checking: bool = False
) -> Parsed | None:
    """Convert the columns of a modality to numbers, one row per sample; errors name column, line and count.

    Args:
        samples: `sample_id`, `subject_id`, `row` if joined by order, and `prediction_time` if it is declared.
        checking: whether to keep small tables as float64, and not to encode texts (0 where there is one).

    Returns None if there are no feature columns.
    """
    place = f"modalities.{modality.name}"
    columns = feature_columns(table, table.config, modality, faults)
    frame, kept = rows_of(table, modality, faults)
    for pattern in [p for p, _ in (*modality.kinds, *modality.missing) if p != "*"]:
        table.columns([pattern], f"{place}.kinds or missing", faults)
    if not columns:
        return None
    joined = table.to_samples(frame.with_row_index("place"), samples).sort("sample_id")
    at = joined["place"].to_numpy()
    kinds = {c: kind_of(c, modality) for c in columns}
    encoder = get_encoder(modality.encoder)
    widths = {"censored": 2, "text": 1 if checking else encoder.dim}
    width = sum(1 if kind is None else widths.get(kind.kind, 1) for kind in kinds.values())
    exact = checking and not table.large and len(at) * width <= CELLS
    x = np.empty((len(at), width), dtype=np.float64 if exact else np.float32, order="F")
    features = list[TableFeature]()
    if table.large:
        hold(table, [modality])
    step = max(1, CELLS // (2 * table.n_rows))
    # Often the rows are the samples, in this order.
    where = slice(None) if np.array_equal(at, np.arange(table.n_rows)) else at
    for block in (columns[i : i + step] for i in range(0, len(columns), step)):
        unheld = [c for c in block if c not in table.held]
        texts = table.read(unheld) if unheld else table.held[ROW].to_frame()
        texts = texts if kept is None else texts.filter(kept)
        for column in block:
            kind, held, found = kinds[column], table.held.get(column), None
            if held is not None:
                held = held if kept is None else held.filter(kept)
                if held.dtype == pl.Float32:
                    given, coded = kind is not None, column in table.coded
                    of = TableFeature(name=column, column=column, declared=given, coded=coded)
                    found = [(of, held.to_numpy()[where])]
                elif kind is None or kind.since is None:
                    # Each distinct text once; if there are faults, all rows, whose numbers the messages need.
                    held = held.cast(pl.Categorical)
                    levels, local = held.unique(), FaultCollector()
                    codes, of_levels = (c.to_physical().cast(pl.Int64).fill_null(-1).to_numpy() for c in (held, levels))
                    nth = np.zeros(codes.max() + 2, dtype=np.int64)
                    nth[of_levels] = np.arange(len(levels))
                    text = levels.cast(pl.String).to_frame().select(pl.lit(0, pl.Int32).alias(ROW), column)
                    found = _convert(table, modality, text, kind, joined, nth[codes[at]], local, checking)
                    found = None if local.faults else found
                if found is None:
                    texts = texts.with_columns(held.cast(pl.String).alias(column))
            if found is None:
                text = texts[[ROW, column]]  # a query takes time for all columns
                found = _convert(table, modality, text, kind, joined, at, faults, checking)
            for feature, values in found:
                x[:, len(features)] = values
                features.append(feature)
    observed = np.zeros(len(x), dtype=bool)
    for values in x.T:
        observed |= ~np.isnan(values)
    if not observed.all():
        n_observed = int(observed.sum())  # in place, because x may fill half of the memory
        for values in x.T:
            values[:n_observed] = values[observed]
        x = x[:n_observed]
    return Parsed(features, frame, joined["sample_id"].filter(pl.Series(observed)), x)


def hold(table: RawTable, modalities: Iterable[ModalityTable]) -> None:
    """Hold the features of modalities of a large file, except texts, and the columns that `with_ids` needs."""
    wanted: dict[str, type[pl.DataType]] = {}
    for m in modalities:
        for c in feature_columns(table, table.config, m, FaultCollector()):
            kind, codes = kind_of(c, m), codes_of(c, table.config.missing + m.missing)
            if kind is None or kind.kind != "text":
                number = not codes and c not in table.pointed and (kind is None or kind.kind == "numeric")
                wanted[c] = pl.Float32 if number and wanted.get(c) != pl.Categorical else pl.Categorical
    table.hold(wanted | dict.fromkeys([*table.reserved(), *table.subgroups()], pl.String))


def _convert(
    table: RawTable,
    modality: ModalityTable,
    text: pl.DataFrame,
    kind: Kind | None,
    joined: pl.DataFrame,
    at: NDArray[np.int64],
    faults: FaultCollector,
    checking: bool,
) -> list[tuple[TableFeature, NDArray[Any]]]:
    """The features of a column and their values (n,), those of the rows `at` of `text` (`__row` and the column)."""
    column = text.columns[1]
    text = text.select(ROW, known_text(column, table.config.missing + modality.missing))
    number = text[column].cast(pl.Float64, strict=False)
    bad = text[column].is_not_null() & ~number.is_finite().fill_null(False)
    declared = kind is not None
    kind = kind or inferred_kind(text[column], number, bad)
    if kind.kind == "text":
        encoder, known = get_encoder(modality.encoder), text[column].is_not_null()
        vectors = np.where(known, 0.0, np.nan)[:, None]
        if not checking:
            vectors = np.full((len(text), encoder.dim), np.nan, dtype=np.float32)
            vectors[known.to_numpy()] = encoder.sentences(text[column].drop_nulls().to_list())
        names = [column] if checking else [f"{column}_{j}" for j in range(encoder.dim)]
        of = [TableFeature(name=name, column=column, kind="embedding", note=encoder.name) for name in names]
        return [(feature, vector[at]) for feature, vector in zip(of, vectors.T, strict=True)]
    if kind.kind in ("date", "age"):
        elapsed, late = _elapsed(table, text, column, kind, joined.with_columns(place=at), faults)
        unit = "days" if kind.kind == "date" else "years"
        return [(TableFeature(name=column, column=column, unit=unit, late=late), elapsed)]
    if kind.kind not in ("numeric", "censored"):
        value, levels = _codes(table, column, text.select(canonical_text(column))[column], kind, text[ROW], faults)
        feature = TableFeature(name=column, column=column, kind="categorical", levels=levels, declared=declared)
        return [(feature, value[at])]
    if kind.kind == "censored":
        number, side = limits(text[column])
        bad = text[column].is_not_null() & ~number.is_finite().fill_null(False)
    table.require_commas(column, faults)
    bad = bad | too_large(number)
    if bad.any():
        faults.add(bad_number(table, column, text[column].filter(bad), text[ROW].filter(bad)))
    coded = bool(text[column].str.contains(CODED).any())
    feature = TableFeature(name=column, column=column, declared=declared, coded=coded)
    if kind.kind == "numeric":
        return [(feature, number.to_numpy()[at])]
    censored = TableFeature(name=f"{column} censored", column=column, kind="categorical", levels=CENSORED)
    return [(feature, number.to_numpy()[at]), (censored, side.to_numpy()[at])]


def _elapsed(
    table: RawTable, text: pl.DataFrame, column: str, kind: Kind, joined: pl.DataFrame, faults: FaultCollector
) -> tuple[NDArray[np.float64], int]:
    """Days from the reference to a date or, for an age, years from the date to the reference; (n,), of `joined`.

    Dates after the prediction time are missing; their number is the second value.
    """
    place = joined["place"]
    time = times_of(table, text, column, kind.format, faults).gather(place)
    after = joined["prediction_time"] if "prediction_time" in joined.columns else None
    reference = after
    if kind.since is not None:
        since = table.column(kind.since, f"kinds.{column}.since", faults)
        rows = None if since is None else table.read([since]).join(text.select(ROW), on=ROW, maintain_order="right")
        reference = None if rows is None else times_of(table, rows, str(since), kind.format, faults).gather(place)
    if reference is None:
        return np.full(len(joined), np.nan), 0
    late = pl.Series([False]).new_from_index(0, len(time)) if after is None else (time > after).fill_null(False)
    days = ((time - reference).dt.total_microseconds() / 8.64e10).set(late, None).to_numpy().astype(np.float64)
    return (days if kind.kind == "date" else -days / 365.25), int(late.sum())


def limits(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Numbers such as <0.5: the limit, and the side of it on which the value is (a position in `CENSORED`)."""
    side = text.str.extract("^([<>≤≥])").replace_strict({"<": 1.0, "≤": 1.0, ">": 2.0, "≥": 2.0}, default=0.0)
    number = text.str.replace(r"^[<>≤≥]=?\s*", "").cast(pl.Float64, strict=False)
    return number, side.set(number.is_null(), None)


def bad_number(table: RawTable, column: str, invalid: pl.Series, rows: pl.Series) -> Fault:
    """The fault of values that are no numbers, with the declarations that would read them."""
    several = f"; {invalid.n_unique()} such values in {len(invalid)} rows" if len(invalid) > 1 else ""
    fix = "Declare codes for missing under `missing` and categories under `kinds`, or `exclude` the column."
    for pattern, hint in _HINTS.items():
        if invalid.str.contains(pattern).any():
            fix = f"{hint.format(column)} {fix}"
    expected = "a finite number, or few categories"
    return table.fault(expected, f"{cell(invalid[0])}{several}", fix, column=column, rows=rows)


def _codes(
    table: RawTable, column: str, text: pl.Series, kind: Kind, rows: pl.Series, faults: FaultCollector
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Level code per row, and the levels: those of the code list, or all that occur, in natural order."""
    present = sorted(set(text.drop_nulls().to_list()), key=_natural)
    codes, names = kind.codes, kind.levels
    if codes is None or names is None:
        codes = names = tuple(present)
        if len(codes) > MAX_LEVELS:
            expected, fix = f"at most {MAX_LEVELS} categories", "List its codes under `kinds`, or exclude it."
            faults.add(table.fault(expected, f"{len(codes)}", fix, column=column))
    invalid = [v for v in present if v not in codes]
    if invalid:
        wrong = text.is_in(invalid).fill_null(False)
        expected = f"one of the codes {', '.join(codes[:12])}"
        found = f"{cells(invalid)} ({int(wrong.sum())} rows)"
        fix = "Add them to the code list, or to `missing`."
        faults.add(table.fault(expected, found, fix, column=column, rows=rows.filter(wrong)))
    place = {v: float(i) for i, v in enumerate(codes)}
    value = text.replace_strict(place, default=None, return_dtype=pl.Float64).to_numpy()
    return np.asarray(value, dtype=np.float64), names or ("",)


def _natural(value: str) -> tuple[int, float, str]:
    """Sort key: numbers by value, before text."""
    return (0, float(value), value) if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", value, re.ASCII) else (1, 0.0, value)


def no_samples(table: RawTable, name: str, fix: str) -> Fault:
    return table.fault(f"a value of {name} for at least one sample", "none", fix)


def vectors(modality: Modality, ids: pl.Series, x: NDArray[Any]) -> Iterator[pa.RecordBatch]:
    """Record batches of the rows of x (n, d)."""
    for i in range(0, len(x), BATCH_ROWS):
        yield record_batch(modality, ids[i : i + BATCH_ROWS].to_list(), x[i : i + BATCH_ROWS])
