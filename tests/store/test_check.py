"""Check of an export: splits and classes that a build would refuse, absent modalities, and the table of the result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.schema import Checked, Cohort, Dataset, Scheme
from mrpipe.stages.build import build
from mrpipe.stages.check import check, summary, write_check
from mrpipe.stages.simulate import simulate
from mrpipe.stages.split import make_split
from mrpipe.store.audit import audit
from mrpipe.store.reader import open_store
from tests import toy
from tests.datasets.tables.tables_toy import IDS, config, csv, write

TABLES = get_dataset("tables")


@pytest.fixture(autouse=True)
def toy_code(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.skip_code_of_dataset(monkeypatch)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    simulate(toy.TOY, tmp_path / "raw", {})
    return tmp_path / "raw"


def changed(
    observed: Mapping[str, pl.Expr] | None = None,
    fold: pl.Expr | None = None,
    label: pl.Expr | None = None,
    faults: tuple[Fault, ...] = (),
    **more: Any,
) -> Dataset:
    """The toy dataset with other parts, labels, observed modalities, or faults of its own check."""

    def build_cohort(raw: Path, options: toy.Options) -> Cohort:
        cohort = toy.build_cohort(raw, options)
        samples = cohort.samples if fold is None else cohort.samples.with_columns(fold=fold)
        labels = cohort.labels
        if label is not None:
            labels = labels | {"outcome": samples.select("sample_id", value=label).drop_nulls()}
        return dataclasses.replace(cohort, samples=samples, labels=labels)

    def check_export(raw: Path, options: toy.Options) -> Checked:
        if faults:
            raise DataError(faults)
        samples = build_cohort(raw, options).samples
        ids = {m: samples.filter(where)["sample_id"] for m, where in (observed or {}).items()}
        return Checked(release="toy-1", files=(raw / "toy.csv",), observed=ids, **more)

    return dataclasses.replace(toy.TOY, check=check_export, cohort=build_cohort)


NUMBER = pl.col("sample_id").str.slice(1).cast(pl.Int32)
TRAIN = ~pl.col("sample_id").str.contains("[4567]$")


def messages(dataset: Dataset, raw: Path, **chosen: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        check(dataset, raw, {}, **chosen)
    return [str(f) for f in caught.value.faults]


def test_every_problem_of_splits_is_reported_with_those_of_the_reader(raw: Path) -> None:
    """Among them the reader's own; a class with one member; a class, and a part, without training samples."""
    fold = pl.when(TRAIN).then(pl.lit("train")).otherwise(pl.lit("val"))
    label = pl.when(NUMBER == 3).then(1).when(NUMBER % 2 == 0).then(0).otherwise(None)
    own = Fault(file="toy.csv", expected="a number", found="'x'")
    dataset = changed(fold=fold, label=label, faults=(own,))
    # As if the export declared the classes.
    found = messages(dataclasses.replace(dataset, resolve=lambda raw, options: dataset), raw)
    assert found[0] == "toy.csv: expected a number; found 'x'"
    assert found[1].startswith("label outcome: expected at least 2 samples per class; found 1 of class yes.")
    assert found[2].startswith("split standard: expected samples in test; found 36 train, 24 val, 0 test.")
    assert [line.split(":")[0] for line in found[3:]] == ["split uniform, column 'label outcome'"] * (len(found) - 3)


def test_small_classes_of_a_published_dataset_are_notes(raw: Path, tmp_path: Path) -> None:
    """Nobody can change its classes, and a part of it (or a small simulation) may lack one; two are needed to train."""
    label = pl.when(NUMBER == 6).then(2).otherwise(NUMBER % 2)
    three = (dataclasses.replace(toy.TOY.tasks[0], classes=("no", "yes", "rare")), *toy.TOY.tasks[1:])
    dataset = dataclasses.replace(changed(label=label), tasks=three)
    assert check(dataset, raw, {}, schemes=["standard"])["notes"] == [
        "label outcome: expected at least 2 samples per class; found 1 of class rare",
        "split standard, column 'label outcome': expected training samples of class rare; found none",
    ]
    build(dataset, raw, tmp_path / "store", {}, schemes=["standard"])
    (found,) = messages(changed(label=pl.when(TRAIN).then(0).otherwise(NUMBER % 2)), raw, schemes=["standard"])
    assert found.startswith(
        "split standard, column 'label outcome': expected training samples of class yes; found none."
    )
    (found,) = messages(changed(label=pl.when(TRAIN).then(None).otherwise(0)), raw, schemes=["standard"])
    assert "expected training samples with a label; found none" in found


