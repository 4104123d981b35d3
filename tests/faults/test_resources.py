"""Shortages and odd files: full disks, limits, permissions, names, pipes, loops, files that vanish.

A command then ends with one message and an exit code other than 0, or does its work. It leaves no unfinished result,
and an earlier result stays as it was.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl
import pytest

import mrpipe
from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.errors import DataError, UsageError
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate

NOBODY = 65534
ROOT = os.geteuid() == 0
# Command → arguments; FOLDER is that of the inputs, OUT the output.
COMMANDS: dict[str, tuple[str, ...]] = {
    "simulate": ("simulate", "tables", "--out", "OUT", "--set", "n_visits=80"),
    "build": ("build", "tables", "--raw", "FOLDER/raw", "--quiet", "--out", "OUT"),
    "mask": ("mask", "FOLDER/store", "--p", "0.3", "--out", "OUT"),
    "train": ("train", "--store", "FOLDER/store", "--method", "majority", "--quiet", "--out", "OUT"),
    "search": ("search", "--store", "FOLDER/store", "--method", "majority", "--quiet", "--out", "OUT"),
    "predict": ("predict", "--run", "FOLDER/run", "--store", "FOLDER/store", "--out", "OUT"),
    "export": ("export", "FOLDER/store", "--out", "OUT"),
    "report": ("report", "--runs", "FOLDER/run", "--stores", "FOLDER/store", "--out", "OUT"),
    "results": ("results", "--runs", "FOLDER", "--out", "OUT"),
}
FILES = ("mask", "predict", "report", "results")
# The file that a finished command has written.
WHOLE = {"build": "manifest.json", "train": "metrics.json", "search": "best.json"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, its store, and a run."""
    folder = tmp_path_factory.mktemp("resources")
    simulate(get_dataset("tables"), folder / "raw", {"n_visits": 80})
    assert call(COMMANDS["build"], folder, folder / "store") == 0
    assert call(COMMANDS["train"], folder, folder / "run") == 0
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    return folder


def call(arguments: tuple[str, ...], folder: Path, out: Path) -> int:
    return main([a.replace("FOLDER", str(folder)).replace("OUT", str(out)) for a in arguments])


@contextmanager
def limit(which: int, value: int) -> Iterator[None]:
    """A soft limit of this process."""
    soft, hard = resource.getrlimit(which)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def not_waiting(pipe: Path, seconds: float = 4.0) -> Iterator[None]:
    """Fail if a reader waits for a pipe that nobody writes to; the pipe is opened and closed to release the reader."""
    late, done = [], threading.Event()

    def release() -> None:
        while not done.wait(seconds if not late else 0.2):
            with suppress(OSError):  # without a reader
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                late.append(pipe)

    thread = threading.Thread(target=release, daemon=True)
    if stat.S_ISFIFO(pipe.lstat().st_mode):
        thread.start()
    try:
        yield
    finally:
        done.set()
    assert not late, f"a reader waited for {pipe.name}"


@contextmanager
def as_nobody() -> Iterator[None]:
    if ROOT:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if ROOT:
            os.seteuid(0)


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """A folder in which nothing can be written, for a user other than root."""
    folder.chmod(0o555)
    try:
        with as_nobody():
            yield
    finally:
        folder.chmod(0o755)


