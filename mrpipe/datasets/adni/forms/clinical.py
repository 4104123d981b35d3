"""Modality `clinical`: demographics, history, neurological examination, medication, vital signs (raw-formats A.6).

Every value is one that the tables hold, decoded and in SI units; nothing is imputed. Onset and diagnosis years
(PTCOGBEG, PTADDX, PTADBEG), identifiers, dates and form metadata are never features.
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
_UNITS = {
    "MH14AALCH": "drinks/d",
    "MH14BALCH": "a",
    "MH14CALCH": "a",
    "MH15ADRUG": "a",
    "MH15BDRUG": "a",
    "MH16ASMOK": "packs/d",
    "MH16BSMOK": "a",
    "MH16CSMOK": "a",
}
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
    # PTDOB is MM/YYYY; where the month is unknown the middle of the year stands in.
    month = pl.coalesce(pl.col("PTDOB").str.extract(r"^(\d{1,2})/").cast(pl.Float64, strict=False), pl.col("PTDOBMM"))
    year = pl.coalesce(pl.col("PTDOB").str.extract(r"(\d{4})").cast(pl.Int32, strict=False), pl.col("PTDOBYY"))
    born = year + (month.fill_null(7.0) - 0.5) / 12
    visit = pl.col("visit_date").dt.year() + (pl.col("visit_date").dt.ordinal_day() - 0.5) / 365.25
    age = visit - born
    races = [pl.col("PTRACCAT").list.contains(code).cast(pl.Int8).alias(f"race_{level}") for code, level in RACES]
    known_race = pl.col("PTRACCAT").list.len() > 0
    out = joined.select(
        "rid",
        pl.when(age.is_between(0, 120)).then(age).alias("age"),
        *("PTGENDER", "PTHAND", "PTETHCAT", *_MARITAL),
        *(pl.when(known_race).then(r).alias(r.meta.output_name()) for r in races),
    )
    declared = [
        Feature(
            name="age",
            unit="a",
            source_file=source,
            source_column="PTDOB, PTDOBYY, VISDATE",
            description="age at the visit, birth to the month where it is known",
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
                description="one of the races given (a multi-select)",
            )
            for _, level in RACES
        ),
    ]
    return declared, out


def _history(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    names = HISTORY.split()
    frame = pick(export.timed(MEDHIST), cohort, policy, [*names, *QUANTITIES])
    # Sub-items are blank or −4 where the parent is no: a dose or a duration is 0 then, a time since the end undefined.
    frame = frame.with_columns(
        pl.when((pl.col(parent) == 0) & pl.lit(zero)).then(pl.lit(0.0)).otherwise(pl.col(q)).alias(q)
        for q, (parent, zero) in QUANTITIES.items()
    )
    declared = [
        *(Feature(name=n, source_file=source, source_column=n, levels=YES_NO_LEVELS) for n in names),
        *(Feature(name=q, source_file=source, source_column=q, unit=_UNITS[q]) for q in QUANTITIES),
    ]
    return declared, frame.select("rid", *names, *QUANTITIES)


def _examination(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    names = [*SIGNS.split(), *FUNCTIONS.split()]
    frame = pick(export.timed(NEUROEXM), cohort, policy, names)
    declared = [Feature(name=n, source_file=source, source_column=n, levels=NEUROEXM.field(n).levels) for n in names]
    return declared, frame


def _medication(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str, *, dementia: bool) -> Built:
    """Number of medications and which ingredients; null for a participant without any medication record in range.

    Under latest_before_dx a medication that ended before the visit's year does not count.
    """
    ingredients = {**drugs.INGREDIENTS, **(drugs.DEMENTIA_DRUGS if dementia else {})}
    records = eligible(export.timed(RECCMEDS), cohort, policy) if export.table(RECCMEDS) is not None else None  # type: ignore[arg-type]
    assert records is not None
    active = drugs.is_medication("CMMED")
    if not dementia:
        active = active & ~drugs.is_dementia_drug("CMMED")
    if policy == "latest_before_dx":
        ended = pl.col("CMEND") < pl.col("visit_date").dt.year()
        active = active & ((pl.col("CMCONT") == 1).fill_null(False) | ended.is_null() | ~ended)
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
            description="different medications" + ("" if dementia else ", drugs against dementia left out"),
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
    """A length or weight in SI units: as labelled (0 imperial, 1 metric), else in the other unit, if plausible."""
    metric, imperial = value, value * factor
    fits_metric, fits_imperial = metric.is_between(low, high), imperial.is_between(low, high)
    first_metric = (unit == 1).fill_null(False)
    return (
        pl.when(first_metric & fits_metric)
        .then(metric)
        .when(fits_imperial)
        .then(imperial)
        .when(fits_metric)
        .then(metric)
    )


def in_si(vitals: pl.DataFrame) -> pl.DataFrame:
    """Weight kg, height cm, temperature °C of each record; labels that cannot be right are overruled (A.2 VITALS)."""
    temperature = pl.col("VSTEMP")
    celsius = pl.when(temperature > 50).then((temperature - 32) * 5 / 9).otherwise(temperature)
    return vitals.with_columns(
        in_range(pl.col("VSWEIGHT"), pl.col("VSWTUNIT"), POUND_KG, 30, 200).alias("weight"),
        in_range(pl.col("VSHEIGHT"), pl.col("VSHTUNIT"), INCH_CM, 120, 210).alias("height"),
        pl.when(celsius.is_between(30, 43)).then(celsius).alias("temperature"),
    )


def _vitals(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    frame = export.timed(VITALS)
    assert frame is not None
    fields = ["weight", "height", "temperature", "VSBPSYS", "VSBPDIA", "VSPULSE", "VSRESP"]
    chosen = pick(in_si(frame), cohort, policy, fields)
    # Height is taken at screening: without one in range of the policy, any record of an adult will do.
    height = pick(in_si(frame), cohort, policy, ["height"], static=True).rename({"height": "any_height"})
    chosen = chosen.join(height, on="rid", how="left").with_columns(pl.coalesce("height", "any_height").alias("height"))
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
    """Declared features and their values, one row a participant (`rid`)."""
    policy = row_policy(options)
    for table in CLINICAL:
        export.require(table)
    if options.profile == "paper":
        return paper_features(export, CLINICAL, cohort, policy, dementia_drugs=options.dementia_drugs)
    sources = {t.name: path.name for t in CLINICAL if (path := export.path(t)) is not None}
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
    """About 120 features of each participant with any clinical record.

    Raises:
        DataError: a table is missing or faulty.
    """
    declared, frame = clinical_features(AdniExport(raw), cohort, options)
    return vector_modality("clinical", BIT, DESCRIPTION, declared, frame, cohort)
