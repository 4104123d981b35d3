"""The registry: one package a dataset, found by name; a new dataset is a new folder with a `DATASET`."""

from __future__ import annotations

import importlib
import pkgutil

from mrpipe.errors import UsageError
from mrpipe.schema import Dataset


def dataset_names() -> list[str]:
    """Names of all datasets, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)


def get_dataset(name: str) -> Dataset:
    """The declaration of a dataset."""
    if name not in dataset_names():
        raise UsageError(f"unknown dataset {name!r}; known: {', '.join(dataset_names())}")
    module = importlib.import_module(f"mrpipe.datasets.{name}")
    dataset = module.DATASET
    assert isinstance(dataset, Dataset)
    return dataset
