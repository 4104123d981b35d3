"""`mrpipe show` and `mrpipe audit`: summaries in the terminal."""

import polars as pl

from mrpipe.privacy import printable
from mrpipe.schema import flow_lines
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS
from mrpipe.terminal import print_table


def show(store: Store) -> None:
    m = store.manifest
    origin = "SIMULATED" if m.origin == "simulated" else "real export"
    print(printable(f"{m.title}  store {m.store_id}  {origin}  release {m.release}"))
    print(f"{m.n_samples} samples of {m.n_subjects} subjects; default split {m.default_scheme}\n")
    columns = ("name", "bit", "kind", "shape", "dtype", "rows", "MiB", "encoder")
    rows: list[tuple[object, ...]] = []
    for x, entry in zip(store.modalities, m.modalities, strict=True):
        size, mib = "×".join(map(str, x.shape)), f"{entry['size'] / 2**20:.1f}"
        rows.append((x.name, x.bit, x.kind, size, x.dtype, entry["rows"], mib, x.encoder or "–"))
    print_table("Modalities", columns, rows)
    shares = ((name, n, n / m.n_samples) for name, n in m.pattern_counts.items())
    bars = [(name, n, f"{share:.1%}", "█" * max(1, round(30 * share))) for name, n, share in shares]
    print_table("\nCombinations", ("modalities", "samples", "share", ""), bars)
    print(printable("\n".join(["\nCohort flow", *flow_lines(store.attrition)])))
    losses = [(x.name, flow_lines(store.losses.filter(modality=x.name))) for x in store.modalities]
    if lost := [(name, line) for name, lines in losses if len(lines) > 1 for line in lines]:
        print_table("\nLosses of single modalities", ("modality", ""), lost)
    labels = [(t["name"], t["kind"], ", ".join(t["classes"]) or "–", t["rows"]) for t in m.labels]
    print_table("\nLabels", ("task", "kind", "classes", "labelled"), labels)
    splits = [(s["scheme"], *(s["counts"].get(p, 0) for p in PARTS), s["method"]) for s in m.splits]
    print_table("\nSplits", ("scheme", *PARTS, "method"), splits)


def show_audit(found: pl.DataFrame) -> None:
    if found.is_empty():
        print("no feature and no mask bit nearly determines the label on its own")
        return
    columns = ("AUROC", "class", "modality", "feature", "predictor", "n", "source")
    sources = [", ".join(filter(None, pair)) for pair in found.select("source_file", "source_column").iter_rows()]
    known = found.select("auroc", "class", "modality", "feature", "what", "n").rows()
    rows = [(f"{auroc:.3f}", *row, source) for (auroc, *row), source in zip(known, sources, strict=True)]
    print_table("Features that nearly determine the label on their own", columns, rows)
