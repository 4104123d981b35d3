"""Measurements of MIMIC-IV: units, text values, missing visits, bins, and parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.ranges import canonical_unit, conversion
from mrpipe.stages.simulate import simulate
from mrpipe.store.reader import Store
from tests.datasets.mimic.mimic_toy import SUBJECT, Toy, store_of, toy, write_table

A, B = str(SUBJECT), str(SUBJECT + 1)


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


def test_results_do_not_depend_on_parts_and_run_sizes(simulated: Path, tmp_path: Path, monkeypatch) -> None:
    from mrpipe.datasets import events

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
        "2.0": {"release": "2.0", "form": "csv"},
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


def test_lab_summary_has_the_parts_of_lab(simulated: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for arguments in (["cohort"], ["prepare", "lab", "--part", "0"]):
        assert main([arguments[0], "mimic", *arguments[1:], "--raw", str(simulated), "--work", str(work)]) == 0
    part = work / "parts/lab/0-of-1.parquet"
    before = part.read_bytes()
    other = ["prepare", "mimic", "lab_summary", "--part", "0", "--raw", str(simulated), "--work", str(work)]
    assert main([*other, "--set", "event_window=history"]) == 0
    assert part.read_bytes() != before
    assert main(other) == 0
    assert part.read_bytes() == before
    assert [p.name for p in (work / "parts").iterdir()] == ["lab"]
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
        assert main(["ingest", "mimic", modality, *work, *options]) == 2
        assert "run mrpipe prepare again" in capsys.readouterr().err
    assert not (tmp_path / "work" / "store").exists()


def test_bins_contain_means(simulated: Path, tmp_path: Path) -> None:
    fine, coarse = store_of(simulated, tmp_path / "a"), store_of(simulated, tmp_path / "b", bin_hours=24.0)
    a, b = fine.arrays("lab"), coarse.arrays("lab")
    sample = np.repeat(np.arange(len(a)), np.diff(a.offsets))
    frame = pl.DataFrame({"s": sample, "day": np.floor(a.time / 24), "i": a.x[:, 0], "v": a.x[:, 1].astype(float)})
    expected = frame.group_by("s", "day", "i").agg(pl.col("v").mean()).sort("s", "day", "i")
    np.testing.assert_allclose(b.x[:, 1], expected["v"].to_numpy(), rtol=1e-5)
    np.testing.assert_array_equal(b.x[:, 0], expected["i"].to_numpy())
    np.testing.assert_array_equal(b.time, expected["day"].to_numpy() * 24)
