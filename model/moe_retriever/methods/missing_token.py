"""Missing token: missing modalities are represented by learned tokens that are the same for all samples."""

import torch
from torch import Tensor, nn

from moe_retriever.config import Config
from moe_retriever.data.load import DataSpec
from moe_retriever.methods.shared.filled_transformer import FilledOptions, FilledTransformer
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import Fill, normal


class MissingToken(FilledTransformer):
    """Learned tokens (M, P, H) for missing modalities."""

    name = "missing_token"
    summary = "fusion transformer with learned tokens for missing modalities (control)"

    def __init__(self, spec: DataSpec, config: Config[FilledOptions], noise: Noise):
        super().__init__(spec, config, noise)
        self.missing_MPH = nn.Parameter(torch.empty(len(spec.modalities), config.common.tokens, config.common.hidden))

    def initial(self, name: str) -> Fill:
        return normal(0.02)

    def fill(self, z_BMPH: Tensor, observed_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.where(observed_BM[:, :, None, None], z_BMPH, self.missing_MPH.to(z_BMPH.dtype)), None
