"""Gradient boosting: equality with scikit-learn, missing values, selection on validation, and checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from moe_retriever.data.load import load
from moe_retriever.data.scores import score
from moe_retriever.methods import get
from moe_retriever.methods.gradient_boosting import CANDIDATES, GradientBoosting, grown_trees
from moe_retriever.training.predict import predict
from mrpipe import open_store
from mrpipe.errors import MrpipeError, UsageError
from tests.moe_retriever import synthetic

MASKS = synthetic.random_masks(240, 3, 4)


def fitted(n_classes: int, kinds: tuple[str, ...] = ("vector", "sequence", "vector"), **options: object) -> Any:
    data = synthetic.make(MASKS, kinds, n_classes=n_classes, strength=1.0)
    method = synthetic.trained_on(data, synthetic.config("gradient_boosting", **{"trials": 1, "rounds": 20, **options}))
    assert isinstance(method, GradientBoosting)
    chosen = method.fit(data, data.rows("train"), data.rows("val"))
    return method, data, chosen


@pytest.mark.parametrize("n_classes", [2, 3])
def test_predictions_equal_those_of_scikit_learn(n_classes: int) -> None:
    method, data, chosen = fitted(n_classes)
    rows = data.rows("train")
    model = HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_leaf_nodes=31,
        min_samples_leaf=20,
        early_stopping=False,
        max_iter=chosen["rounds"],
        random_state=0,
    )
    model.fit(method.features(data, rows).numpy(), data.label[rows])
    found = predict(method, data, np.arange(len(data))).scored
    expected = model.predict_proba(method.features(data, np.arange(len(data))).numpy())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_missing_modality_has_missing_values() -> None:
    method, data, _ = fitted(2)
    x = method.features(data, np.arange(len(data)))
    assert x.shape[1] == 5 + 7 + 5
    for m, columns in enumerate((slice(0, 5), slice(5, 12), slice(12, 17))):
        assert (x[:, columns].isnan().all(1).numpy() == ~data.observed[:, m]).all()
        assert (x[:, columns].isnan().any(1).numpy() == ~data.observed[:, m]).all()


def test_imputed_values_are_treated_as_missing(toy_stores: Path) -> None:
    """The transform imputes training means, but the trees get missing values."""
    store = open_store(toy_stores / "plain")
    data = load(store, modalities=["table"])
    raw = store.arrays("table")
    x = GradientBoosting.features(data, np.arange(len(data)))
    kinds = store.dictionary.filter(modality="table").sort("position")["kind"].to_list()
    numeric = [j for j, kind in enumerate(kinds) if kind == "numeric"]
    assert np.isnan(raw.x).any()
    # Numeric columns come first, in their original order.
    assert (x[:, : len(numeric)].isnan().numpy() == np.isnan(raw.x[:, numeric])).all()
    assert not data.tables[0].gather(np.arange(len(data))).isnan().any()


def test_the_trees_learn_from_missingness() -> None:
    """The label indicates whether the second modality is observed."""
    masks = np.ones((200, 2), dtype=bool)
    masks[::2, 1] = False
    data = synthetic.make(masks, strength=0.0)
    data.label[:] = masks[:, 1]
    method = synthetic.trained_on(data, synthetic.config("gradient_boosting", trials=1))
    method.fit(data, data.rows("train"), data.rows("val"))
    test = data.rows("test")
    assert score(data.label[test], predict(method, data, test).scored)["accuracy"] == 1.0


def test_predictions_do_not_depend_on_the_batch() -> None:
    method, data, _ = fitted(3)
    rows = data.rows("test")
    together = method(data.batch(rows, "x")).logits
    alone = torch.cat([method(data.batch(rows[[i]], "x")).logits for i in range(len(rows))])
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(method(data.batch(rows[::-1].copy(), "x")).logits.flip(0), together)


def test_a_checkpoint_contains_tensors_and_gives_equal_predictions() -> None:
    method, data, _ = fitted(3)
    other = get("gradient_boosting").create(data.spec, method.config)
    state = method.state_dict()
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    other.load_state_dict(state)
    batch = data.batch(data.rows("test"), "x")
    assert torch.equal(other.eval()(batch).logits, method.eval()(batch).logits)


def test_settings_and_rounds_are_selected_on_validation_only() -> None:
    method, data, chosen = fitted(2, trials=4)
    for row in data.rows("test"):
        data.label[row] = 1 - data.label[row]
    again = synthetic.trained_on(data, method.config)
    assert again.fit(data, data.rows("train"), data.rows("val")) == chosen
    val = data.rows("val")
    assert score(data.label[val], predict(method, data, val).scored)["auroc"] == pytest.approx(chosen["validation"])


def test_a_class_without_training_samples_is_never_predicted() -> None:
    data = synthetic.make(MASKS, n_classes=3)
    data.label[data.rows("train")[data.label[data.rows("train")] == 1]] = 2
    method = synthetic.trained_on(data, synthetic.config("gradient_boosting", trials=1, rounds=10))
    method.fit(data, data.rows("train"), data.rows("val"))
    found = predict(method, data, data.rows("test"))
    assert (found.logits.argmax(1) != 1).all()
    assert set(found.logits.argmax(1)) == {0, 2}


def test_options_out_of_range_are_rejected() -> None:
    setting = "at least -1 and at most 107"
    for name, value, words in (
        ("setting", 108, setting),
        ("setting", -2, setting),
        ("rounds", 0, "1"),
        ("trials", 0, "1"),
    ):
        with pytest.raises(UsageError, match=f"option {name}={value} must be .*{words}"):
            synthetic.config("gradient_boosting", **{name: value})


def test_more_trials_only_add_settings_to_a_fixed_list() -> None:
    assert CANDIDATES[:2] == [(0.1, 31, 20, 0.0), (0.1, 8, 20, 1.0)]
    assert len(set(CANDIDATES)) == len(CANDIDATES) == 108
    # Fixed expectation: the order must not depend on library versions.
    assert CANDIDATES[4:6] == [(0.2, 8, 40, 1.0), (0.2, 63, 10, 0.0)]


def test_an_unsupported_scikit_learn_is_an_error_with_its_version() -> None:
    with pytest.raises(MrpipeError, match=re.escape(sklearn.__version__)):
        grown_trees(SimpleNamespace())
