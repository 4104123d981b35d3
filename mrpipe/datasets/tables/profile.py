"""Profiles of tables for `mrpipe init tables`: kinds of columns, columns that join files, columns missing together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from mrpipe.datasets.tables.check import FEW_CODES, ID_ROWS
from mrpipe.datasets.tables.config import Ref, TablesConfig
from mrpipe.datasets.tables.features import MAX_LEVELS, inferred_kind
from mrpipe.datasets.tables.files import RawTable, canonical_text, id_text, known_text, read_table, too_large
from mrpipe.datasets.tables.joins import SUBJECT
from mrpipe.errors import DataError
from mrpipe.store.splits import PART_ALIASES

ID_NAME = re.compile(
    r"((^|[^a-z]|visit|stay|record|case|sample|patient|subject|person|study|hadm|pt)id|key|mrn|number)s?$|"
    r"(^|_)(visit|stay|encounter|record|case|sample|admission)$",
    re.IGNORECASE,
)
# Common codes for missing: words, and numbers if they are outside the range of the other values.
_WORDS = ("unknown", "unk", "missing", "not done", "not available", "not recorded", "refused", "n.a.", "?", "-", "--")
_NUMBERS = {-1.0, *(sign * float(n) for n in (9, 99, 999, 9999, 88, 888, 8888) for sign in (1, -1))}
_DATE = r"^([0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}|[0-9]{1,2}[./-][0-9]{1,2}[./-]([0-9]{2}){1,2})([ T][0-9:.]+)?"
# Values are quoted only if so many rows share each of so few, so that none is the name of a person.
_SHARED_BY, _QUOTED = 3, 20
# Columns known in this share of the rows form no block; distance (1 - phi) at which blocks are cut.
USUAL, _CUT, _MAX_BLOCKS, _SAMPLED_ROWS = 0.9, 0.4, 12, 20_000


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        ref: its name, or its position if several columns share the name.
        kind: number, codes (few whole numbers), categories, date, text, identifier, mixed (numbers and other text),
            empty, or the dtype of a column without plain values.
        levels: number of rows of each value; empty if values may not be quoted.
        codes: values that may be codes for missing.
        unique, joins: whether values do not repeat (apart from a few errors), and whether they may be ids.
    """

    name: str
    ref: Ref
    kind: str
    n_known: int = 0
    n_distinct: int = 0
    levels: dict[str, int] = field(default_factory=dict)
    codes: tuple[str, ...] = ()
    unique: bool = False
    joins: bool = False

    @property
    def classes(self) -> dict[str, int]:
        return {v: n for v, n in self.levels.items() if v not in self.codes}

    @property
    def is_split(self) -> bool:
        """Whether the values are names of the parts of a split."""
        return {"train", "test"} <= {PART_ALIASES.get(v.lower(), "") for v in self.levels} <= {"train", "val", "test"}


@dataclass(frozen=True)
class Sheet:
    """A table and the profiles of its columns."""

    table: RawTable
    columns: dict[str, Column]

    @property
    def file(self) -> str:
        return self.table.shown_as

    @property
    def n(self) -> int:
        return len(self.table.frame)

    def ids(self, column: str) -> pl.Series:
        """The distinct values of a column of ids."""
        return self.table.frame.select(id_text(column, ()).alias("id"))["id"].drop_nulls().unique()


