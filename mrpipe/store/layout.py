"""Paths of the files of a store (on-disk format 2) and of its build."""

from collections.abc import Iterable
from pathlib import Path

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.locks import resolved
from mrpipe.raw import sha256
from mrpipe.store.parquet import write_text

# Regular expression of the names of split schemes.
SCHEME_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


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
        self.folders = tuple(root / name for name in ("modalities", "labels", "splits"))

    def modality(self, name: str) -> Path:
        return self.root / "modalities" / f"{name}.parquet"

    def labels(self, task: str) -> Path:
        return self.root / "labels" / f"{task}.parquet"

    def split(self, scheme: str) -> Path:
        return self.root / "splits" / f"{scheme}.parquet"

    def files(self, modalities: Iterable[str], tasks: Iterable[str], schemes: Iterable[str]) -> list[Path]:
        """Data files of a store with these modalities, tasks and split schemes."""
        tables = [self.samples, self.dictionary, self.attrition]
        return [*tables, *map(self.modality, modalities), *map(self.labels, tasks), *map(self.split, schemes)]


class WorkLayout:
    """Paths of intermediate files of a build; `store` holds the tables of the store until they are sealed."""

    def __init__(self, root: Path):
        self.root, self.checked, self.inputs = root, root / "checked.json", root / "inputs.json"
        self.store = StoreLayout(root / "store")
        self.cohort, self.attrition = root / "cohort.parquet", root / "attrition.parquet"
        self.kept = root / "kept"

    def dictionary(self, modality: str) -> Path:
        return self.root / "dictionary" / f"{modality}.parquet"

    def tried(self, modality: str) -> Path:
        """All attempts at all samples; contains sample ids, so it is not part of the store."""
        return self.root / "tried" / f"{modality}.parquet"

    def part(self, modality: str, part: int, n_parts: int) -> Path:
        return self.root / "parts" / modality / f"{part}-of-{n_parts}.parquet"

    def reads(self, step: str) -> Path:
        return self.root / "written" / "reads" / f"{step}.json"

    def record(self, *paths: Path) -> None:
        """Write the SHA-256 of files that a step has finished, so that later steps notice a change."""
        for path in paths:
            write_text(self._hash(path), sha256(path))

    def require(self, path: Path, verb: str) -> Path:
        """Return the path of a file that an earlier step wrote; `verb` is the command that writes it.

        Raises:
            UsageError: the file does not exist.
            DataError: the file was changed after the step that wrote it.
        """
        self.compare(path, verb, sha256(require_file(path, verb)))
        return path

    def compare(self, path: Path, verb: str, found: str) -> None:
        """Raise a DataError unless `found` is the hash that the step `verb` recorded for a file."""
        hash = self._hash(path)
        recorded = hash.read_bytes()[:64].decode("ascii", "backslashreplace") if hash.is_file() else "not recorded"
        if found != recorded:
            fix = f"The file was changed after the step that wrote it: run mrpipe {verb} again."
            raise DataError(Fault(file=str(path), expected=f"SHA-256 {recorded}", found=f"SHA-256 {found}", fix=fix))

    def _hash(self, path: Path) -> Path:
        return self.root / "written" / f"{path.relative_to(self.root).as_posix()}.sha256"


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
