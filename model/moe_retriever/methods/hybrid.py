"""Hybrid: mean of a fused prediction and of unimodal predictions over the observed modalities, trained with hiding.

It combines the strongest simple ideas: late fusion, which is robust to missing modalities, the masked transformer,
which models interactions, and random hiding of modalities in training.
"""

from dataclasses import dataclass
from typing import ClassVar

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, DataSpec
from moe_retriever.methods.base import Output, Presets
from moe_retriever.methods.shared.unimodal import UnimodalHeads
from moe_retriever.nn.attention import Fusion
from moe_retriever.nn.dropout import Noise
from mrpipe.options import option


@dataclass(frozen=True, kw_only=True)
class HybridOptions:
    unimodal: float = option(1.0, "weight of the mean loss of the single heads")
    fused: float = option(1.0, "weight of the loss of the fused head")


class Hybrid(UnimodalHeads[HybridOptions]):
    name = "hybrid"
    summary = "mean of fused and unimodal predictions over the observed modalities, trained with hiding (control)"
    Options = HybridOptions
    presets: ClassVar[Presets] = {"paper": {"drop_modalities": 0.3}}

    def __init__(self, spec: DataSpec, config: Config[HybridOptions], noise: Noise):
        super().__init__(spec, config, noise)
        self.fusion = Fusion(len(spec.modalities), spec.n_outputs, config.common, noise)

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        own, z_BMPH = self.config.own, self.encode_slots(batch)
        single_BMC, observed_BM = self.of_slots(z_BMPH, batch)
        fused_BC, embedding, _ = self.fusion(z_BMPH, observed_BM)
        losses = {}
        if self.training and own.unimodal:
            losses["unimodal"] = own.unimodal * self.unimodal_losses(single_BMC, batch).mean()
        if self.training and own.fused:
            losses["fused"] = own.fused * self.task_loss(fused_BC, batch.label, weight=self.class_weight)
        single_BC = single_BMC.sum(1) / observed_BM.sum(1, keepdim=True)
        return Output((fused_BC + single_BC) / 2, losses, {"fused": embedding.detach()} if detail else {})
