"""Nearest supporting samples by brute force: float64, one pair of samples at a time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moe_retriever.data.load import Data
from mrpipe import keyed
from tests.moe_retriever.retrieval.test_supporting_groups import brute_group, brute_nearest

Entries = list[dict[int, list[float]]]


class Brute:
    """Cosines of features (N, f) per modality, standardised on the training samples, one pair at a time."""

    def __init__(self, data: Data, features: Entries):
        self.data, self.train, self.z = data, data.rows("train").tolist(), []
        for entries in features:
            columns = list(zip(*(entries[i] for i in self.train if i in entries), strict=True))
            mean = [math.fsum(c) / len(c) for c in columns]
            sd = [math.sqrt(math.fsum((v - m) ** 2 for v in c) / len(c)) for c, m in zip(columns, mean, strict=True)]
            scale = [s if s > 1e-5 else 1.0 for s in sd]
            clipped = lambda x, mean=mean, scale=scale: [  # noqa: E731
                max(-5.0, min(5.0, (v - m) / s)) for v, m, s in zip(x, mean, scale, strict=True)
            ]
            self.z.append({i: clipped(x) for i, x in entries.items()})

    def similarity(self, i: int, j: int, mc: list[int]) -> float:
        total = 0.0
        for m in mc:
            if i in self.z[m] and j in self.z[m]:
                a, b = self.z[m][i], self.z[m][j]
                norm = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
                total += math.fsum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0
        return total / len(mc)

    def neighbours(self, i: int, mc: NDArray[np.bool_], target: int, k: int) -> tuple[list[int], list[float]]:
        """Reference rows of the k nearest, ties by row from a keyed first row, and the similarity of all candidates."""
        reference = self.data.observed[self.train].copy()
        own = self.train.index(i) if i in self.train else None
        if own is not None:
            reference[own] = False
        rows = brute_group(reference, mc, target) or brute_nearest(reference, mc, target)
        name = f"support\x1fties\x1f{self.data.spec.names[target]}"
        key = self.data.keys[[i]] ^ keyed.stream_key(0, name)
        first = int(keyed.uniform(key, 0, "support")[0, 0] * len(self.train))
        found = {j: self.similarity(i, self.train[j], np.flatnonzero(mc).tolist()) for j in rows}
        order = sorted(rows, key=lambda j: (-round(found[j], 9), (j - first) % len(self.train)))
        return order[:k], [found[j] for j in order[:k]]

    def drawn(
        self, i: int, mc: NDArray[np.bool_], target: int, *, k: int, n: int, tau: float, stream: str
    ) -> list[int]:
        """Reference rows drawn for one slot: the n largest of similarity / tau plus Gumbel noise; seed 0."""
        rows, similarity = self.neighbours(i, mc, target, k)
        if tau == 0:
            return rows[:n]
        key = self.data.keys[[i]] ^ keyed.stream_key(0, f"support\x1f{stream}\x1f{self.data.spec.names[target]}")
        u = keyed.uniform(key, 0, "support", k)[0].tolist()
        score = [s / tau - math.log(-math.log(v)) for s, v in zip(similarity, u, strict=False)]
        return [rows[r] for r in sorted(range(len(rows)), key=lambda r: -score[r])][:n]


def pooled(data: Data) -> Entries:
    """Features of vectors, and mean, maximum and log number of steps of sequences, by modality and sample."""
    entries: Entries = []
    for m, table in enumerate(data.tables):
        entries.append({})
        for i in np.flatnonzero(data.observed[:, m]).tolist():
            row = data.row[i, m]
            if data.spec.modalities[m].kind == "vector":
                entries[m][i] = table.x[row].double().tolist()
            else:
                steps = table.x[table.offsets[row] : table.offsets[row + 1]].double().numpy()
                entries[m][i] = [*steps.mean(axis=0), *steps.max(axis=0), math.log(len(steps))]
    return entries
