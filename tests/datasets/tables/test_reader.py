"""Declared tables: effect of the YAML's keys on values and rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.cli.main import main
from mrpipe.errors import DataError
from mrpipe.transforms.fit import fit
from tests.datasets.tables.tables_toy import IDS, N, built, config, csv, faults_of, people, values, write


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
    # All columns missing: the sample has no modality and is dropped, like samples without a row.
    assert "p02" not in found
    assert "p03" not in found
    # 999 is a missing code in y and a value in x.
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
        "x": "numeric",
        "colour": "categorical",
        "smoking": "categorical",
        "code": "categorical",
    }
    assert dictionary["colour"]["levels"] == ["blue", "red"]
    assert dictionary["smoking"]["levels"] == ["never", "former", "current", "unasked"]
    assert dictionary["code"]["levels"] == ["2", "9", "10"]
    assert values(store, "a")["p01"] == [1, 0, 1, 1]
    transforms = fit(store)
    assert transforms.shapes["a"] == (1 + 2 + 4 + 3,)


def test_columns_by_name_pattern_and_position_minus_exclusions(tmp_path: Path) -> None:
    rows = [[i, 1 + k, 2 + k, 3 + k, 4 + k, k % 2] for k, i in enumerate(IDS)]
    files = {"people.csv": people(), "a.csv": csv("id,HR_first,HR_last,BP_first,BP_last,out", rows)}

    def columns(n: int, **a: Any) -> list[str]:
        store = built(tmp_path / str(n), files, config(modalities={"a": {"file": "a.csv", **a}}))
        return store.dictionary["name"].to_list()

    assert columns(0, exclude=["out"]) == ["HR_first", "HR_last", "BP_first", "BP_last"]
    assert columns(1, columns=["BP_*", "HR_last"]) == ["HR_last", "BP_first", "BP_last"]
    assert columns(2, exclude=["*_first", -1]) == ["HR_last", "BP_last"]
    assert columns(3, columns=[2, -2]) == ["HR_first", "BP_last"]


def test_patterns_never_match_ids_labels_or_splits(tmp_path: Path) -> None:
    rows = [[i, f"s{k // 2}", k % 2, k, "train" if k < 40 else "test"] for k, i in enumerate(IDS)]
    rows[44][4] = rows[45][4] = "dev"
    spec = config(
        file="one.csv",
        subject="who",
        modalities={"a": {}},
        label={"column": "out", "threshold": 1},
        split={"column": "fold"},
    )
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
    assert store.attrition["reason"].to_list() == ["rows of people.csv", "site is south", "no modality observed"]
    assert store.attrition["n_after"].to_list() == [60, 40, 32]
    assert values(store, "a")["p01"] == [1]


def test_labels_of_all_kinds(tmp_path: Path) -> None:
    rows = [[i, ["mild", "severe", ""][k % 3], 0.5 * k, 100 - k] for k, i in enumerate(IDS)]
    spec = config(
        label=None,
        labels={
            "grade": {"file": "people.csv", "column": "grade", "classes": {"mild": "g1", "severe": "g2"}},
            "high": {"file": "people.csv", "column": "score", "threshold": 10, "classes": ["low", "high"]},
            "days": {"file": "days.csv", "column": "days", "kind": "regression"},
        },
    )
    files = {
        "people.csv": csv("id,grade,score,left", rows),
        "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)]),
        "days.csv": csv("id,days", [[i, 100 - k] for k, i in reversed(list(enumerate(IDS)))][:50]),
    }
    store = built(tmp_path, files, spec)
    labels = {t.name: dict(store.labels(t.name).collect().iter_rows()) for t in store.tasks}
    assert [t.kind for t in store.tasks] == ["classification", "classification", "regression"]
    assert store.tasks[0].classes == ("g1", "g2")
    assert len(labels["grade"]) == 40
    assert labels["grade"]["p01"] == 1
    assert (labels["high"]["p19"], labels["high"]["p20"]) == (0, 1)
    assert len(labels["days"]) == 50
    assert labels["days"]["p59"] == 41


def test_regression_alone_is_split_by_subject_without_strata(tmp_path: Path) -> None:
    spec = config(label={"file": "people.csv", "column": "out", "kind": "regression"})
    store = built(tmp_path, {"people.csv": people(), "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)])}, spec)
    counts = store.split("uniform").collect()["split"].value_counts()
    assert dict(counts.iter_rows())["train"] == 42


def test_rows_joined_by_order(tmp_path: Path) -> None:
    """No ids, repeated headers, the class in the last column: the format of UCI's multi-view datasets."""
    first = csv("0,1,0", [[k, 10 * k if k != 7 else "", k % 2] for k in range(N)])
    second = csv("0,0", [["" if k == 7 else 5 * k, k % 2] for k in range(N)])
    spec = {
        "join": "order",
        "exclude": [-1],
        "modalities": {"a": {"file": "a.csv"}, "b": {"file": "b.csv"}},
        "label": {"file": "a.csv", "column": -1, "classes": [0, 1]},
    }
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


def test_csv_tsv_gz_and_parquet_give_the_same_values(tmp_path: Path) -> None:
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


def test_declaration_may_be_outside_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_samples_keep_the_columns_of_subgroups(tmp_path: Path) -> None:
    """Texts and numbers of the samples' file and of a file with one row per subject; also the values of features."""
    files = {
        "people.csv": csv("id,who,out,site", [[i, i[:2], k % 2, "north" if k % 3 else ""] for k, i in enumerate(IDS)]),
        "who.csv": csv("who,age,sex", [[f"p{d}", 40 + d, "fm"[d % 2]] for d in range(6)]),
        "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)]),
    }
    changes = {"file": "people.csv", "subject": "who", "subgroups": {"people.csv": ["site"], "who.csv": ["age", "sex"]}}
    samples = built(tmp_path, files, config(**changes)).samples().sort("sample_id").collect()
    assert samples["age"].to_list() == [40.0 + int(i[1]) for i in IDS]
    assert samples["sex"].to_list() == ["fm"[int(i[1]) % 2] for i in IDS]
    assert samples["site"].to_list() == ["north" if k % 3 else None for k in range(len(IDS))]
    with pytest.raises(DataError, match="a column with another name than those of the samples, once"):
        built(tmp_path / "twice", files, config(**{**changes, "subgroups": {"people.csv": ["site", "site"]}}))
