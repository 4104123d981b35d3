"""Training of MoE-Retriever: warm-up, supporting samples, bank, and no state left by a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moe_retriever.config import Config
from moe_retriever.methods.moe_retriever import MoERetriever
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.retrieval.retriever_toy import MASKS, made


def test_the_warm_up_masks_missing_slots_and_does_not_retrieve() -> None:
    """During the warm-up, predictions equal those without the missing modalities."""
    method, data = made(warmup=0.5, epochs=10)
    rows = np.flatnonzero(~data.observed[:, 2])
    method.begin_epoch(4, 10)
    assert not method.selectable
    batch = data.batch(rows, "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        for p in (*method.retriever.parameters(), *method.encoders[2].parameters(), method.fusion.position_MPH[2]):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(method(batch).logits, before)
    method.begin_epoch(5, 10)
    assert method.selectable
    assert (method(batch).logits - before).abs().max() > 1e-3


def test_the_warm_up_with_zeros_attends_to_empty_slots() -> None:
    method, data = made(warmup=0.5, epochs=10, warmup_kind="zeros")
    method.begin_epoch(0, 10)
    batch = data.batch(np.flatnonzero(~data.observed[:, 2]), "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        method.fusion.position_MPH[2].add_(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    assert (method(batch).logits - before).abs().max() > 1e-3


def test_only_freshly_encoded_supporting_samples_get_gradients() -> None:
    """In this data set, modality 1 is used only as support for other samples."""
    masks = np.ones((30, 2), dtype=bool)
    masks[:5, 1] = False
    for support, reached in (("fresh", True), ("bank", False)):
        method, data = made(masks, support_source=support)
        batch = data.batch(np.arange(5), "x")
        F.cross_entropy(method.train()(batch).logits, batch.label).backward()
        grad = method.encoders[1].inner.weight.grad
        assert (grad is not None and bool(grad.abs().sum() > 0)) == reached


def test_the_bank_is_renewed_each_epoch_and_equals_fresh_encodings() -> None:
    method, data = made()
    batch = data.batch(data.rows("test"), "evaluation")
    method.eval()
    first = method(batch).logits
    with torch.no_grad():
        for p in method.encoders.parameters():
            p.mul_(1.5)
    stale = method(batch).logits
    method.refresh()
    fresh = method(batch).logits
    other, _ = made()
    with torch.no_grad():
        for p in other.encoders.parameters():
            p.mul_(1.5)
    torch.testing.assert_close(fresh, other.eval()(batch).logits)
    assert not torch.allclose(stale, fresh)
    assert not torch.allclose(first, fresh)


def test_predictions_from_a_stored_bank_equal_those_from_the_store() -> None:
    method, data = made()
    batch = data.batch(data.rows("test"), "evaluation")
    expected = method.eval()(batch).logits
    other = synthetic.get(method.config.method).create(data.spec, method.config)
    other.load_state_dict(method.state_dict())
    other.load_reference(method.reference_state())
    torch.testing.assert_close(other.eval()(batch).logits, expected)
    assert method.reference_bytes() == sum(b.numel() * 4 for b in method.reference_state()["banks"])


def test_hidden_modalities_are_retrieved_and_reconstructed() -> None:
    """A hidden modality becomes a slot, and its encoding is the target of the reconstruction loss."""
    with pytest.raises(UsageError, match=r"reconstruct=0.5 requires drop_modalities"):
        made(reconstruct=0.5)
    method, data = made(reconstruct=0.5, drop_modalities=0.4)
    batch = data.batch(data.rows("train"), "x", hide=0.4)
    assert batch.hidden.any()
    assert batch.observed.any(axis=1).all()
    assert not (batch.hidden & batch.observed).any()
    out = method.train()(batch)
    assert 0 < float(out.losses["reconstruct"].detach()) <= 1.0


def test_the_bank_embeds_without_dropout_also_in_training() -> None:
    method, data = made(kinds=("image", "vector", "vector"), image_dropout=0.5)
    assert method.reference is not None
    assert method.reference.bank is not None
    encoder = method.encoders[0]
    rows = np.arange(5)
    expected = encoder.eval()(data.tables[0].gather(rows)).detach()
    found = method.reference.bank.embed(0, rows, encoder.train())
    torch.testing.assert_close(found, expected)
    assert encoder.training


def test_a_sample_with_a_hidden_modality_does_not_support_itself() -> None:
    method, data = made(drop_modalities=0.4, n_intra="all")
    rows = data.rows("train")[3:]
    method.prepare(data, rows)
    draws, _ = method._plan(data.batch(rows, "x", hide=0.4), 0)
    assert draws is not None
    hidden = data.observed[rows][draws.sample, draws.target]
    drawn = np.repeat(draws.sample, draws.drawn)
    # Reference rows are positions in `rows`. Without the exclusion, each hidden slot would contain its own sample.
    assert hidden.sum() > 10
    assert not (draws.row == drawn).any()


def test_no_tensor_is_kept_after_a_step() -> None:
    """The released code keeps the autograd graph of every call."""
    import gc

    method, data = made()
    optimiser = torch.optim.Adam(method.parameters())

    def live_tensors() -> int:
        gc.collect()
        return sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects())

    counts = []
    for step in range(6):
        batch = data.batch(data.rows("train"), f"epoch {step}", hide=0.2)
        out = method.train()(batch, detail=True)
        optimiser.zero_grad()
        (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
        optimiser.step()
        del batch, out
        counts.append(live_tensors())
    assert counts[2] == counts[-1]


def test_evaluation_does_not_change_statistics() -> None:
    method, data = made(kinds=("image", "vector", "vector"), image_encoder="vgg11_bn")
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.eval()(data.batch(data.rows("test"), "evaluation"), detail=True)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_supporting_samples_do_not_change_batch_statistics() -> None:
    """Running statistics are equal after a step with and without supporting samples."""
    masks = np.ones((30, 2), dtype=bool)
    masks[:10, 0] = False
    statistics = []
    for intra in (True, False):
        method, data = made(masks, kinds=("image", "vector"), image_encoder="vgg11_bn", intra=intra, image_dropout=0.0)
        method.train()(data.batch(np.arange(18), "x"))
        statistics.append(method.encoders[0].cnn.features[1].running_mean.clone())
    assert torch.equal(*statistics)
    assert statistics[0].abs().sum() > 0


def test_encoders_of_equal_seeds_do_not_depend_on_the_options() -> None:
    a, _ = made()
    b, _ = made(n_experts=5, integration="queries")
    c = synthetic.trained_on(synthetic.make(MASKS), synthetic.config(seed=1))
    for x, y, z in zip(a.encoders.parameters(), b.encoders.parameters(), c.encoders.parameters(), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)


def test_the_config_can_be_written_and_read() -> None:
    config = synthetic.config(n_intra=4, lr=1e-3)
    assert Config.from_dict(config.to_dict(), MoERetriever) == config
