"""Cohort selection, topic labels, MultiBench's split, quality flags and attrition.

`sample_id` is the screen id exactly as in the export ("50245"), so that it joins with all of the provider's files.
Samples are sorted as strings ("1130" before "124"); nothing depends on numeric order. Each screen is its own subject:
the provider does not identify users, and the standard split ignores apps (`app_id` holds the app where it is known).
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.enrico import tables as enrico
from mrpipe.datasets.enrico.hierarchy import parse_hierarchy
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.enrico.wireframe import HIERARCHIES, WIREFRAMES, wireframe_sources
from mrpipe.datasets.images import SUFFIXES, image_size
from mrpipe.errors import DataError, Fault
from mrpipe.raw import Folder
from mrpipe.schema import Attrition, Cohort

APP_SCHEMA = {"has_metadata": pl.Boolean, "app_id": pl.String, "app_category": pl.String}


def multibench_folds(screen_ids: Sequence[str]) -> list[str | None]:
    """MultiBench's split of the screens, in table order: 65 % train, 15 % val, 20 % test.

    MultiBench's datasets/enrico/get_data.py skips two screens (None here), shuffles the positions of the others with
    `random.Random(42)` and cuts at int(n·0.65) and int(n·(0.65 + 0.15)): 947/219/292 of the published 1,458.
    """
    kept = [i for i, screen_id in enumerate(screen_ids) if screen_id not in enrico.MULTIBENCH_IGNORES]
    order = list(range(len(kept)))
    random.Random(42).shuffle(order)
    n_train, n_fit = int(len(kept) * 0.65), int(len(kept) * (0.65 + 0.15))
    folds: list[str | None] = [None] * len(screen_ids)
    for rank, position in enumerate(order):
        folds[kept[position]] = "train" if rank < n_train else "val" if rank < n_fit else "test"
    return folds


def unavailable_wireframes(issues: pl.DataFrame) -> frozenset[str]:
    """Screens without a usable wireframe image: MultiBench's two, and those marked "not available" in issues.csv."""
    listed = issues.filter((pl.col("source") == "wireframe") & (pl.col("description") == enrico.NOT_AVAILABLE))
    return frozenset([*enrico.MULTIBENCH_IGNORES, *listed["screen_id"]])


def _issue_columns(issues: pl.DataFrame) -> pl.DataFrame:
    """One row per screen with issues: worst severity per source, worst severity overall (a rank), descriptions."""
    severity = pl.col("severity").cast(pl.Enum(enrico.SEVERITIES))
    of_source = {s: severity.filter(pl.col("source") == s).max().cast(pl.String) for s in enrico.SOURCES}
    worst = [expression.alias(f"issue_{source}") for source, expression in of_source.items()]
    described = pl.format("{}: {}", "source", "description").str.join("; ").alias("issue_description")
    grouped = issues.group_by(pl.col("screen_id").alias("sample_id"), maintain_order=True)
    return grouped.agg(*worst, described, severity.max().to_physical().cast(pl.Int8).alias("issue_rank"))


def parse_metadata(data: bytes, shown_as: str) -> tuple[dict[str, Any], bool]:
    """Play Store metadata of a screen's app, and whether the text is UTF-8 (else it is read as Latin-1).

    The metadata are empty if the provider has none (an empty file, {}, [] or null).

    Raises:
        DataError: if the content is not JSON, or neither an object nor empty.
    """
    value, plain = enrico.parse_json(data, shown_as) if data.strip() else ({}, True)
    if value and not isinstance(value, dict):
        raise DataError(Fault(file=shown_as, expected="a JSON object", found=type(value).__name__))
    return value or {}, plain


def _app(values: dict[str, Any] | None) -> tuple[bool | None, str | None, str | None]:
    if values is None:
        return None, None, None
    category = values.get("category")
    first = category[0] if isinstance(category, list) and category else category
    app_id = values.get("app_id")
    return bool(values), str(app_id) if app_id else None, str(first) if first else None


def build_cohort(raw: Path, options: EnricoOptions) -> Cohort:
    """Select the screens of design_topics.csv that the options do not exclude.

    Sample columns: `fold` (MultiBench's split, assigned before any exclusion, so that excluding a screen never moves
    another one), `wireframe_source` (png, rendered, null), `screen_width`, `screen_height` (Int32, pixels, null without
    a screenshot), `issue_<source>` (worst severity or null) and `issue_description`, `n_components` (Int32, labelled
    nodes of the hierarchy), `has_metadata`, `app_id`, `app_category`.
    """
    topics, issues, export = enrico.read_topics(raw), enrico.read_issues(raw), enrico.open_export(raw)
    ids = topics["screen_id"].to_list()

    def parsed(folder: Folder, suffixes: Sequence[str], parser: Callable[[bytes, str], Any]) -> dict[str, Any]:
        names = folder.stems(suffixes)
        return {s: folder.parse(names[s], parser) for s in ids if s in names}

    sizes = parsed(export["screenshots"], SUFFIXES, image_size)
    trees = parsed(export["hierarchies"], HIERARCHIES, parse_hierarchy)
    apps = parsed(export["metadata"], HIERARCHIES, parse_metadata)
    images = export["wireframes"].stems(WIREFRAMES).keys() - unavailable_wireframes(issues)
    sources = wireframe_sources(ids, images, {s for s, t in trees.items() if t.draws}, options)
    samples = pl.DataFrame(
        {
            "sample_id": ids,
            "subject_id": ids,
            "fold": multibench_folds(ids),
            "wireframe_source": sources,
            "screen_width": [sizes[s][0] if s in sizes else None for s in ids],
            "screen_height": [sizes[s][1] if s in sizes else None for s in ids],
            "n_components": [len(trees[s].components) if s in trees else None for s in ids],
        },
        schema_overrides=dict.fromkeys(("fold", "wireframe_source"), pl.String)
        | dict.fromkeys(("screen_width", "screen_height", "n_components"), pl.Int32),
    ).hstack(pl.DataFrame([_app(apps[s][0] if s in apps else None) for s in ids], schema=APP_SCHEMA, orient="row"))
    samples = samples.join(_issue_columns(issues), on="sample_id", how="left", maintain_order="left", validate="1:1")

    attrition = Attrition(len(samples), "screens with a design topic")
    if options.exclude_issues != "none":
        samples = samples.filter(pl.col("issue_rank").fill_null(-1) < enrico.SEVERITIES.index(options.exclude_issues))
        worse = " or worse" if options.exclude_issues != "high" else ""
        attrition.step(f"issue of severity {options.exclude_issues}{worse}", len(samples))
    if options.landscape == "exclude":
        # A screenshot can be upright although its screen is in landscape; issues.csv lists those.
        listed = issues.filter(pl.col("description") == enrico.LANDSCAPE_MODE)["screen_id"].implode()
        upright = pl.col("screen_width") <= pl.col("screen_height")
        samples = samples.filter(upright.fill_null(True) & ~pl.col("sample_id").is_in(listed))
        attrition.step("screenshot in landscape", len(samples))

    labels = samples.select("sample_id").join(topics, left_on="sample_id", right_on="screen_id", how="left")
    index = {topic: i for i, topic in enumerate(enrico.TOPICS)}
    value = pl.col("topic").replace_strict(index, return_dtype=pl.Int8).alias("value")
    columns = [*(f"issue_{s}" for s in enrico.SOURCES), "issue_description"]
    ordered = samples.select(pl.exclude(*columns, "issue_rank"), *columns).sort("sample_id")
    topic = labels.select("sample_id", value).sort("sample_id")
    return Cohort(samples=ordered, labels={"topic": topic}, attrition=attrition.frame())
