"""The registry of methods: one file a method; a new file in this folder is a new method.

A method's module defines one subclass of `Method` with a `name`; nothing else names it anywhere.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from model.methods.base import Method
from mrpipe.errors import UsageError

_NOT_METHODS = frozenset({"base"})


def names() -> tuple[str, ...]:
    """Names of all methods, in alphabetical order: a module's name is its method's."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_METHODS))


def get(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in names():
        raise UsageError(f"no method {name!r}; there are {', '.join(names())}")
    module = import_module(f"{__name__}.{name}")
    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Method) and "name" in vars(c)]
    own = [c for c in found if c.name == name]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define one Method with name = {name!r}")
    return own[0]
