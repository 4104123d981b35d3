"""Runs a page of docs/tutorials as a reader would: its blocks in order, in one folder.

A block with a file name as title is written to that file, other `bash` and `python` blocks are run, and a `text` block
is the expected output of the block before it. A comment `# exit code N` at the end of a block is its expected status.
"""

import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).parents[2]
TUTORIALS = PROJECT / "docs" / "tutorials"
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: language, title ("" if it has none) and content."""

    language: str
    title: str
    content: str

    @property
    def is_file(self) -> bool:
        return self.language not in ("bash", "text") and bool(self.title)


def blocks(page: str) -> list[Block]:
    """The fenced blocks of docs/tutorials/<page>, in order."""
    return [Block(*found) for found in FENCE.findall((TUTORIALS / page).read_text(encoding="utf-8"))]


@dataclass
class Tutorial:
    """A folder in which a page is run. Packages that the page installs go to <folder>.site, not to this environment."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    printed: dict[int, str] = field(default_factory=dict)  # index of a block -> its output
    seconds: float = 0.0  # on two idle cores, estimated from the CPU time

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        site, bin_ = (self.folder.with_name(f"{self.folder.name}.{name}") for name in ("site", "bin"))
        site.mkdir(exist_ok=True)
        bin_.mkdir(exist_ok=True)
        python = shlex.quote(sys.executable)
        install = f"install --no-index --no-deps --no-build-isolation --quiet --target {shlex.quote(str(site))} ."
        programs = {"mrpipe": "-P -m mrpipe $@", "python": "$@", "pip": f"-m pip {install}"}
        for name, arguments in programs.items():
            script = bin_ / name
            script.write_text(f"#!/bin/sh\nexec {python} {arguments}\n".replace("$@", '"$@"'))
            script.chmod(0o755)
        path = os.pathsep.join(map(str, (site, PROJECT, PROJECT / "model")))
        self.environment = {
            **os.environ,
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "110",
            **self.environment,
        }

    def run(self, page: str, *, skip: Collection[str] = ()) -> None:
        """Run the blocks of a page, except those with a title in `skip`.

        Raises:
            AssertionError: a block that ends with another status, or prints other lines, than the page shows.
        """
        last: int | None = None
        for number, block in enumerate(blocks(page)):
            if block.title in skip:
                last = None
            elif block.is_file:
                file = self.folder / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.content, encoding="utf-8")
            elif block.language in ("bash", "python"):
                last = number
                self.printed[number] = self._execute(block)
            elif block.language == "text" and last is not None:
                check_output(block.content, self.printed[last])

    def _execute(self, block: Block) -> str:
        content = block.content
        before = _cpu_seconds()
        call = ["bash", "-e", "-c", content] if block.language == "bash" else [sys.executable, "-c", content]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(call, cwd=self.folder, env=self.environment, text=True, timeout=500, **pipes)  # type: ignore[call-overload]
        self.seconds += (_cpu_seconds() - before) / (2 if "--cores 2" in content else 1)
        expected = re.search(r"# exit code (\d+)\s*$", content)
        assert done.returncode == (int(expected[1]) if expected else 0), f"{content}\n{done.stdout[-5000:]}"
        return str(done.stdout)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def check_output(expected: str, printed: str) -> None:
    """Compare loosely: the lines occur in this order, with the same words; numbers and hashes may differ.

    A line `...` stands for any lines. Lines and columns in between are not compared.
    """
    lines = iter(printed.splitlines())
    for line in expected.splitlines():
        words = [word for word in line.split() if word not in ("...", "…")]
        if words:
            pattern = re.compile(".*?".join(map(_loose, words)))
            assert any(pattern.search(other) for other in lines), f"not printed (in this place): {line}\n\n{printed}"


def _loose(word: str) -> str:
    if re.fullmatch(r"[0-9a-f]{16}", word):
        return "[0-9a-f]{16}"
    return re.sub(r"\d[\d.,]*", r"\\d[\\d.,]*", re.escape(word).replace(r"\.", ".").replace(r"\,", ","))
