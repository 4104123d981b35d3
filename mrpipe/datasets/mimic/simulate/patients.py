"""Simulated patients: latent state, visits, death, codes; the small tables of a MIMIC-IV export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mimic.simulate import pools as pools
from mrpipe.datasets.mimic.simulate.options import MimicSimulation
from mrpipe.keyed import generator

FACTORS = ("shared", "lab", "note", "code")
# Share of patients: in the cohort, one visit, ICD-10 only, dead in hospital with one other visit, never in the ICU.
KINDS = ("eligible", "single", "icd10", "terminal", "no_icu")
DAY = 1440


@dataclass(frozen=True)
class SimulatedPatients:
    """Patients and visits of a simulated export.

    Attributes:
        patients: `subject_id, kind, <factor>..., probability, dies, has_notes, has_procedures, gender, ...`.
        visits: `patient` (row of patients), `hadm_id, admit, discharge` (minutes since 2100), `icd` (9 or 10), `icu`,
            `terminal`, `index`; by patient and time.
    """

    patients: pl.DataFrame
    visits: pl.DataFrame


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    y: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-x))
    return y


def intercept(mortality: float, sd: float) -> float:
    """b with E sigmoid(b + sd·z) = mortality for a standard normal z (bisection on a fixed grid)."""
    z = np.linspace(-6, 6, 2001)
    weight = np.exp(-z * z / 2)
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if (sigmoid(middle + sd * z) * weight).sum() / weight.sum() < mortality else (low, middle)
        )
    return (low + high) / 2


def draw_patients(o: MimicSimulation) -> pl.DataFrame:
    """One row a patient: latent factors, probability of death, and what is missing of the record."""
    rng = generator(o.seed, "mimic patients")
    n = o.n_patients
    shares = np.array([o.eligible, *(np.array([0.45, 0.3, 0.15, 0.1]) * (1 - o.eligible))])
    # Shares are exact and every kind occurs; the order is random.
    counts = np.floor(shares * n).astype(int)
    counts[1] += n - counts.sum()
    kind = rng.permutation(np.repeat(np.arange(len(KINDS)), counts))
    factors = rng.standard_normal((n, len(FACTORS)))
    sd = o.strength * len(FACTORS) ** 0.5
    logit = intercept(o.mortality, sd) + o.strength * factors.sum(axis=1)
    probability = sigmoid(logit)
    dies = rng.random(n) < probability

    def missing(share: float) -> NDArray[np.bool_]:
        """Missing at `share`; with informative missingness the sicker the likelier."""
        if share <= 0:
            return np.zeros(n, dtype=bool)
        slope = 2.0 * o.informative
        b = intercept(share, slope)
        return rng.random(n) < sigmoid(b + slope * factors.sum(axis=1) / len(FACTORS) ** 0.5)

    no_notes, no_procedures = missing(o.notes_missing), missing(o.procedures_missing)
    age = np.clip(rng.normal(64, 15, n), 18, 99).astype(int)
    year = rng.integers(2110, 2180, n)
    groups = ["2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019"] + (
        ["2020 - 2022"] if o.release.startswith("3") else []
    )
    group = np.array(groups)[rng.integers(0, len(groups), n)]
    subject = 10_000_000 + np.arange(n, dtype=np.int64) * 9 + rng.integers(0, 9, n)
    return pl.DataFrame(
        {
            "subject_id": subject,
            "kind": kind.astype(np.int8),
            **{f: factors[:, i] for i, f in enumerate(FACTORS)},
            "probability": probability,
            "dies": dies,
            "has_notes": ~no_notes & (group != "2020 - 2022"),
            "has_procedures": ~no_procedures,
            "gender": np.array(["F", "M"])[rng.integers(0, 2, n)],
            "anchor_age": np.where(age > 89, 91, age),
            "anchor_year": year,
            "anchor_year_group": group,
        }
    )


def draw_people(o: MimicSimulation) -> SimulatedPatients:
    """Patients with visits; deaths in hospital and after it; overlapping and reversed visits."""
    patients = draw_patients(o)
    rng = generator(o.seed, "mimic visits")
    n = len(patients)
    kind = patients["kind"].to_numpy()
    dies = patients["dies"].to_numpy()
    more = np.minimum(rng.geometric(0.55, n) - 1, 4)
    counted = np.where(kind == 0, 2 + more, np.where(kind == 1, 1, np.where(kind == 3, 1, 2 + (more > 1))))
    late10 = (kind == 0) & ~dies & (rng.random(n) < 0.15)
    dies_inside = (kind == 3) | ((kind == 0) & dies & (rng.random(n) < 0.3))
    total = counted + late10 + dies_inside
    patient = np.repeat(np.arange(n), total)
    number = np.arange(len(patient)) - np.repeat(np.cumsum(total) - total, total)
    is_counted = number < counted[patient]
    terminal = ~is_counted & dies_inside[patient]
    late = ~is_counted & ~terminal
    stay = (rng.gamma(2.2, 2.6, len(patient)) * DAY).astype(np.int64) + 12 * 60
    gap = (rng.exponential(110, len(patient)) * DAY).astype(np.int64) + 2 * DAY
    # A death in hospital must fall within a year of the index discharge, a late visit may lie behind it.
    gap = np.where(terminal, rng.integers(5 * DAY, 300 * DAY, len(patient)), gap)
    stay = np.where(terminal, np.minimum(stay, 40 * DAY), stay)
    gap = np.where(late, rng.integers(250 * DAY, 420 * DAY, len(patient)), gap)
    begin = (patients["anchor_year"].to_numpy() - 2100) * 365 * DAY + rng.integers(0, 300 * DAY, n)
    length = np.where(number == 0, 0, gap) + stay
    reach = np.cumsum(length)
    base = np.repeat((reach - length)[np.cumsum(total) - total], total)
    discharge = np.repeat(begin, total) + reach - base
    admit = discharge - stay
    # Traps: some later visits begin before the one before has ended, some are admitted after their discharge.
    overlap = (number > 0) & is_counted & (rng.random(len(patient)) < o.traps * 0.03)
    admit = np.where(overlap, np.concatenate([[0], discharge[:-1]]) - 300, admit)
    wrong = is_counted & ~overlap & (rng.random(len(patient)) < o.traps * 0.01)
    admit = np.where(wrong, discharge + rng.integers(10, 600, len(patient)), admit)
    icd = np.where((kind[patient] == 2) | late, 10, 9)
    icu = (number == 0) | (rng.random(len(patient)) < 0.6)
    icu &= (kind != 4)[patient]
    last = counted[patient] - 1
    visits = pl.DataFrame(
        {
            "patient": patient,
            "hadm_id": 20_000_000 + np.arange(len(patient), dtype=np.int64) * 3 + 1,
            "number": number,
            "admit": admit,
            "discharge": discharge,
            "icd": icd,
            "icu": icu,
            "terminal": terminal,
            "index": number == last,
        }
    )
    return SimulatedPatients(patients=_deaths(patients, visits, o), visits=visits)


def _deaths(patients: pl.DataFrame, visits: pl.DataFrame, o: MimicSimulation) -> pl.DataFrame:
    """Adds `dod` (day number since 2100, null: blank)."""
    rng = generator(o.seed, "mimic deaths")
    n = len(patients)
    index = visits.filter("index").sort("patient")
    index_day = (index["discharge"].to_numpy() // DAY).astype(np.int64)
    ends = visits.group_by("patient").agg(pl.col("discharge").max()).sort("patient")
    last_day = (ends["discharge"].to_numpy() // DAY).astype(np.int64)
    inside = np.zeros(n, dtype=bool)
    inside[visits.filter("terminal")["patient"].to_numpy()] = True
    dies = patients["dies"].to_numpy()
    after = index_day + rng.integers(1, 366, n)
    later = last_day + rng.integers(20, 366, n)
    # A death later than a year after the index discharge is on record only within a year of the last one.
    known_late = ~dies & ~inside & (last_day > index_day + 200) & (rng.random(n) < 0.4)
    day = np.where(
        inside, last_day, np.where(dies, np.maximum(after, last_day + 1), np.maximum(later, index_day + 366))
    )
    known = inside | dies | (known_late & (np.maximum(later, index_day + 366) <= last_day + 365))
    return patients.with_columns(pl.when(pl.Series(known)).then(pl.Series(day)).otherwise(None).alias("dod"))


BASE = np.datetime64("2100-01-01T00:00:00", "us")


def moments(minutes: pl.Series | NDArray[Any]) -> pl.Series:
    """Minutes since 2100 as Datetime."""
    return pl.Series(BASE + np.asarray(minutes).astype(np.int64) * np.timedelta64(60_000_000, "us"))


def patients_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    rng = generator(o.seed, "mimic dod")
    p = people.patients
    dod = p["dod"].to_numpy().astype(float)
    inside = np.isin(np.arange(len(p)), people.visits.filter("terminal")["patient"].to_numpy())
    # Traps: the registry's day is off by one, or it has no record of a death in hospital.
    off = inside & (rng.random(len(p)) < o.traps * 0.05)
    blank = inside & ~off & (rng.random(len(p)) < o.traps * 0.05)
    dod = np.where(off, dod + np.where(rng.random(len(p)) < 0.5, 1, -1), dod)
    dod = np.where(blank, np.nan, dod)
    day = pl.Series(dod, nan_to_null=True).cast(pl.Int64) + int(
        (BASE - np.datetime64("1970-01-01", "us")) / np.timedelta64(1, "D")
    )
    return p.select("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group").with_columns(
        day.cast(pl.Int32).cast(pl.Date).alias("dod")
    )


def admissions_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    rng = generator(o.seed, "mimic admissions")
    v = people.visits
    n = len(v)
    terminal = v["terminal"].to_numpy()
    # Traps: died without a time of death, a time of death after the discharge.
    untimed = terminal & (rng.random(n) < o.traps * 0.05)
    death = v["discharge"].to_numpy() - np.where(rng.random(n) < o.traps * 0.1, -120, 30)

    def pick(values: tuple[str, ...]) -> pl.Series:
        return pl.Series(np.array(values)[rng.integers(0, len(values), n)])

    frame = pl.DataFrame(
        {
            "subject_id": people.patients["subject_id"].gather(v["patient"]),
            "hadm_id": v["hadm_id"],
            "admittime": moments(v["admit"]),
            "dischtime": moments(v["discharge"]),
            "deathtime": moments(death),
            "admission_type": pick(pools.ADMISSION_TYPES),
            "admit_provider_id": pick(("P03YMR", "P41R5N", "P233F6")),
            "admission_location": pick(("EMERGENCY ROOM", "TRANSFER FROM HOSPITAL", "PHYSICIAN REFERRAL")),
            "discharge_location": pick(pools.LOCATIONS),
            "insurance": pick(pools.INSURANCE),
            "language": pick(("ENGLISH", "?")),
            "marital_status": pick(("MARRIED", "SINGLE", "WIDOWED")),
            "race": pick(pools.RACES),
            "edregtime": pl.Series([None] * n, dtype=pl.String),
            "edouttime": pl.Series([None] * n, dtype=pl.String),
            "hospital_expire_flag": terminal.astype(np.int8),
        }
    )
    timed = pl.Series(terminal & ~untimed)
    return frame.with_columns(
        pl.when(timed).then("deathtime").alias("deathtime"),
        pl.when(pl.Series(terminal)).then(pl.lit("DIED")).otherwise("discharge_location").alias("discharge_location"),
    )


def icustays_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    rng = generator(o.seed, "mimic icustays")
    v = people.visits.filter("icu")
    begin, end = v["admit"].to_numpy(), v["discharge"].to_numpy()
    begin, end = np.minimum(begin, end - 60), np.maximum(end, begin)
    inside = begin + ((end - begin) * 0.2).astype(np.int64)
    out = inside + ((end - inside) * 0.6).astype(np.int64)
    unit = pl.Series(np.array(pools.CAREUNITS)[rng.integers(0, len(pools.CAREUNITS), len(v))])
    return pl.DataFrame(
        {
            "subject_id": people.patients["subject_id"].gather(v["patient"]),
            "hadm_id": v["hadm_id"],
            "stay_id": v["hadm_id"] + 10_000_000,
            "first_careunit": unit,
            "last_careunit": unit,
            "intime": moments(inside),
            "outtime": moments(out),
            "los": (out - inside) / DAY,
        }
    )


def _codes(
    people: SimulatedPatients,
    rows: NDArray[Any],
    pool: tuple[tuple[str, str, float, float], ...],
    factor: NDArray[np.float64],
    version: int,
    rng: np.random.Generator,
) -> pl.DataFrame:
    base, loading = np.array([c[2] for c in pool]), np.array([c[3] for c in pool])
    drawn = rng.random((len(rows), len(pool))) < sigmoid(base + loading * factor[:, None])
    # No visit is without its principal diagnosis.
    drawn[~drawn.any(axis=1), 0] = True
    visit, code = np.nonzero(drawn)
    order = np.lexsort((rng.random(len(visit)), visit))
    visit, code = visit[order], code[order]
    first = np.searchsorted(visit, visit)
    return pl.DataFrame(
        {
            "row": rows[visit],
            "seq_num": (np.arange(len(visit)) - first + 1).astype(np.int32),
            "icd_code": pl.Series([c[0] for c in pool]).gather(code),
            "icd_version": np.full(len(visit), version, dtype=np.int8),
        }
    )


def code_tables(people: SimulatedPatients, o: MimicSimulation) -> tuple[pl.DataFrame, pl.DataFrame]:
    """diagnoses_icd and procedures_icd."""
    rng = generator(o.seed, "mimic codes")
    p, v = people.patients, people.visits
    factor = ((p["shared"] + p["code"]) * 0.7).gather(v["patient"]).to_numpy()
    icd = v["icd"].to_numpy()
    nine, ten = np.flatnonzero(icd == 9), np.flatnonzero(icd == 10)
    # Mixed versions: some ICD-9 visits carry an ICD-10 code as well.
    mixed = nine[rng.random(len(nine)) < o.traps * 0.03]
    diagnoses = [
        _codes(people, nine, pools.DX9, factor[nine], 9, rng),
        _codes(people, ten, pools.DX10, factor[ten], 10, rng),
    ]
    extra = pl.DataFrame(
        {
            "row": mixed,
            "seq_num": np.full(len(mixed), 39, dtype=np.int32),
            "icd_code": ["I10"] * len(mixed),
            "icd_version": np.full(len(mixed), 10, dtype=np.int8),
        }
    )
    has = p["has_procedures"].gather(v["patient"]).to_numpy() & (rng.random(len(v)) < 0.8)
    # A patient that has procedures at all has one in the first visit.
    has |= p["has_procedures"].gather(v["patient"]).to_numpy() & (v["number"].to_numpy() == 0)
    nine, ten = np.flatnonzero((icd == 9) & has), np.flatnonzero((icd == 10) & has)
    procedures = [
        _codes(people, nine, pools.PR9, factor[nine], 9, rng),
        _codes(people, ten, pools.PR10, factor[ten], 10, rng),
    ]
    subject, hadm = p["subject_id"].gather(v["patient"]), v["hadm_id"]

    def finish(frames: list[pl.DataFrame]) -> pl.DataFrame:
        codes = pl.concat([f.cast({"row": pl.Int64}) for f in frames if len(f)]).sort("row", "seq_num")
        return codes.with_columns(
            subject.gather(codes["row"]).alias("subject_id"), hadm.gather(codes["row"]).alias("hadm_id")
        )

    dx, pr = finish([*diagnoses, extra]), finish(procedures)
    admit = moments(v["admit"]).dt.date().gather(pr["row"])
    return (
        dx.select("subject_id", "hadm_id", "seq_num", "icd_code", "icd_version"),
        pr.with_columns(admit.alias("chartdate")).select(
            "subject_id", "hadm_id", "seq_num", "chartdate", "icd_code", "icd_version"
        ),
    )
