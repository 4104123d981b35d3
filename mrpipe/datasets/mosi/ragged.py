"""Features of one modality before they are written: one vector per clip, or a sequence of steps per clip."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.features import dictionary_of, record_batch
from mrpipe.datasets.mosi.align import means
from mrpipe.schema import Features, Kind, Modality

BATCH_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class RaggedBlock:
    """The features of one modality.

    Attributes:
        sample_id: (n,) sample ids.
        values: (total steps, d) float32 for sequences, (n, d) float32 for vectors; NaN where missing.
        offsets: (n + 1,) int64, the steps of clip i are values[offsets[i]:offsets[i + 1]]; None for vectors.
        names: d feature names.
        file, columns: source file and source columns (one for all features, or one each) for the dictionary.
        kind: kind of the features in the dictionary: numeric, embedding or count.
        encoder: name of the encoder that computed the features, empty if none did.
    """

    sample_id: NDArray[np.str_]
    values: NDArray[np.float32]
    offsets: NDArray[np.int64] | None
    names: tuple[str, ...]
    file: str
    columns: tuple[str, ...]
    kind: str = "numeric"
    encoder: str = ""

    @classmethod
    def of(cls, clips: pl.DataFrame, values: NDArray[np.float32], n: NDArray[np.int64], **source: Any) -> Self:
        """Sequences of n steps of each of the clips, with the names and the source of the features."""
        ids, offsets = np.array(clips["sample_id"].to_list(), dtype=np.str_), np.concatenate([[0], np.cumsum(n)])
        return cls(sample_id=ids, values=values, offsets=offsets.astype(np.int64), **source)

    def __len__(self) -> int:
        return len(self.sample_id)

    def lengths(self) -> NDArray[np.int64]:
        """Number of steps per clip, (n,) int64; 1 for vectors."""
        return np.ones(len(self), dtype=np.int64) if self.offsets is None else np.diff(self.offsets)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Select the clips `rows`, in that order."""
        if self.offsets is None:
            return replace(self, sample_id=self.sample_id[rows], values=self.values[rows])
        steps, offsets = _gather(self.offsets[rows], self.lengths()[rows])
        return replace(self, sample_id=self.sample_id[rows], values=self.values[steps], offsets=offsets)

    def last_steps(self, limit: int) -> Self:
        """Keep at most the last `limit` steps of each clip, as the SDK does in its tensors; 0 keeps all."""
        if self.offsets is None or limit <= 0 or (self.lengths() <= limit).all():
            return self
        kept = np.minimum(self.lengths(), limit)
        steps, offsets = _gather(self.offsets[1:] - kept, kept)
        return replace(self, values=self.values[steps], offsets=offsets)

    def collapsed(self) -> Self:
        """Average the steps of each clip to one vector, ignoring NaN."""
        if self.offsets is None:
            return self
        target = np.repeat(np.arange(len(self)), self.lengths())
        return replace(self, values=means(self.values, target, np.arange(len(self.values)), len(self)), offsets=None)

    def observed(self) -> Self:
        """Drop clips without any observed value: an absent modality has no row."""
        known = ~np.isnan(self.values).all(axis=1)
        if self.offsets is None:
            return self.take(np.flatnonzero(known))
        total = np.concatenate([[0], np.cumsum(known)])
        return self.take(np.flatnonzero(total[self.offsets[1:]] > total[self.offsets[:-1]]))

    def features(self, name: str, bit: int, description: str, cohort: pl.DataFrame) -> Features:
        """Modality table and dictionary (counts are over steps) of the clips in `cohort`, sorted by sample id."""
        ids = cohort.sort("sample_id")["sample_id"].to_list()
        row_of = {s: i for i, s in enumerate(self.sample_id.tolist())}
        block = self.take(np.array([row_of[i] for i in ids if i in row_of], dtype=np.int64)).observed()
        kind: Kind = "vector" if self.offsets is None else "sequence"
        shape, encoder = (self.values.shape[1],), self.encoder
        modality = Modality(name=name, bit=bit, kind=kind, shape=shape, encoder=encoder, description=description)

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(block), BATCH_ROWS):
                part = block.take(np.arange(start, min(start + BATCH_ROWS, len(block))))
                lengths = None if part.offsets is None else part.lengths()
                yield record_batch(modality, part.sample_id.tolist(), part.values, lengths)

        row = "clip" if self.offsets is None else "step"
        columns = {
            "name": self.names,
            "unit": "count" if self.kind == "count" else None,
            "kind": self.kind,
            "description": f"{self.encoder or name} feature, one value per {row}",
            "source_column": self.columns * shape[0] if len(self.columns) == 1 else self.columns,
        }
        known = (~np.isnan(block.values)).sum(axis=0)
        dictionary = dictionary_of(name, self.file, columns, known, len(block.values))
        return Features(modality=modality, batches=batches(), dictionary=dictionary)


def _gather(first: NDArray[np.int64], n: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Concatenated row numbers of the ranges [first, first + n), and the offsets of the ranges."""
    offsets = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
    return np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], n), offsets


def unpad(x: NDArray, length: int | None = None) -> tuple[NDArray, bool]:
    """The steps (t, d) of a sequence that is padded to (T, d), and whether they contradict the length.

    Leading and trailing steps of zeros or NaN are padding; a sequence of zeros only is absent and has no steps.

    Args:
        length: true length, if the export has it. The sequence is its first `length` steps, or its last `length` steps,
            whichever contains all nonzero steps; if neither does, the length is ignored, and the sequence contradicts
            it. A sequence of length 0 is absent.
    """
    filled = np.flatnonzero(((x != 0) & ~np.isnan(x)).any(axis=1))
    if len(filled) == 0 or length == 0:
        return x[:0], False
    first, stop = int(filled[0]), int(filled[-1]) + 1
    if length is None or (length < stop and len(x) - length > first):
        return x[first:stop], length is not None
    return (x[:length] if length >= stop else x[len(x) - length :]), False


def feature_names(prefix: str, d: int, given: Sequence[str] = ()) -> tuple[str, ...]:
    """The given names if they are d distinct ones, otherwise `<prefix>_0` to `<prefix>_<d-1>`."""
    return tuple(given) if len(given) == d == len(set(given)) else tuple(f"{prefix}_{i}" for i in range(d))
