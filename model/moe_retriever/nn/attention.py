"""Attention blocks, and the fusion transformer over the tokens of all modalities with the classification head.

Legend: B samples, M modalities, P tokens per modality, L tokens in total, H hidden dimension, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_retriever.config import Common
from moe_retriever.device import Head
from moe_retriever.nn.dropout import Dropout, Noise
from moe_retriever.nn.init import Fill, normal
from moe_retriever.nn.moe import Experts, Router, balance_loss


class Attention(nn.Module):
    """Multi-head attention; projections of queries, keys and values have no bias, the output projection has one."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attention of (B, L, H) tensors without output projection; `allowed` broadcasts to (B, heads, Lq, Lk)."""
        # (B, L, H) → (B, heads, L, H / heads).
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(-2)

    def forward(self, x_BLH: Tensor, allowed: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x_BLH).chunk(3, dim=-1)
        return self.out(self.mix(q, k, v, allowed))


class FeedForward(nn.Module):
    """H → F → H with GELU."""

    def __init__(self, hidden: int, ffn: int, dropout: float, noise: Noise):
        super().__init__()
        self.inner = nn.Linear(hidden, ffn)
        self.outer = nn.Linear(ffn, hidden)
        self.dropout = Dropout(dropout, noise)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(F.gelu(self.inner(x))))


class SparseFeedForward(nn.Module):
    """A sparse mixture of experts as feed-forward layer; also returns the balance loss."""

    def __init__(self, c: Common, noise: Noise):
        super().__init__()
        self.router = Router(c.hidden, c.fusion_experts, top_k=c.fusion_top_k, noise=noise)
        self.experts = Experts(c.fusion_experts, c.hidden, c.fusion_ffn, c.dropout, noise)

    def forward(self, x_BLH: Tensor, filled_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        x_TH = x_BLH.flatten(0, 1) if filled_BL is None else x_BLH[filled_BL]
        routing = self.router(x_TH)
        every = torch.arange(self.router.n_experts, device=x_TH.device)[None, :]
        loss = balance_loss(routing, torch.zeros(len(x_TH), dtype=torch.long, device=x_TH.device), every)
        y_TH = self.experts(x_TH, routing)
        if filled_BL is None:
            return y_TH.view_as(x_BLH), loss
        return torch.zeros_like(x_BLH).masked_scatter(filled_BL.unsqueeze(2), y_TH), loss


class TransformerBlock(nn.Module):
    """One transformer block.

    form "pre-ln": x + Drop(MHA(LN x)), then x + Drop(FFN(LN x)).
    form "code": as released, without the first residual connection: a = MHA(LN x); a + Drop(a); then FFN as above.
    """

    def __init__(self, c: Common, noise: Noise):
        super().__init__()
        self.form, self.sparse = c.fusion_block, c.fusion_experts > 0
        self.norm_attention = nn.LayerNorm(c.hidden)
        self.attention = Attention(c.hidden, c.heads)
        self.norm_ffn = nn.LayerNorm(c.hidden)
        self.ffn: nn.Module = (
            SparseFeedForward(c, noise) if c.fusion_experts else FeedForward(c.hidden, c.fusion_ffn, c.dropout, noise)
        )
        self.dropout = Dropout(c.dropout, noise)

    def forward(self, x_BLH: Tensor, filled_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
        allowed = None if filled_BL is None else filled_BL[:, None, None, :]
        mixed = self.attention(self.norm_attention(x_BLH), allowed)
        x_BLH = (mixed if self.form == "code" else x_BLH) + self.dropout(mixed)
        normed = self.norm_ffn(x_BLH)
        update, loss = self.ffn(normed, filled_BL) if self.sparse else (self.ffn(normed), None)
        return x_BLH + self.dropout(update), loss


class Fusion(nn.Module):
    """Transformer over the tokens of all modalities, then a linear head on the concatenated means of the modalities.

    Slots that are not filled are masked in the attention and are zeros in the input of the head.
    """

    def __init__(self, n_modalities: int, n_classes: int, c: Common, noise: Noise):
        super().__init__()
        self.position_MPH = nn.Parameter(torch.empty(n_modalities, c.tokens, c.hidden))
        self.blocks = nn.ModuleList(TransformerBlock(c, noise) for _ in range(c.fusion_layers))
        self.norm = nn.LayerNorm(c.hidden)
        self.head = Head(n_modalities * c.hidden, n_classes)

    def initial(self, name: str) -> Fill:
        return normal(0.02)

    def forward(self, z_BMPH: Tensor, filled_BM: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Fuse the modalities and classify.

        Args:
            z_BMPH: tokens of every slot; values of unfilled slots are ignored.
            filled_BM: filled slots, at least one per sample; None: all.

        Returns:
            logits (B, C); fused embedding (B, M·H), the input of the head; balance loss of sparse blocks or None.
        """
        n_samples, n_modalities, n_tokens, _ = z_BMPH.shape
        x_BLH = (z_BMPH + self.position_MPH).flatten(1, 2)
        filled_BL = None if filled_BM is None else filled_BM.repeat_interleave(n_tokens, dim=1)
        if filled_BL is not None:
            x_BLH = x_BLH.masked_fill(~filled_BL.unsqueeze(2), 0.0)
        losses = []
        for block in self.blocks:
            x_BLH, loss = block(x_BLH, filled_BL)
            if loss is not None:
                losses.append(loss)
        mean_BMH = self.norm(x_BLH).view(n_samples, n_modalities, n_tokens, -1).mean(dim=2)
        if filled_BM is not None:
            mean_BMH = mean_BMH * filled_BM.unsqueeze(2)
        fused = mean_BMH.flatten(1)
        return self.head(fused), fused, torch.stack(losses).mean() if losses else None
