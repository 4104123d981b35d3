"""Summary at the end of a workflow run: the answer with its tables, and the paths of the stores and the reports."""

from collections.abc import Collection, Iterator
from itertools import accumulate, groupby
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from mrpipe.errors import MrpipeError
from mrpipe.store.reader import open_store

# Columns of an output that is not a terminal.
WIDTH = 160


def print_summary(results: Path, reports: Collection[Path] | None = None) -> None:
    """Print the contents of a results folder, skipping whatever has not been built.

    Args:
        reports: folders of the requested reports; default: that of the configuration.
    """
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    reports = [results / "report"] if reports is None else reports
    for answer in (folder / "answer.md" for folder in reports):
        if answer.is_file():
            sentences, _, tables = answer.read_text(encoding="utf-8").partition("\n\n")
            console.print(f"{sentences.strip()}\n", markup=False, highlight=False)
            console.print(Markdown("\n".join(_fitted(tables, console.width))), highlight=False)
    for manifest in sorted(results.glob("stores/*/manifest.json")):
        try:
            store = open_store(manifest.parent)
        except MrpipeError as error:
            console.print(f"store   {manifest.parent}: {error}")
            continue
        kind = f"{store.manifest.n_samples} samples, {store.manifest.origin}, {store.store_id}"
        console.print(f"store   {manifest.parent}  ({kind})", highlight=False)
    for page in (folder / "index.html" for folder in reports):
        if page.is_file():
            console.print(f"report  {page}", highlight=False, markup=False)


def _fitted(text: str, width: int) -> Iterator[str]:
    """Lines of Markdown whose tables have only the first columns that fit into `width` characters."""
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if not is_table:
            yield from lines
            continue
        rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
        # Headings wrap between words.
        columns = ([*head.split(), *cells] for head, *cells in zip(*rows, strict=False))
        widths = accumulate(max(map(len, column)) + 2 for column in columns)
        n = max(1, sum(total < width for total in widths))
        yield from (f"| {' | '.join(row[:n])} |" for row in rows)
