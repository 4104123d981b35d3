"""Files for people and services around the code agree with it: versions, hooks, CI, issue forms."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import mrpipe


def test_the_version_is_the_same_everywhere(project: Path) -> None:
    citation = yaml.safe_load((project / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mrpipe.__version__
    assert citation["type"] == "software"
    changes = (project / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changes, re.MULTILINE)[0] == mrpipe.__version__


def test_hooks_use_the_pinned_tools(project: Path) -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (project / "constraints.txt").read_text(), re.MULTILINE))
    hooks = yaml.safe_load((project / ".pre-commit-config.yaml").read_text())["repos"]
    found = {r["repo"].rpartition("/")[2].removesuffix("-pre-commit"): r["rev"].removeprefix("v") for r in hooks}
    assert {tool: found[tool] for tool in ("ruff", "snakefmt")} == {tool: pins[tool] for tool in ("ruff", "snakefmt")}


def test_every_test_is_slow_or_run_before_a_merge(project: Path) -> None:
    called = set(re.findall(r"^make --no-print-directory (\S+)", (project / ".ci/run").read_text(), re.MULTILINE))
    assert {"lint", "docs", "test", "test-whole", "test-cluster", "coverage", "demo"} <= called
    makefile = (project / "Makefile").read_text()
    recipes = re.findall(r'^(test[\w-]*): .*\n\t.*-m "([^"]+)"', makefile, re.MULTILINE)
    assert {name for name, _ in recipes} <= called
    for kinds in ([], ["whole"], ["cluster"]):
        names = {name: name in kinds for name in ("slow", "cluster", "whole")}
        assert sum(eval(expression, {}, names) for _, expression in recipes) == 1


def test_ci_runs_the_declared_pythons_and_make_targets(project: Path) -> None:
    jobs = yaml.safe_load((project / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [c.rpartition(" ")[2] for c in declared if re.search(r":: 3\.\d+$", c)]
    assert jobs["tests"]["strategy"]["matrix"]["python-version"] == versions
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    targets = {t for c in commands for t in re.findall(r"^make (\S+)", c)}
    assert targets == {"lint", "test", "test-whole", "docs"}
    makefile = (project / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


@pytest.mark.parametrize("name", ["bug_report", "new_dataset"])
def test_issue_forms(project: Path, name: str) -> None:
    form = yaml.safe_load((project / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    assert all(field["attributes"].get("label") for field in form["body"] if field["type"] != "markdown")
