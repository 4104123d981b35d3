"""Measurements of MIMIC-IV: units, text values, missing visits, parts, and the event transform against a dense one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.ranges import canonical_unit, conversion
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.stages.simulate import simulate
from mrpipe.store.audit import audit
from mrpipe.store.reader import Store
from mrpipe.transforms.events import dense_steps, step_numbers, vocabulary_of
from mrpipe.transforms.fit import Transforms, fit
from mrpipe.transforms.options import TransformOptions
from tests.datasets.mimic.mimic_toy import SUBJECT, Toy, hadm_of, write_table

A, B = str(SUBJECT), str(SUBJECT + 1)


def store_of(raw: Path, out: Path, **settings) -> Store:
    build(get_dataset("mimic"), raw, out, settings)
    return mrpipe.open_store(out)


def toy(tmp_path: Path, change=lambda toy: None) -> Path:
    made = Toy(8)
    made.labs = []
    for i in range(8):
        made.lab(SUBJECT + i, 1, "2150-01-11 08:00:00", value=1.0)
    change(made)
    return made.write(tmp_path / "raw")


def measured(store: Store, sample: str) -> list[tuple[str, float, float]]:
    """(item, hours, value) of a sample."""
    levels = store.dictionary.filter(modality="lab")["levels"][0].to_list()
    row = store.modality("lab").filter(sample_id=sample).collect()
    steps = np.array(row["x"][0].to_list())
    return [
        (levels[int(i)].split(" ")[0], h, round(float(v), 3)) for (i, v), h in zip(steps, row["time"][0], strict=True)
    ]


def test_text_values_limits_and_blanks(tmp_path: Path) -> None:
    def change(t: Toy) -> None:
        for hour, value in enumerate(["___", "NEG", "HOLD", "", ">100", "<0.5", " 7.5 ", "ERROR", "1.5e1"]):
            t.lab(SUBJECT, 1, f"2150-01-12 {hour:02d}:00:00", item=51300 - 1, value=value, valuenum="", valueuom="K")
        t.lab(SUBJECT, 1, "2150-01-12 09:00:00", item=51299, value="see comment", valuenum="12", valueuom="K")

    store = store_of(toy(tmp_path, change), tmp_path / "store")
    assert [v for i, _, v in measured(store, A) if i == "lab:51299"] == [100.0, 0.5, 7.5, 15.0, 12.0]
    note = store.dictionary.filter(modality="lab", name="value")["description"].item()
    assert "limit (> or <) taken as its bound 2" in note
    assert "set aside: text, blank or ___ 5" in note


def test_units_are_harmonised_and_impossible_values_are_set_aside_and_counted(tmp_path: Path) -> None:
    def change(t: Toy) -> None:
        for i in range(3):
            t.lab(SUBJECT, 1, f"2150-01-12 0{i}:00:00", item=50931, value=100 + i, valueuom="mg/dL")
        t.lab(SUBJECT, 1, "2150-01-12 03:00:00", item=50931, value=10, valueuom="mmol/L")
        t.lab(SUBJECT, 1, "2150-01-12 04:00:00", item=50931, value=120, valueuom="MG/DL")
        t.lab(SUBJECT, 1, "2150-01-12 05:00:00", item=50931, value=130, valueuom="")
        t.lab(SUBJECT, 1, "2150-01-12 06:00:00", item=50931, value=140, valueuom="furlongs")
        t.lab(SUBJECT, 1, "2150-01-12 07:00:00", item=50931, value=999999, valueuom="mg/dL")
        t.lab(SUBJECT, 1, "2150-01-12 08:00:00", item=50931, value=-5, valueuom="mg/dL")
        t.chart(SUBJECT, 1, "2150-01-12 00:00:00", 223761, 98.6, "°F")
        t.chart(SUBJECT, 1, "2150-01-12 01:00:00", 223762, 37.0, "°C")
        t.chart(SUBJECT, 1, "2150-01-12 02:00:00", 223761, 37.0, "°F")  # wrong unit: 37 °F is 2.8 °C
        t.chart(SUBJECT, 1, "2150-01-12 03:00:00", 226531, 200, "lbs")

    store = store_of(toy(tmp_path, change), tmp_path / "store")
    values = measured(store, A)
    assert [v for i, _, v in values if i == "lab:50931"] == [100.0, 101.0, 102.0, 180.16, 120.0, 130.0]
    assert [v for i, _, v in values if i == "chart:223762"] == [37.0, 37.0]
    assert [v for i, _, v in values if i == "chart:226512"] == [90.718]
    assert not [i for i, _, _ in values if i in ("chart:223761", "chart:226531")]
    note = store.dictionary.filter(modality="lab", name="value")["description"].item()
    assert "in a unit that cannot be converted 1" in note
    assert "impossible value 3" in note
    glucose = store.dictionary.filter(modality="lab_summary", name="lab:50931 max")
    assert "2 impossible set aside" in glucose["description"].item()
    assert glucose["unit"].item() == "mg/dL"
    kept = measured(store_of(tmp_path / "raw", tmp_path / "all", outlier_ranges=False), A)
    assert [v for i, _, v in kept if i == "lab:50931"][-2:] == [999999.0, -5.0]


def test_conversions_are_invertible() -> None:
    assert canonical_unit(" Mg/Dl") == "mg/dL"
    for item, a, b in ((50931, "mmol/L", "mg/dL"), (0, "°F", "°C"), (0, "lb", "kg"), (0, "inch", "cm")):
        forward, back = conversion(item, a, b), conversion(item, b, a)
        assert forward
        assert back
        assert (7.0 * forward[0] + forward[1]) * back[0] + back[1] == pytest.approx(7.0)
    assert conversion(50912, "mmol/L", "mg/dL") is None
    assert conversion(0, "°F", "°C") == (pytest.approx(5 / 9), pytest.approx(-160 / 9))


def test_rows_without_hadm_id_are_assigned_by_time(tmp_path: Path) -> None:
    times = {
        "2150-01-09 07:59:00": False,  # more than 24 h before the admission
        "2150-01-09 08:00:00": True,
        "2150-01-15 12:00:00": True,  # at the discharge
        "2150-01-15 12:01:00": False,
        "2150-03-01 00:00:00": False,  # between the visits
        "2150-06-09 12:00:00": True,  # at the prediction time
        "2150-06-09 12:01:00": False,
    }

    def change(t: Toy) -> None:
        for i, time in enumerate(times):
            t.lab(SUBJECT, None, time, item=51000, value=i)
        t.lab(SUBJECT, 1, "2150-01-09 08:00:00", item=51001, value=1)  # a day before the visit of its hadm_id
        t.lab(SUBJECT, 1, "2150-01-09 07:59:00", item=51001, value=4)
        t.lab(SUBJECT, 1, "2150-01-15 12:01:00", item=51001, value=5)  # after its discharge
        t.lab(SUBJECT, 1, "2149-01-11 00:00:00", item=51001, value=6)  # a year off
        t.lab(SUBJECT, 1, "2150-06-02 00:00:00", item=51001, value=7)  # in another visit
        t.lab(SUBJECT + 1, 1, "2150-01-11 00:00:00", item=51001, value=8)
        t.labs[-1]["subject_id"] = SUBJECT  # the visit of another patient
        t.lab(SUBJECT, None, "2129-06-02 00:00:00", item=51000, value=7)  # more than 20 years before the first visit
        t.lab(SUBJECT, None, "2050-06-02 00:00:00", item=51000, value=8)  # before birth
        t.lab(SUBJECT, 2, "2150-06-20 00:00:00", item=51001, value=2)  # charted after the prediction time
        t.labs.append(
            {
                "subject_id": SUBJECT,
                "hadm_id": 29999999,
                "itemid": 51001,
                "charttime": "2150-01-12 00:00:00",
                "value": 3,
                "valuenum": 3,
                "valueuom": "",
            }
        )  # an excluded visit

    raw = toy(tmp_path, change)
    store = store_of(raw, tmp_path / "store")
    assert [v for i, _, v in measured(store, A) if i == "lab:51000"] == [i for i, t in enumerate(times.values()) if t]
    assert [v for i, _, v in measured(store, A) if i == "lab:51001"] == [1.0]
    note = store.dictionary.filter(modality="lab", name="value")["description"].item()
    for count in (
        "names an excluded visit or a visit of another patient 2;",
        "more than 30 days from the visit that it names 2;",
        "before birth, or more than 20 years before the first visit 2;",
        "charted after the prediction time 2;",
        "outside the included visits 5",
    ):
        assert f"excluded: {count}" in note
    history = store_of(raw, tmp_path / "history", event_window="history")
    assert [v for i, _, v in measured(history, A) if i == "lab:51000"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert [v for i, _, v in measured(history, A) if i == "lab:51001"] == [4.0, 1.0, 5.0]


def test_a_visit_nested_in_a_longer_one_does_not_shorten_it(tmp_path: Path) -> None:
    def change(t: Toy) -> None:
        t.admissions[0].update(admittime="2150-01-01 08:00:00", dischtime="2150-01-31 12:00:00")
        t.visit(SUBJECT, 3, "2150-01-05 08:00:00", "2150-01-06 12:00:00")
        for day, value in ((4, 1), (6, 2), (20, 3), (31, 4)):
            t.lab(SUBJECT, None, f"2150-01-{day:02d} 10:00:00", item=51000, value=value)
        t.lab(SUBJECT, None, "2150-02-01 10:00:00", item=51000, value=5)

    store = store_of(toy(tmp_path, change), tmp_path / "store")
    assert [v for i, _, v in measured(store, A) if i == "lab:51000"] == [1.0, 2.0, 3.0, 4.0]


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


def test_repeated_measurements_are_kept_once_and_times_are_relative_to_the_first_admission(tmp_path: Path) -> None:
    def change(t: Toy) -> None:
        for _ in range(3):
            t.lab(SUBJECT, 1, "2150-01-12 00:00:00", item=51000, value=4)
        t.lab(SUBJECT, 1, "2150-01-12 00:00:00", item=51000, value=5)

    store = store_of(toy(tmp_path, change), tmp_path / "store")
    assert [m for m in measured(store, A) if m[0] == "lab:51000"] == [
        ("lab:51000", 40.0, 4.0),
        ("lab:51000", 40.0, 5.0),
    ]
    assert "the same measurement again 2" in store.dictionary.filter(modality="lab", name="value")["description"].item()


def test_a_patient_without_measurements_does_not_have_the_modality(tmp_path: Path) -> None:
    raw = toy(tmp_path, lambda t: t.labs.pop(1))
    store = store_of(raw, tmp_path / "store")
    samples = store.samples().filter(sample_id=B).collect()
    assert samples["row_lab"].item() is None
    assert samples["row_lab_summary"].item() is None
    assert samples["row_code"].item() is not None


def test_the_summary_agrees_with_the_sequence(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    simulate(get_dataset("mimic"), raw, {"n_patients": 100, "n_chart_rows": 3000, "n_lab_rows": 2000})
    store = store_of(raw, tmp_path / "store")
    names = [n.rsplit(" ", 1) for n in store.dictionary.filter(modality="lab_summary")["name"]]
    x = store.arrays("lab_summary")
    for row in (0, len(x) - 1):
        found: dict[str, list[float]] = {}
        for item, _, value in measured(store, str(x.sample_id[row])):
            found.setdefault(item, []).append(value)
        for (item, statistic), cell in zip(names, x.x[row], strict=True):
            values = found.get(item, [])
            expected = {"count": len(values)} | (
                {"last": values[-1], "mean": np.mean(values), "min": min(values), "max": max(values)} if values else {}
            )
            if statistic in expected:
                assert cell == pytest.approx(expected[statistic], rel=1e-4, abs=2e-3), (item, statistic)
            elif not values:
                assert np.isnan(cell)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("mimic") / "raw"
    simulate(get_dataset("mimic"), raw, {"n_patients": 300, "n_chart_rows": 20_000, "n_lab_rows": 15_000})
    return raw


def test_results_do_not_depend_on_parts_and_run_sizes(simulated: Path, tmp_path: Path, monkeypatch) -> None:
    from mrpipe.datasets.mimic import events

    whole = store_of(simulated, tmp_path / "whole")
    monkeypatch.setattr(events, "RUN_ROWS", 700)
    monkeypatch.setattr(events, "GROUP_ROWS", 500)
    sharded = store_of(simulated, tmp_path / "sharded", n_shards=3)
    for modality in ("lab", "lab_summary"):
        a, b = whole.arrays(modality), sharded.arrays(modality)
        assert (a.sample_id == b.sample_id).all()
        np.testing.assert_array_equal(a.x, b.x)
        if a.time is not None:
            np.testing.assert_array_equal(a.time, b.time)
    assert whole.dictionary.equals(sharded.dictionary)


def test_results_do_not_depend_on_row_order_and_release_layout(tmp_path: Path) -> None:
    stores = {}
    for name, more in {
        "2.2": {},
        "2.0": {"release": "2.0", "compressed": False},
        "shuffled": {"shuffle_columns": True},
    }.items():
        raw = tmp_path / name
        simulate(get_dataset("mimic"), raw, {"n_patients": 120, "n_chart_rows": 3000, "n_lab_rows": 2000, **more})
        stores[name] = store_of(raw, tmp_path / f"{name}.store")
    for name in ("2.0", "shuffled"):
        for m in ("lab", "code", "note"):
            np.testing.assert_array_equal(stores["2.2"].arrays(m).x, stores[name].arrays(m).x)
    raw = tmp_path / "3.1"
    simulate(get_dataset("mimic"), raw, {"n_patients": 120, "n_chart_rows": 3000, "n_lab_rows": 2000, "release": "3.1"})
    three = store_of(raw, tmp_path / "3.1.store")
    assert three.manifest.release == "MIMIC-IV 3.x"
    # Patients of 2020 - 2022 have no notes, because the note module ends with release 2.2.
    assert three.samples().collect()["row_note"].null_count() > 0
    # The same measurements with rows in another order.
    lines = pl.read_csv(raw / "hosp/labevents.csv.gz", infer_schema=False)
    (raw / "hosp/labevents.csv.gz").unlink()
    write_table(raw, "hosp/labevents", lines[::-1].to_dicts(), header=lines.columns)
    again = store_of(raw, tmp_path / "again", checksums="skip")
    np.testing.assert_array_equal(three.arrays("lab").x, again.arrays("lab").x)


def test_a_stale_part_is_not_reused(simulated: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for arguments in (["cohort"], ["prepare", "lab", "--part", "0"]):
        assert main([arguments[0], "mimic", *arguments[1:], "--raw", str(simulated), "--work", str(work)]) == 0
    part = work / "parts/lab/0-of-1.parquet"
    before = part.read_bytes()
    other = ["prepare", "mimic", "lab_summary", "--part", "0", "--raw", str(simulated), "--work", str(work)]
    assert main([*other, "--set", "event_window=history"]) == 0
    assert (work / "parts/lab_summary/0-of-1.parquet").read_bytes() != before
    assert main(other) == 0
    assert (work / "parts/lab_summary/0-of-1.parquet").read_bytes() == before
    assert not (work / "parts/lab/0-of-1").exists()


@pytest.mark.parametrize("modality", ["lab", "lab_summary"])
def test_parts_of_another_cohort_are_an_error(
    modality: str, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts refer to patients by rank, and the same rank is a different patient in a smaller cohort."""
    work = ["--raw", str(simulated), "--work", str(tmp_path / "work")]
    assert main(["cohort", "mimic", *work]) == 0
    assert main(["prepare", "mimic", modality, "--part", "0", *work]) == 0
    older = ["--set", "min_age=60"]
    assert main(["cohort", "mimic", *work, *older]) == 0
    for options in ([], older):
        assert main(["ingest", "mimic", modality, *work, "--store", str(tmp_path / "store"), *options]) == 2
        assert "run mrpipe prepare again" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_bins_contain_means(simulated: Path, tmp_path: Path) -> None:
    fine, coarse = store_of(simulated, tmp_path / "a"), store_of(simulated, tmp_path / "b", bin_hours=24.0)
    a, b = fine.arrays("lab"), coarse.arrays("lab")
    sample = np.repeat(np.arange(len(a)), np.diff(a.offsets))
    frame = pl.DataFrame({"s": sample, "day": np.floor(a.time / 24), "i": a.x[:, 0], "v": a.x[:, 1].astype(float)})
    expected = frame.group_by("s", "day", "i").agg(pl.col("v").mean()).sort("s", "day", "i")
    np.testing.assert_allclose(b.x[:, 1], expected["v"].to_numpy(), rtol=1e-5)
    np.testing.assert_array_equal(b.x[:, 0], expected["i"].to_numpy())
    np.testing.assert_array_equal(b.time, expected["day"].to_numpy() * 24)


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


