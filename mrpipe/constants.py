"""Tables that are data rather than code, in JSON files next to the modules that use them."""

import json
from pathlib import Path
from typing import Any


def constants(module: str, name: str) -> Any:
    """Content of a JSON file, with tuples in place of lists.

    Args:
        module: `__file__` of the module.
        name: name of the file in the module's folder, written as a literal, so that the code hash covers the file.
    """
    return _frozen(json.loads(Path(module).with_name(name).read_text(encoding="utf-8")))


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
