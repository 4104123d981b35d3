"""Single-feature predictors of a label: tests against scikit-learn, and the same findings in `check` and `audit`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from mrpipe.keyed import generator
from mrpipe.store.audit import audit
from mrpipe.store.leaks import (
    aurocs,
    binned_aurocs,
    chance_spread,
    correlations,
    feature_columns,
    find_leaks,
    mask_columns,
)
from tests.datasets.tables.tables_toy import built, config, csv, notes_of


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_aurocs_equal_the_share_of_concordant_pairs(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 60)
    x = y + 2 * rng.normal(size=60)
    x = np.round(x) if ties else x
    x[rng.random(60) < 0.1] = np.nan
    classes = y[:, None] == np.arange(3)
    got = aurocs(x[:, None], classes, least=1)
    for c in range(3):
        a, b = x[(y == c) & ~np.isnan(x)], x[(y != c) & ~np.isnan(x)]
        assert got[c, 0] == pytest.approx((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_aurocs_match_scikit_learn_on_known_rows(seed: int) -> None:
    rng = generator(seed, "audit")
    x = np.round(rng.normal(size=(120, 6)), 1).astype(np.float32)
    x[rng.random(x.shape) < 0.3] = np.nan
    y = rng.integers(0, 3, 120)
    classes = y[:, None] == np.arange(3)
    got, known = aurocs(x, classes), aurocs(~np.isnan(x), classes)
    rho = correlations(x, y.astype(float))
    for j in range(6):
        observed = ~np.isnan(x[:, j])
        assert rho[j] == pytest.approx(spearmanr(x[observed, j], y[observed]).statistic)
        for k in range(3):
            assert got[k, j] == pytest.approx(roc_auc_score(classes[observed, k], x[observed, j]))
            assert known[k, j] == pytest.approx(roc_auc_score(classes[:, k], observed))


def test_aurocs_of_too_few_rows_are_nan() -> None:
    x = np.arange(12, dtype=np.float32)[:, None]
    classes = (np.arange(12) < 4)[:, None]
    assert np.isnan(aurocs(x, classes)).all()
    assert aurocs(x, classes, least=4)[0, 0] == 0.0
    assert np.isnan(correlations(x, np.arange(12.0), least=7)).all()


def test_bins_score_their_share_of_the_class() -> None:
    """Five bins of 80 rows, of which the second and the fourth hold the class; values are tied within a bin."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(8), 50)
    inside = np.isin(place, [1, 5]) ^ (rng.random(400) < 0.05)
    x = np.column_stack([place, np.where(place == 3, np.nan, place), np.zeros(400)]).astype(float)
    got = binned_aurocs(x, inside[:, None])[0]
    for j, known in enumerate((place >= 0, place != 3)):
        share = np.array([inside[known & (place == p)].mean() if (known & (place == p)).any() else 0 for p in range(8)])
        assert got[j] == pytest.approx(roc_auc_score(inside[known], share[place[known]]))
    assert got[0] > 0.9
    # One bin tells nothing; fewer than 5 members per bin, or fewer than 50 rows per bin, are not scored.
    assert got[2] == 0.5
    few = np.zeros((400, 1), dtype=bool)
    few[:19] = True
    assert np.isnan(binned_aurocs(x, few)).all()
    assert np.isnan(binned_aurocs(x[:199], inside[:199, None])).all()


def test_bins_find_nothing_in_independent_features() -> None:
    """Ordering bins by their share of the class must not create findings: 2,000 features, a class of 25 in 1,000."""
    x = np.random.default_rng(1).normal(size=(1000, 2000))
    assert find_leaks(feature_columns(x, [None] * 2000), (np.arange(1000) < 25).astype(int), ("no", "yes")).is_empty()


def test_chance_spread_matches_random_features() -> None:
    rng = generator(0, "chance")
    x = rng.normal(size=(30, 4000)).astype(np.float32)
    classes = (np.arange(30) < 9)[:, None]
    areas = aurocs(x, classes)[0]
    assert areas.std() == pytest.approx(chance_spread(np.array([9.0]), np.array([21.0]))[0], rel=0.05)


@pytest.mark.parametrize("flip", [False, True])
def test_a_mask_bit_that_equals_the_class_is_found(flip: bool) -> None:
    y = np.arange(200) % 3
    observed = np.column_stack([np.ones(200, dtype=bool), (y == 1) ^ flip, np.arange(200) % 2 == 0])
    found = find_leaks([mask_columns(observed)], y, ("a", "b", "c"))
    assert found.select("position", "what", "class", "auroc").rows() == [(1, "observed", "b", 1.0)]
    # Against a regression label: whether the values of the label differ between samples with and without the modality.
    found = find_leaks([mask_columns(observed)], y + np.linspace(0, 0.1, 200), ())
    assert found.rows() == []
    found = find_leaks([mask_columns(observed)], (y == 1) + np.linspace(0, 0.1, 200), ())
    assert found.select("position", "what", "class", "auroc").rows() == [(1, "observed", "", 1.0)]


def leaky_files(n: int, regression: bool) -> dict[str, str]:
    """Tables whose columns leak in different ways. The last 100 samples have no label: they are val and test."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    score = y + rng.random(n) * 0.5
    columns: dict[str, Any] = {
        "ascending": y + 0.1 * rng.random(n),
        "descending": -score,
        "bins": np.where(y == 1, rng.integers(0, 20, n), np.where(rng.random(n) < 0.7, -1, rng.integers(20, 90, n))),
        "word": np.where(y == 2, "yes", np.where(rng.random(n) < 0.5, "no", "maybe")),
        "gap": np.where(y == 0, "", "1.5"),
        "weak": y + 2 * rng.normal(size=n),
        "noise": rng.normal(size=n),
    }
    label = [(s if regression else c) if k < n - 100 else "" for k, (c, s) in enumerate(zip(y, score, strict=True))]
    part = ["train" if k < n - 100 else ("val", "test")[k % 2] for k in range(n)]
    ids = [f"p{i:03d}" for i in range(n)]
    return {
        "people.csv": csv("id,out,part", [list(row) for row in zip(ids, label, part, strict=True)]),
        "a.csv": csv("id," + ",".join(columns), [[i, *(v[k] for v in columns.values())] for k, i in enumerate(ids)]),
    }


@pytest.mark.parametrize("regression", [False, True])
def test_check_and_audit_find_the_same(tmp_path: Path, regression: bool) -> None:
    label = {"file": "people.csv", "column": "out"}
    label |= {"kind": "regression"} if regression else {"classes": [0, 1, 2]}
    spec = config(label=label, split={"file": "people.csv", "column": "part"})
    files = leaky_files(500, regression)
    noted: set[tuple[str, str, str]] = set()
    for line in notes_of(tmp_path / "check", files, spec).splitlines():
        for text, kind in (("predictors of", "value"), ("missingness predicts", "known"), ("identical to", "rank")):
            if text in line:
                noted |= {(kind, *pair) for pair in re.findall(r"(\w+) \(([01]\.\d{3})\)", line)}
    rows = audit(built(tmp_path / "build", files, spec)).iter_rows(named=True)
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        kind = {"known": "known", "rank correlation": "rank"}.get(row["what"], "value")
        best[kind, row["feature"]] = max(best.get((kind, row["feature"]), 0), row["auroc"])
    assert noted == {(kind, feature, f"{value:.3f}") for (kind, feature), value in best.items()}
    found = {feature for _, feature, _ in noted}
    assert found == (
        {"descending", "word", "gap"} if regression else {"ascending", "descending", "bins", "word", "gap"}
    )
