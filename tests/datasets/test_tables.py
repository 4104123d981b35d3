"""Declared tables: what a YAML's keys do to values and rows; and that a declared dataset goes through every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import mrpipe
from mrpipe.cli import main
from mrpipe.datasets import get_dataset
from mrpipe.datasets.tables.check import single_auroc
from mrpipe.datasets.tables.config import canonical
from mrpipe.datasets.tables.files import canonical_text
from mrpipe.errors import DataError
from mrpipe.layout import truth_folder
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.stages.simulate import simulate
from mrpipe.store import Store
from mrpipe.transforms import fit

TABLES = get_dataset("tables")
N = 60
IDS = [f"p{i:02d}" for i in range(N)]


def write(folder: Path, files: dict[str, str], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "tables.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def csv(header: str, rows: list[list[object]]) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def people(label: str = "out") -> str:
    return csv(f"id,{label},site", [[i, k % 2, "north" if k % 3 else "south"] for k, i in enumerate(IDS)])


def config(**changes: Any) -> dict[str, Any]:
    base = {"id": "id", "modalities": {"a": {"file": "a.csv"}},
            "label": {"file": "people.csv", "column": "out", "classes": [0, 1]}}  # fmt: skip
    return {k: v for k, v in {**base, **changes}.items() if v is not None}


def built(folder: Path, files: dict[str, str], spec: dict[str, Any]) -> Store:
    write(folder / "raw", files, spec)
    build(TABLES, folder / "raw", folder / "store", {})
    store = mrpipe.open_store(folder / "store")
    store.verify(deep=True)
    return store


def faults_of(folder: Path, files: dict[str, str], spec: dict[str, Any]) -> str:
    write(folder / "raw", files, spec)
    with pytest.raises(DataError) as caught:
        check(TABLES, folder / "raw", {})
    return str(caught.value)


def notes_of(folder: Path, files: dict[str, str], spec: dict[str, Any]) -> str:
    write(folder / "raw", files, spec)
    return "\n".join(check(TABLES, folder / "raw", {})["notes"])


def values(store: Store, modality: str) -> dict[str, list[float]]:
    arrays = store.arrays(modality)
    return dict(zip(arrays.sample_id.tolist(), arrays.x.tolist(), strict=True))


# What the keys do.


def test_missing_codes_gaps_and_rows_without_a_value(tmp_path: Path) -> None:
    rows = [[i, k, 2 * k] for k, i in enumerate(IDS)]
    rows[1][1] = -99
    rows[2][1:] = ["-99.0", "NA"]
    rows[3][1:] = ["", 999]
    rows[4][1:] = ["999", 8]
    spec = config(missing=[-99], modalities={"a": {"file": "a.csv", "missing": {"y": [999]}}})
    store = built(tmp_path, {"people.csv": people(), "a.csv": csv("id,x,y", rows[:50])}, spec)
    found = values(store, "a")
    assert np.isnan(found["p01"][0])
    assert found["p01"][1] == 2
    # All columns missing: the sample lacks the modality, and then has none and is gone, like those without a row.
    assert "p02" not in found
    assert "p03" not in found
    # 999 is a code in y, a value in x.
    assert found["p04"] == [999, 8]
    assert store.manifest.n_samples == 48
    assert store.attrition["reason"].to_list()[-1] == "no modality observed"
    assert store.attrition["n_before"].to_list()[-1] == N


def test_kinds_are_declared_or_inferred_and_codes_get_names(tmp_path: Path) -> None:
    rows = [[i, k, ["red", "blue"][k % 2], 1 + k % 3, [10, 9, 2][k % 3]] for k, i in enumerate(IDS)]
    spec = config(
        modalities={
            "a": {
                "file": "a.csv",
                "kinds": {"sm*": {1: "never", 2: "former", 3: "current", 4: "unasked"}, "code": "categorical"},
            }
        }
    )
    store = built(tmp_path, {"people.csv": people(), "a.csv": csv("id,x,colour,smoking,code", rows)}, spec)
    dictionary = {r["name"]: r for r in store.dictionary.to_dicts()}
    assert {n: r["kind"] for n, r in dictionary.items()} == {
        "x": "numeric", "colour": "categorical", "smoking": "categorical", "code": "categorical"}  # fmt: skip
    assert dictionary["colour"]["levels"] == ["blue", "red"]
    assert dictionary["smoking"]["levels"] == ["never", "former", "current", "unasked"]
    assert dictionary["code"]["levels"] == ["2", "9", "10"]
    assert values(store, "a")["p01"] == [1, 0, 1, 1]
    transforms = fit(store)
    assert transforms.shapes["a"] == (1 + 2 + 4 + 3,)


def test_columns_by_name_pattern_and_position_less_what_is_excluded(tmp_path: Path) -> None:
    rows = [[i, 1 + k, 2 + k, 3 + k, 4 + k, k % 2] for k, i in enumerate(IDS)]
    files = {"people.csv": people(), "a.csv": csv("id,HR_first,HR_last,BP_first,BP_last,out", rows)}

    def columns(n: int, **a: Any) -> list[str]:
        store = built(tmp_path / str(n), files, config(modalities={"a": {"file": "a.csv", **a}}))
        return store.dictionary["name"].to_list()

    assert columns(0, exclude=["out"]) == ["HR_first", "HR_last", "BP_first", "BP_last"]
    assert columns(1, columns=["BP_*", "HR_last"]) == ["HR_last", "BP_first", "BP_last"]
    assert columns(2, exclude=["*_first", -1]) == ["HR_last", "BP_last"]
    assert columns(3, columns=[2, -2]) == ["HR_first", "BP_last"]


def test_a_pattern_never_takes_ids_labels_or_splits(tmp_path: Path) -> None:
    rows = [[i, f"s{k // 2}", k % 2, k, "train" if k < 40 else "test"] for k, i in enumerate(IDS)]
    rows[44][4] = rows[45][4] = "dev"
    spec = config(file="one.csv", subject="who", modalities={"a": {}}, label={"column": "out", "threshold": 1},
                  split={"column": "fold"})  # fmt: skip
    store = built(tmp_path, {"one.csv": csv("id,who,out,x,fold", rows)}, spec)
    assert store.dictionary["name"].to_list() == ["x"]
    assert store.tasks[0].classes == ("below", "above")
    assert store.samples().collect()["subject_id"].n_unique() == 30
    assert store.manifest.default_scheme == "standard"
    standard = dict(store.split("standard").collect().iter_rows())
    assert [standard[i] for i in ("p00", "p44", "p46")] == ["train", "val", "test"]
    rows[44][4] = "train"
    torn = faults_of(tmp_path / "torn", {"one.csv": csv("id,who,out,x,fold", rows)}, spec)
    assert "expected every subject in one part; found 1 subjects" in torn
    message = faults_of(
        tmp_path / "named",
        {"one.csv": csv("id,who,out,x,fold", rows)},
        {**spec, "modalities": {"a": {"columns": ["x", "out"]}}},
    )
    assert "'out', which is an id, a label or a split" in message


def test_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [[i, k, "ok" if k % 5 else "failed"] for k, i in enumerate(IDS)]
    rows.append(["p01", 1000, "failed"])
    spec = config(
        drop={"site": ["south"]}, modalities={"a": {"file": "a.csv", "columns": ["x"], "drop": {"status": ["failed"]}}}
    )
    store = built(tmp_path, {"people.csv": people(), "a.csv": csv("id,x,status", rows)}, spec)
    assert store.attrition["reason"].to_list() == [
        "rows of people.csv",
        "dropped: site is south",
        "no modality observed",
    ]
    assert store.attrition["n_after"].to_list() == [60, 40, 32]
    assert values(store, "a")["p01"] == [1]


def test_labels_of_every_sort(tmp_path: Path) -> None:
    rows = [[i, ["mild", "severe", ""][k % 3], 0.5 * k, 100 - k] for k, i in enumerate(IDS)]
    spec = config(
        label=None,
        labels={
            "grade": {"file": "people.csv", "column": "grade", "classes": {"mild": "g1", "severe": "g2"}},
            "high": {"file": "people.csv", "column": "score", "threshold": 10, "classes": ["low", "high"]},
            "days": {"file": "days.csv", "column": "days", "kind": "regression"},
        },
    )
    files = {"people.csv": csv("id,grade,score,left", rows), "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)]),
             "days.csv": csv("id,days", [[i, 100 - k] for k, i in reversed(list(enumerate(IDS)))][:50])}  # fmt: skip
    store = built(tmp_path, files, spec)
    labels = {t.name: dict(store.labels(t.name).collect().iter_rows()) for t in store.tasks}
    assert [t.kind for t in store.tasks] == ["classification", "classification", "regression"]
    assert store.tasks[0].classes == ("g1", "g2")
    assert len(labels["grade"]) == 40
    assert labels["grade"]["p01"] == 1
    assert (labels["high"]["p19"], labels["high"]["p20"]) == (0, 1)
    assert len(labels["days"]) == 50
    assert labels["days"]["p59"] == 41


def test_a_regression_alone_is_split_by_subject_without_strata(tmp_path: Path) -> None:
    spec = config(label={"file": "people.csv", "column": "out", "kind": "regression"})
    store = built(tmp_path, {"people.csv": people(), "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)])}, spec)
    counts = store.split("uniform").collect()["split"].value_counts()
    assert dict(counts.iter_rows())["train"] == 42


def test_rows_joined_by_order(tmp_path: Path) -> None:
    """No id anywhere, headers that repeat, the class last: the shape of UCI's multi-view sets."""
    first = csv("0,1,0", [[k, 10 * k if k != 7 else "", k % 2] for k in range(N)])
    second = csv("0,0", [["" if k == 7 else 5 * k, k % 2] for k in range(N)])
    spec = {"join": "order", "exclude": [-1], "modalities": {"a": {"file": "a.csv"}, "b": {"file": "b.csv"}},
            "label": {"file": "a.csv", "column": -1, "classes": [0, 1]}}  # fmt: skip
    store = built(tmp_path, {"a.csv": first, "b.csv": second}, spec)
    assert values(store, "b")["60"] == [295]
    assert "08" not in values(store, "b")
    assert np.isnan(values(store, "a")["08"][1])
    assert dict(store.labels().collect().iter_rows())["02"] == 1
    message = faults_of(tmp_path / "short", {"a.csv": first, "b.csv": second.rsplit("\n", 2)[0] + "\n"}, spec)
    assert "b.csv: expected 60 rows, as many as a.csv; found 59 rows" in message
    named = {**spec, "id": 1}
    assert sorted(values(built(tmp_path / "named", {"a.csv": first, "b.csv": second}, named), "b"))[:3] == [
        "0",
        "1",
        "10",
    ]


