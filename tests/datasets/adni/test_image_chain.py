"""The imaging chain on simulated heads and real scans. Slow (minutes); requires the extra `imaging`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.adni.image.join import read_images
from mrpipe.datasets.adni.image.qc import write_image_qc
from mrpipe.datasets.adni.image.raw import prepare_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.simulate.t1 import ellipsoid_head, template_head
from mrpipe.imaging.chain import PACKAGES, ChainSettings, match_quantiles, run_chain
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.nifti import write_nifti
from mrpipe.imaging.template import mni_template
from mrpipe.imaging.worker import process_scan
from mrpipe.keyed import generator

MISSING = [p for m, p in PACKAGES.items() if importlib.util.find_spec(m) is None]
needs_imaging = pytest.mark.skipif(bool(MISSING), reason=f"pip install 'mrpipe[imaging]' (missing: {MISSING})")


def test_quantiles_are_matched_inside_the_mask_and_zero_outside() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    reference = rng.gamma(4.0, 1.0, 5000).astype(np.float32)
    image = (300 * rng.gamma(4.0, 1.0, (20, 20, 20)) + 50).astype(np.float32)
    mask = rng.random(image.shape) < 0.7
    out = match_quantiles(image, mask, reference)
    assert (out[~mask] == 0).all()
    np.testing.assert_allclose(
        np.quantile(out[mask], [0.1, 0.5, 0.9]), np.quantile(reference, [0.1, 0.5, 0.9]), rtol=0.05
    )
    order = np.argsort(image[mask])
    assert (np.diff(out[mask][order]) >= 0).all()
    constant = match_quantiles(np.ones_like(image), mask, reference)
    assert np.isfinite(constant).all()


def test_simulated_heads_show_atrophy_and_are_deterministic() -> None:
    heads = [ellipsoid_head(generator(0, "t"), a, 4.0)[0].astype(float) for a in (0.0, 0.0, 0.08)]
    np.testing.assert_array_equal(heads[0], heads[1])
    grey = [int(((h > 420) & (h < 650)).sum()) for h in heads]
    assert grey[2] < grey[0]


@needs_imaging
def test_the_template_is_the_2_mm_mni_grid() -> None:
    template = mni_template()
    assert template.t1.shape == (91, 109, 91)
    assert 1700 < template.brain.sum() * template.grid.voxel_ml < 2000
    assert (template.t1[template.grid.mask] > 0).all()
    assert nib.aff2axcodes(template.grid.affine) == ("L", "A", "S")


@pytest.fixture(scope="module")
def simulated_scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("chain")
    data, affine = template_head(generator(0, "chain"), 0.0, 2.0)
    write_nifti(folder / "head.nii.gz", data, affine)
    return folder / "head.nii.gz", mni_template().write(folder / "template")


@pytest.mark.slow
@needs_imaging
def test_chain_preserves_grey_matter_and_is_deterministic(simulated_scan, tmp_path: Path) -> None:
    scan, templates = simulated_scan
    settings = ChainSettings(registration="fast")
    first, second = (
        process_scan(scan, "I1", templates, settings, tmp_path / f"{k}.png", timeout_s=1200) for k in range(2)
    )
    assert first.gm.tobytes() == second.gm.tobytes()
    assert first.numbers == second.numbers
    assert first.numbers["mass_ratio"] == pytest.approx(1.0, abs=0.01)
    assert first.numbers["overlap"] > 0.9
    assert first.numbers["n_folded"] == 0
    assert first.numbers["ncc"] > 0.6
    assert (tmp_path / "0.png").stat().st_size > 1000
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


@pytest.mark.slow
@needs_imaging
def test_an_invalid_scan_fails_with_a_reason_and_leaves_no_files(simulated_scan, tmp_path: Path) -> None:
    scan, templates = simulated_scan
    (tmp_path / "cut.nii.gz").write_bytes(scan.read_bytes()[:5000])
    with pytest.raises(ScanFailedError, match=r"^unusable image, expected a complete NIfTI image"):
        process_scan(tmp_path / "cut.nii.gz", "I9", templates, ChainSettings(), tmp_path / "x.png", timeout_s=600)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.nii.gz"]


@pytest.mark.slow
@needs_imaging
def test_raw_scans_are_read_end_to_end(tmp_path: Path) -> None:
    ids = ["002_S_0011", "003_S_4022"]
    for number, ptid in enumerate(ids):
        folder = tmp_path / "raw" / "ADNI" / ptid / "MPRAGE" / "2010-05-02_10_15_30.0" / f"I{number}"
        folder.mkdir(parents=True)
        data, affine = template_head(generator(0, "chain", ptid), 0.08 * number, 2.0)
        write_nifti(folder / f"ADNI_{ptid}_MR_MPRAGE_S1_I{number}.nii.gz", data, affine)
    samples = pl.DataFrame({"sample_id": ids, "subject_id": ids})
    options = AdniOptions(image_registration="affine", image_parts=2)
    parts = [tmp_path / f"{k}-of-2.parquet" for k in range(2)]
    for k, part in enumerate(parts):
        prepare_images(tmp_path / "raw", samples, options, k, 2, part)
    features = read_images(tmp_path / "raw", samples, options, parts)
    batches = list(features.batches)
    assert [i for b in batches for i in b["sample_id"].to_pylist()] == ids
    volumes = np.concatenate([b["x"].flatten().to_numpy(zero_copy_only=False) for b in batches])
    assert np.isfinite(volumes).all()
    assert 100 < float(volumes[volumes > 0].astype(np.float64).mean()) < 2000
    assert features.tried is not None
    write_image_qc(features.tried(), tmp_path, tmp_path / "qc")
    table = pl.read_parquet(tmp_path / "qc" / "qc.parquet")
    assert table["status"].to_list() == ["ok", "ok"]
    assert table.select("gm_ml", "overlap", "seconds").null_count().row(0) == (0, 0, 0)
    assert (tmp_path / "qc" / "contact_sheet.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.real_data
@needs_imaging
@pytest.mark.parametrize("subject", ["1000", "1001"])
def test_grey_matter_agrees_with_manual_segmentation(real_data_dir: Path, tmp_path: Path, subject: str) -> None:
    brain = real_data_dir / "brain"
    settings = ChainSettings(registration="affine", brain="stripped")
    templates = mni_template().write(tmp_path / "template")
    done, volumes = run_chain(brain / f"{subject}_SS.nii.gz", subject, *templates, settings, tmp_path)
    ours = volumes["grey"] > 0.5
    manual = np.asarray(nib.as_closest_canonical(nib.load(brain / f"{subject}_tissues.nii.gz")).dataobj) == 2
    assert 2 * (ours & manual).sum() / (ours.sum() + manual.sum()) > 0.80
    assert done.numbers["gm_ml"] == pytest.approx(manual.sum() / 1000, rel=0.12)
    assert done.numbers["mass_ratio"] == pytest.approx(1.0, abs=0.01)
