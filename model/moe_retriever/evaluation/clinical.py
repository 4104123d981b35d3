"""Clinical performance of methods with two classes: curves, calibration, decision thresholds and groups of people.

Every number is computed for each seed and averaged over the seeds. Intervals are 95% percentiles of this average over
resamples of the test subjects (all samples of a subject together), which all methods and seeds share; they cover the
test subjects, not the training. Thresholds and temperatures are chosen on validation samples, for each seed.

Legend: n samples, U test subjects, R sets of weights (the first: all subjects once), G points of a grid.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from moe_retriever.config import parse_threshold
from moe_retriever.data.scores import Bools, Floats, from_the_top, weighted_areas
from moe_retriever.evaluation.bootstrap import interval
from moe_retriever.evaluation.calibration import choose_threshold, fit_temperature
from moe_retriever.evaluation.groups import Group
from moe_retriever.evaluation.run_folders import predictions_of
from mrpipe import keyed
from mrpipe.reading import read_frame

RULES = ("0.5", "youden", "sensitivity=0.9", "specificity=0.9")
GRID = np.linspace(0, 1, 51)
MOST_BINS, SAMPLES_PER_BIN, MOST_GROUPS = 10, 20, 20
# `x` is the threshold (mean over seeds), the abscissa of a curve, or the mean probability in a bin.
SCHEMA = {"by": pl.String, "group": pl.String, "x": pl.Float64, "n": pl.Int64, "events": pl.Int64}
SCHEMA |= {"metric": pl.String, **dict.fromkeys(("value", "low", "high"), pl.Float64)}
# By, group, x and metric; value for each set of weights (R,), people that it describes, samples and events of a group.
_Value = tuple[tuple[str, str, float | None, str], tuple[Floats, int, int, int]]


@dataclass(frozen=True)
class BinaryRun:
    """Predictions of one run for its test samples.

    Attributes:
        event, probability: (n,) whether the label is the second class, and its probability (1e-12 … 1 − 1e-12).
        groups: modality combinations and subgroups, the most frequent `MOST_GROUPS` of each.
        validation: event and probability of the validation samples; None if the run has none of both classes.
    """

    event: Bools
    probability: Floats
    subject: NDArray[np.str_]
    groups: Sequence[Group] = ()
    validation: tuple[Bools, Floats] | None = None

    def thresholds(self, rules: Iterable[str]) -> dict[str, float]:
        """Rule → threshold, chosen on the validation samples; without those, fixed thresholds only."""
        found = {}
        for text in rules:
            rule, value = parse_threshold(text)
            if rule == "fixed":
                found[text] = value
            elif self.validation is not None:
                found[text] = choose_threshold(self.validation[0].astype(np.int64), self.validation[1], rule, value)
        return found

    def scaled(self) -> dict[str, Floats]:
        """Probabilities as evaluated and, with validation samples, with the temperature that is fitted to those."""
        found = {"as evaluated": self.probability}
        if self.validation is not None:
            event, x = self.validation[0].astype(np.int64), logit(self.validation[1])
            temperature = fit_temperature(event, np.stack([np.zeros_like(x), x], axis=1))
            found["temperature-scaled"] = expit(np.clip(logit(self.probability) / temperature, -27, 27))
        return found


def read_binary(run: Path) -> BinaryRun:
    """Read the predictions of a run folder; an older one may lack those of the validation samples and subgroups."""
    frame = predictions_of(run).with_columns(combination=pl.concat_list("modalities"))
    groups: list[Group] = []
    for by, column in (("combination", "combination"), ("subgroup", "subgroups")):
        if column in frame.columns:
            most = Counter(frame[column].explode().drop_nulls().sort().to_list()).most_common(MOST_GROUPS)
            groups += [(by, name, frame[column].list.contains(name).to_numpy()) for name, _ in most]
    path, validation = run / "validation.parquet", None
    if path.is_file():
        event, probability = _second_class(read_frame(path))
        validation = (event, probability) if 0 < event.sum() < len(event) else None
    return BinaryRun(*_second_class(frame), frame["subject_id"].to_numpy().astype(np.str_), groups, validation)


def _second_class(frame: pl.DataFrame) -> tuple[Bools, Floats]:
    column = [name for name in frame.columns if name.startswith("p_")][1]
    return (frame["label"] == column.removeprefix("p_")).to_numpy(), frame[column].to_numpy().clip(1e-12, 1 - 1e-12)


def measure(runs: Sequence[BinaryRun], more: Sequence[str] = (), *, seed: int = 0, smallest: int = 0) -> pl.DataFrame:
    """All results of one method from the runs of its seeds; see `SCHEMA`. Undefined values are null.

    Args:
        more: threshold rules in addition to `RULES`; the last one, or else Youden's, is also used for the groups.
        seed: that of the resamples, which are those of `moe_retriever.evaluation.bootstrap`.
        smallest: values that describe fewer people are null, and points of curves and bins are left out.
    """
    draws, subjects = keyed.generator(seed, "bootstrap"), np.unique(np.concatenate([run.subject for run in runs]))
    # To limit the memory: at most 10 million weights, but at least 200 resamples.
    size = int(np.clip(10_000_000 // max(len(run.event) for run in runs), 200, 1000))
    same = np.ones(len(subjects))
    weight_RU = np.vstack([same, draws.multinomial(len(same), same / len(same), size=size)])
    chosen = [run.thresholds((*RULES, *more)) for run in runs]
    rules = [rule for rule in chosen[0] if all(rule in known for known in chosen)]
    main = next(rule for rule in (*reversed(more), "youden", "0.5") if rule in rules)
    x = {rule: float(np.mean([t[rule] for t in chosen])) for rule in rules}
    every, rows = [], []
    for run, thresholds in zip(runs, chosen, strict=True):
        weight_Rn = weight_RU[:, np.searchsorted(subjects, run.subject)]
        with np.errstate(invalid="ignore", divide="ignore"):
            every.append(dict(_values(run, weight_Rn, {rule: thresholds[rule] for rule in rules}, main)))
    for by, group, at, metric in (key for key in every[0] if all(key in of for of in every)):
        of_seeds, people, n, events = zip(*(of[by, group, at, metric] for of in every), strict=True)
        values = np.mean(of_seeds, axis=0)
        shown = np.isfinite(values[0]) and min(people) >= smallest
        at = x[group] if by == "threshold" else at if by == "curve" else x[main]
        bounds = values[0], *(interval(values[1:]) or (None, None))
        sizes = (round(float(np.mean(size))) for size in (n, events))
        if shown or by != "curve":
            rows.append((by, group, at, *sizes, metric, *(bounds if shown else (None,) * 3)))
    return pl.DataFrame([*rows, *reliability(runs, smallest)], schema=SCHEMA, orient="row")


def reliability(runs: Sequence[BinaryRun], smallest: int = 0) -> Iterator[tuple[Any, ...]]:
    """Rows of bins with equal numbers of the seeds' pooled predictions: mean probability `x`, share of events `value`.

    Wilson intervals; their sample size is the number of people in the bin, because samples of one person are dependent.
    `n` and `events` are means over seeds. There are at most 10 bins, with about 20 samples or more; those with fewer
    than `smallest` people of a class are left out.
    """
    event, p, subject = (np.concatenate([getattr(r, k) for r in runs]) for k in ("event", "probability", "subject"))
    n_bins = int(np.clip(len(p) // len(runs) // SAMPLES_PER_BIN, 1, MOST_BINS))
    place = np.digitize(p, np.unique(np.quantile(p, np.linspace(0, 1, n_bins + 1)[1:-1])))
    for number, b in enumerate(np.unique(place)):
        chosen = place == b
        people, *of_class = (len(np.unique(subject[chosen & of])) for of in (True, event, ~event))
        observed = float(event[chosen].mean())
        n, events = (round(float(v.sum()) / len(runs)) for v in (chosen, event & chosen))
        if min(of_class) >= smallest:
            value = "observed", observed, *wilson(observed, people)
            yield "bin", str(number + 1), float(p[chosen].mean()), n, events, *value


def wilson(share: float, n: float) -> tuple[float, float]:
    """95% interval of a share of n (Wilson, 1927)."""
    z2 = 1.959963984540054**2
    centre, half = share + z2 / (2 * n), np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    return max(0.0, float((centre - half) / (1 + z2 / n))), min(1.0, float((centre + half) / (1 + z2 / n)))


def _values(run: BinaryRun, weight_Rn: Floats, thresholds: Mapping[str, float], main: str) -> Iterator[_Value]:
    """All numbers of one run; the number of people is that of the smaller class if both are needed."""
    y, p, everyone = run.event, run.probability, np.ones(len(run.event), dtype=bool)

    def value(values: Floats, *described: Bools, of: Bools = everyone) -> tuple[Floats, int, int, int]:
        people = min(len(np.unique(run.subject[chosen & of])) for chosen in described)
        return values, people, int(of.sum()), int((y & of).sum())

    areas = dict(zip(("auroc", "auprc"), weighted_areas(y, p, weight_Rn), strict=True))
    for group, q in run.scaled().items():
        for name, values in (areas | _calibration(y, q, weight_Rn)).items():
            yield ("overall", group, None, name), value(values, y, ~y)
    for rule, threshold in thresholds.items():
        for name, (values, among) in _decisions(y, p >= threshold, weight_Rn).items():
            yield ("threshold", rule, None, name), value(values, p >= threshold if name == "flagged" else among)
    for by, group, of in run.groups:
        part = y[of], p[of], weight_Rn[:, of]
        yield (by, group, None, "auroc"), value(weighted_areas(*part)[0], y, ~y, of=of)
        decided = _decisions(part[0], part[1] >= thresholds[main], part[2])
        for name, described in (("sensitivity", y), ("specificity", ~y)):
            yield (by, group, None, name), value(decided[name][0], described, of=of)
        excess = part[2] @ (part[1] - part[0]) / part[2].sum(axis=1)
        yield (by, group, None, "excess"), value(excess, everyone, of=of)
    for name, x, values in _curves(y, p, weight_Rn):
        yield ("curve", name, x, name), value(values, y, ~y)


def _curves(y: Bools, p: Floats, weight_Rn: Floats) -> Iterator[tuple[str, float, Floats]]:
    """Points on `GRID`: sensitivity by 1 − specificity (linear between thresholds), precision by recall, net benefit.

    Precision is that of the highest threshold with at least the recall; the net benefit is by threshold.
    """
    _, _, true, every = from_the_top(y, p, weight_Rn)
    n_true, n_false = true[:, -1:], every[:, -1:] - true[:, -1:]
    # All rows are searched at once: row r is shifted by 2 r, so that they follow one another.
    step = 2.0 * np.arange(len(weight_Rn))[:, None]
    hits, alarms = (np.pad(np.nan_to_num(v), ((0, 0), (1, 0))) for v in (true / n_true, (every - true) / n_false))
    roc = np.interp((GRID + 1e-9 + step).ravel(), (alarms + step).ravel(), hits.ravel())
    place = np.searchsorted((hits[:, 1:] + step).ravel(), (np.maximum(GRID, 1e-6) - 1e-9 + step).ravel())
    precision = (true / every).ravel()[np.minimum(place, true.size - 1)]
    flagged, odds = p[:, None] >= GRID[:-1], GRID[:-1] / (1 - GRID[:-1])
    benefit = (weight_Rn @ (flagged & y[:, None]) - odds * (weight_Rn @ (flagged & ~y[:, None]))) / every[:, -1:]
    for name, of in (("roc", roc), ("precision_recall", precision), ("net_benefit", benefit)):
        points = np.where(n_true * n_false > 0, of.reshape(len(weight_Rn), -1), np.nan).T
        yield from ((name, float(x), values) for x, values in zip(GRID, points, strict=False))


def _decisions(y: Bools, flagged: Bools, weight_Rn: Floats) -> dict[str, tuple[Floats, Bools]]:
    """Name → (R,) share of samples with a property among others, and which the others are."""
    shares = {"sensitivity": (flagged, y), "specificity": (~flagged, ~y), "ppv": (y, flagged), "npv": (~y, ~flagged)}
    shares |= {"flagged": (flagged, np.ones_like(y))}
    return {name: (weight_Rn @ (a & b) / (weight_Rn @ b), b) for name, (a, b) in shares.items()}


def _calibration(y: Bools, p: Floats, weight_Rn: Floats) -> dict[str, Floats]:
    """Share of events, Brier score, its scaled form, and of a logistic regression on the logit: intercept with a slope
    of 1, and slope, if the classes overlap. Resamples, if of two classes, are one Newton step from the estimate.
    """
    x, (share, brier) = logit(p), (weight_Rn @ np.stack([y, (p - y) ** 2], axis=1) / weight_Rn.sum(axis=1)[:, None]).T
    out = {"prevalence": share, "brier": brier, "scaled_brier": 1 - brier / (share * (1 - share))}
    both = np.where((share > 0) & (share < 1), 0.0, np.nan)
    out |= dict.fromkeys(("intercept", "slope"), np.full_like(brier, np.nan))
    if 0 < y.sum() < len(y):
        start = brentq(lambda a: (expit(a + x) - y).sum(), -50, 50)
        out["intercept"] = both + start + _newton(y, x, start, 1.0, weight_Rn)[0]
        fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[:, None], y)
        slope = float(fitted.coef_[0, 0])
        if max(x[y].min(), x[~y].min()) < min(x[y].max(), x[~y].max()):
            out["slope"] = both + slope + _newton(y, x, float(fitted.intercept_[0]), slope, weight_Rn)[1]
    return out


def _newton(y: Bools, x: Floats, a: float, b: float, weight_Rn: Floats) -> tuple[Floats, Floats]:
    """(R,) Newton step of the intercept alone, and that of the slope together with the intercept."""
    mean = expit(a + b * x)
    error, variance = y - mean, mean * (1 - mean)
    g, gx, h, hx, hxx = (weight_Rn @ np.stack([error, error * x, variance, variance * x, variance * x**2], axis=1)).T
    return g / h, (h * gx - hx * g) / (h * hxx - hx**2)
