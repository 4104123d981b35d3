"""Means over seeds and paired differences between methods, with intervals over seeds and test subjects.

Effects common to all methods, such as a difficult subject or an unfavourable mask, cancel in differences: a difference
is computed per seed, and with the same test subjects left out. Intervals: `moe_retriever.evaluation.intervals`.

Legend: n samples, C classes, S seeds, K groups of test subjects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_retriever.data.scores import PLAIN, Floats, Labels, Rules, lower_is_better, score
from moe_retriever.evaluation.bootstrap import weighted_metrics
from moe_retriever.evaluation.intervals import Estimate, estimate, holm, leave_out_weights
from moe_retriever.metrics import METRIC

_RANGES = {"corr": (-1.0, 1.0), "r2": (-np.inf, 1.0), "brier": (0.0, 2.0)}  # others: a share, or not negative


def limited(found: Estimate, metric: str, *, difference: bool = False) -> Estimate:
    """A mean or difference whose interval ends at the range of the metric, or of a difference of two of its values."""
    low, high = _RANGES.get(metric, (0.0, 1.0 if METRIC[metric].percent else np.inf))
    return replace(found, limits=(low - high, high - low) if difference else (low, high))


@dataclass(frozen=True)
class Predicted:
    """A run's predictions for the test split.

    Attributes:
        label: (n,) class, or value of a regression.
        prediction: (n, C) probabilities, or (n,) values.
        subject: (n,) id.
        rules: convention and threshold of the metrics.
    """

    label: Labels
    prediction: Floats
    subject: NDArray[np.str_]
    rules: Rules = PLAIN


class Comparison:
    """Comparison of methods on the same test subjects.

    Args:
        runs: method → seed → predictions.
    """

    def __init__(self, runs: Mapping[str, Mapping[int, Predicted]]):
        self._values: dict[str, dict[int, dict[str, float | None]]] = {}
        self._left_out: dict[str, dict[int, dict[str, Floats]]] = {}
        subjects = np.unique([subject for of in runs.values() for t in of.values() for subject in set(t.subject)])
        for method, of in runs.items():
            self._values[method], self._left_out[method] = {}, {}
            for seed, t in of.items():
                self._values[method][seed] = score(t.label, t.prediction, t.rules)
                with np.errstate(invalid="ignore", divide="ignore"):
                    weight = leave_out_weights(subjects, t.subject)
                    self._left_out[method][seed] = weighted_metrics(t.label, t.prediction, weight, t.rules)

    @property
    def metrics(self) -> tuple[str, ...]:

        return tuple(dict.fromkeys(name for of in self._values.values() for known in of.values() for name in known))

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self._values)

    def seeds(self, method: str) -> list[int]:
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
        return limited(estimate(np.array(values), self._without_groups(method, metric, seeds)), metric)

    def difference(self, method: str, other: str, metric: str) -> Estimate | None:
        """Mean of method − other over their common seeds; None without common seeds or if undefined for one of them.

        A single common seed of several says nothing about the others, so the difference has no interval.
        """
        seeds = sorted(set(self.seeds(method)) & set(self.seeds(other)))
        pairs = [(self._values[method][s][metric], self._values[other][s][metric]) for s in seeds]
        known = [a - b for a, b in pairs if a is not None and b is not None]
        if not seeds or len(known) < len(pairs):
            return None
        if len(seeds) == 1 < max(len(self.seeds(method)), len(self.seeds(other))):
            return Estimate(known[0])
        one, two = self._without_groups(method, metric, seeds), self._without_groups(other, metric, seeds)
        found = estimate(np.array(known), None if one is None or two is None else one - two)
        return limited(found, metric, difference=True)

    def differences(self, methods: Iterable[str], other: str, metric: str) -> dict[str, Estimate | None]:
        """`difference` of each method (except `other`) to the other, with p-values corrected for all of them."""
        return holm({m: self.difference(m, other, metric) for m in methods if m != other})

    def best(self, metric: str, methods: Iterable[str]) -> str | None:
        """The method with the best (e.g. lowest MAE) mean, if its lead over every other holds after correction."""
        means = {m: e.value for m in methods if (e := self.mean(m, metric)) is not None}
        if len(means) < 2:
            return None
        first = (min if lower_is_better(metric) else max)(means, key=lambda m: means[m])
        leads = self.differences(means, first, metric).values()
        return first if all(e is not None and e.holds for e in leads) else None

    def _without_groups(self, method: str, metric: str, seeds: Sequence[int]) -> Floats | None:
        """(S, K) metric of each seed without each group of subjects; None if it has no weighted form."""
        found = [self._left_out[method][s][metric] for s in seeds if metric in self._left_out[method][s]]
        return np.stack(found) if len(found) == len(seeds) else None
