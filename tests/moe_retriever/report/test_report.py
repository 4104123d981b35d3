"""The report: correct numbers, self-contained and passive markup, reproducibility, and no sample ids."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from moe_retriever.report import Inputs, write_report
from moe_retriever.report import page as page_module
from moe_retriever.report.experiments import _rows
from moe_retriever.report.runs import by_experiment, missingness_of, read_run, tell_apart, tidy
from mrpipe import Store
from mrpipe.cli.main import main
from mrpipe.errors import DataError
from mrpipe.experiment.missingness import ALL, read_realised
from tests.moe_retriever.report.page_checker import checked, untimed
from tests.stores import reseal
from workflow.planning.summary import print_summary

SMALL = ["epochs=2", "hidden=8", "tokens=2", "heads=2", "encoder_hidden=8", "cnn_width=0.05"]
EXPERTS = ["n_experts=2", "n_shared=2"]
SUITE = """<section class="suite" id="table9"><h3>table9: a test</h3><ul class="origin simulated"><li>toy</li></ul>
<div class="scroll"><table class="results"><caption>toy</caption><thead><tr><th scope="col">method</th></tr></thead>
<tbody><tr class="control"><th scope="row">majority</th></tr></tbody></table></div></section>"""
PICTURE = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 60" width="90pt" height="60pt">
<defs><style type="text/css">*{stroke-linejoin: round}</style><path id="a1" d="M0 0"/></defs><use href="#a1"/></svg>"""


@pytest.fixture(scope="module")
def runs(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for method, seed in (("moe_retriever", 0), ("moe_retriever", 1), ("majority", 0)):
        out = folder / "toy" / method / f"seed{seed}"
        options = ["--set", *SMALL, *(EXPERTS if method == "moe_retriever" else [])]
        code = main(
            [
                "train",
                "--store",
                str(store.path),
                "--mask",
                str(mask_file),
                "--method",
                method,
                "--seed",
                str(seed),
                "--modalities",
                "table",
                "series",
                "--quiet",
                "--out",
                str(out),
                *options,
            ]
        )
        assert code in (0, None)
        made.append(out)
    return made


@pytest.fixture(scope="module")
def inputs(runs: list[Path], store: Store, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """All kinds of inputs of a page."""
    folder = tmp_path_factory.mktemp("inputs")
    suite = folder / "suites" / "table9"
    suite.mkdir(parents=True)
    (suite / "table.html").write_text(SUITE)
    (suite / "routing.svg").write_text(PICTURE)
    jobs = folder / "benchmarks"
    for name, seconds in (("toy/ingest_table", 3.0), ("toy/ingest_series", 1.0), ("batches/toy/majority", "NA")):
        (jobs / name).parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"s": seconds, "max_rss": 100.0 if seconds == 3.0 else "NA", "cpu_time": seconds})
        (jobs / f"{name}.jsonl").write_text(line + "\n")
    return Inputs(runs=runs, stores=[store.path], suites=[suite], benchmarks=jobs)


@pytest.fixture(scope="module")
def page(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "index.html"
    write_report(inputs, out)
    return out


def test_the_page_is_well_formed_and_self_contained(page: Path) -> None:
    found = checked(page)
    assert found.open == []
    assert found.assets
    assert all(a.startswith(("#", "data:image/")) for a in found.assets)
    assert not re.search(r"https?://(?!www\.w3\.org)", page.read_text())
    assert page.stat().st_size < 6e5


def test_links_have_targets_and_ids_are_unique(page: Path) -> None:
    found = checked(page)
    assert sorted(found.ids) == sorted(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_the_page_is_accessible_to_screen_readers(page: Path) -> None:
    found = checked(page)
    assert found.unlabelled == []
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found.headings, found.headings[1:], strict=False))
    assert '<html lang="en">' in page.read_text()


