"""Transforms of events (measurements, codes): vocabulary, time steps and z-scores, fitted on training rows.

A sequence whose first dictionary row has kind `event` holds one event per row. If the second dictionary row has kind
`numeric`, x = [position of the item in the first row's `levels`, value]; if it has kind `step`, x = [position, step
number]. The mostly zero dense form (steps × items of values and masks: 7.8 GB for 9,003 patients, 50 steps and 2,172
items) is never materialised. Transformed sequences keep one row per event; a step is a run of events with equal time.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.errors import UsageError
from mrpipe.schema import Modality
from mrpipe.store.reader import Arrays
from mrpipe.transforms.encoding import Encoded
from mrpipe.transforms.options import TransformOptions

Floats = NDArray[np.float32]
STEPS_OF_VISITS = 20
_HOURS = {"hours": 1.0, "days": 24.0}


def levels_id(levels: list[str]) -> str:
    """Identifier of a list of levels, used as a modality's `encoder`; equal identifiers mean equal lists."""
    digest = hashlib.sha256("\n".join(levels).encode()).hexdigest()
    return f"levels-{len(levels)}-{digest[:12]}"


def vocabulary_of(
    items: NDArray[np.int64], samples: NDArray[np.int64], n_samples: int, n_levels: int, floor: float, cap: int
) -> NDArray[np.int64]:
    """Ascending positions (V,) of the items that occur in at least the share `floor` of samples, at most `cap`.

    The cap keeps the most frequent items; ties are resolved in favour of the smaller position.
    """
    pairs = np.unique(samples * np.int64(max(n_levels, 1)) + items)
    having = np.bincount(pairs % max(n_levels, 1), minlength=n_levels)
    enough = np.flatnonzero(having >= max(1.0, floor * n_samples))
    if len(enough) > cap:
        enough = enough[np.lexsort((enough, -having[enough]))[:cap]]
    return np.sort(enough)


