"""Files in which suites are declared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .plan import ConfigError, schema_faults

WORKFLOW = Path(__file__).resolve().parents[1]
OWN = WORKFLOW / "config" / "suites.yaml"
SCHEMA = WORKFLOW / "schemas" / "suites.schema.yaml"
# Use the C loader if PyYAML was built with it, because suites.yaml is read on each start.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_suites(files: Sequence[Path]) -> dict[str, Any]:
    """Merged contents of the files.

    Raises:
        ConfigError: lists every missing or invalid file, and names that two files define.
    """
    schema = yaml.load(SCHEMA.read_text(encoding="utf-8"), Loader=LOADER)
    merged: dict[str, Any] = {"sizes": {}, "datasets": {}, "groups": {}, "suites": {}}
    faults: list[str] = []
    for file in files:
        try:
            said = yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER) or {}
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            damaged = f"suites: {file} is not YAML: {' '.join(str(error).split())}"
            faults.append(f"suites: no file {str(file)!r}" if isinstance(error, FileNotFoundError) else damaged)
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
