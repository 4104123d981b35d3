"""SIGINT, SIGTERM and SIGHUP: one line, no temporary files, no child processes, and the same command continues."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mrpipe.cli.command import SIGNALS, Interrupted, interruptible
from mrpipe.cli.main import main

PROJECT = Path(__file__).parents[2]
STORE = PROJECT / "tests" / "data" / "stores" / "format-2"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}:{PROJECT / 'model'}"}
# The command waits for the signal where it would write its output to disk; a child of it waits as well.
WAITING = """
import os, signal, subprocess, sys
from pathlib import Path
from mrpipe.cli.main import main

# Commands in the background of a script ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
ready = Path(sys.argv.pop())

def wait(*arguments):
    if seconds := os.environ.get("MRPIPE_TEST_WAIT"):
        ready.write_text("")
        subprocess.run(["sleep", seconds], check=False)

os.fsync = wait
sys.exit(main())
"""
VERBS = {
    "mask": ["mask", str(STORE), "--p", "0.3", "--out", "mask.parquet"],
    "export": ["export", str(STORE), "--out", "export", "--format", "npz"],
    "train": ["train", "--store", str(STORE), "--method", "majority", "--quiet", "--out", "run"],
}


def wait_for(sign: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not sign.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)


@pytest.mark.parametrize(
    ("verb", "number"),
    [(v, n) if v != "train" else pytest.param(v, n, marks=pytest.mark.slow)
     for v in VERBS for n in SIGNALS],
)  # fmt: skip
def test_a_signal_ends_a_command_and_the_same_command_continues(
    verb: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    command = [sys.executable, "-c", WAITING, *VERBS[verb], str(tmp_path / "ready")]
    seconds = f"{60 + time.time() % 1:.9f}"  # names the child
    process = subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT | {"MRPIPE_TEST_WAIT": seconds}, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "ready", process)
    # A scheduler signals the process and then its whole group.
    process.send_signal(number)
    process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    assert error == f"mrpipe {verb}: interrupted ({number.name}); run the same command again to continue\n"
    assert process.returncode == 128 + number
    assert not [p for p in folder.rglob("*") if p.suffix == ".tmp"]
    assert not (folder / "mask.parquet").exists()
    assert f"sleep\x00{seconds}" not in _command_lines()
    monkeypatch.chdir(folder)
    assert main(VERBS[verb]) == 0
    written = {"mask": "mask.parquet", "export": "export/table.npz", "train": "run/metrics.json"}
    assert (folder / written[verb]).is_file()


def _command_lines() -> str:
    texts = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(texts)


def test_ignored_signals_stay_ignored_and_handlers_are_restored() -> None:
    before = {n: signal.getsignal(n) for n in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {n: signal.getsignal(n) for n in SIGNALS} == before


def test_a_second_signal_does_not_stop_the_clean_up() -> None:
    removed = []

    def command() -> None:
        with interruptible():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGINT)
                removed.append(True)

    with pytest.raises(Interrupted, match="SIGTERM") as caught:
        command()
    assert removed
    assert caught.value.exit_code == 143


def test_a_command_in_another_thread_leaves_signals_alone() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["options", "mosi"])))
    thread.start()
    thread.join()
    assert codes == [0]


# A workflow of two slow jobs with our treatment of locks, incomplete outputs and permissions.
SNAKEFILE = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / "model")!r}]
from workflow.planning.snakemake_internals import Internals
Internals(workflow).resume_interrupted()
Internals(workflow).follow_umask()
rule all:
    input: "a", "b"
rule slow:
    output: "{{name}}"
    wildcard_constraints: name="[ab]"
    shell: "echo half > {{output}}; touch begun; if [ -e wait ]; then sleep 3; fi; echo whole > {{output}}"
"""


def _workflow(folder: Path, *, elsewhere: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "snakemake", "--cores", "1", "--snakefile", str(folder / "Snakefile")]
    command += ["--directory", str(folder)] if elsewhere else []
    return subprocess.Popen(
        command,
        cwd=folder.parent if elsewhere else folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        umask=0o027,
    )


@pytest.mark.parametrize(
    ("number", "whole"),
    [
        pytest.param(number, whole, marks=pytest.mark.slow)
        for number in (*SIGNALS, signal.SIGKILL)
        for whole in (True, False)
    ],
)
def test_an_interrupted_workflow_continues_by_the_same_command(
    number: signal.Signals, whole: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "wait").touch()
    first = _workflow(folder, elsewhere=whole)
    wait_for(folder / "begun", first)
    (os.killpg if whole else os.kill)(first.pid, number)
    first.communicate(timeout=30)
    assert first.returncode != 0
    if number == signal.SIGKILL and not whole:
        time.sleep(3.5)  # its job ends by itself
    (folder / "wait").unlink()
    second = _workflow(folder, elsewhere=whole)
    error = second.communicate(timeout=60)[1]
    assert second.returncode == 0, error
    assert [(folder / name).read_text() for name in "ab"] == ["whole\n", "whole\n"]
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (folder / ".snakemake").rglob("*") if p.is_file()}
    assert modes == {0o640}
    folders = {stat.S_IMODE(p.stat().st_mode) for p in (folder / ".snakemake").rglob("*") if p.is_dir()}
    assert folders == {0o750}
