"""Section of a store: cohort, modalities, dictionary, splits and leakage audit.

It is derived from the store alone and identifies no sample.
"""

from pathlib import Path
from typing import Any

import polars as pl

from moe_retriever.plots import plots
from moe_retriever.report.dictionary import summarise
from moe_retriever.report.drawing import draw
from moe_retriever.suites.published import task_title
from mrpipe.privacy import rounded
from mrpipe.reading import read_json
from mrpipe.store.audit import audit
from mrpipe.store.layout import StoreLayout
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS

# Single-feature AUROC above which a feature is suspected to leak the label.
AUDIT_THRESHOLD = 0.9
# Among thousands of features, some exceed the threshold by chance; findings must be significant at this level.
AUDIT_ALPHA = 0.05
AUDIT_ROWS = 20
PATTERN_ROWS = 40


def describe_store(store: Store, figures: Path) -> dict[str, Any]:
    """Template variables of a store; figures are also saved in `figures`."""
    m = store.manifest
    # Unique on the page and in the names of figures.
    name = f"{m.dataset}-{store.store_id}"
    names = [x.name for x in store.modalities]
    attrition = shared(store, "attrition")
    same = "the table below has the same numbers."
    label = f"Number of samples of {m.title} for each combination of {', '.join(names)}; {same}"
    picture = plots.availability(m.pattern_counts, names)
    availability = draw(picture, figures / f"{name}-availability.svg", label=label)
    flow = draw(plots.cohort_flow(attrition), figures / f"{name}-cohort.svg", label=f"Cohort flow of {m.title}; {same}")
    entries = zip(store.modalities, sorted(m.modalities, key=lambda e: e["bit"]), strict=True)
    return {
        "anchor": f"store-{name}",
        "manifest": m,
        "options": {k: public(v) for k, v in sorted(m.options.items())},
        "modalities": [
            {"declared": x, "shape": "×".join(map(str, x.shape)), "rows": e["rows"], "share": e["rows"] / m.n_samples}
            for x, e in entries
        ],
        "patterns": sorted(m.pattern_counts.items(), key=lambda kv: (-kv[1], kv[0]))[:PATTERN_ROWS],
        "n_patterns": len(m.pattern_counts),
        "availability": availability,
        "flow": flow,
        "attrition": attrition.to_dicts(),
        "losses": shared(store, "losses").filter(pl.col("n_before") > pl.col("n_after")).to_dicts(),
        "classes": _classes(store),
        "dictionary": summarise(shared(store, "dictionary")),
        "audit": _audit(store),
        "input_bytes": sum(f["size"] for f in m.inputs),
    }


def shared(store: Store, table: str) -> pl.DataFrame:
    """`attrition`, `losses` or `dictionary` of a store; of people, with rounded counts."""
    frame: pl.DataFrame = getattr(store, table)
    return frame if store.manifest.count is int else frame.with_columns(rounded(pl.col("^n_.*$")))


def public(value: Any) -> Any:
    """An option value without private paths: only the last part of an absolute path is shown."""
    if isinstance(value, str) and "/" in value and Path(value).is_absolute():
        return f"…/{Path(value).name}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(str(public(v)) for v in value)}]"
    return value


def sealed_at(store: Store) -> dict[str, str]:
    """When and with which software versions the store was sealed."""
    path, keys = StoreLayout(store.path).provenance, ("versions", "sealed_at", "python")
    said = read_json(path, "the provenance of a store", "Copy or seal the store again.", keys=keys)
    versions = ", ".join(f"{k} {v}" for k, v in said["versions"].items())
    return {"at": said["sealed_at"], "versions": f"Python {said['python']}, {versions}"}


def _classes(store: Store) -> list[dict[str, Any]]:
    out = []
    for task in store.tasks:
        if task.kind != "classification":
            continue
        labels = store.labels(task.name)
        for scheme in store.schemes:
            counts = labels.join(store.split(scheme), on="sample_id").group_by("split", "value").len().collect()
            table = {(part, value): store.manifest.count(n) for part, value, n in counts.iter_rows()}
            numbers = [[table.get((part, k), 0) for part in PARTS] for k in range(len(task.classes))]
            rows = [{"name": name, "n": n} for name, n in zip(task.classes, numbers, strict=True)]
            out.append({"task": task, "title": task_title(task.name), "scheme": scheme, "rows": rows})
    return out


def _audit(store: Store) -> dict[str, Any] | None:
    """The leakage audit of the default task and split scheme; None if the task is not a classification."""
    task = store.task()
    if task.kind != "classification":
        return None
    found = audit(store, threshold=AUDIT_THRESHOLD, alpha=AUDIT_ALPHA)
    tables = [m.name for m in store.modalities if m.kind not in ("image", "volume")]
    # Event sequences are audited per item of the vocabulary.
    items = pl.when(pl.col("kind") == "event").then(pl.col("levels").list.len()).otherwise(1)
    looked_at = int(store.dictionary.filter(pl.col("modality").is_in(tables)).select(items.sum()).item())
    of = {"threshold": AUDIT_THRESHOLD, "task": task_title(task.name), "scheme": store.manifest.default_scheme}
    return of | {"n": len(found), "rows": found.head(AUDIT_ROWS).to_dicts(), "looked_at": looked_at}
