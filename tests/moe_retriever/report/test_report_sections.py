"""Single sections of the report: dictionary, jobs, methods text, warnings, quality control."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moe_retriever.metrics import METRIC
from moe_retriever.report import benchmarks, cautions
from moe_retriever.report.experiments import _by_group, _cell, _digits
from moe_retriever.report.methods_text import methods_text
from moe_retriever.report.quality import describe_quality
from moe_retriever.report.runs import ReportedRun, read_run
from moe_retriever.report.stores import DICTIONARY_ROWS, summarise
from mrpipe import Store
from mrpipe.cli.main import main
from mrpipe.datasets.adni.image.raw import SCAN_SCHEMA
from mrpipe.imaging.qc import MEASURES
from mrpipe.schema import DICTIONARY_SCHEMA

# Dictionary.


def feature(name: str, **other: Any) -> dict[str, Any]:
    usual = {
        "modality": "m",
        "position": 0,
        "name": name,
        "dtype": "float32",
        "unit": None,
        "kind": "numeric",
        "levels": None,
        "description": "a number",
        "source_file": "a.csv",
        "source_column": name,
        "n_observed": 9,
        "n_missing": 1,
    }
    return usual | other


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=DICTIONARY_SCHEMA)


names = st.sampled_from(["age", "x1", "x2", "x_10.5", "weight", "snp1", "snp22"])
features = st.builds(
    lambda name, unit, known, unknown: feature(name, unit=unit, n_observed=known, n_missing=unknown),
    names,
    st.sampled_from([None, "kg"]),
    st.integers(0, 50),
    st.integers(0, 50),
)


@given(st.lists(features, min_size=1, max_size=30))
@settings(deadline=None, max_examples=40)
def test_dictionary_rows_cover_all_features(rows: list[dict[str, Any]]) -> None:
    (entry,) = summarise(frame(rows))
    assert entry["n_features"] == sum(r["n"] for r in entry["rows"]) == len(rows)
    rates = [r["n_missing"] / (r["n_missing"] + r["n_observed"]) for r in rows if r["n_missing"] + r["n_observed"]]
    if rates:
        assert entry["highest"] == pytest.approx(max(rates))
        assert entry["median"] == pytest.approx(np.median(rates))
        assert max(r["high"] for r in entry["rows"] if r["high"] is not None) == pytest.approx(max(rates))
    assert entry["n_never"] == sum(r["n_observed"] == 0 for r in rows)


def test_numbered_consecutive_features_form_one_row() -> None:
    rows = [feature("age"), *(feature(f"embedding_{i}", kind="embedding") for i in range(384)), feature("weight")]
    (entry,) = summarise(frame(rows))
    assert [(r["name"], r["last"], r["n"]) for r in entry["rows"]] == [
        ("age", "age", 1),
        ("embedding_0", "embedding_383", 384),
        ("weight", "weight", 1),
    ]
    assert entry["kinds"] == "2 numeric, 384 embedding"


def test_a_large_dictionary_is_truncated() -> None:
    letters = np.array(list("abcdefghij"))
    spelled = ["".join(letters[list(map(int, str(i)))]) for i in range(20_000)]
    (entry,) = summarise(frame([feature(name) for name in spelled]))
    assert len(entry["rows"]) == DICTIONARY_ROWS < entry["n_rows"] == 20_000


# Jobs.


def test_jobs_are_named_by_rule_and_wildcards(tmp_path: Path) -> None:
    files = {
        "mosi/ingest_text": ("ingest", "mosi text"),
        "mosi/seal": ("seal", "mosi"),
        "adni/prepare_image_3-of-20": ("prepare", "adni image_3-of-20"),
        "batches/mosi/moe_retriever/seed2": ("cells", "mosi/moe_retriever/seed2"),
        "mosi/search_muse": ("search", "mosi muse"),
        "suites/table2_tables": ("tables", "suites table2"),
        "adni/image_qc": ("image_qc", "adni"),
        "report": ("report", "report"),
    }
    for name in files:
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps({"s": 2.0, "max_rss": 50.0, "cpu_time": 1.0}) + "\n")
    found = benchmarks.read_benchmarks(tmp_path)
    assert set(found.select("rule", "job").rows()) == set(files.values())


def test_job_totals_and_slowest_jobs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    seconds = {f"mosi/ingest_m{i}": float(s) for i, s in enumerate(rng.uniform(1, 9, 40).round(2))}
    seconds |= {f"mosi/split_s{i}": float(s) for i, s in enumerate(rng.uniform(1, 9, 5).round(2))}
    (tmp_path / "mosi").mkdir()
    for name, value in seconds.items():
        lines = [{"s": 99.0, "max_rss": 9.0, "cpu_time": 9.0}, {"s": value, "max_rss": "NA", "cpu_time": value / 2}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "mosi" / "seal.jsonl").write_text("")
    said = benchmarks.summarise(benchmarks.read_benchmarks(tmp_path))
    assert said
    assert said["n"] == 45
    assert said["seconds"] == pytest.approx(sum(seconds.values()))
    assert said["peak_mb"] is None
    slowest = max((n for n in seconds if "ingest" in n), key=lambda n: seconds[n])
    (ingest,) = [r for r in said["rules"] if r["rule"] == "ingest"]
    assert ingest["slowest"] == f"mosi {slowest.split('_')[1]}"
    assert ingest["n"] == 40
    assert len(said["slowest"]) == benchmarks.SLOWEST
    assert benchmarks.summarise(benchmarks.read_benchmarks(tmp_path / "nowhere")) is None


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "–"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_are_formatted(seconds: float | None, shown: str) -> None:
    assert benchmarks.show_seconds(seconds) == shown


# Methods text.


@pytest.fixture(scope="module")
def trained(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportedRun:
    out = tmp_path_factory.mktemp("runs") / "toy" / "zero_fill" / "seed0"
    small = ["epochs=1", "hidden=8", "tokens=2", "heads=2", "encoder_hidden=8"]
    main(
        [
            "train",
            "--store",
            str(store.path),
            "--mask",
            str(mask_file),
            "--method",
            "zero_fill",
            "--modalities",
            "table",
            "series",
            "--quiet",
            "--out",
            str(out),
            "--set",
            *small,
        ]
    )
    return read_run(out)


def changed(run: ReportedRun, change: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]) -> ReportedRun:
    metrics, config, cost = copy.deepcopy((run.metrics, run.config, run.cost))
    change(metrics, config, cost)
    return replace(run, metrics=metrics, config=config, cost=cost)


def told(runs: list[ReportedRun], stores: list[Store], searches: list[dict[str, Any]] | None = None) -> str:
    said = methods_text(runs, stores, searches or [])
    return "\n".join([*(f"{h}. {t}" for h, t in said.paragraphs), *said.references])


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]] = {
    "learning rate": lambda m, c, k: c["common"].update(lr=0.007),
    "epochs": lambda m, c, k: c["common"].update(epochs=77),
    "option of no sentence": lambda m, c, k: c["common"].update(fusion_layers=3),
    "selection": lambda m, c, k: c["common"].update(select_metric="accuracy"),
    "encoder": lambda m, c, k: c["common"].update(sequence_encoder="lstm"),
    "seed": lambda m, c, k: m.update(seed=5),
    "method": lambda m, c, k: (m.update(method="muse"), c.update(method="muse")),
    "preset": lambda m, c, k: m.update(preset="other"),
    "view": lambda m, c, k: m.update(modalities=["table"]),
    "sizes": lambda m, c, k: m["n"].update(test=3),
    "classes": lambda m, c, k: m.update(classes=["a", "b", "c"]),
    "rate of what is hidden": lambda m, c, k: m["mask"].update(p=0.5),
    "mechanism": lambda m, c, k: m["mask"].update(mechanism="block"),
    "redraw": lambda m, c, k: m["mask"].update(redraw=False),
    "nothing hidden": lambda m, c, k: m.update(mask=None),
    "bootstrap": lambda m, c, k: m.update(bootstrap=0),
    "draws": lambda m, c, k: m.update(draws=9),
    "left out": lambda m, c, k: m["n_without_modality"].update(train=4),
    "torch": lambda m, c, k: k["versions"].update(torch="9.9.9"),
    "device": lambda m, c, k: k.update(device="cuda"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_a_run_changes_the_text(name: str, trained: ReportedRun, store: Store) -> None:
    before = told([trained], [store])
    assert told([trained], [store]) == before
    assert told([changed(trained, CHANGES[name])], [store]) != before


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "export"},
        {"release": "another"},
        {"options": {"shift_test": 3.0}, "options_changed": ("shift_test",)},
        {"citation": "A. N. Other"},
        {"n_subjects": 7},
        {"store_id": "0" * 16},
    ],
)
def test_every_change_of_a_store_changes_the_text(change: dict[str, Any], trained: ReportedRun, store: Store) -> None:
    other = copy.copy(store)
    other.manifest = replace(store.manifest, **change)
    assert told([trained], [other]) != told([trained], [store])


def test_a_search_is_described_with_its_budget(trained: ReportedRun, store: Store) -> None:
    search = {"method": "zero_fill", "n_trials": 12, "metric": "macro_f1", "space": {"lr": [0.1, 0.2]}}
    without, told_of = told([trained], [store]), told([trained], [store], [search])
    assert "No hyper-parameter search" in without
    assert "No hyper-parameter search" not in told_of
    assert "12 trials (lr ∈ {0.1, 0.2})" in told_of


def test_citations_and_references_match(trained: ReportedRun, store: Store) -> None:
    other = changed(trained, CHANGES["method"])
    said = methods_text([trained, other], [store])
    text = " ".join(body for _, body in said.paragraphs)
    cited = {int(n) for group in re.findall(r" \[(\d+(?:, \d+)*)\]", text) for n in group.split(", ")}
    assert cited == set(range(1, len(said.references) + 1))
    assert any("Multimodal patient representation learning" in r for r in said.references)
    assert len(said.references) == len(set(said.references))


def test_skull_stripping_is_described_only_if_performed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = store.dictionary.with_columns(source_file=pl.lit("7 raw T1 scans"))
    monkeypatch.setattr(Store, "dictionary", dictionary)
    said = {}
    for brain in ("extract", "stripped"):
        other = copy.copy(store)
        other.manifest = replace(store.manifest, options={"image_brain": brain}, options_changed=())
        said[brain] = told([], [other])
    assert "were skull-stripped [" in said["extract"]
    assert "deepbet" in said["extract"]
    assert "were provided skull-stripped and were corrected" in said["stripped"]
    assert "deepbet" not in said["stripped"]


def test_software_versions_are_those_of_the_run(trained: ReportedRun, store: Store) -> None:
    versions = trained.cost["versions"]
    text = told([trained], [store])
    assert f"PyTorch {versions['torch']}" in text
    assert f"Python {versions['python']}" in text


# Warnings.


def constant(m: dict[str, Any]) -> None:
    k, a = len(m["classes"]), 0.6
    m["metrics"]["accuracy"]["value"] = a
    m["metrics"]["balanced_accuracy"]["value"] = 1 / k
    m["metrics"]["macro_f1"]["value"] = 2 * a / ((1 + a) * k)


def good(m: dict[str, Any]) -> None:
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        m["metrics"][name]["value"] = 0.99
    m["n"].update(train=900, val=300, test=300)
    m["training"].update(best_epoch=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (constant, "All test samples were assigned to one class"),
        (lambda m: m["metrics"]["accuracy"].update(value=0.01), "below that of always predicting"),
        (lambda m: m["n"].update(test=12), "12 test samples"),
        (
            lambda m: m["training"].update(notes=["No test sample has the class no."]),
            "No test sample has the class no.",
        ),
        (lambda m: m["training"].update(best_epoch=1), "longer training may improve"),
    ],
)
def test_a_problem_gives_exactly_one_warning(change: Callable[[Any], None], said: str, trained: ReportedRun) -> None:
    plain = [changed(trained, lambda m, c, k, s=seed: (good(m), m.update(seed=s))) for seed in range(3)]  # type: ignore[misc]
    assert cautions.of_experiment(plain) == []
    odd = [changed(run, lambda m, c, k: change(m)) for run in plain]
    (found,) = cautions.of_experiment(odd)
    assert said in found.text
    (few,) = cautions.of_experiment(plain[:1])
    assert "only 1 seed," in few.text


def test_image_encoders_that_start_from_random_weights_give_a_warning(trained: ReportedRun) -> None:
    def images(m: dict[str, Any], c: dict[str, Any], weights: str) -> None:
        good(m)
        c["data"]["modalities"][0]["kind"] = "image"
        c["common"]["image_weights"] = weights

    untaught, taught = (
        [changed(trained, lambda m, c, k, s=seed, w=w: (images(m, c, w), m.update(seed=s))) for seed in range(3)]  # type: ignore[misc]
        for w in ("", "vgg11.pth")
    )
    (found,) = cautions.of_experiment(untaught)
    assert "image encoder started from random weights" in found.text
    assert cautions.of_experiment(taught) == []


# Quality control.


def test_failed_scans_and_outliers_are_counted_and_shown_first(tmp_path: Path) -> None:
    n = 60
    table = pl.DataFrame(
        {
            "scan": range(n),
            "attempt": [0] * n,
            "source": ["raw"] * n,
            "status": ["failed" if i % 10 == 0 else "ok" for i in range(n)],
            "reason": ["no brain" if i % 10 == 0 else None for i in range(n)],
            "outlier": ["gm_ml" if i == 7 else "" for i in range(n)],
            "gm_ml": [None if i % 10 == 0 else 500.0 + i for i in range(n)],
            "seconds": [1.0] * n,
        }
    )
    table.write_parquet(tmp_path / "qc.parquet")
    Image.new("RGB", (864, 9000)).save(tmp_path / "contact_sheet.png")
    said = describe_quality(tmp_path)
    assert said
    assert (said["n"], said["n_failed"], said["n_flagged"]) == (60, 6, 1)
    assert said["reasons"] == [("no brain", 6)]
    assert [r["scan"] for r in said["rows"]] == [0, 10, 20, 30, 40, 50, 7]
    assert [x["name"] for x in said["numbers"]] == ["grey-matter volume (ml)"]
    assert said["rows"][-1]["outlier"] == "grey-matter volume (ml)"
    assert said["sheet"]
    assert len(said["sheet"]) < 200_000
    assert describe_quality(tmp_path / "nowhere") is None


def test_every_measure_of_a_scan_has_a_displayed_name() -> None:
    measures = {name for name, dtype in SCAN_SCHEMA.items() if dtype.is_float()} - {"seconds", "peak_mb"}
    assert measures - set(MEASURES) == set()


# Cells of the tables.


def test_a_mean_over_seeds_is_undefined_if_a_seed_is() -> None:
    def cell(*rows: tuple[float | None, float | None, float | None]) -> dict[str, str]:
        frame = pl.DataFrame(rows, schema=dict.fromkeys(("value", "low", "high"), pl.Float64), orient="row")
        return _cell(frame, METRIC[metric], _digits(frame, METRIC[metric]))

    metric = "accuracy"
    assert cell((0.5, 0.4, 0.6), (0.7, 0.6, 0.8)) == {"text": "60.0 ± 14.1", "interval": "[50.0, 70.0]"}
    assert cell((0.5, 0.4, 0.6), (None, None, None)) == {"text": "– (undefined for 1 of 2 seeds)", "interval": ""}
    assert cell((0.5, None, None), (0.7, 0.6, 0.8)) == {"text": "60.0 ± 14.1", "interval": ""}
    assert cell((None, None, None)) == cell() == {"text": "–", "interval": ""}
    metric = "mae"
    assert cell((0.5, 0.4, 0.6)) == {"text": "0.50", "interval": "[0.40, 0.60]"}


# Scores by group.


@pytest.mark.parametrize("n_groups", [2, 4])
def test_scores_by_group_are_long_rather_than_wide(n_groups: int) -> None:
    methods, groups = ("majority", "logistic", "moe_retriever"), [f"site {i}" for i in range(n_groups)]
    columns = {"by": "subgroup", "low": None, "high": None, "n": 40}
    rows = [{**columns, "method": m, "group": g, "value": len(m + g) / 100} for m in methods for g in groups]
    frame = pl.DataFrame(rows, schema_overrides={"low": pl.Float64, "high": pl.Float64})
    table = _by_group(frame, "subgroup", methods, METRIC["accuracy"])
    found = {
        (row, column): text
        for row, cells in table["rows"].items()
        for column, text in zip(table["columns"], cells, strict=True)
    }
    in_rows = n_groups > len(methods)
    assert table["first"] == ("subgroup" if in_rows else "method")
    assert len(table["rows"]) == (n_groups if in_rows else len(methods))
    pair = ("site 1 (n = 40)", "logistic regression")
    assert float(found[pair if in_rows else pair[::-1]]) == 14
