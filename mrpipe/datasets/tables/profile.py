"""Profiles of tables for `mrpipe init tables`: kinds of columns, columns that join files, columns missing together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from mrpipe.datasets.tables.check import FEW_CODES, ID_ROWS
from mrpipe.datasets.tables.config import Ref, TablesConfig, matches
from mrpipe.datasets.tables.features import MAX_LEVELS, inferred_kind
from mrpipe.datasets.tables.files import RawTable, read_table
from mrpipe.datasets.tables.joins import SUBJECT
from mrpipe.datasets.tables.texts import canonical_text, clock, id_text, known_text, too_large
from mrpipe.errors import DataError
from mrpipe.store.splits import PART_ALIASES

ID_NAME = re.compile(
    r"((^|[^a-z]|visit|stay|record|case|sample|patient|subject|person|study|hadm|pt)id|key|mrn|number)s?$|"
    r"(^|_)(visit|stay|encounter|record|case|sample|admission)$",
    re.IGNORECASE,
)
# Common codes for missing: words, and numbers if they are outside the range of the other values.
_WORDS = ("unknown", "unk", "missing", "not done", "not available", "not recorded", "refused", "n.a.", "?", "-", "--")
_NUMBERS = [-1, *(sign * n for n in (9, 99, 999, 9999, 88, 888, 8888) for sign in (1, -1))]
_DATE = r"^([0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}|[0-9]{1,2}[./-][0-9]{1,2}[./-]([0-9]{2}){1,2})([ T][0-9:.]+)?"
_LIMIT = r"^[<>≤≥]=?\s*[0-9]*[.,]?[0-9]+$"
_FORMATS = (
    "",
    *(f"{day}{time}" for day in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y") for time in ("", " %H:%M", " %H:%M:%S")),
)
# Values are quoted only if so many rows share each of so few, so that none is the name of a person.
_SHARED_BY, _QUOTED = 3, 20
# Columns known in this share of the rows form no block; distance (1 - phi) at which blocks are cut.
USUAL, _CUT, _MAX_BLOCKS, _SAMPLED_ROWS = 0.9, 0.4, 12, 20_000
# Columns in memory at once.
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """A column of a table as it looks.

    Attributes:
        ref: its name, or its position if several columns share the name.
        kind: number, codes (few whole numbers), categories, date, text, identifier, censored (numbers and limits such
            as <0.5), mixed (numbers and other text), empty, or the dtype of a column without plain values.
        format: of dates, empty for ISO 8601; None if it is unknown.
        nearly: the format of most dates, if others are not of it.
        levels: number of rows of each value; empty if values may not be quoted.
        codes: values that may be codes for missing.
        unique, joins: whether values do not repeat (apart from a few errors), and whether they may be ids.
    """

    name: str
    ref: Ref
    kind: str
    format: str | None = None
    nearly: str | None = None
    n_known: int = 0
    n_distinct: int = 0
    levels: dict[str, int] = field(default_factory=dict)
    codes: tuple[str, ...] = ()
    unique: bool = False
    joins: bool = False

    @property
    def is_feature(self) -> bool:
        return self.kind in ("number", "codes", "categories", "censored") and not self.is_split

    @property
    def is_split(self) -> bool:
        """Whether the values are names of the parts of a split."""
        return {"train", "test"} <= {PART_ALIASES.get(v.lower(), "") for v in self.levels} <= {"train", "val", "test"}


class Sheet:
    """A table, read in UTF-8 or else in Windows-1252, and the profiles of its columns.

    Raises:
        DataError: if it cannot be read.
    """

    def __init__(self, raw: Path, file: str):
        self.file = file
        try:
            self.table = read_table(raw, file, TablesConfig(shown_as="tables.yaml"))
        except DataError as error:
            config = TablesConfig(shown_as="tables.yaml", by_file=(("encoding", file, "cp1252"),))
            try:
                self.table = read_table(raw, file, config)
            except DataError:
                raise error from None
        self.n, header = self.table.n_rows, self.table.header
        parts = (header[i : i + _AT_ONCE] for i in range(0, len(header), _AT_ONCE))
        self.columns = {
            c: _column(self.table, frame[c]) for part in parts for frame in [self.table.read(part)] for c in part
        }

    def ids(self, column: str) -> pl.Series:
        """The distinct values of a column of ids."""
        return self.table.read([column]).select(id_text(column, ()).alias("id"))["id"].drop_nulls().unique()

    def other_date(self, column: str, form: str) -> str:
        """The place of the first date that is not of a format, without its value."""
        other = known_text(column, ()).is_not_null() & clock(column, form).is_null()
        rows, form = self.table.read([column]).filter(other)["__row"], f"dates of the format {form or 'ISO 8601'}"
        return str(self.table.fault(form, "another format", column=column, rows=rows))


def _column(table: RawTable, raw: pl.Series) -> ColumnProfile:
    header, name = table.header, raw.name
    ref = name if len(table.alike(name)) == 1 else -1 if name == header[-1] else header.index(name) + 1
    text = raw.to_frame().select(canonical_text(known_text(name, ())))[name].drop_nulls()
    if text.is_empty():
        return ColumnProfile(name=name, ref=ref, kind=table.odd.get(name, "empty"))
    counts = text.value_counts().sort(pl.col(name).cast(pl.Float64, strict=False), name, nulls_last=True)
    word = counts[name].str.to_lowercase().is_in(_WORDS)
    words, values = counts[name].filter(word), counts[name].filter(~word)
    number = values.cast(pl.Float64, strict=False)
    bad = ~number.is_finite().fill_null(False) | too_large(number)
    numeric = not bad.all() and inferred_kind(values, number, bad).kind == "numeric"
    n_distinct, whole = len(counts), bool(values.str.contains("^-?[0-9]+$").all())
    unique, person = n_distinct >= 0.95 * len(text), SUBJECT.search(name) or ID_NAME.search(name)
    if values.str.contains(_DATE).sum() > 0.95 * len(values):
        kind = "date"
    elif bad.any() and numeric and n_distinct > FEW_CODES:
        kind = "censored" if values.filter(bad).str.contains(_LIMIT).all() else "mixed"
    elif bad.any() or values.str.contains("^-?0[0-9]").any():
        kind = "categories" if n_distinct <= MAX_LEVELS else "text"
    elif whole and unique and len(text) >= ID_ROWS and (person or text.cast(pl.Float64, strict=False).is_sorted()):
        kind = "identifier"
    else:
        kind = "codes" if whole and 2 < n_distinct <= FEW_CODES else "number"
    others = {f: values.to_frame().select(clock(name, f)).null_count().item() for f in _FORMATS * (kind == "date")}
    form = min(others, key=lambda f: others[f], default="")
    quoted = not person and n_distinct <= _QUOTED and (counts["count"] >= _SHARED_BY).all()
    return ColumnProfile(
        name=name,
        ref=ref,
        kind=kind,
        format=form if others.get(form) == 0 else None,
        nearly=form if 0 < others.get(form, 0) < len(values) / 2 else None,
        n_known=len(text),
        n_distinct=n_distinct,
        levels=dict(counts.iter_rows()) if quoted else {},
        codes=(*words, *(_outside(number.to_numpy()) if kind in ("number", "codes") else ())),
        unique=unique,
        joins=bool(name) and len(text) >= 0.99 * len(raw) and (whole or kind in ("identifier", "text", "categories")),
    )


def _outside(number: NDArray[np.float64]) -> list[str]:
    """Usual numbers for missing that are far from the other values; all are sorted."""
    coded = np.isin(number, _NUMBERS)
    low, high = (f(number[~coded], initial=0) for f in (np.min, np.max))
    return [f"{v:.0f}" for v in number[coded] if (v < 0 <= low) or v > 3 * max(high, 1)] if not coded.all() else []


def linked(sheet: Sheet, column: str, other: Sheet) -> str | None:
    """The column of another table whose values are ids in a column of this one, preferably of the same name.

    It has no name of another column of this table: patient 7 is not visit 7.
    """
    ids, best = sheet.ids(column), (0.0, "")
    for c in (c for c in other.columns.values() if c.joins and c.name not in sheet.columns.keys() - {column}):
        same = c.name == column
        if same or ID_NAME.search(c.name) or SUBJECT.search(c.name) or (c.kind == "text" and c.n_distinct >= 20):
            share = float(other.ids(c.name).is_in(ids.implode()).sum()) / c.n_distinct
            best = max(best, (share + same, c.name)) if share >= (0.3 if same else 0.8) else best
    return best[1] or None


def blocks(sheet: Sheet, columns: list[str]) -> list[list[str]]:
    """Groups of columns that are missing together; the first are those that are usually known, if any."""
    source = sheet.table.source.gather_every(sheet.n // _SAMPLED_ROWS + 1)
    known = source.select(known_text(c, ()).is_not_null() for c in columns).collect()
    gaps = [c for c in columns if 0 < known[c].sum() < USUAL * len(known)]
    found = [[c] for c in gaps]
    if len(gaps) > 1:
        distance = np.clip(1 - np.corrcoef(known.select(gaps).to_numpy().astype(np.float32).T), 0, 2)
        tree = linkage(squareform(distance, checks=False), "average")
        group = fcluster(tree, _CUT, "distance")
        group = group if group.max() <= _MAX_BLOCKS else fcluster(tree, _MAX_BLOCKS, "maxclust")
        found = [[c for c, g in zip(gaps, group, strict=True) if g == k] for k in dict.fromkeys(group)]
    if any(len(b) > 1 for b in found):
        # A single column is hardly a modality.
        found = [b for b in found if len(b) > 1]
    usual = [c for c in columns if not any(c in b for b in found)]
    return [b for b in (usual, *found) if b]


def patterns(sheet: Sheet, block: list[ColumnProfile]) -> list[Ref]:
    """References to columns; one pattern for those with a common first part, if no other column has it."""
    found: dict[Ref, None] = {}
    for c in block:
        pattern = re.sub(r"_[^_]*$", "_*", c.name)
        same = [h for h in sheet.columns if matches(h, pattern)]
        short = 1 < len(same) == sum(b.name in same for b in block) and not re.search(r"[*?\[]", pattern[:-1])
        found[pattern if short else c.ref] = None
    return list(found)


def names_of(texts: Sequence[str]) -> list[str]:
    """Distinct names of modalities, from names of files without suffixes and a common first part, or of columns."""
    stems = [re.sub(r"(\.[A-Za-z]\w{1,7})+$", "", Path(t).name) for t in texts]
    first = re.match(r"[^-_. ]+[-_. ]", stems[0])
    common = first[0] if first and len(stems) > 1 and all(s.startswith(first[0]) for s in stems) else ""
    names: list[str] = []
    for stem in stems:
        name = re.sub(r"\W+", "_", stem.removeprefix(common), flags=re.ASCII).strip("_")
        name = name if re.match("[A-Za-z]", name) else f"table_{name}"
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names
