"""Loading a store into tensors; all samples are loaded once, and batches are selected by sample index.

Legend: N samples, B samples of a batch, M modalities (in the store's bit order), C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_retriever.data.event_table import EventTable, corrupt_events
from moe_retriever.data.selection import Labels as Labels
from moe_retriever.data.selection import Selection, select
from moe_retriever.data.tables import (
    FeatureTable,
    GenotypeTable,
    ModalitySpec,
    PixelTable,
    Rows,
    StoredTable,
    VectorTable,
    sequence_table,
)
from moe_retriever.metrics import convention_of, kinds_of
from mrpipe import keyed
from mrpipe.errors import UsageError
from mrpipe.experiment.missingness import AT_LOAD, Missingness, corrupt
from mrpipe.schema import Modality
from mrpipe.store import masks
from mrpipe.store.reader import Arrays, Store
from mrpipe.store.splits import PARTS
from mrpipe.transforms.events import EventTransform
from mrpipe.transforms.features import FeatureTransform
from mrpipe.transforms.fit import AsStored, PixelTransform, Transforms, fit
from mrpipe.transforms.genotypes import GenotypeTransform
from mrpipe.transforms.options import TransformOptions


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a method maps to what: shapes of the transformed modalities, and the classes or the scale of the target.

    Attributes:
        classes: empty for a regression.
        center, scale: mean and standard deviation of a regression's target over the labelled training samples.
        convention: kind of the additional metrics of a sentiment score, see `moe_retriever.metrics.convention_of`.
    """

    modalities: tuple[ModalitySpec, ...]
    classes: tuple[str, ...]
    center: float = 0.0
    scale: float = 1.0
    convention: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.modalities)

    @property
    def regression(self) -> bool:
        return not self.classes

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the task, which determine its metrics."""
        return kinds_of(len(self.classes), self.convention)

    @property
    def n_outputs(self) -> int:
        """Size of a method's output: C, or 1 for a regression."""
        return len(self.classes) or 1

    def scored(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Outputs (n, C) as class probabilities (n, C), or (n, 1) as values of the target in its own unit (n,)."""
        if self.regression:
            return self.center + self.scale * outputs[:, 0].astype(np.float64)
        return torch.from_numpy(outputs).double().softmax(dim=1).numpy()


@dataclass(frozen=True)
class Batch:
    """Samples of one step.

    Attributes:
        data: the data of the samples.
        index: (B,) indices of the samples in `data`.
        observed: (B, M) modalities that the method may use.
        hidden: (B, M) modalities that are observed but hidden in this step (random modality dropping).
        label: (B,) class, −1 if unknown; for a regression, float32 target in units of `DataSpec.scale` from its center.
        stream: name of the step's random draws, e.g. "epoch 3" or "evaluation"; a sample's draws depend on it, the seed
            and the sample's id, but not on the rest of the batch.
    """

    data: "Data"
    index: Rows
    observed: NDArray[np.bool_]
    hidden: NDArray[np.bool_]
    label: Tensor
    stream: str

    def __len__(self) -> int:
        return len(self.index)

    @property
    def keys(self) -> NDArray[np.uint64]:
        return self.data.keys[self.index]

    def table_rows(self, m: int) -> tuple[Rows, Rows]:
        """Positions in the batch (n,) of samples with modality m, and their rows in its table (n,)."""
        places = np.flatnonzero(self.observed[:, m])
        return places, self.data.row[self.index[places], m]


@dataclass(kw_only=True)
class Data:
    """All samples of a store that have at least one of the chosen modalities.

    Attributes:
        spec: shapes and classes.
        sample_id, subject_id: (N,) strings.
        keys: (N,) uint64, keys of the samples' random draws.
        observed: (N, M).
        row: (N, M) row in the modality's table, −1 if not observed.
        label: (N,) class, −1 if unknown; for a regression, float64 target in its own unit, NaN if unknown.
        part: (N,) 0 train, 1 val, 2 test, −1 if not in the split scheme.
        tables: one per modality.
        n_without: number of samples removed because they have none of the chosen modalities, by split.
        fitted: the applied transforms.
        n_cut: number of validation samples cut from the training split, because the scheme has none.
    """

    spec: DataSpec
    sample_id: NDArray[np.str_]
    subject_id: NDArray[np.str_]
    keys: NDArray[np.uint64]
    observed: NDArray[np.bool_]
    row: Rows
    label: Labels
    part: NDArray[np.int8]
    tables: list[FeatureTable]
    n_without: dict[str, int]
    fitted: Transforms
    device: torch.device
    n_cut: int = 0

    def __len__(self) -> int:
        return len(self.sample_id)

    def rows(self, part: str) -> Rows:
        """Labelled samples of a split, in order of sample_id."""
        return np.flatnonzero((self.part == PARTS.index(part)) & self.known)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) whether the label is known."""
        return ~np.isnan(self.label) if self.spec.regression else self.label >= 0

    def class_weight(self, rows: Rows, kind: str) -> Tensor | None:
        """(C,) float32 class weights of the cross-entropy for labelled `rows`; None if all samples have equal weight.

        A regression has none.

        "balanced": n / (number of classes that occur · samples of the class), 0 for classes that do not occur.
        """
        if kind == "none" or self.spec.regression:
            return None
        counts = np.bincount(self.label[rows], minlength=self.spec.n_outputs)
        weight = np.where(counts > 0, len(rows) / (np.maximum(counts, 1) * max((counts > 0).sum(), 1)), 0.0)
        return torch.from_numpy(weight).float().to(self.device)

    def constant(self, rows: Rows) -> Tensor:
        """(C,) float32 outputs of the best constant prediction for labelled `rows`.

        They are the logarithms of the class frequencies, or (1,) the mean of the target, which is 0 in training.
        """
        if self.spec.regression:
            return torch.full((1,), (self.label[rows].mean() - self.spec.center) / self.spec.scale, device=self.device)
        counts = np.bincount(self.label[rows], minlength=self.spec.n_outputs)
        # Classes that do not occur get a finite logit.
        return torch.from_numpy(counts / max(counts.sum(), 1)).clamp_min(1e-9).log().float().to(self.device)

    def batch(self, index: Rows, stream: str, *, hide: float = 0.0, seed: int = 0) -> Batch:
        """The samples `index`; observed modalities are hidden at the rate `hide`, but at least one is kept."""
        observed = self.observed[index]
        hidden = np.zeros_like(observed)
        if hide > 0:
            u = keyed.uniform(self.keys[index], seed, f"hide {stream}", observed.shape[1])
            hidden = observed & (u < hide)
            # The observed modality with the largest random number is kept.
            spared = np.where(observed, u, -1.0).argmax(axis=1)
            hidden[np.arange(len(index)), spared] = False
        label = torch.from_numpy(self.label[index]).to(self.device)
        if self.spec.regression:
            label = ((label - self.spec.center) / self.spec.scale).float()
        return Batch(self, index, observed & ~hidden, hidden, label, stream)

    def drawn(self, rows: Rows, n: int, seed: int, purpose: str) -> Rows:
        """At most `n` of the rows, drawn by the sample keys, in increasing order."""
        return np.sort(rows[np.argsort(keyed.bits(self.keys[rows], seed, purpose)[:, 0], kind="stable")[:n]])

    def combination(self, observed: NDArray[np.bool_]) -> list[str]:
        """Names of modality combinations, joined by +."""
        bits = {name: i for i, name in enumerate(self.spec.names)}
        codes = masks.codes(observed)
        names = {c: masks.combination_name(masks.to_names(c, bits)) for c in np.unique(codes).tolist()}
        return [names[c] for c in codes.tolist()]


def _table(
    arrays: Arrays, m: Modality, fitted: Transforms, settings: Missingness | None, device: torch.device
) -> FeatureTable:
    """The table of rows of one modality, transformed."""
    # Noise and dropped steps are applied after the transform; the other mechanisms are part of the masks.
    settings = settings or Missingness(p=0.0)
    transform = fitted.fitted[m.name]
    if isinstance(transform, AsStored):
        return _stored_table(arrays, m, transform, settings, device)
    if isinstance(transform, GenotypeTransform):
        return GenotypeTable(arrays.x, transform, device)
    if isinstance(transform, PixelTransform):
        mean, sd = transform.mean, transform.sd
        if settings.mechanism in AT_LOAD:
            arrays = corrupt(fitted.apply(m.name, arrays), settings)
            mean, sd = np.zeros_like(mean), np.ones_like(sd)
        return PixelTable(arrays.x, mean, sd, device, per_channel=m.kind == "image")
    raw, clean = arrays, fitted.apply(m.name, arrays)
    if isinstance(transform, EventTransform):
        return EventTable(corrupt_events(clean, settings), transform.n_items, device)
    arrays = corrupt(clean, settings)
    if m.kind == "sequence":
        return sequence_table(arrays, device)
    unknown = transform.unknown(raw) if isinstance(transform, FeatureTransform) else None
    return VectorTable(arrays.x, device, unknown)


def _stored_table(
    arrays: Arrays, m: Modality, transform: AsStored, settings: Missingness, device: torch.device
) -> FeatureTable:
    if settings.mechanism in AT_LOAD:
        raise UsageError(f"a mask of {settings.mechanism} changes transformed values, so it requires a transform")
    if transform.n_items:
        return EventTable(arrays, transform.n_items, device)
    if m.kind == "sequence":
        return sequence_table(arrays, device, elapsed=False)
    if m.encoding == "packed2":
        return GenotypeTable.as_stored(arrays.x, m.size, device)
    return StoredTable(arrays.x, device)


def spec_of(selection: Selection, fitted: Transforms, convention: str = "") -> DataSpec:
    """Shapes of the transformed modalities, and the target."""
    specs = []
    for m in selection.modalities:
        transform, kind, shape = fitted.fitted[m.name], str(m.kind), tuple(fitted.shapes[m.name])
        if isinstance(transform, EventTransform) or (isinstance(transform, AsStored) and transform.n_items):
            kind, shape = "events", (transform.n_items,)
        elif m.irregular and not isinstance(transform, AsStored):
            shape = (shape[0] + 1,)  # the column of `with_elapsed`
        specs.append(ModalitySpec(name=m.name, kind=kind, shape=shape))
    return DataSpec(
        modalities=tuple(specs),
        classes=selection.classes,
        center=selection.center,
        scale=selection.scale,
        convention=convention,
    )


def assemble(
    selection: Selection, spec: DataSpec, fitted: Transforms, read: Callable[[str, Rows], Arrays], device: torch.device
) -> Data:
    """The tensors of selected samples; `read` returns rows of a modality's table."""
    row = np.full(selection.observed.shape, -1, dtype=np.int64)
    tables = []
    for column, m in enumerate(selection.modalities):
        seen = selection.observed[:, column]
        row[seen, column] = np.arange(seen.sum())
        tables.append(_table(read(m.name, selection.rows(column)), m, fitted, selection.settings, device))
    return Data(
        spec=spec,
        sample_id=selection.sample_id,
        subject_id=selection.subject_id,
        keys=keyed.id_keys(selection.sample_id),
        observed=selection.observed,
        row=row,
        label=selection.label,
        part=selection.part,
        tables=tables,
        n_without=selection.n_without,
        fitted=fitted,
        device=device,
        n_cut=len(selection.cut),
    )


def fitted_for(
    store: Store,
    selection: Selection,
    scheme: str | None,
    transform: TransformOptions | None,
    fitted: Transforms | None,
) -> Transforms:
    """Transforms for the selected samples: `fitted`, or fitted on the training samples.

    Raises:
        DataError: `fitted` are of a store with other features.
    """
    if fitted is None:
        return fit(store, scheme, [m.name for m in selection.modalities], transform, without=selection.cut)
    if fitted.store_id != store.store_id:
        fitted.require_features(store)
    return fitted


def load(
    store: Store,
    *,
    task: str | None = None,
    scheme: str | None = None,
    modalities: Sequence[str] | None = None,
    mask_file: Path | None = None,
    transform: TransformOptions | None = None,
    fitted: Transforms | None = None,
    trained: DataSpec | None = None,
    part: str | None = None,
    device: torch.device | str = "cpu",
) -> Data:
    """Read a store into tensors; without labelled validation samples, some training samples become validation samples.

    Args:
        task: default: the first of the store.
        scheme: split scheme; default: that of the store.
        modalities: default: all.
        mask_file: simulated missingness (`mrpipe mask`), combined with the store's masks.
        transform: options of transforms that are fitted here.
        fitted: transforms of the training store; default: fitted on the training samples.
        trained: specification of a trained method, to predict a store that may lack its labels and split.
        part: only the labelled samples of this split; default: all samples.

    Raises:
        UsageError: unknown names.
        DataError: the mask file belongs to another store or lacks samples.
    """
    whole = select(store, task=task, scheme=scheme, modalities=modalities, mask_file=mask_file, trained=trained)
    fitted = fitted_for(store, whole, scheme, transform, fitted)

    def read(name: str, rows: Rows) -> Arrays:
        arrays = store.arrays(name)
        return arrays if np.array_equal(rows, np.arange(len(arrays))) else arrays.take(rows)

    spec = spec_of(whole, fitted, convention_of(store.manifest.dataset, task or store.task().name))
    return assemble(whole.of_part(part), spec, fitted, read, torch.device(device))
