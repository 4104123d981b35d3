"""Any local Hugging Face or sentence-transformers folder as an encoder, on CPU or GPU; only here is torch imported."""

import hashlib
import importlib.util
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrpipe.errors import MissingExtraError
from mrpipe.options import non_default_fields, option
from mrpipe.raw import sha256
from mrpipe.reading import reading
from mrpipe.text.base import Floats, PieceEncoder

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
HASHED = (".json", ".txt", ".model", ".safetensors", ".bin")
TOKENISERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


@dataclass(frozen=True, kw_only=True)
class HuggingFaceOptions:
    """Options of `hf:FOLDER`, as in `hf:FOLDER?pooling=cls&device=cuda`."""

    pooling: str = option(
        "folder",
        "sentence vector: mean of the pieces, the first piece (cls), or as configured in the folder, by default mean",
        choices=("folder", "mean", "cls"),
    )
    length: int = option(0, "maximum number of pieces per text (0: as configured in the folder)")
    batch: int = option(0, "texts of equal length per batch (0: 128 pieces on a CPU, 32 texts on a GPU)")
    device: str = option("cpu", "device of torch: cpu, cuda, cuda:1, mps")


class HuggingFace(PieceEncoder):
    """A model folder, read by sentence-transformers; nothing is downloaded.

    Texts of a batch have equal length, so nothing is padded; an incomplete batch is filled up with copies.
    """

    def __init__(self, folder: str, options: HuggingFaceOptions):
        if importlib.util.find_spec("sentence_transformers") is None:
            raise MissingExtraError("sentence-transformers", "hf", f"the text encoder 'hf:{folder}'")
        self._folder, self._options = Path(folder).expanduser(), options
        fix = "A complete folder: hf download ORGANISATION/MODEL --local-dir FOLDER, or model.save(FOLDER)."
        expected = "config.json, tokeniser and weights of a Hugging Face or sentence-transformers model"
        with reading(self._folder, expected, fix):
            config = self._check()
        self.dim = config.get("hidden_size") or config.get("dim", 0)
        files = {f.relative_to(self._folder).as_posix(): f for f in self._folder.rglob("[!.]*.*") if f.suffix in HASHED}
        lines = [f"{name} {sha256(file)}" for name, file in sorted(files.items()) if name[0] != "."]
        digest = hashlib.sha256("\n".join([*lines, json.dumps(non_default_fields(options))]).encode())
        self.name = f"hf-{config['model_type']}/{digest.hexdigest()[:16]}"

    def _check(self) -> dict[str, Any]:
        """Load the configuration and the tokeniser and read the headers of the weights; returns the configuration."""
        if not self._folder.is_dir():
            raise ValueError("no folder of this name")
        from safetensors import safe_open
        from transformers import AutoConfig, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        modules = self._folder / "modules.json"
        inner = json.loads(modules.read_text(encoding="utf-8"))[0]["path"] if modules.is_file() else ""
        root = self._folder / inner
        config: dict[str, Any] = AutoConfig.from_pretrained(str(root), local_files_only=True).to_dict()
        if not any(path for name in TOKENISERS for path in root.glob(name)):
            raise ValueError(f"no tokeniser ({', '.join(TOKENISERS)})")
        # Byte-level tokenisers (RoBERTa) begin words, unlike sentences, with a space.
        extras: tuple[dict[str, bool], ...] = ({}, {"add_prefix_space": True})
        self._tokenizers = [AutoTokenizer.from_pretrained(str(root), local_files_only=True, **e) for e in extras]
        if not self._tokenizers[1].is_fast:
            raise ValueError("a slow tokeniser, which does not know the words of its pieces; save tokenizer.json")
        if len(self._tokenizers[0]) > config.get("vocab_size", len(self._tokenizers[0])):
            raise ValueError(f"a tokeniser with {len(self._tokenizers[0])} pieces for {config['vocab_size']} vectors")
        weights = next((files for name in WEIGHTS if (files := list(root.glob(name)))), [])
        if not weights or ((n := weights[0].stem.partition("-of-")[2]) and len(weights) != int(n)):
            raise ValueError(f"no weights, or not all parts of them ({', '.join(WEIGHTS)})")
        for file in weights:
            try:
                if file.suffix == ".safetensors":
                    safe_open(file, framework="numpy")
                elif not zipfile.is_zipfile(file) and file.open("rb").read(2) != b"\x80\x02":
                    raise ValueError("no file of torch.save")
            except Exception as error:
                raise ValueError(f"{file.name} is damaged, or a pointer of git lfs: {error}") from error
        return config

    @cached_property
    def _model(self) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)  # batches are computed in parallel instead
        return SentenceTransformer(str(self._folder), device=self._options.device, local_files_only=True).eval()

    @cached_property
    def limit(self) -> int:  # type: ignore[override]
        """Maximum number of pieces, as far as the model has positions; RoBERTa counts them from that of padding."""
        positions = getattr(getattr(self._model[0].auto_model, "embeddings", None), "position_embeddings", None)
        unused = getattr(positions, "padding_idx", None)
        known = getattr(positions, "num_embeddings", 2**31) - (0 if unused is None else unused + 1)
        return min(self._options.length or self._model.max_seq_length or known, known)

    def _encodings(self, texts: Sequence[Any], *, split: bool) -> Sequence[Any]:
        if not split:
            prompt = self._model.prompts.get(self._model.default_prompt_name, "")
            texts = [prompt + text.strip() for text in texts]
        settings = {"is_split_into_words": split, "truncation": True, "max_length": self.limit}
        encodings: Sequence[Any] = self._tokenizers[split](list(texts), **settings).encodings
        return encodings

    def _size(self, length: int) -> int:
        """Number of texts in a batch of texts with this number of pieces."""
        return self._options.batch or (max(1, 128 // length) if self._options.device == "cpu" else 32)

    def _batches(self, lengths: NDArray[np.int64]) -> Iterator[list[int]]:
        for length in np.unique(lengths).tolist():
            members, n = np.flatnonzero(lengths == length).tolist(), self._size(length)
            yield from (members[a : a + n] for a in range(0, len(members), n))

    def _forward(self, batch: list[list[int]], *, pooled: bool) -> Sequence[Floats]:
        import torch

        ids_BL = torch.tensor(batch + batch[:1] * (self._size(len(batch[0])) - len(batch)), device=self._model.device)
        with torch.inference_mode():
            out = self._model({"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)})
        x = out["token_embeddings"]
        if pooled:
            pooling = {"folder": out["sentence_embedding"], "mean": x.mean(dim=1), "cls": x[:, 0]}
            x = pooling[self._options.pooling]
        return list(x.float().cpu().numpy()[: len(batch)])
