"""mmFormer (Zhang et al., MICCAI 2022) for classification: one transformer per modality, then one over all tokens.

docs/methods/mmformer.md lists the differences from the paper and its code. The common option `fusion_layers` is the
depth of the inter-modal transformer; the other `fusion_*` options have no effect.

Legend: B samples, M modalities, P tokens, H hidden dimension, C classes, n observed entries of a modality.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.subsets import random_subsets
from moe_retriever.data.tables import Rows
from moe_retriever.device import Head
from moe_retriever.methods.base import Method, Output, Presets
from moe_retriever.nn.attention import TransformerBlock
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import Fill, constant
from mrpipe.options import BoundedOptions, option


@dataclass(frozen=True, kw_only=True)
class MMFormerOptions(BoundedOptions):
    mlp_ratio: int = option(4, "hidden size of feed-forward layers relative to H; 8 as published", ge=1)
    intra_layers: int = option(1, "layers of the transformer of each modality", ge=1)
    missing: str = option(
        "zeros",
        "missing modalities in the inter-modal transformer: zeros plus position (as published), or masked out",
        choices=("zeros", "no_key"),
    )
    train_mask: str = option(
        "uniform",
        "in training, use a random non-empty subset of the observed modalities, or all of them",
        choices=("uniform", "none"),
    )
    separate: float = option(1.0, "weight of the auxiliary loss of a shared head on each modality's encoder output")
    early: float = option(1.0, "weight of the auxiliary loss of a head before the inter-modal transformer")


class MMFormer(Method[MMFormerOptions]):
    name = "mmformer"
    title = "mmFormer"
    summary = "intra- and inter-modal transformers with zeros for missing modalities and random masking in training"
    paper = "mmFormer: Zhang et al., MICCAI 2022"
    citation = "mmformer"
    Options = MMFormerOptions
    presets: ClassVar[Presets] = {
        "paper": {},
        "published-settings": {"mlp_ratio": 8, "heads": 8, "dropout": 0.1, "lr": 2e-4, "weight_decay": 1e-4}
        | {"batch_size": 8, "epochs": 1000, "patience": 0},
    }

    def __init__(self, spec: DataSpec, config: Config[MMFormerOptions], noise: Noise):
        super().__init__(spec, config, noise)
        c, o, n_modalities = config.common, config.own, len(spec.modalities)
        block = replace(c, fusion_block="pre-ln", fusion_experts=0, fusion_ffn=o.mlp_ratio * c.hidden)
        self.position_MPH = nn.Parameter(torch.empty(n_modalities, c.tokens, c.hidden))
        self.intra = nn.ModuleList(
            nn.ModuleList(TransformerBlock(block, noise) for _ in range(o.intra_layers)) for _ in range(n_modalities)
        )
        self.inter = nn.ModuleList(TransformerBlock(block, noise) for _ in range(c.fusion_layers))
        self.head = Head(n_modalities * c.hidden, spec.n_outputs)
        self.separate_head = Head(c.hidden, spec.n_outputs) if o.separate else None
        self.early_head = Head(n_modalities * c.hidden, spec.n_outputs) if o.early else None
        self.class_weight: Tensor | None = None

    def initial(self, name: str) -> Fill:
        return constant(0.0)

    def prepare(self, data: Data, train_rows: Rows) -> None:
        # Class weights also apply to the losses of the auxiliary heads.
        self.class_weight = data.class_weight(train_rows, self.config.common.class_weight)

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        kept = self._kept(batch)
        x_BMPH, separate = self._intra(batch, kept)
        early_BD = x_BMPH.mean(dim=2).flatten(1)
        fused_BD = self._inter(x_BMPH, kept)
        losses: dict[str, Tensor] = {}
        if self.training:
            if separate is not None:
                losses["separate"] = self.options.separate * separate
            if self.early_head is not None:
                early = self.task_loss(self.early_head(early_BD), batch.label, weight=self.class_weight)
                losses["early"] = self.options.early * early
        return Output(self.head(fused_BD), losses, {"fused": fused_BD.detach()} if detail else {})

    def _kept(self, batch: Batch) -> NDArray[np.bool_]:
        """(B, M) modalities to fuse."""
        if not self.training or self.options.train_mask == "none":
            return batch.observed
        return random_subsets(batch.observed, batch.keys, self.config.seed, batch.stream, "subset")

    def _intra(self, batch: Batch, kept: NDArray[np.bool_]) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, M, P, H) after the transformer of each modality, zeros for masked modalities; separate loss.

        As published, this loss includes observed modalities that the training mask excludes from the fusion.
        """
        c = self.config.common
        slots, terms = [], []
        for m, blocks in enumerate(self.intra):
            places = batch.table_rows(m)[0]
            slot = torch.zeros(len(batch), c.tokens, c.hidden, device=self.device)
            fused = np.flatnonzero(kept[places, m])
            head = self.separate_head if self.training else None
            if len(fused) or (head is not None and len(places)):
                z_nPH = self.encode(batch, m)
                if head is not None:
                    label = batch.label[self.on_device(places)]
                    logits = head(z_nPH.mean(dim=1))
                    terms.append(self.task_loss(logits, label, weight=self.class_weight, reduction="sum"))
                if len(fused) < len(places):
                    z_nPH = z_nPH[self.on_device(fused)]
                x_nPH = z_nPH + self.position_MPH[m]
                for block in blocks.children():
                    x_nPH = block(x_nPH, None)[0]
                slot = slot.to(x_nPH.dtype).index_copy(0, self.on_device(places[fused]), x_nPH)
            slots.append(slot)
        if not terms:
            return torch.stack(slots, dim=1), None
        total = len(batch) if self.class_weight is None else self.class_weight[batch.label].sum()
        return torch.stack(slots, dim=1), torch.stack(terms).sum() / total

    def _inter(self, x_BMPH: Tensor, kept: NDArray[np.bool_]) -> Tensor:
        """Concatenated means of the modalities after the transformer over all M·P tokens: (B, M·H)."""
        n_tokens = x_BMPH.shape[2]
        x_BLH = (x_BMPH + self.position_MPH).flatten(1, 2)
        key_BL = kept_BM = None
        if self.options.missing == "no_key" and not kept.all():
            kept_BM = self.on_device(kept)
            key_BL = kept_BM.repeat_interleave(n_tokens, dim=1)
        for block in self.inter:
            x_BLH = block(x_BLH, key_BL)[0]
        mean_BMH = x_BLH.unflatten(1, x_BMPH.shape[1:3]).mean(dim=2)
        if kept_BM is not None:
            mean_BMH = mean_BMH * kept_BM.unsqueeze(2)
        return mean_BMH.flatten(1)
