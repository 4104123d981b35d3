"""mmFormer compared with a slow float64 reference; its properties; faults of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Batch, Data
from moe_retriever.methods.mmformer import MMFormer
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow import Slow, observed, require_equal

MASKS = synthetic.random_masks(40, 3, 4, p=0.4)


def made(masks: np.ndarray = MASKS, **options: object) -> tuple[MMFormer, Data]:
    data = synthetic.make(masks, n_classes=3)
    method = synthetic.trained_on(data, synthetic.config("mmformer", dropout=0.0, **options))
    assert isinstance(method, MMFormer)
    with torch.no_grad():  # Initial positions are zero and would have no effect.
        method.position_MPH.normal_(0, 0.5, generator=torch.Generator().manual_seed(3))
    return method, data


class SlowMMFormer(Slow):
    """One sample: intra-modal transformers, zeros for masked modalities, positions, inter-modal transformer, means."""

    def sample(self, number: int, seen: list[int], fused: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits, early logits, separate logits."""
        c = self.config.common
        position = self.w("position_MPH")
        slots, separate = [], []
        for m in range(self.n_modalities):
            slot = torch.zeros(c.tokens, c.hidden, dtype=torch.float64)
            if m in seen:
                z = self.encode(number, m)
                separate.append(self.linear(z.mean(0), "separate_head"))
                if m in fused:
                    slot = z + position[m]
                    for k in range(self.options.intra_layers):
                        slot = self.block(slot, f"intra.{m}.{k}")
            slots.append(slot)
        early = self.linear(torch.cat([s.mean(0) for s in slots]), "early_head")
        x = torch.cat([s + position[m] for m, s in enumerate(slots)])
        keys = None
        if self.options.missing == "no_key":
            keys = torch.tensor([m in fused for m in range(self.n_modalities) for _ in range(c.tokens)])
        for k in range(c.fusion_layers):
            x = self.block(x, f"inter.{k}", keys)
        means = [x[m * c.tokens : (m + 1) * c.tokens].mean(0) for m in range(self.n_modalities)]
        if self.options.missing == "no_key":
            means = [v if m in fused else torch.zeros_like(v) for m, v in enumerate(means)]
        return self.linear(torch.cat(means), "head"), early, separate


@pytest.mark.parametrize("options", [{}, {"missing": "no_key", "fusion_layers": 2, "intra_layers": 2}])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_losses_and_gradients_equal_the_slow_reference(options: dict[str, object], training: bool) -> None:
    method, data = made(**options)
    method.train(training)
    batch = data.batch(np.arange(12), "epoch 0")
    kept = method._kept(batch)
    assert (kept != batch.observed).any() == training
    slow = SlowMMFormer(method, data)
    logits, early, separate = [], [], torch.zeros((), dtype=torch.float64)
    for b in range(len(batch)):
        out, before, own = slow.sample(int(batch.index[b]), observed(batch, b), np.flatnonzero(kept[b]).tolist())
        logits.append(out)
        early.append(before)
        separate = separate + sum(F.cross_entropy(v, batch.label[b]) for v in own)
    losses = {"separate": separate / len(batch), "early": F.cross_entropy(torch.stack(early), batch.label)}
    require_equal(method, batch, slow, torch.stack(logits), losses if training else None)


def test_a_missing_modality_is_its_position_after_the_intra_modal_transformer() -> None:
    method, data = made()
    batch = data.batch(np.flatnonzero(~data.observed[:, 1]), "x")
    x, _ = method.eval()._intra(batch, batch.observed)
    assert (x[:, 1] == 0).all()
    before = method(batch).logits
    with torch.no_grad():
        for p in (*method.intra[1].parameters(), *method.encoders[1].parameters()):
            p.add_(1.0)
    assert torch.equal(method(batch).logits, before)
    with torch.no_grad():
        method.position_MPH[1] += torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    assert ((method(batch).logits - before).abs().amax(1) > 1e-5).all()


