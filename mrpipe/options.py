"""Options: frozen dataclasses with help texts, created from text or plain values."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass
from operator import ge, gt, le, lt
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


def normalised(cls: type[Any], values: Mapping[str, object], *, context: str) -> dict[str, Any]:
    """Parsed values that differ from their defaults, sorted by name: equal for equal options, however written."""
    return dict(sorted(non_default_fields(parse_options(cls, values, context=context)).items()))


# Name of a bound → its words in errors, and the comparison that holds.
_BOUNDS = {"ge": ("at least", ge), "gt": ("above", gt), "le": ("at most", le), "lt": ("below", lt)}


def option(default: Any, help: str, *, choices: tuple[Any, ...] = (), **bounds: float) -> Any:
    """A field of an options dataclass with its default, help text and, optionally, permitted values or bounds.

    Args:
        bounds: `ge`, `gt`, `le` or `lt`, for a subclass of `BoundedOptions`.
    """
    return field(default=default, metadata={"help": help, "choices": choices, **bounds})


class BoundedOptions:
    """Base of options dataclasses whose values are compared with their bounds."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value, bounds = getattr(self, f.name), [name for name in _BOUNDS if name in f.metadata]
            if not all(_BOUNDS[name][1](value, f.metadata[name]) for name in bounds):
                words = " and ".join(f"{_BOUNDS[name][0]} {f.metadata[name]}" for name in bounds)
                raise UsageError(f"option {f.name}={value} must be {words}")


def active(declared: Sequence[str], options: Any) -> list[str]:
    """The declared names without those whose condition (`name if option`) is not true."""
    parts = (text.partition(" if ") for text in declared)
    return [name for name, _, condition in parts if not condition or getattr(options, condition)]


def step_values(options: Any, step: str) -> dict[str, Any]:
    """The options that a step of a build reads: a change of one reruns this step.

    The attribute `STEPS` of reader options, if there is one, maps names of options, separated by blanks, to the steps
    that read them besides `check`: `cohort`, a modality (both its steps), `<modality>.prepare` or `<modality>.ingest`;
    with ` if <option>`, only if that option is true. All steps read the options that it does not name.
    """
    steps = {name: read_by for names, read_by in getattr(options, "STEPS", {}).items() for name in names.split()}
    names = [f.name for f in dataclasses.fields(options)]
    own = {step, step.partition(".")[0]}
    return {n: getattr(options, n) for n in names if n not in steps or not own.isdisjoint(active(steps[n], options))}


def narrowed(options: Any, step: str) -> Any:
    """Dataclass of the options that a step reads; reading another one is an error, not a result that becomes stale."""
    values, fields = step_values(options, step), {f.name for f in dataclasses.fields(options)}

    def otherwise(view: object, name: str) -> Any:
        if name in fields:
            raise AssertionError(f"the step {step} reads the option {name}, which STEPS does not declare")
        return getattr(options, name)

    return make_dataclass(type(options).__name__, values, frozen=True, namespace={"__getattr__": otherwise})(**values)
