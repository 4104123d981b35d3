"""Cohort selection, topic labels, MultiBench's split, quality flags and attrition; and the check of an export.

`sample_id` is the screen id exactly as in the export ("50245"), so that it joins with all of the provider's files.
Samples are sorted as strings ("1130" before "124"); nothing depends on numeric order. Each screen is its own subject:
the provider does not identify users, and the standard split ignores apps (`app_id` holds the app where it is known).
"""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.enrico import tables as enrico
from mrpipe.datasets.enrico.hierarchy import Hierarchy, parse_hierarchy
from mrpipe.datasets.enrico.modalities import HIERARCHIES, WIREFRAMES
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.images import SUFFIXES, image_size
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Folder, few, report_unmatched
from mrpipe.schema import Attrition, Checked, Cohort

TABLES = ("design_topics.csv", "issues.csv", "component_legend.json", "icon_legend.json")
UNUSED = ("textButton_legend.json",)
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


class _Members:
    """The files of one folder that belong to `screen_ids`; parsing them collects the faults of damaged ones."""

    def __init__(self, folder: Folder, suffixes: Sequence[str], screen_ids: list[str]):
        self.folder = folder
        stems = folder.stems(suffixes)
        self.names = {s: stems[s] for s in screen_ids if s in stems}
        self.unexpected = sorted(folder.names() - set(self.names.values()))

    def parse(self, parser: Any, faults: FaultCollector, screen_ids: Iterable[str] | None = None) -> dict[str, Any]:
        """Map screen ids (default: all) to parsed values; damaged files are left out and reported."""
        values: dict[str, Any] = {}
        broken: list[DataError] = []
        for screen_id in self.names if screen_ids is None else screen_ids:
            try:
                values[screen_id] = self.folder.parse(self.names[screen_id], parser)
            except DataError as error:
                broken.append(error)
        faults.absorb_some(broken, self.folder.source, enrico.FETCH)
        return values


class _Screens:
    """Files of the screens `ids`: image sizes, hierarchies and metadata by screen, and the source of each wireframe.

    Sources are `png`, `rendered`, or None for a screen without a wireframe: a hierarchy that draws nothing gives none.
    """

    def __init__(
        self,
        export: dict[str, Folder],
        ids: list[str],
        issues: pl.DataFrame | None,
        options: EnricoOptions,
        faults: FaultCollector,
    ):
        self.screenshots = _Members(export["screenshots"], SUFFIXES, ids)
        self.wireframes = _Members(export["wireframes"], WIREFRAMES, ids)
        self.hierarchies, self.metadata = (_Members(export[n], HIERARCHIES, ids) for n in ("hierarchies", "metadata"))
        self.sizes: dict[str, tuple[int, int]] = self.screenshots.parse(image_size, faults)
        self.trees: dict[str, Hierarchy] = self.hierarchies.parse(parse_hierarchy, faults)
        self.apps = self.metadata.parse(parse_metadata, faults)
        self.drawable = {s for s, t in self.trees.items() if t.draws}
        images = self.wireframes.names.keys() - (frozenset() if issues is None else unavailable_wireframes(issues))
        render, missing = options.wireframes == "render", options.render_missing_wireframes
        self.sources: dict[str, str | None] = {
            s: "rendered" if s in self.drawable and (render or (s not in images and missing)) else None for s in ids
        }
        self.sources |= {s: "png" for s in images if self.sources[s] is None}