def test_a_regression_is_reported_in_its_own_unit(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "runs" / "toy" / "logistic" / "seed0"
    options = ["--task", "score", "--method", "logistic", "--quiet", "--set", "subgroups=fold"]
    assert main(["train", "--store", str(store.path), "--out", str(out), *options]) in (0, None)
    found = json.loads((out / "metrics.json").read_text())["metrics"]
    assert set(found) == {"mae", "rmse", "corr", "r2"}
    others = [out.parents[1] / method / "seed0" for method in ("majority", "late_fusion")]
    small = ["--quiet", "--set", "epochs=1", "hidden=8", "heads=2", "tokens=1", "encoder_hidden=8", "cnn_width=0.03"]
    for other in others:
        more = ["--task", "score", "--method", other.parent.name, *small]
        assert main(["train", "--store", str(store.path), "--out", str(other), *more]) in (0, None)
    write_report(Inputs(runs=[out, *others]), tmp_path / "results" / "report" / "index.html")
    text = (tmp_path / "results" / "report" / "index.html").read_text()
    assert '<th scope="col" class="n">MAE</th>' in text
    # As many decimals as the interval carries.
    assert re.search(rf'<td class="n">{found["mae"]["value"]:.1f}<br><span class="interval">\[\d\.\d, ', text)
    assert "MAE by observed modalities" in text
    assert "The metrics are MAE, RMSE, Corr and R²" in text
    assert "to predict score (a number)" in text
    assert "to minimise the squared error of the standardised target" in text
    assert "cross-entropy" not in text.split("Methods text")[-1]
    # Nothing is selected for the majority class, and the number of trials is not an option.
    assert "For logistic regression, c was selected on the validation samples" in text
    assert "For majority class" not in text
    capsys.readouterr()
    print_summary(tmp_path / "results")
    printed = capsys.readouterr().out
    assert "MAE" in printed
    assert f" {found['mae']['value']:.1f}" in printed


def test_the_page_has_all_sections(page: Path) -> None:
    text = page.read_text()
    places = [text.index(f'id="{name}"') for name in ("answer", "experiments", "suites", "data", "methods", "record")]
    assert places == sorted(places)
    for heading in ("Modality combinations", "Cohort flow", "Data dictionary", "Leakage audit", "References"):
        assert heading in text
    assert SUITE.replace('id="', 'id="suite-').replace('"scroll"', '"scroll" tabindex="0"') in text
    # The forest plot, three of the experiment (combinations, learning curves, routing), four of its clinical
    # performance, two of the store, one of the suite.
    assert len(re.findall('<svg[^>]* role="img"', text)) == 11


def test_simulated_data_are_announced_at_the_top(page: Path) -> None:
    text = page.read_text()
    assert 0 < text.index('class="banner simulated"') < text.index("<h2") < text.index("<table")
    assert 'class="banner export"' not in text
    assert "as published" not in text


def test_real_data_are_announced_at_the_top(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store.path, copy)
    reseal(copy, {"origin": "export"})
    write_report(Inputs(stores=[copy]), tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert 'class="banner export"' in text
    assert 'class="banner simulated"' not in text
    write_report(Inputs(stores=[copy, store.path]), tmp_path / "both.html")
    assert "Simulated data in part." in (tmp_path / "both.html").read_text()


def test_the_table_has_the_means_over_run_folders(page: Path, runs: list[Path]) -> None:
    values = [json.loads((r / "metrics.json").read_text())["metrics"]["accuracy"]["value"] for r in runs[:2]]
    mean = 100 * sum(values) / 2
    spread = 100 * abs(values[0] - values[1]) / 2**0.5
    assert f"{mean:.1f} ± {spread:.1f}" in page.read_text()
    scores = pl.read_csv(page.parent / "results.csv")
    mine = scores.filter(method="moe_retriever", by="all", metric="accuracy").sort("seed")["value"].to_list()
    assert mine == pytest.approx(values)
    assert set(scores["method"]) == {"moe_retriever", "majority"}


def test_the_page_contains_no_sample_ids_and_no_paths(page: Path, store: Store, inputs: Inputs) -> None:
    text = page.read_text() + page.parent.joinpath("results.csv").read_text()
    samples = store.samples().select("sample_id", "subject_id").collect()
    for name in {*samples["sample_id"], *samples["subject_id"]}:
        assert not re.search(rf"\b{re.escape(name)}\b", text)
    for place in (store.path, inputs.runs[0], page.parent, Path.home(), Path("/tmp")):
        assert str(place) + "/" not in text


def test_the_page_is_reproducible(page: Path, inputs: Inputs, tmp_path: Path) -> None:
    write_report(inputs, tmp_path / "index.html")
    assert (tmp_path / "index.html").read_bytes() == page.read_bytes()
    figures = [p for p in page.parent.joinpath("figures").iterdir()]
    assert figures
    for figure in figures:
        assert (tmp_path / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_only_the_section_of_times_contains_times(page: Path, inputs: Inputs, tmp_path: Path) -> None:
    again = []
    for run in inputs.runs:
        again.append(tmp_path / "again" / "toy" / run.parent.name / run.name)
        shutil.copytree(run, again[-1])
        cost = json.loads((run / "cost.json").read_text()) | {"train_seconds": 4321.0, "load_seconds": 1234.0}
        (again[-1] / "cost.json").write_text(json.dumps(cost))
    store = tmp_path / "store"
    shutil.copytree(inputs.stores[0], store)
    said = json.loads((store / "provenance.json").read_text()) | {"sealed_at": "1999-12-31T23:59:59+00:00"}
    (store / "provenance.json").write_text(json.dumps(said))
    write_report(replace(inputs, runs=again, stores=[store], benchmarks=None), tmp_path / "index.html")
    other = (tmp_path / "index.html").read_text()
    assert "1999-12-31" in other
    assert "1 h 12 min" in other
    assert other != page.read_text()
    assert untimed(tmp_path / "index.html") == untimed(page)


def test_a_page_can_have_stores_only(store: Store, tmp_path: Path) -> None:
    assert main(["report", "--stores", str(store.path), "--out", str(tmp_path / "index.html")]) == 0
    found = checked(tmp_path / "index.html")
    assert "data" in found.ids
    assert "experiments" not in found.ids
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    nothing = str(tmp_path / "nothing.html")
    assert main(["report", "--out", nothing]) == 2
    assert main(["report", "--stores", str(store.path), "--qc", f"other={tmp_path}", "--out", nothing]) == 2
    assert not (tmp_path / "nothing.html").exists()


def test_a_page_with_many_experiments_stays_small(
    runs: list[Path], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MAX_DRAWN", 1)
    many = []
    for number in range(60):
        many.append(tmp_path / "runs" / f"e{number}" / "moe_retriever" / "seed0")
        shutil.copytree(runs[0], many[-1])
        metrics = json.loads((runs[0] / "metrics.json").read_text())
        metrics["mask"] |= {"p": round(0.01 * (number + 1), 2)}
        (many[-1] / "metrics.json").write_text(json.dumps(metrics))
    write_report(Inputs(runs=many, stores=[store.path]), tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert len(re.findall("<caption>Test scores", text)) == 60
    # Three of the first experiment, four of its clinical performance and two of the store; cautions of each experiment.
    assert len(re.findall("<svg", text)) == 5 + 4
    assert len(text) < 1.5e6
    assert len(re.findall('<ul class="cautions"', text)) == 60
    assert "and 54 more places" in text


def test_the_answer_is_written_next_to_the_page(page: Path) -> None:
    said, *tables = (page.parent / "answer.md").read_text().split("\n\n")
    (sentence,) = said.splitlines()
    assert sentence.startswith("* On simulated Toy (")
    assert html.escape(sentence.removeprefix("* "), quote=False) in html.unescape(page.read_text())
    assert "MoE-Retriever is " in sentence
    assert "majority class" in sentence
    assert any("| MoE-Retriever | 2 |" in table for table in tables)
    assert any("| *majority class* | 1 |" in table and "[no interval]" in table for table in tables)


def test_an_unfinished_run_is_a_data_error(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="evaluated run; found no such file"):
        write_report(Inputs(runs=[*runs, tmp_path / "run"]), tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [("[1]", "a JSON list"), ("{", "line 1 column 2"), ('{"method": "muse", "n_trials": "7"}', "n_trials and space")],
)
def test_an_invalid_best_json_is_a_data_error(
    content: str, found: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.json").write_text(content)
    out = tmp_path / "index.html"
    assert main(["report", "--stores", str(store.path), "--searches", str(tmp_path), "--out", str(out)]) == 3
    text = capsys.readouterr().err
    assert "best.json: expected a JSON object with method, store_id" in text
    assert found in text
    assert not out.exists()


@pytest.mark.parametrize(
    "active",
    [
        "<script>alert(1)</script>",
        '<img src="https://example.org/a.png">',
        "<p onclick='x()'>",
        '<link href="a.css">',
        '<p style="background: url(a.png)">',
    ],
)
def test_active_markup_is_a_data_error(active: str, tmp_path: Path) -> None:
    suite = tmp_path / "table9"
    suite.mkdir()
    (suite / "table.html").write_text(SUITE + active)
    with pytest.raises(DataError, match=r"table\.html"):
        write_report(Inputs(suites=[suite]), tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def test_published_values_stand_beside_the_same_metric_only(runs: list[Path]) -> None:
    run = read_run(runs[0])
    of_paper = {"origin": "export", "dataset": "mosi", "modalities": ["audio", "text"]}
    run = replace(run, metrics=run.metrics | of_paper | {"mask": {"mechanism": "mcar", "p": 0.3}})
    kinds = {m: {row["kind"] for row in _rows([run], tidy([run]), (m,))} for m in ("accuracy", "mae")}
    assert "published" in kinds["accuracy"]
    assert "published" not in kinds["mae"]


def test_runs_with_different_options_are_variants(runs: list[Path]) -> None:
    first, second, other = (read_run(folder) for folder in runs)
    assert [r.label for r in tell_apart([first, second, other])] == ["moe_retriever", "moe_retriever", "majority"]
    wider = replace(second, config=second.config | {"common": second.config["common"] | {"hidden": 16}})
    labels = [r.label for r in tell_apart([first, wider, other])]
    assert labels == ["moe_retriever [hidden=8]", "moe_retriever [hidden=16]", "majority"]
    # An older run that lacks an option.
    older = replace(second, config=second.config | {"options": {"warmup": second.config["options"]["warmup"]}})
    found = tell_apart([first, older])
    assert found[0].label != found[1].label


def test_missingness_is_displayed_in_words_and_recorded_by_name(runs: list[Path]) -> None:
    run = read_run(runs[0])
    rate = read_realised(runs[0] / "mask.parquet")[ALL]
    hidden = f"({100 * rate:.0f} % hidden)"
    assert run.metrics["mask_realised"][ALL] == rate > 0.05
    assert (run.missingness, missingness_of([run])) == ("mcar p=0.3", f"MCAR, p = 0.3 {hidden}")
    other = replace(run, metrics=run.metrics | {"mask_sha256": "other", "mask_realised": {ALL: rate + 0.1}})
    assert missingness_of([run, run, other]) == f"MCAR, p = 0.3 ({100 * (rate + 0.05):.0f} % hidden)"
    mask = run.metrics["mask"] | {"mechanism": "block", "redraw": False, "n_blocks": 4}
    run = replace(run, metrics=run.metrics | {"mask": mask})
    assert run.missingness == "block p=0.3 n_blocks=4 redraw=False"
    blocks = f"missing in blocks, p = 0.3 {hidden}, blocks = 4, samples without any modality allowed"
    assert missingness_of([run]) == blocks
    assert missingness_of([replace(run, metrics=run.metrics | {"mask": None})]) == "as observed"
    mask = run.metrics["mask"] | {"mechanism": "mnar_label", "n_blocks": 20, "redraw": True}
    title = f"MNAR by label, p = 0.3 {hidden}"
    for task, shown in ((run.metrics["task"], title), ("other", f"{title}, task = other")):
        assert missingness_of([replace(run, metrics=run.metrics | {"mask": mask | {"task": task}})]) == shown


def test_page_prints_the_realised_rate_wherever_it_prints_p(page: Path) -> None:
    text = page.read_text()
    assert re.search(r"MCAR, p = 0.3 \(\d+ % hidden\)", text)
    assert not re.search(r"p = 0.3(?! \(\d+ % hidden\))", text)
    assert re.search(r"redrawn until at least one remained \(\d+ % hidden\)", text)


def test_different_missingness_is_a_different_experiment(runs: list[Path]) -> None:
    run = read_run(runs[0])
    ways: list[dict[str, Any]] = [{}, {"seed": 7}, {"redraw": False}, {"mechanism": "mnar_label"}]
    ways += [ways[-1] | {"strength": 0.3}, ways[-1] | {"task": "label"}]
    hidden = [replace(run, metrics=run.metrics | {"mask": run.metrics["mask"] | way}) for way in ways]
    assert [len(together) for together in by_experiment(hidden).values()] == [2, 1, 1, 1, 1]


def test_runs_with_other_transforms_form_an_experiment_and_are_described(
    runs: list[Path], store: Store, tmp_path: Path
) -> None:
    said = []
    for name, changed in (("usual", []), ("other", [{"impute": "median", "clip": 2.0}, {"ld_r2": 0.0}])):
        copies = [runs[0]]
        for number, transforms in enumerate(changed):
            copies.append(Path(shutil.copytree(runs[0], tmp_path / f"{name}{number}")))
            metrics = json.loads((copies[-1] / "metrics.json").read_text()) | {"transforms": transforms}
            (copies[-1] / "metrics.json").write_text(json.dumps(metrics))
        out = tmp_path / name / "index.html"
        scores = write_report(Inputs(runs=copies, stores=[store.path]), out)
        named = ["", "clip=2.0, impute=median", "ld_r2=0.0"][: len(copies)]
        assert scores["transforms"].unique(maintain_order=True).to_list() == named
        assert checked(out).ids == list(dict.fromkeys(checked(out).ids))
        said.append((" ".join(untimed(out).split()), pl.read_csv(out.parent / "results.csv").columns))
    (usual, columns), (other, more) = said
    assert [c for c in more if c not in columns] == ["transforms"]
    imputed = "missing numeric values were imputed with the training"
    scaled = "and numeric features were standardised and clipped to"
    assert f"fitted on the training samples only: {imputed} mean, {scaled} ±10; " in usual
    assert "Other runs" not in usual
    assert f"Other runs used transforms with clip=2.0, impute=median: {imputed} median, {scaled} ±2" in other
    assert "Other runs used transforms with ld_r2=0.0." in other
    assert "Toy: outcome from table + series (clip=2.0, impute=median)" in other
    assert "transform impute=median" in other


def test_every_table_has_the_majority_class(runs: list[Path], tmp_path: Path) -> None:
    write_report(Inputs(runs=runs[:1]), tmp_path / "index.html")
    said: dict[str, Any] = json.loads((runs[0] / "metrics.json").read_text())["majority"]
    row = re.search(r'<tr class="control">(?:(?!</tr>).)*</tr>', (tmp_path / "index.html").read_text(), re.DOTALL)
    assert row
    assert f"majority class ({said['class']})" in row[0]
    assert f">{100 * said['accuracy']:.1f}<" in row[0]


def test_the_summary_prints_the_path_of_the_report(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(Inputs(stores=[store.path]), tmp_path / "report" / "index.html")
    print_summary(tmp_path)
    assert "report/index.html" in capsys.readouterr().out.replace("\n", "")


def test_a_suite_includes_its_stores_cells_and_searches(
    inputs: Inputs, runs: list[Path], store: Store, tmp_path: Path
) -> None:
    suite = tmp_path / "table9"
    shutil.copytree(inputs.suites[0], suite)
    cells = {"ours": ["moe_retriever", [0, 1]], "control": ["majority", [0]], "not run": ["muse", [0]]}
    said = {
        "columns": [{"experiment": "toy", "store": str(store.path), "cells": cells}],
        "unfinished": ["toy/majority/seed0"],
    }
    (suite / "suite.json").write_text(json.dumps(said))
    searches = []
    for name, store_id, n in (("ours", store.store_id, 7), ("other", "0" * 16, 99)):
        searches.append(tmp_path / f"{name}.json")
        content = {"method": "moe_retriever", "store_id": store_id, "n_trials": n, "metric": "macro_f1", "space": {}}
        searches[-1].write_text(json.dumps(content))
    made = Inputs(suites=[suite], cells=runs[0].parents[2], searches=searches)
    write_report(made, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert f'id="store-toy-{store.store_id}"' in text
    methods = text[text.index('id="methods-text"') :]
    assert "methods were compared: MoE-Retriever" in methods
    assert "most frequent class" not in methods
    assert "7 trials" in methods
    assert "99 trials" not in methods
    assert 'href="#suite-cautions"' in text[text.index('id="cautions"') : text.index('id="data"')]
    assert "<h2>Experiments</h2>" not in text


def test_figures_of_an_earlier_page_are_removed_and_other_files_are_kept(page: Path, inputs: Inputs) -> None:
    figures = page.parent / "figures"
    before = {p.name for p in figures.iterdir()}
    assert any(name.endswith("-routing.svg") for name in before)
    (figures / "my-drawing.svg").write_text("<svg/>")
    write_report(replace(inputs, runs=inputs.runs[2:]), page)
    left = {p.name for p in figures.iterdir()}
    assert not any(name.endswith(("-routing.svg", "-learning.svg")) for name in left)
    assert "my-drawing.svg" in left
    (figures / "my-drawing.svg").unlink()
    write_report(inputs, page)
    assert {p.name for p in figures.iterdir()} == before


def test_the_caption_of_the_routing_describes_the_pool(page: Path, inputs: Inputs, tmp_path: Path) -> None:
    assert "only the shared experts and those of the missing modality" in page.read_text()
    run = Path(shutil.copytree(inputs.runs[0], tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    config["options"]["context_routing"] = False
    (run / "config.json").write_text(json.dumps(config))
    write_report(replace(inputs, runs=[run]), tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert "Tokens visit any expert." in text
    assert "only the shared experts" not in text
