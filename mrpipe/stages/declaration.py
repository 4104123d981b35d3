"""Serialised declaration of a dataset resolved from its export, for the steps that do not read the export."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mrpipe.schema import Dataset, Features, ModalityReader, Scheme, Task
from mrpipe.store.layout import WorkLayout

# Key of the declaration in checked.json.
DECLARED = "declared"
_TEXTS = ("title", "citation", "licence", "provider", "people", "default_scheme")


def declaration(dataset: Dataset) -> dict[str, Any]:
    """A resolved dataset as plain values, without its readers."""
    return {
        **{name: getattr(dataset, name) for name in _TEXTS},
        "tasks": [dataclasses.asdict(t) for t in dataset.tasks],
        "schemes": {name: dataclasses.asdict(scheme) for name, scheme in dataset.schemes.items()},
        "files": dict(dataset.files),
        "modalities": [[name, r.bit, r.description] for name, r in dataset.modalities.items()],
    }


def read_checked(work: Path) -> dict[str, Any]:
    """Content of `checked.json`, which must be as `check` wrote it."""
    paths = WorkLayout(work)
    content: dict[str, Any] = json.loads(paths.require(paths.checked, "check --work").read_text(encoding="utf-8"))
    return content


def checked_dataset(dataset: Dataset, work: Path) -> Dataset:
    """The dataset as declared by the checked export; its modalities cannot be read."""
    if dataset.resolve is None:
        return dataset
    value = read_checked(work)[DECLARED]
    return dataclasses.replace(
        dataset,
        **{name: value[name] for name in _TEXTS},
        tasks=tuple(Task(**{**t, "classes": tuple(t["classes"])}) for t in value["tasks"]),
        schemes={n: Scheme(**{**s, "fractions": tuple(s["fractions"])}) for n, s in value["schemes"].items()},
        files=value.get("files", {}),
        modalities={n: ModalityReader(bit=b, description=d, read=_unreadable) for n, b, d in value["modalities"]},
    )


def _unreadable(*arguments: Any) -> Features:
    raise AssertionError("this step does not read the export")
