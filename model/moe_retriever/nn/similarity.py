"""Building blocks of graph methods: masked similarities between samples, and means over observed neighbours.

Legend: B samples (queries), R samples (neighbours), M modalities, H hidden dimension.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_retriever.device import in_float32
from moe_retriever.nn.init import Fill, constant

# Momentum of the running bandwidth, as in torch's batch norm.
MOMENTUM = 0.1


def squared_distances(a_BH: Tensor, b_RH: Tensor) -> Tensor:
    """(B, R) squared distances; non-negative, and exactly 0 on the diagonal if a is b."""
    d = (a_BH.square().sum(1)[:, None] + b_RH.square().sum(1)[None, :] - 2 * a_BH @ b_RH.T).clamp_min(0)
    if a_BH is b_RH:
        d = d.masked_fill(torch.eye(len(a_BH), dtype=torch.bool, device=d.device), 0.0)
    return d


class ObservedNorm(nn.BatchNorm1d):
    """Batch norm over observed rows; a single row is normalised with the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class Kernel(nn.Module):
    """Mean of three Gaussian kernels exp(−d² / b), b ∈ {b0/2, b0, 2 b0}, on two views of a modality's vectors.

    The views are φ(h), a three-layer MLP of h, and h itself, each with its own batch norm. A learned weight combines
    them: (1 − σ(ε)) K1 + σ(ε) K2. b0 is the running mean of the squared distances of observed pairs, without gradient
    and frozen in evaluation.
    """

    bandwidth: Tensor

    def __init__(self, hidden: int):
        super().__init__()
        self.phi = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.norm_phi = ObservedNorm(hidden)
        self.norm_h = ObservedNorm(hidden)
        self.epsilon = nn.Parameter(torch.empty(()))
        # 0 until the first pair.
        self.register_buffer("bandwidth", torch.zeros(2))

    def initial(self, name: str) -> Fill:
        return constant(0.0)

    def views(self, h_nH: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The two normalised views of observed vectors (n, H), and φ(h)."""
        phi = self.phi(h_nH)
        return (self.norm_phi(phi), self.norm_h(h_nH)), phi

    @in_float32
    def forward(self, query: tuple[Tensor, Tensor], neighbour: tuple[Tensor, Tensor]) -> Tensor:
        """Similarities (n, r) of the views of n and of r observed vectors."""
        mixed = []
        for view, (a, b) in enumerate(zip(query, neighbour, strict=True)):
            d = squared_distances(a, b)
            if self.training:
                self._update(view, d.detach())
            b0 = self.bandwidth[view]
            b0 = torch.where(b0 > 0, b0, torch.ones_like(b0))
            mixed.append(sum((-d / (b0 * factor)).exp() for factor in (0.5, 1.0, 2.0)) / 3)
        share = self.epsilon.sigmoid()
        return (1 - share) * mixed[0] + share * mixed[1]

    def _update(self, view: int, d_nn: Tensor) -> None:
        n = len(d_nn)
        if n < 2:
            return
        mean = d_nn.sum() / (n * (n - 1))
        old = self.bandwidth[view].clone()
        self.bandwidth[view] = torch.where(old > 0, (1 - MOMENTUM) * old + MOMENTUM * mean, mean)


class Threshold(nn.Module):
    """Set similarities below a learned threshold τ = σ(θ) to 0.

    Computed as relu(S − τ) + τ·1[S > τ] with τ detached in the second term, so that the similarities above τ are
    unchanged but provide a gradient for τ.
    """

    def __init__(self, start: float):
        super().__init__()
        self._start = math.log(start / (1 - start))
        self.theta = nn.Parameter(torch.empty(()))

    def initial(self, name: str) -> Fill:
        return constant(self._start)

    def forward(self, s: Tensor) -> Tensor:
        tau = self.theta.sigmoid()
        return F.relu(s - tau) + tau.detach() * (s > tau)


@in_float32
def neighbour_mean(
    a_BR: Tensor, x_RH: Tensor, own_B: Tensor | None = None, x_BH: Tensor | None = None, *, normalise: bool = True
) -> Tensor:
    """Weighted mean Σ_j A_ij x_j + own_i x_i over the sum of weights; 0 if all weights are 0.

    Args:
        own_B, x_BH: weight and state of each sample's own node if it is not among the neighbours.
        normalise: whether to divide by the sum of weights.
    """
    total, weight = a_BR @ x_RH, a_BR.sum(1)
    if own_B is not None and x_BH is not None:
        total, weight = total + own_B[:, None] * x_BH, weight + own_B
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))[:, None] if normalise else total
