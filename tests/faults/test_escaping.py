"""Names and values of an export are text in every output: HTML, Markdown, LaTeX, CSV, figures and the terminal."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from moe_retriever.plots import plots
from moe_retriever.report.drawing import draw
from moe_retriever.suites.render import Cell, Line, Page, PageTable, html, latex, markdown
from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.privacy import markdown_text, printable
from mrpipe.stages.build import build
from mrpipe.store.parquet import write_csv

IMAGE = "<img src=x onerror=alert(1)>"
ESCAPES = "\x1b[31mred\x07\u202e"
COLUMNS = ("=cmd|' /C calc'!A0", f"{IMAGE} a|b", f"`code` [x](javascript:1) {ESCAPES}")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("escaping")
    raw = folder / "raw"
    raw.mkdir()
    rows = [[f"p{k:02d}", k % 2, k, k * k % 7, k % 5] for k in range(60)]
    lines = [",".join(["id", "out", *(f'"{c}"' for c in COLUMNS)]), *(",".join(map(str, r)) for r in rows)]
    (raw / "a.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    spec: dict[str, Any] = {
        "title": f"{IMAGE} [bold]study[/] {ESCAPES}",
        "file": "a.csv",
        "id": "id",
        "label": {"column": "out", "name": "out", "classes": {0: f"{IMAGE}|no", 1: "=1+1"}},
        "modalities": {"a": {"file": "a.csv", "description": f"{IMAGE} | {COLUMNS[2]}"}},
    }
    (raw / "tables.yaml").write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    build(get_dataset("tables"), raw, folder / "store", {})
    return folder / "store"


def test_the_card_has_neither_html_nor_links_of_names(store: Path) -> None:
    card = (store / "README.md").read_text(encoding="utf-8")
    assert IMAGE not in card
    assert "&lt;img src=x" in card
    assert "](javascript" not in card
    assert "\x1b" not in card
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in card.splitlines() if line.startswith("| a | 0 |")}
    assert widths == {9}


def test_the_terminal_gets_no_control_characters(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["show", str(store)],
        ["audit", str(store), "--alpha", "1", "--threshold", "0.5"],
        ["check", "tables", "--raw", str(store.parent / "raw")],
        ["check", "tables", "--raw", f"{store.parent}/{ESCAPES}"],
        ["check", "tables", "--raw", str(store.parent / "raw"), "--modalities", ESCAPES],
    ):
        main(command)
        printed = "".join(capsys.readouterr())
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed), command
    assert main(["show", str(store)]) == 0
    assert "[bold]study[/]" in capsys.readouterr().out


def test_exported_csv_runs_no_formula(store: Path, tmp_path: Path) -> None:
    assert main(["export", str(store), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()[0].startswith("sample_id,'=cmd")


def test_formulas_begin_with_an_apostrophe_and_numbers_do_not(tmp_path: Path) -> None:
    texts = ["=1+1", "+1-1", "-5", "-1e-3", "@sum", "\tx", "a=b", "", None]
    frame = pl.DataFrame({"-x": texts, "n": range(9)})
    write_csv(tmp_path / "a.csv", frame)
    read = pl.read_csv(tmp_path / "a.csv", infer_schema=False)
    assert read.columns == ["'-x", "n"]
    assert read["'-x"].to_list()[:7] == ["'=1+1", "'+1-1", "-5", "-1e-3", "'@sum", "'\tx", "a=b"]


def page(name: str) -> Page:
    grid = PageTable(name, ("method", name), (Line("method", name, (Cell(name, "ours"),)),))
    return Page("t", name, False, (name,), (grid,), (), (name,), (name,))


def test_suite_tables_escape_names() -> None:
    hostile = f"{IMAGE}\n\\input{{x}} 50%_a & $b^2~c | {ESCAPES}"
    text = html(page(hostile))
    assert "<img" not in text
    text = markdown(page(hostile))
    assert "<img" not in text
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")} == {3}
    text = latex(page(hostile))
    assert "\x1b" not in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not [line for line in body if r"\input" in line]
    assert r"\textless{}img" in text
    assert r"50\%\_a \& \$b\textasciicircum{}2\textasciitilde{}c" in text


def test_names_in_figures_are_no_formulas(tmp_path: Path) -> None:
    reason = r"dropped: cost is $\frac{1$ <script>alert(1)</script>"
    rows = [(0, "rows", 60, 60), (1, reason, 60, 50)]
    frame = pl.DataFrame(rows, schema=["step", "reason", "n_before", "n_after"], orient="row")
    picture = draw(plots.cohort_flow(frame), tmp_path / "flow.svg", label=f"{IMAGE} \"'", caption="")
    assert "<script" not in picture.markup
    assert "<img" not in picture.markup
    plots.save(plots.cohort_flow(frame), tmp_path / "flow")


def test_text_for_markdown_and_the_terminal() -> None:
    assert markdown_text("a | b\n# c <b>d</b> ![e](f) `g`") == r"a \| b # c &lt;b>d&lt;/b> \![e]\(f) \`g\`"
    assert printable("a\x1b[2Jb\x9b1m\r\u202ec\n\té") == "a\\x1b[2Jb\\x9b1m\\r\\u202ec\n\té"


def test_tables_are_written_as_csv_by_one_function(project: Path) -> None:
    """The simulators and converters write raw files, which no spreadsheet escapes."""
    paths = [*(project / "model").rglob("*.py"), *(project / "mrpipe/store").rglob("*.py")]
    found = [p.name for p in paths if re.search(r"\.write_csv\(", p.read_text(encoding="utf-8"))]
    assert found == ["parquet.py"]
