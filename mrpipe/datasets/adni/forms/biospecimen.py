"""Modality `biospecimen`: APOE and CSF (Roche Elecsys), and, if asked for, plasma Aβ42/40, plasma NfL and urine.

The paper's attribution (Aβ of CSF from ISOPROSTANE, NfL from batemanlab) does not match what the tables hold; here
each is what it is (raw-formats A.3). Readings outside the reportable range keep their number, or take the limit where
the export writes `>1700`, and have a flag.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms.features import Feature, vector_modality
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
_NAMES = {"ABETA42": "Abeta42", "TAU": "Tau", "PTAU": "PTau"}


def apoe_alleles(frame: pl.DataFrame, shown_as: str) -> pl.DataFrame:
    """`e2`, `e4`: copies (0–2) of the ε2 and ε4 alleles, from GENOTYPE (`3/4`) or APGEN1 and APGEN2.

    Raises:
        DataError: neither form, or an allele other than 2, 3, 4.
    """
    if frame.select(pl.all_horizontal(pl.col("GENOTYPE", "APGEN1", "APGEN2").is_null().all())).item():
        raise DataError(
            Fault(
                file=shown_as,
                column="GENOTYPE",
                expected="GENOTYPE, or APGEN1 and APGEN2",
                found="neither",
                fix="Was the column renamed or left out?",
            )
        )
    written = pl.col("GENOTYPE").str.replace_all(r"[eE\s]", "")
    pair = pl.coalesce(
        written,
        pl.concat_str(
            pl.col("APGEN1").str.replace(r"\.0+$", ""), pl.lit("/"), pl.col("APGEN2").str.replace(r"\.0+$", "")
        ),
    )
    frame = frame.with_columns(pair.alias("pair"))
    wrong = frame.filter(~pl.col("pair").str.contains(r"^[234]/[234]$"))
    if len(wrong):
        raise DataError(
            Fault(
                file=shown_as,
                column="GENOTYPE" if wrong["GENOTYPE"][0] else "APGEN1",
                row=int(wrong["row"][0]),
                expected="alleles 2, 3 or 4",
                found=repr(wrong["pair"][0]),
            )
        )
    return frame.with_columns(pl.col("pair").str.count_matches(a).cast(pl.Float64).alias(f"e{a}") for a in ("2", "4"))


def _commented(analyte: str) -> pl.Expr:
    """−1, 1 from a COMMENT such as `Abeta42>1700` or `Tau<80, PTau<8`; null where it does not name the analyte."""
    name = _NAMES[analyte]
    comment = pl.col("COMMENT")
    before = r"(?i)(?:^|[^a-z])"
    return (
        pl.when(comment.str.contains(rf"{before}{name}\s*>"))
        .then(pl.lit(1, pl.Int8))
        .when(comment.str.contains(rf"{before}{name}\s*<"))
        .then(pl.lit(-1, pl.Int8))
    )


def csf_values(frame: pl.DataFrame) -> pl.DataFrame:
    """Analytes in pg/mL, their ratios, and `<analyte>.limit` 0 below, 1 within, 2 above the reportable range."""
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


def _file(export: AdniExport, table: LoniTable) -> str:
    path = export.path(table)
    assert path is not None
    return path.name


def _bateman(export: AdniExport) -> pl.DataFrame:
    """Injections of a sample that passed quality control, averaged."""
    frame = export.timed(BATEMAN)
    assert frame is not None
    passed = pl.col("QC_STATUS").is_null() | (pl.col("QC_STATUS").str.to_lowercase().str.strip_chars() == "passed")
    keys = ["rid", "month", "rank", "date"]
    grouped = frame.filter(passed).sort("row").group_by(keys, maintain_order=True)
    return grouped.agg(pl.col("ABETA_4240_STANDARDIZED").mean(), pl.col("stamp").last(), pl.col("row").last())


def biospecimen_features(
    export: AdniExport, cohort: pl.DataFrame, options: AdniOptions
) -> tuple[list[Feature], pl.DataFrame]:
    """Declared features and their values, one row a participant (`rid`)."""
    policy = row_policy(options)
    for table in BIOSPECIMEN:
        export.require(table)
    if options.profile == "paper":
        return paper_features(export, BIOSPECIMEN, cohort, policy, dementia_drugs=True)
    source = _file(export, APOERES)
    timed = export.timed(APOERES)
    assert timed is not None
    apoe = pick(apoe_alleles(timed, source), cohort, policy, ["e2", "e4"], static=True)
    frame = cohort.select("rid").join(apoe, on="rid", how="left").rename({"e2": "apoe_e2", "e4": "apoe_e4"})
    declared = [
        Feature(
            name=f"apoe_e{a}",
            unit="copies",
            source_file=source,
            source_column="GENOTYPE, APGEN1, APGEN2",
            description=f"copies of the ε{a} allele",
        )
        for a in (2, 4)
    ]
    source = _file(export, ELECSYS)
    csf = export.timed(ELECSYS)
    assert csf is not None
    ratios = {"ABETA42_40": "ABETA42, ABETA40", "PTAU_ABETA42": "PTAU, ABETA42"}
    sides = [f"{a}.side" for a in RANGES]
    # One draw as a whole: ratios and flags belong to the values beside them.
    drawn = pick(csf_values(csf), cohort, policy, [*ANALYTES, *ratios, *sides], whole=True)
    frame = frame.join(drawn, on="rid", how="left")
    frame = frame.rename({f"{a}.side": f"{a}_limit" for a in RANGES})
    declared += [
        Feature(name=a, unit="pg/mL", source_file=source, source_column=a, description="CSF") for a in ANALYTES
    ]
    declared += [
        Feature(name=r, source_file=source, source_column=c, description="CSF ratio") for r, c in ratios.items()
    ]
    declared += [
        Feature(
            name=f"{a}_limit",
            levels=LIMITS,
            source_file=source,
            source_column=f"{a}, COMMENT",
            description="side of the reportable range",
        )
        for a in RANGES
    ]
    optional = (
        (
            options.plasma_abeta,
            BATEMAN,
            {"ABETA_4240_STANDARDIZED": ("plasma_abeta42_40", "")},
            "plasma Aβ42/40, mass spectrometry",
        ),
        (options.plasma_nfl, NFL, {"PLASMA_NFL": ("plasma_nfl", "pg/mL")}, "plasma neurofilament light"),
        (
            options.isoprostane,
            ISOPROSTANE,
            {"ISO8PGF2A": ("urine_8_iso_pgf2a", ""), "ISO812IPF2A": ("urine_8_12_iso_ipf2a", "")},
            "urine isoprostane",
        ),
    )
    for wanted, table, columns, text in optional:
        if not wanted:
            continue
        export.require(table)
        records = _bateman(export) if table is BATEMAN else export.timed(table)
        values = pick(records, cohort, policy, list(columns))
        frame = frame.join(values.rename({c: name for c, (name, _) in columns.items()}), on="rid", how="left")
        declared += [
            Feature(name=name, unit=unit, source_file=_file(export, table), source_column=c, description=text)
            for c, (name, unit) in columns.items()
        ]
    return declared, frame


def read_biospecimen(raw: Path, cohort: pl.DataFrame, options: AdniOptions) -> Features:
    """APOE, CSF and the tables asked for, of each participant with any of them.

    Raises:
        DataError: a table is missing or faulty.
    """
    declared, frame = biospecimen_features(AdniExport(raw), cohort, options)
    return vector_modality("biospecimen", BIT, DESCRIPTION, declared, frame, cohort)
