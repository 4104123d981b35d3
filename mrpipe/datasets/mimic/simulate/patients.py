"""Simulated patients, visits, deaths and codes, and the small tables of a MIMIC-IV export."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mimic.options import MimicSimulation
from mrpipe.datasets.mimic.simulate import pools
from mrpipe.keyed import generator

FACTORS = ("shared", "lab", "note", "code")
# Patients in the cohort, with one visit, with ICD-10 only, with one visit before dying in hospital, without ICU stay.
KINDS = ("eligible", "single", "icd10", "terminal", "no_icu")
DAY = 1440  # minutes


@dataclass(frozen=True)
class SimulatedPatients:
    """Patients and visits of a simulated export.

    Attributes:
        patients: `subject_id, kind`, the factors, `probability, dies, has_notes, has_procedures, gender, dod`, anchors.
        visits: `patient` (row in patients), `hadm_id`, `admit` and `discharge` (minutes since 2100), `icd` (9 or 10),
            `icu`, `terminal`, `index`, `subject_id`; sorted by patient and time.
    """

    patients: pl.DataFrame
    visits: pl.DataFrame


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def pick(rng: np.random.Generator, values: tuple[str, ...], n: int) -> pl.Series:
    """Draw n of the values with equal probability."""
    return pl.Series(np.array(values)[rng.integers(0, len(values), n)])


def intercept(mortality: float, sd: float) -> float:
    """Solve E[sigmoid(b + sd·z)] = mortality for b, with standard normal z, by bisection on a fixed grid."""
    z = np.linspace(-6, 6, 2001)
    weight = np.exp(-z * z / 2)
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        below = (sigmoid(middle + sd * z) * weight).sum() / weight.sum() < mortality
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def draw_patients(o: MimicSimulation) -> pl.DataFrame:
    """Draw one row per patient: latent factors, probability of death, missing records, demographics."""
    rng = generator(o.seed, "mimic patients")
    n = o.n_patients
    shares = np.array([o.eligible, *(np.array([0.45, 0.3, 0.15, 0.1]) * (1 - o.eligible))])
    # Proportions are exact and every kind occurs; the order is random.
    counts = np.floor(shares * n).astype(int)
    counts[1] += n - counts.sum()
    kind = rng.permutation(np.repeat(np.arange(len(KINDS)), counts))
    factors = rng.standard_normal((n, len(FACTORS)))
    sd = o.strength * len(FACTORS) ** 0.5
    logit = intercept(o.mortality, sd) + o.strength * factors.sum(axis=1)
    probability = sigmoid(logit)
    dies = rng.random(n) < probability

    def missing(share: float) -> NDArray[np.bool_]:
        """Mask with mean `share`; with informative missingness, sicker patients are more likely to be missing."""
        if share <= 0:
            return np.zeros(n, dtype=bool)
        slope = 2.0 * o.informative
        b = intercept(share, slope)
        return rng.random(n) < sigmoid(b + slope * factors.sum(axis=1) / len(FACTORS) ** 0.5)

    no_notes, no_procedures = missing(o.notes_missing), missing(o.procedures_missing)
    age = np.clip(rng.normal(64, 15, n), 18, 99).astype(int)
    year = rng.integers(2110, 2180, n)
    groups = ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019", "2020 - 2022")
    group = pick(rng, groups if o.release.startswith("3") else groups[:-1], n)
    subject = 10_000_000 + np.arange(n, dtype=np.int64) * 9 + rng.integers(0, 9, n)
    return pl.DataFrame(
        {
            **{"subject_id": subject, "kind": kind.astype(np.int8)},
            **{f: factors[:, i] for i, f in enumerate(FACTORS)},
            **{"probability": probability, "dies": dies},
            "has_notes": ~no_notes & (group != "2020 - 2022").to_numpy(),
            "has_procedures": ~no_procedures,
            "gender": pick(rng, ("F", "M"), n),
            "anchor_age": np.where(age > 89, 91, age),
            "anchor_year": year,
            "anchor_year_group": group,
        }
    )


def draw_people(o: MimicSimulation) -> SimulatedPatients:
    """Draw patients with visits, deaths in hospital and after discharge, and overlapping and reversed visits."""
    patients = draw_patients(o)
    rng = generator(o.seed, "mimic visits")
    n = len(patients)
    kind = patients["kind"].to_numpy()
    dies = patients["dies"].to_numpy()
    more = np.minimum(rng.geometric(0.55, n) - 1, 4)
    n_counted = np.where(kind == 0, 2 + more, np.where(kind == 1, 1, np.where(kind == 3, 1, 2 + (more > 1))))
    late10 = (kind == 0) & ~dies & (rng.random(n) < 0.15)
    dies_inside = (kind == 3) | ((kind == 0) & dies & (rng.random(n) < 0.3))
    total = n_counted + late10 + dies_inside
    patient = np.repeat(np.arange(n), total)
    number = np.arange(len(patient)) - np.repeat(np.cumsum(total) - total, total)
    is_counted = number < n_counted[patient]
    terminal = ~is_counted & dies_inside[patient]
    late = ~is_counted & ~terminal
    stay = (rng.gamma(2.2, 2.6, len(patient)) * DAY).astype(np.int64) + 12 * 60
    gap = (rng.exponential(110, len(patient)) * DAY).astype(np.int64) + 2 * DAY
    # A death in hospital must be within a year of the index discharge; a late visit may be after that.
    gap = np.where(terminal, rng.integers(5 * DAY, 300 * DAY, len(patient)), gap)
    stay = np.where(terminal, np.minimum(stay, 40 * DAY), stay)
    gap = np.where(late, rng.integers(250 * DAY, 420 * DAY, len(patient)), gap)
    begin = (patients["anchor_year"].to_numpy() - 2100) * 365 * DAY + rng.integers(0, 300 * DAY, n)
    length = np.where(number == 0, 0, gap) + stay
    reach = np.cumsum(length)
    base = np.repeat((reach - length)[np.cumsum(total) - total], total)
    discharge = np.repeat(begin, total) + reach - base
    admit = discharge - stay
    # Data errors: some visits begin before the end of the previous one, or have admittime after dischtime.
    overlap = (number > 0) & is_counted & (rng.random(len(patient)) < o.traps * 0.03)
    admit = np.where(overlap, np.concatenate([[0], discharge[:-1]]) - 300, admit)
    wrong = is_counted & ~overlap & (rng.random(len(patient)) < o.traps * 0.01)
    admit = np.where(wrong, discharge + rng.integers(10, 600, len(patient)), admit)
    icd = np.where((kind[patient] == 2) | late, 10, 9)
    icu = (number == 0) | (rng.random(len(patient)) < 0.6)
    icu &= (kind != 4)[patient]
    last = n_counted[patient] - 1
    visits = pl.DataFrame(
        {
            "patient": patient,
            "hadm_id": 20_000_000 + np.arange(len(patient), dtype=np.int64) * 3 + 1,
            **{"number": number, "admit": admit, "discharge": discharge, "icd": icd, "icu": icu, "terminal": terminal},
            "index": number == last,
            "subject_id": patients["subject_id"].gather(patient),
        }
    )
    return SimulatedPatients(patients=_deaths(patients, visits, o), visits=visits)


def _deaths(patients: pl.DataFrame, visits: pl.DataFrame, o: MimicSimulation) -> pl.DataFrame:
    """Add `dod` (days since 2100, null: blank) to the patients."""
    rng = generator(o.seed, "mimic deaths")
    n = len(patients)
    index_day = visits.filter("index").sort("patient")["discharge"].to_numpy() // DAY
    ends = visits.group_by("patient").agg(pl.col("discharge").max()).sort("patient")
    last_day = ends["discharge"].to_numpy() // DAY
    inside = np.zeros(n, dtype=bool)
    inside[visits.filter("terminal")["patient"].to_numpy()] = True
    dies = patients["dies"].to_numpy()
    after = index_day + rng.integers(1, 366, n)
    later = last_day + rng.integers(20, 366, n)
    # A death more than a year after the index discharge is recorded only within a year of the last discharge.
    known_late = ~dies & ~inside & (last_day > index_day + 200) & (rng.random(n) < 0.4)
    late = np.maximum(later, index_day + 366)
    day = np.where(inside, last_day, np.where(dies, np.maximum(after, last_day + 1), late))
    known = inside | dies | (known_late & (late <= last_day + 365))
    return patients.with_columns(dod=pl.when(pl.Series(known)).then(pl.Series(day)))


BASE = np.datetime64("2100-01-01T00:00:00", "us")


def moments(minutes: pl.Series | NDArray[Any]) -> pl.Series:
    """Convert minutes since 2100 to Datetime."""
    return pl.Series(BASE + np.asarray(minutes).astype(np.int64) * np.timedelta64(60_000_000, "us"))


def patients_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    rng = generator(o.seed, "mimic dod")
    p = people.patients
    dod = p["dod"].to_numpy().astype(float)
    inside = np.isin(np.arange(len(p)), people.visits.filter("terminal")["patient"].to_numpy())
    # Data errors: dod is off by one day, or missing for a death in hospital.
    off = inside & (rng.random(len(p)) < o.traps * 0.05)
    blank = inside & ~off & (rng.random(len(p)) < o.traps * 0.05)
    dod = np.where(off, dod + np.where(rng.random(len(p)) < 0.5, 1, -1), dod)
    dod = np.where(blank, np.nan, dod)
    days = pl.lit(pl.Series(dod, nan_to_null=True).cast(pl.Int64))
    kept = ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group")
    return p.select(*kept, dod=pl.date(2100, 1, 1) + pl.duration(days=days))


def admissions_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    rng = generator(o.seed, "mimic admissions")
    v = people.visits
    n = len(v)
    terminal = v["terminal"].to_numpy()
    # Data errors: in-hospital death without deathtime, deathtime after dischtime.
    timed = terminal & ~(rng.random(n) < o.traps * 0.05)
    death = v["discharge"].to_numpy() - np.where(rng.random(n) < o.traps * 0.1, -120, 30)
    return v.select(
        "subject_id",
        "hadm_id",
        admittime=moments(v["admit"]),
        dischtime=moments(v["discharge"]),
        deathtime=pl.when(pl.Series(timed)).then(moments(death)),
        admission_type=pick(rng, pools.ADMISSION_TYPES, n),
        admit_provider_id=pick(rng, ("P03YMR", "P41R5N", "P233F6"), n),
        admission_location=pick(rng, ("EMERGENCY ROOM", "TRANSFER FROM HOSPITAL", "PHYSICIAN REFERRAL"), n),
        discharge_location=pl.when("terminal").then(pl.lit("DIED")).otherwise(pick(rng, pools.LOCATIONS, n)),
        insurance=pick(rng, pools.INSURANCE, n),
        language=pick(rng, ("ENGLISH", "?"), n),
        marital_status=pick(rng, ("MARRIED", "SINGLE", "WIDOWED"), n),
        race=pick(rng, pools.RACES, n),
        **dict.fromkeys(("edregtime", "edouttime"), pl.lit(None, pl.String)),
        hospital_expire_flag=pl.col("terminal").cast(pl.Int8),
    )


def icustays_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    rng = generator(o.seed, "mimic icustays")
    v = people.visits.filter("icu")
    begin, end = v["admit"].to_numpy(), v["discharge"].to_numpy()
    begin, end = np.minimum(begin, end - 60), np.maximum(end, begin)
    inside = begin + ((end - begin) * 0.2).astype(np.int64)
    out = inside + ((end - inside) * 0.6).astype(np.int64)
    unit = pick(rng, pools.CAREUNITS, len(v))
    units = {"first_careunit": unit, "last_careunit": unit}
    times = {"intime": moments(inside), "outtime": moments(out), "los": pl.Series((out - inside) / DAY)}
    return v.select("subject_id", "hadm_id", stay_id=pl.col("hadm_id") + 10_000_000, **units, **times)


def _codes(
    rows: NDArray[Any], pool: pools.Codes, version: int, factor: NDArray[np.float64], rng: np.random.Generator
) -> pl.DataFrame:
    """Draw codes of the visits `rows`, in random order; `factor` is that of all visits."""
    base, loading = np.array([c[2] for c in pool]), np.array([c[3] for c in pool])
    drawn = rng.random((len(rows), len(pool))) < sigmoid(base + loading * factor[rows, None])
    # Every visit has a principal diagnosis.
    drawn[~drawn.any(axis=1), 0] = True
    visit, code = np.nonzero(drawn)
    order = np.lexsort((rng.random(len(visit)), visit))
    visit, code = visit[order], code[order]
    codes = {
        "row": rows[visit],
        "seq_num": np.arange(len(visit)) - np.searchsorted(visit, visit) + 1,
        "icd_code": np.array([c[0] for c in pool])[code],
    }
    return pl.DataFrame(codes).with_columns(icd_version=version)


def code_tables(people: SimulatedPatients, o: MimicSimulation) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables diagnoses_icd and procedures_icd."""
    rng = generator(o.seed, "mimic codes")
    p, v = people.patients, people.visits
    factor = ((p["shared"] + p["code"]) * 0.7).gather(v["patient"]).to_numpy()
    icd = v["icd"].to_numpy()
    nine, ten = np.flatnonzero(icd == 9), np.flatnonzero(icd == 10)
    # Mixed versions: some ICD-9 visits also have an ICD-10 code.
    mixed = nine[rng.random(len(nine)) < o.traps * 0.03]
    diagnoses = [_codes(nine, pools.DX9, 9, factor, rng), _codes(ten, pools.DX10, 10, factor, rng)]
    diagnoses.append(pl.DataFrame({"row": mixed}).with_columns(seq_num=39, icd_code=pl.lit("I10"), icd_version=10))
    has = p["has_procedures"].gather(v["patient"]).to_numpy()
    # Patients with procedures have at least one in their first visit.
    has &= (rng.random(len(v)) < 0.8) | (v["number"].to_numpy() == 0)
    nine, ten = np.flatnonzero((icd == 9) & has), np.flatnonzero((icd == 10) & has)
    procedures = [_codes(nine, pools.PR9, 9, factor, rng), _codes(ten, pools.PR10, 10, factor, rng)]
    subject, hadm, day = v["subject_id"], v["hadm_id"], moments(v["admit"]).dt.date()

    def finish(frames: list[pl.DataFrame]) -> pl.DataFrame:
        codes = pl.concat(frames, how="vertical_relaxed").sort("row", "seq_num")
        visits = {"subject_id": subject, "hadm_id": hadm, "chartdate": day}
        return codes.with_columns(**{name: of_visit.gather(codes["row"]) for name, of_visit in visits.items()})

    names = ("subject_id", "hadm_id", "seq_num", "icd_code", "icd_version")
    return finish(diagnoses).select(names), finish(procedures).select(*names[:3], "chartdate", *names[3:])
