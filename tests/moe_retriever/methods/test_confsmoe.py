"""ConfSMoE compared with a slow float64 reference; its properties; faults of the published code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Data
from moe_retriever.data.subsets import with_hidden
from moe_retriever.data.tables import VectorTable
from moe_retriever.methods.confsmoe import ConfSMoE
from moe_retriever.training.loop import make_optimiser, train_epoch
from moe_retriever.training.predict import predict
from mrpipe import keyed
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow import Slow, observed, require_equal

MASKS = synthetic.random_masks(60, 3, 4, p=0.4)
SMALL = {"n_experts": 5, "expert_ffn": 20, "top_k": 2, "pool": 3, "router_noise": 0.0, "dropout": 0.0}


def made(masks: np.ndarray = MASKS, *, regression: bool = False, **options: object) -> tuple[ConfSMoE, Data]:
    data = synthetic.make(masks, n_classes=3, regression=regression)
    method = synthetic.trained_on(data, synthetic.config("confsmoe", **{**SMALL, **options}))
    assert isinstance(method, ConfSMoE)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        method.position_MPH.normal_(0, 0.5, generator=g)
        method.router.weight.mul_(8)  # Clear differences between experts, so that no choice depends on rounding.
        method.query.weight.mul_(6)
    return method, data


class SlowConfSMoE(Slow):
    """One sample: draws one by one, attention, experts token by token, sparse attention query by query."""

    def pooled(self, number: int, m: int, stream: str) -> Tensor:
        names, train = self.data.spec.names, self.data.rows("train").tolist()
        having = [i for i in train if self.data.observed[i, m] and i != number]
        if not having:
            return torch.zeros_like(self.w("position_MPH")[m])
        key = self.data.keys[[number]]
        purpose = f"confsmoe pool {names[m]} {stream} draw 0"
        u = keyed.uniform(key, self.config.seed, purpose, self.options.pool)[0]
        return sum(self.encode(having[math.floor(x * len(having))], m).detach() for x in u) / len(u)

    def sample(self, number: int, seen: list[int], stream: str) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Logits, and the output, its confidence and the expected confidence of each visit."""
        c, o = self.config.common, self.options
        slots = [
            self.encode(number, m) if m in seen else self.pooled(number, m, stream) for m in range(self.n_modalities)
        ]
        x = (torch.stack(slots) + self.w("position_MPH")).flatten(0, 1)
        x = x + self.attention(self.norm(x, "norm_attention"), "attention")
        h = self.norm(x, "norm_experts")
        known = [m * c.tokens + p for m in seen for p in range(c.tokens)]
        visits: dict[tuple[int, int], tuple[int, Tensor, Tensor, Tensor]] = {}
        for t in known:
            logits = self.linear(h[t], "router")
            for k, e in enumerate(logits.topk(o.top_k).indices.tolist()):
                y = self.expert(h[t], e, "experts")
                z = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt()
                confidence = (self.w("confidence.weight")[e] @ z + self.w("confidence.bias")[e]).sigmoid()
                visits[t, k] = e, y, confidence, logits[e].sigmoid()
        if o.level == "expert":
            of = {e: [v[2] for v in visits.values() if v[0] == e] for e in {v[0] for v in visits.values()}}
            visits = {p: (e, y, sum(of[e]) / len(of[e]), r) for p, (e, y, _, r) in visits.items()}
        rows = []
        for t in range(len(x)):
            if t in known:
                update = sum(visits[t, k][2] * visits[t, k][1] for k in range(o.top_k))
            else:
                update = sum(self.attended(h[t], [visits[n, k][1] for n in known]) for k in range(o.top_k))
            rows.append(self.norm(x[t] + update, "norm_out"))
        means = [torch.stack(rows[m * c.tokens : (m + 1) * c.tokens]).mean(0) for m in range(self.n_modalities)]
        logits = self.linear(self.norm(self.linear(torch.cat(means), "inner"), "norm_head"), "head")
        return logits, [v[1:] for v in visits.values()]

    def attended(self, token: Tensor, outputs: list[Tensor]) -> Tensor:
        query, keys = self.linear(token, "query"), [self.linear(y, "key") for y in outputs]
        weight = torch.stack([query @ k / math.sqrt(len(token)) for k in keys]).softmax(0)
        best = weight.topk(math.ceil(self.options.keep * len(keys))).indices.tolist()
        return sum(weight[n] * keys[n] for n in best)

    def losses(self, visits: list[list[tuple[Tensor, Tensor, Tensor]]], label: Tensor) -> dict[str, Tensor]:
        opinion, error = [], []
        for of_sample, y in zip(visits, label, strict=True):
            for output, confidence, expected in of_sample:
                z = self.linear(output, "opinion")
                if self.data.spec.regression:
                    opinion.append((z[0] - y) ** 2)
                    target = torch.exp(-opinion[-1]).detach()
                else:
                    p = z.softmax(0)[y]
                    opinion.append(-p.log())
                    target = p.detach()
                error.append((confidence - target) ** 2 + (expected - target) ** 2)
        w = self.options.confidence
        return {"opinion": w * sum(opinion) / len(opinion), "confidence": w * sum(error) / len(error)}


