"""Which samples of a store are used: modality masks, labels and split, without the values of the modalities.

A `Selection` holds numpy arrays only, because polars cannot be used in the forked workers of a DataLoader.

Legend: N samples, M modalities (in the store's bit order).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_retriever.data.tables import Rows
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.experiment.missingness import Missingness, read_masks
from mrpipe.schema import Modality
from mrpipe.store import masks
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS, grouped_stratified

if TYPE_CHECKING:
    from moe_retriever.data.load import DataSpec

Labels = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Samples that have at least one of the chosen modalities, in order of sample_id.

    Attributes:
        modalities: the chosen ones.
        sample_id, subject_id: (N,) strings.
        observed: (N, M).
        row: (N, M) row in the modality's table of the store, −1 if the store has none.
        label: (N,) class, −1 if unknown; for a regression, float64 target in its own unit, NaN if unknown.
        part: (N,) 0 train, 1 val, 2 test, −1 if not in the split scheme.
        classes, center, scale: see `DataSpec`.
        settings: the simulated missingness, if any.
        cut: samples that were moved from the training to the validation split, because the scheme has none there.
        n_without: number of samples removed because they have none of the chosen modalities, by split.
    """

    modalities: tuple[Modality, ...]
    sample_id: NDArray[np.str_]
    subject_id: NDArray[np.str_]
    observed: NDArray[np.bool_]
    row: Rows
    label: Labels
    part: NDArray[np.int8]
    classes: tuple[str, ...]
    center: float
    scale: float
    settings: Missingness | None
    cut: tuple[str, ...]
    n_without: dict[str, int]

    def __len__(self) -> int:
        return len(self.sample_id)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) whether the label is known."""
        return self.label >= 0 if self.classes else ~np.isnan(self.label)

    def rows(self, m: int) -> Rows:
        """Rows in the table of modality m of the samples that have it."""
        return self.row[self.observed[:, m], m]

    def take(self, index: Rows) -> Self:
        """The samples `index`, in increasing order."""
        return replace(
            self,
            sample_id=self.sample_id[index],
            subject_id=self.subject_id[index],
            observed=self.observed[index],
            row=self.row[index],
            label=self.label[index],
            part=self.part[index],
        )

    def of_part(self, part: str | None) -> Self:
        """The labelled samples of a split; None: all samples.

        Raises:
            UsageError: no such split, or no samples.
        """
        if part is None:
            return self
        if part not in PARTS:
            raise UsageError(f"no part {part!r}; a split has {', '.join(PARTS)}")
        index = np.flatnonzero((self.part == PARTS.index(part)) & self.known)
        if not len(index):
            raise UsageError(f"the split has no labelled {part} samples with one of the modalities")
        return self.take(index)


def _choose(store: Store, names: Sequence[str] | None) -> tuple[Modality, ...]:
    if names is None:
        return store.modalities
    unknown = sorted(set(names) - set(store.bits))
    if unknown:
        raise UsageError(f"no modality {unknown[0]!r}; the store has {', '.join(store.bits)}")
    return tuple(m for m in store.modalities if m.name in names)


def select(
    store: Store,
    *,
    task: str | None,
    scheme: str | None,
    modalities: Sequence[str] | None,
    mask_file: Path | None,
    trained: "DataSpec | None" = None,
) -> Selection:
    """Select samples; without labelled validation samples, some training samples become validation samples.

    The arguments and errors are those of `moe_retriever.data.load.load`.
    """
    chosen = _choose(store, modalities)
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
        frame, settings, store_id = read_masks(mask_file)
        visible = visible & _aligned(frame, samples, store_id, store, mask_file)
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
    value, center, scale = samples["value"], 0.0, 1.0
    label_of: Labels = value.cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int64)
    if not names:
        label_of = value.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known_train = label_of[(part == PARTS.index("train")) & ~np.isnan(label_of)]
        if trained is not None:
            center, scale = trained.center, trained.scale
        elif len(known_train):
            center, scale = float(known_train.mean()), float(known_train.std()) or 1.0
    return Selection(
        modalities=chosen,
        sample_id=samples["sample_id"].to_numpy().astype(np.str_),
        subject_id=samples["subject_id"].to_numpy().astype(np.str_),
        observed=observed,
        row=samples.select(pl.col(f"row_{m.name}").fill_null(-1).cast(pl.Int64) for m in chosen).to_numpy(),
        label=label_of,
        part=part.astype(np.int8),
        classes=names,
        center=center,
        scale=scale,
        settings=settings,
        cut=tuple(cut),
        n_without=without,
    )


def _validation_of(train: pl.DataFrame, *, stratified: bool) -> list[str]:
    """Ids of 15% of the labelled training samples: whole subjects, by class if any, the same for all methods."""
    stratum = "value" if stratified else None
    split = grouped_stratified(train, fractions=(0.85, 0.15, 0.0), seed=0, stratum=stratum)
    return split.filter(split="val")["sample_id"].to_list()


def _labels(store: Store, task: str | None, trained: "DataSpec | None") -> tuple[pl.LazyFrame, tuple[str, ...]]:
    """`sample_id, value` of a task, and its classes; no labels if a store to predict does not have the task."""
    if trained is not None and not any(t.name == task and t.classes == trained.classes for t in store.tasks):
        return pl.LazyFrame(schema={"sample_id": pl.String, "value": pl.Float64}), trained.classes
    declared = store.task(task)
    return store.labels(declared.name).select("sample_id", "value"), declared.classes


def _split(store: Store, scheme: str | None, *, optional: bool) -> pl.LazyFrame:
    if optional and scheme not in store.schemes:
        return pl.LazyFrame(schema={"sample_id": pl.String, "split": pl.String})
    return store.split(scheme).select("sample_id", "split")


def _aligned(frame: pl.DataFrame, samples: pl.DataFrame, store_id: str, store: Store, path: Path) -> NDArray[np.uint16]:
    """Masks of a mask file in the order of `samples`."""
    fix = "Create the masks for this store with `mrpipe mask`."
    if store_id != store.store_id:
        raise DataError(Fault(file=path.name, expected=f"masks of store {store.store_id}", found=store_id, fix=fix))
    joined = samples.select("sample_id").join(frame, on="sample_id", how="left", maintain_order="left")
    column = joined["modality_mask"]
    if column.null_count():
        found = f"{column.null_count()} samples without a mask"
        raise DataError(Fault(file=path.name, column="modality_mask", expected="every sample", found=found, fix=fix))
    return column.to_numpy()