def test_csv_tsv_gz_and_parquet_hold_the_same(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"id": IDS, "x": [k / 7 for k in range(N)], "n": range(N), "flag": [k % 2 == 0 for k in range(N)]}
    )
    raw = tmp_path / "raw"
    write(raw, {"people.csv": people()}, config(modalities={}))
    frame.write_csv(raw / "a.csv")
    frame.write_csv(raw / "b.tsv", separator="\t")
    frame.write_parquet(raw / "c.parquet")
    import gzip

    (raw / "d.csv.gz").write_bytes(gzip.compress((raw / "a.csv").read_bytes()))
    spec = config(
        modalities={"a": {"file": "a.csv"}, "b": {"file": "b.tsv"}, "c": {"file": "c.parquet"}, "d": {"file": "d.csv"}}
    )
    store = built(tmp_path, {}, spec)
    expected = values(store, "a")
    assert expected["p07"] == [1.0, 7.0, 0.0]
    for other in "bcd":
        assert values(store, other) == expected


def test_a_declaration_may_lie_outside_of_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(
        tmp_path / "raw", {"people.csv": people(), "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)])}, config()
    )
    path = tmp_path / "mine.yaml"
    (raw / "tables.yaml").rename(path)
    assert main(["build", "tables", "--raw", str(raw), "--out", str(tmp_path / "s"), "--set", f"config={path}"]) == 0
    listed = [e["path"] for e in mrpipe.open_store(tmp_path / "s").manifest.inputs]
    assert sorted(listed) == ["a.csv", "mine.yaml", "people.csv"]
    assert main(["check", "tables", "--raw", str(raw)]) == 3
    assert "--set config=PATH" in capsys.readouterr().err


# What is wrong is said at once.


def test_every_fault_of_the_yaml_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    spec = {
        "id": "id", "modalites": {}, "titel": "x", "join": "rows",
        "modalities": {"a b": {"file": "a.csv"}, "b": {"file": "/etc/a.csv", "colums": ["x"]},
                       "c": {"file": "c.csv", "kinds": {"x": "number"}}},
        "label": {"column": "out", "classes": [0, 0], "tresholds": 1},
        "split": {"column": 0},
    }  # fmt: skip
    message = faults_of(tmp_path, {}, spec)
    for part in (
        "unknown key 'modalites'. Did you mean 'modalities'?", "unknown key 'titel'. Did you mean 'title'?",
        "expected id or order; found rows", "expected a name of letters, digits and _; found a b",
        "unknown key 'colums'. Did you mean 'columns'?",
        "expected a path below the folder of the export; found /etc/a.csv",
        "modalities.c.kinds.x", "expected each class once", "Did you mean 'threshold'?", "column 'split.column'",
        "column 'label.file'",
    ):  # fmt: skip
        assert part in message, part


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"label": None}, "either `label` (one) or `labels`"),
        ({"label": {"file": "people.csv", "column": "out"}}, "the values that are classes"),
        (
            {"label": {"file": "people.csv", "column": "out", "kind": "regression", "threshold": 1}},
            "neither classes nor threshold",
        ),
        ({"modalities": None}, "at least one"),
        ({"modalities": {f"m{i}": {"file": "a.csv"} for i in range(17)}}, "at most 16"),
        ({"label": {"file": "people.csv", "column": "out", "classes": {True: "a", False: "b"}}}, "quote them"),
        ({"id": None}, "Or join: order"),
    ],
)
def test_a_declaration_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in faults_of(tmp_path, {}, config(**changes))


