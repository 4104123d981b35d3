"""What the page says of a store: who is in it, what is known of them, how it is split, and what might leak.

Read from the store alone; nothing here names a sample.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from moe_retriever.plots import plots
from moe_retriever.report.dictionary import summarise
from moe_retriever.report.drawing import Picture, draw
from mrpipe.store.audit import audit
from mrpipe.store.layout import StoreLayout
from mrpipe.store.reader import Store
from mrpipe.store.splits import PARTS

# Single-feature AUROC above which a feature may be the label in other words.
AUDIT_THRESHOLD = 0.9
# Among thousands of features some pass the threshold by luck; what luck explains is not listed.
AUDIT_ALPHA = 0.05
AUDIT_ROWS = 20
PATTERN_ROWS = 40


def store_name(store: Store) -> str:
    """Name of the store on the page and of its pictures: two stores never share it."""
    return f"{store.manifest.dataset}-{store.store_id}"


def describe_store(store: Store, figures: Path) -> dict[str, Any]:
    """Everything that the template shows of a store; pictures are also saved in `figures`."""
    m = store.manifest
    name = store_name(store)
    names = [x.name for x in store.modalities]
    attrition = store.attrition
    availability = draw(
        plots.availability(m.pattern_counts, names),
        figures / f"{name}-availability.svg",
        label=f"Number of samples of {m.title} for each combination of {', '.join(names)}; the table says the same.",
    )
    flow = draw(
        plots.cohort_flow(attrition),
        figures / f"{name}-cohort.svg",
        label=f"Cohort flow of {m.title}, from {attrition['n_before'][0]} to {attrition['n_after'][-1]} samples; "
        "the table below says the same.",
    )
    return {
        "anchor": f"store-{name}",
        "manifest": m,
        "options": {k: public(v) for k, v in sorted(m.options.items())},
        "modalities": [
            {
                "declared": x,
                "shape": "×".join(map(str, x.shape)),
                "rows": entry["rows"],
                "size": entry["size"],
                "share": entry["rows"] / m.n_samples,
            }
            for x, entry in zip(store.modalities, sorted(m.modalities, key=lambda e: e["bit"]), strict=True)
        ],
        "patterns": sorted(m.pattern_counts.items(), key=lambda kv: (-kv[1], kv[0]))[:PATTERN_ROWS],
        "n_patterns": len(m.pattern_counts),
        "availability": Picture(
            availability,
            "Which samples have which modalities. Each column is a combination: dots "
            "say what is in it, bars how many samples.",
        ),
        "flow": Picture(flow, "Cohort flow: who was left out at which step, and why."),
        "attrition": attrition.to_dicts(),
        "losses": store.losses.filter(pl.col("n_before") > pl.col("n_after")).to_dicts(),
        "classes": _classes(store),
        "dictionary": summarise(store.dictionary),
        "audit": _audit(store),
        "input_bytes": sum(f["size"] for f in m.inputs),
    }


def public(value: Any) -> Any:
    """An option as the page may show it: of a path, the last part only."""
    if isinstance(value, str) and "/" in value and Path(value).is_absolute():
        return f"…/{Path(value).name}"
    if isinstance(value, list | tuple):
        return ", ".join(str(public(v)) for v in value)
    return value


def sealed_at(store: Store) -> dict[str, str]:
    """When the store was sealed, and by which versions; empty where its provenance is gone."""
    path = StoreLayout(store.path).provenance
    if not path.is_file():
        return {}
    said = json.loads(path.read_text(encoding="utf-8"))
    versions = ", ".join(f"{k} {v}" for k, v in said["versions"].items())
    return {"at": said["sealed_at"], "versions": f"Python {said['python']}, {versions}"}


def _classes(store: Store) -> list[dict[str, Any]]:
    """For each classification task and scheme: samples of each class in each part."""
    out = []
    for task in store.tasks:
        if task.kind != "classification":
            continue
        labels = store.labels(task.name)
        for scheme in store.schemes:
            counts = labels.join(store.split(scheme), on="sample_id").group_by("split", "value").len().collect()
            table = {(part, value): n for part, value, n in counts.iter_rows()}
            rows = [
                {"name": name, "n": [table.get((part, k), 0) for part in PARTS]} for k, name in enumerate(task.classes)
            ]
            out.append({"task": task, "scheme": scheme, "rows": rows})
    return out


def _audit(store: Store) -> dict[str, Any] | None:
    """The leakage audit of the default task and scheme; None where there is no class to leak."""
    task = store.task()
    if task.kind != "classification":
        return None
    found = audit(store, threshold=AUDIT_THRESHOLD, alpha=AUDIT_ALPHA)
    tables = [m.name for m in store.modalities if m.kind not in ("image", "volume")]
    # A sequence of events has two columns, and is looked at item by item.
    items = pl.when(pl.col("kind") == "event").then(pl.col("levels").list.len()).otherwise(1)
    looked_at = int(store.dictionary.filter(pl.col("modality").is_in(tables)).select(items.sum()).item())
    return {
        "threshold": AUDIT_THRESHOLD,
        "task": task.name,
        "scheme": store.manifest.default_scheme,
        "n": len(found),
        "rows": found.head(AUDIT_ROWS).to_dicts(),
        "looked_at": looked_at,
    }
