"""What methods there are, read from their source: `--help` answers without loading torch."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

METHODS = Path(__file__).parent / "methods"


@dataclass(frozen=True)
class Entry:
    """A method's name, what it does, and the paper that it comes from ("" for a control)."""

    name: str
    summary: str
    paper: str


def catalogue(folder: Path = METHODS) -> list[Entry]:
    """All methods, by name: the class attributes `name`, `summary` and `paper` of the class that carries a name."""
    entries = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                texts = _texts(node)
                if texts.get("name") == path.stem:
                    entries.append(Entry(path.stem, texts.get("summary", ""), texts.get("paper", "")))
    return entries


def _texts(node: ast.ClassDef) -> dict[str, str]:
    """Class attributes that are plain texts."""
    return {
        target.id: statement.value.value
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value.value, str)
    }


def help_text(more: Mapping[str, str] | None = None, width: int = 100) -> str:
    """The methods as lines of text: name, what it does, paper, and what `more` has to say of it."""
    lines = ["methods:"]
    entries = catalogue()
    indent = max(len(e.name) for e in entries) + 4
    for e in entries:
        text = f"{e.summary} [{e.paper}]" if e.paper else e.summary
        first, *rest = textwrap.wrap(text, width - indent)
        rest += textwrap.wrap((more or {}).get(e.name, ""), width - indent)
        lines += [f"  {e.name:<{indent - 2}}{first}", *(" " * indent + line for line in rest)]
    return "\n".join(lines)
