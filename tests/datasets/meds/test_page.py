"""The page docs/meds.md and the schema of declarations hold the same keys and values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from mrpipe.datasets.meds.config import SCHEMA, parse_meds
from mrpipe.datasets.meds.simulate import YAML
from mrpipe.stages.simulate import simulate
from tests.datasets.meds.meds_toy import MEDS


def words_of(node: Any) -> Iterator[str]:
    """All keys and listed values that a schema describes, at any depth."""
    if isinstance(node, dict):
        yield from node.get("properties", {})
        yield from node.get("enum", ())
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from words_of(child)


def test_the_page_describes_the_keys_of_the_schema_and_no_others(project: Path) -> None:
    text = (project / "docs" / "meds.md").read_text(encoding="utf-8")
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    words, named = set(words_of(schema)), set(re.findall(r"\b([a-z_]+):", text)) | set(re.findall(r"`([a-z_]+)", text))
    assert words <= named
    declaration = text.split("## The declaration")[1].split("## MIMIC-IV")[0]
    assert set(re.findall(r"^\| `([a-z_]+)", declaration, re.MULTILINE)) <= words


def test_the_simulated_declaration_names_the_schema(tmp_path: Path) -> None:
    simulate(MEDS, tmp_path, {"n_subjects": 40})
    first = (tmp_path / "meds.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA.as_uri()}"


def test_the_declarations_on_the_page_and_of_the_simulator_match_the_schema(project: Path) -> None:
    text = (project / "docs" / "meds.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [len(parse_meds(block, "meds.yaml").modalities) for block in (*blocks, YAML)] == [4, 1, 1, 4]
    for block in (*blocks, YAML):
        Draft202012Validator(yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))).validate(yaml.safe_load(block))
