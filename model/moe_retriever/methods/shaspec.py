"""ShaSpec (Wang et al., CVPR 2023): shared and specific features; shared ones replace those of missing modalities.

docs/methods/shaspec.md lists the differences from the paper and its code. The common options `fusion_*` and `heads`
have an effect only with shared_encoder=transformer.

Legend: B samples, M modalities, P tokens, H hidden dimension, C classes, N observed slots.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_retriever.config import Common, Config
from moe_retriever.data.load import Batch, DataSpec
from moe_retriever.data.subsets import random_subsets, with_hidden
from moe_retriever.device import Head
from moe_retriever.methods.base import Method, Output, Presets
from moe_retriever.nn.attention import FeedForward, TransformerBlock
from moe_retriever.nn.dropout import Noise
from mrpipe.options import BoundedOptions, option


@dataclass(frozen=True, kw_only=True)
class ShaSpecOptions(BoundedOptions):
    alpha: float = option(0.1, "weight of the loss that aligns shared features of different modalities")
    beta: float = option(0.02, "weight of the loss of a modality classifier on the specific features")
    fill: str = option(
        "mean",
        "features of a missing modality: mean of the observed shared features, or those of the first (as released)",
        choices=("mean", "first"),
    )
    pairs: str = option("all", "pairs of modalities whose shared features are aligned", choices=("all", "ring"))
    shared_encoder: str = option("mlp", "architecture of the shared encoder", choices=("mlp", "transformer"))
    train_drop: str = option(
        "size",
        "hiding of observed modalities in training: keep a random number of them, or hide none",
        choices=("size", "none"),
    )
    full_epochs: float = option(
        0.25, "epochs without hiding at the start: a number, or a fraction of the first 20", ge=0
    )


class SharedTransformer(nn.Module):
    """Shared encoder: one pre-LN transformer block over the P tokens of a modality."""

    def __init__(self, c: Common, noise: Noise):
        super().__init__()
        self.block = TransformerBlock(replace(c, fusion_block="pre-ln", fusion_experts=0), noise)

    def forward(self, x_NPH: Tensor) -> Tensor:
        out: Tensor = self.block(x_NPH, None)[0]
        return out


class ShaSpec(Method[ShaSpecOptions]):
    name = "shaspec"
    title = "ShaSpec"
    summary = "shared and modality-specific features; missing modalities get the mean of the observed shared features"
    paper = "ShaSpec: Wang et al., CVPR 2023"
    citation = "shaspec"
    Options = ShaSpecOptions
    presets: ClassVar[Presets] = {
        "paper": {},
        # Appendix A.5 of the MoE-Retriever paper reports this learning rate as the best for ShaSpec.
        "published-settings": {"lr": 1e-3, "fill": "first", "pairs": "ring"},
    }

    def __init__(self, spec: DataSpec, config: Config[ShaSpecOptions], noise: Noise):
        super().__init__(spec, config, noise)
        c, o, n_modalities = config.common, config.own, len(spec.modalities)
        self.norm = nn.LayerNorm(c.hidden)
        mlp = partial(FeedForward, c.hidden, c.hidden, c.dropout, noise)
        self.shared: nn.Module = mlp() if o.shared_encoder == "mlp" else SharedTransformer(c, noise)
        self.specific = nn.ModuleList(mlp() for _ in range(n_modalities))
        self.compose = nn.Linear(2 * c.hidden, c.hidden)
        self.which = nn.Linear(c.hidden, n_modalities)
        self.head = Head(n_modalities * c.hidden, spec.n_outputs)
        if o.train_drop != "none":
            self.open_with("full_epochs", o.full_epochs, "with hidden modalities")

    @property
    def hiding(self) -> bool:
        return self.options.train_drop != "none" and not self.in_opening

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        if self.training and self.hiding:
            kept = random_subsets(batch.observed, batch.keys, self.config.seed, batch.stream, "size")
            batch = with_hidden(batch, kept)
        place_N, tokens, sizes = self._encode(batch)
        s_NPH = self.shared(tokens)
        # Concatenated by modality, in the order of s.
        r_NPH = torch.cat([R(t) for R, t in zip(self.specific, tokens.split(sizes), strict=True) if len(t)])
        f_NPH = s_NPH + self.compose(torch.cat([s_NPH, r_NPH], dim=2))
        s_BMPH = self._slots(s_NPH, place_N, batch)
        observed = self.on_device(batch.observed)
        f_BMPH = self._slots(f_NPH, place_N, batch)
        if not batch.observed.all():
            f_BMPH = f_BMPH + (~observed)[:, :, None, None] * self._fill(s_BMPH, batch)
        fused_BD = f_BMPH.mean(dim=2).flatten(1)
        losses: dict[str, Tensor] = {}
        if self.training:
            if self.options.alpha:
                losses["shared"] = self.options.alpha * self._alignment(s_BMPH.mean(dim=2), observed)
            if self.options.beta:
                modality_N = self.on_device(np.repeat(np.arange(len(sizes)), sizes))
                specific = F.cross_entropy(self.which(r_NPH.mean(dim=1)).float(), modality_N)
                losses["specific"] = self.options.beta * specific
        return Output(self.head(fused_BD), losses, {"fused": fused_BD.detach()} if detail else {})

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor, list[int]]:
        """Index in (B·M,) and normalised tokens of the N observed slots, sorted by modality; number per modality."""
        n_modalities = len(self.encoders)
        places = [batch.table_rows(m)[0] for m in range(n_modalities)]
        tokens = [self.encode(batch, m) for m in range(n_modalities) if len(places[m])]
        place = np.concatenate([p * n_modalities + m for m, p in enumerate(places)])
        return self.on_device(place), self.norm(torch.cat(tokens)), [len(p) for p in places]

    def _slots(self, x_NPH: Tensor, place_N: Tensor, batch: Batch) -> Tensor:
        """(B, M, P, H) with zeros for missing modalities."""
        shape = batch.observed.shape
        empty = x_NPH.new_zeros(shape[0] * shape[1], *x_NPH.shape[1:])
        return empty.index_copy(0, place_N, x_NPH).unflatten(0, shape)

    def _fill(self, s_BMPH: Tensor, batch: Batch) -> Tensor:
        """(B, 1, P, H) features that replace the missing modalities of a sample."""
        if self.options.fill == "first":
            first = self.on_device(batch.observed.argmax(axis=1))
            return s_BMPH[torch.arange(len(first), device=self.device), first].unsqueeze(1)
        n_B = self.on_device(batch.observed.sum(axis=1))
        return s_BMPH.sum(dim=1, keepdim=True) / n_B[:, None, None, None].to(s_BMPH.dtype)

    def _alignment(self, s_BMH: Tensor, observed_BM: Tensor) -> Tensor:
        """Mean |s_a − s_b| over a sample's observed pairs (0 for fewer than two modalities), averaged over samples."""
        n_modalities = s_BMH.shape[1]
        first, second = np.triu_indices(n_modalities, k=1)
        if self.options.pairs == "ring":
            on_ring = (second - first == 1) | ((first == 0) & (second == n_modalities - 1))
            first, second = first[on_ring], second[on_ring]
        a, b = self.on_device(first), self.on_device(second)
        both_BK = (observed_BM[:, a] & observed_BM[:, b]).to(s_BMH.dtype)
        distance_BK = (s_BMH[:, a] - s_BMH[:, b]).abs().mean(dim=2)
        return ((distance_BK * both_BK).sum(dim=1) / both_BK.sum(dim=1).clamp_min(1.0)).mean()
