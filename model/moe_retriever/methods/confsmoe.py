"""ConfSMoE (Zheng et al., 2025): two-stage imputation, and experts weighted by their confidence in the label.

A missing modality starts as the mean embedding of training samples that have it; after the experts, sparse attention
adds what these return for the sample's observed tokens. The weight of an expert is a sigmoid, trained to equal the
probability that a classifier gives to the true label from this expert's output. docs/methods/confsmoe.md lists the
differences from the paper and its code. The fusion options have no effect.

Legend: B samples, M modalities, P tokens per modality, L = M·P, H hidden dimension, E experts, K experts per token,
T observed tokens of the batch, V = T·K visits of experts.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.device import Head
from moe_retriever.methods.base import Method, Output, Presets, ReferenceState
from moe_retriever.nn.attention import Attention
from moe_retriever.nn.dropout import Dropout, Noise
from moe_retriever.nn.init import Fill, constant
from moe_retriever.nn.moe import Experts, Routing
from moe_retriever.retrieval.bank import ReferenceSamples
from mrpipe import keyed
from mrpipe.errors import UsageError
from mrpipe.options import BoundedOptions, option


@dataclass(frozen=True, kw_only=True)
class ConfSMoEOptions(BoundedOptions):
    n_experts: int = option(8, "experts")
    expert_ffn: int = option(128, "hidden size of an expert")
    top_k: int = option(2, "experts per token", ge=1)
    pool: int = option(10, "training samples whose mean fills a missing modality in the first stage", ge=1)
    keep: float = option(0.25, "share of a sample's observed tokens that the second stage attends to", gt=0, le=1)
    level: str = option("token", "confidence per token, or its mean per sample and expert", choices=("token", "expert"))
    router_noise: float = option(1.0, "sd of the noise on the logits that select experts in training", ge=0)
    confidence: float = option(1.0, "weight of the losses of confidences and of predictions by single experts", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k > self.n_experts:
            raise UsageError(f"option top_k={self.top_k} exceeds n_experts={self.n_experts}")


class ConfSMoE(Method[ConfSMoEOptions]):
    name = "confsmoe"
    title = "ConfSMoE"
    summary = "two-stage imputation, and experts weighted by their confidence in the label"
    paper = "ConfSMoE: Zheng et al., 2025"
    citation = "confsmoe"
    Options = ConfSMoEOptions
    presets: ClassVar[Presets] = {
        "paper": {},
        "expert-level": {"level": "expert"},
        "published-settings": {"lr": 3e-4, "batch_size": 64, "epochs": 30, "patience": 0, "dropout": 0.4}
        | {"select_metric": "macro_f1", "vector_encoder": "linear"},
    }
    space: ClassVar = {"top_k": (1, 2, 4), "keep": (0.25, 1.0)}

    def __init__(self, spec: DataSpec, config: Config[ConfSMoEOptions], noise: Noise):
        super().__init__(spec, config, noise)
        c, o, n = config.common, config.own, len(spec.modalities)
        self.position_MPH = nn.Parameter(torch.empty(n, c.tokens, c.hidden))
        norms = (nn.LayerNorm(c.hidden) for _ in range(4))
        self.norm_attention, self.norm_experts, self.norm_out, self.norm_head = norms
        self.attention = Attention(c.hidden, c.heads)
        self.router = Head(c.hidden, o.n_experts)
        self.experts = Experts(o.n_experts, c.hidden, o.expert_ffn, c.dropout, noise)
        self.confidence = Head(c.hidden, o.n_experts)
        self.opinion = Head(c.hidden, spec.n_outputs)
        self.query, self.key = nn.Linear(c.hidden, c.hidden), nn.Linear(c.hidden, c.hidden)
        self.dropout = Dropout(c.dropout, noise)
        self.inner = nn.Linear(n * c.hidden, c.hidden)
        self.head = Head(c.hidden, spec.n_outputs)
        self.reference: ReferenceSamples | None = None

    def initial(self, name: str) -> Fill:
        return constant(0.0)

    def prepare(self, data: Data, train_rows: Rows) -> None:
        self.reference = ReferenceSamples.of(data, train_rows)

    def refresh(self) -> None:
        if self.reference is not None:
            self.reference.forget()

    def reference_bytes(self) -> int:
        return 0 if self.reference is None else self.reference.bank_bytes(*self.position_MPH.shape[1:])

    def reference_state(self) -> ReferenceState:
        assert self.reference is not None, "call prepare() or load_reference() first"
        return self.reference.state(self.encoders)

    def load_reference(self, state: ReferenceState) -> None:
        self.reference = ReferenceSamples.from_state(state, self.device, (*self.position_MPH.shape,))

    def _pooled(self, batch: Batch, draw: int) -> Tensor:
        """First stage: (B, M, P, H) mean embeddings of keyed draws from the other training samples with the modality.

        Detached; zeros in observed slots and for modalities that no other training sample has.
        """
        assert self.reference is not None, "call prepare() or load_reference() first"
        slots = torch.zeros(len(batch), *self.position_MPH.shape, device=self.device)
        own = self.reference.own_row(batch.data, batch.index)
        for m, (name, encoder) in enumerate(zip(self.spec.names, self.encoders, strict=True)):
            having = np.flatnonzero(self.reference.observed[:, m])
            of_self = np.isin(own, having)
            lacking = np.flatnonzero(~batch.observed[:, m] & (len(having) > of_self))
            if len(lacking):
                purpose = f"confsmoe pool {name} {batch.stream} draw {draw}"
                u = keyed.uniform(batch.keys[lacking], self.config.seed, purpose, self.options.pool)
                of_self, own_place = of_self[lacking, None], np.searchsorted(having, own[lacking, None])
                drawn = (u * (len(having) - of_self)).astype(np.int64)
                drawn += of_self & (drawn >= own_place)
                tokens = self.reference.embed(m, having[drawn].flatten(), encoder)
                slots[self.on_device(lacking), m] = tokens.unflatten(0, drawn.shape).mean(dim=1)
        return slots

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        z_BMPH = self.encode_slots(batch)
        if not (complete := bool(batch.observed.all())):
            z_BMPH = z_BMPH + self._pooled(batch, draw)
        known = np.repeat(batch.observed, z_BMPH.shape[2], axis=1)
        token_T, sample_T = (self.on_device(places) for places in (np.flatnonzero(known), known.nonzero()[0]))
        x_BLH = (z_BMPH + self.position_MPH).flatten(1, 2)
        x_BLH = x_BLH + self.dropout(self.attention(self.norm_attention(x_BLH)))
        h_BLH = self.norm_experts(x_BLH)
        y_TKH, confidence_TK, expected_TK = self._visit(h_BLH.flatten(0, 1)[token_T], sample_T, len(batch))
        update_TH = (confidence_TK.unsqueeze(2) * y_TKH).sum(dim=1)
        update_BLH = update_TH.new_zeros(known.size, x_BLH.shape[2]).index_copy(0, token_T, update_TH).view_as(x_BLH)
        if not complete:
            known_BL = self.on_device(known)
            y_BLKH = y_TKH.new_zeros(known.size, *y_TKH.shape[1:]).index_copy(0, token_T, y_TKH)
            imputed_BLH = self._imputed(h_BLH, y_BLKH.unflatten(0, known.shape), known_BL)
            update_BLH = torch.where(known_BL.unsqueeze(2), update_BLH, imputed_BLH)
        x_BLH = self.norm_out(x_BLH + self.dropout(update_BLH))
        fused = self.norm_head(self.inner(x_BLH.unflatten(1, z_BMPH.shape[1:3]).mean(dim=2).flatten(1)))
        losses = self._losses(y_TKH, confidence_TK, expected_TK, batch.label[sample_T]) if self.training else {}
        return Output(self.head(fused), losses, {"fused": fused.detach()} if detail else {})

    def _visit(self, h_TH: Tensor, sample_T: Tensor, n_samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Visit the experts with the largest expected confidence: outputs, their confidences, and those expected."""
        o, logit_TE = self.options, self.router(h_TH)
        ranked_TE = logit_TE.detach()
        if self.training and o.router_noise:
            ranked_TE = ranked_TE + o.router_noise * self.noise.normal(ranked_TE.shape, ranked_TE.device)
        expert_TK = ranked_TE.topk(o.top_k, dim=1).indices
        expert_V1 = expert_TK.view(-1, 1)
        # One row per visit, because the confidence depends on the output of the expert.
        alone = Routing(expert_V1, torch.ones_like(expert_V1, dtype=torch.float32), ranked_TE)
        y_VH = self.experts(h_TH.repeat_interleave(o.top_k, dim=0), alone)
        logit_VE = self.confidence(F.layer_norm(y_VH, y_VH.shape[1:]))
        confidence_V = logit_VE.gather(1, expert_V1).squeeze(1).sigmoid()
        if o.level == "expert":
            place_V = sample_T.repeat_interleave(o.top_k) * o.n_experts + expert_V1.squeeze(1)
            total = confidence_V.new_zeros(n_samples * o.n_experts).index_add(0, place_V, confidence_V)
            confidence_V = (total / place_V.bincount(minlength=len(total)).clamp_min(1))[place_V]
        expected_TK = logit_TE.gather(1, expert_TK).sigmoid()
        return y_VH.unflatten(0, expert_TK.shape), confidence_V.view_as(expected_TK), expected_TK

    def _imputed(self, h_BLH: Tensor, y_BLKH: Tensor, known_BL: Tensor) -> Tensor:
        """Second stage: (B, L, H) sparse attention of all tokens to the sample's known ones, summed over the visits."""
        key_BKLH = self.key(y_BLKH).transpose(1, 2)
        score_BKLL = self.query(h_BLH).unsqueeze(1) @ key_BKLH.mT / math.sqrt(h_BLH.shape[2])
        weight_BKLL = score_BKLL.masked_fill(~known_BL[:, None, None, :], -math.inf).softmax(dim=3)
        kept_B = (self.options.keep * known_BL.sum(dim=1)).ceil().long()
        place = (kept_B - 1)[:, None, None, None].expand(*weight_BKLL.shape[:3], 1)
        least = weight_BKLL.detach().sort(dim=3, descending=True).values.gather(3, place)
        return (weight_BKLL.masked_fill(weight_BKLL < least, 0.0) @ key_BKLH).sum(dim=1)

    def _losses(self, y_TKH: Tensor, confidence_TK: Tensor, expected_TK: Tensor, label_T: Tensor) -> dict[str, Tensor]:
        """Task loss of the predictions of single experts, and squared errors of both confidences.

        The target of a confidence is exp(−task loss), without gradient: the probability of the true class or, for a
        regression, exp(−squared error in standard deviations).
        """
        label_V = label_T.repeat_interleave(y_TKH.shape[1])
        loss_V = self.task_loss(self.opinion(y_TKH).flatten(0, 1), label_V, reduction="none")
        target_TK = (-loss_V).exp().detach().view_as(confidence_TK)
        error = F.mse_loss(confidence_TK, target_TK) + F.mse_loss(expected_TK, target_TK)
        return {"opinion": self.options.confidence * loss_V.mean(), "confidence": self.options.confidence * error}
