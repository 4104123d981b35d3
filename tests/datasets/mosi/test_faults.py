"""Damaged .csd exports: all errors are reported together with file and key, exit code 3, and no partial output."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mrpipe.cli.main import main
from mrpipe.datasets.mosi import DATASET
from mrpipe.datasets.mosi.options import MosiOptions, MosiSimulation
from mrpipe.errors import DataError, shape

LABELS, WORDS = "CMU_MOSI_Opinion_Labels.csd", "CMU_MOSI_TimestampedWords.csd"
AUDIO, VISION, FOLDS = "CMU_MOSI_COVAREP.csd", "CMU_MOSI_Visual_Facet_42.csd", "cmu_mosi_std_folds.py"
UTTERANCE = "CMU_MOSI_openSMILE_utterance.csd"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mosi")
    small = MosiSimulation(n_videos=4, clips_per_video=5.0)
    variants = {"csd": small, "utterance": dataclasses.replace(small, utterance_audio=True)}
    for name, options in variants.items():
        (folder / name).mkdir()
        DATASET.simulate(folder / name, folder, options)
    return {name: folder / name for name in variants}


@pytest.fixture
def csd(exports: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(exports["csd"], tmp_path / "raw")


def faults_of(raw: Path, **settings: object) -> DataError:
    with pytest.raises(DataError) as caught:
        DATASET.check(raw, MosiOptions(**settings))
    assert caught.value.exit_code == 3
    return caught.value


def root_of(path: Path) -> str:
    with h5py.File(path) as handle:
        return next(iter(handle))


def edit(path: Path, change: Callable[[h5py.Group], None]) -> None:
    """Modify the group `data` of a .csd file in place."""
    with h5py.File(path, "r+") as handle:
        change(handle[next(iter(handle))]["data"])


def replace(group: h5py.Group, key: str, value: np.ndarray) -> None:
    del group[key]
    group[key] = value


# --- .csd ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LABELS, WORDS, AUDIO])
@pytest.mark.parametrize("size", [0, 4, 100, 0.5, 0.99])
def test_truncated_hdf5(csd: Path, name: str, size: float) -> None:
    path = csd / name
    data = path.read_bytes()
    path.write_bytes(data[: size if isinstance(size, int) else int(len(data) * size)])
    error = faults_of(csd)
    assert [f.file for f in error.faults] == [name]
    assert "complete HDF5 file" in error.faults[0].expected


def test_a_web_page_instead_of_a_file(csd: Path) -> None:
    (csd / AUDIO).write_text("<html>404 Not Found</html>")
    assert [f.file for f in faults_of(csd).faults] == [AUDIO]


@pytest.mark.parametrize("name", [LABELS, AUDIO])
def test_hdf5_without_the_group(csd: Path, name: str) -> None:
    with h5py.File(csd / name, "r+") as handle:
        root = handle[next(iter(handle))]
        root.move("data", "date")
    fault = faults_of(csd).faults[0]
    assert (fault.file, fault.column) == (name, "data")
    assert root_of(csd / name) in fault.found


@pytest.mark.parametrize("dataset", ["features", "intervals"])
def test_entry_without_features_or_intervals(csd: Path, dataset: str) -> None:
    def change(data: h5py.Group) -> None:
        del data[next(iter(data))][dataset]

    edit(csd / WORDS, change)
    (fault,) = faults_of(csd).faults
    assert fault.file == WORDS
    assert fault.column is not None
    assert fault.column.startswith("CMU_MOSI_TimestampedWords/data/")
    assert fault.column.endswith(dataset)


@pytest.mark.parametrize(
    ("dataset", "change", "expected"),
    [
        ("features", lambda x: x[:-1], "rows, one per interval"),
        ("features", lambda x: x[:, :-1], "features, as in the previous entries"),
        ("features", lambda x: x[:, :, None], "rows, one per interval"),
        ("intervals", lambda x: x[:, :1], r"shape \(T, 2\)"),
        ("intervals", lambda x: x[:, ::-1], "start <= end"),
        ("intervals", lambda x: np.where(np.arange(len(x))[:, None] == 2, np.nan, x), "finite times"),
    ],
)
def test_inconsistent_shapes_and_times(csd: Path, dataset: str, change: Any, expected: str) -> None:
    def apply(data: h5py.Group) -> None:
        entry = data[sorted(data)[1]]
        replace(entry, dataset, change(entry[dataset][()]))

    edit(csd / AUDIO, apply)
    error = faults_of(csd)
    assert len(error.faults) == 1
    assert error.faults[0].file == AUDIO
    with pytest.raises(DataError, match=expected):
        raise error


def test_an_invalid_interval_is_reported_with_its_row(csd: Path) -> None:
    def change(data: h5py.Group) -> None:
        data[sorted(data)[0]]["intervals"][4] = [9.0, 8.0]

    edit(csd / WORDS, change)
    assert faults_of(csd).faults[0].row == 5


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.nan, "finite numbers"), (np.inf, "finite numbers"), (3.2, r"scores in \[-3, 3\]"), (-7, r"scores in")],
)
def test_labels_that_are_not_scores(csd: Path, value: float, expected: str) -> None:
    def change(data: h5py.Group) -> None:
        data[sorted(data)[1]]["features"][2] = value

    edit(csd / LABELS, change)
    with pytest.raises(DataError, match=expected) as caught:
        DATASET.check(csd, MosiOptions())
    fault = caught.value.faults[0]
    assert fault.file == LABELS
    assert fault.column == "Opinion Segment Labels/data/*/features"
    assert "_3 (1 such clips)" in fault.found


def test_labels_of_several_columns(csd: Path) -> None:
    def change(data: h5py.Group) -> None:
        for video in data:
            replace(data[video], "features", np.repeat(data[video]["features"][()], 2, axis=1))

    edit(csd / LABELS, change)
    assert "one score per segment" in faults_of(csd).faults[0].expected


def test_a_video_and_its_segments_in_one_file_are_an_error(csd: Path) -> None:
    def change(data: h5py.Group) -> None:
        video = next(iter(data))
        data.copy(data[video], f"{video}[0]")

    edit(csd / LABELS, change)
    assert "segments" in faults_of(csd).faults[0].found


def test_a_repeated_segment_is_reported(csd: Path) -> None:
    def change(data: h5py.Group) -> None:
        for video in list(data):
            entry = data[video]
            for i in range(len(entry["intervals"])):
                data[f"{video}[{i}]/features"] = entry["features"][i : i + 1]
                data[f"{video}[{i}]/intervals"] = entry["intervals"][i : i + 1]
            del data[video]
        first = sorted(data)[0]
        data.copy(data[first], first.replace("[", "[00"))

    edit(csd / LABELS, change)
    fault = faults_of(csd).faults[0]
    assert fault.expected == "one label per segment"
    assert "_1 repeated" in fault.found


@pytest.mark.parametrize("rows", [1, -1])
def test_utterance_rows_that_do_not_match_the_segments(exports: dict[str, Path], tmp_path: Path, rows: int) -> None:
    raw = shutil.copytree(exports["utterance"], tmp_path / "raw")

    def change(data: h5py.Group) -> None:
        entry = data[sorted(data)[2]]
        for key in ("features", "intervals"):
            x = entry[key][()]
            replace(entry, key, np.concatenate([x, x[:1]]) if rows > 0 else x[:-1])

    edit(raw / UTTERANCE, change)
    (fault,) = faults_of(raw).faults
    assert fault.file == UTTERANCE
    assert "one per segment" in fault.expected


def test_utterance_rows_with_other_times(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = shutil.copytree(exports["utterance"], tmp_path / "raw")

    def change(data: h5py.Group) -> None:
        entry = data[sorted(data)[0]]
        replace(entry, "features", entry["features"][()][::-1])
        replace(entry, "intervals", entry["intervals"][()][::-1])

    edit(raw / UTTERANCE, change)
    (fault,) = faults_of(raw).faults
    assert "the segment [" in fault.expected
    assert fault.row == 1


def test_files_of_another_dataset(csd: Path) -> None:
    def change(data: h5py.Group) -> None:
        for video in list(data):
            data.move(video, f"other-{video}")

    edit(csd / VISION, change)
    (fault,) = faults_of(csd).faults
    assert fault.file == VISION
    assert fault.expected == "the videos in the labels"


@pytest.mark.parametrize("name", [LABELS, FOLDS])
def test_a_missing_file_is_reported_with_its_source(csd: Path, name: str) -> None:
    (csd / name).unlink()
    (fault,) = faults_of(csd).faults
    assert fault.file == name
    assert "CMU-MultimodalSDK" in fault.fix


def test_labels_alone_are_an_error(csd: Path) -> None:
    for name in (WORDS, AUDIO, VISION):
        (csd / name).unlink()
    assert "in addition to the labels" in faults_of(csd).faults[0].expected


def test_words_and_metadata_that_are_not_utf8(csd: Path) -> None:
    def change(data: h5py.Group) -> None:
        features = data[sorted(data)[0]]["features"]
        words = features[()].astype("S40")
        words[3] = "café".encode("latin-1")
        replace(data[sorted(data)[0]], "features", words)

    edit(csd / WORDS, change)
    with h5py.File(csd / VISION, "r+") as handle:
        replace(next(iter(handle.values()))["metadata"], "root name", np.array([b"caf\xe9"]))
    faults = faults_of(csd).faults
    assert [f.file for f in faults] == [VISION, WORDS]
    assert (faults[1].row, faults[1].expected) == (4, "text in UTF-8")
    assert "0xe9" in faults[1].found


def test_a_fold_list_that_is_not_utf8(csd: Path) -> None:
    (csd / FOLDS).write_bytes((csd / FOLDS).read_bytes().replace(b"['", b"['caf\xe9', '", 1))
    fault = faults_of(csd).faults[0]
    assert fault.file == FOLDS
    assert "expected assignments of lists in Python" in str(fault)


def test_damaged_headers_of_hdf5_are_errors(csd: Path) -> None:
    """Flipped bytes raise KeyError and others in h5py, not only OSError."""
    data = bytearray((csd / LABELS).read_bytes())
    at = data.index(b"TREE")
    for position in (at - 136, at - 300, data.rindex(b"HEAP") + 8, data.rindex(b"TREE") + 24):
        damaged = bytearray(data)
        damaged[position : position + 8] = b"\xff" * 8
        (csd / LABELS).write_bytes(bytes(damaged))
        with contextlib.suppress(DataError):
            DATASET.check(csd, MosiOptions())


def test_a_dataset_that_declares_more_than_it_stores(csd: Path) -> None:
    def change(data: h5py.Group) -> None:
        entry = data[sorted(data)[0]]
        for name, width in (("features", 74), ("intervals", 2)):
            del entry[name]
            entry.create_dataset(name, shape=(10**12, width), dtype="f4", chunks=(1000, width))

    edit(csd / AUDIO, change)
    (fault,) = faults_of(csd).faults
    assert fault.expected == "the declared data"


def test_videos_of_one_file_with_other_names(csd: Path) -> None:
    first, *_ = videos = sorted(DATASET.cohort(csd, MosiOptions()).samples["subject_id"].unique())
    edit(csd / VISION, lambda data: data.move(first, first.swapcase()))
    fault = faults_of(csd).faults[0]
    assert (fault.file, fault.expected) == (VISION, "at most 20% without a counterpart")
    assert fault.found == f"1 of {len(videos)} labelled videos are absent (25.0%): {first}; " + (
        f"1 differs only in case, padding or quotes, such as {shape(first)} instead of {shape(first.swapcase())}"
    )
    checked = DATASET.check(csd, MosiOptions(max_unmatched=0.5))
    assert f"{VISION}: {fault.found}" in checked.notes
    assert any(n.startswith(f"{VISION}: 1 of 4 videos have no labels") for n in checked.notes)
    samples = DATASET.cohort(csd, MosiOptions(max_unmatched=0.5)).samples
    lost = set(samples["sample_id"]) - set(checked.observed["vision"])
    assert set(samples.filter(subject_id=first)["sample_id"]) <= lost


@pytest.mark.parametrize(
    ("name", "message"), [("nope", "Known names: auto, export, hashing"), ("hasing", "Did you mean 'hashing'")]
)
def test_an_unknown_text_encoder_fails_at_check(csd: Path, capsys: Any, name: str, message: str) -> None:
    assert main(["check", "mosi", "--raw", str(csd), "--set", f"text_encoder={name}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert f"unknown text encoder '{name}'" in error


def test_seven_classes_are_rounded_half_to_even(csd: Path) -> None:
    """Acc-7 of Tsai et al. (2019) and MMSA is np.round of predictions and scores, which rounds halves to even."""
    scores = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -2.4, -2.6, 0.4, 0.6, -3.0, 3.0], dtype=np.float32)

    def change(data: h5py.Group) -> None:
        values = iter(np.resize(scores, 1000))
        for video in sorted(data):
            features = data[video]["features"]
            features[...] = np.array([next(values) for _ in range(len(features))], dtype=np.float32)[:, None]

    edit(csd / LABELS, change)
    labels = DATASET.cohort(csd, MosiOptions()).labels
    pairs = labels["score"].join(labels["sentiment7"], on="sample_id", suffix="_class")
    found = dict(pairs.select("value", "value_class").iter_rows())
    expected = [1, 1, 3, 3, 5, 5, 1, 0, 3, 4, 0, 6]
    assert [found[s] for s in scores.tolist()] == expected
    assert expected == (np.round(scores) + 3).astype(int).tolist()


def test_two_files_of_the_same_sequence(csd: Path) -> None:
    shutil.copy(csd / AUDIO, csd / "copy of CMU_MOSI_COVAREP.csd")
    assert faults_of(csd).faults[0].expected == "one file of audio"
    DATASET.check(csd, MosiOptions(audio_sequence=AUDIO))


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("standard_train_fold = [", None, "assignments of lists in Python"),
        ("standard_train_fold = ['a']\nstandard_test_fold = ['b']", "standard_valid_fold", "a list of video ids"),
        ("{0}\nstandard_test_fold = list('abc')", "standard_test_fold", "a literal list of strings"),
        ("{0}\nstandard_test_fold = [1, 2]", "standard_test_fold", "a literal list of strings"),
        ("{0}\nstandard_test_fold = ['a']", "standard_test_fold", "each video in one list only"),
    ],
)
def test_invalid_fold_lists(csd: Path, text: str, column: str | None, expected: str) -> None:
    lists = "standard_train_fold = ['a']\nstandard_valid_fold = ['b']"
    (csd / FOLDS).write_text(text.format(lists))
    error = faults_of(csd)
    assert error.faults[0].file == FOLDS
    assert error.faults[0].column == column
    assert expected in str(error)


def test_the_fold_file_is_never_executed(csd: Path) -> None:
    marker = csd.parent / "ran"
    folds = csd / FOLDS
    folds.write_text(folds.read_text() + f"\nopen({str(marker)!r}, 'w').close()\n")
    DATASET.check(csd, MosiOptions())
    assert not marker.exists()


def test_folds_of_other_videos(csd: Path) -> None:
    (csd / FOLDS).write_text("standard_train_fold=['a']\nstandard_valid_fold=['b']\nstandard_test_fold=['c']\n")
    assert "no labelled video in any list" in faults_of(csd).faults[0].found


def test_errors_of_all_files_are_reported_together(csd: Path) -> None:
    (csd / FOLDS).unlink()
    (csd / AUDIO).write_bytes((csd / AUDIO).read_bytes()[:2000])

    def change(data: h5py.Group) -> None:
        data[sorted(data)[1]]["features"][0] = np.nan

    edit(csd / LABELS, change)
    edit(csd / WORDS, lambda data: data.__delitem__(f"{sorted(data)[0]}/intervals"))
    assert sorted(f.file for f in faults_of(csd).faults) == sorted([FOLDS, AUDIO, LABELS, WORDS])


def test_many_errors_in_one_file_are_counted(csd: Path, tmp_path: Path) -> None:
    with h5py.File(csd / AUDIO, "w") as handle:
        for i in range(200):
            handle[f"COVAREP/data/v{i}/features"] = np.zeros((3, 2))
    faults = faults_of(csd).faults
    assert len(faults) == 11
    assert "190 more" in faults[-1].found


def test_a_damaged_file_stops_the_build_without_partial_output(csd: Path, tmp_path: Path, capsys: Any) -> None:
    (csd / WORDS).write_bytes((csd / WORDS).read_bytes()[:3000])
    assert main(["build", "mosi", "--raw", str(csd), "--out", str(tmp_path / "store")]) == 3
    assert WORDS in capsys.readouterr().err
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("*.parquet"))
