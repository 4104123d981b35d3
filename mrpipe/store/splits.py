"""Splits: grouped by subject and stratified by class, from a column, or from an imported list of ids."""

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.keyed import bits, id_keys
from mrpipe.reading import read_json
from mrpipe.schema import Scheme, Task

PARTS = ("train", "val", "test")
Parts = NDArray[np.int64]
# Common names of the parts in published id lists.
PART_ALIASES = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing", "held_out"), "test")
PART_ALIASES |= dict.fromkeys(("val", "valid", "validation", "dev", "tuning"), "val")


def grouped_stratified(
    samples: pl.DataFrame, *, fractions: tuple[float, float, float], seed: int, stratum: str | None = None
) -> pl.DataFrame:
    """Assign every subject to one part such that each class is distributed proportionally.

    With one sample per subject, the number of samples of each class in each part, and of all samples in each part, is
    its target (fraction times count) rounded down or up; which samples of a class go where is drawn by key.

    Otherwise, subjects are processed in order of decreasing size, in keyed order among equals. Each is assigned to the
    part, among those below their target, for which the squared deviation from the target counts (of the classes and in
    total, each relative to its size) becomes smallest. With largest subject s, a part has fewer than s samples above
    its target, and fewer than 2 s below; the classes are balanced approximately.

    The result depends only on ids, classes and seed, not on the order of the rows.

    Args:
        samples: `sample_id`, `subject_id` and, if given, the column `stratum` (null is a separate class).
        fractions: fractions of train, val and test; they must sum to 1.

    Returns:
        Frame `sample_id`, `split`, sorted by sample_id.
    """
    if abs(sum(fractions) - 1) > 1e-9 or min(fractions) < 0:
        raise UsageError(f"split fractions must be non-negative and sum to 1, got {fractions}")
    # Dense ranks start at 1, so that null has a code of its own.
    code = pl.lit(0) if stratum is None else pl.col(stratum).rank("dense").fill_null(0)
    coded = samples.select("subject_id", code.cast(pl.Int64).alias("class"))
    subjects = coded["subject_id"].unique().sort()
    row = subjects.search_sorted(coded["subject_id"]).to_numpy()
    per_class = np.zeros((len(subjects), int(coded["class"].max() or 0) + 1), dtype=np.int64)  # type: ignore[arg-type]
    np.add.at(per_class, (row, coded["class"].to_numpy()), 1)
    key = bits(id_keys(subjects), seed, "split")[:, 0]
    one_each = len(subjects) == len(samples)
    part = (_drawn_exactly if one_each else _assigned_greedily)(per_class, np.array(fractions), key)
    return pl.DataFrame({"sample_id": samples["sample_id"], "split": np.array(PARTS)[part[row]]}).sort("sample_id")


def _drawn_exactly(per_class: NDArray[np.int64], fractions: NDArray[np.float64], key: NDArray[np.uint64]) -> Parts:
    """Part of each subject of one sample: within a class, in keyed order, as many per part as the rounded targets."""
    of_class = per_class.argmax(axis=1)
    sizes = controlled_rounding(per_class.sum(axis=0), fractions)
    part = np.empty(len(of_class), dtype=np.int64)
    part[np.lexsort((key, of_class))] = np.repeat(np.tile(np.arange(len(PARTS)), len(sizes)), sizes.ravel())
    return part


