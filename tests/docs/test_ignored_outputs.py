"""Whoever tries the documented commands in a checkout leaves nothing that git would add."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

OUTPUT = re.compile(r"(?:--out|--report)[ =]([a-z][\w./-]*)")


def commands(path: Path) -> list[str]:
    """Lines of the fenced blocks of a page, without comments."""
    blocks = re.findall(r"^```(?:bash|text)?(?: [^\n]*)?\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    return [line.split("   #")[0] for block in blocks for line in block.splitlines()]


def test_outputs_of_documented_commands_are_ignored(project: Path) -> None:
    if not (project / ".git").exists():
        pytest.skip("not a git checkout")
    pages = [project / "README.md", *sorted((project / "docs").glob("*.md"))]
    named = {out for page in pages for line in commands(page) for out in OUTPUT.findall(line)}
    assert len(named) >= 6
    for out in sorted({*named, "results/report/index.html", "site/index.html", ".snakemake/log/x.log"}):
        done = subprocess.run(["git", "check-ignore", "--no-index", "-q", out], cwd=project)
        assert done.returncode == 0, out


def test_sources_are_not_ignored(project: Path) -> None:
    if not (project / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
