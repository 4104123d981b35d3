"""FuseMoE compared with a slow float64 reference; its properties; faults of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Data
from moe_retriever.methods.fusemoe import FuseMoE
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow import Slow, balance, observed, require_equal

MASKS = synthetic.random_masks(40, 3, 4, p=0.4)
SMALL = {"n_experts": 5, "expert_ffn": 20, "top_k": 3}


def made(masks: np.ndarray = MASKS, **options: object) -> tuple[FuseMoE, Data]:
    data = synthetic.make(masks, n_classes=3)
    method = synthetic.trained_on(data, synthetic.config("fusemoe", **{"dropout": 0.0, **SMALL, **options}))
    assert isinstance(method, FuseMoE)
    with torch.no_grad():  # Large enough to have an effect.
        for i, p in enumerate((method.type_MH, method.position_MPH, method.missing_MPH)):
            if p is not None:
                p.normal_(0, 0.5, generator=torch.Generator().manual_seed(i))
    return method, data


class SlowFuseMoE(Slow):
    """One sample: attention within each modality, experts with distance-based gates, feed-forward layer, readout."""

    def gate(self, x: Tensor, name: str) -> Tensor:
        w = self.w(f"{name}.weight")
        distance = torch.stack([(x - e).pow(2).sum() for e in w])
        return {"laplace": -distance.sqrt(), "gaussian": -distance, "dot": w @ x}[self.options.gate]

    def sample(self, number: int, seen: list[int]) -> tuple[Tensor, list[list[list[Tensor]]]]:
        """Logits, and weights of all experts by layer, router and token."""
        o, joint, n = self.options, self.options.router == "joint", self.n_modalities
        x = []
        for m in range(n):
            if m in seen:
                z = self.encode(number, m)
                z = z.mean(0, keepdim=True) if joint else z
            elif o.missing == "learned":
                z = self.w("missing_MPH")[m]
            else:
                z = torch.zeros_like(self.w("position_MPH")[m])
            x.append(z + self.w("type_MH")[m] + self.w("position_MPH")[m])
        routed = []
        for k in range(o.layers):
            name = f"layers.{k}"
            for m in range(n):
                x[m] = x[m] + self.attention(self.norm(x[m], f"{name}.norm_attention.{m}"), f"{name}.attention.{m}")
            normed = [self.norm(x[m], f"{name}.norm_experts.{m}") for m in range(n)]
            weights: list[list[Tensor]] = []
            if joint:
                token = torch.cat([t[0] for t in normed])
                y, weight = self.mixture(token, self.gate(token, f"{name}.routers.0"), o.top_k, f"{name}.experts")
                x = [t + part for t, part in zip(x, y.chunk(n), strict=True)]
                weights = [[weight]]
            else:
                for m in range(n):
                    pairs = [
                        self.mixture(t, self.gate(t, f"{name}.routers.{m}"), o.top_k, f"{name}.experts")
                        for t in normed[m]
                    ]
                    x[m] = x[m] + torch.stack([y for y, _ in pairs])
                    weights.append([w for _, w in pairs])
            x = [
                t + self.feed_forward(self.norm(t, f"{name}.norm_ffn.{m}"), f"{name}.ffn.{m}") for m, t in enumerate(x)
            ]
            routed.append(weights)
        fused = torch.cat([self.norm(t, f"norm.{m}").mean(0) for m, t in enumerate(x)])
        return self.linear(fused + self.feed_forward(fused, "readout"), "head"), routed


OPTIONS = [{}, {"layers": 2, "gate": "gaussian", "missing": "zeros"}, {"router": "joint", "layers": 2}, {"gate": "dot"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_losses_and_gradients_equal_the_slow_reference(options: dict[str, object], training: bool) -> None:
    method, data = made(noisy_gate=False, **options)
    method.train(training)
    batch = data.batch(np.arange(9), "x")
    slow = SlowFuseMoE(method, data)
    out = [slow.sample(int(i), observed(batch, b)) for b, i in enumerate(batch.index)]
    total = torch.zeros((), dtype=torch.float64)
    for k in range(method.options.layers):
        routers = range(len(out[0][1][k]))
        total = total + sum(balance([w for _, routed in out for w in routed[k][r]]) for r in routers) / len(routers)
    expected = torch.stack([v for v, _ in out])
    require_equal(method, batch, slow, expected, {"balance": 0.01 * total} if training else None)


def test_a_missing_modality_is_replaced_by_its_learned_embedding() -> None:
    """As in the paper; the released code uses zeros."""
    method, data = made()
    batch = data.batch(np.flatnonzero(~data.observed[:, 1]), "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        for p in method.encoders[1].parameters():
            p.add_(1.0)
    assert torch.equal(method(batch).logits, before)
    with torch.no_grad():
        method.missing_MPH[1] += torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    assert ((method(batch).logits - before).abs().amax(1) > 1e-5).all()
    assert made(missing="zeros")[0].missing_MPH is None
    having = data.batch(np.flatnonzero(data.observed[:, 1]), "x")
    observed_before = method(having).logits
    with torch.no_grad():
        method.missing_MPH[1] += 1.0
    assert torch.equal(method(having).logits, observed_before)


# Faults of the published code


def test_tokens_of_different_samples_do_not_interact() -> None:
    """The released code flattens (time, batch, H) to (batch, time · H), so rows mix all samples of a batch."""
    method, data = made()
    method.eval()
    whole = method(data.batch(np.arange(8), "x")).logits
    for i in range(8):
        torch.testing.assert_close(method(data.batch(np.array([i]), "x")).logits[0], whole[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("router", ["permod", "joint"])
def test_every_router_is_registered_and_trained_by_the_task_loss(router: str) -> None:
    """In the released code, gates in plain lists are neither optimised nor saved."""
    method, data = made(router=router, layers=2, balance=0.0)
    batch = data.batch(np.arange(24), "x")
    out = method.train()(batch)
    assert out.losses == {}
    F.cross_entropy(out.logits, batch.label).backward()
    for name, p in method.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name
    gates = [n for n in method.state_dict() if ".routers." in n and n.endswith(".weight")]
    assert len(gates) == (2 if router == "joint" else 6)


def test_evaluation_uses_no_noise() -> None:
    """In the released code, gate noise is also used in evaluation."""
    method, data = made()
    batch = data.batch(np.arange(24), "x")
    with torch.no_grad():
        for layer in method.layers:
            for r in layer.routers:
                r.noise_weight += 1.0
    method.eval()
    assert torch.equal(method(batch).logits, method(batch).logits)
    method.train()
    assert not torch.equal(method(batch).logits, method(batch).logits)


def test_the_balance_loss_has_gradients_for_every_router() -> None:
    """The released code computes the loss but does not use it."""
    method, data = made(layers=2)
    out = method.train()(data.batch(np.arange(24), "x"))
    assert float(out.losses["balance"].detach()) > 0
    out.losses["balance"].backward()
    assert all(bool(r.weight.grad.abs().sum() > 0) for layer in method.layers for r in layer.routers)


def test_experts_return_vectors_instead_of_log_probabilities() -> None:
    """The released log-softmax experts return vectors of large negative numbers."""
    method, data = made(top_k=5)
    layer = method.eval().layers[0]
    with torch.no_grad():
        layer.experts.w_out.zero_()
        layer.experts.b_out.copy_(torch.full_like(layer.experts.b_out, 0.25))
    x = [torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(m)) for m in range(3)]
    for update in layer._mix(x)[0]:
        torch.testing.assert_close(update, torch.full_like(update, 0.25))
    assert method(data.batch(np.arange(4), "x")).logits.isfinite().all()


def test_modalities_have_their_own_types_and_positions() -> None:
    """The released code has a single position table, and the wrong type for one modality."""
    method, data = made(np.ones((10, 3), dtype=bool))
    batch = data.batch(np.arange(10), "x")
    before = method.eval()(batch, detail=True).diagnostics["fused"]
    for table in (method.type_MH, method.position_MPH):
        with torch.no_grad():
            old = table[1].clone()
            table[1] += torch.randn(table[1].shape, generator=torch.Generator().manual_seed(0))
            after = method(batch, detail=True).diagnostics["fused"]
            table[1] = old
        assert ((after - before).abs().amax(1) > 1e-5).all()


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(UsageError, match="top_k=6"):
        made(top_k=6)


def test_numbers_of_parameters() -> None:
    """1.96 M and 2.39 M without embeddings of missing modalities, types and positions; joint: 7.21 M and 9.74 M."""
    tables = [2 * m * 16 * 128 + m * 128 for m in (3, 4)]
    sizes = [synthetic.size_at_128("fusemoe", m) - t for m, t in zip((3, 4), tables, strict=True)]
    assert [round(n / 1e6, 2) for n in sizes] == [1.96, 2.39]
    joint = [synthetic.size_at_128("fusemoe", m, router="joint", expert_ffn=512) for m in (3, 4)]
    assert [round(n / 1e6, 2) for n in joint] == [7.21, 9.74]
