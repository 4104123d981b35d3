"""A page shows names and words, not identifiers."""

import re
from html import unescape
from pathlib import Path

import pytest

from moe_retriever.catalogue import method_title, names
from moe_retriever.report import Inputs, write_report
from moe_retriever.suites.published import NAMES, missingness_title, task_title
from mrpipe import Store
from mrpipe.cli.main import main
from mrpipe.imaging.qc import MEASURES

# Identifiers that are no words, and the settings of a mask as in results.csv.
IDENTIFIERS = [n for n in (*names(), *NAMES["mechanisms"], *MEASURES) if "_" in n or method_title(n) != n]
PLAIN = {"hybrid", "logistic", "majority", "muse", "dymo", "flexmoe"}
SETTING = re.compile(rf"\b(?:{'|'.join(sorted({*IDENTIFIERS} - PLAIN))})\b|\bp=0\.\d|\blabel=\w")
SMALL = ["epochs=2", "hidden=8", "tokens=2", "heads=2", "encoder_hidden=8", "n_experts=2", "n_shared=2", "warmup=1"]


def words(html: str) -> str:
    """The text of markup, without code, and with the labels for screen readers."""
    labels = " ".join(re.findall(r'aria-label="([^"]*)"', html))
    html = re.sub(r"<(style|script|code)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return unescape(re.sub(r"<[^>]*>", " ", html) + labels)


@pytest.fixture(scope="module")
def page(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("names")
    command = ["train", "--store", str(store.path), "--mask", str(mask_file), "--modalities", "table", "series"]
    runs = []
    for method in ("moe_retriever", "zero_fill"):
        runs.append(folder / "runs" / method / "seed0")
        own = SMALL if method == "moe_retriever" else SMALL[:5]
        done = main([*command, "--method", method, "--quiet", "--out", str(runs[-1]), "--set", *own])
        assert done in (0, None)
    write_report(Inputs(runs=runs, stores=[store.path]), folder / "index.html")
    assert "MoE-Retriever, seed 0" in (runs[0] / "curves.svg").read_text()
    return (folder / "index.html").read_text()


def test_no_part_of_the_page_has_identifiers(page: str) -> None:
    assert len(re.findall(r"<svg.*?</svg>", page, re.DOTALL)) >= 5
    text = words(page)
    assert "MoE-Retriever, seed 0" in text
    assert "zero fill, seed 0" in text
    assert SETTING.findall(text) == []


def test_identifiers_are_recognised() -> None:
    assert SETTING.findall("moe_retriever, mcar p=0.3, outlier: brain_ml (label=stable_dx)") != []
    assert len(SETTING.findall("zero_fill and gm_ml")) == 2


def test_names_of_methods_tasks_and_settings() -> None:
    assert method_title("moe_retriever (small) [hidden=8]") == "MoE-Retriever (small) [hidden=8]"
    assert (method_title("late_fusion"), method_title("my_own")) == ("late fusion", "my own")
    assert (task_title("sentiment7"), task_title("length_of_stay")) == ("sentiment in 7 classes", "length of stay")
    assert missingness_title(None) == "as observed"
    assert missingness_title({"mechanism": "mcar", "p": 0.3, "hidden": 0.234}) == "MCAR, p = 0.3 (23 % hidden)"
    block = {"mechanism": "block", "p": {"audio": 0.5, "text": 0.1}, "n_blocks": 3}
    assert missingness_title(block) == "missing in blocks, p = audio 0.5, text 0.1, blocks = 3"
