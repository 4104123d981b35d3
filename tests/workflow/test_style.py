"""The workflow passes snakemake --lint and snakefmt; its YAML files have no duplicate keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml


def test_snakemake_lint(snakemake: Any, tmp_path: Path) -> None:
    outcome = snakemake("--lint", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    assert "good condition" in outcome.text


def test_snakefmt(project: Path) -> None:
    pytest.importorskip("snakefmt")
    command = [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow/rules"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rulegraph_contains_the_main_rules(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    outcome = snakemake("--rulegraph", "mermaid-js", folder=tmp_path, config=tiny)
    assert outcome.code == 0, outcome.text
    for rule in ("simulate", "check", "cohort", "ingest", "samples", "split", "seal", "verify", "mask", "cells"):
        assert f"[{rule}]" in outcome.text or f'"{rule}"' in outcome.text, outcome.text


class UniqueKeys(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys, of which PyYAML and Snakemake silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key twice: {keys}, {node.start_mark}"
        return super().construct_mapping(node, deep)


def test_yaml_files_have_no_duplicate_keys(project: Path) -> None:
    paths = [project / "environment.yml", *(project / "workflow").rglob("*.y*ml")]
    assert len(paths) > 10
    for path in paths:
        for _ in yaml.load_all(path.read_text(), UniqueKeys):
            pass
