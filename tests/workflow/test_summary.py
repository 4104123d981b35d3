"""Summary at the end of a run: the sentences, the tables of answer.md, and the paths of stores and reports."""

from pathlib import Path

import pytest

from workflow.planning.summary import WIDTH, _fitted, print_summary

ANSWER = """* [bold] MoE-Retriever is 2.8 points behind.

**CMU-MOSI: sentiment from text + audio, MCAR, p = 0.3 (23 % hidden)**

| method | seeds | accuracy (%) |
| --- | ---: | ---: |
| *majority class* | 2 | 60.0 ± 14.1 [50.0, 70.0] |
| [bold] MoE-Retriever | 1 | 90.0 |
"""


def test_the_sentences_come_first_then_tables_and_the_path_of_the_report_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [tmp_path / "report", tmp_path / "suites" / "table2" / "report"]
    for folder in reports:
        folder.mkdir(parents=True)
        (folder / "index.html").touch()
        (folder / "answer.md").write_text(ANSWER)
    for folder in reports:
        print_summary(tmp_path, [folder])
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        assert lines[:3] == [
            "* [bold] MoE-Retriever is 2.8 points behind.",
            "",
            "CMU-MOSI: sentiment from text + audio, MCAR, p = 0.3 (23 % hidden)",
        ]
        (row,) = (line for line in lines if line.startswith("majority class"))
        assert row.split()[2:] == ["2", "60.0", "±", "14.1", "[50.0,", "70.0]"]
        assert any(line.startswith("[bold] MoE-Retriever") for line in lines)
        assert max(map(len, lines)) <= WIDTH
        assert lines[-1].split(maxsplit=1) == ["report", str(folder / "index.html")]
        (folder / "answer.md").unlink()
    print_summary(tmp_path)
    assert capsys.readouterr().out.split(maxsplit=1) == ["report", f"{reports[0] / 'index.html'}\n"]


@pytest.mark.parametrize(("width", "shown"), [(200, 4), (54, 3), (5, 1)])
def test_a_narrow_terminal_gets_whole_columns(width: int, shown: int) -> None:
    rows = (("method", "accuracy (%)", "difference from MoE-Retriever", "AUROC (%)"), ("---", "---:", "---:", "---:"))
    rows += (("*majority class*", "40.0 [23.3, 56.7]", "", "50.0 [50.0, 50.0]"),)
    text = "\n".join(["**CMU-MOSI**", "", *(f"| {' | '.join(row)} |" for row in rows)])
    title, blank, *table = _fitted(text, width)
    assert (title, blank) == ("**CMU-MOSI**", "")
    assert table == [f"| {' | '.join(row[:shown])} |" for row in rows]
