"""Rendering of a suite's tables as Markdown, LaTeX (booktabs) and an HTML fragment.

The HTML has class names but no styles: `section.suite`, `table.results`, `tr.method | control | published`, and
`td.ours | published | diff | regret | count | absent`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from mrpipe.privacy import markdown_text, printable
from mrpipe.store.parquet import write_text

TEMPLATE = Path(__file__).resolve().parent / "suite_table.html"
MOST_FAULTS = 12

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "−": "$-$", "–": "--", "Δ": r"$\Delta$", "×": r"$\times$", "≥": r"$\geq$"}
)


@dataclass(frozen=True)
class Cell:
    """A cell: its text, its kind (a class name), and whether it is in bold."""

    text: str
    kind: str
    bold: bool = False


def cells_of(texts: Iterable[str], kind: str) -> tuple[Cell, ...]:
    return tuple(Cell(text, kind) for text in texts)


def number(value: float, form: str) -> str:
    """Format a number, with the typographic minus sign; zero has no sign."""
    return re.sub(r"^[-+](?=[0.]+$)", "", format(value, form)).replace("-", "−")


def with_sd(mean: float | None, sd: float | None, digits: int = 2) -> str:
    """`71.25 ± 0.40`; empty without a mean."""
    return "" if mean is None else f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


@dataclass(frozen=True)
class Line:
    """A row: `kind` is method, control or published."""

    kind: str
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PageTable:
    """A table with its caption; `header` has the names of the columns, starting with that of the row names."""

    caption: str
    header: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Page:
    """Contents of a suite.

    Attributes:
        identifier: anchor, e.g. table2.
        title: heading.
        simulated: whether any of the data are simulated.
        origins: one sentence per data set with its origin.
        answer: sentences that sum up the comparisons.
        forests: caption and SVG of the forest plots of the first comparisons, and whether each is open at first.
        overview: tables in the paper's layout, one per store.
        details: all other tables, collapsed in HTML.
        details_title: heading of the details.
        notes: explanatory notes.
        faults: cells that did not finish, and figures that could not be drawn.
    """

    identifier: str
    title: str
    simulated: bool
    origins: tuple[str, ...]
    overview: tuple[PageTable, ...]
    details: tuple[PageTable, ...]
    notes: tuple[str, ...] = field(default=())
    faults: tuple[str, ...] = field(default=())
    details_title: str = "All metrics, with intervals and paired differences"
    answer: tuple[str, ...] = ()
    forests: tuple[tuple[str, Markup, bool], ...] = ()

    @property
    def shown_faults(self) -> tuple[str, ...]:
        """The first faults, and the number of the others."""
        rest = len(self.faults) - MOST_FAULTS
        return self.faults if rest <= 1 else (*self.faults[:MOST_FAULTS], f"and {rest} more")


def label(name: str) -> str:
    """`table2` → `Table 2`; names of custom suites are unchanged."""
    match = re.fullmatch(r"(table|figure)(\d+)", name)
    return f"{match[1].capitalize()} {match[2]}" if match else name


def heading(name: str, title: str) -> str:
    """`table2`, `t` → `Table 2: t`."""
    return f"{label(name)}: {title}"


def markdown(page: Page) -> str:
    parts = [f"# {markdown_text(page.title)}", *([bullets(page.answer)] if page.answer else []), bullets(page.origins)]
    parts += [f"**Not finished**\n\n{bullets(page.shown_faults)}"] if page.faults else []
    parts += [markdown_grid(grid) for grid in page.overview]
    parts += [bullets(page.notes)] if page.notes else []
    parts += [f"## {page.details_title}", *(markdown_grid(grid) for grid in page.details)] if page.details else []
    return "\n\n".join(parts) + "\n"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"* {markdown_text(line)}" for line in lines)


def markdown_grid(grid: PageTable) -> str:
    """A table in Markdown, with its caption."""
    rows = [grid.header, ("---", *("---:" for _ in grid.header[1:]))]
    for line in grid.lines:
        name = f"*{line.name}*" if line.kind != "method" else line.name
        rows.append((name, *(f"**{c.text}**" if c.bold else c.text for c in line.cells)))
    table = "\n".join("| " + " | ".join(map(markdown_text, row)) + " |" for row in rows)
    return f"**{markdown_text(grid.caption)}**\n\n{table}"


def latex(page: Page) -> str:
    """Render the tables as LaTeX floats, which need the packages booktabs and graphicx."""
    texts = (page.title, *page.answer, *page.origins, *page.shown_faults, *page.notes)
    comments = "\n".join(f"% {' '.join(printable(text).split())}" for text in texts)
    return "\n\n".join([comments, *(_latex_grid(grid) for grid in (*page.overview, *page.details))]) + "\n"


def _latex_grid(grid: PageTable) -> str:
    rows = []
    for line in grid.lines:
        name = _escaped(line.name)
        cells = [rf"\textbf{{{_escaped(c.text)}}}" if c.bold else _escaped(c.text) for c in line.cells]
        rows.append(_latex_row([rf"\emph{{{name}}}" if line.kind != "method" else name, *cells]))
    body = "\n".join([r"\toprule", _latex_row([_escaped(h) for h in grid.header]), r"\midrule", *rows, r"\bottomrule"])
    columns = "l" + "r" * (len(grid.header) - 1)
    return (
        f"\\begin{{table}}\n\\caption{{{_escaped(grid.caption)}}}\n\\centering\n\\resizebox{{\\linewidth}}{{!}}{{%\n"
        f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}}}\n\\end{{table}}"
    )


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return " ".join(printable(text).split()).translate(_LATEX)


def html(page: Page) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(page=page) + "\n"


def write(page: Page, out: Path, names: Iterable[str] = ("table.tex", "table.html", "table.md")) -> None:
    """Write the named files of a page; the suffix of a name is its format."""
    formats = {".tex": latex, ".html": html, ".md": markdown}
    for name in names:
        write_text(out / name, formats[Path(name).suffix](page))
