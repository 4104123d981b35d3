"""The raw tables and colour legends of Enrico, and the codes that they use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from PIL import ImageColor

from mrpipe.budget import MAX_JSON, load_json, read_small
from mrpipe.constants import constants
from mrpipe.delimited import line_of
from mrpipe.errors import Fault, FaultCollector
from mrpipe.raw import ROW, Column, Folder, few, find_one, read_csv
from mrpipe.reading import reading

PROVIDER = "https://github.com/luileito/enrico (files under http://userinterfaces.aalto.fi/enrico/resources/)"
FETCH = f"Get it from {PROVIDER}."

_PUBLISHED = constants(__file__, "tables.json")
# Number of screens per topic in the published table. The label index is the sorted order, as in MultiBench.
TOPIC_COUNTS: dict[str, int] = _PUBLISHED["topics"]
TOPICS = tuple(sorted(TOPIC_COUNTS))
# The README of the provider's repository uses "Dialer" for the topic that the table calls calculator.
TOPIC_ALIASES = {"dialer": "calculator"}

# Screens that MultiBench skips because their wireframes are not available.
MULTIBENCH_IGNORES = ("50105", "50109")
NOT_AVAILABLE = "not available"
LANDSCAPE_MODE = "landscape mode"

FOLDERS = ("screenshots", "wireframes", "hierarchies", "metadata")
SOURCES = ("screenshot", "wireframe", "hierarchy")
SEVERITIES = ("low", "medium", "high")

# Size of the published images and of the canvas of the hierarchies: (width, height) in portrait.
SCREEN_SIZE = (540, 960)
CANVAS_SIZE = (1440, 2560)

# The `hex` entries of component_legend.json; its `rgb` entries are off by one (they reach 256).
COMPONENT_COLOURS: dict[str, str] = _PUBLISHED["colours"]

TOPIC_COLUMNS = (Column(name="screen_id", nullable=False), Column(name="topic", nullable=False))
ISSUE_COLUMNS = tuple(Column(name=n, nullable=False) for n in ("screen_id", "source", "description", "severity"))
TOPIC_TABLE = "design_topics.csv"


def root_of(raw: Path) -> Path:
    """The folder of the export with the table of topics: `raw`, or the only folder below it that has one."""
    below = [raw] if (raw / TOPIC_TABLE).is_file() else [p.parent for p in raw.rglob(TOPIC_TABLE)]
    return below[0] if len(below) == 1 else raw


def open_export(raw: Path) -> dict[str, Folder]:
    """The four folders of an export, unpacked or zipped; damaged archives are reported together."""
    faults = FaultCollector()
    opened = {name: faults.attempt(Folder, root_of(raw), name) for name in FOLDERS}
    faults.raise_if_any()
    return {name: folder for name, folder in opened.items() if folder is not None}


def _require(
    frame: pl.DataFrame, bad: pl.Expr, path: Path, column: str, expected: str, fix: str, faults: FaultCollector
) -> None:
    """Add a fault with the line of the first bad row; for repeated values, of the first repetition."""
    rows = frame.filter(bad)
    if len(rows):
        first = rows.row(0, named=True)
        values = rows[column].unique(maintain_order=True).to_list()
        found = f"{few([repr(v) for v in values])} ({len(rows)} rows)"
        line = line_of(path, first[ROW])
        faults.add(Fault(file=path.name, column=column, line=line, expected=expected, found=found, fix=fix))


_PLAIN = ("digits only, as in the names of the screenshot files", "Did a spreadsheet program change the ids?")


def read_topics(raw: Path) -> pl.DataFrame:
    """Columns `screen_id` and `topic` (String) in file order, which MultiBench's split depends on.

    Raises:
        DataError: if the file, a column or all rows are missing, or for invalid or repeated ids and unknown topics.
    """
    path = find_one(raw, [r"(?:.*/)?design_topics\.csv"], what="one topic per screen", fix=FETCH)
    faults = FaultCollector()
    topic, screen = pl.col("topic"), pl.col("screen_id")
    frame = read_csv(path, TOPIC_COLUMNS, numbered=True).with_columns(topic.str.to_lowercase().replace(TOPIC_ALIASES))
    _require(frame, ~screen.str.contains(r"^[0-9]+$"), path, "screen_id", *_PLAIN, faults)
    fix = "Each screen has one topic: remove the wrong rows."
    _require(frame, ~screen.is_first_distinct(), path, "screen_id", "one row per screen", fix, faults)
    known = f"one of {', '.join(TOPICS)}"
    _require(frame, ~topic.is_in(TOPICS), path, "topic", known, "Is the table from another release?", faults)
    faults.raise_if_any()
    return frame.drop(ROW)


def read_issues(raw: Path) -> pl.DataFrame:
    """Columns `screen_id`, `source`, `description`, `severity` (String); empty if the export has no issues.csv.

    Raises:
        DataError: for missing columns, invalid ids, and unknown sources or severities.
    """
    path = root_of(raw) / "issues.csv"
    if not path.is_file():
        return pl.DataFrame(schema={c.name: pl.String for c in ISSUE_COLUMNS})
    frame = read_csv(path, ISSUE_COLUMNS, numbered=True).with_columns(pl.col("source", "severity").str.to_lowercase())
    faults = FaultCollector()
    _require(frame, ~pl.col("screen_id").str.contains(r"^[0-9]+$"), path, "screen_id", *_PLAIN, faults)
    for column, known in (("source", SOURCES), ("severity", SEVERITIES)):
        _require(frame, ~pl.col(column).is_in(known), path, column, f"one of {', '.join(known)}", "", faults)
    faults.raise_if_any()
    return frame.drop(ROW)


def parse_json(data: bytes, shown_as: str) -> tuple[Any, bool]:
    """JSON value, and whether its text is UTF-8; other bytes are read as Latin-1, which keeps the structure.

    Raises:
        DataError: not JSON, or an object with a key twice and different values.
    """
    try:
        text, plain = data.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        text, plain = data.decode("latin-1"), False
    return load_json(text, shown_as, "The file is damaged: download it again.", _unique), plain


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs) and (repeated := [k for k, v in pairs if values[k] != v]):
        raise ValueError(f"the key {repeated[0]!r} occurs twice in an object, with different values")
    return values


@dataclass(frozen=True, kw_only=True)
class Legend:
    """Colours of the wireframes as `#rrggbb`: by component type and, for icons, by class."""

    components: dict[str, str]
    icons: dict[str, str]


def _read_colours(path: Path) -> dict[str, str]:
    expected = 'a JSON object {name: {"hex": "#rrggbb", …}}'
    with reading(path.name, expected, FETCH):
        entries, plain = parse_json(read_small(path, path.name, MAX_JSON), path.name)
        if not plain:
            raise ValueError("text that is not UTF-8")
        colours = {str(name): str(entry["hex"]) for name, entry in entries.items()}
        for colour in colours.values():
            ImageColor.getrgb(colour)
        return colours


def read_legend(raw: Path) -> Legend:
    """The colour legends of the export; defaults are the published component colours and no icon colours."""
    components, icons = (root_of(raw) / f"{kind}_legend.json" for kind in ("component", "icon"))
    return Legend(
        components=_read_colours(components) if components.is_file() else dict(COMPONENT_COLOURS),
        icons=_read_colours(icons) if icons.is_file() else {},
    )
