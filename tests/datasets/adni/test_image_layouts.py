"""Layouts of the images of ADNI: BIDS, dcm2niix, folders by participant and date, CAT12, and unsorted folders."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest
from PIL import Image

from mrpipe.datasets.adni.image import join as image_join
from mrpipe.datasets.adni.image import plan as image_plan
from mrpipe.datasets.adni.image import raw as image_raw
from mrpipe.datasets.adni.image.maps import open_maps
from mrpipe.datasets.adni.image.plan import check_images, plan_images
from mrpipe.datasets.adni.image.raw import NUMBERS
from mrpipe.datasets.adni.image.scans import find_scans
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.simulate.image import simulate_images, simulated_grid
from mrpipe.errors import FaultCollector
from mrpipe.imaging.chain import ChainResult
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.nifti import write_nifti
from mrpipe.imaging.template import Template
from mrpipe.stages.build import build
from tests.datasets.adni.image_toy import Simulation, cohort, subjects, toy_dataset
from tests.stores import tables

GRID, _ = simulated_grid((8, 9, 8))

BIDS = "sub-ADNI002S0413/{0}/anat/sub-ADNI002S0413_{0}_T1w.nii.gz"
HEADER, PERSON = "PTID,RID,COLPROT,VISCODE,EXAMDATE,DX", "002_S_0413,413,ADNI1"
VISITS = f"{HEADER}\n{PERSON},bl,2006-05-02,CN\n{PERSON},m06,11/13/2006,CN\n"


@pytest.fixture(autouse=True)
def imaging_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_plan, "require_imaging", lambda: None)


def put(raw: Path, *files: str, sidecar: dict[str, str] | str | None = None) -> Path:
    for file in files:
        path = raw / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        if sidecar is not None:
            text = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
            path.with_name(path.name.split(".")[0] + ".json").write_text(text)
    return raw


def found(raw: Path, *, maps: bool = False) -> list[tuple[object, ...]]:
    faults = FaultCollector()
    scans = find_scans(raw, faults, maps=maps)
    assert not faults.faults
    assert (scans["ptid"] == "002_S_0413").all()
    return scans.select("layout", "date", "description").rows()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (BIDS.format("ses-20060502"), ("BIDS", date(2006, 5, 2), "")),
        (f"my/bids/{BIDS.format('ses-20060502').lower()}", ("BIDS", date(2006, 5, 2), "")),
        ("sub-002S0413/anat/sub-002S0413_run-1_T1w.nii", ("BIDS", None, "")),
        ("002_S_0413_2006-05-02/002_S_0413_2006-05-02_T1.nii.gz", ("PTID_date", date(2006, 5, 2), "T1")),
        ("scans/002_S_0413_20060502/T1.nii", ("PTID_date", date(2006, 5, 2), "T1")),
        ("flat/002_S_0413_MPRAGE_20060502101530_3.nii.gz", ("dcm2niix", date(2006, 5, 2), "MPRAGE")),
        ("ADNI_002_S_0413_MR_MPRAGE_20060502101530_I1234.nii.gz", ("IDA", date(2006, 5, 2), "MPRAGE")),
        ("ADNI_002_S_0413_MR_MPRAGE_Br_20060502101530123_S5_I1234.nii.gz", ("IDA", None, "MPRAGE")),
    ],
)
def test_every_layout_gives_participant_date_and_description(
    file: str, expected: tuple[object, ...], tmp_path: Path
) -> None:
    assert found(put(tmp_path, file)) == [expected]


@pytest.mark.parametrize(
    "file",
    [
        "derivatives/fmriprep/sub-ADNI002S0413/ses-20060502/anat/sub-ADNI002S0413_desc-preproc_T1w.nii.gz",
        "bids/derivatives/synthstrip/sub-ADNI002S0413/ses-20060502/anat/sub-ADNI002S0413_ses-20060502_T1w.nii.gz",
        "sub-ADNI002S0413/ses-20060502/anat/sub-ADNI002S0413_ses-20060502_FLAIR.nii.gz",
        "sub-01/ses-20060502/anat/sub-01_ses-20060502_T1w.nii.gz",
        "002_S_0413_2006-05-02/002_S_0413_2006-05-02_T1_brainmask.nii.gz",
        "mri/wp1ADNI_002_S_0413_MR_MPRAGE_20060502101530_I1234.nii.gz",
        "scan.nii.gz",
    ],
)
def test_other_images_are_reported_as_unused(file: str, tmp_path: Path) -> None:
    raw = put(tmp_path, file)
    assert found(raw) == []
    faults = FaultCollector()
    unused = check_images(raw, AdniOptions(), faults).unused
    assert not faults.faults
    assert list(unused) == [
        f"1 images (e.g. {file.replace('002S0413', 'SSS_S_RRRR').replace('002_S_0413', 'SSS_S_RRRR')})"
    ]


def test_accelerated_scans_of_bids_rank_after_full_ones(tmp_path: Path) -> None:
    folder = "sub-ADNI002S0413/ses-20060502/anat/sub-ADNI002S0413_ses-20060502"
    put(tmp_path, f"{folder}_acq-accel_run-01_T1w.nii.gz")
    scans = find_scans(put(tmp_path, f"{folder}_run-02_T1w.nii.gz"), FaultCollector())
    assert "run-02" in scans.sort("rank")["file"][0]


def test_a_sidecar_gives_what_the_name_lacks(tmp_path: Path) -> None:
    told = {"PatientID": "002_S_0413", "AcquisitionDateTime": "2006-05-02T10:15:30.5", "SeriesDescription": "MP-RAGE"}
    assert found(put(tmp_path, "MPRAGE_20060502101530.nii.gz", sidecar=told)) == [
        ("sidecar", date(2006, 5, 2), "MP-RAGE")
    ]
    assert found(put(tmp_path / "b", "anat_1.nii", sidecar={"SeriesDescription": "MP-RAGE"})) == []
    faults = FaultCollector()
    assert (
        find_scans(put(tmp_path / "c", BIDS.format("ses-M00"), sidecar='{"PatientID": "00'), faults)["date"][0] is None
    )
    assert [f.expected for f in faults.faults] == ["JSON"]
    assert "0413" not in faults.faults[0].file


@pytest.mark.parametrize(
    ("session", "day"),
    [("ses-M00", (2006, 5, 2)), ("ses-bl", (2006, 5, 2)), ("ses-m006", (2006, 11, 13)), ("ses-M012", (2007, 5, 2))],
)
def test_a_session_without_a_date_takes_that_of_the_visit(session: str, day: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "ADNIMERGE.csv").write_text(VISITS)
    assert found(put(tmp_path, BIDS.format(session))) == [("BIDS", date(*day), "")]


def test_tables_of_bids_precede_the_name_of_the_session(tmp_path: Path) -> None:
    first, second = BIDS.format("ses-M00"), BIDS.format("ses-M06")
    raw = put(tmp_path, f"b/{first}", f"b/{second}")
    (tmp_path / "ADNIMERGE.csv").write_text(VISITS)
    times = "session_id\tacq_time\nses-M00\t2006-05-20T09:00:00\nses-M06\t2006-11-20\n"
    (raw / "b/sub-ADNI002S0413/sub-ADNI002S0413_sessions.tsv").write_text(times)
    scans = f"filename\tacq_time\nanat/{Path(second).name}\t2006-11-21T10:00:00\n"
    (raw / "b/sub-ADNI002S0413/ses-M06/sub-ADNI002S0413_ses-M06_scans.tsv").write_text(scans)
    assert [row[1] for row in found(raw)] == [date(2006, 5, 20), date(2006, 11, 21)]
    check = check_images(raw, AdniOptions(), FaultCollector())
    assert sum(p.suffix == ".tsv" for p in check.groups["tables and sidecars of scans"]) == 2
    assert "0413" not in " ".join([*check.groups, *check.notes, *check.unused])
    assert any(n.startswith("images: raw T1 scans by layout: BIDS 2") for n in check.notes)
    (raw / "b/sub-ADNI002S0413/sub-ADNI002S0413_sessions.tsv").write_text("acq_time\n2006-05-20\n")
    (raw / "b/sub-ADNI002S0413/ses-M06/sub-ADNI002S0413_ses-M06_scans.tsv").write_bytes(b"filename\tacq_time\n\xe9\t\n")
    faults = FaultCollector()
    find_scans(raw, faults)
    assert sorted((f.column or "", f.expected) for f in faults.faults) == [
        ("", "text in UTF-8"),
        ("session_id", "this column, and tabs between columns"),
    ]


def test_participants_tsv_names_participants_and_must_agree(tmp_path: Path) -> None:
    raw = put(tmp_path, "sub-01/ses-20060502/anat/sub-01_ses-20060502_T1w.nii.gz")
    table = raw / "participants.tsv"
    table.write_text("participant_id\talternative_id_1\tdiagnosis\nsub-01\t002_S_0413\tAD\n")
    assert found(raw) == [("BIDS", date(2006, 5, 2), "")]
    put(raw, BIDS.format("ses-20060502"))
    table.write_text("participant_id\talternative_id_1\nsub-ADNI002S0413\t003_S_0001\n")
    faults = FaultCollector()
    check_images(raw, AdniOptions(), faults)
    assert [f.column for f in faults.faults] == ["alternative_id_1"]


def test_of_two_scans_of_a_session_the_better_series_or_the_first_is_used(tmp_path: Path) -> None:
    run = BIDS.format("ses-20060502").replace("_T1w", "_run-{}_T1w")
    raw = put(tmp_path, run.format(1), sidecar={"SeriesDescription": "MP-RAGE REPEAT"})
    put(raw, run.format(2), sidecar={"SeriesDescription": "MP-RAGE"})
    samples = pl.DataFrame({"sample_id": ["002_S_0413"], "subject_id": ["002_S_0413"]})
    assert plan_images(raw, samples, AdniOptions()).raw_scans["file"].to_list() == [run.format(2), run.format(1)]
    check = check_images(raw, AdniOptions(), FaultCollector())
    assert "on 1 days, participants have several" in " ".join(check.notes)
    for path in raw.rglob("*.json"):
        path.unlink()
    assert plan_images(raw, samples, AdniOptions()).raw_scans["file"].to_list() == [run.format(1), run.format(2)]


def test_a_review_names_scans_of_one_name_by_their_paths(tmp_path: Path) -> None:
    folders = ("002_S_0413_2006-05-02", "002_S_0413_2007-05-02")
    raw = put(tmp_path, *(f"{folder}/T1.nii" for folder in folders))
    review = raw / "image_review.csv"
    review.write_text(f"image_id,decision\n{folders[0]}/T1.nii,drop\n")
    samples = pl.DataFrame({"sample_id": ["002_S_0413"], "subject_id": ["002_S_0413"]})
    assert plan_images(raw, samples, AdniOptions()).raw_scans["decision"].to_list() == ["drop", None]
    review.write_text("image_id,decision\nT1.nii,drop\n")
    faults = FaultCollector()
    check_images(raw, AdniOptions(), faults)
    assert [f.expected for f in faults.faults] == ["an image of the export"]


def test_sessions_of_unknown_participants_are_counted(tmp_path: Path) -> None:
    raw = put(tmp_path, BIDS.format("ses-20060502"), BIDS.format("ses-20060502").replace("002S0413", "003S0001"))
    check = check_images(raw, AdniOptions(), FaultCollector())
    samples = pl.DataFrame({"sample_id": ["002_S_0413"], "subject_id": ["002_S_0413"]})
    assert check.observed(samples).to_list() == ["002_S_0413"]
    assert "images: 1 of 2 participants with images have no sample" in check.notes


def mean_map(scan: Path, shown_as: str, templates: Path, settings: object, picture: Path, **_: object) -> ChainResult:
    """Stub of the imaging chain: a map that is constant, but for a voxel, at the mean of the scan."""
    try:
        mean = float(np.asarray(nib.load(scan).dataobj).mean())
    except Exception as error:
        raise ScanFailedError("expected a complete NIfTI image") from error
    gm = np.full(GRID.mask.shape, mean, dtype=np.float32)
    gm[tuple(np.argwhere(GRID.mask)[0])] = 0
    Image.new("RGB", (60, 44)).save(picture)
    return ChainResult(gm=gm, numbers=dict.fromkeys(NUMBERS, 1.0), seconds={"all": 1.0}, peak_mb=1.0, notes=())


def test_bids_and_ida_give_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template(t1=GRID.mask.astype(np.float32), grid=GRID)
    monkeypatch.setattr(image_raw, "process_scan", mean_map)
    monkeypatch.setattr(image_raw, "require_imaging", lambda: None)
    for module in (image_raw, image_join):
        monkeypatch.setattr(module, "open_template", lambda raw, options, maps: template)
    people = subjects(40)
    plans = {}
    for layout in ("ida", "bids"):
        settings = Simulation(image_raw=40, image_max_scans=2, image_t1_mm=16.0, image_layout=layout)
        simulate_images(tmp_path / layout, people, settings)
        plans[layout] = plan_images(tmp_path / layout, cohort(people), AdniOptions()).raw_scans
        build(toy_dataset(people), tmp_path / layout, tmp_path / f"{layout}.store", {})
    columns = ["sample_id", "attempt", "date", "rank"]
    assert plans["bids"].select(columns).equals(plans["ida"].select(columns))
    assert tables(tmp_path / "ida.store") == tables(tmp_path / "bids.store")


# --- maps ---------------------------------------------------------------------------------------------------------


def nested(tmp_path: Path, name: str, scale: float) -> tuple[Path, Path]:
    """An export of RAVENS maps in one folder, and the same maps under other names, with its mask."""
    people, raw = subjects(8), tmp_path / "raw"
    simulate_images(raw, people, Simulation(image_maps_as="nifti", image_max_scans=2, image_failed=0))
    (raw / "image" / "maps.csv").unlink()
    other = tmp_path / "other"
    for path in sorted((raw / "image").iterdir()):
        if "RAVENS" not in path.name:
            (other / "maps").mkdir(parents=True)
            shutil.copy(path, other / "maps" / path.name)
    for path in sorted((raw / "image").glob("*RAVENS*")):
        ptid, day = path.name[:10], path.name[11:21]
        target = (
            other / "maps" / name.format(ptid=ptid, day=day, plain=ptid.replace("_", ""), compact=day.replace("-", ""))
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        image = nib.load(path)
        write_nifti(target, np.asarray(image.dataobj) * np.float32(scale), image.affine)
    return raw, other


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("{ptid}_{day}/{ptid}_{day}_T1_LPS_N4_RAVENS_150.nii.gz", 1),
        ("mri/mwp1ADNI_{ptid}_MR_MPRAGE_{compact}101530_I1{compact}.nii", 0.001),
        ("sub-ADNI{plain}/ses-{compact}/anat/mri/mwp1sub-ADNI{plain}_ses-{compact}_T1w.nii", 0.001),
        ("{ptid}_{day}/mri/mwp1{ptid}_{day}_T1.nii", 0.001),
    ],
)
def test_maps_under_other_names_give_the_same_vectors(name: str, scale: float, tmp_path: Path) -> None:
    raw, other = nested(tmp_path, name, scale)
    faults = FaultCollector()
    a, b = (open_maps(folder, AdniOptions(), faults) for folder in (raw, other))
    assert a is not None
    assert b is not None, [str(f) for f in faults.faults]
    keys = ["ptid", "date"]
    first, second = (m.scans.sort(keys) for m in (a, b))
    assert first.select(keys).equals(second.select(keys))
    assert first["date"].null_count() == 0
    for one, two in zip(first.iter_rows(named=True), second.iter_rows(named=True), strict=True):
        np.testing.assert_allclose(a.load(one["file"]), b.load(two["file"]), rtol=1e-5)
    assert len(find_scans(other, faults)) == 0
    check = check_images(other, AdniOptions(), faults)
    assert not check.unused
    assert [len(files) for label, files in check.groups.items() if label.endswith("/*.nii.gz")] == [len(b.scans)]


def test_maps_of_cat12_without_a_mask_are_an_error(tmp_path: Path) -> None:
    path = put(tmp_path, "mri/mwp1ADNI_002_S_0413_MR_MPRAGE_20060502101530_I1.nii") / "mri"
    write_nifti(next(path.iterdir()), GRID.mask.astype(np.float32), GRID.affine)
    faults = FaultCollector()
    check_images(tmp_path, AdniOptions(), faults)
    assert [f.file for f in faults.faults] == ["image mask"]


def test_an_unsorted_folder_uses_every_layout_and_names_the_rest(tmp_path: Path) -> None:
    raw = put(
        tmp_path,
        "disk1/ADNI/002_S_0413/MP-RAGE/2006-05-02_10_15_30.0/I99/scan.nii",
        f"disk2/bids/{BIDS.format('ses-20061113')}",
        "old/002_S_0413_2007-05-02/T1.nii.gz",
        "old/flat/002_S_0413_MPRAGE_20080502101530_3.nii.gz",
        "old/caps/subjects/sub-ADNI002S0413/ses-M00/t1_linear/sub-ADNI002S0413_ses-M00_space-MNI_T1w.nii.gz",
        "stray.nii",
    )
    assert sorted(row[:2] for row in found(raw)) == [
        ("BIDS", date(2006, 11, 13)),
        ("PTID_date", date(2007, 5, 2)),
        ("dcm2niix", date(2008, 5, 2)),
        ("folders of IDA", date(2006, 5, 2)),
    ]
    check = check_images(raw, AdniOptions(), FaultCollector())
    assert sorted(check.unused.values()) == [
        "derived from scans; list grey-matter maps in maps.csv",
        "no T1 scan by its name or path, or the path has no PTID (docs/raw-formats.md lists the layouts)",
    ]
