"""Supporting groups: which training samples may stand in for a modality that a sample lacks, and keyed draws from them.

Eq. 2 of the paper: for a target modality T and an observed combination mc, G(T | mc) = { j : mc_j ⊇ mc and T ∈ mc_j }
over *training* samples. Fallbacks (models.md A7): a group smaller than the wanted number is taken whole; an empty one
is replaced by the training samples that have T and share most with mc (then: have fewest others); where T was never
observed in training nothing is drawn.

Everything here is numpy on the host: groups are index lists computed once per (T, mc), and a batch's draws need no
word from the device.

Legend: R reference (training) samples, B samples of a batch, Q missing slots (sample, target), M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mrpipe import keyed
from mrpipe.store import masks

Ints = NDArray[np.int64]
Wanted = int | Literal["observed", "all"]


@dataclass(frozen=True)
class Draws:
    """Support of each missing slot.

    Attributes:
        sample, target: (Q,) place in the batch and target modality of each slot.
        group_size: (Q,) size of the list that was drawn from (the sample itself not counted).
        relaxed: (Q,) whether the supporting group was empty and the nearest samples stood in.
        start: (Q + 1,) support of slot q is `row[start[q]:start[q + 1]]`.
        row: reference rows, all distinct within a slot.
        wanted: (Q,) how many were asked for.
    """

    sample: Ints
    target: Ints
    group_size: Ints
    relaxed: NDArray[np.bool_]
    start: Ints
    row: Ints
    wanted: Ints

    @property
    def drawn(self) -> Ints:
        """(Q,) how many were drawn."""
        return np.diff(self.start)

    def rates(self) -> dict[str, float]:
        """Shares of the slots by kind of fallback (A7); 0 where no slot is missing."""
        n = max(len(self.target), 1)
        return {
            "small_group": float((~self.relaxed & (self.drawn < self.wanted)).sum() / n),
            "empty_group": float((self.relaxed & (self.drawn > 0)).sum() / n),
            "target_never_seen": float((self.drawn == 0).sum() / n),
        }


class SupportIndex:
    """Supporting groups over the training samples' masks.

    Args:
        observed: (R, M) what each training sample has.
    """

    def __init__(self, observed: NDArray[np.bool_]):
        self.observed = observed
        self.n_modalities = observed.shape[1]
        self._codes = masks.codes(observed)
        # Index lists end to end; list number of (code, target), and the same for the relaxed lists.
        self._number: dict[tuple[int, int, bool], int] = {}
        self._lists: list[Ints] = []
        self._flat = np.zeros(0, dtype=np.int64)
        self._sorted_keys = np.zeros(0, dtype=np.int64)
        self._starts = np.zeros(1, dtype=np.int64)

    def group(self, code: int, target: int) -> Ints:
        """G(T | mc) of Eq. 2: reference rows in increasing order."""
        wanted = code | 1 << target
        return np.flatnonzero((self._codes & wanted) == wanted)

    def nearest(self, code: int, target: int) -> Ints:
        """Rows outside G(T | mc) that have T, with the largest |mc ∩ mc_j|, among them with the fewest others."""
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
                find = self.nearest if relaxed else self.group
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
        """Position of each sample's own reference row inside its list, −1 where it is not in it."""
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
    ) -> Draws:
        """Draw the support of every missing slot of a batch: uniform, without replacement.

        A slot's draw depends on the sample's key, the target's name, `stream` and the seed; not on the batch.

        Args:
            observed: (B, M) what each sample of the batch has.
            keys: (B,) uint64 keys of the samples.
            names: the modalities' names.
            wanted: rows a slot: a number, "observed" (as many as the sample has modalities) or "all".
            own_row: (B,) the sample's own reference row or −1; it never supports itself (A16).
        """
        sample, target = np.nonzero(~observed)
        codes = masks.codes(observed)[sample]
        own = np.full(len(sample), -1, dtype=np.int64) if own_row is None else own_row[sample]
        numbers = self._lookup(codes, target, relaxed=False)
        place = self._place_of_self(numbers, own)
        size = self._sizes(numbers) - (place >= 0)
        relaxed = size == 0
        if relaxed.any():
            numbers[relaxed] = self._lookup(codes[relaxed], target[relaxed], relaxed=True)
            place[relaxed] = self._place_of_self(numbers[relaxed], own[relaxed])
            size[relaxed] = self._sizes(numbers[relaxed]) - (place[relaxed] >= 0)
        if wanted == "all":
            asked = size.copy()
        else:
            asked = observed.sum(axis=1)[sample] if wanted == "observed" else np.full(len(sample), wanted)
        n = np.minimum(asked, size)
        chosen = self._choose(n, size, self._bits_of(keys[sample], target, names, seed, stream, n))
        slot, rank = np.nonzero(np.arange(chosen.shape[1])[None, :] < n[:, None])
        position = chosen[slot, rank]
        position = position + ((place[slot] >= 0) & (position >= place[slot]))
        row = self._flat[self._starts[numbers[slot]] + position]
        start = np.concatenate([[0], np.cumsum(n)])
        return Draws(sample, target, size, relaxed, start, row, asked)

    def _sizes(self, numbers: Ints) -> Ints:
        return self._starts[numbers + 1] - self._starts[numbers]

    @staticmethod
    def _bits_of(
        keys: NDArray[np.uint64], target: Ints, names: tuple[str, ...], seed: int, stream: str, n: Ints
    ) -> NDArray[np.float64]:
        """Uniforms (Q, max n), keyed by sample, target's name, seed and stream."""
        salt = np.array([keyed.stream_key(seed, f"support\x1f{stream}\x1f{name}") for name in names], dtype=np.uint64)
        return keyed.uniform(keys ^ salt[target], seed, "support", int(n.max(initial=0)))

    @staticmethod
    def _choose(n: Ints, size: Ints, u: NDArray[np.float64]) -> Ints:
        """Floyd's sampling, all slots at once: `n` distinct positions below `size`, every subset equally likely.

        Round r of a slot draws t in 0 … size − n + r and takes it, or size − n + r itself if t is taken already. A slot
        that takes its whole list needs no draw.
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
