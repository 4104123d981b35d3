"""Flex-MoE compared with a slow float64 reference; its properties; faults of the published code."""

from __future__ import annotations

from itertools import combinations as choose

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Data
from moe_retriever.methods.flexmoe import BankUse, FlexMoE, combinations
from moe_retriever.training.loop import batches
from moe_retriever.training.predict import predict
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow import Slow, balance, observed, require_equal

MASKS = synthetic.random_masks(60, 3, 4, p=0.4)
SMALL = {"n_experts": 9, "expert_ffn": 20, "top_k": 3}


def made(masks: np.ndarray = MASKS, **options: object) -> tuple[FlexMoE, Data]:
    data = synthetic.make(masks, n_classes=3)
    method = synthetic.trained_on(data, synthetic.config("flexmoe", **{"dropout": 0.0, **SMALL, **options}))
    assert isinstance(method, FlexMoE)
    with torch.no_grad():
        method.position_MPH.normal_(0, 0.5, generator=torch.Generator().manual_seed(3))
    return method, data


class SlowFlexMoE(Slow):
    """One sample: bank rows for missing modalities, attention, experts token by token, means per modality."""

    def __init__(self, method: FlexMoE, data: Data):
        super().__init__(method, data)
        n = self.n_modalities
        self.n_experts = method.n_experts
        # All modalities first, then by decreasing size.
        self.order = [frozenset(c) for k in range(n, 0, -1) for c in choose(range(n), k)]
        if n <= 5:
            self.number = {c: i for i, c in enumerate(map(frozenset, map(np.flatnonzero, combinations(n))))}
            assert set(self.number) == set(self.order)
            assert [len(c) for c in self.number] == [len(c) for c in self.order]
        train = data.observed[data.rows("train")]
        self.seen = {frozenset(np.flatnonzero(row).tolist()) for row in train}

    def stand_in(self, seen: list[int], m: int) -> Tensor:
        bank, mc = self.w("bank_KMPH"), frozenset(seen)
        zero = torch.zeros_like(bank[0, 0])
        if self.n_modalities > 5:
            missing = set(range(self.n_modalities)) - mc
            met = [j for j in missing if any(j not in c and m not in c for c in self.seen)]
            return sum((bank[j, m] for j in sorted(met)), zero)
        if mc in self.seen:
            return bank[self.number[mc], m]
        able = [c for c in self.seen if m not in c]
        most = max((len(c & mc) for c in able), default=0)
        rows = [bank[self.number[c], m] for c in able if len(c & mc) == most]
        return torch.stack(rows).mean(0) if rows else zero

    def target(self, seen: list[int]) -> Tensor:
        t = torch.zeros(self.n_experts, dtype=torch.float64)
        missing = [m for m in range(self.n_modalities) if m not in seen]
        if self.n_modalities <= 5:
            t[self.number[frozenset(seen)]] = 1
        else:
            t[[1 + m for m in missing]] = 1 / len(missing)
        return t

    def sample(self, number: int, seen: list[int]) -> tuple[Tensor, list[list[Tensor]], list[list[Tensor]]]:
        """Logits, and router logits and weights of each token per layer."""
        c = self.config.common
        slots = [self.encode(number, m) if m in seen else self.stand_in(seen, m) for m in range(self.n_modalities)]
        x = (torch.stack(slots) + self.w("position_MPH")).flatten(0, 1)
        all_logits, all_weights = [], []
        for k in range(c.fusion_layers):
            mixed = self.attention(self.norm(x, f"blocks.{k}.norm_attention"), f"blocks.{k}.attention")
            x = 2 * mixed if c.fusion_block == "code" else x + mixed
            logits, weights, rows = [], [], []
            for token in self.norm(x, f"blocks.{k}.norm_ffn"):
                logits.append(self.w(f"blocks.{k}.router.weight") @ token)
                y, weight = self.mixture(token, logits[-1], self.options.top_k, f"blocks.{k}.experts")
                rows.append(y)
                weights.append(weight)
            x = x + torch.stack(rows)
            all_logits.append(logits)
            all_weights.append(weights)
        means = [x[m * c.tokens : (m + 1) * c.tokens].mean(0) for m in range(self.n_modalities)]
        return self.linear(torch.cat(means), "head"), all_logits, all_weights


CASES: list[tuple[int, dict[str, object]]] = [
    (3, {}),
    (3, {"fusion_layers": 2, "fusion_block": "code"}),
    (1, {}),
    (6, {}),
]


