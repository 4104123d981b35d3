"""Further building blocks of the slow references of graph methods and controls, in addition to `slow`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_retriever.data.load import Data
from moe_retriever.methods.base import Method
from tests.moe_retriever.slow import Slow


class SlowParts(Slow):
    """Blocks with a given number of heads, the shared fusion transformer, and the comparison of gradients."""

    def headed_block(self, x: Tensor, name: str, heads: int) -> Tensor:
        """One pre-LN transformer block on (L, H), one head at a time."""
        q, k, v = self.linear(self.norm(x, f"{name}.norm_attention"), f"{name}.attention.qkv").chunk(3, dim=1)
        parts = [
            (a @ b.T / math.sqrt(x.shape[1] // heads)).softmax(1) @ c
            for a, b, c in zip(*(t.chunk(heads, dim=1) for t in (q, k, v)), strict=True)
        ]
        x = x + self.linear(torch.cat(parts, dim=1), f"{name}.attention.out")
        return x + self.feed_forward(self.norm(x, f"{name}.norm_ffn"), f"{name}.ffn")

    def fuse(self, slots: dict[int, Tensor]) -> Tensor:
        """The shared fusion transformer on filled slots (P, H); the others are zeros in the input of the head."""
        x = torch.cat([z + self.w("fusion.position_MPH")[m] for m, z in sorted(slots.items())])
        x = self.norm(self.block(x, "fusion.blocks.0"), "fusion.norm")
        means = dict(zip(sorted(slots), x.view(len(slots), -1, x.shape[1]).mean(1), strict=True))
        nothing = torch.zeros(x.shape[1], dtype=torch.float64)
        return self.linear(torch.cat([means.get(m, nothing) for m in range(self.n_modalities)]), "fusion.head")

    def assert_same_gradients(self, method: Method) -> None:
        """Assert that all gradients equal those of the reference, after `backward` on both sides."""
        for name, p in method.named_parameters():
            wanted, found = self.weights[name].grad, p.grad
            wanted = torch.zeros_like(p).double() if wanted is None else wanted
            found = torch.zeros_like(p) if found is None else found
            torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=1e-6, msg=f"gradient of {name}")


def parameters_without_encoders(method: Method) -> int:
    return sum(p.numel() for name, p in method.named_parameters() if not name.startswith("encoders."))


def assert_company_and_order_do_not_matter(method: Method, data: Data) -> None:
    """Assert that predictions depend neither on the batch nor on the order of samples."""
    method.eval()
    method.refresh()
    rows = data.rows("test")
    together = method(data.batch(rows, "evaluation")).logits
    shuffled = method(data.batch(rows[::-1].copy(), "evaluation")).logits.flip(0)
    alone = torch.cat([method(data.batch(rows[[i]], "evaluation")).logits for i in range(len(rows))])
    torch.testing.assert_close(shuffled, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
