"""Check of precomputed maps of ADNI: inconsistent files, checksums, and the route of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrpipe.datasets.adni.image.plan import check_images, has_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.simulate.image import simulate_images
from mrpipe.errors import FaultCollector
from mrpipe.imaging.nifti import write_nifti
from mrpipe.raw import sha256
from tests.datasets.adni.image_toy import Simulation, subjects


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maps") / "raw"
    simulate_images(out, subjects(), Simulation(image_failed=0.1))
    return out


def edit_missing_lines(folder: Path) -> None:
    path = folder / "ADNI_subj.txt"
    path.write_text("\n".join(path.read_text().split()[:-1]))


def edit_columns(folder: Path) -> None:
    np.save(folder / "ADNI_G.npy", np.load(folder / "ADNI_G.npy")[:, 1:])


def edit_cut(folder: Path) -> None:
    data = (folder / "ADNI_G.npy").read_bytes()
    (folder / "ADNI_G.npy").write_bytes(data[: len(data) // 2])


def edit_pickle(folder: Path) -> None:
    np.save(folder / "ADNI_G.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def edit_no_mask(folder: Path) -> None:
    next(folder.glob("*averagetemplate*")).unlink()


def edit_cut_mask(folder: Path) -> None:
    path = next(folder.glob("*averagetemplate*"))
    path.write_bytes(path.read_bytes()[:100])


def edit_labels(folder: Path) -> None:
    path = next(folder.glob("*averagetemplate*"))
    image = nib.load(path)
    write_nifti(path, np.where(np.asarray(image.dataobj) == 150, 151, np.asarray(image.dataobj)), image.affine)


def edit_line(folder: Path) -> None:
    path = folder / "ADNI_subj.txt"
    path.write_text(path.read_text().replace("_S_", "-S-", 1))


def edit_no_lines(folder: Path) -> None:
    (folder / "ADNI_subj.txt").unlink()


def edit_latin1(folder: Path) -> None:
    path = folder / "ADNI_subj.txt"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\xe9" + lines[1], *lines[2:]]))


def edit_copy(folder: Path) -> None:
    array = np.load(folder / "ADNI_G.npy")
    valid = [i for i, row in enumerate(array) if row.any()]
    array[valid[-1]] = array[valid[0]]
    np.save(folder / "ADNI_G.npy", array)


def edit_full_mask(folder: Path) -> None:
    path = next(folder.glob("*averagetemplate*"))
    image = nib.load(path)
    write_nifti(path, np.full(image.shape, 150.0, dtype=np.float32), image.affine)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (edit_missing_lines, "one row per line"),
        (edit_columns, "one column per voxel"),
        (edit_cut, "complete NumPy array"),
        (edit_pickle, "complete NumPy array"),
        (edit_no_mask, "NIfTI mask"),
        (edit_cut_mask, "complete NIfTI image"),
        (edit_labels, "label 150"),
        (edit_line, "ADNI_subj.txt, line 1: expected {PTID}_{date}"),
        (edit_latin1, "ADNI_subj.txt, line 2: expected text in UTF-8"),
        (edit_copy, "different maps of different participants"),
        (edit_full_mask, "a mask with voxels inside and outside"),
        (edit_no_lines, "no such file"),
    ],
)
def test_check_reports_inconsistent_files(export: Path, tmp_path: Path, edit, expected: str) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(export, raw)
    edit(raw / "image")
    faults = FaultCollector()
    check_images(raw, AdniOptions(), faults)
    assert any(expected in str(f) for f in faults.faults), [str(f) for f in faults.faults]
    assert all("image/" in f.file or "mask" in f.file for f in faults.faults)


def test_all_errors_are_reported_at_once(export: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(export, raw)
    edit_missing_lines(raw / "image")
    edit_line(raw / "image")
    faults = FaultCollector()
    check_images(raw, AdniOptions(), faults)
    assert len(faults.faults) == 2
    mask = next((export / "image").glob("*averagetemplate*"))
    faults = FaultCollector()
    found = check_images(export, AdniOptions(), faults)
    assert not faults.faults
    assert {p.name for p in found.files} == {"ADNI_G.npy", "ADNI_subj.txt", mask.name}


def test_checksum_of_an_external_mask_is_noted(export: Path, tmp_path: Path) -> None:
    raw, mask = tmp_path / "raw", tmp_path / "elsewhere.nii.gz"
    shutil.copytree(export, raw)
    shutil.move(next((raw / "image").glob("*averagetemplate*")), mask)
    faults = FaultCollector()
    found = check_images(raw, AdniOptions(image_mask=str(mask)), faults)
    assert not faults.faults
    assert mask not in found.files
    assert any(sha256(mask) in n and str(tmp_path) not in n for n in found.notes)


def test_image_route_and_detection_of_images(export: Path, tmp_path: Path) -> None:
    assert has_images(export, AdniOptions())
    assert not has_images(export, AdniOptions(image_route="raw"))
    assert not has_images(tmp_path, AdniOptions())
    for route in ("maps", "raw"):
        faults = FaultCollector()
        check_images(tmp_path, AdniOptions(image_route=route), faults)
        assert len(faults.faults) == 1
