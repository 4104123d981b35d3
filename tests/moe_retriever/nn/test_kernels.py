"""Fast and plain kernels have equal outputs and gradients, and the fallbacks for private names of torch work."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_retriever.evaluation.flops import flop_counter
from moe_retriever.nn import kernels
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import build
from moe_retriever.nn.kernels import allocator, grouped_ffn
from moe_retriever.nn.kernels.recurrent import last_state
from moe_retriever.nn.moe import Experts, Router


def _grouped() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    noise = Noise(0)
    module = build(
        lambda: nn.ModuleList([Router(16, 4, top_k=2, noise=noise), Experts(4, 16, 8, 0.5, noise)]), 0, "moe"
    )

    def forward(x: Tensor) -> Tensor:
        noise.reset("the same for both")
        rows = torch.arange(len(x)) // 3
        return module[1](x, module[0](x), row_T=rows, n_rows=len(x))

    return module, forward


def _recurrent(cls: type[nn.RNNBase]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    rnn = build(lambda: cls(16, 6), 0, "rnn")

    def forward(x: Tensor) -> Tensor:
        lengths = torch.tensor([1, 4, 2])
        packed = nn.utils.rnn.pack_padded_sequence(x[:12].view(4, 3, 16), lengths, enforce_sorted=False)
        return last_state(rnn, packed)

    return rnn, forward


@pytest.mark.parametrize("kernel", [_grouped, lambda: _recurrent(nn.GRU), lambda: _recurrent(nn.LSTM)])
def test_fast_and_plain_kernels_agree(
    kernel: Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, forward = kernel()
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for plain in (False, True):
        monkeypatch.setattr(kernels, "plain", plain)
        y = forward(x)
        written_out = any(type(n).__name__.startswith(("GroupedFeed", "_GRU", "_LSTM")) for n in _graph(y))
        assert written_out == (not plain)
        direction = torch.linspace(-1, 1, y.numel()).view_as(y)
        found.append((y, *torch.autograd.grad((y * direction).sum(), [x, *module.parameters()])))
    for fast, plain_ in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain_, rtol=1e-4, atol=1e-4)


def test_groups_of_experts_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    module, forward = _grouped()
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for size in (2**14, 200):
        monkeypatch.setattr(grouped_ffn, "GROUP", size)
        y = forward(x)
        found.append((y, *torch.autograd.grad((y * y).sum(), [x, *module.parameters()])))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_memory_is_returned_when_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[bool] = []
    monkeypatch.setattr(allocator, "release_freed_memory", lambda: released.append(True))
    needed = allocator.release_if_grown(0)
    if not needed:
        pytest.skip("no /proc")
    assert allocator.release_if_grown(needed) == needed
    assert not released
    assert allocator.release_if_grown(needed - 2 * allocator.GROWTH) == 0
    assert released


def _graph(y: Tensor) -> list[object]:
    """Nodes of the autograd graph of a tensor."""
    seen, waiting = [], [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.append(node)
            waiting += [following for following, _ in node.next_functions]
    return seen


def test_flops_are_counted_without_private_operators() -> None:
    with flop_counter(SimpleNamespace()) as counter:
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert counter.get_total_flops() == 2 * 2 * 3 * 4


def test_parameters_are_created_on_the_cpu_and_keep_requires_grad() -> None:
    def factory() -> nn.Module:
        module = nn.Sequential(nn.GRU(3, 4), nn.BatchNorm1d(4))
        module[0].requires_grad_(False)
        module.register_buffer("fixed", torch.from_numpy(np.arange(3)))
        return module

    module = build(factory, 0, "flags")
    assert {t.device.type for t in (*module.parameters(), *module.buffers())} == {"cpu"}
    assert not any(p.requires_grad for p in module[0].parameters())
    assert all(p.requires_grad for p in module[1].parameters())
    assert module.get_buffer("fixed").tolist() == [0, 1, 2]
    assert module[1].running_var.tolist() == [1.0] * 4
    assert module[0](torch.ones(2, 1, 3))[1].abs().sum() > 0
