"""MoE-Retriever in plain PyTorch, one sample and one missing modality at a time: to be read, not to be fast.

It follows the paper's Eq. 1-3 and Algorithm 1 with the default choices of docs/method.md. The package
(`moe_retriever`) computes the same for whole batches; tests/docs/test_reference_implementation.py compares the two.

P tokens per modality, H width of a token, M modalities, C classes. Modalities are numbered 0 ... M-1.
"""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Routed = tuple[int, Tensor]  # target modality, weights (tokens, allowed experts)


@dataclass
class Options:
    """The options of the package that matter here, with their defaults."""

    tokens: int = 16  # P
    hidden: int = 128  # H
    heads: int = 4
    n_experts: int = 8  # per target modality, |E_T|
    n_shared: int = 4  # |E_Sh|
    top_k: int = 4
    expert_ffn: int = 256
    fusion_layers: int = 1
    fusion_ffn: int = 256
    dropout: float = 0.5


# Eq. 2: which training samples can support a missing modality


def supporting_group(observed: list[set[int]], mc: set[int], target: int) -> list[int]:
    """G(T | mc): training samples that have the target and everything that the sample has.

    If there is none: the training samples that have the target and share most with mc; among them, those with the
    fewest modalities that the sample lacks. If no training sample has the target: none.
    """
    group = [j for j, mc_j in enumerate(observed) if mc <= mc_j and target in mc_j]
    if group:
        return group
    having = [j for j, mc_j in enumerate(observed) if target in mc_j]
    score = {j: (len(observed[j] & mc), -len(observed[j] - mc - {target})) for j in having}
    return [j for j in having if score[j] == max(score.values())]


def draw_supports(group: list[int], mc: set[int], rng: random.Random) -> list[int]:
    """As many supporting samples as the sample has modalities; the whole group if it is smaller."""
    return rng.sample(group, min(len(mc), len(group)))


# Building blocks


class Attention(nn.Module):
    """Multi-head attention of a token list to itself."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:  # (L, H) -> (L, H)
        q, k, v = (t.unflatten(1, (self.heads, -1)).transpose(0, 1) for t in self.qkv(x).chunk(3, dim=1))
        weight = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(dim=2)
        return self.out((weight @ v).transpose(0, 1).flatten(1))


class FeedForward(nn.Module):
    """H -> F -> H with GELU; also the form of an expert."""

    def __init__(self, hidden: int, ffn: int, dropout: float):
        super().__init__()
        self.inner, self.outer, self.dropout = nn.Linear(hidden, ffn), nn.Linear(ffn, hidden), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(F.gelu(self.inner(x))))


# Eq. 1 and 3: embed one missing modality


class Retriever(nn.Module):
    """Multi-head attention, sparse mixture of experts, and the mean that makes one embedding of its outputs."""

    def __init__(self, n_modalities: int, o: Options):
        super().__init__()
        self.n_modalities, self.options = n_modalities, o
        self.norm_context, self.attention = nn.LayerNorm(o.hidden), Attention(o.hidden, o.heads)
        self.dropout = nn.Dropout(o.dropout)
        self.norm_in, self.norm_out = nn.LayerNorm(o.hidden), nn.LayerNorm(o.hidden)
        total = n_modalities * o.n_experts + o.n_shared
        self.router = nn.Linear(o.hidden, total, bias=False)
        self.experts = nn.ModuleList(FeedForward(o.hidden, o.expert_ffn, o.dropout) for _ in range(total))

    def allowed(self, target: int) -> list[int]:
        """Experts of the target's own pool, then the shared ones."""
        n = self.options.n_experts
        own, shared = range(target * n, (target + 1) * n), range(self.n_modalities * n, len(self.experts))
        return [*own, *shared]

    def route(self, x: Tensor, target: int) -> Tensor:
        """Eq. 1, R(x): softmax over the allowed experts, then all but the top k set to 0; (L, allowed)."""
        p = self.router(x)[:, self.allowed(target)].softmax(dim=1)
        best = p.topk(self.options.top_k, dim=1)
        return torch.zeros_like(p).scatter(1, best.indices, best.values)

    def forward(self, target: int, intra: list[Tensor], inter: list[Tensor]) -> tuple[Tensor, Routed]:
        """Eq. 3 and lines 6-18 of Algorithm 1.

        Args:
            intra: tokens (P, H) of the target modality of each supporting sample.
            inter: tokens (P, H) of each observed modality of the sample itself.

        Returns:
            the retrieved tokens (P, H); the routing, for the balance loss.
        """
        x = torch.cat(intra + inter)  # all tokens of all items in one list
        x = x + self.dropout(self.attention(self.norm_context(x)))  # x <- MHA(x)
        x = self.norm_in(x)
        weight = self.route(x, target)
        y = torch.zeros_like(x)
        for column, e in enumerate(self.allowed(target)):  # y = sum_e R(x)_e E_e(x)
            chosen = weight[:, column] > 0
            y[chosen] = y[chosen] + weight[chosen, column, None] * self.experts[e](x[chosen])
        items = y.unflatten(0, (-1, self.options.tokens))  # (items, P, H)
        means = [items[: len(intra)].mean(dim=0)] if intra else []
        means += [items[len(intra) :].mean(dim=0)] if inter else []
        # Half the weight to each context, position by position.
        return self.norm_out(torch.stack(means).mean(dim=0)), (target, weight)


