"""docs/reference_moe_retriever.py computes what the package computes, with the same weights."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_retriever.config import Config, make_config
from moe_retriever.data.load import Data
from moe_retriever.methods.moe_retriever import MoERetriever
from moe_retriever.retrieval.retriever import INTRA, SlotItems
from moe_retriever.retrieval.supporting_groups import SupportIndex
from tests.moe_retriever.retrieval.retriever_toy import made, retriever_case
from tests.moe_retriever.synthetic import random_masks

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(scope="module")
def reference(project: Path) -> ModuleType:
    spec = spec_from_file_location("reference_moe_retriever", project / "docs" / "reference_moe_retriever.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights_of(method: MoERetriever) -> dict[str, Tensor]:
    """The package's weights under the reference's names; the reference has a module per expert."""
    state = {}
    for name, value in method.state_dict().items():
        root, _, rest = name.partition(".")
        if root == "retriever":
            rest = rest.replace("context.norm", "norm_context").replace("context.attention", "attention")
            if rest.startswith("experts."):
                layer = {"w_in": "inner.weight", "b_in": "inner.bias", "w_out": "outer.weight", "b_out": "outer.bias"}
                for e, one in enumerate(value):
                    state[f"retriever.experts.{e}.{layer[rest[8:]]}"] = one.T if one.ndim == 2 else one
                continue
        if root == "fusion":
            rest = rest.replace("position_MPH", "position")
            if rest.startswith("blocks."):
                _, layer_number, part, *more = rest.split(".")
                plural = {"norm_attention": "norms_attention", "norm_ffn": "norms_ffn"}.get(part, f"{part}s")
                rest = ".".join([plural, layer_number, *more])
        state[f"{root}.{rest}"] = value
    return state


def options_of(reference: ModuleType, config: Config) -> dict[str, Any]:
    values = dataclasses.asdict(config.common) | dataclasses.asdict(config.own)
    return {f.name: values[f.name] for f in dataclasses.fields(reference.Options)}


def test_options_and_defaults_are_the_packages(reference: ModuleType) -> None:
    defaults = make_config(MoERetriever, preset="paper", seed=0, overrides={})
    assert dataclasses.asdict(reference.Options()) == options_of(reference, defaults)


def copies(reference: ModuleType, method: MoERetriever, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The reference's retriever and fusion with the method's weights."""
    n, options = len(method.spec.modalities), reference.Options(**options_of(reference, method.config))
    retriever, fusion = reference.Retriever(n, options), reference.Fusion(n, method.spec.n_outputs, options)
    state = weights_of(method)
    for name, module in (("retriever", retriever), ("fusion", fusion)):
        module.load_state_dict({k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{name}.")})
        module.to(dtype)
    return retriever, fusion


def slots(items: SlotItems, x: Tensor) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
    """Target, intra and inter tokens of each slot."""
    for q, target in enumerate(items.target.tolist()):
        own = np.flatnonzero(items.slot == q)
        roles = items.role[own] == INTRA
        yield target, list(x[own[roles]]), list(x[own[~roles]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"tokens": 1}, {"top_k": 1}, {"n_intra": "all"}, {"inter": False}], ids=str)
def test_the_retriever_and_its_balance_loss(reference: ModuleType, dtype: torch.dtype, options: dict) -> None:
    method, data = made(**options)
    items, x = retriever_case(method, data)
    found = method.eval().retriever(x, items)
    retriever, _ = copies(reference, method, dtype)
    outputs = [retriever(*slot) for slot in slots(items, x.to(dtype))]
    assert len(outputs) > 20
    torch.testing.assert_close(found.tokens.to(dtype), torch.stack([y for y, _ in outputs]), rtol=1e-5, atol=1e-5)
    loss = reference.balance_loss([routed for _, routed in outputs])
    torch.testing.assert_close(found.balance.to(dtype), loss, rtol=1e-5, atol=1e-5)


def test_gradients(reference: ModuleType) -> None:
    method, data = made()
    items, x = retriever_case(method, data)
    retriever, _ = copies(reference, method, torch.float64)
    found = method.train().retriever(x, items)
    (found.tokens.pow(3).sum() + found.balance).backward()
    outputs = [retriever(*slot) for slot in slots(items, x.double())]
    (torch.stack([y for y, _ in outputs]).pow(3).sum() + reference.balance_loss([r for _, r in outputs])).backward()
    for name in ("router.weight", "attention.qkv.weight", "norm_out.weight"):
        one = method.retriever.get_parameter(name.replace("attention", "context.attention")).grad
        torch.testing.assert_close(one.double(), retriever.get_parameter(name).grad, rtol=1e-3, atol=1e-4)


def tokens(method: MoERetriever, data: Data, sample: int, m: int) -> Tensor:
    return method.encoders[m](data.tables[m].gather(data.row[[sample], m]))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_whole_of_algorithm_1(reference: ModuleType, dtype: torch.dtype, layers: int) -> None:
    method, data = made(fusion_layers=layers)
    rows, train = data.rows("test"), data.rows("train")
    batch = data.batch(rows, "here")
    draws, _ = method.eval()._plan(batch, 0)
    with torch.no_grad():
        samples = [
            {m: tokens(method, data, i, m).to(dtype) for m in np.flatnonzero(data.observed[i]).tolist()} for i in rows
        ]
        supports: list[dict[int, list[Tensor]]] = [{} for _ in rows]
        for q, (i, t) in enumerate(zip(draws.sample.tolist(), draws.target.tolist(), strict=True)):
            drawn = train[draws.row[draws.start[q] : draws.start[q + 1]]]
            supports[i][t] = [tokens(method, data, j, t).to(dtype) for j in drawn]
        logits, balance = reference.forward(*copies(reference, method, dtype), samples, supports)
        expected = method(batch)
    assert any(supports)
    assert balance > 0
    torch.testing.assert_close(expected.logits.to(dtype), logits, rtol=1e-5, atol=1e-5)


def test_supporting_groups(reference: ModuleType) -> None:
    masks = random_masks(8, 4, 3, p=0.6)
    index = SupportIndex(masks)
    observed = [set(np.flatnonzero(row).tolist()) for row in masks]
    relaxed = 0
    for code in range(1, 15):
        mc = {m for m in range(4) if code >> m & 1}
        for target in set(range(4)) - mc:
            group = index.group(code, target).tolist()
            relaxed += not group
            assert reference.supporting_group(observed, mc, target) == (group or index.fallback(code, target).tolist())
    assert relaxed
    assert reference.supporting_group([{0}, {0}], {0}, 1) == []
    drawn = reference.draw_supports(list(range(10)), {0, 1, 2}, random.Random(0))
    assert len(set(drawn)) == 3
    assert reference.draw_supports([5], {0, 1}, random.Random(0)) == [5]


def test_it_is_short(project: Path) -> None:
    assert len((project / "docs" / "reference_moe_retriever.py").read_text().splitlines()) <= 200
