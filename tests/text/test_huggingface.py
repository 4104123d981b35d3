"""Local model folders as encoders: equal to sentence-transformers, exact on any number of threads, and checked."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrpipe.errors import DataError, MissingExtraError, UsageError
from mrpipe.text.encoders import get_encoder, recorded
from tests.text.conftest import TEXTS


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPIPE_CACHE", "")


@pytest.mark.parametrize("name", ["bert", "roberta", "sentence"])
def test_sentences_equal_those_of_sentence_transformers(models: dict[str, Path], name: str) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(models[name]), device="cpu", local_files_only=True)
    if name == "roberta":
        reference.max_seq_length = 40  # sentence-transformers fails at its own default, 42: two positions are unused
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    encoder = get_encoder(f"hf:{models[name]}")
    x = encoder.sentences([*TEXTS, "", "  "])
    assert np.abs(x[: len(TEXTS)] - expected).max() < 1e-5
    assert x.shape == (len(TEXTS) + 2, {"bert": 32, "roberta": 32, "sentence": 8}[name])
    assert np.isnan(x[len(TEXTS) :]).all()
    if name != "roberta":
        assert reference.max_seq_length == {"bert": 40, "sentence": 12}[name]  # so that a text is truncated


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_and_length_are_options(models: dict[str, Path], pooling: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    transformer = modules.Transformer(str(models["bert"]), max_seq_length=9)
    reference = SentenceTransformer(modules=[transformer, modules.Pooling(32, pooling_mode=pooling)], device="cpu")
    for name in ("bert", "sentence"):  # an option replaces the folder's pooling and its further layers
        x = get_encoder(f"hf:{models[name]}?pooling={pooling}&length=9").sentences(TEXTS)
        assert np.abs(x - reference.encode(TEXTS, normalize_embeddings=True)).max() < 1e-5


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_words_are_means_over_their_pieces(models: dict[str, Path], name: str) -> None:
    """By hand: the pieces of each word on its own, and the last hidden states of the concatenated pieces."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(models[name]))
    model = AutoModel.from_pretrained(str(models[name])).eval()
    words = ["the", "patients", "unbelievably", "3"]
    space = " " if name == "roberta" else ""
    pieces = [tokenizer(space + w, add_special_tokens=False)["input_ids"] for w in words]
    ids = [tokenizer.cls_token_id, *(p for word in pieces for p in word), tokenizer.sep_token_id]
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    ends = 1 + np.cumsum([len(p) for p in pieces])
    expected = np.stack([hidden[e - len(p) : e].mean(axis=0) for e, p in zip(ends, pieces, strict=True)])
    values, offsets = get_encoder(f"hf:{models[name]}").words([["great"], [], words])
    assert offsets.tolist() == [0, 1, 1, 5]
    assert np.abs(values[1:] - expected).max() < 1e-5
    # Beyond the length of the model: no word is lost, and the first part is encoded as it would be alone.
    values, _ = get_encoder(f"hf:{models[name]}").words([["great", "film"] * 100])
    assert np.isfinite(values).all()


@pytest.mark.parametrize("query", ["", "?batch=4"])
def test_vectors_do_not_depend_on_threads_and_other_texts(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    texts = ["the film was great " * k for k in range(1, 8)] * 3
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        encoder = get_encoder(f"hf:{models['bert']}{query}")
        x, words = encoder.sentences(texts), encoder.words([t.split() for t in texts])[0]
        found.append(x.tobytes() + words.tobytes())
        assert encoder.sentences(texts[4:6]).tobytes() == x[4:6].tobytes()
        assert encoder.words([texts[0].split()])[0].tobytes() == words[:4].tobytes()
    assert found[0] == found[1]


def test_the_name_depends_on_content_and_options_and_not_on_the_path(models: dict[str, Path], tmp_path: Path) -> None:
    name = get_encoder(f"hf:{models['bert']}").name
    assert name.startswith("hf-bert/")
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(models["bert"], copy)
    assert get_encoder(f"hf:{copy}").name == name
    value, note = recorded(f"hf:{copy}?pooling=cls")
    assert value == get_encoder(f"hf:{models['bert']}?pooling=cls").name != name
    assert str(tmp_path) not in value + note
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert get_encoder(f"hf:{copy}").name != name


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_bin(folder: Path) -> Path:
    """Replace the weights by the same ones in the format of torch.save."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def test_weights_in_the_older_format_give_the_same_vectors(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models["bert"], tmp_path / "model")
    as_bin(tmp_path / "model")
    older, newer = get_encoder(f"hf:{tmp_path / 'model'}"), get_encoder(f"hf:{models['bert']}")
    assert older.sentences(TEXTS).tobytes() == newer.sentences(TEXTS).tobytes()


def test_layers_after_the_transformer_are_part_of_the_name(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["sentence"], folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.json").write_text("{}")
    name = get_encoder(f"hf:{folder}").name
    assert name == get_encoder(f"hf:{models['sentence']}").name
    (weights,) = folder.glob("*Dense/*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert get_encoder(f"hf:{folder}").name != name


def fewer_vectors(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10}))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (shutil.rmtree, "no folder"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: [p.unlink() for p in (f / "tokenizer.json", f / "vocab.txt")], "no tokeniser"),
        (lambda f: halve(f / "tokenizer.json"), ""),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: halve(f / "model.safetensors"), "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
        (fewer_vectors, "pieces for 10 vectors"),
        (lambda f: halve(as_bin(f)), "pytorch_model.bin is damaged"),
        (lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"), "not all parts"),
    ],
    ids=[
        "folder",
        "config",
        "tokeniser",
        "half-tokeniser",
        "weights",
        "half-weights",
        "git-lfs",
        "vocabulary",
        "half-bin",
        "parts",
    ],
)
def test_a_check_refuses_an_incomplete_folder(models: dict[str, Path], tmp_path: Path, spoil: Any, found: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["bert"], folder)
    recorded(f"hf:{folder}")
    spoil(folder)
    with pytest.raises(DataError) as caught:
        recorded(f"hf:{folder}")
    (fault,) = caught.value.faults
    assert found in fault.found
    assert "hf download" in fault.fix


def test_unknown_options_are_usage_errors(models: dict[str, Path]) -> None:
    for query, message in (("pool=cls", "unknown option"), ("pooling=max", "must be one of"), ("batch=x", "not int")):
        with pytest.raises(UsageError, match=message):
            get_encoder(f"hf:{models['bert']}?{query}")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "sentence_transformers" else find(name, *a)
    )
    with pytest.raises(MissingExtraError, match=r"mrpipe\[hf\]"):
        get_encoder(f"hf:{tmp_path}")
