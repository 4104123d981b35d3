"""Names, defaults and lists on the pages about the method and its evaluation are those of the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from moe_retriever.catalogue import catalogue, own_names
from moe_retriever.config import Common
from moe_retriever.methods.moe_retriever import MoERetriever, MoERetrieverOptions
from moe_retriever.metrics import METRIC
from moe_retriever.training.search import COMMON_SPACE
from mrpipe.cli.main import command_names
from mrpipe.datasets import dataset_names
from mrpipe.experiment.missingness import MECHANISMS

PAGES = Path(__file__).parents[2] / "docs" / "methods"
DEFAULTS = dataclasses.asdict(Common()) | dataclasses.asdict(MoERetrieverOptions())


@pytest.mark.parametrize("name", own_names())
def test_every_method_has_a_page_and_every_published_one_lists_its_differences(name: str) -> None:
    (entry,) = (e for e in catalogue() if e.name == name)
    own = PAGES / f"{name}.md"
    if not entry.paper and not own.is_file():
        rows = (PAGES / "controls.md").read_text(encoding="utf-8").splitlines()
        assert sum(row.startswith(f"| `{name}` |") for row in rows) == 1
        return
    text = own.read_text(encoding="utf-8")
    assert text.startswith(f"# `{name}`: ")
    if name != "moe_retriever" and entry.paper:
        table = text.split("| difference from paper and code | reason |\n|---|---|\n")[1].split("\n\n")[0].strip()
        assert all(re.fullmatch(r"\| [^|]+ \| [^|]+ \|", row) for row in table.splitlines())
        assert len(table.splitlines()) >= 3
        assert "Public code: " in text


@pytest.fixture(scope="module")
def page(project: Path) -> dict[str, str]:
    return {p.stem: p.read_text(encoding="utf-8") for p in (project / "docs").glob("*.md")}


def test_every_option_of_the_retriever_is_explained(page: dict[str, str]) -> None:
    for field in dataclasses.fields(MoERetrieverOptions):
        assert re.search(rf"`{field.name}[`=]", page["method"]), field.name
        for choice in field.metadata["choices"]:
            assert str(choice) in page["method"], choice
    assert all(f"`{preset}`" in page["method"] for preset in MoERetriever.presets)


def test_defaults_on_the_method_page(page: dict[str, str]) -> None:
    choices = page["method"].split("## Choices that the paper leaves open", 1)[1].split("\n## ", 1)[0]
    stated: list[tuple[str, str]] = []
    for row in choices.splitlines():
        if row.startswith("| ") and row.count("|") >= 5:
            stated += re.findall(r"`(\w+)=([\w.-]+)`", row.split("|")[2])
    stated += re.findall(r"`(\w+)` = (\d+)", page["method"].split("## Eq. 1", 1)[0])
    assert len(stated) > 20
    for name, value in stated:
        assert str(DEFAULTS[name]) == value, name


def test_evaluation_names_what_there_is(page: dict[str, str]) -> None:
    text = page["evaluation"]
    assert all(f"`{name}`" in text for name in (*MECHANISMS, *METRIC))
    controls = [entry.name for entry in catalogue() if "(control)" in entry.summary]
    assert len(controls) == 10
    assert all(f"`{name}`" in text for name in controls)
    searched = text.split("## Search budget", 1)[1].split("##", 1)[0]
    numbers = {float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", searched)}
    assert {value for values in COMMON_SPACE.values() for value in values} <= numbers


def test_commands_on_the_pages_exist(page: dict[str, str]) -> None:
    known = set(command_names())
    for name, text in page.items():
        for block in re.findall(r"^```bash[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            used = set(re.findall(r"^mrpipe ([a-z][\w-]*)", block, re.MULTILINE))
            assert used <= known, (name, used - known)


def test_every_dataset_has_its_formats(page: dict[str, str]) -> None:
    sections = re.findall(r"^## (.+)$", page["raw-formats"], re.MULTILINE)
    titles = {"adni": "ADNI", "mimic": "MIMIC-IV", "enrico": "Enrico", "mosi": "CMU-MOSI"}
    titles |= {"mosei": "CMU-MOSEI and CH-SIMS", "ch_sims": "CMU-MOSEI and CH-SIMS"}
    assert set(dataset_names()) - {"tables", "meds"} == set(titles)
    assert set(titles.values()) <= set(sections)
