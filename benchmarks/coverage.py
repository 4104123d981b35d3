"""Coverage of the 95% intervals over seeds and test subjects, by simulation (results: benchmarks/coverage.md).

    python -m benchmarks.coverage [--replicates 2000] [--out FILE]

Two methods are trained with 10 seeds and tested on the same subjects. The margin of sample i of subject j by seed s is
μ + τ·ξ_s + u_j + e_i + w_is (standard normal without μ and ξ; positive: correct); u and e are shared by seeds and
methods, ξ and w are not. τ gives the standard deviation of the accuracy between seeds. Errors of a regression are
(1 + τ·ξ_s)(u_j + e_i + w_is). Expected scores are known: a replicate is covered if the interval of the mean, or of the
difference of the methods, contains the expected score over seeds and the population of subjects.

Intervals, each on the first 2, 3, 5 and 10 seeds:
* new: `moe_retriever.evaluation.intervals`;
* Satterthwaite: the same variances, with one quantile of t;
* old: percentiles of a bootstrap that draws seeds and subjects (AUROC: fewer replicates and resamples).

Legend: S seeds, K subjects, k samples per subject, n = K·k, R resamples.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from moe_retriever.data.scores import weighted_areas, weighted_metrics
from moe_retriever.evaluation.intervals import Estimate, estimate

Floats = NDArray[np.float64]
SEEDS, SEED_SD, TESTS = (2, 3, 5, 10), (0.0, 0.01, 0.04), ((100, 1), (656, 1), (164, 4))
METRICS = ("accuracy", "macro_f1", "auroc", "mae")
MARGIN, BEHIND = 0.6745, 0.064  # an accuracy of 75%, and a second method two points below
ERROR, WORSE = 1.0, 0.025  # a mean absolute error of 0.80, and a second method two hundredths above
PREVALENCE = 0.4
SUBJECT, SAMPLE, OWN = 0.25, 0.45, 0.30  # variances of u, e and w
RESAMPLES, OLD_REPLICATES, AUROC_REPLICATES, AUROC_RESAMPLES = 1000, 500, 200, 400


def macro_f1(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    return (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2


def expected(margin: float, error: float, tau: float, tau_error: float) -> dict[str, float]:
    """Expected score of each metric over seeds and subjects."""
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    right = ndtr(margin + tau * node)
    p = PREVALENCE
    f1 = macro_f1(p * right, (1 - p) * (1 - right), p * (1 - right), (1 - p) * right)
    return {
        "accuracy": float(ndtr(margin / np.sqrt(1 + tau**2))),
        "macro_f1": float(f1 @ weight / weight.sum()),
        "auroc": float(ndtr(np.sqrt(2) * margin / np.sqrt(1 + 2 * tau**2))),
        "mae": error * float(np.sqrt(2 / np.pi)),
    }


def counts(label_Kk: NDArray[np.bool_], margin_SKk: Floats, error_SKk: Floats) -> Floats:
    """(5, S, K) sums per subject: true positives, false positives, false negatives, true negatives, absolute error."""
    right = margin_SKk > 0
    cells = (label_Kk & right, ~label_Kk & ~right, label_Kk & ~right, ~label_Kk & right, np.abs(error_SKk))
    return np.stack([c.sum(axis=-1, dtype=np.float64) for c in cells])


def of_counts(c: Floats, n: float | Floats) -> dict[str, Floats]:
    """Metrics of summed counts."""
    return {"accuracy": (c[0] + c[3]) / n, "macro_f1": macro_f1(*c[:4]), "mae": c[4] / n}


def aurocs(label_Kk: NDArray[np.bool_], margin_SKk: Floats) -> tuple[Floats, Floats]:
    """(S,) area under the curve, and (S, K) without each subject."""
    shape = margin_SKk.shape
    value = np.where(label_Kk, margin_SKk, -margin_SKk)
    label = label_Kk.reshape(-1)
    order = np.argsort(value.reshape(shape[0], -1), axis=1)
    positive = label[order]
    wins = np.zeros(order.shape)
    below, above = np.cumsum(~positive, axis=1), positive.sum(axis=1, keepdims=True) - np.cumsum(positive, axis=1)
    np.put_along_axis(wins, order, np.where(positive, below, above).astype(np.float64), axis=1)
    of_subject = wins.reshape(shape).sum(axis=-1)
    pair = label_Kk[:, :, None] & ~label_Kk[:, None, :]
    of_subject -= ((value[..., :, None] > value[..., None, :]) & pair).sum(axis=(-2, -1))
    total = np.where(label, wins, 0.0).sum(axis=1)
    n_positive, n_negative = label.sum(), (~label).sum()
    own = label_Kk.sum(axis=1)
    left = (n_positive - own) * (n_negative - (label_Kk.shape[1] - own))
    return total / (n_positive * n_negative), (total[:, None] - of_subject) / left


def scores(label_Kk: NDArray[np.bool_], margin: Floats, error: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Metric → (S,) values and (S, K) values without each subject."""
    c, k = counts(label_Kk, margin, error), label_Kk.shape[1]
    total = c.sum(axis=-1)
    all_of_it, left = of_counts(total, label_Kk.size), of_counts(total[..., None] - c, label_Kk.size - k)
    found = {name: (value, left[name]) for name, value in all_of_it.items()}
    return found | {"auroc": aurocs(label_Kk, margin)}


