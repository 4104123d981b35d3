"""Parser of the YAML that declares a dataset of tables; reports all of its errors at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from mrpipe.datasets.tables.config import (
    KINDS,
    MISSING,
    Kind,
    Label,
    Long,
    ModalityTable,
    Ref,
    Rules,
    Split,
    TablesConfig,
    TablesOptions,
    canonical,
    codes_of,
)
from mrpipe.datasets.tables.files import clock
from mrpipe.datasets.tables.yaml_text import YamlText
from mrpipe.delimited import decode
from mrpipe.errors import DataError, Fault, MrpipeError, did_you_mean
from mrpipe.store.splits import PART_ALIASES, PARTS
from mrpipe.text.encoders import require_encoder

MAX_MODALITIES = 16
# Keys with one value for all files, or file: value; the pattern of their values, and its description.
BY_FILE = {
    "encoding": (r"[A-Za-z][\w-]+", "an encoding, such as cp1252 or latin-1"),
    "separator": (r"[\t ,;:|~^!#&]", 'one character, such as ";", "|" or "\\t"'),
    "decimal": (r"[.,]", '"." or ","'),
    "thousands": (r"[., '_]", "one of . , ' _ and a space"),
    "unmatched": (r"allow|0|1|0?\.\d+|1\.0*", "allow, or a share from 0 to 1"),
    "level": (r"sample|subject", "sample or subject"),
}
STATISTICS = ("last", "mean", "min", "max", "count")
_SPLIT = ("file", "column", "by", "format", *PARTS, *(f"{part}_from" for part in PARTS[1:]))
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def config_path(raw: Path, options: TablesOptions) -> Path:
    """Path of the YAML: in the export folder, or else as given.

    Raises:
        DataError: if there is no such file.
    """
    for path in (raw / options.config, Path(options.config)):
        if path.is_file():
            return path
    expected = "a YAML file that declares the tables"
    fix = f"Put it into {raw.name}/, or give its path: --set config=PATH. See docs/tables.md."
    raise DataError(Fault(file=options.config, expected=expected, found="no such file", fix=fix))


def read_config(raw: Path, options: TablesOptions) -> TablesConfig:
    """Read and validate the YAML; no table is opened.

    Raises:
        DataError: reports all errors of the YAML together.
    """
    path = config_path(raw, options)
    return parse_config(decode(path.read_bytes(), shown_as=path.name), path.name)


def parse_config(text: str, shown_as: str) -> TablesConfig:
    """Parse the text of a YAML.

    Raises:
        DataError: reports all errors of the YAML together.
    """
    try:
        value = yaml.load(text, YamlText)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise DataError(Fault(file=shown_as, expected="YAML", found=found, fix="Correct its syntax.")) from error
    parser = _Parser(shown_as)
    config = parser.config(value)
    if parser.faults:
        raise DataError(parser.faults)
    return config


class _Parser:
    """Converts plain values to the dataclasses and collects errors."""

    def __init__(self, shown_as: str):
        self.shown_as = shown_as
        self.faults: list[Fault] = []
        self.levels: dict[str, str] = {}

    def fault(self, place: str, expected: str, found: Any, fix: str = "") -> None:
        shown = found if isinstance(found, str) else repr(found)
        self.faults.append(Fault(file=self.shown_as, column=place, expected=expected, found=shown, fix=fix))

    def section(self, value: Any, place: str, known: Sequence[str]) -> dict[str, Any]:
        """A mapping with known keys; an unknown key is an error that suggests the nearest known one."""
        if not isinstance(value, Mapping):
            self.fault(place, f"a mapping with the keys {', '.join(known)}", "nothing" if value is None else value)
            return {}
        for key in value:
            if key not in known:
                fix = did_you_mean(key, known, otherwise="")
                self.fault(place, f"one of the keys {', '.join(known)}", f"unknown key {key!r}", fix)
        return {k: v for k, v in value.items() if k in known}

    def read(self, value: Any, place: str, /, **readers: Callable[[Any, str], Any]) -> dict[str, Any]:
        """A mapping with known keys, each of which a reader converts; keys that are not given are left out."""
        return {k: readers[k](v, f"{place}.{k}") for k, v in self.section(value, place, tuple(readers)).items()}

    def text(self, value: Any, place: str) -> str:
        if not isinstance(value, str):
            self.fault(place, "text", value)
            return ""
        return value

    def value(self, value: Any, place: str) -> str:
        """A value as it may occur in a table, in canonical form."""
        if isinstance(value, bool) or value is None or not isinstance(value, str | int | float):
            fix = "YAML reads yes, no, on and off as booleans: quote them."
            self.fault(place, "a number or text as in the file", value, fix)
            return ""
        return canonical(value)

    def values(self, value: Any, place: str) -> tuple[str, ...]:
        items = value if isinstance(value, list) else [value]
        return tuple(self.value(v, place) for v in items)

    def ref(self, value: Any, place: str) -> Ref:
        if isinstance(value, bool) or not isinstance(value, str | int) or value in (0, ""):
            self.fault(place, "a column: a name, a pattern, or a position (1 is the first, -1 the last)", value)
            return 1
        return value

    def refs(self, value: Any, place: str) -> tuple[Ref, ...]:
        return tuple(self.ref(v, place) for v in (value if isinstance(value, list) else [value]))

    def rows(self, value: Any, place: str) -> Rules:
        """Column → values: rows to drop, or missing codes of some columns."""
        if not isinstance(value, Mapping):
            self.fault(place, "column: [values]", value)
            return ()
        return tuple((str(self.ref(k, place)), self.values(v, f"{place}.{k}")) for k, v in value.items())

    def missing(self, value: Any, place: str) -> Rules:
        """Codes for all columns (a list), or pattern → codes."""
        return self.rows(value, place) if isinstance(value, Mapping) else (("*", self.values(value, place)),)

    def config(self, value: Any) -> TablesConfig:
        texts = ("title", "citation", "licence", "provider", "file")
        known = [*texts[:4], *BY_FILE, "file", "join", "id", "subject", "prediction_time", "missing", "exclude", "drop"]
        top = self.section(value, "top level", [*known, "label", "labels", "split", "modalities"])
        plain = {key: self.text(top[key], key) for key in texts if key in top}
        self.file = plain.get("file", "")
        join = top.get("join", "id")
        if join not in ("id", "order"):
            self.fault("join", "id or order", join)
        if join == "id" and "id" not in top:
            self.fault("id", "the column that joins the tables", "nothing", "Or join row by row: `join: order`.")
        labels = self._labels(top)
        first = labels[0].file if labels else self.file
        missing = self.missing(top["missing"], "missing") if "missing" in top else ()
        for label in labels:
            ambiguous = set(label.values) & {*MISSING, *codes_of(str(label.column), missing)}
            if ambiguous:
                expected, found = "classes that are not codes for missing", ", ".join(sorted(ambiguous))
                fix = "Give `missing` by column, missing: {column: [codes]}."
                self.fault(f"label {label.name}", expected, f"{found}, which is both", fix)
        modalities = self._modalities(top)
        time = self._time(top["prediction_time"], "prediction_time") if "prediction_time" in top else {}
        config = TablesConfig(
            shown_as=self.shown_as,
            **plain,
            cohort_file=first,
            by_file=self._by_file(top),
            by_order=join == "order",
            prediction_time=time.get("column"),
            prediction_format=time.get("format", ""),
            labels=labels,
            split=self._split(top["split"], first) if "split" in top else None,
            missing=missing,
            drop=self.rows(top["drop"], "drop") if "drop" in top else (),
            modalities=modalities,
        )
        files = config.cohort_files | {m.file for m in config.modalities}
        for key, file, _ in config.by_file:
            if file not in files | {"*"}:
                self.fault(f"{key}.{file}", "a file of this declaration", file, did_you_mean(file, files))
        if timed := [m.name for m in config.modalities if m.timed and config.prediction_time is None]:
            expected = "the column of the samples' file with the time of the prediction"
            fix = f"The times of {', '.join(timed)} count from it: nothing later may be a feature."
            self.fault("prediction_time", expected, "nothing", fix)
        return config

    def _time(self, value: Any, place: str) -> dict[str, Any]:
        entry = value if isinstance(value, Mapping) else {"column": value}
        return self.read(entry, place, column=self.ref, format=self.text)

    def _by_file(self, top: Mapping[str, Any]) -> tuple[tuple[str, str, Ref | float], ...]:
        """Keys with one value for all files, or file: value; the file * is all others."""
        entries: list[tuple[str, str, Ref | float]] = [("level", file, level) for file, level in self.levels.items()]
        for key in ("id", "subject", *BY_FILE):
            values = top.get(key, {})
            for file, value in (values if isinstance(values, Mapping) else {"*": values}).items():
                place = key if file == "*" else f"{key}.{file}"
                if key not in BY_FILE:
                    self.ref(value, place)
                elif not re.fullmatch(BY_FILE[key][0], str(value), re.ASCII):
                    self.fault(place, BY_FILE[key][1], value)
                entries.append((key, str(file), 1.0 if value == "allow" else value))
        return tuple(entries)

    def _file(self, file: str | None, place: str) -> str:
        file = file or self.file
        if not file:
            fix = "Set it here, or `file` for all at the top level."
            self.fault(f"{place}.file", "a CSV or Parquet file", "nothing", fix)
        elif Path(file).is_absolute() or ".." in Path(file).parts or len(file.encode()) > 255:
            self.fault(f"{place}.file", "a path inside the export folder", file)
        return file

    def _labels(self, top: Mapping[str, Any]) -> tuple[Label, ...]:
        if ("label" in top) == ("labels" in top):
            found = "both" if "label" in top else "neither"
            self.fault("label", "either `label` (one) or `labels` (name: label)", found)
            return ()
        entries = {"label": top["label"]} if "label" in top else top["labels"]
        if not isinstance(entries, Mapping) or not entries:
            self.fault("labels", "name: label", entries)
            return ()
        place = "label" if "label" in top else "labels.{}"
        labels = tuple(self._label(str(name), entry, place.format(name)) for name, entry in entries.items())
        for name, n in Counter(label.name for label in labels).items():
            if n > 1:
                self.fault("labels", "a different name for each label", f"{n} labels with the name {name}")
        return labels

    def _label(self, name: str, value: Any, place: str) -> Label:
        entry = self.section(value, place, ("name", "file", "column", "classes", "threshold", "kind", "description"))
        texts = {k: self.text(entry[k], f"{place}.{k}") for k in ("name", "file", "description") if k in entry}
        name = texts.get("name", name)
        if not _NAME.fullmatch(name):
            self.fault(f"{place}.name", "letters, digits and _", name)
        if "column" not in entry:
            self.fault(f"{place}.column", "the column with the label", "nothing")
        kind = entry.get("kind", "classification")
        if kind not in ("classification", "regression"):
            self.fault(f"{place}.kind", "classification or regression", kind)
        threshold, classes = entry.get("threshold"), entry.get("classes")
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
            self.fault(f"{place}.threshold", "a number", threshold)
            threshold = None
        names, values = self._classes(classes, place) if classes is not None else ((), ())
        if kind == "regression" and (classes is not None or threshold is not None):
            self.fault(place, "neither classes nor threshold for a regression", sorted(entry))
        if kind == "classification" and classes is None and "threshold" not in entry:
            expected = "the values of the classes ([a, b] or {0: a, 1: b}), or `threshold`"
            self.fault(f"{place}.classes", expected, "nothing", "For a numeric target, use `kind: regression`.")
        if threshold is not None:
            names, values = names or ("below", "above"), ()
            if len(names) != 2:
                self.fault(f"{place}.classes", "two names for the values below and from the threshold", list(names))
        elif classes is not None and len(names) < 2:
            self.fault(f"{place}.classes", "at least two classes", list(names))
        return Label(
            name=name,
            file=self._file(texts.get("file"), place),
            column=self.ref(entry.get("column", "?"), f"{place}.column"),
            kind=kind,
            classes=names,
            values=values,
            threshold=None if threshold is None else float(threshold),
            description=texts.get("description", ""),
        )

    def _classes(self, value: Any, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Class names, and their values in the file."""
        values = self.values(list(value) if isinstance(value, Mapping) else value, f"{place}.classes")
        names = tuple(str(v) for v in value.values()) if isinstance(value, Mapping) else values
        for entries in (names, values):
            if len(set(entries)) < len(entries):
                self.fault(f"{place}.classes", "each class once", list(entries))
        return names, values

    def _split(self, value: Any, default: str) -> Split:
        entry = self.section(value, "split", _SPLIT)
        texts = {k: self.text(entry[k], f"split.{k}") for k in ("file", "format") if k in entry}
        by, default = "by" in entry, self.file or default if "by" in entry else default
        if by == ("column" in entry):
            expected = "`column` (with train, val or test), or `by` (a group or a date)"
            self.fault("split.column", expected, "both" if by else "nothing")
        given = {part: self.values(entry[part], f"split.{part}") for part in PARTS if part in entry}
        dates = pl.DataFrame({k: self.value(entry[k], f"split.{k}") for k in _SPLIT[-2:] if k in entry})
        starts = dates.select(clock(k, texts.get("format", "")) for k in dates.columns)
        for key in (k for k in dates.columns if starts[k].null_count()):
            self.fault(f"split.{key}", "a date in the format of the column", dates[key][0])
        parts = {v.lower(): part for part, values in given.items() for v in values} or dict(PART_ALIASES)
        if given and len(parts) < sum(map(len, given.values())):
            self.fault("split", "each value once", given)
        if (
            (by and bool(given) == bool(starts.width))
            or (starts.width and not by)
            or (by and not {"test", "test_from"} & set(entry))
        ):
            self.fault("split", "`by: group, test: [values]` or `by: date, test_from: date`", ", ".join(entry))
        return Split(
            file=self._file(texts.get("file", default), "split"),
            column=self.ref(entry.get("by", entry.get("column", "?")), "split.by" if by else "split.column"),
            parts=() if starts.width else tuple(sorted(parts.items())),
            by=by,
            starts=tuple((starts[key][0], key.removesuffix("_from")) for key in starts.columns),
            format=texts.get("format", ""),
        )

    def _modalities(self, top: Mapping[str, Any]) -> tuple[ModalityTable, ...]:
        entries = top.get("modalities")
        if not isinstance(entries, Mapping) or not entries:
            self.fault("modalities", "name: table, at least one", "nothing" if entries is None else entries)
            return ()
        if len(entries) > MAX_MODALITIES:
            self.fault("modalities", f"at most {MAX_MODALITIES}", str(len(entries)))
        exclude = self.refs(top["exclude"], "exclude") if "exclude" in top else ()
        return tuple(self._table(str(name), entry, exclude) for name, entry in entries.items())

    def _table(self, name: str, value: Any, exclude: tuple[Ref, ...]) -> ModalityTable:
        place = f"modalities.{name}"
        if not _NAME.fullmatch(name):
            self.fault(place, "a name of letters, digits and _", name)
        text, refs, rows, empty = self.text, self.refs, self.rows, {} if value is None else value
        tables = {"columns": refs, "exclude": refs, "kinds": self._kinds, "missing": self.missing, "drop": rows}
        others = {"file": text, "level": text, "long": self._long, "encoder": self._encoder, "description": text}
        entry = self.read(empty, place, **tables, **others)
        entry |= {"file": self._file(entry.get("file"), place), "exclude": exclude + entry.get("exclude", ())}
        level = entry.pop("level", self.levels.get(entry["file"]))
        if level and (level not in ("sample", "subject") or self.levels.setdefault(entry["file"], level) != level):
            self.fault(f"{place}.level", "sample or subject, the same for all entries of a file", level)
        return ModalityTable(name=name, **entry)

    def _encoder(self, value: Any, place: str) -> str:
        try:
            require_encoder(self.text(value, place))
        except MrpipeError as error:
            self.fault(place, "a text encoder", str(error))
        return str(value)

    def _long(self, value: Any, place: str) -> Long:
        refs = dict.fromkeys(("item", "value", "unit", "time"), self.ref)
        entry = self.read(value, place, **refs, format=self.text, aggregate=self.values)
        statistics = entry.get("aggregate", ())
        if unknown := [s for s in statistics if s not in STATISTICS]:
            self.fault(f"{place}.aggregate", f"some of {', '.join(STATISTICS)}", ", ".join(unknown))
        if "item" not in entry:
            self.fault(f"{place}.item", "the column that names what was measured", "nothing")
        if "time" not in entry and (not statistics or "last" in statistics):
            fix = "Without times, use `aggregate: [mean, min, max, count]`."
            self.fault(f"{place}.time", "the column with the time of each row", "nothing", fix)
        return Long(**{"item": "?", **entry, "aggregate": tuple(s for s in STATISTICS if s in statistics)})

    def _kinds(self, value: Any, place: str) -> tuple[tuple[str, Kind], ...]:
        if not isinstance(value, Mapping):
            self.fault(place, "column or pattern: kind", value)
            return ()
        return tuple((str(self.ref(k, place)), self._kind(v, f"{place}.{k}")) for k, v in value.items())

    def _kind(self, value: Any, place: str) -> Kind:
        if value in KINDS:
            return Kind(kind=str(value))
        if isinstance(value, Mapping) and value.get("kind") in ("date", "age"):
            return Kind(**self.read(value, place, kind=self.text, since=self.ref, format=self.text))
        if isinstance(value, list | Mapping) and value:
            codes = tuple(self.value(v, place) for v in value)
            levels = tuple(str(v) for v in value.values()) if isinstance(value, Mapping) else codes
            if len(set(codes)) < len(codes) or len(set(levels)) < len(levels):
                self.fault(place, "each code and each level once", list(codes))
            return Kind(kind="categorical", codes=codes, levels=levels)
        self.fault(place, f"{', '.join(KINDS)}, or a list of codes ([1, 2] or {{1: low, 2: high}})", value)
        return Kind(kind="numeric")
