"""simulate: write a raw export that the reader cannot tell from a real one, and its truth beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpipe.errors import UsageError
from mrpipe.options import parse_options
from mrpipe.schema import Dataset
from mrpipe.store.layout import truth_folder
from mrpipe.store.parquet import write_text

MARKER = "simulation.json"


def simulate(dataset: Dataset, out: Path, settings: Mapping[str, Any]) -> None:
    """Write a simulated export to `out` and the truth to `<out>.truth/`.

    The export is written beside its place and renamed: a killed run leaves nothing that looks like an export.

    Raises:
        UsageError: `out` holds files that no simulation wrote.
    """
    options = parse_options(dataset.simulation, settings, context=f"simulation of {dataset.name}")
    truth = truth_folder(out)
    if out.exists() and any(out.iterdir()) and not (truth / MARKER).exists():
        raise UsageError(f"{out} is not empty and was not simulated; it will not be overwritten")
    partial, partial_truth = out.with_name(f".{out.name}.partial"), truth.with_name(f".{truth.name}.partial")
    for folder in (partial, partial_truth):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dataset.simulate(partial, partial_truth, options)
    settings_text = json.dumps({"dataset": dataset.name, "simulation": dataclasses.asdict(options)}, indent=1)
    write_text(partial_truth / MARKER, settings_text + "\n")
    # The truth goes first, so that an export without its marker never exists.
    for source, target in ((partial_truth, truth), (partial, out)):
        if target.exists():
            shutil.rmtree(target)
        source.rename(target)


def is_simulated(raw: Path) -> bool:
    """Whether an export was written by `simulate`."""
    return (truth_folder(raw) / MARKER).exists()
