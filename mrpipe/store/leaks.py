"""Single-feature predictors of a label: the tests shared by `mrpipe check` and `mrpipe audit`.

For each class against the rest, a feature is tested by the order of its values, by bins of its values (a code such as
−1 for "survived" among days is no matter of order), by each of its levels, and by whether it is known. A regression
label is tested by rank correlation, and by how far its values differ between rows with and without a level or a value.

Legend: n rows, d columns, K classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

# AUROC (or one minus it) and rank correlation above which to report; family-wise error rate of findings by chance.
THRESHOLD, CORRELATION, ALPHA = 0.9, 0.99, 0.05
# Smallest number of known rows inside and outside a class.
LEAST = 5
# Rows per bin, members of the class (and of the rest) per bin, and limits of the number of bins.
BIN_ROWS, BIN_SIDE, FEWEST_BINS, MOST_BINS = 50, 5, 4, 20
# Columns and cells of a block of columns that are tested together.
BLOCK, CELLS = 512, 2**23
FOUND = pl.Schema({"position": pl.Int64, "what": pl.String, "class": pl.String, "auroc": pl.Float64, "n": pl.Int64})
Floats = NDArray[np.float64]
Ranked = tuple[NDArray[np.bool_], Floats]


@dataclass(frozen=True)
class Columns:
    """A block of predictor columns.

    Attributes:
        at: (d,) positions of their features.
        what: the predictor derived from the feature, e.g. `value` or `is <level>`.
        x: (n, d) float with NaN for unknown values, or bool.
        indicator: whether x is 0 or 1, with the same rows known in all columns; always true of bool.
        audit_known: whether to test the presence of the feature as well.
    """

    at: NDArray[np.int64]
    what: list[str]
    x: NDArray[Any]
    indicator: bool = False
    audit_known: bool = True


def feature_columns(x: NDArray[Any], levels: Sequence[Sequence[str] | None]) -> Iterator[Columns]:
    """Blocks of the columns of x (n, d): values of numeric features, one indicator per level of categorical ones."""
    numeric = np.array([j for j, names in enumerate(levels) if names is None], dtype=np.int64)
    block = max(1, min(BLOCK, CELLS // max(1, len(x))))
    for at in np.split(numeric, range(block, len(numeric), block)):
        yield Columns(at, ["value"] * len(at), x[:, at])
    for j, names in enumerate(levels):
        if names is not None:
            column = x[:, [j]]
            indicators = np.where(np.isnan(column), np.nan, column == np.arange(len(names)))
            yield Columns(np.full(len(names), j), [f"is {name}" for name in names], indicators, indicator=True)


def mask_columns(observed: NDArray[np.bool_]) -> Columns:
    """The block of the mask bits (n, M): whether a sample has a modality."""
    m = observed.shape[1]
    return Columns(np.arange(m), ["observed"] * m, observed, audit_known=False)


def aurocs(x: NDArray[Any], classes: NDArray[np.bool_], *, least: int = LEAST, ranked: Ranked | None = None) -> Floats:
    """AUROC of each column for each class against the rest, (K, d); ties count half.

    Only known values are used. Values below 0.5 are as informative as those above.

    Args:
        x: (n, d), unknown values NaN; or bool.
        classes: (n, K), whether a row belongs to the class.
        least: minimum number of known values inside and outside the class; below, the result is NaN.
        ranked: `_ranks(x)`, if it is known.
    """
    known, ranks = ranked or _ranks(x)
    inside = classes.T.astype(np.float64)
    n_in = inside @ known
    n_out = known.sum(axis=0) - n_in
    area = (inside @ ranks - n_in * (n_in + 1) / 2) / np.maximum(n_in * n_out, 1)
    return np.asarray(np.where((n_in >= least) & (n_out >= least), area, np.nan))


def binned_aurocs(x: NDArray[Any], classes: NDArray[np.bool_], *, ranked: Ranked | None = None) -> Floats:
    """AUROC of the share of the class in the bin of a value, (K, d); NaN where there are too few rows for bins.

    Known values are cut into at most `MOST_BINS` bins of equal size; equal values share a bin.
    """
    known, ranks = ranked or _ranks(x)
    n_known, d = known.sum(axis=0), x.shape[1]
    area, before = np.full((classes.shape[1], d), np.nan), np.zeros(d, dtype=np.int64)
    for k, inside in enumerate(classes.T):
        rows = np.flatnonzero(inside)
        n_in = known[rows].sum(axis=0)
        side = np.minimum(n_in, n_known - n_in)
        n_bins = np.minimum(np.minimum(n_known // BIN_ROWS, side // BIN_SIDE), MOST_BINS)
        if not (tested := n_bins >= FEWEST_BINS).any():
            continue
        # Usually, all classes have the same bins.
        if not np.array_equal(n_bins, before):
            place = (ranks * n_bins / np.maximum(n_known, 1)).astype(np.int64).clip(0, np.maximum(n_bins - 1, 0))
            cell, before = place * d + np.arange(d), n_bins
            total = np.bincount(cell[known], minlength=MOST_BINS * d).reshape(MOST_BINS, d)
        positive = np.bincount(cell[rows][known[rows]], minlength=MOST_BINS * d).reshape(MOST_BINS, d)
        order = np.argsort(positive / np.maximum(total, 1), axis=0, kind="stable")
        positive, negative = (np.take_along_axis(t, order, axis=0) for t in (positive, total - positive))
        below = np.cumsum(negative, axis=0) - negative
        u = (positive * (below + negative / 2)).sum(axis=0)
        area[k] = np.where(tested, u / np.maximum(n_in * (n_known - n_in), 1), np.nan)
    return area


def correlations(x: NDArray[Any], y: Floats, *, least: int = LEAST) -> Floats:
    """Spearman's rank correlation of each column with y (n,) over its known rows, (d,); NaN below 2 `least` rows."""
    known, ranks = _ranks(x)
    _, of_y = _ranks(np.where(known, y[:, None], np.nan))
    n = known.sum(axis=0)
    a, b = (np.where(known, r - (n + 1) / 2, 0.0) for r in (ranks, of_y))
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.asarray(np.where((n >= 2 * least) & (scale > 0), (a * b).sum(axis=0) / np.maximum(scale, 1e-300), np.nan))


