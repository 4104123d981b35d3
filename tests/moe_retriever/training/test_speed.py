"""Optimisations do not change results (grouped experts, bank, authors' loop); memory stays constant."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import speed
from benchmarks.peer import Peer, Settings, collate
from benchmarks.peer import Samples as PeerSamples
from moe_retriever.data.load import Data
from moe_retriever.evaluation.cost import peak_memory_mb, reset_peak_memory
from moe_retriever.evaluation.flops import flop_counter
from moe_retriever.methods.base import Method
from moe_retriever.methods.moe_retriever import MoERetriever
from moe_retriever.nn.kernels.grouped_ffn import GroupedFeedForward, VisitPlan
from moe_retriever.training.loop import make_optimiser, train_epoch
from moe_retriever.training.predict import predict
from tests.moe_retriever import synthetic

T, K, E, H, FFN, R = 30, 2, 5, 4, 6, 7


def _loop(x: Tensor, expert: Tensor, weight: Tensor, keep: Tensor, row: Tensor, w: list[Tensor]) -> Tensor:
    """Reference: one expert visit at a time; `keep` is indexed by (token, k)."""
    out = [torch.zeros(H, dtype=x.dtype) for _ in range(R)]
    for t in range(T):
        for k in range(K):
            e = int(expert[t, k])
            hidden = F.gelu(x[t] @ w[0][e] + w[1][e]) * keep[t, k]
            out[int(row[t])] = out[int(row[t])] + weight[t, k] * (hidden @ w[2][e] + w[3][e])
    return torch.stack(out)


@pytest.mark.parametrize("merged", [False, True])
def test_grouped_experts_and_their_gradients_equal_a_loop_over_visits(merged: bool) -> None:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    x, weight = draw(T, H), draw(T, K)
    w = [draw(E, H, FFN), draw(E, FFN), draw(E, FFN, H), draw(E, H)]
    # Expert 2 is never visited.
    allowed = torch.tensor([0, 1, 3, 4])
    expert = torch.stack([allowed[torch.randperm(4, generator=g)[:K]] for _ in range(T)])
    keep = torch.randint(0, 2, (T, K, FFN), generator=g)
    row = torch.randint(0, R, (T,), generator=g) if merged else torch.arange(T) % R
    plan = VisitPlan.of(expert, E, row if merged else None, R if merged else T)
    assert (plan.first is not None) == merged
    assert len(plan.row) < T * K or not merged
    kept = keep.flatten(0, 1)[plan.order].to(torch.uint8)
    found = GroupedFeedForward.apply(x, weight.flatten()[plan.order], kept, plan, *w, True)
    if not merged:
        found = torch.zeros(R, H, dtype=torch.float64).index_add(0, row, found)
    expected = _loop(x, expert, weight, keep, row, w)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(R, H, generator=g, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((found * direction).sum(), [x, weight, *w]),
        torch.autograd.grad((expected * direction).sum(), [x, weight, *w]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


# The authors' loop, with attention across the items of a slot as in the paper (`across`), without noise and dropout.


def _peer(method: MoERetriever, data: Data, *, released: bool, stream: str) -> Peer:
    """The authors' implementation with our weights and draws."""
    c, o = method.config.common, method.options
    s = Settings(
        hidden=c.hidden,
        tokens=c.tokens,
        heads=c.heads,
        ffn=c.fusion_ffn,
        n_experts=o.n_experts,
        n_shared=o.n_shared,
        top_k=o.top_k,
        dropout=0.0,
        noisy=False,
    )
    arrays = _dense(data)

    def choose(row: int, target: int, pool: list[int], n: int) -> list[int]:
        own = method.reference.own_row(data, np.array([row]))
        drawn = method.index.draw(
            data.observed[[row]],
            data.keys[[row]],
            data.spec.names,
            wanted="observed",
            seed=method.config.seed,
            stream=f"{stream} draw 0",
            own_row=own,
        )
        q = int(np.flatnonzero(drawn.target == target)[0])
        rows = data.rows("train")[drawn.row[drawn.start[q] : drawn.start[q + 1]]].tolist()
        assert drawn.relaxed[q] or set(rows) <= set(pool)
        return rows

    peer = Peer(
        [a.shape[1:] for a in arrays],
        data.spec.n_outputs,
        s,
        arrays,
        data.observed,
        data.rows("train"),
        released=released,
        across=True,
        choose=choose,
    )
    ours = method.state_dict()
    names = {
        "retriever.attention.": "retriever.context.attention.",
        "retriever.norm.": "retriever.norm_in.",
        "retriever.experts.": "retriever.experts.",
        "fusion.attention.": "fusion.blocks.0.attention.",
        "fusion.norm_attention.": "fusion.blocks.0.norm_attention.",
        "fusion.norm_ffn.": "fusion.blocks.0.norm_ffn.",
        "fusion.inner.": "fusion.blocks.0.ffn.inner.",
        "fusion.outer.": "fusion.blocks.0.ffn.outer.",
        "fusion.position": "fusion.position_MPH",
    }
    state = {}
    for name, old in peer.state_dict().items():
        prefix = next((p for p in names if name.startswith(p)), None)
        if name == "retriever.gate.weight":
            state[name] = ours["retriever.router.weight"].T
        elif name == "retriever.gate.noise_weight":
            state[name] = old
        else:
            state[name] = ours[name if prefix is None else names[prefix] + name[len(prefix) :]]
    peer.load_state_dict(state)
    return peer


