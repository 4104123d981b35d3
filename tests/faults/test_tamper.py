"""Tampering with a sealed store: every changed byte, key, file and time is an error that names the file."""

from __future__ import annotations

import copy as deep
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpipe import open_store
from mrpipe.cli.main import main
from mrpipe.errors import DataError, UsageError
from mrpipe.raw import sha256
from mrpipe.stages.build import build
from mrpipe.stages.seal import seal
from mrpipe.stages.simulate import simulate
from mrpipe.store import integrity
from mrpipe.store.layout import WorkLayout
from mrpipe.store.reader import open_verified
from tests import toy
from tests.stores import manifest_of, reseal, tables

# Bytes of a Parquet file: header, data, footer; and some at random.
REGIONS = {"start": 2, "data": 0.4, "middle": 0.5, "footer": -60, "end": -2}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRPIPE_CACHE", str(tmp_path / "cache"))
    toy.skip_code_of_dataset(monkeypatch)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "raw"
    simulate(toy.TOY, out, {})
    return out


@pytest.fixture(scope="module")
def built(raw: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        toy.skip_code_of_dataset(patch)
        build(toy.TOY, raw, raw.with_name("store"), {})
    return raw.with_name("store")


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "store"))


def flip(path: Path, place: float) -> None:
    """Flip a bit at an offset, a negative one from the end, or a fraction of the file; keep its modification time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1 << random.randrange(7)
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def refused(store: Path, word: str, *, cheap: bool = False) -> None:
    """A store that every command refuses, or only `verify --deep`, with a word of the message."""
    with pytest.raises(DataError) as found:
        open_store(store).verify(deep=True)
    assert word in str(found.value)
    if cheap:
        with pytest.raises(DataError) as found:
            open_verified(store)
        assert word in str(found.value)


def test_a_flipped_bit_in_any_region_of_any_file_is_found(store: Path) -> None:
    random.seed(0)
    files = sorted(p for p in store.rglob("*") if p.is_file())
    assert len(files) == 14
    n = 0
    for path in files:
        whole = path.read_bytes()
        for place in (*REGIONS.values(), random.random(), random.random()):
            flip(path, place)
            # The provenance says when and where; only `verify` reads it.
            refused(store, path.name, cheap=path.name != "provenance.json")
            path.write_bytes(whole)
            n += 1
    assert n == 98
    open_store(store).verify(deep=True)


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all values in JSON, containers included."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from keys(item, (*path, key))


def altered(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else type(value)()


def with_value(manifest: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy of a manifest with one value changed."""
    result = deep.deepcopy(manifest)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = change(place[path[-1]])
    return result


def test_every_altered_key_of_the_manifest_is_found(store: Path) -> None:
    manifest = manifest_of(store)
    n = 0
    for path in keys(manifest):
        changed = with_value(manifest, path, altered)
        if changed == manifest:  # an empty list
            continue
        (store / "manifest.json").write_text(json.dumps(changed, indent=1) + "\n")
        with pytest.raises(DataError, match=r"manifest\.json"):
            open_store(store)
        n += 1
    assert n > 150


