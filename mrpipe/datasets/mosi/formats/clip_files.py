"""A folder of features by clip (`audio/<video>_<clip>.npy` and so on) with a table of labels."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mrpipe.datasets.arrays import SUFFIXES, read_array
from mrpipe.datasets.mosi.clips import parse_id, score_faults
from mrpipe.datasets.mosi.corpora import Corpus
from mrpipe.datasets.mosi.formats.splits import MODES, ClipArrays, SplitExport
from mrpipe.errors import Fault, FaultCollector
from mrpipe.forms import is_table
from mrpipe.raw import Column, few, read_csv

FOLDERS = {"text": ("text", "language"), "audio": ("audio", "acoustic"), "vision": ("vision", "visual", "video")}
NAMES = ("label", "meta", "annotation")
COLUMNS = (
    Column(name="video_id", aliases=("video",)),
    Column(name="clip_id", aliases=("clip", "segment")),
    Column(name="mode", aliases=("split", "fold", "partition")),
    Column(name="label", aliases=("score", "sentiment"), dtype=pl.Float32),
    Column(name="text", aliases=("raw_text", "transcript"), required=False, null_values=()),
)


def tables_of(raw: Path) -> list[Path]:
    """Tables that may have the labels of features by clip."""
    return sorted(p for p in raw.rglob("*") if any(n in p.name.lower() for n in NAMES) and is_table(p))


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
