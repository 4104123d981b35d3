"""Who is in, with which diagnosis, and why the others are not. A sample is a participant at one visit.

`sample_id = subject_id = PTID`; the visit is the one the label is read from, or, under `rows=baseline`, the baseline.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.export import AdniExport, diagnoses
from mrpipe.datasets.adni.forms.rows import row_policy
from mrpipe.datasets.adni.forms.values import original_phase
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import DXSUM
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Attrition, Cohort


def labelled(records: pl.DataFrame, options: AdniOptions, attrition: Attrition) -> pl.DataFrame:
    """`rid, value, month, date, viscode` of the participants that the label policy keeps.

    Args:
        records: `diagnoses`, in order of visit.
    """
    people = records.group_by("rid", maintain_order=True)
    summary = people.agg(
        pl.col("dx").null_count().alias("n_blank"),
        pl.col("dx").drop_nulls().n_unique().alias("n_states"),
        pl.col("dx").count().alias("n_known"),
    )
    summary = summary.filter(pl.col("n_known") > 0)
    attrition.step("no visit with a diagnosis", len(summary))
    if options.label == "stable_dx":
        if options.blank_diagnosis == "exclude":
            summary = summary.filter(pl.col("n_blank") == 0)
            attrition.step("a visit without a diagnosis (blank_diagnosis=exclude)", len(summary))
        summary = summary.filter(pl.col("n_states") == 1)
        attrition.step("the diagnosis changes (label=stable_dx)", len(summary))
    known = records.join(summary.select("rid"), on="rid", how="semi").filter(pl.col("dx").is_not_null())
    if options.label == "baseline_dx":
        known = known.filter(pl.col("month") <= 0)
    # The last record of the policy's range; for baseline_dx baseline comes after screening.
    chosen = known.group_by("rid", maintain_order=True).last()
    if options.label == "baseline_dx":
        attrition.step("no diagnosis at screening or baseline (label=baseline_dx)", len(chosen))
    return chosen.select("rid", pl.col("dx").alias("value"), "month", "date", "viscode")


def build_cohort(raw: Path, options: AdniOptions) -> Cohort:
    """Participants with a diagnosis under the label policy.

    Samples carry `rid` (Int32, the key of every table), `phase` (entered in), `visit` (code), `visit_month` (Int32),
    `visit_date` (Date).

    Raises:
        DataError: DXSUM is missing or faulty, no table names PTIDs, or nobody is left.
    """
    export = AdniExport(raw)
    records = diagnoses(export, options.label_source)
    attrition = Attrition(records["rid"].n_unique(), "participants with a diagnostic record")
    label = labelled(records, options, attrition)
    if export.roster.is_empty():
        raise DataError(
            Fault(
                file=f"{DXSUM.name}_ddMonYYYY.csv",
                column="PTID",
                expected="a table that says which PTID a RID has",
                found="none of the tables has PTID",
                fix="Add ROSTER, ADNIMERGE or an APOERES of 2024 or later to the export.",
            )
        )
    label = label.join(export.roster, on="rid", how="inner")
    attrition.step("no PTID in any table", len(label))
    if label.is_empty():
        raise DataError(
            Fault(
                file=f"{DXSUM.name}_ddMonYYYY.csv",
                expected="participants with a usable diagnosis",
                found="none",
                fix=f"label={options.label} left nobody; see the label policies.",
            )
        )
    if row_policy(options) == "baseline":
        baseline = export.visits.filter(pl.col("month") == 0).select("rid", pl.col("date").alias("date0"))
        label = label.join(baseline, on="rid", how="left").with_columns(
            date=pl.col("date0"), month=pl.lit(0, pl.Int32), viscode=pl.lit("bl")
        )
    samples = label.select(
        pl.col("ptid").alias("sample_id"),
        pl.col("ptid").alias("subject_id"),
        "rid",
        original_phase(pl.col("rid")).alias("phase"),
        pl.col("viscode").alias("visit"),
        pl.col("month").cast(pl.Int32).alias("visit_month"),
        pl.col("date").alias("visit_date"),
    ).sort("sample_id")
    value = label.select(pl.col("ptid").alias("sample_id"), pl.col("value").cast(pl.Int8)).sort("sample_id")
    return Cohort(samples=samples, labels={"diagnosis": value}, attrition=attrition.frame())
