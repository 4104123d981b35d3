"""Loading a store into tensors; all samples are loaded once, and batches are selected by sample index.

Legend: N samples, B samples of a batch, M modalities (in the store's bit order), C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_retriever.data.event_table import EventTable, corrupt_events
from moe_retriever.data.tables import (
    FeatureTable,
    GenotypeTable,
    ModalitySpec,
    PixelTable,
    Rows,
    VectorTable,
    sequence_table,
)
from moe_retriever.device import to_device
from moe_retriever.metrics import convention_of, kinds_of
from mrpipe import keyed
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.experiment.missingness import AT_LOAD, Missingness, corrupt, masked_data, read_masks
from mrpipe.genetics.packing import copies
from mrpipe.schema import Modality
from mrpipe.store import masks
from mrpipe.store.reader import Arrays, Store
from mrpipe.store.splits import PARTS, grouped_stratified
from mrpipe.transforms.events import EventTransform
from mrpipe.transforms.features import FeatureTransform
from mrpipe.transforms.fit import PixelTransform, Transforms, fit
from mrpipe.transforms.genotypes import GenotypeTransform
from mrpipe.transforms.options import TransformOptions

_DRAW = "Create the masks for this store with `mrpipe mask`."
Labels = NDArray[np.int64] | NDArray[np.float64]


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
        settings: the simulated missingness.
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
    settings: Missingness | None = None

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, index: Rows) -> "Data":
        """The samples `index`, in increasing order, with the same tables."""
        per_sample = ("sample_id", "subject_id", "keys", "observed", "row", "label", "part")
        return replace(self, **{name: getattr(self, name)[index] for name in per_sample})

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
        label = to_device(self.label[index], self.device)
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
) -> tuple[FeatureTable, tuple[int, ...]]:
    """The table of rows of one modality, and the shape of one entry."""
    # Noise and dropped steps are applied after the transform; the other mechanisms are part of the masks.
    settings = settings or Missingness(p=0.0)
    if not fitted.fitted:
        if settings.mechanism in AT_LOAD:
            raise UsageError(f"a mask of {settings.mechanism} changes transformed values, so it requires a transform")
        packed = m.encoding == "packed2"
        arrays = replace(arrays, x=copies(arrays.x, m.size) if packed else arrays.x.astype(np.float32))
        if m.name in fitted.shapes:
            return EventTable(arrays, fitted.shapes[m.name][0], device), fitted.shapes[m.name]
        sequence = m.kind == "sequence"
        return sequence_table(arrays, device, elapsed=False) if sequence else VectorTable(arrays.x, device), m.shape
    transform = fitted.of(m.name)
    if isinstance(transform, GenotypeTransform):
        return GenotypeTable(arrays.x, transform, device), fitted.shapes[m.name]
    if isinstance(transform, PixelTransform):
        mean, sd = transform.mean, transform.sd
        if settings.mechanism in AT_LOAD:
            arrays = corrupt(fitted.apply(m.name, arrays), settings)
            mean, sd = np.zeros_like(mean), np.ones_like(sd)
        return PixelTable(arrays.x, mean, sd, device, per_channel=m.kind == "image"), m.shape
    raw, clean = arrays, fitted.apply(m.name, arrays)
    if isinstance(transform, EventTransform):
        return EventTable(corrupt_events(clean, settings), transform.n_items, device), (transform.n_items,)
    arrays = corrupt(clean, settings)
    if m.kind == "sequence":
        table = sequence_table(arrays, device)
        return table, (table.x.shape[1],)
    unknown = transform.unknown(raw) if isinstance(transform, FeatureTransform) else None
    return VectorTable(arrays.x, device, unknown), fitted.shapes[m.name]


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
    device: torch.device | str = "cpu",
    tables: bool = True,
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
        tables: False: select samples and fit, and leave the tables to `with_tables`.

    Raises:
        UsageError: unknown names.
        DataError: the mask file belongs to another store or lacks samples.
    """
    chosen = store.choose(modalities)
    label, names = _labels(store, task, trained)
    samples = (
        store.samples()
        .select("sample_id", "subject_id", "modality_mask", *(f"row_{m.name}" for m in chosen))
        .join(label, on="sample_id", how="left")
        .join(_split(store, scheme, optional=trained is not None), on="sample_id", how="left")
        .sort("sample_id")
        .collect()
    )
    visible = samples["modality_mask"].to_numpy()
    settings = None
    if mask_file is not None:
        frame, settings, drawn_from = read_masks(mask_file)
        if drawn_from not in (store.store_id, masked_data(store, settings)):
            expected, found = f"masks of store {store.store_id}", f"those of other data ({drawn_from})"
            raise DataError(Fault(file=mask_file.name, expected=expected, found=found, fix=_DRAW))
        visible = visible & _aligned(frame, samples, mask_file)
    observed = masks.unpack(visible, [m.bit for m in chosen])
    part = np.select([samples["split"].fill_null("").to_numpy() == p for p in PARTS], range(len(PARTS)), -1)
    keep: NDArray[np.bool_] = np.asarray(observed.any(axis=1))
    without = {p: int((~keep & (part == i)).sum()) for i, p in enumerate(PARTS)} | {
        "none": int((~keep & (part < 0)).sum())
    }
    samples, observed, part = samples.filter(pl.Series(keep)), observed[keep], part[keep]
    cut: list[str] = []
    known = samples["value"].is_not_null()
    if trained is None and not (known.to_numpy() & (part == PARTS.index("val"))).any():
        cut = _validation_of(samples.filter(known & pl.Series(part == PARTS.index("train"))), stratified=bool(names))
        part = np.where(samples["sample_id"].is_in(cut), PARTS.index("val"), part)
    if fitted is not None and fitted.store_id != store.store_id:
        fitted.require_features(store)
    fitted = fitted or fit(store, scheme, [m.name for m in chosen], transform, without=cut)
    value, center, scale = samples["value"], 0.0, 1.0
    label_of: Labels = value.cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int64)
    if not names:
        label_of = value.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known_train = label_of[(part == PARTS.index("train")) & ~np.isnan(label_of)]
        if trained is not None:
            center, scale = trained.center, trained.scale
        elif len(known_train):
            center, scale = float(known_train.mean()), float(known_train.std()) or 1.0
    convention = convention_of(store.manifest.dataset, task or store.task().name)
    declared = tuple(ModalitySpec(name=m.name, kind=m.kind, shape=m.shape) for m in chosen)
    data = Data(
        spec=DataSpec(modalities=declared, classes=names, center=center, scale=scale, convention=convention),
        sample_id=samples["sample_id"].to_numpy().astype(np.str_),
        subject_id=samples["subject_id"].to_numpy().astype(np.str_),
        keys=keyed.id_keys(samples["sample_id"]),
        observed=observed,
        row=samples.select(pl.col(f"row_{m.name}").fill_null(-1).cast(pl.Int64) for m in chosen).to_numpy(),
        label=label_of,
        part=part.astype(np.int8),
        tables=[],
        n_without=without,
        fitted=fitted,
        device=torch.device(device),
        n_cut=len(cut),
        settings=settings,
    )
    return with_tables(data, store) if tables else data


