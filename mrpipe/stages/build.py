"""build: run all steps from `check` to `seal` in one process, without the workflow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpipe.options import parse_options
from mrpipe.schema import Dataset
from mrpipe.stages.check import closing, require_same_store, write_check
from mrpipe.stages.cohort import build_cohort
from mrpipe.stages.ingest import ingest
from mrpipe.stages.prepare import parts_of, prepare
from mrpipe.stages.qc import write_qc
from mrpipe.stages.samples import assemble_samples
from mrpipe.stages.seal import seal
from mrpipe.stages.split import make_split
from mrpipe.store.layout import qc_folder
from mrpipe.store.publish import hidden_folder


def build(
    dataset: Dataset,
    raw: Path,
    store: Path,
    settings: Mapping[str, Any],
    *,
    modalities: Sequence[str] | None = None,
    schemes: Sequence[str] | None = None,
    seed: int = 0,
    overwrite: bool = True,
    report: Callable[[str], None] = lambda message: None,
) -> str:
    """Build and seal a store from an export; returns its store_id. Quality control, if any, is written next to it.

    Intermediate files are in a hidden folder of this process, beside the store that is replaced at the end.

    Args:
        settings: reader options that differ from their defaults.
        modalities: modalities to include; default: all of the export.
        schemes: split schemes to include; default: all of the dataset.
        overwrite: whether a finished store of another dataset, export or other options may be replaced.
        report: called with a message after each step.

    Raises:
        UsageError: unknown option, modality or scheme, another process that builds this store, or files in its folder
            that are not part of a store; raised before any time-consuming step.
        DataError: lists all problems found by a step.
    """
    store = store.resolve()
    with hidden_folder(store, "b") as work:
        checked = write_check(dataset, raw, work, settings, modalities=modalities, schemes=schemes, seed=seed)
        report(f"check: {checked['release']}, input files: {len(checked['inputs'])}; {closing(checked)}")
        if not overwrite:
            require_same_store(store, checked, seed)
        for note in (n for n in checked["notes"] if n.startswith("text encoder")):
            report(note)
        dataset = dataset.declared(raw, parse_options(dataset.options, settings, context=f"options of {dataset.name}"))
        modalities = checked["modalities"]
        schemes = tuple(dataset.schemes) if schemes is None else schemes
        report(f"cohort: {build_cohort(dataset, raw, work, settings)} samples")
        prepared = set[str]()
        for name in modalities:
            source, total = parts_of(dataset, name, settings)
            for part in range(0 if source in prepared else total):
                prepare(dataset, source, part, raw, work, settings)
            prepared.add(source)
            report(f"ingest {name}: {ingest(dataset, name, raw, work, settings)} rows")
            if dataset.modalities[name].qc:
                report(f"quality control of {name}: {write_qc(dataset, name, work, qc_folder(store))}")
        report(f"samples: {assemble_samples(dataset, work, modalities)}")
        for scheme in schemes:
            report(f"split {scheme}: {make_split(dataset, work, scheme, seed=seed)}")
        return seal(dataset, work, store, schemes, move=True)
