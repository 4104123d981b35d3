"""The simulated content of ADNI's biospecimen tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl

from mrpipe.datasets.adni.simulate.people import SimulatedParticipants, visit_codes
from mrpipe.datasets.adni.simulate.tables import Writer, texts
from mrpipe.datasets.adni.tables import QC_RID

# raw-formats A.3: of 3,008 genotyped; the share of ε4 carriers by class is E.3's.
APOE = {"3/3": 1417, "3/4": 1016, "4/4": 275, "2/3": 219, "2/4": 71, "2/2": 10}
CARRIERS = (0.30, 0.45, 0.65)
# Means by class, pg/mL: ABETA42, TAU, PTAU.
CSF = {"ABETA42": (1200.0, 950.0, 650.0), "TAU": (240.0, 280.0, 370.0), "PTAU": (22.0, 27.0, 37.0)}
LIMITS = {"ABETA42": (200.0, 1700.0, "Abeta42"), "TAU": (80.0, 1300.0, "Tau"), "PTAU": (8.0, 120.0, "PTau")}


def _rows(people: SimulatedParticipants, chosen: Sequence[int], months: Sequence[int]) -> pl.DataFrame:
    s = people.subjects[list(chosen)]
    codes = [visit_codes(p, m, screening=False) for p, m in zip(s["phase"].to_list(), months, strict=True)]
    days = [d + timedelta(days=30 * m) for d, m in zip(s["start"].to_list(), months, strict=True)]
    return s.select("ptid", "rid", "phase", "site").with_columns(
        pl.Series("viscode", [a for a, _ in codes]),
        pl.Series("viscode2", [b for _, b in codes]),
        pl.Series("date", [d.isoformat() for d in days]),
    )


def write_apoe(w: Writer, people: SimulatedParticipants) -> None:
    """APOERES: GENOTYPE in 2025, APGEN1 and APGEN2 before."""
    rng = w.rng("apoeres")
    s = people.subjects
    chosen = np.flatnonzero(s["has_biospecimen"].to_numpy())
    rows = _rows(people, chosen.tolist(), [0] * len(chosen)).with_columns(pl.lit("sc").alias("viscode"))
    carrier = rng.random(len(chosen)) < np.array(CARRIERS)[s["cls"].to_numpy()[chosen]]
    drawn = []
    for has in carrier:
        names = [g for g in APOE if ("4" in g) == has]
        weights = np.array([APOE[g] for g in names], dtype=float)
        drawn.append(names[int(rng.choice(len(names), p=weights / weights.sum()))])
    if w.layout == "2025":
        items: dict[str, Sequence[Any]] = {"GENOTYPE": drawn, "APTESTDT": rows["date"].to_list()}
    else:
        items = {"APTESTDT": rows["date"].to_list(), "APGEN1": [g[0] for g in drawn], "APGEN2": [g[2] for g in drawn]}
    n = len(rows)
    items |= {
        "APVOLUME": ["8"] * n,
        "APRECEIVE": ["1"] * n,
        "APAMBTEMP": ["1"] * n,
        "APRESAMP": ["0"] * n,
        "APUSABLE": ["1"] * n,
    }
    w.write("APOERES", rows, items, keys=("PHASE", "PTID", "RID", "VISCODE"))


def write_csf(w: Writer, people: SimulatedParticipants) -> None:
    """Elecsys: numbers at the limit with a comment; in the old layout `>1700` as text, and no PTID."""
    rng = w.rng("elecsys")
    s = people.subjects
    has = np.flatnonzero(s["has_biospecimen"].to_numpy() & (rng.random(len(s)) < 0.75))
    more = rng.integers(0, 3, len(has))
    chosen = np.repeat(has, 1 + more)
    months = np.concatenate([np.arange(k + 1) * 24 for k in more]) if len(more) else np.zeros(0, dtype=int)
    rows = _rows(people, chosen.tolist(), months.tolist())
    cls, v = s["cls"].to_numpy()[chosen], s["v_biospecimen"].to_numpy()[chosen]
    own = 0.6 * s["u"].to_numpy()[chosen] + 0.8 * v
    text: dict[str, list[str | None]] = {}
    comments: list[list[str]] = [[] for _ in chosen]
    signs = {"ABETA42": -1.0, "TAU": 1.0, "PTAU": 1.0}
    for name, means in CSF.items():
        centre = own - np.array([own[cls == c].mean() if (cls == c).any() else 0.0 for c in range(3)])[cls]
        value = np.array(means)[cls] * np.exp(
            0.22 * signs[name] * centre + 0.22 * rng.standard_normal(len(chosen)) - 0.05
        )
        if name == "ABETA42":
            # About one CN in eight lies above the reportable range.
            value = np.where((cls == 0) & (rng.random(len(chosen)) < 0.08), 1750 + 300 * rng.random(len(chosen)), value)
        low, high, label = LIMITS[name]
        written: list[str | None] = []
        for k, x in enumerate(value.tolist()):
            beyond = ">" if x > high else "<" if x < low else ""
            if beyond:
                comments[k].append(f"{label}{beyond}{high if beyond == '>' else low:g}")
            limit = high if beyond == ">" else low
            written.append(f"{beyond}{limit:g}" if beyond and w.layout == "old" else f"{x:.2f}".rstrip("0").rstrip("."))
        text[name] = written
    late = s["phase"].is_in(["ADNI3", "ADNI4"]).to_numpy()[chosen]
    abeta40 = np.where(
        late | (rng.random(len(chosen)) < 0.3), np.round(17000 + 4500 * rng.standard_normal(len(chosen))), np.nan
    )
    batch = ["ADNI3 1st batch" if x else "ADNI1/GO/2 batch" for x in late]
    items: dict[str, Sequence[Any]] = {
        "BATCH": batch,
        "RUNDATE": ["2017-05-01"] * len(rows),
        "ABETA40": texts(np.maximum(abeta40, 4000)),
        **text,
        "COMMENT": [", ".join(c) or None for c in comments] if w.layout != "old" else [None] * len(rows),
    }
    w.write(
        "UPENNBIOMK_ROCHE_ELECSYS",
        rows,
        items,
        date_column="EXAMDATE",
        keys=("PHASE", "PTID", "RID", "VISCODE2", "DATE"),
        bookkeeping=False,
    )


def write_plasma(w: Writer, people: SimulatedParticipants) -> None:
    """batemanlab (with quality-control rows and two injections), Blennow's NfL, urine isoprostanes."""
    rng = w.rng("plasma")
    s = people.subjects
    chosen = np.flatnonzero(s["has_biospecimen"].to_numpy() & (rng.random(len(s)) < 0.5))
    u, v = s["u"].to_numpy(), s["v_biospecimen"].to_numpy()
    twice = np.repeat(chosen, 2)
    base = 0.12 - 0.006 * v[chosen] - 0.003 * u[chosen]
    ratio = np.repeat(base, 2) + 0.003 * rng.standard_normal(len(twice))
    rid = [str(r) for r in s["rid"].to_numpy()[twice].tolist()]
    american = [f"{d.month}/{d.day}/{d.year % 100:02d}" for d in (s["start"][int(i)] for i in twice.tolist())]
    frame = pl.DataFrame(
        {
            "RID": [*rid, *[str(QC_RID)] * 4],
            "VISCODE2": ["bl"] * len(twice) + [""] * 4,
            "EXAMDATE": [*american, *[""] * 4],
            "MS_RUN_DATE": ["2022-06-01"] * (len(twice) + 4),
            "INSTRUMENT": ["Lumos"] * (len(twice) + 4),
            "INJECTION": (["a", "b"] * (len(twice) // 2 + 2))[: len(twice) + 4],
            "QC_STATUS": ["Failed" if x < 0.05 else "Passed" for x in rng.random(len(twice) + 4)],
            "Abeta_4240_Standardized": [f"{x:.5f}" for x in [*ratio.tolist(), *[0.1] * 4]],
            "Sample_ID": [f"S{i}" for i in range(len(twice) + 4)],
        }
    )
    (w.out / "batemanlab_20221118.csv").write_text(frame.write_csv(quote_style="always"), encoding="utf-8")
    rows = _rows(people, chosen.tolist(), [0] * len(chosen))
    nfl = [f"{x:.1f}" for x in 38 * np.exp(0.2 * u[chosen] + 0.25 * rng.standard_normal(len(chosen)))]
    nfl = ["<LLOQ" if x < 0.02 else value for value, x in zip(nfl, rng.random(len(nfl)), strict=True)]
    w.write(
        "ADNI_BLENNOWPLASMANFLLONG",
        rows,
        {"PLASMA_NFL": nfl, "COMMENT": [None] * len(rows)},
        date_column="EXAMDATE",
        keys=("RID", "VISCODE", "VISCODE2", "DATE"),
        bookkeeping=False,
    )
    urine = {
        n: [f"{x:.3f}" for x in 1.2 * np.exp(0.3 * rng.standard_normal(len(rows)))]
        for n in ("ISO8PGF2A", "ISO812IPF2A")
    }
    w.write("ISOPROSTANE", rows, urine, date_column="EXAMDATE", keys=("RID", "VISCODE", "VISCODE2", "DATE"))
