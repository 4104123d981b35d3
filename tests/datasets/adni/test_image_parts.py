"""Raw T1 scans of ADNI in parts: failed scans, jobs that resume after an interruption, reuse, and checks.

The imaging chain is replaced by a stub, so that no imaging library is needed; test_image_chain.py tests the chain.
"""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest
from PIL import Image

from mrpipe.datasets.adni.image import plan as image_plan
from mrpipe.datasets.adni.image import raw as image_raw
from mrpipe.datasets.adni.image.join import read_images
from mrpipe.datasets.adni.image.plan import check_images
from mrpipe.datasets.adni.image.raw import NUMBERS, part_of
from mrpipe.datasets.adni.image.scans import find_scans
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.simulate.image import simulate_images, simulated_grid
from mrpipe.errors import DataError, FaultCollector, MissingExtraError, MrpipeError, UsageError
from mrpipe.imaging import chain
from mrpipe.imaging.chain import ChainResult, ChainSettings
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.nifti import read_scan
from mrpipe.imaging.template import Template
from mrpipe.imaging.worker import OUT_OF_TIME
from tests.datasets.adni.image_toy import Simulation, cohort

GRID, _ = simulated_grid((14, 16, 14))
TEMPLATE = Template(t1=np.where(GRID.mask, 1.0, 0.0).astype(np.float32), grid=GRID)


def subjects(n: int) -> pl.DataFrame:
    # ADNI1 and later phases alternate.
    ids = [f"{i + 2:03d}_S_{(200 if i % 2 else 4000) + i:04d}" for i in range(n)]
    return pl.DataFrame({"subject_id": ids, "diagnosis": [("CN", "MCI", "Dementia")[i % 3] for i in range(n)]})


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scans") / "raw"
    simulate_images(out, subjects(6), Simulation(image_raw=6, image_max_scans=2, image_t1_mm=3.0))
    return out


class Chain:
    """Stub of the imaging chain: reads the scan in the same way and returns a constant map of its mean."""

    def __init__(self, stop_after: int | None = None, overlap: float = 0.95, ncc: float = 1.0):
        self.calls: list[str] = []
        self.stop_after = stop_after
        self.numbers = {"overlap": overlap, "ncc": ncc}

    def __call__(self, scan: Path, shown_as: str, templates, settings: ChainSettings, picture: Path, *, timeout_s):
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise MrpipeError("ended by SIGKILL")
        self.calls.append(shown_as)
        try:
            head = read_scan(scan, shown_as)
        except DataError as error:
            raise ScanFailedError(f"expected {error.faults[0].expected}", f"found {error.faults[0].found}") from error
        Image.new("RGB", (60, 44), (zlib.crc32(shown_as.encode()) % 256, 0, 0)).save(picture)
        gm = np.full(GRID.mask.shape, head.data.mean(), dtype=np.float32)
        numbers = dict.fromkeys(NUMBERS, 1.0) | self.numbers
        return ChainResult(gm=gm, numbers=numbers, seconds={"all": 1.0}, peak_mb=1.0, notes=head.notes)


@pytest.fixture(autouse=True)
def toy_template(monkeypatch: pytest.MonkeyPatch) -> None:
    from mrpipe.datasets.adni.image import join as image_read

    for module in (image_raw, image_read):
        monkeypatch.setattr(module, "open_template", lambda raw, options, maps: TEMPLATE)
    monkeypatch.setattr(image_plan, "require_imaging", lambda: None)


def prepare_images(*arguments, process) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_raw, "process_scan", process)
        patch.setattr(image_raw, "require_imaging", lambda: None)
        image_raw.prepare_images(*arguments)


def run(raw: Path, samples: pl.DataFrame, work: Path, process, n_parts: int = 1, **options):
    """Prepare all parts; returns volumes by sample ID, the table of attempts, and the features."""
    chosen = AdniOptions(image_parts=n_parts, **options)
    work.mkdir(parents=True, exist_ok=True)
    parts = [work / f"{k}-of-{n_parts}.parquet" for k in range(n_parts)]
    for k, part in enumerate(parts):
        prepare_images(raw, samples, chosen, k, n_parts, part, process=process)
    features = read_images(raw, samples, chosen, parts)
    volumes: dict[str, np.ndarray] = {}
    for batch in features.batches:
        x = batch["x"].flatten().to_numpy(zero_copy_only=False).reshape(-1, *features.modality.shape)
        volumes |= dict(zip(batch["sample_id"].to_pylist(), x, strict=True))
    assert features.tried is not None
    return volumes, features.tried(), features


