"""Options: frozen dataclasses whose fields carry help texts, and how text and plain values become one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, TypeVar

from mrpipe.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OptionsT = TypeVar("OptionsT", bound="DataclassInstance")


def parse_assignments(items: Sequence[str] | None) -> dict[str, Any]:
    """Name → text of the `KEY=VALUE` arguments of `--set`; `parse_options` gives the texts their types.

    Raises:
        UsageError: an item without `=`.
    """
    values: dict[str, Any] = {}
    for item in items or ():
        key, separator, text = item.partition("=")
        if not (key and separator):
            raise UsageError(f"--set takes key=value, got {item!r}")
        values[key] = text
    return values


def parse_options(cls: type[OptionsT], values: Mapping[str, object], *, context: str) -> OptionsT:
    """Build an options dataclass from plain values; unknown keys and wrong types are usage errors."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UsageError(f"{context}: unknown option {unknown[0]!r}; known options: {', '.join(sorted(fields))}")
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        default = getattr(cls(), name)
        if isinstance(value, str) and not isinstance(default, str):
            try:
                value = json.loads(value.lower() if isinstance(default, bool) else value)
            except json.JSONDecodeError as error:
                raise UsageError(f"{context}: option {name}={value!r} is not a {type(default).__name__}") from error
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if default is not None and not isinstance(value, type(default)):
            raise UsageError(
                f"{context}: option {name}={value!r} must be {type(default).__name__}, not {type(value).__name__}"
            )
        choices = fields[name].metadata.get("choices")
        if choices and value not in choices:
            raise UsageError(f"{context}: option {name}={value!r} must be one of {', '.join(map(str, choices))}")
        parsed[name] = value
    return cls(**parsed)


def option(default: Any, help: str, *, choices: tuple[Any, ...] = ()) -> Any:
    """A field of an options dataclass with its help text and, where it has them, its choices."""
    return field(default=default, metadata={"help": help, "choices": choices})
