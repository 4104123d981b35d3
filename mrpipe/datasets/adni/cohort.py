"""Cohort selection, labels and attrition.

One sample per participant: `sample_id = subject_id = PTID`. The sample's visit is the one that provides the label, or
the baseline visit under `rows=baseline`.
"""

from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms.rows import ORDER, row_policy
from mrpipe.datasets.adni.forms.values import original_phase, plain_code
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import ADNIMERGE, DXSUM, LoniTable
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Attrition, Cohort

# Code → class (0 CN, 1 MCI, 2 Dementia), by column of DXSUM, in order of preference.
_CODES = {
    "DIAGNOSIS": {"1": 0, "2": 1, "3": 2},
    "DXCHANGE": {"1": 0, "7": 0, "9": 0, "2": 1, "4": 1, "8": 1, "3": 2, "5": 2, "6": 2},
    "DXCURREN": {"1": 0, "2": 1, "3": 2},
}
_NAMES = {"CN": 0, "NL": 0, "MCI": 1, "Dementia": 2, "AD": 2}


def label_table(export: AdniExport, source: str) -> LoniTable:
    """The table with the diagnoses under the option `label_source`."""
    without = source == "auto" and export.path(DXSUM) is None and export.path(ADNIMERGE) is not None
    return ADNIMERGE if without or source == "adnimerge" else DXSUM


def diagnoses(export: AdniExport, source: str) -> pl.DataFrame:
    """Diagnostic records sorted by date: `rid, when, month, rank, viscode, date, row, dx` (0 CN, 1 MCI, 2 Dementia).

    DXSUM: DIAGNOSIS, else DXCHANGE (ADNIGO/2), else DXCURREN (ADNI1). ADNIMERGE: DX. Conversions and reversions count
    as their new state. DIAGNOSIS may have names instead of codes, as in the R package ADNIMERGE2.

    Raises:
        DataError: no diagnosis column is filled, a code is unknown, or DIAGNOSIS uses the five-level coding of an
            older data dictionary (1 CN, 5 SMC, 2 EMCI, 3 LMCI, 4 AD), recognised by codes 4 and 5.
    """
    table = label_table(export, source)
    frame = export.timed(table)
    if table is ADNIMERGE:
        code = {"DX": pl.col("DX").str.split(" to ").list.last().str.strip_chars()}
        maps = {"DX": _NAMES}
    else:
        code, maps = {c: plain_code(c) for c in _CODES}, {c: codes | _NAMES for c, codes in _CODES.items()}
    for column, codes in maps.items():
        state = code[column].replace_strict(codes, default=None, return_dtype=pl.Int8).alias(f"dx.{column}")
        frame = frame.with_columns(state)
        stray = frame.filter(pl.col(column).is_not_null() & pl.col(f"dx.{column}").is_null())
        if len(stray):
            fix = f"{len(stray)} rows are affected."
            if column == "DIAGNOSIS" and stray.select(code[column].is_in(["4", "5"]).any()).item():
                fix = "The file uses the coding 1 CN, 5 SMC, 2 EMCI, 3 LMCI, 4 AD of an older data dictionary, "
                fix += "in which 3 is not dementia. Download DXSUM again."
            expected = ", ".join(_NAMES) if table is ADNIMERGE else f"codes {', '.join(_CODES[column])}"
            raise export.fault(table, int(stray["row"][0]), column, expected, stray[column][0], fix)
    if all(frame[c].null_count() == len(frame) for c in maps):
        file, expected = export.shown(table), f"values in the column {' or '.join(maps)}"
        fix = "Check whether the column was renamed or dropped."
        raise DataError(Fault(file=file, expected=expected, found="no diagnosis in any row", fix=fix))
    states = pl.concat_list(f"dx.{c}" for c in maps).list.drop_nulls()
    file = export.shown(table)
    text = f"{file}: {{n}} records have different diagnoses in {', '.join(maps)}"
    export.note(states.list.n_unique() > 1, frame, text)
    ordered = frame.with_columns(states.list.first().alias("dx")).sort(ORDER, nulls_last=False)
    several = pl.col("dx").drop_nulls().n_unique().over("rid", "viscode", "date") > 1
    export.note(several, ordered, f"{file}: {{n}} records are of visits with several diagnoses; the last edit counts")
    return ordered.select("rid", "when", "month", "rank", "viscode", "date", "row", "dx")


