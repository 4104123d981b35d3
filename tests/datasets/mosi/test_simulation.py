"""The simulated export: reproducible bytes, published proportions and quirks, and a calibrated ground truth."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.mosi import DATASET
from mrpipe.datasets.mosi.export import open_export
from mrpipe.datasets.mosi.options import FORMATS, MosiOptions, MosiSimulation

simulation = importlib.import_module("mrpipe.datasets.mosi.simulate.export")
MODALITIES = ("text", "audio", "vision")


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    options = MosiSimulation(n_videos=4, clips_per_video=4.0)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        for form in FORMATS:
            (tmp_path / name / form).mkdir(parents=True)
            variant = dataclasses.replace(options, seed=seed, format=form)
            DATASET.simulate(tmp_path / name / form, tmp_path / name / form, variant)
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            again, other = (tmp_path / n / path.relative_to(tmp_path / "a") for n in ("b", "c"))
            assert path.read_bytes() == again.read_bytes(), path.name
            assert not other.exists() or path.read_bytes() != other.read_bytes(), path.name


@pytest.fixture(scope="module")
def large() -> tuple:
    """About four thousand simulated clips, without writing files."""
    options = MosiSimulation(n_videos=200, clips_per_video=20.0, oddities=False)
    return options, *simulation._speech(options, simulation._clips(options))


def test_labels_have_the_published_proportions(large: tuple) -> None:
    _, world, _ = large
    scores = world.scores
    n = len(scores)
    # 1,023 / 96 / 1,080 of 2,199; clips of a speaker are correlated, which increases the variance of the proportions.
    assert (scores < 0).mean() == pytest.approx(1023 / 2199, abs=0.03)
    assert (scores == 0).mean() == pytest.approx(96 / 2199, abs=0.01)
    assert n > 3500
    assert set(np.round(scores * 5)) == set(range(-15, 16))
    folds = np.array(world.folds)
    assert [(folds == f).sum() for f in ("train", "valid", "test")] == [112, 22, 66]


def test_the_truth_is_calibrated_and_every_modality_adds_information(large: tuple) -> None:
    options, world, counts = large
    positive = world.scores[world.scores != 0] > 0
    loss = {}
    for subset in (("text",), ("audio",), ("vision",), ("text", "audio"), ("audio", "vision"), MODALITIES):
        p = simulation.p_positive(options, world.odd, world.base, counts, subset)[world.scores != 0]
        for low in np.arange(0.0, 1.0, 0.2):
            inside = (p >= low) & (p < low + 0.2)
            if inside.sum() > 200:
                error = 4 * np.sqrt(0.25 / inside.sum()) + 0.01
                assert p[inside].mean() == pytest.approx(positive[inside].mean(), abs=error), (subset, low)
        loss[subset] = -np.log(np.where(positive, p, 1 - p)).mean()
    assert loss[MODALITIES] < min(loss[("text", "audio")], loss[("audio", "vision")])
    assert loss[("text", "audio")] < min(loss[("text",)], loss[("audio",)])
    assert loss[("audio", "vision")] < min(loss[("audio",)], loss[("vision",)])
    assert max(loss.values()) < np.log(2) - 0.02


def test_quadrature_agrees_with_simulation() -> None:
    """Probability for one reading and two words against the frequency among two million draws."""
    options = MosiSimulation()
    rng = np.random.default_rng(0)
    n = 2_000_000
    shared, own, audio = rng.standard_normal((3, n))
    reading = shared + options.audio_noise * rng.standard_normal(n)
    sentiment = (
        options.shared * shared
        + options.private_text * own
        + options.private_audio * audio
        + options.private_vision * rng.standard_normal(n)
        + options.label_noise * rng.standard_normal(n)
    )
    up = rng.uniform(size=(2, n)) < 1 / (1 + np.exp(-options.text_strength * np.stack([shared, own])))
    scores = simulation._scores(options, sentiment)
    near = (np.abs(reading - 0.5) < 0.05) & up[0] & ~up[1] & (scores != 0)
    base = {"audio": np.array([[0.5, 0.0, 0, 0, 0]]), "vision": np.zeros((1, 5))}
    # A weight of zero integrates out the reading of the audio-specific factor.
    blind = dataclasses.replace(
        options, private_audio=0.0, label_noise=float(np.hypot(options.label_noise, options.private_audio))
    )
    counts = np.array([[0, 0, 1, 1, 0]])
    p = simulation.p_positive(blind, np.zeros(1, dtype=bool), base, counts, ("text", "audio"))
    assert near.sum() > 5_000
    assert p[0] == pytest.approx((scores[near] > 0).mean(), abs=0.02)


def test_published_quirks_are_in_the_export(tmp_path: Path) -> None:
    DATASET.simulate(tmp_path, tmp_path, MosiSimulation(n_videos=12, clips_per_video=12.0))
    with h5py.File(tmp_path / "CMU_MOSI_COVAREP.csd") as handle:
        data = handle["CMU_MOSI_COVAREP/data"]
        audio = np.concatenate([data[v]["features"][()] for v in data])
    assert np.isneginf(audio).mean() == pytest.approx(0.001, rel=0.5)
    with h5py.File(tmp_path / "CMU_MOSI_TimestampedWords.csd") as handle:
        data = handle["CMU_MOSI_TimestampedWords/data"]
        words = np.concatenate([data[v]["features"][()].ravel() for v in data])
    assert (words == b"sp").mean() == pytest.approx(0.162, abs=0.03)
    clips = open_export(tmp_path, MosiOptions()).clips
    assert clips.filter(pl.col("end") == pl.col("start")).height == 1
    assert (clips["score"] == 0.0).sum() > 0
    tokens = open_export(tmp_path, MosiOptions()).tokens()
    assert sum(not t for t in tokens) == 2
    truth = pl.read_parquet(tmp_path / "truth.parquet")
    assert truth["sample_id"].to_list() == sorted(clips["sample_id"])
    assert truth["odd"].sum() == 2
    columns = [c for c in truth.columns if c.startswith("p_positive_")]
    assert len(columns) == 7
    assert truth.select(pl.all_horizontal(pl.col(columns).is_between(0, 1))).to_series().all()


def test_minus_infinity_is_read_as_missing(tmp_path: Path) -> None:
    for form in FORMATS:
        raw = tmp_path / form
        raw.mkdir()
        DATASET.simulate(
            raw, tmp_path, MosiSimulation(n_videos=4, clips_per_video=5.0, format=form, infinite_audio=0.05)
        )
        options = MosiOptions(audio_form="raw" if form == "csd" else "auto")
        features = DATASET.modalities["audio"].read(raw, DATASET.cohort(raw, options).samples, options)
        x = np.concatenate([b.column("x").flatten().flatten().to_numpy() for b in features.batches])
        assert not np.isinf(x).any()
        assert np.isnan(x).mean() == pytest.approx(0.05, abs=0.02)
