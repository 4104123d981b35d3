"""Devices: copies from the host that it does not wait for, and the precision of computations.

With precision bfloat16, torch's autocast computes matrix products and convolutions in bfloat16 from float32 weights.
Weights, gradients, optimiser, embeddings, routers, similarities, logits, losses and checkpoints remain float32.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrpipe.errors import UsageError

P, T = ParamSpec("P"), TypeVar("T")


def usable_device(name: str) -> str:
    """The device that `--device` names, with deterministic operations on a GPU; auto: a GPU if there is one.

    Raises:
        UsageError: torch cannot use the device.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch {torch.__version__} finds no GPU; --device auto uses the CPU then")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)
        # That mode would also write to each new tensor, only to reveal reads of values that were never written.
        torch.utils.deterministic.fill_uninitialized_memory = False
    return device


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device; to a GPU, it is copied from pinned memory while the host continues."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def precision_of(precision: str, device: torch.device) -> str:
    """The precision used on a device; auto: bfloat16 on GPUs that compute in it (compute capability 8.0 or higher)."""
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context of a method's forward pass."""
    if precision_of(precision, device) == "float32":
        return nullcontext()
    # Without torch's cache of converted weights: those of a block without gradients would be reused with gradients.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def in_float32(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: compute outside autocast, with bfloat16 arguments converted to float32."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        active = [kind for kind in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(kind)]
        if not active:
            return function(*args, **kwargs)
        with ExitStack() as off:
            for kind in active:
                off.enter_context(torch.autocast(kind, enabled=False))
            return function(*_single(args), **{k: _single(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return wrapped


def _single(value: object) -> Any:
    if type(value) is tuple:
        return tuple(map(_single, value))
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


class Head(nn.Linear):
    """Linear layer in float32, for logits, which bfloat16 would round to three digits."""

    @in_float32
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)