def test_a_masked_modality_has_no_influence() -> None:
    method, data = made(missing="no_key")
    batch = data.batch(np.flatnonzero(~data.observed[:, 1]), "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        method.position_MPH[1] += torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
        method.head.weight[:, 16:32] += 1.0
    torch.testing.assert_close(method(batch).logits, before)


def test_the_separate_loss_includes_exactly_the_observed_modalities() -> None:
    """The published code also includes missing modalities."""
    method, data = made(train_mask="uniform")
    batch = data.batch(np.flatnonzero(~data.observed[:, 0] & data.observed[:, 1]), "x")
    out = method.train()(batch)
    out.losses["separate"].backward()
    assert all(p.grad is None for p in method.encoders[0].parameters())
    assert method.encoders[1].tokens.linear.weight.grad.abs().sum() > 0
    # Masked modalities are observed, so their encoders are still trained.
    hidden = batch.observed[:, 1] & ~method._kept(batch)[:, 1]
    assert hidden.any()
    alone = data.batch(batch.index[hidden], "x")
    method.zero_grad()
    method(alone).losses["separate"].backward()
    assert method.encoders[1].tokens.linear.weight.grad.abs().sum() > 0


def test_the_input_of_the_head_is_ordered_by_modality() -> None:
    """The published code regroups tokens so that a channel block contains consecutive tokens of one modality."""
    method, data = made(np.ones((6, 3), dtype=bool), missing="zeros")
    with torch.no_grad():
        method.inter[0].attention.out.weight.zero_()
        method.inter[0].attention.out.bias.zero_()
    batch = data.batch(np.arange(6), "x")
    before = method.eval()(batch, detail=True).diagnostics["fused"].view(6, 3, 16)
    with torch.no_grad():
        method.encoders[1].tokens.linear.weight.mul_(2.0)
    after = method(batch, detail=True).diagnostics["fused"].view(6, 3, 16)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert (before[:, 1] != after[:, 1]).any(dim=1).all()


def test_every_parameter_gets_a_gradient() -> None:
    """The published code has a quarter of a million unused parameters."""
    method, data = made(train_mask="none")
    batch = data.batch(np.arange(30), "x")
    out = method.train()(batch)
    (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
    for name, p in method.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_the_losses_of_a_batch_are_means_over_samples() -> None:
    """In the published code, Dice denominators are sums over the batch."""
    method, data = made()
    batch = data.batch(np.arange(8), "x")
    whole = method.train()(batch).losses
    alone = [method(data.batch(np.array([i]), "x")).losses for i in range(8)]
    for name in ("separate", "early"):
        mean = torch.stack([a[name] for a in alone]).mean()
        torch.testing.assert_close(whole[name], mean, rtol=1e-4, atol=1e-5)


def test_class_weights_apply_to_the_auxiliary_losses() -> None:
    """Σ w · loss / Σ w over the batch, as in the main loss, with observed modalities only."""
    method, data = made(class_weight="balanced")
    plain, _ = made()
    data.label[data.rows("train")[::2]] = 0
    method.prepare(data, data.rows("train"))
    weight = data.class_weight(data.rows("train"), "balanced")
    assert weight is not None
    batch = data.batch(np.arange(8), "x")
    whole = method.train()(batch).losses
    alone = [plain.train()(data.batch(np.array([i]), "x")).losses for i in range(8)]
    w = weight[batch.label]
    assert w.unique().numel() > 1
    for name in ("separate", "early"):
        expected = (w * torch.stack([a[name] for a in alone])).sum() / w.sum()
        torch.testing.assert_close(whole[name], expected, rtol=1e-4, atol=1e-5)


def test_auxiliary_losses_can_be_disabled_with_their_heads() -> None:
    method, data = made(separate=0.0, early=0.0)
    batch: Batch = data.batch(np.arange(8), "x")
    assert method.train()(batch).losses == {}
    assert not [n for n, _ in method.named_parameters() if n.startswith(("separate", "early"))]
    assert method.eval()(batch).losses == {}


def test_numbers_of_parameters() -> None:
    """0.80 M and 1.00 M; with the published ratio of 8: 1.33 M and 1.66 M."""
    sizes = [synthetic.size_at_128("mmformer", m, **o) for o in ({}, {"mlp_ratio": 8}) for m in (3, 4)]
    assert [round(n / 1e6, 2) for n in sizes] == [0.80, 1.00, 1.33, 1.66]
