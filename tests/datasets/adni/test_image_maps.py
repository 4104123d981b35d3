"""Precomputed maps of ADNI: grid, selection of scans, maps that are not used, and ingestion into a store."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.datasets.adni.image.join import read_images
from mrpipe.datasets.adni.image.plan import check_images
from mrpipe.datasets.adni.image.raw import prepare_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.simulate.image import simulate_images, simulated_grid
from mrpipe.errors import DataError, FaultCollector
from mrpipe.stages.build import build
from tests.datasets.adni.image_toy import Simulation, cohort, subjects, toy_dataset


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maps") / "raw"
    simulate_images(out, subjects(), Simulation(image_failed=0.1))
    return out


def read(raw: Path, samples: pl.DataFrame, work: Path, **options) -> tuple[dict[str, np.ndarray], pl.DataFrame]:
    """Volumes by sample ID, and the table of attempts."""
    chosen = AdniOptions(**options)
    work.mkdir(parents=True, exist_ok=True)
    part = work / "0-of-1.parquet"
    prepare_images(raw, samples, chosen, 0, 1, part)
    features = read_images(raw, samples, chosen, [part])
    volumes = {}
    for batch in features.batches:
        x = batch["x"].flatten().to_numpy(zero_copy_only=False).reshape(-1, *features.modality.shape)
        volumes |= dict(zip(batch["sample_id"].to_pylist(), x, strict=True))
    assert features.tried is not None
    return volumes, features.tried()


def rows_of(raw: Path) -> tuple[np.ndarray, list[tuple[str, date]]]:
    """The stacked array, and participant and date of each row, parsed independently of the code under test."""
    lines = (raw / "image" / "ADNI_subj.txt").read_text().split()
    parsed = []
    for line in lines:
        *ptid, day = line.split("_")
        parsed.append(("_".join(ptid), date.fromisoformat(day)))
    return np.load(raw / "image" / "ADNI_G.npy"), parsed


# --- stacked maps


@pytest.mark.parametrize("rule", ["earliest", "latest"])
def test_each_sample_gets_the_map_selected_by_the_rule(export: Path, tmp_path: Path, rule: str) -> None:
    array, rows = rows_of(export)
    samples = cohort(subjects())
    volumes, scans = read(export, samples, tmp_path, image_scan=rule, image_dtype="float32", image_tries=9)
    grid, _ = simulated_grid((14, 16, 14))
    for subject in samples["sample_id"]:
        valid = sorted((d, i) for i, (p, d) in enumerate(rows) if p == subject and array[i].any())
        if not valid:
            assert subject not in volumes
            continue
        expected = array[valid[0 if rule == "earliest" else -1][1]].astype(np.float32)
        scattered = np.zeros(grid.mask.shape, dtype=np.float32)
        scattered[grid.mask] = expected
        np.testing.assert_array_equal(volumes[subject], scattered[grid.box])
    zero = {i for i, row in enumerate(array) if not row.any()}
    assert len(zero) > 0
    failed = scans.filter(status="failed")
    assert {reason[:16] for reason in failed["reason"]} <= {"all voxels are 0"}
    assert list(volumes) == sorted(volumes)


def test_invalid_maps_are_skipped_and_participants_without_a_valid_map_have_no_image(
    export: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(export, raw)
    array, rows = rows_of(raw)
    by_subject: dict[str, list[int]] = {}
    for i, (p, _) in enumerate(rows):
        by_subject.setdefault(p, []).append(i)
    several = next(p for p, i in sorted(by_subject.items()) if len(i) >= 2)
    only = next(p for p in sorted(by_subject) if p != several)
    array[:] = 1.0 + np.arange(len(rows))[:, None] + np.linspace(-0.5, 0, array.shape[1])
    first = min(by_subject[several], key=lambda i: rows[i][1])
    array[first] = 0.0
    array[by_subject[only]] = 0.0
    np.save(raw / "image" / "ADNI_G.npy", array)
    volumes, scans = read(raw, cohort(subjects()), tmp_path / "work", image_tries=99)
    assert only not in volumes
    assert len(volumes) == len(by_subject) - 1
    second = sorted(by_subject[several], key=lambda i: rows[i][1])[1]
    assert volumes[several].max() == 1.0 + second
    assert scans.filter(sample_id=several)["status"].to_list() == ["failed", "ok"]
    assert set(scans.filter(sample_id=only)["status"]) == {"failed"}


def test_values_beyond_float16_fail_the_scan_unless_stored_as_float32(export: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(export, raw)
    array, rows = rows_of(raw)
    array[:] = np.linspace(50.0, 100.0, array.shape[1]) + np.arange(len(array))[:, None]
    for i, (p, _) in enumerate(rows):
        if p == rows[0][0]:
            array[i, 3] = 1e6
        if p == rows[-1][0]:
            array[i, 3] = np.nan
    np.save(raw / "image" / "ADNI_G.npy", array)
    volumes, scans = read(raw, cohort(subjects()), tmp_path / "work")
    assert rows[0][0] not in volumes
    assert "image_dtype=float32" in scans.filter(sample_id=rows[0][0])["reason"][0]
    assert "missing values" in scans.filter(sample_id=rows[-1][0])["reason"][0]
    wide, _ = read(raw, cohort(subjects()), tmp_path / "work", image_dtype="float32")
    assert wide[rows[0][0]].max() == 1e6
    assert rows[-1][0] not in wide


# --- NIfTI maps


def test_nifti_maps_in_any_axis_order_equal_the_stack(tmp_path: Path) -> None:
    for kind in ("stack", "nifti"):
        simulate_images(tmp_path / kind, subjects(8), Simulation(image_maps_as=kind, image_failed=0))
    folder = tmp_path / "nifti" / "image"
    for number, path in enumerate(sorted(folder.glob("*RAVENS*"))):
        image = nib.load(path)
        if number % 3 == 0:
            nib.save(nib.as_closest_canonical(image), path)
        elif number % 3 == 1:
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj, dtype=">f4")[..., None], image.affine), path)
    stack, _ = read(tmp_path / "stack", cohort(subjects(8)), tmp_path / "w0")
    maps, _ = read(tmp_path / "nifti", cohort(subjects(8)), tmp_path / "w1")
    assert stack.keys() == maps.keys()
    for sample_id, volume in stack.items():
        np.testing.assert_array_equal(maps[sample_id], volume)
    # Without maps.csv, participant and date are read from the names of RAVENS maps.
    (folder / "maps.csv").unlink()
    named, _ = read(tmp_path / "nifti", cohort(subjects(8)), tmp_path / "w2")
    for sample_id, volume in stack.items():
        np.testing.assert_array_equal(named[sample_id], volume)


def test_a_misaligned_damaged_or_missing_map_affects_only_its_participant(tmp_path: Path) -> None:
    simulate_images(tmp_path / "raw", subjects(6), Simulation(image_maps_as="nifti", image_failed=0, image_max_scans=1))
    paths = sorted((tmp_path / "raw" / "image").glob("*RAVENS*"))
    image = nib.load(paths[0])
    shifted = image.affine.copy()
    shifted[0, 3] += 1.0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), shifted), paths[0])
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[2].unlink()
    volumes, scans = read(tmp_path / "raw", cohort(subjects(6)), tmp_path / "work")
    assert len(volumes) == 3
    reasons = scans.filter(status="failed")["reason"].to_list()
    for expected in ("on the mask's grid", "complete NIfTI image", "missing file"):
        assert sum(expected in r for r in reasons) == 1
    assert not any("_S_" in r for r in reasons)
    faults = FaultCollector()
    found = check_images(tmp_path / "raw", AdniOptions(), faults)
    assert [len(g) for g in found.groups.values()] == [5]


def test_an_export_without_valid_maps_is_an_error(tmp_path: Path) -> None:
    simulate_images(tmp_path / "raw", subjects(4), Simulation(image_failed=0))
    array = np.load(tmp_path / "raw" / "image" / "ADNI_G.npy")
    np.save(tmp_path / "raw" / "image" / "ADNI_G.npy", np.zeros_like(array))
    with pytest.raises(DataError, match="none valid"):
        read(tmp_path / "raw", cohort(subjects(4)), tmp_path / "work")


def smooth_maps(raw: Path, frame: pl.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Replace the stack by maps that are alike, as real maps are; returns the array and the participants."""
    array, rows = rows_of(raw)
    rng = np.random.Generator(np.random.PCG64(0))
    grid, _ = simulated_grid((14, 16, 14))
    z, y = (np.nonzero(grid.mask)[a] / 16 for a in (2, 1))
    array[:] = 800 + 600 * z + 600 * y + 60 * rng.standard_normal(array.shape)
    np.save(raw / "image" / "ADNI_G.npy", array)
    return array, [ptid for ptid, _ in rows]


