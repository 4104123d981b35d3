"""M3Care compared with a slow float64 reference over pairs of samples; faults of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.config import make_config
from moe_retriever.data.load import Data
from moe_retriever.methods.m3care import M3Care
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow_parts import (
    SlowParts,
    assert_company_and_order_do_not_matter,
    parameters_without_encoders,
)

MASKS = synthetic.random_masks(40, 3, 4, p=0.45)


def made(masks: np.ndarray = MASKS, *, steps: int = 1, **options: object) -> tuple[M3Care, Data]:
    """A method whose running statistics were updated with some batches."""
    data = synthetic.make(masks)
    method = synthetic.trained_on(data, synthetic.config("m3care", dropout=0.0, **{"threshold": 0.2, **options}))
    assert isinstance(method, M3Care)
    method.train()
    with torch.no_grad():
        for _ in range(steps):
            method(data.batch(data.rows("train"), "x"))
    return method, data


class Slow(SlowParts):
    """The equations of M3Care for pairs of samples."""

    def vectors(self, samples: list[int]) -> list[dict[int, Tensor]]:
        have = self.data.observed
        return [{m: self.encode(i, m).mean(0) for m in np.flatnonzero(have[i]).tolist()} for i in samples]

    def batch_norm(self, rows: list[Tensor], name: str, training: bool) -> list[Tensor]:
        x = torch.stack(rows)
        mean, var = self.w(f"{name}.running_mean"), self.w(f"{name}.running_var")
        if training and len(rows) > 1:
            mean = x.mean(0)
            var = (x - mean).pow(2).mean(0)
        return list((x - mean) / (var + 1e-5).sqrt() * self.w(f"{name}.weight") + self.w(f"{name}.bias"))

    def phi(self, h: Tensor, m: int) -> Tensor:
        x = self.linear(h, f"graph.kernels.{m}.phi.0").relu()
        return self.linear(self.linear(x, f"graph.kernels.{m}.phi.2").relu(), f"graph.kernels.{m}.phi.4")

    def views(self, h: list[dict[int, Tensor]], training: bool) -> list[dict[int, tuple[Tensor, Tensor]]]:
        out: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in h]
        for m in range(3):
            having = [i for i, slots in enumerate(h) if m in slots]
            if having:
                name = f"graph.kernels.{m}"
                a = self.batch_norm([self.phi(h[i][m], m) for i in having], f"{name}.norm_phi", training)
                b = self.batch_norm([h[i][m] for i in having], f"{name}.norm_h", training)
                for i, x, y in zip(having, a, b, strict=True):
                    out[i][m] = (x, y)
        return out

    def kernel(self, a: Tensor, b: Tensor, b0: Tensor) -> Tensor:
        d = (a - b).pow(2).sum()
        return ((-d / (b0 / 2)).exp() + (-d / b0).exp() + (-d / (2 * b0)).exp()) / 3

    def similarity(self, a: dict[int, tuple[Tensor, Tensor]], b: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        """Similarity of one pair of samples."""
        common = sorted(a.keys() & b.keys())
        if not common:
            return torch.zeros((), dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for m in common:
            share = self.w(f"graph.kernels.{m}.epsilon").sigmoid()
            b0 = self.bandwidth(m)
            total = total + (1 - share) * self.kernel(a[m][0], b[m][0], b0[0])
            total = total + share * self.kernel(a[m][1], b[m][1], b0[1])
        s = total / len(common)
        tau = self.w("graph.threshold.theta").sigmoid()
        return s - tau + tau.detach() if s > tau else s * 0

    def bandwidth(self, m: int) -> Tensor:
        return self.w(f"graph.kernels.{m}.bandwidth").detach()

    def convolve(self, weighted: list[tuple[Tensor, Tensor]], name: str) -> Tensor:
        """Graph convolution: similarity-weighted mean of states, linear map, ReLU."""
        total = sum((s for s, _ in weighted), torch.zeros((), dtype=torch.float64))
        mean = torch.zeros(self.config.common.hidden, dtype=torch.float64)
        if total > 0:
            mean = sum(s * x for s, x in weighted) / total
        return self.linear(mean, name).relu()

    def mix(self, m: int, graph: Tensor, own: Tensor | None) -> Tensor:
        if own is None:
            return graph
        g = self.linear(graph, f"graph.trust_graph.{m}").sigmoid()
        w = g / (g + self.linear(own, f"graph.trust_own.{m}").sigmoid())
        return w * graph + (1 - w) * own

    def head(self, slots: list[Tensor]) -> Tensor:
        x = torch.stack(slots) + self.w("fusion.type_MH")
        x = self.headed_block(x, "fusion.blocks.0", self.config.common.heads)
        x = self.headed_block(x, "fusion.blocks.1", 1)
        x = self.norm(x, "fusion.norm").flatten()
        return self.linear(self.linear(x, "fusion.inner").relu(), "fusion.head")

    def first(self, h: list[dict[int, Tensor]], s: list[list[Tensor]], i: int, m: int) -> Tensor:
        having = [j for j in range(len(h)) if m in h[j]]
        return self.convolve([(s[i][j], h[j][m]) for j in having], f"graph.first.{m}")

    def train_logits(self, samples: list[int]) -> tuple[Tensor, Tensor]:
        """Logits and stabiliser with the samples of the batch as graph."""
        h = self.vectors(samples)
        views = self.views(h, training=True)
        s = [[self.similarity(a, b) for b in views] for a in views]
        logits = []
        for i in range(len(h)):
            slots = []
            for m in range(3):
                having = [j for j in range(len(h)) if m in h[j]]
                graph = self.convolve([(s[i][j], self.first(h, s, j, m)) for j in having], f"graph.second.{m}")
                slots.append(self.mix(m, graph, h[i].get(m)))
            logits.append(self.head(slots))
        stabiliser = torch.zeros((), dtype=torch.float64)
        for m in range(3):
            rows = [x[m] for x in h if m in x]
            a, b = torch.stack([self.phi(x, m) for x in rows]), torch.stack(rows)
            stabiliser = stabiliser + (a.pow(2).sum().sqrt() - b.pow(2).sum().sqrt()).abs()
        return torch.stack(logits), stabiliser

    def eval_logits(self, sample: int, bank: list[int]) -> Tensor:
        """One sample with its own node and the bank."""
        (mine,), h = self.vectors([sample]), self.vectors(bank)
        (my_view,), views = self.views([mine], training=False), self.views(h, training=False)
        s = [[self.similarity(a, b) for b in views] for a in views]
        mine_s = [self.similarity(my_view, b) for b in views]
        one = torch.ones((), dtype=torch.float64)
        slots = []
        for m in range(3):
            having = [j for j in range(len(h)) if m in h[j]]
            own = [(one, mine[m])] if m in mine else []
            first = self.convolve([(mine_s[j], h[j][m]) for j in having] + own, f"graph.first.{m}")
            states = [(mine_s[j], self.first(h, s, j, m)) for j in having]
            own = [(one, first)] if m in mine else []
            slots.append(self.mix(m, self.convolve(states + own, f"graph.second.{m}"), mine.get(m)))
        return self.head(slots)


def test_training_and_its_gradients_equal_the_slow_reference() -> None:
    method, data = made(stabiliser=0.01)
    rows = data.rows("train")[:14]
    batch = data.batch(rows, "x")
    slow = Slow(method, data)
    out = method.train()(batch)
    # The running mean of the bandwidth includes the update of the step.
    for m in range(3):
        slow.weights[f"graph.kernels.{m}.bandwidth"] = method.graph.kernels[m].bandwidth.double()
    logits, stabiliser = slow.train_logits(rows.tolist())
    torch.testing.assert_close(out.logits.double(), logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.losses["stabiliser"].double(), 0.01 * stabiliser, rtol=1e-4, atol=1e-6)
    (F.cross_entropy(out.logits, batch.label) + out.losses["stabiliser"]).backward()
    (F.cross_entropy(logits, batch.label) + 0.01 * stabiliser).backward()
    assert slow.weights["graph.threshold.theta"].grad.abs() > 0
    slow.assert_same_gradients(method)


def test_evaluation_equals_the_slow_reference_with_training_samples_as_neighbours() -> None:
    method, data = made()
    rows = data.rows("test")
    found = method.eval()(data.batch(rows, "x")).logits
    slow = Slow(method, data)
    with torch.no_grad():
        expected = torch.stack([slow.eval_logits(i, data.rows("train").tolist()) for i in rows.tolist()])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_bandwidth_is_the_running_mean_over_observed_pairs_and_frozen_in_evaluation() -> None:
    method, data = made()
    kernel = method.graph.kernels[1]
    rows = data.rows("train")
    h = torch.stack([Slow(method, data).encode(i, 1).mean(0) for i in rows[data.observed[rows, 1]].tolist()])
    normed = kernel.train().norm_h(h.float().detach()).double()
    pairs = [(a - b).pow(2).sum() for i, a in enumerate(normed) for j, b in enumerate(normed) if i != j]
    torch.testing.assert_close(kernel.bandwidth[1].double(), torch.stack(pairs).mean(), rtol=1e-4, atol=1e-5)
    before = kernel.bandwidth.clone()
    method.eval()(data.batch(rows, "x"))
    assert torch.equal(kernel.bandwidth, before)


def test_an_imputation_depends_on_its_neighbours() -> None:
    """In the released code, masking rows and columns makes all imputations equal to the constant act(bias)."""
    method, data = made()
    rows = data.rows("train")
    batch = data.batch(rows, "x")
    with torch.no_grad():
        h = method.encode_slots(batch).mean(2)
        have, observed = batch.observed, torch.from_numpy(batch.observed)
        views, _ = method.eval().graph.views(h, have)
        s = method.graph.similarity(views, have, views, have)
        before = method.graph.within(h, observed, s)
        m = 1
        lacking = (~observed[:, m]).nonzero().squeeze(1)
        reachable = (s * observed[:, m]).sum(1)[lacking] > 0
        assert reachable.sum() > 1
        imputed = before[lacking[reachable], m]
        assert (imputed - imputed[0]).abs().max() > 1e-6
        changed = h.clone()
        changed[:, m] += 1.0
        moved = (method.graph.within(changed, observed, s)[lacking, m] - before[lacking, m]).abs().amax(1) > 1e-5
    assert torch.equal(moved, reachable)


def test_neighbours_without_a_modality_do_not_contribute_to_it() -> None:
    """They contribute neither zeros, as in a published correction of the mask, nor placeholder values."""
    method, data = made()
    rows = data.rows("train")
    have = data.observed[rows]
    observed = torch.from_numpy(have)
    with torch.no_grad():
        h = method.eval().encode_slots(data.batch(rows, "x")).mean(2)
        poisoned = torch.where(observed[:, :, None], h, torch.full_like(h, 1e3))
        outputs = []
        for x in (h, poisoned):
            views, _ = method.graph.views(x, have)
            outputs.append(method.graph.within(x, observed, method.graph.similarity(views, have, views, have)))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_similarities_are_a_convex_combination_of_both_kernels() -> None:
    """The released code has ((1 − σ)K1 + σ)·K2. For σ → 1 the similarity is K2, for σ → 0 it is K1."""
    method, _data = made()
    kernel = method.eval().graph.kernels[0]
    a = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    views, _ = kernel.views(a)
    with torch.no_grad():
        ends = []
        for epsilon in (-40.0, 40.0):
            kernel.epsilon.fill_(epsilon)
            ends.append(kernel(views, views))
        kernel.epsilon.fill_(0.0)
        torch.testing.assert_close(kernel(views, views), (ends[0] + ends[1]) / 2)
    assert (ends[0] - ends[1]).abs().max() > 1e-3
    torch.testing.assert_close(ends[0].diagonal(), torch.ones(6))


def test_each_modality_has_its_own_batch_norm_over_observed_rows() -> None:
    method, data = made()
    rows = data.rows("train")
    for m in range(3):
        with torch.no_grad():
            h = torch.stack([Slow(method, data).encode(i, m).mean(0) for i in rows[data.observed[rows, m]].tolist()])
        torch.testing.assert_close(
            method.graph.kernels[m].norm_h.running_mean.double(), 0.1 * h.mean(0), rtol=1e-3, atol=1e-5
        )


def test_a_batch_with_one_sample_of_a_modality_can_be_trained() -> None:
    masks = np.array([[True, False]] * 11 + [[True, True]])
    data = synthetic.make(masks, parts=(1.0, 0.0))
    method = synthetic.trained_on(data, synthetic.config("m3care"))
    out = method.train()(data.batch(data.rows("train"), "x"))
    F.cross_entropy(out.logits, torch.from_numpy(data.label)).backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_without_neighbours_the_imputation_is_a_learned_constant() -> None:
    method, _data = made(threshold=0.999)
    method.eval()
    with torch.no_grad():
        slots = method.graph.convolve(
            method.graph.second[0], torch.zeros(2, 5), torch.randn(5, 16, generator=torch.Generator())
        )
    torch.testing.assert_close(slots, method.graph.second[0].bias.relu().expand(2, -1))


@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"bank": 7}, {"tokens": 1}])
def test_predictions_do_not_depend_on_the_batch(options: dict[str, object]) -> None:
    """In the released code, the graph consists of the test mini-batch."""
    method, data = made(**options)
    with torch.no_grad():
        assert_company_and_order_do_not_matter(method, data)


def test_a_training_sample_is_not_its_own_neighbour_in_the_bank() -> None:
    method, data = made()
    batch = data.batch(data.rows("train")[:5], "x")
    s = method._without_self(batch, torch.ones(5, len(data.rows("train"))))
    assert (s.sum(1) == len(data.rows("train")) - 1).all()
    assert (s[torch.arange(5), torch.arange(5)] == 0).all()


def test_the_bank_is_drawn_once_by_sample_key() -> None:
    method, data = made(bank=9)
    rows = data.rows("train")
    drawn = method.reference._rows
    assert len(drawn) == 9
    assert set(drawn) < set(rows)
    method.prepare(data, rows[::-1].copy())
    assert method.reference._rows.tolist() == drawn.tolist()


def test_predictions_from_a_checkpoint_need_no_training_store() -> None:
    method, data = made()
    rows = data.rows("test")
    before = method.eval()(data.batch(rows, "x")).logits
    state = method.reference_state()
    other = synthetic.trained_on(data, synthetic.config("m3care", dropout=0.0, threshold=0.2))
    other.load_state_dict(method.state_dict())
    other.eval().load_reference(state)
    other.refresh()
    torch.testing.assert_close(other(data.batch(rows, "x")).logits, before)
    sizes = {k: v.numel() * v.element_size() for k, v in state.items()}
    assert sum(sizes.values()) == method.reference_bytes()


def test_new_weights_renew_the_bank() -> None:
    method, data = made()
    batch = data.batch(data.rows("test"), "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        for p in method.encoders.parameters():
            p += 0.05
    method.refresh()
    fresh = method(batch).logits
    method.refresh()
    assert torch.equal(method(batch).logits, fresh)
    assert not torch.allclose(fresh, before)


@pytest.mark.parametrize(("n_modalities", "millions"), [(3, 0.746), (4, 0.862)])
def test_numbers_of_parameters(n_modalities: int, millions: float) -> None:
    """Released: 0.78 M and 0.89 M, with one additional H × H map in each of the two attention layers."""
    data = synthetic.make(np.ones((8, n_modalities), dtype=bool), n_classes=3)
    method = M3Care.create(data.spec, make_config(M3Care, preset="paper", seed=0, overrides={}))
    found = parameters_without_encoders(method) / 1e6
    assert found == pytest.approx(millions, abs=5e-4)
    assert found + 2 * (128 * 128 + 128) / 1e6 == pytest.approx({3: 0.778, 4: 0.893}[n_modalities], abs=0.004)


def test_options_out_of_range_are_rejected() -> None:
    with pytest.raises(UsageError, match="threshold"):
        synthetic.config("m3care", threshold=1.0)
    with pytest.raises(UsageError, match="bank"):
        synthetic.config("m3care", bank=-1)
