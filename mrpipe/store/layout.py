"""Paths of the files of a store (on-disk format 1) and of its build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mrpipe.errors import UsageError


@dataclass(frozen=True)
class StoreLayout:
    """Paths within a store."""

    root: Path

    @property
    def samples(self) -> Path:
        return self.root / "samples.parquet"

    def modality(self, name: str) -> Path:
        return self.root / "modalities" / f"{name}.parquet"

    def labels(self, task: str) -> Path:
        return self.root / "labels" / f"{task}.parquet"

    def split(self, scheme: str) -> Path:
        return self.root / "splits" / f"{scheme}.parquet"

    @property
    def dictionary(self) -> Path:
        return self.root / "dictionary.parquet"

    @property
    def attrition(self) -> Path:
        return self.root / "attrition.parquet"

    @property
    def card(self) -> Path:
        return self.root / "README.md"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    def unseal(self) -> None:
        """Remove the manifest before the store is modified, so that a killed step leaves no sealed store."""
        self.manifest.unlink(missing_ok=True)


@dataclass(frozen=True)
class WorkLayout:
    """Paths of intermediate files of a build, which are not part of the store."""

    root: Path

    @property
    def checked(self) -> Path:
        return self.root / "checked.json"

    @property
    def cohort(self) -> Path:
        return self.root / "cohort.parquet"

    @property
    def attrition(self) -> Path:
        return self.root / "attrition.parquet"

    def dictionary(self, modality: str) -> Path:
        return self.root / "dictionary" / f"{modality}.parquet"

    def tried(self, modality: str) -> Path:
        """All attempts at all samples; contains sample ids, so it is not part of the store."""
        return self.root / "tried" / f"{modality}.parquet"

    def part(self, modality: str, part: int, n_parts: int) -> Path:
        return self.root / "parts" / modality / f"{part}-of-{n_parts}.parquet"


def require_file(path: Path, verb: str) -> Path:
    """Return the path of a file written by an earlier step.

    Raises:
        UsageError: the file does not exist; names `verb`, the command that writes it.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; run mrpipe {verb} first")
    return path


def qc_folder(store: Path) -> Path:
    """Folder of the quality control written by `mrpipe build`, next to the store."""
    return store.with_name(store.name + ".qc")


def truth_folder(export: Path) -> Path:
    """Folder of a simulator's ground truth, next to the export."""
    return export.with_name(export.name + ".truth")