def test_constant_negative_and_flipped_maps_are_not_used(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    simulate_images(raw, subjects(12), Simulation(image_failed=0, image_max_scans=1))
    array, ptids = smooth_maps(raw, subjects(12))
    grid, _ = simulated_grid((14, 16, 14))
    volume = np.zeros(grid.mask.shape)
    volume[grid.mask] = array[0]
    array[0] = np.where(volume == 0, 800, volume)[:, ::-1, ::-1][grid.mask]
    array[1], array[2] = 700.0, array[2] - 2 * array[2].mean()
    np.save(raw / "image" / "ADNI_G.npy", array)
    volumes, scans = read(raw, cohort(subjects(12)), tmp_path / "work")
    assert sorted(volumes) == sorted(ptids[3:])
    reasons = dict(scans.filter(status="failed").select("sample_id", "reason").iter_rows())
    assert "flipped or misplaced" in reasons[ptids[0]]
    assert "the same value" in reasons[ptids[1]]
    assert "negative values" in reasons[ptids[2]]


def test_review_file_drops_and_keeps_maps(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    simulate_images(raw, subjects(12), Simulation(image_failed=0, image_max_scans=1))
    array, ptids = smooth_maps(raw, subjects(12))
    array[0] = array[0][::-1]
    np.save(raw / "image" / "ADNI_G.npy", array)
    lines = (raw / "image" / "ADNI_subj.txt").read_text().split()
    review = raw / "image_review.csv"
    review.write_text(f"file,decision,comment\n{lines[0]},keep,\n{lines[3]},DROP,motion\n")
    volumes, scans = read(raw, cohort(subjects(12)), tmp_path / "work")
    assert ptids[0] in volumes
    assert scans.filter(status="failed").select("sample_id", "reason", "detail").rows() == [
        (ptids[3], "dropped in image_review.csv", "motion")
    ]
    found = check_images(raw, AdniOptions(), FaultCollector())
    assert review in found.files
    assert any("drops 1 and accepts 1 scans" in n for n in found.notes)
    review.write_text(f"file,decision\nI99999,drop\n{lines[3]},maybe\n{lines[4]},keep\n{lines[4]},drop\n")
    faults = FaultCollector()
    check_images(raw, AdniOptions(), faults)
    assert [(f.line, f.found) for f in faults.faults] == [
        (2, "another value"),
        (3, "another value"),
        (5, "a second one"),
    ]


def test_check_counts_participants_with_images_but_without_a_sample(export: Path) -> None:
    found = check_images(export, AdniOptions(), FaultCollector())
    few = cohort(subjects()).head(5)
    known = few.with_columns(pl.col("sample_id", "subject_id").str.to_lowercase())
    assert set(found.observed(known)) == {i.lower() for i in few["sample_id"]} & {
        p.lower() for p, _ in rows_of(export)[1]
    }
    assert sum("participants with images have no sample" in n for n in found.notes) == 1


# --- ingestion into a store


@pytest.mark.parametrize("form", ["stack", "nifti"])
def test_a_store_built_from_maps_does_not_disclose_participants(form: str, tmp_path: Path) -> None:
    frame = subjects(40)
    simulate_images(tmp_path / "raw", frame, Simulation(image_maps_as=form, image_max_scans=2))
    ids = [build(toy_dataset(frame), tmp_path / "raw", tmp_path / name, {"image_downsample": 2}) for name in "ab"]
    assert ids[0] == ids[1]
    store = mrpipe.open_store(tmp_path / "a")
    store.verify(deep=True)
    (modality,) = store.modalities
    assert (modality.kind, modality.dtype, modality.shape) == ("volume", "float16", (6, 7, 5))
    arrays = store.arrays("image")
    assert arrays.x.shape == (len(arrays), 6, 7, 5)
    inside = arrays.x != 0
    assert (inside == inside[0]).all()
    description = store.dictionary["description"][0]
    assert "x != 0 is the mask" in description
    text = (tmp_path / "a" / "manifest.json").read_text()
    assert not any(s in text for s in frame["subject_id"])
    atrophy = arrays.x.astype(np.float64).mean(axis=(1, 2, 3))
    assert np.isfinite(atrophy).all()