CASES: list[tuple[int, bool, dict[str, object]]] = [
    (3, False, {}),
    (3, True, {"confidence": 0.3}),
    (3, False, {"level": "expert", "keep": 0.5}),
    (1, False, {}),
    (4, False, {"top_k": 3, "keep": 1.0}),
]


@pytest.mark.parametrize(("n_modalities", "regression", "options"), CASES)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_losses_and_gradients_equal_the_slow_reference(
    n_modalities: int, regression: bool, options: dict[str, object], training: bool
) -> None:
    method, data = made(synthetic.random_masks(40, n_modalities, 4), regression=regression, **options)
    method.train(training)
    batch = data.batch(np.arange(8) if training else data.rows("test"), "x")
    slow = SlowConfSMoE(method, data)
    out = [slow.sample(int(i), observed(batch, b), "x") for b, i in enumerate(batch.index)]
    losses = slow.losses([v for _, v in out], batch.label) if training else None
    require_equal(method, batch, slow, torch.stack([z for z, _ in out]), losses)


# First stage


def test_pools_are_training_samples_that_have_the_modality() -> None:
    """Validation and test samples never fill a slot, a sample never fills its own, and every other one may."""
    method, data = made(pool=400)
    assert method.reference is not None
    asked: list[np.ndarray] = []
    embed = method.reference.embed
    method.reference.embed = lambda m, rows, encoder: asked.append(rows) or embed(m, rows, encoder)
    train = data.rows("train")
    shown = np.ones_like(data.observed[:1])
    shown[0, 0] = False
    first = np.flatnonzero(data.observed[train].all(axis=1))[0]
    for row, excluded in (
        (train[first], first),
        (data.rows("test")[data.observed[data.rows("test")].all(axis=1)][0], -1),
    ):
        asked.clear()
        method.eval()(with_hidden(data.batch(np.array([row]), "x"), shown))
        having = np.flatnonzero(data.observed[train, 0])
        assert set(asked[0]) == set(having) - {excluded}


def test_other_splits_do_not_change_a_prediction() -> None:
    """The features of all other validation and test samples have no influence, nor has any label outside training."""
    method, data = made()
    rows = data.rows("test")
    batch = data.batch(rows[:1], "evaluation")
    before = method.eval()(batch).logits
    method.refresh()
    for m, table in enumerate(data.tables):
        assert isinstance(table, VectorTable)
        others = np.flatnonzero((data.part != 0) & data.observed[:, m] & (np.arange(len(data)) != rows[0]))
        table.x[data.row[others, m]] += 100.0
    data.label[data.part != 0] = -1
    assert torch.equal(method(data.batch(rows[:1], "evaluation")).logits, before)


def test_draws_depend_on_sample_seed_and_epoch_only() -> None:
    """The released code draws the pool from the global generator, so each evaluation predicts something else."""
    method, data = made()
    rows = np.flatnonzero(~data.observed.all(axis=1))
    filled = method._pooled(data.batch(rows, "epoch 1"), 0)
    assert torch.equal(method._pooled(data.batch(rows[::-1].copy(), "epoch 1"), 0).flip(0), filled)
    assert not torch.equal(method._pooled(data.batch(rows, "epoch 2"), 0), filled)
    assert (filled[torch.from_numpy(data.observed[rows])] == 0).all()


