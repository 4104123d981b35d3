"""MoE-Retriever against a slow float64 reference, written from the equations sample by sample; and its properties."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import Config
from model.data import Data
from model.inputs import Rows
from model.methods.moe_retriever import MoERetriever
from model.retriever import INTRA, Items
from tests.model import synthetic
from tests.model.slow import Slow

MASKS = synthetic.random_masks(60, 3, 4, p=0.45)


def made(
    masks: np.ndarray = MASKS, kinds: tuple[str, ...] | None = None, **options: object
) -> tuple[MoERetriever, Data]:
    data = synthetic.make(masks, kinds)
    method = synthetic.trained_on(data, synthetic.config(dropout=0.0, **options))
    assert isinstance(method, MoERetriever)
    return method, data


# The reference: plain loops over samples, missing modalities, items, heads and experts.


class SlowRetriever(Slow):
    """One sample at a time, from Algorithm 1 and Eq. 1–3 with the decisions A2 a, A3, A4, A8 a."""

    def __init__(self, method: MoERetriever, data: Data):
        self.data, self.config = data, method.config
        self.weights = {k: v.detach().double().requires_grad_() for k, v in method.state_dict().items()}
        self.index, self.rows = method.index, data.rows("train")
        self.kinds = [s.kind for s in data.spec.modalities]

    def encode(self, sample: int, m: int) -> Tensor:
        """(P, H) of an MLP or of a GRU, step by step."""
        c, row = self.config.common, int(self.data.row[sample, m])
        table = self.data.tables[m]
        if self.kinds[m] == "vector":
            state = self.linear(table.x[row].double(), f"encoders.{m}.inner").relu()
        else:
            state = torch.zeros(c.encoder_hidden, dtype=torch.float64)
            name = f"encoders.{m}.rnn"
            for step in table.x[table.offsets[row] : table.offsets[row + 1]].double():
                gates_x = self.w(f"{name}.weight_ih_l0") @ step + self.w(f"{name}.bias_ih_l0")
                gates_h = self.w(f"{name}.weight_hh_l0") @ state + self.w(f"{name}.bias_hh_l0")
                (rx, zx, nx), (rh, zh, nh) = gates_x.chunk(3), gates_h.chunk(3)
                reset, update = (rx + rh).sigmoid(), (zx + zh).sigmoid()
                state = (1 - update) * (nx + reset * nh).tanh() + update * state
        chunk = math.ceil(len(state) / c.tokens)
        padded = torch.cat([state, torch.zeros(chunk * c.tokens - len(state), dtype=torch.float64)])
        return self.linear(padded.view(c.tokens, chunk), f"encoders.{m}.tokens.linear")

    def attention(self, x: Tensor, name: str) -> Tensor:
        """(L, H), one head at a time."""
        q, k, v = self.linear(x, f"{name}.qkv").chunk(3, dim=1)
        size = x.shape[1] // self.config.common.heads
        heads = []
        for h in range(self.config.common.heads):
            s = slice(h * size, (h + 1) * size)
            heads.append((q[:, s] @ k[:, s].T / math.sqrt(size)).softmax(1) @ v[:, s])
        return self.linear(torch.cat(heads, dim=1), f"{name}.out")

    def expert(self, x: Tensor, e: int) -> Tensor:
        inner = F.gelu(x @ self.w("retriever.experts.w_in")[e] + self.w("retriever.experts.b_in")[e])
        return inner @ self.w("retriever.experts.w_out")[e] + self.w("retriever.experts.b_out")[e]

    def mixture(self, x: Tensor, target: int) -> Tensor:
        """Eq. 1 for one token: softmax over the allowed experts, keep the top k as they are."""
        o = self.config.own
        shared = range(o.n_experts * len(self.kinds), o.n_experts * len(self.kinds) + o.n_shared)
        allowed = [*range(o.n_experts * target, o.n_experts * (target + 1)), *shared]
        p = (self.w("retriever.router.weight")[allowed] @ x).softmax(0)
        best = p.topk(o.top_k)
        return sum(p[i] * self.expert(x, allowed[i]) for i in best.indices.tolist())

    def supports(self, sample: int, stream: str) -> dict[int, list[int]]:
        """Samples that support each missing modality; that they are the right ones is another test's business."""
        d = self.index.draw(
            self.data.observed[[sample]], self.data.keys[[sample]], self.data.spec.names, wanted="observed",
            seed=self.config.seed, stream=f"{stream} draw 0", own_row=np.flatnonzero(self.rows == sample)
            if sample in self.rows else np.array([-1]),
        )  # fmt: skip
        return {int(t): self.rows[d.row[d.start[q] : d.start[q + 1]]].tolist() for q, t in enumerate(d.target)}

    def retrieve(self, sample: int, target: int, supports: list[int]) -> Tensor:
        """Algorithm 1, lines 9–18, for one missing modality: (P, H)."""
        mc = np.flatnonzero(self.data.observed[sample]).tolist()
        items = [self.encode(j, target) for j in supports] + [self.encode(sample, m) for m in mc]
        x = torch.cat(items)
        x = x + self.attention(self.norm(x, "retriever.context.norm"), "retriever.context.attention")
        x = self.norm(x, "retriever.norm_in")
        y = torch.stack([self.mixture(token, target) for token in x]).view(len(items), -1, x.shape[1])
        inter = y[len(supports) :].mean(0)
        slot = 0.5 * y[: len(supports)].mean(0) + 0.5 * inter if supports else inter
        return self.norm(slot, "retriever.norm_out")

    def logits(self, sample: int, stream: str) -> Tensor:
        supports = self.supports(sample, stream)
        slots = [
            self.encode(sample, m) if self.data.observed[sample, m] else self.retrieve(sample, m, supports[m])
            for m in range(len(self.kinds))
        ]
        x = (torch.stack(slots) + self.w("fusion.position_MPH")).flatten(0, 1)
        x = x + self.attention(self.norm(x, "fusion.blocks.0.norm_attention"), "fusion.blocks.0.attention")
        inner = F.gelu(self.linear(self.norm(x, "fusion.blocks.0.norm_ffn"), "fusion.blocks.0.ffn.inner"))
        x = self.norm(x + self.linear(inner, "fusion.blocks.0.ffn.outer"), "fusion.norm")
        mean = x.view(len(self.kinds), -1, x.shape[1]).mean(1).flatten()
        return self.linear(mean, "fusion.head")


