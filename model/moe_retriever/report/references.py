"""Citations, numbered in order of appearance, and options that differ from presets."""

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mrpipe.errors import UsageError

_KNOWN = Path(__file__).resolve().parent / "references.json"


@cache
def _known() -> dict[str, str]:
    return dict(json.loads(_KNOWN.read_text(encoding="utf-8")))


@dataclass
class Bibliography:
    """The reference list of one text."""

    entries: list[str] = field(default_factory=list)

    def cite(self, *works: str) -> str:
        """` [1, 2]` for keys of references.json or complete references; empty for empty ones."""
        numbers = []
        for work in filter(None, works):
            text = _known().get(work, work).strip().rstrip(".")
            if text not in self.entries:
                self.entries.append(text)
            numbers.append(self.entries.index(text) + 1)
        return f" [{', '.join(map(str, sorted(set(numbers))))}]" if numbers else ""


def changed_options(config: dict[str, Any]) -> dict[str, Any]:
    """Options of a run (config.json) that differ from its preset in the present version."""
    from moe_retriever.config import make_config
    from moe_retriever.methods import get

    try:
        preset = make_config(get(config["method"]), preset=config["preset"], seed=0, overrides={})
    except UsageError:
        return {}
    usual = {**asdict(preset.common), **asdict(preset.own)}
    return {k: v for k, v in sorted({**config["common"], **config["options"]}.items()) if k in usual and v != usual[k]}
