"""Modality code: ICD diagnoses and procedures of each visit, kept as strings with leading zeros.

Each step is one code: x = [index of the code in the levels of the dictionary, number of the visit], with the time in
days since the first admission. Within a visit, diagnoses precede procedures, both ordered by seq_num.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from mrpipe.datasets.mimic.cohort import visits_of
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan.progress import log
from mrpipe.datasets.mimic.tables import open_optional
from mrpipe.errors import DataError, Fault
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality
from mrpipe.transforms.events import levels_id

DESCRIPTION = "diagnoses and procedures of each visit, one step a code: [position in levels, visit number], days"
KINDS = {"hosp/diagnoses_icd": "DX", "hosp/procedures_icd": "PR"}
TITLES = {"hosp/d_icd_diagnoses": "DX", "hosp/d_icd_procedures": "PR"}
DAY_MS = 86_400_000


def category(code: pl.Expr, kind: pl.Expr, version: pl.Expr) -> pl.Expr:
    """Category of a code: the first three characters, except four for ICD-9 E codes and two for ICD-9 procedures."""
    length = (
        pl.when((version == 9) & (kind == "PR"))
        .then(2)
        .when((version == 9) & code.str.starts_with("E"))
        .then(4)
        .otherwise(3)
    )
    return code.str.slice(0, length)


def sequence_array(values: np.ndarray, lengths: np.ndarray, width: int) -> pa.Array:
    """Steps (S, width) float32 of samples with `lengths` steps each, as an Arrow list of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1), type=pa.float32())
    steps = pa.FixedSizeListArray.from_arrays(flat, width)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, steps)


def time_array(time: np.ndarray, lengths: np.ndarray) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(time.astype(np.float32)))


def sequence_batch(
    modality: Modality, ids: list[str], values: np.ndarray, time: np.ndarray, lengths: np.ndarray
) -> pa.RecordBatch:
    """Record batch of an irregular sequence."""
    arrays = [
        pa.array(ids, type=pa.string()),
        sequence_array(values, lengths, modality.size),
        pa.array(lengths.astype(np.int32)),
        time_array(time, lengths),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=modality.arrow_schema())


def _titles(raw: Path) -> pl.DataFrame:
    empty = pl.DataFrame(
        schema={"kind": pl.String, "icd_version": pl.Int8, "icd_code": pl.String, "long_title": pl.String}
    )
    found = [
        t.select(pl.lit(kind).alias("kind"), "icd_version", "icd_code", "long_title")
        for table, kind in TITLES.items()
        if (t := open_optional(raw, table)) is not None
    ]
    return pl.concat([empty, *found]).unique(["kind", "icd_version", "icd_code"], keep="first", maintain_order=True)


def read_codes(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> Features:
    """Code sequences of the cohort, from icd_code, icd_version and seq_num in diagnoses_icd and procedures_icd.

    Raises:
        DataError: no visit of the cohort has a code.
    """
    options.validate()
    kept = visits_of(raw, samples, options)
    first = pl.col("admittime").min().over("rank")
    kept = kept.with_columns(((pl.col("admittime") - first).dt.total_milliseconds() / DAY_MS).alias("days"))
    tables = [
        t.select(pl.lit(kind).alias("kind"), "hadm_id", "seq_num", "icd_version", "icd_code")
        for table, kind in KINDS.items()
        if (t := open_optional(raw, table)) is not None
    ]
    codes = pl.concat(tables).join(kept.select("hadm_id", "rank", "number", "days"), on="hadm_id")
    if options.icd_versions != "both":
        codes = codes.filter(pl.col("icd_version") == int(options.icd_versions))
    if options.rollup == "category":
        rolled = category(pl.col("icd_code"), pl.col("kind"), pl.col("icd_version"))
        codes = codes.with_columns(rolled.alias("icd_code"))
    key = ["rank", "number", "kind", "icd_version", "icd_code"]
    n_all = len(codes)
    # Codes repeated in a visit (duplicates, or two codes of one category) are kept once, at the first position.
    codes = codes.sort("rank", "number", "kind", "seq_num", "icd_version", "icd_code").unique(
        key, keep="first", maintain_order=True
    )
    if codes.is_empty():
        raise DataError(Fault(file="hosp/diagnoses_icd", expected="codes of visits in the cohort", found="none"))
    log(
        f"mimic code: {len(codes):,} codes of {codes['rank'].n_unique():,} patients, "
        f"{codes.filter(icd_version=10).height:,} of them ICD-10; {n_all - len(codes):,} repeats within a visit removed"
    )
    levels = (
        codes.select("kind", "icd_version", "icd_code")
        .unique()
        .sort("kind", "icd_version", "icd_code")
        .with_row_index("position")
        .join(_titles(raw), on=["kind", "icd_version", "icd_code"], how="left", maintain_order="left")
    )
    codes = codes.join(
        levels.drop("long_title"), on=["kind", "icd_version", "icd_code"], how="left", maintain_order="left"
    )
    rank = codes["rank"].to_numpy()
    present, lengths = np.unique(rank, return_counts=True)
    name = pl.format("{}{}:{}", "kind", "icd_version", "icd_code") + pl.format(" {}", "long_title").fill_null("")
    level_names = levels.select(name.alias("name"))["name"].to_list()
    modality = Modality(
        name="code",
        bit=2,
        kind="sequence",
        shape=(2,),
        irregular=True,
        time_unit="days since the first visit",
        encoder=levels_id(level_names),
        description=DESCRIPTION,
    )
    ids = samples["sample_id"].sort().gather(present.astype(np.int64)).to_list()
    values = codes.select(pl.col("position").cast(pl.Float32), pl.col("number").cast(pl.Float32)).to_numpy()
    batch = sequence_batch(modality, ids, values, codes["days"].to_numpy(), lengths)
    counts = {"n_observed": len(present), "n_missing": len(samples) - len(present), "source_file": "hosp/*_icd"}
    dictionary = pl.DataFrame(
        [
            {
                "modality": "code",
                "position": 0,
                "name": "code",
                "dtype": "float32",
                "unit": "",
                "kind": "event",
                "levels": level_names,
                "source_column": "icd_code, icd_version",
                "description": "DX diagnosis or PR procedure, ICD version, code, title where the export has one",
                **counts,
            },
            {
                "modality": "code",
                "position": 1,
                "name": "visit",
                "dtype": "float32",
                "unit": "",
                "kind": "step",
                "levels": None,
                "source_column": "hadm_id",
                "description": "number of the visit, 1 the first",
                **counts,
            },
        ],
        schema=DICTIONARY_SCHEMA,
    )
    return Features(modality=modality, batches=[batch], dictionary=dictionary)
