"""Devices: copies from the host that it does not wait for, and the precision of computations.

With precision bfloat16, torch's autocast computes matrix products and convolutions in bfloat16 from float32 weights.
Weights, gradients, optimiser, embeddings, routers, similarities, logits, losses and checkpoints remain float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mrpipe.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")
# Context of a `torch.autograd.Function`, to which kernels add attributes of their own.
KernelContext = Any
HostArray = NDArray[Any]
# Type of the device on which `autocast` is in effect.
_AUTOCAST: ContextVar[str | None] = ContextVar("autocast", default=None)


def usable_device(name: str) -> str:
    """The device of `--device`, or a UsageError; auto: a GPU if there is one. On it, operations are deterministic."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}; auto uses a GPU or the CPU") from error
    if device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)
        # That mode would also write to each new tensor, only to reveal reads of values that were never written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def to_device(values: HostArray, device: torch.device) -> Tensor:
    """An array as a tensor on a device; to a GPU, it is copied from pinned memory while the host continues."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def precision_of(precision: str, device: torch.device) -> str:
    """The precision used on a device; auto: bfloat16 on GPUs that compute in it (compute capability 8.0 or higher)."""
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float32"


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Context of a method's forward pass."""
    if precision_of(precision, device) == "float32":
        yield
        return
    before = _AUTOCAST.set(device.type)
    try:
        # torch's cache of converted weights would return those of a block without gradients also with gradients.
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            yield
    finally:
        _AUTOCAST.reset(before)


def in_float32(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: compute outside autocast, with bfloat16 arguments converted to float32."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        if (kind := _AUTOCAST.get()) is None:
            return function(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, (args, kwargs))
        with torch.autocast(kind, enabled=False):
            return function(*args, **kwargs)

    return wrapped


# (B, R) dot products of rows (B, H) and (R, H).
products = in_float32(F.linear)


class Head(nn.Linear):
    """Linear layer in float32, for logits, which bfloat16 would round to three digits."""

    @in_float32
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)
