"""Damaged CMU-MOSI pickles, and folders with too few or too many files: one clear error each."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrpipe.datasets.mosi import DATASET
from mrpipe.datasets.mosi.options import FORMATS, MosiOptions, MosiSimulation
from mrpipe.errors import DataError, UsageError

LABELS = "CMU_MOSI_Opinion_Labels.csd"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mosi")
    for form in FORMATS:
        (folder / form).mkdir()
        options = MosiSimulation(n_videos=4, clips_per_video=5.0)
        DATASET.simulate(folder / form, folder, dataclasses.replace(options, format=form))
    return {form: folder / form for form in FORMATS}


def faults_of(raw: Path, **settings: object) -> DataError:
    with pytest.raises(DataError) as caught:
        DATASET.check(raw, MosiOptions(**settings))
    assert caught.value.exit_code == 3
    return caught.value


def pickled(exports: dict[str, Path], tmp_path: Path, form: str, change: Callable[[dict], Any]) -> Path:
    """Copy of a pickle export with its content modified by `change`."""
    raw = shutil.copytree(exports[form], tmp_path / "raw")
    (path,) = raw.iterdir()
    content = pickle.loads(path.read_bytes())  # our own file
    content = change(content) or content
    path.write_bytes(pickle.dumps(content, protocol=4))
    return raw


def drop(part: str, key: str) -> Callable[[dict], None]:
    return lambda content: content[part].pop(key)


def put(part: str, key: str, value: Callable[[Any], Any]) -> Callable[[dict], None]:
    return lambda content: content[part].update({key: value(content[part][key])})


def set_item(part: str, key: str, index: Any, value: Any) -> Callable[[dict], None]:
    return lambda content: content[part][key].__setitem__(index, value)


@pytest.mark.parametrize(
    ("form", "change", "column", "expected"),
    [
        ("multibench", lambda c: {k: v for k, v in c.items() if k != "valid"}, "valid", "a dictionary"),
        ("multibench", lambda c: {"a": 1}, "train", "a dictionary with the key"),
        ("multibench", lambda c: [1, 2], "train", "a dictionary with the key"),
        ("multibench", drop("train", "labels"), "train", "a dictionary with the key"),
        ("multibench", drop("test", "labels"), "test/labels", "this key"),
        ("multibench", drop("test", "id"), "test/id", "this key"),
        ("mmsa_aligned", drop("valid", "regression_labels"), "valid/regression_labels", "this key"),
        ("multibench", put("test", "audio", lambda x: x[:-1]), "test", "the same number of rows"),
        ("multibench", put("test", "audio", lambda x: x[:, :, :-1]), "test/audio", "74 features, as in train"),
        ("multibench", put("test", "audio", lambda x: x[0]), "test/audio", "shape (N, steps, features)"),
        ("multibench", put("test", "audio", lambda x: x.astype(str)), "test/audio", "numbers"),
        ("multibench", put("test", "audio", lambda x: x.tolist()), "test/audio", "numbers"),
        ("multibench", set_item("test", "labels", 1, np.nan), "test/labels", "finite numbers"),
        ("multibench", set_item("test", "labels", 1, 9), "test/labels", "scores in [-3, 3]"),
        ("multibench", put("test", "labels", lambda x: np.repeat(x, 2, axis=2)), "test/labels", "one score per clip"),
        ("multibench", put("test", "id", lambda x: x[[0, 0, *range(2, len(x))]]), "test/id", "unique ids"),
        ("multibench", put("test", "id", lambda x: np.array(["clip"] * len(x))), "test/id", "ids like video[i]"),
        ("mmsa_aligned", set_item("test", "id", 2, "clip7"), "test/id", "ids like video$_$clip"),
        ("mmsa_aligned", set_item("test", "annotations", 0, "Mixed"), "test/annotations", "the sign of"),
        ("mmsa_aligned", set_item("test", "classification_labels", 0, 7), "test/classification_labels", "the sign"),
        ("mmsa_unaligned", set_item("test", "audio_lengths", 0, 999), "test/audio_lengths", "at most 375"),
        ("mmsa_unaligned", put("test", "vision_lengths", lambda x: x[:-1]), "test/vision_lengths", "lengths"),
    ],
)
def test_invalid_pickles(
    exports: dict[str, Path], tmp_path: Path, form: str, change: Callable[[dict], Any], column: str, expected: str
) -> None:
    error = faults_of(pickled(exports, tmp_path, form, lambda c: r if isinstance(r := change(c), dict | list) else c))
    assert len(error.faults) == 1, str(error)
    fault = error.faults[0]
    assert fault.file.endswith(".pkl")
    assert fault.column == column
    assert expected in fault.expected


def test_the_same_clip_in_two_splits(exports: dict[str, Path], tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content["test"]["id"][0] = content["train"]["id"][3]

    (fault,) = faults_of(pickled(exports, tmp_path, "mmsa_aligned", change)).faults
    assert (fault.column, fault.row) == ("test/id", 1)
    assert "also in train row 4" in fault.found


def test_errors_of_all_splits_are_reported_together(exports: dict[str, Path], tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content["train"]["labels"][0] = np.inf
        content["valid"]["labels"][0] = 4.0
        content["test"]["id"] = np.array(["x"] * len(content["test"]["id"]))

    columns = [f.column for f in faults_of(pickled(exports, tmp_path, "multibench", change)).faults]
    assert columns == ["train/labels", "valid/labels", "test/id"]


def test_a_pickle_that_would_execute_code_is_reported_and_not_opened(exports: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    raw = shutil.copytree(exports["multibench"], tmp_path / "raw")
    (path,) = raw.iterdir()
    path.write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    (fault,) = faults_of(raw).faults
    assert fault.file == path.name
    assert "posix.system" in fault.found
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_pickle(exports: dict[str, Path], tmp_path: Path, share: float) -> None:
    raw = shutil.copytree(exports["mmsa_aligned"], tmp_path / "raw")
    (path,) = raw.iterdir()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    (fault,) = faults_of(raw).faults
    assert (fault.file, fault.expected) == (path.name, "a complete pickle file")


# --- selection of the export -----------------------------------------------------------------------------------------


def test_a_folder_without_export(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (fault,) = faults_of(tmp_path).faults
    assert "notes.txt" in fault.found
    assert "MultimodalSDK" in fault.fix


def test_several_formats_or_pickles_require_a_selection(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = shutil.copytree(exports["mmsa_aligned"], tmp_path / "raw")
    shutil.copy(exports["mmsa_unaligned"] / "unaligned_50.pkl", raw)
    assert "--set file=NAME" in faults_of(raw).faults[0].fix
    assert DATASET.check(raw, MosiOptions(file="unaligned_50.pkl")).release == "MMSA unaligned_50.pkl"
    shutil.copy(exports["csd"] / LABELS, raw)
    assert faults_of(raw).faults[0].expected == "one format"
    assert DATASET.check(raw, MosiOptions(file="aligned_50.pkl")).release == "MMSA aligned_50.pkl"
    with pytest.raises(UsageError, match="file="):
        DATASET.check(raw, MosiOptions(file="nowhere.pkl"))