def test_every_fault_of_the_tables_at_once(tmp_path: Path) -> None:
    rows = [[i, k, k, k % 3] for k, i in enumerate(IDS)]
    rows[4][1] = "4,5x".replace(",", ".")
    rows[5][1] = "inf"
    # More words than categories: neither a number nor a code.
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
        "a.csv, column 'x', row 5: expected a finite number, or few categories; found '4.5x'; 2 such values in 2 rows",
        "a.csv, column 'text', row 1: expected a finite number, or few categories; found 'word 0'",
        "a.csv, column 'code', row 3: expected one of the codes 0, 1; found '2' (20 rows)",
        "a.csv, column 'id', row 61: expected one row for each id; found 2 rows of 1 repeated ids",
        "raw/b.csv: expected a CSV or Parquet table; found no such file",
        "people.csv, column 'sitte': expected this column", "Did you mean 'site'?",
        "people.csv, column 'out', row 2: expected one of the classes 0, 2; found '1' (30 rows)",
    ):  # fmt: skip
        assert part in message, part


def test_ids_that_do_not_match_are_said(tmp_path: Path) -> None:
    rows = [[f"q{k}", k] for k in range(N)]
    assert "Are its ids those of people.csv?" in faults_of(
        tmp_path, {"people.csv": people(), "a.csv": csv("id,x", rows)}, config()
    )
    rows = [[i, k] for k, i in enumerate(IDS[:50])] + [["stranger", 1]]
    notes = notes_of(tmp_path / "some", {"people.csv": people(), "a.csv": csv("id,x", rows)}, config())
    assert "a: 50 of 60 samples, 1 numeric and 0 categorical features" in notes
    assert "a: 1 rows of a.csv belong to no sample of people.csv" in notes


