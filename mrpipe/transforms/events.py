"""Transforms of events (measurements, codes): vocabulary, time steps and z-scores, fitted on training rows.

A sequence whose first dictionary row has kind `event` holds one event per row. If the second dictionary row has kind
`numeric`, x = [position of the item in the first row's `levels`, value]; if it has kind `step`, x = [position, step
number]. The mostly zero dense form (steps × items of values and masks: 7.8 GB for 9,003 patients, 50 steps and 2,172
items) is never materialised. Transformed sequences keep one row per event; a step is a run of events with equal time.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
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
Rows = NDArray[np.int64]
BLOCK, ROWS = 2**18, 512  # events, and samples or columns, that are transformed at once
STEPS_OF_VISITS = 20
_HOURS = {"hours": 1.0, "days": 24.0}


def levels_id(levels: list[str]) -> str:
    """Identifier of a list of levels, used as a modality's `encoder`; equal identifiers mean equal lists."""
    digest = hashlib.sha256("\n".join(levels).encode()).hexdigest()
    return f"levels-{len(levels)}-{digest[:12]}"


def vocabulary_of(having: NDArray[np.int64], n_samples: int, floor: float, cap: int) -> NDArray[np.int64]:
    """Ascending positions (V,) of the items that occur in at least the share `floor` of samples, at most `cap`.

    The cap keeps the most frequent items; ties are resolved in favour of the smaller position.

    Args:
        having: (levels,) number of samples with each item.
    """
    enough = np.flatnonzero(having >= max(1.0, floor * n_samples))
    if len(enough) > cap:
        enough = enough[np.lexsort((enough, -having[enough]))[:cap]]
    return np.sort(enough)


