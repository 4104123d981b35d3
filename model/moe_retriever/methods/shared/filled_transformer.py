"""Common base of the transformer controls, which differ only in how missing modalities are filled.

Legend: B samples, M modalities, P tokens, H hidden dimension.
"""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, DataSpec
from moe_retriever.methods.base import Method, Output
from moe_retriever.nn.attention import Fusion
from moe_retriever.nn.dropout import Noise
from mrpipe.options import option


@dataclass(frozen=True, kw_only=True)
class FilledOptions:
    balance: float = option(1e-2, "weight of the balance loss if fusion_experts > 0")


class FilledTransformer(Method[FilledOptions]):
    """The fusion transformer of MoE-Retriever; subclasses define how missing modalities are filled."""

    Options = FilledOptions

    def __init__(self, spec: DataSpec, config: Config[FilledOptions], noise: Noise):
        super().__init__(spec, config, noise)
        self.fusion = Fusion(len(spec.modalities), spec.n_outputs, config.common, noise)

    @abstractmethod
    def fill(self, z_BMPH: Tensor, observed_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens of all modalities, given the observed ones (zeros elsewhere), and the filled slots (None: all)."""

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        observed = self.on_device(batch.observed)
        logits, fused, balance = self.fusion(*self.fill(self.encode_slots(batch), observed))
        losses = {}
        if self.training and balance is not None and self.config.own.balance:
            losses["fusion_balance"] = self.config.own.balance * balance
        return Output(logits, losses, {"fused": fused.detach()} if detail else {})
