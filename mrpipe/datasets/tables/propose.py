"""`mrpipe init tables`: proposes a declaration of tables, with the reason for each guess as a comment."""

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mrpipe.datasets.tables.config import Ref
from mrpipe.datasets.tables.joins import SUBJECT
from mrpipe.datasets.tables.parser import SCHEMA
from mrpipe.datasets.tables.profile import ID_NAME, USUAL, ColumnProfile, Sheet, blocks, linked, names_of, patterns
from mrpipe.datasets.tables.texts import has_name
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError, values_shown
from mrpipe.forms import is_table
from mrpipe.raw import few
from mrpipe.store.masks import MAX_MODALITIES
from mrpipe.store.parquet import write_text

# Names of values that are known only after the outcome, and of other columns that may be labels.
_FINAL = r"outcome|label$|target|death|dead|died|mortality|surviv|expired|readmi|discharge|length_of_stay|(^|_)los(_|$)"
_OUTCOME = _FINAL + r"|^class$|^y$|diagnos|(^|_)dx|relapse|recur|progress|respon|event|stage|severity|status|grade"
# With more columns of few whole numbers, these are counts or grey values rather than codes; longest list of levels.
_MANY, _LISTED = 8, 12
# Roles of the columns of a long table: usual names, kinds of such columns, and kinds of columns with other names.
_LONG = {
    "unit": ("unit|uom", ("categories",), ()),
    "item": (
        "item|code|test|param|analyte|concept|variable",
        ("categories", "text", "codes", "number"),
        ("categories",),
    ),
    "value": ("val|result|num|measure", ("number", "codes", "censored"), ("number", "censored")),
    "time": ("time|date|drawn|taken", ("date",), ("date",)),
}
_UNUSED = {
    "date": "a date; `kind: date` counts days, see docs/tables.md",
    "identifier": "looks like an identifier",
    "mixed": "numbers and other text: correct it, or declare codes under `missing`",
    "empty": "no values",
    "text": "free text or names; `kind: text` encodes it",
}


def init(paths: Sequence[Path], out: Path | None, *, overwrite: bool = False) -> str:
    """Write a declaration of tables (files, or all in a folder); returns the commands to type next.

    Raises:
        UsageError: if `out` exists and is not to be overwritten, or there is no table.
        DataError: as `propose`.
    """
    found = [filter(is_table, p.iterdir()) if p.is_dir() else [p] for p in paths]
    files = sorted({f.resolve() for fs in found for f in fs})
    if not files:
        raise UsageError(f"no table in {', '.join(map(str, paths))}")
    raw = Path(os.path.commonpath([f.parent for f in files]))
    target = out or raw / "tables.yaml"
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists: choose another --out, or --overwrite it")
    write_text(target, propose(raw, [f.relative_to(raw).as_posix() for f in files]))
    arguments = f"tables --raw {shlex.quote(os.path.relpath(raw) if raw.is_relative_to(Path.cwd()) else str(raw))}"
    if target.resolve() != raw / "tables.yaml":
        arguments += f" --set config={shlex.quote(str(target.resolve()))}"
    beside = f"{os.path.relpath(raw.parent)}/" if Path.cwd().is_relative_to(raw) else ""
    return (
        f"{target}: a proposal from {len(files)} tables. Read its comments, correct it, then:\n"
        f"  mrpipe check {arguments}\n  mrpipe build {arguments} --out {beside}stores/mine\n"
        f"  mrpipe train --store {beside}stores/mine --out {beside}runs/mine --method moe_retriever"
    )


def propose(raw: Path, files: Sequence[str]) -> str:
    """Text of a YAML that declares the tables, whose paths are relative to `raw`.

    Values that several rows share are part of it (of texts if values may be printed), and usual codes for missing.

    Raises:
        DataError: if files cannot be read, no column joins them, or no column can be a label.
    """
    faults = FaultCollector()
    sheets = [sheet for file in files if (sheet := faults.attempt(Sheet, raw, file)) is not None]
    faults.raise_if_any()
    return "\n".join(_Proposal(_join(sheets)).lines()) + "\n"


