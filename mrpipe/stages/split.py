"""split: write one named split."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.errors import DataError, UsageError
from mrpipe.schema import SPLIT_KEY, Dataset
from mrpipe.stages.declaration import checked_dataset
from mrpipe.store.layout import SCHEME_NAME, WorkLayout
from mrpipe.store.parquet import write_frame
from mrpipe.store.splits import PARTS, assign, from_id_list, split_faults


def make_split(dataset: Dataset, work: Path, scheme: str, *, seed: int = 0, ids: Path | None = None) -> dict[str, int]:
    """Write `WORK/store/splits/<scheme>.parquet`; returns the number of samples per part.

    Args:
        scheme: scheme of the dataset or, with `ids`, name of the split.
        ids: JSON file with id lists (see `splits.from_id_list`).

    Raises:
        UsageError: no such scheme, or its name cannot be that of a file.
        DataError: an invalid id list, or a split on which nothing can be trained or tested.
    """
    working = WorkLayout(work)
    paths = working.store
    if not re.fullmatch(SCHEME_NAME, scheme):
        raise UsageError(f"--scheme {scheme}: expected letters, digits and . _ -, and a letter or digit first")
    samples = pl.read_parquet(working.require(paths.samples, "samples"))
    dataset = checked_dataset(dataset, work)
    settings: dict[str, Any] = {"scheme": scheme, "grouping": "subject_id"}
    declared = None if ids is not None else dataset.schemes.get(scheme)
    labels = {t.name: pl.read_parquet(working.require(paths.labels(t.name), "samples")) for t in dataset.tasks}
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
    own = dataset.resolve is not None
    rows = [c for c in samples.columns if c.startswith("row_")]
    observed = {c.removeprefix("row_"): samples.filter(pl.col(c).is_not_null())["sample_id"] for c in rows}
    if faults := list(split_faults(scheme, declared, split, dataset.tasks, labels, observed, every_class=own)):
        raise DataError(faults)
    # The description of a scheme does not apply to an id list with its name.
    settings |= {"description": "" if declared is None else declared.description}
    write_frame(paths.split(scheme), split, metadata={SPLIT_KEY: json.dumps(settings, sort_keys=True)})
    working.record(paths.split(scheme))
    return {part: int((split["split"] == part).sum()) for part in PARTS}
