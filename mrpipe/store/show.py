"""`mrpipe show` and `mrpipe audit`: summaries in the terminal."""

import polars as pl
from rich.console import Console
from rich.table import Table

from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a broken pipe to the command line; rich would end the process with exit code 1."""
        raise BrokenPipeError


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name)
    return table


def show(store: Store, console: Console | None = None) -> None:
    """Print a summary of a store."""
    console = console or _Console()
    m = store.manifest
    origin = "[bold red]SIMULATED[/]" if m.origin == "simulated" else "real export"
    console.print(f"[bold]{m.title}[/]  store {m.store_id}  {origin}  release {m.release}")
    console.print(f"{m.n_samples} samples of {m.n_subjects} subjects; default split {m.default_scheme}\n")
    table = _table("Modalities", "name", "bit", "kind", "shape", "dtype", "rows", "MiB", "encoder")
    for modality, entry in zip(store.modalities, m.modalities, strict=True):
        size, mib = "×".join(map(str, modality.shape)), f"{entry['size'] / 2**20:.1f}"
        stored = (modality.bit, modality.kind, size, modality.dtype, entry["rows"], mib)
        table.add_row(modality.name, *map(str, stored), modality.encoder or "–")
    console.print(table)
    table = _table("\nCombinations", "modalities", "samples", "share", "")
    for name, n in m.pattern_counts.items():
        share = n / m.n_samples
        table.add_row(name, str(n), f"{share:.1%}", "█" * max(1, round(30 * share)))
    console.print(table)
    table = _table("\nCohort flow", "step", "reason", "before", "after")
    for step, reason, before, after in store.attrition.iter_rows():
        table.add_row(str(step), reason, str(before), str(after))
    console.print(table)
    if len(lost := store.losses.filter(pl.col("step") > 0)):
        table = _table("\nExcluded from one modality", "modality", "reason", "before", "after")
        for modality, _, reason, before, after in lost.iter_rows():
            table.add_row(modality, reason, str(before), str(after))
        console.print(table)
    table = _table("\nLabels", "task", "kind", "classes", "labelled")
    for label in m.labels:
        table.add_row(label["name"], label["kind"], ", ".join(label["classes"]) or "–", str(label["rows"]))
    console.print(table)
    table = _table("\nSplits", "scheme", *PARTS, "method")
    for split in m.splits:
        table.add_row(split["scheme"], *(str(split["counts"].get(p, 0)) for p in PARTS), split["method"])
    console.print(table)


def show_audit(found: pl.DataFrame, console: Console | None = None) -> None:
    """Print the findings of `mrpipe.store.audit.audit`."""
    console = console or _Console()
    if found.is_empty():
        console.print("no feature and no mask bit nearly determines the label on its own")
        return
    table = _table(
        "Features that nearly determine the label on their own",
        *("AUROC", "class", "modality", "feature", "predictor", "n", "source"),
    )
    for row in found.iter_rows(named=True):
        source = ", ".join(row[k] for k in ("source_file", "source_column") if row[k])
        table.add_row(
            f"{row['auroc']:.3f}", row["class"], row["modality"], row["feature"], row["what"], str(row["n"]), source
        )
    console.print(table)
