"""Interface of text encoders, and the parts that transformers over word pieces share."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Offsets = NDArray[np.int64]


class Encoder(Protocol):
    """Interface of text encoders. Creating one checks its files; weights are loaded when the first text is encoded.

    On one machine, the bits of a vector depend neither on the number of cores nor on the other texts.

    Attributes:
        name: name and version or content hash, for the manifest; encoders with equal names give equal vectors.
        dim: dimension of the vectors.
    """

    name: str
    dim: int

    def sentences(self, texts: Sequence[str]) -> Floats:
        """One vector per text, (n, dim) float32 with unit norm; texts without words are NaN (nothing observed)."""

    def words(self, tokens: Sequence[Sequence[str]]) -> tuple[Floats, Offsets]:
        """One vector per word: values (total words, dim) float32, and offsets (n + 1,) int64 of the texts."""


def flatten(tokens: Sequence[Sequence[str]]) -> tuple[list[str], Offsets]:
    """All words, and the offsets (n + 1,) of the texts."""
    return list(chain.from_iterable(tokens)), np.cumsum([0, *map(len, tokens)], dtype=np.int64)


def unit_rows(x: Floats) -> Floats:
    """Rows scaled to unit norm; rows of zeros and of NaN remain."""
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.asarray((x / np.maximum(norms, 1e-12)).astype(np.float32))


def job_threads() -> int:
    """CPU threads of this job: OMP_NUM_THREADS, which the workflow sets, or all cores that the process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or cores or 1


class PieceEncoder(ABC):
    """Sentence and word vectors of a transformer over word pieces; subclasses load it and run batches of texts.

    A word vector is the mean over the word's pieces in the last layer and depends on the sentence. Sentences are
    truncated to `limit` pieces; of lists of words, the pieces beyond it are encoded as further texts. Each thread of
    the job computes batches of its own, all of a fixed shape, so that the same matrix products give each vector.
    """

    name: str
    dim: int
    limit: int

    @abstractmethod
    def _encodings(self, texts: Sequence[Any], *, split: bool) -> Sequence[Any]:
        """A `tokenizers.Encoding` per text (`split`: list of words), with special tokens, truncated to `limit`."""

    @abstractmethod
    def _batches(self, lengths: NDArray[np.int64]) -> Iterable[list[int]]:
        """Batches of texts by position, given their numbers of pieces (n,)."""

    @abstractmethod
    def _forward(self, batch: list[list[int]], *, pooled: bool) -> Sequence[Floats]:
        """Last hidden states (L, H) of each text of a batch of piece ids, or its sentence vector (dim,)."""

    def sentences(self, texts: Sequence[str]) -> Floats:
        encodings = self._encodings(texts, split=False)
        known = [i for i, e in enumerate(encodings) if not all(e.special_tokens_mask)]
        vectors = self._run([encodings[i].ids for i in known], pooled=True)
        x = np.full((len(texts), len(vectors[0]) if vectors else self.dim), np.nan, dtype=np.float32)
        x[known] = vectors or x[known]
        return unit_rows(x)

    def words(self, tokens: Sequence[Sequence[str]]) -> tuple[Floats, Offsets]:
        """See `Encoder.words`; words that the tokeniser drops (control characters) are NaN."""
        flat, offsets = flatten(tokens)
        encodings = self._encodings(tokens, split=True) if flat else []
        # The pieces beyond the limit are further parts of the text, whose words are numbered through.
        parts = [(start, part) for start, e in zip(offsets, encodings) for part in (e, *e.overflowing)]  # noqa: B905
        word = [np.array([-1 if w is None else w for w in part.word_ids]) for _, part in parts]
        if not parts:
            return np.empty((0, self.dim), dtype=np.float32), offsets
        hidden = self._run([part.ids for _, part in parts], pooled=False)
        pieces = np.concatenate([h[w >= 0] for h, w in zip(hidden, word, strict=True)], dtype=np.float64)
        rows = np.concatenate([start + w[w >= 0] for (start, _), w in zip(parts, word, strict=True)])
        x = np.full((len(flat), pieces.shape[1]), np.nan, dtype=np.float32)
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        x[rows[starts]] = np.add.reduceat(pieces, starts, axis=0) / np.diff(starts, append=len(rows))[:, None]
        return x, offsets

    def _run(self, pieces: list[list[int]], *, pooled: bool) -> list[Floats]:
        """Output of the model for each text, in the order of the texts."""
        from threadpoolctl import threadpool_limits

        batches = list(self._batches(np.array([len(p) for p in pieces], dtype=np.int64)))
        inputs = [[pieces[i] for i in batch] for batch in batches]
        forward, limit = partial(self._forward, pooled=pooled), partial(threadpool_limits, limits=1, user_api="blas")
        with limit(), ThreadPoolExecutor(job_threads(), initializer=limit) as pool:
            # The first batch, which loads the weights, is complete before the threads start.
            outputs = [*map(forward, inputs[:1]), *pool.map(forward, inputs[1:])]
        done = dict(zip(chain.from_iterable(batches), chain.from_iterable(outputs), strict=True))
        return [done[i] for i in range(len(pieces))]
