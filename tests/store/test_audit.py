"""Leakage audit: planted leaks and mask bits found with their source, only training rows used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.datasets import get_dataset
from mrpipe.errors import UsageError
from mrpipe.schema import Modality
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from mrpipe.store.audit import AUDIT_SCHEMA, _columns, audit
from mrpipe.store.reader import Arrays


@pytest.fixture(scope="module")
def adni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    dataset = get_dataset("adni")
    simulate(dataset, folder / "raw", {"n_subjects": 240, "n_snps": 96, "images": False})
    return folder


def test_form_containing_the_diagnosis_is_found_with_its_source(
    adni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTHOME rewritten to equal the label and MH19OTHR known only for patients are both listed with their column."""
    dataset = get_dataset("adni")
    raw = tmp_path / "raw"
    import shutil

    shutil.copytree(adni / "raw", raw)
    build(dataset, raw, tmp_path / "clean", {})
    label = dict(mrpipe.open_store(tmp_path / "clean").labels().collect().iter_rows())
    demographics = next(raw.glob("*PTDEMOG*"))
    frame = pl.read_csv(demographics, infer_schema=False)
    home = pl.Series([str(label.get(p, 0) + 1) for p in frame["PTID"]])
    frame.with_columns(home.alias("PTHOME")).write_csv(demographics, quote_style="always")
    history = next(raw.glob("*MEDHIST*"))
    frame = pl.read_csv(history, infer_schema=False)
    other = pl.Series([("1" if label.get(p, 0) == 2 else "") for p in frame["PTID"]])
    frame.with_columns(other.alias("MH19OTHR")).write_csv(history, quote_style="always")
    build(dataset, raw, tmp_path / "leaky", {})
    found = audit(mrpipe.open_store(tmp_path / "leaky"), threshold=0.95, alpha=1)
    assert set(found.filter(pl.col("source_column") == "PTHOME")["what"]) == {"is one of its levels"}
    monkeypatch.setenv("MRPIPE_SHOW_VALUES", "1")
    found = audit(mrpipe.open_store(tmp_path / "leaky"), threshold=0.95, alpha=1)
    assert found.schema == AUDIT_SCHEMA
    leaks = found.filter(pl.col("source_column") == "PTHOME")
    assert {tuple(r) for r in leaks.select("what", "class").iter_rows()} == {
        ("is house", "CN"),
        ("is condominium", "MCI"),
        ("is apartment", "Dementia"),
    }
    assert leaks["source_file"].unique().to_list() == [demographics.name]
    assert (leaks["auroc"] == 1.0).all()
    weaker = audit(mrpipe.open_store(tmp_path / "leaky"), threshold=0.7, alpha=1)
    known = weaker.filter((pl.col("feature") == "MH19OTHR") & (pl.col("what") == "known"))
    assert known["class"].to_list() == ["Dementia"]
    assert weaker["auroc"].is_sorted(descending=True)
    clean = audit(mrpipe.open_store(tmp_path / "clean"), threshold=0.95, alpha=1)
    assert "PTHOME" not in clean["source_column"].to_list()


def test_dementia_drugs_are_found_if_included(adni: Path, tmp_path: Path) -> None:
    """They are excluded by default because they rank above all other medications."""
    build(get_dataset("adni"), adni / "raw", tmp_path / "store", {"dementia_drugs": True})
    found = audit(mrpipe.open_store(tmp_path / "store"), threshold=0.5, alpha=1).filter(pl.col("class") == "Dementia")
    medication = found.filter(pl.col("feature").str.starts_with("drug_") & (pl.col("what") == "is yes"))
    assert medication["feature"][0].removeprefix("drug_") in ("donepezil", "memantine", "rivastigmine", "galantamine")


def test_only_training_rows_are_audited(adni: Path, tmp_path: Path) -> None:
    build(get_dataset("adni"), adni / "raw", tmp_path / "store", {})
    store = mrpipe.open_store(tmp_path / "store")
    before = audit(store, threshold=0.6, alpha=1)
    assert len(before)
    train = set(store.split().filter(pl.col("split") == "train").collect()["sample_id"])
    label = store.labels().collect()
    turned = label.with_columns(
        pl.when(pl.col("sample_id").is_in(list(train)))
        .then("value")
        .otherwise(2 - pl.col("value"))
        .cast(pl.Int8)
        .alias("value")
    )
    turned.write_parquet(store.path / "labels" / "diagnosis.parquet")
    assert audit(store, threshold=0.6, alpha=1).equals(before)


def test_invalid_arguments_are_refused(adni: Path, tmp_path: Path) -> None:
    build(get_dataset("adni"), adni / "raw", tmp_path / "store", {})
    store = mrpipe.open_store(tmp_path / "store")
    with pytest.raises(UsageError, match=r"between 0\.5 and 1"):
        audit(store, threshold=0.2)
    for alpha in (0.0, -0.1, float("nan"), 2.0):
        with pytest.raises(UsageError, match="alpha"):
            audit(store, alpha=alpha)
    with pytest.raises(UsageError, match="no task"):
        audit(store, task="survival")


def test_alpha_removes_chance_findings_among_many_snps(adni: Path, tmp_path: Path) -> None:
    options = {"merge": "union"}
    build(get_dataset("adni"), adni / "raw", tmp_path / "store", options, modalities=["genomic", "clinical"])
    store = mrpipe.open_store(tmp_path / "store")
    strict, loose = (audit(store, threshold=0.7, alpha=alpha) for alpha in (0.05, 1.0))
    assert len(strict.filter(modality="genomic")) < len(loose.filter(modality="genomic"))
    assert len(loose.join(strict, on=["feature", "what", "class"], how="anti")) + len(strict) == len(loose)
    # The remaining findings deviate from 0.5 by more than three of the smallest possible standard deviations.
    assert (strict["auroc"] - 0.5 > 3 / (3 * strict["n"].cast(pl.Float64)).sqrt()).all()


def test_sequences_are_audited_by_the_mean_of_their_known_steps() -> None:
    x = np.array([[1, 2], [3, np.nan], [5, np.nan], [np.nan, 4], [8, 7]], dtype=np.float32)
    modality = Modality(name="s", bit=0, kind="sequence", shape=(2,))
    arrays = Arrays(modality=modality, sample_id=np.array(["a", "b", "c"]), x=x, offsets=np.array([0, 2, 3, 5]))
    rows = pl.DataFrame({"kind": ["numeric"] * 2, "levels": pl.Series([None, None], dtype=pl.List(pl.String))})
    (block,) = _columns(modality, arrays, rows)
    np.testing.assert_array_equal(block.x, [[2, 2], [5, np.nan], [8, 5.5]])
