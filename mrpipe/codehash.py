"""Hash of the code that a step depends on; results become stale when it changes.

A step names its entry modules. Imports within the project are followed statically from their source, including relative
imports and imports inside functions. Module names composed at run time (`import_module(f"...")`) are not followed, so
that a registry does not make every step depend on every plug-in; the step names its plug-in as an entry instead. A
package's `__init__` is included only if something is imported from the package itself.

The hash covers each module's syntax tree without docstrings, so that comments, formatting and documentation do not
count, and the data files next to it that it names in a string.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mrpipe.errors import UsageError
from mrpipe.plugins import plugin_packages

# Folder of the project's packages: a checkout, in which moe_retriever is in model/, or site-packages.
PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = {"mrpipe": ("",), "moe_retriever": ("model", "")}
_DATA_FILE = re.compile(r"[\w./-]+\.(?:json|yaml|yml|csv|tsv|txt|html|css|svg)")


@cache
def code_hash(*entries: str, root: Path = PROJECT) -> str:
    """Hash of all project code reachable from the entry modules: 16 hex digits, equal on every Python ≥ 3.11.

    Args:
        entries: dotted names, e.g. `mrpipe.stages.ingest`.
        root: folder of the packages.

    Raises:
        UsageError: an entry is not a module of the project, or a module cannot be parsed.
    """
    lines = [f"{name} {_module_digest(name, root)}\n" for name in closure(*entries, root=root)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def closure(*entries: str, root: Path = PROJECT) -> list[str]:
    """Sorted names of the entry modules and all project modules that they import directly or indirectly."""
    for entry in entries:
        if _source(entry, root) is None:
            raise UsageError(f"no module {entry!r} in {root}; expected a dotted name such as mrpipe.stages.ingest")
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_imports(name, root))
    return sorted(found)


def _source(name: str, root: Path) -> Path | None:
    """File of a project module; None for other packages and for names that are not modules (functions, classes)."""
    parts = name.split(".")
    if parts[0] in PACKAGES:
        folders = [root / folder for folder in PACKAGES[parts[0]]]
    elif parts[0] in plugin_packages() and (spec := find_spec(parts[0])) and spec.origin:
        origin = Path(spec.origin)
        folders = [origin.parents[1 if origin.name == "__init__.py" else 0]]
    else:
        return None
    for folder in folders:
        path = folder.joinpath(*parts)
        for candidate in (path / "__init__.py", path.with_name(path.name + ".py")):
            if candidate.is_file():
                return candidate
    return None


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UsageError(f"{path}, line {error.lineno}: {error.msg}") from error


@cache
def _imports(name: str, root: Path) -> tuple[str, ...]:
    path = _source(name, root)
    assert path is not None
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    candidates: set[str] = set()
    for node in _running(_tree(path)):
        if isinstance(node, ast.Import):
            candidates.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                candidates.add(submodule if _source(submodule, root) else base)
        elif isinstance(node, ast.Call) and _last_name(node.func) == "import_module" and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                candidates.add(target.value)
    return tuple(sorted(c for c in candidates if _source(c, root)))


def _last_name(node: ast.expr) -> str:
    """The last part of a name such as `importlib.import_module`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All descendant nodes, except in the body of `if TYPE_CHECKING:`, which is never executed."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _last_name(child.test) == "TYPE_CHECKING":
            for statement in child.orelse:
                yield statement
                yield from _running(statement)
            continue
        yield child
        yield from _running(child)


@cache
def _module_digest(name: str, root: Path) -> str:
    """Hash of a module: its syntax tree without docstrings, and the data files that it names."""
    path = _source(name, root)
    assert path is not None
    tree = _tree(path)
    digest = hashlib.sha256(_canonical(tree).encode())
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    for text in sorted(texts):
        if _DATA_FILE.fullmatch(text) and (path.parent / text).is_file():
            digest.update(f"\n{text} ".encode())
            digest.update((path.parent / text).read_bytes())
    return digest.hexdigest()


def _canonical(value: object) -> str:
    """Like `ast.dump`, but without docstrings and empty fields, which differ between Python versions."""
    if isinstance(value, ast.Constant):
        return f"Constant({value.value!r})"
    if isinstance(value, ast.AST):
        fields = dict(ast.iter_fields(value))
        if isinstance(value, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(value, clean=False) is not None
        ):
            fields["body"] = value.body[1:]
        inner = ", ".join(f"{k}={_canonical(v)}" for k, v in fields.items() if v is not None and v != [])
        return f"{type(value).__name__}({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(_canonical, value))}]"
    return repr(value)
