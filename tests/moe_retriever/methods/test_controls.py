"""Transformer controls and unimodal controls: slow references, selection on validation, and class weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moe_retriever.data.load import Data
from moe_retriever.data.scores import score
from moe_retriever.methods import get
from moe_retriever.methods.base import Method
from moe_retriever.training.loop import make_optimiser, train_epoch
from moe_retriever.training.predict import predict, validate
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow_parts import SlowParts, assert_company_and_order_do_not_matter

MASKS = synthetic.random_masks(60, 3, 4, p=0.45)
FILLS = ("zero_fill", "missing_token", "attention_mask")
CONTROLS = (*FILLS, "mask_indicator", "hybrid", "late_fusion", "best_single")


def made(name: str, masks: np.ndarray = MASKS, **options: object) -> tuple[Method, Data]:
    data = synthetic.make(masks, n_classes=3)
    return synthetic.trained_on(data, synthetic.config(name, **{"dropout": 0.0, **options})), data


def train_for(method: Method, data: Data, n_epochs: int) -> None:
    optimiser = make_optimiser(method)
    for epoch in range(n_epochs):
        train_epoch(method, data, data.rows("train"), optimiser, epoch)


class Slow(SlowParts):
    def slots(self, name: str, sample: int) -> dict[int, torch.Tensor]:
        """Filled tokens (P, H) of each method."""
        have = set(np.flatnonzero(self.data.observed[sample]).tolist())
        slots = {m: self.encode(sample, m) for m in have}
        for m in set(range(3)) - have:
            if name == "zero_fill":
                slots[m] = torch.zeros_like(next(iter(slots.values())))
            elif name == "missing_token":
                slots[m] = self.w("missing_MPH")[m]
        return slots

    def heads(self, sample: int) -> dict[int, torch.Tensor]:
        have = np.flatnonzero(self.data.observed[sample]).tolist()
        return {m: self.linear(self.encode(sample, m).mean(0), f"heads.{m}") for m in have}


@pytest.mark.parametrize("name", FILLS)
def test_fills_equal_the_slow_reference(name: str) -> None:
    method, data = made(name)
    rows = data.rows("train")[:16]
    batch = data.batch(rows, "x")
    slow = Slow(method, data)
    expected = torch.stack([slow.fuse(slow.slots(name, i)) for i in rows.tolist()])
    out = method.train()(batch)
    torch.testing.assert_close(out.logits.double(), expected, rtol=1e-4, atol=1e-5)
    F.cross_entropy(out.logits, batch.label).backward()
    F.cross_entropy(expected, batch.label).backward()
    slow.assert_same_gradients(method)


def test_mask_indicator_and_hybrid_equal_the_slow_reference() -> None:
    """Outputs, loss and gradients; modalities hidden in training do not count as missing."""
    for name in ("mask_indicator", "hybrid"):
        method, data = made(name, drop_modalities=0.4)
        if name == "mask_indicator":
            torch.nn.init.normal_(method.prior_MC, generator=torch.Generator().manual_seed(1), std=0.02)
        rows = data.rows("train")[:16]
        batch = data.batch(rows, "x", hide=0.4)
        assert batch.hidden.any()
        slow, expected, fused, singles = Slow(method, data), [], [], []
        for k, i in enumerate(rows.tolist()):
            have = np.flatnonzero(batch.observed[k]).tolist()
            tokens = {m: slow.encode(i, m) for m in have}
            fused.append(slow.fuse(tokens))
            if name == "mask_indicator":
                gaps = np.flatnonzero(~data.observed[i]).tolist()
                expected.append(fused[-1] + 32 * sum((slow.w("prior_MC")[m] for m in gaps), torch.zeros(3).double()))
            else:
                singles.append({m: slow.linear(z.mean(0), f"heads.{m}") for m, z in tokens.items()})
                expected.append((fused[-1] + torch.stack(list(singles[-1].values())).mean(0)) / 2)
        logits = torch.stack(expected)
        out = method.train()(batch)
        torch.testing.assert_close(out.logits.double(), logits, rtol=1e-4, atol=1e-5)
        loss = F.cross_entropy(logits, batch.label)
        if name == "hybrid":
            loss = loss + F.cross_entropy(torch.stack(fused), batch.label)
            for m in range(3):
                own = [(s[m], batch.label[k]) for k, s in enumerate(singles) if m in s]
                loss = loss + sum(F.cross_entropy(x, y) for x, y in own) / len(own) / 3
        ours = F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())
        torch.testing.assert_close(ours.double(), loss, rtol=1e-4, atol=1e-5)
        ours.backward()
        loss.backward()
        slow.assert_same_gradients(method)


def test_mask_indicator_learns_the_label_from_the_gaps_alone() -> None:
    """In 80 steps at the smallest learning rate of a search, in which the masked transformer reaches 0.76."""
    masks = np.ones((400, 2), dtype=bool)
    masks[::2, 1] = False
    data = synthetic.make(masks, strength=0.0)
    data.label[:] = np.arange(400) % 2
    of_label = {}
    for name in ("attention_mask", "mask_indicator"):
        method = synthetic.trained_on(data, synthetic.config(name, lr=1e-4, dropout=0.0))
        train_for(method, data, 10)
        rows = data.rows("test")
        of_label[name] = predict(method, data, rows).scored[np.arange(len(rows)), data.label[rows]].mean()
    assert of_label["mask_indicator"] > 0.83 > 0.79 > of_label["attention_mask"]


@pytest.mark.parametrize("unimodal", [0.0, 1.0])
def test_late_fusion_equals_the_slow_reference(unimodal: float) -> None:
    method, data = made("late_fusion", unimodal=unimodal)
    rows = data.rows("train")[:16]
    batch = data.batch(rows, "x")
    slow = Slow(method, data)
    heads = [slow.heads(i) for i in rows.tolist()]
    expected = torch.stack([torch.stack(list(h.values())).mean(0) for h in heads])
    out = method.train()(batch)
    torch.testing.assert_close(out.logits.double(), expected, rtol=1e-4, atol=1e-5)
    loss = F.cross_entropy(expected, batch.label)
    for m in range(3):
        own = [(h[m], batch.label[k]) for k, h in enumerate(heads) if m in h]
        loss = loss + unimodal / 3 * sum(F.cross_entropy(x, y) for x, y in own) / len(own)
    torch.testing.assert_close(
        (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).double(), loss, rtol=1e-4, atol=1e-5
    )
    (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
    loss.backward()
    slow.assert_same_gradients(method)


def test_each_unimodal_head_is_trained_with_its_own_loss() -> None:
    method, data = made("best_single")
    rows = data.rows("train")[:16]
    batch = data.batch(rows, "x")
    slow = Slow(method, data)
    heads = [slow.heads(i) for i in rows.tolist()]
    loss = torch.zeros((), dtype=torch.float64)
    for m in range(3):
        own = [(h[m], batch.label[k]) for k, h in enumerate(heads) if m in h]
        loss = loss + sum(F.cross_entropy(x, y) for x, y in own) / len(own)
    out = method.train()(batch)
    (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
    loss.backward()
    slow.assert_same_gradients(method)


@pytest.mark.parametrize("name", CONTROLS)
def test_predictions_do_not_depend_on_the_batch(name: str) -> None:
    method, data = made(name)
    with torch.no_grad():
        assert_company_and_order_do_not_matter(method, data)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_hidden_modality_has_no_influence(name: str) -> None:
    method, data = made(name)
    method.eval()
    batch = data.batch(data.rows("test"), "x")
    keep = batch.observed.copy()
    several = keep.sum(axis=1) > 1
    keep[several, keep[several].argmax(axis=1)] = False
    thinned = dataclasses.replace(batch, observed=keep)
    with torch.no_grad():
        before = method(thinned).logits
        for m in range(3):
            gone = several & batch.observed[:, m] & ~keep[:, m]
            data.tables[m].x[torch.from_numpy(data.row[batch.index[gone], m])] += 100.0
        torch.testing.assert_close(method(thinned).logits, before)


def test_the_missing_token_is_learned_and_equal_for_all_samples() -> None:
    method, data = made("missing_token")
    batch = data.batch(data.rows("train"), "x")
    F.cross_entropy(method.train()(batch).logits, batch.label).backward()
    lacking = (~batch.observed).any(axis=0)
    assert ((method.missing_MPH.grad.abs().sum((1, 2)) > 0).numpy() == lacking).all()
    z, filled = method.fill(method.encode_slots(batch), torch.from_numpy(batch.observed))
    assert filled is None
    for i, m in np.argwhere(~batch.observed).tolist():
        assert torch.equal(z[i, m], method.missing_MPH[m])


def informative_second(n: int = 150) -> Data:
    """Three modalities, of which only the second is informative; a third of the samples lacks it."""
    masks = np.ones((n, 3), dtype=bool)
    masks[::3, 1] = False
    data = synthetic.make(masks, strength=3.0)
    rng = np.random.default_rng(1)
    for m in (0, 2):
        data.tables[m].x[:] = torch.from_numpy(rng.normal(size=data.tables[m].x.shape).astype(np.float32))
    return data


def test_validation_selects_the_informative_modality() -> None:
    data = informative_second()
    method = synthetic.trained_on(data, synthetic.config("best_single", dropout=0.0, lr=1e-2, epochs=8))
    optimiser = make_optimiser(method)
    for epoch in range(8):
        train_epoch(method, data, data.rows("train"), optimiser, epoch)
        validate(method, data, data.rows("val"))
    assert int(method.chosen) == 1
    found = predict(method, data, data.rows("test"))
    lacking = ~data.observed[data.rows("test"), 1]
    frequency = np.bincount(data.label[data.rows("train")]) / len(data.rows("train"))
    np.testing.assert_allclose(found.scored[lacking], np.broadcast_to(frequency, (lacking.sum(), 2)), rtol=1e-5)
    assert score(data.label[data.rows("test")][~lacking], found.scored[~lacking])["accuracy"] > 0.85


def test_the_selection_uses_validation_only_and_is_saved_with_the_weights() -> None:
    data = informative_second()
    method = synthetic.trained_on(data, synthetic.config("best_single", dropout=0.0))
    method.begin_epoch(0, 1)
    method.eval()
    scores = []
    val, test = data.rows("val"), data.rows("test")
    with torch.no_grad():
        for m in range(3):
            logits, observed = method.unimodal_logits(data.batch(val, "x"))
            p = method._answer(logits, observed, m).double().softmax(1).numpy()
            scores.append(score(data.label[val], p)["macro_f1"])
        # Independent of the test labels.
        data.label[test] = 1 - data.label[test]
        before = method(data.batch(test, "x")).logits
    assert int(method.chosen) == int(np.argmax(scores))
    other = get("best_single").create(data.spec, method.config)
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other.eval()(data.batch(test, "x")).logits, before)


def test_class_weights_apply_to_the_losses_of_single_heads() -> None:
    data = synthetic.make(np.ones((12, 2), dtype=bool), parts=(1.0, 0.0))
    data.label[:] = [0] * 9 + [1] * 3
    method = synthetic.trained_on(data, synthetic.config("late_fusion", class_weight="balanced"))
    torch.testing.assert_close(method.class_weight, torch.tensor([12 / 18, 12 / 6]))
    batch = data.batch(data.rows("train"), "x")
    logits, _ = method.unimodal_logits(batch)
    expected = F.cross_entropy(logits[:, 0], batch.label, weight=method.class_weight)
    torch.testing.assert_close(method.unimodal_losses(logits, batch)[0], expected)


@pytest.mark.parametrize("name", FILLS)
def test_sparse_feed_forward_layers_have_a_balance_loss(name: str) -> None:
    method, data = made(name, fusion_experts=4, fusion_top_k=2)
    batch = data.batch(data.rows("train"), "x")
    assert method.train()(batch).losses["fusion_balance"] > 0
    assert not method.eval()(batch).losses
