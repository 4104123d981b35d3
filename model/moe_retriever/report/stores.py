"""Section of a store: cohort, modalities, dictionary, splits and leakage audit.

It is derived from the store alone and identifies no sample.
"""

from pathlib import Path
from typing import Any

import polars as pl

from moe_retriever.plots import plots
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
# Consecutive features whose names differ only in a number (`text_0 … text_383`) form one row of the dictionary, and a
# modality shows at most this many rows; `dictionary.parquet` is complete.
DICTIONARY_ROWS = 250
_NUMBER = r"\d+(?:\.\d+)?"


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


def missing_rate() -> pl.Expr:
    """Share of missing values of a feature among the samples (for a sequence, the steps) of the modality.

    Null if the modality has none.
    """
    total = pl.col("n_observed") + pl.col("n_missing")
    return pl.when(total > 0).then(pl.col("n_missing") / total)


def summarise(dictionary: pl.DataFrame) -> list[dict[str, Any]]:
    """One entry per modality, in the order of the dictionary.

    Keys: `modality, n_features, kinds` (number per kind), `sources, median` and `highest` (missing rate), `n_never`
    (features without any value), `rows` (see `_rows`, at most `DICTIONARY_ROWS`) and `n_rows` (their total number).
    """
    out = []
    for (modality,), features in dictionary.group_by("modality", maintain_order=True):
        kinds = features.group_by("kind", maintain_order=True).len().rows()
        sources = features["source_file"].drop_nulls().str.split(", ").explode().unique(maintain_order=True).to_list()
        rate = features.select(missing_rate().alias("rate"))["rate"]
        rows = _rows(features)
        out.append(
            {
                "modality": modality,
                "n_features": len(features),
                "kinds": ", ".join(f"{n:,} {kind}" for kind, n in kinds),
                "sources": ", ".join(sources[:4]) + (f" and {len(sources) - 4} more" if len(sources) > 4 else ""),
                "median": rate.median(),
                "highest": rate.max(),
                "n_never": int((features["n_observed"] == 0).sum()),
                "rows": rows.head(DICTIONARY_ROWS).to_dicts(),
                "n_rows": len(rows),
            }
        )
    return out


def _rows(features: pl.DataFrame) -> pl.DataFrame:
    """Runs of consecutive features with the same kind, unit, source and wording, and the SNPs of a chip.

    Each row has the first and last name, the number of features, and the lowest and highest missing rate.
    """
    plain = pl.col("name", "description", "source_column").fill_null("").str.replace_all(_NUMBER, "#")
    same = pl.concat_str(plain, pl.col("kind", "unit", "dtype", "source_file").fill_null(""), separator="\x1f")
    # SNPs differ only by name, position and alleles, and those of one chip are not consecutive.
    chip = pl.concat_str([pl.lit("genotype"), pl.col("source_file").fill_null("")], separator="\x1f")
    run = pl.when(pl.col("kind") == "genotype").then(chip).otherwise(same.rle_id().cast(pl.String))
    one_description = pl.col("description").n_unique() == 1
    runs = features.with_columns(run=run, rate=missing_rate())
    return runs.group_by("run", maintain_order=True).agg(
        pl.len().alias("n"),
        pl.col("name").first(),
        pl.col("name").last().alias("last"),
        pl.col("kind", "unit", "source_file", "source_column").first(),
        pl.col("description").first() + pl.when(one_description).then(pl.lit("")).otherwise(pl.lit(" …")),
        pl.col("n_observed").min(),
        pl.col("rate").min().alias("low"),
        pl.col("rate").max().alias("high"),
    )
