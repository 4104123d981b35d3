"""Simulated export of declared tables: a YAML, CSV files and a Parquet file, from a latent state with known truth.

Three latent traits of a visit determine the outcome. Vital signs depend on the first two traits, laboratory values on
the last two, and a coarse survey on the last. Whether laboratory values and survey are missing depends on the first
trait, which the vital signs reveal. Visits of the same person share part of their state.
"""

import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe import keyed
from mrpipe.errors import UsageError
from mrpipe.experiment.truth import write_best
from mrpipe.options import option
from mrpipe.store.parquet import write_frame, write_text

WEIGHTS = (1.2, 0.8, 1.4)
# The label comes last, so that a truncated file lacks it.
YAML = """\
# A small example of declared tables: every key is explained in docs/tables.md.
title: Simulated visits
id: {"*": visit, labs.csv.gz: encounter}
subject: person
missing: [-99]
modalities:
  vitals:
    file: vitals.csv
    columns: [pulse, pressure, temperature, respiration]
  labs:
    file: labs.csv.gz
    exclude: [batch]
    kinds: {analyte_1: censored}   # values below 6 are given as <6
  survey:
    file: survey.parquet
    kinds:
      smoking: {0: never, 1: former, 2: current}
      mood: [1, 2, 3, 4]
split:
  file: people.csv
  column: fold
label:
  name: outcome
  file: people.csv
  column: outcome
  classes: {0: recovered, 1: readmitted}
  description: readmission, a function of all three traits
"""


@dataclass(frozen=True, kw_only=True)
class TablesSimulation:
    """Options of the simulated export of declared tables."""

    n_visits: int = option(400, "number of visits, at least 40")
    seed: int = option(0, "random seed")
    missing: float = option(0.4, "mean fraction of visits without laboratory values, and of visits without a survey")


def simulate_export(raw: Path, truth: Path, options: TablesSimulation) -> None:
    """Write the export to `raw`, and the latent traits and the best possible prediction to `truth`.

    Raises:
        UsageError: if there are too few visits, or `missing` is out of range.
    """
    n, seed = options.n_visits, options.seed
    if n < 40 or not 0 <= options.missing < 0.9:
        raise UsageError(
            f"simulation of tables: n_visits={n} must be at least 40 and missing={options.missing} in [0, 0.9)"
        )
    person = np.array([f"P{i:05d}" for i in np.arange(n) * 2 // 3])
    visit = np.array([f"V{i:05d}" for i in range(n)])
    keys, person_keys = keyed.id_keys(visit), keyed.id_keys(person)
    shared, fresh = keyed.normal(person_keys, seed, "person", 3), keyed.normal(keys, seed, "visit", 3)
    trait = np.sqrt(0.4) * shared + np.sqrt(0.6) * fresh
    probability = 1 / (1 + np.exp(-(trait @ np.array(WEIGHTS) - 0.5)))
    u = keyed.uniform(keys, seed, "draws", 8)
    outcome = (u[:, 0] < probability).astype(np.int64)
    p_missing = 2 * options.missing / (1 + np.exp(-trait[:, :1])) * np.array([[1.0, 1.0]])
    has_labs, has_survey = (u[:, 1:3] >= p_missing).T

    vitals = _signs(trait[:, [0, 1]], 4, keys, seed, "vitals") * [12, 15, 0.5, 4] + [75, 120, 36.9, 16]
    digits = {"pulse": 0, "pressure": 0, "temperature": 1, "respiration": 0}
    columns = {"visit": visit, **{k: _text(x, n) for (k, n), x in zip(digits.items(), vitals.T, strict=True)}}
    columns["temperature"] = np.where(u[:, 3] < 0.1, "-99", columns["temperature"])
    write_text(raw / "vitals.csv", _csv(columns))

    labs = _signs(trait[:, [1, 2]], 6, keys, seed, "labs")
    table = {"encounter": visit, "batch": np.array([f"b{i}" for i in range(n)])}
    level = np.exp(0.4 * labs) * 10
    table |= {f"analyte_{j + 1}": np.where(has_labs, _text(level[:, j], 2), "") for j in range(6)}
    table["analyte_1"] = np.where(has_labs & (level[:, 0] < 6), "<6", table["analyte_1"])
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as handle:
        handle.write(_csv(table).encode())
    (raw / "labs.csv.gz").write_bytes(buffer.getvalue())

    answer = _signs(trait[:, [2, 2]], 2, keys, seed, "survey")
    survey = pl.DataFrame(
        {
            "visit": visit,
            "smoking": np.digitize(answer[:, 0], [-0.5, 0.7]),
            "mood": 1 + np.digitize(answer[:, 1], [-0.8, 0.0, 0.8]),
        }
    )
    write_frame(raw / "survey.parquet", survey.filter(pl.Series(has_survey)))

    u_fold = keyed.uniform(person_keys, seed, "fold")[:, 0]
    fold = np.where(u_fold < 0.7, "training", np.where(u_fold < 0.85, "validation", "test"))
    known = np.where(u[:, 4] < 0.03, "", outcome.astype(str))
    write_text(raw / "people.csv", _csv({"visit": visit, "person": person, "outcome": known, "fold": fold}))
    write_text(raw / "tables.yaml", YAML)
    found = {"sample_id": visit, "subject_id": person, "outcome": outcome, "bayes_readmitted": probability}
    found |= {f"trait_{j}": trait[:, j] for j in range(3)}
    write_frame(truth / "truth.parquet", pl.DataFrame(found).sort("sample_id"))
    best: dict[tuple[str, ...], NDArray[np.float64]] = {(): np.stack([1 - probability, probability], axis=1)}
    write_best(truth, "outcome", ("recovered", "readmitted"), visit.tolist(), best)


def _signs(
    trait: NDArray[np.float64], n: int, keys: NDArray[np.uint64], seed: int, purpose: str
) -> NDArray[np.float64]:
    """(visits, n) noisy measurements that alternate between two traits."""
    return 0.8 * trait[:, np.arange(n) % 2] + 0.6 * keyed.normal(keys, seed, purpose, n)


def _text(x: NDArray[np.float64], digits: int) -> NDArray[np.str_]:
    return np.array([f"{v:.{digits}f}" for v in x])


def _csv(columns: dict[str, NDArray[np.str_]]) -> str:
    rows = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    return "\n".join(rows) + "\n"
