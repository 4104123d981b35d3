"""Check of an Enrico export: every fault that a build would meet, found before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.enrico.cohort import parse_metadata, unavailable_wireframes
from mrpipe.datasets.enrico.hierarchy import Hierarchy, parse_hierarchy
from mrpipe.datasets.enrico.images import picture_size
from mrpipe.datasets.enrico.tables import (
    FETCH,
    PROVIDER,
    TOPIC_COUNTS,
    EnricoExport,
    EnricoOptions,
    Legend,
    few,
    open_export,
    read_issues,
    read_legend,
    read_topics,
)
from mrpipe.datasets.enrico.wireframe import wireframe_sources
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Folder
from mrpipe.schema import Checked

# Faults of one kind that are listed one by one; the rest are counted.
LISTED_FAULTS = 20
TABLES = ("design_topics.csv", "issues.csv", "component_legend.json", "icon_legend.json", "textButton_legend.json")


def _attempt(faults: FaultCollector, function: Any, *arguments: Any) -> Any:
    """The function's value, or None and its faults collected."""
    try:
        return function(*arguments)
    except DataError as error:
        faults.absorb(error)
        return None


def _require_folders(export: EnricoExport, options: EnricoOptions, raw: Path, faults: FaultCollector) -> None:
    if not export.screenshots.exists:
        faults.add(
            Fault(
                file=f"{raw.name}/screenshots",
                expected="the folder, or screenshots.zip",
                found="neither",
                fix=f"Download screenshots.zip (110 MB) from {PROVIDER}; it need not be unpacked.",
            )
        )
    drawable = options.wireframes == "render" or options.render_missing_wireframes
    if not export.wireframes.exists and not (drawable and export.hierarchies.exists):
        also = ", or hierarchies to draw them from" if drawable else " (drawing them is switched off)"
        faults.add(
            Fault(
                file=f"{raw.name}/wireframes",
                expected=f"the folder or wireframes.zip{also}",
                found="neither" if not export.hierarchies.exists else "only hierarchies",
                fix=f"Download wireframes.zip (5 MB) or hierarchies.zip (2 MB) from {PROVIDER}.",
            )
        )


class _Members:
    """Reads the members of one folder that belong to `screen_ids` and collects what is wrong with them."""

    def __init__(self, folder: Folder, suffix: str, screen_ids: list[str]):
        self.folder = folder
        self.suffix = suffix
        self.names = folder.names()
        self.present = [s for s in screen_ids if f"{s}{suffix}" in self.names]
        self.absent = [s for s in screen_ids if f"{s}{suffix}" not in self.names]
        self.strangers = sorted(self.names - {f"{s}{suffix}" for s in screen_ids})

    def parse(self, screen_ids: list[str], parser: Any, faults: FaultCollector) -> dict[str, Any]:
        """Screen id → parsed value of the files that are whole."""
        values: dict[str, Any] = {}
        broken: list[DataError] = []
        for screen_id in screen_ids:
            name = f"{screen_id}{self.suffix}"
            try:
                values[screen_id] = parser(self.folder.read(name), f"{self.folder.source}/{name}", screen_id)
            except DataError as error:
                broken.append(error)
        for damage in broken[:LISTED_FAULTS]:
            faults.absorb(damage)
        if len(broken) > LISTED_FAULTS:
            faults.add(
                Fault(
                    file=self.folder.source,
                    expected="whole files",
                    found=f"{len(broken) - LISTED_FAULTS} more that are damaged",
                    fix=FETCH,
                )
            )
        return values


def _picture(data: bytes, shown_as: str, screen_id: str) -> tuple[int, int]:
    return picture_size(data, shown_as)


def _metadata(data: bytes, shown_as: str, screen_id: str) -> dict[str, Any]:
    return parse_metadata(data, shown_as)


def _unknown_labels(hierarchies: dict[str, Hierarchy], legend: Legend) -> list[str]:
    known = {*legend.components, "Icon"}
    return sorted({c.label for h in hierarchies.values() for c in h.components} - known)


