"""`mrpipe init tables`: proposals that check and build as they are, their guesses, and what they never quote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from jsonschema import Draft202012Validator

import mrpipe
from mrpipe.cli.main import main
from mrpipe.datasets.tables.parser import SCHEMA
from mrpipe.datasets.tables.propose import propose
from mrpipe.errors import DataError, UsageError
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.store.reader import Store
from tests.datasets.tables.hospital import write_hospital
from tests.datasets.tables.tables_toy import TABLES, csv, write_workbook

N = 90


def proposal(raw: Path, files: dict[str, str] | None = None) -> dict[str, Any]:
    """The declaration that is proposed for files, or for those of a folder."""
    raw.mkdir(parents=True, exist_ok=True)
    for name, text in (files or {}).items():
        (raw / name).write_text(text)
    declared = yaml.safe_load(propose(raw, sorted(p.name for p in raw.iterdir())))
    assert isinstance(declared, dict)
    return declared


def built(raw: Path, folder: Path) -> Store:
    """The store of a folder by its own proposal, unedited."""
    folder.mkdir(parents=True, exist_ok=True)
    assert main(["init", "tables", str(raw), "--out", str(folder / "proposal.yaml")]) == 0
    build(TABLES, raw, folder / "store", {"config": str(folder / "proposal.yaml")})
    return mrpipe.open_store(folder / "store")


def hospital(raw: Path) -> Path:
    """Visits and patients as CSV, laboratory values as a workbook, and the outcome in a file of its own."""
    raw.mkdir(parents=True)
    who = [f"Müller-{k // 2:03d}" for k in range(N)]
    visits = pl.DataFrame(
        {
            "visit_id": [f"V{k:04d}" for k in range(N)],
            "patient": who,
            "admitted": [f"2020-{1 + k % 12:02d}-{1 + k % 28:02d}" for k in range(N)],
            "site": [["Bonn", "Lyon", "Porto"][k % 3] for k in range(N)],
            "pulse": [str(60 + k * 7 % 41) if k % 9 else "-99" for k in range(N)],
            "smoking": [k * 5 % 4 for k in range(N)],
            "remark": [f"patient number {k} was seen" for k in range(N)],
        }
    )
    visits.write_csv(raw / "visits.csv", separator=";")
    patients = pl.DataFrame({"patient": sorted(set(who)), "height": [150.5 + k for k in range(N // 2)]})
    patients.write_csv(raw / "patients.csv")
    labs = visits[::2].select(
        "visit_id",
        crp=pl.int_range(pl.len()) * 7 % 31 / 10,
        wbc=pl.when(pl.int_range(pl.len()) % 5 == 0)
        .then(pl.lit("unknown"))
        .otherwise(pl.int_range(pl.len()) * 11 % 97),
    )
    write_workbook(raw / "labs.xlsx", labs)
    visits.select("visit_id", died=pl.int_range(pl.len()) * 3 % 7 // 5).write_csv(raw / "outcome.csv")
    return raw


def test_a_hospital_of_four_tables_builds_as_proposed(tmp_path: Path) -> None:
    store = built(hospital(tmp_path / "raw"), tmp_path)
    samples = store.samples().collect()
    assert store.manifest.n_samples == N
    assert samples["subject_id"].n_unique() == N // 2
    assert [m["name"] for m in store.manifest.modalities] == ["visits", "labs", "patients"]
    assert [store.arrays(name).x.shape for name in ("visits", "labs", "patients")] == [(N, 3), (N // 2, 2), (N, 1)]
    assert store.labels("died").collect()["value"].value_counts(sort=True)["count"].to_list() == [64, 26]


def test_the_guesses_on_a_hospital_and_their_reasons(tmp_path: Path) -> None:
    raw = hospital(tmp_path / "raw")
    text = propose(raw, sorted(p.name for p in raw.iterdir()))
    declared = yaml.safe_load(text)
    assert (declared["file"], declared["id"], declared["subject"]) == ("visits.csv", "visit_id", "patient")
    assert declared["label"] == {"name": "died", "file": "outcome.csv", "column": "died", "classes": [0, 1]}
    assert declared["modalities"]["visits"]["kinds"] == {"site": "categorical", "smoking": [0, 1, 2, 3]}
    assert "remark" in declared["exclude"]
    # A word between numbers must be declared, a number may be a value.
    assert declared["missing"] == {"wbc": ["unknown"]}
    assert "\n#   pulse: [-99]\n" in text
    assert "label:  # named like an outcome, the only column of its file, the last column, 2 classes\n" in text
    assert all(
        "#" in line for line in text.splitlines() if line.split(":")[0] in ("file", "id", "subject", "modalities")
    )


def test_long_tables_dates_limits_and_other_names_of_ids(tmp_path: Path) -> None:
    write_hospital(tmp_path / "raw")
    store = built(tmp_path / "raw", tmp_path)
    declared = yaml.safe_load((tmp_path / "proposal.yaml").read_text())
    assert declared["id"] == {"*": "visit", "labs.csv": "encounter"}
    assert declared["prediction_time"] == {"column": "ward_round", "format": "%d.%m.%Y %H:%M"}
    assert declared["label"] == {"name": "died", "file": "outcomes.csv", "column": "died", "classes": ["no", "yes"]}
    modalities = declared["modalities"]
    assert modalities["labs"]["long"] == {"item": "analyte", "value": "result", "unit": "unit", "time": "drawn"}
    assert modalities["patients"]["kinds"]["born"] == {"kind": "age", "format": "%d.%m.%Y"}
    assert modalities["visits"]["kinds"]["admitted"] == {"kind": "date", "format": "%d.%m.%Y %H:%M"}
    assert modalities["visits"]["kinds"]["crp"] == "censored"
    assert {m["name"]: m["kind"] for m in store.manifest.modalities} == {
        "visits": "vector",
        "patients": "vector",
        "labs": "sequence",
    }


def test_a_long_table_without_times_is_aggregated(tmp_path: Path) -> None:
    rows = [[k, k / 7, k % 2] for k in range(N)]
    long = [[k, test, (k * 7 + j) % 31] for k in range(N) for j, test in enumerate(("Na", "K"))]
    declared = proposal(tmp_path / "raw", {"a.csv": csv("id,x,y", rows), "labs.csv": csv("id,test,result", long)})
    assert declared["modalities"]["labs"]["long"] == {
        "item": "test",
        "value": "result",
        "aggregate": ["mean", "min", "max", "count"],
    }
    assert built(tmp_path / "raw", tmp_path).arrays("labs").x.shape == (N, 8)


def test_no_value_of_a_person_is_quoted(tmp_path: Path) -> None:
    raw = hospital(tmp_path / "raw")
    text = propose(raw, sorted(p.name for p in raw.iterdir()))
    for file in ("visits.csv", "patients.csv"):
        frame = pl.read_csv(raw / file, separator=";" if file == "visits.csv" else ",", infer_schema=False)
        for column in {"visit_id", "patient", "remark", "admitted"} & set(frame.columns):
            assert not [v for v in frame[column] if v in text]
    # Nor levels that few rows have, or the levels of a column that is named like a person.
    rows = [[k, f"Dr {'ABC'[k % 3]}", ["u", "v", "w"][(k > 0) + (k > 44)], k % 2] for k in range(N)]
    kinds = proposal(tmp_path / "rare", {"a.csv": csv("id,person,ward,y", rows)})["modalities"]["a"]["kinds"]
    assert kinds == {"person": "categorical", "ward": "categorical"}


def test_files_without_ids_are_joined_by_order(tmp_path: Path) -> None:
    files = {
        f"view-{name}.csv": csv("0,1,0", [[k / 7 + j, k % 9, k % 3] for k in range(N)]) for j, name in enumerate("ab")
    }
    declared = proposal(tmp_path / "raw", files)
    assert declared["join"] == "order"
    assert declared["exclude"] == [-1]
    assert list(declared["modalities"]) == ["a", "b"]
    assert declared["label"] == {"name": "label", "file": "view-a.csv", "column": -1, "classes": [0, 1, 2]}
    assert built(tmp_path / "raw", tmp_path).manifest.n_samples == N


def test_files_are_not_joined_by_order_if_their_row_numbers_differ(tmp_path: Path) -> None:
    rows = [[k, k / 7, k % 2] for k in range(N)]
    files = {"a.csv": csv(",x,y", rows), "b.csv": csv(",z", [[k, k / 3] for k in range(N)])}
    assert proposal(tmp_path / "same", files)["join"] == "order"
    assert built(tmp_path / "same", tmp_path).dictionary["name"].to_list() == ["x", "z"]
    files["a.csv"] = csv(",x,y", rows[::2] + rows[1::2])
    with pytest.raises(DataError, match="a column of ids that is unique in one file"):
        proposal(tmp_path / "sorted", files)


def test_files_that_nothing_joins_are_an_error(tmp_path: Path) -> None:
    files = {"a.csv": csv("x,y", [[k / 7, k % 2] for k in range(N)]), "b.csv": csv("z", [[k / 3] for k in range(50)])}
    with pytest.raises(DataError, match=r"a\.csv, b\.csv: expected a column of ids that is unique in one file"):
        proposal(tmp_path, files)


def test_a_table_that_cannot_be_joined_is_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = [[f"s{k}", k / 7, k % 2] for k in range(N)]
    files = {"a.csv": csv("id,x,y", rows), "long.csv": csv("id,v", [[f"s{k}", j] for k in range(N) for j in range(3)])}
    files["other.csv"] = csv("sensor,v", [[f"t{k}", k] for k in range(N)])
    declared = proposal(tmp_path, files)
    assert list(declared["modalities"]) == ["a"]
    text = propose(tmp_path, sorted(files))
    assert "# long.csv is not used: several rows per id: aggregate them first\n" in text
    assert "# other.csv is not used: no column has the ids of the samples\n" in text


def test_columns_of_one_file_that_are_missing_together_are_modalities(tmp_path: Path) -> None:
    def row(k: int) -> list[object]:
        gas = [k / 7, k / 3] if k % 3 else ["", ""]
        liver = [k * 7 % 41, k % 37] if k % 4 > 1 else ["", ""]
        return [k, 50 + k % 30, *gas, *liver, k % 2 if k % 5 else "", k * 7 % 2]

    declared = proposal(
        tmp_path / "raw", {"icu.csv": csv("id,age,gas_o2,gas_co2,ALT,AST,smokes,death", list(map(row, range(N))))}
    )
    columns = {name: entry["columns"] for name, entry in declared["modalities"].items()}
    assert columns == {"usual": ["age", "smokes"], "gas": ["gas_*"], "alt": ["ALT", "AST"]}
    assert len(built(tmp_path / "raw", tmp_path).manifest.modalities) == 3


@pytest.mark.parametrize(
    ("header", "row", "label"),
    [
        ("id,x,death,z", lambda k: [k, k / 7, k % 2, k / 3], {"column": "death", "classes": [0, 1]}),
        ("id,x,z,kind", lambda k: [k, k / 7, k / 3, k % 3], {"column": "kind", "classes": [0, 1, 2]}),
        ("id,x,score", lambda k: [k, k % 2, k / 7], {"column": "x", "classes": [0, 1]}),
        ("id,x,target", lambda k: [k, k % 2, k / 7], {"column": "target", "kind": "regression"}),
    ],
)
def test_the_label_is_the_column_named_like_an_outcome_or_the_last(
    tmp_path: Path, header: str, row: Any, label: dict[str, Any]
) -> None:
    declared = proposal(tmp_path, {"a.csv": csv(header, [row(k) for k in range(N)])})
    assert declared["label"] == {"name": label["column"], "file": "a.csv", **label}


def test_other_candidates_are_named_and_values_known_afterwards_are_no_features(tmp_path: Path) -> None:
    rows = [[k, k / 7, k % 9, k % 2, k % 3] for k in range(N)]
    (tmp_path / "a.csv").write_text(csv("id,x,length_of_stay,death,stage", rows))
    text = propose(tmp_path, ["a.csv"])
    others = "other candidates: length_of_stay (a.csv), stage (a.csv)"
    assert f"label:  # named like an outcome, 2 classes; {others}\n" in text
    assert list(yaml.safe_load(text)["exclude"]) == ["length_of_stay"]


def test_a_column_of_parts_is_the_split_unless_it_divides_subjects(tmp_path: Path) -> None:
    fold = ["train", "train", "valid", "test"]
    rows = [[f"v{k}", f"p{k // 2}", k / 7, fold[k // 2 % 4], k % 3 % 2] for k in range(N)]
    (tmp_path / "a").mkdir()
    declared = proposal(tmp_path / "a", {"a.csv": csv("visit,person,x,fold,y", rows)})
    assert declared["split"] == {"file": "a.csv", "column": "fold"}
    assert declared["subject"] == "person"
    assert built(tmp_path / "a", tmp_path).manifest.default_scheme == "standard"
    rows = [[*row[:3], fold[k % 4], row[4]] for k, row in enumerate(rows)]
    (tmp_path / "b").mkdir()
    assert "split" not in proposal(tmp_path / "b", {"b.csv": csv("visit,person,x,fold,y", rows)})
    assert "not used: subjects are in several parts" in propose(tmp_path / "b", ["b.csv"])


def test_text_in_another_encoding_and_repeated_and_odd_names(tmp_path: Path) -> None:
    rows = [[k, ["März", "Juni"][k % 2], k / 7, k % 5, k % 3] for k in range(N)]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/my table.csv").write_bytes(csv("id,Größe: a,x,x,yes", rows).encode("cp1252"))
    store = built(tmp_path / "raw", tmp_path)
    assert yaml.safe_load((tmp_path / "proposal.yaml").read_text())["encoding"] == {"my table.csv": "cp1252"}
    assert [m["name"] for m in store.manifest.modalities] == ["my_table"]
    assert store.dictionary["levels"].drop_nulls().to_list() == [["Juni", "März"]]


def test_init_writes_beside_the_tables_and_prints_what_to_type_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = hospital(tmp_path / "my raw")
    monkeypatch.chdir(tmp_path)
    files = [str(p) for p in sorted(raw.iterdir())]
    assert main(["init", "tables", *files]) == 0
    printed = capsys.readouterr().out
    commands = [line.split("mrpipe ")[1] for line in printed.splitlines() if line.startswith("  mrpipe")]
    assert commands[0] == "check tables --raw 'my raw'"
    assert main(["check", "tables", "--raw", "my raw"]) == 0
    assert commands[1:] == [
        "build tables --raw 'my raw' --out stores/mine",
        "train --store stores/mine --out runs/mine --method moe_retriever",
    ]
    before = (raw / "tables.yaml").read_text()
    (raw / "tables.yaml").write_text(before + "# mine\n")
    capsys.readouterr()
    assert main(["init", "tables", *files]) == UsageError.exit_code
    assert "exists" in capsys.readouterr().err
    assert (raw / "tables.yaml").read_text().endswith("# mine\n")
    assert main(["init", "tables", *files, "--overwrite"]) == 0
    assert (raw / "tables.yaml").read_text() == before


def test_init_reports_all_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labs.xlsx").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "empty.csv").write_text("")
    assert main(["init", "tables", str(tmp_path / "labs.xlsx"), str(tmp_path / "empty.csv")]) == DataError.exit_code
    error = capsys.readouterr().err
    assert "labs.xlsx" in error
    assert "empty.csv" in error
    assert not (tmp_path / "tables.yaml").exists()
    assert main(["init", "tables", str(tmp_path / "nothing")]) == DataError.exit_code
    (tmp_path / "folder").mkdir()
    assert main(["init", "tables", str(tmp_path / "folder")]) == UsageError.exit_code
    with pytest.raises(SystemExit) as stopped:
        main(["init", "mosi", str(tmp_path)])
    assert stopped.value.code == UsageError.exit_code


@pytest.mark.real_data
def test_the_proposal_for_uci_mfeat_passes_check(real_data_dir: Path, tmp_path: Path) -> None:
    raw, out = real_data_dir / "generic/uci_mfeat", tmp_path / "proposal.yaml"
    assert main(["init", "tables", str(raw), "--out", str(out)]) == 0
    notes = check(TABLES, raw, {"config": str(out)})["notes"]
    found = [re.findall(r"(\w+): 2000 of 2000 samples, (\d+) numeric and (\d+)", note) for note in notes]
    sizes = {name: int(n) + int(m) for matches in found for name, n, m in matches}
    assert sizes == {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}


def test_a_column_that_is_no_feature_costs_no_feature_of_another_file(tmp_path: Path) -> None:
    ids = [f"s{k}" for k in range(N)]
    files = {
        # Columns without a name at the end, as spreadsheets write them, and a status that is empty here.
        "a.csv": csv("id,x,y,status,,", [[i, k / 7, k % 2, "", "", ""] for k, i in enumerate(ids)]),
        "b.csv": csv("id,remark,z", [[i, f"free text {k} of {i}", k % 31 / 3] for k, i in enumerate(ids)]),
        "c.csv": csv("id,status,remark", [[i, k % 37 / 3, k % 41 / 3] for k, i in enumerate(ids)]),
    }
    declared = proposal(tmp_path / "raw", files)
    assert declared["modalities"]["b"]["exclude"] == ["remark"]
    store = built(tmp_path / "raw", tmp_path)
    assert store.dictionary["name"].to_list() == ["x", "z", "status", "remark"]


def test_a_wide_file_beside_a_file_of_labels_is_divided_by_gaps(tmp_path: Path) -> None:
    rows = [[k, k / 7, *([k / 3, k / 11] if k % 3 else ["", ""])] for k in range(N)]
    files = {"a.csv": csv("id,y", [[k, k % 2] for k in range(N)]), "b.csv": csv("id,x,u_1,u_2", rows)}
    declared = proposal(tmp_path / "raw", files)["modalities"]
    assert {name: (entry["file"], entry["columns"]) for name, entry in declared.items()} == {
        "usual": ("b.csv", ["x"]),
        "u": ("b.csv", ["u_*"]),
    }
    assert built(tmp_path / "raw", tmp_path).arrays("u").x.shape == (N * 2 // 3, 2)


def test_numbers_of_patients_are_not_those_of_visits(tmp_path: Path) -> None:
    files = {
        "visits.csv": csv("visit,patient,x,y", [[k + 1, k // 2, k / 7, k % 2] for k in range(N)]),
        "patients.csv": csv("patient,height", [[k, 150.5 + k] for k in range(N // 2)]),
    }
    declared = proposal(tmp_path / "raw", files)
    assert (declared["id"], declared["subject"]) == ("visit", "patient")
    assert built(tmp_path / "raw", tmp_path).arrays("patients").x[:4].ravel().tolist() == [150.5, 154.5, 155.5, 155.5]


@pytest.mark.real_data
def test_the_proposal_for_physionet_2012_has_the_blocks_of_tests_and_passes_check(
    real_data_dir: Path, tmp_path: Path
) -> None:
    raw, out = real_data_dir / "generic/physionet2012", tmp_path / "proposal.yaml"
    assert main(["init", "tables", *map(str, raw.iterdir()), "--out", str(out)]) == 0
    declared = yaml.safe_load(out.read_text())
    blocks = [entry["columns"] for entry in declared["modalities"].values()]
    assert ["DiasABP_*", "MAP_*", "SysABP_*"] in blocks
    assert ["NIDiasABP_*", "NIMAP_*", "NISysABP_*"] in blocks
    assert ["ALP_*", "ALT_*", "AST_*", "Albumin_*", "Bilirubin_*"] in blocks
    assert {"Survival", "Length_of_stay"} <= set(declared["exclude"])
    assert declared["label"]["column"] == "In-hospital_death"
    notes = check(TABLES, raw, {"config": str(out)})["notes"]
    assert "usual: 4000 of 4000 samples, 47 numeric and 0 categorical features" in notes


# The published schema of declarations.


def test_a_proposal_names_the_schema_and_matches_it(tmp_path: Path) -> None:
    raw = hospital(tmp_path / "raw")
    text = propose(raw, sorted(p.name for p in raw.iterdir()))
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA.as_uri()}"
    Draft202012Validator(yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))).validate(yaml.safe_load(text))


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_of_other_programs_are_no_ids(tmp_path: Path, name: str) -> None:
    rows = "".join(f"{i},P{i:03d},{i * 7 % 31 / 10},{i % 2}\n" for i in range(N))
    declared = proposal(tmp_path / "raw", {"a.csv": f"{name},patient,age,label\n{rows}"})
    assert declared["id"] == "patient"
    assert "exclude" not in declared  # patterns match no column without a name


def test_a_date_of_another_format_is_reported_by_its_line_not_its_value(tmp_path: Path) -> None:
    rows = [[k, f"{1 + k % 28:02d}.03.2020", k % 7 / 3, k % 2] for k in range(N)]
    rows[4][1] = "31.31.2020"
    (tmp_path / "a.csv").write_text(csv("id,seen,x,y", rows))
    text = propose(tmp_path, ["a.csv"])
    assert (
        "- seen  # a.csv, column 'seen', line 6: expected dates of the format %d.%m.%Y; found another format\n" in text
    )
    assert "31.31" not in text
