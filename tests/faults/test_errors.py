"""Damaged, missing and forbidden input of every verb: the exit code, one line, no traceback, nothing half-written."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest

from mrpipe.cli import main as program
from mrpipe.cli.main import main
from mrpipe.errors import DataError, Fault, MissingExtraError, MrpipeError, StorageError, UsageError
from mrpipe.reading import AGAIN, read_frame, read_json, reading

PROJECT = Path(__file__).parents[2]
STORE = PROJECT / "tests" / "data" / "stores" / "format-2"
# Content of damaged files by name.
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "noise": lambda data: random.Random(0).randbytes(len(data)),
    "null": lambda data: b"null",
    "list": lambda data: b"[]",
    "object": lambda data: b"{}",
    "deep": lambda data: b"[" * 100_000,
    "latin-1": lambda data: b'{"caf\xe9": 1}',
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a mask, and a finished run `runs/toy/majority/seed0`."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(STORE, folder / "store")
    assert main(["mask", str(folder / "store"), "--p", "0.3", "--out", str(folder / "mask.parquet")]) == 0
    train = ["train", "--store", str(folder / "store"), "--method", "majority", "--quiet"]
    assert main([*train, "--out", str(folder / "runs/toy/majority/seed0"), "--mask", str(folder / "mask.parquet")]) == 0
    return folder


@pytest.fixture
def world(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained`, which is the working directory."""
    folder = tmp_path / "world"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


