"""Ids, labels and folds of the clips, common to all formats."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.corpora import Corpus
from mrpipe.errors import Fault, FaultCollector
from mrpipe.raw import find_one
from mrpipe.reading import reading

FOLD_LISTS = {"train": "standard_train_fold", "val": "standard_valid_fold", "test": "standard_test_fold"}
GET_FOLDS = (
    "It is part of the CMU-MultimodalSDK (mmsdk/mmdatasdk/dataset/standard_datasets/). "
    "Copy it into the folder of the .csd files."
)
_IDS: dict[str, Any] = {"sample_id": pl.String, "subject_id": pl.String, "clip": pl.Int32, "fold": pl.String}
CLIPS_SCHEMA = pl.Schema({**_IDS, "start": pl.Float64, "end": pl.Float64, "score": pl.Float32})

# MMSA writes `video$_$clip`; the SDK, MultiBench and MAG-BERT `video[i]`; the names of media files are `video_clip`.
_ID = re.compile(r"(?P<video>.+)(?:\$_\$|[_/])(?P<clip>\d+)|(?P<sdk>.+)\[(?P<segment>\d+)\]", re.DOTALL)


def parse_id(text: str, corpus: Corpus) -> tuple[str, int] | None:
    """Parse an id in any of the notations into video and clip number; None for any other text."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    if match["sdk"] is not None:
        return match["sdk"], int(match["segment"]) + corpus.first_clip
    return match["video"], int(match["clip"])


def clip_frame(
    corpus: Corpus,
    video: Sequence[str],
    clip: Sequence[int] | NDArray[np.int64],
    score: NDArray[np.float32],
    fold: Sequence[str | None],
    start: NDArray[np.float64] | None = None,
    end: NDArray[np.float64] | None = None,
) -> pl.DataFrame:
    """Clips as a frame with `CLIPS_SCHEMA`, in the given order; times are null in formats without times.

    The sample id is `<video>_<clip>`, as in the published file names (`03bSnISJMiM_1.wav`).
    """
    names = [f"{v}_{int(c)}" for v, c in zip(video, clip, strict=True)]
    subjects = list(video) if corpus.split_by_video else names
    columns = {"sample_id": names, "subject_id": subjects, "clip": clip, "fold": list(fold)}
    return pl.DataFrame({**columns, "start": start, "end": end, "score": score}, schema=CLIPS_SCHEMA, strict=False)


def score_faults(
    file: str, column: str, corpus: Corpus, score: NDArray[np.float32], ids: Sequence[str], *, rows: bool = True
) -> Iterator[Fault]:
    """Faults for labels that are not finite or out of range, at most one of each kind; with the row if `rows`."""
    finite = np.isfinite(score)
    within = f"scores in [-{corpus.limit:g}, {corpus.limit:g}]"
    for expected, bad in (("finite numbers", ~finite), (within, finite & (np.abs(score) > corpus.limit))):
        if bad.any():
            row = int(bad.argmax())
            found = f"{score[row]} for clip {ids[row]} ({int(bad.sum())} such clips)"
            fix = "Remove clips without a label from the file."
            number = row + 1 if rows else None
            yield Fault(file=file, column=column, row=number, expected=expected, found=found, fix=fix)


def read_folds(raw: Path, corpus: Corpus, faults: FaultCollector) -> tuple[Path | None, dict[str, str]]:
    """Path of the SDK's fold file and its content as video → fold; the file is parsed, never executed."""
    what = "the standard folds of the SDK, three lists of video ids"
    patterns = [rf"(.*/)?{re.escape(corpus.fold_file)}", rf"(.*/)?cmu_{corpus.name}\.py"]
    path = faults.attempt(find_one, raw, patterns, what=what, fix=GET_FOLDS, shown_as=corpus.fold_file)
    return path, (faults.attempt(parse_folds, path) if path else None) or {}


def parse_folds(path: Path) -> dict[str, str]:
    """Read video → train, val or test from the assignments of literal lists in the SDK's fold file.

    Raises:
        DataError: not UTF-8 or not valid Python, a list is missing or not a literal, or a video is in two lists.
    """
    with reading(path.name, "assignments of lists in Python", GET_FOLDS):
        tree = ast.parse(path.read_bytes())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    values = {t.id: node.value for node in assigned for t in node.targets if isinstance(t, ast.Name)}
    faults = FaultCollector()
    fold_of: dict[str, str] = {}
    for fold, name in FOLD_LISTS.items():
        if name not in values:
            found = ", ".join(values) or "no assignments"
            faults.add(Fault(file=path.name, column=name, expected="a list of video ids", found=found, fix=GET_FOLDS))
            continue
        try:
            videos = ast.literal_eval(values[name])
        except (ValueError, TypeError, RecursionError):
            videos = None
        if not isinstance(videos, list | tuple) or not all(isinstance(v, str) for v in videos):
            expected, fix = "a literal list of strings", "The file is parsed, never executed. " + GET_FOLDS
            faults.add(Fault(file=path.name, column=name, expected=expected, found="another expression", fix=fix))
            continue
        for video in videos:
            if fold_of.setdefault(video, fold) != fold:
                found = f"{video!r} in {fold_of[video]} and {fold}"
                faults.add(Fault(file=path.name, column=name, expected="each video in one list only", found=found))
    faults.raise_if_any()
    return fold_of
