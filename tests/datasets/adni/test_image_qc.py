"""Failed scans and genotypes are counted; quality-control tables and pictures do not disclose participants."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import mrpipe
from mrpipe.cli.main import main
from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.genomic.plink import MAGIC, calls, open_set
from mrpipe.datasets.adni.genomic.reader import DISCORDANT, TOO_FEW_CALLS
from mrpipe.datasets.adni.image.qc import qc_table, write_image_qc
from mrpipe.datasets.adni.image.raw import NUMBERS, SCAN_SCHEMA
from mrpipe.genetics.packing import bed_rows
from mrpipe.imaging.qc import CAPTION, PANEL, SHEET_ROW
from mrpipe.keyed import generator
from mrpipe.schema import TRIED_SCHEMA
from mrpipe.stages.build import build
from mrpipe.stages.samples import losses
from mrpipe.stages.simulate import simulate
from mrpipe.store.layout import qc_folder, truth_folder


def attempts(*rows: tuple[str, str | None]) -> pl.DataFrame:
    """Attempts in order, given as sample and reason of failure (None if successful)."""
    seen: dict[str, int] = {}
    data = []
    for sample, reason in rows:
        seen[sample] = seen.get(sample, -1) + 1
        data.append((sample, seen[sample], "failed" if reason else "ok", reason))
    return pl.DataFrame(data, schema=TRIED_SCHEMA, orient="row")


def test_a_sample_is_lost_only_if_all_attempts_fail_and_is_counted_once() -> None:
    frame = attempts(("a", "x"), ("a", None), ("b", "x"), ("b", "y"), ("c", "y"), ("d", None), ("e", "y"))
    found = losses("image", frame)
    assert found.drop("step").rows() == [
        ("samples with image in the export", 5, 5, "image"),
        ("y", 5, 3, "image"),
        ("x", 3, 2, "image"),
    ]
    assert found["step"].to_list() == [0, 1, 2]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("qc") / "raw"
    simulate(DATASET, out, {**DATASET.tiny, "image_failed": 0.0, "image_max_scans": 1, "n_subjects": 120})
    return out


def copied(raw: Path, to: Path) -> Path:
    shutil.copytree(truth_folder(raw), truth_folder(to))
    return Path(shutil.copytree(raw, to))


def test_a_failed_scan_is_counted_and_does_not_stop_the_build(raw: Path, tmp_path: Path) -> None:
    build(DATASET, raw, tmp_path / "before", {})
    before = mrpipe.open_store(tmp_path / "before")
    broken = copied(raw, tmp_path / "raw")
    lines = (broken / "image" / "ADNI_subj.txt").read_text().split()
    array = np.load(broken / "image" / "ADNI_G.npy")
    imaged = before.samples("image").collect()["sample_id"].to_list()
    zero, nan = imaged[:3], imaged[3]
    for row, line in enumerate(lines):
        ptid = "_".join(line.split("_")[:3])
        array[row] = 0.0 if ptid in zero else array[row]
        array[row, 0] = np.nan if ptid == nan else array[row, 0]
    np.save(broken / "image" / "ADNI_G.npy", array)
    build(DATASET, broken, tmp_path / "after", {})
    after = mrpipe.open_store(tmp_path / "after")
    after.verify(deep=True)
    assert after.manifest.n_samples == before.manifest.n_samples
    assert set(imaged) - set(after.samples("image").collect()["sample_id"]) == {*zero, nan}
    rest = [s.samples().select(pl.exclude("modality_mask", "row_image")).collect() for s in (before, after)]
    assert rest[0].equals(rest[1])
    # Attrition of the cohort is unchanged; losses are counted per modality and reason.
    assert after.attrition.equals(before.attrition)
    found = after.losses.filter(modality="image")
    n = len(imaged)
    assert found.select("reason", "n_before", "n_after").rows() == [
        ("samples with image in the export", n, n),
        ("all voxels are 0, as after a failure of the pipeline that made the maps", n, n - 3),
        ("missing values in the brain mask", n - 3, n - 4),
    ]
    assert before.losses.filter(modality="image")["n_after"].to_list() == [len(imaged)]
    text = "".join((tmp_path / "after" / name).read_text() for name in ("manifest.json", "README.md"))
    assert "- image: excluded: all voxels are 0, as after a failure of the pipeline that made the maps, n = 3;" in text
    assert not any(ptid in text for ptid in imaged)
    table = pl.read_parquet(qc_folder(tmp_path / "after") / "qc.parquet")
    assert table["status"].value_counts().sort("status")["count"].to_list() == [4, len(imaged) - 4]


def test_verify_detects_edited_loss_counts(raw: Path, tmp_path: Path, capsys) -> None:
    build(DATASET, raw, tmp_path / "store", {}, modalities=["image", "clinical"])
    path = tmp_path / "store" / "attrition.parquet"
    frame = pl.read_parquet(path)
    changed = pl.when(pl.col("modality") == "image").then(pl.col("n_after") - 1).otherwise(pl.col("n_after"))
    frame.with_columns(changed.alias("n_after")).write_parquet(path)
    from mrpipe.store.invariants import find_breaches

    assert ["rows of image" in f.expected for f in find_breaches(tmp_path / "store")] == [True]


def test_participants_excluded_from_genotypes_are_counted(raw: Path, tmp_path: Path) -> None:
    build(DATASET, raw, tmp_path / "before", {}, modalities=["genomic", "clinical"])
    before = mrpipe.open_store(tmp_path / "before")
    held = before.samples("genomic").collect()["sample_id"].to_list()
    broken = copied(raw, tmp_path / "raw")
    beds = sorted((broken / "genetics").glob("*.bed"))
    fams = {bed: open_set(bed).fam["iid"].to_list() for bed in beds}
    everyone = [i for iids in fams.values() for i in iids]
    twice = next(i for i in everyone if everyone.count(i) == 2 and i in held)
    bad = next(i for i in held if i != twice)
    rng = generator(0, "other person")
    done = False
    for bed in beds:
        matrix = calls(open_set(bed))
        for i, iid in enumerate(fams[bed]):
            if iid == bad:
                matrix[i, rng.random(matrix.shape[1]) < 0.5] = 3
            if iid == twice and not done:
                matrix[i], done = rng.permutation(matrix[i]), True
        bed.write_bytes(MAGIC + bed_rows(matrix).tobytes())
    build(DATASET, broken, tmp_path / "after", {}, modalities=["genomic", "clinical"])
    after = mrpipe.open_store(tmp_path / "after")
    assert set(held) - set(after.samples("genomic").collect()["sample_id"]) == {twice, bad}
    reasons = after.losses.filter(pl.col("step") > 0).select("modality", "reason").rows()
    assert sorted(reasons) == sorted(("genomic", r) for r in (TOO_FEW_CALLS, DISCORDANT))


# --- quality control


def scans(n: int) -> pl.DataFrame:
    rows = []
    for i in range(n):
        numbers = dict.fromkeys(NUMBERS, 700.0 + i % 3)
        scan = {"sample_id": f"{i:03d}_S_{i:04d}", "image_id": f"{i + 9000}", "picture": f"0-of-1/{i}.png"}
        known = {"attempt": 0, "source": "raw", "status": "ok", "seconds": 60.0}
        rows.append(dict.fromkeys(SCAN_SCHEMA) | scan | known | numbers)
    return pl.DataFrame(rows, schema=SCAN_SCHEMA)


def test_outliers_are_flagged_per_source_and_shown_first(tmp_path: Path) -> None:
    frame = scans(12).with_row_index()
    frame = frame.with_columns(
        pl.when(pl.col("index") == 7).then(pl.lit(300.0)).otherwise(pl.col("gm_ml")).alias("gm_ml"),
        pl.when(pl.col("index") == 4).then(pl.lit("failed")).otherwise(pl.col("status")).alias("status"),
        pl.when(pl.col("index") == 4).then(pl.lit("brain and template overlap by less than 0.8")).alias("reason"),
    ).drop("index")
    maps = scans(9).with_columns(source=pl.lit("map"), picture=None, gm_ml=None, map_ml=pl.lit(10.0))
    frame = pl.concat([frame, maps.with_columns(pl.lit("x").alias("sample_id")).cast(SCAN_SCHEMA)])
    table = qc_table(frame)
    assert table["scan"].to_list() == list(range(21))
    assert table.filter(pl.col("outlier") != "").select("scan", "outlier").rows() == [(7, "gm_ml")]
    folder = tmp_path / "parts" / "0-of-1"
    folder.mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (3 * PANEL, 3 * PANEL + CAPTION), (20 * i, 0, 0)).save(folder / f"{i}.png")
    write_image_qc(frame, folder.parent, tmp_path)
    written = pl.read_parquet(tmp_path / "qc.parquet")
    assert written.equals(table)
    assert not {"sample_id", "image_id", "date", "description", "detail", "picture"} & set(written.columns)
    assert not any("_S_" in str(v) or "900" in str(v) for row in written.select(pl.col(pl.String)).rows() for v in row)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert [sheet.getpixel((3 * PANEL // 2 * k + 20, SHEET_ROW - 15)) for k in range(3)] == [
            (80, 0, 0),
            (140, 0, 0),
            (0, 0, 0),
        ]


def test_contact_sheet_without_pictures(tmp_path: Path) -> None:
    write_image_qc(scans(3).with_columns(source=pl.lit("map"), picture=None).cast(SCAN_SCHEMA), tmp_path, tmp_path)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert np.asarray(sheet).max() > 200


def test_qc_command_needs_an_ingested_modality_with_quality_control(tmp_path: Path, capsys) -> None:
    where = ["--work", str(tmp_path), "--out", str(tmp_path / "qc")]
    assert main(["qc", "adni", "clinical", *where]) == 2
    assert "no quality control for 'clinical'; available for image" in capsys.readouterr().err
    assert main(["qc", "adni", "image", *where]) == 2
    assert "mrpipe ingest adni image" in capsys.readouterr().err
