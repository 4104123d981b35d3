"""Where commands may write: guards of --out, unusual names and folders, locks, and exports that change meanwhile."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import pytest

from mrpipe import locks
from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.errors import DataError, UsageError
from mrpipe.locks import temporary_name, writing
from mrpipe.stages.check import write_check
from mrpipe.stages.cohort import build_cohort
from mrpipe.stages.ingest import ingest
from mrpipe.stages.simulate import is_simulated
from mrpipe.store.parquet import write_text

# A space, quotes, Unicode, a line break, what a shell would execute, and a leading dash.
ODD = ["a b", 'it\'s "so"', "Ünï-漢字", "two\nlines", "$(touch x);&|", "-x"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    assert main(["simulate", "tables", "--out", str(folder / "raw"), "--set", "n_visits=40"]) == 0
    assert main(["build", "tables", "--raw", str(folder / "raw"), "--out", str(folder / "store")]) == 0
    return folder


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def commands(base: Path, out: str) -> dict[str, list[str]]:
    raw, store = str(base / "raw"), str(base / "store")
    return {
        "build": ["build", "tables", "--raw", raw, "--out", out],
        "simulate": ["simulate", "tables", "--out", out],
        "export": ["export", store, "--out", out],
        "train": ["train", "--store", store, "--out", out],
        "search": ["search", "--store", store, "--out", out],
        "analyse": ["analyse", "--run", str(base / "run"), "--store", store, "--out", out],
    }


@pytest.mark.parametrize("name", list(commands(Path(), "")))
def test_out_that_is_not_ours_is_refused_before_anything_is_done(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    here, home, foreign = (tmp_path / folder for folder in ("here", "home", "foreign"))
    for folder in (here, home, foreign):
        folder.mkdir()
        (folder / "thesis.tex").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    before = files(tmp_path), files(base)
    places = [".", "..", "/", str(home), str(tmp_path), str(foreign), str(foreign / "thesis.tex")]
    places += [str(base / "store" / "inner"), str(base)] if name != "simulate" else [str(base / "store" / "inner")]
    places += [str(base / "raw"), str(base / "raw" / "inner")] if name == "build" else []
    places += [str(base / "store")] if name != "build" else []
    for place in places:
        assert main(commands(base, place)[name]) == 2, place
        error = capsys.readouterr().err
        assert "not written" in error or "not overwritten" in error, place
        assert error.count("\n") == 1
    assert (files(tmp_path), files(base)) == before


def test_a_file_is_not_written_into_a_store_or_over_a_folder(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (base / "store" / "mask.parquet", base / "store", tmp_path):
        assert main(["mask", str(base / "store"), "--p", "0.5", "--out", str(place)]) == 2
        assert "not written" in capsys.readouterr().err


def test_a_finished_store_of_other_data_or_options_needs_overwrite(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, raw, other = tmp_path / "store", tmp_path / "raw", tmp_path / "other"
    shutil.copytree(base / "store", out)
    assert main(["simulate", "tables", "--out", str(other), "--set", "n_visits=40", "seed=5"]) == 0
    shutil.copytree(base / "raw", raw)
    shutil.copytree(base / "raw.truth", tmp_path / "raw.truth")
    before = files(out)
    refused = {
        "inputs": ["--raw", str(other)],
        "modalities": ["--raw", str(raw), "--modalities", "labs"],
        "splits": ["--raw", str(raw), "--seed", "1"],
    }
    for what, arguments in refused.items():
        assert main(["build", "tables", "--out", str(out), *arguments]) == 2
        error = capsys.readouterr().err
        assert what in error
        assert "--overwrite" in error
    assert files(out) == before
    # The same export, elsewhere and with new times, may be built again.
    assert main(["build", "tables", "--raw", str(raw), "--out", str(out)]) == 0
    assert main(["build", "tables", "--raw", str(other), "--out", str(out), "--overwrite"]) == 0


@pytest.mark.parametrize("name", [*ODD, "n" * 240, "漢" * 80])
def test_unusual_names(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    store = base / "store"
    assert main(["export", str(store), f"--out={name}", "--modalities", "labs"]) == 0
    assert (tmp_path / name / "samples.csv").is_file()
    file = f"{name[:235]}.parquet"
    assert main(["mask", str(store), "--p", "0.5", f"--out={file}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, file])


def test_an_export_behind_a_symlink_is_still_simulated(base: Path, tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(base / "raw")
    assert is_simulated(link)
    out = tmp_path / "out"
    target.mkdir()
    out.symlink_to(target)
    assert main(["build", "tables", "--raw", str(link), "--out", str(out / "store")]) == 0
    assert json.loads((target / "store" / "manifest.json").read_text())["origin"] == "simulated"
    assert main(["simulate", "tables", "--out", str(out / "raw"), "--set", "n_visits=40"]) == 0
    assert is_simulated(target / "raw")


def run(command: list[str], cwd: Path, user: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, in a folder that is deleted by then if it is named `gone`."""
    # Another user may lack the right to read the interpreter's modules, so they are imported first.
    program = "import os, sys, mrpipe.stages.simulate; from mrpipe.datasets import get_dataset\n"
    program += "from mrpipe.cli.main import main, find_command; find_command('simulate'); get_dataset('tables')\n"
    program += f"os.chdir({str(cwd)!r})\n" + (f"os.rmdir({str(cwd)!r})\n" if cwd.name == "gone" else "")
    program += (f"os.setgroups([]); os.setuid({user})\n" if user else "") + "sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, env=os.environ)


