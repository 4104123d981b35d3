"""Serialised declaration of a dataset resolved from its export, for the steps that do not read the export."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mrpipe.schema import Dataset, Features, ModalityReader, Scheme, Task
from mrpipe.store.layout import StoreLayout, WorkLayout, require_file
from mrpipe.store.parquet import read_metadata

# Keys of the declaration in checked.json and of the split schemes in the metadata of samples.parquet.
DECLARED, SCHEMES_KEY = "declared", "mrpipe.schemes"
_TEXTS = ("title", "citation", "licence", "provider", "people", "default_scheme")


def declaration(dataset: Dataset) -> dict[str, Any]:
    """A resolved dataset as plain values, without its readers."""
    return {
        **{name: getattr(dataset, name) for name in _TEXTS},
        "tasks": [dataclasses.asdict(t) for t in dataset.tasks],
        "schemes": schemes_json(dataset),
        "modalities": [[name, r.bit, r.description] for name, r in dataset.modalities.items()],
    }


def checked_dataset(dataset: Dataset, work: Path) -> Dataset:
    """The dataset as declared by the checked export; its modalities cannot be read."""
    if dataset.resolve is None:
        return dataset
    value = json.loads(require_file(WorkLayout(work).checked, "check --work").read_text(encoding="utf-8"))[DECLARED]
    return dataclasses.replace(
        dataset,
        **{name: value[name] for name in _TEXTS},
        tasks=tuple(Task(**{**t, "classes": tuple(t["classes"])}) for t in value["tasks"]),
        schemes=_schemes(value["schemes"]),
        modalities={n: ModalityReader(bit=b, description=d, read=_unreadable) for n, b, d in value["modalities"]},
    )


def with_stored_schemes(dataset: Dataset, store: Path) -> Dataset:
    """The dataset with the split schemes stored by the step `samples`."""
    if dataset.resolve is None:
        return dataset
    schemes = _schemes(json.loads(read_metadata(StoreLayout(store).samples)[SCHEMES_KEY]))
    return dataclasses.replace(dataset, schemes=schemes)


def schemes_json(dataset: Dataset) -> dict[str, Any]:
    return {name: dataclasses.asdict(scheme) for name, scheme in dataset.schemes.items()}


def _schemes(value: dict[str, Any]) -> dict[str, Scheme]:
    return {name: Scheme(**{**s, "fractions": tuple(s["fractions"])}) for name, s in value.items()}


def _unreadable(*arguments: Any) -> Features:
    raise AssertionError("this step does not read the export")
