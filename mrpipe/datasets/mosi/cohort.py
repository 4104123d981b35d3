"""Cohort and labels: all segments of videos that appear in a fold list; neutral clips have no polarity label."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.mosi.export import open_export
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.schema import Attrition, Cohort, Scheme, Task

SENTIMENT7 = ("-3", "-2", "-1", "0", "1", "2", "3")
TASKS = (
    Task(
        name="polarity",
        kind="classification",
        classes=("negative", "positive"),
        description="sign of the score; neutral clips (score 0) have no label (Acc-2, non-zero)",
    ),
    Task(name="score", kind="regression", description="sentiment, -3 (very negative) to 3; mean of five annotators"),
    Task(
        name="sentiment7",
        kind="classification",
        classes=SENTIMENT7,
        description="score rounded to an integer, halves to the even one (Acc-7)",
    ),
    Task(
        name="sentiment3",
        kind="classification",
        classes=("negative", "neutral", "positive"),
        description="sign of the score, 0 is neutral",
    ),
)
SCHEMES = {
    "standard": Scheme(column="fold", description="the SDK's lists of videos: 1,284 / 229 / 686 clips"),
    "uniform": Scheme(stratify="polarity", description="70 / 15 / 15 by video, stratified by polarity"),
}


def cohort(raw: Path, options: MosiOptions) -> Cohort:
    """Samples, labels and attrition of the export.

    The samples have `sample_id`, `subject_id` (the video), `clip` (from 1), `fold` (train, val or test) and the times
    `start` and `end` in seconds (null in the pickle formats). The labels come from the sentiment score in [-3, 3].
    """
    clips = open_export(raw, options).clips.sort("sample_id")
    attrition = Attrition(len(clips))
    kept = clips.filter(pl.col("fold").is_not_null())
    attrition.step("the video is in none of the three fold lists", len(kept))
    score = pl.col("score")
    sign = score.sign().cast(pl.Int8)
    values = {
        "polarity": pl.when(score != 0).then((score > 0).cast(pl.Int8)),
        "score": score,
        "sentiment7": (score.cast(pl.Float64).clip(-3, 3).round(mode="half_to_even") + 3).cast(pl.Int8),
        "sentiment3": sign + 1,
    }
    labels = {t: kept.select("sample_id", v.alias("value")).drop_nulls() for t, v in values.items()}
    return Cohort(samples=kept.drop("score"), labels=labels, attrition=attrition.frame())