def _ranks(x: NDArray[Any]) -> Ranked:
    """Known values and their mid-ranks per column (0 where unknown), (n, d)."""
    if x.dtype == np.bool_:
        n_true = x.sum(axis=0)
        return np.ones_like(x), np.where(x, len(x) - (n_true - 1) / 2, (len(x) - n_true + 1) / 2)
    known = ~np.isnan(x)
    # Unknown values get the highest ranks, so that they do not affect the ranks of known values.
    return known, np.where(known, rankdata(np.where(known, x, np.inf), axis=0), 0.0)


def chance_spread(n_in: NDArray[Any], n_out: NDArray[Any]) -> Floats:
    """Standard deviation of the AUROC of a feature that is independent of the class (an upper bound with ties)."""
    return np.asarray(np.sqrt((n_in + n_out + 1.0) / (12.0 * np.maximum(n_in * n_out, 1))))


def find_leaks(
    blocks: Iterable[Columns],
    y: NDArray[Any],
    classes: Sequence[str],
    *,
    threshold: float = THRESHOLD,
    alpha: float = ALPHA,
    least: int = LEAST,
) -> pl.DataFrame:
    """Predictors that nearly determine a label on their own.

    Args:
        blocks: predictor columns of one modality, n rows each.
        y: (n,) class indices or, if `classes` is empty, numbers; without unknown values.
        threshold: AUROC above which a predictor is reported, in either direction.
        alpha: family-wise error rate (Bonferroni over all tests of `blocks`) of findings without leakage: among
            thousands of SNPs, some separate a dozen people by chance. With 1, everything above the threshold is found.
        least: minimum number of known rows inside and outside a class.

    Returns:
        Rows of `FOUND`, in the order of the blocks. `what` is that of the column, or `known`; `auroc` is at least 0.5.
        A numeric feature against a regression label has `what` = `rank correlation`, its absolute value in `auroc`, and
        must exceed `CORRELATION` instead of the threshold. The class of regression labels is empty.
    """
    member = np.asarray(y)[:, None] == np.arange(len(classes)) if classes else None
    found, spreads, n_tests = [], [np.empty(0)], 0

    def test(at: NDArray[np.int64], what: list[str], x: NDArray[Any], indicator: bool) -> None:
        nonlocal n_tests
        known = ~np.isnan(x)
        n, bar = known.sum(axis=0), threshold
        if member is not None:
            n_in = member.T.astype(np.int64) @ known
            ranked = _ranks(x)
            area = aurocs(x, member, least=least, ranked=ranked)
            strength, spread = np.fmax(area, 1 - area), chance_spread(n_in, n - n_in)
            if not indicator:
                strength = np.fmax(strength, binned_aurocs(x, member, ranked=ranked))
        elif indicator:
            rows = known[:, 0]
            inside = x[rows] == 1
            area = aurocs(np.asarray(y, dtype=np.float64)[rows, None], inside, least=least).T
            strength, spread = np.fmax(area, 1 - area), chance_spread(inside.sum(axis=0), (~inside).sum(axis=0))[None]
        else:
            strength = np.abs(correlations(x, np.asarray(y, dtype=np.float64), least=least))[None]
            what, bar = ["rank correlation"] * len(what), CORRELATION
            spread = 1 / np.sqrt(np.maximum(n - 1, 1))[None]
        n_tests += int(np.isfinite(strength).sum())
        chance = 0.0 if what[0] == "rank correlation" else 0.5
        for k, name in enumerate(classes or ("",)):
            chosen = np.flatnonzero(np.nan_to_num(strength[k]) > bar)
            names = [what[i] for i in chosen.tolist()]
            columns = [at[chosen], names, [name] * len(chosen), strength[k, chosen], n[chosen]]
            found.append(pl.DataFrame(dict(zip(FOUND, columns, strict=True)), schema=FOUND))
            spreads.append((strength[k, chosen] - chance) / spread[k, chosen])

    for c in blocks:
        if not len(c.at):
            continue
        test(c.at, c.what, c.x, c.indicator or c.x.dtype == np.bool_)
        if c.audit_known:
            # Presence is tested once per feature, not once per level.
            once = np.flatnonzero(np.r_[True, c.at[1:] != c.at[:-1]])
            test(c.at[once], ["known"] * len(once), ~np.isnan(c.x[:, once]), True)
    limit = 0.0 if alpha >= 1 else float(norm.isf(alpha / (2 * max(n_tests, 1))))
    return pl.concat([pl.DataFrame(schema=FOUND), *found]).filter(pl.Series(np.concatenate(spreads) >= limit))
