"""SimMLM compared with a slow float64 reference; the ranking loss by hand; its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Batch, Data
from moe_retriever.data.subsets import random_subsets
from moe_retriever.methods.simmlm import SimMLM
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow import Slow, observed, require_equal
from tests.moe_retriever.slow_parts import SlowParts

MASKS = synthetic.random_masks(40, 3, 4, p=0.4)


def made(masks: np.ndarray = MASKS, *, regression: bool = False, **options: object) -> tuple[SimMLM, Data]:
    data = synthetic.make(masks, n_classes=3, regression=regression)
    method = synthetic.trained_on(data, synthetic.config("simmlm", dropout=0.0, **options))
    assert isinstance(method, SimMLM)
    return method, data


def nested(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The subsets of a training step, drawn as documented."""
    few = random_subsets(batch.observed, batch.keys, 0, f"fewer {batch.stream}", "subset")
    rest = random_subsets(batch.observed & ~few, batch.keys, 0, f"more {batch.stream}", "subset")
    return few | rest, few


class SlowSimMLM(SlowParts):
    """One sample: its experts, and their mean with the weights of the gate, modality by modality."""

    def expert(self, number: int, m: int) -> Tensor:
        return self.linear(self.encode(number, m).mean(0), f"heads.{m}")

    def mixed(self, number: int, kept: list[int]) -> Tensor:
        nothing = torch.zeros(self.config.common.hidden, dtype=torch.float64)
        h = [self.encode(number, m).mean(0).detach() if m in kept else nothing for m in range(self.n_modalities)]
        score = self.linear(self.linear(torch.cat(h), "gate.0").clamp_min(0), "gate.3")
        total = sum(score[m].exp() for m in kept)
        return torch.stack([score[m].exp() / total * self.expert(number, m) for m in kept]).sum(0)


def test_predictions_equal_the_slow_reference() -> None:
    method, data = made()
    batch = data.batch(np.arange(12), "evaluation")
    slow = SlowSimMLM(method, data)
    expected = [slow.mixed(int(i), observed(batch, b)) for b, i in enumerate(batch.index)]
    require_equal(method.eval(), batch, slow, torch.stack(expected))


def test_losses_and_gradients_of_the_joint_stage_equal_the_slow_reference() -> None:
    method, data = made(ranking=0.7)
    batch = data.batch(np.arange(12), "epoch 9")
    slow = SlowSimMLM(method.train(), data)
    sets = nested(batch)
    more, fewer = (
        torch.stack([slow.mixed(int(i), np.flatnonzero(kept[b]).tolist()) for b, i in enumerate(batch.index)])
        for kept in sets
    )
    losses = [[F.cross_entropy(x[b], batch.label[b]) for b in range(12)] for x in (more, fewer)]
    gaps = [a - b for a, b in zip(*losses, strict=True)]
    assert any(g > 0 for g in gaps)
    assert any(g < 0 for g in gaps)
    ranking = 0.7 * sum(g for g in gaps if g > 0) / 12
    require_equal(method, batch, slow, more, {"fewer": sum(losses[1]) / 12, "ranking": ranking})


def test_the_first_epochs_train_each_expert_alone() -> None:
    method, data = made()
    method.begin_epoch(4, 20)
    assert not method.selectable
    batch = data.batch(np.arange(12), "epoch 4")
    slow = SlowSimMLM(method.train(), data)
    total = torch.zeros((), dtype=torch.float64)
    for m in range(3):
        have = [b for b in range(12) if batch.observed[b, m]]
        terms = [F.cross_entropy(slow.expert(int(batch.index[b]), m), batch.label[b]) for b in have]
        total = total + sum(terms) / len(terms)
    mixed = torch.stack([slow.mixed(int(i), observed(batch, b)) for b, i in enumerate(batch.index)]).detach()
    require_equal(method, batch, slow, mixed, {"independent": total})
    assert all(p.grad is None for p in method.gate.parameters())
    method.begin_epoch(5, 20)
    assert method.selectable
    assert set(method(batch).losses) == {"fewer", "ranking"}


