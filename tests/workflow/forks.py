"""Calls of Snakemake in forks of a process that has imported it: most dry runs consist of imports and code hashes.

`python forks.py [FOLDER]` reads a call per line of its standard input, and writes its process and then its exit code. A
call runs in a fork that does what `python -m snakemake` does, with a folder, an environment and paths of modules of its
own. With the folder of a checkout, the forks have imported its packages and know the hashes of its code as well.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# Packages that the workflow imports, and data sets. None starts a pool of threads when it is imported, which a fork
# would not have.
PRELOADED = (
    "snakemake.cli",
    "snakemake.report",
    "polars",
    "pyarrow.parquet",
    "scipy.special",
    "h5py",
    "isal",
    "jinja2",
)
PRELOADED += ("PIL.Image", "jsonschema", "rich.table", "filelock", "pandas")
DATASETS = ("adni", "enrico", "mimic", "mosi")


class SnakemakeForks:
    """The process that forks, and the calls to it, one after the other.

    Args:
        checkout: whose packages the forks have imported; None for forks that run any checkout.
    """

    def __init__(self, checkout: Path | None = None) -> None:
        command = [sys.executable, "-P", __file__, *([str(checkout)] if checkout else [])]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def call(
        self, arguments: Sequence[str], *, folder: Path, env: Mapping[str, str], seconds: float
    ) -> tuple[int, str]:
        """Exit code of `python -m snakemake [arguments]` in a folder, and what it printed.

        Raises:
            subprocess.TimeoutExpired: it ran longer; it was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as out:
            call = json.dumps([list(arguments), str(folder), dict(env), out.name])
            print(call, file=self._process.stdin, flush=True)
            pid = int(self._process.stdout.readline())
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                os.killpg(pid, signal.SIGKILL)
                self._process.stdout.readline()
                raise subprocess.TimeoutExpired(list(arguments), seconds, out.read())
            return int(self._process.stdout.readline()), out.read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def _import_project(checkout: Path) -> None:
    """Import the packages of a checkout and hash their code, as the rules do."""
    folders = [checkout, checkout / "model"]
    sys.path[:0] = map(str, folders)
    from mrpipe.codehash import code_hash
    from mrpipe.datasets import get_dataset

    for name in DATASETS:
        get_dataset(name)
    modules = []
    for folder, package in zip(folders, ("mrpipe", "moe_retriever"), strict=True):
        files = sorted(file.relative_to(folder).with_suffix("") for file in (folder / package).rglob("*.py"))
        modules += [".".join(file.parts).removesuffix(".__init__") for file in files]
    code_hash(*modules)
    del sys.path[: len(folders)]


def _serve() -> None:
    """Fork for each line of standard input; return in the fork."""
    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            answers.close()
            _become(*json.loads(line))
            return
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    sys.exit()


def _become(arguments: list[str], folder: str, env: dict[str, str], out: str) -> None:
    """Take over folder, environment, output and paths of modules, as a new process of Python would."""
    os.setsid()
    for target, (file, flags) in enumerate(((os.devnull, os.O_RDONLY), (out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))):
        source = os.open(file, flags, 0o644)
        os.dup2(source, target)
        os.close(source)
    os.dup2(1, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    first = [] if env.get("PYTHONSAFEPATH") else [folder]
    sys.path[:0] = [*first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["snakemake", *arguments]


if __name__ == "__main__":
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)
    if sys.argv[1:]:
        _import_project(Path(sys.argv[1]))
    gc.freeze()
    _serve()
    runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
