"""Names and summaries of the methods, read from their source code, so that `--help` does not load torch."""

import ast
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mrpipe.plugins import entry_points

GROUP = "mrpipe.methods"
METHODS = Path(__file__).resolve().parent / "methods"


@dataclass(frozen=True)
class MethodEntry:
    """Name, one-line summary, original paper and its reference ("" for controls); texts are "" for unknown methods."""

    name: str
    summary: str
    paper: str
    citation: str

    @property
    def control(self) -> bool:
        return self.summary.endswith("(control)")


@cache
def own_names() -> tuple[str, ...]:
    """Names of the methods in `moe_retriever/methods/`: one module per method."""
    return tuple(sorted(p.stem for p in METHODS.glob("*.py") if p.stem not in ("__init__", "base")))


def names() -> tuple[str, ...]:
    """Names of all methods in alphabetical order, including entry points."""
    return tuple(sorted({*own_names(), *entry_points(GROUP)}))


def module_of(name: str) -> str:
    """Dotted name of the module that defines a method; the module is not imported."""
    return f"moe_retriever.methods.{name}" if name in own_names() else entry_points(GROUP)[name].module


@cache
def about(name: str) -> MethodEntry:
    """Description of a method, from the class attributes of these names."""
    texts = _texts_of(name)
    return MethodEntry(name, *(str(texts.get(key, "")) for key in ("summary", "paper", "citation")))


def catalogue() -> list[MethodEntry]:
    return [about(name) for name in names()]


@cache
def method_title(label: str) -> str:
    """A method, or a label that begins with one (`dymo [select=none]`), with its displayed name."""
    name, space, rest = label.partition(" ")
    return f"{_texts_of(name).get('title') or name.replace('_', ' ')}{space}{rest}"


def gradient_steps(name: str) -> bool:
    """Whether a method is trained with gradient steps: unless its own class has `gradient = False`."""
    return bool(_texts_of(name).get("gradient", True))


@cache
def _texts_of(name: str) -> dict[str, str | bool]:
    """Class attributes that are texts or Booleans of a method's class; none if there is no such method."""
    if name not in names():
        return {}
    if name in own_names():
        path = METHODS / f"{name}.py"
    else:
        spec = find_spec(module_of(name))
        if spec is None or spec.origin is None:
            return {}
        path = Path(spec.origin)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            texts = _texts(node)
            if texts.get("name") == name:
                return texts
    return {}


def _texts(node: ast.ClassDef) -> dict[str, str | bool]:
    return {
        target.id: statement.value.value
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value.value, str | bool)
    }


def help_text(more: Mapping[str, str] | None = None, width: int = 100) -> str:
    """List of the methods with summary, paper and an optional additional text per method (`more`)."""
    lines = ["methods:"]
    entries = catalogue()
    indent = max(len(e.name) for e in entries) + 4
    for e in entries:
        first, *rest = textwrap.wrap(f"{e.summary} [{e.paper}]" if e.paper else e.summary, width - indent) or [""]
        rest += textwrap.wrap((more or {}).get(e.name, ""), width - indent)
        lines += [f"  {e.name:<{indent - 2}}{first}", *(" " * indent + line for line in rest)]
    return "\n".join(lines)