# Suspicious columns.


def test_suspicious_columns_are_listed_and_honest_ones_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 400
    ids, y = [f"p{i:03d}" for i in range(n)], rng.integers(0, 2, n)
    # Days until death: −1 for who lives. No order of its values separates the classes, yet it gives them away.
    survival = np.where(y == 1, rng.integers(0, 20, n), np.where(rng.random(n) < 0.7, -1, rng.integers(20, 90, n)))
    columns = {
        "same": np.full(n, 3), "never": np.full(n, ""), "number": 5000 + rng.permutation(n), "copy": 2 * y + 1,
        "near": y + 0.4 * rng.normal(size=n), "survival": survival, "code": rng.integers(1, 5, n),
        "sex": rng.integers(0, 2, n),
        "gap": np.where(y == 1, "", "1.5"), "good": y + 1.5 * rng.normal(size=n),
        "word": np.where(y == 1, "dead", "alive"),
    }  # fmt: skip
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
    assert named("never known") == {"never"}
    assert named("looks like an identifier") == {"number"}
    assert named("nearly perfect predictors of label label") == {"copy", "word"}
    assert named("strong alone for label label") == {"near", "survival"}
    assert named("missing or not says the label label") == {"gap"}
    assert named("few whole numbers") == {"code"}
    assert named("taken as categorical") == {"word"}
    assert not any("good" in line for line in notes.values())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_single_auroc_is_at_least_the_best_pairwise_one(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 60).astype(float)
    x = y + 2 * rng.normal(size=60)
    x = np.round(x) if ties else x
    x[rng.random(60) < 0.1] = np.nan
    best = 0.5
    for c in range(3):
        a, b = x[(y == c) & ~np.isnan(x)], x[(y != c) & ~np.isnan(x)]
        if min(len(a), len(b)) >= 10:
            wins = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
            best = max(best, wins, 1 - wins)
    # Too few rows for bins.
    assert single_auroc(x[:, None], y) == pytest.approx(best, abs=1e-12)


