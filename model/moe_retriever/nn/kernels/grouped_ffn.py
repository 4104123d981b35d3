"""Many small feed-forward networks, each applied to its own rows, with explicit gradients.

Autograd would store and copy every block of rows several times and allocate one gradient per expert. Here, products
write directly to their destination, all other operations are one pass over the rows of all experts, and the second
product is computed once per (output row, expert) instead of once per visit: Σ w (W h + b) = W Σ w h + b Σ w.

Legend: T tokens, A visits (token, expert) sorted by expert and output row, S distinct pairs (expert, output row),
R output rows, H hidden, F feed-forward dimension, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from moe_retriever.nn.kernels.context import KernelContext
from moe_retriever.nn.kernels.linear import multiply


@dataclass(frozen=True)
class VisitPlan:
    """Assignment of visits to tokens, experts and output rows.

    Attributes:
        order: (A,) index of each visit in the caller's order; T · K for padding.
        token: (A,) token of each visit.
        cell: (A,) index of each visit in a flattened (R, E) table.
        row: (S,) output row of each pair.
        pair: (A,) pair of each visit; None if each visit is its own pair.
        first: (S,) first visit of each pair; None if each visit is its own pair.
        blocks: (expert, start and end of its visits, start and end of its pairs) for each visited expert.
        n_rows: R.
        repeats: whether block sizes are multiples of a number, so that few distinct shapes occur.
    """

    order: Tensor
    token: Tensor
    cell: Tensor
    row: Tensor
    pair: Tensor | None
    first: Tensor | None
    blocks: tuple[tuple[int, int, int, int, int], ...]
    n_rows: int
    repeats: bool

    @classmethod
    def of(cls, expert_TK: Tensor, n_experts: int, row_T: Tensor | None, n_rows: int, multiple: int = 1) -> VisitPlan:
        """Sort the visits by expert and output row.

        Args:
            row_T: output row of each token; None: one row per token.
            multiple: pad the visits and pairs of each expert to a multiple of this number, with visits of weight 0.
        """
        n_each = expert_TK.shape[1]
        expert_A = expert_TK.flatten()
        merged = row_T is not None
        if row_T is None:
            row_T = torch.arange(len(expert_TK), device=expert_A.device)
        key, order = (expert_A * n_rows + row_T.repeat_interleave(n_each)).sort(stable=True)
        first = torch.arange(len(key), device=key.device)
        if merged:
            new = torch.ones_like(key, dtype=torch.bool)
            torch.ne(key[1:], key[:-1], out=new[1:])
            first = first[new]
        edges = torch.arange(n_experts + 1, device=key.device) * n_rows
        ends = [torch.searchsorted(key, edges), torch.searchsorted(key[first], edges)]
        visits, pairs = torch.stack(ends).tolist()
        padded_visits, padded_pairs = _padded(visits, multiple), _padded(pairs, multiple)
        blocks = tuple(
            (e, padded_visits[e], padded_visits[e + 1], padded_pairs[e], padded_pairs[e + 1])
            for e in range(n_experts)
            if visits[e + 1] > visits[e]
        )
        row_A, expert_A = key.remainder(n_rows), key.div(n_rows, rounding_mode="floor")
        if multiple == 1:
            token, cell = order.div(n_each, rounding_mode="floor"), row_A * n_experts + expert_A
            if not merged:
                return cls(order, token, cell, token, None, None, blocks, n_rows, False)
            return cls(order, token, cell, row_A[first], new.cumsum(0) - 1, first, blocks, n_rows, False)
        at = _places(visits, padded_visits, key.device)
        # Padding visits use token 0, row 0 and the zero appended to the caller's weights.
        n_visits, n_pairs = padded_visits[-1], padded_pairs[-1]
        zeros = key.new_zeros(n_visits)
        placed_order = zeros + len(key)
        placed_order[at] = order
        token = zeros.index_copy(0, at, order.div(n_each, rounding_mode="floor"))
        cell = zeros.index_copy(0, at, row_A * n_experts + expert_A)
        if not merged:
            return cls(placed_order, token, cell, token, None, None, blocks, n_rows, True)
        pair_at = _places(pairs, padded_pairs, key.device)
        row = key.new_zeros(n_pairs).index_copy(0, pair_at, row_A[first])
        pair = zeros.index_copy(0, at, pair_at[new.cumsum(0) - 1])
        # Padding pairs are empty: they start at the end of the expert's visits.
        after = torch.tensor(padded_visits[1:], device=key.device).repeat_interleave(
            torch.tensor([b - a for a, b in pairwise(padded_pairs)], device=key.device)
        )
        first = after.index_copy(0, pair_at, at[first])
        return cls(placed_order, token, cell, row, pair, first, blocks, n_rows, True)


def _padded(edges: list[int], multiple: int) -> list[int]:
    """Edges of the padded blocks."""
    sizes = [-(-(b - a) // multiple) * multiple for a, b in pairwise(edges)]
    return [0, *accumulate(sizes)]


def _places(edges: list[int], padded: list[int], device: torch.device) -> Tensor:
    """Position of each sorted item in the padded blocks."""
    sizes = torch.tensor([b - a for a, b in pairwise(edges)], device=device)
    shift = torch.tensor(padded[:-1], device=device) - torch.tensor(edges[:-1], device=device)
    return torch.arange(edges[-1], device=device) + shift.repeat_interleave(sizes)


def plain_gelu_backward(d_y: Tensor, x: Tensor) -> Tensor:
    """Gradient of GELU: d_y · (Φ(x) + x φ(x))."""
    return d_y * (torch.special.ndtr(x) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


# torch's operator needs a single pass over the values but is not public.
_GELU_BACKWARD: Callable[[Tensor, Tensor], Tensor] = getattr(torch.ops.aten, "gelu_backward", plain_gelu_backward)


def plain_feed_forward(
    x_TH: Tensor,
    weight_A: Tensor,
    keep_AF: Tensor | None,
    plan: VisitPlan,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
) -> Tensor:
    """Plain implementation of `GroupedFeedForward`: a loop over experts, with gradients by autograd."""
    out = x_TH.new_zeros(plan.n_rows, w_out.shape[2])
    for e, a, b, _, _ in plan.blocks:
        hidden = F.gelu(x_TH[plan.token[a:b]] @ w_in[e] + b_in[e])
        hidden = hidden if keep_AF is None else hidden * keep_AF[a:b]
        row = plan.cell[a:b].div(len(w_in), rounding_mode="floor")
        out = out.index_add(0, row, weight_A[a:b, None] * (hidden @ w_out[e] + b_out[e]))
    return out


class _PlanContext(KernelContext, Protocol):
    plan: VisitPlan
    n_tokens: int


class GroupedFeedForward(Function):
    """(R, H): row r is Σ over its visits of weight · (drop(GELU(x W_in + b_in)) W_out + b_out)."""

    @staticmethod
    def forward(
        ctx: _PlanContext,
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
            multiply(x_AH[a:b], w_in[e], out=inner_AF[a:b], bias=b_in[e], repeats=plan.repeats)
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
            multiply(summed_SF[s:t], w_out[e], out=y_SH[s:t], repeats=plan.repeats)
        # Weight of each expert's second bias in each row.
        totals = weight_A.new_zeros(plan.n_rows * len(w_in)).index_add_(0, plan.cell, weight_A).view(-1, len(w_in))
        if saved:
            ctx.save_for_backward(x_AH, weight_A, keep_AF, w_in, w_out, b_out, inner_AF, summed_SF, totals)
            ctx.plan, ctx.n_tokens = plan, len(x_TH)
        return (totals @ b_out).index_add_(0, plan.row, y_SH)

    @staticmethod
    @once_differentiable
    def backward(ctx: _PlanContext, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x_AH, weight_A, keep_AF, w_in, w_out, b_out, inner_AF, summed_SF, totals = ctx.saved_tensors
        plan = ctx.plan
        d_w_in, d_w_out, d_b_in = (w.new_zeros(w.shape) for w in (w_in, w_out, w_in[:, 0]))
        d_row_SH = d_out.index_select(0, plan.row)
        d_hidden = torch.empty_like(summed_SF)
        for e, _, _, s, t in plan.blocks:
            multiply(summed_SF[s:t].T, d_row_SH[s:t], out=d_w_out[e], repeats=plan.repeats)
            multiply(d_row_SH[s:t], w_out[e].T, out=d_hidden[s:t], repeats=plan.repeats)
        if plan.pair is not None:
            d_hidden = d_hidden.index_select(0, plan.pair)
        if keep_AF is not None:
            d_hidden.mul_(keep_AF)
        d_weight = (d_out @ b_out.T).flatten().index_select(0, plan.cell)
        d_weight += torch.mul(F.gelu(inner_AF), d_hidden).sum(1)
        d_inner = _GELU_BACKWARD(d_hidden.mul_(weight_A[:, None]), inner_AF)
        d_x_AH = torch.empty_like(x_AH)
        for e, a, b, _, _ in plan.blocks:
            multiply(x_AH[a:b].T, d_inner[a:b], out=d_w_in[e], repeats=plan.repeats)
            torch.sum(d_inner[a:b], 0, out=d_b_in[e])
            multiply(d_inner[a:b], w_in[e].T, out=d_x_AH[a:b], repeats=plan.repeats)
        d_x = x_AH.new_zeros(ctx.n_tokens, x_AH.shape[1]).index_add_(0, plan.token, d_x_AH)
        return d_x, d_weight, None, None, d_w_in, d_b_in, d_w_out, totals.T @ d_out, None
