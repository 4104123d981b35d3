"""Modality `biospecimen`: APOE genotype, CSF biomarkers (Roche Elecsys), and optional plasma and urine assays.

The paper cites ISOPROSTANE for CSF Aβ and batemanlab for NfL, but these tables contain urine isoprostanes and plasma
Aβ42/40; features are named after the actual content (docs/adni.md). Values outside the reportable range keep their
number, or the limit if the export has `>1700`, and are flagged.
"""

from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms.features import Built, Feature, features, side_by_side, vector_modality
from mrpipe.datasets.adni.forms.paper_profile import paper_features
from mrpipe.datasets.adni.forms.rows import pick, row_policy
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import APOERES, BATEMAN, BIOSPECIMEN, ELECSYS, ISOPROSTANE, NFL, LoniTable
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Features

BIT = 3
DESCRIPTION = "APOE genotype and CSF amyloid and tau (Roche Elecsys)"
ANALYTES = ("ABETA42", "ABETA40", "TAU", "PTAU")
# Reportable range of the assay, pg/mL.
RANGES = {"ABETA42": (200.0, 1700.0), "TAU": (80.0, 1300.0), "PTAU": (8.0, 120.0)}
LIMITS = ("below", "within", "above")
# Optional tables: option, content, and column → name and unit of the feature.
OPTIONAL: dict[LoniTable, tuple[str, str, dict[str, tuple[str, str]]]] = {
    BATEMAN: (
        "plasma_abeta",
        "plasma Aβ42/40, mass spectrometry",
        {"ABETA_4240_STANDARDIZED": ("plasma_abeta42_40", "")},
    ),
    NFL: ("plasma_nfl", "plasma neurofilament light", {"PLASMA_NFL": ("plasma_nfl", "pg/mL")}),
    ISOPROSTANE: (
        "isoprostane",
        "urine isoprostane",
        {"ISO8PGF2A": ("urine_8_iso_pgf2a", ""), "ISO812IPF2A": ("urine_8_12_iso_ipf2a", "")},
    ),
}
_NAMES = {"ABETA42": "Abeta42", "TAU": "Tau", "PTAU": "PTau"}


def apoe_alleles(export: AdniExport) -> pl.DataFrame:
    """APOERES with `e2` and `e4`: copies (0–2) of the ε2 and ε4 alleles, from GENOTYPE (`3/4`) or APGEN1 and APGEN2.

    ADNIMERGE, which is read if the export has no APOERES, has the copies of ε4 alone (APOE4).

    Raises:
        DataError: the table is missing, none of these columns is filled, or an allele is not 2, 3 or 4.
    """
    frame = export.timed(APOERES)
    if export.path(APOERES, merged=False) is None:
        return frame.with_columns(e2=pl.lit(None, pl.Float64), e4=pl.col("APOE4"))
    if frame.select(pl.all_horizontal(pl.col("GENOTYPE", "APGEN1", "APGEN2").is_null().all())).item():
        file, expected = export.shown(APOERES), "GENOTYPE, or APGEN1 and APGEN2"
        fix = "Check whether the column was renamed or dropped."
        raise DataError(Fault(file=file, column="GENOTYPE", expected=expected, found="neither", fix=fix))
    written = pl.col("GENOTYPE").str.replace_all(r"[eE\s]", "")
    alleles = [pl.col(c).str.replace(r"\.0+$", "") for c in ("APGEN1", "APGEN2")]
    frame = frame.with_columns(pl.coalesce(written, pl.concat_str(alleles, separator="/")).alias("pair"))
    wrong = frame.filter(~pl.col("pair").str.contains(r"^[234]/[234]$"))
    if len(wrong):
        column = "GENOTYPE" if wrong["GENOTYPE"][0] else "APGEN1"
        raise export.fault(APOERES, int(wrong["row"][0]), column, "alleles 2, 3 or 4", wrong["pair"][0])
    return frame.with_columns(pl.col("pair").str.count_matches(a).cast(pl.Float64).alias(f"e{a}") for a in ("2", "4"))


def _commented(analyte: str) -> pl.Expr:
    """−1 or 1 from a COMMENT such as `Abeta42>1700` or `Tau<80, PTau<8`; null if it does not name the analyte."""
    sides = [pl.col("COMMENT").str.contains(rf"(?i)(?:^|[^a-z]){_NAMES[analyte]}\s*{sign}") for sign in "><"]
    return pl.when(sides[0]).then(pl.lit(1, pl.Int8)).when(sides[1]).then(pl.lit(-1, pl.Int8))


def csf_values(frame: pl.DataFrame) -> pl.DataFrame:
    """Add ratios of the analytes (pg/mL) and `<analyte>.side`: 0 below, 1 within, 2 above the reportable range."""
    out = frame
    for analyte, (low, high) in RANGES.items():
        value = pl.col(analyte)
        beyond = pl.when(value > high).then(pl.lit(1, pl.Int8)).when(value < low).then(pl.lit(-1, pl.Int8))
        written = pl.when(pl.col(f"{analyte}.limit") != 0).then(pl.col(f"{analyte}.limit"))
        known = value.is_not_null() | written.is_not_null()
        side = pl.when(known).then(pl.coalesce(written, _commented(analyte), beyond, pl.lit(0, pl.Int8)))
        out = out.with_columns((side + 1).alias(f"{analyte}.side"))
    return out.with_columns(
        (pl.col("ABETA42") / pl.col("ABETA40")).alias("ABETA42_40"),
        (pl.col("PTAU") / pl.col("ABETA42")).alias("PTAU_ABETA42"),
    )


