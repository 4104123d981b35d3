"""Supporting samples drawn from the k members of the supporting group that are most similar to the sample.

The similarity is the mean, over the modalities that both samples have, of the cosine of their features, which are
standardised with mean and standard deviation of the training samples and clipped at ±5. More than 256 features of a
modality are projected to 256 by a keyed random projection, which keeps inner products in expectation. The search is
exact: one product of the batch with all training samples, in float64. Ties are ordered by row from a keyed first row,
so that they favour no training sample.

Legend: R reference (training) samples, B samples of a batch, Q missing slots, M modalities, f features of a modality,
D features of all modalities after the projection, k neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moe_retriever.data.tables import Rows
from moe_retriever.retrieval.supporting_groups import Draws, Features, Slots, SupportIndex, Wanted
from mrpipe import keyed

WIDTH, CLIP, BLOCK = 256, 5.0, 256
# Similarities that differ by less are equal. Rounding errors are far smaller, so neighbours do not depend on the batch.
TIE = 1e-9


@dataclass(frozen=True)
class Scale:
    """Map from features (n, f) of one modality to vectors of length 1 or 0, (n, min(f, 256)) float64.

    Attributes:
        name: name of the modality, the key of the projection.
        mean, sd: (f,) float64 statistics of the training samples.
    """

    name: str
    mean: Tensor
    sd: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        z = ((x.double() - self.mean) / self.sd).clamp(-CLIP, CLIP)
        if z.shape[1] > WIDTH:
            # Each of the 256 results is the sum of equally many features with random signs.
            rng = keyed.generator(0, "nearest", self.name)
            order = torch.from_numpy(rng.permutation(z.shape[1])).to(z.device)
            z = z[:, order] * torch.from_numpy(rng.choice([-1.0, 1.0], z.shape[1])).to(z.device)
            z = F.pad(z, (0, -z.shape[1] % WIDTH)).view(len(z), -1, WIDTH).sum(dim=1)
        # Rounded to float32, as in a checkpoint.
        return F.normalize(z, dim=1).float().double()


class NearestIndex(SupportIndex):
    """Supporting groups, vectors of the training samples, and draws from the nearest ones.

    Args:
        observed, names: (R, M) observed modalities of the training samples, and names of the modalities.
        features: of training samples, by reference row; read on the first draw and the first one after `forget`.
        k: neighbours per missing modality.
        temperature: of the softmax over similarities by which supporting samples are drawn; 0: the nearest ones.
    """

    def __init__(
        self, observed: NDArray[np.bool_], names: tuple[str, ...], features: Features, *, k: int, temperature: float
    ):
        super().__init__(observed)
        self.names, self.k, self.temperature, self._features = names, k, temperature, features
        self._scales: list[Scale] = []
        self._vectors: Tensor | None = None

    def forget(self) -> None:
        """Discard vectors that depend on former weights."""
        self._vectors = None

    def n_bytes(self) -> int:
        """Size of `state`."""
        return 4 * self._fitted().numel() + sum(16 * len(s.mean) for s in self._scales)

    def state(self) -> dict[str, object]:
        """Scales and vectors for a checkpoint."""
        vectors = self._fitted()
        return {"vectors": vectors.float().cpu(), "scales": [(s.mean.cpu(), s.sd.cpu()) for s in self._scales]}

    def load(self, state: Mapping[str, object], device: torch.device) -> None:
        """The inverse of `state`."""
        scales = zip(self.names, cast("list[tuple[Tensor, Tensor]]", state["scales"]), strict=True)
        self._scales = [Scale(name, mean.to(device), sd.to(device)) for name, (mean, sd) in scales]
        self._vectors = cast(Tensor, state["vectors"]).to(device).double()

    @torch.no_grad()
    def _fitted(self) -> Tensor:
        """(R, D) vectors of the training samples in float64, zeros for missing modalities."""
        if self._vectors is None:
            self._scales, columns = [], []
            for m, name in enumerate(self.names):
                rows = np.flatnonzero(self.observed[:, m])
                blocks = [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]
                sums = [self._features(m, b).double().sum(dim=0) for b in blocks]
                mean = torch.stack(sums).sum(dim=0) / len(rows) if blocks else torch.zeros(0)
                squares = [(self._features(m, b).double() - mean).square().sum(dim=0) for b in blocks]
                sd = (torch.stack(squares).sum(dim=0) / len(rows)).sqrt() if blocks else mean
                self._scales.append(Scale(name, mean, torch.where(sd > 1e-6, sd, 1.0)))
                column = mean.new_zeros(len(self.observed), min(len(mean), WIDTH), dtype=torch.float64)
                for b in blocks:
                    column[torch.from_numpy(b).to(mean.device)] = self._scales[m](self._features(m, b))
                columns.append(column)
            device = next(c.device for c in columns if c.shape[1])
            self._vectors = torch.cat([c.to(device) for c in columns], dim=1)
        return self._vectors

    @torch.no_grad()
    def _query(self, observed: NDArray[np.bool_], own_row: Rows, features: Features) -> Tensor:
        """(B, D) vectors of a batch, zeros for missing modalities; those of training samples are known."""
        vectors = self._fitted()
        query = vectors[torch.from_numpy(own_row).to(vectors.device)]
        parts = query.split([min(len(s.mean), WIDTH) for s in self._scales], dim=1)
        for m, (scale, part) in enumerate(zip(self._scales, parts, strict=True)):
            part[torch.from_numpy(~observed[:, m]).to(part.device)] = 0.0
            new = np.flatnonzero(observed[:, m] & (own_row < 0))
            if part.shape[1] and len(new):
                part[torch.from_numpy(new).to(part.device)] = scale(features(m, new))
        return query

    @torch.no_grad()
    def _search(
        self, slots: Slots, observed: NDArray[np.bool_], query: Tensor, first: Rows
    ) -> tuple[Rows, NDArray[np.float64]]:
        """Rows (Q, k) of the nearest samples, in order, and their similarity; −1 and −∞ where a group is smaller.

        Args:
            query: (B, D) vectors of the batch.
            first: (Q,) first row in the order of equal similarities.
        """
        products = query @ self._fitted().T
        slot, row, near = [slots.sample[:0]], [slots.sample[:0]], [np.zeros(0)]
        for group in np.unique(slots.group[slots.group_size > 0]).tolist():
            mine, rows = np.flatnonzero(slots.group == group), self._lists[group]
            # All samples of a group share equally many modalities with the sample.
            n_shared = int((observed[slots.sample[mine[0]]] & self.observed[rows[0]]).sum())
            index = torch.from_numpy(slots.sample[mine]).to(products.device)
            similarity = products[index].index_select(1, torch.from_numpy(rows).to(products.device)) / max(n_shared, 1)
            member = np.flatnonzero(slots.own[mine] >= 0)
            similarity[member, slots.own[mine[member]]] = -torch.inf
            least = similarity.topk(min(self.k, len(rows)), dim=1).values[:, -1:]
            at, place = (similarity >= least - 2 * TIE).nonzero(as_tuple=True)
            slot.append(mine[at.cpu().numpy()])
            row.append(rows[place.cpu().numpy()])
            near.append(similarity[at, place].cpu().numpy())
        s, r, v = np.concatenate(slot), np.concatenate(row), np.concatenate(near)
        order = np.lexsort(((r - first[s]) % len(self.observed), -np.round(v / TIE), s))
        rank = np.arange(len(order)) - np.searchsorted(s[order], s[order])
        order, rank = order[rank < self.k], rank[rank < self.k]
        nearest, value = np.full((len(first), self.k), -1, dtype=np.int64), np.full((len(first), self.k), -np.inf)
        nearest[s[order], rank], value[s[order], rank] = r[order], v[order]
        return nearest, value

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
        own_row = np.full(len(keys), -1, dtype=np.int64) if own_row is None else own_row
        assert features is not None
        slots = self._slots(observed, wanted, own_row)
        slots = replace(slots, wanted=np.minimum(slots.wanted, self.k))
        first = (slots.uniforms(keys, names, seed, "ties", 1)[:, 0] * len(self.observed)).astype(np.int64)
        row, similarity = self._search(slots, observed, self._query(observed, own_row, features), first)
        if self.temperature > 0:
            u = np.maximum(slots.uniforms(keys, names, seed, stream, self.k), np.finfo(np.float64).tiny)
            order = np.argsort(np.log(-np.log(u)) - similarity / self.temperature, axis=1, kind="stable")
            row = np.take_along_axis(row, order, axis=1)
        n = np.minimum(slots.wanted, slots.group_size)
        return Draws.of(slots, n, row[np.arange(self.k) < n[:, None]])
