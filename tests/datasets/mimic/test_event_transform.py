"""The event transform of MIMIC-IV against a dense one, its vocabulary, and the audit of items and values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.store.audit import audit
from mrpipe.transforms import events
from mrpipe.transforms.events import step_numbers, vocabulary_of
from mrpipe.transforms.fit import Transforms, fit
from mrpipe.transforms.options import TransformOptions
from tests.datasets.mimic.mimic_toy import SUBJECT, Toy, hadm_of, store_of
from tests.transforms.dense import dense_steps


def test_the_transform_takes_the_logarithm_of_counts(simulated: Path, tmp_path: Path) -> None:
    store = store_of(simulated, tmp_path / "store")
    fitted = fit(store, modalities=["lab_summary"], options=TransformOptions(event_floor=0.0))
    names = store.dictionary.filter(modality="lab_summary").sort("position")["name"].to_list()
    at = names.index("chart:220045 count")
    train = np.log1p(store.arrays("lab_summary", part="train").x[:, at].astype(float))
    raw = store.arrays("lab_summary")
    expected = (np.log1p(raw.x[:, at].astype(float)) - train.mean()) / train.std()
    out = fitted.apply("lab_summary", raw).x
    assert np.abs(out - expected[:, None]).max(axis=0).min() < 1e-3


@pytest.mark.parametrize("name", ["lab", "code"])
def test_the_transform_agrees_with_a_dense_implementation(simulated: Path, tmp_path: Path, name: str) -> None:
    store = store_of(simulated, tmp_path / "store")
    options = TransformOptions(event_floor=0.05, event_cap=30, event_steps=4)
    fitted = Transforms.from_json(fit(store, modalities=[name], options=options).to_json())
    transform = fitted.fitted[name]
    raw, train = store.arrays(name), store.arrays(name, part="train")

    def frame(arrays) -> pl.DataFrame:
        lab = name == "lab"
        step = np.floor(arrays.time / 24) if lab else arrays.x[:, 1]
        sample = np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))
        value = arrays.x[:, 1] if lab else np.ones(len(step))
        rows = pl.DataFrame({"s": sample, "t": step, "i": arrays.x[:, 0].astype(int), "v": value.astype(float)})
        return rows.group_by("s", "t", "i").agg(pl.col("v").mean()).sort("s", "t", "i")

    share = frame(train).group_by("i").agg(pl.col("s").n_unique() / len(train)).filter(pl.col("s") >= 0.05)
    top = share.sort(["s", "i"], descending=[True, False]).head(30)["i"].sort()
    assert transform.vocabulary.tolist() == top.to_list()
    cells = frame(raw).filter(pl.col("i").is_in(top.implode()))
    if name == "lab":
        moments = frame(train).group_by("i").agg(pl.col("v").mean().alias("m"), pl.col("v").std(ddof=0).alias("sd"))
        z = (pl.col("v") - pl.col("m")) / pl.col("sd")
        cells = cells.join(moments, on="i").with_columns(z.clip(-10, 10).alias("v"))
    latest = pl.col("t").rank("dense", descending=True).over("s") <= (4 if name == "lab" else 20)
    cells = cells.filter(latest).sort("s", "t", "i")
    out = fitted.apply(name, raw)
    known = out.x[:, 0] < len(top)
    np.testing.assert_allclose(out.x[known, 1], cells["v"].to_numpy(), rtol=2e-3, atol=2e-4)
    assert [top[int(i)] for i in out.x[known, 0]] == cells["i"].to_list()
    assert (np.diff(out.offsets) > 0).all()
    values, steps, _ = dense_steps(out, transform.n_items)
    assert values[:, transform.n_items :].sum() == len(out.x)
    assert steps[-1] == step_numbers(out)[1].sum()
    # The result of a patient does not depend on other patients.
    one = fitted.apply(name, raw.take(np.array([3])))
    np.testing.assert_array_equal(one.x, out.take(np.array([3])).x)


def test_the_transform_is_fitted_on_training_rows_only(simulated: Path, tmp_path: Path) -> None:
    store = store_of(simulated, tmp_path / "store")
    for name in ("lab", "code", "lab_summary"):
        fitted = fit(store, modalities=[name])
        train = store.arrays(name, part="train")
        rows = store.dictionary.filter(modality=name).sort("position")
        alone = type(fitted.fitted[name]).fit(train, rows, TransformOptions())
        assert alone.to_dict() == fitted.fitted[name].to_dict()


def test_levels_of_another_store_are_an_error(simulated: Path, tmp_path: Path) -> None:
    store = store_of(simulated, tmp_path / "a")
    other = store_of(simulated, tmp_path / "b", rollup="category")
    fitted = fit(store, modalities=["code"])
    with pytest.raises(mrpipe.errors.UsageError, match="other items"):
        fitted.apply("code", other.arrays("code"))


def test_the_vocabulary_respects_floor_and_cap() -> None:
    having = np.array([2, 2, 1, 2, 0])
    assert vocabulary_of(having, 4, 0.5, 99).tolist() == [0, 1, 3]
    assert vocabulary_of(having, 4, 0.5, 2).tolist() == [0, 1]
    assert vocabulary_of(having, 4, 0.0, 99).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["lab", "code", "lab_summary"])
def test_blocks_do_not_change_the_result(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = store_of(simulated, tmp_path / "store")
    arrays = store.arrays(name)
    if name == "lab":  # events in any order
        order = np.random.default_rng(0).permuted(np.arange(len(arrays.x)))
        order = order[np.argsort(np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))[order], kind="stable")]
        shuffled = dataclasses.replace(arrays, x=arrays.x[order], time=arrays.time[order])
    results = []
    for _ in range(2):
        fitted = fit(store, modalities=[name])
        results.append((fitted.to_json(), fitted.apply(name, arrays)))
        monkeypatch.setattr(events, "BLOCK", 50)
        monkeypatch.setattr(events, "ROWS", 3)
    (whole_json, whole), (json, found) = results
    assert json == whole_json
    assert found.x.tobytes() == whole.x.tobytes()
    if name != "lab_summary":
        assert found.offsets.tolist() == whole.offsets.tolist()
        assert found.time.tobytes() == whole.time.tobytes()
    if name == "lab":
        np.testing.assert_allclose(fitted.apply(name, shuffled).x, whole.x, rtol=1e-5, atol=1e-5)


def test_the_audit_finds_items_and_values_that_reveal_the_outcome(tmp_path: Path) -> None:
    """A code and a lab test that only dying patients have, and a lab value that reveals the death; nothing else."""
    made = Toy(60)
    made.labs = []
    for i in range(60):
        dies = i % 2 == 0
        if dies:
            made.patients[i]["dod"] = "2150-09-01"
            made.diagnoses.append(
                {
                    "subject_id": SUBJECT + i,
                    "hadm_id": hadm_of(SUBJECT + i, 2),
                    "seq_num": 2,
                    "icd_code": "4275",
                    "icd_version": 9,
                }
            )
            made.lab(SUBJECT + i, 1, "2150-01-11 08:00:00", item=50813, value=2.0)
        for hour in (8, 9):
            made.lab(SUBJECT + i, 1, f"2150-01-11 {hour:02d}:00:00", item=50912, value=1.0 + 0.1 * (i % 7) + hour)
            made.lab(SUBJECT + i, 2, f"2150-06-02 {hour:02d}:00:00", item=50868, value=(5 if dies else 1) + 0.01 * i)
    store = store_of(made.write(tmp_path / "raw"), tmp_path / "store")
    found = audit(store, threshold=0.95, alpha=0.05).filter(pl.col("class") == "dead")
    events = found.filter(pl.col("modality").is_in(["lab", "code"])).with_columns(
        pl.col("what").str.extract(r"^((?:has|mean of) \w+:\w+)")
    )
    assert set(events.select("modality", "feature", "what", "auroc").iter_rows()) == {
        ("code", "code", "has DX9:4275", 1.0),
        ("lab", "item", "has lab:50813", 1.0),
        ("lab", "value", "mean of lab:50868", 1.0),
    }