def build_cohort(raw: Path, options: EnricoOptions) -> Cohort:
    """Select the screens of design_topics.csv that the options do not exclude.

    Sample columns: `fold` (MultiBench's split, assigned before any exclusion, so that excluding a screen never moves
    another one), `wireframe_source` (png, rendered, null), `screen_width`, `screen_height` (Int32, pixels, null without
    a screenshot), `issue_<source>` (worst severity or null) and `issue_description`, `n_components` (Int32, labelled
    nodes of the hierarchy), `has_metadata`, `app_id`, `app_category`.
    """
    topics, issues, faults = enrico.read_topics(raw), enrico.read_issues(raw), FaultCollector()
    ids = topics["screen_id"].to_list()
    screens = _Screens(enrico.open_export(raw), ids, issues, options, faults)
    faults.raise_if_any()
    sizes, trees, apps = screens.sizes, screens.trees, screens.apps
    samples = pl.DataFrame(
        {
            "sample_id": ids,
            "subject_id": ids,
            "fold": multibench_folds(ids),
            "wireframe_source": [screens.sources[s] for s in ids],
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


def _require_folders(export: dict[str, Folder], options: EnricoOptions, raw: Path, faults: FaultCollector) -> None:
    if not export["screenshots"].exists:
        fix = f"Download screenshots.zip (110 MB) from {enrico.PROVIDER}; it does not need to be unpacked."
        file, expected = f"{raw.name}/screenshots", "the folder, or screenshots.zip"
        faults.add(Fault(file=file, expected=expected, found="neither", fix=fix))
    drawable = options.wireframes == "render" or options.render_missing_wireframes
    if not export["wireframes"].exists and not (drawable and export["hierarchies"].exists):
        also = ", or hierarchies to draw them from" if drawable else " (drawing them is disabled)"
        found = "neither" if not export["hierarchies"].exists else "only hierarchies"
        fix = f"Download wireframes.zip (5 MB) or hierarchies.zip (2 MB) from {enrico.PROVIDER}."
        expected = f"the folder or wireframes.zip{also}"
        faults.add(Fault(file=f"{raw.name}/wireframes", expected=expected, found=found, fix=fix))


def check_export(raw: Path, options: EnricoOptions) -> Checked:
    """Read all tables, and the image headers and JSON files of all screens in design_topics.csv.

    Raises:
        DataError: reports all errors of the tables, folders and files together.
    """
    faults = FaultCollector()
    if len(options.image_size) != 2 or not all(isinstance(n, int) and n >= 1 for n in options.image_size):
        found = str(list(options.image_size))
        faults.add(Fault(file="options", column="image_size", expected="[height, width] in pixels", found=found))
    topics: pl.DataFrame | None = faults.attempt(enrico.read_topics, raw)
    issues: pl.DataFrame | None = faults.attempt(enrico.read_issues, raw)
    legend: enrico.Legend | None = faults.attempt(enrico.read_legend, raw)
    export: dict[str, Folder] | None = faults.attempt(enrico.open_export, raw)
    if export is not None:
        _require_folders(export, options, raw, faults)
    if export is None or topics is None:
        faults.raise_if_any()
    assert export is not None
    assert topics is not None

    ids = topics["screen_id"].to_list()
    screens = _Screens(export, ids, issues, options, faults)
    screenshots, wireframes, hierarchies = screens.screenshots, screens.wireframes, screens.hierarchies
    sources, trees = screens.sources, screens.trees
    wireframes.parse(image_size, faults, [s for s in wireframes.names if sources[s] == "png"])
    # Hierarchies that could not be parsed are faults already.
    without = {s for s in ids if sources[s] is None and (s in trees or s not in hierarchies.names)}

    notes: list[str] = []
    limit = options.max_unmatched
    for having, what, members in (
        (set(screenshots.names), "screens have no screenshot", screenshots),
        (set(ids) - without, "screens have no wireframe", wireframes if export["wireframes"].exists else hierarchies),
    ):
        if members.folder.exists and not any(f.file.endswith("/wireframes") for f in faults.faults):
            # A file of a screen in another form is no counterpart; others may be screens with a changed id.
            others, file = having | {Path(n).stem for n in members.unexpected} - set(ids), members.folder.source
            report_unmatched(set(ids), others, what, file=file, notes=notes, faults=faults, limit=limit)
    faults.raise_if_any()
    assert issues is not None
    assert legend is not None

    def note(screen_ids: Iterable[str], text: str) -> None:
        if listed := sorted(screen_ids):
            notes.append(f"{len(listed)} {text}: {few(listed)}")

    if len(ids) != (published := sum(enrico.TOPIC_COUNTS.values())):
        notes.append(f"design_topics.csv has {len(ids)} screens; the published table has {published}")
    drawn = sorted(s for s in ids if sources[s] == "rendered")
    note(drawn, "wireframes will be drawn from their hierarchies")
    note(trees.keys() - screens.drawable, "hierarchies draw nothing and give no wireframe")
    note((s for s, (width, height) in screens.sizes.items() if width > height), "screens are in landscape format")
    what = "ids are not in design_topics.csv"
    report_unmatched(set(issues["screen_id"]), set(ids), what, file="issues.csv", notes=notes)
    for members in (screenshots, wireframes, hierarchies, screens.metadata):
        note(members.unexpected, f"files in {members.folder.source} belong to no screen and are ignored")
    if export["hierarchies"].exists:
        note(set(ids) - hierarchies.names.keys(), "screens have no hierarchy")
    swapped = [f"{hierarchies.names[s]} {place}" for s, t in trees.items() for place in t.swapped]
    note(swapped, "nodes have their right or bottom edge before the left or top one and draw nothing")
    note((s for s, t in trees.items() if not t.plain), "hierarchies are not UTF-8 and were read as Latin-1")
    note(
        (s for s, (_, plain) in screens.apps.items() if not plain),
        "metadata files are not UTF-8 and were read as Latin-1",
    )
    if apps := screens.apps:
        notes.append(f"{sum(not a for a, _ in apps.values())} of {len(apps)} screens have empty metadata")
    if unknown := sorted({c.label for s in drawn for c in trees[s].components} - {*legend.components, "Icon"}):
        notes.append(f"components without a colour in the legend are drawn as transparent holes: {few(unknown)}")
    if not legend.icons and any(c.label == "Icon" for s in drawn for c in trees[s].components):
        notes.append("icon_legend.json is missing: icons in drawn wireframes become holes (black)")

    root = enrico.root_of(raw)
    files = [root / name for name in TABLES if (root / name).is_file()]
    unused = {n: "not needed: colours come from the other legends" for n in UNUSED if (root / n).is_file()}
    for folder in export.values():
        files += folder.files()
        if folder.ignored:
            unused[folder.ignored.name] = f"the unpacked folder {folder.name} is read; remove it to read the archive"
    observed = {"screenshot": list(screens.sizes), "wireframe": [s for s in ids if sources[s]]}
    listed = {m: pl.Series(v, dtype=pl.String) for m, v in observed.items()}
    return Checked(release="Enrico 2020", files=tuple(files), notes=tuple(notes), observed=listed, unused=unused)
