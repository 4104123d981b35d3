"""Modality `clinical`: demographics, medical history, neurological examination, medications and vital signs.

Values are decoded and converted to SI units; nothing is imputed. Identifiers, dates, form metadata and years of onset
or diagnosis (PTCOGBEG, PTADDX, PTADBEG) are never features.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms import medications as drugs
from mrpipe.datasets.adni.forms.features import Feature, vector_modality
from mrpipe.datasets.adni.forms.paper_profile import paper_features
from mrpipe.datasets.adni.forms.rows import eligible, pick, row_policy
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import (
    CLINICAL,
    FUNCTIONS,
    HISTORY,
    MEDHIST,
    NEUROEXM,
    PTDEMOG,
    QUANTITIES,
    RACES,
    RECCMEDS,
    SIGNS,
    VITALS,
)
from mrpipe.schema import Features

BIT = 2
DESCRIPTION = "demographics, medical history, neurological examination, medication and vital signs"
_MARITAL = ("PTMARRY", "PTEDUCAT", "PTNOTRT", "PTHOME")
_DOSES = {"MH14AALCH": "drinks/d", "MH16ASMOK": "packs/d"}
POUND_KG, INCH_CM = 0.45359237, 2.54
YES_NO_LEVELS = ("no", "yes")

Built = tuple[list[Feature], pl.DataFrame]


def _demographics(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    frame = export.timed(PTDEMOG)
    static = pick(
        frame,
        cohort,
        policy,
        ["PTGENDER", "PTHAND", "PTETHCAT", "PTRACCAT", "PTDOB", "PTDOBMM", "PTDOBYY"],
        static=True,
    )
    changing = pick(frame, cohort, policy, _MARITAL)
    joined = static.join(changing, on="rid", how="left").join(cohort.select("rid", "visit_date"), on="rid", how="left")
    # PTDOB is MM/YYYY. If the month is unknown, use the middle of the year.
    month = pl.coalesce(pl.col("PTDOB").str.extract(r"^(\d{1,2})/").cast(pl.Float64, strict=False), pl.col("PTDOBMM"))
    year = pl.coalesce(pl.col("PTDOB").str.extract(r"(\d{4})").cast(pl.Int32, strict=False), pl.col("PTDOBYY"))
    born = year + (month.fill_null(7.0) - 0.5) / 12
    visit = pl.col("visit_date").dt.year() + (pl.col("visit_date").dt.ordinal_day() - 0.5) / 365.25
    age = visit - born
    selected = pl.col("PTRACCAT")
    # A code outside the list may stand for any race, so that the races that are not selected are unknown.
    known = (selected.list.len() > 0) & selected.list.eval(pl.element().is_in([code for code, _ in RACES])).list.all()
    races = [
        pl.when(selected.list.contains(code)).then(1).when(known).then(0).cast(pl.Int8).alias(f"race_{level}")
        for code, level in RACES
    ]
    out = joined.select(
        "rid",
        pl.when(age.is_between(0, 120)).then(age).alias("age"),
        *("PTGENDER", "PTHAND", "PTETHCAT", *_MARITAL),
        *races,
    )
    declared = [
        Feature(
            name="age",
            unit="a",
            source_file=source,
            source_column="PTDOB, PTDOBYY, VISDATE",
            description="age at the visit, from the month of birth (mid-year if only the year is known)",
        ),
        *(
            Feature(
                name=n,
                source_file=source,
                source_column=n,
                levels=PTDEMOG.field(n).levels,
                unit="a" if n == "PTEDUCAT" else "",
            )
            for n in ("PTGENDER", "PTHAND", "PTETHCAT", *_MARITAL)
        ),
        *(
            Feature(
                name=f"race_{level}",
                source_file=source,
                source_column="PTRACCAT",
                levels=YES_NO_LEVELS,
                description="race selected; several can be",
            )
            for _, level in RACES
        ),
    ]
    return declared, out


def _history(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    names = HISTORY.split()
    frame = pick(export.timed(MEDHIST), cohort, policy, [*names, *QUANTITIES])
    # Sub-items are blank or −4 if the parent item is "no": dose and duration are then 0, time since the end is unknown.
    frame = frame.with_columns(
        pl.when((pl.col(parent) == 0) & pl.lit(zero)).then(pl.lit(0.0)).otherwise(pl.col(q)).alias(q)
        for q, (parent, zero) in QUANTITIES.items()
    )
    declared = [
        *(Feature(name=n, source_file=source, source_column=n, levels=YES_NO_LEVELS) for n in names),
        *(Feature(name=q, source_file=source, source_column=q, unit=_DOSES.get(q, "a")) for q in QUANTITIES),
    ]
    return declared, frame.select("rid", *names, *QUANTITIES)


def _examination(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    names = [*SIGNS.split(), *FUNCTIONS.split()]
    frame = pick(export.timed(NEUROEXM), cohort, policy, names)
    declared = [Feature(name=n, source_file=source, source_column=n, levels=NEUROEXM.field(n).levels) for n in names]
    return declared, frame


def _medication(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str, *, dementia: bool) -> Built:
    """Number of medications and active ingredients; null for participants without an eligible medication record.

    Medications that ended before the year of the visit, or began after it, are excluded, except under latest_update.
    """
    ingredients = {**drugs.INGREDIENTS, **(drugs.DEMENTIA_DRUGS if dementia else {})}
    records = eligible(export.timed(RECCMEDS), cohort, policy)
    active = drugs.is_medication("CMMED")
    if not dementia:
        active = active & ~drugs.is_dementia_drug("CMMED")
    if policy != "latest_update":
        year = pl.col("visit_date").dt.year()
        ended = (pl.col("CMEND") < year) & (pl.col("CMCONT") != 1).fill_null(True)
        active = active & ~(ended | (pl.col("CMBGN") > year)).fill_null(False)
    named = records.with_columns(
        active.fill_null(False).alias("active"),
        drugs.words("CMMED").list.first().alias("first_word"),
        *(drugs.names_any("CMMED", i).alias(f"drug_{i}") for i in ingredients),
    )
    counted = named.group_by("rid", maintain_order=True).agg(
        pl.col("first_word").filter("active").n_unique().alias("n_medications"),
        *((pl.col(f"drug_{i}") & pl.col("active")).any().cast(pl.Int8) for i in ingredients),
    )
    declared = [
        Feature(
            name="n_medications",
            source_file=source,
            source_column="CMMED",
            description="number of different medications" + ("" if dementia else ", without dementia drugs"),
        ),
        *(
            Feature(
                name=f"drug_{i}",
                source_file=source,
                source_column="CMMED",
                levels=YES_NO_LEVELS,
                description=", ".join(brands),
            )
            for i, brands in ingredients.items()
        ),
    ]
    return declared, cohort.select("rid").join(counted, on="rid", how="left", maintain_order="left")


def in_range(value: pl.Expr, unit: pl.Expr, factor: float, low: float, high: float) -> pl.Expr:
    """Convert a length or weight to SI units by its recorded unit (0 imperial, 1 metric), or the other if plausible.

    Null if the unit is unknown and both are plausible.
    """
    metric, imperial = value, value * factor
    fits_metric, fits_imperial = metric.is_between(low, high), imperial.is_between(low, high)
    first_metric = (unit == 1).fill_null(False)
    return (
        pl.when(unit.is_null() & fits_metric & fits_imperial)
        .then(None)
        .when(first_metric & fits_metric)
        .then(metric)
        .when(fits_imperial)
        .then(imperial)
        .when(fits_metric)
        .then(metric)
    )


def in_si(vitals: pl.DataFrame) -> pl.DataFrame:
    """Add `weight` (kg), `height` (cm) and `temperature` (°C) to VITALS; implausible unit labels are corrected."""
    temperature = pl.col("VSTEMP")
    celsius = pl.when(temperature > 50).then((temperature - 32) * 5 / 9).otherwise(temperature)
    return vitals.with_columns(
        in_range(pl.col("VSWEIGHT"), pl.col("VSWTUNIT"), POUND_KG, 30, 200).alias("weight"),
        in_range(pl.col("VSHEIGHT"), pl.col("VSHTUNIT"), INCH_CM, 120, 210).alias("height"),
        pl.when(celsius.is_between(30, 43)).then(celsius).alias("temperature"),
    )


def _vitals(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    fields = ["weight", "height", "temperature", "VSBPSYS", "VSBPDIA", "VSPULSE", "VSRESP"]
    chosen = pick(in_si(export.timed(VITALS)), cohort, policy, fields)
    out = chosen.select(
        "rid",
        "weight",
        "height",
        (pl.col("weight") / (pl.col("height") / 100) ** 2).alias("bmi"),
        "temperature",
        pl.col("VSBPSYS").alias("systolic"),
        pl.col("VSBPDIA").alias("diastolic"),
        pl.col("VSPULSE").alias("pulse"),
        pl.col("VSRESP").alias("respiration"),
    )
    described = (
        ("weight", "kg", "VSWEIGHT, VSWTUNIT"),
        ("height", "cm", "VSHEIGHT, VSHTUNIT"),
        ("bmi", "kg/m2", "VSWEIGHT, VSHEIGHT"),
        ("temperature", "degC", "VSTEMP"),
        ("systolic", "mmHg", "VSBPSYS"),
        ("diastolic", "mmHg", "VSBPDIA"),
        ("pulse", "1/min", "VSPULSE"),
        ("respiration", "1/min", "VSRESP"),
    )
    return [Feature(name=n, unit=u, source_file=source, source_column=c) for n, u, c in described], out


def clinical_features(export: AdniExport, cohort: pl.DataFrame, options: AdniOptions) -> Built:
    """Feature declarations and a frame of their values, one row per participant (`rid`)."""
    policy = row_policy(options)
    if options.profile == "paper":
        return paper_features(export, CLINICAL, cohort, policy, dementia_drugs=options.dementia_drugs)
    sources = {t.name: export.shown(t) for t in CLINICAL}
    blocks = [
        _demographics(export, cohort, policy, sources["PTDEMOG"]),
        _history(export, cohort, policy, sources["MEDHIST"]),
        _examination(export, cohort, policy, sources["NEUROEXM"]),
        _medication(export, cohort, policy, sources["RECCMEDS"], dementia=options.dementia_drugs),
        _vitals(export, cohort, policy, sources["VITALS"]),
    ]
    frame = cohort.select("rid")
    declared: list[Feature] = []
    for features, values in blocks:
        declared += features
        frame = frame.join(values, on="rid", how="left", validate="1:1", maintain_order="left")
    return declared, frame


def read_clinical(raw: Path, cohort: pl.DataFrame, options: AdniOptions) -> Features:
    """Read about 120 clinical features for every participant with at least one known value.

    Vector modality, float32 of shape (n_features,), NaN where unknown. Sources: PTDEMOG, MEDHIST, NEUROEXM, RECCMEDS
    and VITALS; units are in the dictionary.

    Raises:
        DataError: a table is missing or invalid.
    """
    declared, frame = clinical_features(AdniExport(raw), cohort, options)
    return vector_modality("clinical", BIT, DESCRIPTION, declared, frame, cohort)
