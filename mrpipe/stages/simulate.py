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


def simulate(dataset: Dataset, out: Path, settings: Mapping[str, Any], *, overwrite: bool = True) -> None:
    """Write a simulated export to `out` and the ground truth to `<out>.truth/`.

    Both are written to temporary folders and renamed, so that a killed run leaves no partial export.

    Args:
        overwrite: whether an export of another dataset or with other options may be replaced.

    Raises:
        UsageError: an option is invalid, or `out` contains files that were not simulated or must not be replaced.
    """
    options = parse_options(dataset.simulation, settings, context=f"simulation of {dataset.name}")
    out = resolved(out)
    truth = truth_folder(out)
    if out.exists() and any(out.iterdir()) and not (truth / MARKER).exists():
        raise UsageError(f"{out} contains files that were not simulated and is not overwritten")
    settings_text = json.dumps({"dataset": dataset.name, "simulation": dataclasses.asdict(options)}, indent=1) + "\n"
    marker = truth / MARKER
    if not overwrite and marker.is_file() and marker.read_bytes() != settings_text.encode():
        found = f"{out} contains an export of another dataset or with other options"
        raise UsageError(f"{found}. Choose another --out, or replace it with --overwrite")
    partial, partial_truth = hidden(out, ".partial"), hidden(truth, ".partial")
    for folder in (partial, partial_truth):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        dataset.simulate(partial, partial_truth, options)
        write_text(partial_truth / MARKER, settings_text)
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
