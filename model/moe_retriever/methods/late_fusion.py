"""Late fusion: mean of the logits of unimodal heads over the observed modalities."""

from dataclasses import dataclass

from moe_retriever.data.load import Batch
from moe_retriever.methods.base import Output
from moe_retriever.methods.shared.unimodal import UnimodalHeads
from mrpipe.options import option


@dataclass(frozen=True, kw_only=True)
class LateFusionOptions:
    unimodal: float = option(1.0, "weight of the cross-entropy of the single heads; 0: only that of the mean logits")


class LateFusion(UnimodalHeads[LateFusionOptions]):
    name = "late_fusion"
    summary = "mean of the logits of unimodal models over the observed modalities (control)"
    Options = LateFusionOptions

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        logits, observed = self.unimodal_logits(batch)
        losses = {}
        if self.training and self.config.own.unimodal:
            losses["unimodal"] = self.config.own.unimodal * self.unimodal_losses(logits, batch).mean()
        return Output(logits.sum(1) / observed.sum(1, keepdim=True), losses)
