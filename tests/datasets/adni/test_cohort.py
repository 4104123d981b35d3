"""Labels and rows of ADNI against brute force over small random tables, and against the simulation's truth."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.cohort import build_cohort
from mrpipe.datasets.adni.export import diagnoses
from mrpipe.datasets.adni.forms.rows import pick, row_policy
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import CLASSES
from mrpipe.errors import DataError
from mrpipe.keyed import generator
from mrpipe.stages.simulate import simulate
from mrpipe.store.layout import truth_folder

HEADER = "PHASE,PTID,RID,VISCODE,VISCODE2,EXAMDATE,DIAGNOSIS,update_stamp\n"


def dxsum(folder: Path, rows: list[tuple[int, str, str, str]]) -> Path:
    """DXSUM of (rid, viscode2, date, diagnosis) rows."""
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


def test_conversions_and_reversions_of_dxchange_go_to_the_new_state_and_dxcurren_is_the_last_resort(
    tmp_path: Path,
) -> None:
    text = "Phase,RID,VISCODE,VISCODE2,EXAMDATE,DXCHANGE,DXCURREN,DIAGNOSIS,update_stamp\n"
    expected = {1: 0, 2: 1, 3: 2, 4: 1, 5: 2, 6: 2, 7: 0, 8: 1, 9: 0}
    for change in expected:
        text += f"ADNI2,{3000 + change},v03,bl,2012-01-01,{change},,,2013-01-01\n"
    text += "ADNI1,5,bl,bl,2006-01-01,,3,,2013-01-01\nADNI3,6005,bl,bl,2018-01-01,-4,-4,2,2019-01-01\n"
    (tmp_path / "DXSUM_PDXCONV_ADNIALL.csv").write_text(text)
    from mrpipe.datasets.adni.export import AdniExport

    got = {rid: dx for rid, dx in diagnoses(AdniExport(tmp_path), "dxsum").select("rid", "dx").iter_rows()}
    assert {c: got[3000 + c] for c in expected} == expected
    assert got[5] == 2
    assert got[6005] == 1


def test_screening_comes_before_baseline_and_a_second_entry_of_a_visit_replaces_the_first(tmp_path: Path) -> None:
    rows = [
        (1, "bl", "2006-02-01", "2"),
        (1, "sc", "2006-01-01", "1"),
        (2, "bl", "2006-02-01", "1"),
        (2, "bl", "2006-02-01", "3"),
    ]
    assert labels(dxsum(tmp_path / "raw", rows), label="baseline_dx") == {"002_S_0001": 1, "002_S_0002": 2}


def test_attrition_chains_and_counts_every_exclusion(tmp_path: Path) -> None:
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
    # A reason says what is true of those who go: the methods text writes "left out: REASON".
    gone = frame.filter(pl.col("n_before") > pl.col("n_after"))["reason"].to_list()
    assert [reason.partition(" (")[0] for reason in gone] == [
        "no visit with a diagnosis",
        "a visit without a diagnosis",
        "the diagnosis changes",
    ]


def test_nobody_left_is_a_fault(tmp_path: Path) -> None:
    rows = [(1, "bl", "2006-01-01", "1"), (1, "m06", "2006-07-01", "2")]
    with pytest.raises(DataError, match="label=stable_dx left nobody"):
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
    cohort = pl.DataFrame(
        {"rid": range(1, 31), "visit_month": [12] * 30, "visit_date": [date(2007, 3, 1)] * 30},
        schema_overrides={"rid": pl.Int32, "visit_month": pl.Int32},
    )
    return frame, cohort


def before(x: object) -> tuple[bool, object]:
    """Sort key: unknown first."""
    return (x is not None, x if x is not None else 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", ["baseline", "latest_update", "latest_before_dx"])
@pytest.mark.parametrize("whole", [False, True])
def test_row_policies_against_brute_force(seed: int, policy: str, whole: bool) -> None:
    frame, cohort = random_records(seed)
    got = pick(frame, cohort, policy, ["a", "b"], whole=whole)
    for rid, visit_month, visit_date in cohort.iter_rows():
        mine = [r for r in frame.iter_rows(named=True) if r["rid"] == rid]
        if policy == "baseline":
            mine = [r for r in mine if r["month"] is not None and r["month"] <= 0]
        elif policy == "latest_before_dx":
            mine = [
                r
                for r in mine
                if (r["date"] <= visit_date if r["date"] else r["month"] is not None and r["month"] <= visit_month)
            ]
        names = ("stamp", "row") if policy == "latest_update" else ("month", "rank", "date", "stamp", "row")
        mine.sort(
            key=lambda r: (
                tuple(before(r[k]) if k != "date" else (r[k] is not None, r[k] or date.min) for k in names)
                if policy != "latest_update"
                else ((r["stamp"] is not None, r["stamp"] or ""), r["row"])
            )
        )
        if whole:
            some = [r for r in mine if r["a"] is not None or r["b"] is not None]
            expected = (some[-1]["a"], some[-1]["b"]) if some else (None, None)
        else:
            a, b = ([r[k] for r in mine if r[k] is not None] for k in ("a", "b"))
            expected = (a[-1] if a else None, b[-1] if b else None)
        row = got.filter(pl.col("rid") == rid)
        assert (row["a"][0], row["b"][0]) == expected


def test_profiles_have_their_row_policy_and_a_named_one_wins() -> None:
    assert row_policy(AdniOptions()) == "baseline"
    assert row_policy(AdniOptions(profile="paper")) == "latest_update"
    assert row_policy(AdniOptions(profile="paper", rows="latest_before_dx")) == "latest_before_dx"


def test_baseline_rows_hold_nothing_of_later_visits(tmp_path: Path) -> None:
    """The past does not know the future: dropping every later record changes no baseline feature."""
    from mrpipe.datasets.adni.export import AdniExport
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


def test_the_simulation_has_the_published_mix_and_the_truth_agrees(tmp_path: Path) -> None:
    """E.1: classes 43.8 / 35.3 / 21.0 %, six combinations with the working frequencies, all with clinical."""
    simulate(DATASET, tmp_path / "raw", {"n_subjects": 1200, "n_snps": 48, "images": False})
    truth = pl.read_parquet(truth_folder(tmp_path / "raw") / "truth.parquet")
    share = truth["pattern"].value_counts(normalize=True)
    expected = {"BCGI": 0.45, "BCI": 0.25, "BC": 0.12, "C": 0.07, "CI": 0.06, "BCG": 0.05}
    assert {p: pytest.approx(f, abs=0.002) for p, f in expected.items()} == dict(share.iter_rows())
    classes = [float((truth["diagnosis"] == c).mean() or 0) for c in CLASSES]
    np.testing.assert_allclose(classes, [0.438, 0.353, 0.21], atol=0.05)
    # The label of a participant who never changes is the class that the truth says.
    cohort = build_cohort(tmp_path / "raw", AdniOptions())
    joined = cohort.labels["diagnosis"].join(truth, on="sample_id")
    right = joined["diagnosis"] == pl.Series([CLASSES[v] for v in joined["value"]])
    assert right.filter(joined["stable"]).all()
    assert 0.6 < len(joined) / len(truth) < 0.75
    posterior = truth.select(f"bayes_{c}" for c in CLASSES).to_numpy()
    np.testing.assert_allclose(posterior.sum(axis=1), 1.0, atol=1e-9)
    best = np.array(CLASSES)[posterior.argmax(axis=1)] == truth["diagnosis"].to_numpy()
    assert best.mean() == pytest.approx(posterior.max(axis=1).mean(), abs=0.04)
