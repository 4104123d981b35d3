"""qc: de-identified quality control of a modality, in numbers and pictures."""

from pathlib import Path

import polars as pl

from mrpipe.errors import UsageError
from mrpipe.schema import Dataset
from mrpipe.store.layout import WorkLayout


def write_qc(dataset: Dataset, modality: str, work: Path, out: Path) -> Path:
    """Write `qc.parquet` and `contact_sheet.png` of an ingested modality to the folder `out`; returns the folder."""
    if modality not in dataset.modalities or dataset.modalities[modality].qc is None:
        supported = [m for m, reader in dataset.modalities.items() if reader.qc]
        raise UsageError(
            f"{dataset.name}: no quality control for {modality!r}; available for {', '.join(supported) or 'none'}"
        )
    paths = WorkLayout(work)
    attempts = pl.read_parquet(paths.require(paths.tried(modality), f"ingest {dataset.name} {modality}"))
    out.mkdir(parents=True, exist_ok=True)
    write = dataset.modalities[modality].qc
    assert write is not None
    write(attempts, paths.part(modality, 0, 1).parent, out)
    return out
