"""Numbers that tell unsuitable scans, on a small made-up head; the slow tests spoil a real one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter

from mrpipe.imaging.chain import PACKAGES, ChainSettings
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.nifti import write_nifti
from mrpipe.imaging.suitability import brain_numbers, faults_of, orientation_scores, voxel_numbers
from mrpipe.imaging.template import mni_template
from mrpipe.imaging.worker import process_scan

AFFINE = np.diag([4.0, 4, 4, 1])
SHAPE = (56, 62, 56)


def made_up_head() -> tuple[np.ndarray, np.ndarray]:
    """A head (X, Y, Z) at 4 mm and its brain: longer than high, flat below, with white matter and ventricles."""
    x, y, z = (4.0 * (i - (n - 1) / 2) for i, n in zip(np.indices(SHAPE), SHAPE, strict=True))
    brain = (x / 66) ** 2 + (y / 82) ** 2 + (z / np.where(z > 0, 66, 44)) ** 2 < 1
    brain |= (x / 45) ** 2 + ((y + 45) / 32) ** 2 + ((z + 40) / 24) ** 2 < 1
    head = np.zeros(SHAPE)
    head[binary_dilation(brain, iterations=4)] = 600
    head[binary_dilation(brain, iterations=2)] = 100
    folds = np.sin(x / 5) * np.sin(y / 5) * np.sin(z / 5)
    head[brain] = (500 + 250 * np.tanh(3 * (0.6 - (x / 66) ** 2 - (y / 82) ** 2 - (z / 55) ** 2)) + 300 * folds)[brain]
    head[brain & (np.abs(x) < 14) & (np.abs(y - 5) < 30) & (np.abs(z - 8) < 10)] = 150
    noise = 8 * np.random.Generator(np.random.PCG64(0)).standard_normal(SHAPE)
    return np.abs(gaussian_filter(head, 0.4) + noise).astype(np.float32), brain


HEAD, BRAIN = made_up_head()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "t1.nii"
    # Stored in another order of axes, as templates are.
    image = nib.Nifti1Image(np.where(BRAIN, HEAD, 0).astype(np.float32), AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt("LPS"))
    nib.save(image.as_reoriented(turn), path)
    return path


def numbers(head: np.ndarray, brain: np.ndarray, template: Path, *, affine=AFFINE, stripped=False) -> dict[str, float]:
    head = np.ascontiguousarray(head, dtype=np.float32)
    return voxel_numbers(head) | brain_numbers(head, head, brain, affine, template, stripped=stripped)


def test_a_head_is_suitable_also_if_it_is_turned_or_stripped(template: Path) -> None:
    found = numbers(HEAD, BRAIN, template)
    assert faults_of(found, "x") == []
    assert found["brain_ml"] == pytest.approx(BRAIN.sum() * 0.064, rel=1e-6)
    assert found["similarity"] > 0.98
    assert faults_of(numbers(np.where(BRAIN, HEAD, 0), BRAIN, template, stripped=True), "x") == []
    c, s = np.cos(np.deg2rad(12)), np.sin(np.deg2rad(12))
    pitched = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    assert faults_of(numbers(HEAD, BRAIN, template, affine=pitched @ AFFINE), "x") == []


@pytest.mark.parametrize(
    "turn",
    [
        lambda v: v[:, :, ::-1],
        lambda v: v[:, ::-1],
        lambda v: v[::-1, ::-1],
        lambda v: v.transpose(0, 2, 1),
        lambda v: v.transpose(0, 2, 1)[:, ::-1],
        lambda v: v.transpose(2, 1, 0),
        lambda v: v.transpose(1, 2, 0),
    ],
)
def test_flipped_and_permuted_heads_are_recognised(turn: Callable, template: Path) -> None:
    found = numbers(turn(HEAD), turn(BRAIN), template)
    assert found["orientation"] < -0.02
    assert "axes as in the header" in [f.expected for f in faults_of(found, "x")]


def test_left_and_right_cannot_be_told_from_the_image(template: Path) -> None:
    scores = [orientation_scores(np.where(BRAIN, HEAD, 0)[::d], AFFINE, template) for d in (1, -1)]
    np.testing.assert_allclose(*scores, atol=0.05)


def zeroed(*index: slice) -> np.ndarray:
    out = HEAD.copy()
    out[index] = 0
    return out


COPY = np.concatenate([HEAD[:28], HEAD[:28][::-1]])
SATURATED = np.minimum(HEAD, 180)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (zeroed(slice(None), slice(None), slice(20, 40, 4)), "empty"),
        (COPY, "repeated"),
        (np.where(HEAD > 300, 100.0, 0.0), "flat"),
        (SATURATED, "flat"),
        (HEAD.max() - HEAD, "air"),
        (HEAD + 1000, "air"),
        (HEAD - 1000, "air"),
        (np.where(BRAIN, HEAD, 0), "scalp"),
        (zeroed(slice(30, None)), "hollow"),
        (HEAD + 0.5 * np.roll(HEAD, 30, axis=1), "haze"),
        (gaussian_filter(HEAD, 3), "sharpness"),
        (gaussian_filter(HEAD, (0, 3, 0)), "sharpness"),
    ],
)
def test_spoilt_intensities_are_recognised(head: np.ndarray, name: str, template: Path) -> None:
    assert name in [f.found.split()[0] for f in faults_of(numbers(head, BRAIN, template), "x")]


@pytest.mark.parametrize(
    ("scale", "name"), [((1.4, 1.4, 1.4), "brain_ml"), ((0.7, 0.7, 0.7), "brain_ml"), ((1, 1, 1.7), "similarity")]
)
def test_wrong_voxel_sizes_are_recognised(scale: tuple, name: str, template: Path) -> None:
    found = faults_of(numbers(HEAD, BRAIN, template, affine=AFFINE @ np.diag([*scale, 1])), "x")
    assert name in [f.found.split()[0] for f in found]


def test_a_cut_brain_is_recognised(template: Path) -> None:
    found = numbers(HEAD[:, :, :36], BRAIN[:, :, :36], template)
    assert "a whole brain" in [f.expected for f in faults_of(found, "x")]


# --- a real head

MISSING = [p for m, p in PACKAGES.items() if importlib.util.find_spec(m) is None]
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "spoilt_scans.py"
NAMED = {
    "upside down": "axes as in the header",
    "axes exchanged (y, z)": "axes as in the header",
    "inverted contrast": "intensities of a T1 image",
    "ghosts": "dark air above the head",
    "top cut off": "a whole brain",
}


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(bool(MISSING), reason=f"pip install 'mrpipe[imaging]' (missing: {MISSING})")
def test_spoilt_versions_of_a_real_head_are_refused_before_registration(real_data_dir: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("spoilt_scans", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    spoilt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(spoilt)
    base = spoilt.coarser(nib.load(real_data_dir / "brain" / "chris_t1.nii.gz"))
    templates = mni_template().write(tmp_path / "template")
    for name, reason in NAMED.items():
        nib.save(spoilt.SPOILT[name](base), tmp_path / "scan.nii")
        with pytest.raises(ScanFailedError, match=f"^unusable image, expected {reason}"):
            process_scan(tmp_path / "scan.nii", "x", templates, ChainSettings(), tmp_path / "x.png", timeout_s=600)
    stripped = real_data_dir / "brain" / "1000_SS.nii.gz"
    with pytest.raises(ScanFailedError, match="image_brain=stripped"):
        process_scan(stripped, "x", templates, ChainSettings(), tmp_path / "x.png", timeout_s=600)
    write_nifti(tmp_path / "scan.nii", np.asarray(base.dataobj, dtype=np.float32), base.affine)
    settings = ChainSettings(brain="stripped")
    with pytest.raises(ScanFailedError, match="a brain of 850-2250 ml"):
        process_scan(tmp_path / "scan.nii", "x", templates, settings, tmp_path / "x.png", timeout_s=600)
