"""Zero fill: tokens of missing modalities are zeros, which the position embedding of the transformer distinguishes."""

from torch import Tensor

from moe_retriever.methods.shared.filled_transformer import FilledTransformer


class ZeroFill(FilledTransformer):
    name = "zero_fill"
    summary = "fusion transformer with zeros for missing modalities (control)"

    def fill(self, z_BMPH: Tensor, observed_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        return z_BMPH, None
