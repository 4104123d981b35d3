"""Simulate the biospecimen tables of ADNI."""

from typing import Any

import numpy as np
import polars as pl

from mrpipe.datasets.adni.simulate.people import SimulatedParticipants
from mrpipe.datasets.adni.simulate.tables import Writer, key_columns, texts
from mrpipe.datasets.adni.tables import QC_RID

# Genotype counts of 3,008 ADNI participants; assumed fraction of ε4 carriers by class.
APOE = {"3/3": 1417, "3/4": 1016, "4/4": 275, "2/3": 219, "2/4": 71, "2/2": 10}
CARRIERS = (0.30, 0.45, 0.65)
# Mean concentration by class (CN, MCI, Dementia) in pg/mL.
CSF = {"ABETA42": (1200.0, 950.0, 650.0), "TAU": (240.0, 280.0, 370.0), "PTAU": (22.0, 27.0, 37.0)}
LIMITS = {"ABETA42": (200.0, 1700.0, "Abeta42"), "TAU": (80.0, 1300.0, "Tau"), "PTAU": (8.0, 120.0, "PTau")}

_BY_RID = ("RID", "VISCODE", "VISCODE2", "DATE")


def write_apoe(w: Writer, people: SimulatedParticipants) -> None:
    """APOERES: GENOTYPE in the 2025 layout, APGEN1 and APGEN2 in earlier ones."""
    rng = w.rng("apoeres")
    s = people.subjects
    chosen = np.flatnonzero(s["has_biospecimen"].to_numpy())
    rows = key_columns(people, chosen).with_columns(viscode=pl.lit("sc"))
    carrier = rng.random(len(chosen)) < np.array(CARRIERS)[s["cls"].to_numpy()[chosen]]
    drawn = []
    for has in carrier:
        names = [g for g in APOE if ("4" in g) == has]
        weights = np.array([APOE[g] for g in names], dtype=float)
        drawn.append(names[int(rng.choice(len(names), p=weights / weights.sum()))])
    items: dict[str, Any] = {"APTESTDT": rows["date"]}
    if w.layout == "2025":
        items = {"GENOTYPE": drawn, **items}
    else:
        items |= {"APGEN1": [g[0] for g in drawn], "APGEN2": [g[2] for g in drawn]}
    items |= {"APVOLUME": "8", "APRECEIVE": "1", "APAMBTEMP": "1", "APRESAMP": "0", "APUSABLE": "1"}
    w.write("APOERES", rows, items, keys=("PHASE", "PTID", "RID", "VISCODE"))


def write_csf(w: Writer, people: SimulatedParticipants) -> None:
    """UPENNBIOMK_ROCHE_ELECSYS: out-of-range values are numbers with a COMMENT, in the old layout text (`>1700`)."""
    rng = w.rng("elecsys")
    s = people.subjects
    has = np.flatnonzero(s["has_biospecimen"].to_numpy() & (rng.random(len(s)) < 0.75))
    more = rng.integers(0, 3, len(has))
    chosen = np.repeat(has, 1 + more)
    months = 24 * np.concatenate([np.arange(k + 1) for k in more] or [np.zeros(0, dtype=int)])
    rows = key_columns(people, chosen, months)
    n = len(chosen)
    cls = s["cls"].to_numpy()[chosen]
    state = 0.6 * s["u"].to_numpy()[chosen] + 0.8 * s["v_biospecimen"].to_numpy()[chosen]
    centre = state - np.array([state[cls == c].mean() if (cls == c).any() else 0.0 for c in range(3)])[cls]
    text: dict[str, list[str]] = {}
    comments: list[list[str]] = [[] for _ in chosen]
    for name, means in CSF.items():
        sign = -1.0 if name == "ABETA42" else 1.0
        value = np.array(means)[cls] * np.exp(0.22 * sign * centre + 0.22 * rng.standard_normal(n) - 0.05)
        if name == "ABETA42":
            # Place 8 % of CN participants above the reportable range, in addition to those drawn there.
            value = np.where((cls == 0) & (rng.random(n) < 0.08), 1750 + 300 * rng.random(n), value)
        low, high, label = LIMITS[name]
        written = []
        for comment, x in zip(comments, value.tolist(), strict=True):
            beyond = f">{high:g}" if x > high else f"<{low:g}" if x < low else ""
            if beyond:
                comment.append(f"{label}{beyond}")
            written.append(beyond if beyond and w.layout == "old" else f"{x:.2f}".rstrip("0").rstrip("."))
        text[name] = written
    late = rows["phase"].is_in(["ADNI3", "ADNI4"]).to_numpy()
    assayed = late | (rng.random(n) < 0.3)
    abeta40 = np.where(assayed, np.round(17000 + 4500 * rng.standard_normal(n)), np.nan)
    items: dict[str, Any] = {
        "BATCH": np.where(late, "ADNI3 1st batch", "ADNI1/GO/2 batch"),
        "RUNDATE": "2017-05-01",
        "ABETA40": texts(np.maximum(abeta40, 4000)),
        **text,
        "COMMENT": [", ".join(c) or None for c in comments] if w.layout != "old" else None,
    }
    keys = ("PHASE", "PTID", "RID", "VISCODE2", "DATE")
    w.write("UPENNBIOMK_ROCHE_ELECSYS", rows, items, date_column="EXAMDATE", keys=keys, bookkeeping=False)


