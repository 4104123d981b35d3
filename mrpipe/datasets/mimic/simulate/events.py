"""Simulated labevents and chartevents, block by block of patients, at hundreds of thousands of rows a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mimic.simulate import pools as pools
from mrpipe.datasets.mimic.simulate.options import MimicSimulation
from mrpipe.datasets.mimic.simulate.patients import SimulatedPatients, moments
from mrpipe.keyed import generator

BLOCK = 500_000  # rows made together, about
_RARE_SHARE = 0.06
_TENTHS = 60_000  # values are written from a table of ready strings up to 6000.0


@dataclass(frozen=True)
class ItemPool:
    """Items of one table: (n_items,) each; `text` items have words instead of values."""

    itemid: NDArray[np.int64]
    label: list[str]
    unit: list[str]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    step: NDArray[np.float64]
    shared: NDArray[np.float64]
    own: NDArray[np.float64]
    weight: NDArray[np.float64]
    words: dict[int, tuple[str, ...]]


def item_pool(source: str, n_rare: int) -> ItemPool:
    """The items of a table: the named ones, `n_rare` rare ones, and those whose values are words."""
    named = pools.LAB_ITEMS if source == "labevents" else pools.CHART_ITEMS
    text = pools.LAB_TEXT if source == "labevents" else pools.CHART_TEXT
    first = 53_000 if source == "labevents" else 229_000
    total = sum(i[8] for i in named)
    rows = list(named)
    rows += [
        (
            first + k,
            f"Rare item {k}",
            "units" if k % 3 else "",
            20.0 + k % 50,
            4.0,
            0.1,
            0.0,
            0.0,
            _RARE_SHARE * total / max(n_rare, 1),
        )
        for k in range(n_rare)
    ]
    rows += [(i, label, "", 0.0, 0.0, 1.0, 0.0, 0.0, 0.08 * total / len(text)) for i, label, _ in text]
    columns = list(zip(*rows, strict=True))
    numbers = [np.array(c, dtype=np.float64) for c in columns[3:]]
    words = {len(rows) - len(text) + i: t[2] for i, t in enumerate(text)}
    mean, sd, step, shared, own, weight = numbers
    return ItemPool(
        itemid=np.array(columns[0], dtype=np.int64),
        label=list(columns[1]),
        unit=list(columns[2]),
        mean=mean,
        sd=sd,
        step=step,
        shared=shared,
        own=own,
        weight=weight,
        words=words,
    )


def dictionary(source: str, n_rare: int) -> pl.DataFrame:
    """d_labitems or d_items."""
    pool = item_pool(source, n_rare)
    n = len(pool.label)
    base = pl.DataFrame({"itemid": pool.itemid, "label": pool.label})
    if source == "labevents":
        return base.with_columns(pl.lit("Blood").alias("fluid"), pl.lit("Chemistry").alias("category"))
    empty = pl.Series([None] * n, dtype=pl.String)
    return base.with_columns(
        pl.col("label").alias("abbreviation"),
        pl.lit("chartevents").alias("linksto"),
        pl.lit("Routine Vital Signs").alias("category"),
        pl.Series("unitname", [u or None for u in pool.unit], dtype=pl.String),
        pl.Series("param_type", ["Text" if i in pool.words else "Numeric" for i in range(n)]),
        empty.alias("lownormalvalue"),
        empty.alias("highnormalvalue"),
    )


def _layout(people: SimulatedPatients, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How many rows each visit has (longer stays more), (n_visits,): exactly n_rows in all; with begin and end."""
    begin = np.minimum(people.visits["admit"].to_numpy(), people.visits["discharge"].to_numpy() - 60)
    end = people.visits["discharge"].to_numpy()
    weight = np.sqrt((end - begin).astype(np.float64))
    share = np.cumsum(weight) / weight.sum() * n_rows
    edges = np.concatenate([[0], np.round(share)]).astype(np.int64)
    return np.diff(edges), begin, end


def _strings() -> pl.Series:
    values = np.arange(_TENTHS + 1)
    return pl.Series([f"{v // 10}" if v % 10 == 0 else f"{v / 10:.1f}" for v in values.tolist()])


