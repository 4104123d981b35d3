"""Cost of a prediction and of the references, which are computed from the training samples before any prediction."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from moe_retriever.evaluation.cost import measure_inference
from moe_retriever.methods import get
from tests.moe_retriever import synthetic

REFERRING = ("moe_retriever", "m3care", "muse")


@cache
def measured(method: str, n_train: int, batch: int = 16, n_test: int = 40) -> dict[str, float]:
    """Costs with n_train training samples; the masks of any 8 consecutive samples are the same."""
    n = n_train + n_test
    masks = synthetic.random_masks(8, 3, 1, p=0.4)[np.arange(n) % 8]
    data = synthetic.make(masks, parts=(n_train / n, 0.0))
    test = data.rows("test")
    assert len(data.rows("train")) == n_train
    # M3Care compares each prediction with all samples of its bank, so its size is part of the prediction.
    own = {"bank": 16} if method == "m3care" else {"warmup": 0} if method == "moe_retriever" else {}
    made = synthetic.trained_on(data, synthetic.config(method, eval_batch_size=batch, **own))
    return measure_inference(made, data, data.rows("train"), test)


@pytest.mark.parametrize("method", REFERRING)
def test_flops_of_a_prediction_do_not_contain_those_of_the_references(method: str) -> None:
    few, many = measured(method, 80), measured(method, 320)
    assert few["mflop_per_sample"] == pytest.approx(many["mflop_per_sample"], rel=0.005)


@pytest.mark.parametrize("method", REFERRING)
def test_flops_of_a_prediction_do_not_depend_on_the_number_of_predicted_samples(method: str) -> None:
    few, many = measured(method, 80, batch=8), measured(method, 80, batch=40)
    assert few["mflop_per_sample"] == pytest.approx(many["mflop_per_sample"], rel=0.005)


@pytest.mark.parametrize("method", ["moe_retriever", "muse"])
def test_references_cost_as_much_per_training_sample_for_any_number_of_them(method: str) -> None:
    few, many = measured(method, 80), measured(method, 320)
    assert few["reference_mflop_per_sample"] == pytest.approx(many["reference_mflop_per_sample"], rel=0.02)
    assert min(few["reference_mflop_per_sample"], few["reference_s_per_sample"]) > 0


def test_a_bank_of_fixed_size_costs_less_per_training_sample_if_there_are_more() -> None:
    few, many = measured("m3care", 80), measured("m3care", 320)
    assert few["reference_mflop_per_sample"] == pytest.approx(4 * many["reference_mflop_per_sample"], rel=0.25)


def test_flops_of_muse_equal_those_of_its_layers() -> None:
    """Encoders of the observed modalities, then linear maps of edges and samples; two FLOPs per weight."""
    n, m, h, layers = 40, 3, synthetic.SMALL["hidden"], 2
    observed = 5 * synthetic.random_masks(8, m, 1, p=0.4).sum()
    encoder = 2 * observed * (5 * 12 + 2 * 6 * h)
    edges = n * m * (2 * h * h * layers + 2 * 3 * h * h * (layers - 1) + h * h)
    head = get("muse").create(synthetic.make(np.ones((4, m), dtype=bool)).spec, synthetic.config("muse")).head
    weights = sum(p.numel() for p in head.parameters() if p.dim() == 2)
    expected = encoder + 2 * (edges + n * 2 * h * h * layers + n * weights)
    assert measured("muse", 80)["mflop_per_sample"] == pytest.approx(expected / n / 1e6, rel=0.05)


@pytest.mark.parametrize("method", ["late_fusion", "flexmoe", "majority"])
def test_methods_without_references_have_none(method: str) -> None:
    found = measured(method, 80)
    expected = math.nan if method == "majority" else 0
    np.testing.assert_equal(found["reference_mflop_per_sample"], expected)
    assert found["reference_s_per_sample"] == pytest.approx(0, abs=1e-4)
    assert found["test_samples_per_s"] > 0
