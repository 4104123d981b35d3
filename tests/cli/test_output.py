"""-v, -q and `logging`: progress and details on stderr, results on stdout, and silence as a library."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrpipe.cli.main import command_names, command_parser, find_command, main

STORE = Path(__file__).parents[1] / "data" / "stores" / "format-2"
# As from another directory: the packages are found by the path alone.
LIBRARY = "import sys; sys.path[:0] = {path}; from mrpipe.stages.build import build; from mrpipe.datasets import *; "


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The configuration of `logging` before the test."""
    root, packages = logging.getLogger(), [logging.getLogger(name) for name in ("mrpipe", "moe_retriever")]
    before = list(root.handlers), [logger.level for logger in packages]
    yield
    root.handlers = before[0]
    for logger, level in zip(packages, before[1], strict=True):
        logger.setLevel(level)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    assert main(["simulate", "tables", "--out", str(tmp_path / "raw"), "--set", "n_visits=80", "-q"]) == 0
    return tmp_path / "raw"


def test_results_are_on_stdout_and_progress_on_stderr(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", "tables", "--raw", str(raw), "--out", str(raw.parent / "store")]
    found = {}
    capsys.readouterr()
    for name, arguments in {
        "default": build,
        "quiet": [*build, "-q"],
        "before": ["--quiet", *build],
        "verbose": [*build[:1], "-v", *build[1:]],
    }.items():
        assert main(arguments) == 0
        found[name] = capsys.readouterr()
        assert found[name].out.startswith(f"sealed {raw.parent / 'store'}: store_id ")
        assert found[name].out.count("\n") == 1
    assert "cohort: 80 samples\n" in found["default"].err
    assert found["quiet"].err == found["before"].err == ""
    details = set(found["verbose"].err.splitlines()) - set(found["default"].err.splitlines())
    assert any(line.startswith("mrpipe ") for line in details)


def test_errors_are_printed_when_quiet_and_both_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "verify", "nowhere"]) == 3
    assert capsys.readouterr().err.startswith("mrpipe verify: nowhere: ")
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(STORE), "-q", "-v"])
    assert stopped.value.code == 2
    assert main(["-v"]) == 2
    assert "usage: mrpipe COMMAND" in capsys.readouterr().out


def test_a_warning_of_a_library_and_of_ours_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["options", "mosi", "-q"]) == 0
    capsys.readouterr()
    for name in ("mrpipe.x", "moe_retriever.x", "other"):
        logging.getLogger(name).warning("a warning \x1b[31m")
        logging.getLogger(name).info("progress")
    assert capsys.readouterr().err == "a warning \\x1b[31m\n" * 3


def test_every_command_has_the_options() -> None:
    for name in command_names():
        command = find_command(name)
        assert command is not None
        help_text = command_parser(name, command).format_help()
        assert "-v, --verbose" in help_text, name
        assert "-q, --quiet" in help_text, name


def test_as_a_library_nothing_is_printed_unless_logging_is_configured(raw: Path) -> None:
    build = f"build(get_dataset('tables'), Path({str(raw)!r}), Path({str(raw.parent / 'store')!r}), {{}})"
    warn = "from pathlib import Path; logging.getLogger('mrpipe.text.cache').warning('a warning'); "
    for configured, printed in (("", ""), ("logging.basicConfig(); ", "WARNING:mrpipe.text.cache:a warning\n")):
        code = LIBRARY.format(path=sys.path) + "import logging; " + configured + warn + build
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", printed)