def test_an_unreadable_cohort_of_an_invalid_export_is_not_reported_again(raw: Path) -> None:
    def fails(raw: Path, options: toy.Options) -> Cohort:
        raise KeyError("sample_id")

    own = Fault(file="toy.csv", expected="a number", found="'x'")
    assert messages(dataclasses.replace(changed(faults=(own,)), cohort=fails), raw) == [str(own)]
    with pytest.raises(KeyError):
        check(dataclasses.replace(changed(), cohort=fails), raw, {})


def parts(train: str, val: str | None, test: str | None) -> pl.Expr:
    digit = pl.col("sample_id").str.tail(1)
    return (
        pl.when(digit.is_in(list("4567")))
        .then(pl.lit(val))
        .when(digit == "8")
        .then(pl.lit(test))
        .otherwise(pl.lit(train))
    )


@pytest.mark.parametrize(
    ("fold", "refused"),
    [
        (parts("train", None, "test"), None),
        (parts("train", "val", None), "samples in test"),
        (parts("test", "val", "test"), "samples in train"),
    ],
)
def test_a_column_may_lack_a_validation_part_but_no_other(
    raw: Path, tmp_path: Path, fold: pl.Expr, refused: str | None
) -> None:
    # A subject has two samples in succession.
    pairs = fold.first().over("subject_id", order_by="sample_id")
    dataset = changed(fold=pairs)
    if refused is None:
        check(dataset, raw, {}, schemes=["standard"])
        build(dataset, raw, tmp_path / "store", {}, schemes=["standard"])
        assert open_store(tmp_path / "store").manifest.splits[0]["counts"].get("val", 0) == 0
    else:
        assert [refused in line for line in messages(dataset, raw, schemes=["standard"])] == [True]


def test_a_part_with_a_positive_fraction_must_not_be_empty(tmp_path: Path) -> None:
    schemes = {"two": Scheme(fractions=(0.7, 0.0, 0.3), stratify="outcome"), "uniform": Scheme(stratify="outcome")}
    dataset = dataclasses.replace(toy.TOY, schemes=schemes, default_scheme="two")
    simulate(toy.TOY, tmp_path / "raw", {"n": 8})
    found = messages(dataset, tmp_path / "raw")
    assert len(found) == 1
    assert found[0].startswith("split uniform: expected samples in ")
    check(dataset, tmp_path / "raw", {}, schemes=["two"])


def test_a_modality_without_training_samples_is_refused_by_check_and_by_split(raw: Path, tmp_path: Path) -> None:
    observed = {"table": pl.lit(True), "image": ~TRAIN}
    (found,) = messages(changed(observed), raw, schemes=["standard"])
    assert found.startswith(
        "split standard, column 'image': expected training samples with this modality; found none; "
    )
    check(changed(observed), raw, {}, modalities=["table"])
    build(toy.TOY, raw, tmp_path / "store", {})
    store = open_store(tmp_path / "store")
    ids = store.samples("image").collect()["subject_id"].unique()
    others = store.samples().filter(~pl.col("subject_id").is_in(ids.implode())).collect()["subject_id"].unique().sort()
    lists = {"train": others[1:].to_list(), "test": [*ids, others[0]]}
    (tmp_path / "ids.json").write_text(json.dumps(lists))
    toy.staged(raw, tmp_path / "work")
    with pytest.raises(DataError, match="column 'image': expected training samples with this modality"):
        make_split(toy.TOY, tmp_path / "work", "mine", ids=tmp_path / "ids.json")


def test_unknown_modalities_and_schemes_are_usage_errors(raw: Path) -> None:
    for chosen in ({"modalities": ["smell"]}, {"schemes": ["mine"]}):
        with pytest.raises(UsageError, match=r"smell|mine"):
            check(toy.TOY, raw, {}, **chosen)