class _Values:
    """Values of the rows of a block, as numbers and as they are written."""

    def __init__(self, source: str, people: SimulatedPatients, o: MimicSimulation):
        self.pool, self._o, self._source = item_pool(source, o.n_rare_items), o, source
        self._cumulative = np.cumsum(self.pool.weight) / self.pool.weight.sum()
        p = people.patients
        self._shared, self._own = p["shared"].to_numpy(), p["lab"].to_numpy()
        self._tenths = _strings()
        self._is_text = np.isin(np.arange(len(self.pool.label)), list(self.pool.words))
        self._units = pl.Series([*self.pool.unit, "mmol/L", "umol/L", "mg", "mg/dl"])
        at = {int(i): k for k, i in enumerate(self.pool.itemid)}
        n = len(self.pool.unit)
        # Trap: one item in several units: item → code of the other unit, factor into it.
        self._other = [
            (at[i], n + u, f)
            for i, u, f in ((50931, 0, 1 / 18.016), (50912, 1, 88.42), (51222, 2, 1.0), (51006, 3, 1.0))
            if i in at
        ]

    def draw(self, patient: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Any]:
        pool, n = self.pool, len(patient)
        item = np.searchsorted(self._cumulative, rng.random(n), side="right").astype(np.int64)
        item = np.minimum(item, len(pool.label) - 1)
        value = pool.mean[item] + pool.sd[item] * rng.standard_normal(n)
        value += pool.shared[item] * self._shared[patient] + pool.own[item] * self._own[patient]
        unit = item.copy()
        chance = rng.random(n)
        rate = self._o.traps
        for index, code, factor in self._other:
            chosen = (item == index) & (chance < 0.03 * rate)
            value = np.where(chosen, value * factor, value)
            unit = np.where(chosen, code, unit)
        value = np.maximum(np.round(value / pool.step[item]) * pool.step[item], 0.0)
        wild = (chance > 0.5) & (chance < 0.5 + 0.001 * rate)
        value = np.where(wild, np.where(chance < 0.5 + 0.0005 * rate, 999_999.0, -5.0), value)
        tenths = np.round(value * 10)
        short = (tenths >= 0) & (tenths <= _TENTHS)
        written = self._tenths.gather(np.where(short, tenths, 0).astype(np.int64))
        number = np.round(np.where(short & (pool.step[item] >= 0.1), tenths / 10, value), 2)
        long = ~short | (pool.step[item] < 0.1)
        if long.any():
            text = pl.Series(number[long]).cast(pl.String)
            written = written.scatter(np.flatnonzero(long), text)
        # valuenum is blank where the value is text: words, the blank of de-identification, limits.
        words = self._is_text[item]
        blank = words | ((chance > 0.9) & (chance < 0.9 + 0.03 * rate))
        texts = np.array(
            [*(w for k in sorted(pool.words) for w in pool.words[k]), "___", ">100", "<0.1", "HOLD", "NEG"],
            dtype=object,
        )
        picked = rng.integers(0, len(texts), n)
        if blank.any():
            where = np.flatnonzero(blank)
            written = written.scatter(where, pl.Series(texts[picked[where]].tolist(), dtype=pl.String))
        return {
            "itemid": pool.itemid[item],
            "value": written,
            "valuenum": pl.Series(np.where(blank, np.nan, number), nan_to_null=True),
            "valueuom": self._units.gather(unit),
            "unit_blank": words,
        }


def event_blocks(source: str, people: SimulatedPatients, o: MimicSimulation) -> Iterator[pl.DataFrame]:
    """Frames of labevents or chartevents in the provider's columns, by patient and time (3.1: shuffled in a block)."""
    n_rows = o.n_lab_rows if source == "labevents" else o.n_chart_rows
    counts, begin, end = _layout(people, n_rows)
    owner = people.visits["patient"].to_numpy()
    hadm, subject = people.visits["hadm_id"].to_numpy(), people.patients["subject_id"].to_numpy()
    values = _Values(source, people, o)
    reach = np.cumsum(counts)
    start, number, event_id = 0, 0, 1
    while start < len(counts):
        stop = max(start + 1, int(np.searchsorted(reach, (reach[start - 1] if start else 0) + BLOCK, side="right")))
        rng = generator(o.seed, f"mimic {source} {number}")
        frame = _block(
            source, np.arange(start, stop), counts, begin, end, owner, hadm, subject, values, o, rng, event_id
        )
        event_id += len(frame)
        yield frame
        start, number = stop, number + 1


