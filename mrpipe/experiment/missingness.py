"""Simulated missingness: which modalities of which samples are hidden, drawn once, written down, shared by all methods.

Mechanisms (`p` is the mean drop probability of a modality; draws are keyed by seed, sample and modality):

mcar          each modality is dropped with probability p, independently (the paper's protocol)
mnar_label    the probability rises with the class: from (1 − s) p for the first to (1 + s) p for the last
mnar_value    the probability rises with the modality's own content (rank of its mean value), (1 − s) p to (1 + s) p
block         samples fall into blocks (by subject); a block lacks a modality altogether with probability p
timestep_drop no modality is dropped; each step of a sequence is dropped with probability p (at load time)
gaussian      no modality is dropped; noise of standard deviation p is added to the scaled values (at load time)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe import keyed
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.store import masks
from mrpipe.store.parquet import read_metadata, write_frame
from mrpipe.store.reader import Arrays, Store

MECHANISMS = ("mcar", "mnar_label", "mnar_value", "block", "timestep_drop", "gaussian")
AT_LOAD = ("timestep_drop", "gaussian")
MASK_KEY = "mrpipe.missingness"
_MAX_REDRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Missingness:
    """Settings of a simulated missingness.

    Attributes:
        mechanism: one of `MECHANISMS`.
        p: drop probability in [0, 1), or the standard deviation of `gaussian`.
        seed: the same seed gives the same mask for every method.
        modalities: the view of the store that is used; the others are masked out.
        redraw: draw a sample again until at least one modality is left; otherwise its mask may be 0.
        strength: s of the two mnar mechanisms, in [0, 1].
        n_blocks: number of blocks of `block`.
        task: label of `mnar_label`.
    """

    mechanism: str = "mcar"
    p: float = 0.3
    seed: int = 0
    modalities: tuple[str, ...] = ()
    redraw: bool = True
    strength: float = 0.8
    n_blocks: int = 20
    task: str | None = None

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise UsageError(f"unknown mechanism {self.mechanism!r}; known: {', '.join(MECHANISMS)}")
        if self.p < 0 or (self.mechanism != "gaussian" and self.p >= 1):
            raise UsageError(f"p must lie in [0, 1) for {self.mechanism}, got {self.p}")
        if not 0 <= self.strength <= 1 or self.n_blocks < 1:
            raise UsageError("strength must lie in [0, 1] and n_blocks be at least 1")


def non_default(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Missingness` that differ from their defaults, without mechanism, p, seed and view."""
    defaults = dataclasses.asdict(Missingness())
    return {k: v for k, v in settings.items() if k not in ("mechanism", "p", "modalities", "seed") and v != defaults[k]}


def _rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mid-ranks scaled to (0, 1); their mean is 1/2."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    rank: NDArray[np.float64] = ((upper - (counts + 1) / 2)[inverse] + 0.5) / len(values)
    return rank


