"""YAML files that declare a dataset: found, read with the text of their values, and validated by a JSON schema."""

import dataclasses
import re
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from mrpipe.budget import MAX_YAML, UniqueLoader, load_yaml, read_small
from mrpipe.delimited import decode
from mrpipe.errors import DataError, Fault, FaultCollector, did_you_mean
from mrpipe.schema import Dataset, ModalityReader, Scheme, Task

# A whole number with a decimal point, as floats are written.
WHOLE = r"^(-?(?:0|[1-9][0-9]*))\.0*"


class YamlText(UniqueLoader):
    """Reads 2009_10, 010, 0x10, 1:30 and dates as text; a repeated key is an error."""


YamlText.yaml_implicit_resolvers = {
    first: [r for r in resolvers if not r[0].endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
YamlText.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(0|[1-9][0-9]*)\Z"), list("-0123456789"))
_FLOAT = r"-?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z"
YamlText.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-.0123456789"))


class _Float(float):
    """A number with its text, since codes such as -99.90 are compared as text."""

    text: str


def _float(loader: Any, node: yaml.ScalarNode) -> _Float:
    number = _Float(loader.construct_yaml_float(node))
    number.text = node.value
    return number


YamlText.add_constructor("tag:yaml.org,2002:float", _float)


def canonical(value: str | int | float) -> str:
    """Text of a value; whole numbers lose their decimal point (-99.0 is -99), other notations (2009_10, 1e5) stay."""
    text = re.sub(rf"{WHOLE}\Z", r"\1", str(getattr(value, "text", value)).strip())
    return "0" if text == "-0" else text


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def config_path(raw: Path, config: str, page: str) -> Path:
    """Path of the YAML `config`: in the export folder, or else as given.

    Raises:
        DataError: if there is no such file; names the page of the documentation.
    """
    for path in (raw / config, Path(config)):
        if path.is_file():
            return path
    fix = f"Put it into {raw.name}/, or give its path: --set config=PATH. See {page}."
    raise DataError(Fault(file=config, expected="a YAML file that declares the dataset", found="no such file", fix=fix))


def read_text(path: Path) -> tuple[str, str]:
    """Text of the YAML, and its name in error messages."""
    return decode(read_small(path, path.name, MAX_YAML), shown_as=path.name), path.name


@cache
def validator(schema: Path) -> Draft202012Validator:
    """Of the published JSON schema of a kind of declaration."""
    return Draft202012Validator(yaml.safe_load(schema.read_text(encoding="utf-8")))


class Declaration(FaultCollector):
    """Plain values of a YAML, and all of its errors: those of the schema, and what the schema cannot express."""

    def __init__(self, shown_as: str):
        super().__init__()
        self.shown_as = shown_as

    def fault(self, place: str, expected: str, found: Any, fix: str = "") -> None:
        shown = found if isinstance(found, str) else "nothing" if found is None else repr(found)
        self.add(Fault(file=self.shown_as, column=place, expected=expected, found=shown, fix=fix))

    def load(self, text: str, schema: Path) -> dict[str, Any]:
        """The declaration without what breaks the schema, which is reported.

        Raises:
            DataError: if the text is no YAML.
        """
        return self._valid(load_yaml(text, self.shown_as, YamlText), validator(schema))

    def inside(self, file: str, place: str) -> str:
        """A file below the export folder; another one is reported."""
        if Path(file).is_absolute() or ".." in Path(file).parts or len(file.encode()) > 255:
            self.fault(place, "a path inside the export folder", file)
        return file

    def _valid(self, value: Any, of: Draft202012Validator) -> dict[str, Any]:
        broken: list[list[Any]] = []
        for error in of.iter_errors(value):
            path, node, schema = list[Any](), value, error.schema
            for key in error.absolute_path:
                # An item of a list is reported as the list.
                if isinstance(node, list):
                    break
                path, node = [*path, key], node[key]
            of_key = of.schema["properties"].get(path[0] if path else "", {})
            expected = schema.get("description") or of_key.get("description", "text")
            found, fix = error.instance, schema.get("fix", "")
            if "propertyNames" in error.absolute_schema_path:
                path.append(found)
            if error.validator == "required":
                path.append(next(k for k in error.validator_value if k not in found))
                expected, found = schema.get("properties", {}).get(path[-1], schema).get("description", expected), None
            known, unknown = list(schema.get("properties", ())), []
            if error.validator == "additionalProperties":
                unknown = [k for k in found if k not in known]
            place = ".".join(map(str, path)) or "top level"
            for key in unknown:
                fix = did_you_mean(key, known, otherwise="")
                self.fault(place, f"one of the keys {', '.join(known)}", f"unknown key {key!r}", fix)
            if not unknown:
                self.fault(place, expected, found, fix)
            broken += [[*path, k] for k in unknown] or [path]
        for path in broken:
            node = value
            for key in path[:-1]:
                node = node.get(key, {})
            value = {} if not path else value
            node.pop(path[-1], None) if path else None
        return dict(value)


def pattern(file: str) -> str:
    """Pattern for `Dataset.files` of a file of a declaration, in any compression and in any case of letters."""
    return f"{escape(Path(file.partition('#')[0]).as_posix().lower())}*"


def declare(
    base: Dataset, tasks: tuple[Task, ...], modalities: dict[str, ModalityReader], standard: Scheme | None
) -> Dataset:
    """A dataset with these tasks and modalities, and the scheme `standard`, if there is one, before `uniform`."""
    stratify = next((t.name for t in tasks if t.kind == "classification"), None)
    how = f", stratified by {stratify}" if stratify else ""
    schemes = {} if standard is None else {"standard": standard}
    schemes["uniform"] = Scheme(stratify=stratify, description=f"70/15/15 by subject{how}")
    default = next(iter(schemes))
    return dataclasses.replace(base, tasks=tasks, modalities=modalities, schemes=schemes, default_scheme=default)
