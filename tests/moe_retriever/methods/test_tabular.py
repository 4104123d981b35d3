"""Common properties of the scikit-learn models: hidden modalities and selection on validation."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from moe_retriever.data.load import Data
from moe_retriever.data.scores import score
from moe_retriever.data.subsets import with_hidden
from moe_retriever.metrics import METRICS, lower_is_better
from moe_retriever.training.predict import predict, validate
from tests.moe_retriever import synthetic

METHODS = ("logistic", "gradient_boosting")
SELECTABLE = (*METRICS, "loss")


def fitted(name: str, data: Data, **options: Any) -> tuple[Any, dict[str, Any]]:
    own = {"trials": 2, "rounds": 30} if name == "gradient_boosting" else {}
    method = synthetic.trained_on(data, synthetic.config(name, **own, **options))
    return method, method.fit(data, data.rows("train"), data.rows("val"))


@pytest.mark.parametrize("name", METHODS)
def test_hidden_modalities_are_missing(name: str) -> None:
    data = synthetic.make(synthetic.random_masks(240, 3, 4), ("vector", "sequence", "image"), strength=0.5)
    method, _ = fitted(name, data)
    rows = data.rows("test")
    batch = data.batch(rows, "x")
    kept = batch.observed.copy()
    several = kept.sum(axis=1) > 1
    kept[several, kept[several].argmax(axis=1)] = False
    found = method(with_hidden(batch, kept)).logits
    lacking = data.observed.copy()
    lacking[rows] = kept
    assert torch.equal(found, method(dataclasses.replace(data, observed=lacking).batch(rows, "x")).logits)
    moved = (found != method(batch).logits).any(dim=1).numpy()
    assert moved[several].any()
    assert not moved[~several].any()


@pytest.mark.parametrize("name", METHODS)
def test_a_modality_without_training_samples_has_no_influence(name: str) -> None:
    masks = np.ones((120, 2), dtype=bool)
    masks[:72, 1] = False
    data = synthetic.make(masks, strength=1.0)
    method, _ = fitted(name, data)
    rows = data.rows("test")
    batch = data.batch(rows, "x")
    assert data.observed[rows, 1].all()
    found = method(batch).logits
    data.tables[1].x[:] = 0.0
    assert torch.equal(method(batch).logits, found)
    assert score(data.label[rows], found.softmax(1).numpy())["accuracy"] > 0.6


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("metric", SELECTABLE)
def test_selection_uses_the_selection_metric_of_the_run(name: str, metric: str) -> None:
    data = synthetic.make(synthetic.random_masks(120, 2, 1), n_classes=3, strength=0.5)
    method, chosen = fitted(name, data, select_metric=metric)
    value = validate(method, data, data.rows("val"))[metric]
    assert chosen["validation"] == pytest.approx(-value if lower_is_better(metric) else value, rel=1e-5)
    # The validation split may have a class without training samples.
    data.label[(data.part == 0) & (data.label == 2)] = 1
    assert np.isfinite(fitted(name, data, select_metric=metric)[1]["validation"])


@pytest.mark.parametrize("name", METHODS)
def test_the_validation_split_may_have_one_class_or_be_empty(name: str) -> None:
    """AUROC is then undefined, and the lower loss decides: all candidates are compared."""
    data = synthetic.make(synthetic.random_masks(120, 2, 1), strength=1.0)
    data.label[data.rows("val")] = 1
    for metric in ("auroc", "accuracy"):
        method, chosen = fitted(name, data, select_metric=metric)
        assert (chosen["validation"] is None) == (metric == "auroc")
        by_loss = fitted(name, data, select_metric="loss")[1]
        assert metric != "auroc" or chosen == {**by_loss, "validation": None}
        json.dumps(chosen, allow_nan=False)
        assert np.isfinite(predict(method, data, data.rows("test")).logits).all()
    data.part[data.part == 1] = 0
    data.label[:60] = np.arange(60) % 2
    chosen = fitted(name, data)[1]
    assert chosen["validation"] is None or chosen["folds"] == 5
