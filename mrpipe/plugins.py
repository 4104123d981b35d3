"""Entry points: commands, datasets and methods declared by this and other packages.

Groups: `mrpipe.commands` (name → `mrpipe.cli.command.Command`), `mrpipe.datasets` (name → `mrpipe.schema.Dataset`),
`mrpipe.methods` (name → subclass of `moe_retriever.methods.base.Method`) and `mrpipe.encoders` (name → function or
class that returns a `mrpipe.text.base.Encoder`).
"""

import tomllib
from functools import cache
from importlib.metadata import EntryPoint
from importlib.metadata import entry_points as installed
from pathlib import Path

_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


@cache
def entry_points(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name, sorted; nothing is imported.

    In a checkout, the project's entry points are read from pyproject.toml, not from an older installation of it.
    """
    checkout = _PYPROJECT.is_file()
    found = {e.name: e for e in installed(group=group) if not (checkout and e.dist and e.dist.name == "mrpipe")}
    if checkout:
        declared = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"].get("entry-points", {})
        found |= {name: EntryPoint(name, value, group) for name, value in declared.get(group, {}).items()}
    return dict(sorted(found.items()))


def plugin_packages() -> frozenset[str]:
    """Top-level packages that declare datasets or methods."""
    groups = ("mrpipe.datasets", "mrpipe.methods")
    return frozenset(e.module.partition(".")[0] for group in groups for e in entry_points(group).values())
