"""Cohort selection, labels and attrition.

A sample is a patient. Only `visits` filters admissions; the readers of codes, notes and measurements use it too, so
that no modality includes an excluded visit.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan.scanner import is_parquet
from mrpipe.datasets.mimic.tables import detect_release, find_table, open_optional, open_table
from mrpipe.delimited import line_of
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import ROW
from mrpipe.schema import Attrition, Cohort, flow_lines

_LOG = logging.getLogger(__name__)
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
        kept: one row per visit: `subject_id, hadm_id, admittime, dischtime` (Datetime), `number` (from 1), `predicted`
            (prediction time: the discharge of the patient's index visit) and `earliest` (earliest possible time of a
            record), sorted by patient and admission time.
        patients: `subject_id, gender, anchor_age, anchor_year, death` (Date or null) and `last_discharge` (Date) of
            the patients in `kept`.
        attrition: exclusion steps, in patients.
    """

    kept: pl.DataFrame
    patients: pl.DataFrame
    attrition: Attrition


def require_consistent(
    raw: Path, patients: pl.DataFrame, admissions: pl.DataFrame, stays: pl.DataFrame | None, options: MimicOptions
) -> None:
    """Require unique keys, a row in patients for every admission, and at least one date of death.

    Raises:
        DataError: repeated keys, admissions of unknown patients, or a table of patients without any dod.
    """
    faults, fix = FaultCollector(), "Check that all tables are from the same release, not from two releases."
    unique = {"hosp/patients": ("subject_id", patients), "hosp/admissions": ("hadm_id", admissions)}
    unknown = admissions.join(patients, on="subject_id", how="anti")
    wrong = [("hosp/admissions", "subject_id", "patients in hosp/patients", unknown)]
    for table, (key, frame) in (unique if stays is None else unique | {"icu/icustays": ("stay_id", stays)}).items():
        wrong.append((table, key, "unique values", frame.filter(pl.col(key).is_duplicated()).sort(key, ROW)))
    for table, key, expected, rows in wrong:
        if len(rows) and (files := find_table(raw, table, faults, options)) is not None:
            # Rows are numbered over all files of the table; a single text file has lines.
            kind = "row" if len(files) > 1 or is_parquet(files[0]) else "line"
            numbers = [line_of(files[0], row) if kind == "line" else row for row in rows[ROW].head(5)]
            found = f"{len(rows)} other rows ({kind}s {', '.join(map(str, numbers))})"
            place = {"file": table, "column": key, kind: numbers[0]}
            faults.add(Fault(**place, expected=expected, found=found, fix=fix))  # type: ignore[arg-type]
    if options.death_date != "hospital" and patients["dod"].null_count() == len(patients):
        fix = "Mortality is unknown without dates of death: download the table again, or set death_date=hospital."
        faults.add(Fault(file="hosp/patients", column="dod", expected="dates of death", found="blanks only", fix=fix))
    faults.raise_if_any()


