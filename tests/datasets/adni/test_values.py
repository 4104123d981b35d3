"""Parsing of ADNI field values: missing codes, multi-selects, censored assays, dates and visit codes."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest

from mrpipe.datasets.adni.forms import values
from tests.datasets.adni.adni_toy import one


def test_minus_four_and_minus_one_are_missing_in_every_phase() -> None:
    """None of the columns that are read has −1 as a value, so that it is missing outside ADNI1 as well."""
    cells = ["-4", "-4.0", "-1", "-1.0", "", "NA", "0", "1", None]
    expected = [*[True] * 6, False, False, None]
    for phase in ("ADNI1", "ADNI3"):
        assert one(values.is_missing_code("x", positive=False), *cells, phase=phase) == expected
    assert one(values.is_missing_code("x", positive=True), "-1", "0", "-4", "61.5") == [True, True, True, False]


def test_codes_are_normalised() -> None:
    assert one(values.level_of("x", (("0", "no"), ("1", "yes"))), "1", "01", " 1 ", "1.0", "0", "00", "2", "x") == [
        1,
        1,
        1,
        1,
        0,
        0,
        None,
        None,
    ]


def test_multi_selects_are_split_at_bars_and_colons() -> None:
    got = one(values.selections("x"), "1|02", "1:2", "4|5", "5", "05|", "5|-4", None)
    assert got == [["1", "2"], ["1", "2"], ["4", "5"], ["5"], ["5"], ["5"], None]


def test_censored_assays_have_a_number_and_a_side() -> None:
    cells = [">1700", "<80", "< 8", "<LLOQ", "<LOD", "812.5", None]
    assert one(values.number("x"), *cells) == [1700.0, 80.0, 8.0, None, None, 812.5, None]
    assert one(values.limit("x"), *cells) == [1, -1, -1, -1, -1, 0, None]


def test_columns_with_days_first_are_read_as_such() -> None:
    cells = ["25/03/2012", "05/03/2012", None]
    assert one(values.date("x"), *cells) == [date(2012, 3, 25), date(2012, 3, 5), None]
    # Both orders in one column: only what is a date in the order of the export.
    assert one(values.date("x"), "25/03/2012", "03/25/2012") == [None, date(2012, 3, 25)]


def test_dates_as_other_programs_write_them() -> None:
    cells = ["5/2/2006 0:00", "2.5.2006", "02.05.2006 12:30", "2006/05/02", "20060502", "02-MAY-2006", "2May2006"]
    assert one(values.date("x"), *cells, "2006-05-02T10:00:00", "2006-05-02Z") == [date(2006, 5, 2)] * 9
    # A year of two digits after the name of a month, a number of days, and a month and year are no dates.
    assert one(values.date("x"), "02-MAY-06", "38839", "May 2006", "32.01.2006", "200605") == [None] * 5


def test_dates_and_partial_dates_are_parsed() -> None:
    cells = ["2008-05-17", "5/17/2008", "5/7/08", "--/05/2008", "--/--/2008", "", None]
    assert one(values.date("x"), *cells) == [date(2008, 5, 17), date(2008, 5, 17), date(2008, 5, 7), *[None] * 4]
    assert (
        one(values.year("x"), "--/05/2008", "--/--/2008", "2008-05-17", "2008", "9999", "-4") == [2008] * 4 + [None] * 2
    )


@pytest.mark.parametrize(
    ("rid", "phase", "viscode", "viscode2", "month"),
    [
        # Harmonised months hold in every phase.
        (4100, "ADNI2", "v03", "bl", 0),
        (4100, "ADNI2", "v21", "m24", 24),
        (4100, "ADNI3", "init", "m48", 48),
        (14, "ADNIGO", "m48", None, 48),
        (14, "ADNI1", "m06", "m06", 6),
        # Codes of a phase hold in the phase of enrolment.
        (4100, "ADNI2", "v03", None, 0),
        (4100, "ADNI2", "v11", None, 12),
        (6100, "ADNI3", "y2", None, 24),
        (10100, "ADNI4", "4_m12", None, 12),
        (10100, "ADNI4", "4_bl", None, 0),
        (14, "ADNI1", "sc", "sc", 0),
        (14, "ADNI1", "f", None, 0),
        # In later phases they count from another visit, so that the month is unknown.
        (4100, "ADNI3", "init", None, None),
        (4100, "ADNI3", "bl", None, None),
        (4100, "ADNI3", "y1", "", None),
        (4100, "ADNI4", "4_bl", None, None),
        (4100, "ADNI4", "4_sc", "4_sc", None),
        (14, "ADNI2", "v03", None, None),
        (14, "ADNI2", "v11", None, None),
        # Without a phase, the code tells it.
        (4100, None, "init", None, None),
        (4100, None, "4_m12", None, None),
        (14, None, "v11", None, None),
        (4100, None, "bl", None, 0),
        (4100, "ADNI2", "nv", "nv", None),
        (4100, "ADNI2", "uns1", "", None),
    ],
)
def test_visit_codes_give_months_since_the_baseline_of_the_participant(
    rid: int, phase: str | None, viscode: str, viscode2: str | None, month: int | None
) -> None:
    frame = pl.DataFrame(
        [(rid, phase, viscode, viscode2)],
        schema={"rid": pl.Int32, "PHASE": pl.String, "VISCODE": pl.String, "VISCODE2": pl.String},
        orient="row",
    ).with_columns(values.phase("PHASE", "VISCODE").alias("phase"))
    assert frame.select(values.visit_month("VISCODE", "VISCODE2")).item() == month


def test_baseline_visits_follow_screening() -> None:
    codes = [("sc", "sc"), ("bl", "bl"), ("v03", None), ("v11", "m12")]
    frame = pl.DataFrame(codes, schema=["VISCODE", "VISCODE2"], orient="row")
    assert frame.select(values.visit_rank("VISCODE", "VISCODE2"))[:, 0].to_list() == [0, 1, 1, 0]


def test_time_stamps_written_by_a_spreadsheet_sort_by_time() -> None:
    got = one(values.stamp("x"), "2012-03-02 10:00:00.0", "11/5/2011 9:07", "3/12/2012 10:00", None)
    assert got == ["2012-03-02 10:00:00.0", "2011-11-05 09:07", "2012-03-12 10:00", None]
    got = one(values.stamp("x"), "5/11/2011 9:07", "25/3/2012 10:00", "now")
    assert got == ["2011-11-05 09:07", "2012-03-25 10:00", "now"]


def test_phase_from_rid_and_from_spelling_variants() -> None:
    numbers = pl.DataFrame({"r": [1, 1999, 2000, 2999, 3000, 5999, 6000, 9999, 10000]})
    got = numbers.select(values.original_phase(pl.col("r")))[:, 0].to_list()
    assert got == ["ADNI1", "ADNI1", "ADNIGO", "ADNIGO", "ADNI2", "ADNI2", "ADNI3", "ADNI3", "ADNI4"]
    rows = [("ADNI1", "bl"), ("adni 1", "bl"), ("ADNIGO2", "sc"), ("ADNI_3", "bl"), (None, "4_bl"), (None, "bl")]
    frame = pl.DataFrame([(4100, *row) for row in rows], schema=["rid", "x", "code"], orient="row")
    got = frame.select(values.phase("x", "code"))[:, 0].to_list()
    assert got == ["ADNI1", "ADNI1", "ADNI2", "ADNI3", "ADNI4", "ADNI2"]
