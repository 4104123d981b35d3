"""Simulated discharge summaries and radiology reports: sections, blanks, line breaks, quotes, telltale phrases."""

from __future__ import annotations

import numpy as np
import polars as pl

from mrpipe.datasets.mimic.simulate import pools as pools
from mrpipe.datasets.mimic.simulate.options import MimicSimulation
from mrpipe.datasets.mimic.simulate.patients import DAY, SimulatedPatients, moments, sigmoid
from mrpipe.keyed import generator


def _with_notes(people: SimulatedPatients) -> pl.DataFrame:
    p = people.patients
    rows = people.visits.with_row_index("visit").with_columns(
        pl.col("patient").replace_strict(dict(enumerate(p["has_notes"])), return_dtype=pl.Boolean).alias("has")
    )
    return rows.filter("has")


def _sentences(people: SimulatedPatients, visits: pl.DataFrame, rng: np.random.Generator, n: int) -> list[pl.Series]:
    """n phrases a note; the sicker the patient, the more of the worse ones."""
    p = people.patients
    state = ((p["shared"] + p["note"]) * 0.8).gather(visits["patient"]).to_numpy()
    worse, better = (pl.Series([q[i] for q in pools.PHRASES]) for i in (0, 1))
    out = []
    for _ in range(n):
        which = rng.integers(0, len(pools.PHRASES), len(visits))
        sick = pl.Series(rng.random(len(visits)) < sigmoid(state))
        out.append(pl.select(pl.when(sick).then(worse.gather(which)).otherwise(better.gather(which))).to_series())
    return out


def discharge_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    """note/discharge: one note a visit; a terminal visit's note says so."""
    rng = generator(o.seed, "mimic discharge notes")
    visits = _with_notes(people)
    n = len(visits)
    a, b, c, d, e, f = _sentences(people, visits, rng, 6)
    complaint = pl.Series(np.array(pools.COMPLAINTS)[rng.integers(0, len(pools.COMPLAINTS), n)])
    plain = [pl.Series(np.array(pools.PLAIN)[rng.integers(0, len(pools.PLAIN), n)]) for _ in range(4)]
    died = visits["terminal"]
    fate = pl.select(pl.when(died).then(pl.lit("Expired")).otherwise(pl.lit("Home With Service"))).to_series()
    end = pl.select(
        pl.when(died)
        .then(pl.lit("The patient was made comfortable and passed away with family at bedside."))
        .otherwise(pl.lit("The patient was discharged in stable condition."))
    ).to_series()
    frame = pl.DataFrame(
        {
            "a": a,
            "b": b,
            "c": c,
            "d": d,
            "e": e,
            "f": f,
            "complaint": complaint,
            "fate": fate,
            "end": end,
            **{f"p{i}": s for i, s in enumerate(plain)},
        }
    )
    text = pl.format(
        " \nName:  ___                     Unit No:   ___\n \nAdmission Date:  ___              "
        "Discharge Date:   ___\n \n"
        "Service: MEDICINE\n \nChief Complaint:\n{}\n \nHistory of Present Illness:\n"
        '___ y/o patient who says "I feel weak", {}.\n'
        "On arrival {}, and {}.\n \nPast Medical History:\n{}.\n \nPhysical Exam:\n{}.\n \nBrief Hospital Course:\n"
        "# Main problem: {}; {}.\nIn the ICU {}. {}, {}. {}\n \nDischarge Disposition:\n{}\n \nDischarge Condition:\n"
        "Mental Status: {}.\n \nDischarge Instructions:\nDear Mr./Ms. ___, {}.\n",
        "complaint",
        "p0",
        "a",
        "p1",
        "p2",
        "b",
        "c",
        "p3",
        "d",
        "e",
        "f",
        "end",
        "fate",
        "fate",
        "p0",
    )
    subject = people.patients["subject_id"].gather(visits["patient"])
    seq = visits["number"].cast(pl.Int32) + 1
    day = visits["discharge"] // DAY * DAY
    return frame.select(
        pl.format("{}-DS-{}", subject, seq).alias("note_id"),
        subject.alias("subject_id"),
        visits["hadm_id"],
        pl.lit("DS").alias("note_type"),
        seq.alias("note_seq"),
        moments(day).alias("charttime"),
        moments(visits["discharge"] + 600).alias("storetime"),
        text.alias("text"),
    )


def radiology_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    """note/radiology: two reports a visit, one of them of an outpatient (blank hadm_id) before the admission."""
    rng = generator(o.seed, "mimic radiology notes")
    visits = (
        pl.concat([v := _with_notes(people), v.with_columns(pl.lit(True).alias("before"))], how="diagonal")
        .with_columns(pl.col("before").fill_null(False))
        .sort("visit", "before")
    )
    a, b = _sentences(people, visits, rng, 2)
    frame = pl.DataFrame({"a": a, "b": b})
    subject = people.patients["subject_id"].gather(visits["patient"])
    seq = pl.Series(visits.select(pl.int_range(pl.len()).over("patient") + 1).to_series()).cast(pl.Int32)
    before = visits["before"]
    minute = visits.select(
        pl.when("before")
        .then(pl.min_horizontal("admit", "discharge") - 5 * DAY)
        .otherwise(pl.min_horizontal("admit", "discharge") + 300)
    ).to_series()
    text = pl.format(
        "EXAMINATION:  CHEST (PORTABLE AP)\n \nINDICATION:  {}.\n \nFINDINGS: \n \nNo pneumothorax. {}.\n", "a", "b"
    )
    return frame.select(
        pl.format("{}-RR-{}", subject, seq).alias("note_id"),
        subject.alias("subject_id"),
        pl.when(before).then(None).otherwise(visits["hadm_id"]).alias("hadm_id"),
        pl.lit("RR").alias("note_type"),
        seq.alias("note_seq"),
        moments(minute).alias("charttime"),
        moments(minute + 30).alias("storetime"),
        text.alias("text"),
    )
