"""Raw T1 scans of ADNI: file names, folder layout, search tables, and ranking of series."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from mrpipe.datasets.adni.image import plan as image_plan
from mrpipe.datasets.adni.image.plan import check_images
from mrpipe.datasets.adni.image.scans import find_scans, t1_rank
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import FaultCollector


@pytest.fixture(autouse=True)
def imaging_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_plan, "require_imaging", lambda: None)


@pytest.mark.parametrize(
    ("name", "description"),
    [
        (
            "ADNI_002_S_0413_MR_MPR__GradWarp__B1_Correction__N3__Scaled_Br_20070319121214158_S13893_I45117.nii",
            "MPR__GradWarp__B1_Correction__N3__Scaled",
        ),
        ("ADNI_002_S_0413_MR_MP-RAGE_br_raw_20060502101530123_1_S13893_I45117.nii.gz", "MP-RAGE"),
        ("ADNI_002_S_0413_MR_MP-RAGE__br_raw_20060502101530123_1_S13893_I45117.nii", "MP-RAGE"),
        ("ADNI_002_S_0413_MR_Accelerated_Sagittal_MPRAGE_S13893_I45117.nii", "Accelerated_Sagittal_MPRAGE"),
        ("adni_002_s_0413_mr_MT1__N3m_Br_20110101000000_S1_I45117.NII", "MT1__N3m"),
    ],
)
def test_every_file_name_variant_is_recognised(name: str, description: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    scans = find_scans(tmp_path, FaultCollector())
    assert scans.select("ptid", "rid", "image_id", "description").row(0) == ("002_S_0413", 413, "45117", description)


def test_other_file_names_are_accepted_only_in_the_folder_layout_of_ida(tmp_path: Path) -> None:
    inside = tmp_path / "ADNI/941_S_10013/MP-RAGE/2022-05-02_10_15_30.0/I99"
    inside.mkdir(parents=True)
    (inside / "scan.nii").write_bytes(b"")
    (tmp_path / "ADNI/941_S_10013/notes.nii").write_bytes(b"")
    pet = "ADNI_941_S_10013_PT_AV45_Br_20220502101530123_S1_I77.nii"
    (tmp_path / pet).write_bytes(b"")
    scans = find_scans(tmp_path, FaultCollector())
    assert scans.select("rid", "date", "image_id", "description").rows() == [(10013, date(2022, 5, 2), "99", "MP-RAGE")]


def test_t1_series_are_ranked_and_others_ignored() -> None:
    ordered = [
        "MPR; GradWarp; B1 Correction; N3; Scaled",
        "MPR-R; GradWarp; B1 Correction; N3; Scaled",
        "MPR; GradWarp; B1 Correction; N3; Scaled_2",
        "MPR; GradWarp; B1 Correction; N3m",
        "MP-RAGE",
        "MP-RAGE REPEAT",
        "Accelerated Sagittal MPRAGE",
        "Accelerated_Sagittal_MPRAGE_Repeat",
    ]
    ranks = [t1_rank(d) for d in ordered]
    assert None not in ranks
    assert ranks == sorted(set(ranks))
    assert t1_rank("IR-SPGR") == t1_rank("IR-FSPGR") == t1_rank("MP-RAGE")
    others = ("3 Plane Localizer", "Axial T2-FSE", "Sagittal 3D FLAIR", "MPR____N3__Hippocampal_Mask", "B1-Calibration")
    for other in (*others, "Axial DTI", "Field Mapping", ""):
        assert t1_rank(other) is None, other


SEARCH = (
    ",".join(
        f'"{c}"'
        for c in (
            "Image Data ID",
            "Subject",
            "Group",
            "Sex",
            "Age",
            "Visit",
            "Modality",
            "Description",
            "Type",
            "Acq Date",
            "Format",
            "Downloaded",
        )
    )
    + "\n"
)


def test_search_table_overrides_the_path(tmp_path: Path) -> None:
    for image, words in ((1, "MPRAGE"), (2, "MPRAGE"), (3, "Unclear")):
        (tmp_path / f"ADNI_002_S_0413_MR_{words}_S1_I{image}.nii").write_bytes(b"")
    rows = [
        '"I1","002_S_0413","AD","F","74","sc","MRI","MP-RAGE","Original","5/2/2006","NiFTI",""',
        '"2","002_S_0413","AD","F","74","sc","PET","MPRAGE","Original","5/2/2006","NiFTI",""',
        '"D3","002_S_0413","AD","F","74","sc","MRI","MPR; N3; Scaled","Processed","11/3/2006","NiFTI","5/9/2024"',
        '"4","002_S_0413","AD","F","74","sc","MRI","MP-RAGE","Original","5/2/2006","NiFTI",""',
    ]
    (tmp_path / "search.csv").write_text(SEARCH + "\n".join(rows) + "\n")
    (tmp_path / "DXSUM_01Jan2024.csv").write_text('"PTID","DIAGNOSIS"\n"002_S_0413","3"\n')
    scans = find_scans(tmp_path, FaultCollector())
    assert scans.select("image_id", "date", "rank").rows() == [
        ("1", date(2006, 5, 2), t1_rank("MP-RAGE")),
        ("3", date(2006, 11, 3), 0),
    ]
    assert "Group" not in scans.columns


def test_image_tables_of_2025_are_search_tables(tmp_path: Path) -> None:
    (tmp_path / "ADNI_002_S_0413_MR_X_S1_I7.nii").write_bytes(b"")
    (tmp_path / "All_Images_09May2025.csv").write_text(
        "image_id,subject_id,phase,modality,image_date,image_description\n7,002_S_0413,ADNI1,MRI,2006-05-02,MP-RAGE\n"
    )
    assert find_scans(tmp_path, FaultCollector()).select("image_id", "date").row(0) == ("7", date(2006, 5, 2))


def test_days_first_are_recognised_for_each_search_table(tmp_path: Path) -> None:
    for image in range(1, 5):
        (tmp_path / f"ADNI_002_S_0413_MR_MPRAGE_S1_I{image}.nii").write_bytes(b"")
    for name, dates in (("a", ("05/02/2006", "25/03/2006")), ("b", ("05/02/2006", "03/25/2006"))):
        rows = "".join(f"{i},002_S_0413,{d},MPRAGE\n" for i, d in enumerate(dates, start=1 + 2 * (name == "b")))
        (tmp_path / f"{name}.csv").write_text(f"Image Data ID,Subject,Acq Date,Description\n{rows}")
    found = find_scans(tmp_path, FaultCollector())["date"].to_list()
    assert found == [date(2006, 2, 5), date(2006, 3, 25), date(2006, 5, 2), date(2006, 3, 25)]


def test_an_image_in_the_folder_of_another_participant_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ADNI_002_S_0413_MR_MPRAGE_S1_I7.nii").write_bytes(b"")
    (tmp_path / "search.csv").write_text(SEARCH + '"7","003_S_0001","","","","","MRI","MPRAGE","","5/2/2006","",""\n')
    faults = FaultCollector()
    check_images(tmp_path, AdniOptions(), faults)
    assert [f.column for f in faults.faults] == ["Subject"]


def test_image_ids_match_in_every_writing_and_encoding(tmp_path: Path) -> None:
    for image in ("007", "8"):
        (tmp_path / f"ADNI_002_S_0413_MR_X_S1_I{image}.nii").write_bytes(b"")
    rows = ("i0007,002_s_0413,5/2/2006,MP-RAGE", "I0008,002_S_0413,5/3/2006,MPRAGE")
    text = "\n".join(("Image Data ID,Subject,Acq Date,Description", *rows, ""))
    (tmp_path / "search.csv").write_bytes(text.encode("utf-16"))
    faults = FaultCollector()
    scans = find_scans(tmp_path, faults)
    assert not faults.faults
    assert scans.select("image_id", "date").rows() == [("7", date(2006, 5, 2)), ("8", date(2006, 5, 3))]
    # A table with another separator is not overlooked.
    (tmp_path / "search.csv").write_text(text.replace(",", ";"))
    assert find_scans(tmp_path, faults).equals(scans)


def test_an_image_of_two_participants_is_an_error(tmp_path: Path) -> None:
    for ptid in ("002_S_0413", "003_S_0001"):
        (tmp_path / f"ADNI_{ptid}_MR_MPRAGE_S1_I7.nii").write_bytes(b"")
    faults = FaultCollector()
    find_scans(tmp_path, faults)
    assert [f.expected for f in faults.faults] == ["each image in the folder of one participant"]
