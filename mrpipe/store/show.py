"""`mrpipe show` and `mrpipe audit`: summaries in the terminal."""

from collections.abc import Iterable

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mrpipe.privacy import printable
from mrpipe.schema import flow_lines
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a broken pipe to the command line; rich would end the process with exit code 1."""
        raise BrokenPipeError


def _print_table(console: Console, title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table; names are neither markup nor control characters."""
    table = Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(printable(str(cell))) for cell in row))
    console.print(table)


def show(store: Store, console: Console | None = None) -> None:
    """Print a summary of a store."""
    console = console or _Console()
    m = store.manifest
    origin = "[bold red]SIMULATED[/]" if m.origin == "simulated" else "real export"
    title, release = (escape(printable(text)) for text in (m.title, m.release))
    console.print(f"[bold]{title}[/]  store {m.store_id}  {origin}  release {release}")
    console.print(f"{m.n_samples} samples of {m.n_subjects} subjects; default split {m.default_scheme}\n")
    columns = ("name", "bit", "kind", "shape", "dtype", "rows", "MiB", "encoder")
    rows: list[tuple[object, ...]] = []
    for x, entry in zip(store.modalities, m.modalities, strict=True):
        size, mib = "×".join(map(str, x.shape)), f"{entry['size'] / 2**20:.1f}"
        rows.append((x.name, x.bit, x.kind, size, x.dtype, entry["rows"], mib, x.encoder or "–"))
    _print_table(console, "Modalities", columns, rows)
    shares = ((name, n, n / m.n_samples) for name, n in m.pattern_counts.items())
    bars = [(name, n, f"{share:.1%}", "█" * max(1, round(30 * share))) for name, n, share in shares]
    _print_table(console, "\nCombinations", ("modalities", "samples", "share", ""), bars)
    _print_table(console, "\nCohort flow", (), ([line] for line in flow_lines(store.attrition)))
    losses = [(x.name, flow_lines(store.losses.filter(modality=x.name))) for x in store.modalities]
    if lost := [(name, line) for name, lines in losses if len(lines) > 1 for line in lines]:
        _print_table(console, "\nLosses of single modalities", ("modality", ""), lost)
    labels = [(t["name"], t["kind"], ", ".join(t["classes"]) or "–", t["rows"]) for t in m.labels]
    _print_table(console, "\nLabels", ("task", "kind", "classes", "labelled"), labels)
    splits = [(s["scheme"], *(s["counts"].get(p, 0) for p in PARTS), s["method"]) for s in m.splits]
    _print_table(console, "\nSplits", ("scheme", *PARTS, "method"), splits)


def show_audit(found: pl.DataFrame, console: Console | None = None) -> None:
    """Print the findings of `mrpipe.store.audit.audit`."""
    console = console or _Console()
    if found.is_empty():
        console.print("no feature and no mask bit nearly determines the label on its own")
        return
    columns = ("AUROC", "class", "modality", "feature", "predictor", "n", "source")
    sources = [", ".join(filter(None, pair)) for pair in found.select("source_file", "source_column").iter_rows()]
    known = found.select("auroc", "class", "modality", "feature", "what", "n").rows()
    rows = [(f"{auroc:.3f}", *row, source) for (auroc, *row), source in zip(known, sources, strict=True)]
    _print_table(console, "Features that nearly determine the label on their own", columns, rows)
