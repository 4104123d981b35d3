"""Simulated missingness: masks of hidden modalities, drawn once, stored in a file and shared by all methods.

Mechanisms (`p` is the mean drop probability of a modality, or a mapping with one per modality; draws are keyed by
seed, sample and modality):

mcar          each modality is dropped independently with probability p (the paper's protocol)
mnar_label    the probability increases with the class, from (1 − s) p for the first to (1 + s) p for the last
mnar_value    the probability increases with the rank of the modality's mean value, from (1 − s) p to (1 + s) p
block         subjects are assigned to blocks; each block lacks a modality entirely with probability p
timestep_drop modalities are kept; each step of a sequence is dropped with probability p (at load time)
gaussian      modalities are kept; noise of standard deviation p is added to the scaled values (at load time)
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe import keyed
from mrpipe.budget import require_parquet
from mrpipe.errors import UsageError
from mrpipe.reading import reading
from mrpipe.store import masks
from mrpipe.store.content import data_identity
from mrpipe.store.manifest import digest
from mrpipe.store.parquet import read_metadata, write_frame
from mrpipe.store.reader import Arrays, Store
from mrpipe.store.splits import PARTS

MECHANISMS = ("mcar", "mnar_label", "mnar_value", "block", "timestep_drop", "gaussian")
AT_LOAD = ("timestep_drop", "gaussian")
RATES = ("nominal", "marginal")
MASK_KEY = "mrpipe.missingness"
_EXPECTED, _FIX = "a mask file of `mrpipe mask`", "Draw the mask again: mrpipe mask."
# Group of the realised rate over all modalities and samples.
ALL = "all modalities"
_MAX_REDRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Missingness:
    """Settings of simulated missingness.

    Attributes:
        mechanism: one of `MECHANISMS`.
        p: drop probability in [0, 1), or modality → probability (0 if not named); for `gaussian`, standard deviations.
        seed: seed of the draw; methods with the same seed share a mask.
        modalities: modalities in use; all others are masked. Empty: all modalities of the store.
        rate: "nominal": p is the probability of each draw; redrawn samples make the realised rate lower. "marginal": p
            is the rate at which a modality of samples with several modalities is hidden, given that one remains.
        redraw: redraw a sample until at least one modality remains; otherwise its mask may be 0.
        strength: s of the mechanisms `mnar_label` and `mnar_value`, in [0, 1].
        n_blocks: number of blocks of the mechanism `block`.
        task: task whose label determines `mnar_label`; None: the default task.
    """

    mechanism: str = "mcar"
    p: float | Mapping[str, float] = 0.3
    seed: int = 0
    modalities: tuple[str, ...] = ()
    rate: str = "nominal"
    redraw: bool = True
    strength: float = 0.8
    n_blocks: int = 20
    task: str | None = None

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise UsageError(f"unknown mechanism {self.mechanism!r}; known: {', '.join(MECHANISMS)}")
        if any(p < 0 or (self.mechanism != "gaussian" and p >= 1) for p in self.rates):
            raise UsageError(f"p must be in [0, 1) for {self.mechanism}, got {p_text(self.p)}")
        if self.rate not in RATES:
            raise UsageError(f"unknown rate {self.rate!r}; known: {', '.join(RATES)}")
        if self.rate == "marginal" and (self.mechanism in ("block", *AT_LOAD) or not self.redraw):
            raise UsageError("rate=marginal requires mcar, mnar_label or mnar_value, and keeps one modality (redraw)")
        if not 0 <= self.strength <= 1 or self.n_blocks < 1:
            raise UsageError("strength must be in [0, 1] and n_blocks at least 1")

    @property
    def rates(self) -> list[float]:

        return list(self.p.values()) if isinstance(self.p, Mapping) else [self.p]

    def p_of(self, modality: str) -> float:

        return self.p.get(modality, 0.0) if isinstance(self.p, Mapping) else self.p


def p_text(p: float | Mapping[str, float]) -> str:
    """`0.3`, or `audio=0.5,text=0.1`."""
    return ",".join(f"{m}={v:g}" for m, v in p.items()) if isinstance(p, Mapping) else f"{p:g}"


def parse_p(text: str) -> float | dict[str, float]:
    """The inverse of `p_text`."""
    if "=" not in text:
        return float(text)
    return {m: float(v) for m, v in (part.split("=") for part in text.split(","))}


def non_default(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Missingness` that differ from their defaults, without mechanism, p, seed and view."""
    others = {k: v for k, v in settings.items() if k not in ("mechanism", "p", "modalities", "seed")}
    return {k: v for k, v in others.items() if not hasattr(Missingness, k) or v != getattr(Missingness, k)}


