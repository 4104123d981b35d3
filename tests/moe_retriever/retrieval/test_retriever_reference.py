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
from tests.moe_retriever.retrieval.slow_nearest import Brute, pooled
from tests.moe_retriever.slow import Slow, balance


class SlowRetriever(Slow):
    """Algorithm 1 and Eq. 1 to 3 for one sample at a time, with the default choices of docs/method.md."""

    def __init__(self, method: MoERetriever, data: Data):
        super().__init__(method, data)
        self.index, self.rows = method.index, data.rows("train")
        self.kinds = [s.kind for s in data.spec.modalities]
        self.weights_of: dict[int, list[Tensor]] = {}
        self.brute: Brute | None = None

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

    def routed(self, x: Tensor, target: int, role: int) -> tuple[Tensor, Tensor]:
        """Eq. 1 for one token: softmax over the allowed experts, then top-k; the output and the mass of the weights."""
        o, n_own = self.config.own, self.config.own.n_experts * len(self.kinds)
        shared = range(n_own, n_own + o.n_shared)
        allowed = [*range(o.n_experts * target, o.n_experts * (target + 1)), *shared]
        allowed = allowed if o.context_routing else list(range(n_own + o.n_shared))
        first = (n_own + o.n_shared) * {"one": 0, "role": role, "target": target}[o.routers]
        p = (self.w("retriever.router.weight")[[first + e for e in allowed]] @ x).softmax(0)
        best = p.topk(o.top_k)
        values = best.values / best.values.sum() if o.renormalise else best.values
        self.weights_of.setdefault(target if o.context_routing else 0, []).append(
            torch.zeros_like(p).scatter(0, best.indices, values)
        )
        chosen = zip(values, best.indices.tolist(), strict=True)
        return sum(v * self.expert(x, allowed[i], "retriever.experts") for v, i in chosen), values.sum()

    def supports(self, sample: int, stream: str) -> dict[int, list[int]]:
        """Supporting samples of each missing modality; the correctness of uniform draws is tested elsewhere."""
        if self.config.own.support == "nearest":
            return self.nearest(sample, f"{stream} draw 0")
        d = self.index.draw(
            self.data.observed[[sample]],
            self.data.keys[[sample]],
            self.data.spec.names,
            wanted=self.config.own.n_intra,
            seed=self.config.seed,
            stream=f"{stream} draw 0",
            own_row=np.flatnonzero(self.rows == sample) if sample in self.rows else np.array([-1]),
        )
        return {int(t): self.rows[d.row[d.start[q] : d.start[q + 1]]].tolist() for q, t in enumerate(d.target)}

    def nearest(self, sample: int, stream: str) -> dict[int, list[int]]:
        """Supporting samples drawn from the nearest ones, by brute force."""
        o, observed = self.config.own, self.data.observed
        if self.brute is None:
            features = pooled(self.data)
            if o.nearest_metric == "embedding":
                having = [np.flatnonzero(seen).tolist() for seen in observed.T]
                features = [{i: self.encode(i, m).mean(0).tolist() for i in rows} for m, rows in enumerate(having)]
            self.brute = Brute(self.data, features)
        mc, settings = observed[sample], {"k": o.nearest_k, "tau": o.nearest_temperature, "stream": stream}
        return {
            target: self.rows[self.brute.drawn(sample, mc, target, n=int(mc.sum()), **settings)].tolist()
            for target in np.flatnonzero(~mc).tolist()
        }

    def retrieve(self, sample: int, target: int, supports: list[int]) -> Tensor:
        """Tokens (P, H) of one missing modality by Algorithm 1, lines 9 to 18."""
        o, n_tokens = self.config.own, self.config.common.tokens
        mc = np.flatnonzero(self.data.observed[sample]).tolist() if o.inter else []
        supports = supports if o.intra else []
        role = torch.tensor([0] * len(supports) + [1] * len(mc)).repeat_interleave(n_tokens)
        x = torch.cat([self.encode(j, target) for j in supports] + [self.encode(sample, m) for m in mc])
        if o.embeddings:
            modality = torch.tensor([target] * len(supports) + mc).repeat_interleave(n_tokens)
            x = x + self.w("retriever.role_2H")[role] + self.w("retriever.modality_MH")[modality]
        other = role[:, None] != role[None, :]
        keys = other if o.context == "cross" and other.any() else None
        before = self.norm(x, "retriever.context.norm") if o.context_block == "pre-ln" else x
        a = self.attention(before, "retriever.context.attention", keys)
        mixed = {"pre-ln": x + a, "code": 2 * a, "none": a}[o.context_block]
        inputs = self.norm(mixed, "retriever.norm_in")
        found = [self.routed(token, target, int(r)) for token, r in zip(inputs, role, strict=True)]
        y = torch.stack([v for v, _ in found])
        if o.residual:
            y = y + mixed
        n_roles = len(set(role.tolist()))
        share = torch.stack([1 / (n_roles * (role == r).sum() / n_tokens) for r in role]).double()
        if o.integration == "gate":
            mass = torch.stack([m for _, m in found]).view(-1, n_tokens)
            share = (mass / mass.sum(0)).flatten()
        slot = (y * share[:, None]).view(-1, n_tokens, y.shape[1]).sum(0)
        if o.integration == "queries":
            pool = self.w("retriever.pool_MPH")[target]
            slot = (pool @ y.T * y.shape[1] ** -0.5).softmax(1) @ y
        if o.integration == "broadcast":
            slot = slot.mean(0).expand(n_tokens, -1)
        return self.norm(slot, "retriever.norm_out") if o.output_norm else slot

    def balance(self) -> Tensor:
        """The balance loss of the tokens since the last call: per target, over its allowed experts, then averaged."""
        terms = [balance(weights) for weights in self.weights_of.values()]
        self.weights_of.clear()
        return self.config.own.balance * sum(terms) / len(terms)

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


