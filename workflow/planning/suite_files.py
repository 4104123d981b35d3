"""Files in which suites are declared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrpipe.budget import MAX_YAML, load_yaml, read_small
from mrpipe.errors import DataError
from mrpipe.reading import reading

from .plan import ConfigError, schema_faults

WORKFLOW = Path(__file__).resolve().parents[1]
OWN = WORKFLOW / "config" / "suites.yaml"
SCHEMA = WORKFLOW / "schemas" / "suites.schema.yaml"


def read_suites(files: Sequence[Path]) -> dict[str, Any]:
    """Merged contents of the files.

    Raises:
        ConfigError: lists every missing or invalid file, and names that two files define.
    """
    schema = load_yaml(SCHEMA.read_text(encoding="utf-8"), SCHEMA.name)
    merged: dict[str, Any] = {"sizes": {}, "datasets": {}, "groups": {}, "suites": {}}
    faults: list[str] = []
    for file in files:
        try:
            with reading(file, "a file of suites", "Check the paths in the key `suites` of the configuration."):
                said = load_yaml(read_small(file, str(file), MAX_YAML).decode("utf-8-sig"), str(file)) or {}
        except DataError as error:
            faults.append(f"suites: {error}")
            continue
        wrong = schema_faults(said, schema)
        faults += [f"{file}: {fault}" for fault in wrong]
        for key, entries in said.items() if not wrong else ():
            again = sorted(set(entries) & set(merged[key]))
            faults += [f"{file}: {key}.{name}: this name is already defined; choose another" for name in again]
            merged[key] |= entries
    if faults:
        raise ConfigError(faults)
    return merged
