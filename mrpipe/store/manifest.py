"""The manifest of a store: metadata, files and hashes. It is written last; its presence marks a store as sealed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpipe.errors import DataError, Fault
from mrpipe.privacy import Count, counts_rounded
from mrpipe.schema import Modality, Task
from mrpipe.store.layout import StoreLayout

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json` of a store, format 1.

    Attributes:
        format: version number of the on-disk format.
        origin: `simulated` or `export`.
        options: reader options with which the store was built.
        modalities: declaration fields of `schema.Modality` plus `file, rows, size, sha256`, in bit order.
        labels: `schema.Task` fields plus `file, rows, size, sha256`, the default task first.
        splits: `scheme, method, seed, grouping, counts, file, rows, size, sha256`.
        tables: `name, file, rows, size, sha256` of samples, dictionary and attrition.
        inputs: path relative to the export, size in bytes and SHA-256 of the raw files.
        code_hash: hash of the code that can affect the store.
        pattern_counts: modality combination (names joined by `+`) → number of samples.
        options_changed: names of options that differ from their defaults; None in stores of older versions.
        citation, licence, provider: as declared by the dataset; empty in stores of older versions.
        people: whether samples are of people (`schema.Dataset`); assumed in stores of older versions.
        store_id: first 16 hex digits of the SHA-256 over the sorted `path sha256` lines of all hashed files.
    """

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
    store_id: str
    options_changed: tuple[str, ...] | None = None
    citation: str = ""
    licence: str = ""
    provider: str = ""
    people: bool = True

    @property
    def files(self) -> list[Mapping[str, Any]]:
        """All hashed files: `file, rows, size, sha256`."""
        return [*self.tables, *self.modalities, *self.labels, *self.splits]

    @property
    def count(self) -> type[int]:
        """Type of counts on shared pages."""
        return Count if self.people and self.origin != "simulated" else int

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
        return tuple(Modality.from_json(json.dumps(m)) for m in sorted(self.modalities, key=lambda m: m["bit"]))

    def declared_tasks(self) -> tuple[Task, ...]:
        return tuple(
            Task(name=t["name"], kind=t["kind"], classes=tuple(t["classes"]), description=t["description"])
            for t in self.labels
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def store_id(files: Iterable[Mapping[str, Any]]) -> str:
    """Identifier of a store: hash of the paths and hashes of its files."""
    lines = sorted(f"{f['file']} {f['sha256']}\n" for f in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def read_manifest(root: Path) -> Manifest:
    """Read and check the manifest of a store.

    Raises:
        DataError: the store is not sealed, the manifest is invalid, or its format is not supported.
    """
    path = StoreLayout(root).manifest
    if not path.is_file():
        found = "no manifest" if root.is_dir() else "a file" if root.exists() else "no such folder"
        fix = "Check the path. If a build was interrupted, run it again."
        raise DataError(Fault(file=str(root), expected="a sealed store (manifest.json)", found=found, fix=fix))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            expected, found = f"store format {FORMAT}", f"format {values['format']}"
            fix = "Update mrpipe to read a newer format."
            raise DataError(Fault(file=str(path), expected=expected, found=found, fix=fix))
        # Newer versions of the same format may add keys, which are ignored.
        names = {f.name for f in dataclasses.fields(Manifest)}
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
        manifest = Manifest(**known)
        # Each of these expressions raises if a field is absent or has another type.
        manifest.declared_modalities(), manifest.declared_tasks()
        for entry in manifest.files:
            path / entry["file"], int(entry["rows"]), int(entry["size"]), str.strip(entry["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        found, fix = f"{type(error).__name__}: {error}", "Copy or seal the store again."
        raise DataError(Fault(file=str(path), expected="a store manifest", found=found, fix=fix)) from error
    return manifest