def test_a_deleted_current_folder_is_one_sentence(base: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = run(["export", str(base / "store"), "--out", "csv"], tmp_path / "gone")
    assert done.returncode == 2
    assert done.stderr == "mrpipe export: the current folder was deleted; change to another one\n"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_without_permission_is_one_sentence() -> None:
    # Other users cannot enter the temporary folders of pytest.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        done = run(["simulate", "tables", "--out", f"{name}/raw"], Path("/"), 65534)
    reason = f"{name}: no permission. Ask the owner of the file or folder for access, or choose another path."
    assert (done.returncode, done.stderr) == (4, f"mrpipe simulate: {reason}\n")


def test_the_lock_names_its_holder_and_disappears(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with writing(out), writing(out):
        program = f"from pathlib import Path; from mrpipe.locks import writing\nwith writing(Path({str(out)!r})): pass"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"process {os.getpid()} on {os.uname().nodename} has been writing to this folder since" in done.stderr
    assert list(tmp_path.iterdir()) == []
    # That of a killed process is no obstacle.
    (tmp_path / ".run.writing").write_text("1\nhere\n")
    with writing(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_parts_of_a_folder_exclude_the_whole_and_not_each_other(tmp_path: Path) -> None:
    run, held = tmp_path / "run", []
    run.mkdir()

    def other(path: Path, part_of: Path | None = None) -> bool:
        program = f"from pathlib import Path; from mrpipe.locks import writing\nwith writing(Path({str(path)!r}), "
        program += f"part_of={f'Path({str(part_of)!r})' if part_of else None}): pass"
        return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0

    with writing(run / "tests" / "a", part_of=run):
        held = [other(run / "tests" / "a", run), other(run / "tests" / "b", run), other(run)]
    with writing(run):
        held.append(other(run / "tests" / "a", run))
    assert held == [False, True, False, False]
    assert list(run.iterdir()) == []


def test_file_systems_without_locks_get_soft_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: filelock.BaseFileLock, *args: object, **named: object) -> None:
        Path(self.lock_file).touch()
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", refused)
    out, soft = tmp_path / "run", tmp_path / ".run.writing-soft"
    with writing(out):
        assert soft.read_text().startswith(f"{os.getpid()}\n")
    assert list(tmp_path.iterdir()) == []
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with writing(out):
        host = soft.read_text().splitlines()[1]
    soft.write_text(f"{dead.pid}\n{host}\n")
    with writing(out):
        pass
    soft.write_text(f"{os.getpid()}\nanother-host\n")
    with pytest.raises(UsageError, match=f"on another-host .*delete {soft} if it no longer runs"), writing(out):
        pass


def test_temporary_files_of_killed_processes_are_removed_and_those_of_others_kept(tmp_path: Path) -> None:
    path, foreign = tmp_path / "table.parquet", tmp_path / ".table.parquet.00000000-1-aaaaaaaa.tmp"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = temporary_name(path)
    left = tmp_path / name.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    for file in (name, left, foreign):
        file.touch()
    write_text(path, "x")
    assert sorted(tmp_path.iterdir()) == sorted([name, foreign, path])


def test_an_export_that_changes_meanwhile_is_an_error(base: Path, tmp_path: Path) -> None:
    raw, work = tmp_path / "raw", tmp_path / "work"
    shutil.copytree(base / "raw", raw)
    dataset, table, second = get_dataset("tables"), raw / "vitals.csv", 1_000_000_000
    steps = {
        "cohort": lambda: build_cohort(dataset, raw, work, {}),
        "vitals": lambda: ingest(dataset, "vitals", raw, work, {}),
        "labs": lambda: ingest(dataset, "labs", raw, work, {}),
    }
    write_check(dataset, raw, work, {})
    before = table.stat()
    steps["cohort"]()
    for name in ("cohort", "vitals", "labs"):
        os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns + second))
        with pytest.raises(DataError, match="expected the file as the check read it; found another size or") as caught:
            steps[name]()
        assert str(table) in str(caught.value)
        assert not (work / "dictionary").exists()
        assert not list((work / "store").rglob("*.parquet"))
        os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
    with table.open("a") as handle:
        handle.write("\n")
    os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"vitals\.csv: expected the file as the check read it"):
        steps["labs"]()
    table.unlink()
    with pytest.raises(DataError, match="found no such file"):
        steps["labs"]()
