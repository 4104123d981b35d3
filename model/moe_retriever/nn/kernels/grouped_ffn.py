"""Many small feed-forward networks, each applied to its own rows, with explicit gradients.

Autograd would store and copy every block of rows several times and allocate one gradient per expert. Here, products
write directly to their destination, all other operations are one pass over the rows of all experts, and the second
product is computed once per (output row, expert) instead of once per visit: Σ w (W h + b) = W Σ w h + b Σ w.

Legend: T tokens, A visits (token, expert) sorted by expert and output row, S distinct pairs (expert, output row),
R output rows, H hidden, F feed-forward dimension, E experts.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from moe_retriever.device import KernelContext


def sorted_visits(expert_TK: Tensor, row_T: Tensor | None, n_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Visits sorted by expert and output row: keys expert · R + row, and place, token and output row of each, all (A,).

    Args:
        row_T: output row of each token; None for one row per token.
    """
    n_each = expert_TK.shape[1]
    rows = torch.arange(len(expert_TK), device=expert_TK.device) if row_T is None else row_T
    key, order = (expert_TK.flatten() * n_rows + rows.repeat_interleave(n_each)).sort(stable=True)
    return key, order, order.div(n_each, rounding_mode="floor"), key.remainder(n_rows)


@dataclass(frozen=True)
class VisitPlan:
    """Assignment of visits to tokens, experts and output rows.

    Attributes:
        order: (A,) index of each visit in the caller's order.
        token: (A,) token of each visit.
        cell: (A,) index of each visit in a flattened (R, E) table.
        row: (S,) output row of each pair.
        pair: (A,) pair of each visit; None if each visit is its own pair.
        first: (S,) first visit of each pair; None if each visit is its own pair.
        blocks: (expert, start and end of its visits, start and end of its pairs) for each visited expert.
        n_rows: R.
    """

    order: Tensor
    token: Tensor
    cell: Tensor
    row: Tensor
    pair: Tensor | None
    first: Tensor | None
    blocks: tuple[tuple[int, int, int, int, int], ...]
    n_rows: int

    @classmethod
    def of(cls, expert_TK: Tensor, n_experts: int, row_T: Tensor | None, n_rows: int) -> "VisitPlan":
        """Sort the visits (see `sorted_visits`) and read the number of visits of each expert on the host."""
        key, order, token, row = sorted_visits(expert_TK, row_T, n_rows)
        cell = row * n_experts + key.div(n_rows, rounding_mode="floor")
        edges = torch.arange(n_experts + 1, device=key.device) * n_rows
        pair = first = None
        pair_key, pair_row = key, token
        if row_T is not None:
            new = torch.ones_like(key, dtype=torch.bool)
            torch.ne(key[1:], key[:-1], out=new[1:])
            first, pair = new.nonzero().squeeze(1), new.cumsum(0) - 1
            pair_key, pair_row = key[first], row[first]
        visits, pairs = torch.stack([torch.searchsorted(k, edges) for k in (key, pair_key)]).tolist()
        bounds = zip(pairwise(visits), pairwise(pairs), strict=True)
        blocks = tuple((e, a, b, s, t) for e, ((a, b), (s, t)) in enumerate(bounds) if b > a)
        return cls(order, token, cell, pair_row, pair, first, blocks, n_rows)


def grouped(device: torch.device, *sizes: int) -> bool:
    """Whether torch (2.10) has one kernel for the bfloat16 products of all experts; it reads rows of 16 bytes."""
    in_bfloat16 = device.type == "cuda" and torch.is_autocast_enabled()
    return in_bfloat16 and hasattr(F, "grouped_mm") and not any(s % 8 for s in sizes)


def feed_forward(
    x_TH: Tensor,
    weight_A: Tensor,
    keep_AF: Tensor | None,
    visits: tuple[Tensor, Tensor, Tensor, Tensor],
    n_rows: int,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    one_kernel: bool,
) -> Tensor:
    """The function of `GroupedFeedForward` with gradients by autograd.

    Args:
        visits: see `sorted_visits`.
        one_kernel: use torch's grouped product in bfloat16, which reads the rows per expert on the device, or a loop.
    """
    (w_in, b_in, w_out, b_out), (key, _, token, row) = weights, visits
    expert = key.div(n_rows, rounding_mode="floor")
    ends = torch.searchsorted(expert, torch.arange(1, len(w_in) + 1, device=expert.device)).int()

    def product(x: Tensor, w: Tensor) -> Tensor:
        if one_kernel:
            return F.grouped_mm(x.bfloat16(), w.bfloat16(), offs=ends).to(w.dtype)
        return torch.cat([a @ b for a, b in zip(x.tensor_split(ends[:-1].long().cpu()), w, strict=True)])

    hidden_AF = F.gelu(product(x_TH.index_select(0, token), w_in) + b_in.index_select(0, expert))
    hidden_AF = hidden_AF if keep_AF is None else hidden_AF * keep_AF
    y_AH = weight_A[:, None] * (product(hidden_AF, w_out) + b_out.index_select(0, expert))
    return y_AH.new_zeros(n_rows, y_AH.shape[1]).index_add(0, row, y_AH)


