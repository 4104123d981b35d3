"""FLOPs of whatever runs inside (a multiply and an add are two), with what torch's counter leaves out.

Added: attention on the CPU, recurrent layers on a GPU (on the CPU their products are seen one by one) and bags of
embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from moe_retriever.nn.kernels.linear import onednn_operator

Shape = Sequence[int]


def _attention(q: Shape, k: Shape, v: Shape, *rest: object, **more: object) -> int:
    """QKᵀ and its product with V."""
    batch, heads, n_q, d = q
    return 2 * batch * heads * n_q * k[2] * (d + v[3])


def _attention_backward(d_out: Shape, q: Shape, k: Shape, v: Shape, *rest: object, **more: object) -> int:
    """QKᵀ again, and the gradients of both factors of both products."""
    batch, heads, n_q, d = q
    return 2 * batch * heads * n_q * k[2] * (3 * d + 2 * v[3])


def _recurrent(x: Shape, weights: Sequence[Shape], *rest: object, **more: object) -> int:
    """Every weight matrix at every step."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


def _bag(weight: Shape, indices: Shape, *rest: object, **more: object) -> int:
    """One multiply and one add a value."""
    return 2 * math.prod(indices) * weight[1]


def _linear(x: Shape, weight: Shape, *rest: object, **more: object) -> int:
    """oneDNN's product (`moe_retriever.nn.kernels.linear`)."""
    return 2 * math.prod(x) * weight[0]


# Operators without a public name; one that this torch does not have is not counted.
_FORMULAS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_cudnn_rnn": _recurrent,
    "_embedding_bag": _bag,
    "_embedding_bag_forward_only": _bag,
}


def flop_counter(namespace: object = torch.ops.aten) -> FlopCounterMode:
    """A context whose `get_total_flops()` is the count of its block."""
    extra = {getattr(namespace, name): f for name, f in _FORMULAS.items() if hasattr(namespace, name)}
    onednn = onednn_operator()
    if onednn is not None:
        extra[onednn] = _linear
    return FlopCounterMode(display=False, custom_mapping=extra)
