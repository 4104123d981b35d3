"""The manifest of a store: metadata, files and hashes. Its presence seals the store, and its hash is the id."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, validators

from mrpipe.errors import DataError, Fault, values_shown
from mrpipe.privacy import Count, counts_rounded
from mrpipe.reading import read_json
from mrpipe.schema import Modality, Task
from mrpipe.store.layout import StoreLayout

FORMAT = 2
RESTORE = "Restore the store from a copy, or delete its folder and build it again."
# Keys that do not describe the data: neither the version nor the history of the same data is part of their id.
_NOT_IN_ID = {"code_hash", "mrpipe_version", "card", "store_id", "checksum"}
_HISTORY = {"options", "options_changed", "inputs", "notes"}
# Elements of `x` per byte of its file. Constant values, which compress best, reach a tenth of it.
_MOST_ELEMENTS = 2**16
# Key of the manifest, what was expected and what was found.
Finding = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Keys of `manifest.json`, format 2, as docs/store-format.md defines them; the checksum is added on writing."""

    format: int
    dataset: str
    title: str
    release: str
    origin: str
    options: Mapping[str, Any]
    modalities: tuple[Mapping[str, Any], ...]
    labels: tuple[Mapping[str, Any], ...]
    splits: tuple[Mapping[str, Any], ...]
    tables: tuple[Mapping[str, Any], ...]
    inputs: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    code_hash: str
    mrpipe_version: str
    n_samples: int
    n_subjects: int
    pattern_counts: Mapping[str, int]
    default_scheme: str
    options_changed: tuple[str, ...]
    citation: str
    licence: str
    provider: str
    people: bool
    card: Mapping[str, Any]
    store_id: str

    @property
    def files(self) -> list[Mapping[str, Any]]:
        """All tables: `file, rows, size, sha256`."""
        return [*self.tables, *self.modalities, *self.labels, *self.splits]

    @property
    def count(self) -> type[int]:
        """Type of counts on shared pages."""
        return Count if self.people and self.origin != "simulated" and not values_shown() else int

    def shared(self) -> "Manifest":
        """The manifest for a shared page: with rounded counts, if samples are of people."""
        count, tables = self.count, ("modalities", "labels", "splits")
        counts: dict[str, Any] = {k: [{**e, "rows": count(e["rows"])} for e in getattr(self, k)] for k in tables}
        for split in counts["splits"]:
            split["counts"] = {part: count(n) for part, n in split["counts"].items()}
        counts |= {"n_samples": count(self.n_samples), "n_subjects": count(self.n_subjects)}
        counts["pattern_counts"] = {pattern: count(n) for pattern, n in self.pattern_counts.items()}
        counts["notes"] = self.notes if count is int else tuple(map(counts_rounded, self.notes))
        return dataclasses.replace(self, **counts)

    def declared_modalities(self) -> tuple[Modality, ...]:
        return tuple(Modality.from_json(json.dumps(m)) for m in self.modalities)

    def declared_tasks(self) -> tuple[Task, ...]:
        names = [field.name for field in dataclasses.fields(Task)]
        return tuple(Task(**{**{k: t[k] for k in names}, "classes": tuple(t["classes"])}) for t in self.labels)

    def to_json(self) -> str:
        return with_checksum(dataclasses.asdict(self))


