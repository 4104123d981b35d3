"""Simulated labevents and chartevents, generated in blocks of patients."""

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mimic.options import MimicSimulation
from mrpipe.datasets.mimic.simulate import pools
from mrpipe.datasets.mimic.simulate.patients import SimulatedPatients, moments
from mrpipe.keyed import generator

BLOCK = 500_000  # approximate number of rows generated at a time
_RARE_SHARE = 0.06
_CHART_COLUMNS = "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom warning"
_LAB_COLUMNS = (
    "labevent_id subject_id hadm_id specimen_id itemid order_provider_id charttime storetime value valuenum valueuom "
    "ref_range_lower ref_range_upper flag priority comments"
)
_BLANK = ("order_provider_id", "ref_range_lower", "ref_range_upper", "flag")
_TENTHS = 60_000  # values up to 6000.0 are formatted by a lookup table of strings


def item_pool(source: str, n_rare: int) -> pl.DataFrame:
    """Items of a table: common items, `n_rare` rare items, and text items."""
    lab = source == "labevents"
    named, text = (pools.LAB_ITEMS, pools.LAB_TEXT) if lab else (pools.CHART_ITEMS, pools.CHART_TEXT)
    first = 53_000 if lab else 229_000
    total = sum(i[8] for i in named)
    share = _RARE_SHARE * total / max(n_rare, 1)
    rare = [
        (first + k, f"Rare item {k}", "units" if k % 3 else "", 20.0 + k % 50, 4.0, 0.1, 0.0, 0.0, share)
        for k in range(n_rare)
    ]
    in_words = [(i, label, "", 0.0, 0.0, 1.0, 0.0, 0.0, 0.08 * total / len(text)) for i, label, _ in text]
    numbers = dict.fromkeys(("mean", "sd", "step", "shared", "own", "weight"), pl.Float64)
    schema = {"itemid": pl.Int64, "label": pl.String, "unit": pl.String, **numbers}
    items = pl.DataFrame([*named, *rare, *in_words], schema=schema, orient="row")
    return items.with_columns(is_text=pl.int_range(pl.len()) >= len(named) + n_rare)


def dictionary(source: str, n_rare: int) -> pl.DataFrame:
    """Table d_labitems or d_items."""
    pool = item_pool(source, n_rare)
    if source == "labevents":
        return pool.select("itemid", "label", fluid=pl.lit("Blood"), category=pl.lit("Chemistry"))
    chart = {"linksto": pl.lit("chartevents"), "category": pl.lit("Routine Vital Signs")}
    chart |= {"unitname": pl.col("unit").replace("", None)}
    chart |= {"param_type": pl.when("is_text").then(pl.lit("Text")).otherwise(pl.lit("Numeric"))}
    chart |= dict.fromkeys(("lownormalvalue", "highnormalvalue"), pl.lit(None, pl.String))
    return pool.select("itemid", "label", abbreviation="label", **chart)


def _layout(people: SimulatedPatients, n_rows: int) -> pl.DataFrame:
    """The visits with `begin`, `end` and `n_rows`, which sum to n_rows and increase with the length of stay."""
    visits = people.visits.select(
        "patient", "subject_id", "hadm_id", begin=pl.min_horizontal("admit", pl.col("discharge") - 60), end="discharge"
    )
    weight = np.sqrt((visits["end"] - visits["begin"]).to_numpy().astype(np.float64))
    share = np.cumsum(weight) / weight.sum() * n_rows
    counts = np.diff(np.concatenate([[0], np.round(share)]).astype(np.int64))
    return visits.with_columns(n_rows=pl.Series(counts))


class _Values:
    """Draws values of the rows of a block, as numbers and as text."""

    def __init__(self, source: str, people: SimulatedPatients, o: MimicSimulation):
        self.pool, self._traps = item_pool(source, o.n_rare_items), o.traps
        weight = self.pool["weight"].to_numpy()
        self._cumulative = np.cumsum(weight) / weight.sum()
        p = people.patients
        self._shared, self._own = p["shared"].to_numpy(), p["lab"].to_numpy()
        self._tenths = pl.Series([f"{v // 10}" if v % 10 == 0 else f"{v / 10:.1f}" for v in range(_TENTHS + 1)])
        texts = pools.LAB_TEXT if source == "labevents" else pools.CHART_TEXT
        self._texts = pl.Series([*(w for _, _, words in texts for w in words), "___", ">100", "<0.1", "HOLD", "NEG"])
        self._units = pl.Series([*self.pool["unit"], "mmol/L", "umol/L", "mg", "mg/dl"])
        at = {i: k for k, i in enumerate(self.pool["itemid"])}
        # Data error: an item in several units. Item → code of the other unit, conversion factor.
        self._other = [
            (at[i], len(self.pool) + u, f)
            for i, u, f in ((50931, 0, 1 / 18.016), (50912, 1, 88.42), (51222, 2, 1.0), (51006, 3, 1.0))
            if i in at
        ]

    def draw(self, patient: NDArray[np.int64], rng: np.random.Generator) -> pl.DataFrame:
        n, rate = len(patient), self._traps
        item = np.searchsorted(self._cumulative, rng.random(n), side="right").astype(np.int64)
        item = np.minimum(item, len(self.pool) - 1)
        names = ("mean", "sd", "step", "shared", "own", "is_text")
        mean, sd, step, shared, own, words = (self.pool[c].to_numpy()[item] for c in names)
        value = mean + sd * rng.standard_normal(n)
        value += shared * self._shared[patient] + own * self._own[patient]
        unit = item.copy()
        chance = rng.random(n)
        for index, code, factor in self._other:
            chosen = (item == index) & (chance < 0.03 * rate)
            value = np.where(chosen, value * factor, value)
            unit = np.where(chosen, code, unit)
        value = np.maximum(np.round(value / step) * step, 0.0)
        wild = (chance > 0.5) & (chance < 0.5 + 0.001 * rate)
        value = np.where(wild, np.where(chance < 0.5 + 0.0005 * rate, 999_999.0, -5.0), value)
        tenths = np.round(value * 10)
        short = (tenths >= 0) & (tenths <= _TENTHS)
        written = self._tenths.gather(np.where(short, tenths, 0).astype(np.int64))
        number = np.round(np.where(short & (step >= 0.1), tenths / 10, value), 2)
        long = ~short | (step < 0.1)
        if long.any():
            written = written.scatter(np.flatnonzero(long), pl.Series(number[long]).cast(pl.String))
        # valuenum is blank if the value is text: words, de-identification blanks, limits.
        blank = words | ((chance > 0.9) & (chance < 0.9 + 0.03 * rate))
        picked = rng.integers(0, len(self._texts), n)
        if blank.any():
            written = written.scatter(np.flatnonzero(blank), self._texts.gather(picked[blank]))
        return pl.DataFrame(
            {
                "itemid": self.pool["itemid"].gather(item),
                "value": written,
                "valuenum": pl.Series(np.where(blank, np.nan, number), nan_to_null=True),
                "valueuom": self._units.gather(unit),
                "unit_blank": words,
            }
        )