@pytest.mark.parametrize("training", [False, True])
def test_forward_and_gradients_equal_the_slow_reference(training: bool) -> None:
    method, data = made(kinds=("vector", "sequence", "vector"), balance=0.0)
    slow = SlowRetriever(method, data)
    rows = data.rows("train" if training else "test")[:10]
    method.train(training)
    batch = data.batch(rows, "here")
    assert not batch.observed.all()
    out = method(batch)
    expected = torch.stack([slow.logits(int(i), "here") for i in rows])
    torch.testing.assert_close(out.logits.double(), expected, rtol=1e-4, atol=1e-5)
    if training:
        F.cross_entropy(out.logits, batch.label).backward()
        F.cross_entropy(expected, batch.label).backward()
        for name, p in method.named_parameters():
            wanted = slow.weights[name].grad
            found = torch.zeros_like(p) if p.grad is None else p.grad
            wanted = torch.zeros_like(found) if wanted is None else wanted
            torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-3, atol=1e-6, msg=name)


# models.md §2.8.


def test_gradient_reaches_the_router_and_an_expert_of_every_pool() -> None:
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


def retriever_case(method: MoERetriever, data: Data) -> tuple[Items, Tensor]:
    batch = data.batch(data.rows("train"), "x")
    _, items = method._plan(batch, 0)
    shape = (len(items), method.config.common.tokens, method.config.common.hidden)
    return items, torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("context", ["self", "cross", "query"])
def test_attention_mixes_the_items_of_a_slot_and_no_others(context: str) -> None:
    """D4: in the released code a change of one item never reaches another."""
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


def test_cross_attention_looks_at_the_other_role_only() -> None:
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
    # Keys and values of an intra item reach inter items; its own query moves itself, but no other intra item.
    assert not moved[intra[1:]].any()
    assert moved[mine[items.role[mine] != INTRA]].all()


def test_tokens_use_their_targets_pool_and_the_shared_one_only() -> None:
    method, data = made()
    found = method.eval()(data.batch(np.arange(len(data)), "x"), detail=True).diagnostics["routing"]
    n = method.options.n_experts
    for target in range(3):
        mine = found["weight"][found["target"] == target]
        own = mine[:, n * target : n * (target + 1)].sum()
        assert own > 0
        assert mine.sum() == pytest.approx(own + mine[:, 3 * n :].sum())
    np.testing.assert_allclose(found["share"].sum(axis=1), 1, rtol=1e-5)


def test_without_context_routing_every_expert_is_open_to_every_target() -> None:
    method, data = made(context_routing=False, n_experts=2, n_shared=1, top_k=7)
    found = method.eval()(data.batch(np.arange(len(data)), "x"), detail=True).diagnostics["routing"]
    assert (found["weight"] > 0).all()
    np.testing.assert_allclose(found["weight"].sum(axis=1), 1, rtol=1e-5)


