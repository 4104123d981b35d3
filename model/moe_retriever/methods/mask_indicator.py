"""Mask + indicator: the masked transformer, and one learned logit vector per missing modality.

The sum of these vectors is a prior of the label given the missing modalities. It is the simplest model that can express
that a gap is informative, so it bounds what a retrieved embedding may gain from the mask alone.
"""

import torch
from torch import Tensor, nn

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, DataSpec
from moe_retriever.device import products
from moe_retriever.methods.attention_mask import AttentionMask
from moe_retriever.methods.base import Output
from moe_retriever.methods.shared.filled_transformer import FilledOptions
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import Fill, constant

# A step of Adam moves a parameter by the learning rate at most; the factor lets 2,000 steps at 1e-4 move a logit by 6.
GAIN = 32.0


class MaskIndicator(AttentionMask):
    name = "mask_indicator"
    title = "mask + indicator"
    summary = "fusion transformer over the observed modalities, and a learned prior given the missing ones (control)"

    def __init__(self, spec: DataSpec, config: Config[FilledOptions], noise: Noise):
        super().__init__(spec, config, noise)
        self.prior_MC = nn.Parameter(torch.empty(len(spec.modalities), spec.n_outputs))

    def initial(self, name: str) -> Fill:
        return constant(0.0)

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        out = super().forward(batch, draw=draw, detail=detail)
        # Modalities hidden in training are not a gap in the data, and tell nothing about the label.
        missing = self.on_device(~(batch.observed | batch.hidden)).to(out.logits.dtype)
        prior: Tensor = GAIN * products(missing, self.prior_MC.to(missing.dtype).T)
        return Output(out.logits + prior, out.losses, out.diagnostics)
