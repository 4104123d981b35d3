"""The JSON schema of declarations: its keys are those of the page and of the parser, and its errors have a place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from mrpipe.datasets.declared import YamlText
from mrpipe.datasets.tables.parser import SCHEMA, parse_config
from mrpipe.datasets.tables.simulate.export import YAML
from mrpipe.errors import DataError
from tests.datasets.spoilt import spoilt

FULL = {
    "title": "t",
    "file": "v.csv",
    "id": {"*": "v", "a.csv": 2},
    "subject": "p",
    "prediction_time": {"column": "t", "format": "%d.%m.%Y"},
    "encoding": "cp1252",
    "separator": {"a.csv": ";"},
    "decimal": ",",
    "unmatched": {"a.csv": 0.5},
    "missing": {"x": [-99]},
    "exclude": ["e", -1],
    "drop": {"status": ["withdrawn"]},
    "modalities": {
        "m": {"columns": ["a*"], "kinds": {"a1": [1, 2], "a2": {"kind": "age", "format": "%Y"}, "a3": "censored"}},
        "l": {"file": "a.csv", "long": {"item": "i", "value": "v", "time": "t", "aggregate": ["last"]}},
    },
    "labels": {"y": {"column": "y", "classes": {0: "a", 1: "b"}}, "z": {"column": "z", "kind": "regression"}},
    "split": {"by": "site", "test": ["C"]},
}


def schema() -> dict[str, Any]:
    loaded = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def keys_of(node: Any) -> set[str]:
    """All keys that a schema describes, at any depth."""
    if isinstance(node, list):
        return set().union(*map(keys_of, node))
    if not isinstance(node, dict):
        return set()
    own = node.get("properties", {})
    return {
        *own,
        *(
            key
            for name, child in node.items()
            for key in keys_of(list(own.values()) if name == "properties" else child)
        ),
    }


def test_the_page_documents_the_keys_of_the_schema_and_no_others(project: Path) -> None:
    page = (project / "docs/tables.md").read_text(encoding="utf-8")
    example = page.split("```yaml")[1].split("```")[0]
    names = set(re.findall(r"\b([a-z_]+):", page)) | set(re.findall(r"`([a-z_]+)`", page))
    names |= set(re.findall(r"[a-z_]+", example.split("# also:")[1].split(";")[0]))
    assert keys_of(schema()) <= names
    Draft202012Validator.check_schema(schema())
    Draft202012Validator(schema()).validate(yaml.safe_load(example))
    # Keys with values in the text, such as `split: {by: site, test: [C, D]}`.
    parts = Draft202012Validator({**schema(), "required": [], "allOf": []})
    snippets = re.findall(rf"`((?:{'|'.join(schema()['properties'])}): [^`…]+)`", page)
    assert len(snippets) > 3
    for snippet in snippets:
        parts.validate(yaml.load(snippet, YamlText))


def test_declarations_of_the_project_match_the_schema(project: Path) -> None:
    validator = Draft202012Validator(schema())
    examples = sorted((project / "workflow/config/examples/tables").glob("*.yaml"))
    assert len(examples) >= 2
    for text in (YAML, *(p.read_text(encoding="utf-8") for p in examples)):
        validator.validate(yaml.safe_load(text))
    for path in examples:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == SCHEMA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": {"a.csv": 5}}, "column 'encoding.a.csv': expected an encoding, such as cp1252"),
        ({"unmatched": 2}, "column 'unmatched': expected allow, or a share from 0 to 1; found 2"),
        ({"id": {"a.csv": 0}}, "column 'id.a.csv': expected a column: a name, a pattern, or a position"),
        (
            {"missing": [True]},
            "column 'missing': expected a number or text as in the file; found True. YAML reads yes, no",
        ),
        ({"split": {"colum": "x"}}, "column 'split': expected one of the keys file, column, by"),
        (
            {"modalities": {"m": {"long": {"value": "v"}}}},
            "column 'modalities.m.long.item': expected the column that names",
        ),
        ({"modalities": {"m": {"kinds": {"x": {"kind": "age", "sinc": 1}}}}}, "Did you mean 'since'?"),
        ({"modalities": {"m": {"columns": ["a", 0]}}}, "column 'modalities.m.columns': expected a column"),
        (
            {"label": {"column": "y"}},
            "the values of the classes ([a, b] or {0: a, 1: b}), or `threshold`; found {'column': 'y'}",
        ),
        ({"title": 5}, "column 'title': expected text; found 5"),
    ],
)
def test_errors_of_the_schema_name_the_place_and_the_remedy(change: dict[str, Any], message: str) -> None:
    base = {k: v for k, v in FULL.items() if k != "labels" or "label" not in change}
    with pytest.raises(DataError) as caught:
        parse_config(yaml.safe_dump({**base, **change}), "tables.yaml")
    assert message in str(caught.value)


def test_no_value_in_any_place_breaks_the_parser() -> None:
    """Each place of a declaration with most keys gets a value of each other type: it is read or an error."""

    parse_config(yaml.safe_dump(FULL), "tables.yaml")
    n_refused = 0
    for wrong in spoilt(FULL, (None, True, 0, "x", [[]], {3: None})):
        try:
            parse_config(yaml.safe_dump(wrong), "tables.yaml")
        except DataError:
            n_refused += 1
    assert n_refused > 200