def balance_loss(routed: list[Routed]) -> Tensor:
    """CV²(importance) + CV²(load) over the allowed experts of each target, averaged over the targets that occur."""

    def cv_squared(v: Tensor) -> Tensor:
        return v.var() / (v.mean() ** 2 + 1e-10)

    losses = []
    for target in sorted({t for t, _ in routed}):
        weight = torch.cat([w for t, w in routed if t == target])  # all tokens with this target
        importance, load = weight.sum(dim=0), (weight > 0).to(weight.dtype).sum(dim=0)
        losses.append(cv_squared(importance) + cv_squared(load))
    return torch.stack(losses).mean()


# Fusion and prediction


class Fusion(nn.Module):
    """A pre-norm transformer encoder over the tokens of all modalities, then one linear head."""

    def __init__(self, n_modalities: int, n_classes: int, o: Options):
        super().__init__()
        layers = range(o.fusion_layers)
        self.position = nn.Parameter(0.02 * torch.randn(n_modalities, o.tokens, o.hidden))
        self.norms_attention = nn.ModuleList(nn.LayerNorm(o.hidden) for _ in layers)
        self.attentions = nn.ModuleList(Attention(o.hidden, o.heads) for _ in layers)
        self.norms_ffn = nn.ModuleList(nn.LayerNorm(o.hidden) for _ in layers)
        self.ffns = nn.ModuleList(FeedForward(o.hidden, o.fusion_ffn, o.dropout) for _ in layers)
        self.dropout, self.norm = nn.Dropout(o.dropout), nn.LayerNorm(o.hidden)
        self.head = nn.Linear(n_modalities * o.hidden, n_classes)

    def forward(self, slots: Tensor) -> Tensor:  # (M, P, H) -> (C,)
        x = (slots + self.position).flatten(0, 1)
        layers = zip(self.norms_attention, self.attentions, self.norms_ffn, self.ffns, strict=True)
        for norm_attention, attention, norm_ffn, ffn in layers:
            x = x + self.dropout(attention(norm_attention(x)))
            x = x + self.dropout(ffn(norm_ffn(x)))
        mean = self.norm(x).unflatten(0, slots.shape[:2]).mean(dim=1)  # one vector per modality
        return self.head(mean.flatten())


# Algorithm 1


def forward(
    retriever: Retriever, fusion: Fusion, samples: list[dict[int, Tensor]], supports: list[dict[int, list[Tensor]]]
) -> tuple[Tensor, Tensor]:
    """Logits (n, C) and the balance loss of a batch.

    Args:
        samples: for each sample, observed modality -> tokens (P, H) of its encoder.
        supports: for each sample, missing modality -> tokens of that modality of each supporting sample.
    """
    logits, routed = [], []
    for own, support in zip(samples, supports, strict=True):
        slots = dict(own)
        for target, intra in support.items():  # each missing modality; retrieved ones are not used for the next
            slots[target], route = retriever(target, intra, [own[m] for m in sorted(own)])
            routed.append(route)
        logits.append(fusion(torch.stack([slots[m] for m in sorted(slots)])))
    return torch.stack(logits), balance_loss(routed) if routed else torch.zeros(())
