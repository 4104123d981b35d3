"""Modality `clinical`: demographics, medical history, neurological examination, medications and vital signs.

Values are decoded and converted to SI units; nothing is imputed. Identifiers, dates, form metadata and years of onset
or diagnosis (PTCOGBEG, PTADDX, PTADBEG) are never features.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni import tables as loni
from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms import medications as drugs
from mrpipe.datasets.adni.forms.features import Built, Feature, features, side_by_side, vector_modality
from mrpipe.datasets.adni.forms.paper_profile import paper_features
from mrpipe.datasets.adni.forms.rows import eligible, pick, row_policy
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.schema import Features

BIT = 2
DESCRIPTION = "demographics, medical history, neurological examination, medication and vital signs"
_MARITAL = ("PTMARRY", "PTEDUCAT", "PTNOTRT", "PTHOME")
_DOSES = {"MH14AALCH": "drinks/d", "MH16ASMOK": "packs/d"}
POUND_KG, INCH_CM = 0.45359237, 2.54
YES_NO_LEVELS = ("no", "yes")


def _demographics(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    frame = export.timed(loni.PTDEMOG)
    constant = ["PTGENDER", "PTHAND", "PTETHCAT", "PTRACCAT", "PTDOB", "PTDOBMM", "PTDOBYY", "AGE"]
    static = pick(frame, cohort, policy, constant, static=True)
    changing = pick(frame, cohort, policy, _MARITAL)
    joined = static.join(changing, on="rid", how="left").join(cohort.select("rid", "visit_date"), on="rid", how="left")
    joined = joined.join(export.baselines, on="rid", how="left")
    # PTDOB is MM/YYYY. If the month is unknown, use the middle of the year.
    month = pl.coalesce(pl.col("PTDOB").str.extract(r"^(\d{1,2})/").cast(pl.Float64, strict=False), pl.col("PTDOBMM"))
    year = pl.coalesce(pl.col("PTDOB").str.extract(r"(\d{4})").cast(pl.Int32, strict=False), pl.col("PTDOBYY"))
    born = year + (month.fill_null(7.0) - 0.5) / 12
    visit = pl.col("visit_date").dt.year() + (pl.col("visit_date").dt.ordinal_day() - 0.5) / 365.25
    # ADNIMERGE has no date of birth, but the age at baseline.
    later = (pl.col("visit_date") - pl.col("date0")).dt.total_days() / 365.25
    merged = export.path(loni.PTDEMOG, merged=False) is None
    age = pl.col("AGE") + later if merged else visit - born
    selected = pl.col("PTRACCAT")
    # A code outside the list may stand for any race, so that the races that are not selected are unknown.
    listed = selected.list.eval(pl.element().is_in([code for code, _ in loni.RACES])).list.all()
    known = (selected.list.len() > 0) & listed
    races = [
        pl.when(selected.list.contains(code)).then(1).when(known).then(0).cast(pl.Int8).alias(f"race_{level}")
        for code, level in loni.RACES
    ]
    coded = ("PTGENDER", "PTHAND", "PTETHCAT", *_MARITAL)
    out = joined.select("rid", pl.when(age.is_between(0, 120)).then(age).alias("age"), *coded, *races)
    column = "AGE" if merged else "PTDOB, PTDOBYY, VISDATE"
    text = "that at baseline" if merged else "the month of birth (mid-year if only the year is known)"
    declared = features(source, {"age": column}, unit="a", description=f"age at the visit, from {text}")
    for n in coded:
        declared += features(source, {n: n}, levels=loni.PTDEMOG.field(n).levels, unit="a" if n == "PTEDUCAT" else "")
    columns, text = {f"race_{level}": "PTRACCAT" for _, level in loni.RACES}, "race selected; several can be"
    declared += features(source, columns, levels=YES_NO_LEVELS, description=text)
    return _known(declared, out) if merged else (declared, out)


def _known(declared: list[Feature], frame: pl.DataFrame) -> Built:
    """Features with a value for some participant: a table that replaces another may lack some."""
    kept = [f for f in declared if frame[f.name].null_count() < len(frame)]
    return kept, frame.select("rid", *(f.name for f in kept))


def initial_health(frame: pl.DataFrame) -> pl.DataFrame:
    """INITHEALTH, which has one row per condition, with the yes/no items of MEDHIST: one row per visit.

    A category is "no" if none of the conditions is in it. The form has one category for alcohol, drugs and smoking, and
    another meaning of the last one, so that these items are unknown.
    """
    unknown = ("MH14ALCH", "MH15DRUG", "MH16SMOK", "MH19OTHR")
    items = {
        item: (pl.col("IHSYMPTOM") == code).any() | ((item == "MH18SURG") & (pl.col("IHSURG") == 1).any())
        for code, item in enumerate(loni.HISTORY)
        if item not in unknown
    }
    grouped = frame.sort("row").group_by(["rid", "month", "rank", "date", "when"], maintain_order=True)
    known = (e.fill_null(False).cast(pl.Int8).alias(item) for item, e in items.items())
    return grouped.agg(pl.col("stamp", "row").last(), *known)


def _history(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    names = loni.HISTORY
    frames = [pl.DataFrame(schema=dict.fromkeys(names, pl.Int8) | dict.fromkeys(loni.QUANTITIES, pl.Float64))]
    frames += [export.timed(loni.MEDHIST)] if export.path(loni.MEDHIST) else []
    frames += [initial_health(export.timed(loni.INITHEALTH))] if export.path(loni.INITHEALTH) else []
    frame = pick(pl.concat(frames, how="diagonal"), cohort, policy, [*names, *loni.QUANTITIES])
    # Sub-items are blank or −4 if the parent item is "no": dose and duration are then 0, time since the end is unknown.
    frame = frame.with_columns(
        pl.when((pl.col(parent) == 0) & pl.lit(zero)).then(pl.lit(0.0)).otherwise(pl.col(q)).alias(q)
        for q, (parent, zero) in loni.QUANTITIES.items()
    )
    declared = features(source, {n: n for n in names}, levels=YES_NO_LEVELS)
    declared += [Feature(name=q, source_file=source, source_column=q, unit=_DOSES.get(q, "a")) for q in loni.QUANTITIES]
    built = declared, frame.select("rid", *names, *loni.QUANTITIES)
    return built if export.path(loni.MEDHIST) else _known(*built)


def _examination(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str) -> Built:
    names = [*loni.SIGNS, *loni.FUNCTIONS]
    frame = pick(export.timed(loni.NEUROEXM), cohort, policy, names)
    declared = [f for n in names for f in features(source, {n: n}, levels=loni.NEUROEXM.field(n).levels)]
    return declared, frame


def _medication(export: AdniExport, cohort: pl.DataFrame, policy: str, source: str, *, dementia: bool) -> Built:
    """Number of medications and active ingredients; null for participants without an eligible medication record.

    Medications that ended before the year of the visit, or began after it, are excluded, except under latest_update.
    """
    ingredients = {**drugs.INGREDIENTS, **(drugs.DEMENTIA_DRUGS if dementia else {})}
    records = eligible(export.timed(loni.RECCMEDS), cohort, policy)
    # Participants without medication have a record `none`.
    name = pl.col("CMMED")
    active = name.is_not_null() & ~name.str.to_lowercase().str.strip_chars(" .").is_in(drugs.NO_MEDICATION)
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
    text = "number of different medications" + ("" if dementia else ", without dementia drugs")
    declared = features(source, {"n_medications": "CMMED"}, description=text)
    for i, brands in ingredients.items():
        declared += features(source, {f"drug_{i}": "CMMED"}, levels=YES_NO_LEVELS, description=", ".join(brands))
    return declared, cohort.select("rid").join(counted, on="rid", how="left", maintain_order="left")


def in_range(value: pl.Expr, unit: pl.Expr, factor: float, low: float, high: float) -> pl.Expr:
    """Convert a length or weight to SI units by its recorded unit (0 imperial, 1 metric), or the other if plausible.

    Null if the unit is unknown and both are plausible.
    """
    metric, imperial = value, value * factor
    fits_metric, fits_imperial = metric.is_between(low, high), imperial.is_between(low, high)
    as_metric = fits_metric & ((unit == 1).fill_null(False) | ~fits_imperial)
    known = ~(unit.is_null() & fits_metric & fits_imperial)
    return pl.when(known & as_metric).then(metric).when(known & fits_imperial).then(imperial)


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
    chosen = pick(in_si(export.timed(loni.VITALS)), cohort, policy, fields)
    names = {"VSBPSYS": "systolic", "VSBPDIA": "diastolic", "VSPULSE": "pulse", "VSRESP": "respiration"}
    out = chosen.rename(names).with_columns(bmi=pl.col("weight") / (pl.col("height") / 100) ** 2)
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
    declared = [Feature(name=n, unit=u, source_file=source, source_column=c) for n, u, c in described]
    return declared, out.select("rid", *(f.name for f in declared))


def clinical_tables(export: AdniExport, options: AdniOptions) -> list[loni.LoniTable]:
    """Tables of the modality in the export, or those that replace them; the authors do not use the latter."""
    paper = options.profile == "paper"
    tables = loni.CLINICAL if paper else (*loni.CLINICAL, loni.INITHEALTH)
    return [t for t in tables if export.path(t, merged=not paper) is not None]


def clinical_features(export: AdniExport, cohort: pl.DataFrame, options: AdniOptions) -> Built:
    """Feature declarations and a frame of their values, one row per participant (`rid`)."""
    policy, tables = row_policy(options), clinical_tables(export, options)
    if options.profile == "paper":
        return paper_features(export, tables, cohort, policy, dementia_drugs=options.dementia_drugs)
    builders: dict[loni.LoniTable, Callable[[AdniExport, pl.DataFrame, str, str], Built]] = {
        loni.PTDEMOG: _demographics,
        loni.MEDHIST: _history,
        loni.NEUROEXM: _examination,
        loni.RECCMEDS: partial(_medication, dementia=options.dementia_drugs),
        loni.VITALS: _vitals,
    }
    if loni.MEDHIST not in tables:
        builders = {loni.INITHEALTH if t is loni.MEDHIST else t: b for t, b in builders.items()}
    blocks = (b(export, cohort, policy, export.shown(t)) for t, b in builders.items() if t in tables)
    return side_by_side(cohort, blocks)


def read_clinical(raw: Path, cohort: pl.DataFrame, options: AdniOptions) -> Features:
    """Read about 120 clinical features for every participant with at least one known value.

    Vector modality, float32 of shape (n_features,), NaN where unknown. Sources: PTDEMOG (or ADNIMERGE), MEDHIST and
    INITHEALTH, NEUROEXM, RECCMEDS and VITALS, as far as the export has them; units are in the dictionary.

    Raises:
        DataError: a table is invalid.
    """
    declared, frame = clinical_features(AdniExport(raw), cohort, options)
    return vector_modality("clinical", BIT, DESCRIPTION, declared, frame, cohort)
