"""Who is in, with which topic, and MultiBench's split; quality flags and attrition.

`sample_id` is the screen's id as the export writes it ("50245"): it joins with every file of the provider. Samples are
sorted as strings, so "1130" comes before "124"; nothing depends on a numeric order. A screen is its own subject: the
provider names no users, and the standard split ignores which app a screen is from (`app_id` tells, where it is known).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.enrico.hierarchy import parse_hierarchy
from mrpipe.datasets.enrico.images import picture_size
from mrpipe.datasets.enrico.tables import (
    LANDSCAPE_MODE,
    MULTIBENCH_IGNORES,
    NOT_AVAILABLE,
    SEVERITIES,
    SOURCES,
    TOPICS,
    EnricoExport,
    EnricoOptions,
    open_export,
    read_issues,
    read_topics,
)
from mrpipe.datasets.enrico.wireframe import wireframe_sources
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Attrition, Cohort

APP_SCHEMA = {"has_metadata": pl.Boolean, "app_id": pl.String, "app_category": pl.String}


def multibench_folds(screen_ids: Sequence[str]) -> list[str | None]:
    """MultiBench's split of the screens, in the order of the table: 65 % train, 15 % val, 20 % test.

    datasets/enrico/get_data.py leaves two screens out (None here), shuffles the positions of the others with
    `random.Random(42)` and cuts at int(n·0.65) and int(n·(0.65 + 0.15)): 947/219/292 of the published 1,458.
    """
    kept = [i for i, screen_id in enumerate(screen_ids) if screen_id not in MULTIBENCH_IGNORES]
    order = list(range(len(kept)))
    random.Random(42).shuffle(order)
    n_train, n_fit = int(len(kept) * 0.65), int(len(kept) * (0.65 + 0.15))
    folds: list[str | None] = [None] * len(screen_ids)
    for rank, position in enumerate(order):
        folds[kept[position]] = "train" if rank < n_train else "val" if rank < n_fit else "test"
    return folds


def unavailable_wireframes(issues: pl.DataFrame) -> frozenset[str]:
    """Screens whose wireframe picture is not to be used: MultiBench's two, and what issues.csv calls not available."""
    listed = issues.filter((pl.col("source") == "wireframe") & (pl.col("description") == NOT_AVAILABLE))
    return frozenset([*MULTIBENCH_IGNORES, *listed["screen_id"]])


def _issue_columns(issues: pl.DataFrame) -> pl.DataFrame:
    """One row a screen with an issue: worst severity per source, worst of all (as a rank), and the descriptions."""
    ranked = issues.with_columns(
        pl.col("severity").replace_strict({s: i for i, s in enumerate(SEVERITIES)}, return_dtype=pl.Int8).alias("rank")
    )
    names = dict(enumerate(SEVERITIES))
    worst = [
        pl.col("rank")
        .filter(pl.col("source") == source)
        .max()
        .replace_strict(names, return_dtype=pl.String)
        .alias(f"issue_{source}")
        for source in SOURCES
    ]
    described = pl.format("{}: {}", "source", "description").str.join("; ").alias("issue_description")
    grouped = ranked.group_by(pl.col("screen_id").alias("sample_id"), maintain_order=True)
    return grouped.agg(*worst, described, pl.col("rank").max().alias("issue_rank"))


def parse_metadata(data: bytes, shown_as: str) -> dict[str, Any]:
    """Play-store data of a screen's app; an empty dict where the provider found none (an empty file, {}, [] or null).

    Raises:
        DataError: no JSON, or neither an object nor empty.
    """
    text = data.decode("utf-8", errors="ignore").strip()
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise DataError(
            Fault(file=shown_as, expected="JSON", found=str(error), fix="The file is damaged: download it again.")
        ) from error
    if value and not isinstance(value, dict):
        raise DataError(Fault(file=shown_as, expected="a JSON object", found=type(value).__name__))
    return value or {}


