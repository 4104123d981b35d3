"""Report lost rows of joins, and rules of the YAML that match nothing."""

import re
from collections.abc import Iterable

import polars as pl

from mrpipe.datasets.tables.config import UNMATCHED, Rules, TablesConfig, matches
from mrpipe.datasets.tables.files import ID, LISTED, ROW, RawTable
from mrpipe.datasets.tables.texts import canonical_text, id_text
from mrpipe.errors import FaultCollector, shape
from mrpipe.ids import near_miss

_BLOCK = 1000  # columns of one query, whose memory grows with them
_FIRST = 10_000
SUBJECT = re.compile(r"subject|patient|person|participant|(^|_)(pid|ptid|rid|mrn)(_|$)", re.IGNORECASE)


def report_lost_rows(
    table: RawTable,
    rows: pl.DataFrame,
    known: pl.DataFrame,
    faults: FaultCollector,
    notes: list[str],
    what: str = "rows",
) -> None:
    """Report rows (`__sample_id`, `__row`; of a long table, one per id) whose id is unknown.

    Above the share that the YAML allows, they are a fault.
    """
    key = table.key
    if key == "row" or rows.is_empty() or known.is_empty():
        return
    config, file, subject = table.config, table.shown_as, table.subject
    if key == "subject_id" and not config.of_file("level", file):
        notes.append(f"{file} has no column {table.id!r}: a row serves all samples of its {subject}")
    elif key == "sample_id" and isinstance(subject, str) and subject in table.header and file != config.cohort_file:
        persons = table.read([subject]).select(ROW, id_text(subject, config.missing).alias("person"))
        both = rows.join(persons, on=ROW).join(known, left_on=ID, right_on="sample_id")
        # An id that no sample has may be another spelling; that of another person is a contradiction.
        other = pl.col("person").is_in(known["subject_id"].implode()) & (pl.col("person") != pl.col("subject_id"))
        wrong = both.filter(other).sort(ROW)[ROW]
        if len(wrong):
            expected, found = f"the {subject} that {config.cohort_file} has for the id", f"another in {len(wrong)} rows"
            faults.add(table.fault(expected, found, "Correct one of the files.", column=subject, rows=wrong))
    if _rounded(rows[ID]) and not _rounded(known[key]):
        expected, fix = f"all digits of ids, as in {config.cohort_file}", "Spreadsheets keep 15: save the ids as text."
        faults.add(table.fault(expected, "ids of 16 and more digits that end in 0", fix, column="id"))
    lost = rows.filter(pl.col(ID).is_not_null()).join(known, left_on=ID, right_on=key, how="anti")
    if lost.is_empty():
        return
    share, allowed = len(lost) / len(rows), config.of_file("unmatched", file)
    hint = near_miss(lost[ID], known[key]) or f"such as {shape(lost[ID][0])}"
    text = f"{len(lost)} of {len(rows)} {what} ({share:.0%})"
    if share > (UNMATCHED if allowed is None else allowed):
        expected, found = f"{what} of samples of {config.cohort_file}", f"{text} that match none; {hint}"
        fix = "Correct the ids, or declare `unmatched: allow` (or a larger share; see docs/tables.md)."
        faults.add(table.fault(expected, found, fix, column="id", rows=lost.sort(ROW)[ROW]))
    else:
        notes.append(f"{text} of {file} match no sample of {config.cohort_file} and are ignored; {hint}")


def _rounded(ids: pl.Series) -> bool:
    """Whether long numbers look rounded, so that several ids may have become one."""
    return bool(ids.str.contains("^[0-9]{16,}$").any() and ids.str.ends_with("0").all() and ids.n_unique() > 4)


def _unused_codes(where: str, rules: Rules, tables: Iterable[RawTable]) -> list[str]:
    """Notes on codes that occur in none of the columns that the rules name."""
    notes = []
    for pattern, codes in rules:
        # Values that equal a code apart from case.
        near: set[str] = set()
        lower = [c.lower() for c in codes]
        for table in tables:
            columns = [c for c in table.header if matches(c, pattern)]
            for block in (columns[i : i + _BLOCK] for i in range(0, len(columns), _BLOCK)):
                text = {c: canonical_text(c) for c in block}
                alike = [
                    v.filter(v.str.to_lowercase().is_in(lower)).unique().implode().alias(c) for c, v in text.items()
                ]
                found = table.source.select(alike).collect(engine="streaming")
                near |= {value for column in found for value in column[0]}
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
    if config.has_subjects:
        return []
    columns, first = [], table.source.select(table.header).head(_FIRST).collect()
    for column in table.header:
        values = first[column].drop_nulls()
        if not values.is_duplicated().any():
            # A column of a long file is read only if its values may repeat.
            continue
        if table.n_rows > _FIRST:
            # Held values, unless float32 rounds them, because a pass over the file for each column takes minutes.
            held = table.held.get(column)
            exact = held is not None and (held.dtype != pl.Float32 or held.is_between(-(2**24), 2**24).all())
            values = (held if held is not None and exact else table.read([column])[column]).drop_nulls()
        n, n_distinct = len(values), values.n_unique()
        if not 10 <= n_distinct < n <= 20 * n_distinct:
            continue
        fractions = values % 1 != 0 if values.dtype == pl.Float32 else values.cast(pl.String).str.contains(r"\.")
        adjacent = int((values != values.shift(1)).sum()) + 1 == n_distinct and not fractions.any()
        if adjacent or SUBJECT.search(column):
            columns.append(f"{column} ({n_distinct} values in {n} rows)")
    if not columns:
        return []
    text = "values repeat, but no `subject` is declared, so that a person may be in several splits"
    return [f"{table.shown_as}: {text}: {', '.join(columns[:LISTED])}"]