def requested(options: AdniOptions) -> tuple[LoniTable, ...]:
    """Optional tables that the options add to the modality."""
    return tuple(table for table, (option, *_) in OPTIONAL.items() if getattr(options, option))


def biospecimen_tables(export: AdniExport, options: AdniOptions) -> list[LoniTable]:
    """Tables of the modality: those in the export, and those that the options request."""
    merged = options.profile != "paper"
    return [*(t for t in BIOSPECIMEN if export.path(t, merged=merged) is not None), *requested(options)]


def _bateman(export: AdniExport) -> pl.DataFrame:
    """Mean over the injections of a sample that passed quality control."""
    frame = export.timed(BATEMAN)
    passed = pl.col("QC_STATUS").is_null() | (pl.col("QC_STATUS").str.to_lowercase().str.strip_chars() == "passed")
    grouped = frame.filter(passed).sort("row").group_by(["rid", "month", "rank", "date", "when"], maintain_order=True)
    return grouped.agg(pl.col("ABETA_4240_STANDARDIZED").mean(), pl.col("stamp").last(), pl.col("row").last())


def _apoe(export: AdniExport, cohort: pl.DataFrame, policy: str) -> Built:
    merged = export.path(APOERES, merged=False) is None
    alleles = ("4",) if merged else ("2", "4")
    values = pick(apoe_alleles(export), cohort, policy, [f"e{a}" for a in alleles], static=True)
    declared: list[Feature] = []
    for a in alleles:
        text, column = f"copies of the ε{a} allele", "APOE4" if merged else "GENOTYPE, APGEN1, APGEN2"
        declared += features(export.shown(APOERES), {f"apoe_e{a}": column}, unit="copies", description=text)
    return declared, values.rename({f"e{a}": f"apoe_e{a}" for a in alleles})


def _csf(export: AdniExport, cohort: pl.DataFrame, policy: str) -> Built:
    source = export.shown(ELECSYS)
    ratios = {"ABETA42_40": "ABETA42, ABETA40", "PTAU_ABETA42": "PTAU, ABETA42"}
    sides = [f"{a}.side" for a in RANGES]
    # All values come from the same CSF sample, so that ratios and flags match the concentrations.
    drawn = pick(csf_values(export.timed(ELECSYS)), cohort, policy, [*ANALYTES, *ratios, *sides], whole=True)
    limits = {f"{a}_limit": f"{a}, COMMENT" for a in RANGES}
    declared = [
        *features(source, {a: a for a in ANALYTES}, unit="pg/mL", description="CSF concentration"),
        *features(source, ratios, description="ratio of CSF concentrations"),
        *features(source, limits, levels=LIMITS, description="below, within or above the reportable range"),
    ]
    return declared, drawn.rename({f"{a}.side": f"{a}_limit" for a in RANGES})


def biospecimen_features(export: AdniExport, cohort: pl.DataFrame, options: AdniOptions) -> Built:
    """Feature declarations and a frame of their values, one row per participant (`rid`)."""
    policy = row_policy(options)
    tables = biospecimen_tables(export, options)
    if options.profile == "paper":
        return paper_features(export, tables, cohort, policy, dementia_drugs=True)
    blocks = [{APOERES: _apoe, ELECSYS: _csf}[t](export, cohort, policy) for t in tables if t in BIOSPECIMEN]
    for table in requested(options):
        _, text, columns = OPTIONAL[table]
        records = _bateman(export) if table is BATEMAN else export.timed(table)
        values = pick(records, cohort, policy, list(columns)).rename({c: name for c, (name, _) in columns.items()})
        file = export.shown(table)
        declared = [f for c, (n, unit) in columns.items() for f in features(file, {n: c}, unit=unit, description=text)]
        blocks.append((declared, values))
    return side_by_side(cohort, blocks)


def read_biospecimen(raw: Path, cohort: pl.DataFrame, options: AdniOptions) -> Features:
    """Read APOE, CSF and the optional tables for every participant with at least one known value.

    Vector modality, float32 of shape (n_features,), NaN where unknown. Sources: APOERES (or ADNIMERGE) and
    UPENNBIOMK_ROCHE_ELECSYS, as far as the export has them, and, if requested, batemanlab, ADNI_BLENNOWPLASMANFL and
    ISOPROSTANE; units are in the dictionary.

    Raises:
        DataError: a table is invalid, or a requested one is missing.
    """
    declared, frame = biospecimen_features(AdniExport(raw), cohort, options)
    return vector_modality("biospecimen", BIT, DESCRIPTION, declared, frame, cohort)