def changes(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row differs from the one before it in any of the columns (n,); the first row does."""
    new = np.ones(len(columns[0]), dtype=np.bool_)
    new[1:] = np.logical_or.reduce([c[1:] != c[:-1] for c in columns])
    return new


def _blocks(arrays: Arrays) -> Iterator[Arrays]:
    """The samples in blocks of about BLOCK events and at most ROWS samples, which bounds the memory."""
    assert arrays.offsets is not None
    assert arrays.time is not None
    inner = np.searchsorted(arrays.offsets, np.arange(BLOCK, len(arrays.x), BLOCK)).tolist()
    for a, b in pairwise(sorted([0, *range(0, len(arrays), ROWS), *inner, len(arrays)])):
        events, ids = slice(arrays.offsets[a], arrays.offsets[b]), arrays.sample_id[a:b]
        offsets = arrays.offsets[a : b + 1] - arrays.offsets[a]
        yield replace(arrays, sample_id=ids, x=arrays.x[events], offsets=offsets, time=arrays.time[events])


def _moments(value: NDArray[np.float64], index: NDArray[np.int64], n: int) -> tuple[Floats, Floats]:
    """Mean and sd (n,) of the values per index; an sd of 0 is replaced by 1."""
    count = np.maximum(np.bincount(index, minlength=n), 1)
    mean = np.bincount(index, weights=value, minlength=n) / count
    sd = np.sqrt(np.bincount(index, weights=(value - mean[index]) ** 2, minlength=n) / count)
    return mean.astype(np.float32), np.where(sd > 1e-6 * np.maximum(1.0, np.abs(mean)), sd, 1.0).astype(np.float32)


def _sorted(sample: Rows, step: Rows, item: Rows) -> tuple[Rows, Rows]:
    """Stable order of events by sample, step and item, and the first of each such triple in this order."""
    bits, n_items = len(item).bit_length(), int(item.max(initial=0)) + 1
    backwards = (step[1:] < step[:-1]) & (sample[1:] == sample[:-1])
    if 2 * bits + n_items.bit_length() < 63 and not backwards.any():
        # Steps in order are numbered; sorting numbers is several times faster than sorting rows.
        run = np.cumsum(changes(sample, step)) - 1
        key = np.sort((run * n_items + item) << bits | np.arange(len(item)))
        return key & ((1 << bits) - 1), np.flatnonzero(changes(key >> bits))
    order = np.lexsort((item, step, sample))
    return order, np.flatnonzero(changes(sample[order], step[order], item[order]))


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
        having = np.zeros(n_levels, dtype=np.int64)
        for block in _blocks(arrays):
            known, having_item = ~np.isnan(block.x[:, 1]), np.zeros((len(block), n_levels), dtype=np.bool_)
            having_item[_samples(block)[known], block.x[known, 0].astype(np.int64)] = True
            having += having_item.sum(axis=0)
        vocabulary = vocabulary_of(having, len(arrays), options.event_floor, options.event_cap)
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
        inside = [(value[item < n], item[item < n]) for *_, item, value in map(raw._cells, _blocks(arrays))]
        value, item = (np.concatenate(parts) for parts in zip(*inside, strict=True))
        center, spread = _moments(value, item, n)
        return replace(raw, center=center, spread=spread)

    def _cells(self, arrays: Arrays) -> tuple[NDArray[Any], ...]:
        """Sample, step, time in days, item (V if outside the vocabulary) and value, one per (sample, step, item)."""
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
        order, starts = _sorted(sample, step, item)
        value, first = value[order], order[starts]
        mean = np.add.reduceat(value, starts) / np.diff(starts, append=len(item)) if len(starts) else value
        return sample[first], step[first], time[first], item[first], mean

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
        x, lengths, time = map(np.concatenate, zip(*map(self._apply, _blocks(arrays)), strict=True))
        return replace(arrays, x=x, offsets=np.concatenate([[0], np.cumsum(lengths)]), time=time)

    def _apply(self, arrays: Arrays) -> tuple[Floats, Rows, Floats]:
        """Events, their number per sample, and their times."""
        cells = sample, _, _, item, _ = self._cells(arrays)
        n, n_samples = len(self.vocabulary), len(arrays)
        inside = item < n
        some = np.bincount(sample[inside], minlength=n_samples) > 0
        # The last event of samples without an event in the vocabulary.
        last = np.zeros(len(inside), dtype=bool)
        if len(inside):
            last[np.flatnonzero(np.diff(sample, append=n_samples) != 0)] = True
        keep = inside | (last & ~some[sample])
        sample, step, time, item, value = (c[keep] for c in cells)
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
        return x, np.bincount(sample, minlength=n_samples), time.astype(np.float32)

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
        kept = vocabulary_of((arrays.x[:, at] > 0).sum(axis=0), len(arrays), options.event_floor, options.event_cap)
        columns = (kept[:, None] * n_statistics + np.arange(n_statistics)[None, :]).reshape(-1)
        counts = np.flatnonzero(statistic[columns] == "count")
        one = np.ones(len(columns), dtype=np.float32)
        raw = cls(columns, counts, np.zeros_like(one), one, options.clip)
        moments, x = [np.zeros((2, 0), dtype=np.float32)], raw._select(arrays.x)
        for block in (x[:, start : start + ROWS] for start in range(0, len(columns), ROWS)):
            sample, column = np.nonzero(~np.isnan(block))
            moments.append(np.stack(_moments(block[sample, column].astype(np.float64), column, block.shape[1])))
        center, spread = np.concatenate(moments, axis=1)
        return replace(raw, center=center, spread=spread)

    def _select(self, rows: Floats) -> Floats:
        x = rows[:, self.columns].astype(np.float32, copy=False)
        x[:, self.counts] = np.log1p(x[:, self.counts])
        return x

    def apply(self, arrays: Arrays) -> Arrays:
        """Standardised columns (n, d)."""
        out = np.empty((len(arrays), len(self.columns)), dtype=np.float32)
        for rows in (slice(start, start + ROWS) for start in range(0, len(out), ROWS)):
            z = (self._select(arrays.x[rows]) - self.center) / self.spread
            z[np.isnan(z)] = 0.0
            out[rows] = z if self.clip <= 0 else np.clip(z, -self.clip, self.clip)
        return replace(arrays, x=out)

    def shape(self, modality: Modality) -> tuple[int, ...]:
        return (len(self.columns),)


def event_transform(dictionary: pl.DataFrame) -> type[EventTransform] | type[SummaryTransform] | None:
    """Transform that a modality's dictionary requires; None if it describes neither events nor summaries."""
    first = dictionary["kind"][0] if len(dictionary) else ""
    return EventTransform if first == "event" else SummaryTransform if first == "summary" else None
