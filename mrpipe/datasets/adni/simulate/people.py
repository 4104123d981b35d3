"""Simulate ADNI participants: latent factors, diagnoses over visits, available modalities, and the ground truth.

A participant has a class (CN, MCI, Dementia), a shared severity u and one factor v per modality, all normal given the
class. Each modality depends on u and its own v, so it carries both shared and unique information. The exact posterior
of the class given u and the factors of the observed modalities bounds the accuracy of any method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import softmax

from mrpipe.datasets.adni.tables import CLASSES
from mrpipe.experiment.truth import subsets
from mrpipe.keyed import generator
from mrpipe.store.masks import combination_name

# Class counts from the authors' label rule applied to ADNI, and assumed frequencies of modality combinations.
CLASS_COUNTS = (926, 746, 444)
PATTERNS = {"BCGI": 0.45, "BCI": 0.25, "BC": 0.12, "C": 0.07, "CI": 0.06, "BCG": 0.05}
LETTERS = {"I": "image", "G": "genomic", "C": "clinical", "B": "biospecimen"}
# Phase: probability, range of RIDs, date of the first visit.
PHASES: dict[str, tuple[float, tuple[int, int], date]] = {
    "ADNI1": (0.28, (1, 1999), date(2005, 9, 1)),
    "ADNIGO": (0.08, (2000, 2999), date(2009, 10, 1)),
    "ADNI2": (0.25, (3000, 5999), date(2011, 1, 15)),
    "ADNI3": (0.22, (6000, 9999), date(2016, 9, 1)),
    "ADNI4": (0.17, (10000, 13999), date(2022, 10, 1)),
}
_V_CODES = {0: "v03", 3: "v04", 6: "v05", 12: "v11", 24: "v21", 36: "v31", 48: "v41", 60: "v51"}
MONTHS = (0, 6, 12, 24, 36, 48, 60, 72, 84, 96, 108, 120)
# Mean of each factor by class, in units of the separation. Each modality separates a different pair of classes best.
FACTOR_MEANS = {
    "image": (-1.0, 0.0, 1.0),
    "genomic": (-0.7, 0.0, 0.7),
    "clinical": (-1.0, 0.9, 0.1),
    "biospecimen": (-0.6, -0.5, 1.1),
}


@dataclass(frozen=True)
class SimulatedParticipants:
    """Input of the writers of tables, genotypes and images.

    Attributes:
        subjects: one row per participant, sorted by RID: `rid, ptid, phase, site, cls, stable, n_visits, start,
            pattern, u, v_<modality>, has_<modality>`.
        visits: one row per visit: `i` (row in subjects), `month, viscode, viscode2, date, dx` (1, 2, 3).
    """

    subjects: pl.DataFrame
    visits: pl.DataFrame


def visit_codes(phase: str, month: int, *, screening: bool) -> tuple[str, str]:
    """VISCODE and VISCODE2 in the coding of a phase."""
    harmonised = "sc" if screening else ("bl" if month == 0 else f"m{month:02d}")
    if phase == "ADNI2":
        return ("v01" if screening else _V_CODES.get(month, f"v{month // 12 * 10 + 1:02d}")), harmonised
    if phase == "ADNI3":
        return ("sc" if screening else ("bl" if month == 0 else f"y{max(month // 12, 1)}")), harmonised
    if phase == "ADNI4":
        return f"4_{harmonised}", harmonised
    return harmonised, harmonised


def _paths(
    rng: np.random.Generator, cls: NDArray[np.int64], stable: NDArray[np.bool_], n_visits: NDArray[np.int64]
) -> list[list[int]]:
    """Diagnosis (0, 1, 2) at each visit: constant, or one change at a random visit; 15 % of changes are reversions."""
    out = []
    for state, still, n in zip(cls.tolist(), stable.tolist(), n_visits.tolist(), strict=True):
        path = [state] * n
        if not still and n > 1:
            back = rng.random() < 0.15
            other = max(state - 1, 0) if back and state > 0 else min(state + 1, 2)
            if other == state:
                other = state - 1
            change = int(rng.integers(1, n))
            path[change:] = [other] * (n - change)
        out.append(path)
    return out


def patterns_of(score: NDArray[np.float64]) -> list[str]:
    """Modality combination per participant: quantiles of the score, cut at the cumulative frequencies of PATTERNS.

    The frequencies are exact up to rounding. Participants with higher scores have fewer modalities.
    """
    names = list(PATTERNS)
    bounds = np.cumsum(list(PATTERNS.values()))
    rank = np.argsort(np.argsort(score, kind="stable"), kind="stable")
    quantile = (rank + 0.5) / len(score)
    return [names[int(k)] for k in np.minimum(np.searchsorted(bounds, quantile), len(names) - 1)]


def draw_people(n: int, seed: int, separation: float, missing_strength: float) -> SimulatedParticipants:
    """Draw participants, their visits and latent factors."""
    rng = generator(seed, "adni people")
    cls = rng.choice(3, n, p=np.array(CLASS_COUNTS) / sum(CLASS_COUNTS))
    names = list(PHASES)
    phase = rng.choice(len(names), n, p=[PHASES[p][0] for p in names])
    rid = np.zeros(n, dtype=np.int64)
    for k, name in enumerate(names):
        low, high = PHASES[name][1]
        members = np.flatnonzero(phase == k)
        # If a phase runs out of RIDs, the remaining participants join the last phase, whose range is unbounded.
        phase[members[high - low + 1 :]] = len(names) - 1
        members = members[: high - low + 1]
        if name != "ADNI4":
            rid[members] = low + rng.permutation(high - low + 1)[: len(members)]
    last = np.flatnonzero(phase == len(names) - 1)
    low, high = PHASES["ADNI4"][1]
    rid[last] = low + rng.permutation(max(high - low + 1, len(last)))[: len(last)]
    order = np.argsort(rid)
    cls, phase, rid = cls[order], phase[order], rid[order]
    site = rng.integers(2, 142, n)
    u = separation * np.array([-1.0, 0.0, 1.0])[cls] + rng.standard_normal(n)
    factors = {m: separation * np.array(means)[cls] + rng.standard_normal(n) for m, means in FACTOR_MEANS.items()}
    stable = rng.random(n) < 0.7
    n_visits = np.where(stable, rng.integers(1, len(MONTHS) + 1, n), rng.integers(2, len(MONTHS) + 1, n))
    noise = rng.standard_normal(n)
    patterns = patterns_of(missing_strength * (u - u.mean()) / u.std() + np.sqrt(1 - missing_strength**2) * noise)
    start = [PHASES[names[p]][2] + timedelta(days=int(d)) for p, d in zip(phase, rng.integers(0, 900, n), strict=True)]
    subjects = pl.DataFrame(
        {
            "rid": rid,
            "ptid": [f"{s:03d}_S_{r:04d}" for s, r in zip(site, rid, strict=True)],
            "phase": [names[p] for p in phase],
            **{"site": site, "cls": cls, "stable": stable, "n_visits": n_visits, "start": start, "pattern": patterns},
            "u": u,
            **{f"v_{m}": v for m, v in factors.items()},
            **{f"has_{m}": [letter in p for p in patterns] for letter, m in LETTERS.items()},
        }
    )
    rows: list[tuple[Any, ...]] = []
    for i, path in enumerate(_paths(rng, cls, stable, n_visits)):
        for k, dx in enumerate(path):
            name = names[phase[i]]
            viscode, viscode2 = visit_codes(name, MONTHS[k], screening=False)
            rows.append((i, MONTHS[k], viscode, viscode2, start[i] + timedelta(days=round(30.44 * MONTHS[k])), dx + 1))
    visits = pl.DataFrame(rows, schema=["i", "month", "viscode", "viscode2", "date", "dx"], orient="row")
    return SimulatedParticipants(subjects, visits)


def posterior(subjects: pl.DataFrame, modalities: Sequence[str] | None, separation: float) -> NDArray[np.float64]:
    """P(class | u, factors) given the observed modalities, or given `modalities`; float64 (n, 3)."""
    log_p = np.tile(np.log(np.array(CLASS_COUNTS) / sum(CLASS_COUNTS)), (len(subjects), 1))
    log_p += -0.5 * (subjects["u"].to_numpy()[:, None] - separation * np.array([-1.0, 0.0, 1.0])) ** 2
    for name, means in FACTOR_MEANS.items():
        observed = subjects[f"has_{name}"].to_numpy()[:, None] if modalities is None else name in modalities
        v = subjects[f"v_{name}"].to_numpy()
        log_p += np.where(observed, -0.5 * (v[:, None] - separation * np.array(means)) ** 2, 0.0)
    return np.asarray(softmax(log_p, axis=1))


def truth_frame(people: SimulatedParticipants, separation: float) -> pl.DataFrame:
    """One row per participant: `sample_id`, baseline class, factors, modality combination and posterior."""
    s = people.subjects
    p = posterior(s, None, separation)
    diagnosis = pl.col("cls").replace_strict(dict(enumerate(CLASSES)), return_dtype=pl.String).alias("diagnosis")
    kept = ("rid", "phase", "stable", "pattern", "u", "^v_.*$")
    frame = s.select(pl.col("ptid").alias("sample_id"), *kept, diagnosis)
    return frame.with_columns(pl.Series(f"bayes_{c}", p[:, k]) for k, c in enumerate(CLASSES)).sort("sample_id")


def best_accuracies(people: SimulatedParticipants, separation: float) -> dict[str, float]:
    """Mean of the highest posterior over participants, per modality combination."""
    shown = subsets(list(FACTOR_MEANS))
    return {combination_name(c): float(posterior(people.subjects, c, separation).max(axis=1).mean()) for c in shown}