VARIANTS: list[dict[str, object]] = [
    {},
    {"residual": True},
    {"context": "cross"},
    {"context": "cross", "intra": False},
    {"context": "cross", "inter": False},
    {"intra": False},
    {"inter": False, "residual": True},
    {"n_intra": "all"},
    {"context_block": "none"},
    {"context_block": "code", "renormalise": True},
    {"routers": "role"},
    {"routers": "target"},
    {"context_routing": False},
    {"integration": "broadcast", "residual": True, "output_norm": False},
    {"integration": "gate", "residual": True},
    {"integration": "gate", "output_norm": False},
    {"integration": "queries", "residual": True, "output_norm": False},
    {"embeddings": True},
    {"output_norm": False},
    {"support": "nearest", "nearest_k": 4},
    {"support": "nearest", "nearest_k": 3, "nearest_metric": "embedding", "nearest_temperature": 0.0},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: " ".join(f"{k}={v}" for k, v in o.items()) or "default")
@pytest.mark.parametrize("training", [False, True])
def test_forward_losses_and_gradients_equal_the_slow_reference(training: bool, options: dict[str, object]) -> None:
    method, data = made(kinds=("vector", "sequence", "vector"), **{"balance": 0.5, **options})
    slow = SlowRetriever(method, data)
    rows = data.rows("train" if training else "test")[:10]
    method.train(training)
    batch = data.batch(rows, "here")
    assert not batch.observed.all()
    out = method(batch)
    expected = torch.stack([slow.logits(int(i), "here") for i in rows])
    torch.testing.assert_close(out.logits.double(), expected, rtol=1e-4, atol=1e-5)
    if training:
        balanced = slow.balance()
        torch.testing.assert_close(out.losses["balance"].double(), balanced, rtol=1e-4, atol=1e-6)
        (F.cross_entropy(out.logits, batch.label) + out.losses["balance"]).backward()
        (F.cross_entropy(expected, batch.label) + balanced).backward()
        for name, p in method.named_parameters():
            wanted = slow.weights[name].grad
            found = torch.zeros_like(p) if p.grad is None else p.grad
            wanted = torch.zeros_like(found) if wanted is None else wanted
            torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-3, atol=1e-5, msg=name)
