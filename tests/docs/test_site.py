"""The documentation site: every page is in the navigation, links lead somewhere, and it builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml


def pages(node: Any) -> Iterator[str]:
    """File names in a navigation."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from pages(value)
    else:
        for value in node:
            yield from pages(value)


def test_every_page_is_in_the_navigation(project: Path) -> None:
    # The section alone: the extensions hold tags that are MkDocs' own.
    text = (project / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text[text.index("nav:") : text.index("markdown_extensions:")])["nav"]
    listed = list(pages(nav))
    assert len(listed) == len(set(listed))
    assert set(listed) == {p.relative_to(project / "docs").as_posix() for p in (project / "docs").rglob("*.md")}


def test_links_lead_somewhere(project: Path) -> None:
    for page in [*(project / "docs").rglob("*.md"), *project.glob("*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_reference_implementation_is_included(project: Path) -> None:
    # A formatter of Markdown must leave the line as it is.
    page = (project / "docs" / "method.md").read_text(encoding="utf-8")
    assert '\n--8<-- "docs/reference_moe_retriever.py"\n' in page


def test_the_site_builds_without_a_warning(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "store-format" / "index.html").exists()
    # The reference implementation is shown, not the line that includes it.
    assert "supporting_group" in (tmp_path / "site" / "method" / "index.html").read_text(encoding="utf-8")
