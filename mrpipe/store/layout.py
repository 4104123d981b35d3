"""Where the files of a store and of its build lie. The store's side is the on-disk contract, format 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mrpipe.errors import UsageError


@dataclass(frozen=True)
class StoreLayout:
    """Paths inside a store."""

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
        """Take the seal off before anything in the store changes, so that a killed step leaves no sealed store."""
        self.manifest.unlink(missing_ok=True)


@dataclass(frozen=True)
class WorkLayout:
    """Paths of the intermediate files of one build; nothing here is part of the store."""

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
        """Every attempt at every sample; holds sample ids, and so stays here."""
        return self.root / "tried" / f"{modality}.parquet"

    def part(self, modality: str, part: int, n_parts: int) -> Path:
        return self.root / "parts" / modality / f"{part}-of-{n_parts}.parquet"


def made_by(path: Path, verb: str) -> Path:
    """A file that an earlier step writes.

    Raises:
        UsageError: the step has not run; `verb` is what to run.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not there yet; run mrpipe {verb} first")
    return path


def qc_folder(store: Path) -> Path:
    """Where `mrpipe build` leaves quality control: beside the store, never inside it."""
    return store.with_name(store.name + ".qc")


def truth_folder(export: Path) -> Path:
    """Where a simulator writes what it knows: beside the export, never inside it."""
    return export.with_name(export.name + ".truth")