def refused(code: int, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that was refused."""
    message = capsys.readouterr().err
    assert code in (2, 3, 4), message
    assert "Traceback" not in message
    assert message.startswith("mrpipe "), message
    for word in words:
        assert word.lower() in message.lower()
    return message


def unfinished(out: Path) -> list[str]:
    """What a failed command has left: its result, temporary files and work folders."""
    left = [p.name for p in out.parent.iterdir()]
    return [n for n in left if n.startswith(".") or n == out.name]


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_cannot_grow(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    """As on a full disk or with a quota: every write behind the first bytes fails."""
    out = tmp_path / "out"
    with limit(resource.RLIMIT_FSIZE, 200):
        code = call(COMMANDS[command], inputs, out)
    refused(code, capsys)
    assert not (out / WHOLE.get(command, "none")).exists()
    assert command not in FILES or unfinished(out) == []


@pytest.mark.parametrize("command", ["build", "train", "simulate"])
@pytest.mark.skipif(not ROOT, reason="mounting a small file system requires root")
def test_a_full_disk(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        code = call(COMMANDS[command], inputs, disk / "out")
        refused(code, capsys, "disk is full", str(disk))
        assert not (disk / "out" / WHOLE.get(command, "none")).exists()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_the_right_to_write(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o755)
    with without_rights(tmp_path):
        code = call(COMMANDS[command], inputs, tmp_path / "out")
    refused(code, capsys, str(tmp_path))
    assert unfinished(tmp_path / "out") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_too_long(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    refused(call(COMMANDS[command], inputs, tmp_path / ("x" * 300)), capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_where_a_folder_must_be(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    refused(call(COMMANDS[command], inputs, tmp_path / "file" / "out"), capsys)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", FILES)
def test_a_folder_where_a_file_must_be(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    refused(call(COMMANDS[command], inputs, tmp_path / "out"), capsys)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_a_symlink_to_itself(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "out")
    refused(call(COMMANDS[command], inputs, tmp_path / "out" / "x"), capsys)


@pytest.mark.parametrize("command", ["build", "train", "export"])
def test_no_more_open_files(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    used = len(os.listdir("/proc/self/fd"))
    for spare in (0, 1, 3):
        with limit(resource.RLIMIT_NOFILE, used + spare):
            code = call(COMMANDS[command], inputs, tmp_path / "out")
        if code:
            refused(code, capsys)
            assert not (tmp_path / "out" / WHOLE.get(command, "none")).exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_an_earlier_result_survives_a_shortage(inputs: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(inputs / "store", tmp_path / "store")
    before = mrpipe.open_store(tmp_path / "store").store_id
    shutil.copy(inputs / "run" / "model.pt", tmp_path / "predictions.parquet")
    with limit(resource.RLIMIT_FSIZE, 3000):
        refused(call(COMMANDS["build"], inputs, tmp_path / "store"), capsys)
    with limit(resource.RLIMIT_FSIZE, 200):
        refused(call(COMMANDS["predict"], inputs, tmp_path / "predictions.parquet"), capsys)
    store = mrpipe.open_store(tmp_path / "store")
    store.verify(deep=True)
    assert store.store_id == before
    assert (tmp_path / "predictions.parquet").read_bytes() == (inputs / "run" / "model.pt").read_bytes()


def test_output_to_a_full_device(inputs: Path) -> None:
    for stream in ("/dev/full", "closed"):
        command = f"{sys.executable} -m mrpipe show {inputs / 'store'} >{'&-' if stream == 'closed' else stream}"
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr
        assert done.returncode != 0 or stream == "closed"


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(inputs: Path, tmp_path: Path) -> Path:
    """A copy of the export that tests may spoil."""
    shutil.copytree(inputs / "raw.truth", tmp_path / "raw.truth")
    return Path(shutil.copytree(inputs / "raw", tmp_path / "raw"))


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def _unreadable(path: Path) -> None:
    """Reads fail with an input/output error."""
    path.symlink_to("/proc/self/mem")


def _device(path: Path) -> None:
    path.symlink_to("/dev/full")


ODD: dict[str, Callable[[Path], None]] = {
    "a folder": _folder,
    "a pipe": os.mkfifo,
    "a symlink to itself": _loop,
    "a symlink to nothing": _dangling,
    "an unreadable file": _unreadable,
    "a device": _device,
}


@pytest.mark.parametrize("name", ["tables.yaml", "people.csv", "labs.csv.gz", "survey.parquet"])
@pytest.mark.parametrize("kind", ODD)
def test_an_input_that_is_no_regular_file(kind: str, name: str, raw: Path, tmp_path: Path, capsys) -> None:
    (raw / name).unlink()
    ODD[kind](raw / name)
    with not_waiting(raw / name):
        refused(call(COMMANDS["build"], tmp_path, tmp_path / "store"), capsys)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ODD)
def test_a_mask_or_id_list_that_is_no_regular_file(kind: str, inputs: Path, tmp_path: Path, capsys) -> None:
    odd = tmp_path / "odd"
    ODD[kind](odd)
    with not_waiting(odd):
        refused(call((*COMMANDS["train"], "--mask", str(odd)), inputs, tmp_path / "run"), capsys)
        refused(call((*COMMANDS["train"], "--options", str(odd)), inputs, tmp_path / "run"), capsys)
    assert not (tmp_path / "run" / "model.pt").exists()


def test_an_input_that_may_not_be_read(raw: Path, tmp_path: Path, capsys) -> None:
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o755)
    (raw / "people.csv").chmod(0o000)
    (tmp_path / "out").mkdir(mode=0o777)
    (tmp_path / "out").chmod(0o777)
    with as_nobody():
        code = call(COMMANDS["build"], tmp_path, tmp_path / "out" / "store")
    message = refused(code, capsys, "people.csv", "permission")
    assert "damaged" not in message
    assert not (tmp_path / "out" / "store").exists()


@pytest.mark.parametrize("name", ["people.csv", "survey.parquet", "tables.yaml"])
def test_an_input_that_vanishes_after_the_check(name: str, raw: Path, tmp_path: Path) -> None:
    def vanish(message: str) -> None:
        if message.startswith("check"):
            (raw / name).unlink()

    with pytest.raises((DataError, UsageError, FileNotFoundError), match=name.partition(".")[0]):
        build(get_dataset("tables"), raw, tmp_path / "store", {}, report=vanish)
    assert not (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["samples.parquet", "manifest.json", "modalities/vitals.parquet"])
@pytest.mark.parametrize("kind", ODD)
def test_a_file_of_a_store_that_is_no_regular_file(kind: str, name: str, inputs: Path, tmp_path: Path, capsys) -> None:
    store = Path(shutil.copytree(inputs / "store", tmp_path / "store"))
    (store / name).unlink()
    ODD[kind](store / name)
    with not_waiting(store / name):
        refused(main(["verify", "--deep", str(store)]), capsys)
        refused(main(["train", "--store", str(store), "--method", "majority", "--out", str(tmp_path / "run")]), capsys)


# --- the surroundings -------------------------------------------------------------------------------------------------


def _no_home(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "MRPIPE_CACHE", "USER", "LOGNAME"):
        patch.delenv(name, raising=False)


def _home_missing(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setenv("HOME", "/nowhere/at/all")
    patch.delenv("MRPIPE_CACHE", raising=False)


def _no_temporary_folder(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    patch.setattr("tempfile.tempdir", None)


def _old_clock(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setattr("time.time", lambda: 0.0)


def _old_files(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in (tmp_path / "raw").rglob("*"):
        os.utime(path, (0, 0))


def _future_files(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in (tmp_path / "raw").rglob("*"):
        os.utime(path, (2**33, 2**33))


@pytest.mark.parametrize(
    "change", [_no_home, _home_missing, _no_temporary_folder, _old_clock, _old_files, _future_files]
)
def test_surroundings_that_must_not_matter(
    change: Callable[[pytest.MonkeyPatch, Path], None], inputs: Path, raw: Path, tmp_path: Path, monkeypatch
) -> None:
    change(monkeypatch, tmp_path)
    assert call(COMMANDS["build"], tmp_path, tmp_path / "store") == 0
    store = mrpipe.open_store(tmp_path / "store")
    store.verify(deep=True)
    assert store.store_id == mrpipe.open_store(inputs / "store").store_id


def test_a_read_only_export_is_enough(inputs: Path, raw: Path, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o755)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    with without_rights(raw):
        assert call(COMMANDS["build"], tmp_path, tmp_path / "out" / "store") == 0
    assert stat.S_IMODE((tmp_path / "out" / "store" / "manifest.json").stat().st_mode) & 0o400
    assert len(pl.read_parquet(tmp_path / "out" / "store" / "samples.parquet")) == 80


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build", "train"])
def test_too_little_memory(command: str, inputs: Path, tmp_path: Path) -> None:
    """The process may be ended by a library; there is no result then, and the next run does its work."""
    arguments = [a.replace("FOLDER", str(inputs)).replace("OUT", str(tmp_path / "out")) for a in COMMANDS[command]]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    for size in (300, 500, 700):
        shell = f'ulimit -v {size * 1024}; exec "$0" -m mrpipe "$@"'
        done = subprocess.run(
            ["sh", "-c", shell, sys.executable, *arguments], env=env, capture_output=True, timeout=120
        )
        assert done.returncode == 0 or not (tmp_path / "out" / WHOLE[command]).exists()
    assert call(COMMANDS[command], inputs, tmp_path / "out") == 0
