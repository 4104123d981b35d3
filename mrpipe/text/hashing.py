"""Text as hashed character n-grams and as hashed term counts; needs no model."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mrpipe import keyed
from mrpipe.text.base import Floats, Offsets, flatten, unit_rows

_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
HASHING_VERSION = 1


def tokenise(text: str) -> list[str]:
    """Lower-case words of a text; apostrophes within words are kept: "It's 3D!" gives ["it's", "3d"]."""
    return _TOKEN.findall(text.lower())


def _normal_form(word: str) -> str:
    """Form of a word that is hashed; transcripts contain both "didn't" and "didnt"."""
    return word.lower().replace("'", "").replace("’", "")


def _signs(features: Sequence[str], dim: int) -> NDArray[np.int8]:
    """±1 vector of each feature, (n, dim): the bits of its BLAKE2b digest, in blocks of 512."""
    n_blocks = -(-dim // 512)
    digest_size = min(64, -(-dim // 8))
    digests = b"".join(
        hashlib.blake2b(f.encode(), digest_size=digest_size, key=bytes([block])).digest()
        for f in features
        for block in range(n_blocks)
    )
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8), bitorder="little")
    return (2 * bits.reshape(len(features), -1)[:, :dim].astype(np.int8) - 1).astype(np.int8)


class HashingEncoder:
    """Signed feature hashing: a word vector is the sum of the ±1 vectors of the word's features, scaled to unit norm.

    The features are the word itself and its character 3-, 4- and 5-grams with boundary marks (subwords of Bojanowski et
    al., 2017). The word has the same weight as all its n-grams together, so that inflected forms are similar but
    distinct. The signs of a feature are the bits of a keyed BLAKE2b digest, dense over all dimensions (Weinberger et
    al., 2009, with one sign per dimension instead of one bucket per feature).
    """

    def __init__(self, dim: int = 300):
        self.dim = dim
        self.name = f"hashing-{dim}/{HASHING_VERSION}"

    def _vocabulary(self, words: Sequence[str]) -> Floats:
        """Unit vectors (n, dim) of distinct words."""
        features: list[str] = []
        weights: list[float] = []
        ends: list[int] = [0]
        for word in words:
            marked = f"<{_normal_form(word)}>"
            grams = [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)]
            features += [f"\x00{marked}", *grams]
            weights += [max(1.0, len(grams)) ** 0.5, *([1.0] * len(grams))]
            ends.append(len(features))
        vectors = np.empty((len(words), self.dim), dtype=np.float64)
        block = 4096  # limits the ±1 matrix of a large vocabulary to a few tens of MB
        for start in range(0, len(words), block):
            stop = min(start + block, len(words))
            signs = _signs(features[ends[start] : ends[stop]], self.dim).astype(np.float64)
            signs *= np.asarray(weights[ends[start] : ends[stop]])[:, None]
            vectors[start:stop] = np.add.reduceat(signs, np.asarray(ends[start:stop]) - ends[start], axis=0)
        norms = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
        return np.asarray((vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32))

    def words(self, tokens: Sequence[Sequence[str]]) -> tuple[Floats, Offsets]:
        """One unit vector per word, independent of the sentence; see `Encoder.words`."""
        flat, offsets = flatten(tokens)
        if not flat:
            return np.empty((0, self.dim), dtype=np.float32), offsets
        distinct, index = np.unique(np.asarray(flat, dtype=object).astype(str), return_inverse=True)
        return self._vocabulary(distinct.tolist())[index], offsets

    def sentences(self, texts: Sequence[str]) -> Floats:
        """Mean of the word vectors of each text, scaled to unit norm; see `Encoder.sentences`."""
        values, offsets = self.words([tokenise(t) for t in texts])
        x = np.full((len(texts), self.dim), np.nan, dtype=np.float32)
        full = np.diff(offsets) > 0
        if full.any():
            sums = np.add.reduceat(values.astype(np.float64), offsets[:-1][full], axis=0)
            x[full] = sums / np.diff(offsets)[full, None]
        return unit_rows(x)


def hashed_counts(tokens: Sequence[Sequence[str]], n_features: int = 2048) -> Floats:
    """Frequency of each hashed term in each text, (n, n_features) float32 with integer values.

    The hashing is unsigned, so that values are counts. TF-IDF and SVD are applied later, by a transform fitted on
    training rows.
    """
    flat, offsets = flatten(tokens)
    if not flat:
        return np.zeros((len(tokens), n_features), dtype=np.float32)
    words = list(set(flat))
    hashed = keyed.id_keys(map(_normal_form, words)) % np.uint64(n_features)
    column = dict(zip(words, hashed.astype(np.int64).tolist(), strict=True))
    columns = np.fromiter(map(column.__getitem__, flat), dtype=np.int64, count=len(flat))
    rows = np.repeat(np.arange(len(tokens)), np.diff(offsets))
    cells = np.bincount(rows * n_features + columns, minlength=len(tokens) * n_features)
    return cells.reshape(len(tokens), n_features).astype(np.float32)