EDITS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "reversed classes": (("labels", 0, "classes"), ["yes", "no"]),
    "repeated classes": (("labels", 0, "classes"), ["no", "no"]),
    "a class more": (("labels", 0, "classes"), ["no", "yes", "maybe"]),
    "a class less": (("labels", 0, "classes"), ["no"]),
    "classes that are numbers": (("labels", 0, "classes"), [0, 1]),
    "no classes": (("labels", 0, "classes"), []),
    "another task": (("labels", 1, "kind"), "classification"),
    "bit 99": (("modalities", 0, "bit"), 99),
    "bit -1": (("modalities", 0, "bit"), -1),
    "a free bit": (("modalities", 0, "bit"), 7),
    "a bit twice": (("modalities", 1, "bit"), 0),
    "a name twice": (("modalities", 1, "name"), "table"),
    "another name": (("modalities", 0, "name"), "tables"),
    "a name with a path": (("modalities", 0, "name"), "../table"),
    "a name with a line feed": (("modalities", 0, "name"), "table\n"),
    "huge shape": (("modalities", 0, "shape"), [10**15]),
    "wrong shape": (("modalities", 0, "shape"), [8]),
    "permuted shape": (("modalities", 2, "shape"), [4, 3, 5]),
    "flat shape": (("modalities", 2, "shape"), [60]),
    "no shape": (("modalities", 0, "shape"), []),
    "negative shape": (("modalities", 0, "shape"), [-7]),
    "shape of text": (("modalities", 0, "shape"), ["7"]),
    "other dtype": (("modalities", 0, "dtype"), "float64"),
    "object dtype": (("modalities", 0, "dtype"), "O"),
    "other kind": (("modalities", 0, "kind"), "genotype"),
    "other encoding": (("modalities", 3, "encoding"), "plain"),
    "no times": (("modalities", 1, "irregular"), False),
    "times that are a number": (("modalities", 1, "irregular"), 1),
    "format true": (("format",), True),
    "format 2.0": (("format",), 2.0),
    "format of text": (("format",), "2"),
    "newer format": (("format",), 3),
    "older format": (("format",), 1),
    "unknown origin": (("origin",), "measured"),
    "path upwards": (("modalities", 0, "file"), "../table.parquet"),
    "absolute path": (("modalities", 0, "file"), "/etc/passwd"),
    "another table": (("modalities", 0, "file"), "modalities/series.parquet"),
    "samples counted": (("n_samples",), 54),
    "samples as text": (("n_samples",), "55"),
    "subjects counted": (("n_subjects",), 2),
    "combinations": (("pattern_counts",), {"table": 55}),
    "rows": (("tables", 0, "rows"), 54),
    "rows true": (("tables", 0, "rows"), True),
    "counts of a split": (("splits", 0, "counts"), {"train": 55}),
    "another method": (("splits", 0, "method"), "id list"),
    "another column": (("splits", 0, "column"), "site"),
    "another default": (("default_scheme",), "mine"),
    "no card": (("card",), {}),
    "another card": (("card", "file"), "samples.parquet"),
    "no modality": (("modalities",), []),
    "no list": (("labels",), {}),
    "null": (("splits",), None),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_that_contradict_the_files_are_found_despite_new_checksums(store: Path, name: str) -> None:
    path, value = EDITS[name]
    reseal(store, with_value(manifest_of(store), path, lambda _: value))
    refused(store, "manifest.json")


def test_a_genotype_of_another_length_is_found_despite_new_checksums(store: Path) -> None:
    path, manifest = store / "modalities" / "genotype.parquet", manifest_of(store)
    entry = manifest["modalities"][3]
    table = pq.read_table(path)
    calls = pa.array([x[:-1] for x in table["x"].to_pylist()], pa.binary())
    pq.write_table(table.set_column(1, "x", calls), path)
    entry |= {"size": path.stat().st_size, "sha256": sha256(path)}
    reseal(store, manifest)
    refused(store, "6 bytes per sample")


def test_swapped_bits_and_names_are_found_despite_new_checksums(store: Path) -> None:
    manifest = manifest_of(store)
    for key in ("bit", "name", "shape", "sha256"):
        changed = deep.deepcopy(manifest)
        first, second = changed["modalities"][:2]
        first[key], second[key] = second[key], first[key]
        reseal(store, changed)
        refused(store, "")


# Nesting that can be read, but perhaps not be written.
DEEP = '{"format": 2, "options": ' + "[" * 900 + "]" * 900 + "}"


def test_damaged_json_is_invalid_data(store: Path) -> None:
    few = ("", "{", "[]", "null", "1", '"x"', "{}", '{"format": 2}', "\x00", "NaN")
    for text in (*few, "1" * 5000, "[" * 100_000, DEEP):
        for name in ("manifest.json", "provenance.json"):
            path = store / name
            whole = path.read_bytes()
            path.write_text(text)
            refused(store, name)
            path.write_bytes(whole)
    (store / "manifest.json").write_bytes(b"\xff" + (store / "manifest.json").read_bytes())
    refused(store, "manifest.json")


def test_a_key_that_occurs_twice_in_the_manifest_is_refused(store: Path) -> None:
    """Programs differ in which of the two they take."""
    path = store / "manifest.json"
    path.write_text(path.read_text().replace("{", '{"origin": "export",', 1))
    with pytest.raises(DataError, match="occurs twice"):
        open_store(store)


