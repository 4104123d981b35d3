"""Many small feed-forward networks, each applied to its own rows, with explicit gradients.

Autograd would store and copy every block of rows several times and allocate one gradient per expert. Here, products
write directly to their destination, all other operations are one pass over the rows of several experts, and the second
product is computed once per (output row, expert) instead of once per visit: Σ w (W h + b) = W Σ w h + b Σ w. Of the
hidden values, only those before the activation are kept for the gradients.

Legend: T tokens, A visits (token, expert) sorted by expert and output row, S distinct pairs (expert, output row),
R output rows, H hidden, F feed-forward dimension, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from moe_retriever.device import KernelContext

Span: TypeAlias = "slice[int, int, int]"
GROUP = 2**14  # visits of several experts that are computed at once; bounds the memory of large batches


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

    def groups(self) -> Iterator[tuple[Span, Span, list[tuple[int, Span, Span]]]]:
        """Experts in groups of about GROUP visits: their visits and pairs, and, within these, those of each expert."""
        for _, group in groupby(self.blocks, key=lambda block: block[2] // GROUP):
            experts = list(group)
            _, v, _, p, _ = experts[0]
            own = [(e, slice(a - v, b - v), slice(s - p, t - p)) for e, a, b, s, t in experts]
            yield slice(v, experts[-1][2]), slice(p, experts[-1][4]), own

    def pooled(self, hidden: Tensor, weight: Tensor, visits: Span, pairs: Span) -> Tensor:
        """Weighted sum per pair of a group of the hidden values (visits, F) of the group."""
        if self.first is None:
            return hidden * weight[:, None]
        every, first = torch.arange(len(hidden), device=hidden.device), self.first[pairs] - visits.start
        return F.embedding_bag(every, hidden, first, mode="sum", per_sample_weights=weight)


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
        inner_AF = x_TH.new_empty(len(plan.token) if saved else 0, w_in.shape[2])
        # Weight of each expert's second bias in each row.
        totals = weight_A.new_zeros(plan.n_rows * len(w_in)).index_add_(0, plan.cell, weight_A).view(-1, len(w_in))
        out = totals @ b_out
        for visits, pairs, own in plan.groups():
            x = x_TH.index_select(0, plan.token[visits])
            inner = inner_AF[visits] if saved else x.new_empty(len(x), w_in.shape[2])
            for e, a, _ in own:
                torch.addmm(b_in[e], x[a], w_in[e], out=inner[a])
            hidden = F.gelu(inner) if keep_AF is None else F.gelu(inner).mul_(keep_AF[visits])
            summed = plan.pooled(hidden, weight_A[visits], visits, pairs)
            y = x.new_empty(len(summed), w_out.shape[2])
            for e, _, s in own:
                torch.mm(summed[s], w_out[e], out=y[s])
            out.index_add_(0, plan.row[pairs], y)
        if saved:
            ctx.save_for_backward(x_TH, weight_A, keep_AF, w_in, w_out, b_out, inner_AF, totals)
            ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: KernelContext, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x_TH, weight_A, keep_AF, w_in, w_out, b_out, inner_AF, totals = ctx.saved_tensors
        plan = ctx.plan
        d_w_in, d_w_out, d_b_in = (w.new_zeros(w.shape) for w in (w_in, w_out, w_in[:, 0]))
        d_x, d_weight = torch.zeros_like(x_TH), (d_out @ b_out.T).flatten().index_select(0, plan.cell)
        for visits, pairs, own in plan.groups():
            inner, weight = inner_AF[visits], weight_A[visits]
            keep = None if keep_AF is None else keep_AF[visits]
            hidden = F.gelu(inner) if keep is None else F.gelu(inner).mul_(keep)
            summed = plan.pooled(hidden, weight, visits, pairs)
            d_row = d_out.index_select(0, plan.row[pairs])
            d_hidden = torch.empty_like(summed)
            for e, _, s in own:
                torch.mm(summed[s].T, d_row[s], out=d_w_out[e])
                torch.mm(d_row[s], w_out[e].T, out=d_hidden[s])
            if plan.pair is not None:
                d_hidden = d_hidden.index_select(0, plan.pair[visits] - pairs.start)
            if keep is not None:
                d_hidden.mul_(keep)
            d_weight[visits] += hidden.mul_(d_hidden).sum(1)
            d_inner = torch.ops.aten.gelu_backward(d_hidden.mul_(weight[:, None]), inner)
            token = plan.token[visits]
            x = x_TH.index_select(0, token)
            d_x_AH = torch.empty_like(x)
            for e, a, _ in own:
                torch.mm(x[a].T, d_inner[a], out=d_w_in[e])
                torch.sum(d_inner[a], 0, out=d_b_in[e])
                torch.mm(d_inner[a], w_in[e].T, out=d_x_AH[a])
            d_x.index_add_(0, token, d_x_AH)
        return d_x, d_weight, None, None, d_w_in, d_b_in, d_w_out, totals.T @ d_out, None
