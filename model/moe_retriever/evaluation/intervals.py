"""95% intervals for expected scores from few seeds, from a hierarchical t, and Holm's correction of p-values.

Target: the expected score of a method over seeds and over the population of test subjects, given the training samples.
The mean over S seeds deviates from it with variance A + B, where

* A, of the seeds, is the sample variance of their scores, divided by S, with S − 1 degrees of freedom;
* B, of the test subjects that all seeds share, is the mean covariance of two seeds, from the jackknife over K groups of
  subjects (single subjects up to `MOST_GROUPS`), with K − 1 degrees of freedom. A + B is at least the variance over
  subjects for these very seeds, so that seeds with equal scores by chance do not have an interval without width.

The half-width is sqrt(t²(S − 1) A + t²(K − 1) B), with quantiles t of Student's distribution, which covers at least 95%
for normal deviations and every ratio of A and B (Banerjee, 1960, Sankhyā 22, 357-358); a single quantile with
Satterthwaite's degrees of freedom does not. With one seed, A is unknown: the interval covers the test subjects only.

Legend: n samples, S seeds, K groups of test subjects.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

from moe_retriever.data.scores import Floats
from mrpipe import keyed

LEVEL = 0.95
MOST_GROUPS = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean or difference, and (variance, degrees of freedom) of the parts of its deviation, if it has an interval.

    `adjusted` is the p-value after correction for multiple comparisons; the interval ends at `limits`.
    """

    value: float
    parts: tuple[tuple[float, int], ...] = ()
    adjusted: float | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)

    def half_width(self, level: float = LEVEL) -> float:
        """Half of the interval's width, if there is one."""
        return math.sqrt(sum(v * float(stdtrit(df, (1 - level) / 2)) ** 2 for v, df in self.parts))

    @property
    def low(self) -> float | None:
        return max(self.value - self.half_width(), self.limits[0]) if self.parts else None

    @property
    def high(self) -> float | None:
        return min(self.value + self.half_width(), self.limits[1]) if self.parts else None

    @property
    def p(self) -> float | None:
        """Two-sided p-value of zero: 1 − the level of the interval that ends at zero; 0 below 1e-15."""
        if not self.parts:
            return None
        if self.value == 0 or self.half_width(1 - 1e-15) <= abs(self.value):
            return float(self.value == 0)
        return float(brentq(lambda p: self.half_width(1 - p) - abs(self.value), 1e-15, 1.0, xtol=1e-15))

    @property
    def holds(self) -> bool:
        """Whether the value differs from zero after correction."""
        return self.adjusted is not None and self.adjusted < 1 - LEVEL


def estimate(value_S: Floats, left_out_SK: Floats | None) -> Estimate:
    """Mean over seeds, with the variances of the hierarchical t; without an interval if `left_out_SK` is incomplete.

    Args:
        value_S: score (or difference) of each seed.
        left_out_SK: the same without each group of test subjects, NaN if undefined; None if not available.
    """
    n_seeds, mean = len(value_S), float(value_S.mean())
    if left_out_SK is None or left_out_SK.shape[1] < 2 or not np.isfinite(left_out_SK).all():
        return Estimate(mean)
    n_groups = left_out_SK.shape[1]
    deviation_SK = left_out_SK - left_out_SK.mean(axis=1, keepdims=True)
    covariance_SS = deviation_SK @ deviation_SK.T * ((n_groups - 1) / n_groups)
    of_these = float(covariance_SS.mean())
    if n_seeds == 1:
        return Estimate(mean, ((of_these, n_groups - 1),))
    between = float(value_S.var(ddof=1)) / n_seeds
    shared = float(covariance_SS.sum() - covariance_SS.trace()) / (n_seeds * (n_seeds - 1))
    return Estimate(mean, ((between, n_seeds - 1), (max(0.0, shared, of_these - between), n_groups - 1)))


def leave_out_weights(subjects: NDArray[np.str_], subject: NDArray[np.str_]) -> Floats:
    """(K, n) weights of samples of the given subjects; each row leaves out a group of `subjects` (sorted, unique)."""
    n_groups = min(len(subjects), MOST_GROUPS)
    group = keyed.generator(0, "jackknife").permutation(len(subjects)) % n_groups
    return (group[np.searchsorted(subjects, subject)] != np.arange(n_groups)[:, None]).astype(np.float64)


def holm(estimates: Mapping[str, Estimate | None]) -> dict[str, Estimate | None]:
    """The estimates with p-values adjusted for all of them together (Holm, 1979), under any dependence."""
    p = {name: e.p for name, e in estimates.items() if e is not None and e.p is not None}
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        adjusted[name] = largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
    return {name: e and replace(e, adjusted=adjusted.get(name)) for name, e in estimates.items()}
