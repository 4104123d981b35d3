"""Detect the format of an export from its contents, and open it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from mrpipe.datasets.mosi.clips import FOLD_FILE
from mrpipe.datasets.mosi.formats.csd import is_hdf5
from mrpipe.datasets.mosi.formats.padded import load_pickle
from mrpipe.datasets.mosi.formats.pickles import MmsaExport, MultiBenchExport
from mrpipe.datasets.mosi.formats.sdk import SdkExport
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.raw import require_folder

MosiExport: TypeAlias = SdkExport | MmsaExport | MultiBenchExport

GET = (
    "CMU-MOSI is distributed as .csd files by the CMU-MultimodalSDK, as Processed/aligned_50.pkl or unaligned_50.pkl "
    "by MMSA, and as mosi_raw.pkl or mosi_data.pkl by MultiBench."
)
PICKLE_SUFFIXES = {".pkl", ".pickle", ".p"}


def open_export(raw: Path, options: MosiOptions) -> MosiExport:
    """Detect the format and open the export.

    Files with the suffix .csd or the HDF5 signature are computational sequences; a pickle with the key
    `regression_labels` is MMSA's, one with `labels` MultiBench's.

    Raises:
        DataError: no readable file, several formats in one folder, or errors in the files.
        UsageError: an option names a file or sequence that does not exist.
    """
    require_folder(raw)
    files = sorted(p for p in raw.rglob("*") if p.is_file() and not p.name.startswith("."))
    pickles = [p for p in files if p.suffix.lower() in PICKLE_SUFFIXES]
    sequences = [p for p in files if p.suffix.lower() == ".csd" or (p not in pickles and is_hdf5(p))]
    if options.file:
        pickles = [p for p in pickles if options.file in (p.name, p.relative_to(raw).as_posix())]
        if len(pickles) != 1:
            raise UsageError(f"file={options.file!r}: the export contains {len(pickles)} pickles of that name")
        return _open_pickle(pickles[0])
    if sequences and pickles:
        found = ", ".join(p.name for p in (*sequences, *pickles))
        fix = "Keep only one format in the folder, or select the pickle with --set file=NAME."
        raise DataError(Fault(file=raw.name, expected="one format", found=found, fix=fix))
    if sequences:
        return SdkExport(raw, sequences, options)
    if len(pickles) > 1:
        found = ", ".join(p.name for p in pickles)
        raise DataError(Fault(file=raw.name, expected="one pickle", found=found, fix="Use --set file=NAME."))
    if pickles:
        return _open_pickle(pickles[0])
    found = ", ".join(p.name for p in files[:8]) or "an empty folder"
    expected = f".csd files and {FOLD_FILE}, or one pickle (.pkl)"
    raise DataError(Fault(file=raw.name, expected=expected, found=found, fix=GET))


def _open_pickle(path: Path) -> MosiExport:
    content = load_pickle(path)
    train = content.get("train") if isinstance(content, dict) else None
    keys = set(train) if isinstance(train, dict) else set()
    try:
        if "regression_labels" in keys:
            return MmsaExport(path, content)
        if "labels" in keys:
            return MultiBenchExport(path, content)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # The checks cover the published layouts; damaged bytes can put anything in their place.
        expected, found = "the layout of MMSA or MultiBench", f"{type(error).__name__}: {error}"
        raise DataError(Fault(file=path.name, expected=expected, found=found, fix=GET)) from error
    found = type(content).__name__ if train is None else f"train with {', '.join(sorted(map(str, keys))) or 'no keys'}"
    if isinstance(content, dict) and train is None:
        found = f"keys {', '.join(map(str, content))}"
    expected = "a dictionary with the key regression_labels (MMSA) or labels (MultiBench)"
    raise DataError(Fault(file=path.name, column="train", expected=expected, found=found, fix=GET))
