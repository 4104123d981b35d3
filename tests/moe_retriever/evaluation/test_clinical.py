"""Clinical performance: scikit-learn, statsmodels and tables by hand; thresholds see validation samples only."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve
from statsmodels.stats.proportion import proportion_confint

from moe_retriever.evaluation import clinical
from moe_retriever.evaluation.calibration import choose_threshold
from moe_retriever.evaluation.clinical import GRID, BinaryRun, measure, reliability, wilson


def case(seed: int = 0, n: int = 400, groups: bool = True) -> BinaryRun:
    """Probabilities whose logits are 1.7 times too large, in 200 subjects, with as many validation samples."""
    rng = np.random.default_rng(seed)
    x = rng.normal(-1, 1.2, (2, n))
    event, p = rng.random((2, n)) < expit(x), expit(1.7 * x)
    subject = np.array([f"s{i // 2:03d}" for i in range(n)])
    half = np.arange(n) % 2 == 0
    named = [("subgroup", "sex F", half), ("subgroup", "sex M", ~half)] if groups else []
    return BinaryRun(event[0], p[0], subject, named, (event[1], p[1]))


def one(
    frame: pl.DataFrame, metric: str, by: str = "overall", group: str = "as evaluated"
) -> tuple[float, float, float]:
    (row,) = frame.filter(by=by, group=group, metric=metric).select("value", "low", "high").rows()
    return row


def curve(frame: pl.DataFrame, name: str) -> np.ndarray:
    return frame.filter(by="curve", group=name)["value"].to_numpy()


@pytest.fixture(scope="module")
def measured() -> pl.DataFrame:
    return measure([case()], ("0.3",))


def test_areas_and_curves_are_those_of_scikit_learn(measured: pl.DataFrame) -> None:
    run = case()
    y, p = run.event, run.probability
    assert one(measured, "auroc")[0] == pytest.approx(roc_auc_score(y, p))
    assert one(measured, "auprc")[0] == pytest.approx(average_precision_score(y, p))
    assert one(measured, "brier")[0] == pytest.approx(brier_score_loss(y, p))
    false, true, _ = roc_curve(y, p, drop_intermediate=False)
    assert curve(measured, "roc")[1:] == pytest.approx([true[false <= x + 1e-9].max() for x in GRID[1:]], abs=1e-6)
    order = np.argsort(-p)
    hits = np.cumsum(y[order])
    recall, precision = hits / y.sum(), hits / np.arange(1, len(y) + 1)
    slow = [precision[np.flatnonzero(recall >= max(x, 1e-9) - 1e-9)[0]] for x in GRID]
    assert curve(measured, "precision_recall") == pytest.approx(slow)


def test_ties_of_the_roc_curve_are_straight_lines() -> None:
    run = replace(case(groups=False), probability=np.full(400, 0.3))
    frame = measure([run])
    assert curve(frame, "roc") == pytest.approx(GRID, abs=1e-6)
    assert curve(frame, "precision_recall") == pytest.approx(run.event.mean())
    assert one(frame, "auroc")[0] == pytest.approx(0.5)
    assert one(frame, "slope") == (None, None, None)
    assert len(frame.filter(by="bin")) == 1


def test_intercept_and_slope_are_those_of_statsmodels(measured: pl.DataFrame) -> None:
    run = case()
    x, family = logit(run.probability), sm.families.Binomial()
    fitted = sm.GLM(run.event.astype(float), sm.add_constant(x), family=family).fit()
    shifted = sm.GLM(run.event.astype(float), np.ones_like(x), family=family, offset=x).fit()
    assert one(measured, "slope")[0] == pytest.approx(fitted.params[1], rel=1e-4)
    assert one(measured, "intercept")[0] == pytest.approx(shifted.params[0], rel=1e-6)
    # The intervals of resamples that are refitted, not one Newton step from the estimate, are nearly the same.
    draws = np.random.default_rng(1).multinomial(200, np.full(200, 1 / 200), size=300)
    weights = draws[:, np.unique(run.subject, return_inverse=True)[1]]
    slopes = [
        sm.GLM(run.event * 1.0, sm.add_constant(x), family=family, freq_weights=w).fit().params[1] for w in weights
    ]
    assert one(measured, "slope")[1:] == pytest.approx(np.quantile(slopes, (0.025, 0.975)), abs=0.05)
    # Temperature scaling on validation samples repairs the slope.
    before, after = (one(measured, "slope", group=g)[0] for g in ("as evaluated", "temperature-scaled"))
    assert after / before == pytest.approx(1.7, rel=0.15)
    assert abs(after - 1) < abs(before - 1)
    assert one(measured, "brier", group="temperature-scaled")[0] < one(measured, "brier")[0]


def test_the_confusion_matrix_by_hand() -> None:
    """At 0.5: two hits, one miss, one false alarm, four rejections. Net benefit: 2/8 − 1/8 · 0.5/0.5."""
    event = np.array([1, 1, 1, 0, 0, 0, 0, 0]) == 1
    p = np.array([0.9, 0.5, 0.2, 0.7, 0.4, 0.3, 0.1, 0.1])
    run = BinaryRun(event, p, np.array(list("abcdefgh")), [("combination", "a", np.arange(8) < 5)])
    frame = measure([run])
    found = {
        name: one(frame, name, "threshold", "0.5")[0]
        for name in ("sensitivity", "specificity", "ppv", "npv", "flagged")
    }
    assert found == pytest.approx(
        {"sensitivity": 2 / 3, "specificity": 4 / 5, "ppv": 2 / 3, "npv": 4 / 5, "flagged": 3 / 8}
    )
    (benefit,) = frame.filter(by="curve", group="net_benefit").filter((pl.col("x") - 0.5).abs() < 1e-9)["value"]
    assert benefit == pytest.approx(1 / 8)
    assert one(frame, "excess", "combination", "a")[0] == pytest.approx(2.7 / 5 - 3 / 5)
    assert frame.filter(by="combination")["events"].unique().to_list() == [3]
    # Without validation samples, there are fixed thresholds only, and nothing is rescaled.
    assert frame.filter(by="threshold")["group"].unique().to_list() == ["0.5"]
    assert "temperature-scaled" not in frame["group"]


def test_thresholds_depend_on_validation_samples_only(measured: pl.DataFrame) -> None:
    """Other labels of test samples move no threshold; other labels of validation samples do."""
    run = case()
    rules = ("youden", "sensitivity=0.9", "specificity=0.9")
    first = run.thresholds(rules)
    assert replace(run, event=~run.event, probability=run.probability[::-1]).thresholds(rules) == first
    assert run.validation is not None
    other = replace(run, validation=(run.validation[0][::-1], run.validation[1]))
    assert other.thresholds(rules) != first
    assert (other.scaled()["temperature-scaled"] != run.scaled()["temperature-scaled"]).any()
    event, p = run.validation
    assert (p[event] >= first["sensitivity=0.9"]).mean() >= 0.9
    assert (p[~event] < first["specificity=0.9"]).mean() >= 0.9
    assert (p[~event] < np.sort(p[p < first["specificity=0.9"]])[-1]).mean() < 0.9
    # The values are those of the test samples.
    hits = (run.probability >= first["youden"])[run.event].mean()
    assert one(measured, "sensitivity", "threshold", "youden")[0] == pytest.approx(hits)
    at = measured.filter(by="threshold", group="youden", metric="sensitivity")["x"][0]
    assert at == first["youden"]


def test_a_specificity_that_no_probability_has_flags_nobody() -> None:
    label, p = np.array([0, 0, 1]), np.array([0.9, 0.9, 0.1])
    assert choose_threshold(label, p, "specificity", 0.9) > 0.9
    assert choose_threshold(label, np.array([0.1, 0.2, 0.2]), "specificity", 0.5) == 0.2


def test_intervals_are_those_of_the_evaluation_and_cover_subjects(measured: pl.DataFrame) -> None:
    from moe_retriever.evaluation.bootstrap import bootstrap

    run = case()
    both = np.stack([1 - run.probability, run.probability], axis=1)
    known = bootstrap(run.event.astype(np.int64), both, run.subject, seed=0)
    assert one(measured, "auroc")[1:] == pytest.approx(known["auroc"])
    assert one(measured, "auprc")[1:] == pytest.approx(known["auprc"])
    # Copies of the samples of a subject do not narrow the intervals; as samples of other subjects, they do.
    twice = BinaryRun(*(np.tile(v, 4) for v in (run.event, run.probability, run.subject)))
    apart = replace(twice, subject=np.arange(len(twice.event)).astype(str))
    widths = [np.diff(one(measure([r]), "auroc")[1:])[0] for r in (replace(run, groups=()), twice, apart)]
    assert widths[1] == pytest.approx(widths[0])
    assert widths[2] < 0.7 * widths[0]


def test_seeds_are_averaged() -> None:
    runs = [case(0), replace(case(0), probability=case(0).probability[::-1])]
    frame, alone = measure(runs), [measure([run]) for run in runs]
    for metric in ("auroc", "brier", "slope"):
        assert one(frame, metric)[0] == pytest.approx(np.mean([one(f, metric)[0] for f in alone]))
    mean = np.mean([curve(f, "roc") for f in alone], axis=0)
    assert curve(frame, "roc") == pytest.approx(mean)


def test_bins_have_equal_sizes_and_wilson_intervals() -> None:
    run = case()
    rows = list(reliability([run]))
    assert [row[3] for row in rows] == [40] * 10
    assert sum(row[4] for row in rows) == run.event.sum()
    people = len(np.unique(run.subject[np.argsort(run.probability)[:40]]))
    first = rows[0]
    assert first[6] == first[4] / 40
    assert first[7:] == pytest.approx(proportion_confint(first[6] * people, people, method="wilson"))
    assert wilson(0, 10) == pytest.approx(proportion_confint(0, 10, method="wilson"), abs=1e-12)
    assert wilson(1, 10) == pytest.approx(proportion_confint(10, 10, method="wilson"))


def test_values_of_fewer_people_than_the_smallest_are_null() -> None:
    run = case()
    few = np.isin(run.subject, np.unique(run.subject)[:4])
    run = replace(run, groups=[("subgroup", "few", few), ("subgroup", "others", ~few)])
    frame = measure([run], smallest=5)
    assert frame.filter(group="few")["value"].null_count() == 4
    assert frame.filter(group="others")["value"].null_count() == 0
    nobody = measure([replace(run, event=np.arange(400) < 8, groups=())], smallest=5)
    assert nobody.filter(by="curve").is_empty()
    assert one(nobody, "auroc") == (None, None, None)
    assert dict(nobody.schema) == clinical.SCHEMA


def test_a_single_event_has_no_intervals_of_both_classes() -> None:
    """A third of the resamples lack the event, so that they have no AUROC and no calibration intercept."""
    frame = measure([replace(case(groups=False), event=np.arange(400) == 7)])
    for metric in ("auroc", "intercept", "scaled_brier"):
        value, *bounds = one(frame, metric)
        assert value is not None
        assert bounds == [None, None], metric
    assert one(frame, "brier")[1] is not None


def test_separated_classes_have_no_slope_and_certain_probabilities_an_intercept() -> None:
    """Separated validation samples give the smallest temperature, so that all probabilities become 0 or 1."""
    run = replace(case(groups=False), probability=np.where(case().event, 1 - 1e-12, 1e-12))
    run = replace(run, validation=(run.event, run.probability))
    frame = measure([run])
    for group in ("as evaluated", "temperature-scaled"):
        assert one(frame, "slope", group=group)[0] is None
        assert one(frame, "intercept", group=group)[0] == pytest.approx(0, abs=20)
        assert one(frame, "auroc", group=group)[0] == 1
