"""Splits: named schemes, grouped by subject, stratified by class, keyed; or an imported list of ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.keyed import bits, id_keys

PARTS = ("train", "val", "test")
# The names under which the field's id lists call the parts.
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
    """Assign every subject to one part so that each class is shared out in proportion.

    Subjects are visited largest first, in keyed order among equals, and each goes to the part that is left with the
    smallest squared deviation from its target counts (over classes and the total, each relative to its size). With
    one sample a subject this is an exact stratified split up to rounding; with large groups it is a close one. The
    result depends on the ids, the classes and the seed alone, not on the order of the rows.

    Args:
        samples: `sample_id`, `subject_id` and, if given, the column `stratum` (null: a class of its own).
        fractions: train, val, test; they sum to 1.

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
        # Cost difference of adding the subject to each part; ties go to the part furthest below its share.
        shortfall = (target - filled) * scale
        cost = ((shortfall - table[subject] * scale) ** 2 - shortfall**2).sum(axis=1)
        part[subject] = int(np.lexsort((-shortfall[:, -1], np.round(cost, 12)))[0])
        filled[part[subject]] += table[subject]
    assigned = pl.DataFrame({"subject_id": counts["subject_id"], "split": [PARTS[p] for p in part]})
    joined = samples.select("sample_id", "subject_id").join(assigned, on="subject_id", how="left", validate="m:1")
    return joined.select("sample_id", "split").sort("sample_id")


def from_column(samples: pl.DataFrame, column: str) -> pl.DataFrame:
    """A split that the dataset brings along; samples with a null there are not part of the scheme."""
    if column not in samples.columns:
        raise UsageError(f"this store has no column {column!r} to split by")
    split = samples.select("sample_id", pl.col(column).alias("split")).drop_nulls().sort("sample_id")
    unknown = sorted(set(split["split"].unique()) - set(PARTS))
    if unknown:
        raise UsageError(f"column {column!r} holds {unknown}; a split is one of {', '.join(PARTS)}")
    return split


def from_id_list(samples: pl.DataFrame, path: Path) -> pl.DataFrame:
    """A split from a JSON file {train: [...], val: [...], test: [...]} of sample or subject ids.

    The parts may be called training/validation/testing, valid or dev. Ids may be sample ids or subject ids.
    """
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            Fault(file=path.name, expected="a JSON object of id lists", found=str(error), fix="See `mrpipe split -h`.")
        ) from error
    if not isinstance(lists, Mapping) or not all(k in PART_ALIASES and isinstance(v, list) for k, v in lists.items()):
        found = f"keys {sorted(map(str, lists))}" if isinstance(lists, Mapping) else type(lists).__name__
        raise DataError(Fault(file=path.name, expected="lists train, val and test", found=found))
    rows = [(str(i), PART_ALIASES[k]) for k, ids in lists.items() for i in ids]
    wanted = pl.DataFrame(rows, schema={"id": pl.String, "split": pl.String}, orient="row")
    repeated = wanted.filter(pl.col("id").is_duplicated())
    if len(repeated):
        raise DataError(
            Fault(file=path.name, expected="each id once", found=f"an id in two places ({len(repeated)} rows)")
        )
    key = "sample_id" if wanted["id"].is_in(samples["sample_id"].implode()).any() else "subject_id"
    unknown = wanted.filter(~pl.col("id").is_in(samples[key].implode()))
    if len(unknown):
        raise DataError(
            Fault(
                file=path.name,
                expected=f"ids of this store ({key})",
                found=f"{len(unknown)} of {len(wanted)} ids that it does not have",
                fix="Is the list for this export?",
            )
        )
    split = samples.join(wanted, left_on=key, right_on="id", how="inner").select("sample_id", "split").sort("sample_id")
    require_grouped(samples, split, path.name)
    return split


def require_grouped(samples: pl.DataFrame, split: pl.DataFrame, source: str) -> None:
    """A subject must not stand in two parts."""
    parts = split.join(samples.select("sample_id", "subject_id"), on="sample_id").group_by("subject_id")
    torn = parts.agg(pl.col("split").n_unique().alias("n")).filter(pl.col("n") > 1)
    if len(torn):
        raise DataError(
            Fault(
                file=source,
                column="subject_id",
                expected="every subject in one part",
                found=f"{len(torn)} subjects in several parts",
                fix="Split by subject, or the test set leaks.",
            )
        )