def _block(
    source: str,
    visits: NDArray[np.int64],
    counts: Any,
    begin: Any,
    end: Any,
    owner: Any,
    hadm: Any,
    subject: Any,
    values: _Values,
    o: MimicSimulation,
    rng: np.random.Generator,
    event_id: int,
) -> pl.DataFrame:
    visit = np.repeat(visits, counts[visits])
    n = len(visit)
    span = (end - begin)[visit]
    minute = begin[visit] + (rng.random(n) * span).astype(np.int64)
    lab = source == "labevents"
    chance = rng.random(n)
    if lab:
        # Outpatient and emergency draws: between visits, or in the day before the admission.
        minute = np.where(chance < 0.12, begin[visit] - rng.integers(3 * 1440, 30 * 1440, n), minute)
        minute = np.where((chance >= 0.12) & (chance < 0.2), begin[visit] - rng.integers(1, 1440, n), minute)
    order = np.argsort(visit * np.int64(2**28) + (minute - begin[visit] + 2**27), kind="stable")
    visit, minute, chance = visit[order], minute[order], chance[order]
    drawn = values.draw(owner[visit], rng)
    # Trap: hadm_id is blank for what is outside a stay, and for some of what is inside.
    no_visit = lab & ((chance < 0.2) | (chance > 0.92))
    again = np.zeros(n, dtype=bool)
    again[1:] = rng.random(n - 1) < o.traps * 0.005
    source_row = np.maximum.accumulate(np.where(again, 0, np.arange(n)))
    time = moments(minute)
    frame = pl.DataFrame(
        {
            "subject_id": subject[owner[visit]],
            "hadm_id": pl.Series(hadm[visit]),
            "time": time,
            "itemid": drawn["itemid"],
            "value": drawn["value"],
            "valuenum": drawn["valuenum"],
            "valueuom": drawn["valueuom"],
            "unit_blank": drawn["unit_blank"],
            "no_visit": no_visit,
        }
    )
    # Trap: the same event twice.
    frame = frame[source_row]
    if o.release.startswith("3"):
        frame = frame[rng.permutation(n)]
    unit = pl.when(pl.col("unit_blank") | (pl.col("valueuom") == "")).then(None).otherwise("valueuom").alias("valueuom")
    empty = pl.lit(None, dtype=pl.String)
    if lab:
        columns = [
            pl.int_range(event_id, event_id + n, dtype=pl.Int64).alias("labevent_id"),
            "subject_id",
            pl.when("no_visit").then(None).otherwise("hadm_id").alias("hadm_id"),
            pl.int_range(event_id, event_id + n, dtype=pl.Int64).alias("specimen_id"),
            "itemid",
            empty.alias("order_provider_id"),
            pl.col("time").alias("charttime"),
            (pl.col("time") + pl.duration(minutes=50)).alias("storetime"),
            "value",
            "valuenum",
            unit,
            empty.alias("ref_range_lower"),
            empty.alias("ref_range_upper"),
            empty.alias("flag"),
            pl.lit("ROUTINE").alias("priority"),
            pl.when(pl.col("valuenum").is_null())
            .then(pl.lit('___ "HOLD", see note'))
            .otherwise(None)
            .alias("comments"),
        ]
    else:
        columns = [
            "subject_id",
            "hadm_id",
            (pl.col("hadm_id") + 10_000_000).alias("stay_id"),
            (pl.col("itemid") % 9973).alias("caregiver_id"),
            pl.col("time").alias("charttime"),
            (pl.col("time") + pl.duration(minutes=4)).alias("storetime"),
            "itemid",
            "value",
            "valuenum",
            unit,
            pl.lit(0, dtype=pl.Int8).alias("warning"),
        ]
    return frame.select(columns)
