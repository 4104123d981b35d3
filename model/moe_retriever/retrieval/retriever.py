"""The retriever: embeds missing modalities from supporting samples and from the sample's other modalities.

Implements Eq. 3 and Algorithm 1 of the paper; see docs/method.md.

Legend: Q missing slots, I items (embeddings of one modality of a supporting sample or of the sample itself), P tokens
per item, H hidden dimension, E experts, T = I · P tokens, M modalities. Items of a slot are contiguous, supporting ones
first. Slots are sorted by their number of items, so that attention runs over blocks of equal length without padding.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_retriever.config import Common
from moe_retriever.device import to_device
from moe_retriever.nn.attention import Attention
from moe_retriever.nn.dropout import Dropout, Noise
from moe_retriever.nn.init import Fill, normal
from moe_retriever.nn.moe import Experts, Router, Routing, balance_loss
from moe_retriever.retrieval.supporting_groups import Draws

if TYPE_CHECKING:
    from moe_retriever.methods.moe_retriever import MoERetrieverOptions

INTRA, INTER = 0, 1


@dataclass(frozen=True)
class SlotItems:
    """The items from which each missing slot is retrieved.

    Attributes:
        sample, target: (Q,) position in the batch and missing modality of each slot.
        blocks: (number of items, first slot, last slot + 1) for each number of items that occurs.
        slot: (I,) slot of each item.
        role: (I,) INTRA (from a supporting sample) or INTER (another modality of the sample).
        modality: (I,) modality of each item.
        row: (I,) reference row of an intra item, position in the batch of an inter item.
        weight: (I,) weight in the mean: one half per role, equal within a role; a single role gets all the weight.
    """

    sample: NDArray[np.int64]
    target: NDArray[np.int64]
    blocks: tuple[tuple[int, int, int], ...]
    slot: NDArray[np.int64]
    role: NDArray[np.int64]
    modality: NDArray[np.int64]
    row: NDArray[np.int64]
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, draws: Draws, observed: NDArray[np.bool_], *, intra: bool = True, inter: bool = True) -> "SlotItems":
        """Items of the drawn supporting samples and of the samples' own modalities; slots without items are omitted.

        Args:
            observed: (B, M) observed modalities of the batch.
            intra, inter: whether to use the items of each role (ablations of Table 3).
        """
        own_slot, own_modality = np.nonzero(observed[draws.sample])
        drawn_slot = np.repeat(np.arange(len(draws.target)), draws.drawn)
        n_drawn, n_own = len(drawn_slot) if intra else 0, len(own_slot) if inter else 0
        slot = np.concatenate([drawn_slot[:n_drawn], own_slot[:n_own]])
        role = np.repeat([INTRA, INTER], [n_drawn, n_own])
        modality = np.concatenate([draws.target[drawn_slot[:n_drawn]], own_modality[:n_own]])
        row = np.concatenate([draws.row[:n_drawn], draws.sample[own_slot[:n_own]]])
        # Sort slots by number of items; within a slot, intra items come first.
        count = np.bincount(slot, minlength=len(draws.target))
        kept = np.flatnonzero(count)
        ranked = kept[np.argsort(count[kept], kind="stable")]
        rank = np.empty(len(count), dtype=np.int64)
        rank[ranked] = np.arange(len(ranked))
        order = np.argsort(rank[slot], kind="stable")
        slot, role, modality, row = rank[slot][order], role[order], modality[order], row[order]
        per_role = np.zeros((len(ranked), 2), dtype=np.int64)
        np.add.at(per_role, (slot, role), 1)
        weight = 1.0 / (per_role[slot, role] * (per_role[slot] > 0).sum(axis=1))
        sizes, first = np.unique(count[ranked], return_index=True)
        last = np.append(first, len(ranked))[1:]
        blocks = tuple(zip(sizes.tolist(), first.tolist(), last.tolist(), strict=True))
        return cls(
            draws.sample[ranked], draws.target[ranked], blocks, slot, role, modality, row, weight.astype(np.float32)
        )

    def __len__(self) -> int:
        return len(self.slot)

    def per_block(self, x: Tensor) -> list[Tensor]:
        """Split a tensor over items into one tensor (slots, items per slot, …) per block."""
        parts = x.split([n * (last - first) for n, first, last in self.blocks])
        return [p.unflatten(0, (-1, n)) for p, (n, _, _) in zip(parts, self.blocks, strict=True)]


@dataclass(frozen=True)
class Retrieved:
    """Output of the retriever: tokens (Q, P, H) in the order of the slots, balance loss, and routing of the tokens."""

    tokens: Tensor
    balance: Tensor
    routing: Routing | None


class Context(nn.Module):
    """Attention over the items of a slot, before the experts.

    layout "self": every token attends to all tokens of the slot. "cross": intra tokens attend to inter tokens and vice
    versa (to all tokens if there is only one role). "query": P learned queries per missing modality attend to all.
    block "pre-ln": x + Drop(MHA(LN x)). "code": a = MHA(x); a + Drop(a). "none": MHA(x).
    """

    def __init__(
        self, n_modalities: int, n_tokens: int, hidden: int, options: "MoERetrieverOptions", noise: Noise, c: Common
    ):
        super().__init__()
        self.layout, self.block = options.context, options.context_block
        self.norm = nn.LayerNorm(hidden)
        self.attention = Attention(hidden, c.heads)
        self.dropout = Dropout(c.dropout, noise)
        self.query_MPH = nn.Parameter(torch.empty(n_modalities, n_tokens, hidden)) if self.layout == "query" else None

    def initial(self, name: str) -> Fill:
        return normal(0.02)

    def forward(self, x_IPH: Tensor, items: SlotItems, role_I: Tensor, target_Q: Tensor) -> Tensor:
        """(I, P, H) → (I, P, H); for "query" (Q, P, H)."""
        hidden = x_IPH.shape[-1]
        q, k, v = self.attention.qkv(self.norm(x_IPH) if self.block == "pre-ln" else x_IPH).chunk(3, dim=-1)
        base = x_IPH
        if self.query_MPH is not None:
            base = self.query_MPH[target_Q]
            q = nn.functional.linear(base, self.attention.qkv.weight[:hidden])
        mixed = []
        roles = items.per_block(role_I)
        keys, values = items.per_block(k), items.per_block(v)
        queries = items.per_block(q) if self.query_MPH is None else [q[first:last] for _, first, last in items.blocks]
        for q_b, k_b, v_b, role_b in zip(queries, keys, values, roles, strict=True):
            allowed = self._allowed(role_b, x_IPH.shape[1]) if self.layout == "cross" else None
            flat = q_b if self.query_MPH is not None else q_b.flatten(1, 2)
            out = self.attention.mix(flat, k_b.flatten(1, 2), v_b.flatten(1, 2), allowed)
            mixed.append(out.reshape(-1, x_IPH.shape[1], hidden))
        y = self.attention.out(torch.cat(mixed))
        match self.block:
            case "pre-ln":
                return base + self.dropout(y)
            case "code":
                return y + self.dropout(y)
            case _:
                return y

    @staticmethod
    def _allowed(role_QN: Tensor, n_tokens: int) -> Tensor:
        """(Q, 1, N·P, N·P) True between tokens of different roles; True everywhere for slots with a single role."""
        other = role_QN[:, :, None] != role_QN[:, None, :]
        other = other | ~other.any(dim=2, keepdim=True)
        return other.repeat_interleave(n_tokens, dim=1).repeat_interleave(n_tokens, dim=2).unsqueeze(1)


class Retriever(nn.Module):
    """Attention, router, experts, and integration into one (P, H) embedding per slot.

    There are `n_experts` experts per missing modality and `n_shared` shared ones; a token can visit the experts of its
    slot's missing modality and the shared ones. Without `context_routing`, all experts form one pool.
    """

    def __init__(self, n_modalities: int, c: Common, options: "MoERetrieverOptions", noise: Noise):
        super().__init__()
        o = options
        self.options, self.n_modalities = o, n_modalities
        n_experts = o.n_experts * n_modalities + o.n_shared
        routers = {"one": 1, "role": 2, "target": n_modalities}[o.routers]
        self.context = Context(n_modalities, c.tokens, c.hidden, o, noise, c)
        self.norm_in = nn.LayerNorm(c.hidden)
        self.router = Router(
            c.hidden,
            n_experts,
            top_k=o.top_k,
            noise=noise,
            n_routers=routers,
            renormalise=o.renormalise,
            noisy=o.noisy_gate,
        )
        self.experts = Experts(n_experts, c.hidden, o.expert_ffn, c.dropout, noise)
        self.norm_out = nn.LayerNorm(c.hidden) if o.output_norm else nn.Identity()
        self.role_2H = nn.Parameter(torch.empty(2, c.hidden)) if o.embeddings else None
        self.modality_MH = nn.Parameter(torch.empty(n_modalities, c.hidden)) if o.embeddings else None
        learned = o.integration == "queries"
        self.pool_MPH = nn.Parameter(torch.empty(n_modalities, c.tokens, c.hidden)) if learned else None
        # Derived from the options and therefore not part of the weights; converted to tensors on each device.
        pools = np.arange(n_modalities * o.n_experts).reshape(n_modalities, o.n_experts)
        shared = np.broadcast_to(np.arange(n_modalities * o.n_experts, n_experts), (n_modalities, o.n_shared))
        self._allowed = np.hstack([pools, shared]) if o.context_routing else np.arange(n_experts)[None, :]
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def initial(self, name: str) -> Fill:
        return normal(0.02)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Allowed experts of each group, as lists (G, A) and as a mask (G, E)."""
        if device not in self._tables:
            lists = to_device(self._allowed, device)
            table = torch.zeros(len(lists), self.router.n_experts, dtype=torch.bool, device=device)
            self._tables[device] = lists, table.scatter(1, lists, True)
        return self._tables[device]

    def forward(self, x_IPH: Tensor, items: SlotItems) -> Retrieved:
        """Retrieve the embeddings of all slots.

        Args:
            x_IPH: encoder tokens of the items.
            items: slots and roles of the items.
        """
        o, device, n_tokens = self.options, x_IPH.device, x_IPH.shape[1]
        n_slots = len(items.target)
        weight_I = to_device(items.weight, device)
        if o.integration == "raw_mean":
            # As in the released code, where experts and attention have no effect (docs/method.md).
            return Retrieved(self._mean(x_IPH, items, weight_I), x_IPH.new_zeros(()), None)
        role_I = to_device(items.role, device)
        target_Q = to_device(items.target, device)
        slot_I = to_device(items.slot, device)
        if self.role_2H is not None and self.modality_MH is not None:
            modality_I = to_device(items.modality, device)
            x_IPH = x_IPH + (self.role_2H[role_I] + self.modality_MH[modality_I]).unsqueeze(1)
        mixed = self.context(x_IPH, items, role_I, target_Q)
        # With learned queries, each slot is a single item from here on.
        per_slot = o.context == "query"
        target_I = target_Q if per_slot else target_Q[slot_I]
        target_T = target_I.repeat_interleave(n_tokens)
        role_T = torch.zeros_like(target_T) if per_slot else role_I.repeat_interleave(n_tokens)
        x_TH = self.norm_in(mixed).flatten(0, 1)
        group_T = target_T if o.context_routing else torch.zeros_like(target_T)
        lists, table = self._on(device)
        router_T = {"one": None, "role": role_T, "target": target_T}[o.routers]
        routing = self.router(x_TH, table[group_T] if o.context_routing else None, router_T)
        if per_slot or o.integration == "queries":
            y = self.experts(x_TH, routing).unflatten(0, (-1, n_tokens))
            y = y + mixed if o.residual else y
            slots = y if per_slot else self._pool(y, items, target_Q)
        else:
            slots = self._sum(x_TH, mixed, routing, weight_I, slot_I, n_slots)
        return Retrieved(self.norm_out(slots), balance_loss(routing, group_T, lists), routing)

    def _sum(
        self, x_TH: Tensor, mixed_IPH: Tensor, routing: Routing, weight_I: Tensor, slot_I: Tensor, n_slots: int
    ) -> Tensor:
        """Integrate by weighted sums of expert outputs (options position, broadcast and gate)."""
        n_tokens = mixed_IPH.shape[1]
        row_T = (slot_I[:, None] * n_tokens + torch.arange(n_tokens, device=x_TH.device)).flatten()
        scale_T, n_rows = weight_I.repeat_interleave(n_tokens), n_slots * n_tokens
        if self.options.integration == "broadcast":
            row_T, scale_T, n_rows = slot_I.repeat_interleave(n_tokens), scale_T / n_tokens, n_slots
        elif self.options.integration == "gate":
            # Tokens are weighted by the total weight of their top-k experts.
            mass_T = routing.weight.sum(dim=1)
            total = mass_T.new_zeros(n_rows).index_add(0, row_T, mass_T)
            scale_T = mass_T / total.clamp_min(1e-9).index_select(0, row_T)
        y = self.experts(x_TH, routing, row_T=row_T, n_rows=n_rows, scale_T=scale_T)
        if self.options.residual:
            y = y.index_add(0, row_T, mixed_IPH.flatten(0, 1) * scale_T[:, None].to(y.dtype))
        y = y.view(n_slots, -1, y.shape[1])
        return y.expand(-1, n_tokens, -1) if self.options.integration == "broadcast" else y

    @staticmethod
    def _mean(y_IPH: Tensor, items: SlotItems, weight_I: Tensor) -> Tensor:
        """Weighted mean over the items of a slot, separately for each position: (Q, P, H)."""
        blocks = zip(items.per_block(y_IPH), items.per_block(weight_I), strict=True)
        return torch.cat([torch.einsum("qnph,qn->qph", y, w.to(y.dtype)) for y, w in blocks])

    def _pool(self, y_IPH: Tensor, items: SlotItems, target_Q: Tensor) -> Tensor:
        """Integrate with P learned queries per missing modality that pool all tokens of a slot."""
        assert self.pool_MPH is not None
        scale = y_IPH.shape[-1] ** -0.5
        pooled = []
        for y, (_, first, last) in zip(items.per_block(y_IPH), items.blocks, strict=True):
            flat = y.flatten(1, 2)
            score = torch.einsum("qph,qlh->qpl", self.pool_MPH[target_Q[first:last]], flat) * scale
            pooled.append(torch.einsum("qpl,qlh->qph", score.softmax(dim=2), flat))
        return torch.cat(pooled)
