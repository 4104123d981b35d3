"""Supporting samples drawn from the k members of the supporting group that are most similar to the sample.

The similarity is the mean, over the sample's modalities, of the cosine of the features, standardised on the training
samples and clipped at ±5; 0 for modalities that the training sample lacks, which occurs in fallbacks only. The search
is exact: one product with all training samples, in float64. Ties are ordered by row from a keyed first row, so that
they favour no training sample. See docs/method.md.

Legend: R reference (training) samples, B samples of a batch, Q missing slots, M modalities, f features of a modality,
D features of all modalities after the projection, k neighbours.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moe_retriever.data.tables import Rows
from moe_retriever.device import to_device
from moe_retriever.retrieval.supporting_groups import Draws, Features, SupportIndex, Wanted
from mrpipe import keyed

if TYPE_CHECKING:
    from moe_retriever.methods.moe_retriever import MoERetrieverOptions

CLIP, BLOCK = 5.0, 256
# Similarities that differ by less are equal. Rounding errors are far smaller, so neighbours do not depend on the batch.
TIE = 1e-9
# Features of all modalities and training samples, approximately, and the least and most per modality and sample.
SIZE, WIDTHS = 4e6, (128, 1024)


class NearestIndex(SupportIndex):
    """Supporting groups, vectors of the training samples, and draws from the nearest ones.

    Args:
        observed: (R, M) observed modalities of the training samples.
        features: features of training samples, by reference row; read whenever `fitted` is None.
        subject: (R,) number of each training sample's subject. Test samples are of other subjects, so in training, too,
            no sample of the same subject is a neighbour.
    """

    def __init__(self, observed: NDArray[np.bool_], features: Features, options: "MoERetrieverOptions", subject: Rows):
        super().__init__(observed)
        self.subject = subject
        self.features, self.k, self.temperature = features, options.nearest_k, options.nearest_temperature
        self.width = int(np.clip(SIZE / observed.size, *WIDTHS))

    @torch.no_grad()
    def fit(self) -> list[Tensor]:
        """Vectors (R, D) in float64, zeros for missing modalities, then mean and sd (2, f) of each modality."""
        if self.fitted is None:
            scales, columns = [], []
            for m, seen in enumerate(self.observed.T):
                rows = np.flatnonzero(seen)
                blocks = [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]
                every = (self.features(m, b).double() for b in blocks)
                sums = [torch.stack([x.sum(dim=0), x.square().sum(dim=0)]) for x in every]
                mean, square = torch.stack(sums).sum(dim=0) / len(rows) if sums else torch.zeros(2, 0)
                sd = (square - mean.square()).clamp_min(0).sqrt()
                scales.append(torch.stack([mean, torch.where(sd > 1e-6 * (1 + mean.abs()), sd, 1.0)]))
                column = sd.new_zeros(len(seen), min(len(sd), self.width), dtype=torch.float64)
                for b in blocks:
                    column[to_device(b, sd.device)] = self.vectors(m, self.features(m, b), scales[m])
                columns.append(column)
            device = next(c.device for c in columns if c.shape[1])
            self.fitted = [torch.cat([c.to(device) for c in columns], dim=1), *scales]
        return self.fitted

    def vectors(self, m: int, x: Tensor, scale: Tensor) -> Tensor:
        """Features (n, f) of modality m, standardised, projected if f > width, scaled to length 1 (or 0), in float64.

        Each result of the keyed projection is the sum of equally many features with random signs.
        """
        z = ((x.double() - scale[0]) / scale[1]).clamp(-CLIP, CLIP)
        if (f := z.shape[1]) > self.width:
            rng = keyed.generator(0, "nearest", str(m))
            order, sign = torch.from_numpy(rng.permutation(f)), torch.from_numpy(rng.choice([-1.0, 1.0], f))
            z = F.pad(z[:, order.to(z.device)] * sign.to(z.device), (0, -f % self.width))
            z = z.view(len(z), -1, self.width).sum(dim=1)
        return F.normalize(z, dim=1)

    @torch.no_grad()
    def _query(self, observed: NDArray[np.bool_], own_row: Rows, features: Features) -> Tensor:
        """(B, D) vectors of a batch, divided by the number of observed modalities, zeros for the others."""
        vectors, *scales = self.fit()
        query = vectors[to_device(own_row, vectors.device)]
        parts = query.split([min(s.shape[1], self.width) for s in scales], dim=1)
        for m, (scale, part) in enumerate(zip(scales, parts, strict=True)):
            part[to_device(~observed[:, m], part.device)] = 0.0
            new = np.flatnonzero(observed[:, m] & (own_row < 0))
            if part.shape[1] and len(new):
                part[to_device(new, part.device)] = self.vectors(m, features(m, new), scale)
        return query / to_device(observed.sum(axis=1, keepdims=True), query.device)

    def _search(self, slots: Draws, query: Tensor, first: Rows, own_row: Rows) -> tuple[Rows, NDArray[np.float64]]:
        """Nearest samples (Q, k), in order, ties from row `first` (Q,), and similarities; −∞ past the group."""
        products = query @ self.fit()[0].T
        found = [(slots.sample[:0], slots.sample[:0], np.zeros(0))]
        for group in np.unique(slots.group[slots.group_size > 0]).tolist():
            mine, rows = np.flatnonzero(slots.group == group), self._lists[group]
            similarity = products[to_device(slots.sample[mine], products.device)]
            similarity = similarity.index_select(1, to_device(rows, products.device))
            own = own_row[slots.sample[mine]]
            same = self.subject[rows] == np.where(own < 0, -1, self.subject[own])[:, None]
            similarity[to_device(same, products.device)] = -torch.inf
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
        """Draw without replacement by softmax(similarity / temperature): the largest sums with keyed Gumbel noise."""
        assert features is not None
        own_row = np.full(len(keys), -1) if own_row is None else own_row
        slots = self._slots(observed, wanted, own_row)
        slots = replace(slots, wanted=np.minimum(slots.wanted, self.k))
        first = (slots.uniforms(keys, names, seed, "ties", 1)[:, 0] * len(self.observed)).astype(np.int64)
        row, similarity = self._search(slots, self._query(observed, own_row, features), first, own_row)
        n = np.minimum(slots.wanted, (similarity > -np.inf).sum(axis=1))
        if self.temperature > 0:
            u = np.maximum(slots.uniforms(keys, names, seed, stream, self.k), np.finfo(np.float64).tiny)
            order = np.argsort(np.log(-np.log(u)) - similarity / self.temperature, axis=1, kind="stable")
            row = np.take_along_axis(row, order, axis=1)
        return replace(slots, start=np.concatenate([[0], np.cumsum(n)]), row=row[np.arange(self.k) < n[:, None]])
