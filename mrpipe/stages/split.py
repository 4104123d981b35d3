"""split: write one named split of a store."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.errors import DataError, UsageError
from mrpipe.schema import Dataset, Task
from mrpipe.stages.declaration import with_stored_schemes
from mrpipe.store.layout import StoreLayout, require_file
from mrpipe.store.parquet import write_frame
from mrpipe.store.splits import PARTS, assign, from_id_list, split_faults

SPLIT_KEY = "mrpipe.split"


def _task(name: str, label: pl.DataFrame) -> Task:
    """Task of a label file, with numbers as the names of its classes."""
    if label.schema["value"] != pl.Int8:
        return Task(name=name, kind="regression")
    return Task(name=name, kind="classification", classes=tuple(map(str, range(128))))


def make_split(dataset: Dataset, store: Path, scheme: str, *, seed: int = 0, ids: Path | None = None) -> dict[str, int]:
    """Write `splits/<scheme>.parquet`; returns the number of samples per part.

    Args:
        scheme: scheme of the dataset or, with `ids`, name of the split.
        ids: JSON file with id lists (see `splits.from_id_list`).

    Raises:
        UsageError: no such scheme.
        DataError: an invalid id list, or a split on which nothing can be trained or tested.
    """
    paths = StoreLayout(store)
    samples = pl.read_parquet(require_file(paths.samples, "samples"))
    dataset = with_stored_schemes(dataset, store)
    settings: dict[str, Any] = {"scheme": scheme, "grouping": "subject_id"}
    declared = None if ids is not None else dataset.schemes.get(scheme)
    labels = {p.stem: pl.read_parquet(p) for p in sorted((store / "labels").glob("*.parquet"))}
    if ids is not None:
        split = from_id_list(samples, ids)
        settings |= {"method": "id list", "source": ids.name}
    elif declared is None:
        raise UsageError(
            f"{dataset.name} has no split scheme {scheme!r}; it has {', '.join(dataset.schemes)} (or pass --ids)"
        )
    else:
        split = assign(declared, samples, labels, seed)
        drawn = {"fractions": list(declared.fractions), "stratify": declared.stratify, "seed": seed}
        by_column = {"method": "column", "column": declared.column}
        settings |= {"method": "grouped, stratified"} | drawn if declared.column is None else by_column
    # Tasks that a file of the export declares are not stored by name.
    own = dataset.resolve is not None
    named = {} if own else {t.name: t for t in dataset.tasks}
    tasks = [named.get(name) or _task(name, label) for name, label in labels.items()]
    rows = [c for c in samples.columns if c.startswith("row_")]
    observed = {c.removeprefix("row_"): samples.filter(pl.col(c).is_not_null())["sample_id"] for c in rows}
    if faults := list(split_faults(scheme, declared, split, tasks, labels, observed, every_class=own)):
        raise DataError(faults)
    # The description of a scheme does not apply to an id list with its name.
    settings |= {"description": "" if declared is None else declared.description}
    paths.unseal()
    write_frame(paths.split(scheme), split, metadata={SPLIT_KEY: json.dumps(settings, sort_keys=True)})
    return {part: int((split["split"] == part).sum()) for part in PARTS}
