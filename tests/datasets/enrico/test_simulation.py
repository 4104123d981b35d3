"""The simulated Enrico export: deterministic, faithful to the published format, and with an accurate truth."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mrpipe.datasets.enrico import DATASET
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.enrico.simulate.export import (
    LANDSCAPE,
    STATES,
    EnricoSimulation,
    likelihoods,
    simulate_export,
    topic_counts,
)
from mrpipe.datasets.enrico.tables import TOPIC_COUNTS, TOPICS
from mrpipe.errors import UsageError

OPTIONS = EnricoSimulation(n_screens=30, scale=0.2)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enrico")
    simulate_export(folder / "raw", folder / "truth", OPTIONS)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_same_seed_same_bytes_different_seed_different_bytes(zipped: bool, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = EnricoSimulation(n_screens=22, scale=0.1, zipped=zipped, seed=seed)
        simulate_export(tmp_path / name / "raw", tmp_path / name / "truth", options)
        digests.append(digest(tmp_path / name))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_files_sizes_and_quirks_match_the_published_export(folder: Path) -> None:
    raw = folder / "raw"
    topics = pl.read_csv(raw / "design_topics.csv", infer_schema=False)
    assert topics.columns == ["screen_id", "topic"]
    assert topics["screen_id"].n_unique() == 30
    assert topics["screen_id"].to_list() != sorted(topics["screen_id"])
    expected = set(topics["screen_id"])
    assert {p.stem for p in (raw / "screenshots").glob("*.jpg")} == expected
    assert {p.stem for p in (raw / "hierarchies").glob("*.json")} == expected
    assert {p.stem for p in (raw / "metadata").glob("*.json")} == expected
    assert expected - {p.stem for p in (raw / "wireframes").glob("*.png")} == {"50105", "50109"}
    for path in [*raw.glob("screenshots/*"), *raw.glob("wireframes/*")]:
        with Image.open(path) as image:
            assert image.size == ((192, 108) if path.stem in LANDSCAPE else (108, 192))
            assert image.mode == ("RGB" if path.suffix == ".jpg" else "RGBA")
    issues = pl.read_csv(raw / "issues.csv", infer_schema=False)
    assert issues.columns == ["screen_id", "source", "description", "severity"]
    assert set(issues["screen_id"]) <= expected
    assert issues["screen_id"].n_unique() == len(issues)
    assert any(p.read_bytes() == b"{}" for p in (raw / "metadata").iterdir())
    assert DATASET.check(raw, EnricoOptions()).files


def test_hierarchies_have_the_published_format(folder: Path) -> None:
    for path in (folder / "raw" / "hierarchies").iterdir():
        root = json.loads(path.read_text())
        assert "componentLabel" not in root
        stack, n_labels = [root], 0
        while stack:
            node = stack.pop()
            assert {"ancestors", "class", "bounds", "clickable"} <= set(node)
            assert all(isinstance(b, int) for b in node["bounds"])
            assert node.get("children", [0])
            n_labels += "componentLabel" in node
            stack += node.get("children", [])
        assert n_labels > 0


def test_topic_counts_scale_the_published_ones() -> None:
    assert topic_counts(1460) == TOPIC_COUNTS
    for n in (20, 21, 47, 160, 999, 5000):
        counts = topic_counts(n)
        assert sum(counts.values()) == n
        assert min(counts.values()) >= 1
        if n >= 160:
            assert max(abs(counts[t] - n * TOPIC_COUNTS[t] / 1460) for t in TOPICS) < 1.01
    with pytest.raises(UsageError, match="at least 20"):
        topic_counts(19)


@pytest.mark.parametrize("bad", [{"scale": 0.0}, {"layout_noise": 1.5}, {"look_noise": -0.1}])
def test_options_out_of_range_are_usage_errors(bad: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        simulate_export(tmp_path / "raw", tmp_path / "truth", EnricoSimulation(**bad))
    assert not (tmp_path / "raw").exists()


def test_only_layout_and_look_together_determine_the_topic() -> None:
    assert len(set(STATES.values())) == len(STATES) == len(TOPICS)
    assert set(Counter(layout for layout, _ in STATES.values()).values()) == {2}
    for noise in (0.0, 0.12, 1.0):
        for table in likelihoods(EnricoSimulation(layout_noise=noise, look_noise=noise)):
            assert np.allclose(table.sum(axis=1), 1)


def test_truth_records_the_information_in_layout_and_look(folder: Path) -> None:
    model = json.loads((folder / "truth" / "model.json").read_text())
    layout, look, both = (model[k]["information_bits"] for k in ("layout", "look", "both"))
    assert 0 < look < layout < both <= np.log2(20)
    assert both > layout + 0.3
    assert model["both"]["bayes_accuracy"] > model["layout"]["bayes_accuracy"] > model["look"]["bayes_accuracy"]


def test_bayes_predictions_reach_the_stated_accuracy(tmp_path: Path) -> None:
    """Over many screens, Bayes predictions are as accurate as stated (states do not depend on the image size)."""
    simulate_export(tmp_path / "raw", tmp_path / "truth", EnricoSimulation(n_screens=700, scale=0.02))
    truth = pl.read_parquet(tmp_path / "truth" / "truth.parquet")
    model = json.loads((tmp_path / "truth" / "model.json").read_text())
    assert truth["sample_id"].is_sorted()
    for name in ("layout", "look", "both"):
        stated = model[name]["bayes_accuracy"]
        reached = float((truth[f"bayes_{name}"] == truth["topic"]).mean())
        assert abs(reached - stated) < 3.5 * np.sqrt(stated * (1 - stated) / len(truth))
