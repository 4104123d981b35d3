"""Type of the context of a `torch.autograd.Function`, restricted to the attributes that the kernels use."""

from typing import Protocol, TypeVar

from torch import Tensor

S = TypeVar("S")


class KernelContext(Protocol[S]):
    """Passes tensors, and `plan` (of any type), from the forward to the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    plan: S

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