def changes(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row differs from the one before it in any of the columns (n,); the first row does."""
    new = np.ones(len(columns[0]), dtype=np.bool_)
    new[1:] = np.logical_or.reduce([c[1:] != c[:-1] for c in columns])
    return new


def _moments(value: NDArray[np.float64], index: NDArray[np.int64], n: int) -> tuple[Floats, Floats]:
    """Mean and sd (n,) of the values per index; an sd of 0 is replaced by 1."""
    count = np.maximum(np.bincount(index, minlength=n), 1)
    mean = np.bincount(index, weights=value, minlength=n) / count
    sd = np.sqrt(np.bincount(index, weights=(value - mean[index]) ** 2, minlength=n) / count)
    return mean.astype(np.float32), np.where(sd > 1e-6 * np.maximum(1.0, np.abs(mean)), sd, 1.0).astype(np.float32)


@dataclass(frozen=True)
class _Cells:
    """One row per (sample, step, item); `time` in days, `item` V if outside the vocabulary."""

    sample: NDArray[np.int64]
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    item: NDArray[np.int64]
    value: NDArray[np.float64]


@dataclass(frozen=True)
class EventTransform(Encoded):
    """Events to sparse steps: x (events, 2) = [index in the vocabulary, z-score], sorted by sample, step and index.

    A step is either `step_hours` long, with the mean of an item's values, or a visit, with the value 1. The latest
    `max_steps` steps of a sample are kept. Events outside the vocabulary are dropped; a sample with no other events
    keeps one, with index V = len(vocabulary) and value 0, because the modality was observed. `time` is in days and
    constant within a step.
    """

    kind = "events"
    vocabulary: NDArray[np.int64]
    center: Floats
    spread: Floats
    n_levels: int
    levels_id: str
    by_visit: bool
    unit_hours: float
    step_hours: float
    max_steps: int
    clip: float

    @classmethod
    def fit(cls, arrays: Arrays, dictionary: pl.DataFrame, options: TransformOptions) -> Self:
        """Compute vocabulary, means and standard deviations from training samples."""
        by_visit = dictionary["kind"][1] == "step"
        n_levels = len(dictionary["levels"][0])
        items, samples = arrays.x[:, 0].astype(np.int64), _samples(arrays)
        known = ~np.isnan(arrays.x[:, 1])
        vocabulary = vocabulary_of(
            items[known], samples[known], len(arrays), n_levels, options.event_floor, options.event_cap
        )
        n = len(vocabulary)
        raw = cls(
            vocabulary=vocabulary,
            center=np.zeros(n, dtype=np.float32),
            spread=np.ones(n, dtype=np.float32),
            n_levels=n_levels,
            levels_id=arrays.modality.encoder,
            by_visit=by_visit,
            clip=options.clip,
            unit_hours=_HOURS[arrays.modality.time_unit.split(" ")[0]],
            step_hours=options.event_step_hours,
            max_steps=STEPS_OF_VISITS if by_visit else options.event_steps,
        )
        if by_visit:
            return raw
        cells = raw._cells(arrays)
        inside = cells.item < n
        center, spread = _moments(cells.value[inside], cells.item[inside], n)
        return replace(raw, center=center, spread=spread)

    def _cells(self, arrays: Arrays) -> _Cells:
        assert arrays.time is not None
        n = len(self.vocabulary)
        index = np.full(self.n_levels, n, dtype=np.int64)
        index[self.vocabulary] = np.arange(n)
        item = index[arrays.x[:, 0].astype(np.int64)]
        second = arrays.x[:, 1].astype(np.float64)
        unknown = np.isnan(second)
        item = np.where(unknown, n, item)
        sample = _samples(arrays)
        if self.by_visit:
            step, value = np.where(unknown, 0, second).astype(np.int64), np.ones(len(item))
            time = arrays.time.astype(np.float64) * self.unit_hours / 24.0
        else:
            step = np.floor(arrays.time.astype(np.float64) * self.unit_hours / self.step_hours).astype(np.int64)
            time, value = step.astype(np.float64) * self.step_hours / 24.0, second
        value = np.where(item == n, 0.0, value)
        order = np.lexsort((item, step, sample))
        sample, step, time, item, value = sample[order], step[order], time[order], item[order], value[order]
        starts = np.flatnonzero(changes(sample, step, item))
        if not len(starts):
            return _Cells(sample, step, time, item, value)
        mean = np.add.reduceat(value, starts) / np.diff(starts, append=len(item))
        return _Cells(sample[starts], step[starts], time[starts], item[starts], mean)

    def apply(self, arrays: Arrays) -> Arrays:
        """Sparse steps of the samples, in the given order.

        Raises:
            UsageError: the items of these arrays differ from those of the training store.
        """
        if arrays.modality.encoder != self.levels_id:
            raise UsageError(
                f"{arrays.modality.name}: this store has other items ({arrays.modality.encoder}) than the store on "
                f"which the transform was fitted ({self.levels_id}), so their positions are not comparable"
            )
        cells = self._cells(arrays)
        n, n_samples = len(self.vocabulary), len(arrays)
        inside = cells.item < n
        some = np.bincount(cells.sample[inside], minlength=n_samples) > 0
        # The last event of samples without an event in the vocabulary.
        last = np.zeros(len(inside), dtype=bool)
        if len(inside):
            last[np.flatnonzero(np.diff(cells.sample, append=n_samples) != 0)] = True
        keep = inside | (last & ~some[cells.sample])
        sample, step, time, item, value = (
            c[keep] for c in (cells.sample, cells.step, cells.time, cells.item, cells.value)
        )
        number = np.cumsum(changes(sample, step))
        newest = np.zeros(n_samples, dtype=np.int64)
        newest[sample] = number  # rows are sorted, so the last write is the largest
        recent = newest[sample] - number < self.max_steps
        sample, time, item, value = sample[recent], time[recent], item[recent], value[recent]
        center, spread = np.append(self.center, 0.0), np.append(self.spread, 1.0)
        z = (value - center[item]) / spread[item]
        if self.clip > 0:
            z = np.clip(z, -self.clip, self.clip)
        x = np.stack([item.astype(np.float32), z.astype(np.float32)], axis=1)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(sample, minlength=n_samples))]).astype(np.int64)
        return replace(arrays, x=x, offsets=offsets, time=time.astype(np.float32))

    @property
    def n_items(self) -> int:
        """Size of the vocabulary plus one for items outside it."""
        return len(self.vocabulary) + 1

    def shape(self, modality: Modality) -> tuple[int, ...]:
        return (2,)


def _samples(arrays: Arrays) -> NDArray[np.int64]:
    """Index of the sample of each event."""
    assert arrays.offsets is not None
    return np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))


def step_numbers(arrays: Arrays) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Step index of each event, counted over all samples (events,), and number of steps per sample (n,)."""
    assert arrays.time is not None
    sample = _samples(arrays)
    new = changes(sample, arrays.time)
    return np.cumsum(new) - 1, np.bincount(sample[new], minlength=len(arrays))


@dataclass(frozen=True)
class SummaryTransform(Encoded):
    """Summary vectors restricted to the training vocabulary: counts as log(1 + n), standardised, unknown values 0."""

    kind = "summary"
    columns: NDArray[np.int64]
    counts: NDArray[np.int64]
    center: Floats
    spread: Floats
    clip: float

    @classmethod
    def fit(cls, arrays: Arrays, dictionary: pl.DataFrame, options: TransformOptions) -> Self:
        """Compute vocabulary (by share of training samples), means and standard deviations."""
        statistic = np.array([n.rsplit(" ", 1)[1] for n in dictionary["name"]])
        n_statistics = len(dict.fromkeys(statistic.tolist()))
        at = np.flatnonzero(statistic == "count")
        sample, item = np.nonzero(arrays.x[:, at] > 0)
        kept = vocabulary_of(item, sample, len(arrays), len(at), options.event_floor, options.event_cap)
        columns = (kept[:, None] * n_statistics + np.arange(n_statistics)[None, :]).reshape(-1)
        counts = np.flatnonzero(statistic[columns] == "count")
        one = np.ones(len(columns), dtype=np.float32)
        x = cls(columns, counts, np.zeros_like(one), one, 0.0)._select(arrays)
        sample, column = np.nonzero(~np.isnan(x))
        center, spread = _moments(x[sample, column].astype(np.float64), column, len(columns))
        return cls(columns, counts, center, spread, options.clip)

    def _select(self, arrays: Arrays) -> Floats:
        x = arrays.x[:, self.columns].astype(np.float32)
        x[:, self.counts] = np.log1p(x[:, self.counts])
        return x

    def apply(self, arrays: Arrays) -> Arrays:
        """Standardised columns (n, d)."""
        z = (self._select(arrays) - self.center) / self.spread
        z = np.where(np.isnan(z), np.float32(0.0), z)
        return replace(arrays, x=z if self.clip <= 0 else np.clip(z, -self.clip, self.clip))

    def shape(self, modality: Modality) -> tuple[int, ...]:
        return (len(self.columns),)


def event_transform(dictionary: pl.DataFrame) -> type[EventTransform] | type[SummaryTransform] | None:
    """Transform that a modality's dictionary requires; None if it describes neither events nor summaries."""
    first = dictionary["kind"][0] if len(dictionary) else ""
    return EventTransform if first == "event" else SummaryTransform if first == "summary" else None
