"""Sparse mixture of experts: router, experts with grouped dispatch, balance loss. The modules are stateless.

Eq. 1 of the paper: y = Σ_e R(x)_e E_e(x) with R(x) = TopK(softmax(g(x)), k), not renormalised after the top-k.

Legend: T tokens, H hidden, F feed-forward dimension, E experts, K experts per token, R routers, G groups of allowed
experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_retriever.device import in_float32
from moe_retriever.nn import kernels
from moe_retriever.nn.dropout import Dropout, Noise
from moe_retriever.nn.init import Fill, constant, uniform
from moe_retriever.nn.kernels.grouped_ffn import GroupedFeedForward, VisitPlan, feed_forward, grouped, sorted_visits


@dataclass(frozen=True)
class Routing:
    """Experts of each token.

    Attributes:
        expert: (T, K) experts, by decreasing weight.
        weight: (T, K) weights of the experts (float32).
        clean: (T, E) logits without noise, −inf for masked experts.
        noisy: (T, E) logits with noise, or None without noise.
        spread: (T, E) standard deviation of the noise, or None.
    """

    expert: Tensor
    weight: Tensor
    clean: Tensor
    noisy: Tensor | None = None
    spread: Tensor | None = None

    def rows(self, index: Tensor) -> "Routing":
        """The routing of a subset of the tokens."""
        return replace(self, **{k: v[index] for k, v in vars(self).items() if v is not None})

    @staticmethod
    def concatenate(parts: "Sequence[Routing]") -> "Routing":
        """Concatenate the routings of several routers over the same experts, either all with noise or all without."""
        given = [k for k, v in vars(parts[0]).items() if v is not None]
        return replace(parts[0], **{k: torch.cat([getattr(p, k) for p in parts]) for k in given})


class Router(nn.Module):
    """Linear routers without bias, computed in float32; masked experts get −inf before the softmax.

    Args:
        n_routers: number of routers; each token uses one of them.
        top_k: experts per token (at most the number of allowed experts).
        renormalise: whether the weights of the top-k experts sum to 1, which equals a softmax over the top-k logits.
        noisy: whether to add N(0, softplus(x W_noise)²) to the logits in training (Shazeer et al. 2017).
        affinity: logit of an expert with weight w: "dot" x·w, "laplace" −‖x − w‖, "gaussian" −‖x − w‖².
    """

    def __init__(
        self,
        hidden: int,
        n_experts: int,
        *,
        top_k: int,
        noise: Noise,
        n_routers: int = 1,
        renormalise: bool = False,
        noisy: bool = False,
        affinity: str = "dot",
    ):
        super().__init__()
        self.n_experts, self.n_routers, self.top_k = n_experts, n_routers, top_k
        self.renormalise, self.noisy, self.affinity, self._noise = renormalise, noisy, affinity, noise
        self.weight = nn.Parameter(torch.empty(n_routers * n_experts, hidden))
        self.noise_weight = nn.Parameter(torch.empty(n_experts, hidden)) if noisy else None

    def initial(self, name: str) -> Fill:
        return constant(0.0) if name == "noise_weight" else uniform(1 / math.sqrt(self.weight.shape[1]))

    def _logits(self, x_TH: Tensor, w_EH: Tensor) -> Tensor:
        dot = F.linear(x_TH, w_EH)
        if self.affinity == "dot":
            return dot
        squared = x_TH.pow(2).sum(dim=1, keepdim=True) - 2 * dot + w_EH.pow(2).sum(dim=1)
        # Rounding can produce small negative values, and the square root has no gradient at 0.
        squared = squared.clamp_min(1e-12)
        return -squared.sqrt() if self.affinity == "laplace" else -squared

    @in_float32
    def forward(self, x_TH: Tensor, allowed_TE: Tensor | None = None, router_T: Tensor | None = None) -> Routing:
        """Route tokens.

        Args:
            allowed_TE: True for experts that a token may use; None: all.
            router_T: index of the router of each token; required if there are several.
        """
        x = x_TH.float()
        logits = self._logits(x, self.weight.float())
        if self.n_routers > 1:
            assert router_T is not None
            every = torch.arange(len(x), device=x.device)
            logits = logits.view(-1, self.n_routers, self.n_experts)[every, router_T]
        noisy = spread = None
        if self.noise_weight is not None and self.training:
            spread = F.softplus(F.linear(x, self.noise_weight.float())) + 1e-2
            noisy = logits + spread * self._noise.normal(logits.shape, logits.device)
        if allowed_TE is not None:
            logits = logits.masked_fill(~allowed_TE, -math.inf)
            noisy = None if noisy is None else noisy.masked_fill(~allowed_TE, -math.inf)
        probability = (logits if noisy is None else noisy).softmax(dim=1)
        weight, expert = probability.topk(min(self.top_k, self.n_experts), dim=1)
        if self.renormalise:
            weight = weight / weight.sum(dim=1, keepdim=True)
        return Routing(expert, weight, logits, noisy, spread)


class Experts(nn.Module):
    """E feed-forward networks H → F → H (GELU); each token is processed by its K experts only.

    Dispatch: one stable sort of all (token, expert) pairs, then one matrix product per visited expert on a contiguous
    block or, in bfloat16 on a GPU, one for all (`moe_retriever.nn.kernels.grouped_ffn`).
    """

    def __init__(self, n_experts: int, hidden: int, ffn: int, dropout: float, noise: Noise):
        super().__init__()
        self.n_experts = n_experts
        self.w_in = nn.Parameter(torch.empty(n_experts, hidden, ffn))
        self.b_in = nn.Parameter(torch.empty(n_experts, ffn))
        self.w_out = nn.Parameter(torch.empty(n_experts, ffn, hidden))
        self.b_out = nn.Parameter(torch.empty(n_experts, hidden))
        self.dropout = Dropout(dropout, noise)

    def initial(self, name: str) -> Fill:
        return uniform(1 / math.sqrt(self.w_in.shape[1 if name in ("w_in", "b_in") else 2]))

    def forward(
        self,
        x_TH: Tensor,
        routing: Routing,
        *,
        row_T: Tensor | None = None,
        n_rows: int | None = None,
        scale_T: Tensor | None = None,
    ) -> Tensor:
        """Σ over a token's experts of weight · expert(x), (T, H); masked (token, expert) pairs contribute zero.

        Args:
            row_T, n_rows: add the result of each token to a row of an (n_rows, H) tensor; the second layer of an expert
                then operates on sums.
            scale_T: factor of each token.
        """
        device, n_rows, weights = x_TH.device, n_rows or len(x_TH), (self.w_in, self.b_in, self.w_out, self.b_out)
        weight_TK = routing.weight if scale_T is None else routing.weight * scale_T[:, None]
        keep, factor = self.dropout.bits((weight_TK.numel(), self.w_in.shape[2]), device)
        x_TH, one_kernel = x_TH.to(self.w_in.dtype), grouped(device, *self.w_in.shape[1:])
        with torch.autocast(device.type, enabled=False):
            if one_kernel or kernels.plain:
                visits = sorted_visits(routing.expert, row_T, n_rows)
                weight_A = (weight_TK.flatten().index_select(0, visits[1]) * factor).to(x_TH.dtype)
                return feed_forward(x_TH, weight_A, keep, visits, n_rows, weights, one_kernel=one_kernel)
            plan = VisitPlan.of(routing.expert, self.n_experts, row_T, n_rows)
            weight_A = (weight_TK.flatten().index_select(0, plan.order) * factor).to(x_TH.dtype)
            return GroupedFeedForward.apply(x_TH, weight_A, keep, plan, *weights, torch.is_grad_enabled())


def cv_squared(x: Tensor) -> Tensor:
    """Squared coefficient of variation over the last dimension (unbiased variance); 0 for a single expert."""
    if x.shape[-1] < 2:
        return x.new_zeros(x.shape[:-1])
    return x.var(dim=-1) / (x.mean(dim=-1) ** 2 + 1e-10)


def _load(routing: Routing) -> Tensor:
    """(T, E) contribution of each token to the experts' load: 1 if selected or, with noise, the selection probability.

    The probability follows Shazeer et al. (2017), appendix A, restricted to the allowed experts.
    """
    chosen = torch.zeros_like(routing.clean).scatter(1, routing.expert, 1.0)
    if routing.noisy is None or routing.spread is None:
        return chosen
    k = routing.expert.shape[1]
    top = routing.noisy.topk(min(k + 1, routing.noisy.shape[1]), dim=1).values
    if top.shape[1] == k:
        return chosen
    # Threshold for selection: the k-th largest logit of the other experts.
    rival = torch.where(chosen > 0, top[:, k:], top[:, k - 1 : k])
    # The outcome is certain for masked experts and without allowed rivals; infinities must not enter the gradient.
    certain = routing.clean.isinf() | rival.isinf()
    z = (routing.clean.masked_fill(certain, 0.0) - rival.masked_fill(certain, 0.0)) / routing.spread
    return torch.where(certain, chosen, torch.special.ndtr(z))


def balance_loss(routing: Routing, group_T: Tensor, allowed_GA: Tensor) -> Tensor:
    """CV²(importance) + CV²(load) over each group's allowed experts, averaged over the groups in the batch.

    Args:
        group_T: (T,) group (missing modality) of each token.
        allowed_GA: (G, A) experts that a group may use.
    """
    n_groups = allowed_GA.shape[0]
    importance_TE = torch.zeros_like(routing.clean).scatter(1, routing.expert, routing.weight)
    statistics_T2E = torch.stack([importance_TE, _load(routing)], dim=1)
    sums_G2E = statistics_T2E.new_zeros(n_groups, *statistics_T2E.shape[1:]).index_add(0, group_T, statistics_T2E)
    per_group = cv_squared(sums_G2E.gather(2, allowed_GA[:, None, :].expand(-1, 2, -1))).sum(dim=1)
    present = torch.zeros(n_groups, dtype=per_group.dtype, device=per_group.device).index_fill(0, group_T, 1.0)
    return (per_group * present).sum() / present.sum().clamp_min(1.0)
