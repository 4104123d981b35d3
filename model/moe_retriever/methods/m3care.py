"""M3Care (C. Zhang et al., KDD 2022): missing modalities are imputed from similar samples by graph convolution.

docs/methods/m3care.md lists the differences from the released code.

Legend: B samples, R neighbours, M modalities, H hidden dimension.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_retriever.config import Common, Config
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.device import Head, products, to_device
from moe_retriever.methods.base import Method, Output, Presets, ReferenceState
from moe_retriever.nn.attention import TransformerBlock
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.init import Fill, normal
from moe_retriever.nn.similarity import Kernel, Threshold, neighbour_mean
from moe_retriever.retrieval.bank import ReferenceSamples, shaped
from mrpipe.options import BoundedOptions, option


@dataclass(frozen=True, kw_only=True)
class M3CareOptions(BoundedOptions):
    threshold: float = option(0.5, "initial learned similarity threshold (0.88 and 0.5 as released)", gt=0, lt=1)
    normalise: bool = option(True, "average over neighbours with similarities as weights; False: sum, as released")
    stabiliser: float = option(1e-7, "weight of the loss | ‖φ(h)‖ − ‖h‖ |, which stabilises the similarity network")
    bank: int = option(1024, "number of training samples used as neighbours in evaluation; 0: all", ge=0)


# Two views (B, H) of each modality.
Views = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class NeighbourBank:
    """Training samples as neighbours: observed (R, M), h and first-layer states (R, M, H), and views per modality."""

    observed: NDArray[np.bool_]
    h: Tensor
    first: Tensor
    views: Views


class GraphFill(nn.Module):
    """Similarities between samples, two graph convolutions per modality, and mixing with the sample's own vector."""

    def __init__(self, n_modalities: int, hidden: int, options: M3CareOptions):
        super().__init__()
        self.normalise = options.normalise
        self.kernels = nn.ModuleList(Kernel(hidden) for _ in range(n_modalities))
        self.threshold = Threshold(options.threshold)
        self.first = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(n_modalities))
        self.second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(n_modalities))
        self.trust_graph = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(n_modalities))
        self.trust_own = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(n_modalities))

    def views(self, h_BMH: Tensor, observed_BM: NDArray[np.bool_]) -> tuple[Views, Tensor]:
        """The two views (B, H) per modality, zeros if missing; and Σ_m | ‖φ(h)‖ − ‖h‖ | over observed rows."""
        views, stabiliser = [], h_BMH.new_zeros(())
        for m in range(len(self.kernels)):
            places = to_device(np.flatnonzero(observed_BM[:, m]), h_BMH.device)
            empty = h_BMH.new_zeros(len(h_BMH), h_BMH.shape[2])
            pair = (empty, empty)
            if len(places):
                h = h_BMH[places, m]
                (a, b), phi = cast(Kernel, self.kernels[m]).views(h)
                pair = (empty.index_copy(0, places, a.to(h.dtype)), empty.index_copy(0, places, b.to(h.dtype)))
                stabiliser = stabiliser + (phi.norm() - h.norm()).abs()
            views.append(pair)
        return views, stabiliser

    def similarity(
        self, query: Views, have_BM: NDArray[np.bool_], neighbour: Views, have_RM: NDArray[np.bool_]
    ) -> Tensor:
        """(B, R) mean similarity over common modalities (0 without any), after the threshold."""
        total = query[0][0].new_zeros(len(have_BM), len(have_RM), dtype=torch.float32)
        for m, kernel in enumerate(self.kernels):
            rows, columns = (to_device(np.flatnonzero(have[:, m]), total.device) for have in (have_BM, have_RM))
            if len(rows) == 0 or len(columns) == 0:
                continue
            same = query is neighbour
            a = tuple(v[rows] for v in query[m])
            b = a if same else tuple(v[columns] for v in neighbour[m])
            total = total.index_put((rows[:, None], columns[None, :]), kernel(a, b).to(total.dtype), accumulate=True)
        common = products(*(to_device(have, total.device).to(total.dtype) for have in (have_BM, have_RM)))
        return self.threshold(total / common.clamp_min(1))

    def convolve(
        self, layer: nn.Module, a_BR: Tensor, x_RH: Tensor, own_B: Tensor | None = None, x_BH: Tensor | None = None
    ) -> Tensor:
        """One graph convolution; without neighbours the result is ReLU(bias), a learned constant."""
        return F.relu(layer(neighbour_mean(a_BR, x_RH, own_B, x_BH, normalise=self.normalise)))

    def mix(self, m: int, graph_BH: Tensor, h_BH: Tensor, observed_B: Tensor) -> Tensor:
        """Convex combination of neighbourhood and own vector if observed, otherwise the neighbourhood alone."""
        g, own = self.trust_graph[m](graph_BH).sigmoid(), self.trust_own[m](h_BH).sigmoid()
        w = g / (g + own)
        return torch.where(observed_B[:, None], w * graph_BH + (1 - w) * h_BH, graph_BH)

    def first_states(self, h_BMH: Tensor, observed_BM: Tensor, s_BB: Tensor) -> Tensor:
        """(B, M, H) states after the first convolution over the graph of the samples."""
        layers = [self.convolve(self.first[m], s_BB * observed_BM[:, m], h_BMH[:, m]) for m in range(h_BMH.shape[1])]
        return torch.stack(layers, dim=1)

    def within(self, h_BMH: Tensor, observed_BM: Tensor, s_BB: Tensor) -> Tensor:
        """(B, M, H) vectors of all modalities, with the samples of the batch as graph (training)."""
        first = self.first_states(h_BMH, observed_BM, s_BB)
        slots = []
        for m in range(h_BMH.shape[1]):
            graph = self.convolve(self.second[m], s_BB * observed_BM[:, m], first[:, m])
            slots.append(self.mix(m, graph, h_BMH[:, m], observed_BM[:, m]))
        return torch.stack(slots, dim=1)

    def against(self, h_BMH: Tensor, observed_BM: Tensor, s_BR: Tensor, bank: NeighbourBank) -> Tensor:
        """(B, M, H) vectors of all modalities, with neighbours from a bank and self-similarity 1 (evaluation)."""
        slots, observed_RM = [], to_device(bank.observed, s_BR.device)
        for m in range(h_BMH.shape[1]):
            a, own, h = s_BR * observed_RM[:, m], observed_BM[:, m].to(s_BR.dtype), h_BMH[:, m]
            first = self.convolve(self.first[m], a, bank.h[:, m], own, h)
            graph = self.convolve(self.second[m], a, bank.first[:, m], own, first)
            slots.append(self.mix(m, graph, h, observed_BM[:, m]))
        return torch.stack(slots, dim=1)


