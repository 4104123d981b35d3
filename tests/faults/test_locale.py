"""Terminals and locales that cannot display every character: files are UTF-8, messages degrade, nothing crashes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
STORE = PROJECT / "tests" / "data" / "stores" / "format-2"
# As of a cluster whose nodes have no UTF-8 locale.
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN_1 = ASCII | {"LC_ALL": "en_US.ISO-8859-1", "PYTHONIOENCODING": "latin-1"}
# All verbs in one process, since starting Python and torch takes most of the time.
PROGRAM = """
import json, sys
from mrpipe.cli.main import main
codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps(codes), file=sys.stderr)
"""
COMMANDS = [
    ["simulate", "tables", "--out", "raw", "--set", "n_visits=80"],
    ["check", "tables", "--raw", "raw"],
    ["show", str(STORE)],
    ["methods"],
    ["methods", "moe_retriever"],
    ["options", "mosi"],
    ["mask", str(STORE), "--p", "0.3", "--out", "mask.parquet"],
    ["train", "--store", str(STORE), "--method", "majority", "--mask", "mask.parquet", "--out", "runs/a/b/seed0"],
    ["evaluate", "--run", "runs/a/b/seed0", "--store", str(STORE), "--mask", "mask.parquet", "--name", "again"],
    ["report", "--stores", str(STORE), "--runs", "runs/a/b/seed0", "--out", "page.html"],
    ["audit", str(STORE)],
    ["verify", str(STORE)],
    ["--help"],
    ["benchmark", "--help"],
]
TEXTS = {".json", ".csv", ".md", ".html", ".txt", ".svg", ".yaml"}


def run(locale: dict[str, str], commands: list[list[str]], folder: Path) -> tuple[list[int], str]:
    """Exit codes and everything that was printed."""
    names = {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'model'}", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        cwd=folder,
        env=environment | names | locale,
        capture_output=True,
        check=False,
        timeout=300,
    )
    text = (done.stdout + done.stderr).decode("latin-1")
    assert done.returncode == 0, text[-3000:]
    return json.loads(text.splitlines()[-1]), text


@pytest.mark.parametrize(
    "locale",
    [pytest.param(locale, marks=pytest.mark.slow) for locale in (LATIN_1, ASCII)],
    ids=lambda locale: locale["LC_ALL"],
)
def test_every_verb_works_and_writes_utf_8(locale: dict[str, str], tmp_path: Path) -> None:
    commands = [c for c in COMMANDS if c[-1] != "--help" or len(c) == 1]
    codes, text = run(locale, commands, tmp_path)
    assert codes == [0] * len(commands), text[-3000:]
    assert "Traceback" not in text
    for path in tmp_path.rglob("*"):
        if path.suffix in TEXTS:
            path.read_bytes().decode("utf-8")
    assert "…" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_messages_degrade_on_the_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrpipe.cli.main import main

    out, error = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    # A file name in Latin-1 on a file system in UTF-8, as Python decodes it.
    assert main(["show", "stores/caf\udce9 …"]) == 3
    assert main(["methods", "moe_retriever"]) == 0
    error.flush()
    shown = error.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert shown.startswith("mrpipe show: stores/caf\\udce9 ")
    assert shown.count("\n") == 1
