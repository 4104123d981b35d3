"""MoE-Retriever: embed missing modalities from supporting samples with a sparse mixture of experts, then fuse.

Implements Eq. 1 to 3 and Algorithm 1 of the paper. docs/method.md lists the choices that the paper leaves open.

Legend: B samples, M modalities, Q missing slots (a missing modality of a sample), I items, P tokens, H hidden
dimension, E experts.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

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
from moe_retriever.retrieval.bank import ReferenceSamples, shaped
from moe_retriever.retrieval.nearest import NearestIndex
from moe_retriever.retrieval.retriever import INTRA, Retrieved, Retriever, SlotItems
from moe_retriever.retrieval.supporting_groups import Draws, SupportIndex, Wanted
from mrpipe.errors import UsageError
from mrpipe.options import BoundedOptions, option


@dataclass(frozen=True, kw_only=True)
class MoERetrieverOptions(BoundedOptions):
    """Options of MoE-Retriever; docs/method.md explains them in detail."""

    n_experts: int = option(8, "experts per missing modality, |E_T|", ge=1)
    n_shared: int = option(4, "experts shared by all missing modalities, |E_Sh|", ge=0)
    expert_ffn: int = option(256, "hidden size of an expert")
    top_k: int = option(4, "experts per token", ge=1)
    routers: str = option(
        "one", "one shared router, one per token role, or one per target modality", choices=("one", "role", "target")
    )
    renormalise: bool = option(False, "normalise the weights of a token's top-k experts to sum to 1")
    noisy_gate: bool = option(False, "add learned noise to the router logits in training")
    balance: float = option(1e-2, "weight of the balance loss, which spreads tokens over experts")
    context: str = option(
        "self",
        "attention before the experts: among all tokens, between supporting and own tokens, or by learned queries",
        choices=("self", "cross", "query"),
    )
    context_block: str = option(
        "pre-ln", "norm and residual of the context attention; code: as released", choices=("pre-ln", "none", "code")
    )
    context_routing: bool = option(True, "False: all tokens may visit all experts (ablation)")
    integration: str = option(
        "position",
        "integration of expert outputs: mean per position, mean over all tokens, mean weighted by the router, "
        "learned queries, or mean of the inputs as released",
        choices=("position", "broadcast", "gate", "queries", "raw_mean"),
    )
    output_norm: bool = option(True, "apply LayerNorm to retrieved embeddings")
    residual: bool = option(False, "add the experts' input to their output")
    embeddings: bool = option(False, "add learned embeddings of role and modality to the tokens")
    intra: bool = option(True, "use supporting samples; False: only the sample's own modalities (ablation)")
    inter: bool = option(True, "use the sample's own modalities; False: only supporting samples (ablation)")
    n_intra: str = option(
        "observed", "supporting samples per missing modality: observed (one per observed modality), all, or a number"
    )
    support: str = option(
        "uniform", "draw from the whole supporting group, or from its nearest samples", choices=("uniform", "nearest")
    )
    nearest_k: int = option(16, "nearest: number of samples to draw from", ge=1)
    nearest_metric: str = option(
        "features", "nearest: compare features, or embeddings renewed in each epoch", choices=("features", "embedding")
    )
    nearest_temperature: float = option(
        0.1, "nearest: draw by softmax(similarity / temperature); 0: most similar", ge=0
    )
    support_source: str = option(
        "auto",
        "supporting samples in training: encoded in each step with gradients, or from a bank renewed in each epoch; "
        "auto: bank for volumes",
        choices=("auto", "fresh", "bank"),
    )
    draws: int = option(1, "draws of supporting samples per prediction, whose logits are averaged", ge=1)
    warmup: float = option(0.25, "epochs without retrieval at the start: a number, or a fraction of the first 20", ge=0)
    warmup_kind: str = option("mask", "missing modalities in the warm-up: masked or zeros", choices=("mask", "zeros"))
    reconstruct: float = option(0.0, "weight of a reconstruction loss on modalities hidden by drop_modalities")

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = self.n_experts + self.n_shared
        if self.context_routing and self.top_k > allowed:
            raise UsageError(f"option top_k={self.top_k} exceeds n_experts + n_shared = {allowed}")
        if self.n_intra not in ("observed", "all") and not (self.n_intra.isdigit() and int(self.n_intra) > 0):
            raise UsageError(f"option n_intra={self.n_intra!r} must be observed, all or a positive number")
        if not (self.intra or self.inter):
            raise UsageError("options intra and inter cannot both be False")


_AS_RELEASED: dict[str, OptionValue] = {"lr": 1e-4, "batch_size": 16, "epochs": 20, "patience": 0, "dropout": 0.5}
_AS_RELEASED |= {"vector_encoder": "linear", "select_metric": "accuracy"}
_AS_RELEASED |= {"warmup": 5, "warmup_kind": "zeros", "output_norm": False}


class MoERetriever(Method[MoERetrieverOptions]):
    """The method of the paper; docs/method.md explains the presets `code-intended` and `released-code`."""

    name = "moe_retriever"
    title = "MoE-Retriever"
    summary = "retrieves missing modalities from supporting samples with a sparse mixture of experts"
    paper = "MoE-Retriever, the paper implemented by this project"
    citation = "moe_retriever"
    Options = MoERetrieverOptions
    presets: ClassVar[Presets] = {
        "paper": {},
        "code-intended": {**_AS_RELEASED, "context_block": "code", "renormalise": True, "noisy_gate": True},
        "released-code": {**_AS_RELEASED, "integration": "raw_mean", "balance": 0.0, "fusion_block": "code"},
    }

    def __init__(self, spec: DataSpec, config: Config[MoERetrieverOptions], noise: Noise):
        super().__init__(spec, config, noise)
        n_modalities = len(spec.modalities)
        self.retriever = Retriever(n_modalities, config.common, config.own, noise)
        self.fusion = Fusion(n_modalities, spec.n_outputs, config.common, noise)
        self.reference: ReferenceSamples | None = None
        self.index = SupportIndex(np.zeros((0, n_modalities), dtype=bool))
        self.retrieving = True
        self.open_with("warmup", self.options.warmup, "with retrieval")
        if self.options.reconstruct and not config.common.drop_modalities:
            raise UsageError(f"option reconstruct={self.options.reconstruct} requires drop_modalities above 0")

    def prepare(self, data: Data, train_rows: Rows) -> None:
        self._refer(ReferenceSamples.of(data, train_rows))

    def _refer(self, reference: ReferenceSamples) -> SupportIndex:
        self.reference = reference
        self.index = SupportIndex(reference.observed)
        if self.options.support == "nearest":
            features = lambda m, rows: self._features(cast(Data, reference.data), m, reference.table_rows(m, rows))  # noqa: E731
            self.index = NearestIndex(reference.observed, features, self.options, reference.subject)
        return self.index

    def _features(self, data: Data, m: int, rows: Rows) -> Tensor:
        """Features (n, f) of rows of modality m's table by which samples are compared (`support="nearest"`)."""
        if self.options.nearest_metric == "features":
            return data.tables[m].pooled(rows)
        if self.reference is not None and self.reference.bank is not None and self.reference.data is data:
            return self.reference.bank.embed(m, rows, self.encoders[m]).mean(dim=1)
        return self.encoders[m](data.tables[m].gather(rows)).mean(dim=1)

    def reference_bytes(self) -> int:
        assert self.reference is not None
        bank = self.reference.bank_bytes(self.config.common.tokens, self.config.common.hidden)
        return bank + sum(t.nbytes for t in self.index.fit())

    def reference_state(self) -> ReferenceState:
        assert self.reference is not None
        return self.reference.state(self.encoders) | {"nearest": self.index.fit()}

    def load_reference(self, state: ReferenceState) -> None:
        common, nearest = self.config.common, cast(list[object], state["nearest"])
        shape = (len(self.spec.modalities), common.tokens, common.hidden)
        reference = ReferenceSamples.from_state(state, self.device, shape)
        sizes = [len(reference), *(2,) * shape[0]] if self.options.support == "nearest" else []
        self._refer(reference).fitted = [shaped(t, n, -1).to(self.device) for t, n in zip(nearest, sizes, strict=True)]

    def refresh(self) -> None:
        if self.reference is not None:
            self.reference.forget()
            if self.reference.bank and self.options.nearest_metric == "embedding":
                self.index.fitted = None

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        super().begin_epoch(epoch, n_epochs)
        self.retrieving = not self.in_opening

    @property
    def n_draws(self) -> int:
        return self.options.draws

    def expert_pools(self, n_experts: int) -> list[str]:
        own = [name for name in self.spec.names for _ in range(self.options.n_experts)]
        return [*own, *["shared"] * (n_experts - len(own))]

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        c, o = self.config.common, self.options
        draws, items = self._plan(batch, draw)
        source, own_block, item_block = self._encode(batch, items)
        blocks = [source]
        filled = batch.observed.copy()
        retrieved = None
        place = np.where(batch.observed, own_block, -1)
        if items is not None and len(items):
            retrieved = self.retriever(source.index_select(0, self.on_device(item_block)), items)
            place[items.sample, items.target] = len(source) + np.arange(len(items.target))
            filled[items.sample, items.target] = True
            blocks.append(retrieved.tokens.to(source.dtype))
        if not filled.all():
            place[~filled] = sum(len(b) for b in blocks)
            blocks.append(source.new_zeros(1, c.tokens, c.hidden))
        z_BMPH = torch.cat(blocks).index_select(0, self.on_device(place.flatten())).unflatten(0, place.shape)
        as_zeros = not self.retrieving and o.warmup_kind == "zeros"
        mask = None if filled.all() or as_zeros else self.on_device(filled)
        logits, fused, fusion_balance = self.fusion(z_BMPH, mask)
        losses: dict[str, Tensor] = {}
        if self.training:
            if retrieved is not None and o.balance:
                losses["balance"] = o.balance * retrieved.balance
            if fusion_balance is not None and o.balance:
                losses["fusion_balance"] = o.balance * fusion_balance
            if retrieved is not None and items is not None and o.reconstruct and batch.hidden.any():
                losses["reconstruct"] = o.reconstruct * self._reconstruction(batch, items, retrieved)
        return Output(logits, losses, self._details(batch, draws, items, retrieved, fused) if detail else {})

    def _plan(self, batch: Batch, draw: int) -> tuple[Draws | None, SlotItems | None]:
        """Draw the supporting samples of all missing slots; None during the warm-up or if nothing is missing."""
        if not self.retrieving or batch.observed.all():
            return None, None
        assert self.reference is not None, "call prepare() or load_reference() first"
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
            features=lambda m, places: self._features(batch.data, m, batch.data.row[batch.index[places], m]),
        )
        return draws, SlotItems.of(draws, batch.observed, intra=o.intra, inter=o.inter)

    def _banked(self, m: int) -> bool:
        """Whether embeddings of supporting samples come from the bank, without gradients, in training."""
        if self.options.support_source == "auto":
            return self.spec.modalities[m].kind == "volume"
        return self.options.support_source == "bank"

    def _encode(self, batch: Batch, items: SlotItems | None) -> tuple[Tensor, Rows, Rows]:
        """Encode the observed modalities of the batch and the drawn supporting samples, each row once.

        Returns:
            blocks (S, P, H); block of each observed slot (B, M), −1 for missing slots; block of each item (I,).
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
        """Blocks of one modality, and the positions of the batch's own rows and of the drawn rows in them."""
        table, reference = batch.data.tables[m], self.reference
        bank = reference.bank if reference is not None and reference.data is batch.data else None
        kept, fresh = self._keeps_own(batch.data), self.training and not self._banked(m)
        together = kept or (fresh and len(drawn) and not has_batch_norm(encoder))
        if reference is not None and bank is not None and together:
            drawn = reference.table_rows(m, drawn)
            rows, at = np.unique(np.concatenate([own_rows, drawn]), return_inverse=True)
            if not len(rows):
                return [], at[:0], at
            tokens = [bank.embed(m, rows, encoder) if kept else encoder(table.gather(rows))]
            return tokens, at[: len(own_rows)], at[len(own_rows) :]
        tokens = [encoder(table.gather(own_rows))] if len(own_rows) else []
        if bank is not None and tokens and self.training and not fresh and self.retrieving and not is_random(encoder):
            # Embeddings of the batch can serve as support for other samples without encoding them again.
            bank.remember(m, own_rows, tokens[0])
        if len(drawn) == 0:
            return tokens, np.arange(len(own_rows)), drawn
        assert reference is not None
        rows, at = np.unique(drawn, return_inverse=True)
        tokens.append(reference.encode(m, rows, encoder) if fresh else reference.embed(m, rows, encoder))
        return tokens, np.arange(len(own_rows)), len(own_rows) + at

    def _keeps_own(self, data: Data) -> bool:
        """Whether predictions also take the samples' own embeddings from the bank.

        Each embedding is then computed once until `refresh`, also for several draws, subsets of modalities or calls.
        """
        c = self.config.common
        if self.training or torch.is_grad_enabled():
            return False
        return int(data.observed.sum()) * c.tokens * c.hidden * 4 <= c.bank_mb * 1e6

    def _reconstruction(self, batch: Batch, items: SlotItems, retrieved: Retrieved) -> Tensor:
        """1 − cosine similarity of retrieved embeddings and the encoder outputs of the hidden modalities (detached)."""
        slots = np.flatnonzero(batch.hidden[items.sample, items.target])
        terms = []
        for m, encoder in enumerate(self.encoders):
            mine = slots[items.target[slots] == m]
            if len(mine) == 0:
                continue
            rows = batch.data.row[batch.index[items.sample[mine]], m]
            with torch.no_grad(), frozen_batch_norm(encoder):
                truth = encoder(batch.data.tables[m].gather(rows))
            terms.append(1 - F.cosine_similarity(retrieved.tokens[self.on_device(mine)], truth, dim=-1).flatten())
        return torch.cat(terms).mean() if terms else retrieved.tokens.new_zeros(())

    def _details(
        self, batch: Batch, draws: Draws | None, items: SlotItems | None, retrieved: Retrieved | None, fused: Tensor
    ) -> Diagnostics:
        """Fused embeddings, supporting samples, and routing per slot and per item."""
        details: Diagnostics = {"fused": fused.detach()}
        if draws is not None:
            details["support"] = draws
        if items is not None and retrieved is not None and retrieved.routing is not None:
            details["routing"] = self._slot_routing(batch, items, retrieved.routing)
            if self.options.context != "query":
                details["item_routing"] = self._item_routing(batch, items, retrieved.routing)
        return details

    def _slot_routing(self, batch: Batch, items: SlotItems, routing: Routing) -> SlotRouting:
        """Per slot, the mean weight (Q, E) of its tokens and the share (Q, E) of their visits."""
        n_slots, n_experts = len(items.target), self.retriever.router.n_experts
        per_token = len(routing.expert) // (len(items) if self.options.context != "query" else n_slots)
        of_item = np.arange(n_slots) if self.options.context == "query" else items.slot
        slot_T = self.on_device(of_item).repeat_interleave(per_token)
        flat = (slot_T[:, None] * n_experts + routing.expert).flatten()
        n_tokens = torch.bincount(slot_T, minlength=n_slots).unsqueeze(1)
        shape = (n_slots, n_experts)
        weight = torch.zeros(n_slots * n_experts, device=flat.device)
        weight = weight.index_add(0, flat, routing.weight.detach().flatten()).view(shape) / n_tokens
        visits = torch.bincount(flat, minlength=n_slots * n_experts).view(shape)
        share = visits / (n_tokens * routing.expert.shape[1])
        sample, observed = batch.index[items.sample], batch.observed[items.sample]
        weights, shares = (of_slot.cpu().numpy() for of_slot in (weight, share))
        return {"sample": sample, "observed": observed, "target": items.target, "weight": weights, "share": shares}

    def _item_routing(self, batch: Batch, items: SlotItems, routing: Routing) -> ItemRouting:
        """Per item, the observed modalities of its sample (for an intra item, the supporting one), role and visits."""
        assert self.reference is not None
        observed = batch.observed[np.where(items.role == INTRA, 0, items.row)]
        intra = items.role == INTRA
        observed[intra] = self.reference.observed[items.row[intra]]
        n_experts, n_tokens = self.retriever.router.n_experts, len(routing.expert) // len(items)
        item_T = torch.arange(len(items), device=routing.expert.device).repeat_interleave(n_tokens)
        flat = (item_T[:, None] * n_experts + routing.expert).flatten()
        visits = torch.bincount(flat, minlength=len(items) * n_experts).view(len(items), n_experts)
        return {"observed": observed, "supporting": intra, "visits": visits.cpu().numpy()}
