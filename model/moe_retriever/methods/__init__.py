"""Registry of methods: each module in this folder with a `Method`, and the entry points of `mrpipe.methods`."""

from importlib import import_module

from moe_retriever.catalogue import GROUP, module_of, names, own_names
from moe_retriever.methods.base import AnyMethod, Method
from mrpipe.errors import UsageError, did_you_mean
from mrpipe.plugins import entry_points

__all__ = ["Method", "get", "names"]


def get(name: str) -> type[AnyMethod]:
    """The class of a method.

    Raises:
        UsageError: unknown method.
        TypeError: the module or entry point does not define exactly one `Method` with this name.
    """
    if name not in names():
        raise UsageError(f"no method {name!r}. {did_you_mean(name, names())}")
    if name in own_names():
        found = list(vars(import_module(module_of(name))).values())
    else:
        found = [entry_points(GROUP)[name].load()]
    classes = [c for c in found if isinstance(c, type) and issubclass(c, Method) and vars(c).get("name") == name]
    if len(classes) != 1:
        raise TypeError(f"method {name!r} must be one subclass of Method with name = {name!r}")
    return classes[0]
