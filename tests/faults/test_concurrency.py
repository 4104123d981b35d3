"""Pairs of commands that write to one place at the same time: the result is that of one of them, and whole."""

import contextlib
import hashlib
import json
import multiprocessing
import re
import shutil
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from mrpipe.cli.main import main
from mrpipe.store import reader

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mrpipe.cli.pipeline", "mrpipe.stages.build", "mrpipe.store.export"])
# Times and hosts.
VOLATILE = {"provenance.json", "cost.json", "test_cost.json", "result.json", "log.txt"}
LEFT = re.compile(r"\..*(\.tmp|\.writing(-soft)?|\.partial|\.[a-z][0-9a-f]{8})$")
Command = list[str]


def work(commands: list[Command], log: Path, barrier: Barrier | None) -> None:
    """Run commands in this process, after the other process is ready as well; exit with the highest code."""
    if barrier is not None:
        barrier.wait()
    with log.open("w") as handle, contextlib.redirect_stdout(handle), contextlib.redirect_stderr(handle):
        codes = [main(command) for command in commands]
    raise SystemExit(max(codes))


def run(jobs: list[list[Command]], folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of processes that start at the same time."""
    barrier = CONTEXT.Barrier(len(jobs)) if len(jobs) > 1 else None
    logs = [folder / f"{number}.log" for number in range(len(jobs))]
    processes = [CONTEXT.Process(target=work, args=(*job, barrier)) for job in zip(jobs, logs, strict=True)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [(process.exitcode or 0, log.read_text()) for process, log in zip(processes, logs, strict=True)]


def alone(folder: Path, *commands: Command) -> None:
    [(code, text)] = run([list(commands)], folder)
    assert code == 0, text


def content(place: Path) -> dict[str, str]:
    """Hash of each file, apart from those with times."""
    files = [place] if place.is_file() else [f for f in sorted(place.rglob("*")) if f.is_file()]
    return {
        str(f.relative_to(place)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.name not in VOLATILE
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exports, the store of each, masks, and what single commands write: the references of the pairs."""
    folder = tmp_path_factory.mktemp("alone")
    commands = [simulate(folder / f"raw{seed}", seed) for seed in (1, 2)]
    commands += [build(folder / f"raw{seed}", folder / f"store{seed}") for seed in (1, 2)]
    alone(folder, *commands)
    return folder


def simulate(out: Path, seed: int) -> Command:
    return ["simulate", "tables", "--out", str(out), "--set", "n_visits=40", f"seed={seed}"]


def build(raw: Path, out: Path, *more: str) -> Command:
    return ["build", "tables", "--raw", str(raw), "--out", str(out), *more]


def mask(store: Path, out: Path, seed: int) -> Command:
    return ["mask", str(store), "--p", "0.5", "--seed", str(seed), "--out", str(out)]


def export(store: Path, out: Path) -> Command:
    return ["export", str(store), "--out", str(out)]


def train(store: Path, out: Path, seed: int = 0, *more: str) -> Command:
    settings = ["--set", "epochs=4", "hidden=16", "n_experts=4"]
    return ["train", "--store", str(store), "--out", str(out), "--seed", str(seed), "--quiet", *more, *settings]


def search(store: Path, out: Path, seed: int = 0) -> Command:
    budget = ["--trials", "2", "--seed", str(seed), "--quiet", "--set", "epochs=2"]
    return ["search", "--store", str(store), "--method", "shaspec", "--out", str(out), *budget]


def evaluate(store: Path, run: Path, name: str) -> Command:
    return ["evaluate", "--run", str(run), "--store", str(store), "--name", name, "--resamples", "50", "--quiet"]


def report(store: Path, page: Path) -> Command:
    return ["report", "--stores", str(store), "--out", str(page)]


def together(tmp_path: Path, first: Callable[[Path], Command], second: Callable[[Path], Command], name: str) -> Path:
    """Run a pair on one output; it is that of a single command, and of the only one that succeeded."""
    references = []
    for number, command in enumerate((first, second)):
        place = tmp_path / f"alone{number}" / name
        alone(tmp_path, command(place))
        references.append(content(place.parent))
    out = tmp_path / "both" / name
    results = run([[first(out)], [second(out)]], tmp_path)
    codes = [code for code, _ in results]
    assert sorted(codes) in ([0, 0], [0, 2]), results
    expected = [reference for code, reference in zip(codes, references, strict=True) if code == 0]
    assert content(out.parent) in expected, results
    assert not [path for path in tmp_path.rglob(".*") if LEFT.fullmatch(path.name)]
    for code, text in results:
        assert code == 0 or "has been writing to this folder since" in text or "--overwrite" in text, text
    return out


def test_two_simulations(data: Path, tmp_path: Path) -> None:
    out = together(tmp_path, partial(simulate, seed=1), partial(simulate, seed=2), "raw")
    assert (out.with_name("raw.truth") / "simulation.json").is_file()


def test_two_builds_of_different_exports(data: Path, tmp_path: Path) -> None:
    store = together(tmp_path, partial(build, data / "raw1"), partial(build, data / "raw2"), "store")
    assert main(["verify", str(store), "--deep"]) == 0


def test_two_exports(data: Path, tmp_path: Path) -> None:
    together(tmp_path, partial(export, data / "store1"), partial(export, data / "store2"), "csv")


def test_two_masks(data: Path, tmp_path: Path) -> None:
    together(tmp_path, partial(mask, data / "store1", seed=1), partial(mask, data / "store1", seed=2), "mask.parquet")


def pairs(data: Path) -> dict[str, tuple[Callable[[Path], Command], Callable[[Path], Command]]]:
    """Pairs of the long form, by a name that begins with that of the output."""
    raw1, raw2, store1, store2 = (data / name for name in ("raw1", "raw2", "store1", "store2"))

    def of(one: Callable[..., Command], *arguments: object) -> Callable[[Path], Command]:
        return lambda out: one(arguments[0], out, *arguments[1:])

    return {
        "store same": (of(build, raw1), of(build, raw1)),
        "store seeds": (of(build, raw1), of(build, raw1, "--seed", "1")),
        "store modalities": (of(build, raw2), of(build, raw2, "--modalities", "labs", "vitals")),
        "raw same": (partial(simulate, seed=1), partial(simulate, seed=1)),
        "csv same": (of(export, store1), of(export, store1)),
        "mask.parquet same": (of(mask, store1, 1), of(mask, store1, 1)),
        "mask.parquet stores": (of(mask, store1, 1), of(mask, store2, 1)),
        "run seeds": (of(train, store1, 0), of(train, store1, 1)),
        "run same": (of(train, store1, 0), of(train, store1, 0)),
        "run stores": (of(train, store1, 0), of(train, store2, 0)),
        "run transforms": (of(train, store1, 0), of(train, store1, 0, "--transform", "impute=median")),
        "search seeds": (of(search, store1, 0), of(search, store1, 1)),
        "search same": (of(search, store1, 0), of(search, store1, 0)),
        "index.html same": (of(report, store1), of(report, store1)),
        "index.html stores": (of(report, store1), of(report, store2)),
    }


NAMES = list(pairs(Path()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pairs(data: Path, tmp_path: Path, name: str) -> None:
    together(tmp_path, *pairs(data)[name], name.split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_training_and_an_evaluation(data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """The evaluation is of the old or the new model, or absent; configuration, model and metrics have one seed."""
    from moe_retriever.training import checkpoint

    store, out = data / "store1", tmp_path / "run"
    alone(tmp_path, train(store, out, 0))
    results = run([[train(store, out, 1, *more)], [evaluate(store, out, "observed")]], tmp_path)
    assert all(code in (0, 2) for code, _ in results)
    assert 0 in [code for code, _ in results]
    model = checkpoint.read(out / checkpoint.NAME)["config"]
    seeds = {json.loads((out / f"{name}.json").read_text())["seed"] for name in ("config", "metrics")}
    assert seeds == {model["seed"]}  # type: ignore[index]
    assert not [path for path in tmp_path.rglob(".*") if LEFT.fullmatch(path.name)]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "export", "audit"])
def test_a_store_that_is_replaced_while_it_is_read_is_an_error(
    data: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, new, opened = tmp_path / "store", tmp_path / "new", reader.open_verified
    shutil.copytree(data / "store1", store)
    shutil.copytree(data / "store2", new)

    def replaced(path: Path) -> reader.Store:
        found = opened(path)
        store.rename(tmp_path / "old")
        new.rename(store)
        return found

    monkeypatch.setattr(reader, "open_verified", replaced)
    arguments = {"train": ["--store", str(store), "--method", "majority"]}.get(verb, [str(store)])
    assert main([verb, *arguments, *(["--out", str(tmp_path / "out")] if verb != "audit" else [])]) == 3
    assert "Another process replaced the store while it was read" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.pt").exists()


def test_evaluations_of_one_run_do_not_exclude_one_another(data: Path, tmp_path: Path) -> None:
    store, out = data / "store1", tmp_path / "run"
    alone(tmp_path, train(store, out, 0))
    results = run([[evaluate(store, out, name)] for name in ("a", "b", "c")], tmp_path)
    assert [code for code, _ in results] == [0, 0, 0], results
    assert content(out / "tests/a").keys() == content(out / "tests/b").keys() == content(out / "tests/c").keys()
