"""bfloat16 and torch's grouped products give the results of float32, and the host never waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from moe_retriever.data.load import Data
from moe_retriever.device import autocast, in_float32, precision_of, to_device
from moe_retriever.methods import get, names
from moe_retriever.methods.base import Method
from moe_retriever.nn import encoders, kernels, moe
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import build
from moe_retriever.nn.moe import Experts, Router, Routing
from moe_retriever.training.loop import make_optimiser, train_step
from moe_retriever.training.predict import predict
from tests.moe_retriever import synthetic

CPU = torch.device("cpu")
BFLOAT16 = {"precision": "bfloat16"}
# All experts are chosen: near ties, rounding changes which ones, and then the gradients.
ALL_EXPERTS: dict[str, dict[str, Any]] = {
    "moe_retriever": {"n_experts": 2, "n_shared": 2, "top_k": 4, "expert_ffn": 24},
    "flexmoe": {"n_experts": 31, "top_k": 31},
    "fusemoe": {"n_experts": 4, "top_k": 4},
    "confsmoe": {"n_experts": 4, "top_k": 4, "keep": 1.0},
}
GRADIENT = tuple(name for name in names() if get(name).gradient)
KINDS = ("vector", "sequence", "image", "volume", "genotype")


def on_every_device(patch: pytest.MonkeyPatch) -> None:
    """Use torch's grouped product also on the CPU, where it is a loop."""
    patch.setattr(
        moe, "grouped", lambda device, *sizes: torch.is_autocast_enabled("cpu") and not any(s % 8 for s in sizes)
    )


def made(name: str, data: Data, **options: Any) -> Method:
    method = synthetic.trained_on(data, synthetic.config(name, epochs=8, lr=1e-3, **options))
    method.begin_epoch(7, 8)
    return method


def stepped(name: str, data: Data, **options: Any) -> tuple[dict[str, float], dict[str, Tensor], Tensor, Method]:
    """Losses and gradients of a training step, and probabilities (or values) after it."""
    method = made(name, data, **options)
    optimiser = make_optimiser(method)
    losses = train_step(method.train(), data.batch(data.rows("train")[:48], "epoch 7"), optimiser)
    gradients = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    found = torch.from_numpy(predict(method, data, data.rows("test")).scored)
    return {k: float(v) for k, v in losses.items()}, gradients, found, method


