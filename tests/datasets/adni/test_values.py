"""Parsing of ADNI field values: missing codes, multi-selects, censored assays, dates and visit codes."""

from __future__ import annotations

from datetime import date

import polars as pl

from mrpipe.datasets.adni.forms import values
from mrpipe.datasets.adni.tables import YES_NO
from tests.datasets.adni.adni_toy import one


def test_minus_four_is_missing_in_every_phase_and_minus_one_in_adni1() -> None:
    cells = ["-4", "-4.0", "-1", "-1.0", "0", "1", "", None]
    usual = values.is_missing_code("x", positive=False)
    assert one(usual, *cells) == [True, True, False, False, False, False, True, None]
    assert one(usual, *cells, phase="ADNI1")[:6] == [True, True, True, True, False, False]
    measured = values.is_missing_code("x", positive=True)
    for phase in ("ADNI1", "ADNI3"):
        assert one(measured, "-1", "0", "-4", "61.5", phase=phase) == [True, True, True, False]


def test_codes_are_normalised() -> None:
    assert one(values.level_of("x", YES_NO), "1", "01", " 1 ", "1.0", "0", "00", "2", "x") == [
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
    got = one(values.selections("x"), "1|02", "1:2", "4|5", "5", "05|", None)
    assert got == [["1", "2"], ["1", "2"], ["4", "5"], ["5"], ["5"], None]


def test_censored_assays_have_a_number_and_a_side() -> None:
    cells = [">1700", "<80", "< 8", "<LLOQ", "<LOD", "812.5", None]
    assert one(values.number("x"), *cells) == [1700.0, 80.0, 8.0, None, None, 812.5, None]
    assert one(values.limit("x"), *cells) == [1, -1, -1, -1, -1, 0, None]


def test_dates_and_partial_dates_are_parsed() -> None:
    cells = ["2008-05-17", "5/17/2008", "5/7/08", "--/05/2008", "--/--/2008", "", None]
    assert one(values.date("x"), *cells) == [date(2008, 5, 17), date(2008, 5, 17), date(2008, 5, 7), *[None] * 4]
    assert (
        one(values.year("x"), "--/05/2008", "--/--/2008", "2008-05-17", "2008", "9999", "-4") == [2008] * 4 + [None] * 2
    )


def test_visit_codes_of_every_phase_map_to_months() -> None:
    frame = pl.DataFrame(
        [
            ("sc", "sc"),
            ("bl", "bl"),
            ("v03", None),
            ("v11", None),
            ("y2", None),
            ("4_m12", None),
            ("4_bl", None),
            ("v01", "sc"),
            ("m06", "m06"),
            ("v21", "m24"),
            ("nv", "nv"),
            ("uns1", ""),
            ("init", "m48"),
            ("f", None),
        ],
        schema=["VISCODE", "VISCODE2"],
        orient="row",
    )
    months = frame.select(values.visit_month("VISCODE", "VISCODE2"))[:, 0].to_list()
    assert months == [0, 0, 0, 12, 24, 12, 0, 0, 6, 24, None, None, 48, 0]
    ranks = frame.select(values.visit_rank("VISCODE", "VISCODE2"))[:, 0].to_list()
    assert ranks[:3] == [0, 1, 1]


def test_phase_from_rid_and_from_spelling_variants() -> None:
    numbers = pl.DataFrame({"r": [1, 1999, 2000, 2999, 3000, 5999, 6000, 9999, 10000]})
    got = numbers.select(values.original_phase(pl.col("r")))[:, 0].to_list()
    assert got == ["ADNI1", "ADNI1", "ADNIGO", "ADNIGO", "ADNI2", "ADNI2", "ADNI3", "ADNI3", "ADNI4"]
    assert one(values.phase("x"), "ADNI1", "adni 1", "ADNIGO2", "ADNI_3") == ["ADNI1", "ADNI1", "ADNI2", "ADNI3"]
