"""DyMo: selects for each sample which recovered modalities enter a transformer that takes any subset of modalities.

Du et al., "Inference-Time Dynamic Modality Selection for Incomplete Multimodal Classification", ICLR 2026. Modalities
are recovered as tokens, not as inputs, and a regression has bins instead of classes: docs/methods/dymo.md.

Legend: B samples, M modalities, P tokens, H hidden dimension, C outputs, D dimension of a feature, K classes or bins, G
groups of modality subsets, N samples of all subsets.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_retriever.config import Common, Config
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.subsets import random_subsets
from moe_retriever.data.tables import Rows
from moe_retriever.device import Head, in_float32, products
from moe_retriever.methods.base import Method, Output, Presets, ReferenceState
from moe_retriever.nn.attention import TransformerBlock
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import Fill, normal
from moe_retriever.retrieval.bank import shaped
from mrpipe.options import BoundedOptions, option

# Subsets of up to this many modalities have prototypes each; otherwise, those of equal size share them.
MOST_SUBSETS = 4
TEMPERATURE, BINS, REFERENCE_DRAWS = 0.1, 5, 4
# Rewards are rounded to this, so that ties do not depend on rounding errors, which differ between batches.
GRID = 1e-4


@dataclass(frozen=True, kw_only=True)
class DyMoOptions(BoundedOptions):
    select: str = option("reward", "recovered modalities to use", choices=("reward", "none", "all"))
    subsets: int = option(2, "random subsets of the observed modalities per sample and training step", ge=1)
    prototypes: float = option(1.0, "weight of the prototype loss", ge=0)
    bank: int = option(512, "number of training samples that define prototypes; 0: all", ge=0)


class DynamicTransformer(nn.Module):
    """Transformer over a learned token and the tokens of the used modalities; other modalities have no influence."""

    def __init__(self, n_modalities: int, n_layers: int, c: Common, noise: Noise):
        super().__init__()
        self.position_MPH = nn.Parameter(torch.empty(n_modalities, c.tokens, c.hidden))
        self.class_H = nn.Parameter(torch.empty(c.hidden))
        dense = replace(c, fusion_block="pre-ln", fusion_experts=0)
        self.blocks = nn.ModuleList(TransformerBlock(dense, noise) for _ in range(n_layers))

    def initial(self, name: str) -> Fill:
        return normal(0.02)

    def forward(self, x_BMPH: Tensor, used_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Learned token (B, H), and tokens (B, M, P, H), for unused modalities of queries that are the position."""
        x_BLH = (x_BMPH * used_BM[:, :, None, None] + self.position_MPH).flatten(1, 2)
        x_BLH = torch.cat([self.class_H.expand(len(x_BLH), 1, -1), x_BLH], dim=1)
        key_BL = F.pad(used_BM.repeat_interleave(x_BMPH.shape[2], dim=1), (1, 0), value=True)
        for block in self.blocks:
            x_BLH = block(x_BLH, key_BL)[0]
        return x_BLH[:, 0], x_BLH[:, 1:].view_as(x_BMPH)


@in_float32
def references(shape: tuple[int, int], feature_ND: Tensor, group_N: Tensor, class_N: Tensor) -> tuple[Tensor, ...]:
    """Class centres (K, D), and per group prototypes (G, K, D) and spreads (G, K), of shape (G, K).

    Means of features, and √mean(d²) with d = 1 − feature · prototype; a class counts as one more sample of each group.
    """
    place_N, (n_groups, n_classes) = group_N * shape[1] + class_N, shape
    in_class, in_place = (F.one_hot(i, n).float() for i, n in ((class_N, n_classes), (place_N, math.prod(shape))))
    size_K, size_Q = in_class.sum(dim=0).clamp_min(1), in_place.sum(dim=0) + 1
    centre = in_class.T @ feature_ND / size_K.unsqueeze(1)
    square_K = in_class.T @ (1 - (feature_ND * centre[class_N]).sum(dim=1)).square() / size_K
    prototype = (in_place.T @ feature_ND + centre.repeat(n_groups, 1)) / size_Q.unsqueeze(1)
    square_N = (1 - (feature_ND * prototype[place_N]).sum(dim=1)).square()
    spread = ((in_place.T @ square_N + square_K.repeat(n_groups)) / size_Q).sqrt().clamp_min(1e-6)
    return centre, prototype.view(*shape, -1), spread.view(shape)