def controlled_rounding(counts: NDArray[np.int64], fractions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round the table counts × fractions, (K, P): rows sum to the counts, entries and column sums move by less than 1.

    Fractional entries are shifted along closed cycles, which keeps the sums, until all are whole (Bacharach, 1966).
    """
    # In whole numbers, because 141 × 1/3 is whole.
    shares = [Fraction(f).limit_denominator(10_000) for f in fractions.tolist()]
    shares[int(fractions.argmax())] += 1 - sum(shares)
    unit = math.lcm(*(share.denominator for share in shares))
    exact = counts[:, None] * np.array([int(share * unit) for share in shares])
    rest = exact % unit
    # The last row completes the column sums.
    rest = np.vstack([rest, -rest.sum(axis=0) % unit])
    n_rows = len(rest)
    while (fractional := rest % unit != 0).any():
        # Nodes are rows and columns, edges the fractional entries; every node with an edge has a second one.
        path, following = [-1], int(fractional.any(axis=1).argmax())
        while following not in path:
            path.append(following)
            row = following < n_rows
            edges = np.flatnonzero(fractional[following] if row else fractional[:, following - n_rows]) + n_rows * row
            following = int(edges[edges != path[-2]][0])
        cycle = path[path.index(following) :]
        cells = [(min(edge), max(edge) - n_rows) for edge in zip(cycle, [*cycle[1:], cycle[0]], strict=True)]
        up, down = (tuple(np.transpose(half)) for half in (cells[::2], cells[1::2]))
        step = min((unit - rest[up]).min(), rest[down].min())
        rest[up] += step
        rest[down] -= step
    return np.asarray((exact - exact % unit + rest[:-1]) // unit)


def _assigned_greedily(per_class: NDArray[np.int64], fractions: NDArray[np.float64], key: NDArray[np.uint64]) -> Parts:
    """Part of each subject, by the rule in `grouped_stratified`.

    Each choice depends on those before it. Plain floats take a quarter of the time of small arrays.
    """
    counts = np.column_stack([per_class, per_class.sum(axis=1)]).astype(np.float64)
    total = counts.sum(axis=0)
    scale = (1.0 / np.maximum(total, 1.0)).tolist()
    target, filled = np.outer(fractions, total).tolist(), np.zeros((len(fractions), len(total))).tolist()
    order, chosen = np.lexsort((key, -counts[:, -1])), list[int]()
    for of_classes in counts[order].tolist():
        row = [(c, n, n * scale[c]) for c, n in enumerate(of_classes) if n]
        best = (True, math.inf, math.inf, 0)
        for p, (aim, has) in enumerate(zip(target, filled, strict=True)):
            # Change in cost of adding the subject to the part; ties go to the part furthest below its target.
            change = shortfall = 0.0
            for c, _, share in row:
                shortfall = (aim[c] - has[c]) * scale[c]
                left = shortfall - share
                change += left * left - shortfall * shortfall
            best = min(best, (shortfall <= 1e-12, round(change * 1e12), -shortfall, p))
        chosen.append(best[-1])
        has = filled[best[-1]]
        for c, n, _ in row:
            has[c] += n
    return np.array(chosen, dtype=np.int64)[np.argsort(order)]


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
    lists = read_json(path, "a JSON object of id lists", "See `mrpipe split -h`.")
    if not all(k in PART_ALIASES and isinstance(v, list) for k, v in lists.items()):
        found = f"keys {sorted(lists)}"
        raise DataError(Fault(file=path.name, expected="the lists train, val and test", found=found))
    rows = [(str(i), PART_ALIASES[k]) for k, ids in lists.items() for i in ids]
    listed = pl.DataFrame(rows, schema={"id": pl.String, "split": pl.String}, orient="row")
    if repeated := int(listed["id"].is_duplicated().sum()):
        raise DataError(Fault(file=path.name, expected="each id once", found=f"{repeated} entries with repeated ids"))
    key = "sample_id" if listed["id"].is_in(samples["sample_id"].implode()).any() else "subject_id"
    if unknown := int((~listed["id"].is_in(samples[key].implode())).sum()):
        expected, found = f"ids of this store ({key})", f"{unknown} of {len(listed)} ids that it does not have"
        fix = "Check that the list belongs to this export."
        raise DataError(Fault(file=path.name, expected=expected, found=found, fix=fix))
    split = samples.join(listed, left_on=key, right_on="id", how="inner").select("sample_id", "split").sort("sample_id")
    require_grouped(samples, split, path.name)
    return split


def n_divided(samples: pl.DataFrame, split: pl.DataFrame) -> int:
    """Number of subjects that appear in several parts."""
    parts = split.join(samples.select("sample_id", "subject_id"), on="sample_id").group_by("subject_id")
    return int((parts.agg(pl.col("split").n_unique())["split"] > 1).sum())


def require_grouped(samples: pl.DataFrame, split: pl.DataFrame, source: str) -> None:
    """Raise a DataError if a subject appears in several parts."""
    if several := n_divided(samples, split):
        found, fix = f"{several} subjects in several parts", "Split by subject to avoid leakage."
        expected = "every subject in one part"
        raise DataError(Fault(file=source, column="subject_id", expected=expected, found=found, fix=fix))


def split_faults(
    name: str,
    scheme: Scheme | None,
    split: pl.DataFrame,
    tasks: Sequence[Task],
    labels: Mapping[str, pl.DataFrame],
    observed: Mapping[str, pl.Series],
    *,
    every_class: bool,
) -> Iterator[Fault]:
    """Reasons why nothing can be trained or tested on a split, for which `check` and `split` refuse it.

    Args:
        name, scheme: name and declaration of the scheme; None for an id list.
        split: frame `sample_id`, `split`.
        labels: task name → frame `sample_id`, `value`.
        observed: modality → ids of the samples that have it.
        every_class: whether every class needs training samples, and two classes are required; otherwise only two if
            the labels have two. `check` notes labels with one class.
    """
    place, leave = f"split {name}", f"or leave this split out: --schemes without {name}."
    counts = {part: int((split["split"] == part).sum()) for part in PARTS}
    # A column or an id list may lack a validation part: training takes one from the training samples.
    drawn = scheme is not None and scheme.column is None
    fractions = scheme.fractions if scheme is not None and drawn else (1, 0, 1)
    if empty := " and ".join(p for p, f in zip(PARTS, fractions, strict=True) if f > 0 and not counts[p]):
        found = ", ".join(f"{n} {part}" for part, n in counts.items())
        yield Fault(file=place, expected=f"samples in {empty}", found=found, fix=f"Add subjects, {leave}")
    train = split.filter(split="train")["sample_id"].implode()
    if not counts["train"]:
        return
    for task in tasks:
        value = labels[task.name].drop_nulls("value").join(split, on="sample_id")
        trained, expected = value.filter(split="train")["value"], ""
        lacking = value.filter(~pl.col("value").is_in(trained.implode()))["value"].unique().sort()
        if trained.is_empty():
            expected = "training samples with a label"
        elif task.kind == "classification" and (every_class or trained.n_unique() < 2) and len(lacking):
            expected = ", ".join(f"training samples of class {task.classes[k]}" for k in lacking)
        elif task.kind == "classification" and every_class and trained.n_unique() < 2:
            expected = f"a class besides {task.classes[trained[0]]}"
        elif drawn and (bare := " and ".join(p for p in PARTS if counts[p] and value.filter(split=p).is_empty())):
            # A declared test part without labels may be there to be predicted.
            expected = f"samples with a label in {bare}"
        if expected:
            fix = f"Move subjects between the parts, {leave}"
            yield Fault(file=place, column=f"label {task.name}", expected=expected, found="none", fix=fix)
    for modality, ids in observed.items():
        if not ids.is_in(train).any():
            expected, found = "training samples with this modality", f"none; samples with it: {len(ids)}"
            fix = f"Leave it out: --modalities without {modality}, {leave}"
            yield Fault(file=place, column=modality, expected=expected, found=found, fix=fix)


def label_faults(tasks: Sequence[Task], labels: Mapping[str, pl.DataFrame]) -> Iterator[Fault]:
    """Classes with a single member, which cannot be in both training and test."""
    for task in tasks:
        n = labels[task.name]["value"].drop_nulls().value_counts().sort("value")
        single = ", ".join(task.classes[k] for k in n.filter(count=1)["value"]) if task.kind == "classification" else ""
        if single:
            found, fix = f"1 of class {single}", "Merge the class with another, or drop its sample."
            yield Fault(file=f"label {task.name}", expected="at least 2 samples per class", found=found, fix=fix)


def assign(scheme: Scheme, samples: pl.DataFrame, labels: Mapping[str, pl.DataFrame], seed: int) -> pl.DataFrame:
    """Parts of the samples by a declared scheme: frame `sample_id`, `split`.

    Args:
        labels: task name → frame `sample_id`, `value`.
    """
    if scheme.column is not None:
        split = from_column(samples, scheme.column)
        require_grouped(samples, split, f"column {scheme.column} of samples.parquet")
        return split
    if scheme.stratify is None:
        return grouped_stratified(samples, fractions=scheme.fractions, seed=seed)
    samples = samples.join(labels[scheme.stratify].select("sample_id", stratum="value"), on="sample_id", how="left")
    return grouped_stratified(samples, fractions=scheme.fractions, seed=seed, stratum="stratum")
