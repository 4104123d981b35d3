"""Texts of cells and headers: names, codes for missing, ids, numbers and times."""

import re

import numpy as np
import polars as pl

from mrpipe.datasets.declared import WHOLE
from mrpipe.datasets.tables.config import MISSING, Rules, codes_of

FLOAT32_MAX = float(np.finfo(np.float32).max)
# Texts that are numbers but may be codes.
CODED = r"^-?0[0-9]+$|^[0-9]+[eE][0-9]+$"


def has_name(column: str) -> bool:
    """Whether a column has a name; row numbers of pandas and R and empty columns at the end of a file have none."""
    return not re.fullmatch(r"(unnamed: \d+|__index_level_\d+__)?", plain_name(column))


def plain_name(name: str) -> str:
    return re.sub(r"_duplicated_\d+$", "", name).strip().casefold()


def canonical_text(column: str | pl.Expr) -> pl.Expr:
    """Text with whole numbers written without a decimal point, as by `canonical`."""
    text = pl.col(column) if isinstance(column, str) else column
    return text.str.replace(rf"{WHOLE}$", "$1").str.replace("^-0$", "0")


def id_text(column: str, missing: Rules) -> pl.Expr:
    """Ids as text; if all are whole numbers, without decimal points, which programs add to columns with gaps."""
    text = known_text(column, missing)
    whole = text.str.contains(r"^-?(0|[1-9][0-9]*)(\.0*)?$").all()
    return pl.when(whole).then(canonical_text(text)).otherwise(text)


def known_text(column: str, rules: Rules) -> pl.Expr:
    """Text; null if it is empty, a common word for missing, or one of the codes of the column."""
    missing, codes = pl.col(column).is_in(MISSING), codes_of(column, rules)
    if codes:
        missing |= canonical_text(column).is_in(codes)
    return pl.when(missing).then(None).otherwise(pl.col(column)).alias(column)


def too_large(number: pl.Series) -> pl.Series:
    """Numbers that the store's float32 cannot hold, such as 1.8e308, which some programs use for missing."""
    return (number.abs() > FLOAT32_MAX).fill_null(False)


def clock(column: str, form: str) -> pl.Expr:
    """Times as Datetime, null if they are not of the format: ISO 8601 by default, or numbers of `hours` or `days`."""
    text = pl.col(column)
    if form in ("hours", "days"):
        us = text.cast(pl.Float64, strict=False) * {"hours": 3.6e9, "days": 8.64e10}[form]
        return pl.when(us.abs() < 2**62).then(us).cast(pl.Int64).cast(pl.Datetime("us"))
    if form:
        return text.str.to_datetime(form, strict=False, time_unit="us").dt.replace_time_zone(None)
    text = text.str.replace("T", " ", literal=True).str.replace("( UTC|Z)$", "")
    forms = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
    return pl.coalesce(text.str.to_datetime(f, strict=False, time_unit="us") for f in forms)
