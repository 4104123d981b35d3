"""Parser of the YAML that declares a dataset of tables; reports all of its errors at once."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.declared import Declaration, canonical, config_path, listed, read_text
from mrpipe.datasets.events import STATISTICS
from mrpipe.datasets.tables.config import (
    MISSING,
    Kind,
    Label,
    Long,
    ModalityTable,
    Ref,
    Rules,
    Split,
    Subgroup,
    TablesConfig,
    TablesOptions,
    codes_of,
)
from mrpipe.datasets.tables.texts import clock
from mrpipe.errors import MrpipeError, did_you_mean
from mrpipe.store.splits import PART_ALIASES, PARTS
from mrpipe.text.encoders import get_encoder

PAGE, SCHEMA = "docs/tables.md", Path(__file__).with_name("schema.yaml")
# Keys with one value for all files, or file: value.
BY_FILE = ("id", "subject", "encoding", "separator", "decimal", "thousands", "unmatched", "level")


def read_config(raw: Path, options: TablesOptions) -> TablesConfig:
    """Read and validate the YAML; no table is opened.

    Raises:
        DataError: reports all errors of the YAML together.
    """
    return parse_config(*read_text(config_path(raw, options.config, PAGE)))


def parse_config(text: str, shown_as: str) -> TablesConfig:
    """Parse the text of a YAML.

    Raises:
        DataError: reports all errors of the YAML together.
    """
    parser = _Parser(shown_as)
    config = parser.config(parser.load(text, SCHEMA))
    parser.raise_if_any()
    return config


class _Parser(Declaration):
    """Converts plain values to the dataclasses of a declaration of tables."""

    def __init__(self, shown_as: str):
        super().__init__(shown_as)
        self.file = ""
        self.levels: dict[str, str] = {}

    def config(self, top: Mapping[str, Any]) -> TablesConfig:
        self.file = top.get("file", "")
        entries = {"label": top["label"]} if "label" in top else top.get("labels", {})
        place = "label" if "label" in top else "labels.{}"
        labels = tuple(self._label(str(name), entry, place.format(name)) for name, entry in entries.items())
        for name, n in Counter(label.name for label in labels).items():
            if n > 1:
                self.fault("labels", "a different name for each label", f"{n} labels with the name {name}")
        missing = _missing(top.get("missing", []))
        for label in labels:
            ambiguous = set(label.values) & {*MISSING, *codes_of(str(label.column), missing)}
            if ambiguous:
                expected, found = "classes that are not codes for missing", ", ".join(sorted(ambiguous))
                fix = "Give `missing` by column, missing: {column: [codes]}."
                self.fault(f"label {label.name}", expected, f"{found}, which is both", fix)
        time, first = top.get("prediction_time"), labels[0].file if labels else self.file
        time = time if isinstance(time, Mapping) else {"column": time}
        exclude = tuple(listed(top.get("exclude", [])))
        modalities = tuple(self._table(str(n), entry or {}, exclude) for n, entry in top.get("modalities", {}).items())
        config = TablesConfig(
            shown_as=self.shown_as,
            **{key: top[key] for key in ("title", "citation", "licence", "provider") if key in top},
            file=self.file,
            cohort_file=first,
            by_file=self._by_file(top),
            by_order=top.get("join") == "order",
            prediction_time=time.get("column"),
            prediction_format=time.get("format", ""),
            labels=labels,
            split=self._split(top["split"], first) if "split" in top else None,
            subgroups=self._subgroups(top.get("subgroups", []), first),
            missing=missing,
            drop=_rules(top.get("drop", {})),
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

    def _by_file(self, top: Mapping[str, Any]) -> tuple[tuple[str, str, Ref | float], ...]:
        """Keys with one value for all files, or file: value; the file * is all others."""
        entries: list[tuple[str, str, Ref | float]] = [("level", file, level) for file, level in self.levels.items()]
        for key in (key for key in BY_FILE if key in top):
            values = top[key] if isinstance(top[key], Mapping) else {"*": top[key]}
            entries += [(key, str(file), 1.0 if value == "allow" else value) for file, value in values.items()]
        return tuple(entries)

    def _file(self, entry: Mapping[str, Any], place: str, default: str = "") -> str:
        file: str = entry.get("file", default or self.file)
        if not file:
            fix = "Set it here, or `file` for all at the top level."
            self.fault(f"{place}.file", "a CSV or Parquet file", "nothing", fix)
        return self.inside(file, f"{place}.file")

    def _label(self, name: str, entry: Mapping[str, Any], place: str) -> Label:
        codes, names = self._codes(entry.get("classes", []), f"{place}.classes", "each class once")
        threshold = entry.get("threshold")
        if threshold is not None:
            codes, names = (), names or ("below", "above")
            if len(names) != 2:
                self.fault(f"{place}.classes", "two names for the values below and from the threshold", list(names))
        elif len(names) == 1:
            self.fault(f"{place}.classes", "at least two classes", list(names))
        return Label(
            name=entry.get("name", name),
            file=self._file(entry, place),
            column=entry.get("column", "?"),
            kind=entry.get("kind", "classification"),
            classes=names,
            values=codes,
            threshold=None if threshold is None else float(threshold),
            description=entry.get("description", ""),
        )

    def _codes(self, value: Any, place: str, expected: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Values in the file, and their names."""
        codes = _values(list(value))
        names = tuple(str(v) for v in value.values()) if isinstance(value, Mapping) else codes
        if len(set(codes)) < len(codes) or len(set(names)) < len(names):
            self.fault(place, expected, list(codes if len(set(codes)) < len(codes) else names))
        return codes, names

    def _split(self, entry: Mapping[str, Any], default: str) -> Split:
        by = "by" in entry
        if by == ("column" in entry):
            expected = "`column` (with train, val or test), or `by` (a group or a date)"
            self.fault("split.column", expected, "both" if by else "nothing")
        given = {part: _values(entry[part]) for part in PARTS if part in entry}
        dates = pl.DataFrame({k: canonical(entry[k]) for k in ("val_from", "test_from") if k in entry})
        starts = dates.select(clock(k, entry.get("format", "")) for k in dates.columns)
        for key in (k for k in dates.columns if starts[k].null_count()):
            self.fault(f"split.{key}", "a date in the format of the column", dates[key][0])
        parts = {v.lower(): part for part, values in given.items() for v in values} or dict(PART_ALIASES)
        if given and len(parts) < sum(map(len, given.values())):
            self.fault("split", "each value once", given)
        n_dates = starts.width
        if (bool(given) == bool(n_dates) if by else n_dates) or (by and not {"test", "test_from"} & set(entry)):
            self.fault("split", "`by: group, test: [values]` or `by: date, test_from: date`", ", ".join(entry))
        return Split(
            file=self._file(entry, "split", self.file if by and self.file else default),
            column=entry.get("by", entry.get("column", "?")),
            parts=() if n_dates else tuple(sorted(parts.items())),
            by=by,
            starts=tuple((starts[key][0], key.removesuffix("_from")) for key in starts.columns),
            format=entry.get("format", ""),
        )

    def _subgroups(self, entry: Any, default: str) -> tuple[Subgroup, ...]:
        by_file = entry if isinstance(entry, Mapping) else {default: entry}
        named = [(self.inside(str(file), "subgroups"), listed(columns)) for file, columns in by_file.items()]
        found = [Subgroup(file=file, column=column) for file, columns in named for column in columns]
        for name, n in Counter(str(group.column) for group in found).items():
            if n > 1 or name in ("sample_id", "subject_id", "split", "prediction_time", "modality_mask", "row"):
                self.fault("subgroups", "a column with another name than those of the samples, once", name)
        return tuple(found)

    def _table(self, name: str, entry: Mapping[str, Any], exclude: tuple[Ref, ...]) -> ModalityTable:
        place = f"modalities.{name}"
        file, texts = self._file(entry, place), {k: entry[k] for k in ("encoder", "description") if k in entry}
        level = entry.get("level", self.levels.get(file))
        if level and self.levels.setdefault(file, level) != level:
            self.fault(f"{place}.level", "sample or subject, the same for all entries of a file", level)
        try:
            get_encoder(entry.get("encoder", "hashing"))
        except MrpipeError as error:
            self.fault(f"{place}.encoder", "a text encoder", str(error))
        return ModalityTable(
            name=name,
            file=file,
            columns=tuple(listed(entry.get("columns", "*"))),
            exclude=exclude + tuple(listed(entry.get("exclude", []))),
            kinds=tuple((str(k), self._kind(v, f"{place}.kinds.{k}")) for k, v in entry.get("kinds", {}).items()),
            missing=_missing(entry.get("missing", [])),
            drop=_rules(entry.get("drop", {})),
            long=self._long(entry["long"], f"{place}.long") if "long" in entry else None,
            **self._files(entry, place),
            **texts,
        )

    def _files(self, entry: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The files of a column of paths, if the entry declares any."""
        kind, *others = [k for k in ("image", "array", "long", "kinds", "encoder") if k in entry] or [""]
        if kind not in ("image", "array"):
            return {}
        if others or len(listed(entry.get("columns", []))) != 1:
            found = f"{listed(entry.get('columns', []))} with {', '.join([kind, *others])}"
            self.fault(f"{place}.columns", f"one column, with the path of each {kind} alone", found)
        form = entry[kind] or {}
        shape = (form.get("channels", 3), *form.get("size", ())) if kind == "image" else form.get("shape", ())
        return {"files": kind, "shape": tuple(shape)}

    def _long(self, entry: dict[str, Any], place: str) -> Long:
        statistics = listed(entry.get("aggregate", []))
        if "time" not in entry and (not statistics or "last" in statistics):
            fix = "Without times, use `aggregate: [mean, min, max, count]`."
            self.fault(f"{place}.time", "the column with the time of each row", "nothing", fix)
        return Long(**{"item": "?", **entry, "aggregate": tuple(s for s in STATISTICS if s in statistics)})

    def _kind(self, value: Any, place: str) -> Kind:
        if isinstance(value, str):
            return Kind(kind=value)
        if isinstance(value, Mapping) and value.get("kind") in ("date", "age"):
            return Kind(**value)
        codes, names = self._codes(value, place, "each code and each level once")
        return Kind(kind="categorical", codes=codes, levels=names)


def _values(value: Any) -> tuple[str, ...]:
    """Values as they may occur in a table, in canonical form."""
    return tuple(map(canonical, listed(value)))


def _rules(value: Mapping[Any, Any]) -> Rules:
    """Column → values: rows to drop, or missing codes of some columns."""
    return tuple((str(column), _values(values)) for column, values in value.items())


def _missing(value: Any) -> Rules:
    """Codes for all columns (a list), or pattern → codes."""
    if isinstance(value, Mapping):
        return _rules(value)
    return (("*", _values(value)),) if value != [] else ()
