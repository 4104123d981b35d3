"""Hash of the code that a step depends on; results become stale when it changes.

A step names its entries, modules or definitions (`mrpipe.stages.ingest:ingest`). The functions, classes and constants
of the project that they reach by name are followed statically, also through lazy imports and packages that re-export
names. To miss nothing, these always count: statements with effects of every module that is imported, definitions and
assignments that call a function of the project at import time, and all of a module that is used as an object (passed
on, `getattr`, `import *`) or inspects itself. Module names composed at run time (`import_module(f"...")`) are not
followed, so that a registry does not make every step depend on every plug-in: the step names its plug-in as an entry. A
package's `__init__` is included only if something is imported from the package itself.

The hash covers syntax trees without docstrings, and the data files next to a module that its reachable code names.
"""

import ast
import hashlib
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from mrpipe.errors import UsageError
from mrpipe.locks import cache_folder, temporary_name
from mrpipe.plugins import plugin_packages

# Folder of the project's packages: a checkout, in which moe_retriever is in model/, or site-packages.
PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = {"mrpipe": ("",), "moe_retriever": ("model", "")}
_DATA_FILE = re.compile(r"Constant\('([\w./-]+\.(?:json|yaml|yml|csv|tsv|txt|html|css|svg))'\)")  # in `_canonical`
# Use of one of these makes a module depend on all of its own definitions.
_INTROSPECTION = {"globals", "eval", "exec"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)
_DECLARATIONS = (*_DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign)
_TARGETS = (ast.Name, ast.Tuple, ast.List, ast.Starred, ast.expr_context)


@cache
def code_hash(*entries: str, root: Path = PROJECT) -> str:
    """Hash of all project code reachable from the entries: 16 hex digits, equal on every Python ≥ 3.11.

    Args:
        entries: dotted names of modules, or `module:definition`.
        root: folder of the packages.

    Raises:
        UsageError: an entry is not a module of the project, or a module cannot be parsed.
    """
    known, file = _remembered(root)
    if (key := " ".join(entries)) not in known:
        lines = [
            f"{name} {' '.join(_digest(name, i, root) for i in sorted(units))}\n"
            for name, units in sorted(reached(*entries, root=root).items())
        ]
        known[key] = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
        with suppress(OSError):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                (new := temporary_name(file)).write_text(json.dumps(known), encoding="utf-8")
                new.replace(file)
    return known[key]


@cache
def _remembered(root: Path) -> tuple[dict[str, str], Path | None]:
    """Hashes in the user's cache that are valid for the present files of the packages, by entries, and its file.

    A file changed within two seconds may change again without another time stamp: then, no cache is used.
    """
    folders = [root / place / name for name, places in PACKAGES.items() for place in places]
    specs = [find_spec(name) for name in plugin_packages() - PACKAGES.keys()]
    origins = [Path(spec.origin) for spec in specs if spec and spec.origin]
    folders += [origin.parent if origin.name == "__init__.py" else origin for origin in origins]
    paths = sorted(path for folder in folders for path in (folder, *folder.rglob("*")) if path.suffix != ".pyc")
    files = [(path, path.stat()) for path in paths if path.is_file()]
    if not (own := cache_folder()) or time.time() - max((stat.st_ctime for _, stat in files), default=0) < 2:
        return {}, None
    state = "\n".join(f"{path} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for path, s in files)
    known = {"state": hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()}
    file = own / "code" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError):
        found = dict(json.loads(file.read_text(encoding="utf-8")))
        known |= found if found.get("state") == known["state"] else {}
    return known, file


def entry_of(function: Callable[..., object]) -> str:
    """Entry of a function, or of a callable object by its class; a nested one counts with its whole module."""
    while isinstance(function, partial):
        function = function.func
    definition = function if hasattr(function, "__qualname__") else type(function)
    nested = "<" in definition.__qualname__
    return definition.__module__ if nested else f"{definition.__module__}:{definition.__qualname__.partition('.')[0]}"


def reached(*entries: str, root: Path = PROJECT) -> dict[str, set[int]]:
    """Imported module → indices of its top-level statements (`_Module`) that the entries depend on."""
    search = _Search(root)
    for entry in entries:
        name, _, definition = entry.partition(":")
        if _source(name, root) is None:
            raise UsageError(f"no module {name!r} in {root}; expected a dotted name such as mrpipe.stages.ingest")
        if definition:
            search.use(name, [definition])
        else:
            search.use_whole(name)
    while search.waiting:
        search.follow(*search.waiting.pop())
    return search.found


