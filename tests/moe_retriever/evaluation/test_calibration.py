"""Temperature, threshold and risk–coverage curve: closed forms, slow searches, and validation samples only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss

from moe_retriever.config import Common, make_config, parse_threshold
from moe_retriever.data.load import Data
from moe_retriever.data.scores import score
from moe_retriever.evaluation.calibration import choose_threshold, decide, fit_temperature, risk_coverage
from moe_retriever.evaluation.run_folders import tested as predictions_of
from moe_retriever.methods import get
from moe_retriever.methods.base import Method
from moe_retriever.metrics import kinds_of
from mrpipe import Store
from mrpipe.cli.main import main
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic


def test_the_temperature_of_overconfident_logits_is_recovered() -> None:
    """Labels are drawn from softmax(z); the logits are 2.5 z, so the temperature is 2.5. For two values of a
    logit ± a with accuracy q, the minimum is exactly T = a / log(q / (1 − q))."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 3)) * 1.5
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    label = (rng.random(4000)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(label, 2.5 * z) == pytest.approx(2.5, rel=0.05)
    right = np.arange(100) < 80
    logits = np.stack([np.zeros(100), np.where(right, 4.0, -4.0)], axis=1)
    assert fit_temperature(np.ones(100, np.int64), logits) == pytest.approx(4 / math.log(4), rel=1e-3)
    # Perfectly separated: the lower bound. Uninformative but confident: the upper bound.
    assert fit_temperature(np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(np.array([0, 1]), np.array([[9.0, 0.0], [9.0, 0.0]])) == pytest.approx(20, rel=1e-3)


def slow_threshold(label: np.ndarray, p: np.ndarray, rule: str, value: float) -> float:
    best, chosen = -2.0, math.nan
    for t in sorted(set(p.tolist()), reverse=True):
        sensitivity, specificity = (p[label == 1] >= t).mean(), (p[label == 0] < t).mean()
        if rule == "sensitivity" and sensitivity >= value:
            return t
        if rule == "youden" and sensitivity + specificity - 1 > best + 1e-12:
            best, chosen = sensitivity + specificity - 1, t
    return chosen


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_equals_a_slow_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1], rng.integers(0, 2, 30)])
    p = np.round(np.clip(0.4 + 0.2 * label + 0.2 * rng.normal(size=32), 0.01, 0.99), 1)
    for rule, value in (("youden", 0.5), ("sensitivity", 0.9), ("sensitivity", 0.5), ("sensitivity", 1.0)):
        found = choose_threshold(label, p, rule, value)
        assert found == slow_threshold(label, p, rule, value), (rule, value)
    assert (p[label == 1] >= choose_threshold(label, p, "sensitivity", 0.9)).mean() >= 0.9


def test_the_curve_ends_at_the_error_rate_and_keeps_equal_confidences_together() -> None:
    rng = np.random.default_rng(1)
    p = np.round(rng.random(200), 2)
    label = (rng.random(200) < p).astype(np.int64)
    both = np.stack([1 - p, p], axis=1)
    curve = risk_coverage(label, both)
    assert curve["coverage"].is_sorted()
    assert curve.row(-1, named=True) == {
        "confidence": both.max(axis=1).min(),
        "coverage": 1.0,
        "n": 200,
        "risk": pytest.approx(1 - score(label, both)["accuracy"]),
    }
    for row in curve.iter_rows(named=True):
        kept = [i for i in range(200) if both[i].max() >= row["confidence"]]
        assert row["n"] == len(kept)
        assert row["risk"] == pytest.approx(np.mean([both[i].argmax() != label[i] for i in kept]))
    assert len(risk_coverage(label, np.full((200, 2), 0.5))) == 1


@pytest.fixture(scope="module")
def fitted() -> tuple[Data, Method]:
    data = synthetic.make(synthetic.random_masks(200, 2, 0), strength=0.6)
    method = get("logistic").create(data.spec, synthetic.config("logistic"))
    method.fit(data, data.rows("train"), data.rows("val"))
    return data, method


def test_only_validation_samples_decide(fitted: tuple[Data, Method]) -> None:
    data, method = fitted
    common = Common(calibration="temperature", decision_threshold="youden")
    first = decide(common, method, data)
    assert first["n_validation"] == len(data.rows("val"))
    assert first["temperature"] != 1
    outside = ~np.isin(np.arange(len(data)), data.rows("val"))
    flipped = replace(data, label=np.where(outside, 1 - data.label, data.label))
    assert decide(common, method, flipped) == first
    flipped = replace(data, label=np.where(outside, data.label, 1 - data.label))
    assert decide(common, method, flipped) != first
    nothing = replace(data, part=np.where(data.part == 1, 2, data.part).astype(np.int8))
    with pytest.raises(UsageError, match="validation samples"):
        decide(common, method, nothing)
    unused = {"temperature": 1.0, "threshold": 0.3, "rule": "0.3", "n_validation": 0}
    assert decide(Common(decision_threshold="0.3"), method, nothing) == unused


