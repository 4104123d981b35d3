"""FLOP counter (a multiply-add counts as two) that covers operations missing from torch's counter.

Added: CPU attention, cuDNN recurrent layers (on the CPU torch counts their matrix products), embedding bags, and
oneDNN linear layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten


def _raw(formula: Any) -> Any:
    """Mark a formula that takes tensors instead of their shapes."""
    formula._get_raw = True
    return formula


@_raw
def _attention(q: Any, k: Any, v: Any, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """QKᵀ and its product with V."""
    batch, heads, n_q, d = q.shape
    return 2 * batch * heads * n_q * k.shape[2] * (d + v.shape[3])


@_raw
def _attention_backward(d_out: Any, q: Any, k: Any, v: Any, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """QKᵀ recomputed, and the gradients of both factors of both products."""
    batch, heads, n_q, d = q.shape
    return 2 * batch * heads * n_q * k.shape[2] * (3 * d + 2 * v.shape[3])


@_raw
def _recurrent(x: Any, weights: Any, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """Every weight matrix at every step."""
    n_steps = x.numel() // x.shape[-1]
    return 2 * n_steps * sum(w.numel() for w in weights if w.dim() == 2)


@_raw
def _bag(weight: Any, indices: Any, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """One multiply and one add per embedding value."""
    return 2 * indices.numel() * weight.shape[1]


@_raw
def _linear(x: Any, weight: Any, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """oneDNN's matrix product (`moe_retriever.nn.kernels.linear`)."""
    return 2 * x.numel() * weight.shape[0]


def flop_counter() -> FlopCounterMode:
    """A context manager whose `get_total_flops()` returns the FLOPs of the operations inside it."""
    extra = {
        _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        _aten._cudnn_rnn: _recurrent,
        _aten._embedding_bag: _bag,
        _aten._embedding_bag_forward_only: _bag,
    }
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if onednn is not None:
        extra[onednn] = _linear
    return FlopCounterMode(display=False, custom_mapping=extra)
