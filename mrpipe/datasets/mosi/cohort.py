"""Cohort and labels: all segments of videos that appear in a fold list."""

from pathlib import Path

import polars as pl

from mrpipe.datasets.mosi.export import open_export
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.schema import Attrition, Cohort


def cohort(raw: Path, options: MosiOptions) -> Cohort:
    """Samples, labels and attrition of the export.

    The samples have `sample_id`, `subject_id`, `clip`, `fold` (train, val or test) and the times `start` and `end` in
    seconds (null in formats without times). The labels are the tasks of the corpus, functions of the sentiment score.
    """
    clips = open_export(raw, options).clips.sort("sample_id")
    attrition = Attrition(len(clips), "clips in the export")
    kept = clips.filter(pl.col("fold").is_not_null())
    attrition.step("video in none of the three fold lists", len(kept))
    labels = {}
    for task, value in options.corpus.tasks:
        dtype = pl.Float32 if task.kind == "regression" else pl.Int8
        labels[task.name] = kept.select("sample_id", value.cast(dtype).alias("value")).drop_nulls()
    return Cohort(samples=kept.drop("score"), labels=labels, attrition=attrition.frame())
