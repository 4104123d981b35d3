"""Groups of samples with metrics of their own: modality combinations and their summary, and subgroups."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_retriever.data.scores import Bools, Ints
from moe_retriever.metrics import lower_is_better
from mrpipe.errors import UsageError
from mrpipe.store.reader import Store

# Columns `by` and `group` of the table of scores, and (n,) whether a sample belongs to the group.
Group = tuple[str, str, Bools]
Samples = tuple[Store, NDArray[np.str_]]
# Combinations with fewer samples do not count as the worst one, nor for the mean.
MIN_PATTERN = 20
# Numeric columns with fewer values are not cut at quartiles; other columns with more values form no subgroups.
MIN_CUT, MOST_VALUES = 6, 50


def pattern_groups(combination: list[str], n_observed: Ints) -> list[Group]:
    """All samples, those of each modality combination, and those of each number of observed modalities."""
    combinations = np.array(combination)
    groups: list[Group] = [("all", "all", np.ones(len(combination), dtype=bool))]
    groups += [("combination", c, combinations == c) for c in sorted(set(combination), key=lambda c: (c.count("+"), c))]
    return groups + [("observed", str(k), n_observed == k) for k in np.unique(n_observed).tolist()]


def subgroups(columns: Mapping[str, tuple[float, ...]], evaluated: Samples, train: Samples) -> list[Group]:
    """Groups of the evaluated samples by columns of samples.parquet; samples without a value form a group.

    Numeric columns are cut at their cuts in `columns` or, if there are none, at the quartiles of the training samples.
    A column that does not exist, or does not form groups, is a UsageError.
    """
    samples, of_training = (_columns(*of) for of in (evaluated, train))
    known = samples.collect_schema().names()[1:]
    groups: list[Group] = []
    for column, cuts in columns.items():
        if column not in known:
            raise UsageError(f"subgroups: the samples have no column {column!r}; they have {', '.join(known)}")
        value, of_train = (s.select(column).collect().to_series() for s in (samples, of_training))
        if value.dtype.is_numeric() and (cuts or of_train.drop_nulls().n_unique() >= MIN_CUT):
            cuts = cuts or tuple(np.unique(np.quantile(of_train.drop_nulls().to_numpy(), (0.25, 0.5, 0.75))))
            names = [f"[{low:g}, {high:g})" for low, high in pairwise((-np.inf, *cuts, np.inf))]
            x = value.cast(pl.Float64).to_numpy()
            place = np.where(np.isnan(x), len(names), np.digitize(x, cuts))
            value = pl.Series(np.array([*names, None])[place].tolist(), dtype=pl.Enum(names))
        elif cuts or value.n_unique() > MOST_VALUES:
            raise UsageError(f"subgroups: {column} needs numbers, to be cut, or at most {MOST_VALUES} different values")
        for name in value.unique().sort():
            group = f"{column} {'unknown' if name is None else name}"
            groups.append(("subgroup", group, value.eq_missing(name).to_numpy()))
    return groups


def _columns(store: Store, sample_id: NDArray[np.str_]) -> pl.LazyFrame:
    """`sample_id` and the columns of samples.parquet that are not required."""
    ids = pl.LazyFrame({"sample_id": sample_id.tolist()}, schema={"sample_id": pl.String})
    samples = store.samples().drop("subject_id", "modality_mask", *(f"row_{name}" for name in store.bits))
    return ids.join(samples, on="sample_id", how="left", maintain_order="left")


def pattern_rows(scores: pl.DataFrame) -> pl.DataFrame:
    """Per metric, a row of the combination with the worst value, and one of the mean over the combinations.

    Combinations with fewer than 20 samples, and those in which the metric is undefined, are left out. The `group` of
    the mean is the number of combinations.
    """
    counted = scores.filter(pl.col("by") == "combination", pl.col("n") >= MIN_PATTERN, pl.col("value").is_not_null())
    rows = []
    for (metric,), found in counted.group_by("metric", maintain_order=True):
        worst = found.sort("value", descending=lower_is_better(str(metric)), maintain_order=True).row(0, named=True)
        mean = {"group": str(len(found)), "n": found["n"].sum(), "metric": metric, "value": found["value"].mean()}
        rows += [worst | {"by": "worst_pattern"}, mean | {"by": "mean_over_patterns"}]
    return pl.DataFrame(rows, schema=scores.schema)