def _content(arrays: Arrays) -> NDArray[np.float64]:
    """One number a sample: the mean of its values (of genotypes, of the copies of A1), unknowns counted as 0."""
    if arrays.modality.encoding == "packed2":
        low, high = arrays.x & np.uint8(0x55), (arrays.x >> np.uint8(1)) & np.uint8(0x55)
        copies = np.bitwise_count(low & ~high) + 2 * np.bitwise_count(high & ~low)
        return np.asarray(copies.sum(axis=1, dtype=np.int64) / arrays.modality.size)
    if arrays.offsets is None:
        x = arrays.x.reshape(len(arrays), -1)
        blocks = np.array_split(x, max(1, x.size // 2**22))
        return np.concatenate([np.nan_to_num(b.astype(np.float64)).mean(axis=1) for b in blocks])
    steps = np.nan_to_num(arrays.x.astype(np.float64)).mean(axis=1)
    lengths = np.maximum(np.diff(arrays.offsets), 1)
    mean: NDArray[np.float64] = np.add.reduceat(np.append(steps, 0.0), arrays.offsets[:-1]) / lengths
    return mean


def _drop_probability(store: Store, samples: pl.DataFrame, names: Sequence[str], s: Missingness) -> NDArray[np.float64]:
    """(n, M) probability that a modality is hidden."""
    p: NDArray[np.float64] = np.full((len(samples), len(names)), s.p)
    if s.mechanism == "mnar_label":
        labels = store.labels(s.task).collect()
        value = samples.join(labels, on="sample_id", how="left", maintain_order="left")["value"]
        known = value.is_not_null().to_numpy()
        p[known] = (s.p * (1 + s.strength * (2 * _rank(value.drop_nulls().to_numpy().astype(float)) - 1)))[:, None]
    if s.mechanism == "mnar_value":
        for column, name in enumerate(names):
            arrays = store.arrays(name)
            rows = samples[f"row_{name}"].to_numpy()
            observed = ~np.isnan(rows.astype(float))
            p[observed, column] = s.p * (1 + s.strength * (2 * _rank(_content(arrays)) - 1))
    np.minimum(p, 1.0, out=p)
    return p


def draw_masks(store: Store, settings: Missingness) -> pl.DataFrame:
    """The mask of every sample under simulated missingness: `sample_id`, `modality_mask` (uint16).

    A drop can only hide what is observed. Samples that have none of `settings.modalities` keep mask 0.
    """
    names = settings.modalities or tuple(m.name for m in store.modalities)
    view = masks.to_mask(names, store.bits)
    samples = store.samples().sort("sample_id").collect()
    bits = [store.bits[n] for n in names]
    observed = masks.unpack(samples["modality_mask"].to_numpy() & np.uint16(view), bits)
    kept = observed
    if settings.mechanism not in AT_LOAD and settings.p > 0:
        probability = _drop_probability(store, samples, names, settings)
        by = "subject_id" if settings.mechanism == "block" else "sample_id"
        keys = keyed.id_keys(samples[by])
        if settings.mechanism == "block":
            keys = keyed.bits(keys, settings.seed, "block")[:, 0] % np.uint64(settings.n_blocks)
        # The draw of a modality is keyed by its name, so that a view of fewer modalities hides the same ones.
        kept = observed.copy()
        pending = np.flatnonzero(observed.any(axis=1))
        for attempt in range(_MAX_REDRAWS):
            u = np.column_stack(
                [keyed.uniform(keys[pending], settings.seed, f"drop {n} {attempt}")[:, 0] for n in names]
            )
            kept[pending] = observed[pending] & (u >= probability[pending])
            pending = pending[~kept[pending].any(axis=1)]
            if not settings.redraw or len(pending) == 0:
                break
            if settings.mechanism == "block" and attempt == 0:
                # From here on a sample draws for itself, or a block that lacks all its modalities would never end.
                keys = keyed.id_keys(samples["sample_id"])
        else:
            raise UsageError(f"p={settings.p} leaves no modality to {len(pending)} samples after {_MAX_REDRAWS} draws")
    return pl.DataFrame({"sample_id": samples["sample_id"], "modality_mask": masks.pack(kept, bits)})


def write_masks(store: Store, settings: Missingness, out: Path) -> dict[str, int]:
    """Draw and write a mask file; returns pattern name → number of samples."""
    frame = draw_masks(store, settings)
    recorded = dataclasses.asdict(settings) | {"store_id": store.store_id}
    write_frame(out, frame, metadata={MASK_KEY: json.dumps(recorded, sort_keys=True)})
    counts = masks.pattern_counts(frame["modality_mask"].to_numpy())
    return {masks.combination_name(masks.to_names(m, store.bits)) or "none": n for m, n in counts.items()}


def read_masks(path: Path) -> tuple[pl.DataFrame, Missingness, str]:
    """A mask file: the frame (`sample_id`, `modality_mask`), its settings and the id of its store."""
    metadata = read_metadata(path)
    if MASK_KEY not in metadata:
        raise DataError(Fault(file=str(path), expected="a mask file of `mrpipe mask`", found="another Parquet file"))
    values = json.loads(metadata[MASK_KEY])
    store_id = values.pop("store_id")
    values["modalities"] = tuple(values["modalities"])
    return pl.read_parquet(path), Missingness(**values), store_id


def corrupt(arrays: Arrays, settings: Missingness) -> Arrays:
    """Apply `timestep_drop` or `gaussian` to transformed arrays; other mechanisms leave them as they are.

    Draws are keyed by (seed, sample, modality, position in the sample): neither order nor company of samples matter.
    """
    if settings.mechanism not in AT_LOAD or settings.p == 0:
        return arrays
    keys = keyed.id_keys(arrays.sample_id)
    purpose = f"{settings.mechanism} {arrays.modality.name}"
    if settings.mechanism == "gaussian":
        if arrays.offsets is None:
            flat = arrays.x.reshape(len(arrays), -1)
            noise = keyed.normal(keys, settings.seed, purpose, flat.shape[1]).astype(np.float32).reshape(arrays.x.shape)
            return dataclasses.replace(arrays, x=arrays.x + settings.p * noise)
        step_keys = _step_keys(keys, arrays.offsets)
        noise = keyed.normal(step_keys, settings.seed, purpose, arrays.x.shape[1]).astype(np.float32)
        return dataclasses.replace(arrays, x=arrays.x + settings.p * noise)
    if arrays.offsets is None:
        return arrays
    u = keyed.uniform(_step_keys(keys, arrays.offsets), settings.seed, purpose)[:, 0]
    sample = np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))
    keep = u >= settings.p
    # A sequence never loses its last remaining step: the one with the largest draw stays.
    best = np.zeros(len(arrays))
    np.maximum.at(best, sample, u)
    keep |= u == best[sample]
    lengths = np.bincount(sample[keep], minlength=len(arrays))
    time = None if arrays.time is None else arrays.time[keep]
    return dataclasses.replace(
        arrays, x=arrays.x[keep], offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), time=time
    )


def _step_keys(keys: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A key for every step: the sample's key mixed with the step's place in its sample."""
    lengths = np.diff(offsets)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    with np.errstate(over="ignore"):
        return np.repeat(keys, lengths) + place.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
