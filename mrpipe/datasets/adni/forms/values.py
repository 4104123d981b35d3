"""What ADNI's fields mean: missing codes, multi-selects, censored assays, fuzzy dates, visit codes."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from mrpipe.datasets.adni.tables import Codes

# Visit codes where a row has no harmonised one: month, and 1 where the visit comes after the other of its month.
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
# Phases by roster number: below the bound.
PHASE_BOUNDS = ((2000, "ADNI1"), (3000, "ADNIGO"), (6000, "ADNI2"), (10000, "ADNI3"))


def plain_code(column: str) -> pl.Expr:
    """A code as written (` 01`, `1.0`) in its plain form (`1`)."""
    text = pl.col(column).str.strip_chars()
    return text.str.replace(r"\.0+$", "").str.replace(r"^0+(\d)", "${1}")


def is_missing_code(column: str, *, positive: bool) -> pl.Expr:
    """−4 in any phase; −1 in ADNI1, or anywhere for a measurement that must be positive (then 0 too)."""
    code = plain_code(column)
    missing = code.is_in(["-4", "NA", ""])
    if positive:
        return missing | code.is_in(["-1", "0"])
    return missing | ((code == "-1") & (pl.col("phase") == "ADNI1").fill_null(False))


def level_of(column: str, codes: Codes) -> pl.Expr:
    """Position of the level that a code stands for; null for none and for codes outside the list."""
    index = {code: i for i, (code, _) in enumerate(codes)}
    return plain_code(column).replace_strict(index, default=None, return_dtype=pl.Int8)


def selections(column: str) -> pl.Expr:
    """A multi-select (`1|02`, older `1:2`) as a list of plain codes."""
    parts = pl.col(column).str.replace_all(":", "|", literal=True).str.split("|")
    return parts.list.eval(
        pl.element().str.strip_chars().str.replace(r"\.0+$", "").str.replace(r"^0+(\d)", "${1}")
    ).list.eval(pl.element().filter(pl.element() != ""))


NUMBER = r"^[<>]?\s*=?\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$"
# Below the limit of quantification or detection: a censored reading without a number.
BELOW = r"^<\s*(?:LLOQ|LOD|LOQ)$"


def number(column: str) -> pl.Expr:
    """Float64 of a number, also behind `<` or `>`; null otherwise."""
    return pl.col(column).str.strip_chars().str.replace(r"^[<>]\s*=?\s*", "").cast(pl.Float64, strict=False)


def limit(column: str) -> pl.Expr:
    """−1 below the reportable range (`<80`, `<LLOQ`), 1 above it (`>1700`), 0 within, null where not measured."""
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
    """Date of `YYYY-MM-DD…`, `M/D/YYYY` or `M/D/YY`; null for fuzzy and blank ones."""
    text = pl.col(column).str.strip_chars()
    part = text.str.extract_groups(r"^(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})$")
    year = part.struct["3"].cast(pl.Int32, strict=False)
    year = pl.when(year < 100).then(year + 2000).otherwise(year)
    american = year.cast(pl.String) + "-" + part.struct["1"].str.zfill(2) + "-" + part.struct["2"].str.zfill(2)
    iso = text.str.extract(r"^(\d{4}-\d{2}-\d{2})")
    return pl.coalesce(iso, american).str.to_date("%Y-%m-%d", strict=False)


def year(column: str) -> pl.Expr:
    """Year of a date, a fuzzy date (`--/05/2008`) or a year; 9999 and anything before 1890 is unknown."""
    found = pl.col(column).str.extract(r"(\d{4})").cast(pl.Int32, strict=False)
    return pl.when(found.is_between(1890, 2100)).then(found)


def original_phase(rid: pl.Expr) -> pl.Expr:
    """The phase that a participant entered in, by roster number."""
    phase = pl.lit("ADNI4")
    for bound, name in reversed(PHASE_BOUNDS):
        phase = pl.when(rid < bound).then(pl.lit(name)).otherwise(phase)
    return phase


def phase(column: str) -> pl.Expr:
    """`ADNI 1`, `adni1` → `ADNI1`; `ADNIGO2` (old APOERES) → `ADNI2`."""
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
    """Months since baseline: of the harmonised code where it names a visit, else of the phase's own code, else null."""
    return pl.coalesce(_visit(pl.col(viscode2), 0), _visit(pl.col(viscode), 0))


def visit_rank(viscode: str, viscode2: str) -> pl.Expr:
    """1 for a baseline visit, 0 for a screening or later one: screening comes before baseline within month 0."""
    return _visit(pl.coalesce(pl.col(viscode2), pl.col(viscode)), 1)
