"""Open an export of any format: .csd files, pickles (never executed), or features by clip with a table of labels."""

from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from mrpipe.datasets.arrays import SUFFIXES, read_array
from mrpipe.datasets.mosi.clips import parse_id, score_faults
from mrpipe.datasets.mosi.corpora import Corpus
from mrpipe.datasets.mosi.formats.csd import is_hdf5
from mrpipe.datasets.mosi.formats.sdk import SdkExport
from mrpipe.datasets.mosi.formats.splits import MODES, ClipArrays, SplitExport
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError
from mrpipe.forms import is_table
from mrpipe.pickles import read_pickle
from mrpipe.raw import Column, few, read_csv, require_folder

MosiExport: TypeAlias = SdkExport | SplitExport
PICKLE_SUFFIXES = {".pkl", ".pickle", ".p"}
GET = (
    "CMU-MOSI is distributed as .csd files by the CMU-MultimodalSDK, as Processed/aligned_50.pkl or unaligned_50.pkl "
    "by MMSA, and as mosi_raw.pkl or mosi_data.pkl by MultiBench."
)
EXPECTED = (
    "a dictionary with the key regression_labels (MMSA) or labels (MultiBench, MulT), or lists of ((words, visual, "
    "acoustic), label, segment) (MAG-BERT)"
)
FOLDERS = {"text": ("text", "language"), "audio": ("audio", "acoustic"), "vision": ("vision", "visual", "video")}
NAMES = ("label", "meta", "annotation")
COLUMNS = (
    Column(name="video_id", aliases=("video",)),
    Column(name="clip_id", aliases=("clip", "segment")),
    Column(name="mode", aliases=("split", "fold", "partition")),
    Column(name="label", aliases=("score", "sentiment"), dtype=pl.Float32),
    Column(name="text", aliases=("raw_text", "transcript"), required=False, null_values=()),
)


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
    tables = [p for p in files if any(n in p.name.lower() for n in NAMES) and is_table(p)]
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


@lru_cache(maxsize=1)
def _content(path: Path, *state: int) -> Any:
    """Content of a pickle in this state; the last one is cached, as check, cohort and all modalities read the same."""
    return read_pickle(path)


def open_pickle(path: Path, corpus: Corpus) -> SplitExport:
    """Open a pickle.

    Raises:
        DataError: an unknown layout, or errors in the content.
    """
    stat = path.stat()
    content = _content(path, stat.st_mtime_ns, stat.st_size)
    if isinstance(content, dict) and "valid" not in content:
        content = {MODES.get(k, k): v for k, v in content.items()}
    train = content.get("train") if isinstance(content, dict) else None
    keys = set(train) if isinstance(train, dict) else set()
    try:
        if "regression_labels" in keys:
            return SplitExport(path, content, corpus, "mmsa")
        if "labels" in keys:
            return SplitExport(path, content, corpus, "multibench")
        if isinstance(train, list | tuple):
            parts = {k: _mag_part(path, k, v) for k, v in content.items() if isinstance(v, list | tuple)}
            return SplitExport(path, parts, corpus, "mag")
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # The checks cover the published layouts; damaged bytes can put anything in their place.
        expected, found = "the layout of MMSA or MultiBench, MulT or MAG-BERT", f"{type(error).__name__}: {error}"
        raise DataError(Fault(file=path.name, expected=expected, found=found, fix=GET)) from error
    found = type(content).__name__ if train is None else f"train with {', '.join(sorted(map(str, keys))) or 'no keys'}"
    if isinstance(content, dict) and train is None:
        found = f"keys {', '.join(map(str, content))}"
    raise DataError(Fault(file=path.name, column="train", expected=EXPECTED, found=found, fix=GET))


def _mag_part(path: Path, part: str, rows: Any) -> dict[str, Any]:
    """A split of MAG-BERT, a list of ((words, visual, acoustic), label, segment), in the keys of `SplitExport`."""
    for i, row in enumerate(rows):
        whole = isinstance(row, tuple | list) and len(row) == 3 and isinstance(row[0], tuple | list)
        if not whole or len(row[0]) != 3 or len({len(x) for x in row[0]}) != 1:
            expected = "((words, visual, acoustic), label, segment) with a row of visual and acoustic per word"
            found = f"lengths {[len(x) for x in row[0]]}" if whole else type(row).__name__
            raise DataError(Fault(file=path.name, column=part, row=i + 1, expected=expected, found=found, fix=GET))
    names = [path.name] * len(rows)
    return {
        "id": [segment for _, _, segment in rows],
        "labels": np.array([np.ravel(label) for _, label, _ in rows], dtype=np.float32),
        "raw_text": [words for (words, _, _), _, _ in rows],
        "vision": ClipArrays(load=lambda i: (rows[i][0][1], False), files=names),
        "audio": ClipArrays(load=lambda i: (rows[i][0][2], False), files=names),
    }