def reward(quality: Tensor, log_p: Tensor, before: Tensor, log_p_before: Tensor) -> Tensor:
    """Gain in quality, the largest class probability, after a reduction if the distance became less probable."""
    calibrated = torch.where(log_p < log_p_before, quality * log_p_before / log_p, quality)
    return ((calibrated - before) / GRID).round() * GRID


class DyMo(Method[DyMoOptions]):
    name = "dymo"
    title = "DyMo"
    summary = "transformer over the observed and those recovered modalities that a reward selects for the sample"
    paper = "DyMo: Du et al., ICLR 2026"
    citation = "dymo"
    Options = DyMoOptions
    presets: ClassVar[Presets] = {"paper": {"fusion_layers": 2}, "no-recovery": {"fusion_layers": 2, "select": "none"}}
    space: ClassVar = {"prototypes": (0.0, 1.0), "subsets": (2, 5)}
    edges: Tensor

    def __init__(self, spec: DataSpec, config: Config[DyMoOptions], noise: Noise):
        super().__init__(spec, config, noise)
        n_modalities, c = len(spec.modalities), config.common
        self.transformer = DynamicTransformer(n_modalities, c.fusion_layers, c, noise)
        self.head = Head(c.hidden, spec.n_outputs)
        self.projection = Head(c.hidden, max(c.hidden // 2, 1))
        recovers = config.own.select != "none"
        self.recovery = DynamicTransformer(n_modalities, 1, replace(c, dropout=0.0), noise) if recovers else None
        n_groups = 1 << n_modalities if n_modalities <= MOST_SUBSETS else n_modalities + 1
        self.shape = (n_groups, BINS if spec.regression else spec.n_outputs)
        self.register_buffer("edges", torch.zeros(BINS - 1))
        self.class_weight: Tensor | None = None
        self._training_set: tuple[Data, Rows] | None = None
        self._references: tuple[Tensor, ...] | None = None

    def prepare(self, data: Data, train_rows: Rows) -> None:
        self.class_weight = data.class_weight(train_rows, self.config.common.class_weight)
        if self.spec.regression:
            inner = np.quantile(data.label[train_rows], np.linspace(0, 1, BINS + 1)[1:-1])
            self.edges = torch.from_numpy((inner - self.spec.center) / self.spec.scale).float().to(self.device)
        rows = data.drawn(train_rows, self.options.bank or len(train_rows), self.config.seed, "dymo bank")
        self._training_set, self._references = (data, rows), None

    def refresh(self) -> None:
        if self._training_set is not None:
            self._references = None

    @torch.no_grad()
    def references(self) -> tuple[Tensor, ...]:
        """Of random subsets of the modalities of training samples, without dropout; kept until `refresh`."""
        if self._references is None:
            assert self._training_set is not None, "call prepare() or load_reference() first"
            (data, rows), training, found = self._training_set, self.training, []
            self.eval()
            for part in np.array_split(rows, math.ceil(len(rows) / self.config.common.eval_batch_size)):
                x_NMPH, kept, label_N = self._drawn(data.batch(part, "reference"), REFERENCE_DRAWS)
                found.append((self._features(x_NMPH, kept)[1], self._group(kept), self._class(label_N)))
            self.train(training)
            self._references = references(self.shape, *(torch.cat(parts) for parts in zip(*found, strict=True)))
        return self._references

    def reference_state(self) -> ReferenceState:
        return {"references": [value.cpu() for value in self.references()]}

    def load_reference(self, state: ReferenceState) -> None:
        self._training_set = None
        (n_groups, n_classes), d = self.shape, self.projection.out_features
        shapes = ((n_classes, d), (n_groups, n_classes, d), (n_groups, n_classes))
        stored = zip(cast(list[object], state["references"]), shapes, strict=True)
        self._references = tuple(shaped(value, *shape).to(self.device) for value, shape in stored)

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        if self.training:
            o, n, weight = self.options, len(batch), self.class_weight
            x_NMPH, kept, label = self._drawn(batch, o.subsets)
            logits, feature_ND = self._features(x_NMPH, kept)
            losses: dict[str, Tensor] = {}
            if o.subsets > 1:
                losses["subsets"] = (o.subsets - 1) * self.task_loss(logits[n:], label[n:], weight=weight)
            if o.prototypes:
                score_NK = products(feature_ND, self.references()[0]) / TEMPERATURE
                losses["prototypes"] = o.prototypes * o.subsets * F.cross_entropy(score_NK, self._class(label))
            if self.recovery is not None:
                hidden = self.on_device(batch.observed).repeat(o.subsets, 1) & ~kept
                error_NM = (self.recovery(x_NMPH.detach(), kept)[1] - x_NMPH.detach()).square().mean(dim=(2, 3))
                losses["recovery"] = (error_NM * hidden).sum() / hidden.sum().clamp_min(1)
            return Output(logits[:n], losses)
        observed = used = self.on_device(batch.observed)
        x_BMPH = F.layer_norm(self.encode_slots(batch), (self.config.common.hidden,))
        if self.recovery is not None and not batch.observed.all():
            x_BMPH = torch.where(observed[:, :, None, None], x_BMPH, self.recovery(x_BMPH, observed)[1].detach())
            used = torch.ones_like(observed) if self.options.select == "all" else self.selected(x_BMPH, observed)
        logits, feature = self._features(x_BMPH, used)
        return Output(logits, {}, {"fused": feature.detach()} if detail else {})

    def _features(self, x_BMPH: Tensor, used_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and unit features (B, D) with the modalities `used_BM`."""
        token_BH = self.transformer(x_BMPH, used_BM)[0]
        return self.head(token_BH), F.normalize(self.projection(token_BH), dim=1)

    def _drawn(self, batch: Batch, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (n·B, M, P, H), n random subsets (n·B, M) of the observed modalities, and labels (n·B,)."""
        names = [f"dymo {i} {batch.stream}" for i in range(n)]
        drawn = [random_subsets(batch.observed, batch.keys, self.config.seed, name, "subset") for name in names]
        kept = self.on_device(np.concatenate(drawn))
        x_BMPH = F.layer_norm(self.encode_slots(batch), (self.config.common.hidden,))
        return x_BMPH.repeat(n, 1, 1, 1), kept, batch.label.repeat(n)

    def _class(self, label: Tensor) -> Tensor:
        """Class of a label, or bin of a target."""
        return torch.bucketize(label, self.edges) if self.spec.regression else label

    def _group(self, used_BM: Tensor) -> Tensor:
        """(B,) group of a subset of modalities."""
        n = used_BM.shape[1]
        return (used_BM << torch.arange(n, device=used_BM.device) * (n <= MOST_SUBSETS)).sum(dim=1)

    def judged(self, x_BMPH: Tensor, used_BM: Tensor) -> Tensor:
        """(2, B) quality, and log-probability of a larger distance to the prototype of the predicted class."""
        centre, prototype, spread = self.references()
        logits, feature = self._features(x_BMPH, used_BM)
        predicted = self._class(logits.squeeze(1) if self.spec.regression else logits.argmax(dim=1))
        place = self._group(used_BM), predicted
        distance = 1 - (feature * prototype[place]).sum(dim=1)
        log_p = math.log(2) + torch.special.log_ndtr(-distance / spread[place])
        return torch.stack([(products(feature, centre) / TEMPERATURE).softmax(dim=1).amax(dim=1), log_p])

    @torch.no_grad()
    def selected(self, x_BMPH: Tensor, observed_BM: Tensor) -> Tensor:
        """(B, M) observed modalities and those recovered ones that are used.

        Each round tries every candidate, adds the one with the largest positive reward and discards negative ones.
        """
        used, candidate, state = observed_BM.clone(), ~observed_BM, self.judged(x_BMPH, observed_BM)
        while candidate.any():
            gain = torch.full(used.shape, -torch.inf, device=used.device)
            after = state.unsqueeze(2).repeat(1, 1, used.shape[1])
            for m in range(used.shape[1]):
                row = candidate[:, m].nonzero().squeeze(1)
                if len(row):
                    trial = used[row]
                    trial[:, m] = True
                    after[:, row, m] = self.judged(x_BMPH[row], trial)
                    gain[row, m] = reward(*after[:, row, m], *state[:, row])
            best, added = gain.max(dim=1)
            row = (best > 0).nonzero().squeeze(1)
            used[row, added[row]] = True
            state[:, row] = after[:, row, added[row]]
            candidate &= (gain >= 0) & (best > 0).unsqueeze(1) & ~used
        return used
