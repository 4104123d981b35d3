"""ShaSpec compared with a slow float64 reference; its properties; faults of the published code."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Data
from moe_retriever.data.subsets import random_subsets
from moe_retriever.methods.shaspec import ShaSpec
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow import Slow, observed, require_equal

MASKS = synthetic.random_masks(40, 4, 4, p=0.4)


def made(masks: np.ndarray = MASKS, **options: object) -> tuple[ShaSpec, Data]:
    data = synthetic.make(masks, n_classes=3)
    method = synthetic.trained_on(data, synthetic.config("shaspec", dropout=0.0, **options))
    assert isinstance(method, ShaSpec)
    return method, data


class SlowShaSpec(Slow):
    """One sample: shared and specific features, their composition, imputation, and loss terms of the sample."""

    def shared(self, x: Tensor) -> Tensor:
        mlp = self.options.shared_encoder == "mlp"
        return self.feed_forward(x, "shared") if mlp else self.block(x, "shared.block")

    def sample(self, number: int, seen: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits, alignment loss, and cross-entropies of the specific features of the sample."""
        s, f, terms = {}, {}, []
        for m in seen:
            x = self.norm(self.encode(number, m), "norm")
            s[m], r = self.shared(x), self.feed_forward(x, f"specific.{m}")
            f[m] = s[m] + self.linear(torch.cat([s[m], r], dim=1), "compose")
            terms.append(F.cross_entropy(self.linear(r.mean(0), "which"), torch.tensor(m)))
        first, mean = s[seen[0]], torch.stack(list(s.values())).mean(0)
        fill = first if self.options.fill == "first" else mean
        features = [f[m] if m in seen else fill for m in range(self.n_modalities)]
        pairs = list(combinations(seen, 2))
        if self.options.pairs == "ring":
            n = self.n_modalities
            pairs = [(a, b) for a, b in pairs if (b - a) % n == 1 or (a - b) % n == 1]
        distances = [(s[a].mean(0) - s[b].mean(0)).abs().mean() for a, b in pairs]
        shared = torch.stack(distances).mean() if distances else torch.zeros((), dtype=torch.float64)
        return self.linear(torch.cat([x.mean(0) for x in features]), "head"), shared, terms