def test_encoders_process_single_observed_entries_only() -> None:
    """In the released code, an encoder processes the mean of the raw features of ten samples."""
    method, data = made()
    seen: list[set[tuple[float, ...]]] = [set(), set(), set()]
    for m, encoder in enumerate(method.encoders):
        encoder.register_forward_pre_hook(lambda _, x, m=m: seen[m].update(map(tuple, x[0].tolist())))
    method.train()(data.batch(data.rows("train"), "x"))
    for rows, table in zip(seen, data.tables, strict=True):
        assert isinstance(table, VectorTable)
        assert rows
        assert rows <= set(map(tuple, table.x.tolist()))


@pytest.mark.parametrize("holders", [0, 1])
def test_a_modality_that_no_other_training_sample_has_starts_as_zeros(holders: int) -> None:
    masks = np.ones((40, 2), dtype=bool)
    masks[holders:, 1] = False
    method, data = made(masks)
    hidden = with_hidden(data.batch(np.arange(3), "x"), np.array([[True, False]] * 3))
    filled = method._pooled(hidden, 0)[:, 1]
    assert (filled[0] == 0).all()
    assert bool((filled[1:] != 0).any()) == bool(holders)
    assert method.eval()(hidden).logits.isfinite().all()


# Second stage


def test_absent_modalities_get_no_attention() -> None:
    """In the released code, absent modalities have zero keys plus a bias, and take part in the softmax."""
    method, _ = made()
    g = torch.Generator().manual_seed(0)
    h, y = torch.randn(2, 6, 16, generator=g), torch.randn(2, 6, 2, 16, generator=g)
    known = torch.tensor([[True, True, False, False, False, False], [True] * 4 + [False] * 2])
    with torch.no_grad():
        before = method._imputed(h, y, known)
        y[~known] = 1e3
        assert torch.equal(method._imputed(h, y, known), before)
        # A single kept token of two still contributes, though a quarter of two is less than one.
        assert (before[0].abs().sum(dim=1) > 0).all()


def test_a_fill_does_not_depend_on_the_first_sample_of_the_batch() -> None:
    """In the released code, queries are zero unless the first incomplete sample of the batch lacks the modality."""
    method, data = made()
    lacks = np.flatnonzero(~data.observed[:, 0])[:2]
    has = np.flatnonzero(data.observed[:, 0] & ~data.observed[:, 1])[:1]
    with torch.no_grad():
        first = method.eval()(data.batch(np.concatenate([lacks, has]), "x")).logits[:2]
        last = method(data.batch(np.concatenate([has, lacks]), "x")).logits[1:]
    torch.testing.assert_close(first, last, rtol=1e-5, atol=1e-6)


# Confidence


@pytest.mark.parametrize("level", ["token", "expert"])
def test_confidences_do_not_depend_on_the_batch(level: str) -> None:
    """The released expert-level confidence is a mean over all tokens of the batch."""
    method, data = made(level=level)
    rows = data.rows("test")
    with torch.no_grad():
        whole = method.eval()(data.batch(rows, "x")).logits
        alone = torch.cat([method(data.batch(rows[[i]], "x")).logits for i in range(len(rows))])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


def test_labels_are_not_read_in_evaluation() -> None:
    method, data = made()
    rows = data.rows("test")
    before = method.eval()(data.batch(rows, "x"))
    data.label[rows] = -1
    after = method(data.batch(rows, "x"))
    assert torch.equal(before.logits, after.logits)
    assert before.losses == after.losses == {}


