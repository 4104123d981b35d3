"""Cohort selection, labels and attrition.

One sample per participant: `sample_id = subject_id = PTID`. The sample's visit is the one that provides the label, or
the baseline visit under `rows=baseline`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.export import Export, diagnoses
from mrpipe.datasets.adni.forms.rows import row_policy
from mrpipe.datasets.adni.forms.values import original_phase
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import DXSUM
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Attrition, Cohort


def labelled(records: pl.DataFrame, options: AdniOptions, attrition: Attrition) -> pl.DataFrame:
    """Apply the label policy: `rid, value, month, date, viscode`, one row per included participant.

    Args:
        records: output of `diagnoses`, sorted by visit.
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
    # Take the last eligible record. For baseline_dx the baseline visit is sorted after screening.
    chosen = known.group_by("rid", maintain_order=True).last()
    if options.label == "baseline_dx":
        attrition.step("no diagnosis at screening or baseline (label=baseline_dx)", len(chosen))
    return chosen.select("rid", pl.col("dx").alias("value"), "month", "date", "viscode")


def build_cohort(raw: Path, options: AdniOptions) -> Cohort:
    """Select the participants with a diagnosis under the label policy.

    Besides the IDs, the samples table has `rid` (Int32, join key of every ADNI table), `phase` (String, phase of
    enrolment), `visit` (String, visit code), `visit_month` (Int32, months since baseline) and `visit_date` (Date).

    Raises:
        DataError: the diagnosis table is missing or invalid, no table has PTIDs, or no participants remain.
    """
    export = Export(raw)
    records = diagnoses(export, options.label_source)
    attrition = Attrition(records["rid"].n_unique(), "participants with a diagnostic record")
    label = labelled(records, options, attrition)
    if export.roster.is_empty():
        raise DataError(
            Fault(
                file=f"{DXSUM.name}_ddMonYYYY.csv",
                column="PTID",
                expected="a table that maps RID to PTID",
                found="no table with a PTID column",
                fix="Add ROSTER, ADNIMERGE or an APOERES file from 2024 or later to the export.",
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
                fix=f"No participants remain with label={options.label}; see the label policies in docs/adni.md.",
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
