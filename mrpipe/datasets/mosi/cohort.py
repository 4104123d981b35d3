"""Who is in: every segment of a video that stands in one of the fold lists; neutral clips have no polarity."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.mosi.export import open_export
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.schema import Attrition, Checked, Cohort, Scheme, Task

RELEASES = {"csd": "CMU-MultimodalSDK (.csd)", "mmsa": "MMSA", "multibench": "MultiBench"}
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


def check(raw: Path, options: MosiOptions) -> Checked:
    """Open the export and everything that a run would read in it; all faults at once."""
    export = open_export(raw, options)
    release = RELEASES[export.format]
    if export.format != "csd":
        release += f" {export.files[0].name}"
    return Checked(release=release, files=export.files, notes=tuple(export.notes))


def modalities_of(raw: Path, options: MosiOptions) -> tuple[str, ...]:
    """Which of text, audio and vision this export holds."""
    return open_export(raw, options).modalities


def cohort(raw: Path, options: MosiOptions) -> Cohort:
    """Samples (`sample_id`, `subject_id` = video, `clip` from 1, `fold`, `start`, `end` in s), labels and attrition."""
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