class GroupedFeedForward(Function):
    """(R, H): row r is Σ over its visits of weight · (drop(GELU(x W_in + b_in)) W_out + b_out)."""

    @staticmethod
    def forward(
        ctx: KernelContext,
        x_TH: Tensor,
        weight_A: Tensor,
        keep_AF: Tensor | None,
        plan: VisitPlan,
        w_in: Tensor,
        b_in: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        saved: bool,
    ) -> Tensor:
        """`weight_A` is in the order of the plan, `keep_AF` a mask of hidden values; `saved`: save for backward."""
        n_visits, ffn = len(plan.token), w_in.shape[2]
        x_AH = x_TH.index_select(0, plan.token)
        inner_AF = x_TH.new_empty(n_visits, ffn)
        for e, a, b, _, _ in plan.blocks:
            torch.addmm(b_in[e], x_AH[a:b], w_in[e], out=inner_AF[a:b])
        hidden_AF = F.gelu(inner_AF)
        if keep_AF is not None:
            hidden_AF.mul_(keep_AF)
        if plan.first is None:
            summed_SF = hidden_AF.mul_(weight_A[:, None])
        else:
            every = torch.arange(n_visits, device=x_TH.device)
            summed_SF = F.embedding_bag(every, hidden_AF, plan.first, mode="sum", per_sample_weights=weight_A)
        y_SH = x_TH.new_empty(len(plan.row), w_out.shape[2])
        for e, _, _, s, t in plan.blocks:
            torch.mm(summed_SF[s:t], w_out[e], out=y_SH[s:t])
        # Weight of each expert's second bias in each row.
        totals = weight_A.new_zeros(plan.n_rows * len(w_in)).index_add_(0, plan.cell, weight_A).view(-1, len(w_in))
        if saved:
            ctx.save_for_backward(x_AH, weight_A, keep_AF, w_in, w_out, b_out, inner_AF, summed_SF, totals)
            ctx.plan, ctx.n_tokens = plan, len(x_TH)
        return (totals @ b_out).index_add_(0, plan.row, y_SH)

    @staticmethod
    @once_differentiable
    def backward(ctx: KernelContext, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x_AH, weight_A, keep_AF, w_in, w_out, b_out, inner_AF, summed_SF, totals = ctx.saved_tensors
        plan = ctx.plan
        d_w_in, d_w_out, d_b_in = (w.new_zeros(w.shape) for w in (w_in, w_out, w_in[:, 0]))
        d_row_SH = d_out.index_select(0, plan.row)
        d_hidden = torch.empty_like(summed_SF)
        for e, _, _, s, t in plan.blocks:
            torch.mm(summed_SF[s:t].T, d_row_SH[s:t], out=d_w_out[e])
            torch.mm(d_row_SH[s:t], w_out[e].T, out=d_hidden[s:t])
        if plan.pair is not None:
            d_hidden = d_hidden.index_select(0, plan.pair)
        if keep_AF is not None:
            d_hidden.mul_(keep_AF)
        d_weight = (d_out @ b_out.T).flatten().index_select(0, plan.cell)
        d_weight += torch.mul(F.gelu(inner_AF), d_hidden).sum(1)
        d_inner = torch.ops.aten.gelu_backward(d_hidden.mul_(weight_A[:, None]), inner_AF)
        d_x_AH = torch.empty_like(x_AH)
        for e, a, b, _, _ in plan.blocks:
            torch.mm(x_AH[a:b].T, d_inner[a:b], out=d_w_in[e])
            torch.sum(d_inner[a:b], 0, out=d_b_in[e])
            torch.mm(d_inner[a:b], w_in[e].T, out=d_x_AH[a:b])
        d_x = x_AH.new_zeros(ctx.n_tokens, x_AH.shape[1]).index_add_(0, plan.token, d_x_AH)
        return d_x, d_weight, None, None, d_w_in, d_b_in, d_w_out, totals.T @ d_out, None
