"""prepare: one part of a modality's expensive work, split by subjects or scans into parallel jobs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpipe.errors import UsageError
from mrpipe.kept import keeping
from mrpipe.options import narrowed, parse_options
from mrpipe.schema import Dataset
from mrpipe.stages.cohort import read_cohort
from mrpipe.stages.reads import require_unchanged, step_options
from mrpipe.store.layout import WorkLayout


def parts_of(dataset: Dataset, modality: str, settings: Mapping[str, Any]) -> tuple[str, int]:
    """Modality whose parts the reader of `modality` joins, and their number with these options; 0 if it needs none."""
    options = parse_options(dataset.options, settings, context=f"options of {dataset.name}")
    if modality not in dataset.modalities:
        raise UsageError(f"{dataset.name} has no modality {modality!r}; it has {', '.join(dataset.modalities)}")
    source = dataset.modalities[modality].parts_of or modality
    reader = dataset.modalities[source]
    return source, reader.n_parts(options) if reader.prepare else 0


def prepare(dataset: Dataset, modality: str, part: int, raw: Path, work: Path, settings: Mapping[str, Any]) -> Path:
    """Write part `part` of a modality (`WORK/parts/<modality>/<part>-of-<n>.parquet`); returns its path.

    The parts of a modality that reads those of another one are written under the name of the other.
    """
    options, _ = step_options(dataset, modality, settings, work)
    dataset = dataset.declared(raw, options)
    modality, total = parts_of(dataset, modality, settings)
    if not 0 <= part < total:
        raise UsageError(f"{dataset.name}/{modality} has {total} parts, numbered from 0; got part {part}")
    reader = dataset.modalities[modality]
    assert reader.prepare is not None
    cohort, paths = read_cohort(work), WorkLayout(work)
    out = paths.part(modality, part, total)
    out.parent.mkdir(parents=True, exist_ok=True)
    with keeping(paths.kept):
        reader.prepare(raw, cohort, narrowed(options, f"{modality}.prepare"), part, total, out)
    require_unchanged(work, out)
    paths.record(out)
    return out
