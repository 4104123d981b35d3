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
        ("multibench", drop("valid", "audio"), "valid/audio", "this key"),
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


@pytest.mark.parametrize("name", ["val", "dev"])
def test_other_names_of_the_validation_split(exports: dict[str, Path], tmp_path: Path, name: str) -> None:
    raw = pickled(exports, tmp_path, "multibench", lambda c: {name if k == "valid" else k: v for k, v in c.items()})
    assert DATASET.check(raw, MosiOptions()).observed["audio"].len() > 0


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


@pytest.mark.parametrize(
    ("form", "change", "column", "expected"),
    [
        ("mmsa_aligned", set_item("test", "id", 1, "né$_$3".encode("latin-1")), "test/id", "text in UTF-8"),
        ("mmsa_aligned", set_item("valid", "raw_text", 0, b"caf\xe9"), "valid/raw_text", "text in UTF-8"),
        ("mmsa_aligned", set_item("test", "annotations", 0, b"\xff"), "test/annotations", "text in UTF-8"),
        ("multibench", put("test", "audio", lambda x: x[:, :0]), "test/audio", "shape (N, steps, features)"),
        ("multibench", put("test", "id", lambda x: 5), "train", "the layout of MMSA or MultiBench"),
        ("multibench", put("test", "labels", lambda x: {"a": 1}), "test/labels", "numbers"),
        ("mmsa_unaligned", put("test", "audio_lengths", lambda x: "ten"), "train", "the layout of MMSA or MultiBench"),
        ("mmsa_aligned", put("test", "text_bert", lambda x: None), "train", "the layout of MMSA or MultiBench"),
    ],
)
def test_bytes_and_types_that_are_none_of_the_layout(
    exports: dict[str, Path], tmp_path: Path, form: str, change: Callable[[dict], Any], column: str, expected: str
) -> None:
    error = faults_of(pickled(exports, tmp_path, form, change), text_encoder="auto" if form[1] == "u" else "hashing")
    assert any(expected in f.expected and f.column in (column, None) for f in error.faults), str(error)


def test_a_video_in_two_splits(exports: dict[str, Path], tmp_path: Path) -> None:
    def change(content: dict) -> None:
        video = str(content["train"]["id"][0]).split("$_$")[0]
        content["test"]["id"][0] = f"{video}$_$99"

    (fault,) = faults_of(pickled(exports, tmp_path, "mmsa_aligned", change)).faults
    assert (fault.column, fault.expected) == ("test/id", "each video in one split only")


# --- shapes and lengths ----------------------------------------------------------------------------------------------


def lengths_of(raw: Path, modality: str, **settings: Any) -> dict[str, int]:
    options = MosiOptions(**settings)
    features = DATASET.modalities[modality].read(raw, DATASET.cohort(raw, options).samples, options)
    return {i: n for b in features.batches for i, n in zip(*b.select([0, 2]).to_pydict().values(), strict=True)}


@pytest.mark.parametrize("back", [False, True])
def test_frames_keep_their_length_up_to_max_frames(exports: dict[str, Path], tmp_path: Path, back: bool) -> None:
    """In MulT's mosi_data_noalign.pkl, only the shapes show that audio (375 steps) and text (50) are not aligned."""

    def change(content: dict) -> None:
        for part in content.values():
            frames = np.zeros((len(part["labels"]), 90, 4), dtype=np.float32)
            frames[:, slice(0, 70) if back else slice(20, 90)] = 1.0
            frames[0] = 0
            part["audio"] = frames

    raw = pickled(exports, tmp_path, "multibench", change)
    checked = DATASET.check(raw, MosiOptions(max_frames=60))
    n, absent = len(DATASET.cohort(raw, MosiOptions()).samples), 3
    cut = f"audio: {n - absent} of {n} clips have more than 60 steps, up to 70; the last 60 are kept (max_frames)"
    assert any(note.startswith(cut) for note in checked.notes)
    assert any(note.startswith(f"audio: 3 of {n} clips have no frames, or only zeros") for note in checked.notes)
    assert len(checked.observed["audio"]) == n - absent
    assert set(lengths_of(raw, "audio").values()) == {70}
    assert set(lengths_of(raw, "audio")) == set(checked.observed["audio"])
    assert set(lengths_of(raw, "audio", max_frames=60).values()) == {60}
    assert max(lengths_of(raw, "vision").values()) <= 50
    with pytest.raises(UsageError, match="is not aligned to words; use raw or collapse"):
        DATASET.check(raw, MosiOptions(audio_form="steps"))


def test_lengths_that_the_array_contradicts_are_noted(exports: dict[str, Path], tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content["test"]["audio"][0, :9] = 1.0
        content["test"]["audio_lengths"][0] = 4

    raw = pickled(exports, tmp_path, "mmsa_unaligned", change)
    notes = " | ".join(DATASET.check(raw, MosiOptions()).notes)
    assert "audio: 1 of " in notes
    assert "nonzero steps beyond their stored length" in notes


def test_values_that_are_not_finite_are_no_observation(exports: dict[str, Path], tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content["test"]["audio"][1] = np.nan
        content["test"]["audio"][2] = -np.inf

    raw = pickled(exports, tmp_path, "multibench", change)
    observed = set(DATASET.check(raw, MosiOptions()).observed["audio"])
    assert set(lengths_of(raw, "audio")) == observed
    assert len(DATASET.cohort(raw, MosiOptions()).samples) - len(observed) >= 2


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
    checked = DATASET.check(raw, MosiOptions(file="aligned_50.pkl"))
    assert checked.release == "MMSA aligned_50.pkl"
    assert sorted(checked.unused) == [LABELS, "unaligned_50.pkl"]
    assert "--set file=NAME reads another pickle" in checked.unused["unaligned_50.pkl"]
    with pytest.raises(UsageError, match="file="):
        DATASET.check(raw, MosiOptions(file="nowhere.pkl"))
