"""Ranks of methods over the columns of a suite, and rows for the user's own runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import rankdata

from moe_retriever.cli.commands import suite_tables
from moe_retriever.suites.ranks import rank_frame
from moe_retriever.suites.spec import BEST
from mrpipe.cli.main import command_parser

_SPEC = importlib.util.spec_from_file_location("made_tables", Path(__file__).with_name("test_tables.py"))
assert _SPEC is not None and _SPEC.loader is not None  # noqa: PT018
made = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(made)


def scores(means: np.ndarray, metric: str = "accuracy") -> pl.DataFrame:
    """Scores of a (columns, methods) table of means, without intervals."""
    rows = [
        {"column": c, "row": f"m{m}", "control": m > 2, "metric": metric, "mean": value}
        for (c, m), value in np.ndenumerate(means)
        if not np.isnan(value)
    ]
    return pl.DataFrame(rows).with_columns(difference=pl.lit(None, pl.Float64), holds=pl.lit(None, pl.Boolean))


@pytest.mark.parametrize("metric", ["accuracy", "mae"])
def test_mean_ranks_are_those_of_scipy_with_ties_averaged(metric: str) -> None:
    rng = np.random.default_rng(0)
    means = rng.integers(0, 4, (6, 5)).astype(float)
    found = rank_frame(scores(means, metric), metric)
    sign = -1 if metric == "accuracy" else 1
    expected = rankdata(sign * means, method="average", axis=1).mean(axis=0)
    assert {r["row"]: r["rank"] for r in found.iter_rows(named=True)} == pytest.approx(
        {f"m{m}": value for m, value in enumerate(expected)}
    )
    assert found["rank"].is_sorted()
    assert found["columns"].to_list() == [6] * 5


def test_columns_without_a_method_do_not_count_for_it_and_the_best_possible_has_no_rank() -> None:
    means = np.array([[90.0, 80.0, 70.0], [np.nan, 60.0, 65.0]])
    best = scores(np.array([[99.0]])).with_columns(pl.lit(BEST).alias("row"))
    found = {r["row"]: r for r in rank_frame(pl.concat([scores(means), best]), "accuracy").iter_rows(named=True)}
    assert {row: (r["rank"], r["columns"]) for row, r in found.items()} == {"m0": (1, 1), "m1": (2, 2), "m2": (2, 2)}


@pytest.mark.parametrize(("metric", "expected"), [("accuracy", (2, 1, 1)), ("mae", (1, 1, 2))])
def test_wins_and_losses_are_differences_that_hold(metric: str, expected: tuple[int, int, int]) -> None:
    differences, holds = [2.0, 3.0, -2.0, 1.0, None], [True, True, True, False, None]
    frame = scores(np.full((5, 1), 50.0), metric).with_columns(
        pl.Series("difference", differences, pl.Float64), pl.Series("holds", holds, pl.Boolean)
    )
    assert rank_frame(frame, metric).select("wins", "ties", "losses").row(0) == expected


PROTOCOL = {"name": "p50", "patterns": False, "store_id": "one", "mask_sha256": "p50"}


def write_own(folder: Path, mask: int, quality: float, **changes: Any) -> None:
    """A finished run with a mask hash."""
    made.write_run(folder, "muse", mask, quality)
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_sha256": f"mask{mask}"} | changes))


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of two stores with two methods and two seeds."""
    columns = []
    for name in ("one", "two"):
        for method, quality in (("moe_retriever", 0.7), ("majority", 0.5)):
            for seed in (0, 1):
                folder = tmp_path / "runs" / name / method / f"seed{seed}"
                write_own(folder, seed, quality + 0.02 * seed, store_id=name)
        cells = {"MoE-Retriever": ["moe_retriever", [0, 1]], "majority class": ["majority", [0, 1]]}
        columns.append(made.column(["text", "audio"], cells) | {"experiment": name, "store": f"stores/{name}"})
    notes = ["mosi: omitted, because the configuration has no export of this name."]
    (tmp_path / "suite.json").write_text(json.dumps(made.said_of(columns, notes=notes, published="")))
    return tmp_path


def render(folder: Path, *own: Path) -> str:
    """table.md with the user's runs."""
    flags = ["--suite", str(folder / "suite.json"), "--runs", str(folder / "runs"), "--out", str(folder / "out")]
    parsed = command_parser("suite-tables", suite_tables).parse_args(
        [*flags, *(["--join", *map(str, own)] if own else [])]
    )
    suite_tables.run(parsed)
    return (folder / "out/table.md").read_text()


def test_the_page_of_several_stores_opens_with_the_ranks(suite: Path) -> None:
    text = render(suite)
    grid = text.index("**Mean rank over the columns, 1 is best")
    assert grid < text.index("store one (real export)")
    assert "| MoE-Retriever | 2 | 1.00 |  |" in text
    assert "| *majority class* | 2 | 2.00 | 0–0–2 |" in text
    assert "* mosi: omitted, because" in text
    assert "Mean rank" in (suite / "out/table.html").read_text()
    assert "Mean rank" in (suite / "out/table.tex").read_text()


def test_own_runs_with_the_same_masks_become_a_row(suite: Path) -> None:
    for seed in (0, 1):
        write_own(suite / f"own/better/seed{seed}", seed, 0.9, store_id="one")
    text = render(suite, suite / "own")
    assert "| better | 1 | 1.00 | 1–0–0 |" in text
    frame = pl.read_parquet(suite / "out/scores.parquet").filter(row="better", metric="accuracy")
    assert frame.select("column", "seeds", "method").rows() == [(0, 2, "muse")]
    # The difference is that to MoE-Retriever on the same seeds: 0.9 − 0.71.
    assert frame["difference"][0] == pytest.approx(19, abs=0.5)


def test_a_run_of_another_seed_is_compared_with_the_cell_of_the_same_mask(suite: Path) -> None:
    write_own(suite / "mine", 1, 0.9, store_id="two", seed=7)
    render(suite, suite / "mine")
    frame = pl.read_parquet(suite / "out/scores.parquet").filter(row="mine", metric="accuracy")
    assert frame.select("column", "seeds").rows() == [(1, 1)]
    assert frame["difference"][0] == pytest.approx(18, abs=0.5)


def test_runs_that_do_not_fit_are_listed_with_the_reason(suite: Path) -> None:
    write_own(suite / "own/split", 0, 0.9, store_id="one", scheme="uniform")
    write_own(suite / "own/mask", 0, 0.9, store_id="one", mask_sha256="other")
    write_own(suite / "own/MoE-Retriever/seed0", 0, 0.9, store_id="one")
    write_own(suite / "own/a/twin/seed0", 0, 0.9, store_id="one")
    write_own(suite / "own/b/twin/seed0", 0, 0.9, store_id="one")
    (suite / "empty").mkdir()
    text = render(suite, suite / "own", suite / "empty")
    assert "own/split is not shown: no cell has the same scheme." in text
    assert "own/mask is not shown: no cell has the same mask_sha256." in text
    assert "own/MoE-Retriever/seed0 is not shown: there is another run of the name 'MoE-Retriever'" in text
    assert "own/b/twin/seed0 is not shown: there is another run of the name 'twin'" in text
    assert "empty has no finished runs." in text
    assert "| twin | 1 |" in text


def test_own_evaluations_join_the_columns_of_their_protocol(suite: Path) -> None:
    """An evaluation under a protocol is not a run of a column without it."""
    write_own(suite / "own/better/seed0/tests/p50", 0, 0.9, store_id="one", test=PROTOCOL)
    text = render(suite, suite / "own")
    assert "better/seed0/tests/p50 is not shown: no cell has the same protocol." in text
