"""Simulated discharge summaries and radiology reports with sections, blanks, quotes and phrases that reveal deaths."""

import numpy as np
import polars as pl

from mrpipe.datasets.mimic.options import MimicSimulation
from mrpipe.datasets.mimic.simulate import pools
from mrpipe.datasets.mimic.simulate.patients import DAY, SimulatedPatients, moments, pick, sigmoid
from mrpipe.keyed import generator

DISCHARGE = (
    " \nName:  ___                     Unit No:   ___\n \nAdmission Date:  ___              "
    "Discharge Date:   ___\n \n"
    "Service: MEDICINE\n \nChief Complaint:\n{}\n \nHistory of Present Illness:\n"
    '___ y/o patient who says "I feel weak", {}.\n'
    "On arrival {}, and {}.\n \nPast Medical History:\n{}.\n \nPhysical Exam:\n{}.\n \nBrief Hospital Course:\n"
    "# Main problem: {}; {}.\nIn the ICU {}. {}, {}. {}\n \nDischarge Disposition:\n{}\n \nDischarge Condition:\n"
    "Mental Status: {}.\n \nDischarge Instructions:\nDear Mr./Ms. ___, {}.\n"
)
RADIOLOGY = "EXAMINATION:  CHEST (PORTABLE AP)\n \nINDICATION:  {}.\n \nFINDINGS: \n \nNo pneumothorax. {}.\n"


def _with_notes(people: SimulatedPatients) -> pl.DataFrame:
    has = people.patients["has_notes"].gather(people.visits["patient"])
    return people.visits.with_row_index("visit").filter(has)


def _sentences(people: SimulatedPatients, visits: pl.DataFrame, rng: np.random.Generator, n: int) -> list[pl.Series]:
    """n phrases per note; sicker patients have more unfavourable ones."""
    p = people.patients
    state = ((p["shared"] + p["note"]) * 0.8).gather(visits["patient"]).to_numpy()
    phrases, out = np.array(pools.PHRASES), []
    for _ in range(n):
        which = rng.integers(0, len(phrases), len(visits))
        sick = rng.random(len(visits)) < sigmoid(state)
        out.append(pl.Series(phrases[which, np.where(sick, 0, 1)]))
    return out


def _table(
    visits: pl.DataFrame, kind: str, seq: pl.Expr, chart: pl.Expr, store: pl.Expr, text: pl.Expr
) -> pl.DataFrame:
    """A table of notes; `chart` and `store` are minutes since 2100."""
    return visits.select(
        pl.format(f"{{}}-{kind}-{{}}", "subject_id", seq).alias("note_id"),
        "subject_id",
        "hadm_id",
        note_type=pl.lit(kind),
        note_seq=seq.cast(pl.Int32),
        charttime=moments(visits.select(chart).to_series()),
        storetime=moments(visits.select(store).to_series()),
        text=text,
    )


def discharge_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    """Table note/discharge: one note per visit; the note of a terminal visit mentions the death."""
    rng = generator(o.seed, "mimic discharge notes")
    visits = _with_notes(people)
    a, b, c, d, e, f = _sentences(people, visits, rng, 6)
    complaint = pick(rng, pools.COMPLAINTS, len(visits))
    p, q, r, s = (pick(rng, pools.PLAIN, len(visits)) for _ in range(4))
    died = pl.when("terminal")
    fate = died.then(pl.lit("Expired")).otherwise(pl.lit("Home With Service"))
    end = died.then(pl.lit("The patient was made comfortable and passed away with family at bedside.")).otherwise(
        pl.lit("The patient was discharged in stable condition.")
    )
    text = pl.format(DISCHARGE, complaint, p, a, q, r, b, c, s, d, e, f, end, fate, fate, p)
    leave = pl.col("discharge")
    return _table(visits, "DS", pl.col("number") + 1, leave // DAY * DAY, leave + 600, text)


def radiology_table(people: SimulatedPatients, o: MimicSimulation) -> pl.DataFrame:
    """Table note/radiology: two reports per visit, one of them as outpatient (blank hadm_id) before the admission."""
    rng = generator(o.seed, "mimic radiology notes")
    inside = _with_notes(people).with_columns(before=False)
    outside = inside.with_columns(before=True, hadm_id=None)
    visits = pl.concat([inside, outside], how="vertical_relaxed").sort("visit", "before")
    a, b = _sentences(people, visits, rng, 2)
    minute = pl.min_horizontal("admit", "discharge") + pl.when("before").then(-5 * DAY).otherwise(300)
    seq = pl.int_range(pl.len()).over("patient") + 1
    return _table(visits, "RR", seq, minute, minute + 30, pl.format(RADIOLOGY, a, b))
