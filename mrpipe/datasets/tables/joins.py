"""Report lost rows of joins, ids that nearly match, and rules of the YAML that match nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

import polars as pl

from mrpipe.datasets.tables.config import UNMATCHED, Rules, TablesConfig, matches
from mrpipe.datasets.tables.files import ID, LISTED, ROW, RawTable, canonical_text
from mrpipe.errors import FaultCollector

_EDGE = r"[\s'\"\u{feff}]+"
# Differences between ids that mean the same: patterns and replacements, each applied on top of the previous ones.
_FORMS = (
    ("case, padding or quotes", f"^{_EDGE}|{_EDGE}$", ""),
    ("a decimal point", r"\.0+$", ""),
    ("spaces or punctuation", r"[^\pL\pN]", ""),
    ("leading zeros", "(^|[^0-9])0+([0-9])", "$1$2"),
    ("a prefix", "^.*?([0-9]+)$", "$1"),
)
_SUBJECT = re.compile(r"subject|patient|person|participant|(^|_)(pid|ptid|rid|mrn)(_|$)", re.IGNORECASE)


def near_miss(ids: pl.Series, known: pl.Series) -> str:
    """How many of the ids equal a known one in a looser form, with an example; empty if few do."""
    left, right = (pl.DataFrame({"id": s.drop_nulls().unique()}) for s in (ids, known))
    form = pl.col("id").str.normalize("NFKC").str.to_lowercase()
    for difference, pattern, replacement in _FORMS:
        form = form.str.replace_all(pattern, replacement)
        keyed = (t.with_columns(form.alias("key")).filter(pl.col("key") != "") for t in (left, right))
        pairs = next(keyed).join(next(keyed), on="key", how="inner").sort("id")
        n = pairs["id"].n_unique()
        # Numbers at the end of ids often agree by chance.
        if n and (difference != "a prefix" or 2 * n >= len(left)):
            example = f"such as {pairs['id'][0]!r} instead of {pairs['id_right'][0]!r}"
            return f"{n} ids differ only in {difference}, {example}"
    return ""


def alike(values: pl.Series) -> str:
    """Two of the values that differ only in case, padding or quotes, if any."""
    key = pl.col("id").str.normalize("NFKC").str.to_lowercase().str.replace_all(*_FORMS[0][1:])
    frame = pl.DataFrame({"id": values.drop_nulls().unique()}).with_columns(key.alias("key"))
    pairs = frame.filter(pl.col("key").is_duplicated()).sort("key", "id")["id"]
    return f"{pairs[0]!r} and {pairs[1]!r}" if len(pairs) else ""


def report_lost_rows(
    table: RawTable,
    rows: pl.DataFrame,
    known: pl.DataFrame,
    config: TablesConfig,
    faults: FaultCollector,
    notes: list[str],
) -> None:
    """Report rows (`__sample_id`, `__row`) whose id is unknown: a fault above the share that the YAML allows."""
    key = table.key
    if key == "row" or rows.is_empty():
        return
    file, subject = table.shown_as, config.subject
    if key == "subject_id":
        notes.append(f"{file} has no column {config.id!r}: a row serves all samples of its {subject}")
    lost = rows.filter(pl.col(ID).is_not_null()).join(known, left_on=ID, right_on=key, how="anti")
    if lost.is_empty():
        return
    share, allowed = len(lost) / len(rows), config.of_file("unmatched", file)
    hint = near_miss(lost[ID], known[key]) or f"such as {lost[ID][0]!r}"
    text = f"{len(lost)} of {len(rows)} rows ({share:.0%})"
    if share > (UNMATCHED if allowed is None else allowed):
        expected, found = f"rows of samples of {config.cohort_file}", f"{text} that match none; {hint}"
        fix = "Correct the ids, or declare `unmatched: allow` (or a larger share; see docs/tables.md)."
        faults.add(table.fault(expected, found, fix, column="id", rows=lost.sort(ROW)[ROW]))
    else:
        notes.append(f"{text} of {file} match no sample of {config.cohort_file} and are ignored; {hint}")


def _unused_codes(where: str, rules: Rules, tables: Iterable[RawTable]) -> list[str]:
    """Notes on codes that occur in none of the columns that the rules name."""
    notes = []
    for pattern, codes in rules:
        # Values that equal a code apart from case.
        near: set[str] = set()
        value, lower = pl.col("value").str.to_lowercase(), [c.lower() for c in codes]
        for table in tables:
            for column in (c for c in table.header if matches(c, pattern)):
                found = table.frame.lazy().select(canonical_text(column).alias("value")).filter(value.is_in(lower))
                near |= set(found.collect()["value"])
        for code in (c for c in codes if c not in near):
            other = sorted(v for v in near if v.lower() == code.lower())
            hint = f"; {other[0]!r} does" if other else ""
            notes.append(f"{where}: {code!r} does not occur{'' if pattern == '*' else f' in {pattern}'}{hint}")
    return notes


def unused_rules(config: TablesConfig, tables: dict[str, RawTable]) -> list[str]:
    """Notes on codes, dropped values and exclusions that match nothing, and on columns whose names nearly repeat."""
    notes = _unused_codes("missing", config.missing, tables.values())
    if config.cohort_file in tables:
        notes += _unused_codes("drop", config.drop, [tables[config.cohort_file]])
        notes += _undeclared_subject(tables[config.cohort_file], config)
    present = [(m, tables[m.file]) for m in config.modalities if m.file in tables]
    for m, table in present:
        notes += _unused_codes(f"modalities.{m.name}.missing", m.missing, [table])
        notes += _unused_codes(f"modalities.{m.name}.drop", m.drop, [table])
    for ref in dict.fromkeys(ref for m, _ in present for ref in m.exclude):
        named = [table for m, table in present if ref in m.exclude]
        if not any(table.columns([ref], "", FaultCollector(), optional=True) for table in named):
            notes.append(f"exclude: no column {ref!r} in {', '.join(sorted({t.shown_as for t in named}))}")
    for file, table in tables.items():
        repeated = [h for h in table.header if len(table.alike(h)) > 1]
        if repeated:
            listed = f"{', '.join(map(repr, repeated[:LISTED]))}{' …' if len(repeated) > LISTED else ''}"
            notes.append(f"{file}: column names that repeat, or differ only in case or padding: {listed}")
    return notes


def _undeclared_subject(table: RawTable, config: TablesConfig) -> list[str]:
    """Note columns of the cohort file that may be subjects: named so, or with values that repeat in adjacent rows."""
    if config.subject is not None:
        return []
    columns = []
    for column in table.header:
        values = table.frame[column].drop_nulls()
        n, n_distinct = len(values), values.n_unique()
        if not 10 <= n_distinct < n <= 20 * n_distinct:
            continue
        adjacent = int((values != values.shift(1)).sum()) + 1 == n_distinct and not values.str.contains(r"\.").any()
        if adjacent or _SUBJECT.search(column):
            columns.append(f"{column} ({n_distinct} values in {n} rows)")
    if not columns:
        return []
    text = "values repeat, but no `subject` is declared, so that a person may be in several splits"
    return [f"{table.shown_as}: {text}: {', '.join(columns[:LISTED])}"]