OPTIONS = [{}, {"fill": "first", "pairs": "ring"}, {"shared_encoder": "transformer"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("stage", ["evaluation", "full", "hiding"])
def test_outputs_losses_and_gradients_equal_the_slow_reference(options: dict[str, object], stage: str) -> None:
    method, data = made(**options)
    method.train(stage != "evaluation")
    method.begin_epoch(0 if stage == "full" else 10, 20)
    batch = data.batch(np.arange(14), "epoch 0")
    kept = batch.observed
    if stage == "hiding":
        kept = random_subsets(batch.observed, batch.keys, 0, "epoch 0", "size")
        assert (kept != batch.observed).any()
    slow = SlowShaSpec(method, data)
    out = [slow.sample(int(batch.index[b]), np.flatnonzero(kept[b]).tolist()) for b in range(len(batch))]
    terms = [t for _, _, own in out for t in own]
    losses = {"shared": 0.1 * sum(s for _, s, _ in out) / len(out), "specific": 0.02 * sum(terms) / len(terms)}
    require_equal(method, batch, slow, torch.stack([v for v, _, _ in out]), losses if method.training else None)


def test_missing_modalities_get_the_mean_of_the_observed_shared_features() -> None:
    """The released code uses the first modality of a randomly ordered list."""
    method, data = made()
    batch = data.batch(np.flatnonzero(~data.observed[:, 3] & (data.observed.sum(1) > 1)), "x")
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(len(batch), 4, 2, 16, generator=generator)
    s = s * torch.from_numpy(batch.observed)[:, :, None, None]
    fill = method._fill(s, batch)
    for b in range(len(batch)):
        torch.testing.assert_close(fill[b, 0], s[b, observed(batch, b)].mean(0))
    turned = data.batch(batch.index, "x")
    turned = type(turned)(data, turned.index, turned.observed[:, ::-1], turned.hidden, turned.label, "x")
    torch.testing.assert_close(method._fill(s.flip(1), turned), fill)


def test_hidden_modalities_are_drawn_per_sample() -> None:
    """The released code draws one subset per batch. At least one observed modality is kept."""
    method, data = made(np.ones((40, 4), dtype=bool))
    seen: list[np.ndarray] = []
    original = method._encode
    method._encode = lambda batch: (seen.append(batch.observed), original(batch))[1]  # type: ignore[assignment,method-assign]
    method.train()
    method.begin_epoch(19, 20)
    method(data.batch(np.arange(40), "epoch 19"))
    assert len(np.unique(seen[0], axis=0)) > 5
    assert seen[0].any(axis=1).all()
    assert set(seen[0].sum(axis=1).tolist()) == {1, 2, 3, 4}
    method.eval()(data.batch(np.arange(40), "evaluation"))
    assert seen[1].all()


def test_the_first_epochs_hide_no_modalities() -> None:
    method, _ = made(full_epochs=0.25, epochs=20)
    assert method.hiding
    for epoch, hiding in ((0, False), (4, False), (5, True), (19, True)):
        method.begin_epoch(epoch, 20)
        assert (method.hiding, method.selectable) == (hiding, hiding)
    never, _ = made(train_drop="none")
    never.begin_epoch(0, 20)
    assert (never.hiding, never.selectable) == (False, True)
    with pytest.raises(UsageError, match="full_epochs=20"):
        made(full_epochs=20.0, epochs=20)


def test_auxiliary_losses_exclude_missing_and_hidden_modalities() -> None:
    """In the released code, zero inputs are part of both auxiliary losses."""
    method, data = made()
    method.train()
    method.begin_epoch(0, 20)
    lacking = data.batch(np.flatnonzero(~data.observed[:, 2]), "x")
    out = method(lacking)
    sum(out.losses.values()).backward()
    untouched = [*method.specific[2].parameters(), *method.encoders[2].parameters()]
    assert all(p.grad is None for p in untouched)
    assert method.specific[0].inner.weight.grad.abs().sum() > 0
    # With one observed modality, there is nothing to align.
    single = np.flatnonzero(data.observed.sum(axis=1) == 1)
    assert float(method(data.batch(single, "x")).losses["shared"].detach()) == 0
    pair = np.flatnonzero(data.observed.sum(axis=1) == 2)[:1]
    assert float(method(data.batch(pair, "x")).losses["shared"].detach()) > 0


def test_a_training_step_of_one_sample_equals_its_share_of_a_batch() -> None:
    """The released normalisation only works with batch size 1."""
    method, data = made(train_drop="none", beta=0.0)
    rows = np.arange(6)
    method.train()
    whole = method(data.batch(rows, "x"))
    alone = [method(data.batch(rows[[i]], "x")) for i in range(6)]
    torch.testing.assert_close(whole.logits, torch.cat([a.logits for a in alone]))
    mean = torch.stack([a.losses["shared"] for a in alone]).mean()
    torch.testing.assert_close(whole.losses["shared"], mean)


def test_the_modality_classifier_trains_only_specific_features() -> None:
    method, data = made(alpha=0.0)
    out = method.train()(data.batch(np.arange(20), "x"))
    out.losses["specific"].backward()
    assert all(p.grad is None for p in method.shared.parameters())
    assert all(p.grad is None for p in method.compose.parameters())
    assert method.which.weight.grad.abs().sum() > 0


def test_numbers_of_parameters() -> None:
    """0.167 M and 0.200 M."""
    assert [round(synthetic.size_at_128("shaspec", m) / 1e6, 3) for m in (3, 4)] == [0.167, 0.200]