def test_stray_missing_linked_and_truncated_files_are_named(store: Path, tmp_path: Path) -> None:
    for stray in ("notes.txt", "modalities/other.parquet", "labels/.hidden", "splits/mine.parquet", "folder/x"):
        (store / stray).parent.mkdir(exist_ok=True)
        (store / stray).write_text("x")
        refused(store, stray)
        open_verified(store)
        (store / stray).unlink()
    (store / "folder").rmdir()
    (store / ".snakemake_timestamp").touch()
    open_store(store).verify(deep=True)
    for path in sorted(p for p in store.rglob("*") if p.is_file() and p.name[0] != "."):
        kept = tmp_path / "kept"
        shutil.move(path, kept)
        refused(store, path.name if path.name != "manifest.json" else "no manifest", cheap=True)
        path.symlink_to(kept)
        refused(store, path.name, cheap=True)
        path.unlink()
        path.mkdir()
        refused(store, path.name if path.name != "manifest.json" else "no manifest", cheap=True)
        path.rmdir()
        path.write_bytes(kept.read_bytes()[:-10])
        refused(store, path.name, cheap=path.name != "provenance.json")
        path.unlink()
        shutil.move(kept, path)
    shutil.move(store / "labels", tmp_path / "labels")
    (store / "labels").symlink_to(tmp_path / "labels")
    refused(store, "labels", cheap=True)