@pytest.mark.parametrize("name", GRADIENT)
def test_bfloat16_equals_float32_within_its_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 rounds to 3 digits: losses within 2%, gradients within 10% in norm, and probabilities within 0.02."""
    on_every_device(monkeypatch)
    data = synthetic.make(synthetic.random_masks(120, 5, 1), KINDS, n_classes=3, seed=2)
    options = ALL_EXPERTS.get(name, {})
    losses, gradients, scored, _ = stepped(name, data, precision="float32", **options)
    other_losses, other_gradients, other_scored, method = stepped(name, data, **BFLOAT16, **options)
    assert other_losses == pytest.approx(losses, rel=2e-2, abs=2e-3)
    assert other_losses != losses, "nothing was computed in bfloat16"
    assert other_gradients.keys() == gradients.keys()
    assert {g.dtype for g in other_gradients.values()} == {torch.float32}
    whole, other = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, other_gradients))
    assert (whole - other).norm() < 0.1 * whole.norm()
    assert (scored - other_scored).abs().max() < 0.02
    assert {v.dtype for v in method.state_dict().values() if v.is_floating_point()} == {torch.float32}


def test_the_router_chooses_the_same_experts_in_bfloat16() -> None:
    """Of the same tokens exactly, and of tokens that were computed in bfloat16 unless two experts are nearly tied."""
    noise = Noise(0)
    router = build(lambda: Router(16, 8, top_k=3, noise=noise), 0, "router")
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    expected = router(x)
    with autocast("bfloat16", CPU):
        found = router(x)
        rounded = router(x.bfloat16())
    assert torch.equal(found.expert, expected.expert)
    assert torch.equal(found.weight, expected.weight)
    assert rounded.weight.dtype == torch.float32
    ranked = expected.clean.sort(dim=1, descending=True).values
    clear = (ranked[:, :3] - ranked[:, 1:4]).amin(dim=1) > 0.02
    assert clear.float().mean() > 0.7
    assert torch.equal(rounded.expert[clear], expected.expert[clear])


@pytest.mark.parametrize("merged", [False, True])
def test_the_grouped_product_of_torch_equals_the_loop_over_experts(
    merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, with dropout, and with experts that no token visits; to 3 digits, as it is bfloat16."""
    noise, g = Noise(0), torch.Generator().manual_seed(0)
    experts = build(lambda: Experts(6, 16, 24, 0.5, noise), 0, "experts").train()
    x = torch.randn(90, 16, generator=g).requires_grad_()
    weight = torch.rand(90, 2, generator=g).requires_grad_()
    # Experts 0, 3 and 5 are never visited.
    expert = torch.tensor([1, 2, 4])[torch.stack([torch.randperm(3, generator=g)[:2] for _ in range(90)])]
    rows = {"row_T": torch.arange(90) // 3, "n_rows": 40} if merged else {}
    found = []
    for kernel in (False, True):
        monkeypatch.setattr(moe, "grouped", lambda *_, kernel=kernel: kernel)
        noise.reset("the same for both")
        with autocast("bfloat16", CPU):
            y = experts(x, Routing(expert, weight, weight), **rows)
        assert y.dtype == torch.float32
        direction = torch.linspace(-1, 1, y.numel()).view_as(y)
        found.append((y, *torch.autograd.grad((y * direction).sum(), [x, weight, *experts.parameters()])))
    for loop, product in zip(*found, strict=True):
        assert 0 < (loop - product).norm() <= 0.01 * loop.norm()
    assert not found[1][3][[0, 3, 5]].any()


class _Waits(TorchDispatchMode):
    """Count operations for which the host waits for a GPU: their result, or its size, is needed on the host."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique_dim", "_unique2", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.name().split("::")[1].split(".")[0], kwargs or {}
        by_mask = name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in _flat(args[1:2])
        )
        of_tensor = func.name() == "aten::repeat_interleave.Tensor" and kwargs.get("output_size") is None
        if name in self.NAMES or by_mask or of_tensor:
            self.found[name] += 1
        return func(*args, **kwargs)


class _Reads(TorchFunctionMode):
    """Count reads of tensors by the host that are not operations on a CPU, but copies from a GPU."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in ("cpu", "numpy", "tolist", "__array__"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        yield from _flat(value) if isinstance(value, list | tuple) else (value,)


@contextmanager
def waits() -> Iterator[Counter[str]]:
    mode = _Waits()
    with mode, _Reads(mode.found):
        yield mode.found


def uncounted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of a recurrent layer, which reads the numbers of rows per step; they are on the host on every device."""

    def run(*args: Any) -> Tensor:
        with _disable_current_modes():
            return function(*args)

    return run


# DyMo reads after each round which samples and modalities are candidates: its selection depends on the rewards.
WAITS_PER_EVALUATED_BATCH = {"dymo": 8}


@pytest.mark.parametrize("name", GRADIENT)
def test_the_host_does_not_wait_for_the_device_within_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In none of the steps of training; predictions are read once, however many batches they need."""
    on_every_device(monkeypatch)
    monkeypatch.setattr(kernels, "plain", True)
    monkeypatch.setattr(encoders, "last_state", uncounted(encoders.last_state))
    data = synthetic.make(synthetic.random_masks(120, 3, 1), ("vector", "sequence", "genotype"), n_classes=3)
    method = made(name, data, eval_batch_size=8, **BFLOAT16, **ALL_EXPERTS.get(name, {}))
    optimiser, rows = make_optimiser(method), data.rows("train")
    train_step(method.train(), data.batch(rows[:32], "epoch 6"), optimiser)
    with waits() as found:
        train_step(method, data.batch(rows[32:64], "epoch 7"), optimiser)
    assert found == {}
    method.refresh()
    predict(method, data, data.rows("test")[:8])
    with waits() as found:
        predict(method, data, data.rows("test"), same_weights=True)
    n_batches = -(-len(data.rows("test")) // 8)
    read_once = 2
    assert found.total() <= read_once + n_batches * WAITS_PER_EVALUATED_BATCH.get(name, 0), found


def test_waits_are_counted() -> None:
    x = torch.arange(4.0)
    for wait in (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x.cpu(),
        lambda: x.tolist(),
        lambda: x.repeat_interleave(x.long()),
    ):
        with waits() as found:
            wait()
        assert found.total() >= 1
    with waits() as found:
        x[torch.tensor([1, 2])].repeat_interleave(2).sum()
    assert found == {}


def test_precision_and_copies_on_a_cpu() -> None:
    assert precision_of("auto", CPU) == "float32"
    assert precision_of("bfloat16", CPU) == "bfloat16"
    values = np.arange(6)[::-2]
    assert to_device(values, CPU).tolist() == values.tolist()

    @in_float32
    def product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    a = torch.randn(4, 4)
    with autocast("bfloat16", CPU):
        assert (a @ a).dtype == torch.bfloat16
        assert product(a, b=(a @ a)).dtype == torch.float32
        assert torch.equal(product(a, a), product(a, b=a))
