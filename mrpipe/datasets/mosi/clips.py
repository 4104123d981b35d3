"""Clips: their ids, labels and folds, the same in every format."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import find_one

FOLD_FILE = "cmu_mosi_std_folds.py"
FOLD_LISTS = {"train": ("standard_train_fold",), "val": ("standard_valid_fold",), "test": ("standard_test_fold",)}
GET_FOLDS = (
    "It is part of the CMU-MultimodalSDK (mmsdk/mmdatasdk/dataset/standard_datasets/CMU_MOSI/). "
    "Put it beside the .csd files."
)
CLIPS_SCHEMA = pl.Schema(
    {
        "sample_id": pl.String,
        "subject_id": pl.String,
        "clip": pl.Int32,
        "fold": pl.String,
        "start": pl.Float64,
        "end": pl.Float64,
        "score": pl.Float32,
    }
)

# `video$_$clip` (MMSA, from 1), `video[i]` (SDK and MultiBench, from 0); the data set's own files are `video_clip`.
_MMSA_ID = re.compile(r"(?P<video>.+)\$_\$(?P<clip>\d+)")
_SDK_ID = re.compile(r"(?P<video>.+)\[(?P<segment>\d+)\]")


def sample_id(video: str, clip: int) -> str:
    """`<video>_<clip>`, clips from 1: the name of the clip's file in the published data set (`03bSnISJMiM_1.wav`)."""
    return f"{video}_{clip}"


def parse_id(text: str) -> tuple[str, int] | None:
    """Video and clip number (from 1) of an id in the notation of MMSA or of the SDK; None if it is neither."""
    if match := _MMSA_ID.fullmatch(text):
        return match["video"], int(match["clip"])
    if match := _SDK_ID.fullmatch(text):
        return match["video"], int(match["segment"]) + 1
    return None


def clip_frame(
    video: Sequence[str],
    clip: Sequence[int] | NDArray[np.int64],
    score: NDArray[np.float32],
    fold: Sequence[str | None],
    start: NDArray[np.float64] | None = None,
    end: NDArray[np.float64] | None = None,
) -> pl.DataFrame:
    """`CLIPS_SCHEMA` rows, in the given order; times are null in the formats that have none."""
    return pl.DataFrame(
        {
            "sample_id": [sample_id(v, int(c)) for v, c in zip(video, clip, strict=True)],
            "subject_id": list(video),
            "clip": clip,
            "fold": list(fold),
            "start": start,
            "end": end,
            "score": score,
        },
        schema=CLIPS_SCHEMA,
        strict=False,
    )


def score_faults(file: str, column: str, score: NDArray[np.float32], ids: Sequence[str]) -> list[Fault]:
    """Labels that are not numbers in [-3, 3]; one fault for each kind of error."""
    faults = []
    finite = np.isfinite(score)
    for what, bad in (("finite numbers", ~finite), ("scores in [-3, 3]", finite & (np.abs(score) > 3))):
        if bad.any():
            row = int(bad.argmax())
            faults.append(
                Fault(
                    file=file,
                    column=column,
                    row=row + 1,
                    expected=what,
                    found=f"{score[row]} for clip {ids[row]} ({int(bad.sum())} such clips)",
                    fix="A clip without a label must be left out of the file.",
                )
            )
    return faults


def read_folds(raw: Path, faults: FaultCollector) -> tuple[Path | None, dict[str, str]]:
    """The SDK's three lists of videos as video → fold; the file is parsed and never run."""
    what = "the SDK's standard folds, three lists of video ids"
    patterns = [rf"(.*/)?{re.escape(FOLD_FILE)}", r"(.*/)?cmu_mosi\.py"]
    missing = FaultCollector()
    path = find_one(raw, patterns, what=what, fix=GET_FOLDS, faults=missing)
    if path is None:
        found = missing.faults[0].found
        faults.add(Fault(file=FOLD_FILE, expected=f"exactly one file ({what})", found=found, fix=GET_FOLDS))
        return None, {}
    try:
        return path, parse_folds(path)
    except DataError as error:
        faults.absorb(error)
        return path, {}


def parse_folds(path: Path) -> dict[str, str]:
    """Video → train, val or test, from assignments of literal lists.

    Raises:
        DataError: not Python, a list missing or not literal, a video in two lists.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (SyntaxError, ValueError) as error:
        raise DataError(
            Fault(file=path.name, expected="assignments of lists", found=f"not Python ({error})", fix=GET_FOLDS)
        ) from error
    values = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    faults = FaultCollector()
    fold_of: dict[str, str] = {}
    for fold, names in FOLD_LISTS.items():
        name = next((n for n in names if n in values), None)
        if name is None:
            found = ", ".join(values) or "no assignment"
            faults.add(
                Fault(file=path.name, column=names[0], expected="a list of video ids", found=found, fix=GET_FOLDS)
            )
            continue
        try:
            videos = ast.literal_eval(values[name])
        except ValueError:
            videos = None
        if not isinstance(videos, list | tuple) or not all(isinstance(v, str) for v in videos):
            faults.add(
                Fault(
                    file=path.name,
                    column=name,
                    expected="a list of strings, written out",
                    found="something that would have to be run",
                    fix="The file is only parsed. " + GET_FOLDS,
                )
            )
            continue
        for video in videos:
            if fold_of.setdefault(video, fold) != fold:
                found = f"{video!r} in {fold_of[video]} and in {fold}"
                faults.add(Fault(file=path.name, column=name, expected="each video in one list", found=found))
    faults.raise_if_any()
    return fold_of