class _Search:
    """The statements reached so far, and those whose names are still to be followed.

    Args:
        root: folder of the packages.
    """

    def __init__(self, root: Path):
        self.root = root
        self.found: dict[str, set[int]] = {}
        self._whole: set[str] = set()
        self.waiting: list[tuple[str, int]] = []

    def use_whole(self, module: str) -> None:
        """All statements of a module, and everything that it imports from the project."""
        if module not in self._whole:
            self._whole.add(module)
            self._import(module)
            content = _Module.of(module, self.root)
            for i in range(len(content.statements)):
                self._add(module, i)
            for name in filter(None, content.imported):
                self.use(module, [name])

    def use(self, module: str, chain: list[str]) -> None:
        """Use of `module.chain[0].chain[1]...`; of a module that the chain ends at, all is used."""
        content = _Module.of(module, self.root)
        if not chain:
            self.use_whole(module)
            return
        self._import(module)
        first, *rest = chain
        for i in content.bound.get(first, ()):
            self._add(module, i)
        for target, name in content.imported.get(first, ()):
            self.use(target, [name, *rest] if name else rest)
        if not content.defines(first):
            submodule = f"{module}.{first}"
            if _source(submodule, self.root):
                self.use(submodule, rest)
            else:
                self.use_whole(module)

    def _import(self, module: str) -> None:
        """The module is imported: what it imports and its statements with effects run."""
        if module not in self.found:
            self.found[module] = set()
            content = _Module.of(module, self.root)
            for target in content.executed:
                self._import(target)
            for target, _ in content.imported.get("", ()):
                self.use_whole(target)
            for i in content.effects:
                self._add(module, i)

    def _add(self, module: str, index: int) -> None:
        if index not in self.found[module]:
            self.found[module].add(index)
            self.waiting.append((module, index))

    def follow(self, module: str, index: int) -> None:
        content = _Module.of(module, self.root)
        local: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        imports, chains = _uses(module, index, self.root)
        for executed, alias, target, name in imports:
            self._import(executed)
            if alias:
                local[alias].add((target, name))
            else:
                self.use_whole(executed)
        for first, *rest in chains:
            if first in _INTROSPECTION or (first == "sys" and rest[:1] == ["modules"]):
                self.use_whole(module)
            if content.defines(first):
                self.use(module, [first, *rest])
            for target, name in local.get(first, ()):
                self.use(target, [name, *rest] if name else rest)


class _Module:
    """The top-level statements of a module and the names that they bind.

    Attributes:
        package: the package that relative imports start from.
        statements: all but docstrings and the body of `if TYPE_CHECKING:`.
        bound: name → indices of the statements that define or import it.
        imported: name → (module, name in it; "" for the module itself), for imports from the project.
        executed: modules of the project that run when this one is imported.
        effects: indices of the statements that count whenever the module is imported.
    """

    def __init__(self, name: str, root: Path):
        path = _source(name, root)
        assert path is not None
        self.path, self.package = path, name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.statements = [
            s for s in _children(_tree(path)) if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        ]
        self.bound: defaultdict[str, list[int]] = defaultdict(list)
        self.imported: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        self.executed: dict[str, None] = {}
        self.effects: set[int] = set()
        for i, statement in enumerate(self.statements):
            for executed, alias, target, inner in _imports(statement, self.package, root, at_import=True):
                self.executed[executed] = None
                self.imported[alias].add((target, inner))
            names = set(_bindings(statement))
            for bound in names:
                self.bound[bound].append(i)
            targets = [getattr(statement, "target", None), *getattr(statement, "targets", ())]
            simple = all(isinstance(n, _TARGETS) for t in filter(None, targets) for n in ast.walk(t))
            if not (isinstance(statement, _DECLARATIONS) and simple) or "*" in names or "__getattr__" in names:
                self.effects.add(i)
        # Functions and objects of the project may have effects if they decorate a definition or give a value; classes,
        # which have capital names, only make objects.
        passive = (ast.ClassDef, ast.Import, ast.ImportFrom)
        own = {n for n, at in self.bound.items() if any(not isinstance(self.statements[i], passive) for i in at)}
        known = own | self.imported.keys()
        for i, statement in enumerate(self.statements):
            called = (chain for node in _called(statement) if (chain := _chain(node)))
            if any(chain[0] in known and not chain[-1].lstrip("_")[:1].isupper() for chain in called):
                self.effects.add(i)

    def defines(self, name: str) -> bool:
        return name in self.bound or name in self.imported

    @staticmethod
    @cache
    def of(name: str, root: Path) -> "_Module":
        return _Module(name, root)


# An import from the project: the module that runs, the name that it binds ("" if unknown), and the module and the name
# in it ("": the module itself) that this name stands for.
_Import = tuple[str, str, str, str]