def _dense(data: Data) -> list[np.ndarray]:
    arrays = []
    for m, table in enumerate(data.tables):
        x = np.full((len(data), data.spec.modalities[m].shape[0]), -2.0, dtype=np.float32)
        seen = data.observed[:, m]
        x[seen] = table.pooled(data.row[seen, m]).numpy()
        arrays.append(x)
    return arrays


@pytest.mark.parametrize("released", [False, True])
def test_the_authors_loop_has_equal_outputs_and_gradients(released: bool) -> None:
    """The speed benchmark therefore compares two implementations of the same computation."""
    data = synthetic.make(synthetic.random_masks(50, 3, 4, p=0.45), ("vector", "genotype", "vector"))
    preset = "released-code" if released else "code-intended"
    options: dict[str, Any] = {"fusion_block": "code", "warmup": 0, "dropout": 0.0, "balance": 0.0, "expert_ffn": 24}
    options |= {} if released else {"noisy_gate": False}
    method = synthetic.trained_on(data, synthetic.config(preset=preset, **options))
    assert isinstance(method, MoERetriever)
    method.begin_epoch(0, 20)
    rows = data.rows("train")[:12]
    peer = _peer(method, data, released=released, stream="here")
    batch = data.batch(rows, "here")
    assert not batch.observed.all()
    logits = method.train()(batch).logits
    (theirs,) = (
        peer.train()(b) for b in collate(PeerSamples(_dense(data), data.observed, data.label, rows), len(rows))
    )
    torch.testing.assert_close(theirs, logits, rtol=1e-4, atol=1e-5)
    F.cross_entropy(logits, batch.label).backward()
    F.cross_entropy(theirs, batch.label).backward()
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = [
        (peer.fusion.head.weight, method.fusion.head.weight),
        (peer.encoders[0].linear.weight, method.encoders[0].linear.weight),
        (peer.encoders[1].linear.weight, method.encoders[1].linear.weight),
    ]
    experts = (peer.retriever.experts.w_out, method.retriever.experts.w_out)
    if released:
        # In the released code the experts' output is discarded, so they get no gradient.
        assert experts[0].grad is None
    else:
        pairs += [experts, (peer.retriever.experts.w_in, method.retriever.experts.w_in)]
        torch.testing.assert_close(
            peer.retriever.gate.weight.grad.T, method.retriever.router.weight.grad, rtol=1e-3, atol=1e-6
        )
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


# The bank.


def test_predictions_from_the_bank_equal_fresh_ones_and_encode_each_row_once() -> None:
    data = synthetic.make(synthetic.random_masks(50, 3, 4, p=0.45), ("vector", "volume", "sequence"))
    method = synthetic.trained_on(data, synthetic.config(dropout=0.0)).eval()
    rows = data.rows("test")
    first = predict(method, data, rows).logits
    with _encoded(method) as counts:
        again = predict(method, data, rows, same_weights=True).logits
    assert counts == [0, 0, 0]
    np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-6)
    with _encoded(method) as counts:
        predict(method, data, rows, draws=3)
    # Three draws use many rows repeatedly, but no row is encoded more than once.
    met = [(set(data.row[rows, m]) | set(data.row[data.rows("train"), m])) - {-1} for m in range(3)]
    assert [data.observed[rows, m].sum() < n <= len(met[m]) for m, n in enumerate(counts)] == [True] * 3
    small = synthetic.trained_on(data, synthetic.config(dropout=0.0, bank_mb=0.0)).eval()
    np.testing.assert_allclose(predict(small, data, rows).logits, first, rtol=1e-5, atol=1e-6)


