"""Declared tables: all errors are reported at once, and suspicious columns are noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpipe.datasets.declared import canonical
from mrpipe.datasets.tables.texts import canonical_text
from tests.datasets.tables.tables_toy import IDS, N, config, csv, faults_of, notes_of, people

# Errors.


def test_yaml_errors_are_reported_together_with_suggestions(tmp_path: Path) -> None:
    spec = {
        "id": "id",
        "modalites": {},
        "titel": "x",
        "join": "rows",
        "modalities": {
            "a b": {"file": "a.csv"},
            "b": {"file": "/etc/a.csv", "colums": ["x"]},
            "c": {"file": "c.csv", "kinds": {"x": "number"}},
        },
        "label": {"column": "out", "classes": [0, 0], "tresholds": 1},
        "split": {"column": 0},
    }
    message = faults_of(tmp_path, {}, spec)
    for part in (
        "unknown key 'modalites'. Did you mean 'modalities'?",
        "unknown key 'titel'. Did you mean 'title'?",
        "expected id or order; found rows",
        "expected a name of letters, digits and _; found a b",
        "unknown key 'colums'. Did you mean 'columns'?",
        "expected a path inside the export folder; found /etc/a.csv",
        "modalities.c.kinds.x",
        "expected each class once",
        "Did you mean 'threshold'?",
        "column 'split.column'",
        "column 'label.file'",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"label": None}, "either `label` (one) or `labels`"),
        ({"label": {"file": "people.csv", "column": "out"}}, "the values of the classes"),
        (
            {"label": {"file": "people.csv", "column": "out", "kind": "regression", "threshold": 1}},
            "neither classes nor threshold",
        ),
        ({"modalities": None}, "at least one"),
        ({"modalities": {f"m{i}": {"file": "a.csv"} for i in range(17)}}, "at most 16"),
        ({"label": {"file": "people.csv", "column": "out", "classes": {True: "a", False: "b"}}}, "quote them"),
        ({"id": None}, "Or join row by row: `join: order`"),
    ],
)
def test_invalid_declarations(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in faults_of(tmp_path, {}, config(**changes))


def test_table_errors_are_reported_together(tmp_path: Path) -> None:
    rows = [[i, k, k, k % 3] for k, i in enumerate(IDS)]
    rows[4][1] = "4,5x".replace(",", ".")
    rows[5][1] = "inf"
    # Too many distinct words for categories: neither numeric nor categorical.
    for k, row in enumerate(rows):
        row[2] = f"word {k}"
    rows.append([IDS[0], 1, 1, 1])
    spec = config(
        modalities={
            "a": {"file": "a.csv", "kinds": {"x": "numeric", "code": [0, 1]}},
            "b": {"file": "b.csv"},
            "c": {"file": "people.csv", "columns": ["sitte"]},
        },
        label={"file": "people.csv", "column": "out", "classes": [0, 2]},
    )
    message = faults_of(tmp_path, {"people.csv": people(), "a.csv": csv("id,x,text,code", rows)}, spec)
    for part in (
        "a.csv, column 'x', line 6: expected a finite number, or few categories; found text of 4 characters; 2 such "
        "values in 2 rows",
        "a.csv, column 'text', line 2: expected a finite number, or few categories; found text of 6 characters",
        "a.csv, column 'code', line 4: expected one of the codes 0, 1; found a number (20 rows)",
        "a.csv, column 'id', line 2: expected one row per id; found 2 rows of 1 repeated ids, "
        "with different values (lines 2, 62)",
        "raw/b.csv: expected a table; found no such file",
        "people.csv, column 'sitte': expected this column",
        "Did you mean 'site'?",
        "people.csv, column 'out', line 3: expected one of the classes 0, 2; found a number (30 rows)",
    ):
        assert part in message, part


def test_number_beyond_float32_is_an_error(tmp_path: Path) -> None:
    """It would enter the store as infinity: the largest float32 is 3.4e38."""
    rows: list[list[object]] = [[i, k] for k, i in enumerate(IDS)]
    labels: list[list[object]] = [[i, 0.5 * k] for k, i in enumerate(IDS)]
    rows[4][1], labels[2][1] = "1.7976931348623157e308", "-1e300"
    spec = config(label={"file": "people.csv", "column": "out", "kind": "regression"})
    message = faults_of(tmp_path, {"people.csv": csv("id,out", labels), "a.csv": csv("id,x", rows)}, spec)
    assert "a.csv, column 'x', line 6: expected a finite number, or few categories; found a number" in message
    assert "people.csv, column 'out', line 4: expected a finite number; found a number" in message


def test_ids_that_do_not_match_are_reported(tmp_path: Path) -> None:
    rows = [[f"q{k}", k] for k in range(N)]
    assert "Does it use the ids of people.csv?" in faults_of(
        tmp_path, {"people.csv": people(), "a.csv": csv("id,x", rows)}, config()
    )
    rows = [[i, k] for k, i in enumerate(IDS[:50])] + [["stranger", 1]]
    notes = notes_of(tmp_path / "some", {"people.csv": people(), "a.csv": csv("id,x", rows)}, config())
    assert "a: 50 of 60 samples, 1 numeric and 0 categorical features" in notes
    assert "1 of 51 rows (2%) of a.csv match no sample of people.csv and are ignored; such as '••••••••'" in notes


# Suspicious columns.


def test_only_suspicious_columns_are_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 400
    ids, y = [f"p{i:03d}" for i in range(n)], rng.integers(0, 2, n)
    # Days until death, −1 for survivors: no ordering of the values separates the classes, yet the column leaks them.
    survival = np.where(y == 1, rng.integers(0, 20, n), np.where(rng.random(n) < 0.7, -1, rng.integers(20, 90, n)))
    columns = {
        "same": np.full(n, 3),
        "never": np.full(n, ""),
        "number": 5000 + rng.permutation(n),
        "copy": 2 * y + 1,
        "near": y + 0.4 * rng.normal(size=n),
        "survival": survival,
        "code": rng.integers(1, 5, n),
        "sex": rng.integers(0, 2, n),
        "gap": np.where(y == 1, "", "1.5"),
        "good": y + 1.5 * rng.normal(size=n),
        "word": np.where(y == 1, "dead", "alive"),
    }
    rows = [[ids[k], *(v[k] for v in columns.values())] for k in range(n)]
    files = {
        "people.csv": csv("id,out", [[i, v] for i, v in zip(ids, y, strict=True)]),
        "a.csv": csv("id," + ",".join(columns), rows),
    }
    notes = {line.split(": ", 1)[1].split(":")[0]: line for line in notes_of(tmp_path, files, config()).splitlines()}

    def named(text: str) -> set[str]:
        line = next(v for k, v in notes.items() if k.startswith(text))
        return {word.split(" ")[0] for word in line.rsplit(": ", 1)[1].split(", ") if word.split(" ")[0] in columns}

    assert named("constant") == {"same", "gap"}
    assert named("no values") == {"never"}
    assert named("looks like an identifier") == {"number"}
    assert named("nearly perfect predictors of label label") == {"copy", "word"}
    assert named("strong single predictors of label label") == {"near", "survival"}
    assert named("missingness predicts label label") == {"gap"}
    assert named("few distinct whole numbers") == {"code"}
    assert named("treated as categorical") == {"word"}
    assert not any("good" in line for line in notes.values())


def test_columns_independent_of_the_label_are_not_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [[i, *rng.normal(size=30)] for i in IDS]
    files = {"people.csv": people(), "a.csv": csv("id," + ",".join(f"x{j}" for j in range(30)), rows)}
    assert notes_of(tmp_path, files, config()).count("\n") == 0


@given(
    st.one_of(
        st.integers(-(10**14), 10**14), st.floats(allow_nan=False, allow_infinity=False), st.text("ab 1.e-", max_size=6)
    )
)
def test_yaml_and_tables_have_the_same_canonical_values(value: int | float | str) -> None:
    text = str(value).strip()
    found = pl.DataFrame({"c": [text]}).select(canonical_text("c"))["c"][0]
    assert found == canonical(value)
