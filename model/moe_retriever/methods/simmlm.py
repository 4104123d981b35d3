"""SimMLM: one expert per modality, a gate over the observed modalities, and the more-versus-fewer ranking loss.

Li, Chen and Han, "SimMLM: A Simple Framework for Multi-modal Learning with Missing Modality", ICCV 2025. An expert is a
modality's encoder with a linear head. First they are trained independently, then together with the gate, on two nested
subsets of a sample's modalities: docs/methods/simmlm.md.

Legend: B samples, M modalities, H hidden dimension, C outputs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, DataSpec
from moe_retriever.data.subsets import random_subsets
from moe_retriever.device import Head
from moe_retriever.methods.base import Output, Presets
from moe_retriever.methods.shared.unimodal import UnimodalHeads
from moe_retriever.nn.dropout import Dropout, Noise
from mrpipe.options import BoundedOptions, option


@dataclass(frozen=True, kw_only=True)
class SimMLMOptions(BoundedOptions):
    ranking: float = option(0.2, "weight of the more-versus-fewer loss beside the sum of the two task losses", ge=0)
    independent: float = option(
        0.25, "epochs of independent experts at the start: number, or fraction of first 20", ge=0
    )


class SimMLM(UnimodalHeads[SimMLMOptions]):
    name = "simmlm"
    title = "SimMLM"
    summary = "gated mean of the outputs of modality experts, trained so that more modalities are not worse than fewer"
    paper = "SimMLM: Li et al., ICCV 2025"
    citation = "simmlm"
    Options = SimMLMOptions
    presets: ClassVar[Presets] = {"paper": {}, "joint-only": {"independent": 0.0, "lr": 1e-3}}
    space: ClassVar = {"ranking": (0.0, 0.2, 1.0), "independent": (0.0, 0.25)}

    def __init__(self, spec: DataSpec, config: Config[SimMLMOptions], noise: Noise):
        super().__init__(spec, config, noise)
        c, n_modalities = config.common, len(spec.modalities)
        first = (nn.Linear(n_modalities * c.hidden, c.hidden), nn.ReLU(), Dropout(c.dropout, noise))
        self.gate = nn.Sequential(*first, Head(c.hidden, n_modalities))
        self.open_with("independent", config.own.independent, "for the gate")

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        observed, label = self.on_device(batch.observed), batch.label
        h_BMH = self.encode_slots(batch).mean(dim=2)
        expert_BMC = torch.stack([head(h_BMH[:, m]) for m, head in enumerate(self.heads)], dim=1)
        if not self.training:
            return Output(self.mixture(h_BMH, expert_BMC, observed))
        if self.in_opening:
            # Only the experts are trained, each with its own loss; the loss of the mixture is only logged.
            alone = self.unimodal_losses(expert_BMC, batch).sum()
            return Output(self.mixture(h_BMH, expert_BMC, observed).detach(), {"independent": alone})
        # A random subset of the observed modalities, and this subset with some of the others.
        few = random_subsets(batch.observed, batch.keys, self.config.seed, f"fewer {batch.stream}", "subset")
        rest = random_subsets(batch.observed & ~few, batch.keys, self.config.seed, f"more {batch.stream}", "subset")
        kept = (self.on_device(subset) for subset in (few | rest, few))
        more_BC, fewer_BC = (self.mixture(h_BMH, expert_BMC, kept_BM) for kept_BM in kept)
        weight = None if self.spec.regression else self.class_weight
        total = len(label) if weight is None else weight[label].sum()
        more, fewer = (self.task_loss(x, label, weight=weight, reduction="none") for x in (more_BC, fewer_BC))
        ranking = self.options.ranking * F.relu(more - fewer).sum() / total
        return Output(more_BC, {"fewer": fewer.sum() / total, "ranking": ranking})

    def mixture(self, h_BMH: Tensor, expert_BMC: Tensor, kept_BM: Tensor) -> Tensor:
        """Logits (B, C): mean of the experts of the kept modalities with the gate's weights."""
        # As the published gate is a network of its own, its gradient does not reach the encoders of the experts.
        score_BM = self.gate((h_BMH.detach() * kept_BM.unsqueeze(2)).flatten(1))
        weight_BM = score_BM.masked_fill(~kept_BM, -torch.inf).softmax(dim=1)
        return (weight_BM.unsqueeze(2) * expert_BMC).sum(dim=1)
