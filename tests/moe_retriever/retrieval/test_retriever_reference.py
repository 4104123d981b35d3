"""MoE-Retriever compared with a slow float64 reference that implements the equations sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Data
from moe_retriever.methods.moe_retriever import MoERetriever
from tests.moe_retriever.retrieval.retriever_toy import made
from tests.moe_retriever.slow import Slow


class SlowRetriever(Slow):
    """Algorithm 1 and Eq. 1 to 3 for one sample at a time, with the default choices of docs/method.md."""

    def __init__(self, method: MoERetriever, data: Data):
        super().__init__(method, data)
        self.index, self.rows = method.index, data.rows("train")
        self.kinds = [s.kind for s in data.spec.modalities]

    def encode(self, sample: int, m: int) -> Tensor:
        """Tokens (P, H) of an MLP, or of a GRU computed step by step."""
        if self.kinds[m] == "vector":
            return super().encode(sample, m)
        table, row, name = self.data.tables[m], int(self.data.row[sample, m]), f"encoders.{m}.rnn"
        state = torch.zeros(self.config.common.encoder_hidden, dtype=torch.float64)
        for step in table.x[table.offsets[row] : table.offsets[row + 1]].double():
            gates_x = self.w(f"{name}.weight_ih_l0") @ step + self.w(f"{name}.bias_ih_l0")
            gates_h = self.w(f"{name}.weight_hh_l0") @ state + self.w(f"{name}.bias_hh_l0")
            (rx, zx, nx), (rh, zh, nh) = gates_x.chunk(3), gates_h.chunk(3)
            reset, update = (rx + rh).sigmoid(), (zx + zh).sigmoid()
            state = (1 - update) * (nx + reset * nh).tanh() + update * state
        return self.tokens(state, m)

    def routed(self, x: Tensor, target: int) -> Tensor:
        """Eq. 1 for one token: softmax over the allowed experts, then top-k without renormalisation."""
        o = self.config.own
        shared = range(o.n_experts * len(self.kinds), o.n_experts * len(self.kinds) + o.n_shared)
        allowed = [*range(o.n_experts * target, o.n_experts * (target + 1)), *shared]
        p = (self.w("retriever.router.weight")[allowed] @ x).softmax(0)
        best = p.topk(o.top_k)
        return sum(p[i] * self.expert(x, allowed[i], "retriever.experts") for i in best.indices.tolist())

    def supports(self, sample: int, stream: str) -> dict[int, list[int]]:
        """Supporting samples of each missing modality, whose correctness is tested elsewhere."""
        d = self.index.draw(
            self.data.observed[[sample]],
            self.data.keys[[sample]],
            self.data.spec.names,
            wanted="observed",
            seed=self.config.seed,
            stream=f"{stream} draw 0",
            own_row=np.flatnonzero(self.rows == sample) if sample in self.rows else np.array([-1]),
        )
        return {int(t): self.rows[d.row[d.start[q] : d.start[q + 1]]].tolist() for q, t in enumerate(d.target)}

    def retrieve(self, sample: int, target: int, supports: list[int]) -> Tensor:
        """Tokens (P, H) of one missing modality by Algorithm 1, lines 9 to 18."""
        mc = np.flatnonzero(self.data.observed[sample]).tolist()
        items = [self.encode(j, target) for j in supports] + [self.encode(sample, m) for m in mc]
        x = torch.cat(items)
        x = x + self.attention(self.norm(x, "retriever.context.norm"), "retriever.context.attention")
        x = self.norm(x, "retriever.norm_in")
        y = torch.stack([self.routed(token, target) for token in x]).view(len(items), -1, x.shape[1])
        inter = y[len(supports) :].mean(0)
        slot = 0.5 * y[: len(supports)].mean(0) + 0.5 * inter if supports else inter
        return self.norm(slot, "retriever.norm_out")

    def logits(self, sample: int, stream: str) -> Tensor:
        supports = self.supports(sample, stream)
        slots = [
            self.encode(sample, m) if self.data.observed[sample, m] else self.retrieve(sample, m, supports[m])
            for m in range(len(self.kinds))
        ]
        x = (torch.stack(slots) + self.w("fusion.position_MPH")).flatten(0, 1)
        x = self.norm(self.block(x, "fusion.blocks.0"), "fusion.norm")
        mean = x.view(len(self.kinds), -1, x.shape[1]).mean(1).flatten()
        return self.linear(mean, "fusion.head")


@pytest.mark.parametrize("training", [False, True])
def test_forward_and_gradients_equal_the_slow_reference(training: bool) -> None:
    method, data = made(kinds=("vector", "sequence", "vector"), balance=0.0)
    slow = SlowRetriever(method, data)
    rows = data.rows("train" if training else "test")[:10]
    method.train(training)
    batch = data.batch(rows, "here")
    assert not batch.observed.all()
    out = method(batch)
    expected = torch.stack([slow.logits(int(i), "here") for i in rows])
    torch.testing.assert_close(out.logits.double(), expected, rtol=1e-4, atol=1e-5)
    if training:
        F.cross_entropy(out.logits, batch.label).backward()
        F.cross_entropy(expected, batch.label).backward()
        for name, p in method.named_parameters():
            wanted = slow.weights[name].grad
            found = torch.zeros_like(p) if p.grad is None else p.grad
            wanted = torch.zeros_like(found) if wanted is None else wanted
            torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-3, atol=1e-6, msg=name)
