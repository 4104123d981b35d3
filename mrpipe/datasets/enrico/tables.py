"""The raw tables and legends of Enrico, their codes, and the options of its readers (raw-formats part C)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.options import option
from mrpipe.raw import Column, Folder, find_one, read_csv

PROVIDER = "https://github.com/luileito/enrico (files under http://userinterfaces.aalto.fi/enrico/resources/)"
FETCH = f"Get it from {PROVIDER}."

# Number of screens of each topic in the published table; sorted order is the label index (as MultiBench has it).
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
# The repository's README prints "Dialer" for the topic that the table calls calculator.
TOPIC_ALIASES = {"dialer": "calculator"}

# Screens that MultiBench leaves out: their wireframes are not available.
MULTIBENCH_IGNORES = ("50105", "50109")
NOT_AVAILABLE = "not available"
LANDSCAPE_MODE = "landscape mode"

SOURCES = ("screenshot", "wireframe", "hierarchy")
SEVERITIES = ("low", "medium", "high")

# Size of the published pictures and of the coordinates in the hierarchies, (width, height) in portrait.
SCREEN_SIZE = (540, 960)
CANVAS_SIZE = (1440, 2560)

# component_legend.json, `hex`; the `rgb` entries there are off by one (they reach 256).
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
class EnricoOptions:
    """How an Enrico export is read."""

    image_size: tuple[int, ...] = option((256, 128), "height and width in pixels of the stored images (MultiBench)")
    landscape: str = option(
        "resize",
        "screens that are wider than tall: squeezed into the portrait shape as MultiBench does (resize), turned by 90° "
        "counter-clockwise first (rotate), or left out (exclude)",
        choices=("resize", "rotate", "exclude"),
    )
    wireframes: str = option(
        "png",
        "use the published wireframe pictures (png), or draw every one from its hierarchy (render); a screen without "
        "hierarchy keeps its picture",
        choices=("png", "render"),
    )
    render_missing_wireframes: bool = option(True, "draw a wireframe from the hierarchy where the picture is missing")
    exclude_issues: str = option(
        "none",
        "leave out screens with an issue of this severity or worse in issues.csv",
        choices=("none", "high", "medium"),
    )


@dataclass(frozen=True, kw_only=True)
class EnricoExport:
    """The folders of an export, each unpacked or still an archive."""

    screenshots: Folder
    wireframes: Folder
    hierarchies: Folder
    metadata: Folder

    @property
    def folders(self) -> tuple[Folder, ...]:
        return (self.screenshots, self.wireframes, self.hierarchies, self.metadata)


def open_export(raw: Path) -> EnricoExport:
    """Open the four folders; all damaged archives are reported together."""
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
                expected="digits only, as in the names of the screenshots",
                found=f"{bad['screen_id'][0]!r} ({len(bad)} such rows)",
                fix="Did a spreadsheet rewrite the ids?",
            )
        )


def read_topics(raw: Path) -> pl.DataFrame:
    """`screen_id`, `topic` (String, String) in the order of the file, which the MultiBench split depends on.

    Raises:
        DataError: missing file or columns, no rows, ids that are not digits, repeated ids, unknown topics.
    """
    faults = FaultCollector()
    path = find_one(raw, [r"design_topics\.csv"], what="one topic a screen", fix=FETCH, faults=faults)
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
                expected="each screen once",
                found=f"{len(ids)} ids more than once: {few(ids)}",
                fix="A screen has one topic: remove the rows that are wrong.",
            )
        )
    strange = frame.with_row_index().filter(~pl.col("topic").is_in(TOPICS))
    if len(strange):
        faults.add(
            Fault(
                file=path.name,
                column="topic",
                row=int(strange["index"][0]) + 1,
                expected=f"one of {', '.join(TOPICS)}",
                found=f"{few(sorted(strange['topic'].unique().to_list()))} ({len(strange)} rows)",
                fix="Is this another release of the table?",
            )
        )
    faults.raise_if_any()
    return frame


def read_issues(raw: Path) -> pl.DataFrame:
    """`screen_id`, `source`, `description`, `severity` (String); no rows where the export has no issues.csv.

    Raises:
        DataError: missing columns, ids that are not digits, unknown source or severity.
    """
    path = raw / "issues.csv"
    if not path.is_file():
        return pl.DataFrame(schema={c.name: pl.String for c in ISSUE_COLUMNS})
    frame = read_csv(path, ISSUE_COLUMNS).with_columns(pl.col("source", "severity").str.to_lowercase())
    faults = FaultCollector()
    _require_plain_ids(frame, path.name, faults)
    for column, known in (("source", SOURCES), ("severity", SEVERITIES)):
        strange = frame.with_row_index().filter(~pl.col(column).is_in(known))
        if len(strange):
            faults.add(
                Fault(
                    file=path.name,
                    column=column,
                    row=int(strange["index"][0]) + 1,
                    expected=f"one of {', '.join(known)}",
                    found=f"{strange[column][0]!r} ({len(strange)} rows)",
                )
            )
    faults.raise_if_any()
    return frame


@dataclass(frozen=True, kw_only=True)
class Legend:
    """Colours of the wireframes as `#rrggbb`: by component type, and by class for icons."""

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
    """The legends of the export; the published component colours where it has none, and then no icon colours."""
    components, icons = raw / "component_legend.json", raw / "icon_legend.json"
    return Legend(
        components=_read_colours(components) if components.is_file() else dict(COMPONENT_COLOURS),
        icons=_read_colours(icons) if icons.is_file() else {},
    )


def few(names: list[str], n: int = 5) -> str:
    """The first few of a list, for a message."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