@contextmanager
def _encoded(method: Method) -> Iterator[list[int]]:
    """Count the entries of each modality that are encoded inside the context."""
    counts = [0] * len(method.encoders)

    def count(m: int) -> Any:
        def hook(_: nn.Module, __: Any, tokens: Tensor) -> None:
            counts[m] += len(tokens)

        return hook

    hooks = [e.register_forward_hook(count(m)) for m, e in enumerate(method.encoders)]
    yield counts
    for hook in hooks:
        hook.remove()


def test_embeddings_of_a_step_are_reused_as_support() -> None:
    data = synthetic.make(synthetic.random_masks(40, 2, 1, p=0.4), ("volume", "vector"))
    method = synthetic.trained_on(data, synthetic.config(dropout=0.0, warmup=0, batch_size=40))
    assert isinstance(method, MoERetriever)
    method.begin_epoch(0, 20)
    rows = data.rows("train")
    seen: list[int] = []
    method.encoders[0].register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    batch = data.batch(rows, "x")
    method.train()(batch)
    assert seen == [int(batch.observed[:, 0].sum())]
    banked = method.reference.bank.embed(0, data.row[rows[batch.observed[:, 0]], 0], method.encoders[0])
    expected = method.encoders[0](data.tables[0].gather(data.row[rows[batch.observed[:, 0]], 0]))
    torch.testing.assert_close(banked, expected.detach())
    assert not banked.requires_grad


# Memory and FLOPs.


def _live_bytes() -> int:
    gc.collect()
    return sum(t.numel() * t.element_size() for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))


def test_no_tensor_is_kept_after_its_epoch() -> None:
    """The released retriever leaks: summing its gate losses keeps the autograd graph of every call."""
    data = synthetic.make(synthetic.random_masks(40, 3, 4, p=0.45))
    method = synthetic.trained_on(data, synthetic.config(warmup=0, noisy_gate=True))
    optimiser = make_optimiser(method)
    sizes = []
    for epoch in range(5):
        train_epoch(method, data, data.rows("train"), optimiser, epoch)
        predict(method, data, data.rows("val"))
        sizes.append(_live_bytes())
    assert sizes[1:] == sizes[1:2] * 4
    # The released code does keep the graph.
    plain = synthetic.trained_on(data, synthetic.config(preset="released-code", expert_ffn=24))
    assert isinstance(plain, MoERetriever)
    peer = _peer(plain, data, released=True, stream="x")
    before = peer.retriever.gate.loss
    for batch in collate(PeerSamples(_dense(data), data.observed, data.label, data.rows("train")[:8]), 8):
        peer.train()(batch)
    assert before == 0.0
    assert isinstance(peer.retriever.gate.loss, Tensor)
    assert peer.retriever.gate.loss.grad_fn is not None


def test_flops_of_attention_and_recurrent_layers_are_counted() -> None:
    q = torch.randn(2, 3, 5, 8, requires_grad=True)
    with flop_counter() as counter:
        out = F.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * 2 * 2 * 3 * 5 * 5 * 8
    with flop_counter() as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * 2 * 3 * 5 * 5 * 8
    packed = nn.utils.rnn.pack_sequence([torch.randn(9, 5), torch.randn(4, 5)])
    with torch.no_grad(), flop_counter() as counter:
        nn.GRU(5, 12)(packed)
    assert counter.get_total_flops() == 2 * 13 * 3 * 12 * (5 + 12)


def test_peak_memory_is_measured_per_method() -> None:
    """An earlier, larger measurement does not affect a later one."""
    cpu = torch.device("cpu")

    def peak(n_mb: int) -> float:
        reset_peak_memory(cpu)
        held = torch.ones(n_mb * 250_000)
        return peak_memory_mb(cpu) + 0.0 * float(held[0])

    before = peak(1)
    assert 250 < peak(300) - before < 400
    if sys.platform.startswith("linux") and os.access("/proc/self/clear_refs", os.W_OK):
        assert abs(peak(1) - before) < 50


@pytest.mark.slow
def test_the_speed_script_measures_every_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = speed.main(["--out", str(tmp_path), "--quick"])
    what = {r["what"] for r in rows}
    assert what == {
        "training step, batch 16",
        "training step, batch 64",
        "inference epoch, encoding included",
        "inference epoch, bank cached",
        "training epoch with 3-D images, cropped",
        "repeated inference, images in the bank",
        "genotype loading",
        "memory over epochs",
    }
    for row in rows:
        if "ratio" in row:
            assert 0 < row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
            assert row["limit"] > 0
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["rows"] == rows
    assert written["state"]["threads"] == 1
    assert "| training step, batch 16 | MIMIC | fixed |" in (tmp_path / "speed.md").read_text()