def test_an_export_too_small_for_its_splits_is_refused_by_check_and_build(tmp_path: Path, capsys) -> None:
    """Five visits of two patients cannot fill three parts; nothing is written."""
    rows: list[list[object]] = [[f"v{k}", "pq"[k > 2], k, k % 2] for k in range(5)]
    spec = {"file": "t.csv", "id": "id", "subject": "who", "modalities": {"a": {"columns": ["x"]}}}
    raw = write(
        tmp_path / "raw", {"t.csv": csv("id,who,x,y", rows)}, spec | {"label": {"column": "y", "classes": [0, 1]}}
    )
    for command in (["check"], ["build", "--out", str(tmp_path / "store")]):
        assert main([command[0], "tables", "--raw", str(raw), *command[1:]]) == 3
        assert "split uniform: expected samples in" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_modality_observed_in_one_class_only_is_named_by_check_and_audit(raw: Path, tmp_path: Path) -> None:
    """Its presence gives the label away, although none of its values does."""
    table = {"table": pl.lit(True), "series": pl.lit(True), "image": NUMBER % 3 == 1}
    notes = check(changed(table), raw, {}, modalities=["table", "image"])["notes"]
    assert notes == [
        f"image: whether a sample has it nearly determines class {c} of outcome (AUROC 1.000)" for c in ("no", "yes")
    ]
    rows = [[i, k % 2 + 0.1 * (k % 7), 1 if k % 2 else "", k % 2] for k, i in enumerate(IDS)]
    files = {
        "t.csv": csv("id,x,z,out", rows),
        "z.csv": csv("id,z", [[r[0], k % 5] for k, r in enumerate(rows) if r[3]]),
    }
    spec = config(file="t.csv", label={"column": "out", "classes": [0, 1]})
    spec["modalities"] = {"a": {"columns": ["x"]}, "b": {"file": "z.csv"}}
    write(tmp_path / "tables", files, spec)
    build(TABLES, tmp_path / "tables", tmp_path / "store", {})
    found = audit(open_store(tmp_path / "store")).filter(modality="b")
    assert found.select("feature", "what", "auroc").unique().rows() == [("modality_mask", "observed", 1.0)]


def test_the_result_ends_with_a_table_of_modalities_and_unread_files(raw: Path, tmp_path: Path) -> None:
    (raw / "scans" / "deeper").mkdir(parents=True)
    for k in range(50):
        (raw / "scans" / "deeper" / f"{k}.nii").write_text("")
    (raw / "notes.txt").write_text("")
    (raw / "old.csv").write_text("")
    (raw / "scans" / "raw").mkdir()
    (raw / "scans" / "raw" / "1.nii").write_text("")
    (raw / ".hidden").write_text("")
    dataset = changed({"table": NUMBER < 40}, unused={"old.csv": "rename it to read it", "scans/raw": "unprocessed"})
    dataset = dataclasses.replace(dataset, modalities_of=lambda raw, options: ("table", "series"))
    result = write_check(dataset, raw, tmp_path / "work", {})
    assert json.loads((tmp_path / "work" / "checked.json").read_text()) == result
    assert result["lacking"] == ["image", "genotype"]
    assert summary(result) == [
        "modality  samples (of 60)",
        "table     40",
        "series    unknown before build",
        "image     not in this export",
        "genotype  not in this export",
        "not used: old.csv: rename it to read it",
        "not used: scans/raw: unprocessed",
        "not read: 51 files (notes.txt, scans/ (50))",
    ]
    # Modalities left out on purpose are not reported as lacking.
    assert check(dataset, raw, {}, modalities=["table"])["lacking"] == []


def test_no_errors_is_never_printed_over_a_store_that_lacks_a_modality(tmp_path: Path, capsys) -> None:
    simulate(get_dataset("mimic"), tmp_path / "mimic", {"n_patients": 60, "n_chart_rows": 600, "n_lab_rows": 400})
    assert main(["check", "mimic", "--raw", str(tmp_path / "mimic"), "--set", "checksums=skip"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "mimic: no errors"
    for path in (tmp_path / "mimic").glob("note/*"):
        path.unlink()
    assert main(["check", "mimic", "--raw", str(tmp_path / "mimic"), "--set", "checksums=skip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "mimic: no errors; the store will lack note"
    assert sum("no errors" in line for line in lines) == 1


def test_a_missing_file_points_to_archives(tmp_path: Path) -> None:
    raw = tmp_path / "mimic"
    raw.mkdir()
    for name in ("mimic-iv-3.1.zip", "mimic-iv-note.tar.gz"):
        (raw / name).touch()
    found = messages(get_dataset("mimic"), raw)
    assert found[-1] == (
        "mimic: expected all files, unpacked; found 1 archives (mimic-iv-note.tar.gz), 1 zip archives "
        "(mimic-iv-3.1.zip). Unpack them, if the missing files may be in them."
    )
