"""Supporting groups of training samples for a missing modality, and keyed random draws from them.

Eq. 2 of the paper: for a missing modality T and observed modalities mc, G(T | mc) = { j : mc_j ⊇ mc and T ∈ mc_j } over
*training* samples. Fallbacks: if the group has fewer samples than requested, all of them are used. An empty group is
replaced by the training samples with T that share the most modalities with mc and, among these, have the fewest others.
If T was never observed in training, no samples are drawn.

All computations use numpy on the host: groups are index lists computed once per (T, mc), and draws need no
synchronisation with the device.

Legend: R reference (training) samples, B samples of a batch, Q missing slots (sample, target), M modalities.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mrpipe import keyed
from mrpipe.store import masks

Ints = NDArray[np.int64]
Wanted = int | Literal["observed", "all"]
# Features (n, f) of a modality, by its position and rows.
Features = Callable[[int, Ints], Tensor]


@dataclass(frozen=True)
class Draws:
    """Supporting samples of each missing slot.

    Attributes:
        sample, target: (Q,) position in the batch and missing modality of each slot.
        group: (Q,) number of the list of samples to draw from.
        own: (Q,) position of the sample itself in this list, −1 if it is not a member.
        group_size: (Q,) number of samples to draw from, excluding the sample itself.
        relaxed: (Q,) whether the supporting group was empty and was replaced by the nearest samples.
        wanted: (Q,) requested number of samples.
        start: (Q + 1,) the supporting samples of slot q are `row[start[q]:start[q + 1]]`.
        row: reference rows, distinct within a slot.
    """

    sample: Ints
    target: Ints
    group: Ints
    own: Ints
    group_size: Ints
    relaxed: NDArray[np.bool_]
    wanted: Ints
    start: Ints = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    row: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def uniforms(
        self, keys: NDArray[np.uint64], names: tuple[str, ...], seed: int, stream: str, n: int
    ) -> NDArray[np.float64]:
        """Uniform random numbers (Q, n), keyed by sample (B,), name of the missing modality, seed and stream."""
        salt = np.array([keyed.stream_key(seed, f"support\x1f{stream}\x1f{name}") for name in names], dtype=np.uint64)
        return keyed.uniform(keys[self.sample] ^ salt[self.target], seed, "support", n)

    @property
    def drawn(self) -> Ints:
        """(Q,) number of drawn samples."""
        return np.diff(self.start)

    def rates(self) -> dict[str, float]:
        """Shares of the slots that used each fallback; 0 without missing slots."""
        n = max(len(self.target), 1)
        return {
            "small_group": float((~self.relaxed & (self.drawn < self.wanted)).sum() / n),
            "empty_group": float((self.relaxed & (self.drawn > 0)).sum() / n),
            "target_never_seen": float((self.drawn == 0).sum() / n),
        }


class SupportIndex:
    """Supporting groups for all modality combinations.

    Args:
        observed: (R, M) observed modalities of the training samples.
    """

    # For `NearestIndex`: values computed from features, to be kept in checkpoints.
    fitted: list[Tensor] | None = None

    def __init__(self, observed: NDArray[np.bool_]):
        self.observed = observed
        self.n_modalities = observed.shape[1]
        self._codes = masks.codes(observed)
        # Concatenated index lists, and the list number of each (code, target, relaxed).
        self._number: dict[tuple[int, int, bool], int] = {}
        self._lists: list[Ints] = []
        self._flat = np.zeros(0, dtype=np.int64)
        self._sorted_keys = np.zeros(0, dtype=np.int64)
        self._starts = np.zeros(1, dtype=np.int64)

    def fit(self) -> list[Tensor]:
        """Compute and return `fitted`."""
        return []

    def group(self, code: int, target: int) -> Ints:
        """G(T | mc) of Eq. 2, as reference rows in increasing order."""
        wanted = code | 1 << target
        return np.flatnonzero((self._codes & wanted) == wanted)

    def fallback(self, code: int, target: int) -> Ints:
        """Rows outside G(T | mc) with T, the largest |mc ∩ mc_j| and, among these, the fewest other modalities."""
        others = self.observed.copy()
        others[:, target] = False
        own = masks.unpack([code], self.n_modalities)[0]
        overlap = (others & own).sum(axis=1)
        extras = (others & ~own).sum(axis=1)
        wanted = code | 1 << target
        candidates = np.flatnonzero(self.observed[:, target] & ((self._codes & wanted) != wanted))
        if len(candidates) == 0:
            return candidates
        score = overlap[candidates] * (self.n_modalities + 1) - extras[candidates]
        return candidates[score == score.max()]

    def _lookup(self, codes: Ints, targets: Ints, relaxed: bool) -> Ints:
        """List number of each (code, target)."""
        pairs, inverse = np.unique(codes * self.n_modalities + targets, return_inverse=True)
        numbers = np.empty(len(pairs), dtype=np.int64)
        added = False
        for i, pair in enumerate(pairs.tolist()):
            key = (*divmod(pair, self.n_modalities), relaxed)
            if key not in self._number:
                find = self.fallback if relaxed else self.group
                self._number[key] = len(self._lists)
                self._lists.append(find(key[0], key[1]))
                added = True
            numbers[i] = self._number[key]
        if added:
            sizes = np.array([len(rows) for rows in self._lists])
            self._starts = np.concatenate([[0], np.cumsum(sizes)])
            self._flat = np.concatenate(self._lists)
            self._sorted_keys = np.repeat(np.arange(len(sizes)), sizes) * len(self.observed) + self._flat
        return numbers[inverse]

    def _place_of_self(self, numbers: Ints, own_row: Ints) -> Ints:
        """Position of each sample's own reference row in its list, −1 if it is not in the list."""
        wanted = numbers * len(self.observed) + own_row
        at = np.searchsorted(self._sorted_keys, wanted)
        found = (own_row >= 0) & (at < len(self._sorted_keys))
        found[found] = self._sorted_keys[at[found]] == wanted[found]
        return np.where(found, at - self._starts[numbers], -1)

    def draw(
        self,
        observed: NDArray[np.bool_],
        keys: NDArray[np.uint64],
        names: tuple[str, ...],
        *,
        wanted: Wanted,
        seed: int,
        stream: str,
        own_row: Ints | None = None,
        features: Features | None = None,
    ) -> Draws:
        """Draw the supporting samples of all missing slots of a batch, uniformly and without replacement.

        The draw of a slot depends on the sample's key, the name of the missing modality, `stream` and the seed, but not
        on the batch.

        Args:
            observed: (B, M) observed modalities of the batch.
            keys: (B,) uint64 keys of the samples.
            names: names of the modalities.
            wanted: samples per slot: a number, "observed" (the number of the sample's observed modalities) or "all".
            own_row: (B,) the sample's own reference row or −1; a sample never supports itself.
            features: features of the batch by position, for draws that depend on them (`NearestIndex`).
        """
        slots = self._slots(observed, wanted, own_row)
        n, place = np.minimum(slots.wanted, slots.group_size), slots.own
        chosen = self._choose(n, slots.group_size, slots.uniforms(keys, names, seed, stream, int(n.max(initial=0))))
        slot, rank = np.nonzero(np.arange(chosen.shape[1])[None, :] < n[:, None])
        position = chosen[slot, rank]
        position = position + ((place[slot] >= 0) & (position >= place[slot]))
        row = self._flat[self._starts[slots.group[slot]] + position]
        return replace(slots, start=np.concatenate([[0], np.cumsum(n)]), row=row)

    def _slots(self, observed: NDArray[np.bool_], wanted: Wanted, own_row: Ints | None) -> Draws:
        """The missing slots of a batch, before drawing."""
        sample, target = np.nonzero(~observed)
        codes = masks.codes(observed)[sample]
        own = np.full(len(sample), -1, dtype=np.int64) if own_row is None else own_row[sample]
        group = self._lookup(codes, target, relaxed=False)
        place = self._place_of_self(group, own)
        size = self._sizes(group) - (place >= 0)
        relaxed = size == 0
        if relaxed.any():
            group[relaxed] = self._lookup(codes[relaxed], target[relaxed], relaxed=True)
            place[relaxed] = self._place_of_self(group[relaxed], own[relaxed])
            size[relaxed] = self._sizes(group[relaxed]) - (place[relaxed] >= 0)
        if wanted == "all":
            asked = size.copy()
        else:
            asked = observed.sum(axis=1)[sample] if wanted == "observed" else np.full(len(sample), wanted)
        return Draws(sample, target, group, place, size, relaxed, asked)

    def _sizes(self, numbers: Ints) -> Ints:
        return self._starts[numbers + 1] - self._starts[numbers]

    @staticmethod
    def _choose(n: Ints, size: Ints, u: NDArray[np.float64]) -> Ints:
        """Floyd's algorithm for all slots at once: `n` distinct positions below `size`, with equal probabilities.

        Round r of a slot draws t in 0 … size − n + r and adds t or, if t was already drawn, size − n + r. Slots that
        use the complete list need no draw.
        """
        chosen = np.full((len(n), u.shape[1]), -1, dtype=np.int64)
        whole = n == size
        for r in range(u.shape[1]):
            last = size - n + r
            t = (u[:, r] * (last + 1)).astype(np.int64)
            taken = (chosen[:, :r] == t[:, None]).any(axis=1)
            chosen[:, r] = np.where(whole, r, np.where(taken, last, t))
            chosen[r >= n, r] = -1
        return chosen
