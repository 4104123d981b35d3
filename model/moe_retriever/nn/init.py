"""Initial weights that depend only on (seed, purpose, parameter name), not on the order in which modules are created.

All methods with the same seed therefore start with identical encoders, and adding a layer does not affect the others.
"""

import math
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from mrpipe import keyed

M = TypeVar("M", bound=nn.Module)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Fill = Callable[[Tensor, torch.Generator], None]


@runtime_checkable
class Initialised(Protocol):
    """A module that defines the initial values of its own parameters, by their local names."""

    def initial(self, name: str) -> Fill: ...


def uniform(bound: float) -> Fill:
    return lambda t, g: _set(t, lambda: t.uniform_(-bound, bound, generator=g))


def normal(std: float) -> Fill:
    return lambda t, g: _set(t, lambda: t.normal_(0.0, std, generator=g))


def constant(value: float) -> Fill:
    return lambda t, g: _set(t, lambda: t.fill_(value))


def _set(_: Tensor, write: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        write()


def _rule(module: nn.Module, name: str) -> Fill:
    match module:
        case Initialised():
            return module.initial(name)
        case nn.Linear():
            return uniform(1 / math.sqrt(max(module.in_features, 1)))
        case nn.RNNBase():
            return uniform(1 / math.sqrt(module.hidden_size))
        case nn.Conv2d() | nn.Conv3d():
            fan_out = module.out_channels * math.prod(module.kernel_size)
            return constant(0.0) if name == "bias" else normal(math.sqrt(2.0 / fan_out))
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() | nn.LayerNorm():
            return constant(0.0 if name == "bias" else 1.0)
        case nn.Embedding():
            return normal(0.02)
    raise TypeError(f"{type(module).__name__}.{name} has no initial value: add a method `initial(name)` to the module")


def build(factory: Callable[[], M], seed: int, purpose: str) -> M:
    """Create a module and initialise all parameters by key, without using the global generator."""
    with torch.device("meta"):
        module = factory()
    for path, part in module.named_modules():
        for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if value.is_meta:
                zeros = torch.zeros_like(value, device="cpu")
                is_parameter = isinstance(value, nn.Parameter)
                setattr(part, name, nn.Parameter(zeros, value.requires_grad) if is_parameter else zeros)
        if isinstance(part, BATCH_NORMS):
            part.reset_running_stats()
        for name, parameter in part.named_parameters(recurse=False):
            key = int(keyed.stream_key(seed, f"{purpose}\x1f{path}\x1f{name}"))
            _rule(part, name)(parameter, torch.Generator().manual_seed(key >> 1))
    return module
