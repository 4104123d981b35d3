"""NIfTI scans with unusual headers are read correctly or rejected with a reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrpipe.errors import DataError
from mrpipe.imaging import nifti
from mrpipe.imaging.grid import VoxelGrid, read_grid
from mrpipe.imaging.nifti import on_grid, read_scan, write_nifti
from mrpipe.imaging.template import user_template

SHAPE = (40, 50, 44)
AFFINE = np.array([[3.0, 0, 0, -60], [0, 3.0, 0, -75], [0, 0, 3.0, -66], [0, 0, 0, 1]])


def head(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    x, y, z = np.indices(shape)
    return (100 * x + 10 * y + z).astype(np.int16)


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, *, oriented: bool = True) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    if not oriented:
        raw = bytearray(path.read_bytes())
        raw[252:256] = bytes(4)  # qform_code, sform_code; nibabel would set them again
        path.write_bytes(bytes(raw))
    return path


def test_axis_order_and_handedness_are_converted_to_ras(tmp_path: Path) -> None:
    expected = read_scan(save(tmp_path / "a.nii", head()), "a")
    np.testing.assert_array_equal(expected.data, head())
    for codes in (("L", "A", "S"), ("P", "I", "R"), ("S", "L", "A")):
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
        )
        path = tmp_path / "b.nii.gz"
        nib.save(nib.Nifti1Image(head(), AFFINE).as_reoriented(turn), path)
        scan = read_scan(path, "b")
        np.testing.assert_array_equal(scan.data, expected.data)
        np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-5)
    assert expected.voxel_mm == pytest.approx((3.0, 3.0, 3.0))


def test_big_endian_scaled_and_4d_images_are_read_and_noted(tmp_path: Path) -> None:
    image = nib.Nifti1Image(head(), AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "big.nii")
    assert nib.load(tmp_path / "big.nii").header.endianness == ">"
    scan = read_scan(tmp_path / "big.nii", "big")
    np.testing.assert_array_equal(scan.data, head())
    assert "big-endian" in scan.notes
    squeezed = read_scan(save(tmp_path / "one.nii", head()[..., None, None]), "one")
    np.testing.assert_array_equal(squeezed.data, head())
    assert any("length 1" in n for n in squeezed.notes)
    scaled = nib.Nifti1Image(head().astype(np.uint16), AFFINE)
    scaled.header.set_slope_inter(0.5, 7.0)
    nib.save(scaled, tmp_path / "scaled.nii")
    np.testing.assert_allclose(read_scan(tmp_path / "scaled.nii", "s").data, 0.5 * head() + 7.0)


def test_non_finite_values_become_zero(tmp_path: Path) -> None:
    data = head().astype(np.float32)
    data[3, 4, 5], data[6, 7, 8] = np.nan, np.inf
    scan = read_scan(save(tmp_path / "a.nii", data), "a")
    assert scan.data[3, 4, 5] == scan.data[6, 7, 8] == 0
    assert np.isfinite(scan.data).all()
    assert any("2 voxels" in n for n in scan.notes)


def test_slightly_skewed_affines_are_corrected_and_sheared_ones_rejected(tmp_path: Path) -> None:
    skewed = AFFINE.copy()
    skewed[:2, 1] = 0.01, 2.9
    scan = read_scan(save(tmp_path / "a.nii", head(), skewed), "a")
    cosines = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-6)
    skewed[0, 1] = 0.6
    with pytest.raises(DataError, match="right angles"):
        read_scan(save(tmp_path / "b.nii", head(), skewed), "b")


COARSE = AFFINE @ np.diag([2.0, 1, 1, 1])
SMALL = AFFINE @ np.diag([0.3, 0.3, 0.3, 1])


@pytest.mark.parametrize(
    ("data", "affine", "oriented", "expected"),
    [
        (head()[..., None].repeat(2, axis=3), AFFINE, True, "2 volumes"),
        (head()[:, :, :8], AFFINE, True, "at least 32 voxels"),
        (head(), COARSE, True, "6.00×3.00×3.00 mm"),
        (head(), SMALL, True, "field of view"),
        (np.zeros((150, 50, 44), dtype=np.int16), AFFINE, True, "at most 400 mm; found 450×150×132 mm"),
        (head(), AFFINE, False, "orientation"),
        (np.full(SHAPE, 7, dtype=np.int16), AFFINE, True, "one value 7"),
    ],
)
def test_images_that_are_not_structural_scans_are_rejected(data, affine, oriented, expected, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        read_scan(save(tmp_path / "x.nii", data, affine, oriented=oriented), "scan 7")
    assert caught.value.faults[0].file == "scan 7"


def edited(path: Path, **fields) -> Path:
    """A scan with other header fields, which nibabel would correct on saving."""
    save(path, head())
    with path.open("rb") as handle:
        header = nib.Nifti1Header.from_fileobj(handle, check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    return path


MIRRORED = (np.diag([-1.0, 1, 1, 1]) @ AFFINE)[0]
SWAPPED = {"srow_x": AFFINE[1], "srow_y": AFFINE[0]}
BOTH = {"qform_code": 1, "sform_code": 1, "quatern_b": 0, "quatern_c": 0, "quatern_d": 0}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({**BOTH, "srow_x": MIRRORED}, "axes LAS in sform, RAS in qform"),
        ({**BOTH, **SWAPPED}, "in sform, RAS in qform"),
        ({"sform_code": 1, "srow_z": 2 * AFFINE[2]}, r"\[3.0, 3.0, 6.0\] in the affine, \[3.0, 3.0, 3.0\] in pixdim"),
        ({"xyzt_units": 1}, "the unit meter"),
        ({"xyzt_units": 3}, "the unit micron"),
    ],
)
def test_contradicting_headers_are_rejected(fields: dict, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=expected):
        read_scan(edited(tmp_path / "x.nii", **fields), "x")


def test_maps_with_contradicting_orientations_are_rejected(tmp_path: Path) -> None:
    path = edited(tmp_path / "x.nii", **BOTH, srow_x=MIRRORED)
    with pytest.raises(DataError, match="axes LAS in sform, RAS in qform"):
        on_grid(path, "x", head().shape, np.diag([-1.0, 1, 1, 1]) @ AFFINE)
    # The mask and the template, which place all maps, are read by the same rule.
    with pytest.raises(DataError, match="axes LAS in sform, RAS in qform"):
        read_grid(path, "x")
    with pytest.raises(DataError, match="axes LAS in sform, RAS in qform"):
        user_template(path, "x", VoxelGrid(np.ones((4, 4, 4), dtype=bool), AFFINE))


@pytest.mark.parametrize("dtype", [np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), np.dtype(np.complex64)])
def test_colours_and_complex_numbers_are_rejected(dtype: np.dtype, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros(head().shape, dtype), AFFINE), tmp_path / "x.nii")
    with pytest.raises(DataError, match="one real number per voxel"):
        read_scan(tmp_path / "x.nii", "x")


def test_headers_that_differ_slightly_or_have_a_zero_slope_are_read(tmp_path: Path) -> None:
    scan = read_scan(edited(tmp_path / "x.nii", **BOTH, qoffset_x=-50.0, qoffset_y=-75, qoffset_z=-66), "x")
    assert scan.notes == ("sform and qform differ; the sform was used",)
    np.testing.assert_allclose(scan.affine, AFFINE)
    for slope in (0.0, np.nan):
        np.testing.assert_array_equal(read_scan(edited(tmp_path / "y.nii", scl_slope=slope), "y").data, head())


def test_damaged_files_are_rejected_by_name(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii.gz", head())
    plain = tmp_path / "b.nii"
    plain.write_bytes(gzip.decompress(whole.read_bytes()))
    for source, size in ((whole, 3000), (plain, 60_000), (plain, 10), (plain, 0)):
        path = tmp_path / f"cut{source.suffix}"
        path.write_bytes(source.read_bytes()[:size])
        with pytest.raises(DataError, match="complete NIfTI image") as caught:
            read_scan(path, "I77")
        assert str(tmp_path) not in str(caught.value)
    (tmp_path / "text.nii").write_text("no image")
    for name in ("text.nii", "absent.nii"):
        with pytest.raises(DataError, match="complete NIfTI image"):
            read_scan(tmp_path / name, "I77")
    singular = save(tmp_path / "c.nii", head())
    raw = bytearray(singular.read_bytes())
    raw[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    singular.write_bytes(bytes(raw))
    with pytest.raises(DataError, match="affine"):
        read_scan(singular, "I77")


def test_write_and_read_round_trip(tmp_path: Path) -> None:
    tilt = np.array([[0.98, -0.199, 0, 0], [0.199, 0.98, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_nifti(tmp_path / "a.nii.gz", head(), tilt @ AFFINE)
    first = (tmp_path / "a.nii.gz").read_bytes()
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").affine, tilt @ AFFINE, atol=1e-4)
    write_nifti(tmp_path / "b.nii.gz", head(), tilt @ AFFINE)
    assert (tmp_path / "b.nii.gz").read_bytes() == first
    np.testing.assert_array_equal(on_grid(tmp_path / "a.nii.gz", "a", SHAPE, tilt @ AFFINE), head())
    with pytest.raises(DataError, match="mask's grid"):
        on_grid(tmp_path / "a.nii.gz", "a", SHAPE, AFFINE)


def test_masks_are_read_by_label_or_by_their_only_value(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, dtype=np.float32)
    labels[5:9, 5:9, 5:9], labels[20:22, 20, 20] = 250, 150
    write_nifti(tmp_path / "a.nii.gz", labels, AFFINE)
    assert read_grid(tmp_path / "a.nii.gz", "a", label=150).n_voxels == 2
    assert read_grid(tmp_path / "a.nii.gz", "a", label=0).n_voxels == 66
    with pytest.raises(DataError, match="150, 250"):
        read_grid(tmp_path / "a.nii.gz", "a", label=10)
    write_nifti(tmp_path / "b.nii.gz", (labels == 250).astype(np.uint8), AFFINE)
    assert read_grid(tmp_path / "b.nii.gz", "b", label=150).n_voxels == 64
    write_nifti(tmp_path / "c.nii.gz", np.zeros(SHAPE, dtype=np.uint8), AFFINE)
    with pytest.raises(DataError, match="label 150"):
        read_grid(tmp_path / "c.nii.gz", "c", label=150)
    with pytest.raises(DataError, match="inside and outside; found an empty one"):
        read_grid(tmp_path / "c.nii.gz", "c", label=0)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("example4d.nii.gz", "2 volumes"),
        ("S0_10slices.nii.gz", "at least 32 voxels"),
        ("anatomical.nii", "at least 32 voxels"),
        ("someones_anatomy.nii.gz", ""),
    ],
)
def test_real_files_with_unusual_headers_are_read_or_rejected(real_data_dir: Path, name: str, expected: str) -> None:
    path = real_data_dir / "brain" / "odd_headers" / name
    if expected:
        with pytest.raises(DataError, match=expected):
            read_scan(path, name)
        return
    scan = read_scan(path, name)
    assert scan.data.shape == (57, 67, 56)
    assert scan.voxel_mm == pytest.approx((2.75, 2.75, 2.75))


@pytest.mark.real_data
def test_real_big_endian_file_is_read_if_small_images_are_allowed(real_data_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(nifti, "MIN_EXTENT_MM", 40)
    monkeypatch.setattr(nifti, "MIN_VOXELS", 16)
    path = real_data_dir / "brain" / "odd_headers" / "anatomical.nii"
    scan = read_scan(path, "anatomical")
    assert "big-endian" in scan.notes
    assert scan.data.shape == (33, 41, 25)
    left = nib.load(path)
    np.testing.assert_array_equal(scan.data, np.asarray(left.dataobj, dtype=np.float32)[::-1])
