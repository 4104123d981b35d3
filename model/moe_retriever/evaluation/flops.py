"""FLOP counter (a multiply-add counts as two) that covers operations missing from torch's counter.

Added: CPU attention, cuDNN recurrent layers (on the CPU torch counts their matrix products), and embedding bags.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


def _attention(q: Shape, k: Shape, v: Shape, *rest: object, **more: object) -> int:
    """QKᵀ and its product with V."""
    batch, heads, n_q, d = q
    return 2 * batch * heads * n_q * k[2] * (d + v[3])


def _attention_backward(d_out: Shape, q: Shape, k: Shape, v: Shape, *rest: object, **more: object) -> int:
    """QKᵀ recomputed, and the gradients of both factors of both products."""
    batch, heads, n_q, d = q
    return 2 * batch * heads * n_q * k[2] * (3 * d + 2 * v[3])


def _recurrent(x: Shape, weights: Sequence[Shape], *rest: object, **more: object) -> int:
    """Every weight matrix at every step."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


def _bag(weight: Shape, indices: Shape, *rest: object, **more: object) -> int:
    """One multiply and one add per embedding value."""
    return 2 * math.prod(indices) * weight[1]


# Operators without public names; those that this version of torch lacks are not counted.
_FORMULAS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_grouped_mm": lambda a, b, *rest, **more: 2 * math.prod(a) * b[-1],
    "_cudnn_rnn": _recurrent,
    "_embedding_bag": _bag,
    "_embedding_bag_forward_only": _bag,
}


def flop_counter(namespace: object = torch.ops.aten) -> FlopCounterMode:
    """A context manager whose `get_total_flops()` returns the FLOPs of the operations inside it."""
    extra = {getattr(namespace, name): f for name, f in _FORMULAS.items() if hasattr(namespace, name)}
    return FlopCounterMode(display=False, custom_mapping=extra)