def with_tables(data: Data, store: Store, read: Callable[[str, Rows], Arrays] | None = None) -> Data:
    """Data whose `row` is that of the store's tables, with tables of the observed rows, which `read` returns."""
    read = read or (lambda name, rows: store.arrays(name).take(rows))
    row, tables, specs = np.full_like(data.row, -1), [], []
    for column, m in enumerate(store.choose(data.spec.names)):
        seen = data.observed[:, column]
        row[seen, column] = np.arange(seen.sum())
        table, shape = _table(read(m.name, data.row[seen, column]), m, data.fitted, data.settings, data.device)
        tables.append(table)
        kind = "events" if isinstance(table, EventTable) else m.kind
        specs.append(ModalitySpec(name=m.name, kind=kind, shape=tuple(shape)))
    return replace(data, spec=replace(data.spec, modalities=tuple(specs)), row=row, tables=tables)


def _validation_of(train: pl.DataFrame, *, stratified: bool) -> list[str]:
    """Ids of 15% of the labelled training samples: whole subjects, by class if any, the same for all methods."""
    stratum = "value" if stratified else None
    split = grouped_stratified(train, fractions=(0.85, 0.15, 0.0), seed=0, stratum=stratum)
    return split.filter(split="val")["sample_id"].to_list()


def _labels(store: Store, task: str | None, trained: DataSpec | None) -> tuple[pl.LazyFrame, tuple[str, ...]]:
    """`sample_id, value` of a task, and its classes; no labels if a store to predict does not have the task."""
    if trained is not None and not any(t.name == task and t.classes == trained.classes for t in store.tasks):
        return pl.LazyFrame(schema={"sample_id": pl.String, "value": pl.Float64}), trained.classes
    declared = store.task(task)
    return store.labels(declared.name).select("sample_id", "value"), declared.classes


def _split(store: Store, scheme: str | None, *, optional: bool) -> pl.LazyFrame:
    if optional and scheme not in store.schemes:
        return pl.LazyFrame(schema={"sample_id": pl.String, "split": pl.String})
    return store.split(scheme).select("sample_id", "split")


def _aligned(frame: pl.DataFrame, samples: pl.DataFrame, path: Path) -> NDArray[np.uint16]:
    """Masks of a mask file in the order of `samples`."""
    joined = samples.select("sample_id").join(frame, on="sample_id", how="left", maintain_order="left")
    column = joined["modality_mask"]
    if column.null_count():
        found = f"{column.null_count()} samples without a mask"
        raise DataError(Fault(file=path.name, column="modality_mask", expected="every sample", found=found, fix=_DRAW))
    return column.to_numpy()
