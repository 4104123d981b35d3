"""simulate: write a raw export in the format of a real one, and the ground truth next to it."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpipe.errors import UsageError
from mrpipe.locks import hidden, resolved
from mrpipe.options import parse_options
from mrpipe.schema import Dataset
from mrpipe.store.layout import truth_folder
from mrpipe.store.parquet import write_text

MARKER = "simulation.json"


def simulate(dataset: Dataset, out: Path, settings: Mapping[str, Any]) -> None:
    """Write a simulated export to `out` and the ground truth to `<out>.truth/`.

    Both are written to temporary folders and renamed, so that a killed run leaves no partial export.

    Raises:
        UsageError: an option is invalid, or `out` contains files that were not simulated.
    """
    options = parse_options(dataset.simulation, settings, context=f"simulation of {dataset.name}")
    out = resolved(out)
    truth = truth_folder(out)
    if out.exists() and any(out.iterdir()) and not (truth / MARKER).exists():
        raise UsageError(f"{out} contains files that were not simulated and is not overwritten")
    partial, partial_truth = hidden(out, ".partial"), hidden(truth, ".partial")
    for folder in (partial, partial_truth):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        dataset.simulate(partial, partial_truth, options)
        settings_text = json.dumps({"dataset": dataset.name, "simulation": dataclasses.asdict(options)}, indent=1)
        write_text(partial_truth / MARKER, settings_text + "\n")
        # The truth is moved first, so that a simulated export never exists without its marker.
        for source, target in ((partial_truth, truth), (partial, out)):
            if target.exists():
                shutil.rmtree(target)
            source.rename(target)
    finally:
        for folder in (partial, partial_truth):
            shutil.rmtree(folder, ignore_errors=True)


def is_simulated(raw: Path) -> bool:
    return (truth_folder(raw) / MARKER).exists()
