"""Summary at the end of a run: only repetitions of the same run are averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from workflow.planning.summary import print_summary, score_tables


def run(value: float, **changes: Any) -> dict[str, Any]:
    """A row of results.csv: the accuracy of a run."""
    usual = {
        "dataset": "mosi",
        "store_id": "a" * 16,
        "origin": "simulated",
        "task": "sentiment",
        "scheme": "standard",
        "modalities": "text+audio",
        "missingness": "as observed",
        "hidden": None,
        "method": "majority",
        "seed": 0,
        "by": "all",
        "n": 90,
        "metric": "accuracy",
    }
    return {**usual, **changes, "value": value}


def shown(*runs: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Rows of the tables by title, without the metrics that these runs lack."""
    tables = list(score_tables(pl.DataFrame(runs)))
    rows = {
        str(t.title): [list(map(str, row)) for row in zip(*(c.cells for c in t.columns[:3]), strict=True)]
        for t in tables
    }
    assert len(rows) == len(tables), "two tables have one title"
    return rows


def test_seeds_are_averaged() -> None:
    (rows,) = shown(run(0.5), run(0.7, seed=1), run(0.9, method="logistic")).values()
    assert rows == [["majority class", "2", "60.0 ± 14.1"], ["logistic regression", "1", "90.0"]]


def test_other_stores_and_split_schemes_have_separate_tables() -> None:
    tables = shown(run(0.5), run(0.7, scheme="uniform"), run(0.9, store_id="b" * 16))
    assert list(tables.values()) == [[["majority class", "1", value]] for value in ("50.0", "70.0", "90.0")]


def test_title_has_the_mean_realised_rate_of_the_masks() -> None:
    rates = ((0, 0.22), (1, 0.24))
    (title,) = shown(*(run(0.5, seed=seed, missingness="mcar p=0.3", hidden=rate) for seed, rate in rates))
    assert "sentiment from text + audio, MCAR, p = 0.3 (23 % hidden), n = 90" in title


def test_the_sentences_come_first_and_the_path_of_the_report_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, suite = tmp_path / "report", tmp_path / "suites" / "table2" / "report"
    for folder in (report, suite):
        folder.mkdir(parents=True)
        (folder / "index.html").touch()
        (folder / "answer.md").write_text("* [bold] MoE-Retriever is 2.8 points behind.\n\n| method |\n|---|\n")
    pl.DataFrame([run(0.5)]).write_csv(report / "results.csv")
    print_summary(tmp_path, [report])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["* [bold] MoE-Retriever is 2.8 points behind.", ""]
    assert lines[2].startswith("CMU-MOSI (simulated")
    assert lines[-1].split(maxsplit=1) == ["report", str(report / "index.html")]
    print_summary(tmp_path, [suite])
    text = capsys.readouterr().out
    assert "| method |" in text
    assert "CMU-MOSI (simulated" not in text
    assert text.splitlines()[-1].endswith("suites/table2/report/index.html")
    for folder in (report, suite):
        (folder / "answer.md").unlink()
    print_summary(tmp_path)
    assert capsys.readouterr().out.startswith("CMU-MOSI (simulated")
