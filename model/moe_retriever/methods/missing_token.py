"""Missing token: a missing modality's tokens are learned, the same for every sample that lacks it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_retriever.config import Config
from moe_retriever.data.load import DataSpec
from moe_retriever.methods.shared.filled_transformer import FilledOptions, FilledTransformer
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import Fill, normal


class MissingToken(FilledTransformer):
    """Learned tokens (M, P, H) for what is missing."""

    name = "missing_token"
    summary = "learned tokens for a missing modality, then the fusion transformer (control)"

    def __init__(self, spec: DataSpec, config: Config[FilledOptions], noise: Noise):
        super().__init__(spec, config, noise)
        self.missing_MPH = nn.Parameter(torch.empty(len(spec.modalities), config.common.tokens, config.common.hidden))

    def initial(self, name: str) -> Fill:
        return normal(0.02)

    def fill(self, z_BMPH: Tensor, observed_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.where(observed_BM[:, :, None, None], z_BMPH, self.missing_MPH.to(z_BMPH.dtype)), None
