"""Shell completion: bash completes commands, options, datasets, methods, files and folders."""

import subprocess
from pathlib import Path

import pytest

from mrpipe.cli.completion import SHELLS
from mrpipe.cli.main import command_names, main

# Calls the function that the script registers, as bash does when Tab is pressed.
TAB = """
source script.bash
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
FUNCTION=$(complete -p mrpipe | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$FUNCTION mrpipe "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script, a store and a mask."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "mine" / "stores").mkdir(parents=True)
    (folder / "mine.parquet").touch()
    capture = pytest.MonkeyPatch()
    with capture.context() as patch, (folder / "script.bash").open("w") as out:
        patch.setattr("sys.stdout", out)
        assert main(["completion", "bash"]) == 0
    return folder


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("tra", {"train"}),
        ("check mo", {"mosi", "mosei"}),
        ("train --met", {"--method"}),
        ("train --method shas", {"shaspec"}),
        ("methods dym", {"dymo"}),
        ("run --profile s", {"slurm"}),
        ("show mi", {"mine"}),
        ("train --store mi", {"mine"}),
        ("train --mask mi", {"mine", "mine.parquet"}),
        ("mask mine --out mine.", {"mine.parquet"}),
        ("train --qui", {"--quiet"}),
    ],
)
def test_bash_completes(folder: Path, typed: str, found: set[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", TAB, "bash", "mrpipe", *typed.split()], cwd=folder, capture_output=True, text=True, timeout=30
    )
    assert set(done.stdout.split()) == found, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_has_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in command_names())
