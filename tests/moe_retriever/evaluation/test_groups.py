"""Subgroups by sample columns, and the summary over modality combinations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from moe_retriever.data.scores import SCORE_COLUMNS
from moe_retriever.evaluation.groups import pattern_rows, subgroups
from mrpipe.errors import UsageError

N = 120
AGE = [None if i == 7 else float(20 + i % 60) for i in range(N)]


@pytest.fixture
def store() -> Any:
    frame = pl.LazyFrame(
        {
            "sample_id": [f"s{i:03d}" for i in range(N)],
            "subject_id": [f"s{i:03d}" for i in range(N)],
            "modality_mask": [1] * N,
            "row_table": list(range(N)),
            "sex": [None if i == 3 else "FM"[i % 2] for i in range(N)],
            "age": AGE,
            "smoker": [i % 3 == 0 for i in range(N)],
            "grade": [i % 4 for i in range(N)],
            "name": [f"n{i}" for i in range(N)],
        }
    )
    return SimpleNamespace(samples=lambda: frame, bits={"table": 0})


def chosen(store: Any, rows: np.ndarray, **columns: tuple[float, ...]) -> dict[str, list[int]]:
    ids = np.array([f"s{i:03d}" for i in range(N)])[::-1].copy()
    found = subgroups(columns, (store, ids[N - 1 - rows]), (store, ids[N - 1 - np.arange(60)]))
    assert {by for by, _, _ in found} <= {"subgroup"}
    return {name: rows[of_group].tolist() for _, name, of_group in found}


def test_values_and_stated_cuts_partition_the_samples(store: Any) -> None:
    rows = np.array([0, 1, 2, 3, 7, 50, 20, 19])
    found = chosen(store, rows, sex=(), age=(40.0, 65.0))
    assert found == {
        "sex unknown": [3],
        "sex F": [0, 2, 50, 20],
        "sex M": [1, 7, 19],
        "age unknown": [7],
        "age [-inf, 40)": [0, 1, 2, 3, 19],
        "age [40, 65)": [20],
        "age [65, inf)": [50],
    }
    assert chosen(store, rows, smoker=())["smoker True"] == [0, 3]
    # A column of few numbers is not cut.
    assert set(chosen(store, rows, grade=())) == {"grade 0", "grade 1", "grade 2", "grade 3"}


def test_quartiles_are_those_of_the_training_samples(store: Any) -> None:
    known = np.array([a for a in AGE[:60] if a is not None])
    quartiles = np.quantile(known, (0.25, 0.5, 0.75))
    found = chosen(store, np.arange(60, N), age=())
    assert len(found) == 4
    for number, members in enumerate(found.values()):
        assert members == [i for i in range(60, N) if np.searchsorted(quartiles, AGE[i], side="right") == number]


def test_columns_that_form_no_groups_are_refused(store: Any) -> None:
    for columns in ({"name": ()}, {"sex": (1.0,)}):
        with pytest.raises(UsageError, match="needs numbers"):
            chosen(store, np.arange(N), **columns)
    with pytest.raises(UsageError, match="no column 'row_table'; they have sex, age, smoker, grade, name"):
        chosen(store, np.arange(N), row_table=())


def test_the_worst_pattern_and_the_mean_leave_out_small_and_undefined_ones() -> None:
    rows = [
        ("all", "all", 100, "auroc", 0.1, None, None),
        ("combination", "a", 30, "auroc", 0.7, 0.6, 0.8),
        ("combination", "b", 40, "auroc", 0.8, 0.7, 0.9),
        ("combination", "a+b", 19, "auroc", 0.2, 0.1, 0.3),
        ("combination", "c", 25, "auroc", None, None, None),
        ("combination", "a", 30, "ece", 0.05, 0.01, 0.1),
        ("combination", "b", 40, "ece", 0.15, 0.1, 0.2),
        ("observed", "1", 90, "auroc", 0.1, None, None),
    ]
    found = pattern_rows(pl.DataFrame(rows, schema=SCORE_COLUMNS, orient="row"))
    assert found.rows() == [
        ("worst_pattern", "a", 30, "auroc", 0.7, 0.6, 0.8),
        ("mean_over_patterns", "2", 70, "auroc", pytest.approx(0.75), None, None),
        ("worst_pattern", "b", 40, "ece", 0.15, 0.1, 0.2),
        ("mean_over_patterns", "2", 70, "ece", pytest.approx(0.1), None, None),
    ]
    assert pattern_rows(found.clear()).is_empty()
