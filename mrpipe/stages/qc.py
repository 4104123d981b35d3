"""qc: numbers and pictures of what was tried for a modality, fit to be shown."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.errors import UsageError
from mrpipe.schema import Dataset
from mrpipe.store.layout import WorkLayout, made_by


def write_qc(dataset: Dataset, modality: str, work: Path, out: Path) -> Path:
    """Write `qc.parquet` and `contact_sheet.png` of an ingested modality into `out`; returns the folder."""
    if modality not in dataset.modalities or dataset.modalities[modality].qc is None:
        having = [m for m, reader in dataset.modalities.items() if reader.qc]
        raise UsageError(
            f"{dataset.name}: no quality control of {modality!r}; there is of {', '.join(having) or 'none'}"
        )
    paths = WorkLayout(work)
    tried = pl.read_parquet(made_by(paths.tried(modality), f"ingest {dataset.name} {modality}"))
    out.mkdir(parents=True, exist_ok=True)
    write = dataset.modalities[modality].qc
    assert write is not None
    write(tried, paths.part(modality, 0, 1).parent, out)
    return out