@pytest.mark.parametrize(("n_modalities", "options"), CASES)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_losses_and_gradients_equal_the_slow_reference(
    n_modalities: int, options: dict[str, object], training: bool
) -> None:
    masks = synthetic.random_masks(50, n_modalities, 4, p=0.2)
    masks[:3] = True
    method, data = made(masks, noisy_gate=False, bank_std=0.5, **options)
    method.train(training)
    batch = data.batch(np.arange(12) if training else data.rows("test"), "x")
    slow = SlowFlexMoE(method, data)
    seen = [observed(batch, b) for b in range(len(batch))]
    out = [slow.sample(int(i), s) for i, s in zip(batch.index, seen, strict=True)]
    expected = torch.stack([v for v, _, _ in out])
    full = [len(s) == n_modalities for s in seen]
    balances, pulls = [], []
    for k in range(method.config.common.fusion_layers):
        weights = [[w for o, f in zip(out, full, strict=True) if f == is_full for w in o[2][k]] for is_full in (1, 0)]
        value = balance(weights[0])
        balances.append(value + balance([w[1:] for w in weights[1]]) if weights[1] else value)
        terms = [
            F.cross_entropy(z, slow.target(s))
            for s, f, o in zip(seen, full, out, strict=True)
            if not f
            for z in o[1][k]
        ]
        pulls.append(sum(terms) / len(terms) if terms else None)
    losses = {"balance": 0.01 * torch.stack(balances).mean()}
    if pulls[0] is not None:
        losses["specialise"] = 0.01 * torch.stack(pulls).mean()
    assert ("specialise" in losses) == (n_modalities > 1)
    require_equal(method, batch, slow, expected, losses if training else None)


# The bank


def test_a_missing_modality_gets_the_bank_row_of_its_combination() -> None:
    method, data = made()
    rows = np.flatnonzero(data.observed[:, 0] & ~data.observed[:, 2])
    batch = data.batch(rows, "x")
    F.cross_entropy(method.train()(batch).logits, batch.label).backward()
    touched = method.bank_KMPH.grad.abs().sum(dim=(2, 3)) > 0
    wanted = torch.zeros_like(touched)
    for number, members in enumerate(combinations(3)):
        if (batch.observed == members).all(axis=1).any():
            wanted[number, ~torch.from_numpy(members)] = True
    assert torch.equal(touched, wanted)
    assert method.encoders[2].inner.weight.grad is None


def lacking(combination: tuple[int, ...]) -> np.ndarray:
    """Masks of three modalities; test samples have a combination without training samples."""
    masks = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 0]] * 15, dtype=bool)
    masks[40:] = False
    masks[40:, list(combination)] = True
    return masks


def test_an_unseen_combination_uses_those_with_the_largest_overlap_and_is_counted() -> None:
    method, data = made(lacking((0,)))
    row = {tuple(np.flatnonzero(m)): i for i, m in enumerate(combinations(3))}
    batch = data.batch(data.rows("test"), "evaluation")
    missing = torch.from_numpy(~batch.observed)
    stand_in = method.eval()._stand_ins(batch, missing)
    # Combinations without 1: {0, 2} shares 0. Combinations without 2: {0, 1} shares 0, {1} shares nothing.
    torch.testing.assert_close(stand_in[0, 1], method.bank_KMPH[row[0, 2], 1])
    torch.testing.assert_close(stand_in[0, 2], method.bank_KMPH[row[0, 1], 2])
    found = predict(method, data, data.rows("test"), detail=True).support
    assert found == {"missing_slots": 2.0 * len(batch), "unseen_combination": 1.0, "target_never_missing": 0.0}
    assert predict(method, data, data.rows("train"), detail=True).support["unseen_combination"] == 0.0


def test_a_modality_that_no_training_sample_lacks_is_zero_and_counted() -> None:
    masks = np.ones((60, 2), dtype=bool)
    masks[:20, 1] = False
    masks[40:] = [False, True]
    method, data = made(masks)
    batch = data.batch(data.rows("test"), "x")
    assert (method.eval()._stand_ins(batch, torch.from_numpy(~batch.observed))[:, 0] == 0).all()
    found = predict(method, data, data.rows("test"), detail=True).support
    assert found["target_never_missing"] == found["unseen_combination"] == 1.0


