"""Attention mask: tokens of missing modalities are masked in the attention and are zeros in the input of the head."""

from torch import Tensor

from moe_retriever.methods.shared.filled_transformer import FilledTransformer


class AttentionMask(FilledTransformer):
    name = "attention_mask"
    summary = "fusion transformer over the observed modalities only, without imputation (control)"

    def fill(self, z_BMPH: Tensor, observed_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        return z_BMPH, observed_BM
