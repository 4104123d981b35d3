"""`mrpipe cells`: several runs in one process, of which only what is missing is made."""

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from moe_retriever.cli import cells as module
from moe_retriever.evaluation import evaluate
from moe_retriever.training import checkpoint
from mrpipe import Store, open_store
from mrpipe.cli.main import main
from mrpipe.experiment.missingness import Missingness, write_masks
from mrpipe.locks import writing
from tests.stores import manifest_of, reseal

OPTIONS = ("epochs=2", "hidden=16", "tokens=2", "heads=2", "encoder_hidden=8", "cnn_width=0.03", "lr=0.001")
FILES = ("model.pt", "metrics.json", "metrics.csv", "predictions.parquet")


@pytest.fixture
def cells(store: Store, mask_file: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """A network and the majority class with one mask; the first is also tested on complete data."""
    train = ["--store", str(store.path), "--mask", str(mask_file), "--set", *OPTIONS]
    tests = {"": ["--store", str(store.path)]}
    more = {"complete": ["--store", str(store.path), "--name", "complete"]}
    networks = {"attention_mask": tests | more, "majority": tests}
    return [
        {"run": str(tmp_path / name), "train": ["--method", name, *train], "tests": of_run, "code": "1"}
        for name, of_run in networks.items()
    ]


def complete(cells: list[dict[str, Any]], out: Path) -> int:
    return main(["cells", json.dumps(cells), "--out", str(out), "--quiet"])


def state(cells: list[dict[str, Any]]) -> dict[str, int]:
    """Modification times of the files of all runs."""
    folders = [Path(c["run"], *(["tests", t] if t else [])) for c in cells for t in c["tests"]]
    return {str(f / name): (f / name).stat().st_mtime_ns for f in folders for name in FILES if (f / name).exists()}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    paths = [Path(path) for path in after if before.get(path) != after[path]]
    return {path.relative_to(path.parents[1]).as_posix() for path in paths}


def test_results_are_those_of_train_and_evaluate_to_the_byte(cells: list[dict[str, Any]], tmp_path: Path) -> None:
    assert complete(cells, tmp_path / "out.json") == 0
    for cell in cells:
        alone = tmp_path / "alone" / Path(cell["run"]).name
        assert main(["train", "--out", str(alone), *cell["train"], "--no-test", "--quiet"]) == 0
        for name, arguments in cell["tests"].items():
            assert main(["evaluate", "--run", str(alone), *arguments, "--quiet"]) == 0
            own = Path("tests", name) if name else Path()
            for file in FILES[0 if not name else 1 :]:
                assert (alone / own / file).read_bytes() == (Path(cell["run"]) / own / file).read_bytes(), file
    assert len(json.loads((tmp_path / "out.json").read_text())) == 3


def test_only_what_is_missing_or_changed_is_made(
    cells: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert complete(cells, out) == 0
    before = state(cells)
    assert complete(cells, out) == 0
    assert state(cells) == before
    assert "0 of 2 evaluations were missing" in capsys.readouterr().out

    (tmp_path / "attention_mask/metrics.json").unlink()
    assert complete(cells, out) == 0
    assert changed(before, state(cells)) == {f"attention_mask/{name}" for name in FILES[1:]}

    # Other code of the evaluation for the first run, and another option of the training for the second.
    before = state(cells)
    cells[0]["code"] = "2"
    cells[1]["train"] = [*cells[1]["train"], "bank_mb=255.0"]
    assert complete(cells, out) == 0
    evaluated = {f"attention_mask/{name}" for name in FILES[1:]} | {f"complete/{name}" for name in FILES[1:]}
    assert changed(before, state(cells)) == evaluated | {f"majority/{name}" for name in FILES}

    # A default that is written out trains nothing; the evaluation follows the text of the request.
    before = state(cells)
    cells[0]["train"] = [*cells[0]["train"], "dropout=0.5"]
    assert complete(cells, out) == 0
    assert changed(before, state(cells)) == evaluated

    # Another seed is trained, and nothing else.
    before = state(cells)
    cells.append({**cells[1], "run": str(tmp_path / "seed1"), "train": [*cells[1]["train"], "--seed", "1"]})
    assert complete(cells, out) == 0
    assert changed(before, state(cells)) == {f"seed1/{name}" for name in FILES}


def described(store: Path, name: str, text: str) -> None:
    """Seal a store again with another description of a modality, as if its table had changed."""
    modalities = [
        m | {"description": text if m["name"] == name else m["description"]} for m in manifest_of(store)["modalities"]
    ]
    reseal(store, {"modalities": modalities, "options": {"checksums": text}})
    module._opened.cache_clear()
    module._LOADED.clear()


def test_a_store_that_is_sealed_again_trains_only_the_runs_that_read_a_changed_table(
    cells: list[dict[str, Any]], store: Store, tmp_path: Path
) -> None:
    own, mask, out = (
        Path(shutil.copytree(store.path, tmp_path / "store")),
        tmp_path / "mask.parquet",
        tmp_path / "out.json",
    )
    view = ("table", "series")
    text = json.dumps(cells[:1]).replace(str(store.path), str(own)).replace(cells[0]["train"][5], str(mask))
    requested = json.loads(text)
    requested[0]["train"] += ["--modalities", *view]
    write_masks(open_store(own), Missingness(modalities=view), mask)
    assert complete(requested, out) == 0
    before, run = state(requested), tmp_path / "attention_mask"

    # Another modality and the options: the result names the store as it is now, and its mask is the same file.
    described(own, "image", "other")
    write_masks(open_store(own), Missingness(modalities=view), tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == mask.read_bytes()
    assert complete(requested, out) == 0
    assert changed(before, state(requested)) == {"attention_mask/metrics.json", "complete/metrics.json"}
    for name in ("", "tests/complete"):
        metrics = json.loads((run / name / "metrics.json").read_text())
        ids = {metrics["store_id"], (metrics["test"] or metrics)["store_id"]}
        assert ids == {open_store(own).store_id}
    named = state(requested)
    assert complete(requested, out) == 0
    assert state(requested) == named

    # A new protocol evaluates the trained model, and the run can be evaluated by hand.
    requested[0]["tests"]["patterns"] = ["--store", str(own), "--name", "patterns", "--patterns"]
    trained = (run / "history.parquet").stat().st_mtime_ns
    assert complete(requested, out) == 0
    assert main(["evaluate", "--run", str(run), "--store", str(own), "--quiet"]) == 0
    assert (run / "history.parquet").stat().st_mtime_ns == trained

    # A run of an earlier version knows the id of its store only.
    model = checkpoint.read(run / "model.pt")
    origin = {key: value for key, value in json.loads(str(model["origin"])).items() if key != "data_id"}
    checkpoint.write(run / "model.pt", model | {"origin": json.dumps(origin)})
    assert main(["evaluate", "--run", str(run), "--store", str(own), "--quiet"]) == 0
    checkpoint.write(run / "model.pt", model)

    described(own, "table", "other")
    assert main(["evaluate", "--run", str(run), "--store", str(own), "--quiet"]) == 3
    write_masks(open_store(own), Missingness(modalities=view), mask)
    assert complete(requested, out) == 0
    assert (run / "history.parquet").stat().st_mtime_ns != trained


def test_an_option_of_the_evaluation_trains_nothing(cells: list[dict[str, Any]], tmp_path: Path) -> None:
    out, run = tmp_path / "out.json", tmp_path / "attention_mask"
    assert complete(cells[:1], out) == 0
    history, before = (run / "history.parquet").stat().st_mtime_ns, json.loads((run / "metrics.json").read_text())
    cells[0]["train"] = [*cells[0]["train"], "calibration=temperature"]
    assert complete(cells[:1], out) == 0
    assert (run / "history.parquet").stat().st_mtime_ns == history
    assert before["decision"]["n_validation"] == 0
    assert json.loads((run / "metrics.json").read_text())["decision"]["n_validation"] > 0
    assert json.loads((run / "config.json").read_text())["common"]["calibration"] == "temperature"


def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(
    cells: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete(cells, tmp_path / "out.json") == 0
    (tmp_path / "out.json").unlink()
    majority = state(cells[1:])
    cells[0]["train"] = [*cells[0]["train"], "lr=1e30"]
    assert complete(cells, tmp_path / "out.json") == 1
    text = capsys.readouterr().err
    assert text.rstrip().splitlines()[-2] == "1 runs failed:"
    assert "attention_mask: training diverged" in text.rstrip().splitlines()[-1]
    assert not (tmp_path / "out.json").exists()
    # No result of earlier options is left.
    assert not (tmp_path / "attention_mask/metrics.json").exists()
    assert not (tmp_path / "attention_mask/tests/complete/metrics.json").exists()
    assert state(cells[1:]) == majority


def test_a_killed_process_continues_with_its_next_run(
    cells: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_run = evaluate.evaluate_run

    def killed_at_the_second(run: Path, *given: Any, **more: Any) -> Any:
        if run.name == "majority":
            raise KeyboardInterrupt
        return evaluate_run(run, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate_run", killed_at_the_second)
        assert complete(cells, tmp_path / "out.json") not in (0, 1)
    before = state(cells)
    assert {Path(path).parent.name for path in before} >= {"attention_mask", "complete"}
    assert complete(cells, tmp_path / "out.json") == 0
    assert changed(before, state(cells)) == {f"majority/{name}" for name in FILES[1:]}


def test_a_run_that_another_process_trains_is_waited_for(cells: list[dict[str, Any]], tmp_path: Path) -> None:
    entered, ended = threading.Event(), []

    def other() -> None:
        with writing(tmp_path / "majority"):
            entered.set()
            time.sleep(1.0)
            ended.append(time.time_ns())

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    assert complete(cells[1:], tmp_path / "out.json") == 0
    thread.join()
    assert (tmp_path / "majority/model.pt").stat().st_mtime_ns > ended[0] - 10**8
