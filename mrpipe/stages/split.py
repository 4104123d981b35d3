"""split: write one named split of a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.schema import Dataset
from mrpipe.stages.declaration import with_stored_schemes
from mrpipe.store.layout import StoreLayout, require_file
from mrpipe.store.parquet import write_frame
from mrpipe.store.splits import PARTS, from_column, from_id_list, grouped_stratified, require_grouped

SPLIT_KEY = "mrpipe.split"


def make_split(dataset: Dataset, store: Path, scheme: str, *, seed: int = 0, ids: Path | None = None) -> dict[str, int]:
    """Write `splits/<scheme>.parquet`; returns the number of samples per part.

    Args:
        scheme: scheme of the dataset or, with `ids`, name of the split.
        ids: JSON file with id lists (see `splits.from_id_list`).
    """
    paths = StoreLayout(store)
    samples = pl.read_parquet(require_file(paths.samples, "samples"))
    dataset = with_stored_schemes(dataset, store)
    settings: dict[str, Any] = {"scheme": scheme, "grouping": "subject_id"}
    if ids is not None:
        split = from_id_list(samples, ids)
        settings |= {"method": "id list", "source": ids.name}
    elif scheme not in dataset.schemes:
        raise UsageError(
            f"{dataset.name} has no split scheme {scheme!r}; it has {', '.join(dataset.schemes)} (or pass --ids)"
        )
    elif (column := dataset.schemes[scheme].column) is not None:
        split = from_column(samples, column)
        require_grouped(samples, split, f"column {column} of samples.parquet")
        settings |= {"method": "column", "column": column}
    else:
        declared = dataset.schemes[scheme]
        stratum = None
        if declared.stratify is not None:
            label = pl.read_parquet(paths.labels(declared.stratify)).rename({"value": "stratum"})
            samples, stratum = samples.join(label, on="sample_id", how="left"), "stratum"
        split = grouped_stratified(samples, fractions=declared.fractions, seed=seed, stratum=stratum)
        settings |= {
            "method": "grouped, stratified",
            "fractions": list(declared.fractions),
            "stratify": declared.stratify,
            "seed": seed,
        }
    counts = {part: int((split["split"] == part).sum()) for part in PARTS}
    if counts["train"] == 0:
        raise DataError(Fault(file=f"split {scheme}", expected="training samples", found=f"the sizes {counts}"))
    # The description of a scheme does not apply to an id list with its name.
    settings |= {"description": "" if ids is not None else dataset.schemes[scheme].description}
    paths.unseal()
    write_frame(paths.split(scheme), split, metadata={SPLIT_KEY: json.dumps(settings, sort_keys=True)})
    return counts
