"""Tables of a suite from run folders, with published values, as Markdown, LaTeX and HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from moe_retriever.evaluation.bootstrap import table
from moe_retriever.evaluation.intervals import Estimate
from moe_retriever.evaluation.paired import limited
from moe_retriever.evaluation.run_folders import SCHEMA, best_possible, write_results
from moe_retriever.metrics import METRIC
from moe_retriever.suites.published import FILE, METRICS, published_rows, published_table, short
from moe_retriever.suites.render import Cell, Line, Page, PageTable, html, latex, markdown
from moe_retriever.suites.spec import BEST, parse_suite, read_suite
from moe_retriever.suites.tables import _DIFFERENCE, _MEAN, _named, write_tables
from mrpipe.errors import DataError
from mrpipe.experiment.missingness import ALL
from mrpipe.experiment.truth import ANY, read_best, write_best

N = 240
CLASSES = ("negative", "positive")


def write_run(
    folder: Path, method: str, seed: int, quality: float, *, origin: str = "export", val: float | None = None
) -> None:
    """Write a finished run like `train` and `evaluate`, with predictions of a given accuracy, also on validation."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, N)
    right = np.arange(N) < quality * N
    p = np.where(np.where(right, label, 1 - label) == 1, 0.8, 0.2)
    names = np.array(CLASSES)
    subjects = np.array([f"v{i // 2}" for i in range(N)])
    observed = np.where(np.arange(N) % 3 == 0, "text", "text+audio")
    pl.DataFrame(
        {
            "sample_id": [f"{i:03d}" for i in range(N)],
            "subject_id": subjects,
            "split": "test",
            "modalities": observed,
            "label": names[label],
            "predicted": names[(p > 0.5).astype(int)],
            "p_negative": 1 - p,
            "p_positive": p,
        }
    ).write_parquet(folder / "predictions.parquet")
    counts = np.where(observed == "text", 1, 2)
    scores = table(label, np.stack([1 - p, p], 1), subjects, observed.tolist(), counts, seed=0, n_resamples=20)
    scores.write_csv(folder / "metrics.csv")
    said = {
        "method": method,
        "preset": "paper",
        "seed": seed,
        "dataset": "mosi",
        "store_id": "abc",
        "origin": origin,
        "task": "sentiment",
        "scheme": "standard",
        "modalities": ["text", "audio"],
        "n_evaluated": N,
        "mask": {"mechanism": "mcar", "p": 0.3, "seed": seed},
        "mask_sha256": f"{seed}",
        "mask_realised": {ALL: 0.22 + 0.01 * seed},
        "training": {"code_hash": "c0de"} | ({} if val is None else {"val": {"accuracy": val, "ece": 1 - val}}),
    }
    (folder / "metrics.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps({"method": method, "common": {"lr": 0.1}}))


def row(name: str, method: str, published: str = "", *, control: bool = False) -> dict[str, Any]:
    return {"name": name, "method": method, "preset": "paper", "published": published, "control": control}


ROWS = [
    row("MoE-Retriever", "moe_retriever", "MoE-Retriever"),
    row("MUSE", "muse", "MUSE"),
    row("majority class", "majority", control=True),
]


def column(modalities: list[str], cells: dict[str, Any], absent: list[str] | None = None) -> dict[str, Any]:
    return {
        "dataset": "mosi",
        "experiment": "e",
        "store": "s",
        "truth": None,
        "modalities": modalities,
        "absent": absent or [],
        "missingness": {"mechanism": "mcar", "p": 0.3},
        "cells": cells,
    }


def said_of(columns: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Content of a suite.json with these columns."""
    usual = {
        "format": 1,
        "suite": "table2",
        "title": "A & B",
        "size": "full",
        "metrics": ["accuracy"],
        "published": "table2",
    }
    return usual | {"rows": ROWS, "columns": columns} | changes


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Page, Path]]:
    """Tables of two methods and a control; seed 2 of MUSE did not finish, and the store lacks one view."""

    def make(unfinished: tuple[str, ...] = (), origin: str = "export", mechanism: str = "mcar") -> tuple[Page, Path]:
        for method, quality in (("moe_retriever", 0.8), ("muse", 0.7), ("majority", 0.5)):
            for seed in (0, 1, 2):
                if (method, seed) != ("muse", 2):
                    folder = tmp_path / "runs" / "e" / method / f"seed{seed}"
                    write_run(folder, method, seed, quality + 0.02 * seed, origin=origin)
        cells = {r["name"]: [r["method"], [0, 1, 2]] for r in ROWS}
        columns = [column(["text", "audio"], cells), column(["text", "vision"], {}, ["vision"])]
        said = said_of(columns, unfinished=unfinished, trials=[6])
        for c in said["columns"]:
            c["missingness"]["mechanism"] = mechanism
        (tmp_path / "suite.json").write_text(json.dumps(said))
        return write_tables(read_suite(tmp_path / "suite.json"), tmp_path / "runs", tmp_path), tmp_path

    return make


def test_tables_have_values_with_intervals_differences_and_published_values(made: Any) -> None:
    page, folder = made()
    scores = pl.read_parquet(folder / "scores.parquet")
    moe = scores.filter(row="MoE-Retriever", metric="accuracy", column=0).row(0, named=True)
    assert moe["mean"] == pytest.approx(82.0, abs=0.3)
    assert moe["sd"] == pytest.approx(2.0, abs=0.3)
    assert moe["low"] < moe["mean"] < moe["high"]
    assert (moe["published"], moe["published_sd"]) == (66.13, 0.69)
    muse = scores.filter(row="MUSE", metric="accuracy", column=0).row(0, named=True)
    assert (muse["seeds"], moe["seeds"]) == (2, 3)
    # On the two common seeds, MoE-Retriever is correct on an additional tenth of the samples.
    assert muse["difference"] == pytest.approx(-10.0, abs=0.3)
    assert muse["difference_high"] < 0
    assert moe["leads"]
    text = (folder / "table.md").read_text()
    assert "| MoE-Retriever | **82" in text
    assert "| *MoE-Retriever, as published* | 66.13 ± 0.69 |" in text
    assert "| *majority class* |" in text
    assert "best validation score in 6 trials" in text
    assert page.faults == ("e/muse/seed2",)
    assert "e/muse/seed2" in text


CONTROLS = ("logistic", "late_fusion", "attention_mask", "released_code")


def write_controls(folder: Path, vals: dict[str, float | None], seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Runs of MoE-Retriever, 80 % correct, and of controls, 60, 70, 60 and 60 % correct; the content of suite.json."""
    rows = [row("MoE-Retriever", "moe_retriever"), row("three draws", "moe_retriever")]
    rows += [row(n, "moe_retriever" if n == "released_code" else n, control=True) for n in CONTROLS]
    quality = {"MoE-Retriever": 0.8, "three draws": 0.71, "late_fusion": 0.7}
    for name in (r["name"] for r in rows):
        for seed in seeds:
            run = folder / "runs" / "e" / name / f"seed{seed}"
            write_run(run, name, seed, quality.get(name, 0.6) + 0.001 * seed, val=vals.get(name, 0.5))
    cells = {r["name"]: [r["name"], list(seeds)] for r in rows}
    return said_of([column(["text", "audio"], cells)], rows=rows, published="")


def test_the_strongest_control_is_chosen_by_validation_and_does_not_retrieve(tmp_path: Path) -> None:
    """Late fusion is best on the test split, and the released code on validation; the choice is attention mask."""
    vals = {"late_fusion": 0.55, "attention_mask": 0.6, "released_code": 0.9}
    page = write_tables(parse_suite(write_controls(tmp_path, vals)), tmp_path / "runs", tmp_path)
    scores = pl.read_parquet(tmp_path / "scores.parquet").filter(metric="accuracy")
    known = scores.filter(pl.col("gain").is_not_null())
    assert known["row"].to_list() == ["MoE-Retriever", "three draws"]
    assert set(known["strongest"]) == {"attention_mask"}
    assert known["gain"].to_list() == pytest.approx([20.0, 11.0], abs=0.6)
    assert known["gain_holds"].to_list() == [True, True]
    # Of ECE, the lowest is the best.
    assert set(pl.read_parquet(tmp_path / "scores.parquet").filter(metric="ece")["strongest"].drop_nulls()) == {
        "attention_mask"
    }
    (line,) = [line for line in page.details[0].lines if line.name == "MoE-Retriever"]
    assert re.fullmatch(r"\+\d+\.\d \[.*\] \(attention_mask\)", line.cells[-1].text)
    assert line.cells[-1].bold
    assert any("without the test split" in note for note in page.notes)


def test_without_recorded_validation_scores_there_is_no_strongest_control(tmp_path: Path) -> None:
    page = write_tables(parse_suite(write_controls(tmp_path, {"late_fusion": None})), tmp_path / "runs", tmp_path)
    assert pl.read_parquet(tmp_path / "scores.parquet")["gain"].count() == 0
    assert "strongest" not in " ".join((*page.details[0].header, *page.notes)).lower()


def test_differences_are_marked_if_they_hold_after_correction_over_the_rows(tmp_path: Path) -> None:
    page = write_tables(parse_suite(write_controls(tmp_path, {})), tmp_path / "runs", tmp_path)
    scores = pl.read_parquet(tmp_path / "scores.parquet").filter(metric="accuracy")
    others = scores.filter(pl.col("row") != "MoE-Retriever").sort("difference_p")
    assert others["holds"].to_list() == (others["difference_p"] < 0.05).to_list()
    assert others["holds"].all()
    # Holm: of the five p-values, the largest is not multiplied, and the order does not change.
    assert others["difference_p"].is_sorted()
    place = page.details[0].header.index("accuracy: Δ to MoE-Retriever") - 1
    bold = {line.name: line.cells[place].bold for line in page.details[0].lines}
    assert bold == dict.fromkeys(("three draws", *CONTROLS), True) | {"MoE-Retriever": False}
    assert scores.filter(row="MoE-Retriever").select("difference", "holds").row(0) == (None, None)


def test_with_one_seed_intervals_cover_test_subjects_only_as_the_caption_says(tmp_path: Path) -> None:
    page = write_tables(parse_suite(write_controls(tmp_path, {}, (0,))), tmp_path / "runs", tmp_path)
    assert "95% interval over test subjects only (one seed)" in page.details[0].caption
    assert any("with one seed, over test subjects only" in note for note in page.notes)


def test_regressions_have_their_metrics_in_units_of_the_target(tmp_path: Path) -> None:
    said = write_controls(tmp_path, {}) | {"metrics": ["mae"]}
    rng = np.random.default_rng(0)
    for path in tmp_path.glob("runs/e/*/seed*/predictions.parquet"):
        label = np.linspace(-3, 3, N)
        error = (0.5 if path.parts[-3] == "MoE-Retriever" else 1.0) * rng.normal(size=N)
        frame = pl.read_parquet(path).drop("p_negative", "p_positive")
        frame.with_columns(label=label, predicted=label + error).write_parquet(path)
    page = write_tables(parse_suite(said), tmp_path / "runs", tmp_path)
    scores = pl.read_parquet(tmp_path / "scores.parquet")
    assert set(scores["metric"]) == {"mae", "rmse", "corr", "r2"}
    moe = scores.filter(row="MoE-Retriever", metric="mae").row(0, named=True)
    assert moe["mean"] == pytest.approx(0.4, abs=0.05)
    assert moe["leads"]
    assert "%" not in page.overview[0].caption
    assert len({len(page.details[0].header), *(1 + len(line.cells) for line in page.details[0].lines)}) == 1
    assert re.search(r"\| MoE-Retriever \| \*\*0\.\d{2} ± 0\.\d{2}\*\* \|", markdown(page))


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [("accuracy", 0, 100), ("mae", 0, None), ("corr", -1, 1), ("r2", None, 1), ("brier", 0, 2)],
)
def test_intervals_end_at_the_range_of_the_metric(metric: str, low: float | None, high: float | None) -> None:
    wide = Estimate(0.5, ((100.0, 1),))
    mean = dict(_named(limited(wide, metric), _MEAN, metric))
    difference = dict(_named(limited(wide, metric, difference=True), _DIFFERENCE, metric))
    factor = METRIC[metric].factor
    assert mean["low"] == (factor * (wide.low or 0) if low is None else low)
    assert mean["high"] == (factor * (wide.high or 0) if high is None else high)
    # The largest difference of two values of the metric.
    least, most = (
        (factor * (wide.low or 0), factor * (wide.high or 0)) if None in (low, high) else (low - high, high - low)
    )  # type: ignore[operator]
    assert (difference["difference_low"], difference["difference_high"]) == (least, most)


def test_a_metric_that_depends_on_one_subject_has_no_interval_and_says_so(tmp_path: Path) -> None:
    said = write_controls(tmp_path, {}, (0,))
    for path in tmp_path.glob("runs/e/*/seed*/predictions.parquet"):
        first = pl.col("subject_id") == "v0"
        label = pl.when(first).then(pl.lit("positive")).otherwise(pl.lit("negative"))
        pl.read_parquet(path).with_columns(label=label).write_parquet(path)
    page = write_tables(parse_suite(said), tmp_path / "runs", tmp_path)
    auroc = pl.read_parquet(tmp_path / "scores.parquet").filter(metric="auroc")
    assert auroc["mean"].null_count() == 0
    assert auroc["low"].count() == auroc["difference_p"].count() == 0
    place = page.details[0].header.index("AUROC") - 1
    assert all(line.cells[place].text.endswith("[no interval]") for line in page.details[0].lines)


def test_two_stores_of_a_dataset_have_separate_tables_with_their_origin(tmp_path: Path) -> None:
    columns = []
    for name, origin in (("mosi", "export"), ("toy", "simulated")):
        write_run(tmp_path / "runs" / name / "majority" / "seed0", "majority", 0, 0.5, origin=origin)
        cells = {"majority class": ["majority", [0]]}
        columns.append(column(["text", "audio"], cells) | {"experiment": name, "store": f"stores/{name}"})
    page = write_tables(parse_suite(said_of(columns)), tmp_path / "runs", tmp_path)
    for grids in (page.overview, page.details):
        real, toy = (grid.caption for grid in grids)
        assert "real export" in real
        assert "store mosi" in real
        assert "simulated export" in toy
        assert "store toy" in toy


def test_different_columns_have_different_names() -> None:
    usual = column(["text", "audio"], {})
    strong = usual | {"missingness": {"mechanism": "mnar_label", "p": 0.3, "strength": 1.0}}
    columns = [usual, usual | {"missingness": None}, usual | {"task": "mood"}, usual | {"scheme": "uniform"}, strong]
    columns.append(strong | {"missingness": {"mechanism": "mnar_label", "p": 0.3}})
    names = [c.name for c in parse_suite(said_of(columns)).columns]
    assert len(set(names)) == len(columns)
    assert names[0] == "A+T, p = 0.3"
    assert names[-1] == "A+T, MNAR by label, p = 0.3"


def test_published_values_are_shown_only_for_the_papers_mechanism(made: Any) -> None:
    _, folder = made(mechanism="block")
    assert pl.read_parquet(folder / "scores.parquet")["published"].count() == 0
    assert "as published" not in (folder / "table.md").read_text()


def test_unfinished_runs_and_absent_modalities_are_listed(made: Any) -> None:
    page, folder = made(unfinished=tuple(f"e/moe_retriever/seed{s}" for s in range(3)))
    text = (folder / "table.md").read_text()
    assert "| MoE-Retriever | not finished | not in store |" in text
    assert "the store has no vision" in text
    assert len(page.faults) == 4
    assert pl.read_parquet(folder / "scores.parquet")["difference"].null_count() > 0


def test_simulated_data_are_marked_in_every_format(made: Any) -> None:
    page, folder = made(origin="simulated")
    assert page.simulated
    for name in ("table.md", "table.html", "table.tex"):
        text = (folder / name).read_text()
        assert "simulated export" in text
        assert "no conclusions about real data" in text


@pytest.mark.parametrize("known", ["text", ANY])
def test_regret_is_the_difference_to_the_best_possible_prediction(made: Any, tmp_path: Path, known: str) -> None:
    _, folder = made(origin="simulated")
    run = pl.read_parquet(folder / "runs/e/moe_retriever/seed0/predictions.parquet")
    ids = run["sample_id"].to_list()
    # Given the text alone (or any modalities), the prediction is correct for all samples; given both, for half of them.
    right = np.stack([run["label"] == c for c in CLASSES], axis=1).astype(float)
    half = np.where(np.arange(N)[:, None] % 2 == 0, right, 1 - right)
    best = {(known,) if known else (): right, ("text", "audio"): half}
    write_best(tmp_path / "truth", "sentiment", CLASSES, ids, best)
    said = json.loads((folder / "suite.json").read_text())
    said["columns"][0]["truth"] = str(tmp_path / "truth")
    (folder / "suite.json").write_text(json.dumps(said))
    write_tables(read_suite(folder / "suite.json"), folder / "runs", folder)
    scores = pl.read_parquet(folder / "scores.parquet").filter(metric="accuracy", column=0)
    both = run["modalities"] == "text+audio"
    expected = 100 * np.where(both, np.arange(N) % 2 == 0, True).mean()
    possible = scores.filter(row=BEST).row(0, named=True)
    moe = scores.filter(row="MoE-Retriever").row(0, named=True)
    # The labels differ between seeds; the truth has those of the first.
    assert possible["seeds"] == 3
    assert moe["regret"] == pytest.approx(possible["mean"] - moe["mean"])
    assert not possible["leads"]
    alone = best_possible(folder / "runs/e/moe_retriever/seed0", pl.read_parquet(tmp_path / "truth/best.parquet"))
    assert alone is not None
    assert 100 * (alone.prediction.argmax(1) == alone.label).mean() == pytest.approx(expected)
    assert f"| *{BEST}* |" in (folder / "table.md").read_text()


def test_regret_requires_the_truth_of_every_sample(made: Any, tmp_path: Path) -> None:
    _, folder = made(origin="simulated")
    p = np.full((2, 2), 0.5)
    write_best(tmp_path / "truth", "sentiment", CLASSES, ["000", "001"], {(): p})
    assert read_best(tmp_path / "truth", "another") is None
    assert read_best(tmp_path, "sentiment") is None
    best = read_best(tmp_path / "truth", "sentiment")
    assert best_possible(folder / "runs/e/moe_retriever/seed0", best) is None


def test_a_table_without_finished_runs_is_marked(made: Any) -> None:
    folders = tuple(f"e/{m}/seed{s}" for m in ("moe_retriever", "muse", "majority") for s in range(3))
    page, folder = made(unfinished=folders)
    assert page.details == ()
    assert "no finished runs" in (folder / "table.md").read_text()


class Tags(HTMLParser):
    """Check that tags nest, and collect the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        assert "style" not in dict(attrs)
        self.classes |= set((dict(attrs).get("class") or "").split())

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_fragment_is_well_formed_and_has_the_documented_classes(made: Any) -> None:
    _, folder = made()
    text = (folder / "table.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert {"suite", "results", "control", "published", "ours", "diff", "unfinished"} <= tags.classes
    assert "A &amp; B" in text
    assert "<script" not in text
    assert "http" not in text


def test_latex_is_escaped_and_rectangular(made: Any) -> None:
    _, folder = made()
    text = (folder / "table.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    for columns, body in re.findall(r"\\begin{tabular}{(\w+)}\n(.*?)\\end{tabular}", text, flags=re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 3
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}
    uncommented = re.sub(r"^%.*$", "", text, flags=re.MULTILINE)
    assert not re.search(r"(?<!\\)[%#_]", re.sub(r"\\resizebox.*%", "", uncommented))


def test_rendering_escapes_special_characters() -> None:
    nasty = "a|b & <c> 5 % _x_"
    grid = PageTable(nasty, ("method", nasty), (Line("method", nasty, (Cell(nasty, "ours", True),)),))
    page = Page("t", nasty, False, (), (grid,), ())
    assert "a\\|b" in markdown(page)
    assert r"a\textbar{}b \& \textless{}c\textgreater{} 5 \% \_x\_" in latex(page)
    assert "a|b &amp; &lt;c&gt; 5 % _x_" in html(page)


def test_the_results_are_tidy_and_complete(made: Any) -> None:
    _, folder = made()
    frame = write_results(folder / "runs", folder / "results.parquet")
    assert pl.read_parquet(folder / "results.parquet").equals(frame)
    assert frame.schema == SCHEMA
    assert frame["run"].n_unique() == 8
    keys = ["run", "by", "group", "metric"]
    assert frame.select(keys).is_duplicated().sum() == 0
    assert set(frame["group"]) == {"all", "text", "text+audio", "1", "2"}
    assert frame["code_hash"].unique().to_list() == ["c0de"]
    assert json.loads(frame["config"][0])["common"] == {"lr": 0.1}
    assert frame.select("mechanism", "p").unique().rows() == [("mcar", 0.3)]


def test_datasets_that_are_not_in_the_paper_are_named_after_their_store() -> None:
    other = column(["text", "audio"], {}) | {"dataset": "tables", "store": "results/stores/icu"}
    paper, own = parse_suite(said_of([column(["text", "audio"], {}), other])).columns
    assert (paper.data, own.data) == ("CMU-MOSI", "icu")


def test_an_invalid_suite_json_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    for name in ("a.json", "absent.json"):
        with pytest.raises(DataError, match=name):
            read_suite(tmp_path / name)


# Published values


def test_the_published_values_equal_those_of_the_paper(project: Path) -> None:
    original = project.parent / "shared" / "paper" / "results.csv"
    if not original.is_file():
        pytest.skip("the paper's values are not available (../shared/paper/results.csv)")
    assert FILE.read_bytes() == original.read_bytes()


def test_every_published_value_is_found_by_our_names() -> None:
    frame = published_table()
    assert len(frame) == 296
    names = {"CMU-MOSI": "mosi", "ENRICO": "enrico", "ADNI": "adni", "MIMIC": "mimic"}
    letters = {
        "mosi": {"V": "vision", "A": "audio", "T": "text"},
        "enrico": {"S": "screenshot", "W": "wireframe"},
        "adni": {"I": "image", "G": "genomic", "C": "clinical", "B": "biospecimen"},
        "mimic": {"L": "lab", "N": "note", "C": "code"},
    }
    ours = {theirs: mine for mine, theirs in METRICS.items()}
    for row in frame.iter_rows(named=True):
        dataset = names[row["dataset"]]
        view = [letters[dataset][letter] for letter in row["modalities"].split("+")]
        mask = None if row["drop"] == "natural" else {"mechanism": "mcar", "p": float(row["drop"])}
        found = published_rows(dataset, view[::-1], mask, [row["table"]])[row["method"]][ours[row["metric"]]]
        assert found is not None
        assert (found.mean, found.std) == (row["mean"], row["std"])
        assert short(dataset, view) == row["modalities"]
    assert published_rows("tables", ["a"], None, ["table1"]) == {}
    assert short("tables", ["a", "b"]) == "a+b"


def test_captions_and_headers_with_p_have_the_realised_rate_of_the_runs(made: Any) -> None:
    """Mask files of the seeds have realised rates of 22, 23 and 24 %."""
    page, folder = made()
    captions = [*page.overview[0].header, *(grid.caption for grid in page.details)]
    assert "A+T, p = 0.3 (23 % hidden)" in captions
    assert any("p = 0.3 (23 % hidden) (real export" in caption for caption in captions)
    text = "".join((folder / f"table.{kind}").read_text() for kind in ("md", "tex", "html"))
    assert set(re.findall(r"A\+T, p = 0.3 (.*?)(?: hidden|<)", text)) == {"(23 %", r"(23 \%"}
    assert pl.read_parquet(folder / "scores.parquet")["hidden"].drop_nulls().unique().to_list() == pytest.approx([0.23])
    results = write_results(folder / "runs", folder / "results.parquet")
    assert sorted(results["hidden"].unique()) == pytest.approx([0.22, 0.23, 0.24])
