"""Flex-MoE (Yun et al., NeurIPS 2024): learned embeddings per observed combination and missing modality, and experts.

docs/methods/flexmoe.md has the loss, the fallbacks and the differences from the paper and its code. With up to
`MAX_BANK` modalities, index c of the bank and of the experts belongs to combination c (0: all modalities); with more,
the embedding of m is the sum of vectors v[j, m] over the missing modalities j, and expert 1 + j belongs to modality j.
Of the common fusion options, `fusion_layers`, `heads` and `fusion_block` apply.

Legend: B samples, M modalities, P tokens, H hidden dimension, L = M·P, T tokens of the batch, E experts, K
combinations.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_retriever.config import Common, Config, first_epochs
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.device import Head
from moe_retriever.methods.base import Diagnostics, Method, Output, Presets
from moe_retriever.nn.attention import Attention
from moe_retriever.nn.dropout import Dropout, Noise
from moe_retriever.nn.init import Fill, constant, normal
from moe_retriever.nn.moe import Experts, Router, Routing, balance_loss
from mrpipe.errors import UsageError
from mrpipe.options import BoundedOptions, option
from mrpipe.store import masks

MAX_BANK = 5


@dataclass(frozen=True, kw_only=True)
class FlexMoEOptions(BoundedOptions):
    n_experts: int = option(16, "experts; at least one per combination (if more than 5 modalities, per modality)", ge=1)
    expert_ffn: int = option(256, "hidden size of an expert")
    top_k: int = option(4, "experts per token", ge=1)
    noisy_gate: bool = option(True, "add learned noise to the router logits in training")
    specialise: float = option(1e-2, "weight of the loss that routes tokens to the expert of their combination")
    balance: float = option(1e-2, "weight of the balance loss, computed separately for complete and incomplete samples")
    bank_std: float = option(0.02, "sd of the initial embeddings of missing modalities; 1 as released", ge=0)
    sorted_epochs: float = option(
        0.1, "epochs sorted by decreasing number of modalities at the start: number, or fraction of the first 20", ge=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k > self.n_experts:
            raise UsageError(f"option top_k={self.top_k} exceeds n_experts={self.n_experts}")


@dataclass(frozen=True)
class BankUse:
    """(Q,) modality of each missing slot, and whether no training sample has its combination, or lacks the modality."""

    target: Rows
    unseen: NDArray[np.bool_]
    never_missing: NDArray[np.bool_]

    def rates(self) -> dict[str, float]:
        """Shares of the missing slots whose embedding was not trained."""
        slots = {"unseen_combination": self.unseen, "target_never_missing": self.never_missing}
        return {name: float(of.mean()) if len(of) else 0.0 for name, of in slots.items()}


def combinations(n_modalities: int) -> NDArray[np.bool_]:
    """(2^M − 1, M) all non-empty combinations by decreasing size, starting with the full one."""
    codes = np.arange(1, 1 << n_modalities)
    members = masks.unpack(codes, n_modalities)
    return members[np.lexsort((codes, -members.sum(axis=1)))]


def bank_mixture(members: NDArray[np.bool_], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(K, M, K) weights of the bank rows for modality m in combination c; zeros if there is no suitable row.

    Args:
        members: (K, M) modalities of the combinations.
        seen: (K,) whether training samples have the combination.
    """
    n, n_modalities = members.shape
    mixture = np.zeros((n, n_modalities, n), dtype=np.float32)
    overlap = members.astype(np.int64) @ members.T
    for c, m in zip(*np.nonzero(~members), strict=True):
        able = seen & ~members[:, m]
        if seen[c]:
            mixture[c, m, c] = 1.0
        elif able.any():
            best = able & (overlap[c] == overlap[c, able].max())
            mixture[c, m, best] = 1.0 / best.sum()
    return mixture


