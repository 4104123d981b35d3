"""Properties of MoE-Retriever, its presets and its ablations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.tables import Rows
from moe_retriever.methods.moe_retriever import MoERetriever
from moe_retriever.retrieval.retriever import INTRA
from tests.moe_retriever import synthetic
from tests.moe_retriever.retrieval.retriever_toy import MASKS, made, retriever_case

# Properties.


def test_the_router_and_an_expert_of_every_pool_get_gradients() -> None:
    method, data = made(balance=0.0)
    batch = data.batch(data.rows("train"), "x")
    F.cross_entropy(method.train()(batch).logits, batch.label).backward()
    o, experts = method.options, method.retriever.experts
    assert method.retriever.router.weight.grad.abs().sum() > 0
    for pool in range(4):
        members = slice(o.n_experts * pool, o.n_experts * (pool + 1))
        assert experts.w_in.grad[members].abs().sum() > 0
        assert experts.w_out.grad[members].abs().sum() > 0


def test_the_output_depends_on_the_experts() -> None:
    method, data = made()
    batch = data.batch(data.rows("test"), "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        method.retriever.experts.w_out += 0.1
    after = method(batch).logits
    complete = torch.from_numpy(batch.observed.all(axis=1))
    assert (after[~complete] != before[~complete]).any(dim=1).all()
    assert torch.equal(after[complete], before[complete])


@pytest.mark.parametrize("context", ["self", "cross", "query"])
def test_attention_mixes_the_items_of_a_slot_and_no_others(context: str) -> None:
    """In the released code, items of a slot do not affect each other."""
    method, data = made(context=context)
    items, x = retriever_case(method, data)
    mix = method.retriever.context
    role, target = torch.from_numpy(items.role), torch.from_numpy(items.target)
    before = mix(x, items, role, target)
    changed = x.clone()
    slot = int(items.slot[-1])
    mine = np.flatnonzero(items.slot == slot)
    changed[mine[-1]] += 1
    moved = (mix(changed, items, role, target) - before).abs().amax(dim=(1, 2)) > 0
    if context == "query":
        assert moved.tolist() == [q == slot for q in range(len(items.target))]
    else:
        assert moved[mine[0]]
        assert set(np.flatnonzero(moved.numpy()).tolist()) <= set(mine.tolist())


def test_cross_attention_is_restricted_to_the_other_role() -> None:
    method, data = made(context="cross", context_block="none")
    items, x = retriever_case(method, data)
    role, target = torch.from_numpy(items.role), torch.from_numpy(items.target)
    both = next(s for s in items.slot if len(set(items.role[items.slot == s])) == 2)
    mine = np.flatnonzero(items.slot == both)
    intra = mine[items.role[mine] == INTRA]
    before = method.retriever.context(x, items, role, target)
    changed = x.clone()
    changed[intra[0]] += 1
    moved = (method.retriever.context(changed, items, role, target) - before).abs().amax(dim=(1, 2)) > 0
    # An intra item affects inter items (by its keys and values) and itself (by its query), but no other intra item.
    assert not moved[intra[1:]].any()
    assert moved[mine[items.role[mine] != INTRA]].all()


def test_tokens_visit_only_experts_of_their_target_and_shared_ones() -> None:
    method, data = made()
    found = method.eval()(data.batch(np.arange(len(data)), "x"), detail=True).diagnostics["routing"]
    n = method.options.n_experts
    for target in range(3):
        mine = found["weight"][found["target"] == target]
        own = mine[:, n * target : n * (target + 1)].sum()
        assert own > 0
        assert mine.sum() == pytest.approx(own + mine[:, 3 * n :].sum())
    np.testing.assert_allclose(found["share"].sum(axis=1), 1, rtol=1e-5)


def test_without_context_routing_all_experts_are_allowed() -> None:
    method, data = made(context_routing=False, n_experts=2, n_shared=1, top_k=7)
    found = method.eval()(data.batch(np.arange(len(data)), "x"), detail=True).diagnostics["routing"]
    assert (found["weight"] > 0).all()
    np.testing.assert_allclose(found["weight"].sum(axis=1), 1, rtol=1e-5)


OPTIONS: list[dict[str, object]] = [
    {},
    {"n_intra": "all"},
    {"n_intra": 4},
    {"context": "cross"},
    {"context": "query"},
    {"context_block": "code"},
    {"context_block": "none"},
    {"integration": "broadcast"},
    {"integration": "gate"},
    {"integration": "queries"},
    {"integration": "raw_mean"},
    {"routers": "role"},
    {"routers": "target"},
    {"context_routing": False},
    {"intra": False},
    {"inter": False},
    {"residual": True},
    {"embeddings": True},
    {"output_norm": False},
    {"renormalise": True, "noisy_gate": True},
    {"draws": 3},
    {"tokens": 1},
    {"fusion_layers": 2},
    {"fusion_experts": 4, "fusion_top_k": 2},
    {"fusion_block": "code"},
    {"support_source": "bank"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "paper")
def test_predictions_do_not_depend_on_the_batch(options: dict[str, object]) -> None:
    method, data = made(**options)
    method.eval()
    rows = data.rows("test")
    together = method(data.batch(rows, "evaluation")).logits
    order = np.arange(len(rows))[::-1].copy()
    shuffled = method(data.batch(rows[order], "evaluation")).logits
    alone = torch.cat([method(data.batch(rows[[i]], "evaluation")).logits for i in range(len(rows))])
    torch.testing.assert_close(shuffled[torch.from_numpy(order)], together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "paper")
def test_every_option_can_be_trained(options: dict[str, object]) -> None:
    method, data = made(**options)
    batch = data.batch(data.rows("train"), "x")
    out = method.train()(batch)
    (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
    assert torch.isfinite(out.logits).all()
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)


def test_supporting_samples_are_training_samples() -> None:
    """In any evaluation, only features of training samples are used as support."""
    method, data = made()
    asked: list[int] = []
    owners = [np.flatnonzero(data.observed[:, m]) for m in range(3)]
    for m, table in enumerate(data.tables):
        gather = table.gather

        def spy(rows: Rows, m: int = m, gather: Callable[[Rows], Tensor] = gather) -> Tensor:
            asked.extend(owners[m][rows].tolist())
            return gather(rows)

        table.gather = spy  # type: ignore[method-assign]
    test = data.rows("test")
    method.eval()(data.batch(test, "evaluation"))
    supports = set(asked) - set(test.tolist())
    assert supports
    assert supports <= set(data.rows("train").tolist())


def test_a_modality_without_training_samples_is_retrieved_from_own_modalities() -> None:
    """Without inter-modal items, the slot remains masked."""
    masks = np.ones((20, 3), dtype=bool)
    masks[:, 2] = False
    masks[15:, 2] = True
    masks[16:, 0] = False
    method, data = made(masks)
    assert torch.isfinite(method.eval()(data.batch(np.arange(12), "x")).logits).all()
    method, data = made(masks, inter=False)
    assert torch.isfinite(method.eval()(data.batch(np.arange(12), "x")).logits).all()


def test_data_with_one_modality_need_no_retrieval() -> None:
    method, data = made(np.ones((12, 1), dtype=bool), kinds=("sequence",))
    out = method.train()(data.batch(data.rows("train"), "x"))
    assert out.losses == {}
    assert out.logits.shape == (7, 2)


def test_sixteen_modalities() -> None:
    method, data = made(synthetic.random_masks(40, 16, 0), tokens=1)
    assert torch.isfinite(method.eval()(data.batch(np.arange(40), "x")).logits).all()


# Presets and ablations.


def test_released_code_averages_its_inputs_and_trains_no_retriever_weights() -> None:
    """0.5 · mean(intra) + 0.5 · mean(inter) of encoder outputs, without gradients for router and experts."""
    data = synthetic.make(MASKS)
    config = synthetic.config(preset="released-code", dropout=0.0, epochs=10)
    method = synthetic.trained_on(data, config)
    assert isinstance(method, MoERetriever)
    items, x = retriever_case(method, data)
    found = method.retriever(x, items).tokens
    for q in range(len(items.target)):
        mine = np.flatnonzero(items.slot == q)
        intra, inter = (x[mine[items.role[mine] == r]] for r in (0, 1))
        expected = 0.5 * intra.mean(0) + 0.5 * inter.mean(0) if len(intra) else inter.mean(0)
        torch.testing.assert_close(found[q], expected)
    batch = data.batch(data.rows("train"), "x")
    out = method.train()(batch)
    assert out.losses == {}
    F.cross_entropy(out.logits, batch.label).backward()
    assert all(p.grad is None for p in method.retriever.parameters())
    assert all(p.grad is not None for p in method.encoders.parameters())


def test_code_intended_uses_its_experts() -> None:
    data = synthetic.make(MASKS)
    method = synthetic.trained_on(data, synthetic.config(preset="code-intended", epochs=10))
    batch = data.batch(data.rows("train"), "x")
    out = method.train()(batch)
    assert set(out.losses) == {"balance"}
    F.cross_entropy(out.logits, batch.label).backward()
    assert method.retriever.experts.w_out.grad.abs().sum() > 0
    assert method.retriever.router.noise_weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("switch", "role"), [("intra", 1), ("inter", 0)])
def test_an_ablation_removes_all_items_of_a_role(switch: str, role: int) -> None:
    method, data = made(**{switch: False})
    items, _ = retriever_case(method, data)
    assert set(items.role.tolist()) == {role}


def test_numbers_of_parameters_match_the_released_code() -> None:
    """Released code for H = 128 and P = 16: retriever 1.39, 1.92 and 2.45 M; fusion and head 0.137 to 0.142 M.

    Ours lacks gate noise (128 E weights) and has three more layer norms: of retrieved slots, of the attention, and of
    the fusion.
    """
    from moe_retriever.config import Common
    from moe_retriever.methods.moe_retriever import MoERetrieverOptions
    from moe_retriever.nn.attention import Fusion
    from moe_retriever.nn.dropout import Noise
    from moe_retriever.retrieval.retriever import Retriever

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    for m, published, fusion in ((2, 1_389_696, 136_963), (3, 1_919_104, 139_395), (4, 2_448_512, 141_827)):
        with torch.device("meta"):
            retriever = Retriever(m, Common(), MoERetrieverOptions(), Noise(0))
            assert count(Fusion(m, 3, Common(), Noise(0))) == fusion + 256
        assert count(retriever) == published - 128 * (8 * m + 4) + 256
