"""Paths of the files of a store (on-disk format 1) and of its build."""

from pathlib import Path

from mrpipe.errors import UsageError
from mrpipe.locks import resolved


class StoreLayout:
    """Paths within a store."""

    def __init__(self, root: Path):
        self.root = root
        self.samples, self.dictionary, self.attrition = (
            root / f"{name}.parquet" for name in ("samples", "dictionary", "attrition")
        )
        self.card, self.provenance, self.manifest = (
            root / name for name in ("README.md", "provenance.json", "manifest.json")
        )

    def modality(self, name: str) -> Path:
        return self.root / "modalities" / f"{name}.parquet"

    def labels(self, task: str) -> Path:
        return self.root / "labels" / f"{task}.parquet"

    def split(self, scheme: str) -> Path:
        return self.root / "splits" / f"{scheme}.parquet"

    def unseal(self) -> None:
        """Remove the manifest before the store is modified, so that a killed step leaves no sealed store."""
        self.manifest.unlink(missing_ok=True)


class WorkLayout:
    """Paths of intermediate files of a build, which are not part of the store."""

    def __init__(self, root: Path):
        self.root, self.checked, self.inputs = root, root / "checked.json", root / "inputs.json"
        self.cohort, self.attrition = root / "cohort.parquet", root / "attrition.parquet"

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
    """Folder of a simulator's ground truth, next to the export, also if the export is reached through a symlink."""
    path = resolved(export)
    return path.with_name(path.name + ".truth")
