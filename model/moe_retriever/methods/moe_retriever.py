"""MoE-Retriever: a missing modality is embedded from supporting samples by a sparse mixture of experts, then fused.

Source: the paper's Eq. 1–3 and Algorithm 1; where it is silent, the decisions A1–A20 of models.md §2.5.

Legend: B samples, M modalities, Q missing slots, I items, P tokens, H hidden, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.config import Config, OptionValue
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import Diagnostics, ItemRouting, Method, Output, Presets, ReferenceState, SlotRouting
from moe_retriever.nn.attention import Fusion
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.encoders import frozen_batch_norm, has_batch_norm, is_random
from moe_retriever.nn.moe import Routing
from moe_retriever.retrieval.bank import ReferenceSamples
from moe_retriever.retrieval.retriever import INTRA, Retrieved, Retriever, SlotItems
from moe_retriever.retrieval.supporting_groups import Draws, SupportIndex, Wanted
from mrpipe.errors import UsageError
from mrpipe.options import option


@dataclass(frozen=True, kw_only=True)
class MoERetrieverOptions:
    """Options of the retriever; A-numbers are those of models.md §2.5."""

    n_experts: int = option(8, "experts of each target modality's own pool, |E_T|")
    n_shared: int = option(4, "experts of the pool that all targets share, |E_Sh|")
    expert_ffn: int = option(256, "hidden size of an expert")
    top_k: int = option(4, "experts a token visits")
    routers: str = option("one", "A5: one router, one a token role or one a target", choices=("one", "role", "target"))
    renormalise: bool = option(False, "A4: weights of the kept experts sum to 1 (top-k before softmax)")
    noisy_gate: bool = option(False, "A10: learned gate noise in training")
    balance: float = option(1e-2, "A11: weight of the balance loss")
    context: str = option("self", "A2: who attends to whom before the experts", choices=("self", "cross", "query"))
    context_block: str = option("pre-ln", "A3: norm and residual of that attention", choices=("pre-ln", "none", "code"))
    context_routing: bool = option(True, "False: one pool of all experts for all targets (ablation)")
    integration: str = option(
        "position",
        "A8: how the items' outputs become one slot; raw_mean is the released code's mean of its inputs",
        choices=("position", "broadcast", "gate", "queries", "raw_mean"),
    )
    output_norm: bool = option(True, "A8: LayerNorm of the retrieved slot")
    residual: bool = option(False, "A9: add the items to the experts' output")
    embeddings: bool = option(False, "A17: learned role and modality embeddings of the items")
    intra: bool = option(True, "use supporting samples; False: the sample's own modalities only (ablation)")
    inter: bool = option(True, "use the sample's own modalities; False: supporting samples only (ablation)")
    n_intra: str = option("observed", "A6: supporting samples a slot: observed, all, or a number")
    support: str = option(
        "auto",
        "A12: encode supports fresh with gradients, or from a detached bank made anew each epoch; "
        "auto: bank for volumes",
        choices=("auto", "fresh", "bank"),
    )
    draws: int = option(1, "A14: keyed draws whose logits an evaluation averages")
    warmup: float = option(0.25, "A15: epochs without retrieval: a fraction of all, or their number if 1 or more")
    warmup_kind: str = option("mask", "A15: missing slots in the warm-up", choices=("mask", "zeros"))
    reconstruct: float = option(0.0, "A19: weight of a cosine loss on slots hidden by drop_modalities")

    def __post_init__(self) -> None:
        allowed = self.n_experts + self.n_shared
        if self.n_experts < 1 or self.n_shared < 0 or self.top_k < 1:
            raise UsageError("options n_experts and top_k must be at least 1, n_shared at least 0")
        if self.context_routing and self.top_k > allowed:
            raise UsageError(f"option top_k={self.top_k} exceeds n_experts + n_shared = {allowed}")
        if self.n_intra not in ("observed", "all") and not (self.n_intra.isdigit() and int(self.n_intra) > 0):
            raise UsageError(f"option n_intra={self.n_intra!r} must be observed, all or a positive number")
        if not (self.intra or self.inter):
            raise UsageError("options intra and inter cannot both be off")
        if self.draws < 1 or self.warmup < 0:
            raise UsageError(f"options draws={self.draws} and warmup={self.warmup} must be at least 1 and 0")


_AS_RELEASED: dict[str, OptionValue] = {
    "vector_encoder": "linear",
    "lr": 1e-4,
    "batch_size": 16,
    "epochs": 20,
    "patience": 0,
    "dropout": 0.5,
    "select_metric": "accuracy",
    "warmup": 5,
    "warmup_kind": "zeros",
    "output_norm": False,
}


class MoERetriever(Method[MoERetrieverOptions]):
    """The method of the paper; presets `paper`, `code-intended`, `released-code` (models.md §2.7)."""

    name = "moe_retriever"
    summary = "retrieves a missing modality from supporting samples through a sparse mixture of experts"
    paper = "MoE-Retriever: the paper that this project implements"
    citation = (
        "Sparse MoE as a new retriever: addressing missing modality problem in incomplete multimodal data. "
        "Manuscript under double-blind review, 2024"
    )
    Options = MoERetrieverOptions
    presets: ClassVar[Presets] = {
        "paper": {},
        "code-intended": {**_AS_RELEASED, "context_block": "code", "renormalise": True, "noisy_gate": True},
        "released-code": {**_AS_RELEASED, "integration": "raw_mean", "balance": 0.0, "fusion_block": "code"},
    }

    def __init__(self, spec: DataSpec, config: Config[MoERetrieverOptions], noise: Noise):
        super().__init__(spec, config, noise)
        n_modalities = len(spec.modalities)
        self.options: MoERetrieverOptions = config.own
        self.retriever = Retriever(n_modalities, config.common, config.own, noise)
        self.fusion = Fusion(n_modalities, spec.n_classes, config.common, noise)
        self.reference: ReferenceSamples | None = None
        self.index: SupportIndex | None = None
        self.retrieving = True
        if self._warmup_epochs(config.common.epochs) >= config.common.epochs:
            raise UsageError(f"warmup={self.options.warmup} leaves none of epochs={config.common.epochs}")
        if self.options.reconstruct and not config.common.drop_modalities:
            raise UsageError(
                f"option reconstruct={self.options.reconstruct} has no effect: it needs drop_modalities above 0"
            )

    # Training samples

    def prepare(self, data: Data, train_rows: Rows) -> None:
        self._refer(ReferenceSamples.of(data, train_rows))

    def _refer(self, reference: ReferenceSamples) -> None:
        self.reference = reference
        self.index = SupportIndex(reference.observed)

    def reference_bytes(self) -> int:
        assert self.reference is not None
        return self.reference.bank_bytes(self.config.common.tokens, self.config.common.hidden)

    def reference_state(self) -> ReferenceState:
        assert self.reference is not None
        return self.reference.state(self.encoders)

    def load_reference(self, state: ReferenceState) -> None:
        self._refer(ReferenceSamples.from_state(state, self.device))

    def refresh(self) -> None:
        if self.reference is not None:
            self.reference.forget()

    # Schedule

    def _warmup_epochs(self, n_epochs: int) -> int:
        return int(self.options.warmup) if self.options.warmup >= 1 else math.floor(self.options.warmup * n_epochs)

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        self.retrieving = epoch >= self._warmup_epochs(n_epochs)

    @property
    def selectable(self) -> bool:
        return bool(self.retrieving)

    @property
    def n_draws(self) -> int:
        return self.options.draws

    def expert_pools(self, n_experts: int) -> list[str]:
        own = [name for name in self.spec.names for _ in range(self.options.n_experts)]
        return [*own, *["shared"] * (n_experts - len(own))]

    # One step

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        c, o = self.config.common, self.options
        draws, items = self._plan(batch, draw)
        source, own_block, item_block = self._encode(batch, items)
        blocks = [source]
        filled = batch.observed.copy()
        retrieved = None
        place = np.where(batch.observed, own_block, -1)
        if items is not None and len(items):
            retrieved = self.retriever(source.index_select(0, self._index(item_block)), items)
            place[items.sample, items.target] = len(source) + np.arange(len(items.target))
            filled[items.sample, items.target] = True
            blocks.append(retrieved.tokens.to(source.dtype))
        if not filled.all():
            place[~filled] = sum(len(b) for b in blocks)
            blocks.append(source.new_zeros(1, c.tokens, c.hidden))
        z_BMPH = torch.cat(blocks).index_select(0, self._index(place.flatten())).unflatten(0, place.shape)
        as_zeros = not self.retrieving and o.warmup_kind == "zeros"
        mask = None if filled.all() or as_zeros else torch.from_numpy(filled).to(z_BMPH.device)
        logits, fused, fusion_balance = self.fusion(z_BMPH, mask)
        losses: dict[str, Tensor] = {}
        if self.training:
            if retrieved is not None and o.balance:
                losses["balance"] = o.balance * retrieved.balance
            if fusion_balance is not None and o.balance:
                losses["fusion_balance"] = o.balance * fusion_balance
            if retrieved is not None and items is not None and o.reconstruct and batch.hidden.any():
                losses["reconstruct"] = o.reconstruct * self._reconstruction(batch, items, retrieved)
        diagnostics = self._details(batch, draws, items, retrieved, fused) if detail else {}
        return Output(logits, losses, diagnostics)

    def _index(self, places: Rows) -> Tensor:
        return torch.from_numpy(places).to(self.device)

    def _plan(self, batch: Batch, draw: int) -> tuple[Draws | None, SlotItems | None]:
        """Which supports every missing slot gets; nothing in the warm-up or where nothing is missing."""
        if not self.retrieving or batch.observed.all():
            return None, None
        assert self.reference is not None, "call prepare() or load_reference() first"
        assert self.index is not None
        o = self.options
        wanted: Wanted = int(o.n_intra) if o.n_intra.isdigit() else o.n_intra  # type: ignore[assignment]
        draws = self.index.draw(
            batch.observed,
            batch.keys,
            self.spec.names,
            wanted=wanted,
            seed=self.config.seed,
            stream=f"{batch.stream} draw {draw}",
            own_row=self.reference.own_row(batch.data, batch.index),
        )
        return draws, SlotItems.of(draws, batch.observed, intra=o.intra, inter=o.inter)

    def _banked(self, m: int) -> bool:
        """Whether supports of modality m come detached from the bank in training (A12)."""
        if self.options.support == "auto":
            return self.spec.modalities[m].kind == "volume"
        return self.options.support == "bank"

    def _encode(self, batch: Batch, items: SlotItems | None) -> tuple[Tensor, Rows, Rows]:
        """Encode what the batch observes and what its slots draw, each row once.

        Returns:
            blocks (S, P, H); number of the block of each observed slot (B, M), else −1; block of each item (I,).
        """
        own_block = np.full(batch.observed.shape, -1, dtype=np.int64)
        item_block = np.full(0 if items is None else len(items), -1, dtype=np.int64)
        blocks: list[Tensor] = []
        n_blocks = 0
        for m, encoder in enumerate(self.encoders):
            places, own_rows = batch.table_rows(m)
            mine = np.zeros(0, dtype=np.int64)
            if items is not None:
                mine = np.flatnonzero((items.role == INTRA) & (items.modality == m))
            drawn = items.row[mine] if items is not None else mine
            new, own_at, drawn_at = self._encode_modality(batch, m, encoder, own_rows, drawn)
            own_block[places, m] = n_blocks + own_at
            item_block[mine] = n_blocks + drawn_at
            blocks += new
            n_blocks += sum(len(b) for b in new)
        if items is not None:
            inter = items.role != INTRA
            item_block[inter] = own_block[items.row[inter], items.modality[inter]]
        return torch.cat(blocks), own_block, item_block

    def _encode_modality(
        self, batch: Batch, m: int, encoder: torch.nn.Module, own_rows: Rows, drawn: Rows
    ) -> tuple[list[Tensor], Rows, Rows]:
        """Blocks of one modality, and where its own and its drawn rows are among them."""
        table, reference = batch.data.tables[m], self.reference
        bank = reference.bank if reference is not None and reference.data is batch.data else None
        if reference is not None and bank is not None and self._keeps_own(batch.data):
            drawn = reference.table_rows(m, drawn)
            rows, at = np.unique(np.concatenate([own_rows, drawn]), return_inverse=True)
            tokens = [bank.embed(m, rows, encoder)] if len(rows) else []
            return tokens, at[: len(own_rows)], at[len(own_rows) :]
        fresh = self.training and not self._banked(m)
        if reference is not None and bank is not None and fresh and len(drawn) and not has_batch_norm(encoder):
            drawn = reference.table_rows(m, drawn)
            rows, at = np.unique(np.concatenate([own_rows, drawn]), return_inverse=True)
            return [encoder(table.gather(rows))], at[: len(own_rows)], at[len(own_rows) :]
        tokens = [encoder(table.gather(own_rows))] if len(own_rows) else []
        if bank is not None and tokens and self.training and not fresh and self.retrieving and not is_random(encoder):
            # What a step encodes anyway need not be encoded again as another sample's support.
            bank.remember(m, own_rows, tokens[0])
        if len(drawn) == 0:
            return tokens, np.arange(len(own_rows)), drawn
        assert reference is not None
        rows, at = np.unique(drawn, return_inverse=True)
        tokens.append(reference.encode(m, rows, encoder) if fresh else reference.embed(m, rows, encoder))
        return tokens, np.arange(len(own_rows)), len(own_rows) + at

    def _keeps_own(self, data: Data) -> bool:
        """Whether predictions read the samples' own embeddings from the bank, too: each is made once until `refresh`.

        So several draws, subsets of the modalities or repeated calls encode nothing anew.
        """
        c = self.config.common
        if self.training or torch.is_grad_enabled():
            return False
        return int(data.observed.sum()) * c.tokens * c.hidden * 4 <= c.bank_mb * 1e6

    def _reconstruction(self, batch: Batch, items: SlotItems, retrieved: Retrieved) -> Tensor:
        """1 − cosine between a retrieved slot and the encoding of what was hidden there (detached)."""
        slots = np.flatnonzero(batch.hidden[items.sample, items.target])
        terms = []
        for m, encoder in enumerate(self.encoders):
            mine = slots[items.target[slots] == m]
            if len(mine) == 0:
                continue
            rows = batch.data.row[batch.index[items.sample[mine]], m]
            with torch.no_grad(), frozen_batch_norm(encoder):
                truth = encoder(batch.data.tables[m].gather(rows))
            terms.append(1 - F.cosine_similarity(retrieved.tokens[self._index(mine)], truth, dim=-1).flatten())
        return torch.cat(terms).mean() if terms else retrieved.tokens.new_zeros(())

    def _details(
        self, batch: Batch, draws: Draws | None, items: SlotItems | None, retrieved: Retrieved | None, fused: Tensor
    ) -> Diagnostics:
        """Fused embeddings; per slot the mean weight and the share of visits of each expert; fallback rates."""
        details: Diagnostics = {"fused": fused.detach()}
        if draws is not None:
            details["support"] = draws
        if items is not None and retrieved is not None and retrieved.routing is not None:
            details["routing"] = self._slot_routing(batch, items, retrieved.routing)
            if self.options.context != "query":
                details["item_routing"] = self._item_routing(batch, items, retrieved.routing)
        return details

    def _slot_routing(self, batch: Batch, items: SlotItems, routing: Routing) -> SlotRouting:
        """Of each slot: mean weight (Q, E) of its tokens and share (Q, E) of their visits."""
        n_slots, n_experts = len(items.target), self.retriever.router.n_experts
        per_token = len(routing.expert) // (len(items) if self.options.context != "query" else n_slots)
        of_item = np.arange(n_slots) if self.options.context == "query" else items.slot
        slot_T = self._index(of_item).repeat_interleave(per_token)
        flat = (slot_T[:, None] * n_experts + routing.expert).flatten()
        n_tokens = torch.bincount(slot_T, minlength=n_slots).unsqueeze(1)
        shape = (n_slots, n_experts)
        weight = torch.zeros(n_slots * n_experts, device=flat.device)
        weight = weight.index_add(0, flat, routing.weight.detach().flatten()).view(shape) / n_tokens
        visits = torch.bincount(flat, minlength=n_slots * n_experts).view(shape)
        share = visits / (n_tokens * routing.expert.shape[1])
        return {
            "sample": batch.index[items.sample],
            "observed": batch.observed[items.sample],
            "target": items.target,
            "weight": weight.cpu().numpy(),
            "share": share.cpu().numpy(),
        }

    def _item_routing(self, batch: Batch, items: SlotItems, routing: Routing) -> ItemRouting:
        """Of each item: what its own sample (a supporting one for an intra item) has, its role, its visits (I, E)."""
        assert self.reference is not None
        observed = batch.observed[np.where(items.role == INTRA, 0, items.row)]
        intra = items.role == INTRA
        observed[intra] = self.reference.observed[items.row[intra]]
        n_experts, n_tokens = self.retriever.router.n_experts, len(routing.expert) // len(items)
        item_T = torch.arange(len(items), device=routing.expert.device).repeat_interleave(n_tokens)
        flat = (item_T[:, None] * n_experts + routing.expert).flatten()
        visits = torch.bincount(flat, minlength=len(items) * n_experts).view(len(items), n_experts)
        return {"observed": observed, "supporting": intra, "visits": visits.cpu().numpy()}
