"""Who is in, with which label, and why the others are not (raw-formats.md B.2, B.4, B.5).

A sample is a patient. `visits` is the one place where admissions are cut down to those that count; the readers of
codes, notes and measurements ask it too, so that no modality sees a visit that the cohort dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan.progress import say
from mrpipe.datasets.mimic.tables import open_optional, open_table, tell_release
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
    """The visits that count, and the flow of patients down to them.

    Attributes:
        kept: one row a visit: `subject_id, hadm_id, admittime, dischtime` (Datetime), `number` (1 the first), by
            patient and admission time.
        patients: `subject_id, gender, anchor_age, anchor_year, death` (Date or null), `last_discharge` (Date), those
            of `kept` only.
        attrition: the steps so far, in patients.
    """

    kept: pl.DataFrame
    patients: pl.DataFrame
    attrition: Attrition


def _require_consistent(patients: pl.DataFrame, admissions: pl.DataFrame) -> None:
    for frame, key, file in ((patients, "subject_id", "hosp/patients"), (admissions, "hadm_id", "hosp/admissions")):
        repeated = frame[key].is_duplicated()
        if repeated.any():
            raise DataError(
                Fault(
                    file=file,
                    column=key,
                    row=int(repeated.arg_max() or 0) + 1,
                    expected="each value once",
                    found=f"{int(repeated.sum())} rows that repeat one",
                    fix="Are two releases in one table?",
                )
            )
    strangers = admissions.join(patients, on="subject_id", how="anti")
    if len(strangers):
        raise DataError(
            Fault(
                file="hosp/admissions",
                column="subject_id",
                expected="patients of hosp/patients",
                found=f"{strangers['subject_id'].n_unique()} others",
                fix="Are the tables of one release?",
            )
        )


def deaths(patients: pl.DataFrame, admissions: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """`subject_id, death, last_discharge`: the day of death (null: none on record) and of the last discharge of all.

    With `death_date=any`, a blank dod is filled from the in-hospital death that admissions.csv records: its deathtime,
    else the discharge of the visit that is flagged.
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
    """`hadm_id` of the visits whose diagnoses and procedures satisfy the rule on ICD-9."""
    tables = [open_table(raw, "hosp/diagnoses_icd"), open_optional(raw, "hosp/procedures_icd")]
    versions = pl.concat([t.select("hadm_id", "icd_version") for t in tables if t is not None])
    nine = pl.col("icd_version") == 9
    rule = nine.all() if options.icd9 == "all" else nine.any()
    return versions.group_by("hadm_id").agg(rule.alias("ok")).filter("ok").select("hadm_id")


def visits(raw: Path, options: MimicOptions) -> Visits:
    """Admissions, in time order, down to those that count.

    Raises:
        DataError: repeated keys, admissions of unknown patients, or no patient left.
    """
    patients, admissions = open_table(raw, "hosp/patients"), open_table(raw, "hosp/admissions")
    _require_consistent(patients, admissions)
    tell_release(raw, patients, admissions, options)
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
        # What comes after the prediction is not for the model to see.
        kept = kept.filter(pl.int_range(pl.len()).over("subject_id") == 0)
    if stays is not None and options.require_icu in ("patient", "index"):
        # A column, not an expression over a list: inside `over` the list would be copied once a patient.
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
    """1 dead within `horizon` days of `discharge`, 0 alive then, null unknown; all three are dates (B.2).

    A blank dod means alive a year after the *last* discharge, and nothing about later: the provider blanks later
    deaths. A horizon that ends behind that day is unknown for such a patient. A death one day before the discharge is
    a disagreement of date and clock time and counts as the day itself; one still earlier contradicts the visit.
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
    """The cohort; prints its flow beside the paper's numbers."""
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
                found="; ".join(f"{n:,} {what}" for n, what in _flow(found.attrition.frame()) if n),
                fix="Which rule removes them? mrpipe options mimic lists the rules.",
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
    """`sample_id, n_diagnoses, n_procedures, icd_versions` ("9", "10", "9+10") over the visits that count."""
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
    """How many patients there are, and how many each step leaves out."""
    return [
        (before - after, f"left out: {reason}") if step else (after, reason)
        for step, reason, before, after in attrition.iter_rows()
    ]


def _report(attrition: pl.DataFrame, samples: pl.DataFrame, value: pl.Series) -> None:
    say("mimic cohort, in patients (the paper's numbers in brackets)")
    for n, what in _flow(attrition):
        say(f"  {n:>9,}  {what}")
    say(f"  {attrition['n_after'][-1]:>9,}  in the cohort [{PAPER['patients']:,}]")
    counted = {
        "deaths within a year": int(value.sum()),
        "patients without diagnoses": int((samples["n_diagnoses"] == 0).sum()),
        "patients without procedures": int((samples["n_procedures"] == 0).sum()),
    }
    for what, n in counted.items():
        expected = PAPER[what]
        say(f"  {n:>9,}  {what}, {n / len(samples):.1%} [{expected:,}, {expected / PAPER['patients']:.1%}]")


def visits_of(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """The visits that count of these samples, with `rank`: the position of the sample in sorted `sample_id`."""
    ranks = (
        samples.select("sample_id")
        .sort("sample_id")
        .with_row_index("rank")
        .with_columns(pl.col("rank").cast(pl.Int32), pl.col("sample_id").cast(pl.Int64).alias("subject_id"))
    )
    kept = visits(raw, options).kept.join(ranks, on="subject_id")
    return kept.sort("rank", "admittime", "hadm_id")
