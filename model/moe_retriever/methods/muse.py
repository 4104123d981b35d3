"""MUSE (Z. Wu et al., ICLR 2024): a bipartite graph of samples and modalities, with edges for observed modalities.

docs/methods/muse.md lists the differences from the code. The states of the modality nodes are computed once over the
training samples and frozen, so that an evaluated sample depends on its own edges only.

Legend: B samples, M modalities, H hidden dimension, L layers.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.device import Head, in_float32
from moe_retriever.methods.base import Method, Output, Presets, ReferenceState
from moe_retriever.nn.dropout import Dropout, Noise
from moe_retriever.nn.init import Fill, normal
from moe_retriever.retrieval.bank import shaped
from mrpipe import keyed
from mrpipe.options import BoundedOptions, option


@dataclass(frozen=True, kw_only=True)
class MuseOptions(BoundedOptions):
    layers: int = option(2, "layers of the graph network; with 1, samples do not interact", ge=1)
    edge_drop: float = option(0.5, "share of samples that lose edges in the augmented graph", ge=0, le=1)
    unsupervised: float = option(0.5, "weight of the contrastive loss between the graph and its augmentation")
    supervised: float = option(0.5, "weight of the contrastive loss between labels (try 0 for imbalanced classes)")
    temperature: float = option(0.07, "temperature of both contrastive losses", gt=0)


class BipartiteLayer(nn.Module):
    """Messages ReLU(W [x_source ; e]), mean over the edges, update ReLU(U [mean ; x])."""

    def __init__(self, hidden: int):
        super().__init__()
        self.message = nn.Linear(2 * hidden, hidden)
        self.update = nn.Linear(2 * hidden, hidden)

    def messages(self, source: Tensor, e_BMH: Tensor) -> Tensor:
        """(B, M, H) messages along all edges; `source` is broadcast to the edges."""
        return F.relu(self.message(torch.cat([source.expand_as(e_BMH), e_BMH], dim=-1)))

    def updated(self, mean: Tensor, x: Tensor) -> Tensor:
        return F.relu(self.update(torch.cat([mean, x], dim=-1)))


class Nodes(NamedTuple):
    """States before a layer: samples (B, H), modalities (M, H), and edges (B, M, H) in each direction."""

    patient: Tensor
    modality: Tensor
    to_patient: Tensor
    to_modality: Tensor


class BipartiteNetwork(nn.Module):
    """The graph network; initial states are learned for modality nodes and ones for sample nodes."""

    def __init__(self, n_modalities: int, hidden: int, n_layers: int, dropout: float, noise: Noise):
        super().__init__()
        self.modality_MH = nn.Parameter(torch.empty(n_modalities, hidden))
        self.layers = nn.ModuleList(BipartiteLayer(hidden) for _ in range(n_layers))
        self.edges = nn.ModuleList(nn.Linear(3 * hidden, hidden) for _ in range(n_layers - 1))
        self.dropout = Dropout(dropout, noise)

    def initial(self, name: str) -> Fill:
        return normal(1.0)

    def layer(self, number: int) -> BipartiteLayer:
        return cast(BipartiteLayer, self.layers[number])

    def _start(self, e_BMH: Tensor) -> Nodes:
        return Nodes(e_BMH.new_ones(len(e_BMH), e_BMH.shape[2]), self.modality_MH, e_BMH, e_BMH)

    def _patients(self, number: int, x: Nodes, edge_BM: Tensor) -> Tensor:
        """Sample states (B, H) after a layer, from the mean over the observed modalities."""
        layer, edge = self.layer(number), edge_BM.to(x.to_patient.dtype).unsqueeze(2)
        mean = (layer.messages(x.modality, x.to_patient) * edge).sum(1) / edge.sum(1).clamp_min(1)
        return layer.updated(mean, x.patient)

    def _messages(self, number: int, x: Nodes, edge_BM: Tensor) -> Tensor:
        """Summed messages (M, H) from the samples to each modality."""
        edge = edge_BM.to(x.to_modality.dtype).unsqueeze(2)
        return (self.layer(number).messages(x.patient[:, None], x.to_modality) * edge).sum(0)

    def _advance(self, number: int, x: Nodes, edge_BM: Tensor, frozen_MH: Tensor | None) -> Nodes:
        """Apply one layer, dropout of the nodes, and the update of the edge states."""
        if frozen_MH is None:
            n = edge_BM.sum(0).clamp_min(1).unsqueeze(1)
            modality = self.layer(number).updated(self._messages(number, x, edge_BM) / n, x.modality)
        else:
            modality = frozen_MH
        modality, patient = self.dropout(modality), self.dropout(self._patients(number, x, edge_BM))
        ends = (modality.expand_as(x.to_patient), patient[:, None].expand_as(x.to_patient))
        to_patient = F.relu(self.edges[number](torch.cat([*ends, x.to_patient], dim=-1)))
        to_modality = F.relu(self.edges[number](torch.cat([*ends[::-1], x.to_modality], dim=-1)))
        return Nodes(patient, modality, to_patient, to_modality)

    def forward(self, e_BMH: Tensor, edge_BM: Tensor, frozen: list[Tensor] | None = None) -> Tensor:
        """Sample states (B, H) after the last layer.

        Args:
            e_BMH: edge features; values without an edge are ignored.
            edge_BM: whether an edge exists.
            frozen: states (M, H) of the modality nodes after layers 1 to L − 1; None: computed from these samples.
        """
        x, last = self._start(e_BMH), len(self.layers) - 1
        for number in range(last):
            x = self._advance(number, x, edge_BM, None if frozen is None else frozen[number])
        return self._patients(last, x, edge_BM)

    def messages_after(self, frozen: list[Tensor], e_BMH: Tensor, edge_BM: Tensor) -> Tensor:
        """Summed messages (M, H) of these samples in the layer after those with `frozen` modality states."""
        x = self._start(e_BMH)
        for number, state in enumerate(frozen):
            x = self._advance(number, x, edge_BM, state)
        return self._messages(len(frozen), x, edge_BM)


def dropped_edges(observed: NDArray[np.bool_], u: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """Edges (B, M) of the augmented graph: a share `rate` of the samples keeps 1 to n − 1 of its n edges.

    Args:
        u: (B, M + 2) uniform random numbers: whether to drop, number of edges, and order of the edges.
    """
    n = observed.sum(axis=1)
    kept = np.where(u[:, 0] < rate, 1 + (u[:, 1] * (n - 1)).astype(np.int64), n)
    order = np.argsort(np.where(observed, u[:, 2:], 2.0), axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    return observed & (rank < np.where(n > 1, kept, n)[:, None])


@in_float32
def info_nce(z: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE loss of unit vectors (B, H); the positive of a sample is its augmentation."""
    logits = z @ other.T / temperature
    target = torch.arange(len(z), device=z.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@in_float32
def label_contrast(z: Tensor, other: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy of similarities and "same label", within z (½) and between z and `other` (¼ each way).

    For a regression, "same" is exp(−|difference of the targets|), in standard deviations of the target.
    """
    if len(label) == 0:
        return z.sum() * 0
    apart = label[:, None] - label[None, :]
    same = (-apart.abs()).exp() if label.is_floating_point() else (apart == 0).to(z.dtype)
    within, across = z @ z.T / temperature, z @ other.T / temperature
    loss = F.binary_cross_entropy_with_logits
    return loss(within, same) / 2 + loss(across, same) / 4 + loss(across.T, same) / 4


class Muse(Method[MuseOptions]):
    name = "muse"
    title = "MUSE"
    summary = "bipartite graph of samples and modalities with contrastive losses, without imputation"
    paper = "MUSE: Wu et al., ICLR 2024"
    citation = "muse"
    Options = MuseOptions
    presets: ClassVar[Presets] = {"paper": {"batch_size": 128, "dropout": 0.25, "lr": 2e-4}}

    def __init__(self, spec: DataSpec, config: Config[MuseOptions], noise: Noise):
        super().__init__(spec, config, noise)
        n_modalities, c = len(spec.modalities), config.common
        self.mappers = nn.ModuleList(nn.Linear(c.hidden, c.hidden) for _ in range(n_modalities))
        self.dropout = Dropout(c.dropout, noise)
        self.network = BipartiteNetwork(n_modalities, c.hidden, config.own.layers, c.dropout, noise)
        self.projection = nn.Sequential(Head(c.hidden, c.hidden), nn.Tanh())
        inner, drop = nn.Linear(c.hidden, c.hidden), Dropout(c.dropout, noise)
        self.head = nn.Sequential(inner, nn.ReLU(), drop, Head(c.hidden, spec.n_outputs))
        self._training_set: tuple[Data, Rows] | None = None
        self._frozen: list[Tensor] | None = None

    def prepare(self, data: Data, train_rows: Rows) -> None:
        self._training_set, self._frozen = (data, np.sort(train_rows)), None

    def refresh(self) -> None:
        if self._training_set is not None:
            self._frozen = None

    @torch.no_grad()
    def _modality_states(self) -> list[Tensor]:
        """States (M, H) of the modality nodes after layers 1 to L − 1, over all training samples."""
        if self._frozen is None:
            assert self._training_set is not None, "call prepare() or load_reference() first"
            data, rows = self._training_set
            states: list[Tensor] = []
            size, count = self.config.common.eval_batch_size, data.observed[rows].sum(axis=0)
            edges = self.on_device(count).clamp_min(1).unsqueeze(1)
            for number in range(self.options.layers - 1):
                total = torch.zeros_like(self.network.modality_MH, dtype=torch.float64)
                for start in range(0, len(rows), size):
                    batch = data.batch(rows[start : start + size], "reference")
                    total += self.network.messages_after(states, *self._edges(batch))
                before = states[-1] if states else self.network.modality_MH
                mean = (total / edges).to(before.dtype)
                states.append(self.network.layer(number).updated(mean, before))
            self._frozen = states
        return self._frozen

    def reference_state(self) -> ReferenceState:
        return {"modality_states": [s.cpu() for s in self._modality_states()]}

    def load_reference(self, state: ReferenceState) -> None:
        self._training_set = None
        shape = self.network.modality_MH.shape
        self._frozen = [shaped(s, *shape).to(self.device) for s in cast(list[object], state["modality_states"])]
        if len(self._frozen) != self.options.layers - 1:
            raise ValueError(f"{len(self._frozen)} states of {self.options.layers} layers")

    def _edges(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Edge features (B, M, H), and whether each edge exists (B, M)."""
        h = self.encode_slots(batch).mean(dim=2)
        mapped = torch.stack([mapper(h[:, m]) for m, mapper in enumerate(self.mappers)], dim=1)
        return self.dropout(mapped), self.on_device(batch.observed)

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        e, edge = self._edges(batch)
        patient = self.network(e, edge, None if self.training else self._modality_states())
        losses: dict[str, Tensor] = {}
        if self.training and (self.options.unsupervised or self.options.supervised):
            losses = self._contrasts(batch, e, patient)
        return Output(self.head(patient), losses, {"fused": patient.detach()} if detail else {})

    def _contrasts(self, batch: Batch, e: Tensor, patient: Tensor) -> dict[str, Tensor]:
        o = self.options
        u = keyed.uniform(batch.keys, self.config.seed, f"muse edges {batch.stream}", batch.observed.shape[1] + 2)
        fewer = self.on_device(dropped_edges(batch.observed, u, o.edge_drop))
        z, other = (F.normalize(self.projection(x), dim=1) for x in (patient, self.network(e, fewer)))
        losses = {}
        if o.unsupervised:
            losses["unsupervised"] = o.unsupervised * info_nce(z, other, o.temperature)
        if o.supervised:
            known = self.on_device(np.flatnonzero(batch.data.known[batch.index]))
            labelled = z[known], other[known], batch.label[known], o.temperature
            losses["supervised"] = o.supervised * label_contrast(*labelled)
        return losses
