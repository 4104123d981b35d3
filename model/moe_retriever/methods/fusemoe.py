"""FuseMoE (Han et al., NeurIPS 2024): learned embeddings of missing modalities, and experts with distance-based gates.

docs/methods/fusemoe.md has the architecture and the differences from the paper and its code. The common `fusion_*`
options have no effect.

Legend: B samples, M modalities, P tokens (1 for joint), H hidden dimension, E experts, T tokens in the router.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from moe_retriever.config import Common, Config, OptionValue
from moe_retriever.data.load import Batch, DataSpec
from moe_retriever.device import Head
from moe_retriever.methods.base import Method, Output, Presets
from moe_retriever.nn.attention import Attention, FeedForward
from moe_retriever.nn.dropout import Dropout, Noise
from moe_retriever.nn.init import Fill, normal
from moe_retriever.nn.moe import Experts, Router, Routing, balance_loss
from mrpipe.errors import UsageError
from mrpipe.options import BoundedOptions, option


@dataclass(frozen=True, kw_only=True)
class FuseMoEOptions(BoundedOptions):
    layers: int = option(1, "fusion layers; 3 as published", ge=1)
    n_experts: int = option(16, "number of experts")
    expert_ffn: int = option(256, "hidden size of an expert; 512 with the joint router")
    top_k: int = option(4, "experts per token (permod) or per sample (joint)", ge=1)
    router: str = option(
        "permod",
        "one router per modality for its tokens, or one router for the concatenated modalities",
        choices=("permod", "joint"),
    )
    gate: str = option("laplace", "expert's logit: −‖x − w‖, −‖x − w‖² or x·w", choices=("laplace", "gaussian", "dot"))
    noisy_gate: bool = option(True, "add learned noise to the router logits in training")
    balance: float = option(1e-2, "weight of the balance loss of each router; 0 as released")
    missing: str = option(
        "learned", "missing modalities: learned (paper) or zeros (released code)", choices=("learned", "zeros")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k > self.n_experts:
            raise UsageError(f"option top_k={self.top_k} exceeds n_experts={self.n_experts}")


class Layer(nn.Module):
    """Self-attention within each modality, mixture of experts over all modalities, feed-forward layer per modality."""

    def __init__(self, n_modalities: int, c: Common, o: FuseMoEOptions, noise: Noise):
        super().__init__()
        n, h = n_modalities, c.hidden
        self.joint = o.router == "joint"
        width = n * h if self.joint else h
        self.norm_attention = nn.ModuleList(nn.LayerNorm(h) for _ in range(n))
        self.attention = nn.ModuleList(Attention(h, c.heads) for _ in range(n))
        self.norm_experts = nn.ModuleList(nn.LayerNorm(h) for _ in range(n))
        router = partial(Router, width, o.n_experts, top_k=o.top_k, noise=noise, renormalise=True)
        n_routers = 1 if self.joint else n
        self.routers = nn.ModuleList(router(noisy=o.noisy_gate, affinity=o.gate) for _ in range(n_routers))
        self.experts = Experts(o.n_experts, width, o.expert_ffn, c.dropout, noise)
        self.norm_ffn = nn.ModuleList(nn.LayerNorm(h) for _ in range(n))
        self.ffn = nn.ModuleList(FeedForward(h, 4 * h, c.dropout, noise) for _ in range(n))
        self.dropout = Dropout(c.dropout, noise)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Updated tokens (B, P, H) of each modality, and the balance loss of the layer's routers."""
        with_layers = zip(x, self.norm_attention, self.attention, strict=True)
        x = [t + self.dropout(attention(norm(t))) for t, norm, attention in with_layers]
        updates, loss = self._mix([norm(t) for t, norm in zip(x, self.norm_experts, strict=True)])
        x = [t + self.dropout(u) for t, u in zip(x, updates, strict=True)]
        return [t + self.dropout(ffn(norm(t))) for t, norm, ffn in zip(x, self.norm_ffn, self.ffn, strict=True)], loss

    def _mix(self, x: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Outputs of the experts for each modality, and the mean balance loss of the routers."""
        shape = x[0].shape
        inputs = [torch.cat([t[:, 0] for t in x], dim=1)] if self.joint else [t.flatten(0, 1) for t in x]
        routing = Routing.concatenate([router(t) for router, t in zip(self.routers, inputs, strict=True)])
        y_TH = self.experts(torch.cat(inputs), routing)
        which_T = torch.arange(len(inputs), device=y_TH.device).repeat_interleave(len(inputs[0]))
        every = torch.arange(self.experts.n_experts, device=y_TH.device).expand(len(inputs), -1)
        loss = balance_loss(routing, which_T, every)
        if self.joint:
            return [t.unsqueeze(1) for t in y_TH.chunk(len(x), dim=1)], loss
        return [t.view(shape) for t in y_TH.chunk(len(x))], loss


class FuseMoE(Method[FuseMoEOptions]):
    name = "fusemoe"
    title = "FuseMoE"
    summary = "learned embeddings of missing modalities; mixture of experts with a Laplace router per modality"
    paper = "FuseMoE: Han et al., NeurIPS 2024"
    citation = "fusemoe"
    Options = FuseMoEOptions
    space: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"layers": (1, 2)}
    presets: ClassVar[Presets] = {
        "paper": {},
        "joint": {"router": "joint", "expert_ffn": 512},
        "published-settings": {"expert_ffn": 512, "n_experts": 3, "top_k": 2, "layers": 3, "heads": 8, "balance": 0.0}
        | {"router": "joint", "missing": "zeros"}
        | {"dropout": 0.1, "lr": 4e-4, "batch_size": 16, "epochs": 8, "patience": 0},
    }

    def __init__(self, spec: DataSpec, config: Config[FuseMoEOptions], noise: Noise):
        super().__init__(spec, config, noise)
        c, o, n = config.common, config.own, len(spec.modalities)
        n_tokens = 1 if o.router == "joint" else c.tokens
        self.missing_MPH = nn.Parameter(torch.empty(n, n_tokens, c.hidden)) if o.missing == "learned" else None
        self.type_MH = nn.Parameter(torch.empty(n, c.hidden))
        self.position_MPH = nn.Parameter(torch.empty(n, n_tokens, c.hidden))
        self.layers = nn.ModuleList(Layer(n, c, o, noise) for _ in range(o.layers))
        self.norm = nn.ModuleList(nn.LayerNorm(c.hidden) for _ in range(n))
        self.readout = FeedForward(n * c.hidden, n * c.hidden, c.dropout, noise)
        self.head = Head(n * c.hidden, spec.n_outputs)

    def initial(self, name: str) -> Fill:
        return normal(0.02)

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        z_BMPH = self.encode_slots(batch)
        if self.options.router == "joint":
            z_BMPH = z_BMPH.mean(dim=2, keepdim=True)
        if self.missing_MPH is not None and not batch.observed.all():
            missing = self.on_device(~batch.observed)
            z_BMPH = z_BMPH + missing[:, :, None, None] * self.missing_MPH
        x = list((z_BMPH + self.position_MPH + self.type_MH.unsqueeze(1)).unbind(dim=1))
        balances = []
        for layer in self.layers:
            x, balance = layer(x)
            balances.append(balance)
        fused_BD = torch.cat([norm(t).mean(dim=1) for t, norm in zip(x, self.norm, strict=True)], dim=1)
        fused_BD = fused_BD + self.readout(fused_BD)
        losses: dict[str, Tensor] = {}
        if self.training and self.options.balance:
            losses["balance"] = self.options.balance * torch.stack(balances).sum()
        return Output(self.head(fused_BD), losses, {"fused": fused_BD.detach()} if detail else {})