class TokenFusion(nn.Module):
    """Type embeddings, two pre-LN transformer layers (`heads` heads, then one), concatenation, MLP, and head."""

    def __init__(self, n_modalities: int, n_classes: int, c: Common, noise: Noise):
        super().__init__()
        plain = replace(c, fusion_ffn=4 * c.hidden, fusion_experts=0, fusion_block="pre-ln")
        self.type_MH = nn.Parameter(torch.empty(n_modalities, c.hidden))
        self.blocks = nn.ModuleList([TransformerBlock(plain, noise), TransformerBlock(replace(plain, heads=1), noise)])
        self.norm = nn.LayerNorm(c.hidden)
        self.inner = nn.Linear(n_modalities * c.hidden, 2 * c.hidden)
        self.head = Head(2 * c.hidden, n_classes)

    def initial(self, name: str) -> Fill:
        return normal(0.02)

    def forward(self, x_BMH: Tensor) -> tuple[Tensor, Tensor]:
        x_BMH = x_BMH + self.type_MH
        for block in self.blocks:
            x_BMH = block(x_BMH, None)[0]
        fused = F.relu(self.inner(self.norm(x_BMH).flatten(1)))
        return self.head(fused), fused


class M3Care(Method[M3CareOptions]):
    """M3Care: imputation over the graph of a batch in training and over a bank of training samples in evaluation."""

    name = "m3care"
    title = "M3Care"
    summary = "imputes missing modalities from similar samples by graph convolution, followed by a transformer"
    paper = "M3Care: Zhang et al., KDD 2022"
    citation = "m3care"
    Options = M3CareOptions
    presets: ClassVar[Presets] = {"paper": {"batch_size": 128, "weight_decay": 1e-4, "clip": 20.0, "dropout": 0.5}}

    def __init__(self, spec: DataSpec, config: Config[M3CareOptions], noise: Noise):
        super().__init__(spec, config, noise)
        n_modalities = len(spec.modalities)
        self.graph = GraphFill(n_modalities, config.common.hidden, config.own)
        self.fusion = TokenFusion(n_modalities, spec.n_outputs, config.common, noise)
        self.reference: ReferenceSamples | None = None
        self._bank: NeighbourBank | None = None

    def prepare(self, data: Data, train_rows: Rows) -> None:
        rows = data.drawn(train_rows, self.options.bank or len(train_rows), self.config.seed, "m3care bank")
        self.reference = ReferenceSamples.of(data, rows)
        self._bank = None

    def refresh(self) -> None:
        if self.reference is not None:
            self.reference.forget()
            self._bank = None

    @torch.no_grad()
    def _neighbours(self) -> NeighbourBank:
        if self._bank is None:
            assert self.reference is not None, "call prepare() or load_reference() first"
            have = self.reference.observed
            h = torch.zeros(*have.shape, self.config.common.hidden, device=self.device)
            for m, encoder in enumerate(self.encoders):
                rows = np.flatnonzero(have[:, m])
                if len(rows):
                    tokens = self.reference.embed(m, rows, encoder)
                    h[self.on_device(rows), m] = tokens.mean(dim=1).to(h.dtype)
            self._bank = self._made(have, h)
        return self._bank

    def _made(self, observed: NDArray[np.bool_], h: Tensor) -> NeighbourBank:
        views, _ = self.graph.views(h, observed)
        s = self.graph.similarity(views, observed, views, observed)
        return NeighbourBank(observed, h, self.graph.first_states(h, self.on_device(observed), s), views)

    @torch.no_grad()
    def reference_state(self) -> ReferenceState:
        bank = self._neighbours()
        return {"observed": torch.from_numpy(bank.observed.copy()), "h": bank.h.cpu()}

    @torch.no_grad()
    def load_reference(self, state: ReferenceState) -> None:
        training = self.training
        self.eval()
        self.reference = None
        observed = shaped(state["observed"], -1, len(self.spec.modalities)).bool()
        h = shaped(state["h"], *observed.shape, self.config.common.hidden)
        self._bank = self._made(observed.cpu().numpy(), h.to(self.device))
        self.train(training)

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        h = self.encode_slots(batch).mean(dim=2)
        have, observed = batch.observed, self.on_device(batch.observed)
        views, stabiliser = self.graph.views(h, have)
        losses: dict[str, Tensor] = {}
        if self.training:
            slots = self.graph.within(h, observed, self.graph.similarity(views, have, views, have))
            losses["stabiliser"] = self.options.stabiliser * stabiliser
        else:
            bank = self._neighbours()
            s = self._without_self(batch, self.graph.similarity(views, have, bank.views, bank.observed))
            slots = self.graph.against(h, observed, s, bank)
        logits, fused = self.fusion(slots)
        return Output(logits, losses, {"fused": fused.detach()} if detail else {})

    def _without_self(self, batch: Batch, s_BR: Tensor) -> Tensor:
        """Remove a training sample's similarity to itself in the bank, because its own node is added separately."""
        if self.reference is None:
            return s_BR
        own = self.reference.own_row(batch.data, batch.index)
        places = np.flatnonzero(own >= 0)
        if len(places):
            rows = self.on_device(places)
            s_BR = s_BR.index_put((rows, self.on_device(own[places])), s_BR.new_zeros(()))
        return s_BR
