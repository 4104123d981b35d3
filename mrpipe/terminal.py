"""Tables of results in the terminal."""

from collections.abc import Iterable

from mrpipe.privacy import printable


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table: cells are neither markup nor control characters, and numbers are not wrapped.

    Columns of numbers are on the right; None is shown as –, and a large or small float with three significant digits.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Leave a broken pipe to the command line; rich would end the process with exit code 1."""
            raise BrokenPipeError

    cells = list(rows)
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name, *column in zip(columns, *cells, strict=True):
        numeric = any(isinstance(v, int | float) for v in column) and not any(isinstance(v, str) for v in column)
        width = max(len(_shown(v)) for v in column) if numeric else None
        table.add_column(name, justify="right" if numeric else "left", min_width=width, overflow="fold")
    for row in cells:
        table.add_row(*(escape(printable(_shown(cell))) for cell in row))
    Output().print(table)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
