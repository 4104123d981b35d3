"""CMU-MOSEI, CH-SIMS, MulT and MAG-BERT: ids, labels, metrics and damaged twins."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score

from mrpipe.datasets import get_dataset
from mrpipe.datasets.mosi.corpora import CMU_TASKS, SIMS_TASKS
from mrpipe.errors import DataError, UsageError
from mrpipe.stages.simulate import simulate
from tests.datasets.mosi.other_forms import TINY, export_of, faults_of, files_of

CASES = [("mosi", "mag"), ("mosi", "mult"), ("mosei", "csd"), ("mosei", "mag"), ("ch_sims", "")]
CASES += [("mosei", "mmsa_aligned"), ("mosei", "mult")]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("forms")
    paths = {(name, form): folder / f"{name}-{form}" for name, form in CASES}
    for (name, form), path in paths.items():
        simulate(get_dataset(name), path, TINY | ({"format": form} if form else {}))
    return paths


# --- CMU-MOSEI and CH-SIMS -------------------------------------------------------------------------------------------


def test_mosei_has_the_ids_and_the_first_of_the_seven_labels_of_its_files(
    exports: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    frames = [export_of(exports["mosei", f], "mosei").clips for f in ("csd", "mmsa_aligned", "mult", "mag")]
    for frame in frames[1:3]:
        assert frame.sort("sample_id").drop("start", "end").equals(frames[0].sort("sample_id").drop("start", "end"))
    assert set(frames[3]["sample_id"]) < set(frames[0]["sample_id"])
    assert frames[0]["clip"].min() == 0
    with h5py.File(exports["mosei", "csd"] / "CMU_MOSEI_Labels.csd") as handle:
        data = handle["All Labels/data"]
        video = next(iter(data))
        assert data[video]["features"].shape[1] == 7
        score = frames[0].filter(subject_id=video).sort("clip")["score"].to_numpy()
        assert np.array_equal(score, data[video]["features"][:, 0])
    (fault,) = faults_of(exports["mosei", "csd"], "mosi")[:1]
    assert (fault.file, fault.expected[:12]) == ("cmu_mosi_std_folds.py", "exactly one ")


def test_names_of_the_first_release_of_the_sdk(exports: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    raw = Path(shutil.copytree(exports["mosei", "csd"], tmp_path / "raw"))
    names = {"Words": "words", "COVAREP": "COAVAREP", "Facet": "FACET 4.2", "Labels": "Sentiment Label"}
    for path in files_of(raw, "*.csd"):
        new = next(new for old, new in names.items() if old in path.name)
        with h5py.File(path, "a") as handle:
            handle.move(next(iter(handle)), new)
            del handle[f"{new}/metadata"]
        path.rename(raw / f"{new}.csd")
    found, expected = (export_of(p, "mosei") for p in (raw, exports["mosei", "csd"]))
    assert found.modalities == ("text", "audio", "vision")
    assert found.tokens() == expected.tokens()
    assert found.clips.equals(expected.clips)
    assert np.array_equal(found.frames("audio", "steps").values, expected.frames("audio", "steps").values, True)


def test_ch_sims_in_chinese_with_padded_clip_numbers(exports: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    raw = Path(shutil.copytree(exports["ch_sims", ""], tmp_path / "raw"))
    (path,) = files_of(raw, "*.pkl")
    content = pickle.loads(path.read_bytes())  # our own file
    for part, value in content.items():
        value["raw_text"] = np.array([f"我不想{part}。"] * len(value["id"]), dtype=object)
        n = range(1, len(value["id"]) + 1)
        value["id"] = [f"video_0001$_${ ({'train': 0, 'valid': 200, 'test': 400}[part] + i):04d}" for i in n]
        value["annotations"] = np.array(["Weakly Negative"] * len(value["id"]))
    path.write_bytes(pickle.dumps(content))
    export = export_of(raw, "ch_sims")
    assert export.tokens()[0] == ["我", "不", "想", "train"]
    assert export.clips["sample_id"][0] == export.clips["subject_id"][0] == "video_0001_1"
    assert export.clips["score"].abs().max() <= 1
    for value in content.values():
        del value["annotations"]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="each video in one split only"):
        export_of(raw)
    content["test"]["regression_labels"][2] = 1.2
    path.write_bytes(pickle.dumps(content))
    (fault,) = faults_of(raw, "ch_sims")
    assert (fault.column, fault.row, fault.expected) == ("test/regression_labels", 3, "scores in [-1, 1]")


def test_the_tasks_give_the_metrics_of_the_field() -> None:
    """Metrics of predicted scores, written out from their definitions in MMSA, MulT and MAG-BERT."""
    rng = np.random.default_rng(0)
    truth = np.round(rng.uniform(-3, 3, 400) * 5) / 5
    truth[:60] = np.resize([0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3, -3], 60)
    guess = np.clip(truth + rng.normal(0, 1, 400), -3, 3)
    guess[::9] = np.round(guess[::9] * 2) / 2
    some = truth != 0

    def nearest(x: float) -> int:
        whole = int(np.floor(x))
        rest = x - whole
        return whole + int(rest > 0.5 or (rest == 0.5 and whole % 2 == 1))

    expected = {
        "polarity": ((guess > 0) == (truth > 0))[some].mean(),
        "nonnegative": ((guess >= 0) == (truth >= 0)).mean(),
        "sentiment7": np.mean([nearest(g) == nearest(t) for g, t in zip(guess, truth, strict=True)]),
        "sentiment3": (np.sign(guess) == np.sign(truth)).mean(),
    }
    found = accuracies(CMU_TASKS, truth, guess)
    assert found == pytest.approx(expected)
    weights = [(truth[some] > 0).mean(), (truth[some] < 0).mean()]
    f1 = [f1_score(truth[some] > 0, guess[some] > 0, pos_label=positive) for positive in (True, False)]
    assert f1_score(truth[some] > 0, guess[some] > 0, average="weighted") == pytest.approx(np.dot(weights, f1))

    def sims(x: np.ndarray, edges: list[float]) -> np.ndarray:
        lower, upper = np.array([-1.01, *edges]), np.array([*edges, 1.01])
        return np.argmax((x[:, None] > lower) & (x[:, None] <= upper), axis=1)

    y, z = truth / 3, guess / 3
    edges = {"polarity": [0.0], "sentiment3": [-0.1, 0.1], "sentiment5": [-0.7, -0.1, 0.1, 0.7]}
    expected = {k: (sims(y, e) == sims(z, e)).mean() for k, e in edges.items()}
    assert accuracies(SIMS_TASKS, y, z) == pytest.approx(expected)


def accuracies(tasks: Any, truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    """Share of equal classes of each classification task, among the samples with a true label."""
    frames = [pl.DataFrame({"score": x}, schema={"score": pl.Float32}) for x in (truth, guess)]
    found = {}
    for task, value in tasks:
        if task.kind == "classification":
            a, b = (f.select(v=value.cast(pl.Int8))["v"] for f in frames)
            assert set(a.drop_nulls()) == set(range(len(task.classes)))
            labelled = a.is_not_null()
            found[task.name] = float((a == b).fill_null(False).filter(labelled).mean())
            if task.name == "polarity" and len(tasks) == len(CMU_TASKS):
                guessed = pl.Series(guess).filter(labelled) > 0
                found[task.name] = float((a.filter(labelled).cast(pl.Boolean) == guessed).mean())
    return found


# --- MAG-BERT --------------------------------------------------------------------------------------------------------


def replaced(rows: list[Any], row: int, **changes: Any) -> None:
    (words, visual, acoustic), label, segment = rows[row]
    parts = {"words": words, "visual": visual, "acoustic": acoustic, "label": label, "segment": segment} | changes
    rows[row] = (parts["words"], parts["visual"], parts["acoustic"]), parts["label"], parts["segment"]


@pytest.mark.parametrize(
    ("change", "column", "row", "expected"),
    [
        (lambda c: replaced(c["dev"], 1, visual=np.ones((1, 35))), "valid", 2, "a row of visual and acoustic per word"),
        (lambda c: c["test"].__setitem__(0, "clip"), "test", 1, "((words, visual, acoustic), label, segment)"),
        (lambda c: replaced(c["test"], 1, label=np.array([[7.0]])), "test/labels", 2, "scores in [-3, 3]"),
        (lambda c: replaced(c["test"], 1, segment="clip"), "test/id", 2, "ids like video[i]"),
        (lambda c: c.pop("dev"), "valid", None, "a dictionary"),
        (lambda c: replaced(c["train"], 2, acoustic=c["train"][2][0][2][:, :5]), "train/audio", 3, "(steps, 74)"),
        (lambda c: replaced(c["train"], 2, acoustic=c["train"][2][0][2].astype(str)), "train/audio", 3, "numbers of"),
        (lambda c: replaced(c["train"], 0, words=[b"\xff"] * len(c["train"][0][0][0])), "train/words", None, "UTF-8"),
    ],
)
def test_invalid_mag_bert_pickles(
    exports: dict[tuple[str, str], Path],
    tmp_path: Path,
    change: Callable[[Any], Any],
    column: str,
    row: int | None,
    expected: str,
) -> None:
    raw = Path(shutil.copytree(exports["mosi", "mag"], tmp_path / "raw"))
    (path,) = raw.iterdir()
    content = pickle.loads(path.read_bytes())  # our own file
    change(content)
    path.write_bytes(pickle.dumps(content))
    (fault,) = faults_of(raw)
    assert (fault.file, fault.column, fault.row) == ("mosi.pkl", column, row)
    assert expected in fault.expected


def test_an_option_of_a_form_that_the_export_has_not(exports: dict[tuple[str, str], Path]) -> None:
    dataset = get_dataset("mosi")
    for form, settings in [
        ("mag", {"text_encoder": "export"}),
        ("mag", {"audio_form": "raw"}),
        ("mult", {"audio_form": "steps"}),
    ]:
        with pytest.raises(UsageError):
            dataset.check(exports["mosi", form], dataclasses.replace(dataset.options(), **settings))


# --- published files -------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_the_published_clips_as_mag_bert(real_data_dir: Path, tmp_path: Path) -> None:
    raw = real_data_dir / "mosi"
    if not raw.is_dir():
        pytest.skip(f"no CMU-MOSI at {raw}")
    sdk = export_of(raw)
    tokens = sdk.tokens()
    block = sdk.frames("audio", "vector")
    lists: dict[str, list[Any]] = {"train": [], "dev": [], "test": []}
    for words, clip, x in zip(tokens, sdk.clips.rows(named=True), block.values, strict=True):
        if words:
            frames = np.tile(x, (len(words), 1))
            segment = f"{clip['subject_id']}[{clip['clip'] - 1}]"
            fold = {"val": "dev"}.get(clip["fold"], clip["fold"])
            lists[fold].append(((words, frames, frames), np.array([[clip["score"]]]), segment))
    (tmp_path / "mag").mkdir()
    (tmp_path / "mag" / "mosi.pkl").write_bytes(pickle.dumps(lists))
    mag = export_of(tmp_path / "mag")
    assert mag.tokens() == [
        t
        for fold in ("train", "val", "test")
        for t, f in zip(tokens, sdk.clips["fold"], strict=True)
        if t and f == fold
    ]
    assert len(mag.clips) == 2197
    assert mag.form("audio", "auto") == "steps"
