"""What the transformer controls share: they differ only in what stands in the slot of a modality that is missing.

Legend: B samples, M modalities, P tokens, H hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, DataSpec
from moe_retriever.methods.base import Method, Output
from moe_retriever.nn.attention import Fusion
from moe_retriever.nn.dropout import Noise
from mrpipe.options import option


@dataclass(frozen=True, kw_only=True)
class FilledOptions:
    """Options of the transformer controls."""

    balance: float = option(
        1e-2, "weight of the balance loss, where fusion_experts asks for a sparse feed-forward part"
    )


class FilledTransformer(Method[FilledOptions]):
    """The fusion transformer of MoE-Retriever over the encoded modalities; a subclass says what fills the others."""

    Options = FilledOptions

    def __init__(self, spec: DataSpec, config: Config[FilledOptions], noise: Noise):
        super().__init__(spec, config, noise)
        self.fusion = Fusion(len(spec.modalities), spec.n_classes, config.common, noise)

    @abstractmethod
    def fill(self, z_BMPH: Tensor, observed_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        """All slots' tokens, given the observed ones' (zeros elsewhere); and which slots count (None: all)."""

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        observed = torch.from_numpy(batch.observed).to(self.device)
        logits, fused, balance = self.fusion(*self.fill(self.encode_slots(batch), observed))
        losses = {}
        if self.training and balance is not None and self.config.own.balance:
            losses["fusion_balance"] = self.config.own.balance * balance
        return Output(logits, losses, {"fused": fused.detach()} if detail else {})