def labelled(records: pl.DataFrame, options: AdniOptions, attrition: Attrition) -> pl.DataFrame:
    """Apply the label policy: `rid, value, month, date, viscode`, one row per included participant.

    Args:
        records: output of `diagnoses`, sorted by date.
    """
    people = records.group_by("rid", maintain_order=True)
    dx = pl.col("dx")
    summary = people.agg(n_blank=dx.null_count(), n_states=dx.drop_nulls().n_unique()).filter(pl.col("n_states") > 0)
    attrition.step("no visit with a diagnosis", len(summary))
    if options.label == "stable_dx":
        if options.blank_diagnosis == "exclude":
            summary = summary.filter(pl.col("n_blank") == 0)
            attrition.step("a visit without a diagnosis", len(summary))
        summary = summary.filter(pl.col("n_states") == 1)
        attrition.step("diagnosis changes between visits", len(summary))
    known = records.join(summary.select("rid"), on="rid", how="semi").filter(pl.col("dx").is_not_null())
    if options.label == "baseline_dx":
        known = known.filter(pl.col("month") <= 0)
    # Take the last eligible record. For baseline_dx the baseline visit is sorted after screening.
    chosen = known.group_by("rid", maintain_order=True).last()
    if options.label == "baseline_dx":
        attrition.step("no diagnosis at screening or baseline", len(chosen))
    return chosen.select("rid", pl.col("dx").alias("value"), "month", "date", "viscode")


def build_cohort(raw: Path, options: AdniOptions, export: AdniExport | None = None) -> Cohort:
    """Select the participants with a diagnosis under the label policy.

    Besides the IDs, the samples table has `rid` (Int32, join key of every ADNI table), `phase` (String, phase of
    enrolment), `visit` (String, visit code), `visit_month` (Int32, months since baseline) and `visit_date` (Date).

    Raises:
        DataError: the diagnosis table is missing or invalid, no table has PTIDs, or no participants remain.
    """
    export = export or AdniExport(raw)
    records, file = diagnoses(export, options.label_source), export.shown(label_table(export, options.label_source))
    attrition = Attrition(records["rid"].n_unique(), "participants with a diagnostic record")
    label = labelled(records, options, attrition)
    if export.roster.is_empty():
        expected, found = "a table that maps RID to PTID", "no table with a PTID column"
        fix = "Add ROSTER, ADNIMERGE or an APOERES file from 2024 or later to the export."
        raise DataError(Fault(file=file, column="PTID", expected=expected, found=found, fix=fix))
    label = label.join(export.roster, on="rid", how="inner")
    attrition.step("no PTID in any table", len(label))
    if label.is_empty():
        expected = "participants with a usable diagnosis"
        fix = f"No participants remain with label={options.label}; see the label policies in docs/adni.md."
        raise DataError(Fault(file=file, expected=expected, found="none", fix=fix))
    if row_policy(options) == "baseline":
        baseline = export.visits.filter(pl.col("month") == 0).select("rid", pl.col("date").alias("date0"))
        at_baseline = {"date": pl.col("date0"), "month": pl.lit(0, pl.Int32), "viscode": pl.lit("bl")}
        label = label.join(baseline, on="rid", how="left").with_columns(**at_baseline)
    ids = {"sample_id": "ptid", "subject_id": "ptid", "rid": "rid"}
    visit = {"visit": pl.col("viscode"), "visit_month": pl.col("month").cast(pl.Int32), "visit_date": pl.col("date")}
    samples = label.select(**ids, phase=original_phase(pl.col("rid")), **visit).sort("sample_id")
    value = label.select(pl.col("ptid").alias("sample_id"), pl.col("value").cast(pl.Int8)).sort("sample_id")
    return Cohort(samples=samples, labels={"diagnosis": value}, attrition=attrition.frame())