def test_levels_of_another_store_are_an_error(simulated: Path, tmp_path: Path) -> None:
    store = store_of(simulated, tmp_path / "a")
    other = store_of(simulated, tmp_path / "b", rollup="category")
    fitted = fit(store, modalities=["code"])
    with pytest.raises(mrpipe.errors.UsageError, match="other items"):
        fitted.apply("code", other.arrays("code"))


def test_the_vocabulary_respects_floor_and_cap() -> None:
    items = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    samples = np.array([0, 1, 1, 0, 2, 0, 1, 3])
    assert vocabulary_of(items, samples, 4, 5, 0.5, 99).tolist() == [0, 1, 3]
    assert vocabulary_of(items, samples, 4, 5, 0.5, 2).tolist() == [0, 1]
    assert vocabulary_of(items, samples, 4, 5, 0.0, 99).tolist() == [0, 1, 2, 3]


def codes(store: Store) -> list[tuple[str, int, float]]:
    """(code, number of the visit, days) of patient A."""
    levels = store.dictionary.filter(modality="code")["levels"][0].to_list()
    row = store.modality("code").filter(sample_id=A).collect()
    return [(levels[int(c)], int(n), t) for (c, n), t in zip(row["x"][0].to_list(), row["time"][0], strict=True)]


def test_the_guard_removes_codes_that_reveal_the_outcome(tmp_path: Path) -> None:
    """By code without titles, and by title; one switch is for codes and text."""

    def change(t: Toy) -> None:
        for i, (code, version) in enumerate([("V667", 9), ("V4986", 9), ("Z66", 10), ("Z515", 10), ("7981", 9)]):
            row = {**t.diagnoses[0], "seq_num": 2 + i, "icd_code": code, "icd_version": version}
            t.diagnoses.append(row)

    raw = toy(tmp_path, change)
    assert [c for c, _, _ in codes(store_of(raw, tmp_path / "a"))] == ["DX9:4019", "DX9:7981", "PR9:0331", "DX9:4019"]
    titles = [
        {"icd_code": "4019", "icd_version": 9, "long_title": "Hypertension"},
        {"icd_code": "7981", "icd_version": 9, "long_title": "Instantaneous death"},
    ]
    write_table(raw, "hosp/d_icd_diagnoses", titles)
    assert {c for c, _, _ in codes(store_of(raw, tmp_path / "b"))} == {"DX9:4019 Hypertension", "PR9:0331"}
    assert len(codes(store_of(raw, tmp_path / "c", leak_guard=False))) == 8


