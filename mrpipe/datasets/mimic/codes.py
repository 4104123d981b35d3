"""Modality code: ICD diagnoses and procedures of each visit, kept as strings with leading zeros.

Each step is one code: x = [index of the code in the levels of the dictionary, number of the visit], with the time in
days since the first admission. Within a visit, diagnoses precede procedures, both ordered by seq_num. Codes are
assigned at discharge, so that a visit that has not ended at the prediction time has none.
"""

import logging
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.datasets.events import event_modality
from mrpipe.datasets.features import dictionary_of, record_batch
from mrpipe.datasets.mimic.cohort import ended, visits_of
from mrpipe.datasets.mimic.note_text import TELLTALE
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.tables import open_optional
from mrpipe.errors import DataError, Fault
from mrpipe.raw import ROW
from mrpipe.schema import Features

_LOG = logging.getLogger(__name__)
DESCRIPTION = "diagnoses and procedures of each visit, one step per code: [position in levels, visit number], days"
KINDS = {"hosp/diagnoses_icd": "DX", "hosp/procedures_icd": "PR"}
TITLES = {"hosp/d_icd_diagnoses": "DX", "hosp/d_icd_procedures": "PR"}
DAY_MS = 86_400_000
CODE = ["kind", "icd_version", "icd_code"]
# Codes of palliative care and do-not-resuscitate orders, for exports without titles.
TELLTALE_CODES = ("V667", "V4986", "Z515", "Z66")


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


def _titles(raw: Path, options: MimicOptions) -> pl.DataFrame:
    empty = pl.DataFrame(
        schema={"kind": pl.String, "icd_version": pl.Int8, "icd_code": pl.String, "long_title": pl.String}
    )
    found = [
        t.select(pl.lit(kind).alias("kind"), "icd_version", "icd_code", "long_title")
        for table, kind in TITLES.items()
        if (t := open_optional(raw, table, options)) is not None
    ]
    return pl.concat([empty, *found]).unique(CODE, keep="first", maintain_order=True)


def codes_of(raw: Path, visits: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """Codes of these visits: the columns of `visits`, `kind, seq_num, icd_version, icd_code, long_title, recoded`.

    A code without a title becomes the titled code that differs only in dots, leading zeros or case, if there is exactly
    one; `recoded` marks these rows.
    """
    codes = pl.concat(
        t.drop(ROW).join(visits, on=["subject_id", "hadm_id"], maintain_order="left").with_columns(kind=pl.lit(kind))
        for table, kind in KINDS.items()
        if (t := open_optional(raw, table, options)) is not None
    )
    plain = pl.col("icd_code").str.replace_all(".", "", literal=True).str.strip_chars_start("0").str.to_uppercase()
    titles, key = _titles(raw, options), ["kind", "icd_version", "plain"]
    only = (
        titles.with_columns(plain.alias("plain")).unique(key, keep="none").select(*key, pl.col("icd_code").alias("to"))
    )
    codes = codes.join(titles.select(*CODE, pl.lit(True).alias("titled")), on=CODE, how="left", maintain_order="left")
    codes = codes.with_columns(plain.alias("plain")).join(only, on=key, how="left", maintain_order="left")
    recoded = pl.col("titled").is_null() & pl.col("to").is_not_null()
    codes = codes.with_columns(
        recoded.alias("recoded"), pl.when(recoded).then("to").otherwise("icd_code").alias("icd_code")
    )
    return codes.drop("titled", "plain", "to").join(titles, on=CODE, how="left", maintain_order="left")


def read_codes(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> Features:
    """Code sequences of the cohort, from icd_code, icd_version and seq_num in diagnoses_icd and procedures_icd.

    Raises:
        DataError: no visit of the cohort has a code.
    """
    options.validate()
    kept = visits_of(raw, samples, options)
    first = pl.col("admittime").min().over("rank")
    kept = kept.with_columns(((pl.col("admittime") - first).dt.total_milliseconds() / DAY_MS).alias("days"))
    codes = codes_of(raw, kept, options)
    n = [len(codes), len(codes := ended(codes))]
    if options.leak_guard:
        # Of diagnoses only: a catheter for "therapeutic or palliative substances" reveals nothing.
        telltale = (pl.col("kind") == "DX") & pl.col("long_title").str.contains(f"(?i){TELLTALE.pattern}").fill_null(
            False
        )
        codes = codes.filter(~telltale & ~pl.col("icd_code").is_in(TELLTALE_CODES))
    n.append(len(codes))
    if options.icd_versions != "both":
        codes = codes.filter(pl.col("icd_version") == int(options.icd_versions))
    if options.rollup == "category":
        rolled = category(pl.col("icd_code"), pl.col("kind"), pl.col("icd_version"))
        codes = codes.with_columns(rolled.alias("icd_code"))
    n.append(len(codes))
    # Codes repeated in a visit (duplicates, or two codes of one category) are kept once, at the first position.
    codes = codes.sort("rank", "number", "kind", "seq_num", "icd_version", "icd_code").unique(
        ["rank", "number", *CODE], keep="first", maintain_order=True
    )
    if codes.is_empty():
        raise DataError(Fault(file="hosp/diagnoses_icd", expected="codes of visits in the cohort", found="none"))
    _LOG.info(
        f"mimic code: {len(codes):,} codes of {codes['rank'].n_unique():,} patients, "
        f"{codes.filter(icd_version=10).height:,} of them ICD-10, {int(codes['recoded'].sum()):,} corrected by titles; "
        f"removed: {n[0] - n[1]:,} of visits that end after the prediction time, {n[1] - n[2]:,} that reveal the "
        f"outcome, {n[2] - n[3]:,} of the other ICD version, {n[3] - len(codes):,} repeats within a visit"
    )
    levels = (
        codes.select(CODE)
        .unique()
        .sort(CODE)
        .with_row_index("position")
        .join(_titles(raw, options), on=CODE, how="left", maintain_order="left")
    )
    codes = codes.join(levels.drop("long_title"), on=CODE, how="left", maintain_order="left")
    present, lengths = np.unique(codes["rank"].to_numpy(), return_counts=True)
    name = pl.format("{}{}:{}", "kind", "icd_version", "icd_code") + pl.format(" {}", "long_title").fill_null("")
    level_names = levels.select(name.alias("name"))["name"].to_list()
    modality = event_modality("code", 2, level_names, "days since the first visit", DESCRIPTION)
    ids = samples["sample_id"].sort().gather(present.astype(np.int64)).to_list()
    values = codes.select(pl.col("position").cast(pl.Float32), pl.col("number").cast(pl.Float32)).to_numpy()
    batch = record_batch(modality, ids, values, lengths, codes["days"].to_numpy())
    columns = {
        "name": ["code", "visit"],
        "kind": ["event", "step"],
        "levels": [level_names, None],
        "source_column": ["icd_code, icd_version", "hadm_id"],
        "description": ["DX diagnosis or PR procedure, ICD version, code, title", "number of the visit, from 1"],
    }
    dictionary = dictionary_of("code", "hosp/*_icd", columns, len(present), len(samples))
    return Features(modality=modality, batches=[batch], dictionary=dictionary)
