"""The context of a `torch.autograd.Function`, as far as the kernels use it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KernelContext(Protocol):
    """Tensors from the forward to the backward pass; a kernel's own context adds further attributes."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    @property
    def needs_input_grad(self) -> tuple[bool, ...]: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