class SparseBlock(nn.Module):
    """A transformer block with a mixture of experts as feed-forward layer; also returns the routing."""

    def __init__(self, n_experts: int, c: Common, o: FlexMoEOptions, noise: Noise):
        super().__init__()
        self.form = c.fusion_block
        self.norm_attention = nn.LayerNorm(c.hidden)
        self.attention = Attention(c.hidden, c.heads)
        self.norm_ffn = nn.LayerNorm(c.hidden)
        self.router = Router(c.hidden, n_experts, top_k=o.top_k, noise=noise, renormalise=True, noisy=o.noisy_gate)
        self.experts = Experts(n_experts, c.hidden, o.expert_ffn, c.dropout, noise)
        self.dropout = Dropout(c.dropout, noise)

    def forward(self, x_BLH: Tensor) -> tuple[Tensor, Routing]:
        mixed = self.attention(self.norm_attention(x_BLH))
        x_BLH = (mixed if self.form == "code" else x_BLH) + self.dropout(mixed)
        x_TH = self.norm_ffn(x_BLH).flatten(0, 1)
        routing = self.router(x_TH)
        return x_BLH + self.dropout(self.experts(x_TH, routing).view_as(x_BLH)), routing


class FlexMoE(Method[FlexMoEOptions]):
    name = "flexmoe"
    title = "Flex-MoE"
    summary = "learned embeddings per combination and missing modality; experts specialise in combinations"
    paper = "Flex-MoE: Yun et al., NeurIPS 2024"
    citation = "flexmoe"
    Options = FlexMoEOptions
    presets: ClassVar[Presets] = {
        "paper": {},
        "fixed-top-1": {"specialise": 1.0},
        "published-settings": {"lr": 1e-4, "batch_size": 8, "epochs": 50, "patience": 0, "dropout": 0.5}
        | {"select_metric": "accuracy", "vector_encoder": "linear", "fusion_block": "code"}
        | {"bank_std": 1.0, "sorted_epochs": 5},
    }

    def __init__(self, spec: DataSpec, config: Config[FlexMoEOptions], noise: Noise):
        super().__init__(spec, config, noise)
        c, o, n = config.common, config.own, len(spec.modalities)
        self.additive = n > MAX_BANK
        self.n_experts = max(o.n_experts, n + 1 if self.additive else (1 << n) - 1)
        rows = n if self.additive else (1 << n) - 1
        self.bank_KMPH = nn.Parameter(torch.empty(rows, n, c.tokens, c.hidden))
        self.position_MPH = nn.Parameter(torch.empty(n, c.tokens, c.hidden))
        self.blocks = nn.ModuleList(SparseBlock(self.n_experts, c, o, noise) for _ in range(c.fusion_layers))
        self.head = Head(n * c.hidden, spec.n_outputs)
        # Combinations of the training samples (by code), and weights of the bank rows.
        self.register_buffer("seen", torch.zeros(1 << n, dtype=torch.bool))
        self.register_buffer("mixture", torch.zeros((n, n) if self.additive else (rows, n, rows)))
        self._number = np.zeros(1 << n, dtype=np.int64)
        self._members = combinations(n) if not self.additive else np.zeros((0, n), dtype=bool)
        self._number[masks.codes(self._members)] = np.arange(len(self._members))
        self.sorting = False

    def initial(self, name: str) -> Fill:
        return normal(self.options.bank_std) if name == "bank_KMPH" else constant(0.0)

    def prepare(self, data: Data, train_rows: Rows) -> None:
        n_modalities = len(self.spec.modalities)
        seen = np.zeros(1 << n_modalities, dtype=bool)
        seen[np.unique(masks.codes(data.observed[train_rows]))] = True
        if self.config.common.drop_modalities > 0:
            # Hiding modalities also creates all subsets of a combination.
            codes = np.arange(1 << n_modalities)
            for m in range(n_modalities):
                having = codes[masks.unpack(codes, [m])[:, 0]]
                seen[having - (1 << m)] |= seen[having]
            seen[0] = False
        codes = np.flatnonzero(seen)
        if self.additive:
            missing = ~masks.unpack(codes, n_modalities)
            mixture = np.any(missing[:, :, None] & missing[:, None, :], axis=0).astype(np.float32)
        else:
            mixture = bank_mixture(self._members, seen[masks.codes(self._members)])
        self.get_buffer("seen").copy_(torch.from_numpy(seen))
        self.get_buffer("mixture").copy_(torch.from_numpy(mixture))

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        self.sorting = epoch < first_epochs(self.options.sorted_epochs, n_epochs)

    def arrange(self, data: Data, rows: Rows) -> Rows:
        """In the first epochs, sort samples by decreasing number of modalities; ties are in shuffled order."""
        if not self.sorting:
            return rows
        return rows[np.argsort(-data.observed[rows].sum(axis=1), kind="stable")]

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        missing = self.on_device(~batch.observed)
        z_BMPH = self.encode_slots(batch)
        if not batch.observed.all():
            z_BMPH = z_BMPH + missing[:, :, None, None] * self._stand_ins(batch, missing)
        x_BLH = (z_BMPH + self.position_MPH).flatten(1, 2)
        routings = []
        for block in self.blocks:
            x_BLH, routing = block(x_BLH)
            routings.append(routing)
        fused_BD = x_BLH.unflatten(1, z_BMPH.shape[1:3]).mean(dim=2).flatten(1)
        losses: dict[str, Tensor] = {}
        if self.training:
            partial_T = np.repeat(~batch.observed.all(axis=1), x_BLH.shape[1])
            if self.options.balance:
                balances = [self._balance(r, partial_T) for r in routings]
                losses["balance"] = self.options.balance * torch.stack(balances).mean()
            if self.options.specialise and not batch.observed.all():
                rows, target_BE = self.on_device(np.flatnonzero(partial_T)), self._experts_of(batch)
                terms = [self._specialise(r, rows, target_BE, x_BLH.shape[1]) for r in routings]
                losses["specialise"] = self.options.specialise * torch.stack(terms).mean()
        diagnostics: Diagnostics = {"fused": fused_BD.detach(), "support": self._use(batch)} if detail else {}
        return Output(self.head(fused_BD), losses, diagnostics)

    def _stand_ins(self, batch: Batch, missing_BM: Tensor) -> Tensor:
        """(B, M, P, H) embeddings from the bank for all modalities of all samples, used for the missing ones."""
        mixture = self.get_buffer("mixture")
        if self.additive:
            return torch.einsum("bj,jm,jmph->bmph", missing_BM.to(mixture.dtype), mixture, self.bank_KMPH)
        number = self.on_device(self._number[masks.codes(batch.observed)])
        return torch.einsum("cmk,kmph->cmph", mixture, self.bank_KMPH)[number]

    def _experts_of(self, batch: Batch) -> Tensor:
        """(B, E) target distribution of the router for the tokens of each sample."""
        target = np.zeros((len(batch), self.n_experts), dtype=np.float32)
        if self.additive:
            missing = ~batch.observed
            target[:, 1 : 1 + missing.shape[1]] = missing / np.maximum(missing.sum(axis=1, keepdims=True), 1)
        else:
            target[np.arange(len(batch)), self._number[masks.codes(batch.observed)]] = 1.0
        return self.on_device(target)

    @staticmethod
    def _specialise(routing: Routing, rows: Tensor, target_BE: Tensor, n_tokens: int) -> Tensor:
        """Cross-entropy of the logits without noise, averaged over `rows`, the tokens of incomplete samples."""
        return F.cross_entropy(routing.clean[rows], target_BE[rows.div(n_tokens, rounding_mode="floor")])

    def _balance(self, routing: Routing, partial_T: NDArray[np.bool_]) -> Tensor:
        """Balance loss of complete samples over all experts, plus that of incomplete samples without expert 0."""
        total = routing.clean.new_zeros(())
        every = torch.arange(self.n_experts, device=total.device)
        for chosen, allowed in ((~partial_T, every), (partial_T, every[1:])):
            rows = self.on_device(np.flatnonzero(chosen))
            if len(rows) and len(allowed):
                total = total + balance_loss(routing.rows(rows), torch.zeros_like(rows), allowed[None])
        return total

    def _use(self, batch: Batch) -> BankUse:
        sample, target = np.nonzero(~batch.observed)
        seen = self.get_buffer("seen").cpu().numpy()
        lacked = np.any(~masks.unpack(np.flatnonzero(seen), len(self.spec.modalities)), axis=0)
        return BankUse(target, ~seen[masks.codes(batch.observed)][sample], ~lacked[target])
