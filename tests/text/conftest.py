"""Folders of tiny language models with random weights."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = [
    "The patient was in no acute distress.",
    "it was great, and I would recommend it to everyone!",
    "film " * 100,
    "é naïve 3D",
    "no",
]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """bert: a plain folder; roberta: byte-level, without `model_max_length`; sentence: sentence-transformers, cls."""
    transformers = pytest.importorskip("transformers", reason="needs mrpipe[hf]")
    sentence_transformers: Any = pytest.importorskip("sentence_transformers", reason="needs mrpipe[hf]")
    import torch
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / name for name in ("bert", "roberta", "sentence")}
    for path in paths.values():
        path.mkdir()
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,!?'3", *LETTERS, *(f"##{c}" for c in LETTERS)]
    words += ["the", "patient", "film", "great", "##ing"]
    (paths["bert"] / "vocab.txt").write_text("\n".join(words))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertTokenizerFast(str(paths["bert"] / "vocab.txt")).save_pretrained(paths["bert"])
        config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=40, **small)
        transformers.BertModel(config).save_pretrained(paths["bert"])
        bpe = ByteLevelBPETokenizer()
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        bpe.train_from_iterator(TEXTS[:2] * 4, vocab_size=300, special_tokens=specials)
        bpe.save_model(str(paths["roberta"]))
        transformers.RobertaTokenizerFast.from_pretrained(str(paths["roberta"])).save_pretrained(paths["roberta"])
        config = transformers.RobertaConfig(vocab_size=300, max_position_embeddings=42, pad_token_id=1, **small)
        transformers.RobertaModel(config).save_pretrained(paths["roberta"])
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    transformer = modules.Transformer(str(paths["bert"]), max_seq_length=12)
    pooling = modules.Pooling(32, pooling_mode="cls")
    dense = modules.Dense(32, 8)
    sentence_transformers.SentenceTransformer(modules=[transformer, pooling, dense], device="cpu").save_pretrained(
        str(paths["sentence"])
    )
    assert json.loads((paths["sentence"] / "modules.json").read_text())
    return paths