OPTIONS: list[dict[str, object]] = [
    {}, {"n_intra": "all"}, {"n_intra": 4}, {"context": "cross"}, {"context": "query"}, {"context_block": "code"},
    {"context_block": "none"}, {"integration": "broadcast"}, {"integration": "gate"}, {"integration": "queries"},
    {"integration": "raw_mean"}, {"routers": "role"}, {"routers": "target"}, {"context_routing": False},
    {"intra": False}, {"inter": False}, {"residual": True}, {"embeddings": True}, {"output_norm": False},
    {"renormalise": True, "noisy_gate": True}, {"draws": 3}, {"tokens": 1}, {"fusion_layers": 2},
    {"fusion_experts": 4, "fusion_top_k": 2}, {"fusion_block": "code"}, {"support": "bank"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "paper")
def test_order_and_company_do_not_change_a_prediction(options: dict[str, object]) -> None:
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
def test_every_option_trains(options: dict[str, object]) -> None:
    method, data = made(**options)
    batch = data.batch(data.rows("train"), "x")
    out = method.train()(batch)
    (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
    assert torch.isfinite(out.logits).all()
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)


def test_supports_are_training_samples() -> None:
    """A13: whatever is evaluated, nobody but a training sample is ever asked for its features."""
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


def test_a_modality_that_training_never_saw_is_filled_from_the_samples_own() -> None:
    """A7, last step; without inter tokens nothing is left, and the slot stays masked."""
    masks = np.ones((20, 3), dtype=bool)
    masks[:, 2] = False
    masks[15:, 2] = True
    masks[16:, 0] = False
    method, data = made(masks)
    assert torch.isfinite(method.eval()(data.batch(np.arange(12), "x")).logits).all()
    method, data = made(masks, inter=False)
    assert torch.isfinite(method.eval()(data.batch(np.arange(12), "x")).logits).all()


def test_one_modality_alone_needs_no_retrieval() -> None:
    method, data = made(np.ones((12, 1), dtype=bool), kinds=("sequence",))
    out = method.train()(data.batch(data.rows("train"), "x"))
    assert out.losses == {}
    assert out.logits.shape == (7, 2)


def test_sixteen_modalities() -> None:
    method, data = made(synthetic.random_masks(40, 16, 0), tokens=1)
    assert torch.isfinite(method.eval()(data.batch(np.arange(40), "x")).logits).all()


# Presets and ablations.


def test_released_code_is_the_mean_of_raw_inputs_and_trains_no_retriever_weight() -> None:
    """D1: 0.5 · mean(intra) + 0.5 · mean(inter) of the encoders' outputs; zero gradient to router and experts."""
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
def test_an_ablated_role_is_gone(switch: str, role: int) -> None:
    method, data = made(**{switch: False})
    items, _ = retriever_case(method, data)
    assert set(items.role.tolist()) == {role}


def test_published_sizes() -> None:
    """models.md §2.6, at H = 128 and P = 16: retriever 1.39, 1.92, 2.45 M; fusion and head 0.137 to 0.142 M.

    Ours has no gate noise (128 E fewer weights) and three more layer norms: of the slot, of its MHA, of the fusion.
    """
    from model.config import Common
    from model.fusion import Fusion
    from model.methods.moe_retriever import MoERetrieverOptions
    from model.noise import Noise
    from model.retriever import Retriever

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    for m, published, fusion in ((2, 1_389_696, 136_963), (3, 1_919_104, 139_395), (4, 2_448_512, 141_827)):
        with torch.device("meta"):
            retriever = Retriever(m, Common(), MoERetrieverOptions(), Noise(0))
            assert count(Fusion(m, 3, Common(), Noise(0))) == fusion + 256
        assert count(retriever) == published - 128 * (8 * m + 4) + 256


# Training-time details.


def test_warm_up_masks_missing_slots_and_does_not_retrieve() -> None:
    """A15: in the warm-up a missing modality is as if it were not there."""
    method, data = made(warmup=0.5, epochs=10)
    rows = np.flatnonzero(~data.observed[:, 2])
    method.begin_epoch(4, 10)
    assert not method.selectable
    batch = data.batch(rows, "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        for p in (*method.retriever.parameters(), *method.encoders[2].parameters(), method.fusion.position_MPH[2]):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(method(batch).logits, before)
    method.begin_epoch(5, 10)
    assert method.selectable
    assert (method(batch).logits - before).abs().max() > 1e-3


def test_warm_up_with_zeros_attends_to_the_empty_slots() -> None:
    method, data = made(warmup=0.5, epochs=10, warmup_kind="zeros")
    method.begin_epoch(0, 10)
    batch = data.batch(np.flatnonzero(~data.observed[:, 2]), "x")
    before = method.eval()(batch).logits
    with torch.no_grad():
        method.fusion.position_MPH[2].add_(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    assert (method(batch).logits - before).abs().max() > 1e-3


def test_fresh_supports_get_gradients_and_banked_ones_do_not() -> None:
    """A12. Modality 1 is seen only through supports of others here."""
    masks = np.ones((30, 2), dtype=bool)
    masks[:5, 1] = False
    for support, reached in (("fresh", True), ("bank", False)):
        method, data = made(masks, support=support)
        batch = data.batch(np.arange(5), "x")
        F.cross_entropy(method.train()(batch).logits, batch.label).backward()
        grad = method.encoders[1].inner.weight.grad
        assert (grad is not None and bool(grad.abs().sum() > 0)) == reached


def test_the_bank_is_made_anew_each_epoch_and_gives_what_fresh_encoding_gives() -> None:
    method, data = made()
    batch = data.batch(data.rows("test"), "evaluation")
    method.eval()
    first = method(batch).logits
    with torch.no_grad():
        for p in method.encoders.parameters():
            p.mul_(1.5)
    stale = method(batch).logits
    method.refresh()
    fresh = method(batch).logits
    other, _ = made()
    with torch.no_grad():
        for p in other.encoders.parameters():
            p.mul_(1.5)
    torch.testing.assert_close(fresh, other.eval()(batch).logits)
    assert not torch.allclose(stale, fresh)
    assert not torch.allclose(first, fresh)


def test_a_banks_copy_predicts_like_the_store() -> None:
    method, data = made()
    batch = data.batch(data.rows("test"), "evaluation")
    expected = method.eval()(batch).logits
    other = synthetic.get(method.config.method).create(data.spec, method.config)
    other.load_state_dict(method.state_dict())
    other.load_reference(method.reference_state())
    torch.testing.assert_close(other.eval()(batch).logits, expected)
    assert method.reference_bytes() == sum(b.numel() * 4 for b in method.reference_state()["banks"])


def test_hidden_modalities_are_retrieved_and_reconstructed() -> None:
    """A16 and A19: hiding an observed modality makes a slot whose own encoding is a target."""
    method, data = made(reconstruct=0.5)
    batch = data.batch(data.rows("train"), "x", hide=0.4)
    assert batch.hidden.any()
    assert batch.observed.any(axis=1).all()
    assert not (batch.hidden & batch.observed).any()
    out = method.train()(batch)
    assert 0 < float(out.losses["reconstruct"].detach()) <= 1.0


def test_steps_leave_nothing_behind() -> None:
    """D3: the released code keeps every graph. Here no tensor outlives its step."""
    import gc

    method, data = made()
    optimiser = torch.optim.Adam(method.parameters())

    def live_tensors() -> int:
        gc.collect()
        return sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects())

    counts = []
    for step in range(6):
        batch = data.batch(data.rows("train"), f"epoch {step}", hide=0.2)
        out = method.train()(batch, detail=True)
        optimiser.zero_grad()
        (F.cross_entropy(out.logits, batch.label) + sum(out.losses.values())).backward()
        optimiser.step()
        del batch, out
        counts.append(live_tensors())
    assert counts[2] == counts[-1]


def test_evaluation_keeps_no_statistics() -> None:
    method, data = made(kinds=("image", "vector", "vector"), image_encoder="vgg11_bn")
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.eval()(data.batch(data.rows("test"), "evaluation"), detail=True)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_supports_do_not_move_batch_statistics_in_training() -> None:
    """Two steps on the same batch, with supports and without: the running statistics agree."""
    masks = np.ones((30, 2), dtype=bool)
    masks[:10, 0] = False
    statistics = []
    for intra in (True, False):
        method, data = made(masks, kinds=("image", "vector"), image_encoder="vgg11_bn", intra=intra, image_dropout=0.0)
        method.train()(data.batch(np.arange(18), "x"))
        statistics.append(method.encoders[0].cnn.features[1].running_mean.clone())
    assert torch.equal(*statistics)
    assert statistics[0].abs().sum() > 0


def test_equal_seeds_give_equal_encoders_whatever_the_options() -> None:
    a, _ = made()
    b, _ = made(n_experts=5, integration="queries")
    c = synthetic.trained_on(synthetic.make(MASKS), synthetic.config(seed=1))
    for x, y, z in zip(a.encoders.parameters(), b.encoders.parameters(), c.encoders.parameters(), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)


def test_config_survives_a_round_trip() -> None:
    config = synthetic.config(n_intra=4, lr=1e-3)
    assert Config.from_dict(config.to_dict(), MoERetriever) == config