def _app(export: EnricoExport, screen_id: str) -> tuple[bool | None, str | None, str | None]:
    name = f"{screen_id}.json"
    if name not in export.metadata.names():
        return None, None, None
    values = parse_metadata(export.metadata.read(name), f"{export.metadata.source}/{name}")
    category = values.get("category")
    first = category[0] if isinstance(category, list) and category else category
    app_id = values.get("app_id")
    return bool(values), str(app_id) if app_id else None, str(first) if first else None


def _n_components(export: EnricoExport, screen_id: str) -> int | None:
    name = f"{screen_id}.json"
    if name not in export.hierarchies.names():
        return None
    shown_as = f"{export.hierarchies.source}/{name}"
    return len(parse_hierarchy(export.hierarchies.read(name), shown_as, screen_id).components)


def build_cohort(raw: Path, options: EnricoOptions) -> Cohort:
    """Every screen of design_topics.csv that the options do not leave out.

    Samples carry: `fold` (MultiBench's part; assigned before anything is left out, so that an exclusion never moves
    another screen), `wireframe_source` (png, rendered, null), `screen_width`, `screen_height` (Int32, pixels),
    `issue_<source>` (worst severity or null) and `issue_description`, `n_components` (Int32, labelled nodes of the
    hierarchy), `has_metadata`, `app_id`, `app_category`.
    """
    topics, issues, export = read_topics(raw), read_issues(raw), open_export(raw)
    ids = topics["screen_id"].to_list()
    sizes = [picture_size(export.screenshots.read(f"{s}.jpg"), f"{export.screenshots.source}/{s}.jpg") for s in ids]
    samples = pl.DataFrame(
        {
            "sample_id": ids,
            "subject_id": ids,
            "fold": multibench_folds(ids),
            "wireframe_source": wireframe_sources(export, ids, unavailable_wireframes(issues), options),
            "screen_width": [w for w, _ in sizes],
            "screen_height": [h for _, h in sizes],
            "n_components": [_n_components(export, s) for s in ids],
        },
        schema_overrides={
            "fold": pl.String,
            "wireframe_source": pl.String,
            "screen_width": pl.Int32,
            "screen_height": pl.Int32,
            "n_components": pl.Int32,
        },
    ).hstack(pl.DataFrame([_app(export, s) for s in ids], schema=APP_SCHEMA, orient="row"))
    samples = samples.join(_issue_columns(issues), on="sample_id", how="left", maintain_order="left", validate="1:1")

    attrition = Attrition(len(samples), "screens in design_topics.csv")
    if options.exclude_issues != "none":
        limit = SEVERITIES.index(options.exclude_issues)
        samples = samples.filter(pl.col("issue_rank").fill_null(-1) < limit)
        worse = " or worse" if options.exclude_issues != "high" else ""
        reason = f"an issue of severity {options.exclude_issues}{worse} (exclude_issues={options.exclude_issues})"
        attrition.step(reason, len(samples))
    if options.landscape == "exclude":
        # A picture may be upright and its screen lie on the side: issues.csv knows.
        listed = issues.filter(pl.col("description") == LANDSCAPE_MODE)["screen_id"].implode()
        upright = pl.col("screen_width") <= pl.col("screen_height")
        samples = samples.filter(upright & ~pl.col("sample_id").is_in(listed))
        attrition.step("screenshot in landscape (landscape=exclude)", len(samples))

    labels = samples.select("sample_id").join(topics, left_on="sample_id", right_on="screen_id", how="left")
    index = {topic: i for i, topic in enumerate(TOPICS)}
    value = pl.col("topic").replace_strict(index, return_dtype=pl.Int8).alias("value")
    columns = [*(f"issue_{s}" for s in SOURCES), "issue_description"]
    ordered = samples.select(pl.exclude(*columns, "issue_rank"), *columns).sort("sample_id")
    return Cohort(
        samples=ordered,
        labels={"topic": labels.select("sample_id", value).sort("sample_id")},
        attrition=attrition.frame(),
    )
