"""Whether the input files are still those of the check, by size and modification time."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mrpipe.errors import LISTED_FAULTS, DataError, Fault
from mrpipe.store.layout import WorkLayout


def state_of(files: Iterable[Path | str]) -> dict[str, list[int]]:
    """Absolute path → size in bytes and modification time in nanoseconds, of the files that exist."""
    stats = {os.path.abspath(file): os.stat(file) for file in files if os.path.exists(file)}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def require_state(before: Mapping[str, list[int]], fix: str = "") -> None:
    """Raise a DataError that names the files whose state is another one than before."""
    now, expected = state_of(before), "the file that the check read, unchanged"
    if changed := [path for path, state in before.items() if now.get(path) != state]:
        found = {path: "a changed file" if path in now else "no such file" for path in changed[:LISTED_FAULTS]}
        raise DataError(Fault(file=p, expected=expected, found=f, fix=fix) for p, f in found.items())


def require_unchanged(work: Path, output: Path | None = None) -> None:
    """Compare the input files with their state at the check; remove `output`, made from them, if they changed.

    Raises:
        DataError: names the files that changed.
    """
    paths = WorkLayout(work)
    before = json.loads(paths.inputs.read_text(encoding="utf-8")) if paths.inputs.is_file() else {}
    try:
        require_state(before, f"Check the export again; for a workflow, delete {paths.checked} and run it again.")
    except DataError:
        if output is not None:
            output.unlink(missing_ok=True)
        raise
