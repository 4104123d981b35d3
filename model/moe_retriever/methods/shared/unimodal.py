"""Common base of the unimodal controls: one linear head per modality on the mean of its tokens.

Legend: B samples, M modalities, H hidden dimension, C classes.
"""

import numpy as np
import torch
from torch import Tensor, nn

from moe_retriever.config import Config, O_co
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.device import Head
from moe_retriever.methods.base import Method
from moe_retriever.nn.dropout import Noise


class UnimodalHeads(Method[O_co]):
    """Encoders with a linear head each; class weights apply to the loss of each head."""

    class_weight: Tensor
    constant: Tensor

    def __init__(self, spec: DataSpec, config: Config[O_co], noise: Noise):
        super().__init__(spec, config, noise)
        self.heads = nn.ModuleList(Head(config.common.hidden, spec.n_outputs) for _ in spec.modalities)
        self.register_buffer("class_weight", torch.zeros(spec.n_outputs))
        self.register_buffer("constant", torch.zeros(spec.n_outputs))

    def prepare(self, data: Data, train_rows: Rows) -> None:
        weight = data.class_weight(train_rows, self.config.common.class_weight)
        self.class_weight = torch.ones_like(self.class_weight) if weight is None else weight
        self.constant = data.constant(train_rows)

    def unimodal_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, M, C) of the heads, zeros for missing modalities, and the observed modalities (B, M)."""
        return self.of_slots(self.encode_slots(batch), batch)

    def of_slots(self, z_BMPH: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `unimodal_logits`, given the tokens of all modalities."""
        observed = self.on_device(batch.observed)
        h_BMH = z_BMPH.mean(dim=2)
        logits = torch.stack([head(h_BMH[:, m]) for m, head in enumerate(self.heads)], dim=1)
        return logits * observed.unsqueeze(2), observed

    def unimodal_losses(self, logits_BMC: Tensor, batch: Batch) -> Tensor:
        """(M,) loss of each head over labelled samples with its modality; 0 if there are none."""
        losses, known = [], batch.data.known[batch.index]
        for m in range(logits_BMC.shape[1]):
            chosen = self.on_device(np.flatnonzero(batch.observed[:, m] & known))
            own = batch.label[chosen]
            total = self.task_loss(logits_BMC[chosen, m], own, weight=self.class_weight, reduction="sum")
            weight = torch.ones_like(own) if self.spec.regression else self.class_weight[own]
            losses.append(total / weight.sum().clamp_min(1e-9))
        return torch.stack(losses)