def test_every_parameter_gets_a_gradient() -> None:
    """The router of the released code has none: its weights are discarded and its choices have no gradient."""
    method, data = made(top_k=5)
    batch = data.batch(data.rows("train"), "x")
    out = method.train()(batch)
    (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_targets_of_confidences_are_not_trained_towards_the_confidences() -> None:
    """The released classifier of the experts is trained by nothing but the error of the confidences."""
    method, data = made()
    batch = data.batch(data.rows("train"), "x")
    losses = method.train()(batch).losses
    losses["confidence"].backward(retain_graph=True)
    assert method.opinion.weight.grad is None
    losses["opinion"].backward()
    assert method.opinion.weight.grad.any()


def test_missing_slots_do_not_change_the_losses() -> None:
    """The released confidence loss averages over zeros of missing slots, so it shrinks with the missing rate."""
    method, data = made()
    g = torch.Generator().manual_seed(0)
    y, label = torch.randn(6, 2, 16, generator=g), torch.tensor([0, 1, 2, 0, 1, 2])
    confidence, expected = torch.rand(6, 2, generator=g), torch.rand(6, 2, generator=g)
    batch = data.batch(np.flatnonzero(~data.observed.all(axis=1)), "x")
    visits: list[Tensor] = []
    visit = method._losses
    method._losses = lambda y, *rest: visits.append(y) or visit(y, *rest)
    method.train()(batch)
    assert len(visits[0]) == batch.observed.sum() * 2  # two tokens per observed modality, none of a missing one
    losses = visit(y, confidence, expected, label)
    p = method.opinion(y).softmax(2).gather(2, label[:, None, None].expand(-1, 2, 1)).squeeze(2)
    torch.testing.assert_close(losses["confidence"], ((confidence - p) ** 2 + (expected - p) ** 2).mean())


def test_confidences_become_the_probability_of_the_true_label() -> None:
    """After training, both confidences are near the mean probability that experts give to labels of new samples."""
    data = synthetic.make(synthetic.random_masks(200, 2, 1, p=0.3), n_classes=2, strength=1.0)
    method = synthetic.trained_on(data, synthetic.config("confsmoe", **{**SMALL, "router_noise": 1.0, "lr": 5e-3}))
    assert isinstance(method, ConfSMoE)
    optimiser = make_optimiser(method)
    for epoch in range(6):
        train_epoch(method, data, data.rows("train"), optimiser, epoch)
    seen: list[tuple[Tensor, ...]] = []
    visit = method._visit
    method._visit = lambda *x: seen.append((*visit(*x), x[1])) or seen[-1][:3]
    batch = data.batch(data.rows("test"), "evaluation")
    with torch.no_grad():
        method.eval()(batch)
        y, confidence, expected, sample = seen[0]
        label = batch.label[sample][:, None, None].expand(-1, 2, 1)
        truth = method.opinion(y).softmax(2).gather(2, label).mean()
    assert truth > 0.6
    torch.testing.assert_close(confidence.mean(), truth, rtol=0, atol=0.1)
    torch.testing.assert_close(expected.mean(), truth, rtol=0, atol=0.1)


def test_noise_selects_experts_in_training_only() -> None:
    method, data = made(router_noise=5.0)
    batch = data.batch(np.arange(10), "x")
    with torch.no_grad():
        assert torch.equal(method.eval()(batch).logits, method(batch).logits)
        assert not torch.equal(method.train()(batch).logits, method(batch).logits)


@pytest.mark.parametrize("n_experts", [1, 3])
def test_any_number_of_experts_per_token_is_supported(n_experts: int) -> None:
    """The released code fails unless there are two experts per token."""
    method, data = made(n_experts=n_experts, top_k=n_experts)
    assert np.isfinite(predict(method, data, data.rows("test")).logits).all()


def test_predictions_from_a_checkpoint_need_no_training_store() -> None:
    method, data = made()
    batch = data.batch(data.rows("test"), "x")
    before = method.eval()(batch).logits
    other = ConfSMoE.create(data.spec, method.config)
    other.load_state_dict(method.state_dict())
    other.eval().load_reference(method.reference_state())
    torch.testing.assert_close(other(batch).logits, before)
    n = sum(int(data.observed[data.rows("train"), m].sum()) for m in range(3))
    assert method.reference_bytes() == n * 2 * 16 * 4


def test_invalid_options_are_rejected() -> None:
    for name, value in (("top_k", 6), ("pool", 0), ("keep", 0.0), ("router_noise", -1.0), ("confidence", 0.0)):
        with pytest.raises(UsageError, match=name):
            made(**{name: value})


def test_numbers_of_parameters() -> None:
    assert [round(synthetic.size_at_128("confsmoe", m) / 1e6, 3) for m in (3, 4)] == [0.422, 0.441]
