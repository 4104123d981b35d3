"""Convert a frame of declared features to a vector modality: record batches and dictionary rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mrpipe.datasets.features import dictionary_of, record_batch
from mrpipe.schema import Features, Modality


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of a vector modality. With `levels` it is categorical and its values are positions in them."""

    name: str
    source_file: str
    source_column: str
    description: str = ""
    unit: str = ""
    levels: tuple[str, ...] = ()


# Declared features, and a frame of their values with one row per participant (`rid`).
Built = tuple[list[Feature], pl.DataFrame]


def features(source_file: str, columns: Mapping[str, str], **common: Any) -> list[Feature]:
    """Features by name → column, with the same description, unit or levels."""
    return [Feature(name=n, source_file=source_file, source_column=c, **common) for n, c in columns.items()]


def side_by_side(cohort: pl.DataFrame, blocks: Iterable[Built]) -> Built:
    """The features of several blocks, one row per participant of the cohort."""
    frame, declared = cohort.select("rid"), []
    for block, values in blocks:
        declared += block
        frame = frame.join(values, on="rid", how="left", validate="1:1", maintain_order="left")
    return declared, frame


def vector_modality(
    name: str, bit: int, description: str, declared: Sequence[Feature], frame: pl.DataFrame, cohort: pl.DataFrame
) -> Features:
    """Build a vector modality (float32, NaN where unknown) from the participants with at least one known value.

    Args:
        declared: features in column order.
        frame: `rid` and one numeric column per feature, null where unknown.
        cohort: `sample_id`, `rid`.
    """
    names = [f.name for f in declared]
    joined = cohort.select("sample_id", "rid").join(frame, on="rid", how="left", validate="1:1")
    observed = joined.filter(pl.any_horizontal(pl.col(names).is_not_null())).sort("sample_id")
    x = observed.select(pl.col(n).cast(pl.Float32).fill_null(np.nan) for n in names).to_numpy()
    modality = Modality(name=name, bit=bit, kind="vector", shape=(len(names),), description=description)
    batch = record_batch(modality, observed["sample_id"].to_list(), x)
    columns = {k: [getattr(f, k) for f in declared] for k in Feature.__dataclass_fields__}
    columns["kind"] = ["categorical" if levels else "numeric" for levels in columns["levels"]]
    columns["levels"] = [list(levels) or None for levels in columns["levels"]]
    dictionary = dictionary_of(name, "", columns, (~np.isnan(x)).sum(axis=0), len(x))
    return Features(modality=modality, batches=[batch], dictionary=dictionary)