def check_export(raw: Path, options: EnricoOptions) -> Checked:
    """Read every table, every header and every JSON of the screens in design_topics.csv.

    Raises:
        DataError: with every fault of tables, folders and files.
    """
    faults = FaultCollector()
    if len(options.image_size) != 2 or not all(isinstance(n, int) and n >= 1 for n in options.image_size):
        found = str(list(options.image_size))
        faults.add(Fault(file="options", column="image_size", expected="[height, width] in pixels", found=found))
    topics: pl.DataFrame | None = _attempt(faults, read_topics, raw)
    issues: pl.DataFrame | None = _attempt(faults, read_issues, raw)
    legend: Legend | None = _attempt(faults, read_legend, raw)
    export: EnricoExport | None = _attempt(faults, open_export, raw)
    if export is not None:
        _require_folders(export, options, raw, faults)
    if export is None or topics is None:
        faults.raise_if_any()
    assert export is not None
    assert topics is not None

    ids = topics["screen_id"].to_list()
    screenshots = _Members(export.screenshots, ".jpg", ids)
    if export.screenshots.exists and screenshots.absent:
        faults.add(
            Fault(
                file=export.screenshots.source,
                expected=f"a screenshot for each of the {len(ids)} screens in design_topics.csv",
                found=f"none for {len(screenshots.absent)}: {few([f'{s}.jpg' for s in screenshots.absent])}",
                fix="Are these ids of another release, or is the folder incomplete?",
            )
        )
    sizes = screenshots.parse(screenshots.present, _picture, faults)
    unavailable = unavailable_wireframes(issues) if issues is not None else frozenset()
    sources = dict(zip(ids, wireframe_sources(export, ids, unavailable, options), strict=True))
    wireframes = _Members(export.wireframes, ".png", ids)
    wireframes.parse([s for s in wireframes.present if sources[s] == "png"], _picture, faults)
    hierarchies = _Members(export.hierarchies, ".json", ids)
    trees: dict[str, Hierarchy] = hierarchies.parse(hierarchies.present, parse_hierarchy, faults)
    metadata = _Members(export.metadata, ".json", ids)
    apps = metadata.parse(metadata.present, _metadata, faults)
    faults.raise_if_any()
    assert issues is not None
    assert legend is not None

    notes: list[str] = []

    def note(screen_ids: list[str], text: str) -> None:
        if screen_ids:
            notes.append(f"{len(screen_ids)} {text}: {few(screen_ids)}")

    if len(ids) != sum(TOPIC_COUNTS.values()):
        notes.append(f"design_topics.csv has {len(ids)} screens; the published table has {sum(TOPIC_COUNTS.values())}")
    drawn = sorted(s for s in ids if sources[s] == "rendered")
    note(drawn, "wireframes will be drawn from the hierarchy")
    note(sorted(s for s in ids if sources[s] is None), "screens have no wireframe")
    note(sorted(s for s, (width, height) in sizes.items() if width > height), "screens are in landscape")
    note(sorted(set(issues["screen_id"]) - set(ids)), "ids of issues.csv are not in design_topics.csv")
    for members in (screenshots, wireframes, hierarchies, metadata):
        note(members.strangers, f"files of {members.folder.source} belong to no screen and are not read")
    if export.hierarchies.exists:
        note(sorted(hierarchies.absent), "screens have no hierarchy")
    if apps:
        notes.append(f"{sum(not a for a in apps.values())} of {len(apps)} screens have empty metadata")
    unknown = _unknown_labels({s: trees[s] for s in drawn}, legend)
    if unknown:
        notes.append(f"components without a colour in the legend are drawn as holes: {few(unknown)}")
    if not legend.icons and any(c.label == "Icon" for s in drawn for c in trees[s].components):
        notes.append("icon_legend.json is absent: icons of wireframes that are drawn become holes (black)")

    files = [raw / name for name in TABLES if (raw / name).is_file()]
    for folder in export.folders:
        files += folder.files()
    return Checked(release="Enrico 2020", files=tuple(files), notes=tuple(notes))
