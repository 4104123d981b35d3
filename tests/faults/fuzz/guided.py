"""Common part of the harnesses for Atheris (libFuzzer): `pip install 'mrpipe[fuzz]'`.

Arguments are those of libFuzzer, such as -max_total_time=120 or the file of a crash; findings are written to the
current folder as crash-*.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INSTALLED = find_spec("atheris") is not None


def instrumented() -> AbstractContextManager[Any]:
    """Context in which imports of the project are instrumented, if Atheris is installed."""
    if not INSTALLED:
        return nullcontext()
    import atheris

    context: AbstractContextManager[Any] = atheris.instrument_imports(include=["mrpipe"])
    return context


def guided(read_one: Callable[[bytes], None], seeds: Sequence[bytes]) -> None:
    """Fuzz a function, beginning with the seeds; does not return."""
    if not INSTALLED:
        sys.exit("Atheris is not installed: pip install 'mrpipe[fuzz]' (Linux)")
    import atheris

    with tempfile.TemporaryDirectory(prefix="corpus-") as corpus:
        for k, seed in enumerate(seeds):
            (Path(corpus) / str(k)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus, "-rss_limit_mb=3000"], read_one)
        atheris.Fuzz()
