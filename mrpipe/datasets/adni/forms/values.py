"""Parse ADNI field values: missing-value codes, multi-selects, censored assays, partial dates and visit codes."""

from collections.abc import Mapping

import polars as pl

from mrpipe.datasets.adni.tables import Codes

# Visit codes other than months (m06): months since the start of the phase, and order within the month (0 or 1).
_VISITS = {
    **dict.fromkeys(("sc", "scmri", "f", "v01", "v02"), (0, 0)),
    **dict.fromkeys(("bl", "init", "v03"), (0, 1)),
    "v04": (3, 0),
    "v05": (6, 0),
    **{f"v{year}1": (12 * year, 0) for year in range(1, 6)},
}
# Codes that count from the participant's baseline, whatever the phase: all months, and in VISCODE2 also these.
_HARMONISED = ("sc", "scmri", "f", "bl")
# Phases with visit codes of their own, for rows without a phase.
_CODED_PHASES = ((r"^4_", "ADNI4"), (r"^v\d", "ADNI2"), (r"^(y\d|init)", "ADNI3"))
# Upper bounds (exclusive) of the RIDs assigned in each phase.
PHASE_BOUNDS = ((2000, "ADNI1"), (3000, "ADNIGO"), (6000, "ADNI2"), (10000, "ADNI3"))


def plain_code(column: str) -> pl.Expr:
    """Normalise a code: ` 01` and `1.0` become `1`."""
    return pl.col(column).str.strip_chars().str.replace(r"\.0+$", "").str.replace(r"^0+(\d)", "${1}")


def is_missing_code(column: str, *, positive: bool) -> pl.Expr:
    """Whether a value codes missing: blank, NA, −4 or −1 (if `positive`, also 0)."""
    return plain_code(column).is_in(["-4", "-1", "NA", "", *(["0"] if positive else [])])


def level_of(column: str, codes: Codes) -> pl.Expr:
    """Index of the level of a code (Int8); null for blank values and codes outside the list."""
    index = {code: i for i, (code, _) in enumerate(codes)}
    return plain_code(column).replace_strict(index, default=None, return_dtype=pl.Int8)


def selections(column: str) -> pl.Expr:
    """Split a multi-select (`1|02`, in older exports `1:2`) into a list of normalised codes, without missing codes."""
    parts = pl.col(column).str.replace_all(":", "|", literal=True).str.split("|")
    code = pl.element().str.strip_chars().str.replace(r"\.0+$", "").str.replace(r"^0+(\d)", "${1}")
    return parts.list.eval(code).list.eval(pl.element().filter(~pl.element().is_in(["", "-4", "-1"])))


NUMBER = r"^[<>]?\s*=?\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$"
# Below the limit of quantification or detection; no number is given.
BELOW = r"^<\s*(?:LLOQ|LOD|LOQ)$"


def number(column: str) -> pl.Expr:
    """Parse a number, with or without a leading `<` or `>`, as Float64; null otherwise."""
    return pl.col(column).str.strip_chars().str.replace(r"^[<>]\s*=?\s*", "").cast(pl.Float64, strict=False)


def limit(column: str) -> pl.Expr:
    """−1 below the reportable range (`<80`, `<LLOQ`), 1 above (`>1700`), 0 within, null if not measured."""
    above, below = (pl.col(column).str.strip_chars().str.starts_with(sign).cast(pl.Int8) for sign in "><")
    return above - below


def date(column: str | pl.Expr) -> pl.Expr:
    """Parse `YYYY-MM-DD`, `YYYYMMDD`, `M/D/YYYY`, `D.M.YYYY` or `D-Mon-YYYY`, with or without time; else null.

    A column is read as `D/M/YYYY` if a first part is above 12 and no second part is, as spreadsheets of other countries
    write it.
    """
    text = (pl.col(column) if isinstance(column, str) else column).str.strip_chars().str.replace(r"[ T]\d.*$", "")
    part = text.str.extract_groups(r"^(\d{1,2})[/.](\d{1,2})[/.](\d{4}|\d{2})$")
    year = part.struct["3"].cast(pl.Int32, strict=False)
    year = pl.when(year < 100).then(year + 2000).otherwise(year)
    first, second = part.struct["1"], part.struct["2"]
    above = [p.cast(pl.Int32, strict=False) > 12 for p in (first, second)]
    day_first = (above[0].any() & ~above[1].any()) | text.str.contains(".", literal=True)
    month, day = (pl.when(day_first).then(a).otherwise(b).str.zfill(2) for a, b in ((second, first), (first, second)))
    american = year.cast(pl.String) + "-" + month + "-" + day
    iso = text.str.extract(r"^(\d{4}[-/]?\d{2}[-/]?\d{2})(?:\D|$)")
    named = text.str.extract(r"^(\d{1,2}[- ]?[A-Za-z]{3}[- ]?\d{4})$")
    plain = (pl.coalesce(iso, american), "%Y%m%d"), (named, "%d%b%Y")
    return pl.coalesce(x.str.replace_all(r"[-/ ]", "").str.to_date(form, strict=False) for x, form in plain)


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


def phase(column: str, viscode: str) -> pl.Expr:
    """Phase of a row: `ADNI 1`, `adni1` → `ADNI1`; `ADNIGO2` (older APOERES files) → `ADNI2`.

    Without one: the phase that the visit code belongs to (`v03`, `y1`, `4_bl`), else the phase of enrolment (`rid`).
    """
    name = pl.col(column).str.to_uppercase().str.replace_all(r"[\s_-]", "")
    code = pl.col(viscode).str.strip_chars().str.to_lowercase()
    coded = [pl.when(code.str.contains(pattern)).then(pl.lit(p)) for pattern, p in _CODED_PHASES]
    return pl.coalesce(name.replace({"ADNIGO2": "ADNI2", "GO": "ADNIGO"}), *coded, original_phase(pl.col("rid")))


def stamp(column: str) -> pl.Expr:
    """Sortable text of a time stamp: spreadsheets write `M/D/YYYY H:MM` for `YYYY-MM-DD HH:MM` (order as in `date`)."""
    parts = pl.col(column).str.strip_chars().str.split(" ")
    day, time = parts.list.first(), parts.list.get(1, null_on_oob=True).fill_null("").str.pad_start(5, "0")
    written = pl.when(day.str.contains("/")).then(date(day).dt.to_string("%Y-%m-%d") + " " + time)
    return pl.coalesce(written, pl.col(column))


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
    """Months since the participant's baseline, from VISCODE2, else VISCODE; null if the codes do not give them.

    Codes that count from the start of a phase (v03, y1, 4_bl, init; in VISCODE also bl and sc) are used only in the
    phase of enrolment: years later, the same code marks the participant's first visit in another phase. Reads the
    columns `phase` and `rid` as well.
    """
    enrolment = pl.col("phase") == original_phase(pl.col("rid"))
    months = []
    for column, harmonised in ((viscode2, _HARMONISED), (viscode, ())):
        code = pl.col(column).str.strip_chars().str.to_lowercase()
        own = code.str.contains(r"^m\d+$") | code.is_in(harmonised)
        months.append(pl.when(own | enrolment).then(_visit(pl.col(column), 0)))
    return pl.coalesce(months)


def visit_rank(viscode: str, viscode2: str) -> pl.Expr:
    """Order within a month: 1 for baseline visits, 0 for all others, so that screening is sorted before baseline."""
    return _visit(pl.coalesce(pl.col(viscode2), pl.col(viscode)), 1)