def test_seen_combinations_are_saved_with_the_weights() -> None:
    method, data = made(lacking((0,)))
    batch = data.batch(data.rows("test"), "x")
    other = FlexMoE.create(data.spec, method.config)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.eval()(batch).logits, method.eval()(batch).logits)
    assert (method.eval()(batch, detail=True).diagnostics["support"].unseen).all()


def test_modality_dropping_adds_subsets_to_the_seen_combinations() -> None:
    method, data = made(lacking((0,)), drop_modalities=0.3)
    batch = data.batch(data.rows("test"), "x")
    use: BankUse = method.eval()(batch, detail=True).diagnostics["support"]
    assert not use.unseen.any()
    assert not method.get_buffer("seen")[0]


# Faults of the published code


@pytest.mark.parametrize("n_modalities", [1, 2, 5, 6, 16])
def test_there_are_experts_for_any_number_of_modalities(n_modalities: int) -> None:
    """The released code fails for M = 5 with 16 experts and for a single modality."""
    method, data = made(synthetic.random_masks(40, n_modalities, 0), n_experts=16)
    assert method.n_experts == {1: 16, 2: 16, 5: 31, 6: 16, 16: 17}[n_modalities]
    batch = data.batch(np.arange(24), "x")
    out = method.train()(batch)
    (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


def test_evaluation_does_not_affect_the_next_training_loss() -> None:
    """The released code adds gate losses of an evaluation to the next training loss, and its index lists grow."""
    method, data = made()
    batch = data.batch(np.arange(20), "x")
    method.noise.reset("a")
    before = method.train()(batch).losses
    assert method.eval()(data.batch(data.rows("test"), "x")).losses == {}
    method.noise.reset("a")
    after = method.train()(batch).losses
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_complete_samples_are_balanced_over_all_experts_and_not_specialised() -> None:
    """In the released code, the gate loss of a sample depends on whether its whole batch is complete."""
    method, data = made()
    full = np.flatnonzero(data.observed.all(axis=1))
    assert set(method.train()(data.batch(full, "x")).losses) == {"balance"}
    routing = method.eval().blocks[0].router(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)))
    lacks = torch.tensor([0, 1, 4, 5])
    found = method._specialise(routing, lacks, torch.eye(method.n_experts)[[1, 0, 2]], 2)
    expected = F.cross_entropy(routing.clean[[0, 1, 4, 5]], torch.tensor([1, 1, 2, 2]))
    torch.testing.assert_close(found, expected)


def test_a_large_weight_routes_each_combination_to_its_expert() -> None:
    """Preset fixed-top-1: after a few steps, the largest logit is that of the combination's expert."""
    method, data = made(preset="fixed-top-1", noisy_gate=False)
    assert method.options.specialise == 1.0
    rows = np.flatnonzero(~data.observed.all(axis=1))
    batch = data.batch(rows, "x")
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    for _ in range(40):
        out = method.train()(batch)
        optimiser.zero_grad()
        out.losses["specialise"].backward()
        optimiser.step()
    chosen: list[Tensor] = []
    handle = method.blocks[0].router.register_forward_hook(lambda *a: chosen.append(a[2].clean.argmax(1)))
    method(batch)
    handle.remove()
    wanted = method._experts_of(batch).argmax(1).repeat_interleave(6)
    assert (chosen[0] == wanted).float().mean() > 0.9


def test_the_first_epochs_start_with_complete_samples() -> None:
    method, data = made(epochs=20)
    rows = data.rows("train")
    for epoch, ordered in ((0, True), (1, True), (2, False)):
        method.begin_epoch(epoch, 20)
        shuffled = np.concatenate(batches(rows, 8, 0, epoch))
        visited = np.concatenate(batches(rows, 8, 0, epoch, lambda r: method.arrange(data, r)))
        assert sorted(visited) == sorted(rows)
        counts = data.observed[visited].sum(axis=1)
        assert bool((np.diff(counts) <= 0).all()) == ordered
        for k in (1, 2, 3):
            same = data.observed[shuffled].sum(axis=1) == k
            assert (visited[counts == k] == shuffled[same]).all()


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(UsageError, match="top_k=5"):
        made(n_experts=4, top_k=5)


def test_numbers_of_parameters() -> None:
    """1.18 M and 1.26 M, including the bank."""
    assert [round(synthetic.size_at_128("flexmoe", m) / 1e6, 2) for m in (3, 4)] == [1.18, 1.26]
