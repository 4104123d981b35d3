"""Building blocks of slow reference implementations: float64, with loops over samples, heads, tokens and experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Batch, Data
from moe_retriever.methods.base import Method


class Slow:
    """The weights of a method in float64 and reference computations of its modules, addressed by their names."""

    def __init__(self, method: Method, data: Data):
        self.data, self.config, self.options = data, method.config, method.config.own
        self.n_modalities = len(data.spec.modalities)
        names = {name for name, _ in method.named_parameters()}
        self.weights = {k: v.detach().double() for k, v in method.state_dict().items() if v.is_floating_point()}
        for name in names:
            self.weights[name].requires_grad_()

    def w(self, name: str) -> Tensor:
        return self.weights[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.w(f"{name}.weight").T
        return y + self.w(f"{name}.bias") if f"{name}.bias" in self.weights else y

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.w(f"{name}.weight") + self.w(f"{name}.bias")

    def encode(self, sample: int, m: int) -> Tensor:
        """Tokens (P, H) of the vector MLP."""
        row = int(self.data.row[sample, m])
        assert row >= 0, "an encoder met a modality that is not observed"
        return self.tokens(self.linear(self.data.tables[m].x[row].double(), f"encoders.{m}.inner").relu(), m)

    def tokens(self, state: Tensor, m: int) -> Tensor:
        """Tokens (P, H) of an encoder's output: equal chunks, padded with zeros, and one linear map."""
        c = self.config.common
        chunk = math.ceil(len(state) / c.tokens)
        padded = torch.cat([state, torch.zeros(chunk * c.tokens - len(state), dtype=torch.float64)])
        return self.linear(padded.view(c.tokens, chunk), f"encoders.{m}.tokens.linear")

    def attention(self, x: Tensor, name: str, keys: Tensor | None = None) -> Tensor:
        """Attention (L, H), one head at a time; `keys` (L,) bool: positions that can be attended to."""
        q, k, v = self.linear(x, f"{name}.qkv").chunk(3, dim=1)
        size = x.shape[1] // self.config.common.heads
        heads = []
        for h in range(self.config.common.heads):
            s = slice(h * size, (h + 1) * size)
            scores = q[:, s] @ k[:, s].T / math.sqrt(size)
            if keys is not None:
                scores = scores.masked_fill(~keys, -math.inf)
            heads.append(scores.softmax(1) @ v[:, s])
        return self.linear(torch.cat(heads, dim=1), f"{name}.out")

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        return self.linear(F.gelu(self.linear(x, f"{name}.inner")), f"{name}.outer")

    def block(self, x: Tensor, name: str, keys: Tensor | None = None) -> Tensor:
        """A pre-LN transformer block with a dense feed-forward layer."""
        x = x + self.attention(self.norm(x, f"{name}.norm_attention"), f"{name}.attention", keys)
        return x + self.feed_forward(self.norm(x, f"{name}.norm_ffn"), f"{name}.ffn")

    def expert(self, x: Tensor, e: int, name: str) -> Tensor:
        inner = F.gelu(x @ self.w(f"{name}.w_in")[e] + self.w(f"{name}.b_in")[e])
        return inner @ self.w(f"{name}.w_out")[e] + self.w(f"{name}.b_out")[e]

    def mixture(self, x: Tensor, logits: Tensor, top_k: int, name: str) -> tuple[Tensor, Tensor]:
        """For one token: Σ softmax over the top-k logits · expert(x), and the weights of all experts (E,)."""
        best = logits.topk(top_k)
        weight = torch.zeros(len(logits), dtype=torch.float64)
        y = torch.zeros_like(x)
        for p, e in zip(best.values.softmax(0), best.indices.tolist(), strict=True):
            y = y + p * self.expert(x, e, name)
            weight = weight + p * F.one_hot(torch.tensor(e), len(logits))
        return y, weight


def cv_squared(x: Tensor) -> Tensor:
    """Squared coefficient of variation, with the unbiased variance."""
    mean = x.sum() / len(x)
    return ((x - mean) ** 2).sum() / (len(x) - 1) / mean**2


def balance(weights: Sequence[Tensor]) -> Tensor:
    """CV² of importance and load, from the weights (E,) of all tokens."""
    every = torch.stack(list(weights))
    return cv_squared(every.sum(0)) + cv_squared((every > 0).double().sum(0))


def observed(batch: Batch, b: int) -> list[int]:
    """Observed modalities of sample b of the batch."""
    return [m for m in range(batch.observed.shape[1]) if batch.observed[b, m]]


def task_loss(outputs: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy or, for a regression, mean squared error."""
    if batch.data.spec.regression:
        return ((outputs[:, 0] - batch.label) ** 2).mean()
    return F.cross_entropy(outputs, batch.label)


def require_equal(
    method: Method, batch: Batch, slow: Slow, expected: Tensor, losses: dict[str, Tensor] | None = None
) -> None:
    """Assert that logits, losses and, in training, all gradients of their sum equal those of the reference."""
    out = method(batch)
    torch.testing.assert_close(out.logits.double(), expected, rtol=1e-4, atol=1e-5)
    losses = losses or {}
    assert set(out.losses) == set(losses)
    for name, value in losses.items():
        torch.testing.assert_close(out.losses[name].double(), value.double(), rtol=1e-4, atol=1e-6, msg=name)
    if not method.training:
        return
    method.zero_grad()
    (task_loss(out.logits, batch) + sum(out.losses.values())).backward()
    (task_loss(expected, batch) + sum(losses.values())).backward()
    for name, p in method.named_parameters():
        wanted = slow.weights[name].grad
        found = torch.zeros_like(p) if p.grad is None else p.grad
        wanted = torch.zeros_like(found) if wanted is None else wanted
        torch.testing.assert_close(found.double(), wanted.double(), rtol=2e-3, atol=2e-6, msg=f"gradient of {name}")
