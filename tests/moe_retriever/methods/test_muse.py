"""MUSE compared with a slow float64 reference over nodes and edges; its losses; faults of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.config import make_config
from moe_retriever.data.load import Data
from moe_retriever.methods import muse
from moe_retriever.methods.muse import Muse, dropped_edges, info_nce, label_contrast
from moe_retriever.nn.dropout import Dropout
from mrpipe import keyed
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow_parts import (
    SlowParts,
    assert_company_and_order_do_not_matter,
    parameters_without_encoders,
)

MASKS = synthetic.random_masks(40, 3, 4, p=0.45)
TRAINING = {"unsupervised": 0.5, "supervised": 0.5}


def made(masks: np.ndarray = MASKS, **options: object) -> tuple[Muse, Data]:
    data = synthetic.make(masks)
    method = synthetic.trained_on(data, synthetic.config("muse", **{"dropout": 0.0, **options}))
    assert isinstance(method, Muse)
    return method, data


class Slow(SlowParts):
    """The graph network, with loops over nodes and edges."""

    def edge_features(self, samples: list[int]) -> dict[tuple[int, int], Tensor]:
        have = self.data.observed
        return {
            (n, m): self.linear(self.encode(i, m).mean(0), f"mappers.{m}")
            for n, i in enumerate(samples)
            for m in np.flatnonzero(have[i]).tolist()
        }

    def message(self, layer: int, source: Tensor, edge: Tensor) -> Tensor:
        return self.linear(torch.cat([source, edge]), f"network.layers.{layer}.message").relu()

    def update(self, layer: int, received: list[Tensor], x: Tensor) -> Tensor:
        mean = torch.stack(received).mean(0) if received else torch.zeros_like(x)
        return self.linear(torch.cat([mean, x]), f"network.layers.{layer}.update").relu()

    def network(
        self, edges: dict[tuple[int, int], Tensor], n: int, n_layers: int, frozen: list[list[Tensor]] | None = None
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """States of the samples after the last layer, and of the modality nodes after all layers."""
        patient = [torch.ones(self.config.common.hidden, dtype=torch.float64) for _ in range(n)]
        modality = list(self.w("network.modality_MH"))
        inward, outward, states = dict(edges), dict(edges), []
        for layer in range(n_layers):
            new_patient = [
                self.update(
                    layer, [self.message(layer, modality[m], e) for (i, m), e in inward.items() if i == p], patient[p]
                )
                for p in range(n)
            ]
            new_modality = [
                self.update(
                    layer, [self.message(layer, patient[i], e) for (i, m), e in outward.items() if m == k], modality[k]
                )
                for k in range(3)
            ]
            patient = new_patient
            modality = frozen[layer] if frozen is not None and layer < len(frozen) else new_modality
            states.append(modality)
            if layer < n_layers - 1:
                name = f"network.edges.{layer}"
                inward = {
                    (i, m): self.linear(torch.cat([modality[m], patient[i], e]), name).relu()
                    for (i, m), e in inward.items()
                }
                outward = {
                    (i, m): self.linear(torch.cat([patient[i], modality[m], e]), name).relu()
                    for (i, m), e in outward.items()
                }
        return patient, states

    def project(self, x: Tensor) -> Tensor:
        y = self.linear(x, "projection.0").tanh()
        return y / y.pow(2).sum().sqrt()

    def classify(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(x, "head.0").relu(), "head.3")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_training_losses_and_gradients_equal_the_slow_reference(layers: int) -> None:
    method, data = made(layers=layers)
    rows = data.rows("train")[:12]
    batch = data.batch(rows, "x")
    out = method.train()(batch)
    assert set(out.losses) == set(TRAINING)
    slow = Slow(method, data)
    edges = slow.edge_features(rows.tolist())
    patient, _ = slow.network(edges, len(rows), layers)
    logits = torch.stack([slow.classify(x) for x in patient])
    torch.testing.assert_close(out.logits.double(), logits, rtol=1e-4, atol=1e-5)

    u = keyed.uniform(batch.keys, method.config.seed, "muse edges x", 5)
    kept = dropped_edges(batch.observed, u, 0.5)
    assert kept.sum() < batch.observed.sum()
    fewer = {(i, m): e for (i, m), e in edges.items() if kept[i, m]}
    z = [slow.project(x) for x in patient]
    other = [slow.project(x) for x in slow.network(fewer, len(rows), layers)[0]]
    total = F.cross_entropy(logits, batch.label)
    unsupervised, supervised, n = 0, 0, len(rows)
    for i in range(n):
        forward = torch.stack([z[i] @ other[j] for j in range(n)]) / 0.07
        backward = torch.stack([z[j] @ other[i] for j in range(n)]) / 0.07
        unsupervised = unsupervised - (forward.log_softmax(0)[i] + backward.log_softmax(0)[i]) / (2 * n)
        for j in range(n):
            same = float(data.label[rows[i]] == data.label[rows[j]])
            for weight, cosine in ((0.5, z[i] @ z[j]), (0.25, z[i] @ other[j]), (0.25, other[i] @ z[j])):
                p = (cosine / 0.07).sigmoid()
                supervised = supervised - weight * (same * p.log() + (1 - same) * (1 - p).log()) / n**2
    torch.testing.assert_close(out.losses["unsupervised"].double(), 0.5 * unsupervised, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.losses["supervised"].double(), 0.5 * supervised, rtol=1e-4, atol=1e-6)
    (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
    (total + 0.5 * unsupervised + 0.5 * supervised).backward()
    slow.assert_same_gradients(method)


def test_the_classifier_drops_hidden_units_in_training_only() -> None:
    method, _ = made(dropout=0.5)
    x = torch.ones(1, method.config.common.hidden)
    (hidden,) = [i for i, part in enumerate(method.head) if isinstance(part, Dropout)]
    assert (method.train().head[:hidden](x) > 0).sum() > 2
    assert not torch.equal(method.head(x), method.head(x))
    assert torch.equal(method.eval().head(x), method.head(x))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_evaluation_uses_the_modality_nodes_of_the_training_set(layers: int) -> None:
    method, data = made(layers=layers, eval_batch_size=7)
    slow, train = Slow(method, data), data.rows("train").tolist()
    with torch.no_grad():
        states = slow.network(slow.edge_features(train), len(train), layers)[1]
        rows = data.rows("test")
        found = method.eval()(data.batch(rows, "x")).logits
        for k, i in enumerate(rows.tolist()):
            patient, _ = slow.network(slow.edge_features([i]), 1, layers, frozen=states[:-1])
            torch.testing.assert_close(found[k].double(), slow.classify(patient[0]), rtol=1e-4, atol=1e-5)


def test_samples_of_a_training_batch_interact_through_modality_nodes_only() -> None:
    """With one layer, samples are independent even in training; with two layers, they are not."""
    for layers in (1, 2):
        method, data = made(layers=layers, **dict.fromkeys(TRAINING, 0.0))
        rows = data.rows("train")
        together = method.train()(data.batch(rows, "x")).logits
        alone = method(data.batch(rows[:1], "x")).logits
        assert torch.allclose(together[:1], alone, atol=1e-5) == (layers == 1)


@pytest.mark.parametrize("options", [{}, {"layers": 3}, {"tokens": 1}])
def test_predictions_do_not_depend_on_the_batch(options: dict[str, object]) -> None:
    """The released classifier uses the graph of the test batch."""
    method, data = made(**options)
    with torch.no_grad():
        assert_company_and_order_do_not_matter(method, data)


def test_encoders_process_observed_rows_only() -> None:
    """In the released code, zeros are processed by the encoder and its batch norm."""
    method, data = made()
    asked: list[int] = []
    for m, encoder in enumerate(method.encoders):
        encoder.register_forward_pre_hook(lambda _, x: asked.append(len(x[0])))
        assert data.observed[:, m].any()
    rows = data.rows("train")
    method.train()(data.batch(rows, "x"))
    assert asked == data.observed[rows].sum(axis=0).tolist()


def test_features_without_an_edge_have_no_influence() -> None:
    method, data = made(layers=3)
    edge = torch.from_numpy(data.observed[:10])
    e = torch.randn(10, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = method.network(e, edge)
        after = method.network(torch.where(edge[:, :, None], e, torch.full_like(e, 1e3)), edge)
    torch.testing.assert_close(before, after)


def test_edge_dropping_keeps_a_uniform_number_of_at_least_one_edge() -> None:
    n = 40000
    observed = synthetic.random_masks(n, 5, 0, p=0.3)
    kept = dropped_edges(observed, keyed.uniform(keyed.id_keys(map(str, range(n))), 0, "x", 7), 0.5)
    assert not (kept & ~observed).any()
    assert kept.any(axis=1).all()
    before, after = observed.sum(axis=1), kept.sum(axis=1)
    for edges in range(2, 6):
        counts = np.bincount(after[before == edges], minlength=edges + 1) / (before == edges).sum()
        np.testing.assert_allclose(counts[1:edges], 0.5 / (edges - 1), atol=0.02)
        assert counts[edges] == pytest.approx(0.5, abs=0.02)
    five = kept[(before == 5) & (after < 5)]
    np.testing.assert_allclose(five.mean(axis=0), five.mean(), atol=0.02)
    assert (dropped_edges(observed, np.zeros((n, 7)), 0.0) == observed).all()


def test_unlabelled_samples_are_used_in_the_unsupervised_loss_only(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    z, other = (F.normalize(torch.randn(6, 4, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    compared: list[int] = []

    def contrast(z: Tensor, other: Tensor, label: Tensor, temperature: float) -> Tensor:
        assert len(z) == len(other) == len(label)
        compared.extend(label.tolist())
        return label_contrast(z, other, label, temperature)

    monkeypatch.setattr(muse, "label_contrast", contrast)
    method, data = made()
    rows = data.rows("train")[:6]
    data.label[rows] = [0, 1, -1, 1, -1, 0]
    assert method.train()(data.batch(rows, "x")).losses.keys() == {"unsupervised", "supervised"}
    assert compared == [0, 1, 1, 0]
    assert label_contrast(z[:0], other[:0], torch.zeros(0), 0.07) == 0
    assert info_nce(z, z, 0.07) < info_nce(z, other, 0.07)


def test_predictions_from_a_checkpoint_need_only_the_modality_states() -> None:
    method, data = made(layers=3)
    rows = data.rows("test")
    before = method.eval()(data.batch(rows, "x")).logits
    state = method.reference_state()
    assert sum(s.numel() * 4 for s in state["modality_states"]) == method.reference_bytes()
    other = synthetic.trained_on(data, synthetic.config("muse", dropout=0.0, layers=3))
    other.load_state_dict(method.state_dict())
    other.eval().load_reference(state)
    other.refresh()
    torch.testing.assert_close(other(data.batch(rows, "x")).logits, before)


def test_new_weights_renew_the_modality_states() -> None:
    method, data = made()
    batch = data.batch(data.rows("test"), "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        method.mappers[0].weight += 0.5
    method.refresh()
    fresh = method(batch).logits
    method.refresh()
    assert torch.equal(method(batch).logits, fresh)
    assert not torch.allclose(fresh, before)


@pytest.mark.parametrize(("n_modalities", "millions"), [(3, 0.264), (4, 0.281)])
def test_numbers_of_parameters(n_modalities: int, millions: float) -> None:
    data = synthetic.make(np.ones((8, n_modalities), dtype=bool), n_classes=3)
    method = Muse.create(data.spec, make_config(Muse, preset="paper", seed=0, overrides={}))
    assert parameters_without_encoders(method) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_options_out_of_range_are_rejected() -> None:
    for name, value in (("layers", 0), ("edge_drop", 1.5), ("temperature", 0.0)):
        with pytest.raises(UsageError, match=name):
            synthetic.config("muse", **{name: value})