def event_blocks(source: str, people: SimulatedPatients, o: MimicSimulation) -> Iterator[pl.DataFrame]:
    """Blocks of labevents or chartevents with the columns of the provider, by patient and time (3.1: shuffled)."""
    visits = _layout(people, o.n_lab_rows if source == "labevents" else o.n_chart_rows)
    values = _Values(source, people, o)
    reach = visits["n_rows"].cum_sum().to_numpy()
    start, number, event_id = 0, 0, 1
    while start < len(visits):
        stop = max(start + 1, int(np.searchsorted(reach, (reach[start - 1] if start else 0) + BLOCK, side="right")))
        rng = generator(o.seed, f"mimic {source} {number}")
        frame = _block(source, visits[start:stop], values, o, rng, event_id)
        event_id += len(frame)
        yield frame
        start, number = stop, number + 1


def _block(
    source: str, visits: pl.DataFrame, values: _Values, o: MimicSimulation, rng: np.random.Generator, event_id: int
) -> pl.DataFrame:
    visit = np.repeat(np.arange(len(visits)), visits["n_rows"].to_numpy())
    n = len(visit)
    begin, end = visits["begin"].to_numpy()[visit], visits["end"].to_numpy()[visit]
    minute = begin + (rng.random(n) * (end - begin)).astype(np.int64)
    lab = source == "labevents"
    chance = rng.random(n)
    if lab:
        # Outpatient and emergency samples, taken between visits or within a day before the admission.
        minute = np.where(chance < 0.12, begin - rng.integers(3 * 1440, 30 * 1440, n), minute)
        minute = np.where((chance >= 0.12) & (chance < 0.2), begin - rng.integers(1, 1440, n), minute)
    order = np.argsort(visit * np.int64(2**28) + (minute - begin + 2**27), kind="stable")
    rows, minute, chance = visits[visit[order]], minute[order], chance[order]
    drawn = values.draw(rows["patient"].to_numpy(), rng)
    # Data error: hadm_id is blank outside visits, and for some rows inside.
    no_visit = lab & ((chance < 0.2) | (chance > 0.92))
    repeated = np.zeros(n, dtype=bool)
    repeated[1:] = rng.random(n - 1) < o.traps * 0.005
    source_row = np.maximum.accumulate(np.where(repeated, 0, np.arange(n)))
    frame = rows.select("subject_id", "hadm_id", time=moments(minute), no_visit=pl.Series(no_visit)).hstack(drawn)
    # Data error: repeated events.
    frame = frame[source_row]
    if o.release.startswith("3"):
        frame = frame[rng.permutation(n)]
    unit = pl.when(~pl.col("unit_blank") & (pl.col("valueuom") != "")).then("valueuom").alias("valueuom")
    stored = pl.col("time") + pl.duration(minutes=50 if lab else 4)
    frame = frame.with_columns(unit, charttime="time", storetime=stored)
    if not lab:
        visit_ids = {"stay_id": pl.col("hadm_id") + 10_000_000, "caregiver_id": pl.col("itemid") % 9973}
        return frame.with_columns(**visit_ids, warning=0).select(_CHART_COLUMNS.split())
    return frame.with_columns(
        pl.when(~pl.col("no_visit")).then("hadm_id").alias("hadm_id"),
        **dict.fromkeys(("labevent_id", "specimen_id"), pl.int_range(event_id, event_id + n, dtype=pl.Int64)),
        **dict.fromkeys(_BLANK, pl.lit(None, dtype=pl.String)),
        priority=pl.lit("ROUTINE"),
        comments=pl.when(pl.col("valuenum").is_null()).then(pl.lit('___ "HOLD", see note')),
    ).select(_LAB_COLUMNS.split())
