"""Registry of datasets: the packages in this folder, and the entry points of the group `mrpipe.datasets`."""

import importlib
import pkgutil

from mrpipe.errors import UsageError, did_you_mean
from mrpipe.plugins import entry_points
from mrpipe.schema import Dataset

_GROUP = "mrpipe.datasets"


def _builtin_names() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(__path__) if m.ispkg]


def dataset_names() -> list[str]:
    return sorted({*_builtin_names(), *entry_points(_GROUP)})


def dataset_module(name: str) -> str:
    """Dotted name of the module that declares a dataset."""
    declared = {} if name in _builtin_names() else entry_points(_GROUP)
    return declared[name].module if name in declared else f"{__name__}.{name}"


def get_dataset(name: str) -> Dataset:
    """Declaration of a dataset.

    Raises:
        UsageError: no dataset of this name.
        TypeError: the entry point is not a `Dataset` of this name.
    """
    if name not in dataset_names():
        raise UsageError(f"no dataset {name!r}. {did_you_mean(name, dataset_names())}")
    if name in _builtin_names():
        dataset = importlib.import_module(f"{__name__}.{name}").DATASET
    else:
        dataset = entry_points(_GROUP)[name].load()
    if not (isinstance(dataset, Dataset) and dataset.name == name):
        raise TypeError(f"entry point {name!r} of {_GROUP} is not a Dataset with name={name!r}")
    return dataset
