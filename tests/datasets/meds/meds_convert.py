"""Convert an export of MIMIC-IV to MEDS with polars; the codes are named as by MIMIC_IV_MEDS."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

STAMP = "%Y-%m-%d %H:%M:%S"


def table(raw: Path, name: str) -> pl.DataFrame:
    """A table as text, with blanks as nulls."""
    return pl.read_csv(raw / f"{name}.csv.gz", infer_schema=False)


def stamp(column: str) -> pl.Expr:
    return pl.col(column).str.to_datetime(STAMP, time_unit="us")


def _events(frame: pl.DataFrame, time: pl.Expr, *code: str | pl.Expr, value: str | None = None) -> pl.DataFrame:
    number = pl.lit(None) if value is None else pl.col(value)
    parts = [pl.lit(c) if isinstance(c, str) else c.fill_null("UNK") for c in code]
    return frame.select(
        pl.col("subject_id").cast(pl.Int64),
        time.cast(pl.Datetime("us")).alias("time"),
        pl.concat_str(parts, separator="//").alias("code"),
        number.cast(pl.Float32).alias("numeric_value"),
    )


def convert(raw: Path, out: Path, n_shards: int = 3) -> Path:
    """Write `out/data/*.parquet` and `out/metadata`; deaths are at midnight, procedures at the discharge, as codes."""
    patients, visits = table(raw, "hosp/patients"), table(raw, "hosp/admissions")
    born = pl.datetime(pl.col("anchor_year").cast(pl.Int32) - pl.col("anchor_age").cast(pl.Int32), 1, 1)
    died = patients.drop_nulls("dod")
    frames = [
        _events(patients, pl.lit(None), "GENDER", pl.col("gender")),
        _events(patients, born, "MEDS_BIRTH"),
        _events(died, pl.col("dod").str.to_datetime("%Y-%m-%d"), "MEDS_DEATH"),
        _events(visits, stamp("admittime"), "HOSPITAL_ADMISSION", pl.col("admission_type")),
        _events(visits, stamp("dischtime"), "HOSPITAL_DISCHARGE", pl.col("discharge_location")),
    ]
    for kind, name in (("DIAGNOSIS", "diagnoses"), ("PROCEDURE", "procedures")):
        codes = table(raw, f"hosp/{name}_icd").join(visits.select("hadm_id", "dischtime"), on="hadm_id")
        code = pl.col("icd_code").str.strip_chars()
        frames.append(_events(codes, stamp("dischtime"), kind, "ICD", pl.col("icd_version"), code))
    for name in ("hosp/labevents", "icu/chartevents"):
        item = ("LAB", pl.col("itemid"), pl.col("valueuom"))
        frames.append(_events(table(raw, name), stamp("charttime"), *item, value="valuenum"))
    events = pl.concat(frames).sort("subject_id", "time", "code", "numeric_value", nulls_last=False)
    subjects = events["subject_id"].unique().sort()
    (out / "data").mkdir(parents=True)
    (out / "metadata").mkdir()
    for k in range(n_shards):
        chosen = subjects.gather_every(n_shards, k)
        events.filter(pl.col("subject_id").is_in(chosen.implode())).write_parquet(out / "data" / f"{k}.parquet")
    labels = table(raw, "hosp/d_labitems").select("itemid", pl.col("label").alias("description"))
    codes = (
        events.select("code")
        .unique()
        .with_columns(pl.col("code").str.split("//").list.get(1, null_on_oob=True).alias("itemid"))
    )
    codes = codes.join(labels, on="itemid", how="left").drop("itemid").sort("code")
    codes.with_columns(pl.lit(None, pl.List(pl.String)).alias("parent_codes")).write_parquet(
        out / "metadata" / "codes.parquet"
    )
    split = pl.Series("split", ["train", "train", "train", "tuning", "held_out"])
    pl.DataFrame({"subject_id": subjects, "split": split.gather([i % 5 for i in range(len(subjects))])}).write_parquet(
        out / "metadata" / "subject_splits.parquet"
    )
    (out / "metadata" / "dataset.json").write_text(
        json.dumps({"dataset_name": "MIMIC-IV demo", "dataset_version": "2.2"})
    )
    return out
