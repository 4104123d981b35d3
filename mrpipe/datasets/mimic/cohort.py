"""Cohort selection, labels and attrition.

A sample is a patient. Only `visits` filters admissions; the readers of codes, notes and measurements use it too, so
that no modality includes an excluded visit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan.progress import log
from mrpipe.datasets.mimic.tables import detect_release, open_optional, open_table
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Attrition, Cohort

TASK = "mortality"
PAPER = {
    "patients": 9_003,
    "deaths within a year": 2_037,
    "patients without notes": 108,
    "patients without diagnoses": 4,
    "patients without procedures": 1_777,
}


@dataclass(frozen=True, kw_only=True)
class Visits:
    """The included visits, their patients, and the attrition so far.

    Attributes:
        kept: one row per visit: `subject_id, hadm_id, admittime, dischtime` (Datetime) and `number` (from 1), sorted
            by patient and admission time.
        patients: `subject_id, gender, anchor_age, anchor_year, death` (Date or null) and `last_discharge` (Date) of
            the patients in `kept`.
        attrition: exclusion steps, in patients.
    """

    kept: pl.DataFrame
    patients: pl.DataFrame
    attrition: Attrition


def require_consistent(patients: pl.DataFrame, admissions: pl.DataFrame) -> None:
    """Require unique keys, and a row in patients for every admission.

    Raises:
        DataError: repeated keys, or admissions of unknown patients.
    """
    for frame, key, file in ((patients, "subject_id", "hosp/patients"), (admissions, "hadm_id", "hosp/admissions")):
        repeated = frame[key].is_duplicated()
        if repeated.any():
            row, found = int(repeated.arg_max() or 0) + 1, f"{int(repeated.sum())} rows with repeated values"
            fix = "Check that the table does not combine two releases."
            raise DataError(Fault(file=file, column=key, row=row, expected="unique values", found=found, fix=fix))
    unknown = admissions.join(patients, on="subject_id", how="anti")
    if len(unknown):
        raise DataError(
            Fault(
                file="hosp/admissions",
                column="subject_id",
                expected="patients in hosp/patients",
                found=f"{unknown['subject_id'].n_unique()} other patients",
                fix="Check that the tables are from the same release.",
            )
        )


def deaths(patients: pl.DataFrame, admissions: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """`subject_id, death, last_discharge`: dates of death (null if not recorded) and of the last discharge.

    Source: dod in patients. With `death_date=any`, a blank dod is replaced by the date of the in-hospital death in
    admissions: deathtime, otherwise dischtime of the visit with hospital_expire_flag.
    """
    in_hospital = pl.coalesce(
        pl.col("deathtime").dt.date(), pl.when(pl.col("hospital_expire_flag") == 1).then(pl.col("dischtime").dt.date())
    )
    per_patient = admissions.group_by("subject_id").agg(
        in_hospital.min().alias("in_hospital"), pl.col("dischtime").dt.date().max().alias("last_discharge")
    )
    death = pl.col("dod") if options.death_date == "dod" else pl.coalesce("dod", "in_hospital")
    return patients.join(per_patient, on="subject_id", how="left").select(
        "subject_id", death.alias("death"), "last_discharge"
    )


def icd9_visits(raw: Path, options: MimicOptions) -> pl.DataFrame:
    """`hadm_id` of the visits whose diagnoses and procedures satisfy the option `icd9`."""
    tables = [open_table(raw, "hosp/diagnoses_icd"), open_optional(raw, "hosp/procedures_icd")]
    versions = pl.concat([t.select("hadm_id", "icd_version") for t in tables if t is not None])
    nine = pl.col("icd_version") == 9
    rule = nine.all() if options.icd9 == "all" else nine.any()
    return versions.group_by("hadm_id").agg(rule.alias("ok")).filter("ok").select("hadm_id")


def visits(raw: Path, options: MimicOptions) -> Visits:
    """Apply all visit and patient filters to the admissions, in order of time.

    Raises:
        DataError: repeated keys, admissions of unknown patients, or an unknown release.
    """
    patients, admissions = open_table(raw, "hosp/patients"), open_table(raw, "hosp/admissions")
    require_consistent(patients, admissions)
    detect_release(patients, admissions, options)
    flow = Attrition(len(patients), "patients in the export")
    dead = deaths(patients, admissions, options)
    kept = admissions.join(dead.select("subject_id", "death"), on="subject_id", how="left")
    kept = kept.sort("subject_id", "admittime", "hadm_id")

    def narrow(condition: pl.Expr, reason: str) -> None:
        nonlocal kept
        kept = kept.filter(condition)
        flow.step(reason, kept["subject_id"].n_unique())

    narrow(pl.lit(True), "no admission")
    if options.reversed_visits == "drop":
        narrow(pl.col("admittime") <= pl.col("dischtime"), "only visits that are discharged before their admission")
    if options.overlapping_visits == "drop":
        before = pl.col("dischtime").cum_max().shift(1).over("subject_id")
        narrow(before.is_null() | (pl.col("admittime") >= before), "only visits that overlap an earlier one")
    enough = pl.len().over("subject_id") >= options.min_visits
    if options.min_visits_stage == "before":
        narrow(enough, f"fewer than {options.min_visits} visits, of any kind")
    if options.terminal_visits == "drop":
        terminal = (
            (pl.col("hospital_expire_flag") == 1)
            | pl.col("deathtime").is_not_null()
            | (pl.col("death") <= pl.col("dischtime").dt.date()).fill_null(False)
        )
        narrow(~terminal, "only visits that end in death")
    if options.icd9 != "off":
        kept = kept.join(icd9_visits(raw, options), on="hadm_id", how="semi")
        which = "only ICD-9 codes" if options.icd9 == "all" else "an ICD-9 code"
        narrow(pl.lit(True), f"no visit with {which}")
    stays = open_table(raw, "icu/icustays").select("hadm_id").unique() if options.require_icu != "no" else None
    if stays is not None and options.require_icu == "every":
        kept = kept.join(stays, on="hadm_id", how="semi")
        narrow(pl.lit(True), "no visit with an ICU stay")
    if options.min_visits_stage == "after":
        narrow(enough, f"fewer than {options.min_visits} remaining visits")
    kept = kept.sort("subject_id", "admittime", "hadm_id")
    if options.index_visit == "first":
        # Visits after the prediction time are not available to the model.
        kept = kept.filter(pl.int_range(pl.len()).over("subject_id") == 0)
    if stays is not None and options.require_icu in ("patient", "index"):
        # A column rather than is_in(list): inside `over`, polars would copy the list once per patient.
        marked = stays.with_columns(pl.lit(True).alias("in_icu"))
        kept = kept.join(marked, on="hadm_id", how="left", maintain_order="left").with_columns(
            pl.col("in_icu").fill_null(False)
        )
        one = pl.col("in_icu").any() if options.require_icu == "patient" else pl.col("in_icu").last()
        which = "any remaining" if options.require_icu == "patient" else "the index"
        narrow(one.over("subject_id"), f"no ICU stay in {which} visit")
    if options.min_age:
        person = patients.select("subject_id", "anchor_age", "anchor_year")
        kept = kept.join(person, on="subject_id", how="left", maintain_order="left")
        age = pl.col("anchor_age") + pl.col("admittime").dt.year() - pl.col("anchor_year")
        narrow((age.last() >= options.min_age).over("subject_id"), f"under {options.min_age} at the index admission")
    kept = kept.select(
        "subject_id",
        "hadm_id",
        "admittime",
        "dischtime",
        (pl.int_range(pl.len(), dtype=pl.Int32).over("subject_id") + 1).alias("number"),
    )
    people = patients.join(dead, on="subject_id").join(kept, on="subject_id", how="semi").sort("subject_id")
    people = people.select("subject_id", "gender", "anchor_age", "anchor_year", "death", "last_discharge")
    return Visits(kept=kept, patients=people, attrition=flow)


def label(death: pl.Expr, discharge: pl.Expr, last_discharge: pl.Expr, horizon: int) -> pl.Expr:
    """1 if dead within `horizon` days of `discharge`, 0 if alive then, null if unknown; all three are dates.

    A blank dod only means that the patient was alive one year after the *last* discharge, because the provider blanks
    later deaths; if the horizon ends after that, the label is unknown. A death one day before the discharge is a
    disagreement between date and time and counts as day 0; earlier deaths contradict the visit (unknown).
    """
    days = (death - discharge).dt.total_days()
    known_alive = (discharge + pl.duration(days=horizon)) <= (last_discharge + pl.duration(days=365))
    return (
        pl.when(days < -1)
        .then(None)
        .when(days <= horizon)
        .then(1)
        .when(days > horizon)
        .then(0)
        .when(death.is_null() & known_alive)
        .then(0)
        .otherwise(None)
        .cast(pl.Int8)
    )


def build_cohort(raw: Path, options: MimicOptions) -> Cohort:
    """Samples, labels and attrition of the cohort; also prints the attrition next to the numbers in the paper.

    Source: admissions, patients, icustays, diagnoses_icd and procedures_icd. One sample per patient; times are from
    admittime and dischtime, `age` in years is anchor_age plus the years from anchor_year to the index admission.

    Raises:
        DataError: inconsistent tables, or no patient left.
    """
    options.validate()
    found = visits(raw, options)
    per_patient = found.kept.group_by("subject_id").agg(
        pl.col("hadm_id").last().alias("index_hadm_id"),
        pl.col("admittime").first().alias("first_admittime"),
        pl.col("admittime").last().alias("index_admittime"),
        pl.col("dischtime").last().alias("index_dischtime"),
        pl.len().cast(pl.Int32).alias("n_visits"),
    )
    frame = (
        found.patients.join(per_patient, on="subject_id")
        .with_columns(
            label(
                pl.col("death"), pl.col("index_dischtime").dt.date(), pl.col("last_discharge"), options.horizon_days
            ).alias("value"),
            (pl.col("anchor_age") + pl.col("index_admittime").dt.year() - pl.col("anchor_year"))
            .cast(pl.Int32)
            .alias("age"),
            pl.col("subject_id").cast(pl.String).alias("sample_id"),
        )
        .filter(pl.col("value").is_not_null())
        .sort("sample_id")
    )
    found.attrition.step(f"state unknown {options.horizon_days} days after the index discharge", len(frame))
    if frame.is_empty():
        raise DataError(
            Fault(
                file="hosp/admissions",
                expected="at least one patient in the cohort",
                found="; ".join(f"{n:,} {reason}" for n, reason in _flow(found.attrition.frame()) if n),
                fix="Relax the rule that excludes them; mrpipe options mimic lists the rules.",
            )
        )
    samples = frame.select(
        "sample_id",
        pl.col("subject_id").cast(pl.String),
        "index_hadm_id",
        "first_admittime",
        "index_admittime",
        "index_dischtime",
        "n_visits",
        "age",
        "gender",
    )
    counts = code_counts(raw, found.kept.join(frame, on="subject_id", how="semi"))
    samples = samples.join(counts, on="sample_id", how="left", maintain_order="left").with_columns(
        pl.col("n_diagnoses", "n_procedures").fill_null(0)
    )
    attrition = found.attrition.frame()
    _report(attrition, samples, frame["value"])
    if options.store_text:
        from mrpipe.datasets.mimic.notes import note_texts

        samples = samples.join(note_texts(raw, samples, options), on="sample_id", how="left", maintain_order="left")
    return Cohort(samples=samples, labels={TASK: frame.select("sample_id", "value")}, attrition=attrition)


def code_counts(raw: Path, kept: pl.DataFrame) -> pl.DataFrame:
    """`sample_id, n_diagnoses, n_procedures, icd_versions` ("9", "10" or "9+10") over the included visits."""
    keys = kept.select("subject_id", "hadm_id")
    names = {"hosp/diagnoses_icd": "n_diagnoses", "hosp/procedures_icd": "n_procedures"}
    tables = {n: open_optional(raw, t) for t, n in names.items()}
    codes = pl.concat(
        [t.select("hadm_id", "icd_version", pl.lit(n).alias("table")) for n, t in tables.items() if t is not None]
    ).join(keys, on="hadm_id")
    version = pl.col("icd_version").unique().sort().cast(pl.String).str.join("+")
    return (
        codes.group_by("subject_id")
        .agg(
            *(pl.col("table").eq(n).sum().cast(pl.Int32).alias(n) for n in names.values()),
            version.alias("icd_versions"),
        )
        .with_columns(pl.col("subject_id").cast(pl.String).alias("sample_id"))
        .drop("subject_id")
    )


def _flow(attrition: pl.DataFrame) -> list[tuple[int, str]]:
    """Number of patients at the start, and number excluded by each step."""
    return [
        (before - after, f"excluded: {reason}") if step else (after, reason)
        for step, reason, before, after in attrition.iter_rows()
    ]


def _report(attrition: pl.DataFrame, samples: pl.DataFrame, value: pl.Series) -> None:
    log("mimic cohort, in patients (numbers of the MoE-Retriever paper in brackets)")
    for n, reason in _flow(attrition):
        log(f"  {n:>9,}  {reason}")
    log(f"  {attrition['n_after'][-1]:>9,}  in the cohort [{PAPER['patients']:,}]")
    counted = {
        "deaths within a year": int(value.sum()),
        "patients without diagnoses": int((samples["n_diagnoses"] == 0).sum()),
        "patients without procedures": int((samples["n_procedures"] == 0).sum()),
    }
    for name, n in counted.items():
        expected = PAPER[name]
        log(f"  {n:>9,}  {name}, {n / len(samples):.1%} [{expected:,}, {expected / PAPER['patients']:.1%}]")


def visits_of(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """Included visits of these samples with `rank`, the position of the sample in sorted order of `sample_id`."""
    ranks = (
        samples.select("sample_id")
        .sort("sample_id")
        .with_row_index("rank")
        .with_columns(pl.col("rank").cast(pl.Int32), pl.col("sample_id").cast(pl.Int64).alias("subject_id"))
    )
    kept = visits(raw, options).kept.join(ranks, on="subject_id")
    return kept.sort("rank", "admittime", "hadm_id")