def check(label_Kk: NDArray[np.bool_], margin: Floats, error: Floats) -> None:
    """The sums per subject give the same as the metrics of the package with a subject left out."""
    n_subjects, k = label_Kk.shape
    subject = np.repeat(np.arange(n_subjects), k)
    weight = (subject != np.arange(n_subjects)[:, None]).astype(np.float64)
    label = label_Kk.reshape(-1).astype(np.int64)
    p = ndtr(np.where(label_Kk, margin[0], -margin[0])).reshape(-1)
    known = weighted_metrics(label, np.stack([1 - p, p], axis=1), weight)
    known |= weighted_metrics(np.zeros(label.size), error[0].reshape(-1), weight)
    for name, (_, left) in scores(label_Kk, margin, error).items():
        np.testing.assert_allclose(left[0], known[name], rtol=1e-9)


def satterthwaite(e: Estimate) -> float:
    """Half-width with one quantile of t."""
    total = sum(v for v, _ in e.parts)
    df = total**2 / max(sum(v**2 / df for v, df in e.parts), 1e-300)
    return float(-stdtrit(df, 0.025) * np.sqrt(total))


def percentiles(resampled_RS: Floats, drawn_RS: NDArray[np.int64]) -> tuple[float, float]:
    """Interval of the mean over drawn seeds."""
    low, high = np.quantile(np.take_along_axis(resampled_RS, drawn_RS, axis=1).mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def resampled(label_Kk: NDArray[np.bool_], margin: Floats, error: Floats, weight_RK: Floats) -> dict[str, Floats]:
    """(R, S) values of each metric, except AUROC, in each resample of the subjects."""
    c = np.moveaxis(counts(label_Kk, margin, error) @ weight_RK.T, -1, 1)
    return of_counts(c, label_Kk.size)


def resampled_auroc(label_Kk: NDArray[np.bool_], margin: Floats, weight_RK: Floats) -> Floats:
    value = np.where(label_Kk, margin, -margin).reshape(len(margin), -1)
    weight = np.repeat(weight_RK, label_Kk.shape[1], axis=1)
    return np.stack([weighted_areas(label_Kk.reshape(-1), v, weight)[0] for v in value], axis=1)


class Tally:
    """Coverage and widths by quantity and kind of interval."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], list[tuple[bool, float]]] = defaultdict(list)

    def add(self, key: tuple[object, ...], low: float, high: float, truth: float) -> None:
        self._seen[key].append((low <= truth <= high, high - low))

    def frame(self) -> pl.DataFrame:
        names = ("subjects", "samples", "seed_sd", "seeds", "metric", "what", "interval")
        rows = [
            (*key, len(seen), 100 * np.mean([s[0] for s in seen]), 100 * np.mean([s[1] for s in seen]))
            for key, seen in self._seen.items()
        ]
        return pl.DataFrame(rows, schema=[*names, "replicates", "coverage", "width"], orient="row")


def simulate(test: tuple[int, int], sd: float, n_replicates: int, tally: Tally) -> None:
    """Add the intervals of all replicates of one test set and standard deviation between seeds."""
    rng = np.random.default_rng([*test, int(100 * sd)])
    slope = np.exp(-(MARGIN**2) / 2) / np.sqrt(2 * np.pi)
    tau, tau_error = sd / slope, sd / np.sqrt(2 / np.pi)
    truths = [expected(MARGIN - BEHIND * m, ERROR + WORSE * m, tau, tau_error) for m in range(2)]
    n_subjects = test[0]
    weight = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=RESAMPLES).astype(np.float64)
    for replicate in range(n_replicates):
        label = rng.random(test) < PREVALENCE
        shared = np.sqrt(SUBJECT) * rng.normal(size=(n_subjects, 1)) + np.sqrt(SAMPLE) * rng.normal(size=test)
        runs = []
        for m in range(2):
            noise = shared + np.sqrt(OWN) * rng.normal(size=(SEEDS[-1], *test))
            of_seed = rng.normal(size=(2, SEEDS[-1], 1, 1))
            margin = MARGIN - BEHIND * m + tau * of_seed[0] + noise
            runs.append((margin, (ERROR + WORSE * m + tau_error * of_seed[1]) * noise))
        if replicate == 0:
            check(label, *runs[0])
        found = [scores(label, *run) for run in runs]
        for metric in METRICS:
            truth = {"mean": truths[0][metric], "difference": truths[0][metric] - truths[1][metric]}
            (one, left_one), (two, left_two) = (f[metric] for f in found)
            pairs = {"mean": (one, left_one), "difference": (one - two, left_one - left_two)}
            for n_seeds in SEEDS:
                for what, (value, left) in pairs.items():
                    e = estimate(value[:n_seeds], left[:n_seeds])
                    for kind, half in (("new", e.half_width()), ("Satterthwaite", satterthwaite(e))):
                        key = (*test, sd, n_seeds, metric, what, kind)
                        tally.add(key, e.value - half, e.value + half, truth[what])
        if replicate >= OLD_REPLICATES:
            continue
        for n_seeds in (3, 5):
            drawn = rng.integers(0, n_seeds, size=(RESAMPLES, n_seeds))
            some = [(margin[:n_seeds], error[:n_seeds]) for margin, error in runs]
            one, two = (resampled(label, *run, weight) for run in some)
            if n_seeds == 3 and replicate < AUROC_REPLICATES:
                one["auroc"], two["auroc"] = (resampled_auroc(label, r[0], weight[:AUROC_RESAMPLES]) for r in some)
            for metric in one:
                pairs = {"mean": one[metric], "difference": one[metric] - two[metric]}
                truth = {"mean": truths[0][metric], "difference": truths[0][metric] - truths[1][metric]}
                for what, values in pairs.items():
                    key = (*test, sd, n_seeds, metric, what, "old")
                    tally.add(key, *percentiles(values, drawn[: len(values)]), truth[what])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("coverage.csv"), help="all results")
    options = parser.parse_args(arguments)
    tally = Tally()
    for test in TESTS:
        for sd in SEED_SD:
            simulate(test, sd, options.replicates, tally)
    frame = tally.frame().with_columns(pl.col("seed_sd") * 100)
    options.out.write_text(frame.write_csv())
    report(frame)


def report(frame: pl.DataFrame) -> None:
    """Print the tables of benchmarks/coverage.md."""
    low, mean = pl.col("coverage").min().alias("lowest"), pl.col("coverage").mean().alias("mean")
    print("Coverage (%) over test sets, metrics, means and differences\n")
    print(grid(frame, ("seed_sd", "seeds"), mean, low))
    few = frame.filter(seed_sd=4, seeds=3)
    print("\nCoverage (%) with three seeds and a standard deviation of 4 points\n")
    print(grid(few, ("subjects", "samples", "what", "metric"), pl.col("coverage").mean()))
    print("\nWidth in points of accuracy, 656 subjects with one sample\n")
    one = frame.filter(metric="accuracy", subjects=656)
    print(grid(one, ("what", "seed_sd", "seeds"), pl.col("width").mean()))


def grid(frame: pl.DataFrame, keys: Sequence[str], *values: pl.Expr) -> str:
    """A Markdown table with a column for each value and kind of interval."""
    found = frame.group_by(*keys, "interval").agg(*values)
    names = [name for name in found.columns if name not in (*keys, "interval")]
    wide = found.pivot("interval", index=keys, values=names, sort_columns=True).sort(keys)
    lines = [wide.columns, ["---"] * wide.width]
    for row in wide.iter_rows():
        lines.append(["–" if v is None else f"{v:.1f}" if isinstance(v, float) else str(v) for v in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
