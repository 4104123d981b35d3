"""Loader of YAML that keeps the text of values, which are compared with the text of tables."""

from __future__ import annotations

import re
from typing import Any

import yaml


class YamlText(yaml.SafeLoader):
    """Reads 2009_10, 010, 0x10, 1:30 and dates as text; a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key[1]!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


YamlText.yaml_implicit_resolvers = {
    first: [r for r in resolvers if not r[0].endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
YamlText.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(0|[1-9][0-9]*)\Z"), list("-0123456789"))
_FLOAT = r"-?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z"
YamlText.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-.0123456789"))


class _Float(float):
    """A number with its text, since codes such as -99.90 are compared as text."""

    text: str


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Float:
    number = _Float(loader.construct_yaml_float(node))
    number.text = node.value
    return number


YamlText.add_constructor("tag:yaml.org,2002:float", _float)
