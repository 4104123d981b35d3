"""build: the steps check … seal in one process, for a store without a workflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpipe.errors import UsageError
from mrpipe.options import parse_options
from mrpipe.schema import Dataset
from mrpipe.stages.check import write_check
from mrpipe.stages.cohort import build_cohort
from mrpipe.stages.ingest import ingest
from mrpipe.stages.prepare import n_parts, prepare
from mrpipe.stages.qc import write_qc
from mrpipe.stages.samples import assemble_samples
from mrpipe.stages.seal import seal
from mrpipe.stages.split import make_split
from mrpipe.store.layout import qc_folder


def build(
    dataset: Dataset,
    raw: Path,
    store: Path,
    settings: Mapping[str, Any],
    *,
    modalities: Sequence[str] | None = None,
    schemes: Sequence[str] | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda message: None,
) -> str:
    """Build and seal a store from an export; returns its store_id. Quality control, where there is any, lies beside it.

    Args:
        modalities: which ones; by default all that the export holds.
        schemes: which split schemes; by default all of the dataset.
        report: called with a line after each step.

    Raises:
        UsageError: the export has no such modality, or the dataset no such scheme; said before the long work.
        DataError: with every fault that a step finds.
    """
    work = store.with_name(f".{store.name}.work")
    # A killed build leaves its intermediate files; none of them is trusted.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        checked = write_check(dataset, raw, work, settings)
        report(f"check: {checked['release']}, {len(checked['inputs'])} inputs, no fault")
        dataset = dataset.declared(raw, parse_options(dataset.options, settings, context=f"options of {dataset.name}"))
        chosen, wanted = tuple(modalities or checked["modalities"]), tuple(schemes or dataset.schemes)
        for what, names, known in (
            ("modality", chosen, checked["modalities"]),
            ("split scheme", wanted, dataset.schemes),
        ):
            if unknown := [n for n in names if n not in known]:
                raise UsageError(f"{dataset.name}: no {what} {unknown[0]!r} in this export; it has {', '.join(known)}")
        report(f"cohort: {build_cohort(dataset, raw, work, settings)} samples")
        for name in chosen:
            for part in range(n_parts(dataset, name, settings)):
                prepare(dataset, name, part, raw, work, settings)
            report(f"ingest {name}: {ingest(dataset, name, raw, work, store, settings)} rows")
            if dataset.modalities[name].qc:
                report(f"quality control of {name}: {write_qc(dataset, name, work, qc_folder(store))}")
        report(f"samples: {assemble_samples(dataset, work, store, chosen)}")
        for scheme in wanted:
            report(f"split {scheme}: {make_split(dataset, store, scheme, seed=seed)}")
        store_id = seal(dataset, work, store, wanted)
        report(f"sealed: {store_id}")
        return store_id
    finally:
        shutil.rmtree(work)