def write_plasma(w: Writer, people: SimulatedParticipants) -> None:
    """batemanlab (two injections per sample, quality-control rows), ADNI_BLENNOWPLASMANFLLONG and ISOPROSTANE."""
    rng = w.rng("plasma")
    s = people.subjects
    chosen = np.flatnonzero(s["has_biospecimen"].to_numpy() & (rng.random(len(s)) < 0.5))
    u, v = s["u"].to_numpy()[chosen], s["v_biospecimen"].to_numpy()[chosen]
    ratio = np.repeat(0.12 - 0.006 * v - 0.003 * u, 2) + 0.003 * rng.standard_normal(2 * len(chosen))
    twice = s[np.repeat(chosen, 2)]
    n = len(twice) + 4
    frame = pl.DataFrame(
        {
            "RID": [*twice["rid"], *[QC_RID] * 4],
            "VISCODE2": ["bl"] * len(twice) + [""] * 4,
            "EXAMDATE": [*(f"{d.month}/{d.day}/{d.year % 100:02d}" for d in twice["start"]), *[""] * 4],
            "MS_RUN_DATE": "2022-06-01",
            "INSTRUMENT": "Lumos",
            "INJECTION": ["a", "b"] * (n // 2),
            "QC_STATUS": np.where(rng.random(n) < 0.05, "Failed", "Passed"),
            "Abeta_4240_Standardized": [f"{x:.5f}" for x in [*ratio, *[0.1] * 4]],
            "Sample_ID": [f"S{i}" for i in range(n)],
        }
    )
    (w.out / "batemanlab_20221118.csv").write_text(frame.write_csv(quote_style="always"), encoding="utf-8")
    rows = key_columns(people, chosen)
    nfl = [f"{x:.1f}" for x in 38 * np.exp(0.2 * u + 0.25 * rng.standard_normal(len(u)))]
    light = {"PLASMA_NFL": np.where(rng.random(len(u)) < 0.02, "<LLOQ", nfl), "COMMENT": None}
    w.write("ADNI_BLENNOWPLASMANFLLONG", rows, light, date_column="EXAMDATE", keys=_BY_RID, bookkeeping=False)
    names = ("ISO8PGF2A", "ISO812IPF2A")
    urine = {name: [f"{x:.3f}" for x in 1.2 * np.exp(0.3 * rng.standard_normal(len(u)))] for name in names}
    w.write("ISOPROSTANE", rows, urine, date_column="EXAMDATE", keys=_BY_RID)


FORMS = (write_apoe, write_csf, write_plasma)
