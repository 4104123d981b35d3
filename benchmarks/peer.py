"""The per-sample loop of the authors' public code, reimplemented from a description: one missing slot after another.

For each missing (sample, modality), it draws supporting samples, encodes them, encodes the sample's own modalities
again (each as a batch of one), and calls a transformer layer with a gated mixture of experts on this single stack.
`released=True` computes all of this and returns the mean of the unchanged input stack (defect D1 of docs/faults.md, as
all D numbers here); `released=False` ("fixed") returns the mean of the experts' outputs, as in the paper. The gate has
its own noise, load and loss. The sum of losses, which the released code never clears (D3), is cleared here; otherwise,
no run of useful length would fit in memory.

Where the description is ambiguous, the choice that is cheaper for this loop is used: no dropout inside experts, no
balance loss in the backward pass, one contiguous product per expert with `unbind` weights.

Legend: B samples, M modalities, N items of a slot, P tokens, H hidden, T = N · P tokens, E experts, K chosen experts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Choose = Callable[[int, int, list[int], int], list[int]]


class ChunkEncoder(nn.Module):
    """(n, d) → (n, P, H): P equal chunks and one shared linear map."""

    def __init__(self, d: int, n_tokens: int, hidden: int):
        super().__init__()
        self.n_tokens, self.chunk = n_tokens, math.ceil(d / n_tokens)
        self.linear = nn.Linear(self.chunk, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, self.chunk * self.n_tokens - x.shape[1]))
        return self.linear(x.view(len(x), self.n_tokens, self.chunk))


class VolumeEncoder(nn.Module):
    """Six 3-D convolutions and three poolings to a vector, then P chunks and one shared linear map."""

    def __init__(self, shape: Sequence[int], n_tokens: int, hidden: int, width: float = 1.0):
        super().__init__()
        layers: list[nn.Module] = []
        channels, sizes = 1, list(shape)
        for n, pool in ((32, 2), (64, 3), (128, 4)):
            wide = max(4, round(n * width))
            kernel = tuple(min(pool, s) for s in sizes)
            for c in (channels, wide):
                layers += [nn.Conv3d(c, wide, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool3d(kernel))
            channels, sizes = wide, [s // k for s, k in zip(sizes, kernel, strict=True)]
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(channels * math.prod(sizes), hidden)
        self.tokens = ChunkEncoder(hidden, n_tokens, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.output(self.features(x.unsqueeze(1)).flatten(1)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over dimension 1."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        b, n, hidden = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        weight = (q @ k.transpose(-2, -1) / math.sqrt(hidden // self.heads)).softmax(dim=-1)
        return self.out((weight @ v).transpose(1, 2).reshape(b, n, hidden))


class Gate(nn.Module):
    """Noisy top-k gate: softmax over the k largest logits; accumulates a balance loss of importance and load (D3)."""

    def __init__(self, hidden: int, n_experts: int, top_k: int, noisy: bool):
        super().__init__()
        self.n_experts, self.top_k, self.noisy = n_experts, top_k, noisy
        self.weight = nn.Parameter(torch.empty(hidden, n_experts))
        self.noise_weight = nn.Parameter(torch.zeros(hidden, n_experts))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.loss: Tensor | float = 0.0

    def forward(self, x_TH: Tensor, forbidden_E: Tensor) -> tuple[Tensor, Tensor]:
        clean = x_TH @ self.weight
        logits, spread = clean, None
        if self.noisy and self.training:
            spread = F.softplus(x_TH @ self.noise_weight) + 1e-2
            logits = clean + torch.randn_like(clean) * spread
        masked = logits.masked_fill(forbidden_E, -math.inf)
        top = masked.topk(min(self.top_k + 1, self.n_experts), dim=1)
        expert, weight = top.indices[:, : self.top_k], top.values[:, : self.top_k].softmax(dim=1)
        gates = torch.zeros_like(logits).scatter(1, expert, weight)
        load = self._load(clean, logits, spread, top.values) if spread is not None else (gates > 0).sum(0).float()
        self.loss = self.loss + _cv_squared(gates.sum(0)) + _cv_squared(load)
        return expert, weight

    def _load(self, clean: Tensor, noisy: Tensor, spread: Tensor, top: Tensor) -> Tensor:
        """Probability of being among the top k, summed over tokens; competitors are the unmasked logits (D8)."""
        inside = noisy > top[:, self.top_k :]
        normal = torch.distributions.Normal(0.0, 1.0)
        if_in = normal.cdf((clean - top[:, self.top_k :]) / spread)
        if_out = normal.cdf((clean - top[:, self.top_k - 1 : self.top_k]) / spread)
        return torch.where(inside, if_in, if_out).sum(0)


def _cv_squared(x: Tensor) -> Tensor:
    return x.float().var() / (x.float().mean() ** 2 + 1e-10)


class ExpertLayer(nn.Module):
    """E feed-forward networks on tokens sorted by expert; one product per expert with tokens."""

    def __init__(self, n_experts: int, hidden: int, ffn: int):
        super().__init__()
        bound_in, bound_out = 1 / math.sqrt(hidden), 1 / math.sqrt(ffn)
        self.w_in = nn.Parameter(torch.empty(n_experts, hidden, ffn).uniform_(-bound_in, bound_in))
        self.b_in = nn.Parameter(torch.empty(n_experts, ffn).uniform_(-bound_in, bound_in))
        self.w_out = nn.Parameter(torch.empty(n_experts, ffn, hidden).uniform_(-bound_out, bound_out))
        self.b_out = nn.Parameter(torch.empty(n_experts, hidden).uniform_(-bound_out, bound_out))

    def forward(self, x_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        k, hidden = expert_TK.shape[1], x_TH.shape[1]
        order = expert_TK.flatten().argsort(stable=True)
        counts = torch.bincount(expert_TK.flatten(), minlength=len(self.w_in)).tolist()
        inner = F.gelu(self._grouped(x_TH[order // k], counts, self.w_in, self.b_in))
        sorted_y = self._grouped(inner, counts, self.w_out, self.b_out)
        y = torch.zeros_like(sorted_y).index_copy(0, order, sorted_y).view(-1, k, hidden)
        return torch.bmm(weight_TK.unsqueeze(1), y).squeeze(1)

    @staticmethod
    def _grouped(x: Tensor, counts: list[int], weight: Tensor, bias: Tensor) -> Tensor:
        parts = zip(x.split(counts), weight.unbind(0), bias.unbind(0), strict=True)
        return torch.cat([torch.addmm(b, part, w) for part, w, b in parts if len(part)])


class PeerRetriever(nn.Module):
    """One transformer layer with experts, for one missing slot at a time.

    Args:
        released: return the mean of the input.
        across: apply attention to all tokens of the slot, as in the paper, instead of within each item (D4); for tests
            of equality.
    """

    def __init__(self, n_modalities: int, s: Settings, *, released: bool, across: bool):
        super().__init__()
        self.released, self.across, self.n_own, self.n_modalities = released, across, s.n_experts, n_modalities
        n_experts = s.n_experts * n_modalities + s.n_shared
        self.attention = SelfAttention(s.hidden, s.heads)
        self.dropout = nn.Dropout(s.dropout)
        self.norm = nn.LayerNorm(s.hidden)
        self.gate = Gate(s.hidden, n_experts, s.top_k, s.noisy)
        self.experts = ExpertLayer(n_experts, s.hidden, s.ffn)

    def forward(self, x_NPH: Tensor, target: int, n_intra: int) -> Tensor:
        x = self.attention(x_NPH.flatten(0, 1).unsqueeze(0)).view_as(x_NPH) if self.across else self.attention(x_NPH)
        x = x + self.dropout(x)
        forbidden = torch.ones(self.gate.n_experts, dtype=torch.bool, device=x.device)
        forbidden[target * self.n_own : (target + 1) * self.n_own] = False
        forbidden[self.n_modalities * self.n_own :] = False
        tokens = self.norm(x).flatten(0, 1)
        expert, weight = self.gate(tokens, forbidden)
        y = self.experts(tokens, expert, weight).view_as(x)
        y = x_NPH if self.released else y
        if n_intra in (0, len(y)):
            return y.mean(dim=0)
        return 0.5 * y[:n_intra].mean(dim=0) + 0.5 * y[n_intra:].mean(dim=0)


class PeerFusion(nn.Module):
    """One transformer layer without its first residual (D5), then a linear head on the means of the modalities."""

    def __init__(self, n_modalities: int, n_classes: int, s: Settings):
        super().__init__()
        self.position = nn.Parameter(torch.randn(n_modalities, s.tokens, s.hidden) * 0.02)
        self.norm_attention, self.norm_ffn, self.norm = (nn.LayerNorm(s.hidden) for _ in range(3))
        self.attention = SelfAttention(s.hidden, s.heads)
        self.inner, self.outer = nn.Linear(s.hidden, s.ffn), nn.Linear(s.ffn, s.hidden)
        self.dropouts = nn.ModuleList(nn.Dropout(s.dropout) for _ in range(3))
        self.head = nn.Linear(n_modalities * s.hidden, n_classes)

    def forward(self, z: Sequence[Tensor]) -> Tensor:
        x = torch.cat([part + position for part, position in zip(z, self.position, strict=True)], dim=1)
        x = self.attention(self.norm_attention(x))
        x = x + self.dropouts[0](x)
        inner = self.dropouts[1](F.gelu(self.inner(self.norm_ffn(x))))
        x = self.norm(x + self.dropouts[2](self.outer(inner)))
        means = [part.mean(dim=1) for part in x.chunk(len(z), dim=1)]
        return self.head(torch.cat(means, dim=1))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the released code."""

    hidden: int = 128
    tokens: int = 16
    heads: int = 4
    ffn: int = 256
    n_experts: int = 8
    n_shared: int = 4
    top_k: int = 4
    dropout: float = 0.5
    noisy: bool = True
    cnn_width: float = 1.0


