"""Imputation, scaling and encoding: fitted on the training rows of one split, stored as JSON, applied to any rows.

The `kind` of a feature in the dictionary determines its transform. Numeric and embedding features are imputed with the
training mean (or median) and standardised (or scaled to [-1, 1]); categorical features are one-hot encoded, unknown
values as the mode; counts become TF-IDF reduced by a truncated SVD; pixels are standardised per channel.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.genetics.packing import LdOptions
from mrpipe.options import non_default_fields, parse_options
from mrpipe.schema import Modality
from mrpipe.store.reader import Arrays, Store
from mrpipe.transforms.encoding import Encoded
from mrpipe.transforms.events import EventTransform, SummaryTransform, event_transform
from mrpipe.transforms.features import FeatureTransform
from mrpipe.transforms.genotypes import GenotypeTransform
from mrpipe.transforms.options import TransformOptions

FORMAT = 1


@dataclass(frozen=True)
class PixelTransform(Encoded):
    """Images and volumes: (x − mean) / sd per channel, in raw intensity units; unknown values become 0.

    A caller that keeps integer pixels may apply `mean` and `sd`, (C,), itself, batch by batch, with the same result.
    """

    kind = "pixels"
    mean: NDArray[np.float32]
    sd: NDArray[np.float32]

    @classmethod
    def fit(cls, modality: Modality, blocks: Iterable[NDArray[Any]]) -> Self:
        """From blocks of rows: images may be larger than memory, and their float64 copies even more."""
        n_channels = modality.shape[0] if modality.kind == "image" else 1
        total, squares, n = np.zeros(n_channels), np.zeros(n_channels), np.zeros(n_channels)
        for rows in blocks:
            block = rows.reshape(-1, n_channels, modality.size // n_channels).astype(np.float64)
            total += np.nansum(block, axis=(0, 2))
            squares += np.nansum(block**2, axis=(0, 2))
            n += (~np.isnan(block)).sum(axis=(0, 2))
        mean = total / np.maximum(n, 1)
        sd = np.sqrt(np.maximum(squares / np.maximum(n, 1) - mean**2, 0.0))
        return cls(mean.astype(np.float32), np.where(sd > 1e-6, sd, 1.0).astype(np.float32))

    def apply(self, arrays: Arrays) -> Arrays:
        shape = (-1,) + (1,) * (len(arrays.modality.shape) - 1) if arrays.modality.kind == "image" else (1,)
        x = (arrays.x.astype(np.float32) - self.mean.reshape(shape)) / self.sd.reshape(shape)
        return replace(arrays, x=np.nan_to_num(x, copy=False))

    def shape(self, modality: Modality) -> tuple[int, ...]:
        return modality.shape


def _blocks(store: Store, name: str, rows: NDArray[np.int64], size: int = 64) -> Iterator[NDArray[Any]]:
    """Values of the given rows, in increasing order and blocks of `size`; one row group is in memory."""
    waiting: list[NDArray[Any]] = []
    for group, (start, stop) in enumerate(pairwise(store.row_group_starts(name).tolist())):
        x = np.concatenate([*waiting, store.row_group(name, group).x[rows[(rows >= start) & (rows < stop)] - start]])
        last = len(x) if stop > rows[-1] else len(x) // size * size
        yield from (x[i : min(i + size, last)] for i in range(0, last, size))
        waiting = [x[last:].copy()]


ModalityTransform = FeatureTransform | PixelTransform | GenotypeTransform | EventTransform | SummaryTransform
_ENCODED = (PixelTransform, GenotypeTransform, EventTransform, SummaryTransform)
_TRANSFORMS: dict[str, Any] = {"features": FeatureTransform, **{c.kind: c for c in _ENCODED}}


@dataclass(frozen=True)
class Transforms:
    """Fitted transforms of modalities of one store, fitted on one split.

    Attributes:
        store_id, scheme: store and split scheme on which they were fitted.
        fitted: modality → transform.
        shapes: modality → shape of one element after the transform (of one step for a sequence).
        options: how they were fitted.
        features: modality → `features_id`.
    """

    store_id: str
    scheme: str
    fitted: Mapping[str, ModalityTransform]
    shapes: Mapping[str, tuple[int, ...]]
    options: TransformOptions = field(default_factory=TransformOptions)
    features: Mapping[str, str] = field(default_factory=dict)

    def require_features(self, store: Store) -> None:
        """Raise a DataError unless the store has the same features, which transforms know by position only."""
        fix = "Declare the columns of a modality, and the levels of categories, in the order of the training store."
        dictionary, faults = store.dictionary, []
        for name, expected in self.features.items():
            if (found := features_id(dictionary, name)) != expected:
                file, wanted = str(store.path / "dictionary.parquet"), f"features {expected}"
                faults.append(Fault(file=file, column=name, expected=wanted, found=found, fix=fix))
        if faults:
            raise DataError(faults)

    @property
    def settings(self) -> dict[str, Any]:
        """`transforms`: the options that differ from their defaults; empty if none does."""
        changed = non_default_fields(self.options)
        return {"transforms": changed} if changed else {}

    def of(self, name: str) -> ModalityTransform:
        """The transform of a modality; a UsageError if none was fitted."""
        if name not in self.fitted:
            raise UsageError(f"no transform was fitted for {name!r}; fitted: {', '.join(self.fitted)}")
        return self.fitted[name]

    def apply(self, name: str, arrays: Arrays) -> Arrays:
        """Transform to float32 arrays without NaN, of shape `shapes[name]` per element."""
        return self.of(name).apply(arrays)

    def to_json(self) -> str:
        fitted = {n: {"shape": list(self.shapes[n]), "transform": t.to_dict()} for n, t in self.fitted.items()}
        value = {"format": FORMAT, "store_id": self.store_id, "scheme": self.scheme, "modalities": fitted}
        return json.dumps(value | {"features": dict(self.features), **self.settings}, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        value = json.loads(text)
        if value["format"] != FORMAT:
            raise UsageError(f"transforms have format {value['format']}; this version reads format {FORMAT}")
        entries = {n: (tuple(e["shape"]), e["transform"]) for n, e in value["modalities"].items()}
        fitted = {n: _TRANSFORMS[t["kind"]].from_dict(t) for n, (_, t) in entries.items()}
        shapes = {n: shape for n, (shape, _) in entries.items()}
        options = parse_options(TransformOptions, value.get("transforms", {}), context="transforms")
        return cls(value["store_id"], value["scheme"], fitted, shapes, options, value.get("features", {}))


def features_id(dictionary: pl.DataFrame, modality: str) -> str:
    """Identifier of names and levels of the features of a modality, in their order."""
    rows = dictionary.filter(modality=modality).sort("position").select("name", "levels").rows()
    return f"{len(rows)}-{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]}"


def fit(
    store: Store,
    scheme: str | None = None,
    modalities: Sequence[str] | None = None,
    options: TransformOptions | None = None,
    without: Sequence[str] = (),
) -> Transforms:
    """Fit the transforms of a store, using only the training rows of a split, except the sample ids `without`."""
    scheme = scheme or store.manifest.default_scheme
    options = options or TransformOptions()
    dictionary = store.dictionary
    fitted: dict[str, ModalityTransform] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for modality in store.choose(modalities):
        train_rows = store.rows(modality.name, scheme, "train", without)
        if len(train_rows) == 0:
            raise UsageError(f"{modality.name} has no rows in the training part of split {scheme!r}")
        if modality.kind in ("image", "volume"):
            blocks = _blocks(store, modality.name, train_rows)
            fitted[modality.name], shapes[modality.name] = PixelTransform.fit(modality, blocks), modality.shape
            continue
        train = store.arrays(modality.name).take(train_rows)
        rows = dictionary.filter(modality=modality.name).sort("position")
        if modality.encoding == "packed2":
            pruning = LdOptions(options.ld_window, options.ld_step, options.ld_r2)
            transform: ModalityTransform = GenotypeTransform.fit(train, rows, pruning)
        else:
            transform = (event_transform(rows) or FeatureTransform).fit(train, rows, options)
        fitted[modality.name] = transform
        shapes[modality.name] = transform.shape(modality)
    features = {name: features_id(dictionary, name) for name in fitted}
    return Transforms(store.store_id, scheme, fitted, shapes, options, features)


def as_stored(store: Store) -> Transforms:
    """No transforms: values are used as stored. `shapes` has the number of items of modalities that are events."""
    levels = store.dictionary.filter(position=0, kind="event").select("modality", pl.col("levels").list.len())
    return Transforms(store.store_id, store.manifest.default_scheme, {}, {name: (n,) for name, n in levels.rows()})