def age(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files of a store be old enough for their hashes to be remembered."""
    monkeypatch.setattr(integrity, "_RESOLUTION", -1.0)


def hashed(store: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that an opening hashes."""
    names: list[str] = []
    with monkeypatch.context() as patch:
        compute = integrity.sha256
        patch.setattr(integrity, "sha256", lambda path: names.append(path.name) or compute(path))
        open_verified(store)
    return names


def test_files_are_hashed_once_and_again_after_any_change(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file that may still change within the resolution of its time stamps is hashed again.
    assert len(hashed(store, monkeypatch)) == len(hashed(store, monkeypatch)) == 12
    age(store, monkeypatch)
    assert len(hashed(store, monkeypatch)) == 12
    assert hashed(store, monkeypatch) == []
    path = store / "modalities" / "table.parquet"
    content = path.read_bytes()
    flip(path, 0.5)  # with the old modification time
    with pytest.raises(DataError, match=r"table\.parquet: expected SHA-256 \w+; found SHA-256 \w+\. The file was"):
        open_verified(store)
    path.write_bytes(content)
    assert hashed(store, monkeypatch) == ["table.parquet"]
    os.utime(path)
    assert hashed(store, monkeypatch) == ["table.parquet"]
    assert hashed(store, monkeypatch) == []


@pytest.mark.parametrize("state", ["none", "a file", "damaged", "a lie"])
def test_a_useless_cache_costs_time_only(
    store: Path, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(store, monkeypatch)
    if state == "none":
        monkeypatch.setenv("MRPIPE_CACHE", "")
    elif state == "a file":
        (tmp_path / "cache").touch()
    else:
        open_verified(store)
        (cache,) = (tmp_path / "cache" / "verified").iterdir()
        lies = dict.fromkeys(json.loads(cache.read_text()), "0" * 64)
        cache.write_text("[1" if state == "damaged" else json.dumps(lies))
    assert len(hashed(store, monkeypatch)) == 12


VERBS = (
    ["audit", "STORE"],
    ["mask", "STORE", "--out", "mask.parquet"],
    ["export", "STORE", "--out", "out", "--format", "npz"],
    ["train", "--store", "STORE", "--out", "run", "--method", "majority"],
    ["search", "--store", "STORE", "--out", "search", "--method", "majority"],
    ["benchmark", "--store", "STORE", "--method", "majority"],
    ["analyse", "--run", "run", "--store", "STORE", "--out", "analysis"],
    ["evaluate", "--run", "run", "--store", "STORE"],
    ["predict", "--run", "run", "--store", "STORE", "--out", "p.parquet"],
    ["report", "--stores", "STORE", "--out", "report/index.html"],
)


@pytest.mark.parametrize("verb", VERBS, ids=lambda v: v[0])
def test_every_command_that_reads_values_refuses_an_altered_file(
    store: Path, verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if verb[0] == "predict":
        assert main([str(store) if word == "STORE" else word for word in VERBS[3]]) == 0
    flip(store / "modalities" / "table.parquet", 0.5)
    assert main([str(store) if word == "STORE" else word for word in verb]) == 3
    assert "table.parquet: expected SHA-256" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} <= {"store", "cache", "run", "report"}
    assert not any((tmp_path / "report").glob("*"))


@pytest.fixture(scope="module")
def work(raw: Path) -> Path:
    return toy.staged(raw, raw.with_name("work"))


@pytest.fixture
def staged(work: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(work, tmp_path / "work"))


def test_a_step_notices_what_changed_after_the_step_that_wrote_it(staged: Path, store: Path, tmp_path: Path) -> None:
    seal(toy.TOY, staged, tmp_path / "again")
    before = tables(store)
    paths = WorkLayout(staged)
    for path in (paths.checked, paths.dictionary("table"), *sorted(paths.store.root.rglob("*.parquet"))):
        whole = path.read_bytes()
        path.write_bytes(whole + b"\n")
        with pytest.raises(DataError, match=f"{path.name}.*changed after the step that wrote it: run mrpipe"):
            seal(toy.TOY, staged, store)
        path.write_bytes(whole)
    # Tables of other settings stay where they are, and out of the store.
    shutil.copy(paths.store.modality("table"), paths.store.modality("left"))
    seal(toy.TOY, staged, store, ["uniform"])
    open_store(store).verify(deep=True)
    assert set(before) - set(tables(store)) == {"splits/standard.parquet"}
    # A changed byte of the store does not reach the tables of the build.
    flip(store / "modalities" / "table.parquet", 0.5)
    seal(toy.TOY, staged, store)
    assert tables(store) == before


# Children are killed at the 1st, 2nd, … call that changes the file system; the last one ends by itself.
KILLS = """
import os, sys
from pathlib import Path
from mrpipe.store.publish import hidden_folder, replace_store

store = Path(sys.argv[1])
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open"}

def publish(content):
    with hidden_folder(store, "s") as hidden:
        (hidden / "new" / "labels").mkdir(parents=True)
        for name in ("manifest.json", "labels/a.parquet"):
            (hidden / "new" / name).write_text(content)
        replace_store(hidden / "new", store)

def content():
    names = sorted(p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file())
    return [(n, (store / n).read_text()) for n in names]

publish("old")
old, left, kills, absent, status = content(), 0, 0, 0, 1
while status:
    child = os.fork()
    if not child:
        def kill(event, arguments):
            global left
            left -= event in CHANGES
            if left < 0:
                os._exit(9)
        left = kills
        sys.addaudithook(kill)
        publish("new")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    kills += 1
    absent += not store.exists()
    with hidden_folder(store, "s"):
        assert content() in (old, [(n, "new") for n, _ in old]), (kills, content())
    assert {p.name for p in store.parent.iterdir()} <= {store.name, f".{store.name}.writing"}
    publish("old")
print(kills, absent)
"""


def test_a_kill_at_any_call_leaves_the_old_store_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path / "store")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills, absent = map(int, done.stdout.split())
    # The store is absent after one kill only, between two renames; the next writer restores it.
    assert (kills > 15, absent) == (True, 1)


def test_a_folder_with_other_files_is_not_replaced(raw: Path, store: Path, tmp_path: Path) -> None:
    for name, files in {
        "papers": ["README.md"],
        "mixed": ["manifest.json", "thesis.doc"],
        "data": ["labels/a.csv"],
    }.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("mine")
        with pytest.raises(UsageError, match="which is not part of a store"):
            build(toy.TOY, raw, tmp_path / name, {})
        assert [p.read_text() for p in (tmp_path / name).rglob("*.*")] == ["mine"] * len(files)
    with pytest.raises(UsageError, match="which is not part of a store"):
        build(toy.TOY, raw, store / "README.md", {})


def test_a_mount_point_is_not_replaced(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "volume"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    with pytest.raises(UsageError, match=r"volume is a mount point.*Choose a folder inside"):
        build(toy.TOY, raw, out, {})
    assert list(out.parent.iterdir()) == [out]
