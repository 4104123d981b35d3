"""The published CMU-MOSI files: published counts, transcripts, and the two segments without words."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.mosi import DATASET
from mrpipe.datasets.mosi.export import open_export
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.schema import Cohort

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def raw(real_data_dir: Path) -> Path:
    folder = real_data_dir / "mosi"
    if not folder.is_dir():
        pytest.skip(f"no CMU-MOSI at {folder}")
    return folder


@pytest.fixture(scope="module")
def cohort(raw: Path) -> Cohort:
    return DATASET.cohort(raw, MosiOptions())


def test_the_published_files_pass_the_check(raw: Path) -> None:
    checked = DATASET.check(raw, MosiOptions())
    assert len(checked.files) == 4
    (empty, cut, silent, encoder) = checked.notes
    assert encoder.startswith("text encoder: ")
    assert empty == "segments of zero length, without words and frames: 1"
    assert cut.startswith("text: 16 of 2199 clips have more than 50 steps, up to 114; the last 50 are kept (max_steps)")
    assert silent == "text: 2 of 2199 clips have no words, and lack it: 2WGyTLYerpo_44, VCslbP0mgZI_1"
    assert {m: len(ids) for m, ids in checked.observed.items()} == {"text": 2197, "audio": 2199}
    assert DATASET.modalities_of(raw, MosiOptions()) == ("text", "audio")


def test_clips_and_videos_by_fold(cohort: Cohort) -> None:
    counts = cohort.samples.group_by("fold").agg(pl.len(), pl.col("subject_id").n_unique().alias("videos"))
    assert sorted(counts.rows()) == [("test", 686, 31), ("train", 1284, 52), ("val", 229, 10)]
    assert len(cohort.samples) == 2199
    assert cohort.attrition["n_after"].to_list() == [2199, 2199]


def test_labels_by_fold(cohort: Cohort) -> None:
    def table(task: str) -> dict[str, list[int]]:
        counts = cohort.labels[task].join(cohort.samples, on="sample_id").group_by("fold", "value").len()
        return {f: counts.filter(fold=f).sort("value")["len"].to_list() for f in ("train", "val", "test")}

    assert table("sentiment3") == {"train": [552, 53, 679], "val": [92, 13, 124], "test": [379, 30, 277]}
    assert table("polarity") == {"train": [552, 679], "val": [92, 124], "test": [379, 277]}
    assert sum(map(sum, table("sentiment7").values())) == 2199
    score = cohort.labels["score"]["value"]
    assert (score.min(), score.max()) == (-3.0, 3.0)
    assert (score == 0).sum() == 96


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        ("03bSnISJMiM_1", "anyhow it was really good"),
        ("03bSnISJMiM_11", "a lot of sad parts"),
        ("2WGyTLYerpo_44", ""),
        ("VCslbP0mgZI_1", ""),
    ],
)
def test_words_match_the_published_transcripts(raw: Path, clip: str, text: str) -> None:
    export = open_export(raw, MosiOptions())
    tokens = dict(zip(export.clips["sample_id"], export.tokens(), strict=True))
    assert " ".join(tokens[clip]) == text


def test_numbers_of_words(raw: Path) -> None:
    n = np.array([len(t) for t in open_export(raw, MosiOptions()).tokens()])
    assert len(n) == 2199
    assert n.sum() == 27593
    assert (n == 0).sum() == 2
    assert (n > 50).sum() == 16
    assert n.max() == 114
    overlap = np.array([len(t) for t in open_export(raw, MosiOptions(word_rule="overlap")).tokens()])
    assert (overlap == 0).sum() == 1


def test_segments_end_where_their_last_word_begins(raw: Path) -> None:
    """Reason for the onset rule: the ends of segments coincide with the beginnings of words."""
    export = open_export(raw, MosiOptions())
    ends = export.clips.group_by("subject_id", maintain_order=True).agg("end").rows()
    with h5py.File(raw / "CMU_MOSI_ModifiedTimestampedWords.csd") as handle:
        data = handle["CMU_MOSI_ModifiedTimestampedWords/data"]
        hits = []
        for video, times in ends:
            words = data[video]["features"][()].ravel() != b"sp"
            starts = data[video]["intervals"][()][words, 0]
            hits.append(np.abs(np.array(times)[:, None] - starts).min(axis=1) < 1e-3)
    assert np.concatenate(hits).mean() > 0.9


def test_features_of_every_clip(raw: Path, cohort: Cohort) -> None:
    text = DATASET.modalities["text"].read(raw, cohort.samples, MosiOptions())
    lengths = np.concatenate([b.column("length").to_numpy() for b in text.batches])
    assert len(lengths) == 2197
    assert lengths.sum() == 27311
    assert (lengths.min(), lengths.max()) == (1, 50)
    audio = DATASET.modalities["audio"].read(raw, cohort.samples, MosiOptions())
    x = np.concatenate([b.column("x").flatten().to_numpy() for b in audio.batches]).reshape(-1, 73)
    assert audio.modality.kind == "vector"
    assert x.shape == (2199, 73)
    assert np.isfinite(x).all()
    assert (x.min(), x.max()) == (pytest.approx(-11.799), pytest.approx(376.02))
    assert audio.dictionary["name"].to_list() == [f"opensmile_{i}" for i in range(73)]
