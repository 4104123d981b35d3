"""Simulate the diagnostic and clinical tables from the latent state of each participant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.simulate.people import SimulatedParticipants, visit_codes
from mrpipe.datasets.adni.simulate.tables import Writer, blanked_dates, duplicated, texts, with_missing
from mrpipe.datasets.adni.tables import FUNCTIONS, HISTORY, QUANTITIES, SIGNS

_NEW_DXSUM = (
    "DXNORM DXNODEP DXMCI DXMDES DXMPTR1 DXMPTR2 DXMPTR3 DXMPTR4 DXMPTR5 DXMPTR6 DXMDUE DXMOTHET DXDSEV DXDDUE DXAD "
    "DXAPP DXAPROB DXAPOSS DXPARK DXPDES DXPCOG DXPATYP DXDEP DXOTHDEM DXODES DXCONFID"
)
_DRUGS = (
    "Aspirin 81 mg",
    "Lipitor",
    "ATORVASTATIN CALCIUM",
    "simvastatin",
    "Multivitamin",
    "Vitamin D3",
    "Fish Oil",
    "Lisinopril",
    "metoprolol tartrate",
    "Synthroid",
    "Omeprazole",
    "Tylenol",
    "Plavix",
    "Norvasc",
    "Metformin HCl",
    "Calcium + Vit D",
    "HCTZ",
    "Zoloft",
    "café extract",
    "Warfarin",
)
_DEMENTIA = ("Aricept", "Donepezil 10mg", "Namenda", "memantine", "Exelon patch", "Razadyne")
_LANGUAGE = [f"PTLANG{k}{i}" for i in range(1, 7) for k in ("PR", "SP", "RD", "WR", "UN")]
_DEMOG_CORE = "PTIDENT PTORIENT PTORIENTOT PTENGSPK PTNLANG PTENGSPKAGE PTCLANG PTLANGSP PTLANGWR PTSPTIM PTSPOTTIM"
_DEMOG_TAIL = "PTLANGTTL PTETHCATH PTASIAN PTOPI PTBORN PTBIRPL PTIMMAGE PTIMMWHY PTBIRPR PTBIRGR"


def _records(people: SimulatedParticipants, rows: NDArray[np.int64], *, screening: bool) -> pl.DataFrame:
    """Key columns of one record per participant, at screening (two weeks earlier) or baseline."""
    s = people.subjects[rows.tolist()]
    codes = [visit_codes(p, 0, screening=screening) for p in s["phase"].to_list()]
    days = [d - timedelta(days=14 if screening else 0) for d in s["start"].to_list()]
    frame: pl.DataFrame = s.select("ptid", "rid", "phase", "site").with_columns(
        pl.Series("viscode", [a for a, _ in codes]),
        pl.Series("viscode2", [b for _, b in codes]),
        pl.Series("day", days),
    )
    return frame


def _at_visits(people: SimulatedParticipants) -> pl.DataFrame:
    s = (
        people.subjects.select("ptid", "rid", "phase", "site")
        .with_row_index("i")
        .with_columns(pl.col("i").cast(pl.Int64))
    )
    visits = people.visits.with_columns(pl.col("i").cast(pl.Int64))
    return visits.join(s, on="i", how="left", maintain_order="left").rename({"date": "day"})


def _dated(frame: pl.DataFrame, rng: np.random.Generator, share: float) -> pl.DataFrame:
    return frame.with_columns(pl.Series("date", blanked_dates(frame["day"].to_list(), rng, share), dtype=pl.String))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


def _bernoulli(rng: np.random.Generator, p: NDArray[np.float64]) -> NDArray[np.int64]:
    return (rng.random(len(p)) < p).astype(np.int64)


def write_diagnoses(w: Writer, people: SimulatedParticipants) -> None:
    """DXSUM: DIAGNOSIS; in the old layout DXCURREN (ADNI1), DXCHANGE (ADNIGO/2) or DIAGNOSIS (ADNI3/4)."""
    rng = w.rng("dxsum")
    visits = _at_visits(people)
    visits = visits[duplicated(visits, rng, 0.01).tolist()]
    frame = _dated(visits, rng, 0.02)
    dx = visits["dx"].to_numpy()
    blank = rng.random(len(dx)) < 0.005
    written = [None if b else str(d) for d, b in zip(dx.tolist(), blank, strict=True)]
    items: dict[str, Sequence[Any]]
    if w.layout == "old":
        phase = frame["phase"].to_list()
        before = visits.select(pl.col("dx").shift(1).over("i").fill_null(pl.col("dx")))["dx"].to_numpy()
        change = np.select(
            [
                dx == before,
                (before == 1) & (dx == 2),
                (before == 2) & (dx == 3),
                (before == 1) & (dx == 3),
                (before == 2) & (dx == 1),
                (before == 3) & (dx == 2),
            ],
            [dx, 4, 5, 6, 7, 8],
            default=9,
        )
        go = ("ADNIGO", "ADNI2")
        items = {
            "DXCHANGE": [
                None if b or p not in go else str(c) for c, b, p in zip(change.tolist(), blank, phase, strict=True)
            ],
            "DXCURREN": [v if p == "ADNI1" else None for v, p in zip(written, phase, strict=True)],
            "DIAGNOSIS": [v if p in ("ADNI3", "ADNI4") else None for v, p in zip(written, phase, strict=True)],
        }
    else:
        items = {"DIAGNOSIS": written, **{c: ["-4"] * len(dx) for c in _NEW_DXSUM.split()}}
        items["DXNORM"] = ["1" if d == 1 else "-4" for d in dx.tolist()]
    table = {"old": "DXSUM_PDXCONV_ADNIALL", "2024": "DXSUM_PDXCONV", "2025": "DXSUM"}[w.layout]
    w.write(table, frame, items, date_column="EXAMDATE")


def write_history(w: Writer, people: SimulatedParticipants) -> None:
    """MEDHIST: participants of ADNI1, ADNIGO and ADNI2 only; later phases use another form (INITHEALTH)."""
    rng = w.rng("medhist")
    s = people.subjects
    rows = np.flatnonzero(s["phase"].is_in(["ADNI1", "ADNIGO", "ADNI2"]).to_numpy())
    frame = _dated(_records(people, rows, screening=True), rng, 0.05)
    u, v, phase = s["u"].to_numpy()[rows], s["v_clinical"].to_numpy()[rows], frame["phase"].to_list()
    items: dict[str, Sequence[Any]] = {"MHSOURCE": ["1"] * len(rows)}
    answers = {}
    for k, name in enumerate(HISTORY.split()):
        drift = 0.5 * u if name == "MH2NEURL" else (0.5 * v if k % 3 == 0 else 0.0 * v)
        answers[name] = _bernoulli(rng, _sigmoid(-1.0 + 0.2 * (k % 5) + drift))
    order = [n for name in HISTORY.split() for n in (name, *(q for q, (p, _) in QUANTITIES.items() if p == name))]
    for name in order:
        if name in answers:
            items[name] = with_missing(texts(answers[name]), rng, phase, rate=0.03, minus_one=0.03)
            continue
        parent = answers[QUANTITIES[name][0]]
        value = rng.integers(1, 30, len(rows)) if name != "MH16ASMOK" else rng.integers(1, 8, len(rows)) / 2
        given = [
            t if p else ("-4" if e else None)
            for t, p, e in zip(texts(value.astype(float)), parent.tolist(), rng.random(len(rows)) < 0.5, strict=True)
        ]
        items[name] = with_missing(given, rng, phase, rate=0.05, minus_one=0.02)
    items["MHCOMMEN"] = ["see chart"] * len(rows)
    w.write("MEDHIST", frame, items)


def write_examination(w: Writer, people: SimulatedParticipants) -> None:
    """NEUROEXM: one record per participant."""
    rng = w.rng("neuroexm")
    s = people.subjects
    frame = _dated(_records(people, np.arange(len(s)), screening=True), rng, 0.05)
    u, v, phase = s["u"].to_numpy(), s["v_clinical"].to_numpy(), frame["phase"].to_list()
    items: dict[str, Sequence[Any]] = {}
    for k, name in enumerate([*SIGNS.split(), *FUNCTIONS.split()]):
        drift = 0.6 * u if name in ("NXGAIT", "NXABNORM", "NXFINGER") else (0.4 * v if k % 4 == 1 else 0.0 * v)
        items[name] = with_missing(
            texts(1 + _bernoulli(rng, _sigmoid(-2.0 + drift))), rng, phase, rate=0.04, minus_one=0.02
        )
        items[f"{name}DES"] = [None] * len(frame)
    w.write("NEUROEXM", frame, items)


def write_demographics(w: Writer, people: SimulatedParticipants) -> None:
    """PTDEMOG: one record at screening; 20 % of participants have a second one from a later phase."""
    rng = w.rng("ptdemog")
    s = people.subjects
    again = np.flatnonzero(rng.random(len(s)) < 0.2)
    rows = np.r_[np.arange(len(s)), again]
    first = _records(people, np.arange(len(s)), screening=True)
    second = _records(people, again, screening=True).with_columns(
        (pl.col("day") + pl.duration(days=730)).alias("day"),
        pl.lit("m24").alias("viscode2"),
        pl.lit("v21").alias("viscode"),
    )
    frame = _dated(pl.concat([first, second]), rng, 0.05)
    u, v = s["u"].to_numpy(), s["v_clinical"].to_numpy()
    age = np.clip(73 + 2.5 * u + 4.0 * v + 5.0 * rng.standard_normal(len(s)), 55, 95)
    birth = np.array([d.year + d.timetuple().tm_yday / 365.25 for d in s["start"].to_list()]) - age
    year, month = birth.astype(int), ((birth % 1) * 12).astype(int) + 1
    education = np.clip(np.round(16 - 0.5 * u + 2.5 * rng.standard_normal(len(s))), 6, 20)
    race = np.where(rng.random(len(s)) < 0.88, "5", np.array(["4", "2", "6", "1"])[rng.integers(0, 4, len(s))])
    several = (s["phase"] == "ADNI4").to_numpy() & (rng.random(len(s)) < 0.1)
    race = np.where(several, "4|5", race)
    phase = frame["phase"].to_list()

    def each(values: NDArray[Any]) -> list[Any]:
        return [values[i] for i in rows.tolist()]

    n = len(rows)
    married = np.array(["1", "2", "3", "4", "6"])[rng.choice(5, len(s), p=[0.75, 0.12, 0.08, 0.04, 0.01])]
    onset = [str(2000 + k) if x < 0.8 else "9999" for k, x in zip(rng.integers(0, 15, n), rng.random(n), strict=True)]
    ill = each((s["cls"] > 0).to_numpy())
    items: dict[str, Sequence[Any]] = {
        "PTSOURCE": ["1"] * n,
        "PTGENDER": each(np.array(["1", "2"])[rng.integers(0, 2, len(s))]),
    }
    if w.layout == "old":
        items |= {"PTDOBMM": each(month.astype(str))}
    else:
        items |= {"PTDOB": each(np.array([f"{m:02d}/{y}" for m, y in zip(month, year, strict=True)]))}
    items |= {
        "PTDOBYY": each(year.astype(str)),
        "PTHAND": each(np.where(rng.random(len(s)) < 0.92, "1", "2")),
        "PTMARRY": with_missing(each(married), rng, phase, rate=0.03, minus_one=0.02),
        "PTEDUCAT": texts(np.array(each(education))),
        "PTWORKHS": ["1"] * n,
        "PTWORK": ["teacher"] * n,
        "PTNOTRT": with_missing(
            each(np.array(["0", "1", "2"])[rng.choice(3, len(s), p=[0.2, 0.75, 0.05])]), rng, phase, rate=0.05
        ),
        "PTRTYR": [
            str(1990 + k) if x < 0.8 else "9999" for k, x in zip(rng.integers(0, 20, n), rng.random(n), strict=True)
        ],
        "PTHOME": with_missing(each(np.array(["1", "2", "3", "5"])[rng.integers(0, 4, len(s))]), rng, phase, rate=0.05),
        "PTTLANG": ["1"] * n,
        "PTPLANG": ["1"] * n,
        "PTADBEG": [o if i else "-4" for o, i in zip(onset, ill, strict=True)],
        "PTCOGBEG": [o if i else "-4" for o, i in zip(onset, ill, strict=True)],
        "PTADDX": [o if i else "9999" for o, i in zip(onset, ill, strict=True)],
        "PTETHCAT": with_missing(each(np.where(rng.random(len(s)) < 0.95, "2", "1")), rng, phase, rate=0.02),
        "PTRACCAT": each(race),
    }
    if w.layout == "2025":
        items |= {c: [None] * n for c in (*_DEMOG_CORE.split(), *_LANGUAGE, *_DEMOG_TAIL.split())}
    w.write("PTDEMOG", frame, items)


def write_medications(w: Writer, people: SimulatedParticipants) -> None:
    """RECCMEDS: one row per medication, at baseline or month 12; dementia drugs depend on the diagnosis."""
    rng = w.rng("reccmeds")
    s = people.subjects
    u = s["u"].to_numpy()
    count = rng.poisson(5 + np.clip(u, -2, 2), len(s)) + 1
    rows = np.repeat(np.arange(len(s)), count)
    frame = _records(people, rows, screening=False)
    later = rng.random(len(rows)) < 0.25
    months = np.where(later, 12, 0)
    frame = frame.with_columns(
        (pl.col("day") + pl.Series([timedelta(days=30 * int(m)) for m in months])).alias("day"),
        pl.when(pl.Series(later)).then(pl.lit("m12")).otherwise(pl.col("viscode2")).alias("viscode2"),
    )
    drug = np.array(_DRUGS, dtype=object)[rng.integers(0, len(_DRUGS), len(rows))]
    against = rng.random(len(rows)) < np.array([0.005, 0.08, 0.35])[s["cls"].to_numpy()[rows]] / 2
    drug = np.where(against, np.array(_DEMENTIA, dtype=object)[rng.integers(0, len(_DEMENTIA), len(rows))], drug)
    years = np.array([d.year for d in frame["day"].to_list()])
    begin = years - rng.integers(0, 12, len(rows))
    kind = rng.integers(0, 4, len(rows))
    fuzzy = w.layout != "2025"
    started = [
        [f"{y}-05-01", f"--/--/{y}" if fuzzy else f"{y}-01-01", f"--/05/{y}" if fuzzy else f"{y}-05-01", "-4"][k]
        for y, k in zip(begin.tolist(), kind.tolist(), strict=True)
    ]
    continuing = rng.random(len(rows)) < 0.85
    ended = [
        None if c else f"--/--/{y}" if fuzzy else f"{y}-06-01" for c, y in zip(continuing, years.tolist(), strict=True)
    ]
    n = len(rows)
    items: dict[str, Sequence[Any]] = {
        "RECNO": [str(i + 1) for i in range(n)],
        "CMMED": drug.tolist(),
        "CMMEDID": ["-4"] * n,
        "CMDOSE": ["1"] * n,
        "CMUNITSID": ["-4"] * n,
        "CMUNITS": ["mg"] * n,
        "CMFREQID": ["-4"] * n,
        "CMFREQNC": ["QD"] * n,
        "CMROUTEID": ["-4"] * n,
        "CMROUTE": ["PO"] * n,
        "CMREASON": np.array(["2", "3", "2|3"])[rng.integers(0, 3, n)].tolist(),
        "CMEVNUM": ["-4"] * n,
        "CMBGN": started,
        "CMCONT": ["1" if c else "0" for c in continuing],
        "CMEND": ended,
        "CMCOMM": [None] * n,
    }
    if w.layout == "2025":
        items |= {"CMBGNYR_DRVD": [str(y) for y in begin], "CMENDYR_DRVD": [None] * n}
    w.write("RECCMEDS", _dated(frame, rng, 0.05), items)


def write_vitals(w: Writer, people: SimulatedParticipants) -> None:
    """VITALS: height at screening only, other values at every visit; units are mixed and sometimes mislabelled."""
    rng = w.rng("vitals")
    s = people.subjects
    sc = _records(people, np.arange(len(s)), screening=True).with_columns(pl.lit(-1, pl.Int64).alias("month"))
    visits = _at_visits(people)
    frame = pl.concat(
        [
            sc.with_columns(pl.Series("i", np.arange(len(s)))),
            visits.drop("dx").select(
                "ptid", "rid", "phase", "site", "viscode", "viscode2", "day", pl.col("month").cast(pl.Int64), "i"
            ),
        ]
    )
    frame = frame[duplicated(frame, rng, 0.01).tolist()]
    frame = _dated(frame, rng, 0.05)
    i, n, phase = frame["i"].to_numpy(), len(frame), frame["phase"].to_list()
    u, v = s["u"].to_numpy(), s["v_clinical"].to_numpy()
    kg = np.clip(76 - 1.5 * u - 4.0 * v + 10 * rng.standard_normal(len(s)), 42, 130)[i] + rng.standard_normal(n)
    cm = np.clip(168 + 9 * rng.standard_normal(len(s)), 140, 200)[i]
    metric = rng.random(n) < 0.10
    weight = np.where(metric, kg, kg / 0.45359237).round(1)
    height = np.where(metric, cm, cm / 2.54).round(1)
    celsius = 36.6 + 0.3 * rng.standard_normal(n)
    hot = rng.random(n) < 0.10
    temperature = np.where(hot, celsius, celsius * 9 / 5 + 32).round(1)
    label = np.where(hot, "2", "1")
    label = np.where(rng.random(n) < 0.005, np.where(hot, "1", "2"), label)
    unit = np.where(metric, "2", "1")
    measured = (frame["month"] == -1).to_numpy()

    def gaps(values: NDArray[Any]) -> list[str | None]:
        return with_missing(texts(values), rng, phase, rate=0.03, minus_one=0.02, anywhere=True)

    items: dict[str, Sequence[Any]] = {
        "VSWEIGHT": gaps(weight),
        "VSWTUNIT": unit.tolist(),
        "VSHEIGHT": [t if m else None for t, m in zip(gaps(height), measured, strict=True)],
        "VSHTUNIT": [t if m else "-4" for t, m in zip(unit.tolist(), measured, strict=True)],
        "VSBPSYS": gaps(np.clip(np.round(134 + 4 * v[i] + 14 * rng.standard_normal(n)), 80, 220)),
        "VSBPDIA": gaps(np.clip(np.round(75 + 9 * rng.standard_normal(n)), 40, 120)),
        "VSPULSE": gaps(np.clip(np.round(65 + 9 * rng.standard_normal(n)), 42, 120)),
        "VSRESP": gaps(np.clip(np.round(16 + 2 * rng.standard_normal(n)), 8, 30)),
        "VSTEMP": gaps(temperature),
        "VSTMPSRC": ["1"] * n,
        "VSTMPUNT": label.tolist(),
        "VSHGTSC": ["1" if m else None for m in measured],
        "VSCOMM": [None] * n,
    }
    w.write("VITALS", frame, items)


def write_roster(w: Writer, people: SimulatedParticipants) -> None:
    """ROSTER of an old export, the only table that maps RID to PTID in that layout."""
    s = people.subjects
    rows = pl.DataFrame(
        {"Phase": s["phase"], "ID": s["rid"].cast(pl.String), "RID": s["rid"].cast(pl.String), "PTID": s["ptid"]}
    )
    (w.out / w.name("ROSTER")).write_text(rows.write_csv(quote_style="always"), encoding="utf-8")
