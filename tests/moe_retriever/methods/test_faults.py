"""Faults of the published code that no other test covers, and a check of the test names in docs/faults.md."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from moe_retriever.config import Common, make_config
from moe_retriever.data.load import load
from moe_retriever.methods import get, names
from moe_retriever.methods.moe_retriever import MoERetriever
from moe_retriever.nn.attention import TransformerBlock
from moe_retriever.nn.dropout import Noise
from moe_retriever.training.loop import Job, make_optimiser, run_training, train_epoch
from mrpipe import Store
from mrpipe.experiment.missingness import Missingness, write_masks
from mrpipe.store import masks
from tests.moe_retriever import synthetic


def test_the_tests_named_in_the_table_of_faults_exist(project: Path) -> None:
    text = (project / "docs" / "faults.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", text))
    assert len(named) > 50
    for file, test in sorted(named):
        source = (project / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test}"
    assert {f"D{n}" for n in range(1, 28)} - set(re.findall(r"D\d+", text)) == {"D16"}  # D15 to D17 share one row.


def retriever(**options: object) -> tuple[MoERetriever, object]:
    data = synthetic.make(synthetic.random_masks(40, 3, 0))
    method = synthetic.trained_on(data, synthetic.config(warmup=0, **options))
    assert isinstance(method, MoERetriever)
    return method, data.batch(data.rows("train"), "x")


def test_the_balance_loss_is_minimised_with_its_weight() -> None:
    """D2: includes the retriever's balance loss; doubling the weight doubles the gradient of the router."""
    gradients = []
    for weight in (0.1, 0.2):
        method, batch = retriever(balance=weight)
        losses = method.train()(batch).losses  # type: ignore[arg-type]
        assert set(losses) == {"balance"}
        losses["balance"].backward()
        gradient = method.retriever.router.weight.grad
        assert gradient is not None
        gradients.append(gradient)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    data = synthetic.make(synthetic.random_masks(40, 3, 0))
    method, _ = retriever(balance=0.1)
    assert train_epoch(method, data, data.rows("train"), make_optimiser(method), 0)["balance"] > 0


@pytest.mark.parametrize(("form", "kept"), [("pre-ln", True), ("code", False)])
def test_blocks_have_residual_connections(form: str, kept: bool) -> None:
    """D5: if attention and feed-forward layers return zeros, blocks return their input."""
    c = dataclasses.replace(Common(), hidden=8, heads=2, tokens=3, dropout=0.0, fusion_block=form)
    block = TransformerBlock(c, Noise(0))
    method, batch = retriever(context_block=form, dropout=0.0)
    context = method.retriever.context
    _, items = method._plan(batch, 0)  # type: ignore[arg-type]
    assert items is not None
    generator = torch.Generator().manual_seed(0)
    x_block, x_items = torch.randn(4, 3, 8, generator=generator), torch.randn(len(items), 2, 16, generator=generator)
    with torch.no_grad():
        for weights in (block.attention.out, block.ffn.outer, context.attention.out):
            weights.weight.zero_()  # type: ignore[union-attr, operator]
            weights.bias.zero_()  # type: ignore[union-attr, operator]
        mixed = context(x_items, items, torch.from_numpy(items.role), torch.from_numpy(items.target))
        for found, x in ((block(x_block, None)[0], x_block), (mixed, x_items)):
            assert torch.equal(found, x if kept else torch.zeros_like(x))


def test_the_paper_preset_has_no_gate_noise() -> None:
    """D6: without dropout, logits are equal in training and evaluation, except with `noisy_gate`."""
    for noisy in (False, True):
        method, batch = retriever(dropout=0.0, noisy_gate=noisy, support_source="bank")
        with torch.no_grad():
            for p in [method.retriever.router.noise_weight] if noisy else []:  # type: ignore[union-attr]
                p += 0.5
            same = torch.allclose(method.train()(batch).logits, method.eval()(batch).logits, atol=1e-5)  # type: ignore[arg-type]
        assert same != noisy