def test_codes_with_lost_zeros_or_dots_are_corrected_by_the_titles_if_unambiguous(tmp_path: Path) -> None:
    def change(t: Toy) -> None:
        for i, code in enumerate(["389", "v45.82", "210", "E8785", "99999"]):
            t.diagnoses.append({**t.diagnoses[0], "seq_num": 2 + i, "icd_code": code})

    raw = toy(tmp_path, change)
    known = ("4019", "0389", "V4582", "0210", "00210", "E8785")
    titles = [{"icd_code": c, "icd_version": 9, "long_title": f"title of {c}"} for c in known]
    write_table(raw, "hosp/d_icd_diagnoses", titles)
    store = store_of(raw, tmp_path / "store")
    assert [c.split(" ")[0] for c, n, _ in codes(store) if n == 1] == [
        f"DX9:{c}" for c in ("4019", "0389", "V4582", "210", "E8785", "99999")
    ] + ["PR9:0331"]
    notes = "\n".join(store.manifest.notes)
    assert "2 ICD codes with lost zeros, or with dots, were corrected by d_icd_*, e.g. to" in notes
    assert "of 22 ICD codes have no title in d_icd_*" in notes


def test_codes_are_strings_ordered_by_visit(tmp_path: Path) -> None:
    def change(t: Toy) -> None:
        first, second = hadm_of(SUBJECT, 1), hadm_of(SUBJECT, 2)
        for hadm, seq, code, version in (
            (first, 3, "0389", 9),
            (first, 2, "V4582", 9),
            (first, 4, "0389", 9),
            (second, 2, "E8785", 9),
            (second, 3, "02110", 10),
        ):
            t.diagnoses.append(
                {"subject_id": SUBJECT, "hadm_id": hadm, "seq_num": seq, "icd_code": code, "icd_version": version}
            )
        for seq, code in ((1, "0331"), (2, "966")):
            t.procedures.append(
                {"subject_id": SUBJECT, "hadm_id": first, "seq_num": seq, "icd_code": code, "icd_version": 9}
            )

    raw = toy(tmp_path, change)

    found = codes(store_of(raw, tmp_path / "store"))
    assert found == [
        ("DX9:4019", 1, 0.0),
        ("DX9:V4582", 1, 0.0),
        ("DX9:0389", 1, 0.0),
        ("PR9:0331", 1, 0.0),
        ("PR9:966", 1, 0.0),
        ("DX9:4019", 2, 142.0),
        ("DX9:E8785", 2, 142.0),
        ("DX10:02110", 2, 142.0),
    ]
    rolled = codes(store_of(raw, tmp_path / "rolled", rollup="category", icd_versions="9"))
    assert [c for c, _, _ in rolled] == ["DX9:401", "DX9:V45", "DX9:038", "PR9:03", "PR9:96", "DX9:401", "DX9:E878"]


def test_labels_with_one_class_are_noted(tmp_path: Path) -> None:
    notes = check(get_dataset("mimic"), toy(tmp_path), {})["notes"]
    assert "label mortality: every labelled sample is of class alive" in notes
