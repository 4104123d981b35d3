"""Time in ADNI: phase-relative visit codes, contradicting dates, and canaries in records of later visits."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.cohort import build_cohort, diagnoses
from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms.biospecimen import biospecimen_features
from mrpipe.datasets.adni.forms.clinical import clinical_features
from mrpipe.datasets.adni.forms.rows import pick
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import DXSUM, RECCMEDS, VITALS
from mrpipe.stages.check import check
from tests.datasets.adni.adni_toy import edit, table_path, write

HEADER = "PHASE,PTID,RID,VISCODE,VISCODE2,EXAMDATE,DIAGNOSIS,update_stamp\n"
NEXT = {"ADNI1": "ADNIGO", "ADNIGO": "ADNI2", "ADNI2": "ADNI3", "ADNI3": "ADNI4", "ADNI4": "ADNI4"}
CODES = {"ADNI1": "m60", "ADNIGO": "v03", "ADNI2": "init", "ADNI3": "4_bl", "ADNI4": "nv"}
# Constant facts, which a later record may supply but never change.
STATIC = ("PTGENDER", "PTHAND", "PTETHCAT", "race_", "age", "apoe_")


def dxsum(raw: Path, *rows: str) -> Path:
    write(raw, "DXSUM_01Jan2025.csv", HEADER + "".join(f"{row},2020-01-01\n" for row in rows))
    return raw


def labels(raw: Path, policy: str) -> list[int]:
    return build_cohort(raw, AdniOptions(label=policy)).labels["diagnosis"]["value"].to_list()


@pytest.mark.parametrize(("phase", "code"), [("ADNI3", "init"), ("ADNI3", "bl"), ("", "init"), ("ADNI4", "4_bl")])
def test_the_first_visit_of_a_later_phase_is_not_the_baseline(phase: str, code: str, tmp_path: Path) -> None:
    raw = dxsum(
        tmp_path,
        "ADNI2,002_S_4100,4100,v03,bl,2012-03-01,1",
        f"{phase},002_S_4100,4100,{code},,2018-03-01,3",
        "ADNI2,002_S_4100,4100,v11,m12,2013-03-01,1",
    )
    assert (labels(raw, "latest_dx"), labels(raw, "baseline_dx")) == ([2], [0])
    options = AdniOptions(label="latest_dx", rows="latest_before_dx")
    assert build_cohort(raw, options).samples["visit_month"].to_list() == [72]


def test_labels_are_ordered_by_date_before_visit_code(tmp_path: Path) -> None:
    raw = dxsum(
        tmp_path,
        "ADNI2,002_S_4100,4100,v03,bl,2012-03-01,1",
        "ADNI2,002_S_4100,4100,v21,m24,2014-03-01,2",
        "ADNI2,002_S_4100,4100,nv,,2014-09-01,3",
        "ADNI2,002_S_4100,4100,v11,m12,,1",
    )
    assert labels(raw, "latest_dx") == [2]
    months = diagnoses(AdniExport(raw), "dxsum").select("month", "date").rows()
    assert months == [(0, date(2012, 3, 1)), (12, None), (24, date(2014, 3, 1)), (30, date(2014, 9, 1))]


def test_codes_and_dates_that_contradict_each_other_are_noted_and_never_count_as_baseline(tmp_path: Path) -> None:
    raw = dxsum(
        tmp_path,
        "ADNI2,002_S_4100,4100,v03,bl,2012-03-01,1",
        "ADNI3,002_S_4100,4100,bl,bl,2018-03-01,3",  # a date of another phase
        "ADNI2,002_S_4100,4100,v21,m24,2004-03-01,3",  # a date years before baseline
        "ADNI2,002_S_4100,4100,nv,,2004-03-01,3",
        "ADNI2,002_S_4100,4100,nv,,,3",
        "ADNI2,002_S_4100,4100,nv,,March 2013,3",
    )
    export = AdniExport(raw)
    assert sorted(diagnoses(export, "dxsum")["month"].drop_nulls().to_list()) == [0, 24, 72]
    assert labels(raw, "baseline_dx") == [0]
    notes = "\n".join(export.notes)
    assert "DXSUM_01Jan2025.csv: 2 records of 1 participants have a visit code and a date that differ" in notes
    assert "1 records without a month in their visit code are dated more than six months before baseline" in notes
    assert "2 records have no month in their visit code and no date" in notes
    assert "1 visit dates are not YYYY-MM-DD or M/D/YYYY" in notes
    assert "4100" not in notes


def test_a_visit_code_of_a_later_visit_excludes_a_record_before_the_label(tmp_path: Path) -> None:
    """The date of the second record is wrong, by its visit code."""
    dxsum(tmp_path, "ADNI2,002_S_4100,4100,v03,bl,2012-03-01,1", "ADNI2,002_S_4100,4100,v11,m12,2013-03-01,1")
    units = "VSWTUNIT,VSHEIGHT,VSHTUNIT,VSBPSYS,VSBPDIA,VSPULSE,VSRESP,VSTEMP,VSTMPUNT"
    rows = [
        f"ADNI2,002_S_4100,4100,,{c},{d},{kg},2,,,,,,,,\n"
        for c, d, kg in (("bl", "2012-03-01", 80), ("m60", "2012-04-01", 50))
    ]
    write(
        tmp_path, "VITALS_01Jan2025.csv", f"PHASE,PTID,RID,VISCODE,VISCODE2,VISDATE,VSWEIGHT,{units}\n{''.join(rows)}"
    )
    cohort = build_cohort(tmp_path, AdniOptions(label="latest_dx", rows="latest_before_dx")).samples
    assert cohort["visit_month"].to_list() == [12]
    for policy in ("latest_before_dx", "baseline"):
        assert pick(AdniExport(tmp_path).timed(VITALS), cohort, policy, ["VSWEIGHT"])["VSWEIGHT"].to_list() == [80.0]


def test_a_wrong_date_of_the_baseline_visit_does_not_move_the_other_visits(tmp_path: Path) -> None:
    """The date of the baseline visit in DXSUM is wrong, as two records of another table show."""
    rows = [("v03", "bl", "2002-03-01", 1), ("v05", "m06", "2012-09-01", 1), ("v11", "m12", "2013-03-01", 2)]
    raw = dxsum(tmp_path, *(f"ADNI2,002_S_4100,4100,{a},{b},{d},{x}" for a, b, d, x in rows))
    registry = "PHASE,RID,VISCODE,VISCODE2,VISDATE\nADNI2,4100,v01,sc,2012-02-15\nADNI2,4100,v03,bl,2012-03-01\n"
    write(raw, "REGISTRY_01Jan2025.csv", registry)
    assert AdniExport(raw).baselines["date0"].to_list() == [date(2012, 3, 1)]
    assert diagnoses(AdniExport(raw), "dxsum")["month"].to_list() == [0, 6, 12]
    assert labels(raw, "baseline_dx") == [0]


def add_later_records(raw: Path, *, months: int) -> None:
    """Append the records of every table again, of a later visit and with the values of other participants."""
    for path in raw.glob("*.csv"):
        frame = pl.read_csv(path, infer_schema=False)
        keys = [c for c in frame.columns if c in ("PHASE", "PTID", "RID", "VISCODE", "VISCODE2", "EXAMDATE", "VISDATE")]
        day = next((c for c in ("EXAMDATE", "VISDATE") if c in keys), None)
        if "RID" not in keys or "batemanlab" in path.name:
            continue
        rid = pl.col("RID").cast(pl.Int32)
        phase = pl.lit("ADNI4")
        for bound, name in ((10000, "ADNI3"), (6000, "ADNI2"), (3000, "ADNIGO"), (2000, "ADNI1")):
            phase = pl.when(rid < bound).then(pl.lit(name)).otherwise(phase)
        changed = {c: pl.col(c).reverse() for c in frame.columns if c not in keys}
        if "PHASE" in keys:
            changed["PHASE"] = phase.replace(NEXT)
        if "VISCODE" in keys:
            changed["VISCODE"] = phase.replace(CODES)
        if "VISCODE2" in keys:
            changed["VISCODE2"] = pl.lit("")
        if "update_stamp" in frame.columns:
            changed["update_stamp"] = pl.lit("2030-01-01 10:00:00.0")
        if day:
            late = pl.col(day).str.to_date("%Y-%m-%d", strict=False).fill_null(date(2024, 1, 1)) + timedelta(
                30 * months
            )
            changed[day] = late.cast(pl.String)
        pl.concat([frame, frame.with_columns(**changed)]).write_csv(path, quote_style="always")


@pytest.mark.parametrize("rows", ["baseline", "latest_before_dx"])
def test_records_of_later_visits_change_neither_labels_nor_features(adni_export: Path, rows: str) -> None:
    options = AdniOptions(label="baseline_dx", rows=rows, plasma_nfl=True, isoprostane=True)

    def build() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        cohort = build_cohort(adni_export, options)
        export = AdniExport(adni_export)
        features = [f(export, cohort.samples, options)[1] for f in (clinical_features, biospecimen_features)]
        return cohort.samples.join(cohort.labels["diagnosis"], on="sample_id"), *features  # type: ignore[return-value]

    before = build()
    add_later_records(adni_export, months=80)
    after = build()
    assert after[0].equals(before[0])
    for old, new in zip(before[1:], after[1:], strict=True):
        for name in old.columns:
            known = old[name].is_not_null() if name.startswith(STATIC) else pl.Series([True] * len(old))
            assert new[name].filter(known).equals(old[name].filter(known)), name


def test_medications_that_ended_before_or_began_after_the_visit_do_not_count(adni_export: Path) -> None:
    path = table_path(adni_export, "RECCMEDS")
    cohort = build_cohort(adni_export, AdniOptions()).samples

    def taken(begin: str, end: str, continuing: str) -> int:
        edit(path, CMMED=pl.lit("aspirin"), CMBGN=pl.lit(begin), CMEND=pl.lit(end), CMCONT=pl.lit(continuing))
        return int(clinical_features(AdniExport(adni_export), cohort, AdniOptions())[1]["drug_aspirin"].sum())

    everybody = taken("", "", "1")
    assert (
        everybody
        == AdniExport(adni_export).timed(RECCMEDS).filter(pl.col("month") <= 0).join(cohort, on="rid")["rid"].n_unique()
    )
    assert taken("1999-01-01", "2001-01-01", "1") == everybody
    assert taken("1999-01-01", "2001-01-01", "0") == 0
    assert taken("2031-01-01", "", "") == 0
    assert taken("1999-01-01", "2031-01-01", "0") == everybody


def test_an_unknown_month_is_noted_by_check(adni_export: Path) -> None:
    edit(table_path(adni_export, "VITALS"), VISCODE=pl.lit(""), VISCODE2=pl.lit(""), VISDATE=pl.lit(""))
    notes = "\n".join(check(DATASET, adni_export, {})["notes"])
    n = len(AdniExport(adni_export).require(VITALS))
    assert f"{n} records have no month in their visit code and no date" in notes
    assert "features are unknown for every sample: " in notes
    assert AdniExport(adni_export).path(DXSUM) is not None