def test_losses_of_a_regression_are_squared_errors() -> None:
    method, data = made(regression=True)
    batch = data.batch(np.arange(12), "epoch 9")
    slow = SlowSimMLM(method.train(), data)
    more, fewer = (
        torch.stack([slow.mixed(int(i), np.flatnonzero(kept[b]).tolist())[0] for b, i in enumerate(batch.index)])
        for kept in nested(batch)
    )
    out = method(batch)
    label = batch.label.double()
    torch.testing.assert_close(out.logits.double()[:, 0], more, rtol=1e-4, atol=1e-5)
    gap = ((more - label) ** 2 - (fewer - label) ** 2).clamp_min(0).mean()
    torch.testing.assert_close(out.losses["ranking"].double(), 0.2 * gap, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.losses["fewer"].double(), ((fewer - label) ** 2).mean(), rtol=1e-4, atol=1e-6)
    (method.task_loss(out.logits, batch.label) + sum(out.losses.values())).backward()
    (((more - label) ** 2).mean() + 0.2 * gap + ((fewer - label) ** 2).mean()).backward()
    slow.assert_same_gradients(method)


def test_the_ranking_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """More modalities with p = 1/4 and fewer with p = 1/2 of the true class cost log 2; the reverse costs nothing."""
    masks = np.ones((40, 2), dtype=bool)
    method, data = made(masks, ranking=1.0)
    batch = data.batch(np.arange(2), "epoch 9")
    batch.label[:] = 0
    quarter, half = (torch.tensor([p, 1 - p, 0.0]).clamp_min(1e-30).log() for p in (0.25, 0.5))
    answers = iter([torch.stack([quarter, half]), torch.stack([half, quarter])])
    monkeypatch.setattr(method, "mixture", lambda *_: next(answers))
    losses = method.train()(batch).losses
    assert float(losses["ranking"]) == pytest.approx(np.log(2) / 2, rel=1e-5)
    assert float(losses["fewer"]) == pytest.approx((np.log(2) + np.log(4)) / 2, rel=1e-5)


def test_the_subsets_are_nested_and_usually_different() -> None:
    data = synthetic.make(synthetic.random_masks(400, 4, 1))
    batch = data.batch(np.arange(400), "epoch 9")
    more, fewer = nested(batch)
    assert (batch.observed >= more).all()
    assert (more >= fewer).all()
    assert fewer.any(axis=1).all()
    # They are equal only if all n observed modalities are drawn first, with probability 1 / (2^n − 1).
    n = batch.observed.sum(axis=1)
    equal = (more == fewer).all(axis=1)
    assert equal[n == 1].all()
    for k in (2, 3, 4):
        p, size = 1 / (2**k - 1), (n == k).sum()
        assert abs(equal[n == k].mean() - p) < 4 * np.sqrt(p * (1 - p) / size)


def test_the_gate_does_not_train_the_encoders() -> None:
    method, data = made(np.ones((40, 3), dtype=bool))
    with torch.no_grad():
        for head in method.heads:
            head.weight.zero_()  # No gradient through the experts.
            head.bias.normal_(generator=torch.Generator().manual_seed(1))
    batch = data.batch(np.arange(8), "epoch 9")
    F.cross_entropy(method.train()(batch).logits, batch.label).backward()
    assert method.gate[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in method.encoders.parameters())


def test_missing_modalities_have_no_weight() -> None:
    method, data = made()
    rows = np.flatnonzero(~data.observed[:, 1])
    before = method.eval()(data.batch(rows, "x")).logits
    with torch.no_grad():
        method.heads[1].bias += 100.0
    assert torch.equal(method(data.batch(rows, "x")).logits, before)


def test_a_sample_with_one_modality_gets_the_answer_of_its_expert() -> None:
    method, data = made()
    rows = np.flatnonzero(data.observed.sum(axis=1) == 1)
    slow = Slow(method.eval(), data)
    for i, logits in zip(rows, method(data.batch(rows, "x")).logits, strict=True):
        m = int(data.observed[i].argmax())
        expected = slow.linear(slow.encode(int(i), m).mean(0), f"heads.{m}")
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)


def test_class_weights_apply_to_all_losses() -> None:
    method, data = made(class_weight="balanced", ranking=1.0)
    data.label[data.rows("train")[::2]] = 0
    method.prepare(data, data.rows("train"))
    batch = data.batch(np.arange(8), "epoch 9")
    whole = method.train()(batch).losses
    alone = [method(data.batch(np.array([i]), "epoch 9")).losses for i in range(8)]
    w = method.class_weight[batch.label]
    assert w.unique().numel() > 1
    for name, value in whole.items():
        # Weights cancel out in a batch of one sample.
        expected = (w * torch.stack([a[name] for a in alone])).sum() / w.sum()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_invalid_options_are_refused() -> None:
    with pytest.raises(UsageError, match="ranking"):
        made(ranking=-1.0)
    with pytest.raises(UsageError, match="leaves no epochs for the gate"):
        made(independent=10.0, epochs=10)