def test_a_step_encodes_each_row_once() -> None:
    """D13: own and supporting rows of a modality are encoded in one call, each row once."""
    method, batch = retriever()
    seen: list[list[bytes]] = [[] for _ in method.encoders]
    calls = [0] * len(seen)

    def count(m: int) -> object:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            calls[m] += 1
            seen[m] += [row.numpy().tobytes() for row in inputs[0]]

        return hook

    for m, encoder in enumerate(method.encoders):
        encoder.register_forward_pre_hook(count(m))  # type: ignore[arg-type]
    method.train()(batch)  # type: ignore[arg-type]
    assert calls == [1, 1, 1]
    assert all(len(set(rows)) == len(rows) for rows in seen)


def test_samples_without_any_modality_are_removed_from_all_splits(store: Store, tmp_path: Path) -> None:
    """D18: in the released code, they remain in the validation and test splits."""
    write_masks(store, Missingness(p=0.8, redraw=False), tmp_path / "m.parquet")
    data = load(store, mask_file=tmp_path / "m.parquet")
    frame = pl.read_parquet(tmp_path / "m.parquet")
    column = "modality_mask" if "modality_mask" in frame.columns else frame.columns[-1]
    visible = masks.unpack(frame[column].to_numpy(), [m.bit for m in store.modalities])
    empty = set(frame["sample_id"].filter(pl.Series(~visible.any(axis=1))))
    parts = store.split().collect().filter(pl.col("sample_id").is_in(list(empty)))
    assert set(parts["split"]) == {"train", "val", "test"}
    assert not empty & set(data.sample_id.tolist())
    assert data.observed.any(axis=1).all()
    for part in ("train", "val", "test"):
        assert data.n_without[part] >= (parts["split"] == part).sum()


def test_class_weights_affect_the_training_loss() -> None:
    """D20: the reported loss is weighted, and the weights of the model depend on it."""
    data = synthetic.make(np.ones((32, 2), dtype=bool), parts=(1.0, 0.0))
    data.label[:] = np.arange(32) % 8 == 0
    rows = data.rows("train")
    found = {}
    for kind in ("none", "balanced"):
        config = synthetic.config("zero_fill", dropout=0.0, batch_size=32, class_weight=kind)
        method = synthetic.trained_on(data, config)
        batch = data.batch(rows, "x")
        weight = data.class_weight(rows, kind)
        expected = F.cross_entropy(method.eval()(batch).logits, batch.label, weight=weight)
        loss = train_epoch(method, data, rows, make_optimiser(method), 0, weight)["loss"]
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        found[kind] = method.fusion.head.weight.detach().clone()  # type: ignore[union-attr]
    assert not torch.equal(found["none"], found["balanced"])


def test_every_option_is_used(project: Path) -> None:
    """D23: each option is read as an attribute outside of its declaration and checks."""
    read: set[str] = set()
    for path in (project / "model").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and function.name not in ("__post_init__", "_check"):
                read |= {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)}
    for cls in (Common, *(get(n).Options for n in names())):
        unused = {f.name for f in dataclasses.fields(cls)} - read
        assert not unused, f"{cls.__name__}: {unused}"


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "auroc", "loss"])
def test_the_selected_epoch_has_the_best_selection_score(metric: str, store: Store, tmp_path: Path) -> None:
    """D24: the first one if tied."""
    small = {"epochs": 6, "hidden": 8, "tokens": 1, "heads": 2, "encoder_hidden": 8, "patience": 0, "lr": 1e-2}
    config = make_config(get("zero_fill"), preset="paper", seed=0, overrides={**small, "select_metric": metric})
    run_training(Job(store=store, run=tmp_path / "run", config=config, modalities=("table", "series")))
    history = pl.read_parquet(tmp_path / "run" / "history.parquet")
    score = history[f"val_{metric}"]
    best = score.min() if metric == "loss" else score.max()
    assert history["val_score"].equals(score, check_names=False)
    tied = history.filter(score == best).sort("val_loss", maintain_order=True)
    assert history.filter("best")["epoch"].item() == tied["epoch"][0]
    assert score.n_unique() > 1
