"""Features by clip in `.npy`, `.pt` and `.h5` files with a table of labels."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from mrpipe.datasets import get_dataset
from mrpipe.errors import UsageError
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from tests.datasets.mosi.other_forms import TINY, export_of, faults_of, files_of


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    settings: dict[str, dict[str, Any]] = {f: {"format": f} for f in ("files", "mag")}
    settings |= {f"{f} vectors": {"format": f, "utterance_audio": True} for f in ("csd", "files")}
    for name, own in settings.items():
        simulate(get_dataset("mosi"), folder / name, TINY | own)
    return {name: folder / name for name in settings}


# --- one content, several forms --------------------------------------------------------------------------------------


def test_features_by_clip_give_the_store_of_the_sdk_files_except_for_the_names_of_sources(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    digests = []
    for form in ("csd vectors", "files vectors"):
        build(get_dataset("mosi"), exports[form], tmp_path / form, {"text_encoder": "hashing"}, schemes=["standard"])
        files = [p for folder in ("labels", "modalities", "splits") for p in files_of(tmp_path / form / folder, "*")]
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
        assert {"audio.parquet", "text.parquet", "polarity.parquet"} <= set(digests[-1])
    assert digests[0] == digests[1]
    tables = [pl.read_parquet(tmp_path / form / "samples.parquet") for form in ("csd vectors", "files vectors")]
    assert tables[0].drop("start", "end").equals(tables[1].drop("start", "end"))
    dictionaries = [pl.read_parquet(tmp_path / f / "dictionary.parquet") for f in ("csd vectors", "files vectors")]
    differing = [c for c in dictionaries[0].columns if not dictionaries[0][c].equals(dictionaries[1][c])]
    assert differing == ["name", "source_file", "source_column"]


def test_clip_files_may_be_torch_or_hdf5_and_nested_by_video(exports: dict[str, Path], tmp_path: Path) -> None:
    expected = export_of(exports["files"])
    raw = Path(shutil.copytree(exports["files"], tmp_path / "raw"))
    (raw / "vision").rename(raw / "visual")
    for path in files_of(raw / "audio", "*.npy"):
        # A view with an offset and permuted strides, as a slice of a batch is saved.
        x = torch.from_numpy(np.load(path))
        torch.save(torch.cat([x.T, x.T])[len(x.T) :].T, path.with_suffix(".pt"))
        path.unlink()
    for path in files_of(raw / "visual", "*.npy"):
        video, _, clip = path.stem.rpartition("_")
        (raw / "visual" / video).mkdir(exist_ok=True)
        with h5py.File(raw / "visual" / video / f"{int(clip):04d}.h5", "w") as handle:
            handle["features"] = np.load(path)
        path.unlink()
    found = export_of(raw)
    for modality in ("audio", "vision"):
        assert found.form(modality, "auto") == expected.form(modality, "auto") == "raw"
        a, b = expected.frames(modality, "raw"), found.frames(modality, "raw")
        assert np.array_equal(a.values, b.values, equal_nan=True)
        assert np.array_equal(a.offsets, b.offsets)
    assert found.clips.equals(expected.clips)


def test_alignment_of_features_by_clip_follows_from_their_lengths(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = Path(shutil.copytree(exports["files"], tmp_path / "raw"))
    tokens = export_of(raw).tokens()
    ids = export_of(raw).clips["sample_id"].to_list()
    for name, words in zip(ids, tokens, strict=True):
        np.save(raw / "audio" / f"{name}.npy", np.ones((len(words), 3), np.float32))
    export = export_of(raw)
    assert (export.form("audio", "auto"), export.form("vision", "auto")) == ("steps", "raw")
    with pytest.raises(UsageError, match="is aligned to words; use steps or collapse"):
        export.form("audio", "raw")
    (raw / "text").mkdir()
    for name, words in zip(ids, tokens, strict=True):
        np.save(raw / "text" / f"{name}.npy", np.ones((len(words) + 1, 4), np.float32))
    assert export_of(raw).form("audio", "auto") == "raw"
    assert export_of(raw).text_vectors().values.shape == (sum(len(t) + 1 for t in tokens), 4)


def test_clips_without_a_file_lack_the_modality_and_other_files_are_listed(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    raw = Path(shutil.copytree(exports["files"], tmp_path / "raw"))
    gone, moved = files_of(raw / "audio", "*.npy")[:2]
    gone.unlink()
    moved.rename(moved.with_name("nobody_7.npy"))
    dataset = get_dataset("mosi")
    checked = dataset.check(raw, dataset.options())
    assert not {gone.stem, moved.stem} & set(checked.observed["audio"])
    assert checked.unused == {"audio/nobody_7.npy": "no clip of label.csv has this name"}
    assert checked.release == "features by clip, label.csv"


# --- damaged twins ---------------------------------------------------------------------------------------------------


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    data = io.BytesIO()
    write(data)
    return data.getvalue()


def zipped(**members: bytes) -> bytes:
    def write(data: io.BytesIO) -> None:
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"x/{name.replace('_', '/')}".replace("data/pkl", "data.pkl"), content)

    return saved(write)


def hdf5(**entries: Any) -> bytes:
    def write(data: io.BytesIO) -> None:
        with h5py.File(data, "w") as handle:
            for name, value in entries.items():
                handle[name] = value

    return saved(write)


GOOD = np.ones((3, 74), np.float32)
TENSOR = saved(lambda f: torch.save(torch.from_numpy(GOOD), f))
DAMAGED = {
    "cut.npy": (saved(lambda f: np.save(f, GOOD))[:-9], "one array in a complete .npy file"),
    "text.npy": ("0.1,0.2".encode("utf-16"), "one array in a complete .npy file"),
    "objects.npy": (saved(lambda f: np.save(f, np.array([{}], object), allow_pickle=True)), "one array in a complete"),
    "words.npy": (saved(lambda f: np.save(f, np.array([["a"] * 74]))), "numbers of shape"),
    "cube.npy": (saved(lambda f: np.save(f, GOOD[None])), "numbers of shape"),
    "narrow.npy": (saved(lambda f: np.save(f, GOOD[:, :7])), "numbers of shape (steps, 74)"),
    "cut.pt": (TENSOR[:-30], "one array in a complete .pt file"),
    "dict.pt": (saved(lambda f: torch.save({"x": torch.ones(3)}, f)), "one array in a complete .pt file"),
    "layer.pt": (saved(lambda f: torch.save(torch.nn.Linear(2, 2), f)), "arrays and builtin containers only"),
    "code.pt": (zipped(data_pkl=b"cposix\nsystem\n(S'false'\ntR."), "arrays and builtin containers only"),
    "two.h5": (hdf5(a=GOOD, b=GOOD), "one array in a complete .h5 file"),
    "group.h5": (hdf5(**{"a/b": GOOD}), "one array in a complete .h5 file"),
    "cut.h5": (hdf5(a=GOOD)[:900], "one array in a complete .h5 file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_clip_files(exports: dict[str, Path], tmp_path: Path, name: str) -> None:
    raw = Path(shutil.copytree(exports["files"], tmp_path / "raw"))
    clip = files_of(raw / "audio", "*.npy")[4]
    clip.unlink()
    data, expected = DAMAGED[name]
    clip.with_suffix(Path(name).suffix).write_bytes(data)
    (fault,) = faults_of(raw)
    assert fault.file == f"audio/{clip.with_suffix(Path(name).suffix).name}"
    assert expected in fault.expected
    assert fault.found


def test_a_tensor_cannot_claim_more_numbers_than_it_has(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = Path(shutil.copytree(exports["files"], tmp_path / "raw"))
    clip = files_of(raw / "audio", "*.npy")[0]
    clip.unlink()
    with zipfile.ZipFile(io.BytesIO(TENSOR)) as archive:
        members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    for size in (b"K\x09", b"J\xff\xff\xff\x7f"):
        # The first dimension of the tensor (3, 74), an opcode of the pickle.
        members["data.pkl"] = members["data.pkl"].replace(b"K\x03KJ", size + b"KJ")
        with zipfile.ZipFile(clip.with_suffix(".pt"), "w") as archive:
            for name, content in members.items():
                archive.writestr(f"x/{name}", content)
        (fault,) = faults_of(raw)
        assert "unreadable data" in fault.found
        members["data.pkl"] = members["data.pkl"].replace(size + b"KJ", b"K\x03KJ")


@pytest.mark.parametrize(
    ("change", "column", "expected"),
    [
        (lambda f: f.with_columns(mode=pl.lit("holdout")), "mode", "train, test, valid"),
        (lambda f: f.with_columns(clip_id=pl.lit("first")), "clip_id", "the number of the clip"),
        (lambda f: f.drop("mode"), "mode", "this column"),
        (lambda f: f.with_columns(label=pl.col("label") * 9), "label", "scores in [-3, 3]"),
        (lambda f: f.with_columns(label=None), "label", "finite numbers"),
        (lambda f: pl.concat([f, f.head(1)]), "valid/id", "unique ids"),
        (lambda f: f.with_columns(video_id="x" + pl.col("video_id")), None, "files named after clips"),
        (
            lambda f: f.with_columns(mode=pl.when(pl.col("clip_id") > 2).then(pl.lit("test")).otherwise("mode")),
            "test/id",
            "each video in one split",
        ),
    ],
)
def test_invalid_tables_of_labels(
    exports: dict[str, Path], tmp_path: Path, change: Callable[[Any], Any], column: str, expected: str
) -> None:
    raw = Path(shutil.copytree(exports["files"], tmp_path / "raw"))
    change(pl.read_csv(raw / "label.csv")).write_csv(raw / "label.csv")
    faults = faults_of(raw)
    assert any(f.column == column and expected in f.expected for f in faults), faults
    assert {f.file for f in faults} <= {"label.csv", "audio", "vision"}


def test_two_files_of_one_clip_and_undecodable_labels(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = Path(shutil.copytree(exports["files"], tmp_path / "raw"))
    clip = files_of(raw / "audio", "*.npy")[0]
    np.save(raw / "audio" / clip.name.replace("_1.npy", "[0].npy"), GOOD)
    (fault,) = faults_of(raw)
    assert (fault.expected, fault.file) == ("one file per clip", f"audio/{clip.name}")
    (raw / "label.csv").write_bytes(
        (raw / "label.csv").read_bytes().replace(b"movie", b"mov\xe9e").replace(b"a", b"\x81")
    )
    assert faults_of(raw)[0].file == "label.csv"


def test_a_folder_with_pickles_and_clip_files_asks_for_one(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = Path(shutil.copytree(exports["files"], tmp_path / "raw"))
    shutil.copy(exports["mag"] / "mosi.pkl", raw)
    (fault,) = faults_of(raw)
    assert "table of labels with --set file=NAME" in fault.fix
    assert export_of(raw, file="label.csv").format == "files"
    assert export_of(raw, file="mosi.pkl").format == "mag"


def test_vectors_have_no_other_form(exports: dict[str, Path]) -> None:
    dataset = get_dataset("mosi")
    for form, settings in [("files", {"text_encoder": "export"}), ("files vectors", {"audio_form": "raw"})]:
        with pytest.raises(UsageError):
            dataset.check(exports[form], dataclasses.replace(dataset.options(), **settings))


# --- published files -------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_the_published_clips_in_another_form(real_data_dir: Path, tmp_path: Path) -> None:
    raw = real_data_dir / "mosi"
    if not raw.is_dir():
        pytest.skip(f"no CMU-MOSI at {raw}")
    sdk = export_of(raw)
    tokens = sdk.tokens()
    pl.DataFrame(
        {
            "video_id": sdk.clips["subject_id"],
            "clip_id": sdk.clips["clip"],
            "text": [" ".join(t) for t in tokens],
            "label": sdk.clips["score"],
            "mode": sdk.clips["fold"],
        }
    ).write_csv(tmp_path / "label.csv")
    (tmp_path / "audio").mkdir()
    block = sdk.frames("audio", "vector")
    for name, x in zip(sdk.clips["sample_id"], block.values, strict=True):
        np.save(tmp_path / "audio" / f"{name}.npy", x)
    files = export_of(tmp_path)
    a, b = (e.clips.sort("sample_id").drop("start", "end") for e in (sdk, files))
    assert a.equals(b)
    order = {name: i for i, name in enumerate(sdk.clips["sample_id"])}
    rows = [order[name] for name in files.clips["sample_id"]]
    assert files.form("audio", "auto") == "vector"
    assert np.array_equal(files.frames("audio", "vector").values, block.values[rows], equal_nan=True)
    # Words differ where the transcript has signs within a word ("movie's" stays, "c'mon-man" is two words).
    found = files.tokens()
    same = [found[i] == [w.lower() for w in tokens[r]] for i, r in enumerate(rows)]
    assert np.mean(same) > 0.97
