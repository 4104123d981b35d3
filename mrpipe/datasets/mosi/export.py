"""Detect the format of an export from its contents, and open it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from mrpipe.datasets.mosi.formats.csd import is_hdf5
from mrpipe.datasets.mosi.formats.pickles import GET, PICKLE_SUFFIXES, open_pickle
from mrpipe.datasets.mosi.formats.sdk import SdkExport
from mrpipe.datasets.mosi.formats.splits import SplitExport
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.raw import require_folder

MosiExport: TypeAlias = SdkExport | SplitExport


def open_export(raw: Path, options: MosiOptions) -> MosiExport:
    """Detect the format and open the export.

    Files with the suffix .csd or the HDF5 signature are computational sequences; pickles are told apart by content.

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
        return open_pickle(pickles[0], options.corpus)
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
        return open_pickle(pickles[0], options.corpus)
    found = ", ".join(p.name for p in files[:8]) or "an empty folder"
    expected = f".csd files and {options.corpus.fold_file}, or one pickle (.pkl)"
    raise DataError(Fault(file=raw.name, expected=expected, found=found, fix=GET))
