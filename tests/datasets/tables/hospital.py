"""The tables of the made-up hospital of docs/tables.md: 90 patients, 120 visits, three sites."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np

N_PATIENTS, N_VISITS = 90, 120
TESTS = (("Na", "mmol/l", 138.0, 4.0), ("CRP", "mg/l", 20.0, 15.0), ("Hb", "g/dl", 13.0, 2.0))


def german(time: dt.datetime) -> str:
    return f"{time:%d.%m.%Y %H:%M}"


def write_hospital(raw: Path, *, later: str = "") -> None:
    """Write the tables.

    Args:
        later: value of an analyte that is only measured after the ward round of some visits; empty: not measured.
    """
    rng = np.random.default_rng(0)
    raw.mkdir(parents=True, exist_ok=True)
    born = [dt.date(1930, 1, 1) + dt.timedelta(days=int(d)) for d in rng.integers(0, 20000, N_PATIENTS)]
    patients = [f"P{i};{b:%d.%m.%Y};{'fm'[i % 2]}" for i, b in enumerate(born)]
    # Decimal commas and semicolons, as a European spreadsheet writes them.
    visits, labs, outcomes = [], [], []
    for v in range(N_VISITS):
        admitted = dt.datetime(2019, 1, 1, 8) + dt.timedelta(hours=int(rng.integers(0, 9000)))
        round_ = admitted + dt.timedelta(hours=int(rng.integers(20, 30)))
        sick = rng.random() < 0.4
        crp = "<0,5" if rng.random() < 0.2 else f"{abs(rng.normal(20 + 30 * sick, 10)):.1f}".replace(".", ",")
        # Some patients are moved between sites.
        site = "ABC"[(v % N_PATIENTS) % 3 if v < 100 else 2]
        text = "chest pain, short of breath" if sick else "routine control"
        visits.append(
            f"V{v};P{v % N_PATIENTS};{german(admitted)};{german(round_)};{site};{70 + int(10 * sick)};{crp};{text}"
        )
        outcomes.append(f"V{v},{'yes' if sick and rng.random() < 0.7 else 'no'}")
        for _ in range(int(rng.integers(1, 12)) if v % 7 else 0):
            name, unit, mean, sd = TESTS[int(rng.integers(0, 3))]
            drawn = admitted + dt.timedelta(minutes=int(rng.integers(0, 20 * 60)))
            labs.append(f"V{v},{drawn:%Y-%m-%d %H:%M:%S},{name},{rng.normal(mean + 10 * sick, sd):.2f},{unit}")
        if later:
            labs.append(f"V{v},{round_ + dt.timedelta(minutes=1):%Y-%m-%dT%H:%M:%S},lactate,{later},mmol/l")
    tables = {
        "patients.csv": ["patient;born;sex", *patients],
        "visits.csv": ["visit;patient;admitted;ward_round;site;pulse;crp;referral", *visits],
        "labs.csv": ["encounter,drawn,analyte,result,unit", *labs],
        "outcomes.csv": ["visit,died", *outcomes],
    }
    for name, lines in tables.items():
        (raw / name).write_text("\n".join(lines) + "\n")