def test_options_of_the_evaluation_are_checked_before_the_training() -> None:
    assert parse_threshold("youden")[0] == "youden"
    assert parse_threshold("sensitivity=0.9") == ("sensitivity", 0.9)
    assert parse_threshold("0.25") == ("fixed", 0.25)
    logistic = get("logistic")

    def config(**overrides: object) -> object:
        return make_config(logistic, preset="paper", seed=0, overrides=overrides)

    assert config(decision_threshold=0.25).common.decision_threshold == "0.25"  # type: ignore[attr-defined]
    for wrong in ("2", "youden=1", "sensitivity=", "recall=0.9", "0"):
        with pytest.raises(UsageError, match="threshold"):
            config(decision_threshold=wrong)
    for wrong in ("age=40,x", "age=", "age=40,"):
        with pytest.raises(UsageError, match="age"):
            config(subgroups=wrong)
    for options in ({"decision_threshold": "youden"}, {"calibration": "temperature"}, {"select_metric": "auroc"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            config(**options).for_task(kinds_of(0))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="binary"):
        config(decision_threshold="youden").for_task(kinds_of(3))  # type: ignore[attr-defined]
    assert config(select_metric="acc7").for_task(kinds_of(0, "cmu"))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="acc7"):
        config(select_metric="acc7").for_task(kinds_of(0))  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def more_columns() -> Iterator[None]:
    """Sample columns `number` and `site`."""
    original, number = Store.samples, pl.col("sample_id").str.slice(1).cast(pl.Int32)
    site = pl.when(number % 2 == 0).then(pl.lit("A")).otherwise(pl.lit("B"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Store, "samples", lambda self, *where: original(self, *where).with_columns(number=number, site=site)
        )
        yield


@pytest.fixture(scope="module")
def run(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "a"
    command = ["train", "--store", str(store.path), "--out", str(out), "--mask", str(mask_file), "--method", "logistic"]
    assert main([*command, "--quiet", "--set", "decision_threshold=sensitivity=0.9", "subgroups=site"]) == 0
    return out


def test_a_run_records_its_decision_and_its_metrics(run: Path, store: Store) -> None:
    before = json.loads((run / "metrics.json").read_text())
    assert before["decision"]["rule"] == "sensitivity=0.9"
    assert before["decision"]["temperature"] == 1
    assert before["decision"]["n_validation"] == before["n"]["val"]
    assert set(before["metrics"]) >= {"brier", "nll", "aurc", "sensitivity", "ppv"}
    assert before["metrics"]["ece"]["low"] is not None
    assert pl.read_csv(run / "risk_coverage.csv").columns == ["confidence", "coverage", "n", "risk"]
    assert predictions_of(run).rules.threshold == before["decision"]["threshold"]
    found = predictions_of(run)
    by_hand = (found.prediction[found.label == 1, 1] >= before["decision"]["threshold"]).mean()
    assert before["metrics"]["sensitivity"]["value"] == pytest.approx(by_hand)
    # The command replaces the options of the run.
    options = ["--calibrate", "--threshold", "0.5", "--by", "site", "number=45", "--quiet"]
    assert main(["evaluate", "--run", str(run), "--store", str(store.path), *options]) == 0
    after = json.loads((run / "metrics.json").read_text())
    assert after["decision"]["temperature"] != 1
    assert after["decision"]["threshold"] == 0.5
    assert after["metrics"]["accuracy"] == before["metrics"]["accuracy"]
    calibrated = predictions_of(run)
    assert after["metrics"]["nll"]["value"] == pytest.approx(log_loss(calibrated.label, calibrated.prediction))
    assert after["metrics"]["nll"]["value"] != before["metrics"]["nll"]["value"]
    scores = pl.read_csv(run / "metrics.csv")
    groups = scores.filter(by="subgroup")["group"].unique().sort().to_list()
    assert groups == ["number [-inf, 45)", "number [45, inf)", "site A", "site B"]
    for column in ("number", "site"):
        sizes = scores.filter(pl.col("group").str.starts_with(column), metric="accuracy")["n"]
        assert sizes.sum() == after["n_evaluated"]
    # Another protocol uses the validation samples of the training.
    test = ["--name", "full", "--patterns", *options]
    assert main(["evaluate", "--run", str(run), "--store", str(store.path), *test]) == 0
    full = json.loads((run / "tests" / "full" / "metrics.json").read_text())
    assert full["decision"] == after["decision"]
    assert full["n_evaluated"] != after["n_evaluated"]
    assert (run / "tests" / "full" / "risk_coverage.csv").is_file()
    # The evaluation of the run itself, again.
    assert main(["evaluate", "--run", str(run), "--store", str(store.path), "--quiet"]) == 0
    assert json.loads((run / "metrics.json").read_text()) == before


def test_predict_applies_the_temperature_of_the_run(
    store: Store, mask_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, both = tmp_path / "run", ["--store", str(store.path), "--mask", str(mask_file), "--quiet"]
    assert main(["train", *both, "--out", str(run), "--method", "logistic", "--set", "calibration=temperature"]) == 0
    assert json.loads((run / "metrics.json").read_text())["decision"]["temperature"] != 1
    assert main(["predict", *both, "--run", str(run), "--out", str(tmp_path / "p.parquet")]) == 0
    tested = pl.read_parquet(run / "predictions.parquet").join(pl.read_parquet(tmp_path / "p.parquet"), on="sample_id")
    np.testing.assert_allclose(tested["p_yes"], tested["p_yes_right"], rtol=1e-6)


def test_an_unknown_column_keeps_the_results(run: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "metrics.json").read_bytes()
    assert main(["evaluate", "--run", str(run), "--store", str(store.path), "--by", "ethnicity", "--quiet"]) == 2
    assert "no column 'ethnicity'; they have" in capsys.readouterr().err
    assert (run / "metrics.json").read_bytes() == before