def features_of(raw: Path) -> dict[str, list[Path]]:
    """Modality → feature files in folders of that name."""
    files = sorted(p for p in raw.rglob("*") if p.suffix.lower() in SUFFIXES)
    found = {}
    for modality, names in FOLDERS.items():
        found[modality] = [p for p in files if set(names) & set(p.relative_to(raw).as_posix().lower().split("/")[:-1])]
    return {modality: paths for modality, paths in found.items() if paths}


def open_clip_files(raw: Path, table: Path, features: dict[str, list[Path]], corpus: Corpus) -> SplitExport:
    """Open features by clip.

    Raises:
        DataError: errors in the table of labels, or feature files that match no clip of it.
    """
    frame = read_csv(table, COLUMNS)
    faults = FaultCollector()
    names = [_name(f"{video}_{clip}", corpus) for video, clip in frame.select("video_id", "clip_id").iter_rows()]
    for i, (name, clip, mode) in enumerate(zip(names, frame["clip_id"], frame["mode"], strict=True)):
        if name is None:
            expected = "the number of the clip in its video"
            faults.add(Fault(file=table.name, column="clip_id", row=i + 1, expected=expected, found=repr(clip)))
        if str(mode).lower() not in MODES:
            faults.add(Fault(file=table.name, column="mode", row=i + 1, expected=", ".join(MODES), found=repr(mode)))
    for fault in score_faults(
        table.name, "label", corpus, frame["label"].fill_null(np.nan).to_numpy(), [str(n) for n in names]
    ):
        faults.add(fault)
    clips = set(names)
    of_clip: dict[str, dict[str | None, Path]] = {modality: {} for modality in features}
    unused: dict[str, str] = {}
    for modality, paths in features.items():
        for path in paths:
            shown = path.relative_to(raw).as_posix()
            name = _name(path.stem, corpus) or _name(f"{path.parent.name}/{path.stem}", corpus)
            if name not in clips:
                unused[shown] = f"no clip of {table.name} has this name"
            elif name in of_clip[modality]:
                other = of_clip[modality][name].name
                faults.add(Fault(file=shown, expected="one file per clip", found=f"the same clip as {other}"))
            else:
                of_clip[modality][name] = path
        if not of_clip[modality]:
            expected = f"files named after clips of {table.name}, <video>_<clip>{paths[0].suffix}"
            found = few([p.relative_to(raw).as_posix() for p in paths], 3)
            faults.add(Fault(file=paths[0].parent.name, expected=expected, found=found))
    faults.raise_if_any()
    frame = frame.with_columns(pl.col("mode").str.to_lowercase().replace(MODES), pl.Series("id", names))
    content = {}
    for mode in ("train", "valid", "test"):
        part = frame.filter(mode=mode)
        ids = part["id"].to_list()
        rows: dict[str, Any] = {"id": ids, "labels": part["label"].to_numpy()}
        if "text" in part.columns:
            rows["raw_text"] = part["text"].fill_null("").to_list()
        content[mode] = rows | {m: _arrays(raw, [paths.get(i) for i in ids]) for m, paths in of_clip.items()}
    export = SplitExport(table, content, corpus, "files")
    export.files = (table, *(p for paths in of_clip.values() for p in paths.values()))
    export.unused = unused
    return export


def _name(text: str, corpus: Corpus) -> str | None:
    """The id of a clip in any notation as a sample id."""
    known = parse_id(text, corpus)
    return None if known is None else f"{known[0]}_{known[1]}"


def _arrays(raw: Path, paths: list[Path | None]) -> ClipArrays:
    shown = ["" if p is None else p.relative_to(raw).as_posix() for p in paths]

    def load(row: int) -> tuple[Any, bool]:
        path = paths[row]
        return (None if path is None else read_array(path, shown[row])), False

    return ClipArrays(load=load, files=shown)
