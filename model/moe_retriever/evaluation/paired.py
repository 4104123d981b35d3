"""Means over seeds and paired differences between methods, with intervals from a bootstrap of seeds and subjects.

Each resample draws test subjects (all samples of a subject together) and seeds, both with replacement, and is used for
all methods. Effects common to all methods, such as a difficult subject or an unfavourable mask, cancel in differences.

Legend: n samples, C classes, R resamples, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_retriever.data.scores import Floats, Labels, lower_is_better, score
from moe_retriever.evaluation.bootstrap import interval, weighted_metrics
from mrpipe import keyed

N_RESAMPLES = 1000


@dataclass(frozen=True)
class Predicted:
    """A run's predictions for the test split.

    Attributes:
        label: (n,) class, or value of a regression.
        prediction: (n, C) probabilities, or (n,) values.
        subject: (n,) id.
    """

    label: Labels
    prediction: Floats
    subject: NDArray[np.str_]


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile interval; no bounds for metrics without a bootstrap (ECE)."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Comparison:
    """Comparison of methods on the same test subjects.

    Args:
        runs: method → seed → predictions.
    """

    def __init__(self, runs: Mapping[str, Mapping[int, Predicted]], *, n_resamples: int = N_RESAMPLES):
        self._values: dict[str, dict[int, dict[str, float | None]]] = {}
        self._resampled: dict[str, dict[int, dict[str, Floats]]] = {}
        subjects = np.unique(np.concatenate([t.subject for of in runs.values() for t in of.values()]))
        self._seeds = sorted({seed for of in runs.values() for seed in of})
        rng = keyed.generator(0, "comparison")
        weight = rng.multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)), size=n_resamples)
        self._drawn = rng.integers(0, len(self._seeds), size=(n_resamples, len(self._seeds)))
        for method, of in runs.items():
            self._values[method] = {seed: score(t.label, t.prediction) for seed, t in of.items()}
            self._resampled[method] = {
                seed: weighted_metrics(
                    t.label, t.prediction, weight[:, np.searchsorted(subjects, t.subject)].astype(np.float64)
                )
                for seed, t in of.items()
            }

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self._values)

    def seeds(self, method: str) -> list[int]:
        """Seeds of a method's runs."""
        return sorted(self._values[method])

    def values(self, method: str, metric: str) -> list[float]:
        """Values of the metric for the seeds for which it is defined."""
        known = [self._values[method][seed][metric] for seed in self.seeds(method)]
        return [v for v in known if v is not None]

    def mean(self, method: str, metric: str) -> Estimate | None:
        """Mean over seeds; None if the metric is undefined for a seed."""
        seeds = self.seeds(method)
        values = self.values(method, metric)
        if len(values) < len(seeds):
            return None
        return _estimate(float(np.mean(values)), self._mean(method, metric, seeds))

    def difference(self, method: str, other: str, metric: str) -> Estimate | None:
        """Mean of method − other over their common seeds; None without common seeds or if undefined for one of them."""
        seeds = sorted(set(self.seeds(method)) & set(self.seeds(other)))
        pairs = [(self._values[method][s][metric], self._values[other][s][metric]) for s in seeds]
        known = [a - b for a, b in pairs if a is not None and b is not None]
        if not seeds or len(known) < len(pairs):
            return None
        one, two = self._mean(method, metric, seeds), self._mean(other, metric, seeds)
        return _estimate(float(np.mean(known)), None if one is None or two is None else one - two)

    def best(self, metric: str, methods: Iterable[str]) -> str | None:
        """The method with the best mean, if the interval of its difference to the second best excludes zero."""
        means = {m: e.value for m in methods if (e := self.mean(m, metric)) is not None}
        sign = -1 if lower_is_better(metric) else 1
        order = sorted(means, key=lambda m: -sign * means[m])
        if len(order) < 2:
            return None
        lead = self.difference(order[0], order[1], metric)
        return order[0] if lead is not None and lead.excludes_zero and sign * lead.value > 0 else None

    def _mean(self, method: str, metric: str, seeds: Sequence[int]) -> Floats | None:
        """(R,) mean over the drawn seeds that are among `seeds`."""
        resampled = [self._resampled[method][s].get(metric) for s in seeds]
        if any(v is None for v in resampled):
            return None
        places = [self._seeds.index(s) for s in seeds]
        times = np.stack([(self._drawn == place).sum(axis=1) for place in places], axis=1).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            # NaN for a resample that contains none of these seeds or in which the metric is undefined.
            mean: Floats = (np.stack(resampled, axis=1) * times).sum(axis=1) / times.sum(axis=1)  # type: ignore[arg-type]
        return mean


def _estimate(value: float, resampled: Floats | None) -> Estimate:
    bounds = None if resampled is None else interval(resampled)
    return Estimate(value) if bounds is None else Estimate(value, *bounds)
