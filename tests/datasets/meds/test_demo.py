"""The MIMIC-IV demo by two routes, `mimic` and, converted to MEDS, `meds`: samples, labels and values."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import mrpipe
from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.ranges import MERGED, UNITS
from mrpipe.stages.build import build
from mrpipe.stages.cohort import build_cohort
from mrpipe.store.layout import WorkLayout
from mrpipe.store.reader import Store
from tests.datasets.meds.meds_convert import convert, stamp, table

pytestmark = pytest.mark.real_data
YAML = """
samples: {event: HOSPITAL_DISCHARGE//, at: 0h, which: last}
modalities:
  lab: {codes: LAB//}
  code: {codes: [DIAGNOSIS//, PROCEDURE//], form: codes}
  lab_summary: {codes: LAB//, form: summary}
  person: {codes: GENDER//, form: counts}
labels:
  mortality: {event: MEDS_DEATH, within: 365d, classes: [alive, dead]}
"""
# Every patient with a visit that does not end in death, and all measurements up to the prediction time, as charted.
MIMIC = {"icd9": "off", "require_icu": "no", "min_visits": 1, "min_age": 0, "death_date": "dod"}
MIMIC |= {"event_window": "history", "outlier_ranges": False, "leak_guard": False, "checksums": "skip"}


@pytest.fixture(scope="module")
def raw(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(demo, tmp_path_factory.mktemp("meds") / "raw")


@pytest.fixture(scope="module")
def meds(raw: Path) -> Store:
    (raw / "meds.yaml").write_text(YAML)
    build(get_dataset("meds"), raw, raw.parent / "store", {})
    store = mrpipe.open_store(raw.parent / "store")
    store.verify(deep=True)
    return store


@pytest.fixture(scope="module")
def mimic(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("mimic") / "store"
    build(get_dataset("mimic"), demo, out, MIMIC, modalities=["lab", "code", "lab_summary"])
    return mrpipe.open_store(out)


def test_both_routes_have_the_same_samples_and_labels(demo: Path, raw: Path) -> None:
    (raw / "meds.yaml").write_text(YAML)
    ours, theirs = (
        dataset.cohort(folder, dataset.options(**options))
        for dataset, folder, options in ((get_dataset("meds"), raw, {}), (get_dataset("mimic"), demo, MIMIC))
    )
    assert dict(ours.labels["mortality"].iter_rows()) == dict(theirs.labels["mortality"].iter_rows())
    assert len(ours.labels["mortality"]) == len(ours.samples) == 95
    a, b = ours.samples.sort("sample_id"), theirs.samples.sort("sample_id")
    assert a.select("sample_id", "subject_id").equals(b.select("sample_id", "subject_id"))
    assert a["prediction_time"].equals(b["index_dischtime"], check_dtypes=False)


def steps(store: Store, name: str, origin: str) -> pl.DataFrame:
    """`sample_id, minute, item, value` of the steps of a sequence; `item` is the code or number of the level."""
    levels = store.dictionary.filter(modality=name)["levels"][0].to_list()
    samples = store.samples().collect().select("sample_id", pl.col(origin).alias("origin"))
    frame = store.modality(name).collect().explode("x", "time").join(samples, on="sample_id")
    hours = pl.col("time").cast(pl.Float64)
    position = pl.col("x").arr.get(0).cast(pl.Int64)
    return frame.select(
        "sample_id",
        (pl.col("origin") + pl.duration(seconds=(hours * 3600).round())).dt.round("1m").alias("minute"),
        pl.Series("level", levels).gather(frame.select(position).to_series()).alias("level"),
        pl.col("x").arr.get(1).alias("value"),
    )


@pytest.mark.slow
def test_measurements_are_those_of_the_mimic_route_up_to_the_listed_conversions(
    demo: Path, meds: Store, mimic: Store
) -> None:
    item = pl.col("level").str.extract(r"^(?:LAB//|lab:|chart:)(\d+)").cast(pl.Int64)
    key = ["sample_id", "minute", "item", "value"]
    ours = steps(meds, "lab", "prediction_time").with_columns(item.alias("item")).select(key)
    theirs = steps(mimic, "lab", "first_admittime").with_columns(item.alias("item")).select(key)
    rows = pl.concat(
        [
            table(demo, n).select(
                "subject_id", "hadm_id", "itemid", "charttime", "storetime", "value", "valuenum", "valueuom"
            )
            for n in ("hosp/labevents", "icu/chartevents")
        ]
    )
    samples = meds.samples().collect().select(pl.col("sample_id").alias("subject_id"), "prediction_time")
    rows = rows.join(samples, on="subject_id").select(
        pl.col("subject_id").alias("sample_id"),
        stamp("charttime").dt.round("1m").alias("minute"),
        pl.col("itemid").cast(pl.Int64).alias("item"),
        pl.col("valuenum").cast(pl.Float32).alias("value"),
        "hadm_id",
        (stamp("storetime") > pl.col("prediction_time")).fill_null(False).alias("late"),
        (stamp("charttime") <= pl.col("prediction_time")).alias("known"),
        pl.col("valueuom").n_unique().over("itemid").alias("units"),
    )
    golden = rows.filter("known", pl.col("value").is_not_null())
    assert set(ours.iter_rows()) == set(golden.select(key).iter_rows())
    assert len(ours) == 273_126

    # Items whose values the mimic route keeps as charted: one unit, and no declared conversion.
    converted = {*MERGED, *UNITS, *(v[1] for v in MERGED.values())}
    plain = rows.filter((pl.col("units") == 1) & ~pl.col("item").is_in(converted))["item"].unique().implode()
    left, right = (set(f.filter(pl.col("item").is_in(plain)).iter_rows()) for f in (ours, theirs))
    assert (len(left), len(right), len(left & right)) == (243_152, 243_080, 243_070)
    late = set(golden.filter("late").select(key).iter_rows())
    misplaced = set(golden.filter(pl.col("hadm_id").is_not_null()).select(key).iter_rows())
    assert left - right <= late | misplaced
    assert late & left
    from_text = rows.filter("known", pl.col("value").is_null()).select("sample_id", "minute", "item")
    assert {r[:3] for r in right - left} <= set(from_text.iter_rows())


@pytest.mark.slow
def test_codes_are_those_of_the_mimic_route(meds: Store, mimic: Store) -> None:
    ours = steps(meds, "code", "prediction_time").with_columns(
        pl.col("level")
        .str.replace("DIAGNOSIS//ICD//", "DX")
        .str.replace("PROCEDURE//ICD//", "PR")
        .str.replace("//", ":")
    )
    theirs = steps(mimic, "code", "first_admittime").with_columns(pl.col("level").str.split(" ").list.first())
    assert set(ours.select("sample_id", "level").iter_rows()) == set(theirs.select("sample_id", "level").iter_rows())


@pytest.mark.slow
def test_summaries_and_static_codes(meds: Store) -> None:
    lab = steps(meds, "lab", "prediction_time")
    person, frame = meds.modality("person").collect(), meds.modality("lab_summary").collect()
    assert len(person) == 95
    assert person["x"].arr.sum().eq(1).all()
    names = meds.dictionary.filter(modality="lab_summary")["name"].to_list()
    code = "LAB//50912//mg/dL"
    expected = (
        lab.filter(pl.col("level").str.starts_with(code))
        .group_by("sample_id")
        .agg(
            last=pl.col("value").last(),
            mean=pl.col("value").mean(),
            min=pl.col("value").min(),
            max=pl.col("value").max(),
            count=pl.len().cast(pl.Float32),
        )
    )
    found = frame.select(
        "sample_id",
        *(pl.col("x").arr.get(names.index(f"{code} {s}")).alias(s) for s in ("last", "mean", "min", "max", "count")),
    ).filter(pl.col("count") > 0)
    both = found.join(expected, on="sample_id", suffix="_2")
    assert len(both) == len(expected) == len(found) > 80
    for s in ("last", "mean", "min", "max", "count"):
        assert (both[s] - both[f"{s}_2"]).abs().max() < 1e-4, s


def raw_visits(demo: Path) -> list[dict[str, object]]:
    frame = table(demo, "hosp/admissions").with_columns(stamp("admittime"), stamp("dischtime"))
    return frame.sort("subject_id", "dischtime").to_dicts()


@pytest.mark.parametrize("task", ["readmission", "in_hospital"])
def test_labels_of_other_tasks_are_those_of_a_loop_over_admissions(
    demo: Path, raw: Path, tmp_path: Path, task: str
) -> None:
    dod = dict(table(demo, "hosp/patients").select("subject_id", "dod").iter_rows())
    label = "event: HOSPITAL_ADMISSION//, within: 30d"
    samples = "event: HOSPITAL_DISCHARGE//, at: 0h"
    if task == "in_hospital":
        label = "event: HOSPITAL_DISCHARGE//DIED, until: HOSPITAL_DISCHARGE//"
        samples = "event: HOSPITAL_ADMISSION//, at: 24h, end: HOSPITAL_DISCHARGE//"
    config = tmp_path / f"{task}.yaml"
    config.write_text(f"samples: {{{samples}}}\nmodalities: {{lab: {{codes: LAB//}}}}\nlabels: {{y: {{{label}}}}}\n")
    dataset = get_dataset("meds")
    build_cohort(dataset, raw, tmp_path, {"config": str(config)})
    frame = pl.read_parquet(WorkLayout(tmp_path).cohort)
    found = {(r["subject_id"], r["prediction_time"]): r["label.y"] for r in frame.to_dicts()}
    visits = raw_visits(demo)
    expected = {}
    day = pl.select(pl.duration(days=1)).item()
    for v in visits:
        others = [w for w in visits if w["subject_id"] == v["subject_id"]]
        # A stay ends with the first discharge, which is that of another visit if visits overlap.
        last = min((w for w in others if w["dischtime"] >= v["admittime"]), key=lambda w: w["dischtime"])
        at = v["dischtime"] if task == "readmission" else v["admittime"] + day
        death = dod[v["subject_id"]]
        if (death and death <= f"{at:%Y-%m-%d}") or (task == "in_hospital" and at >= last["dischtime"]):
            continue
        readmitted = any(at < w["admittime"] <= at + 30 * day for w in others)
        expected[v["subject_id"], at] = int(
            readmitted if task == "readmission" else last["discharge_location"] == "DIED"
        )
    assert found == expected
    assert 0 < sum(expected.values()) < len(expected)
