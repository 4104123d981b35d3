"""The raw tables and colour legends of Enrico, and the codes that they use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Column, Folder, find_one, read_csv

PROVIDER = "https://github.com/luileito/enrico (files under http://userinterfaces.aalto.fi/enrico/resources/)"
FETCH = f"Get it from {PROVIDER}."

# Number of screens per topic in the published table. The label index is the sorted order, as in MultiBench.
TOPIC_COUNTS = {
    "bare": 76,
    "calculator": 6,
    "camera": 8,
    "chat": 11,
    "editor": 18,
    "form": 103,
    "gallery": 144,
    "list": 265,
    "login": 141,
    "maps": 9,
    "mediaplayer": 32,
    "menu": 79,
    "modal": 67,
    "news": 59,
    "other": 52,
    "profile": 63,
    "search": 35,
    "settings": 90,
    "terms": 39,
    "tutorial": 163,
}
TOPICS = tuple(sorted(TOPIC_COUNTS))
# The README of the provider's repository uses "Dialer" for the topic that the table calls calculator.
TOPIC_ALIASES = {"dialer": "calculator"}

# Screens that MultiBench skips because their wireframes are not available.
MULTIBENCH_IGNORES = ("50105", "50109")
NOT_AVAILABLE = "not available"
LANDSCAPE_MODE = "landscape mode"

SOURCES = ("screenshot", "wireframe", "hierarchy")
SEVERITIES = ("low", "medium", "high")

# Size of the published images and of the canvas of the hierarchies: (width, height) in portrait.
SCREEN_SIZE = (540, 960)
CANVAS_SIZE = (1440, 2560)

# The `hex` entries of component_legend.json; its `rgb` entries are off by one (they reach 256).
COMPONENT_COLOURS = {
    "Advertisement": "#0D47A1",
    "Background Image": "#D21453",
    "Bottom Navigation": "#BA68C8",
    "Button Bar": "#FFCDD2",
    "Card": "#D7BDE2",
    "Checkbox": "#FF8A65",
    "Date Picker": "#CC6699",
    "Drawer": "#673AB7",
    "Image": "#F06292",
    "Input": "#90CAF9",
    "List Item": "#FFE0B2",
    "Map View": "#E1BEE7",
    "Modal": "#00FFCC",
    "Multi-Tab": "#FFF176",
    "Number Stepper": "#AED581",
    "On/Off Switch": "#4FC3F7",
    "Pager Indicator": "#F8BBD0",
    "Radio Button": "#FFB74D",
    "Slider": "#CDDBDC",
    "Text": "#4A148C",
    "Text Button": "#CDDC39",
    "Toolbar": "#4DD0E1",
    "Video": "#00CC00",
    "Web View": "#42A5F5",
}

TOPIC_COLUMNS = (Column(name="screen_id", nullable=False), Column(name="topic", nullable=False))
ISSUE_COLUMNS = (
    Column(name="screen_id", nullable=False),
    Column(name="source", nullable=False),
    Column(name="description", nullable=False),
    Column(name="severity", nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class EnricoExport:
    """The folders of an export, each either unpacked or a zip archive."""

    screenshots: Folder
    wireframes: Folder
    hierarchies: Folder
    metadata: Folder

    @property
    def folders(self) -> tuple[Folder, ...]:
        return (self.screenshots, self.wireframes, self.hierarchies, self.metadata)


def open_export(raw: Path) -> EnricoExport:
    """Open the four folders; damaged archives are reported together."""
    faults = FaultCollector()
    folders: dict[str, Folder] = {}
    for name in ("screenshots", "wireframes", "hierarchies", "metadata"):
        try:
            folders[name] = Folder(raw, name)
        except DataError as error:
            faults.absorb(error)
    faults.raise_if_any()
    return EnricoExport(**folders)


def _require_plain_ids(frame: pl.DataFrame, file: str, faults: FaultCollector) -> None:
    bad = frame.with_row_index().filter(~pl.col("screen_id").str.contains(r"^[0-9]+$"))
    if len(bad):
        faults.add(
            Fault(
                file=file,
                column="screen_id",
                row=int(bad["index"][0]) + 1,
                expected="digits only, as in the names of the screenshot files",
                found=f"{bad['screen_id'][0]!r} ({len(bad)} such rows)",
                fix="Did a spreadsheet program change the ids?",
            )
        )


def read_topics(raw: Path) -> pl.DataFrame:
    """Columns `screen_id` and `topic` (String) in file order, which MultiBench's split depends on.

    Raises:
        DataError: if the file, a column or all rows are missing, or for invalid or repeated ids and unknown topics.
    """
    faults = FaultCollector()
    path = find_one(raw, [r"design_topics\.csv"], what="one topic per screen", fix=FETCH, faults=faults)
    faults.raise_if_any()
    assert path is not None
    frame = read_csv(path, TOPIC_COLUMNS).with_columns(
        pl.col("topic").str.to_lowercase().replace(TOPIC_ALIASES), pl.col("screen_id")
    )
    _require_plain_ids(frame, path.name, faults)
    repeated = frame.with_row_index().filter(pl.col("screen_id").is_duplicated())
    if len(repeated):
        ids = repeated["screen_id"].unique(maintain_order=True).to_list()
        faults.add(
            Fault(
                file=path.name,
                column="screen_id",
                row=int(repeated["index"][1]) + 1,
                expected="one row per screen",
                found=f"{len(ids)} repeated ids: {few(ids)}",
                fix="Each screen has one topic: remove the wrong rows.",
            )
        )
    unknown = frame.with_row_index().filter(~pl.col("topic").is_in(TOPICS))
    if len(unknown):
        faults.add(
            Fault(
                file=path.name,
                column="topic",
                row=int(unknown["index"][0]) + 1,
                expected=f"one of {', '.join(TOPICS)}",
                found=f"{few(sorted(unknown['topic'].unique().to_list()))} ({len(unknown)} rows)",
                fix="Is the table from another release?",
            )
        )
    faults.raise_if_any()
    return frame


def read_issues(raw: Path) -> pl.DataFrame:
    """Columns `screen_id`, `source`, `description`, `severity` (String); empty if the export has no issues.csv.

    Raises:
        DataError: for missing columns, invalid ids, and unknown sources or severities.
    """
    path = raw / "issues.csv"
    if not path.is_file():
        return pl.DataFrame(schema={c.name: pl.String for c in ISSUE_COLUMNS})
    frame = read_csv(path, ISSUE_COLUMNS).with_columns(pl.col("source", "severity").str.to_lowercase())
    faults = FaultCollector()
    _require_plain_ids(frame, path.name, faults)
    for column, known in (("source", SOURCES), ("severity", SEVERITIES)):
        unknown = frame.with_row_index().filter(~pl.col(column).is_in(known))
        if len(unknown):
            faults.add(
                Fault(
                    file=path.name,
                    column=column,
                    row=int(unknown["index"][0]) + 1,
                    expected=f"one of {', '.join(known)}",
                    found=f"{unknown[column][0]!r} ({len(unknown)} rows)",
                )
            )
    faults.raise_if_any()
    return frame


@dataclass(frozen=True, kw_only=True)
class Legend:
    """Colours of the wireframes as `#rrggbb`: by component type and, for icons, by class."""

    components: dict[str, str]
    icons: dict[str, str]


def _read_colours(path: Path) -> dict[str, str]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(entry["hex"]) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            Fault(
                file=path.name,
                expected='a JSON object {name: {"hex": "#rrggbb", …}}',
                found=f"{type(error).__name__}: {error}",
                fix=FETCH,
            )
        ) from error


def read_legend(raw: Path) -> Legend:
    """The colour legends of the export; defaults are the published component colours and no icon colours."""
    components, icons = raw / "component_legend.json", raw / "icon_legend.json"
    return Legend(
        components=_read_colours(components) if components.is_file() else dict(COMPONENT_COLOURS),
        icons=_read_colours(icons) if icons.is_file() else {},
    )


def few(names: list[str], n: int = 5) -> str:
    """The first few names of a list, for a message."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
