"""Simulate the diagnostic and clinical tables from the latent state of each participant."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.simulate.people import SimulatedParticipants
from mrpipe.datasets.adni.simulate.tables import Writer, dated, duplicated, key_columns, texts, with_missing
from mrpipe.datasets.adni.tables import FUNCTIONS, HISTORY, QUANTITIES, SIGNS

_NEW_DXSUM = (
    "DXNORM DXNODEP DXMCI DXMDES DXMPTR1 DXMPTR2 DXMPTR3 DXMPTR4 DXMPTR5 DXMPTR6 DXMDUE DXMOTHET DXDSEV DXDDUE DXAD "
    "DXAPP DXAPROB DXAPOSS DXPARK DXPDES DXPCOG DXPATYP DXDEP DXOTHDEM DXODES DXCONFID"
)
# Diagnosis at the previous and at this visit → code of DXCHANGE; others are 9.
_CHANGES = {(1, 1): 1, (2, 2): 2, (3, 3): 3, (1, 2): 4, (2, 3): 5, (1, 3): 6, (2, 1): 7, (3, 2): 8}
_DRUGS = (
    "Aspirin 81 mg|Lipitor|ATORVASTATIN CALCIUM|simvastatin|Multivitamin|Vitamin D3|Fish Oil|Lisinopril|"
    "metoprolol tartrate|Synthroid|Omeprazole|Tylenol|Plavix|Norvasc|Metformin HCl|Calcium + Vit D|HCTZ|Zoloft|"
    "café extract|Warfarin"
)
_DEMENTIA = "Aricept|Donepezil 10mg|Namenda|memantine|Exelon patch|Razadyne"
_LANGUAGE = [f"PTLANG{k}{i}" for i in range(1, 7) for k in ("PR", "SP", "RD", "WR", "UN")]
_DEMOG_CORE = "PTIDENT PTORIENT PTORIENTOT PTENGSPK PTNLANG PTENGSPKAGE PTCLANG PTLANGSP PTLANGWR PTSPTIM PTSPOTTIM"
_DEMOG_TAIL = "PTLANGTTL PTETHCATH PTASIAN PTOPI PTBORN PTBIRPL PTIMMAGE PTIMMWHY PTBIRPR PTBIRGR"


def _at_visits(people: SimulatedParticipants) -> pl.DataFrame:
    """Key columns of one record per visit, with `i` (row in subjects), `month` and `dx`."""
    s = people.subjects.select("ptid", "rid", "phase", "site").with_row_index("i").cast({"i": pl.Int64})
    return people.visits.join(s, on="i", how="left", maintain_order="left").rename({"date": "day"})


def _drawn(rng: np.random.Generator, values: str, n: int, p: list[float] | None = None) -> NDArray[Any]:
    """Draw n of the values, separated by `|`, uniformly or with probabilities p."""
    choices = np.array(values.split("|"), dtype=object)
    return choices[rng.integers(0, len(choices), n) if p is None else rng.choice(len(choices), n, p=p)]


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


def _bernoulli(rng: np.random.Generator, p: NDArray[np.float64]) -> NDArray[np.int64]:
    return (rng.random(len(p)) < p).astype(np.int64)


def write_diagnoses(w: Writer, people: SimulatedParticipants) -> None:
    """DXSUM: DIAGNOSIS; in the old layout DXCURREN (ADNI1), DXCHANGE (ADNIGO/2) or DIAGNOSIS (ADNI3/4)."""
    rng = w.rng("dxsum")
    visits = duplicated(_at_visits(people), rng, 0.01)
    frame = dated(visits, rng, 0.02)
    dx, phase = visits["dx"].to_list(), visits["phase"]
    known = rng.random(len(dx)) >= 0.005
    items: dict[str, Any]
    if w.layout == "old":
        before = visits.select(pl.col("dx").shift(1).over("i").fill_null(pl.col("dx"))).to_series()
        change = [_CHANGES.get(pair, 9) for pair in zip(before, dx, strict=True)]
        in_phases = {"DXCHANGE": (change, ["ADNIGO", "ADNI2"]), "DXCURREN": (dx, ["ADNI1"])}
        in_phases |= {"DIAGNOSIS": (dx, ["ADNI3", "ADNI4"])}
        items = {
            name: np.where(known & phase.is_in(phases).to_numpy(), np.array(codes, dtype=str), "")
            for name, (codes, phases) in in_phases.items()
        }
    else:
        written = np.where(known, np.array(dx, dtype=str), "")
        items = {"DIAGNOSIS": written, **dict.fromkeys(_NEW_DXSUM.split(), "-4")}
        items["DXNORM"] = ["1" if d == 1 else "-4" for d in dx]
    table = {"old": "DXSUM_PDXCONV_ADNIALL", "2024": "DXSUM_PDXCONV", "2025": "DXSUM"}[w.layout]
    w.write(table, frame, items, date_column="EXAMDATE")


def write_history(w: Writer, people: SimulatedParticipants) -> None:
    """MEDHIST: participants of ADNI1, ADNIGO and ADNI2 only; later phases use another form (INITHEALTH)."""
    rng = w.rng("medhist")
    s = people.subjects
    rows = np.flatnonzero(s["phase"].is_in(["ADNI1", "ADNIGO", "ADNI2"]).to_numpy())
    n = len(rows)
    frame = dated(key_columns(people, rows, screening=True), rng, 0.05)
    u, v, phase = s["u"].to_numpy()[rows], s["v_clinical"].to_numpy()[rows], frame["phase"]
    items: dict[str, Any] = {"MHSOURCE": "1"}
    answers = {}
    for k, name in enumerate(HISTORY):
        drift = 0.5 * u if name == "MH2NEURL" else (0.5 * v if k % 3 == 0 else 0.0 * v)
        answers[name] = _bernoulli(rng, _sigmoid(-1.0 + 0.2 * (k % 5) + drift))
    for name, answer in answers.items():
        items[name] = with_missing(texts(answer), rng, phase, rate=0.03, minus_one=0.03)
        for quantity in (q for q, (parent, _) in QUANTITIES.items() if parent == name):
            value = rng.integers(1, 8, n) / 2 if quantity == "MH16ASMOK" else rng.integers(1, 30, n)
            unasked = np.where(rng.random(n) < 0.5, "-4", "")
            given = np.where(answer == 1, np.array(texts(value), dtype=object), unasked)
            items[quantity] = with_missing(given, rng, phase, rate=0.05, minus_one=0.02)
    items["MHCOMMEN"] = "see chart"
    w.write("MEDHIST", frame, items)


def write_examination(w: Writer, people: SimulatedParticipants) -> None:
    """NEUROEXM: one record per participant."""
    rng = w.rng("neuroexm")
    frame = dated(key_columns(people, screening=True), rng, 0.05)
    u, v = people.subjects["u"].to_numpy(), people.subjects["v_clinical"].to_numpy()
    items: dict[str, Any] = {}
    for k, name in enumerate([*SIGNS, *FUNCTIONS]):
        drift = 0.6 * u if name in ("NXGAIT", "NXABNORM", "NXFINGER") else (0.4 * v if k % 4 == 1 else 0.0 * v)
        signs = texts(1 + _bernoulli(rng, _sigmoid(-2.0 + drift)))
        items[name] = with_missing(signs, rng, frame["phase"], rate=0.04, minus_one=0.02)
        items[f"{name}DES"] = None
    w.write("NEUROEXM", frame, items)


def write_demographics(w: Writer, people: SimulatedParticipants) -> None:
    """PTDEMOG: one record at screening; 20 % of participants have a second one from a later phase."""
    rng = w.rng("ptdemog")
    s = people.subjects
    n = len(s)
    again = np.flatnonzero(rng.random(n) < 0.2)
    rows = np.r_[np.arange(n), again]
    second = key_columns(people, again, screening=True).with_columns(
        pl.col("day") + pl.duration(days=730), viscode=pl.lit("v21"), viscode2=pl.lit("m24")
    )
    frame = dated(pl.concat([key_columns(people, screening=True), second]), rng, 0.05)
    phase = frame["phase"]
    u, v = s["u"].to_numpy(), s["v_clinical"].to_numpy()
    age = np.clip(73 + 2.5 * u + 4.0 * v + 5.0 * rng.standard_normal(n), 55, 95)
    birth = (s["start"].dt.year() + s["start"].dt.ordinal_day() / 365.25).to_numpy() - age
    year, month = birth.astype(int), ((birth % 1) * 12).astype(int) + 1
    education = np.clip(np.round(16 - 0.5 * u + 2.5 * rng.standard_normal(n)), 6, 20)
    race = np.where(rng.random(n) < 0.88, "5", _drawn(rng, "4|2|6|1", n))
    race = np.where((s["phase"] == "ADNI4").to_numpy() & (rng.random(n) < 0.1), "4|5", race)
    married = _drawn(rng, "1|2|3|4|6", n, [0.75, 0.12, 0.08, 0.04, 0.01])

    def years(first: int, count: int) -> NDArray[Any]:
        drawn = first + rng.integers(0, count, len(rows))
        return np.where(rng.random(len(rows)) < 0.8, drawn, 9999).astype(str).astype(object)

    onset = years(2000, 15)
    ill = (s["cls"] > 0).to_numpy()[rows]
    items: dict[str, Any] = {"PTSOURCE": "1", "PTGENDER": _drawn(rng, "1|2", n)[rows]}
    if w.layout == "old":
        items["PTDOBMM"] = month[rows]
    else:
        items["PTDOB"] = [f"{month[i]:02d}/{year[i]}" for i in rows]
    items |= {
        "PTDOBYY": year[rows],
        "PTHAND": np.where(rng.random(n) < 0.92, "1", "2")[rows],
        "PTMARRY": with_missing(married[rows], rng, phase, rate=0.03, minus_one=0.02),
        "PTEDUCAT": texts(education[rows]),
        **{"PTWORKHS": "1", "PTWORK": "teacher"},
        "PTNOTRT": with_missing(_drawn(rng, "0|1|2", n, [0.2, 0.75, 0.05])[rows], rng, phase, rate=0.05),
        "PTRTYR": years(1990, 20),
        "PTHOME": with_missing(_drawn(rng, "1|2|3|5", n)[rows], rng, phase, rate=0.05),
        **dict.fromkeys(("PTTLANG", "PTPLANG"), "1"),
        **dict.fromkeys(("PTADBEG", "PTCOGBEG"), np.where(ill, onset, "-4")),
        "PTADDX": np.where(ill, onset, "9999"),
        "PTETHCAT": with_missing(np.where(rng.random(n) < 0.95, "2", "1")[rows], rng, phase, rate=0.02),
        "PTRACCAT": race[rows],
    }
    if w.layout == "2025":
        items |= dict.fromkeys((*_DEMOG_CORE.split(), *_LANGUAGE, *_DEMOG_TAIL.split()))
    w.write("PTDEMOG", frame, items)


def write_medications(w: Writer, people: SimulatedParticipants) -> None:
    """RECCMEDS: one row per medication, at baseline or month 12; dementia drugs depend on the diagnosis."""
    rng = w.rng("reccmeds")
    s = people.subjects
    rows = np.repeat(np.arange(len(s)), rng.poisson(5 + np.clip(s["u"].to_numpy(), -2, 2), len(s)) + 1)
    n = len(rows)
    later = rng.random(n) < 0.25
    frame = key_columns(people, rows, 12 * later).with_columns(viscode=key_columns(people, rows)["viscode"])
    drug = _drawn(rng, _DRUGS, n)
    against = rng.random(n) < np.array([0.005, 0.08, 0.35])[s["cls"].to_numpy()[rows]] / 2
    drug = np.where(against, _drawn(rng, _DEMENTIA, n), drug)
    years = frame["day"].dt.year().to_numpy()
    begin = years - rng.integers(0, 12, n)
    fuzzy = w.layout != "2025"
    started = [
        (f"{y}-05-01", f"--/--/{y}" if fuzzy else f"{y}-01-01", f"--/05/{y}" if fuzzy else f"{y}-05-01", "-4")[k]
        for y, k in zip(begin, rng.integers(0, 4, n), strict=True)
    ]
    continuing = rng.random(n) < 0.85
    ended = [None if c else f"--/--/{y}" if fuzzy else f"{y}-06-01" for c, y in zip(continuing, years, strict=True)]
    items: dict[str, Any] = {
        **{"RECNO": range(1, n + 1), "CMMED": drug, "CMMEDID": "-4", "CMDOSE": "1", "CMUNITSID": "-4", "CMUNITS": "mg"},
        **{"CMFREQID": "-4", "CMFREQNC": "QD", "CMROUTEID": "-4", "CMROUTE": "PO"},
        "CMREASON": np.array(["2", "3", "2|3"])[rng.integers(0, 3, n)],
        "CMEVNUM": "-4",
        "CMBGN": started,
        "CMCONT": np.where(continuing, "1", "0"),
        "CMEND": ended,
        "CMCOMM": None,
    }
    if w.layout == "2025":
        items |= {"CMBGNYR_DRVD": begin, "CMENDYR_DRVD": None}
    w.write("RECCMEDS", dated(frame, rng, 0.05), items)


def write_vitals(w: Writer, people: SimulatedParticipants) -> None:
    """VITALS: height at screening only, other values at every visit; units are mixed and sometimes mislabelled."""
    rng = w.rng("vitals")
    s = people.subjects
    screening = key_columns(people, screening=True).with_columns(i=pl.int_range(pl.len()), month=pl.lit(-1, pl.Int64))
    frame = pl.concat([screening, _at_visits(people)], how="diagonal")
    frame = dated(duplicated(frame, rng, 0.01), rng, 0.05)
    i, n, phase = frame["i"].to_numpy(), len(frame), frame["phase"]
    u, v = s["u"].to_numpy(), s["v_clinical"].to_numpy()
    kg = np.clip(76 - 1.5 * u - 4.0 * v + 10 * rng.standard_normal(len(s)), 42, 130)[i] + rng.standard_normal(n)
    cm = np.clip(168 + 9 * rng.standard_normal(len(s)), 140, 200)[i]
    metric = rng.random(n) < 0.10
    weight = np.where(metric, kg, kg / 0.45359237).round(1)
    height = np.where(metric, cm, cm / 2.54).round(1)
    celsius = 36.6 + 0.3 * rng.standard_normal(n)
    hot = rng.random(n) < 0.10
    temperature = np.where(hot, celsius, celsius * 9 / 5 + 32).round(1)
    mislabelled = rng.random(n) < 0.005
    measured = (frame["month"] == -1).to_numpy()
    unit = np.where(metric, "2", "1")

    def gaps(values: NDArray[Any]) -> list[str | None]:
        return with_missing(texts(values), rng, phase, rate=0.03, minus_one=0.02, anywhere=True)

    def rounded(mean: NDArray[Any] | float, sd: float, low: int, high: int) -> list[str | None]:
        return gaps(np.clip(np.round(mean + sd * rng.standard_normal(n)), low, high))

    items: dict[str, Any] = {
        "VSWEIGHT": gaps(weight),
        "VSWTUNIT": unit,
        "VSHEIGHT": np.where(measured, np.array(gaps(height), dtype=object), ""),
        "VSHTUNIT": np.where(measured, unit, "-4"),
        "VSBPSYS": rounded(134 + 4 * v[i], 14, 80, 220),
        "VSBPDIA": rounded(75, 9, 40, 120),
        "VSPULSE": rounded(65, 9, 42, 120),
        "VSRESP": rounded(16, 2, 8, 30),
        "VSTEMP": gaps(temperature),
        "VSTMPSRC": "1",
        "VSTMPUNT": np.where(hot ^ mislabelled, "2", "1"),
        "VSHGTSC": np.where(measured, "1", ""),
        "VSCOMM": None,
    }
    w.write("VITALS", frame, items)


def write_roster(w: Writer, people: SimulatedParticipants) -> None:
    """ROSTER of an old export, the only table that maps RID to PTID in that layout."""
    rows = people.subjects.select(Phase="phase", ID="rid", RID="rid", PTID="ptid").cast(pl.String)
    w.path("ROSTER").write_text(rows.write_csv(quote_style="always"), encoding="utf-8")


FORMS = (write_diagnoses, write_demographics, write_history, write_examination, write_medications, write_vitals)