def deaths(patients: pl.DataFrame, admissions: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """`subject_id, death, last_discharge`: dates of death (null if not recorded) and of the last discharge.

    Source: dod in patients. With `death_date=any`, a blank dod is replaced by the date of the in-hospital death of
    admissions: deathtime, or dischtime of the visit with hospital_expire_flag; with `hospital`, only that counts.
    """
    in_hospital = pl.coalesce(
        pl.col("deathtime").dt.date(), pl.when(pl.col("hospital_expire_flag") == 1).then(pl.col("dischtime").dt.date())
    )
    per_patient = admissions.group_by("subject_id").agg(
        in_hospital.min().alias("in_hospital"), pl.col("dischtime").dt.date().max().alias("last_discharge")
    )
    death = {"dod": pl.col("dod"), "hospital": pl.col("in_hospital"), "any": pl.coalesce("dod", "in_hospital")}
    return patients.join(per_patient, on="subject_id", how="left").select(
        "subject_id", death[options.death_date].alias("death"), "last_discharge"
    )


def icd9_visits(raw: Path, options: MimicOptions) -> pl.DataFrame:
    """`hadm_id` of the visits whose diagnoses and procedures satisfy the option `icd9`."""
    tables = [open_table(raw, "hosp/diagnoses_icd", options), open_optional(raw, "hosp/procedures_icd", options)]
    versions = pl.concat([t.select("hadm_id", "icd_version") for t in tables if t is not None])
    nine = pl.col("icd_version") == 9
    rule = nine.all() if options.icd9 == "all" else nine.any()
    return versions.group_by("hadm_id").agg(rule.alias("ok")).filter("ok").select("hadm_id")


# Earliest possible time of birth: ages above 89 are stored as 91, so these patients may be older by decades.
birth = pl.datetime(
    pl.col("anchor_year") - pl.col("anchor_age") - pl.when(pl.col("anchor_age") > 89).then(30).otherwise(0), 1, 1
)
# Visits outside the patient's life are errors of the dates; a death one day before the admission is a rounding error.
possible = (pl.col("admittime") >= pl.col("born")) & (
    pl.col("admittime").dt.date() <= pl.col("death") + pl.duration(days=1)
).fill_null(True)


def visits(raw: Path, options: MimicOptions) -> Visits:
    """Apply all visit and patient filters to the admissions, in order of time.

    Raises:
        DataError: repeated keys, admissions of unknown patients, or an unknown release.
    """
    patients, admissions = open_table(raw, "hosp/patients", options), open_table(raw, "hosp/admissions", options)
    stays = open_table(raw, "icu/icustays", options) if options.require_icu != "no" else None
    require_consistent(raw, patients, admissions, stays, options)
    detect_release(patients, admissions, options)
    flow = Attrition(len(patients), "patients in the export")
    dead = deaths(patients, admissions, options)
    kept = admissions.join(dead.select("subject_id", "death"), on="subject_id", how="left")
    kept = kept.join(patients.select("subject_id", "anchor_age", birth.alias("born"), "anchor_year"), on="subject_id")
    kept = kept.sort("subject_id", "admittime", "hadm_id")

    def narrow(condition: pl.Expr, reason: str) -> None:
        nonlocal kept
        kept = kept.filter(condition)
        flow.step(reason, kept["subject_id"].n_unique())

    narrow(possible, "no admission between birth and death")
    if options.reversed_visits == "drop":
        narrow(pl.col("admittime") <= pl.col("dischtime"), "all visits end before they begin")
    if options.overlapping_visits == "drop":
        before = pl.col("dischtime").cum_max().shift(1).over("subject_id")
        narrow(before.is_null() | (pl.col("admittime") >= before), "no visit without overlap with an earlier one")
    enough = pl.len().over("subject_id") >= options.min_visits
    if options.min_visits_stage == "before":
        narrow(enough, f"fewer than {options.min_visits} visits")
    if options.terminal_visits == "drop":
        terminal = (
            (pl.col("hospital_expire_flag") == 1)
            | pl.col("deathtime").is_not_null()
            | (pl.col("death") <= pl.col("dischtime").dt.date()).fill_null(False)
        )
        narrow(~terminal, "all visits end in death")
    if options.icd9 != "off":
        kept = kept.join(icd9_visits(raw, options), on="hadm_id", how="semi")
        which = "only ICD-9 codes" if options.icd9 == "all" else "an ICD-9 code"
        narrow(pl.lit(True), f"no visit with {which}")
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
        marked = stays.select("hadm_id", pl.lit(True).alias("in_icu")).unique()
        kept = kept.join(marked, on="hadm_id", how="left", maintain_order="left").with_columns(
            pl.col("in_icu").fill_null(False)
        )
        one = pl.col("in_icu").any() if options.require_icu == "patient" else pl.col("in_icu").last()
        which = "any remaining" if options.require_icu == "patient" else "the index"
        narrow(one.over("subject_id"), f"no ICU stay in {which} visit")
    if options.min_age:
        age = pl.col("anchor_age") + pl.col("admittime").dt.year() - pl.col("anchor_year")
        narrow((age.last() >= options.min_age).over("subject_id"), f"under {options.min_age} at the index admission")
    kept = kept.select(
        "subject_id",
        "hadm_id",
        "admittime",
        "dischtime",
        (pl.int_range(pl.len(), dtype=pl.Int32).over("subject_id") + 1).alias("number"),
        pl.col("dischtime").last().over("subject_id").alias("predicted"),
        earliest=pl.max_horizontal("born", pl.col("admittime").first().over("subject_id").dt.offset_by("-20y")),
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
    found.attrition.step(f"vital status unknown {options.horizon_days} days after the index discharge", len(frame))
    if frame.is_empty():
        lost = "; ".join(flow_lines(found.attrition.frame().filter(pl.col("n_before") > 0)))
        expected = "at least one patient in the cohort"
        fix = "Relax the rule that excludes them; mrpipe options mimic lists the rules."
        raise DataError(Fault(file="hosp/admissions", expected=expected, found=lost, fix=fix))
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
    counts = code_counts(raw, ended(found.kept.join(frame, on="subject_id", how="semi")), options)
    samples = samples.join(counts, on="sample_id", how="left", maintain_order="left").with_columns(
        pl.col("n_diagnoses", "n_procedures").fill_null(0)
    )
    attrition = found.attrition.frame()
    _report(attrition, samples, frame["value"])
    if options.store_text:
        from mrpipe.datasets.mimic.notes import note_texts

        samples = samples.join(note_texts(raw, samples, options), on="sample_id", how="left", maintain_order="left")
    return Cohort(samples=samples, labels={TASK: frame.select("sample_id", "value")}, attrition=attrition)


def ended(kept: pl.DataFrame) -> pl.DataFrame:
    """Visits that end by the prediction time. Codes are assigned at discharge: other visits have none yet."""
    return kept.filter(pl.col("dischtime") <= pl.col("predicted"))


def code_counts(raw: Path, kept: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """`sample_id, n_diagnoses, n_procedures, icd_versions` ("9", "10" or "9+10") over these visits."""
    keys = kept.select("subject_id", "hadm_id")
    names = {"hosp/diagnoses_icd": "n_diagnoses", "hosp/procedures_icd": "n_procedures"}
    tables = {n: t for table, n in names.items() if (t := open_optional(raw, table, options)) is not None}
    on = ["subject_id", "hadm_id"]
    codes = pl.concat(t.join(keys, on=on).with_columns(pl.lit(n).alias("table")) for n, t in tables.items())
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


def _report(attrition: pl.DataFrame, samples: pl.DataFrame, value: pl.Series) -> None:
    _LOG.info("mimic cohort, in patients (numbers of the MoE-Retriever paper in brackets)")
    for line in flow_lines(attrition):
        _LOG.info(f"  {line}")
    _LOG.info(f"  included: n = {attrition['n_after'][-1]:,} [{PAPER['patients']:,}]")
    counted = {
        "deaths within a year": int(value.sum()),
        "patients without diagnoses": int((samples["n_diagnoses"] == 0).sum()),
        "patients without procedures": int((samples["n_procedures"] == 0).sum()),
    }
    for name, n in counted.items():
        expected = PAPER[name]
        _LOG.info(f"  {n:>9,}  {name}, {n / len(samples):.1%} [{expected:,}, {expected / PAPER['patients']:.1%}]")


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