@dataclass(frozen=True)
class TableJoin:
    """How tables are joined.

    Attributes:
        rows: tables with at most one row per sample or subject, that of the samples first.
        id, subject: columns of the samples' table; without an id, rows are joined by order.
        ids, subjects: file → its own column of them, of the tables that are joined by it.
        long: file → the keys of a long table.
        left: the other files, with the reason.
    """

    rows: list[Sheet]
    id: str | None = None
    subject: str | None = None
    ids: dict[str, str] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    long: dict[str, dict[str, ColumnProfile]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def by_sample(self) -> list[Sheet]:
        return [s for s in self.rows if self.id is None or s is self.rows[0] or s.file in self.ids]

    def features(self, sheet: Sheet) -> list[ColumnProfile]:
        """All columns with names but ids and subjects."""
        own = {self.ids.get(sheet.file, self.id), self.subjects.get(sheet.file, self.subject)}
        return [c for c in sheet.columns.values() if c.name not in own and has_name(c.name)]


def _join(sheets: list[Sheet]) -> TableJoin:
    """The join of most tables, by an id that is unique in one of them or by order."""
    found = [
        _join_by(sheet, c.name, [o for o in sheets if o is not sheet])
        for sheet in sheets
        for c in sheet.columns.values()
        if c.joins and c.unique and (c.kind in ("identifier", "text", "categories") or ID_NAME.search(c.name))
    ]
    # Row numbers, which R and pandas write without a name, come last.
    named = [(bool(ID_NAME.search(j.id or "")), has_name(j.id or "")) for j in found]
    rank = [(len(j.rows) + len(j.long), j.subject is not None, *named[i], j.rows[0].n) for i, j in enumerate(found)]
    unnamed = ((s.table, c.name) for s in sheets for c in s.columns.values() if c.n_known and not has_name(c.name))
    numbers = [table.read([name])[name].to_list() for table, name in unnamed]
    # Row numbers of pandas or R that differ show that the rows are not in the same order.
    same_order = len({s.n for s in sheets}) == 1 and all(n == numbers[0] for n in numbers)
    if same_order and max(rank, default=(0,))[0] < len(sheets):
        return TableJoin(sheets)
    if not found:
        expected, file = "a column of ids that is unique in one file and occurs in the others", [s.file for s in sheets]
        raise DataError(Fault(file=few(file), expected=expected, found="none"))
    return found[rank.index(max(rank))]


def _join_by(people: Sheet, id: str, others: list[Sheet]) -> TableJoin:
    keys = {o.file: linked(people, id, o) for o in others}
    rest = [o for o in others if keys[o.file] is None]
    subject, n_most = None, 0
    for c in people.columns.values():
        if c.name != id and c.joins and 10 <= c.n_distinct < c.n_known <= 20 * c.n_distinct:
            n = sum(key is not None and o.columns[key].unique for o in rest for key in [linked(people, c.name, o)])
            if n > n_most or (subject is None and SUBJECT.search(c.name)):
                subject, n_most = c.name, n
    joined = TableJoin([people], id, subject)
    for o in others:
        if key := keys[o.file]:
            joined.ids[o.file] = key
        elif subject and (key := linked(people, subject, o)):
            joined.subjects[o.file] = key
        if key is None:
            joined.left[o.file] = "no column has the ids of the samples"
        elif o.columns[key].unique:
            joined.rows.append(o)
        elif long := _long(o, key):
            joined.long[o.file] = long
        else:
            joined.left[o.file] = f"several rows per {key}: aggregate them first"
    return joined


def _long(sheet: Sheet, key: str) -> dict[str, ColumnProfile]:
    """Columns of a long table, one row per measurement; empty if none can name what was measured."""
    found: dict[str, ColumnProfile] = {}
    for role, (pattern, kinds, otherwise) in _LONG.items():
        free = [c for c in sheet.columns.values() if c.name != key and c not in found.values() and has_name(c.name)]
        named = [c for c in free if c.kind in kinds and re.search(pattern, c.name, re.IGNORECASE)]
        if named or (named := [c for c in free if c.kind in otherwise]):
            found[role] = named[0]
    item = found.get("item")
    return found if item is not None and 2 * item.n_distinct <= sheet.n else {}


def _scalar(value: Ref) -> str:
    words = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
    plain = isinstance(value, int) or (re.fullmatch(r"[A-Za-z][\w.-]*", value, re.ASCII) and value.lower() not in words)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _mapping(entries: Mapping[str, Ref]) -> str:
    return f"{{{', '.join(f'{_scalar(k)}: {_scalar(v)}' for k, v in entries.items())}}}"


def _named(column: str, other: Mapping[str, str]) -> str:
    """A column, with its names in the files that have another one."""
    other = {file: name for file, name in other.items() if name != column}
    return _mapping({"*": column, **other}) if other else _scalar(column)


def _codes(values: Iterable[str]) -> str:
    return f"[{', '.join(v if re.fullmatch('0|-?[1-9][0-9]*', v, re.ASCII) else _scalar(v) for v in values)}]"


class _Proposal:
    """The label, the columns that are no features, and the modalities of joined tables."""

    def __init__(self, joined: TableJoin):
        self.joined = joined
        self.sheet, self.label, self.why = self._choose_label()
        times = [c for c in joined.features(joined.rows[0]) if c.kind == "date" and c.format is not None]
        self.time = max(
            reversed(times), key=lambda c: bool(re.search("predict|index", c.name, re.IGNORECASE)), default=None
        )
        if not any("time" in long for long in joined.long.values()):
            self.time = None
        self.unused: dict[tuple[str, Ref], str] = {}
        self.used: dict[str, list[ColumnProfile]] = {s.file: [] for s in joined.rows}
        for sheet, c in ((s, c) for s in joined.rows for c in joined.features(s)):
            if c.name == self.label.name:
                reason = "the label" if joined.id is None or c is not self.label else ""
            elif c.is_split or not (c.is_feature or (c.format is not None and c.kind == "date" and self.time)):
                reason = _UNUSED.get(c.kind, "a split" if c.is_split else f"values of type {c.kind}")
                reason = reason if c.nearly is None else sheet.other_date(c.name, c.nearly)
            else:
                reason = "may be known only after the outcome" if re.search(_FINAL, c.name, re.IGNORECASE) else ""
            if reason:
                self.unused[sheet.file, c.ref] = reason
            elif c is not self.label and c is not self.time:
                self.used[sheet.file].append(c)

    def _choose_label(self) -> tuple[Sheet, ColumnProfile, str]:
        """The likeliest label, its table, and the reason with the other candidates."""
        found: list[tuple[float, Sheet, ColumnProfile, str]] = []
        for sheet in self.joined.by_sample:
            columns = self.joined.features(sheet)
            for c in (c for c in columns if c.is_feature):
                n = len(c.levels.keys() - set(c.codes))
                named, final = (bool(re.search(p, c.name, re.IGNORECASE)) for p in (_OUTCOME, _FINAL))
                reasons = {
                    "named like an outcome": 4 * named + final,
                    "the only column of its file": 3 * (len(columns) == 1 and sheet is not self.joined.rows[0]),
                    "the last column": int(c is columns[-1]),
                    f"{n} classes": 1 if n == 2 else 0.5 * (n > 2),
                }
                why = ", ".join(r for r, points in reasons.items() if points) or "no column is named like an outcome"
                if n > 1 or c.kind == "number":
                    found.append((sum(reasons.values()), sheet, c, why))
        if not found:
            expected = "a column that can be a label: few distinct values, or numbers"
            raise DataError(Fault(file=self.joined.rows[0].file, expected=expected, found="none"))
        score, sheet, label, why = max(found, key=lambda f: f[0])
        others = [f"{c.ref} ({s.file})" for x, s, c, _ in found if c is not label and x >= max(2, score - 4)]
        return sheet, label, f"{why}; other candidates: {few(others)}" if others else why

    def lines(self) -> Iterator[str]:
        joined, people = self.joined, self.joined.rows[0]
        yield f"# yaml-language-server: $schema={SCHEMA.as_uri()}"
        yield "# Proposed by `mrpipe init tables`; comments give the reasons. Correct it, then run"
        yield "# `mrpipe check tables`. All keys: docs/tables.md."
        yield f"title: My study\nfile: {_scalar(people.file)}  # its {people.n} rows are the samples"
        if joined.id is None:
            yield "join: order  # no column of ids joins the files: row k of each file is sample k"
        else:
            also = few([s.file for s in joined.by_sample[1:]])
            yield f"id: {_named(joined.id, joined.ids)}  # unique in {people.file}{also and f'; also in {also}'}"
        if joined.subject is not None:
            n, subject = people.columns[joined.subject].n_distinct, _named(joined.subject, joined.subjects)
            yield f"subject: {subject}  # {n} subjects; all samples of one are in the same split"
        if self.time is not None:
            form = {"format": self.time.format} if self.time.format else {}
            time = _mapping({"column": self.time.ref, **form}) if form else _scalar(self.time.ref)
            yield f"prediction_time: {time}  # later values are never features: is it this time?"
        yield from (f"# {file} is not used: {why}" for file, why in joined.left.items())
        yield from (f"# {note}" for sheet in joined.rows for note in sheet.table.notes)
        if cp1252 := [s.file for s in joined.rows if s.table.config.by_file]:
            yield f"encoding: {_mapping(dict.fromkeys(cp1252, 'cp1252'))}  # not UTF-8"
        yield from self._missing()
        yield from self._excluded()
        yield from self._modalities()
        name = re.sub(r"\W+", "_", self.label.name, flags=re.ASCII).strip("_")
        yield f"label:  # {self.why}"
        yield f"  name: {_scalar(name) if re.match('[A-Za-z]', name) else 'label'}"
        yield f"  file: {_scalar(self.sheet.file)}\n  column: {_scalar(self.label.ref)}"
        if classes := [v for v in self.label.levels if v not in self.label.codes]:
            yield f"  classes: {_codes(classes)}  # or names: {{value: name, …}}"
        else:
            yield "  kind: regression  # numbers; or `threshold: 10` for two classes"
        for sheet, c in ((s, c) for s in joined.by_sample for c in s.columns.values() if c.is_split):
            group = joined.subject if joined.subject in sheet.columns else None
            divided = group and (sheet.table.read([group, c.name]).group_by(group).n_unique()[c.name] > 1).any()
            yield (
                f"{'# ' if divided else ''}split: {{file: {_scalar(sheet.file)}, column: {_scalar(c.ref)}}}"
                f"  # {'not used: subjects are in several parts' if divided else 'its values are names of parts'}"
            )
            if not divided:
                break

    def _missing(self) -> Iterator[str]:
        """Codes without which the files cannot be read; others as a comment."""
        columns = {c.name: c for s in self.joined.rows for c in s.columns.values() if c.codes and c.is_feature}
        reasons = {n: "the label" if c is self.label else "text among numbers" for n, c in columns.items()}
        for name, c in columns.items():
            if c is not self.label and (c.kind == "categories" or all(v.lstrip("-").isdigit() for v in c.codes)):
                del reasons[name]
        if columns:
            yield f"{'' if reasons else '# '}missing:  # codes for missing? Confirm those that are comments"
        for name in sorted(columns, key=lambda n: n not in reasons):
            why = f"  # {reasons[name]}" if name in reasons else ""
            yield f"{'' if why else '# '}  {_scalar(name)}: {_codes(columns[name].codes)}{why}"

    def _excluded(self, file: str = "") -> Iterator[str]:
        """Columns that are no features, in all files; of a file, those that would name features of another one."""
        indent, named = "    " if file else "", set[Ref]()
        for sheet in self.joined.rows:
            names, refs = {c.name for c in self.used[sheet.file]}, {ref for _, ref in self.unused}
            named |= {r for r in refs if names & set(sheet.table.columns([r], "", FaultCollector(), optional=True))}
        found = {ref: why for (of, ref), why in self.unused.items() if file == (of if ref in named else "")}
        yield from [f"{indent}exclude:"] if found else []
        yield from (f"{indent}- {_scalar(ref)}  # {why}" for ref, why in found.items())

    def _modalities(self) -> Iterator[str]:
        """One modality per file; in a single file, one per group of columns that are missing together."""
        used, long = {file: columns for file, columns in self.used.items() if columns}, self.joined.long
        files = [*used, *long]
        sheet = next((s for s in self.joined.rows if [s.file] == files), None)
        wide = blocks(sheet, [c.name for c in used[sheet.file]]) if sheet else []
        if sheet is None or len(wide) < 2:
            yield "modalities:  # one per file; docs/tables.md shows how to divide a file by columns"
            for name, file in list(zip(names_of(files), files, strict=True))[:MAX_MODALITIES]:
                yield f"  {name}:\n    file: {_scalar(file)}"
                yield from self._excluded(file)
                yield from self._kinds(used[file]) if file in used else self._long(long[file])
            return
        yield "modalities:  # columns that are missing together: rename and regroup them"
        for name, block in zip(names_of([re.split("[_. ]", b[0])[0].lower() for b in wide]), wide, strict=True):
            found = [sheet.columns[c] for c in block]
            shares = sorted(c.n_known / sheet.n for c in found)
            share = " to ".join(dict.fromkeys(f"{s:.0%}" for s in (shares[0], shares[-1])))
            yield f"  {'usual' if block is wide[0] and shares[-1] >= USUAL else name}:  # known in {share} of the rows"
            yield f"    file: {_scalar(sheet.file)}\n    columns: [{', '.join(map(_scalar, patterns(sheet, found)))}]"
            yield from self._kinds(found)

    def _kinds(self, columns: list[ColumnProfile]) -> Iterator[str]:
        """Kinds of categorical columns; a name that several columns share cannot be declared."""
        declared = ("codes", "categories", "censored", "date")
        named = [c for c in columns if isinstance(c.ref, str) and c.kind in declared]
        n_coded = sum(c.kind == "codes" for c in named)
        if named:
            yield "    kinds:"
        if n_coded > _MANY:
            yield f'      "*": numeric  # {n_coded} columns have few whole numbers: counts rather than codes?'
        for c in (c for c in named if c.kind != "codes" or n_coded <= _MANY):
            listed = 0 < len(c.levels) <= _LISTED and (values_shown() or c.kind == "codes")
            kind, why = _codes(c.levels) if listed else "categorical", f"text, {c.n_distinct} values"
            if c.kind == "codes":
                why = "few whole numbers: codes? With names: {1: never, …}; or `numeric`"
            elif c.kind == "censored":
                kind, why = "censored", "some values are limits, such as <0.5: the limit and a flag"
            elif c.kind == "date":
                kind, why = ("age", "years") if re.search("birth|born|dob", c.name, re.IGNORECASE) else ("date", "days")
                why = f"{why} before the prediction; unknown if later"
                kind = _mapping({"kind": kind, "format": c.format}) if c.format else kind
            yield f"      {_scalar(c.name)}: {kind}  # {why}"

    def _long(self, columns: dict[str, ColumnProfile]) -> Iterator[str]:
        """A long table: a sequence of events or, without times, statistics of each item."""
        roles = ("item", "value", "unit", *(["time"] if self.time is not None else []))
        keys: dict[str, Ref] = {role: columns[role].ref for role in roles if role in columns}
        why = "several rows per sample: a sequence of measurements"
        if form := columns["time"].format if "time" in keys else "":
            keys["format"] = form
        declared = _mapping(keys)
        if "time" not in keys:
            why = "several rows per sample, without times: are all from before the prediction?"
            declared = f"{declared[:-1]}, aggregate: [mean, min, max, count]}}"
        yield f"    long: {declared}  # {why}"
        if "value" in columns:
            yield from self._kinds([columns["value"]] if columns["value"].kind == "censored" else [])