class Samples(Dataset[dict[str, Any]]):
    """Dense arrays of all modalities, with −2 in rows of absent ones (D27); one dictionary per sample."""

    def __init__(
        self, arrays: Sequence[NDArray[np.float32]], observed: NDArray[np.bool_], label: NDArray[np.int64], rows: Any
    ):
        self.arrays, self.observed, self.label, self.rows = arrays, observed, label, np.asarray(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = int(self.rows[i])
        features = {str(m): torch.from_numpy(a[row]) for m, a in enumerate(self.arrays)}
        return {
            "x": features,
            "observed": torch.from_numpy(self.observed[row]),
            "label": int(self.label[row]),
            "row": row,
        }


def collate(samples: Samples, batch_size: int) -> DataLoader[dict[str, Any]]:
    """Batches in row order."""
    return DataLoader(samples, batch_size=batch_size, shuffle=False, num_workers=0)


class Peer(nn.Module):
    """Encoders, the retriever that is called slot by slot, and fusion.

    Args:
        shapes: shape of one entry of each modality; three dimensions are a volume.
        arrays, observed: all samples (N, ...) and (N, M), as in `Samples`.
        reference: rows of potential supporting samples.
        choose: (row, target, candidates, n) → rows; default: a random sample.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        n_classes: int,
        s: Settings,
        arrays: Sequence[NDArray[np.float32]],
        observed: NDArray[np.bool_],
        reference: NDArray[np.int64],
        *,
        released: bool,
        across: bool = False,
        choose: Choose | None = None,
    ):
        super().__init__()
        self.encoders = nn.ModuleList(
            VolumeEncoder(shape, s.tokens, s.hidden, s.cnn_width)
            if len(shape) == 3
            else ChunkEncoder(shape[0], s.tokens, s.hidden)
            for shape in shapes
        )
        self.settings = s
        self.retriever = PeerRetriever(len(shapes), s, released=released, across=across)
        self.fusion = PeerFusion(len(shapes), n_classes, s)
        self._arrays, self._observed, self._reference = arrays, observed, reference
        self._groups: dict[tuple[tuple[bool, ...], int], list[int]] = {}
        self._choose = choose or (lambda row, target, pool, n: random.sample(pool, min(n, len(pool))))

    def group(self, mask: NDArray[np.bool_], target: int) -> list[int]:
        """Supporting group of Eq. 2, cached per combination."""
        key = (tuple(mask.tolist()), target)
        if key not in self._groups:
            required = mask.copy()
            required[target] = True
            matching = (self._observed[self._reference] | ~required).all(axis=1)
            self._groups[key] = self._reference[matching].tolist()
        return self._groups[key]

    def forward(self, batch: dict[str, Any]) -> Tensor:
        device = self.fusion.position.device
        s = self.settings
        observed, rows = batch["observed"].numpy(), batch["row"].tolist()
        x = [batch["x"][str(m)].to(device) for m in range(len(self.encoders))]
        z = []
        for m, encoder in enumerate(self.encoders):
            slot = torch.zeros(len(rows), s.tokens, s.hidden, device=device)
            having = torch.from_numpy(observed[:, m])
            if having.any():
                slot[having.to(device)] = encoder(x[m][having.to(device)])
            z.append(slot)
        for i, row in enumerate(rows):
            own = np.flatnonzero(observed[i]).tolist()
            for target in np.flatnonzero(~observed[i]).tolist():
                supports = self._choose(row, target, self.group(observed[i], target), len(own))
                stack = []
                if supports:
                    features = torch.stack([torch.from_numpy(self._arrays[target][j]) for j in supports])
                    stack.append(self.encoders[target](features.to(device)))
                stack += [self.encoders[m](x[m][i : i + 1]) for m in own]
                z[target][i] = self.retriever(torch.cat(stack), target, len(supports))
        return self.fusion(z)

    def train_step(self, batch: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
        """Forward pass, cross-entropy, backward pass, Adam step."""
        optimiser.zero_grad()
        loss = F.cross_entropy(self(batch), batch["label"].to(self.fusion.position.device))
        loss.backward()
        optimiser.step()
        self.retriever.gate.loss = 0.0