def profile(raw: Path, file: str) -> Sheet:
    """Read a table, in UTF-8 or else in Windows-1252, and profile its columns.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        table = read_table(raw, file, TablesConfig(shown_as="tables.yaml"))
    except DataError as error:
        try:
            table = read_table(raw, file, TablesConfig(shown_as="tables.yaml", by_file=(("encoding", file, "cp1252"),)))
        except DataError:
            raise error from None
    return Sheet(table, {name: _column(table, name) for name in table.header})


def _column(table: RawTable, name: str) -> Column:
    header = table.header
    place = -1 if name == header[-1] else header.index(name) + 1
    ref: Ref = name if len(table.alike(name)) == 1 else place
    text = table.frame.select(canonical_text(known_text(name, ())))[name].drop_nulls()
    if text.is_empty():
        return Column(name=name, ref=ref, kind=table.odd.get(name, "empty"))
    word = text.str.to_lowercase().is_in(_WORDS)
    number = text.filter(~word).cast(pl.Float64, strict=False)
    counts = text.value_counts().sort(pl.col(name).cast(pl.Float64, strict=False), name, nulls_last=True)
    n_distinct, whole = len(counts), bool(text.filter(~word).str.contains("^-?[0-9]+$").all())
    unique = n_distinct >= 0.95 * len(text)
    kind = _kind(name, text.filter(~word), number, n_distinct, whole and unique and len(text) >= ID_ROWS, whole)
    person = SUBJECT.search(name) or ID_NAME.search(name)
    quoted = not person and n_distinct <= _QUOTED and (counts["count"] >= _SHARED_BY).all()
    codes = [*text.filter(word).unique().sort(), *(_outside(number) if kind in ("number", "codes") else ())]
    return Column(
        name=name,
        ref=ref,
        kind=kind,
        n_known=len(text),
        n_distinct=n_distinct,
        levels=dict(counts.iter_rows()) if quoted else {},
        codes=tuple(codes),
        unique=unique,
        joins=len(text) >= 0.99 * len(table.frame) and (whole or kind in ("identifier", "text", "categories")),
    )


def _kind(name: str, text: pl.Series, number: pl.Series, n_distinct: int, unique_whole: bool, whole: bool) -> str:
    """Kind of a column, from its values apart from words for missing."""
    bad = ~number.is_finite().fill_null(False) | too_large(number)
    if text.str.contains(_DATE).sum() > 0.95 * len(text):
        return "date"
    if bad.any() and not bad.all() and inferred_kind(text, number, bad).kind == "numeric" and n_distinct > FEW_CODES:
        return "mixed"
    if bad.any() or text.str.contains("^-?0[0-9]").any():
        return "categories" if n_distinct <= MAX_LEVELS else "text"
    if unique_whole and (ID_NAME.search(name) or number.is_sorted()):
        return "identifier"
    return "codes" if whole and 2 < n_distinct <= FEW_CODES else "number"


def _outside(number: pl.Series) -> list[str]:
    """Usual numbers for missing that are far from the other values."""
    coded = number.is_in(_NUMBERS)
    others = number.filter(~coded).to_numpy()
    found = number.filter(coded).unique().sort() if len(others) else ()
    return [f"{v:.0f}" for v in found if (v < 0 <= others.min()) or v > 3 * max(others.max(), 1)]


def linked(sheet: Sheet, column: str, other: Sheet) -> str | None:
    """The column of another table whose values are ids in a column of this one, preferably of the same name."""
    ids, best = sheet.ids(column), (0.0, "")
    for c in (c for c in other.columns.values() if c.joins):
        same = c.name == column
        if same or ID_NAME.search(c.name) or SUBJECT.search(c.name) or (c.kind == "text" and c.n_distinct >= 20):
            share = float(other.ids(c.name).is_in(ids.implode()).sum()) / c.n_distinct
            best = max(best, (share + same, c.name)) if share >= (0.3 if same else 0.8) else best
    return best[1] or None


def blocks(sheet: Sheet, columns: Sequence[str]) -> list[list[str]]:
    """Groups of columns that are missing together; the first are those that are usually known, if any."""
    known = sheet.table.frame.select(known_text(c, ()).is_not_null() for c in columns)
    known = known.gather_every(len(known) // _SAMPLED_ROWS + 1)
    share = dict(zip(columns, known.mean().row(0), strict=True))
    gaps = [c for c in columns if 0 < share[c] < USUAL]
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
