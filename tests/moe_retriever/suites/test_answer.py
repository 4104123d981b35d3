"""Sentences and forest plots of comparisons, from predictions with known numbers of correct samples."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from moe_retriever.evaluation.intervals import Estimate
from moe_retriever.evaluation.paired import Comparison, Predicted
from moe_retriever.metrics import METRIC
from moe_retriever.plots.forest import forest
from moe_retriever.suites.answer import MOST, MOST_ROWS, Compared, answer_markdown, forests, sentences
from moe_retriever.suites.published import dataset_title
from mrpipe.privacy import Count

N = 200
MASK = {"mechanism": "mcar", "p": 0.3, "hidden": 0.234}


def predicted(n_right: int, seed: int = 0) -> Predicted:
    """Predictions of two classes, of which the first `n_right` of a fixed order are correct."""
    label = np.arange(N) % 2
    right = np.random.default_rng(1).permutation(N) < n_right + seed
    p = np.where(np.where(right, label, 1 - label) == 1, 0.8, 0.2)
    return Predicted(label, np.stack([1 - p, p], 1), np.array([f"s{i:03d}" for i in range(N)]))


def compared(right: Mapping[str, int], seeds: int = 3, **changes: Any) -> Compared:
    runs = {name: {s: predicted(n, s) for s in range(seeds)} for name, n in right.items()}
    usual: dict[str, Any] = {"data": "CMU-MOSI", "view": "", "n": N, "missingness": MASK}
    usual |= {"simulated": False, "metric": "accuracy", "controls": frozenset({"late fusion"})}
    return Compared(**usual | {"comparison": Comparison(runs), "reference": "MoE-Retriever"} | changes)


WHERE = "On CMU-MOSI (200 test clips, 23 % of the modalities hidden, 3 seeds) MoE-Retriever is "


def test_a_small_deficit_is_no_difference_shown() -> None:
    said = compared({"MoE-Retriever": 140, "late fusion": 141}).sentence()
    assert re.fullmatch(
        re.escape(WHERE) + r"0\.5 points behind late fusion in accuracy \[.*\]: no difference shown\.", said
    )
    low, high = map(float, re.search(r"\[(.*)\]", said.replace("−", "-"))[1].split(", "))  # type: ignore[index]
    assert low < 0 < 0.5 < high


def test_a_large_lead_is_a_difference_shown() -> None:
    said = compared({"MoE-Retriever": 160, "late fusion": 100}, strongest="late fusion").sentence()
    start = re.escape(WHERE) + r"30\.0 points ahead of late fusion \(the strongest control\) in accuracy "
    assert re.fullmatch(start + r"\[.*\]: difference shown\.", said)


def test_the_other_rivals_are_counted_and_the_strongest_control_has_its_own_sentence() -> None:
    right = {"MoE-Retriever": 140, "late fusion": 100, "MUSE": 190, "DyMo": 141}
    said = compared(right, strongest="late fusion").sentence()
    assert "25.0 points behind MUSE in accuracy" in said
    assert "difference shown after correction for 3 comparisons. " in said
    assert "It is shown to be better than 1 and worse than 1 of 3 rivals." in said
    assert "20.0 points ahead of the strongest control, late fusion, in accuracy" in said


def test_equal_methods_are_level() -> None:
    said = compared({"MoE-Retriever": 140, "late fusion": 140}).sentence()
    assert "MoE-Retriever is level with late fusion in accuracy" in said
    assert said.endswith("no difference shown.")


def test_an_interval_of_a_difference_ends_at_what_is_possible() -> None:
    runs = {"MoE-Retriever": {0: predicted(20), 1: predicted(190)}, "late fusion": {s: predicted(100) for s in (0, 1)}}
    (e,) = compared({}, comparison=Comparison(runs)).differences.values()
    assert e.half_width() > 1
    assert (e.low, e.high) == (-1.0, 1.0)


def test_only_the_first_of_several_large_forest_plots_is_open() -> None:
    small, large = ({"MoE-Retriever": 140} | {f"m{i}": 100 for i in range(n)} for n in (2, MOST_ROWS + 1))
    assert [drawn for *_, drawn in forests([compared(small, 1), compared(small, 1)])] == [True, True]
    assert [drawn for *_, drawn in forests([compared(large, 1), compared(small, 1)])] == [True, False]


def test_without_an_interval_it_is_unknown_whether_methods_differ() -> None:
    runs = {"MoE-Retriever": {s: predicted(140, s) for s in range(3)}, "late fusion": {0: predicted(100)}}
    said = compared({}, comparison=Comparison(runs)).sentence()
    assert "[no interval]: whether they differ is unknown." in said
    assert 'x1="' in (plot := compared({}, comparison=Comparison(runs)).forest())
    assert 'stroke-width="2"' not in plot


@pytest.mark.parametrize(("better", "word"), [("MoE-Retriever", "ahead of"), ("late fusion", "behind")])
def test_of_a_regression_lower_is_better(better: str, word: str) -> None:
    rng = np.random.default_rng(0)
    label = np.linspace(-3, 3, N)
    error = rng.normal(size=N)
    subject = np.array([f"s{i:03d}" for i in range(N)])
    runs = {
        m: {0: Predicted(label, label + error * (0.5 if m == better else 1), subject)}
        for m in ("MoE-Retriever", "late fusion")
    }
    found = compared({}, comparison=Comparison(runs), metric="mae")
    assert re.search(
        rf"is 0\.\d+ {word} late fusion in MAE \(lower is better\) \[0\.\d+, 0\.\d+\]: difference shown",
        found.sentence(),
    )
    # The interval of a method that is better is on the right of zero.
    (at,) = re.findall(r'<svg x="([\d.]+)%"', found.forest())
    (zero,) = set(re.findall(r'<line x1="([\d.]+)%"[^>]*stroke-dasharray', found.forest()))
    assert (float(at) > float(zero)) == (better == "late fusion")


@pytest.mark.parametrize(
    ("dataset", "title", "noun"),
    [("mosei", "CMU-MOSEI", "clips"), ("ch_sims", "CH-SIMS", "clips"), ("enrico", "ENRICO", "screens")],
)
def test_samples_have_the_noun_of_their_data_set(dataset: str, title: str, noun: str) -> None:
    # With and without the title of a store, as in reports of runs and in suites.
    assert dataset_title(dataset) == dataset_title(dataset, "Another: title") == title
    said = compared({"MoE-Retriever": 140, "late fusion": 141}, data=title).sentence()
    assert said.startswith(f"On {title} (200 test {noun}, ")


def test_simulated_data_a_single_method_and_people_are_named() -> None:
    alone = compared({"late fusion": 140}, reference=None, simulated=True, majority=("positive", 0.5))
    said = alone.sentence()
    assert said.startswith("On simulated CMU-MOSI (200 test clips")
    assert re.search(
        r"the accuracy \(%\) of late fusion is 70\.5 \[6\d\.\d, 7\d\.\d\]; always predicting positive reaches 50\.0\.",
        said,
    )
    assert alone.forest() == ""
    few = compared({"MoE-Retriever": 140, "late fusion": 100}, n=Count(3))
    assert "(< 5 test clips" in few.sentence()
    assert not re.search(r"points|70", few.sentence())
    assert few.forest() == ""
    assert few.differences == {}
    assert "(205 test clips" in compared({"MoE-Retriever": 140, "late fusion": 100}, n=Count(203)).sentence()


def test_many_comparisons_are_summarised_by_data_set() -> None:
    won, lost = {"MoE-Retriever": 180, "late fusion": 120}, {"MoE-Retriever": 120, "late fusion": 160}
    many = [compared(won, view=f"view {i}") for i in range(MOST)] + [compared(lost, view="last")]
    (said,) = sentences(many)
    assert (
        "On CMU-MOSI (7 comparisons) MoE-Retriever is shown to be better than the best rival in 6 and worse in 1"
        in said
    )
    # Six leads of 30 points and a deficit of 20.
    assert "On average it is 22.9 points ahead of the best rival in accuracy." in said
    assert len(sentences(many[:MOST])) == MOST
    assert answer_markdown([said], []) == f"* {said}\n"


def test_decimals_follow_the_width_of_the_interval() -> None:
    widths = (None, 0.0, 0.4, 1.0, 1.1, 30.0)
    assert [METRIC["accuracy"].digits(w) for w in widths] == [1, 1, 2, 1, 1, 1]
    assert [METRIC["mae"].digits(w) for w in (None, 0.004, 0.05, 0.5, 5.0, 50.0, 5000.0)] == [3, 3, 3, 2, 1, 0, 0]


def test_the_forest_plot_has_text_as_text_and_differs_without_colour() -> None:
    rows = {"a & b": Estimate(0.2, ((1e-4, 9),)), "c": Estimate(-0.1, ((0.01, 9),)), "n" * 60: Estimate(-0.2)}
    plot = forest(rows, ["+2.0 [1.0, 3.0]", "−1.0", "−2.0"], ["better", "", "worse"], METRIC["accuracy"], "differences")
    assert "<text" in plot
    assert ">a &amp; b</text>" in plot
    assert f">{'n' * 37}…</text>" in plot
    assert (plot.count("<rect"), plot.count("<circle")) == (2, 1)
    places = [float(x) for x in re.findall(r'(?:x|x1|x2|cx)="([\d.]+)%"', plot)]
    assert 0 <= min(places) <= max(places) <= 100
    assert forest({}, [], [], METRIC["accuracy"], "nothing").startswith("<svg")
