"""Run commands one after the other, and end the process by a signal before its K-th change of a file.

    python -m tests.faults.launch '{"commands": [["simulate", "tables", "--out", "raw"]], "at": 7, "signal": "SIGKILL"}'

A change is the opening of a file for writing, a renaming, a removal or a new folder below the current folder. Without
`at`, the number of changes is written to the file `count`. Moments are thus the same on machines of any speed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.move"})


def count_changes(folder: str, at: int | None, number: signal.Signals) -> list[int]:
    """Install the counter; the list that is returned holds the number of changes so far."""
    n = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes:
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.abspath(os.fsdecode(path)).startswith(folder):
            return
        n[0] += 1
        if n[0] == at:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    return n


def images(raw: Path, work: Path) -> None:
    """Process scans with a stub of the imaging chain, and write the joined volumes as `ingest` does."""
    from mrpipe.datasets.adni.image import join, plan
    from mrpipe.datasets.adni.image import raw as image_raw
    from mrpipe.datasets.adni.options import AdniOptions
    from mrpipe.store.parquet import write_batches
    from tests.datasets.adni import test_image_parts as stub
    from tests.datasets.adni.image_toy import cohort

    for module in (image_raw, join):
        module.open_template = lambda raw, options, maps: stub.TEMPLATE
    plan.require_imaging = image_raw.require_imaging = lambda: None
    image_raw.process_scan = stub.Chain()
    samples, options = cohort(stub.subjects(6)), AdniOptions(image_parts=2)
    work.mkdir(parents=True, exist_ok=True)
    parts = [work / f"{k}-of-2.parquet" for k in range(2)]
    for k, part in enumerate(parts):
        image_raw.prepare_images(raw, samples, options, k, 2, part)
    batches = list(join.read_images(raw, samples, options, parts).batches)
    write_batches(work / "image.parquet", batches[0].schema, batches)


def main() -> int:
    """Run the commands of the job; returns the first exit code that is not 0."""
    from mrpipe.cli.main import main as mrpipe

    job = json.loads(sys.argv[1])
    n = count_changes(os.getcwd(), job.get("at"), signal.Signals[job.get("signal", "SIGKILL")])
    for command in job["commands"]:
        if command[0] == "images":
            images(Path(command[1]), Path(command[2]))
        elif code := mrpipe(command):
            return code
    if job.get("at") is None:
        (Path.cwd().parent / "count").write_text(str(n[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
