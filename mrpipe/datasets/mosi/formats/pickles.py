"""Recognise the pickles of MMSA, MultiBench, MulT and MAG-BERT by their content, which is never executed."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mrpipe.datasets.mosi.corpora import Corpus
from mrpipe.datasets.mosi.formats.splits import MODES, ClipArrays, SplitExport
from mrpipe.errors import DataError, Fault
from mrpipe.pickles import read_pickle

PICKLE_SUFFIXES = {".pkl", ".pickle", ".p"}
GET = (
    "CMU-MOSI is distributed as .csd files by the CMU-MultimodalSDK, as Processed/aligned_50.pkl or unaligned_50.pkl "
    "by MMSA, and as mosi_raw.pkl or mosi_data.pkl by MultiBench."
)
EXPECTED = (
    "a dictionary with the key regression_labels (MMSA) or labels (MultiBench, MulT), or lists of ((words, visual, "
    "acoustic), label, segment) (MAG-BERT)"
)


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
