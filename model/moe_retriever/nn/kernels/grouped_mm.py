"""Feed-forward networks of experts by torch's grouped matrix product, for GPUs.

The number of rows per expert stays on the GPU, so the host does not wait for the router. Accumulation is in float32.

Legend: T tokens, K experts per token, A = T·K visits sorted by expert, R output rows, H hidden, F feed-forward
dimension, E experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.nn.kernels.grouped_ffn import sorted_visits

# Of torch 2.10; with bfloat16 on a GPU it is one kernel, otherwise torch loops over the experts.
_product = getattr(F, "grouped_mm", None)


def usable(device: torch.device, dtype: torch.dtype, *sizes: int) -> bool:
    """Whether the kernel exists and supports the rows: multiples of 16 bytes."""
    return _product is not None and device.type == "cuda" and dtype == torch.bfloat16 and not any(s % 8 for s in sizes)


def feed_forward(
    x_TH: Tensor,
    weight_A: Tensor,
    expert_TK: Tensor,
    keep_AF: Tensor | None,
    row_T: Tensor | None,
    n_rows: int,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """The function of `GroupedFeedForward`, (R, H) float32, with products in `dtype` and gradients by autograd.

    Args:
        weight_A, keep_AF: weight and mask of hidden values of each visit, in the order of the caller.
        weights: w_in (E, H, F), b_in (E, F), w_out (E, F, H), b_out (E, H).
    """
    assert _product is not None
    w_in, b_in, w_out, b_out = weights
    key, order, token, row = sorted_visits(expert_TK, row_T, n_rows)
    expert = key.div(n_rows, rounding_mode="floor")
    ends = torch.searchsorted(expert, torch.arange(1, len(w_in) + 1, device=expert.device)).int()
    weight_A = weight_A.index_select(0, order)[:, None]
    x_AH = x_TH.to(dtype).index_select(0, token)
    hidden_AF = F.gelu(_product(x_AH, w_in.to(dtype), offs=ends) + b_in.to(dtype).index_select(0, expert))
    if keep_AF is not None:
        hidden_AF = hidden_AF * keep_AF
    y_AH = _product((hidden_AF * weight_A).to(dtype), w_out.to(dtype), offs=ends).to(weight_A.dtype)
    y_AH = y_AH + weight_A * b_out.index_select(0, expert)
    return y_AH.new_zeros(n_rows, y_AH.shape[1]).index_add(0, row, y_AH)
