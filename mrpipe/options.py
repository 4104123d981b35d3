"""Options: frozen dataclasses with help texts, created from text or plain values."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, TypeVar

from mrpipe.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OptionsT = TypeVar("OptionsT", bound="DataclassInstance")


def parse_assignments(items: Sequence[str] | None, flag: str = "--set") -> dict[str, Any]:
    """Name → text of the `KEY=VALUE` arguments of a flag; `parse_options` gives the texts their types.

    Raises:
        UsageError: an item without `=`.
    """
    values: dict[str, Any] = {}
    for item in items or ():
        key, separator, text = item.partition("=")
        if not (key and separator):
            raise UsageError(f"{flag} takes key=value, got {item!r}")
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
                raise UsageError(f"{context}: option {name}={value!r} is not {type(default).__name__}") from error
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if default is not None and (
            not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise UsageError(
                f"{context}: option {name}={value!r} must be {type(default).__name__}, not {type(value).__name__}"
            )
        choices = fields[name].metadata.get("choices")
        if choices and value not in choices:
            raise UsageError(f"{context}: option {name}={value!r} must be one of {', '.join(map(str, choices))}")
        parsed[name] = value
    try:
        return cls(**parsed)
    except UsageError as error:
        raise UsageError(f"{context}: {error}") from error


def non_default_fields(options: Any) -> dict[str, Any]:
    """Fields of an options dataclass that differ from their defaults."""
    return {f.name: v for f in dataclasses.fields(options) if (v := getattr(options, f.name)) != f.default}


def option(default: Any, help: str, *, choices: tuple[Any, ...] = ()) -> Any:
    """A field of an options dataclass with its default, help text and, optionally, permitted values."""
    return field(default=default, metadata={"help": help, "choices": choices})
