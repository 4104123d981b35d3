"""Splits: grouped by subject and stratified by class, from a column, or from an imported list of ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.keyed import bits, id_keys

PARTS = ("train", "val", "test")
# Common names of the parts in published id lists.
PART_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "tuning": "val",
    "test": "test",
    "testing": "test",
    "held_out": "test",
}


def grouped_stratified(
    samples: pl.DataFrame, *, fractions: tuple[float, float, float], seed: int, stratum: str | None = None
) -> pl.DataFrame:
    """Assign every subject to one part such that each class is distributed proportionally.

    Subjects are processed in order of decreasing size, in keyed order among equals. Each is assigned to the part for
    which the squared deviation from the target counts (of the classes and in total, each relative to its size) becomes
    smallest. With one sample per subject, the split is exactly stratified up to rounding; with large groups,
    approximately. The result depends only on ids, classes and seed, not on the order of the rows.

    Args:
        samples: `sample_id`, `subject_id` and, if given, the column `stratum` (null is a separate class).
        fractions: fractions of train, val and test; they must sum to 1.

    Returns:
        Frame `sample_id`, `split`, sorted by sample_id.
    """
    if abs(sum(fractions) - 1) > 1e-9 or min(fractions) < 0:
        raise UsageError(f"split fractions must be non-negative and sum to 1, got {fractions}")
    label = pl.lit("all") if stratum is None else pl.col(stratum).cast(pl.String).fill_null("unlabelled")
    counts = (
        samples.select("subject_id", label.alias("class"))
        .pivot("class", index="subject_id", values="class", aggregate_function="len")
        .fill_null(0)
        .sort("subject_id")
    )
    classes = sorted(c for c in counts.columns if c != "subject_id")
    per_class = counts.select(classes).to_numpy().astype(np.float64)
    table = np.column_stack([per_class, per_class.sum(axis=1)])
    total = table.sum(axis=0)
    target = np.outer(fractions, total)
    key = bits(id_keys(counts["subject_id"]), seed, "split")[:, 0]
    order = np.lexsort((key, -table[:, -1]))
    filled = np.zeros_like(target)
    part = np.empty(len(table), dtype=np.int8)
    scale = 1.0 / np.maximum(total, 1.0)
    for subject in order:
        # Change in cost of adding the subject to each part; ties go to the part furthest below its target.
        shortfall = (target - filled) * scale
        cost = ((shortfall - table[subject] * scale) ** 2 - shortfall**2).sum(axis=1)
        part[subject] = int(np.lexsort((-shortfall[:, -1], np.round(cost, 12)))[0])
        filled[part[subject]] += table[subject]
    assigned = pl.DataFrame({"subject_id": counts["subject_id"], "split": [PARTS[p] for p in part]})
    joined = samples.select("sample_id", "subject_id").join(assigned, on="subject_id", how="left", validate="m:1")
    return joined.select("sample_id", "split").sort("sample_id")


def from_column(samples: pl.DataFrame, column: str) -> pl.DataFrame:
    """Split from a column that contains train, val, test, or null for samples that are not part of the scheme."""
    if column not in samples.columns:
        raise UsageError(f"this store has no column {column!r} to split by")
    split = samples.select("sample_id", pl.col(column).alias("split")).drop_nulls().sort("sample_id")
    unknown = sorted(set(split["split"].unique()) - set(PARTS))
    if unknown:
        raise UsageError(f"column {column!r} contains {unknown}; expected {', '.join(PARTS)}")
    return split


def from_id_list(samples: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Split from a JSON file {train: [...], val: [...], test: [...]} of sample ids or subject ids.

    Other common names of the parts (`PART_ALIASES`) are accepted. Invalid or inconsistent lists are a DataError.
    """
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            Fault(file=path.name, expected="a JSON object of id lists", found=str(error), fix="See `mrpipe split -h`.")
        ) from error
    if not isinstance(lists, Mapping) or not all(k in PART_ALIASES and isinstance(v, list) for k, v in lists.items()):
        found = f"keys {sorted(map(str, lists))}" if isinstance(lists, Mapping) else type(lists).__name__
        raise DataError(Fault(file=path.name, expected="the lists train, val and test", found=found))
    rows = [(str(i), PART_ALIASES[k]) for k, ids in lists.items() for i in ids]
    listed = pl.DataFrame(rows, schema={"id": pl.String, "split": pl.String}, orient="row")
    repeated = listed.filter(pl.col("id").is_duplicated())
    if len(repeated):
        raise DataError(
            Fault(file=path.name, expected="each id once", found=f"{len(repeated)} entries with repeated ids")
        )
    key = "sample_id" if listed["id"].is_in(samples["sample_id"].implode()).any() else "subject_id"
    unknown = listed.filter(~pl.col("id").is_in(samples[key].implode()))
    if len(unknown):
        raise DataError(
            Fault(
                file=path.name,
                expected=f"ids of this store ({key})",
                found=f"{len(unknown)} of {len(listed)} ids that it does not have",
                fix="Check that the list belongs to this export.",
            )
        )
    split = samples.join(listed, left_on=key, right_on="id", how="inner").select("sample_id", "split").sort("sample_id")
    require_grouped(samples, split, path.name)
    return split


def require_grouped(samples: pl.DataFrame, split: pl.DataFrame, source: str) -> None:
    """Raise a DataError if a subject appears in several parts."""
    parts = split.join(samples.select("sample_id", "subject_id"), on="sample_id").group_by("subject_id")
    repeated = parts.agg(pl.col("split").n_unique().alias("n")).filter(pl.col("n") > 1)
    if len(repeated):
        raise DataError(
            Fault(
                file=source,
                column="subject_id",
                expected="every subject in one part",
                found=f"{len(repeated)} subjects in several parts",
                fix="Split by subject to avoid leakage.",
            )
        )
