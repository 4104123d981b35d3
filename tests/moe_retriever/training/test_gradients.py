"""Gradient similarity of modality pairs: values against their definition, and no side effects on training."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from moe_retriever.config import make_config
from moe_retriever.methods import get, names
from moe_retriever.training import checkpoint
from moe_retriever.training.gradients import SCHEMA, frame, gradient_similarity, keyed_rows
from moe_retriever.training.loop import Job, run_training
from mrpipe import Store
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic

SMALL = {
    "epochs": 2,
    "hidden": 16,
    "tokens": 2,
    "heads": 2,
    "encoder_hidden": 8,
    "cnn_width": 0.03,
    "batch_size": 16,
    "image_encoder": "vgg11_bn",
}
GRADIENT = [n for n in names() if get(n).gradient]


@pytest.mark.parametrize("method", GRADIENT)
def test_recording_does_not_change_the_training(method: str, store: Store, tmp_path: Path) -> None:
    """Includes batch statistics (VGG11 with batch norm), curricula, running bandwidths and noise streams."""
    states = []
    for rows in (0, 12):
        config = make_config(get(method), preset="paper", seed=0, overrides={**SMALL, "gradient_rows": rows})
        run = tmp_path / str(rows)
        run_training(Job(store=store, run=run, config=config, modalities=("table", "series", "image")))
        states.append(checkpoint.read(run / "model.pt")["state"])
        assert (run / "gradients.parquet").exists() == (rows > 0)
    assert (tmp_path / "0" / "history.parquet").read_bytes() == (tmp_path / "12" / "history.parquet").read_bytes()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    found = pl.read_parquet(tmp_path / "12" / "gradients.parquet")
    assert found.schema == SCHEMA
    assert set(found["epoch"]) == {1, 2}
    assert set(found["kind"]) == {"tokens", "shared"}
    assert set(found.select("first", "second").iter_rows()) == set(combinations(("table", "series", "image"), 2))
    assert (found["cosine"].drop_nulls().abs() <= 1 + 1e-6).all()


def test_token_similarity_is_the_mean_cosine_of_single_samples() -> None:
    """Reference: a loop over single samples through the fusion alone."""
    data = synthetic.make(synthetic.random_masks(30, 3, 0), ("vector", "sequence", "vector"))
    method = synthetic.trained_on(data, synthetic.config("attention_mask"))
    rows = keyed_rows(data, data.rows("train"), 100, 0)
    cosines: dict[tuple[str, str], list[float]] = {pair: [] for pair in combinations(data.spec.names, 2)}
    method.eval()
    for i in rows:
        observed = data.observed[i]
        z = torch.zeros(1, 3, 2, 16)
        for m in np.flatnonzero(observed):
            z[0, m] = method.encoders[m](data.tables[m].gather(data.row[[i], m]))[0]
        z = z.detach().requires_grad_()
        logits = method.fusion(z, torch.from_numpy(observed)[None])[0]  # type: ignore[operator]
        F.cross_entropy(logits, torch.tensor([data.label[i]])).backward()
        assert z.grad is not None
        for a, b in combinations(np.flatnonzero(observed).tolist(), 2):
            x, y = z.grad[0, a].flatten(), z.grad[0, b].flatten()
            cosines[f"m{a}", f"m{b}"].append(float(F.cosine_similarity(x, y, dim=0)))
    found = frame(gradient_similarity(method, data, rows, 1)).filter(kind="tokens")
    assert len(found) == 3
    for row in found.iter_rows(named=True):
        expected = cosines[row["first"], row["second"]]
        assert row["n"] == len(expected)
        assert row["cosine"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert row["sd"] == pytest.approx(np.std(expected, ddof=1), abs=1e-5)


def test_shared_similarity_compares_the_gradients_of_each_modality_alone() -> None:
    """Reference: the same model on data in which only one modality is observed."""
    data = synthetic.make(np.ones((24, 2), dtype=bool), ("vector", "sequence"), parts=(1.0, 0.0))
    method = synthetic.trained_on(data, synthetic.config("attention_mask"))
    rows = data.rows("train")
    gradients = []
    for m in range(2):
        alone = synthetic.make(np.ones((24, 2), dtype=bool), ("vector", "sequence"), parts=(1.0, 0.0))
        alone.observed[:, 1 - m] = False
        method.eval().zero_grad()
        F.cross_entropy(method(alone.batch(rows, "x")).logits, torch.from_numpy(data.label[rows])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.fusion.parameters() if p.grad is not None]))  # type: ignore[union-attr]
    method.zero_grad()
    found = frame(gradient_similarity(method, data, rows, 3)).filter(kind="shared").row(0, named=True)
    assert found["cosine"] == pytest.approx(float(F.cosine_similarity(gradients[0], gradients[1], dim=0)), abs=1e-5)
    assert (found["epoch"], found["n"], found["sd"]) == (3, 24, None)
    assert all(p.grad is None for p in method.parameters())


def test_similarity_is_0_without_shared_weights_and_1_for_identical_modalities() -> None:
    """Separate heads share no weights; two copies of one modality with equal head weights have equal gradients."""
    data = synthetic.make(np.ones((20, 2), dtype=bool))
    rows = data.rows("train")
    apart = frame(gradient_similarity(synthetic.trained_on(data, synthetic.config("late_fusion")), data, rows, 1))
    assert apart.filter(kind="shared")["cosine"].to_list() == [0.0]
    method = synthetic.trained_on(data, synthetic.config("late_fusion"))
    with torch.no_grad():
        for a, b in zip(method.heads[0].parameters(), method.heads[1].parameters(), strict=True):  # type: ignore[index, union-attr]
            b.copy_(a)
    same = frame(gradient_similarity(method, data, rows, 1)).filter(kind="tokens")
    assert same["cosine"].item() == pytest.approx(1.0, abs=1e-6)


def test_rows_are_drawn_by_key_among_samples_with_two_modalities() -> None:
    data = synthetic.make(synthetic.random_masks(60, 3, 0))
    train = data.rows("train")
    some = keyed_rows(data, train, 10, 0)
    assert len(some) == 10
    assert (data.observed[some].sum(axis=1) > 1).all()
    assert set(some) <= set(train)
    assert keyed_rows(data, train[::-1], 10, 0).tolist() == some.tolist()
    assert keyed_rows(data, train, 10, 1).tolist() != some.tolist()
    assert len(keyed_rows(data, train, 0, 0)) == 0


def test_a_single_modality_gives_an_empty_table() -> None:
    data = synthetic.make(np.ones((10, 1), dtype=bool))
    method = synthetic.trained_on(data, synthetic.config("attention_mask"))
    assert frame(gradient_similarity(method, data, keyed_rows(data, data.rows("train"), 5, 0), 1)).is_empty()
    with pytest.raises(UsageError, match="gradient_rows"):
        synthetic.config("attention_mask", gradient_rows=-1)