RUN = "runs/toy/majority/seed0"
VERBS = {
    "evaluate": ["--run", RUN, "--store", "store", "--mask", "mask.parquet", "--name", "again"],
    "report": ["--stores", "store", "--runs", RUN, "--out", "page"],
    "results": ["--runs", "runs", "--out", "all.parquet"],
    "train": ["--store", "store", "--method", "majority", "--out", "new", "--mask", "mask.parquet", "--quiet"],
    "suite-tables": ["--suite", "suite.json", "--runs", "runs", "--out", "table"],
    "search": ["--store", "store", "--method", "majority", "--out", "s", "--space", "space.yaml"],
}
INPUTS = [
    ("evaluate", "mask.parquet"),
    ("train", "mask.parquet"),
    ("report", f"{RUN}/metrics.json"),
    ("report", f"{RUN}/config.json"),
    ("report", f"{RUN}/cost.json"),
    ("report", f"{RUN}/metrics.csv"),
    ("results", f"{RUN}/metrics.json"),
    ("results", f"{RUN}/config.json"),
    ("results", f"{RUN}/metrics.csv"),
    ("suite-tables", "suite.json"),
    ("search", "space.yaml"),
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("verb", "file"), INPUTS, ids=lambda text: text.rpartition("/")[2])
def test_damaged_input_is_an_error_that_names_the_file(
    verb: str, file: str, damage: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / file
    path.write_bytes(DAMAGE[damage](path.read_bytes() if path.is_file() else b'{"format": 1}'))
    before = {p for p in world.rglob("*") if p.suffix == ".tmp"}
    code = main([verb, *VERBS[verb]])
    error = capsys.readouterr().err
    accepted = file.endswith("cost.json") and damage in ("object", "latin-1")
    assert code in ((0, DataError.exit_code) if accepted else (DataError.exit_code,)), error
    assert "Traceback" not in error
    if code:
        assert error.startswith(f"mrpipe {verb}: ")
        assert error.count("\n") == 1
        assert Path(file).name in error
    assert {p for p in world.rglob("*") if p.suffix == ".tmp"} == before


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "x"), StorageError, "the disk is full. Free some space"),
        (OSError(errno.EROFS, "x"), StorageError, "read-only"),
        (PermissionError(errno.EACCES, "x"), StorageError, "no permission to read it"),
        (OSError(errno.EDQUOT, "x"), StorageError, "quota"),
        (OSError(errno.EIO, "x"), StorageError, "input/output error"),
        (OSError(errno.ENAMETOOLONG, "x"), StorageError, "name is too long"),
        (OSError(errno.EMFILE, "x"), StorageError, "too many open files"),
        (OSError(errno.ELOOP, "x"), StorageError, "symbolic link"),
        (pl.exceptions.ComputeError("Permission denied (os error 13)"), StorageError, "no permission"),
        (OSError("Unable to open file (errno = 5, error message = 'x')"), StorageError, "input/output error"),
        (FileNotFoundError(errno.ENOENT, "x"), DataError, "found no such file"),
        (IsADirectoryError(errno.EISDIR, "x"), DataError, "found a folder"),
        (KeyError("x"), DataError, "unreadable data (KeyError: 'x'). The file is damaged"),
        (pl.exceptions.PanicException("x"), DataError, "unreadable data (x)"),
        (MemoryError(), DataError, "more than the available memory"),
        (RecursionError("deep"), DataError, "unreadable data (deep)"),
        (UsageError("p must be in [0, 1)"), DataError, "p must be in"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exceptions_of_readers_become_one_error(error: BaseException, kind: type[DataError], words: str) -> None:
    with pytest.raises(DataError) as caught, reading("a.bim", "a whole .bim file"):
        raise error
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert str(caught.value).startswith("a.bim: expected ")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(2), DataError(Fault(file="x", expected="a", found="b"))]
)
def test_interruptions_and_own_errors_pass_through_a_reader(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading("a", "b"):
        raise error
    assert caught.value is error


def test_a_missing_library_is_not_a_damaged_file() -> None:
    with pytest.raises(MissingExtraError), reading("a.xlsx", "a workbook"):
        raise MissingExtraError("fastexcel", "tables", "reading Excel")


def test_files_without_needed_keys_or_columns_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json", keys=("a",)) == {"a": 1}
    with pytest.raises(DataError, match=r"found unreadable data \(no b, c\)"):
        read_json(tmp_path / "a.json", keys=("a", "b", "c"))
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a complete Parquet file with b"):
        read_frame(tmp_path / "a.parquet", ["b"])
    with pytest.raises(DataError, match=r"found no such file$"):
        read_frame(tmp_path / "b.parquet", fix=AGAIN)


def _raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(program, "_run", run)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left", "out/x.parquet"), 4, "out/x.parquet: the disk is full. Free some"),
        (OSError(errno.EROFS, "Read-only", "out"), 4, "out: the file system is read-only. Choose"),
        (PermissionError(errno.EACCES, "denied", "out"), 4, "out: no permission. Ask"),
        (OSError(errno.ENAMETOOLONG, "long", "out"), 4, "out: the name is too long. Choose"),
        (MemoryError(), 4, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 4, "not enough memory"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x"), 2, "file/x: Not a directory"),
        (UsageError("no such option"), 2, "no such option"),
        (MrpipeError("failed"), 1, "failed"),
        (ZeroDivisionError("by zero"), 1, "unexpected error: ZeroDivisionError: by zero (test_errors.py, line "),
        (pl.exceptions.PanicException("index out of bounds"), 1, "unexpected error: PanicException"),
        (OSError("no number"), 1, "unexpected error: OSError: no number"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_the_last_handler_prints_one_line(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MRPIPE_DEBUG", raising=False)
    _raising(monkeypatch, error)
    assert main(["train"]) == code
    text = capsys.readouterr().err
    assert text.startswith(f"mrpipe train: {words}")
    assert text.count("\n") == 1
    assert main(["train", "--debug"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    # The logs of the workflow have tracebacks of bugs only.
    monkeypatch.setenv("MRPIPE_DEBUG", "1")
    assert main(["train"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(error, MrpipeError))


def test_debug_is_accepted_after_every_command_and_not_taken_from_another_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["options", "--debug", "mosi"]) == 0
    seen: list[list[str]] = []
    monkeypatch.setattr(program, "_run", lambda arguments: seen.append(arguments) or 0)
    assert main(["run", "--", "--debug"]) == 0
    assert seen == [["run", "--", "--debug"]]


def test_an_unexpected_error_names_the_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mrpipe.store import reader

    monkeypatch.setattr(reader, "read_manifest", lambda *arguments, **named: None)
    assert main(["show", str(STORE)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mrpipe show: unexpected error: AttributeError: ")
    assert ".py, line " in error
    assert error.endswith("please report it: --debug prints the traceback\n")


# Runs commands one after the other and prints a JSON line of exit code and messages for each.
PROGRAM = """
import contextlib, io, json, resource, signal, sys
from mrpipe.cli.main import main
import mrpipe.store.export
commands, limits = json.loads(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
out = sys.stdout
for name, value in limits:
    resource.setrlimit(name, (value, value))
for command in commands:
    with contextlib.redirect_stderr(io.StringIO()) as error:
        code = main(command)
    print(json.dumps([code, error.getvalue()]))
"""


def elsewhere(folder: Path, commands: list[list[str]], limits: Sequence[tuple[int, int]] = ()) -> list[tuple[int, str]]:
    """Exit code and messages of commands in a process that respects permissions even as root, with limits."""
    # Root without these capabilities; another user may not read the interpreter of root.
    plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'model'}", "HOME": "/nowhere"}
    command = [*plain, sys.executable, "-c", PROGRAM, json.dumps([commands, limits])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(commands), done.stderr
    return [(code, error) for code, error in lines]


FORBIDDEN = {
    "show store": "store/manifest.json",
    "mask store --p 0.3 --out locked/m.parquet": "locked",
    "export store --out locked/npz --format npz": "locked",
    "results --runs runs --out open/all.parquet": f"{RUN}/metrics.json",
    "simulate mosi --out locked/raw": "locked",
}


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root without setpriv")
def test_forbidden_paths_are_one_sentence_and_exit_code_4(world: Path) -> None:
    (world / "ids.json").write_text("{}")
    for name in ("locked", "open"):
        (world / name).mkdir()
    shutil.copytree(world / "store", world / "closed")
    commands = [text.replace("show store", "show closed").split() for text in FORBIDDEN]
    places = [world / place.replace("store/", "closed/") for place in FORBIDDEN.values()]
    for place in places:
        place.chmod(0o500 if place.is_dir() else 0)
    try:
        found = elsewhere(world, commands)
    finally:
        for place in places:
            place.chmod(0o700)
    for code, error in found:
        assert (code, error.count("\n")) == (StorageError.exit_code, 1), error
        assert "no permission" in error
        assert "damaged" not in error
    assert not list((world / "locked").iterdir())


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [(resource.RLIMIT_FSIZE, 512, "larger than the system allows"), (resource.RLIMIT_NOFILE, 3, "too many open files")],
)
def test_a_refusing_system_leaves_nothing_half_written(limit: int, value: int, words: str, world: Path) -> None:
    before = set(world.rglob("*"))
    ((code, error),) = elsewhere(world, [["export", "store", "--out", "out", "--format", "npz"]], [(limit, value)])
    assert (code, error.count("\n")) == (StorageError.exit_code, 1), error
    assert words in error
    assert not [p for p in set(world.rglob("*")) - before if p.is_file() and p.suffix == ".tmp"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_one_sentence() -> None:
    command = [sys.executable, "-m", "mrpipe", "options", "mosi"]
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'model'}"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.stderr == "mrpipe options: the disk is full. Free some space, then run the same command again.\n"
    assert done.returncode == StorageError.exit_code
