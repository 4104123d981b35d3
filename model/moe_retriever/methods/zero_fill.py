"""Zero fill: a missing modality's tokens are zeros, which the transformer's position embedding then tells apart."""

from __future__ import annotations

from torch import Tensor

from moe_retriever.methods.shared.filled_transformer import FilledTransformer


class ZeroFill(FilledTransformer):
    """Zeros for what is missing, seen by the attention like any other tokens."""

    name = "zero_fill"
    summary = "zeros for a missing modality, then the fusion transformer (control)"

    def fill(self, z_BMPH: Tensor, observed_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        return z_BMPH, None
