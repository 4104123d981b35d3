"""The code of a page of the documentation: files by title, and installing them as a package."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def titled_blocks(page: str) -> dict[str, str]:
    """Title → code of every fenced block of docs/<page> that has a title."""
    text = (PROJECT / "docs" / page).read_text(encoding="utf-8")
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL))


def install(blocks: dict[str, str], folder: Path) -> None:
    """What `pip install --target` would leave: the package's modules, and metadata with its entry points."""
    project = tomllib.loads(blocks["pyproject.toml"])["project"]
    for name, code in blocks.items():
        if name.startswith(f"{project['name']}/"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
    metadata = folder / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(header, encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n\n".join(groups) + "\n", encoding="utf-8")


def mrpipe(command: str, cwd: Path, *folders: Path, expected: int = 0) -> str:
    """Run `mrpipe …` with packages from `folders`; returns what it prints."""
    words = shlex.split(command.split("   #")[0])
    assert words[0] == "mrpipe"
    path = os.pathsep.join(map(str, (*folders, PROJECT, PROJECT / "model")))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    call = [sys.executable, "-P", "-m", *words]
    done = subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == expected, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
