"""Label and row policies of ADNI, compared with brute force on random tables and with the simulated ground truth."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.cohort import build_cohort, diagnoses
from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms.rows import pick, row_policy
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import CLASSES
from mrpipe.errors import DataError
from mrpipe.keyed import generator
from mrpipe.stages.simulate import simulate
from mrpipe.store.layout import truth_folder

CODED = ("DIAGNOSIS", "DXCHANGE", "DXCURREN")
HEADER = "PHASE,PTID,RID,VISCODE,VISCODE2,EXAMDATE,DIAGNOSIS,update_stamp\n"


def dxsum(folder: Path, rows: list[tuple[int, str, str, str]]) -> Path:
    """Write a DXSUM table with rows (rid, viscode2, date, diagnosis)."""
    folder.mkdir(exist_ok=True)
    lines = [f"ADNI1,002_S_{r:04d},{r},{v},{v},{d},{x},2020-01-0{1 + i % 9}\n" for i, (r, v, d, x) in enumerate(rows)]
    (folder / "DXSUM_01Jan2025.csv").write_text(HEADER + "".join(lines))
    return folder


def labels(raw: Path, **settings: object) -> dict[str, int]:
    return dict(build_cohort(raw, AdniOptions(**settings)).labels["diagnosis"].iter_rows())  # type: ignore[arg-type]


def random_visits(seed: int, n: int = 60) -> list[tuple[int, str, str, str]]:
    rng = generator(seed, "random visits")
    rows = []
    for rid in range(1, n + 1):
        months = sorted(set(rng.choice([0, 0, 6, 12, 24, 36], int(rng.integers(1, 6))).tolist()))
        state = int(rng.integers(1, 4))
        for m in months:
            if rng.random() < 0.25:
                state = int(rng.integers(1, 4))
            day = date(2006, 1, 1) + timedelta(days=30 * m)
            code = "bl" if m == 0 else f"m{m:02d}"
            rows.append((rid, code, day.isoformat(), "" if rng.random() < 0.1 else str(state)))
    return [rows[i] for i in rng.permutation(len(rows))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("blank", ["exclude", "ignore"])
def test_label_policies_against_brute_force(seed: int, blank: str, tmp_path: Path) -> None:
    rows = random_visits(seed)
    raw = dxsum(tmp_path / "raw", rows)
    visits: dict[int, list[tuple[str, str, str]]] = defaultdict(list)
    for rid, code, day, dx in sorted(rows, key=lambda r: r[2]):
        visits[rid].append((code, day, dx))
    stable, baseline, latest = {}, {}, {}
    for rid, history in visits.items():
        ptid = f"002_S_{rid:04d}"
        known = [dx for _, _, dx in history if dx]
        if known and len(set(known)) == 1 and (blank == "ignore" or len(known) == len(history)):
            stable[ptid] = int(known[0]) - 1
        if known:
            latest[ptid] = int(known[-1]) - 1
        first = [dx for code, _, dx in history if code == "bl" and dx]
        if first:
            baseline[ptid] = int(first[-1]) - 1
    assert labels(raw, label="stable_dx", blank_diagnosis=blank) == stable
    assert labels(raw, label="latest_dx") == latest
    assert labels(raw, label="baseline_dx") == baseline


def test_dxchange_maps_to_the_new_state_and_dxcurren_is_the_fallback(tmp_path: Path) -> None:
    text = "Phase,RID,VISCODE,VISCODE2,EXAMDATE,DXCHANGE,DXCURREN,DIAGNOSIS,update_stamp\n"
    expected = {1: 0, 2: 1, 3: 2, 4: 1, 5: 2, 6: 2, 7: 0, 8: 1, 9: 0}
    for change in expected:
        text += f"ADNI2,{3000 + change},v03,bl,2012-01-01,{change},,,2013-01-01\n"
    text += "ADNI1,5,bl,bl,2006-01-01,,3,,2013-01-01\nADNI3,6005,bl,bl,2018-01-01,-4,-4,2,2019-01-01\n"
    text += "ADNI2,3010,v03,bl,2012-01-01,5,,1,2013-01-01\n"
    (tmp_path / "DXSUM_PDXCONV_ADNIALL.csv").write_text(text)
    got = dict(diagnoses(export := AdniExport(tmp_path), "dxsum").select("rid", "dx").iter_rows())
    assert {c: got[3000 + c] for c in expected} == expected
    assert got[5] == 2
    assert got[6005] == 1
    # DIAGNOSIS precedes, and the contradiction is noted.
    assert got[3010] == 0
    assert export.notes == ["DXSUM_PDXCONV_ADNIALL.csv: 1 records have different diagnoses in " + ", ".join(CODED)]


def test_baseline_overrides_screening_and_later_rows_override_earlier_ones(tmp_path: Path) -> None:
    rows = [
        (1, "bl", "2006-02-01", "2"),
        (1, "sc", "2006-01-01", "1"),
        (2, "bl", "2006-02-01", "1"),
        (2, "bl", "2006-02-01", "3"),
    ]
    raw = dxsum(tmp_path / "raw", rows)
    assert labels(raw, label="baseline_dx") == {"002_S_0001": 1, "002_S_0002": 2}
    diagnoses(export := AdniExport(raw), "dxsum")
    assert "DXSUM_01Jan2025.csv: 2 records are of visits with several diagnoses; the last edit counts" in export.notes


def test_attrition_steps_are_consistent_and_count_every_exclusion(tmp_path: Path) -> None:
    rows = [
        (1, "bl", "2006-01-01", "1"),
        (2, "bl", "2006-01-01", ""),
        (3, "bl", "2006-01-01", "1"),
        (3, "m06", "2006-07-01", "2"),
        (4, "bl", "2006-01-01", "3"),
        (4, "m06", "2006-07-01", ""),
    ]
    frame = build_cohort(dxsum(tmp_path / "raw", rows), AdniOptions()).attrition
    assert frame["n_after"].to_list() == [4, 3, 2, 1, 1]
    assert frame["n_before"].to_list() == [4, 4, 3, 2, 1]
    # Reasons describe the excluded participants.
    reasons = frame.filter(pl.col("n_before") > pl.col("n_after"))["reason"].to_list()
    assert [reason.partition(" (")[0] for reason in reasons] == [
        "no visit with a diagnosis",
        "a visit without a diagnosis",
        "diagnosis changes between visits",
    ]


def test_an_empty_cohort_is_an_error(tmp_path: Path) -> None:
    rows = [(1, "bl", "2006-01-01", "1"), (1, "m06", "2006-07-01", "2")]
    with pytest.raises(DataError, match="No participants remain with label=stable_dx"):
        build_cohort(dxsum(tmp_path / "raw", rows), AdniOptions())


def random_records(seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = generator(seed, "random records")
    n = 200
    day = [date(2006, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 1000, n)]
    month = [int(m) if x > 0.1 else None for m, x in zip(rng.choice([0, 6, 12, 24], n), rng.random(n), strict=True)]
    frame = pl.DataFrame(
        {
            "rid": rng.integers(1, 25, n),
            "month": month,
            "rank": rng.integers(0, 2, n),
            "date": [d if x > 0.1 else None for d, x in zip(day, rng.random(n), strict=True)],
            "stamp": [
                f"2010-01-{k:02d}" if x > 0.05 else None
                for k, x in zip(rng.integers(1, 28, n), rng.random(n), strict=True)
            ],
            "row": np.arange(n),
            "a": [float(v) if x > 0.4 else None for v, x in zip(rng.normal(size=n), rng.random(n), strict=True)],
            "b": [float(v) if x > 0.4 else None for v, x in zip(rng.normal(size=n), rng.random(n), strict=True)],
        },
        schema_overrides={"rid": pl.Int32, "month": pl.Int32, "rank": pl.Int32},
    )
    # A date, or an estimate from the month.
    estimate = pl.date(2006, 1, 1).dt.offset_by(pl.format("{}mo", "month"))
    frame = frame.with_columns(pl.coalesce("date", estimate).alias("when"))
    cohort = pl.DataFrame(
        {"rid": range(1, 31), "visit_month": [12] * 30, "visit_date": [date(2007, 3, 1)] * 30},
        schema_overrides={"rid": pl.Int32, "visit_month": pl.Int32},
    )
    return frame, cohort


def before(x: object) -> tuple[bool, object]:
    """Sort key that places unknown values first."""
    return (x is not None, x if x is not None else 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", ["baseline", "latest_update", "latest_before_dx"])
@pytest.mark.parametrize("whole", [False, True])
def test_row_policies_against_brute_force(seed: int, policy: str, whole: bool) -> None:
    frame, cohort = random_records(seed)
    got = pick(frame, cohort, policy, ["a", "b"], whole=whole)
    for rid, visit_month, visit_date in cohort.iter_rows():
        records = [r for r in frame.iter_rows(named=True) if r["rid"] == rid]
        if policy == "baseline":
            records = [r for r in records if r["month"] is not None and r["month"] <= 0]
        elif policy == "latest_before_dx":
            records = [
                r
                for r in records
                if (r["date"] <= visit_date if r["date"] else r["month"] is not None and r["month"] <= visit_month)
                # A visit code of a later visit excludes a record, whatever its date.
                and (r["month"] is None or r["month"] <= visit_month + 6)
            ]
        names = ("stamp", "row") if policy == "latest_update" else ("when", "month", "rank", "stamp", "row")
        records.sort(
            key=lambda r: (
                tuple(before(r[k]) if k != "when" else (r[k] is not None, r[k] or date.min) for k in names)
                if policy != "latest_update"
                else ((r["stamp"] is not None, r["stamp"] or ""), r["row"])
            )
        )
        if whole:
            filled = [r for r in records if r["a"] is not None or r["b"] is not None]
            expected = (filled[-1]["a"], filled[-1]["b"]) if filled else (None, None)
        else:
            a, b = ([r[k] for r in records if r[k] is not None] for k in ("a", "b"))
            expected = (a[-1] if a else None, b[-1] if b else None)
        row = got.filter(pl.col("rid") == rid)
        assert (row["a"][0], row["b"][0]) == expected


def test_row_policy_defaults_to_the_profile_and_can_be_overridden() -> None:
    assert row_policy(AdniOptions()) == "baseline"
    assert row_policy(AdniOptions(profile="paper")) == "latest_update"
    assert row_policy(AdniOptions(profile="paper", rows="latest_before_dx")) == "latest_before_dx"


def test_baseline_features_do_not_depend_on_later_visits(tmp_path: Path) -> None:
    """Removing every record after baseline does not change the baseline features."""
    from mrpipe.datasets.adni.forms.clinical import clinical_features

    simulate(DATASET, tmp_path / "raw", {"n_subjects": 60, "n_snps": 96, "images": False})
    options = AdniOptions()
    cohort = build_cohort(tmp_path / "raw", options).samples
    _, before_cut = clinical_features(AdniExport(tmp_path / "raw"), cohort, options)
    for path in sorted((tmp_path / "raw").glob("*.csv")):
        frame = pl.read_csv(path, infer_schema=False)
        if "VISCODE2" in frame.columns and "DXSUM" not in path.name:
            frame.filter(pl.col("VISCODE2").is_in(["sc", "bl", ""])).write_csv(path, quote_style="always")
    _, after_cut = clinical_features(AdniExport(tmp_path / "raw"), cohort, options)
    assert after_cut.equals(before_cut)


def test_simulation_matches_published_frequencies_and_its_ground_truth(tmp_path: Path) -> None:
    """Classes 43.8, 35.3 and 21.0 %; six modality combinations, all of which include clinical."""
    simulate(DATASET, tmp_path / "raw", {"n_subjects": 1200, "n_snps": 48, "images": False})
    truth = pl.read_parquet(truth_folder(tmp_path / "raw") / "truth.parquet")
    share = truth["pattern"].value_counts(normalize=True)
    expected = {"BCGI": 0.45, "BCI": 0.25, "BC": 0.12, "C": 0.07, "CI": 0.06, "BCG": 0.05}
    assert {p: pytest.approx(f, abs=0.002) for p, f in expected.items()} == dict(share.iter_rows())
    classes = [float((truth["diagnosis"] == c).mean() or 0) for c in CLASSES]
    np.testing.assert_allclose(classes, [0.438, 0.353, 0.21], atol=0.05)
    # The label of participants with a stable diagnosis is their true class.
    cohort = build_cohort(tmp_path / "raw", AdniOptions())
    joined = cohort.labels["diagnosis"].join(truth, on="sample_id")
    right = joined["diagnosis"] == pl.Series([CLASSES[v] for v in joined["value"]])
    assert right.filter(joined["stable"]).all()
    assert 0.6 < len(joined) / len(truth) < 0.75
    posterior = truth.select(f"bayes_{c}" for c in CLASSES).to_numpy()
    np.testing.assert_allclose(posterior.sum(axis=1), 1.0, atol=1e-9)
    best = np.array(CLASSES)[posterior.argmax(axis=1)] == truth["diagnosis"].to_numpy()
    assert best.mean() == pytest.approx(posterior.max(axis=1).mean(), abs=0.04)
