"""Declared tables: images and arrays by path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from mrpipe.errors import DataError
from mrpipe.schema import Modality
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.store.reader import Store
from mrpipe.transforms.fit import fit
from tests.datasets.tables.tables_toy import IDS, TABLES, built, config, csv, faults_of, notes_of, values
from tests.stores import tables

PHOTOS = {"photos": {"file": "visits.csv", "columns": "file", "image": {"size": [12, 10]}}}
ARRAYS: dict[str, Any] = {"signals": {"file": "visits.csv", "columns": "file", "array": {}}}
N_FILES = 40
Write = Callable[[Path, int], None]


def visits(cells: list[str]) -> dict[str, str]:
    rows: list[list[object]] = [[i, k % 2, k, cells[k] if k < len(cells) else ""] for k, i in enumerate(IDS)]
    return {"visits.csv": csv("id,out,age,file", rows)}


def spec(modalities: dict[str, Any]) -> dict[str, Any]:
    label = {"file": "visits.csv", "column": "out", "classes": [0, 1]}
    return config(modalities={**modalities, "rest": {"file": "visits.csv"}}, label=label)


def made(folder: Path, ending: str, write: Write, n: int = N_FILES) -> dict[str, str]:
    """Files of the first samples, and the table with their paths."""
    (folder / "raw/files").mkdir(parents=True, exist_ok=True)
    names = [f"files/{k}{ending}" for k in range(n)]
    for k, name in enumerate(names):
        write(folder / "raw" / name, k)
    return visits(names)


def image(path: Path, k: int) -> None:
    x = np.random.default_rng(k).integers(0, 256, (20 + k % 3, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6 if k == 1 else 1
    Image.fromarray(x).save(path, quality=95, exif=exif)


def declared(store: Store, name: str) -> Modality:
    return next(m for m in store.modalities if m.name == name)


def array(shape: tuple[int, ...] = (3, 5)) -> Write:
    return lambda path, k: np.save(path, np.random.default_rng(k).normal(size=shape))


def arrays_of(store: Store, name: str, k: int) -> Any:
    """x of the sample number k; the steps of a sequence."""
    arrays = store.arrays(name)
    assert arrays.sample_id.tolist() == IDS[:N_FILES]
    return arrays.x[k] if arrays.offsets is None else arrays.x[slice(*arrays.offsets[k : k + 2])]


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_images_equal_those_of_pillow(tmp_path: Path, ending: str) -> None:
    table = made(tmp_path, ending, image)
    store = built(tmp_path, table, spec(PHOTOS))
    for k in (0, 1, 7):
        opened: Any = Image.open(tmp_path / f"raw/files/{k}{ending}")
        opened = opened.transpose(Image.Transpose.ROTATE_270) if k == 1 else opened
        expected = np.asarray(opened.resize((10, 12), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        np.testing.assert_array_equal(arrays_of(store, "photos", k), expected)
    photos = declared(store, "photos")
    assert (photos.kind, photos.shape, photos.dtype) == ("image", (3, 12, 10), "uint8")
    rows = store.dictionary.filter(modality="photos")
    assert set(rows["source_file"]) == {"visits.csv"}
    assert set(rows["source_column"]) == {"file"}
    assert store.samples("photos").collect().height == N_FILES
    assert len(values(store, "rest")) == 60
    fit(store)
    listed = [e for e in store.manifest.inputs if "files" in e["path"]]
    assert [(e["path"], e["n_files"]) for e in listed] == [("visits.csv: files of photos", N_FILES)]
    notes = notes_of(tmp_path, table, spec(PHOTOS))
    assert "photos: 40 of 60 samples, 40 images of 16 x 21 to 22 x 16" in notes


def test_grey_images_of_16_bits(tmp_path: Path) -> None:
    def write(path: Path, k: int) -> None:
        Image.fromarray(np.full((9, 9), 257 * (k + 5), dtype=np.uint16)).save(path)

    grey = {"photos": {**PHOTOS["photos"], "image": {"size": [8, 9], "channels": 1}}}
    store = built(tmp_path, made(tmp_path, ".png", write), spec(grey))
    assert declared(store, "photos").shape == (1, 8, 9)
    assert np.unique(arrays_of(store, "photos", 3)).tolist() == [8]
    assert store.dictionary.filter(modality="photos")["name"].to_list() == ["photos.grey"]
    fit(store)


@pytest.mark.parametrize("form", [None, {}, {"shape": [3, 5]}])
def test_arrays_of_one_shape_are_vectors(tmp_path: Path, form: Any) -> None:
    one = {"signals": {**ARRAYS["signals"], "array": form}}
    store = built(tmp_path, made(tmp_path, ".npy", array()), spec(one))
    signals = declared(store, "signals")
    assert (signals.kind, signals.shape) == ("vector", (15,))
    expected = np.random.default_rng(4).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_array_equal(arrays_of(store, "signals", 4), expected.reshape(-1))
    rows = store.dictionary.filter(modality="signals").sort("position")
    assert rows["name"].to_list()[6] == "file[1,1]"
    assert set(rows["description"]) == {"element of arrays of shape 3 x 5"}
    fit(store)


def test_other_dtypes_orders_and_forms_give_the_same_store(tmp_path: Path) -> None:
    def write(dtype: Any, order: Any) -> Write:
        return lambda path, k: np.save(path, np.asarray(np.arange(6).reshape(2, 3) + k, dtype=dtype, order=order))

    def write_h5(path: Path, k: int) -> None:
        with h5py.File(path, "w") as file:
            file["x"] = np.arange(6).reshape(2, 3) + k

    stores = [
        built(tmp_path / name, made(tmp_path / name, ".npy", write(dtype, order)), spec(ARRAYS))
        for name, dtype, order in (("a", "<f4", "C"), ("b", ">i2", "F"))
    ]
    stores.append(built(tmp_path / "c", made(tmp_path / "c", ".h5", write_h5), spec(ARRAYS)))
    assert all(tables(s) == tables(stores[0]) for s in stores)
    assert arrays_of(stores[0], "signals", 1).tolist() == [1, 2, 3, 4, 5, 6]


def test_arrays_that_differ_in_length_are_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, k: int) -> None:
        np.save(path, np.full((k % 4 + 1, 3), k, dtype=np.float16))

    table = made(tmp_path, ".npy", write)
    store = built(tmp_path, table, spec(ARRAYS))
    assert (declared(store, "signals").kind, declared(store, "signals").shape) == ("sequence", (3,))
    assert arrays_of(store, "signals", 6).tolist() == [[6, 6, 6]] * 3
    fit(store)
    assert "40 arrays of 1 x 3 to 4 x 3" in notes_of(tmp_path, table, spec(ARRAYS))
    monkeypatch.setattr("mrpipe.datasets.features.FILES", 7)
    again = built(tmp_path / "b", made(tmp_path / "b", ".npy", write), spec(ARRAYS))
    assert tables(again) == tables(store)


def test_a_file_of_a_subject_serves_all_its_samples(tmp_path: Path) -> None:
    made(tmp_path, ".npy", array((2,)), n=20)
    people = csv("id,out,who", [[i, k // 2 % 2, f"s{k // 2}"] for k, i in enumerate(IDS)])
    files = csv("who,file", [[f"s{k}", f"files\\{k}.npy"] for k in range(20)])
    one = {**ARRAYS["signals"], "file": "who.csv"}
    declared = {**config(modalities={"signals": one}), "subject": "who"}
    store = built(tmp_path, {"people.csv": people, "who.csv": files}, declared)
    x = arrays_of(store, "signals", slice(None))  # type: ignore[arg-type]
    np.testing.assert_array_equal(x[0], x[1])
    assert len(x) == 40


def test_faults_of_images(tmp_path: Path) -> None:
    table = made(tmp_path, ".png", image)
    raw = tmp_path / "raw"
    whole = (raw / "files/5.png").read_bytes()
    (raw / "files/5.png").write_bytes(whole[: len(whole) // 2])
    (raw / "files/6.png").write_text("no image")
    (raw / "files/7.png").unlink()
    Image.new("RGB", (20, 2)).save(raw / "files/8.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "out.png")
    table["visits.csv"] = table["visits.csv"].replace("files/9.png", "../out.png").replace("files/10.png", "/etc/hosts")
    message = faults_of(tmp_path, table, spec(PHOTOS))
    for line, part in (
        (7, "expected a complete JPEG or PNG image; found '•••••/•.•••': "),
        (8, "expected a complete JPEG or PNG image; found '•••••/•.•••': unreadable data (cannot identify image file)"),
        (9, "expected a file in the export folder, relative to it; found '•••••/•.•••': no such file"),
        (10, "found '•••••/•.•••': unreadable data (an image of 20 x 2 pixels)"),
        (11, "expected a file in the export folder, relative to it; found '../•••.•••': another place"),
        (12, "expected a file in the export folder, relative to it; found '/•••/•••••': another place"),
    ):
        assert f"visits.csv, column 'file', line {line}: " in message
        assert part in message
    assert message.startswith("6 errors")


def test_faults_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made(tmp_path, ".npy", array())
    files = tmp_path / "raw/files"
    (files / "1.npy").write_bytes((files / "1.npy").read_bytes()[:-8])
    np.save(files / "2.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    np.save(files / "3.npy", np.array(["a"]))
    np.save(files / "4.npy", np.zeros((3, 4)))
    np.save(files / "5.npy", np.full((3, 5), [np.nan, np.inf, 1e300, 0, 0]))
    np.save(files / "6.npy", np.zeros((0, 5)))
    (files / "7.npy").write_bytes(b"PK\x03\x04")
    message = faults_of(tmp_path, table, spec(ARRAYS))
    for line, part in (
        (3, "expected one array in a complete .npy file; found '•••••/•.•••': "),
        (4, "expected one array in a complete .npy file; found '•••••/•.•••': "),
        (5, "found '•••••/•.•••': 1 values of type <U1"),
        (6, "expected an array of shape 3 x 5; found '•••••/•.•••': shape 3 x 4"),
        (7, "expected finite numbers, or an empty cell; found '•••••/•.•••': 9 of 15 NaN or infinite"),
        (8, "found '•••••/•.•••': 0 values of type float64"),
        (9, "found '•••••/•.•••': "),
    ):
        assert f"visits.csv, column 'file', line {line}: " in message
        assert part in message
    monkeypatch.setattr("mrpipe.errors.LISTED_FAULTS", 2)
    assert "visits.csv: expected intact files; found 5 more damaged files" in faults_of(tmp_path, table, spec(ARRAYS))


def test_an_image_whose_middle_is_damaged_stops_the_build(tmp_path: Path) -> None:
    table = made(tmp_path, ".png", image)
    path = tmp_path / "raw/files/5.png"
    data = bytearray(path.read_bytes())
    data[200:220] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"visits.csv, column 'file', line 7: .*'•••••/•.•••'"):
        built(tmp_path, table, spec(PHOTOS))


def test_a_column_without_paths(tmp_path: Path) -> None:
    assert "a value of photos for at least one sample" in faults_of(tmp_path, visits([]), spec(PHOTOS))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"image": {"channels": 3}}, "modalities.photos.image.size"),
        ({"image": {"size": [64]}}, "[height, width] in pixels"),
        ({"image": {"size": [64, 64], "channels": 2}}, "modalities.photos.image.channels"),
        ({"image": {"size": [64, 0]}}, "a list of sizes"),
        ({"columns": ["file", "age"]}, "one column, with the path of each image"),
        ({"columns": "*"}, "one column (modalities.photos.columns)"),
        ({"array": {}}, "image, array"),
        ({"kinds": {"file": "text"}}, "image, kinds"),
        ({"columns": "photo"}, "this column (modalities.photos.columns)"),
    ],
)
def test_faults_of_the_declaration(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    table = made(tmp_path, ".png", image)
    message = faults_of(tmp_path, table, spec({"photos": {**PHOTOS["photos"], **changes}}))
    assert part in message


def test_a_changed_file_changes_the_inputs(tmp_path: Path) -> None:
    table = made(tmp_path, ".npy", array())
    build_inputs = []
    for k in (0, 99):
        array()(tmp_path / "raw/files/0.npy", k)
        faultless = notes_of(tmp_path, table, spec(ARRAYS))
        assert "signals: 40 of 60 samples, 40 arrays of 3 x 5" in faultless
        build_inputs.append(check(TABLES, tmp_path / "raw", {})["inputs"])
    assert build_inputs[0] != build_inputs[1]
    build(TABLES, tmp_path / "raw", tmp_path / "store", {})