def test_a_failed_scan_is_recorded_with_its_reason(export: Path, tmp_path: Path) -> None:
    process = Chain()
    volumes, scans, _ = run(export, cohort(subjects(6)), tmp_path, process)
    assert len(volumes) == 5
    failed = scans.filter(status="failed")
    assert len(failed) == 1
    assert failed["reason"][0] == "expected a complete NIfTI image"
    assert failed["detail"][0].startswith("found ")
    assert failed["sample_id"][0] not in volumes
    assert "_S_" not in failed["reason"][0]
    assert (scans.filter(status="ok")["attempt"] == 0).all()
    # ADNI1 participants have several T1 series on the first day; the preprocessed one is used.
    adni1 = scans.filter(pl.col("sample_id").str.slice(6).cast(pl.Int64) < 2000, status="ok")
    assert len(adni1) > 0
    assert adni1["description"].str.contains("Scaled").all()


def test_the_next_scan_is_tried_after_a_failure(export: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(export, raw)
    samples = cohort(subjects(6))
    _, before, _ = run(raw, samples, tmp_path / "a", Chain())
    target = before.filter(pl.col("description").str.contains("Scaled"))["image_id"][0]
    path = next(raw.rglob(f"*_I{target}.nii*"))
    path.write_bytes(path.read_bytes()[:400])
    _, one, _ = run(raw, samples, tmp_path / "b", Chain(), image_tries=1)
    assert "failed" in one.filter(image_id=target)["status"].to_list()
    volumes, two, _ = run(raw, samples, tmp_path / "c", Chain(), image_tries=2)
    sample_id = two.filter(image_id=target)["sample_id"][0]
    assert two.filter(sample_id=sample_id)["status"].to_list() == ["failed", "ok"]
    assert sample_id in volumes


def test_a_killed_job_resumes_at_the_next_scan_with_identical_output(export: Path, tmp_path: Path) -> None:
    samples, options = cohort(subjects(6)), AdniOptions()
    whole = Chain()
    (tmp_path / "whole").mkdir()
    prepare_images(export, samples, options, 0, 1, tmp_path / "whole" / "0-of-1.parquet", process=whole)
    (tmp_path / "cut").mkdir()
    out = tmp_path / "cut" / "0-of-1.parquet"
    done: list[str] = []
    for stop in (1, 2, None):
        process = Chain(stop_after=stop)
        if stop is None:
            prepare_images(export, samples, options, 0, 1, out, process=process)
        else:
            with pytest.raises(MrpipeError, match="SIGKILL"):
                prepare_images(export, samples, options, 0, 1, out, process=process)
            assert not out.exists()
        done += process.calls
    assert done == whole.calls
    assert out.read_bytes() == (tmp_path / "whole" / "0-of-1.parquet").read_bytes()


def test_cached_scans_are_reused_only_if_their_inputs_are_unchanged(export: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(export, raw)
    samples, out = cohort(subjects(6)), tmp_path / "0-of-1.parquet"

    def calls(**options) -> list[str]:
        process = Chain()
        prepare_images(raw, samples, AdniOptions(**options), 0, 1, out, process=process)
        return process.calls

    first = calls()
    assert calls() == []
    assert calls(image_min_overlap=0.5) == []
    assert calls(image_registration="fast") == first
    assert calls(image_registration="fast", image_smoothing_mm=4.0) == first
    image = first[-1]
    path = next(raw.rglob(f"*_{image}.nii*"))
    scan = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj) + 1, scan.affine), path)
    assert calls(image_registration="fast", image_smoothing_mm=4.0) == [image]


def test_timed_out_scans_are_retried_if_the_limit_was_raised(export: Path, tmp_path: Path) -> None:
    times: list[float] = []

    def hang(*arguments, timeout_s: float):
        times.append(timeout_s)
        raise ScanFailedError(OUT_OF_TIME, "")

    def prepare(minutes: float) -> list[float]:
        times.clear()
        options = AdniOptions(image_timeout_min=minutes, image_tries=1)
        prepare_images(export, cohort(subjects(6)), options, 0, 1, tmp_path / "0-of-1.parquet", process=hang)
        return times.copy()

    first = prepare(5.0)
    assert set(first) == {300.0}
    assert prepare(5.0) == prepare(4.0) == []
    assert prepare(10.0) == [600.0] * len(first)


