"""Supporting samples drawn from the k members of the supporting group that are most similar to the sample.

The similarity is the mean, over the sample's modalities, of the cosine of the features, standardised on the training
samples and clipped at ±5; 0 for modalities that the training sample lacks, which occurs in fallbacks only. The search
is exact: one product with all training samples, in float64. Ties are ordered by row from a keyed first row, so that
they favour no training sample. See docs/method.md.

Legend: R reference (training) samples, B samples of a batch, Q missing slots, M modalities, f features of a modality,
D features of all modalities after the projection, k neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moe_retriever.data.tables import Rows
from moe_retriever.retrieval.supporting_groups import Draws, Features, SupportIndex, Wanted
from mrpipe import keyed

if TYPE_CHECKING:
    from moe_retriever.methods.moe_retriever import MoERetrieverOptions

CLIP, BLOCK = 5.0, 256
# Similarities that differ by less are equal. Rounding errors are far smaller, so neighbours do not depend on the batch.
TIE = 1e-9
# Features of all modalities and training samples, approximately, and the least and most per modality and sample.
SIZE, WIDTHS = 4e6, (128, 1024)


def unit_vectors(x: Tensor, scale: Tensor, width: int, key: str) -> Tensor:
    """Features (n, f) standardised with mean and sd (2, f), then projected if f > width, in float64 of length 1 or 0.

    The projection is keyed, and keeps inner products in expectation: each result is the sum of equally many features
    with random signs.
    """
    z = ((x.double() - scale[0]) / scale[1]).clamp(-CLIP, CLIP)
    if (f := z.shape[1]) > width:
        rng = keyed.generator(0, "nearest", key)
        order, sign = torch.from_numpy(rng.permutation(f)), torch.from_numpy(rng.choice([-1.0, 1.0], f))
        z = F.pad(z[:, order.to(z.device)] * sign.to(z.device), (0, -f % width)).view(len(z), -1, width).sum(dim=1)
    return F.normalize(z, dim=1)


class NearestIndex(SupportIndex):
    """Supporting groups, vectors of the training samples, and draws from the nearest ones.

    Args:
        observed: (R, M) observed modalities of the training samples.
        features: features of training samples, by reference row; read when vectors are first needed and, for
            embeddings, after each `forget`.
    """

    def __init__(self, observed: NDArray[np.bool_], features: Features, options: MoERetrieverOptions):
        super().__init__(observed)
        self.features, self.k, self.temperature = features, options.nearest_k, options.nearest_temperature
        self.fixed = options.nearest_metric == "features"
        self.width = int(np.clip(SIZE / observed.size, *WIDTHS))
        self._scales: list[Tensor] = []
        self._vectors: Tensor | None = None

    def forget(self) -> None:
        """Discard vectors that depend on former weights."""
        self._vectors = self._vectors if self.fixed else None

    def state(self) -> list[Tensor]:
        """Vectors and scales, for a checkpoint."""
        return [self._fitted(), *self._scales]

    def load(self, state: list[Tensor]) -> None:
        """The inverse of `state`."""
        self.fixed, self._vectors, self._scales = True, state[0], state[1:]

    @torch.no_grad()
    def _fitted(self) -> Tensor:
        """(R, D) vectors of the training samples in float64, zeros for missing modalities."""
        if self._vectors is None:
            self._scales, columns = [], []
            for m in range(self.n_modalities):
                rows = np.flatnonzero(self.observed[:, m])
                blocks = [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]
                sums = [
                    torch.stack([x.sum(0), x.square().sum(0)]) for x in (self.features(m, b).double() for b in blocks)
                ]
                mean, square = torch.stack(sums).sum(dim=0) / len(rows) if sums else torch.zeros(2, 0)
                sd = (square - mean.square()).clamp_min(0).sqrt()
                scale = torch.stack([mean, torch.where(sd > 1e-6 * (1 + mean.abs()), sd, 1.0)])
                column = scale.new_zeros(len(self.observed), min(scale.shape[1], self.width), dtype=torch.float64)
                for b in blocks:
                    at = torch.from_numpy(b).to(column.device)
                    column[at] = unit_vectors(self.features(m, b), scale, self.width, str(m))
                self._scales.append(scale)
                columns.append(column)
            device = next(c.device for c in columns if c.shape[1])
            self._vectors = torch.cat([c.to(device) for c in columns], dim=1)
        return self._vectors

    @torch.no_grad()
    def _query(self, observed: NDArray[np.bool_], own_row: Rows, features: Features) -> Tensor:
        """(B, D) vectors of a batch, divided by the number of observed modalities, zeros for the others."""
        vectors = self._fitted()
        query = vectors[torch.from_numpy(own_row).to(vectors.device)]
        n_observed = torch.from_numpy(observed.sum(axis=1, keepdims=True)).to(vectors.device)
        parts = query.split([min(s.shape[1], self.width) for s in self._scales], dim=1)
        for m, (scale, part) in enumerate(zip(self._scales, parts, strict=True)):
            part[torch.from_numpy(~observed[:, m]).to(part.device)] = 0.0
            new = np.flatnonzero(observed[:, m] & (own_row < 0))
            if part.shape[1] and len(new):
                vectors = unit_vectors(features(m, new), scale, self.width, str(m))
                part[torch.from_numpy(new).to(part.device)] = vectors
        return query / n_observed

    def _search(self, slots: Draws, query: Tensor, first: Rows) -> tuple[Rows, NDArray[np.float64]]:
        """Rows (Q, k) of the nearest samples, in order, and their similarity; −1 and −∞ where a group is smaller.

        `first` (Q,) is the first row in the order of equal similarities.
        """
        products = query @ self._fitted().T
        found = [(slots.sample[:0], slots.sample[:0], np.zeros(0))]
        for group in np.unique(slots.group[slots.group_size > 0]).tolist():
            mine, rows = np.flatnonzero(slots.group == group), self._lists[group]
            similarity = products[torch.from_numpy(slots.sample[mine]).to(products.device)]
            similarity = similarity.index_select(1, torch.from_numpy(rows).to(products.device))
            member = np.flatnonzero(slots.own[mine] >= 0)
            similarity[member, slots.own[mine[member]]] = -torch.inf
            least = similarity.topk(min(self.k, len(rows)), dim=1).values[:, -1:]
            slot, place = (similarity >= least - 2 * TIE).nonzero(as_tuple=True)
            value = similarity[slot, place].cpu().numpy()
            found.append((mine[slot.cpu().numpy()], rows[place.cpu().numpy()], value))
        slot_, row, value = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort(((row - first[slot_]) % len(self.observed), -np.round(value / TIE), slot_))
        rank = np.arange(len(order)) - np.searchsorted(slot_[order], slot_[order])
        order, rank = order[rank < self.k], rank[rank < self.k]
        nearest, similar = np.full((len(first), self.k), -1), np.full((len(first), self.k), -np.inf)
        nearest[slot_[order], rank], similar[slot_[order], rank] = row[order], value[order]
        return nearest, similar

    def draw(
        self,
        observed: NDArray[np.bool_],
        keys: NDArray[np.uint64],
        names: tuple[str, ...],
        *,
        wanted: Wanted,
        seed: int,
        stream: str,
        own_row: Rows | None = None,
        features: Features | None = None,
    ) -> Draws:
        """Draw from the nearest samples without replacement, with probabilities softmax(similarity / temperature).

        The n largest similarities after adding keyed Gumbel noise are such a draw.
        """
        assert features is not None
        own_row = np.full(len(keys), -1) if own_row is None else own_row
        slots = self._slots(observed, wanted, own_row)
        slots = replace(slots, wanted=np.minimum(slots.wanted, self.k))
        first = (slots.uniforms(keys, names, seed, "ties", 1)[:, 0] * len(self.observed)).astype(np.int64)
        row, similarity = self._search(slots, self._query(observed, own_row, features), first)
        if self.temperature > 0:
            u = np.maximum(slots.uniforms(keys, names, seed, stream, self.k), np.finfo(np.float64).tiny)
            order = np.argsort(np.log(-np.log(u)) - similarity / self.temperature, axis=1, kind="stable")
            row = np.take_along_axis(row, order, axis=1)
        n = np.minimum(slots.wanted, slots.group_size)
        return slots.of_rows(n, row[np.arange(self.k) < n[:, None]])
