"""Type of the context of a `torch.autograd.Function`, restricted to the attributes that the kernels use."""

from typing import Protocol

from torch import Tensor


class KernelContext(Protocol):
    """Passes tensors from the forward to the backward pass; contexts of single kernels add further attributes."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    @property
    def needs_input_grad(self) -> tuple[bool, ...]: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