def test_a_label_that_has_nothing_to_do_with_the_columns_makes_no_note(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [[i, *rng.normal(size=30)] for i in IDS]
    files = {"people.csv": people(), "a.csv": csv("id," + ",".join(f"x{j}" for j in range(30)), rows)}
    assert notes_of(tmp_path, files, config()).count("\n") == 0


@given(
    st.one_of(
        st.integers(-(10**14), 10**14), st.floats(allow_nan=False, allow_infinity=False), st.text("ab 1.e-", max_size=6)
    )
)
def test_the_yaml_and_the_tables_write_values_alike(value: int | float | str) -> None:
    text = str(value).strip()
    found = pl.DataFrame({"c": [text]}).select(canonical_text("c"))["c"][0]
    assert found == canonical(value)


# Through every step.


def test_the_steps_one_by_one_are_the_build(tmp_path: Path) -> None:
    simulate(TABLES, tmp_path / "raw", TABLES.tiny)
    build(TABLES, tmp_path / "raw", tmp_path / "whole", {})
    raw, work, store = str(tmp_path / "raw"), str(tmp_path / "work"), str(tmp_path / "store")
    names = ["vitals", "labs", "survey"]
    steps = [["check", "tables", "--raw", raw, "--work", work], ["cohort", "tables", "--raw", raw, "--work", work]]
    steps += [["ingest", "tables", m, "--raw", raw, "--work", work, "--store", store] for m in names]
    steps += [["samples", "tables", "--work", work, "--store", store, "--modalities", *names]]
    steps += [["split", "tables", "--store", store, "--scheme", s] for s in ("standard", "uniform")]
    steps += [["seal", "tables", "--work", work, "--store", store]]
    for step in steps:
        assert main(step) == 0
    assert mrpipe.open_store(store).store_id == mrpipe.open_store(tmp_path / "whole").store_id


def test_the_simulators_declaration_is_what_is_known_before_there_is_an_export(tmp_path: Path) -> None:
    simulate(TABLES, tmp_path / "raw", TABLES.tiny)
    found = TABLES.declared(tmp_path / "raw", TABLES.options())
    assert found == TABLES
    truth = pl.read_parquet(truth_folder(tmp_path / "raw") / "truth.parquet")
    guessed = (truth["bayes_readmitted"] > 0.5).cast(pl.Int64)
    assert (guessed == truth["outcome"]).mean() > 0.7


def test_the_plan_of_the_workflow_knows_the_declared_modalities(tmp_path: Path) -> None:
    from workflow.plan import ConfigError, make_plan

    raw = write(
        tmp_path / "raw", {"people.csv": people(), "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)])}, config()
    )
    entry = {"dataset": "tables", "raw": str(raw), "options": {}, "simulation": {}}
    run = {
        "dataset": "mine",
        "methods": ["majority"],
        "seeds": [0],
        "preset": "paper",
        "overrides": {},
        "task": "label",
    }
    plan = make_plan({"datasets": {"mine": entry}, "experiments": {"x": run}}).stores["mine"]
    assert plan.modalities == ("a",)
    assert list(plan.schemes) == ["uniform"]
    before = plan.declaration
    write(raw, {}, config(missing=[-1]))
    assert make_plan({"datasets": {"mine": entry}, "experiments": {}}).stores["mine"].declaration != before
    with pytest.raises(ConfigError, match="tables has no 'labs'; it has a"):
        make_plan({"datasets": {"mine": {**entry, "modalities": ["labs"]}}, "experiments": {}})
    write(raw, {}, {"titel": "x"})
    with pytest.raises(ConfigError, match="Did you mean 'title'"):
        make_plan({"datasets": {"mine": entry}, "experiments": {}})


# The worked examples of docs/tables.md.


@pytest.mark.real_data
def test_uci_mfeat_as_the_example_declares_it(real_data_dir: Path, project: Path, tmp_path: Path) -> None:
    example = project / "workflow/config/examples/tables/mfeat.yaml"
    build(TABLES, real_data_dir / "generic/uci_mfeat", tmp_path / "s", {"config": str(example)})
    store = mrpipe.open_store(tmp_path / "s")
    assert {m.name: m.size for m in store.modalities} == {
        "fou": 76,
        "fac": 216,
        "kar": 64,
        "pix": 240,
        "zer": 47,
        "mor": 6,
    }
    assert store.patterns()["n"].to_list() == [2000]
    assert store.labels().collect()["value"].value_counts()["count"].to_list() == [200] * 10
    assert store.split().collect()["split"].value_counts().sort("split")["count"].to_list() == [300, 1400, 300]


@pytest.mark.real_data
def test_physionet_2012_as_the_example_declares_it(real_data_dir: Path, project: Path, tmp_path: Path) -> None:
    example = project / "workflow/config/examples/tables/physionet2012.yaml"
    raw = real_data_dir / "generic/physionet2012"
    build(TABLES, raw, tmp_path / "s", {"config": str(example)})
    store = mrpipe.open_store(tmp_path / "s")
    assert store.labels().collect()["value"].sum() == 554
    names = store.dictionary["source_column"].to_list()
    leaking = {"SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death", "recordid"}
    assert not leaking & set(names)
    # Every other column is in one modality.
    frame = pl.read_csv(raw / "PhysionetChallenge2012-set-a.csv.gz", infer_schema=False)
    assert sorted(names) == sorted(set(frame.columns) - leaking)
    for m in store.modalities:
        columns = store.dictionary.filter(modality=m.name)["source_column"].to_list()
        assert len(store.arrays(m.name)) == frame.select(pl.any_horizontal(pl.col(columns).is_not_null())).sum().item()
    assert len(store.patterns()) > 50


@pytest.mark.real_data
def test_a_leaking_column_of_physionet_2012_is_noticed(real_data_dir: Path, project: Path, tmp_path: Path) -> None:
    text = (project / "workflow/config/examples/tables/physionet2012.yaml").read_text()
    spec = yaml.safe_load(text)
    spec["exclude"] = []
    spec["modalities"] = {"leak": {"columns": ["SAPS-I", "SOFA", "Length_of_stay", "Survival", "Age"]}}
    (tmp_path / "leak.yaml").write_text(yaml.safe_dump(spec))
    notes = check(TABLES, real_data_dir / "generic/physionet2012", {"config": str(tmp_path / "leak.yaml")})["notes"]
    assert any("strong alone for label death" in n and "Survival (0.99" in n for n in notes)
    assert not any("Age" in n for n in notes)
