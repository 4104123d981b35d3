"""Validate an Enrico export: find every error that a build would run into before the build starts."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.enrico import tables as enrico
from mrpipe.datasets.enrico.cohort import parse_metadata, unavailable_wireframes
from mrpipe.datasets.enrico.hierarchy import Hierarchy, parse_hierarchy
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.enrico.wireframe import HIERARCHIES, WIREFRAMES, wireframe_sources
from mrpipe.datasets.images import SUFFIXES, image_size
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Folder, few, report_unmatched
from mrpipe.schema import Checked

TABLES = ("design_topics.csv", "issues.csv", "component_legend.json", "icon_legend.json")
UNUSED = ("textButton_legend.json",)


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


class _Members:
    """The files of one folder that belong to `screen_ids`; parsing them collects the faults of damaged ones."""

    def __init__(self, folder: Folder, suffixes: Sequence[str], screen_ids: list[str]):
        self.folder = folder
        stems = folder.stems(suffixes)
        self.names = {s: stems[s] for s in screen_ids if s in stems}
        self.absent = [s for s in screen_ids if s not in stems]
        self.unexpected = sorted(folder.names() - set(self.names.values()))

    def parse(self, screen_ids: Iterable[str], parser: Any, faults: FaultCollector) -> dict[str, Any]:
        """Map screen ids to parsed values; damaged files are left out and reported."""
        values: dict[str, Any] = {}
        broken: list[DataError] = []
        for screen_id in screen_ids:
            try:
                values[screen_id] = self.folder.parse(self.names[screen_id], parser)
            except DataError as error:
                broken.append(error)
        faults.absorb_some(broken, self.folder.source, enrico.FETCH)
        return values


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
    screenshots = _Members(export["screenshots"], SUFFIXES, ids)
    wireframes = _Members(export["wireframes"], WIREFRAMES, ids)
    hierarchies = _Members(export["hierarchies"], HIERARCHIES, ids)
    metadata = _Members(export["metadata"], HIERARCHIES, ids)
    images = wireframes.names.keys() - (unavailable_wireframes(issues) if issues is not None else frozenset())
    sizes = screenshots.parse(screenshots.names, image_size, faults)
    trees: dict[str, Hierarchy] = hierarchies.parse(hierarchies.names, parse_hierarchy, faults)
    drawable = {s for s, t in trees.items() if t.draws}
    sources = dict(zip(ids, wireframe_sources(ids, images, drawable, options), strict=True))
    wireframes.parse([s for s in wireframes.names if sources[s] == "png"], image_size, faults)
    apps = metadata.parse(metadata.names, parse_metadata, faults)
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
    note(trees.keys() - drawable, "hierarchies draw nothing and give no wireframe")
    note((s for s, (width, height) in sizes.items() if width > height), "screens are in landscape format")
    what = "ids are not in design_topics.csv"
    report_unmatched(set(issues["screen_id"]), set(ids), what, file="issues.csv", notes=notes)
    for members in (screenshots, wireframes, hierarchies, metadata):
        note(members.unexpected, f"files in {members.folder.source} belong to no screen and are ignored")
    if export["hierarchies"].exists:
        note(hierarchies.absent, "screens have no hierarchy")
    swapped = [f"{hierarchies.names[s]} {place}" for s, t in trees.items() for place in t.swapped]
    note(swapped, "nodes have their right or bottom edge before the left or top one and draw nothing")
    note((s for s, t in trees.items() if not t.plain), "hierarchies are not UTF-8 and were read as Latin-1")
    note((s for s, (_, plain) in apps.items() if not plain), "metadata files are not UTF-8 and were read as Latin-1")
    if apps:
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
    observed = {"screenshot": list(sizes), "wireframe": [s for s in ids if sources[s]]}
    listed = {m: pl.Series(v, dtype=pl.String) for m, v in observed.items()}
    return Checked(release="Enrico 2020", files=tuple(files), notes=tuple(notes), observed=listed, unused=unused)
