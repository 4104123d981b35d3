"""Plain float64 parts of the slow references: one sample at a time, loops where the methods have tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import Data
from model.methods.base import Method


class SlowParts:
    """The weights of a method in float64, and the parts that several methods are written from."""

    def __init__(self, method: Method, data: Data):
        self.data, self.config = data, method.config
        self.weights = {k: self._own(v) for k, v in method.state_dict().items()}
        self.kinds = [s.kind for s in data.spec.modalities]

    @staticmethod
    def _own(v: Tensor) -> Tensor:
        return v.detach().double().requires_grad_() if v.is_floating_point() else v.detach().clone()

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
        """(P, H) of an MLP."""
        c, row = self.config.common, int(self.data.row[sample, m])
        assert self.kinds[m] == "vector"
        state = self.linear(self.data.tables[m].x[row].double(), f"encoders.{m}.inner").relu()
        chunk = math.ceil(len(state) / c.tokens)
        padded = torch.cat([state, torch.zeros(chunk * c.tokens - len(state), dtype=torch.float64)])
        return self.linear(padded.view(c.tokens, chunk), f"encoders.{m}.tokens.linear")

    def attention(self, x: Tensor, name: str, heads: int) -> Tensor:
        """(L, H), one head at a time."""
        q, k, v = self.linear(x, f"{name}.qkv").chunk(3, dim=1)
        size = x.shape[1] // heads
        parts = []
        for h in range(heads):
            s = slice(h * size, (h + 1) * size)
            parts.append((q[:, s] @ k[:, s].T / math.sqrt(size)).softmax(1) @ v[:, s])
        return self.linear(torch.cat(parts, dim=1), f"{name}.out")

    def block(self, x: Tensor, name: str, heads: int) -> Tensor:
        """One pre-LN transformer block on (L, H)."""
        x = x + self.attention(self.norm(x, f"{name}.norm_attention"), f"{name}.attention", heads)
        inner = F.gelu(self.linear(self.norm(x, f"{name}.norm_ffn"), f"{name}.ffn.inner"))
        return x + self.linear(inner, f"{name}.ffn.outer")

    def fuse(self, slots: dict[int, Tensor]) -> Tensor:
        """The shared fusion transformer on the slots (P, H) that count; the others reach the head as zeros."""
        x = torch.cat([z + self.w("fusion.position_MPH")[m] for m, z in sorted(slots.items())])
        x = self.norm(self.block(x, "fusion.blocks.0", self.config.common.heads), "fusion.norm")
        means = dict(zip(sorted(slots), x.view(len(slots), -1, x.shape[1]).mean(1), strict=True))
        nothing = torch.zeros(x.shape[1], dtype=torch.float64)
        return self.linear(torch.cat([means.get(m, nothing) for m in range(len(self.kinds))]), "fusion.head")

    def assert_same_gradients(self, method: Method) -> None:
        """After `backward` on both sides: every parameter has the reference's gradient."""
        for name, p in method.named_parameters():
            wanted, found = self.weights[name].grad, p.grad
            wanted = torch.zeros_like(p).double() if wanted is None else wanted
            found = torch.zeros_like(p) if found is None else found
            torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=1e-6, msg=f"gradient of {name}")


def parameters_without_encoders(method: Method) -> int:
    return sum(p.numel() for name, p in method.named_parameters() if not name.startswith("encoders."))


def assert_company_and_order_do_not_matter(method: Method, data: Data) -> None:
    """Alone, together, in another order: the same predictions."""
    method.eval()
    method.refresh()
    rows = data.rows("test")
    together = method(data.batch(rows, "evaluation")).logits
    shuffled = method(data.batch(rows[::-1].copy(), "evaluation")).logits.flip(0)
    alone = torch.cat([method(data.batch(rows[[i]], "evaluation")).logits for i in range(len(rows))])
    torch.testing.assert_close(shuffled, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
