"""Simulated MEDS dataset: stays whose laboratory values and diagnoses depend on a latent state, and so does death."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe import keyed
from mrpipe.datasets.meds.config import SCHEMA
from mrpipe.errors import UsageError
from mrpipe.experiment.truth import write_best
from mrpipe.options import option
from mrpipe.store.parquet import write_frame, write_text

DAY, HOUR = np.timedelta64(1, "D"), np.timedelta64(1, "h")
CODES = ("4280", "5849", "486", "V5867")
LABS = ("LAB//50912//mg/dL", "LAB//50971//mEq/L", "LAB//51301//K/uL", "LAB//51222//g/dL")
# The labels come last, so that a truncated file lacks them.
YAML = """\
# A small example of a declared MEDS dataset: every key is explained in docs/meds.md.
samples:
  event: HOSPITAL_DISCHARGE//
  end: HOSPITAL_DISCHARGE//
  which: last
modalities:
  lab: {codes: LAB//}
  code: {codes: [DIAGNOSIS//, "!DIAGNOSIS//ICD//9//V"], form: codes}
  person: {codes: GENDER//, form: counts}
  lab_summary: {codes: LAB//, form: summary, window: 2w}
labels:
  mortality: {event: MEDS_DEATH, within: 365d, classes: [alive, dead]}
"""


@dataclass(frozen=True, kw_only=True)
class MedsSimulation:
    n_subjects: int = option(300, "number of subjects, at least 40; each has one stay")
    seed: int = option(0, "random seed")


def simulate_export(raw: Path, truth: Path, options: MedsSimulation) -> None:
    """Write two shards, the metadata and a YAML to `raw`, and the best possible prediction to `truth`.

    Raises:
        UsageError: if there are too few subjects.
    """
    n, seed = options.n_subjects, options.seed
    if n < 40:
        raise UsageError(f"simulation of meds: n_subjects={n} must be at least 40")
    subject = np.arange(1001, 1001 + n)
    keys = keyed.id_keys(subject.astype(str))
    state, u = keyed.normal(keys, seed, "state", 2), keyed.uniform(keys, seed, "draws", 8)
    noise = keyed.normal(keys, seed, "noise", 4 * len(LABS))
    probability = 1 / (1 + np.exp(0.6 - 1.5 * state.sum(axis=1)))
    admitted = np.datetime64("2150-01-01T08:00:00", "us") + (u[:, 0] * 3000).astype(int) * DAY
    discharged = admitted + (24 + u[:, 1] * 200).astype(int) * HOUR
    born = admitted - (8000 + u[:, 4] * 20_000).astype(int) * DAY
    died = discharged + (1 + u[:, 5] * 360).astype(int) * DAY
    everyone, outcome, female, tested = u[:, 0] >= 0, u[:, 2] < probability, u[:, 3] < 0.5, u[:, 6] > 0.1
    unknown, never = np.full(n, np.nan), np.full(n, "NaT", "M8[us]")
    # Who has an event, when, its code and its value.
    table = [(female, never, "GENDER//F", unknown), (~female, never, "GENDER//M", unknown)]
    table += [(everyone, born, "MEDS_BIRTH", unknown), (outcome, died, "MEDS_DEATH", unknown)]
    table += [(everyone, admitted, "HOSPITAL_ADMISSION//URGENT", unknown)]
    table += [(everyone, discharged, "HOSPITAL_DISCHARGE//HOME", unknown)]
    for j, code in enumerate(CODES):
        having = u[:, 7] * (j + 1) % 1 < 1 / (1 + np.exp(-state[:, j % 2]))
        table.append((having, discharged, f"DIAGNOSIS//ICD//9//{code}", unknown))
    for k in range(noise.shape[1]):
        j, value = k % len(LABS), 10 * (k % len(LABS) + 1) + 2 * state[:, k % 2] + noise[:, k]
        table.append((tested, admitted + (1 + k) * HOUR, LABS[j], value.round(1)))
    names = ["subject_id", "time", "numeric_value"]
    events = pl.concat(
        pl.DataFrame([subject[who], time[who], value[who]], schema=names).with_columns(pl.lit(code).alias("code"))
        for who, time, code, value in table
    )
    events = events.with_columns(pl.col("numeric_value").fill_nan(None).cast(pl.Float32))
    events = events.sort("subject_id", "time", "code")
    part = np.where(u[:, 0] < 0.7, "train", np.where(u[:, 0] < 0.85, "tuning", "held_out"))
    for name in ("train", "tuning", "held_out"):
        chosen = pl.col("subject_id").is_in(pl.Series(subject[part == name]).implode())
        write_frame(raw / "data" / name / "0.parquet", events.filter(chosen))
    parents = pl.lit(None, pl.List(pl.String)).alias("parent_codes")
    codes = events.select(pl.col("code").unique().sort(), parents).with_columns(pl.col("code").alias("description"))
    write_frame(raw / "metadata" / "codes.parquet", codes.select("code", "description", "parent_codes"))
    write_frame(raw / "metadata" / "subject_splits.parquet", pl.DataFrame({"subject_id": subject, "split": part}))
    write_text(raw / "metadata" / "dataset.json", json.dumps({"dataset_name": "simulated", "meds_version": "0.4.1"}))
    write_text(raw / "meds.yaml", f"# yaml-language-server: $schema={SCHEMA.as_uri()}\n{YAML}")
    ids = subject.astype(str).tolist()
    write_frame(truth / "truth.parquet", pl.DataFrame({"sample_id": ids, "outcome": outcome, "p_dead": probability}))
    write_best(truth, "mortality", ("alive", "dead"), ids, {(): np.stack([1 - probability, probability], axis=1)})