def _rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mid-ranks scaled to (0, 1), with mean 1/2."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    return np.asarray(((upper - (counts + 1) / 2)[inverse] + 0.5) / len(values))


def _content(arrays: Arrays) -> NDArray[np.float64]:
    """Mean of each sample's values (for genotypes, of the copies of A1), unknown values counted as 0; (n,)."""
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
    return np.asarray(np.add.reduceat(np.append(steps, 0.0), arrays.offsets[:-1]) / lengths)


def _drop_probability(store: Store, samples: pl.DataFrame, names: Sequence[str], s: Missingness) -> NDArray[np.float64]:
    """Probability that a modality is hidden, (n, M)."""
    mean = np.array([s.p_of(name) for name in names])
    p: NDArray[np.float64] = np.tile(mean, (len(samples), 1))
    if s.mechanism == "mnar_label":
        value = samples.join(store.labels(s.task).collect(), on="sample_id", how="left", maintain_order="left")["value"]
        known = value.is_not_null().to_numpy()
        rank = _rank(value.drop_nulls().to_numpy().astype(float))[:, None]
        p[known] = mean * (1 + s.strength * (2 * rank - 1))
    if s.mechanism == "mnar_value":
        for column, name in enumerate(names):
            arrays = store.arrays(name)
            observed = ~np.isnan(samples[f"row_{name}"].to_numpy().astype(float))
            p[observed, column] = mean[column] * (1 + s.strength * (2 * _rank(_content(arrays)) - 1))
    np.minimum(p, 1.0, out=p)
    return p


