"""Attention mask: a missing modality's tokens are hidden from the attention and enter the head as zeros."""

from __future__ import annotations

from torch import Tensor

from moe_retriever.methods.shared.filled_transformer import FilledTransformer


class AttentionMask(FilledTransformer):
    """No fill: the transformer sees the observed tokens only."""

    name = "attention_mask"
    summary = "transformer over the observed modalities only, no fill (control)"

    def fill(self, z_BMPH: Tensor, observed_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        return z_BMPH, observed_BM
