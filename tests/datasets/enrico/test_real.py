"""Enrico as published: the table, MultiBench's split, and the only screen that is public in full."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mrpipe.datasets.enrico.cohort import build_cohort, multibench_folds
from mrpipe.datasets.enrico.hierarchy import parse_hierarchy, render
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.enrico.tables import (
    COMPONENT_COLOURS,
    SCREEN_SIZE,
    TOPIC_COUNTS,
    read_issues,
    read_legend,
    read_topics,
)
from mrpipe.datasets.images import to_array
from mrpipe.store.splits import grouped_stratified

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def enrico(real_data_dir: Path) -> Path:
    return real_data_dir / "enrico"


def test_topic_counts_match_the_published_ones(enrico: Path) -> None:
    topics = read_topics(enrico)
    assert len(topics) == 1460
    assert Counter(topics["topic"]) == TOPIC_COUNTS
    assert sum(TOPIC_COUNTS.values()) == 1460


def test_standard_scheme_matches_multibench(enrico: Path) -> None:
    topics = read_topics(enrico)
    split = topics.with_columns(fold=pl.Series(multibench_folds(topics["screen_id"].to_list())))
    assert Counter(split["fold"]) == {"train": 947, "val": 219, "test": 292, None: 2}
    in_val = set(split.filter(fold="val")["topic"])
    assert set(TOPIC_COUNTS) - in_val == {"calculator", "maps"}
    (topic, n), *_ = Counter(split.filter(fold="test")["topic"]).most_common()
    assert (topic, n) == ("list", 47)
    assert set(split.filter(fold="train")["topic"]) == set(TOPIC_COUNTS)


def test_uniform_scheme_is_close_to_70_15_15_in_every_topic(enrico: Path) -> None:
    topics = read_topics(enrico)
    samples = topics.select(pl.col("screen_id").alias("sample_id"), pl.col("screen_id").alias("subject_id"), "topic")
    split = grouped_stratified(samples, fractions=(0.7, 0.15, 0.15), seed=0, stratum="topic")
    counts = Counter(split["split"])
    assert {p: abs(counts[p] - f * 1460) <= 3 for p, f in (("train", 0.7), ("val", 0.15), ("test", 0.15))} == {
        "train": True,
        "val": True,
        "test": True,
    }
    table = split.join(samples, on="sample_id").group_by("topic", "split").len()
    assert len(table) == 60


def test_issues_match_the_published_81(enrico: Path) -> None:
    issues = read_issues(enrico)
    counts = Counter(issues.select("source", "severity").iter_rows())
    assert counts == {
        ("hierarchy", "low"): 32,
        ("wireframe", "low"): 16,
        ("wireframe", "medium"): 9,
        ("wireframe", "high"): 14,
        ("screenshot", "medium"): 8,
        ("screenshot", "high"): 2,
    }
    assert set(issues["screen_id"]) <= set(read_topics(enrico)["screen_id"])


def test_legends_match_the_built_in_ones(enrico: Path) -> None:
    legend = read_legend(enrico)
    assert legend.components == COMPONENT_COLOURS
    assert len(legend.icons) == 97


def test_render_reproduces_the_published_wireframe(enrico: Path) -> None:
    samples = enrico / "samples"
    hierarchy = parse_hierarchy((samples / "10594-hierarchy.json").read_bytes(), "10594-hierarchy.json")
    drawn = render(hierarchy, read_legend(enrico), SCREEN_SIZE)
    with Image.open(samples / "10594-wireframe.png") as image:
        published = image.copy()
    difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(published).astype(int)).max(axis=2)
    assert (difference == 0).mean() > 0.997
    assert (difference <= 8).mean() > 0.9997
    features = [to_array(i.convert("RGB"), (256, 128)).astype(int) for i in (drawn, published)]
    assert np.abs(features[0] - features[1]).mean() < 0.1


def test_readers_accept_a_real_screen(enrico: Path, tmp_path: Path) -> None:
    """The public screen, arranged as an export of one screen."""
    for folder, kind in (("screenshots", "jpg"), ("wireframes", "png"), ("hierarchies", "json"), ("metadata", "json")):
        (tmp_path / folder).mkdir()
        source = {"screenshots": "screenshot", "wireframes": "wireframe", "hierarchies": "hierarchy"}.get(
            folder, folder
        )
        data = (enrico / "samples" / f"10594-{source}.{kind}").read_bytes()
        (tmp_path / folder / f"10594.{kind}").write_bytes(data)
    topic = dict(read_topics(enrico).iter_rows())["10594"]
    (tmp_path / "design_topics.csv").write_text(f"screen_id,topic\n10594,{topic}\n")
    row = build_cohort(tmp_path, EnricoOptions()).samples.row(0, named=True)
    assert (row["screen_width"], row["screen_height"]) == SCREEN_SIZE
    assert row["wireframe_source"] == "png"
    assert row["n_components"] == 9
    assert row["app_id"] == "com.syncme.syncmeapp"
    assert row["app_category"] == "COMMUNICATION"
