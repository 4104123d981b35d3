"""prepare: one part of a modality's expensive work, split by subjects or scans into parallel jobs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpipe.errors import UsageError
from mrpipe.options import parse_options
from mrpipe.schema import Dataset
from mrpipe.stages.cohort import read_cohort
from mrpipe.stages.reads import require_unchanged, step_options
from mrpipe.store.layout import WorkLayout


def n_parts(dataset: Dataset, modality: str, settings: Mapping[str, Any]) -> int:
    """Number of parts of a modality's preparation with these options; 0 if it needs none."""
    options = parse_options(dataset.options, settings, context=f"options of {dataset.name}")
    if modality not in dataset.modalities:
        raise UsageError(f"{dataset.name} has no modality {modality!r}; it has {', '.join(dataset.modalities)}")
    reader = dataset.modalities[modality]
    return reader.n_parts(options) if reader.prepare else 0


def prepare(dataset: Dataset, modality: str, part: int, raw: Path, work: Path, settings: Mapping[str, Any]) -> Path:
    """Write part `part` of a modality (`WORK/parts/<modality>/<part>-of-<n>.parquet`); returns its path."""
    options, own = step_options(dataset, f"{modality}.prepare", settings, work)
    dataset = dataset.declared(raw, options)
    total = n_parts(dataset, modality, settings)
    if not 0 <= part < total:
        raise UsageError(f"{dataset.name}/{modality} has {total} parts, numbered from 0; got part {part}")
    reader = dataset.modalities[modality]
    assert reader.prepare is not None
    cohort, paths = read_cohort(work), WorkLayout(work)
    out = paths.part(modality, part, total)
    out.parent.mkdir(parents=True, exist_ok=True)
    reader.prepare(raw, cohort, own, part, total, out)
    require_unchanged(work, out)
    paths.record(out)
    return out
