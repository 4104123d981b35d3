"""Fitted transform of vectors and sequences: one step per kind of feature, applied to the columns of that kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mrpipe.errors import UsageError
from mrpipe.schema import Modality
from mrpipe.store.reader import Arrays
from mrpipe.transforms.encoding import Encoded, decode_array, encode_array
from mrpipe.transforms.options import TransformOptions


@dataclass(frozen=True)
class Numeric(Encoded):
    """(x − center) / spread per column, with unknown x replaced by `fill`."""

    kind = "numeric"
    fill: NDArray[np.float32]
    center: NDArray[np.float32]
    spread: NDArray[np.float32]
    clip: float

    @classmethod
    def fit(cls, x: NDArray[np.float32], options: TransformOptions) -> Self:
        known = ~np.isnan(x)
        n = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, x, 0.0).astype(np.float64).sum(axis=0) / n
        deviation = np.where(known, x - mean, 0.0)
        sd = np.sqrt((deviation**2).sum(axis=0) / n)
        if options.impute == "median":
            fill = np.zeros(x.shape[1])
            some = known.any(axis=0)
            fill[some] = np.nanmedian(x[:, some], axis=0)
        else:
            fill = mean
        if options.scale == "standard":
            center, spread = mean, sd
        elif options.scale == "minmax":
            low = np.where(known, x, np.inf).min(axis=0, initial=np.inf)
            high = np.where(known, x, -np.inf).max(axis=0, initial=-np.inf)
            low, high = np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0)
            center, spread = (low + high) / 2, (high - low) / 2
        else:
            center, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
        spread = np.where(spread > 1e-12 * np.maximum(1.0, np.abs(center)), spread, 1.0)
        clip = options.clip if options.scale == "standard" else 0.0
        return cls(fill.astype(np.float32), center.astype(np.float32), spread.astype(np.float32), clip)

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = (np.where(np.isnan(x), self.fill, x) - self.center) / self.spread
        return x if self.clip <= 0 else np.clip(x, -self.clip, self.clip)

    @property
    def width(self) -> int:
        return len(self.fill)


@dataclass(frozen=True)
class OneHot(Encoded):
    """Integer codes of declared levels to indicator columns; unknown codes become the training mode."""

    kind = "one_hot"
    n_levels: tuple[int, ...]
    mode: tuple[int, ...]

    @classmethod
    def fit(cls, x: NDArray[np.float32], n_levels: Sequence[int]) -> Self:
        modes = []
        for column, n in enumerate(n_levels):
            codes = x[:, column][~np.isnan(x[:, column])].astype(np.int64)
            modes.append(int(np.bincount(codes, minlength=n).argmax()))
        return cls(tuple(n_levels), tuple(modes))

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        codes = np.where(np.isnan(x), np.array(self.mode, dtype=np.float32), x).astype(np.int64)
        blocks = [codes[:, [j]] == np.arange(n)[None, :] for j, n in enumerate(self.n_levels)]
        return np.asarray(np.concatenate(blocks, axis=1).astype(np.float32))

    @property
    def width(self) -> int:
        return sum(self.n_levels)


@dataclass(frozen=True)
class TfidfSvd(Encoded):
    """Sublinear TF-IDF (1 + ln tf, smooth idf, L2-normalised rows), projected on SVD components, unit variance."""

    kind = "tfidf_svd"
    idf: NDArray[np.float32]
    components: NDArray[np.float32]
    spread: NDArray[np.float32]

    @staticmethod
    def _weigh(x: NDArray[np.float32], idf: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.empty(x.shape, dtype=np.float32)
        for start in range(0, len(x), 1024):  # bounds the memory
            counts = np.nan_to_num(x[start : start + 1024])
            weighted = np.where(counts > 0, 1.0 + np.log(np.maximum(counts, 1.0)), 0.0) * idf
            norm = np.linalg.norm(weighted, axis=1, keepdims=True)
            np.divide(weighted, np.maximum(norm, 1e-12), out=out[start : start + 1024])
        return out

    @classmethod
    def fit(cls, x: NDArray[np.float32], options: TransformOptions) -> Self:
        from sklearn.utils.extmath import randomized_svd  # half a second, for counts only

        document_frequency = (np.nan_to_num(x) > 0).sum(axis=0)
        idf = (np.log((1 + len(x)) / (1 + document_frequency)) + 1).astype(np.float32)
        weighted = cls._weigh(x, idf)
        n_components = min(options.svd_dim, *weighted.shape)
        # One thread, so that the components are bit-identical on any number of cores.
        with threadpool_limits(1):
            _, _, components = randomized_svd(weighted, n_components=n_components, random_state=0)
            spread = (weighted @ components.T).std(axis=0)
        return cls(idf, components.astype(np.float32), np.where(spread > 1e-8, spread, 1.0).astype(np.float32))

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        with threadpool_limits(1):
            return np.asarray((self._weigh(x, self.idf) @ self.components.T) / self.spread)

    @property
    def width(self) -> int:
        return len(self.components)


Step = Numeric | OneHot | TfidfSvd  # a fitted step for a group of columns of a feature matrix
_STEPS: dict[str, Any] = {c.kind: c for c in (Numeric, OneHot, TfidfSvd)}


@dataclass(frozen=True)
class FeatureTransform:
    """Vectors and sequences: steps over groups of columns; outputs are concatenated in the order of the groups."""

    groups: tuple[tuple[NDArray[np.int64], Step], ...]

    @classmethod
    def fit(cls, arrays: Arrays, dictionary: pl.DataFrame, options: TransformOptions) -> Self:
        x = arrays.x.reshape(-1, arrays.modality.size).astype(np.float32, copy=False)
        kinds = dictionary["kind"].to_list()
        if len(kinds) != x.shape[1]:
            raise UsageError(f"{arrays.modality.name}: {len(kinds)} dictionary rows for {x.shape[1]} features")
        groups: list[tuple[NDArray[np.int64], Step]] = []
        columns = {k: np.flatnonzero([kind == k for kind in kinds]) for k in ("categorical", "count")}
        numeric = np.flatnonzero([kind not in columns for kind in kinds])
        if len(numeric):
            groups.append((numeric, Numeric.fit(x[:, numeric], options)))
        if len(c := columns["categorical"]):
            groups.append((c, OneHot.fit(x[:, c], [len(dictionary["levels"][int(j)]) for j in c])))
        if len(c := columns["count"]):
            groups.append((c, TfidfSvd.fit(x[:, c], options)))
        return cls(tuple(groups))

    def apply(self, arrays: Arrays) -> Arrays:
        x = arrays.x.reshape(-1, arrays.modality.size)
        out = np.empty((len(x), sum(step.width for _, step in self.groups)), dtype=np.float32)
        # Rows in blocks, because the steps make several copies; the products of `TfidfSvd` depend on the block.
        n_rows = max(1, len(x)) if any(isinstance(step, TfidfSvd) for _, step in self.groups) else 2**16
        for start in range(0, len(x), n_rows):
            block = x[start : start + n_rows].astype(np.float32, copy=False)
            parts = [step.apply(block[:, columns]) for columns, step in self.groups]
            out[start : start + len(block)] = np.concatenate(parts, axis=1)
        return replace(arrays, x=out)

    def unknown(self, arrays: Arrays) -> NDArray[np.bool_] | None:
        """Boolean mask (rows, width) of transformed values whose input is unknown; None if all inputs are known.

        For models that handle missing values themselves. Counts are always known, because NaN means zero.
        """
        unknown = np.isnan(arrays.x.reshape(-1, arrays.modality.size))
        if not unknown.any():
            return None
        blocks: list[NDArray[np.bool_]] = []
        for columns, step in self.groups:
            if isinstance(step, Numeric):
                blocks.append(unknown[:, columns])
            elif isinstance(step, OneHot):
                blocks.append(np.repeat(unknown[:, columns], step.n_levels, axis=1))
            else:
                blocks.append(np.zeros((len(unknown), step.width), dtype=np.bool_))
        return np.concatenate(blocks, axis=1)

    def shape(self, modality: Modality) -> tuple[int, ...]:
        return (sum(step.width for _, step in self.groups),)

    def to_dict(self) -> dict[str, Any]:
        groups = [{"columns": encode_array(columns), "step": step.to_dict()} for columns, step in self.groups]
        return {"kind": "features", "groups": groups}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        groups = ((decode_array(g["columns"]), g["step"]) for g in value["groups"])
        return cls(tuple((columns, _STEPS[step["kind"]].from_dict(step)) for columns, step in groups))