def _imports(statement: ast.AST, package: str, root: Path, *, at_import: bool = False) -> Iterator[_Import]:
    """Imports from the project in a statement, with `at_import` without those in functions."""
    for node in _running(statement, into_functions=not at_import):
        if isinstance(node, ast.Import):
            # `import a.b` binds `a`, through which all of `a.b` can be used.
            for name, alias in ((a.name, a.asname) for a in node.names if _source(a.name, root)):
                yield name, alias or ("" if "." in name else name), name, ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            for found in node.names:
                alias = "" if found.name == "*" else found.asname or found.name
                if _source(submodule := f"{base}.{found.name}", root):
                    yield submodule, alias, submodule, ""
                elif _source(base, root):
                    yield base, alias, base, found.name
        elif isinstance(node, ast.Call) and _chain(node.func)[-1:] == ["import_module"] and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str) and _source(target.value, root):
                yield target.value, "", target.value, ""


@cache
def _uses(module: str, index: int, root: Path) -> tuple[list[_Import], set[tuple[str, ...]]]:
    """Imports and names in a statement."""
    content = _Module.of(module, root)
    statement = content.statements[index]
    return list(_imports(statement, content.package, root)), {tuple(chain) for chain in _chains(statement)}


def _called(statement: ast.AST) -> list[ast.expr]:
    """Decorators of a definition, or functions that another statement calls."""
    if isinstance(statement, _DEFINITIONS):
        return [d.func if isinstance(d, ast.Call) else d for d in statement.decorator_list]
    return [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]


@cache
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


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UsageError(f"{path}, line {error.lineno}: {error.msg}") from error


def _children(node: ast.AST) -> list[ast.AST]:
    """Child nodes, except contexts of names and the body of `if TYPE_CHECKING:`, which is never executed."""
    found: list[ast.AST] = []
    for value in [getattr(node, name, None) for name in node._fields if name != "ctx"]:
        for child in value if isinstance(value, list) else (value,):
            if isinstance(child, ast.If) and _chain(child.test)[-1:] == ["TYPE_CHECKING"]:
                found += child.orelse
            elif isinstance(child, ast.AST):
                found.append(child)
    return found


def _running(node: ast.AST, *, into_functions: bool = True) -> Iterator[ast.AST]:
    """A node and its descendants that are executed, optionally without the bodies of functions."""
    waiting = [node]
    while waiting:
        yield (parent := waiting.pop())
        if into_functions or not isinstance(parent, _FUNCTIONS):
            waiting += _children(parent)


def _bindings(node: ast.AST) -> Iterator[str]:
    """Names that a statement at the top level of a module may bind."""
    if isinstance(node, _DEFINITIONS):
        yield node.name
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    else:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        for child in _children(node):
            yield from _bindings(child)


def _chains(node: ast.AST) -> Iterator[list[str]]:
    """Names that a statement uses, each with the attributes that follow it."""
    waiting = [node]
    while waiting:
        for child in _children(waiting.pop()):
            if chain := _chain(child):
                yield chain
            else:
                waiting.append(child)


def _chain(node: ast.AST | None) -> list[str]:
    """`a.b.c` as its parts; empty for other expressions."""
    if isinstance(node, ast.Attribute):
        return [*base, node.attr] if (base := _chain(node.value)) else []
    return [node.id] if isinstance(node, ast.Name) else []


@cache
def _digest(name: str, index: int, root: Path) -> str:
    """Hash of a statement of a module: its syntax tree without docstrings, and the data files that it names."""
    content = _Module.of(name, root)
    tree = _canonical(content.statements[index])
    digest = hashlib.sha256(tree.encode())
    for file in sorted(set(_DATA_FILE.findall(tree))):
        if (content.path.parent / file).is_file():
            digest.update(f"\n{file} ".encode())
            digest.update((content.path.parent / file).read_bytes())
    return digest.hexdigest()


def _canonical(value: object) -> str:
    """Like `ast.dump`, but without docstrings, contexts of names, and empty fields, which differ between versions."""
    if isinstance(value, ast.Constant):
        return f"Constant({value.value!r})"
    if isinstance(value, ast.AST):
        fields = {name: getattr(value, name, None) for name in value._fields if name != "ctx"}
        if isinstance(value, _DEFINITIONS) and ast.get_docstring(value, clean=False) is not None:
            fields["body"] = value.body[1:]
        inner = ", ".join([f"{k}={_canonical(v)}" for k, v in fields.items() if v is not None and v != []])
        return f"{type(value).__name__}({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(_canonical, value))}]"
    return repr(value)
