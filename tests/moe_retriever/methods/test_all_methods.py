"""Properties that every registered method must have; new methods are included automatically."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from moe_retriever.data.load import Data
from moe_retriever.data.subsets import with_hidden
from moe_retriever.data.tables import VectorTable
from moe_retriever.methods import get, names
from moe_retriever.methods.base import Method
from moe_retriever.training.loop import make_optimiser, train_epoch
from moe_retriever.training.predict import predict, validate
from tests.moe_retriever import synthetic

KINDS = ("vector", "sequence", "image", "volume", "genotype")
# Small values of method-specific options.
TINY = {"n_experts": 4, "n_shared": 2, "expert_ffn": 12, "top_k": 2, "trials": 1, "rounds": 5, "bank": 16}
ALL = names()
GRADIENT = tuple(name for name in ALL if get(name).gradient)


def made(name: str, data: Data, **options: Any) -> Method:
    """A small prepared method, already fitted if it is not trained with gradients."""
    own = {f.name for f in dataclasses.fields(get(name).Options)}
    tiny = {k: v for k, v in TINY.items() if k in own}
    method = synthetic.trained_on(data, synthetic.config(name, **{"epochs": 4, **tiny, **options}))
    if not method.gradient:
        method.fit(data, data.rows("train"), data.rows("val"))
    return method


def train(method: Method, data: Data, epochs: range, optimiser: torch.optim.Optimizer | None = None) -> None:
    if method.gradient:
        optimiser = optimiser or make_optimiser(method)
        for epoch in epochs:
            train_epoch(method, data, data.rows("train"), optimiser, epoch)


def every_combination(n_modalities: int, times: int) -> NDArray[np.bool_]:
    """(times · (2^M − 1), M): all combinations repeatedly, so that every split has most of them."""
    codes = np.tile(np.arange(1, 1 << n_modalities), times)
    return (codes[:, None] >> np.arange(n_modalities) & 1).astype(bool)


@pytest.mark.parametrize("name", ALL)
def test_predictions_are_independent_across_samples(name: str) -> None:
    """After one epoch, the logits of a sample do not depend on the batch and its order, for all kinds of modalities."""
    data = synthetic.make(every_combination(5, 2), KINDS, n_classes=3)
    method = made(name, data)
    train(method, data, range(3, 4))
    rows = np.flatnonzero(data.part != 0)
    method.eval()
    with torch.no_grad():
        whole = method(data.batch(rows, "evaluation"))
        assert whole.losses == {}
        assert whole.logits.shape == (len(rows), 3)
        assert whole.logits.isfinite().all()
        order = np.random.default_rng(0).permutation(len(rows))
        permuted = method(data.batch(rows[order], "evaluation")).logits
        torch.testing.assert_close(permuted, whole.logits[order], rtol=1e-4, atol=1e-5)
        for i in range(0, len(rows), 5):
            alone = method(data.batch(rows[[i]], "evaluation")).logits[0]
            torch.testing.assert_close(alone, whole.logits[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_regression_is_learned_in_its_own_unit(name: str) -> None:
    """Every method but the constant predicts better than the training mean, and a sample does not depend on others."""
    data = synthetic.make(synthetic.random_masks(160, 2, 1), regression=True, seed=3)
    more_rounds = {"rounds": 40} if name == "gradient_boosting" else {}
    method = made(name, data, epochs=25, lr=1e-2, dropout=0.0, **more_rounds)
    train(method, data, range(13))
    rows = data.rows("test")
    found = predict(method, data, rows).scored
    assert found.shape == (len(rows),)
    label, mean = data.label[rows], data.label[data.rows("train")].mean()
    error, constant = np.abs(found - label).mean(), np.abs(mean - label).mean()
    assert error == pytest.approx(constant) if name == "majority" else error < 0.75 * constant
    assert predict(method, data, rows[:1]).scored == pytest.approx(found[:1], rel=1e-4)
    assert validate(method, data, rows)["mae"] == pytest.approx(error)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("n_modalities", "n_classes"), [(1, 2), (2, 5), (16, 2)])
def test_any_number_of_modalities_and_classes_is_supported(name: str, n_modalities: int, n_classes: int) -> None:
    data = synthetic.make(synthetic.random_masks(40, n_modalities, 1), n_classes=n_classes)
    method = made(name, data)
    train(method, data, range(3, 4))
    found = predict(method, data, data.rows("test"), detail=True)
    assert found.logits.shape == (len(data.rows("test")), n_classes)
    assert np.isfinite(found.logits).all()
    assert all(bool(p.isfinite().all()) for p in method.parameters())


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n in ALL for p in get(n).presets if p != "paper"])
def test_every_preset_can_be_trained_and_evaluated(name: str, preset: str) -> None:
    data = synthetic.make(synthetic.random_masks(30, 3, 1), n_classes=3)
    method = made(name, data, preset=preset, epochs=20)
    train(method, data, range(19, 20))
    assert np.isfinite(predict(method, data, data.rows("test")).logits).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_split_may_lack_a_class(name: str, lacking: int) -> None:
    data = synthetic.make(synthetic.random_masks(40, 2, 1), n_classes=3)
    data.label[(data.part == lacking) & (data.label == 2)] = 1
    method = made(name, data)
    train(method, data, range(3, 4))
    values = validate(method, data, data.rows("val"))
    assert np.isfinite([values["loss"], values["accuracy"], values["macro_f1"]]).all()


@pytest.mark.parametrize("name", GRADIENT)
def test_sixteen_samples_with_random_labels_are_memorised(name: str) -> None:
    """The labels are independent of the inputs."""
    data = synthetic.make(np.ones((16, 3), dtype=bool), n_classes=2, parts=(1.0, 0.0), strength=0.0)
    method = made(name, data, dropout=0.0, lr=1e-2, batch_size=16, epochs=200)
    optimiser, rows = make_optimiser(method), data.rows("train")
    for start in range(100, 200, 10):
        train(method, data, range(start, start + 10), optimiser)
        right = predict(method, data, rows).logits.argmax(1) == data.label[rows]
        if right.all():
            break
    assert right.mean() >= 15 / 16


@pytest.mark.parametrize("name", GRADIENT)
def test_resumed_training_is_identical_to_uninterrupted_training(name: str) -> None:
    data = synthetic.make(synthetic.random_masks(30, 3, 1))

    def epoch_of(method: Method, epoch: int, optimiser: torch.optim.Optimizer) -> None:
        train(method, data, range(epoch, epoch + 1), optimiser)
        predict(method, data, data.rows("val"))

    whole, first, second = (made(name, data, drop_modalities=0.2) for _ in range(3))
    optimiser = make_optimiser(whole)
    for epoch in (2, 3):
        epoch_of(whole, epoch, optimiser)
    optimiser = make_optimiser(first)
    epoch_of(first, 2, optimiser)
    second.load_state_dict(first.state_dict())
    later = make_optimiser(second)
    later.load_state_dict(optimiser.state_dict())
    epoch_of(second, 3, later)
    expected = whole.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in second.state_dict().items())


@pytest.mark.parametrize("name", GRADIENT)
def test_no_tensor_is_kept_after_a_step_and_evaluation_changes_no_state(name: str) -> None:
    data = synthetic.make(synthetic.random_masks(30, 3, 1))
    method = made(name, data)
    optimiser = make_optimiser(method)
    gc.collect()
    gc.freeze()  # Count only objects created from here on, which is also fast.
    counts = []
    try:
        for _ in range(4):
            train_epoch(method, data, data.rows("train"), optimiser, 3)
            predict(method, data, data.rows("test"), detail=True)
            method.refresh()
            gc.collect()
            counts.append(sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects()))
    finally:
        gc.unfreeze()
    assert counts[1] == counts[-1]
    before = {k: v.clone() for k, v in method.state_dict().items()}
    predict(method, data, data.rows("train"), detail=True)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_hidden_modalities_have_no_influence(name: str) -> None:
    """Replacing the features of hidden modalities by noise changes neither a training step nor predictions."""
    data = synthetic.make(np.ones((30, 3), dtype=bool), strength=0.5)
    hide = synthetic.random_masks(30, 3, 5)
    results = []
    for replaced in (False, True):
        method = made(name, data)
        rows = data.rows("test")
        if replaced:
            for m, table in enumerate(data.tables):
                assert isinstance(table, VectorTable)
                hidden = rows[~hide[rows, m]]
                table.x[hidden] = 100.0 * torch.randn(len(hidden), 5, generator=torch.Generator().manual_seed(m))
        batch = with_hidden(data.batch(rows, "evaluation"), hide[rows])
        found = [method.eval()(batch).logits]
        if method.gradient:
            out = method.train()(batch)
            found.append(out.logits)
            (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
            found += [p.grad for p in method.parameters() if p.grad is not None]
        results.append(found)
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
