"""Parse ADNI field values: missing-value codes, multi-selects, censored assays, partial dates and visit codes."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from mrpipe.datasets.adni.tables import Codes

# Phase-specific visit codes (VISCODE), used if VISCODE2 is blank: month, and order within the month (0 or 1).
_VISITS = {
    "sc": (0, 0),
    "scmri": (0, 0),
    "f": (0, 0),
    "bl": (0, 1),
    "init": (0, 1),
    "v01": (0, 0),
    "v02": (0, 0),
    "v03": (0, 1),
    "v04": (3, 0),
    "v05": (6, 0),
    "v11": (12, 0),
    "v21": (24, 0),
    "v31": (36, 0),
    "v41": (48, 0),
    "v51": (60, 0),
}
# Upper bounds (exclusive) of the RIDs assigned in each phase.
PHASE_BOUNDS = ((2000, "ADNI1"), (3000, "ADNIGO"), (6000, "ADNI2"), (10000, "ADNI3"))


def plain_code(column: str) -> pl.Expr:
    """Normalise a code: ` 01` and `1.0` become `1`."""
    text = pl.col(column).str.strip_chars()
    return text.str.replace(r"\.0+$", "").str.replace(r"^0+(\d)", "${1}")


def is_missing_code(column: str, *, positive: bool) -> pl.Expr:
    """Whether a value codes missing: −4 in any phase, −1 in ADNI1 (if `positive`, 0 and −1 in any phase)."""
    code = plain_code(column)
    missing = code.is_in(["-4", "NA", ""])
    if positive:
        return missing | code.is_in(["-1", "0"])
    return missing | ((code == "-1") & (pl.col("phase") == "ADNI1").fill_null(False))


def level_of(column: str, codes: Codes) -> pl.Expr:
    """Index of the level of a code (Int8); null for blank values and codes outside the list."""
    index = {code: i for i, (code, _) in enumerate(codes)}
    return plain_code(column).replace_strict(index, default=None, return_dtype=pl.Int8)


def selections(column: str) -> pl.Expr:
    """Split a multi-select (`1|02`, in older exports `1:2`) into a list of normalised codes."""
    parts = pl.col(column).str.replace_all(":", "|", literal=True).str.split("|")
    return parts.list.eval(
        pl.element().str.strip_chars().str.replace(r"\.0+$", "").str.replace(r"^0+(\d)", "${1}")
    ).list.eval(pl.element().filter(pl.element() != ""))


NUMBER = r"^[<>]?\s*=?\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$"
# Below the limit of quantification or detection; no number is given.
BELOW = r"^<\s*(?:LLOQ|LOD|LOQ)$"


def number(column: str) -> pl.Expr:
    """Parse a number, with or without a leading `<` or `>`, as Float64; null otherwise."""
    return pl.col(column).str.strip_chars().str.replace(r"^[<>]\s*=?\s*", "").cast(pl.Float64, strict=False)


def limit(column: str) -> pl.Expr:
    """−1 below the reportable range (`<80`, `<LLOQ`), 1 above (`>1700`), 0 within, null if not measured."""
    text = pl.col(column).str.strip_chars()
    return (
        pl.when(text.str.starts_with("<"))
        .then(pl.lit(-1, pl.Int8))
        .when(text.str.starts_with(">"))
        .then(pl.lit(1, pl.Int8))
        .when(text.is_not_null())
        .then(pl.lit(0, pl.Int8))
    )


def date(column: str) -> pl.Expr:
    """Parse `YYYY-MM-DD…`, `M/D/YYYY` or `M/D/YY`; null for partial and blank dates."""
    text = pl.col(column).str.strip_chars()
    part = text.str.extract_groups(r"^(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})$")
    year = part.struct["3"].cast(pl.Int32, strict=False)
    year = pl.when(year < 100).then(year + 2000).otherwise(year)
    american = year.cast(pl.String) + "-" + part.struct["1"].str.zfill(2) + "-" + part.struct["2"].str.zfill(2)
    iso = text.str.extract(r"^(\d{4}-\d{2}-\d{2})")
    return pl.coalesce(iso, american).str.to_date("%Y-%m-%d", strict=False)


def year(column: str) -> pl.Expr:
    """Year of a date, a partial date (`--/05/2008`) or a year; null for 9999 and years before 1890."""
    found = pl.col(column).str.extract(r"(\d{4})").cast(pl.Int32, strict=False)
    return pl.when(found.is_between(1890, 2100)).then(found)


def original_phase(rid: pl.Expr) -> pl.Expr:
    """Phase of enrolment, from the RID."""
    phase = pl.lit("ADNI4")
    for bound, name in reversed(PHASE_BOUNDS):
        phase = pl.when(rid < bound).then(pl.lit(name)).otherwise(phase)
    return phase


def phase(column: str) -> pl.Expr:
    """Normalise a phase name: `ADNI 1`, `adni1` → `ADNI1`; `ADNIGO2` (older APOERES files) → `ADNI2`."""
    return (
        pl.col(column).str.to_uppercase().str.replace_all(r"[\s_-]", "").replace({"ADNIGO2": "ADNI2", "GO": "ADNIGO"})
    )


def _visit(text: pl.Expr, part: int) -> pl.Expr:
    code = text.str.strip_chars().str.to_lowercase().str.replace(r"^4_", "")
    known: Mapping[str, int] = {c: value[part] for c, value in _VISITS.items()}
    named = code.replace_strict(known, default=None, return_dtype=pl.Int32)
    if part == 1:
        return named.fill_null(0)
    months = code.str.extract(r"^m(\d+)$").cast(pl.Int32, strict=False)
    years = code.str.extract(r"^y(\d+)$").cast(pl.Int32, strict=False) * 12
    return pl.coalesce(named, months, years)


def visit_month(viscode: str, viscode2: str) -> pl.Expr:
    """Months since baseline, from VISCODE2 if it is a scheduled visit, otherwise from VISCODE; null if unscheduled."""
    return pl.coalesce(_visit(pl.col(viscode2), 0), _visit(pl.col(viscode), 0))


def visit_rank(viscode: str, viscode2: str) -> pl.Expr:
    """Order within a month: 1 for baseline visits, 0 for all others, so that screening is sorted before baseline."""
    return _visit(pl.coalesce(pl.col(viscode2), pl.col(viscode)), 1)
