"""docs/raw-formats.md names every table, column and code that the readers declare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mrpipe.datasets.adni import tables as adni
from mrpipe.datasets.enrico.tables import ISSUE_COLUMNS, TOPIC_COLUMNS, TOPIC_COUNTS
from mrpipe.datasets.mimic.tables import EVENTS, NOTES, PLACES, PUBLISHED, TABLES
from mrpipe.forms import FORMS

LONI = [*adni.PEOPLE, adni.BATEMAN, adni.NFL, adni.ISOPROSTANE]


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    return (project / "docs" / "raw-formats.md").read_text(encoding="utf-8")


def words(text: str) -> set[str]:
    return {w.upper() for w in re.findall(r"\w+", text)}


def row_of(page: str, name: str) -> str:
    """Row of the table whose first cell names `name`."""
    rows = [r for r in page.splitlines() if r.startswith("|") and f"`{name}`" in r.split("|")[1]]
    assert rows, name
    return rows[0]


def test_forms_of_files(page: str) -> None:
    table = page.split("## Forms of files", 1)[1].split("##", 1)[0]
    for form in FORMS:
        assert f"| {form.name} |" in table
        assert all(f"`{suffix}`" in table for suffix in form.suffixes)
        assert form.reader or form.advice in table


@pytest.mark.parametrize("table", LONI, ids=lambda t: t.name)
def test_tables_of_adni(page: str, table: adni.LoniTable) -> None:
    row = row_of(page, table.name.removeprefix("ADNI_"))
    named = words(row)
    for field in table.fields:
        assert {name.upper() for name in (field.name, *field.aliases)} <= named, field.name
    for column in adni.KEYS:
        assert column.name == "DATE" or column.name in words(page)


def test_codes_of_adni(page: str) -> None:
    codes = page.split("### Codes", 1)[1].split("###", 1)[0]
    for name in ("PTGENDER", "PTHAND", "PTMARRY", "PTHOME", "PTETHCAT", "PTRACCAT", "PTNOTRT"):
        written = codes.split(f"`{name}`", 1)[1].splitlines()[0].lower().replace(" ", "_")
        for code, level in adni.PTDEMOG.field(name).codes:
            assert f"{code}_{level}" in written, (name, level)


@pytest.mark.parametrize("name", [*TABLES, *PLACES.values()])
def test_tables_of_mimic(page: str, name: str) -> None:
    short = {place: columns for kind, place in PLACES.items() for columns in [{**EVENTS, **NOTES}[kind]]}
    named = words(row_of(page, name))
    for column in TABLES[name] if name in TABLES else short[name]:
        assert {n.upper() for n in (column.name, *column.aliases)} <= named, column.name


def test_counts(page: str) -> None:
    for patients, admissions in PUBLISHED:
        assert f"| {patients:,} | {admissions:,} |" in page
    for topic, n in TOPIC_COUNTS.items():
        assert re.search(rf"\b{topic} {n}\b", page), topic
    assert {c.name.upper() for c in (*TOPIC_COLUMNS, *ISSUE_COLUMNS)} <= words(page)
