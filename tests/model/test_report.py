"""The results page: the numbers of the run folders and nothing else, self-contained, the same bytes twice."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from model.__main__ import main
from model.report import published, read_run, tell_apart, write_report
from mrpipe import Store
from mrpipe.errors import DataError

SMALL = ["epochs=2", "hidden=8", "tokens=2", "heads=2", "encoder_hidden=8", "cnn_width=0.05"]
EXPERTS = ["n_experts=2", "n_shared=2"]


@pytest.fixture(scope="module")
def runs(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for method, seed in (("moe_retriever", 0), ("moe_retriever", 1), ("majority", 0)):
        out = folder / f"{method}{seed}"
        options = ["--set", *SMALL, *(EXPERTS if method == "moe_retriever" else [])]
        code = main(
            ["train", "--store", str(store.path), "--mask", str(mask_file), "--method", method, "--seed", str(seed),
             "--modalities", "table", "series", "--quiet", "--out", str(out), *options]
        )  # fmt: skip
        assert code in (0, None)
        made.append(out)
    return made


@pytest.fixture(scope="module")
def page(runs: list[Path], store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "index.html"
    write_report(runs, [store.path], out)
    return out


class Checker(HTMLParser):
    """Tags that are open, and addresses that a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link", "img", "path", "use", "rect"):
            self.open.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(page: Path) -> None:
    checker = Checker()
    checker.feed(page.read_text())
    assert checker.open == []
    assert checker.addresses
    assert all(a.startswith("#") for a in checker.addresses)
    assert len(re.findall("<svg", page.read_text())) == 5  # what is left, curves, routing, the store's two


def test_simulated_data_are_announced_first(page: Path) -> None:
    text = page.read_text()
    assert text.index("Simulated data.") < text.index("<table")
    assert "as published" not in text


def test_the_table_holds_the_means_of_the_run_folders(page: Path, runs: list[Path]) -> None:
    values = [json.loads((r / "metrics.json").read_text())["metrics"]["accuracy"]["value"] for r in runs[:2]]
    mean = 100 * sum(values) / 2
    spread = 100 * abs(values[0] - values[1]) / 2**0.5
    assert f"{mean:.2f} ± {spread:.2f}" in page.read_text()
    scores = pl.read_csv(page.parent / "results.csv")
    mine = scores.filter(method="moe_retriever", by="all", metric="accuracy").sort("seed")["value"].to_list()
    assert mine == pytest.approx(values)
    assert set(scores["method"]) == {"moe_retriever", "majority"}


def test_no_sample_is_named(page: Path) -> None:
    assert not re.search(r"\bs0\d\d\d\b", page.read_text() + page.parent.joinpath("results.csv").read_text())


def test_the_same_runs_give_the_same_bytes(page: Path, runs: list[Path], store: Store, tmp_path: Path) -> None:
    write_report(runs, [store.path], tmp_path / "index.html")
    assert (tmp_path / "index.html").read_bytes() == page.read_bytes()
    for figure in page.parent.joinpath("figures").iterdir():
        assert (tmp_path / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_an_unfinished_run_is_a_fault_and_no_page_is_written(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="finished run"):
        write_report([*runs, tmp_path / "run"], [], tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def test_the_papers_numbers_stand_beside_their_own_view_only() -> None:
    mask = {"p": 0.3, "mechanism": "mcar"}
    assert ("MoE-Retriever", 66.13, 0.69) in published("mosi", ["text", "audio"], mask)
    assert ("MoE-Retriever", 66.13, 0.69) in published("mosi", ["audio", "text"], mask)
    assert published("mosi", ["text"], mask) == []
    assert published("mosi", ["text", "audio"], None) == []
    assert published("toy", ["table"], None) == []


def test_other_options_are_a_variant_and_not_another_seed(runs: list[Path]) -> None:
    first, second, other = (read_run(folder) for folder in runs)
    assert [r.label for r in tell_apart([first, second, other])] == ["moe_retriever", "moe_retriever", "majority"]
    wider = replace(second, config=second.config | {"common": second.config["common"] | {"hidden": 16}})
    labels = [r.label for r in tell_apart([first, wider, other])]
    assert labels[0].startswith("moe_retriever [")
    assert labels[2] == "majority"
