"""Detect the format of an export from its contents, and open it."""

from pathlib import Path
from typing import TypeAlias

from mrpipe.datasets.mosi.formats.clip_files import features_of, open_clip_files, tables_of
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

    Files with the suffix .csd or the HDF5 signature are computational sequences; pickles are told apart by their
    content; folders named after modalities with a table of labels are features by clip.

    Raises:
        DataError: no readable file, several formats in one folder, or errors in the files.
        UsageError: an option names a file or sequence that does not exist.
    """
    require_folder(raw)
    files = sorted(p for p in raw.rglob("*") if p.is_file() and not p.name.startswith("."))
    pickles = [p for p in files if p.suffix.lower() in PICKLE_SUFFIXES]
    tables = tables_of(raw)
    features = features_of(raw) if tables else {}
    tables = tables if features else []
    others = set(files) - set(pickles) - {p for paths in features.values() for p in paths}
    sequences = sorted(p for p in others if p.suffix.lower() == ".csd" or is_hdf5(p))
    single = [*pickles, *tables]
    if options.file:
        single = [p for p in single if options.file in (p.name, p.relative_to(raw).as_posix())]
        if len(single) != 1:
            raise UsageError(f"file={options.file!r}: the export contains {len(single)} pickles of that name")
        sequences = []
    formats = [paths for paths in (sequences, pickles, tables) if set(paths) & {*single, *sequences}]
    if len(formats) > 1:
        found = ", ".join(p.name for paths in formats for p in paths)
        fix = "Keep only one format in the folder, or select the pickle or table of labels with --set file=NAME."
        raise DataError(Fault(file=raw.name, expected="one format", found=found, fix=fix))
    if sequences:
        return SdkExport(raw, sequences, options)
    if len(single) > 1:
        found = ", ".join(p.name for p in single)
        expected = "one pickle" if pickles else "one table of labels"
        raise DataError(Fault(file=raw.name, expected=expected, found=found, fix="Use --set file=NAME."))
    if single and single[0] in tables:
        return open_clip_files(raw, single[0], features, options.corpus)
    if single:
        return open_pickle(single[0], options.corpus)
    found = ", ".join(p.name for p in files[:8]) or "an empty folder"
    expected = f".csd files and {options.corpus.fold_file}, one pickle (.pkl), or features by clip and label.csv"
    raise DataError(Fault(file=raw.name, expected=expected, found=found, fix=GET))