def test_volumes_do_not_depend_on_the_number_of_parts(export: Path, tmp_path: Path) -> None:
    samples = cohort(subjects(6))
    one, table, features = run(export, samples, tmp_path / "1", Chain())
    for n in (2, 4, 11):
        many, same, other = run(export, samples, tmp_path / f"{n}", Chain(), n_parts=n)
        assert list(many) == list(one)
        for sample_id, volume in one.items():
            np.testing.assert_array_equal(many[sample_id], volume)
        # Only the folder of the picture depends on the part.
        assert same.drop("picture").equals(table.drop("picture"))
        assert other.dictionary().equals(features.dictionary())
    ids = [f"{i:03d}" for i in range(23)]
    assert [i for k in range(5) for i in part_of(ids, k, 5)] == ids


def test_one_file_under_two_participants_is_not_used(export: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(export, raw)
    _, before, _ = run(raw, cohort(subjects(6)), tmp_path / "a", Chain())
    used = before.filter(status="ok").head(2)
    source, target = (next(raw.rglob(f"*_I{i}.nii*")) for i in used["image_id"])
    nib.save(nib.load(source), tmp_path / "scan.nii")
    for path in (source, target):
        path.unlink()
        shutil.copy(tmp_path / "scan.nii", path.with_suffix("").with_suffix(".nii"))
    volumes, after, _ = run(raw, cohort(subjects(6)), tmp_path / "b", Chain())
    lost = after.filter(pl.col("reason") == "the same file as the scan of another participant")
    assert set(lost["sample_id"]) == set(used["sample_id"])
    assert not set(lost["sample_id"]) & set(volumes)


def test_review_file_drops_scans_and_accepts_failing_ones(export: Path, tmp_path: Path) -> None:
    raw, samples = tmp_path / "raw", cohort(subjects(6))
    shutil.copytree(export, raw)
    _, before, _ = run(raw, samples, tmp_path / "a", Chain())
    dropped, kept = before.filter(status="ok")["image_id"].to_list()[:2]
    (raw / "image_review.csv").write_text(f"image_id,decision\nI{dropped},drop\n{kept},keep\n")
    process = Chain(overlap=0.5)
    _, after, _ = run(raw, samples, tmp_path / "b", process)
    assert after.filter(image_id=dropped)["reason"].item() == "dropped in image_review.csv"
    assert f"I{dropped}" not in process.calls
    assert after.filter(status="ok")["image_id"].to_list() == [kept]
    assert "accepted although brain and template overlap" in after.filter(status="ok")["notes"].item()
    # A dropped scan does not count as an attempt.
    _, one, _ = run(raw, samples, tmp_path / "c", Chain(), image_tries=1)
    sample = one.filter(image_id=dropped)["sample_id"].item()
    n = before.filter(sample_id=sample).height
    assert len(one.filter(sample_id=sample)) >= n


def test_low_correlation_with_the_template_fails(export: Path, tmp_path: Path) -> None:
    for registration, ncc, status in (
        ("quality", 0.45, "failed"),
        ("affine", 0.45, "ok"),
        ("affine", np.nan, "failed"),
    ):
        part = tmp_path / f"{registration}.parquet"
        options = AdniOptions(image_registration=registration)
        shutil.rmtree(part.with_suffix(""), ignore_errors=True)
        prepare_images(export, cohort(subjects(6)), options, 0, 1, part, process=Chain(ncc=ncc))
        frame = pl.read_parquet(part).filter(pl.col("ncc").is_not_null())
        assert set(frame["status"]) == {status}


def test_a_failed_registration_reports_its_overlap(export: Path, tmp_path: Path) -> None:
    samples, chosen = cohort(subjects(6)), AdniOptions()
    part = tmp_path / "0-of-1.parquet"
    prepare_images(export, samples, chosen, 0, 1, part, process=Chain(overlap=0.713))
    frame = pl.read_parquet(part)
    assert frame["voxels"].null_count() == len(frame)
    assert set(frame["reason"]) - {None} >= {"brain and template overlap by less than 0.8"}
    assert "0.713" in frame["detail"].to_list()


def test_parts_prepared_with_another_mask_are_rejected(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrpipe.datasets.adni.image import join as image_read

    samples = cohort(subjects(6))
    part = tmp_path / "0-of-1.parquet"
    prepare_images(export, samples, AdniOptions(), 0, 1, part, process=Chain())
    other = dataclasses.replace(TEMPLATE, grid=dataclasses.replace(GRID, mask=~GRID.mask))
    monkeypatch.setattr(image_read, "open_template", lambda *a: other)
    with pytest.raises(UsageError, match="a different mask"):
        list(read_images(export, samples, AdniOptions(), [part]).batches)


def test_parts_prepared_for_another_cohort_are_rejected(export: Path, tmp_path: Path) -> None:
    few, all_of_them = cohort(subjects(6)).head(3), cohort(subjects(6))
    part = tmp_path / "0-of-1.parquet"
    for prepared, read in ((few, all_of_them), (all_of_them, few)):
        prepare_images(export, prepared, AdniOptions(), 0, 1, part, process=Chain())
        with pytest.raises(UsageError, match="a different cohort"):
            read_images(export, read, AdniOptions(), [part])


def test_maps_take_precedence_over_raw_scans(tmp_path: Path) -> None:
    frame = subjects(14)
    raw = tmp_path / "raw"
    simulate_images(raw, frame, Simulation(image_raw=5, image_t1_mm=3.0, image_failed=0.0))
    # A participant with a map and a raw scan uses the map.
    scans = find_scans(raw, FaultCollector())
    lines = (raw / "image" / "ADNI_subj.txt").read_text()
    doubled = scans["ptid"].sort()[-1]
    (raw / "image" / "ADNI_subj.txt").write_text(lines.replace(lines[:10], doubled, 1))
    process = Chain()
    volumes, table, features = run(raw, cohort(frame), tmp_path / "work", process, image_tries=9)
    assert list(volumes) == sorted(volumes)
    assert table.filter(sample_id=doubled)["source"].to_list() == ["map"]
    assert set(table.filter(status="ok")["source"]) == {"map", "raw"}
    assert "ADNI_G.npy" in features.dictionary()["source_file"][0]
    assert "raw T1 scans" in features.dictionary()["source_file"][0]


def test_check_groups_scans_and_requires_the_imaging_extra(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = FaultCollector()
    found = check_images(export, AdniOptions(), faults)
    assert not faults.faults
    assert [p.name for p in found.files] == ["idaSearch.csv"]
    assert list(found.groups) == ["ADNI/**/*.nii"]

    def missing() -> None:
        raise MissingExtraError("antspyx", "imaging", "the chain")

    monkeypatch.setattr(image_plan, "require_imaging", missing)
    with pytest.raises(MissingExtraError, match=r"mrpipe\[imaging\]"):
        check_images(export, AdniOptions(), FaultCollector())
    check_images(export, AdniOptions(image_route="maps"), faults)
    assert len(faults.faults) == 1


def test_check_reports_missing_mask_and_template_of_raw_scans(export: Path) -> None:
    faults = FaultCollector()
    check_images(export, AdniOptions(image_mask="no_mask.nii", image_template="no_template.nii"), faults)
    assert sorted(f.file for f in faults.faults) == ["no_mask.nii", "no_template.nii"]


def test_error_for_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "PACKAGES", {"no_such_module_here": "antspyx"})
    with pytest.raises(MissingExtraError, match=r"antspyx.*mrpipe\[imaging\]"):
        chain.require_imaging()


def test_a_dicom_series_fails_with_its_reason(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"ADNI_002_S_0413_MR_MPRAGE_Br_20060502101530123_{k}_S1_I7.dcm").write_bytes(b"DICM")
    samples = pl.DataFrame({"sample_id": ["002_S_0413"], "subject_id": ["002_S_0413"]})
    part = tmp_path / "0-of-1.parquet"
    prepare_images(tmp_path, samples, AdniOptions(), 0, 1, part, process=Chain())
    assert "dcm2niix" in pl.read_parquet(part)["reason"].item()
    assert any("DICOM" in n for n in check_images(tmp_path, AdniOptions(), FaultCollector()).notes)
