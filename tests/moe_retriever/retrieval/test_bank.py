"""The cache of embeddings: values, and the limit of its size."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moe_retriever.retrieval import bank
from moe_retriever.retrieval.bank import EmbeddingBank

N, F = 40, 3


class Table:
    """Features (N, F), and the number of rows that were read."""

    def __init__(self) -> None:
        self.x = torch.arange(float(N * F)).view(N, F)
        self.n_read = 0

    def __len__(self) -> int:
        return N

    def gather(self, rows: Any) -> torch.Tensor:
        self.n_read += len(rows)
        return self.x[torch.from_numpy(rows)]


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(F, 4), nn.Unflatten(1, (2, 2)))


def test_each_embedding_is_computed_once() -> None:
    table, network = Table(), encoder()
    cache = EmbeddingBank(SimpleNamespace(tables=[table]))  # type: ignore[arg-type]
    for rows in (np.array([3, 5, 3]), np.array([5, 7]), np.arange(N)):
        assert torch.allclose(cache.embed(0, rows, network), network(table.x[torch.from_numpy(rows)]))
    assert table.n_read == N


def test_embeddings_beyond_the_limit_replace_those_held(monkeypatch: pytest.MonkeyPatch) -> None:
    table, network = Table(), encoder()
    cache = EmbeddingBank(SimpleNamespace(tables=[table]))  # type: ignore[arg-type]
    monkeypatch.setattr(bank, "MOST_BYTES", 10 * 2 * 2 * 4)
    cache.embed(0, np.arange(4), network)
    for start in range(0, N - 6, 3):
        rows = np.arange(start, start + 6)
        assert torch.allclose(cache.embed(0, rows, network), network(table.x[start : start + 6]))
        cache.remember(0, np.array([N - 1]), network(table.x[-1:]))
        held = cache._tokens[0]
        assert held is not None
        assert len(held) <= 10
    # A request that is larger than the limit is answered in full.
    assert torch.allclose(cache.embed(0, np.arange(N), network), network(table.x))