def _kept_at_marginal_rate(
    p: NDArray[np.float64], observed: NDArray[np.bool_], u: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Modalities that remain, at least one; each is hidden with its probability p; all arrays are (n, M), u uniform.

    The draw is independent with probabilities q, given that a modality remains. With s = 1 - Π q, the marginal rate is
    (q - (1 - s)) / s = p, so that q = 1 - s (1 - p), and s is the largest root of s = 1 - Π (1 - s (1 - p)).
    """
    share, count = np.where(observed, 1 - p, 0.0), observed.sum(axis=1)
    # The expected number of remaining modalities, which is at least 1 if one remains.
    if (wrong := (share.sum(axis=1) < 1 - 1e-9) & (count > 1)).any():
        n = int(count[wrong].min())
        raise UsageError(f"rate=marginal: p is at most {1 - 1 / n:.3g} on average over {n} modalities of a sample")
    with np.errstate(divide="ignore"):
        low, high = np.zeros((len(p), 1)), np.ones((len(p), 1))
        for _ in range(50):
            middle = (low + high) / 2
            right = np.expm1(np.log1p(-middle * share).sum(axis=1, keepdims=True)) + middle >= 0
            low, high = np.where(right, low, middle), np.where(right, middle, high)
        remains = np.log1p(-high * share)
    # Probability that one of the modalities m, m + 1, … remains.
    later = -np.expm1(np.cumsum(remains[:, ::-1], axis=1)[:, ::-1])
    later = np.hstack([later, np.zeros((len(p), 1))])
    kept, nothing = np.zeros_like(observed), np.ones(len(p), dtype=bool)
    for m, q in enumerate((1 - high * share).T):
        last = q * np.divide(later[:, m + 1], later[:, m], out=np.ones(len(p)), where=later[:, m] > 0)
        kept[:, m] = u[:, m] >= np.where(nothing, last, q)
        nothing &= ~kept[:, m]
    return kept


def draw_masks(store: Store, settings: Missingness) -> pl.DataFrame:
    """Draw the mask of every sample: `sample_id`, `modality_mask` (uint16).

    Only observed modalities can be hidden. Samples that have none of `settings.modalities` get mask 0.
    """
    names = _names(store, settings)
    masks.to_mask(list(settings.p) if isinstance(settings.p, Mapping) else (), store.bits)
    view = masks.to_mask(names, store.bits)
    samples = store.samples().sort("sample_id").collect()
    bits = [store.bits[n] for n in names]
    observed = masks.unpack(samples["modality_mask"].to_numpy() & np.uint16(view), bits)
    kept = observed
    if settings.mechanism not in AT_LOAD and any(settings.rates):
        probability = _drop_probability(store, samples, names, settings)
        keys = keyed.id_keys(samples["subject_id" if settings.mechanism == "block" else "sample_id"])
        if settings.mechanism == "block":
            keys = keyed.bits(keys, settings.seed, "block")[:, 0] % np.uint64(settings.n_blocks)

        def drawn(rows: NDArray[np.int64], attempt: int) -> NDArray[np.float64]:
            columns = [keyed.uniform(keys[rows], settings.seed, f"drop {n} {attempt}")[:, 0] for n in names]
            return np.column_stack(columns)

        # Draws are keyed by the modality's name, so that a subset of modalities is hidden for the same samples.
        kept = observed.copy()
        pending = np.flatnonzero(observed.any(axis=1))
        if settings.rate == "marginal":
            kept[pending] = _kept_at_marginal_rate(probability[pending], observed[pending], drawn(pending, 0))
            pending = pending[:0]
        for attempt in range(_MAX_REDRAWS):
            kept[pending] = observed[pending] & (drawn(pending, attempt) >= probability[pending])
            pending = pending[~kept[pending].any(axis=1)]
            if not settings.redraw or len(pending) == 0:
                break
            if settings.mechanism == "block" and attempt == 0:
                # Redraw per sample: redrawing whole blocks might never leave each sample a modality.
                keys = keyed.id_keys(samples["sample_id"])
        else:
            found = f"p={p_text(settings.p)}: {len(pending)}"
            raise UsageError(f"{found} samples have no modality left after {_MAX_REDRAWS} draws")
    return pl.DataFrame({"sample_id": samples["sample_id"], "modality_mask": masks.pack(kept, bits)})


def _names(store: Store, settings: Missingness) -> tuple[str, ...]:
    return settings.modalities or tuple(m.name for m in store.modalities)


def realised_rates(store: Store, settings: Missingness, frame: pl.DataFrame) -> dict[str, float]:
    """Share of the observed slots that masks hide, by group; a slot is a modality of a sample.

    Groups: `ALL`, the names of the modalities, and `scheme: part` of each split; without observed slots, a group is
    omitted. Empty for the mechanisms that corrupt values instead.
    """
    if settings.mechanism in AT_LOAD:
        return {}
    names = _names(store, settings)
    samples = store.samples().sort("sample_id").collect()
    bits = [store.bits[n] for n in names]
    before = masks.unpack(samples["modality_mask"], bits)
    hidden = before & ~masks.unpack(frame["modality_mask"], bits)
    groups = {ALL: np.ones_like(before)} | {name: np.arange(len(names)) == m for m, name in enumerate(names)}
    for scheme in store.schemes:
        split = samples.join(store.split(scheme).collect(), on="sample_id", how="left", maintain_order="left")["split"]
        groups |= {f"{scheme}: {p}": (split == p).fill_null(value=False).to_numpy()[:, None] for p in PARTS}
    return {k: round(float(hidden.mean(where=before & at)), 6) for k, at in groups.items() if (before & at).any()}


def write_masks(store: Store, settings: Missingness, out: Path) -> dict[str, int]:
    """Draw masks and write them to a file; returns the number of samples per modality combination."""
    frame = draw_masks(store, settings)
    recorded = dataclasses.asdict(settings) | {"data_id": masked_data(store, settings)}
    recorded["realised"] = realised_rates(store, settings, frame)
    write_frame(out, frame, metadata={MASK_KEY: json.dumps(recorded, sort_keys=True)})
    counts = masks.pattern_counts(frame["modality_mask"].to_numpy())
    return {masks.combination_name(masks.to_names(m, store.bits)) or "none": n for m, n in counts.items()}


def masked_data(store: Store, settings: Missingness) -> str:
    """Identity of the tables that masks are drawn from; the view's tables count for every mechanism."""
    task = settings.task if settings.mechanism == "mnar_label" else ""
    return data_identity(store.manifest, settings.modalities or None, task, scheme="")


def mask_hash(path: Path) -> str:
    """SHA-256 of the masks and settings of a mask file; the realised rates, which name other splits, are left out."""
    frame, settings, _ = read_masks(path)
    found = hashlib.sha256(digest(dataclasses.asdict(settings)).encode())
    found.update("\n".join(frame["sample_id"]).encode())
    found.update(frame["modality_mask"].to_numpy().astype("<u2").tobytes())
    return found.hexdigest()


def read_masks(path: Path) -> tuple[pl.DataFrame, Missingness, str]:
    """Read a mask file: frame (`sample_id`, `modality_mask`), settings, and identity of the data (`masked_data`).

    In a file of an earlier version, the last one is the id of the store.

    Raises:
        DataError: the file does not exist, is damaged, or is not a mask file.
    """
    with reading(path, _EXPECTED, _FIX):
        require_parquet(path, str(path))
        values = json.loads(read_metadata(path)[MASK_KEY])
        drawn_from = values.pop("data_id", None) or values.pop("store_id")
        values.pop("realised", None)
        settings = Missingness(**{**values, "modalities": tuple(values["modalities"])})
        frame = pl.read_parquet(path, columns=["sample_id", "modality_mask"])
        if frame.dtypes != [pl.String, pl.UInt16] or frame["sample_id"].is_duplicated().any():
            raise ValueError("not one 16-bit mask per sample")
        return frame, settings, str(drawn_from)


def read_realised(path: Path) -> dict[str, float]:
    """The realised rates of a mask file, by group as in `realised_rates`; empty for a file of an older version."""
    with reading(path, _EXPECTED, _FIX):
        return dict(json.loads(read_metadata(path)[MASK_KEY]).get("realised", {}))


def corrupt(arrays: Arrays, settings: Missingness) -> Arrays:
    """Apply `timestep_drop` or `gaussian` to transformed arrays; other mechanisms leave them unchanged.

    Draws are keyed by (seed, sample, modality, position in the sample), so samples are independent of each other.
    """
    p = settings.p_of(arrays.modality.name)
    if settings.mechanism not in AT_LOAD or p == 0:
        return arrays
    keys = keyed.id_keys(arrays.sample_id)
    purpose = f"{settings.mechanism} {arrays.modality.name}"
    if settings.mechanism == "gaussian":
        of_rows = keys if arrays.offsets is None else _step_keys(keys, arrays.offsets)
        drawn = keyed.normal(of_rows, settings.seed, purpose, math.prod(arrays.x.shape[1:]))
        noise = drawn.astype(np.float32).reshape(arrays.x.shape)
        return dataclasses.replace(arrays, x=arrays.x + p * noise)
    if arrays.offsets is None:
        return arrays
    u = keyed.uniform(_step_keys(keys, arrays.offsets), settings.seed, purpose)[:, 0]
    sample = np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))
    keep = u >= p
    # Every sequence keeps at least one step: the one with the largest draw.
    best = np.zeros(len(arrays))
    np.maximum.at(best, sample, u)
    keep |= u == best[sample]
    lengths = np.bincount(sample[keep], minlength=len(arrays))
    time = None if arrays.time is None else arrays.time[keep]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return dataclasses.replace(arrays, x=arrays.x[keep], offsets=offsets, time=time)


def _step_keys(keys: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys of steps: the sample's key combined with the position of the step in its sample."""
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    with np.errstate(over="ignore"):
        return np.repeat(keys, lengths) + position.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
