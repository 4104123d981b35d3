"""Nearest supporting samples compared with brute force; independence of the batch; and what uniform draws cannot do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe_retriever.data.load import Data
from moe_retriever.data.tables import VectorTable
from moe_retriever.methods.moe_retriever import MoERetriever
from moe_retriever.retrieval.supporting_groups import Draws
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.retrieval.retriever_toy import made
from tests.moe_retriever.retrieval.slow_nearest import Brute, pooled


def near(masks: NDArray[np.bool_], **options: object) -> tuple[MoERetriever, Data]:
    return made(masks, support="nearest", **options)


def planned(method: MoERetriever, data: Data, rows: NDArray[np.int64], hide: float = 0.0) -> Draws:
    draws, _ = method._plan(data.batch(rows, "x", hide=hide), 0)
    assert draws is not None
    return draws


def rows_of(draws: Draws, q: int) -> list[int]:
    return draws.row[draws.start[q] : draws.start[q + 1]].tolist()


CASES = {
    "all patterns": synthetic.random_masks(90, 3, 1, p=0.4),
    "four modalities": synthetic.random_masks(80, 4, 2, p=0.5),
    # Modality 1 never occurs with modality 0, so that groups are empty; modality 2 occurs once in training.
    "empty and small groups": np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]] * 8 + [[0, 1, 1]]) > 0,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("hide", [0.0, 0.4])
def test_the_nearest_samples_are_those_of_brute_force(case: str, ties: bool, hide: float) -> None:
    masks = CASES[case][::-1].copy()
    k = 5
    method, data = near(masks, nearest_k=k, nearest_temperature=0.0, n_intra="all")
    if ties:
        # Few distinct entries, of which some are equal to the mean.
        for m, table in enumerate(data.tables):
            data.tables[m] = VectorTable(np.sign(table.x[:, :2].numpy()).round(), data.device)
        method.prepare(data, data.rows("train"))
    brute = Brute(data, pooled(data))
    for part in ("train", "test"):
        rows = data.rows(part)
        batch = data.batch(rows, "x", hide=hide)
        draws = planned(method, data, rows, hide)
        assert len(draws.target)
        for q, (b, target) in enumerate(zip(draws.sample, draws.target, strict=True)):
            expected, _ = brute.neighbours(int(rows[b]), batch.observed[b], int(target), k)
            assert rows_of(draws, q) == expected
            assert draws.wanted[q] == min(k, draws.group_size[q])


def test_samples_of_the_same_subject_are_no_neighbours() -> None:
    """Two equal visits of each subject: the nearest sample would be the other visit."""
    masks = np.repeat(synthetic.random_masks(30, 3, 1, p=0.4), 2, axis=0)
    method, data = near(masks, nearest_k=4, nearest_temperature=0.0, n_intra="all")
    data.subject_id[:] = np.repeat(data.subject_id[::2], 2)
    for m, table in enumerate(data.tables):
        data.tables[m] = VectorTable(np.repeat(table.x[::2].numpy(), 2, axis=0), data.device)
    method.prepare(data, data.rows("train"))
    rows = data.rows("train")
    draws = planned(method, data, rows)
    subject, observed = data.subject_id[rows], data.observed[rows]
    full = 0
    for q, (b, target) in enumerate(zip(draws.sample, draws.target, strict=True)):
        found = subject[rows_of(draws, q)]
        assert subject[b] not in found
        # The group, if it is not a fallback: all subjects that have the sample's modalities and the target.
        member = observed[:, observed[b]].all(axis=1) & observed[:, target] & (subject != subject[b])
        full += len(found) == min(4, member.sum())
    assert full > 0.8 * len(draws.sample)


def test_wide_features_are_projected_and_keep_their_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 20_000, generator=generator)
    x = common + torch.randn(40, 20_000, generator=generator)
    scale = torch.stack([torch.zeros(20_000), torch.ones(20_000)]).double()
    index = near(CASES["all patterns"])[0].index
    index.width = 512
    small = index.vectors(0, x, scale)
    index.width = 20_000
    exact = index.vectors(0, x, scale)
    assert small.shape == (40, 512)
    error = (small @ small.T - exact @ exact.T)[~torch.eye(40, dtype=torch.bool)]
    assert float((exact @ exact.T)[0, 1]) == pytest.approx(0.5, abs=0.05)
    assert abs(float(error.mean())) < 0.05
    assert float(error.std()) < 2 / math.sqrt(512)


def test_draws_have_softmax_probabilities() -> None:
    """The first of 4,000 keyed draws, and pairs without replacement, follow softmax(similarity / temperature)."""
    masks = np.ones((12, 2), dtype=bool)
    masks[10:, 1] = False
    data = synthetic.make(masks, parts=(10 / 12, 0.0))
    options = {"support": "nearest", "nearest_k": 4, "nearest_temperature": 0.3, "n_intra": 2}
    method = synthetic.trained_on(data, synthetic.config(dropout=0.0, **options))
    batch = data.batch(np.array([11]), "x")
    near4, similarity = Brute(data, pooled(data)).neighbours(11, masks[11], 1, 4)
    p = np.exp(np.array(similarity) / 0.3)
    p /= p.sum()
    pairs = np.zeros((4, 4))
    for draw in range(4000):
        draws, _ = method._plan(batch, draw)
        i, j = (near4.index(r) for r in rows_of(draws, 0))
        pairs[i, j] += 1
    expected = 4000 * p[:, None] * p[None, :] / (1 - p[:, None])
    off = ~np.eye(4, dtype=bool)
    chi2 = ((pairs - expected)[off] ** 2 / expected[off]).sum()
    assert pairs[~off].sum() == 0
    assert chi2 < 31.3  # 0.1% critical value of the chi-square distribution with 11 degrees of freedom


@pytest.mark.parametrize("metric", ["features", "embedding"])
def test_supporting_samples_are_other_training_samples_that_have_the_modality(metric: str) -> None:
    """Also where modalities of the sample are hidden, so that a hidden modality is not reconstructed from itself."""
    method, data = near(
        CASES["all patterns"], nearest_metric=metric, drop_modalities=0.4, reconstruct=0.5, n_intra="all"
    )
    train = data.rows("train")
    draws = planned(method, data, train, hide=0.4)
    slot = np.repeat(np.arange(len(draws.target)), draws.drawn)
    hidden = data.observed[train][draws.sample, draws.target]
    assert hidden.sum() > 10
    assert method.reference is not None
    assert (draws.row != draws.sample[slot]).all()
    assert method.reference.observed[draws.row, draws.target[slot]].all()
    assert draws.row.max() < len(train)


@pytest.mark.parametrize("metric", ["features", "embedding"])
def test_hidden_modalities_do_not_affect_the_neighbours(metric: str) -> None:
    """Neighbours of a training sample with hidden modalities equal those of a new sample that lacks them."""
    method, data = near(CASES["all patterns"], nearest_metric=metric, nearest_temperature=0.0)
    method.eval()
    train = data.rows("train")
    batch = data.batch(train, "x", hide=0.5)
    draws, _ = method._plan(batch, 0)
    seen = np.repeat(draws.sample, draws.drawn)
    for m, table in enumerate(data.tables):
        # Change hidden entries; vectors of training samples were computed before.
        changed = data.row[train[batch.hidden[:, m]], m]
        table.x[torch.from_numpy(changed)] += 10
    method.reference.own_row = lambda data, index: np.full(len(index), -1)  # type: ignore[method-assign]
    new, _ = method._plan(replace(batch, index=batch.index), 0)
    for q in range(len(draws.target)):
        # The sample itself is now a candidate and is dropped for the comparison.
        other = [r for r in rows_of(new, q) if r != draws.sample[q]]
        assert other == rows_of(draws, q)[: len(other)]
    assert len(seen)


@pytest.mark.parametrize("options", [{}, {"nearest_metric": "embedding"}, {"draws": 3, "nearest_temperature": 1.0}])
def test_predictions_depend_on_the_own_row_only(options: dict[str, object]) -> None:
    method, data = near(CASES["all patterns"], kinds=("vector", "sequence", "image"), **options)
    method.eval()
    rows = data.rows("test")
    together = method(data.batch(rows, "evaluation")).logits.detach()
    alone = torch.cat([method(data.batch(rows[[i]], "evaluation")).logits for i in range(len(rows))])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    own = planned(method, data, rows)
    single = [planned(method, data, rows[[i]]).row for i in np.unique(own.sample)]
    assert np.concatenate(single).tolist() == own.row.tolist()
    for row in data.row[rows[1:], 0][data.observed[rows[1:], 0]]:
        data.tables[0].x[row] += 5
    method.refresh()
    torch.testing.assert_close(method(data.batch(rows, "evaluation")).logits[0], together[0])


@pytest.mark.parametrize("metric", ["features", "embedding"])
def test_predictions_from_a_checkpoint_equal_those_from_the_store(metric: str, tmp_path: Path) -> None:
    method, data = near(CASES["all patterns"], kinds=("vector", "sequence", "image"), nearest_metric=metric)
    batch = data.batch(data.rows("test"), "evaluation")
    expected = method.eval()(batch).logits
    torch.save(method.reference_state(), tmp_path / "reference.pt")
    other = synthetic.get("moe_retriever").create(data.spec, method.config)
    other.load_state_dict(method.state_dict())
    other.eval().load_reference(torch.load(tmp_path / "reference.pt", weights_only=True))
    other.refresh()
    torch.testing.assert_close(other(batch).logits, expected)
    state = method.reference_state()
    assert method.reference_bytes() == sum(t.nbytes for t in (*state["banks"], *state["nearest"]))


def test_embeddings_are_renewed_and_features_are_read_once() -> None:
    for metric, renewed in (("features", False), ("embedding", True)):
        method, _ = near(CASES["all patterns"], nearest_metric=metric)
        before = method.index.fit()[0].clone()
        with torch.no_grad():
            for p in method.encoders.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(method.index.fit()[0], before)
        method.refresh()
        assert torch.equal(method.index.fit()[0], before) != renewed


def test_wrong_options_are_errors() -> None:
    for name, value in (("nearest_k", 0), ("nearest_temperature", -1.0)):
        with pytest.raises(UsageError, match=f"{name}={value} must be at least"):
            near(CASES["all patterns"], **{name: value})


# Uniform draws carry no information about the sample beyond its mask.


def informed(support: str, seed: int, n: int = 240) -> tuple[NDArray[np.float64], ...]:
    """Mean feature of the target modality in the drawn supports, own feature of the shared one, and label.

    Both modalities are noisy copies of one latent value that determines the label. All samples have modality 0; the
    evaluated ones lack modality 1, so that the mask is the same for all.
    """
    masks = np.ones((n, 2), dtype=bool)
    masks[n // 2 :, 1] = False
    data = synthetic.make(masks, seed=seed, parts=(0.5, 0.0))
    method = synthetic.trained_on(data, synthetic.config(seed=seed, dropout=0.0, support=support, n_intra=2))
    rows = data.rows("test")
    draws = planned(method, data, rows)
    target = data.tables[1].x.double().mean(dim=1).numpy()[data.row[data.rows("train"), 1]]
    drawn = target[draws.row].reshape(-1, 2).mean(axis=1)
    own = data.tables[0].x.double().mean(dim=1).numpy()[data.row[rows, 0]]
    return drawn, own, data.label[rows].astype(float)


def rejections(support: str, n_seeds: int) -> NDArray[np.int64]:
    """Permutation tests at level 5 % of the correlation with the own feature and with the label: rejections (2,)."""
    rejected = np.zeros(2, dtype=np.int64)
    for seed in range(n_seeds):
        drawn, *others = informed(support, seed)
        rng = np.random.default_rng(seed)
        orders = rng.permuted(np.tile(np.arange(len(drawn)), (199, 1)), axis=1)
        for i, other in enumerate(others):
            centred = other - other.mean()
            found, null = abs(drawn @ centred), np.abs(drawn[orders] @ centred)
            rejected[i] += (1 + (null >= found).sum()) / 200 <= 0.05
    return rejected


def test_uniform_supports_are_independent_of_the_sample_given_its_mask() -> None:
    """Of 100 tests with level 5 %, at most 12 reject (probability .998 for Binomial(100, .05))."""
    assert (rejections("uniform", 100) <= 12).all()


def test_nearest_supports_depend_on_the_sample() -> None:
    assert (rejections("nearest", 10) == 10).all()


def test_a_training_sample_of_another_load_of_the_store_does_not_support_itself() -> None:
    method, data = near(CASES["all patterns"], nearest_k=5, nearest_temperature=0.0, n_intra="all")
    again = replace(data)
    index = np.concatenate([data.rows("train")[::-1], data.rows("test")])
    assert method.reference is not None
    expected = method.reference.own_row(data, index)
    assert (expected >= 0).sum() == len(data.rows("train"))
    np.testing.assert_array_equal(method.reference.own_row(again, index), expected)