def digest(content: Any) -> str:
    """SHA-256 of a JSON value with sorted keys, without spaces, in ASCII."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_id(values: Mapping[str, Any], without: Collection[str] = _HISTORY) -> str:
    """Id of a store: hash of the keys of its manifest that describe the data."""
    return digest({key: value for key, value in values.items() if key not in {*_NOT_IN_ID, *without}})[:16]


def checksum(values: Mapping[str, Any]) -> str:
    """Hash of all other keys of a manifest or a provenance file."""
    return digest({key: value for key, value in values.items() if key != "checksum"})


def with_checksum(values: Mapping[str, Any]) -> str:
    """Text of a JSON file that contains its own checksum."""
    return json.dumps({**values, "checksum": checksum(values)}, indent=1) + "\n"


def read_sealed_json(path: Path) -> tuple[dict[str, Any], str]:
    """Object of a JSON file, and the checksum that it should contain.

    Raises:
        DataError: not a JSON object.
    """
    values = read_json(path, fix=RESTORE)
    return values, checksum(values)


def read_manifest(root: Path) -> Manifest:
    """Read and check the manifest of a store.

    Raises:
        DataError: the store is not sealed, its format is not supported, or the manifest is invalid or was edited; lists
            all errors.
    """
    path = StoreLayout(root).manifest
    if not path.is_file():
        found = "no manifest" if root.is_dir() else "a file" if root.exists() else "no such folder"
        fix = "Check the path. If a build was interrupted, run it again."
        raise DataError(Fault(file=str(root), expected="a sealed store (manifest.json)", found=found, fix=fix))
    values, computed = read_sealed_json(path)
    version = values.get("format")
    if type(version) is int and version != FORMAT:
        newer = version > FORMAT
        found = f"format {version}, written by {'a newer' if newer else 'an older'} version"
        fix = "Update mrpipe." if newer else "Build the store again."
        raise DataError(Fault(file=str(path), expected=f"store format {FORMAT}", found=found, fix=fix))
    findings = list(_schema_findings(values)) or list(_contradictions(values))
    if values.get("checksum") != computed:
        findings.append(("checksum", "the hash of the other keys", _shown(values.get("checksum"))))
    # Ids of stores of earlier versions include the history.
    elif values.get("store_id") not in (content_id(values), content_id(values, without=())):
        findings.append(("store_id", "the hash of the keys that describe the data", _shown(values.get("store_id"))))
    if findings:
        fix = f"The manifest was edited or damaged. {RESTORE}"
        raise DataError(Fault(file=str(path), column=k or None, expected=e, found=f, fix=fix) for k, e, f in findings)
    # Newer versions of the same format may add keys.
    names = {f.name for f in dataclasses.fields(Manifest)}
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
    return Manifest(**known)


@cache
def _validator() -> Any:
    """Validator by manifest.schema.yaml, in which every listed key is required, and 2.0 is no integer."""

    def strict(part: Any) -> Any:
        if isinstance(part, list):
            return [strict(item) for item in part]
        if not isinstance(part, dict):
            return part
        part = {key: strict(value) for key, value in part.items()}
        keys = part.get("properties")
        return {"type": "object", "required": list(keys)} | part if isinstance(keys, dict) else part

    schema = yaml.safe_load(Path(__file__).with_name("manifest.schema.yaml").read_text(encoding="utf-8"))
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda checker, value: type(value) is int)
    return validators.extend(Draft202012Validator, type_checker=types)(strict(schema))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _schema_findings(values: Mapping[str, Any]) -> Iterator[Finding]:
    for error in sorted(_validator().iter_errors(values), key=lambda error: error.json_path):
        place = error.json_path.removeprefix("$.").removeprefix("$")
        if error.validator == "required":
            yield place, "all keys of the format", error.message
        else:
            yield place, f"{error.validator} {error.validator_value}", _shown(error.instance)


def _contradictions(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings that the schema cannot express."""
    modalities, tasks, schemes = values["modalities"], values["labels"], values["splits"]
    names, bits = ([m[key] for m in modalities] for key in ("name", "bit"))
    task_names, scheme_names = [t["name"] for t in tasks], [s["scheme"] for s in schemes]
    entries = [*values["tables"], *modalities, *tasks, *schemes]
    layout = StoreLayout(Path()).files(names, task_names, scheme_names)
    yield from differences([e["file"] for e in entries], [path.as_posix() for path in layout], "file")
    yield from differences([t["name"] for t in values["tables"]], [path.stem for path in layout[:3]], "tables.name")
    yield from differences(bits, sorted(set(bits)), "modalities.bit")
    for key, listed in (("modalities.name", names), ("labels.name", task_names), ("splits.scheme", scheme_names)):
        yield from differences(listed, list(dict.fromkeys(listed)), key)
    # A store to predict may have neither labels nor splits.
    if schemes and values["default_scheme"] not in scheme_names:
        yield "default_scheme", f"one of {_shown(scheme_names)}", values["default_scheme"]
    for i, modality in enumerate(modalities):
        shape, most = modality["shape"], _MOST_ELEMENTS * modality["size"]
        n_axes = 3 if modality["kind"] in ("image", "volume") else 1
        if len(shape) != n_axes or math.prod(shape) > most:
            yield f"modalities[{i}].shape", f"{n_axes} axes and at most {most} elements", _shown(shape)
    for i, task in enumerate(tasks):
        if (task["kind"] == "classification") != bool(task["classes"]):
            yield f"labels[{i}].classes", f"classes of a {task['kind']}", _shown(task["classes"])


def differences(stated: Any, actual: Any, place: str) -> Iterator[Finding]:
    """Leaves of JSON values that differ, as findings: key, actual value, stated value."""
    if isinstance(stated, Mapping) and isinstance(actual, Mapping):
        for key in {**stated, **actual}:
            yield from differences(stated.get(key), actual.get(key), f"{place}.{key}")
    elif isinstance(stated, list | tuple) and isinstance(actual, list | tuple) and len(stated) == len(actual):
        for i, (one, other) in enumerate(zip(stated, actual, strict=True)):
            yield from differences(one, other, f"{place}[{i}]")
    elif json.dumps(stated) != json.dumps(actual):
        yield place, _shown(actual), _shown(stated)
