"""Computational sequences (.csd), the HDF5 files of the CMU-MultimodalSDK, read without the SDK.

A file has one root group, named after the sequence, with the groups `metadata` and `data`. Each entry of `data`, a
`video` or (after alignment by the SDK) a segment `video[i]` with i from 0, has the datasets `features` (T, d) and
`intervals` (T, 2) in seconds. See docs/raw-formats.md.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from mrpipe.datasets.arrays import Hdf5, opened
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import utf8

SIGNATURE = b"\x89HDF\r\n\x1a\n"
AGAIN = "Download the file again from its folder of the CMU-MultimodalSDK."
Role = Literal["labels", "words", "vectors", "audio", "vision", "other"]

# Name fragments (lower-case letters and digits) of the published sequences, the preferred one of each role first.
# The last three of the labels are those of CMU-MOSEI; the first release spelt COVAREP as COAVAREP.
_FRAGMENTS: dict[Role, str] = {
    "labels": "opinionsegmentlabels opinionlabels alllabels sentimentlabel moseilabels",
    "vectors": "wordvectors glove",
    "words": "modifiedtimestampedwords timestampedwords words",
    "audio": "covarep coavarep opensmileis09 opensmileeb10 opensmile",
    "vision": "facet42 facet41 facet openface2 openface1 openface",
}
KNOWN = tuple((fragment, role) for role, fragments in _FRAGMENTS.items() for fragment in fragments.split())
_SEGMENT_KEY = re.compile(r"(?P<video>.+)\[(?P<segment>\d+)\]")


@dataclass(frozen=True, kw_only=True)
class CsdEntry:
    """One video of a sequence, rows in stored order.

    Attributes:
        features: (T, d) float32, or (T,) str for words.
        intervals: (T, 2) float64, start and end in seconds.
        segment: (T,) segment of each row, from 0, if the file is already aligned to segments; otherwise None.
    """

    features: NDArray[Any]
    intervals: NDArray[np.float64]
    segment: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A .csd file with its role, its preference among files of that role (low `rank` first) and its feature names."""

    path: Path
    root: str
    role: Role
    rank: int
    names: tuple[str, ...]

    def fault(self, key: str, dataset: str | None, expected: str, found: str, row: int | None = None) -> Fault:
        """Fault in an entry, or in one of its datasets at `row` (from 0)."""
        column = "/".join(p for p in (self.root, "data", key, dataset) if p)
        number = None if row is None else row + 1
        return Fault(file=self.path.name, column=column, row=number, expected=expected, found=found, fix=AGAIN)


def is_hdf5(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(len(SIGNATURE)) == SIGNATURE


def role_of(*names: str) -> tuple[Role, int]:
    """Role and rank of a sequence by the first of `names` (root group, metadata, file name) that is known."""
    for name in names:
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        for rank, (fragment, role) in enumerate(KNOWN):
            if fragment in plain:
                return role, rank
    return "other", len(KNOWN)


def inspect(path: Path) -> Sequence:
    """Root group, role and feature names of a .csd file, without reading its data.

    Raises:
        DataError: the file is damaged, or does not have exactly one root group with a group `data`.
    """
    with opened(path, path.name, AGAIN) as file:
        groups = {k: v for k in file.root if isinstance(v := file.get(file.root, k), h5py.Group)}
        roots = [k for k, v in groups.items() if isinstance(file.get(v, "data"), h5py.Group)]
        if len(roots) != 1:
            expected = "one root group with a group 'data', as in computational sequences of the CMU-MultimodalSDK"
            found = f"{len(roots)} such groups; root groups: {', '.join(groups) or 'none'}"
            raise DataError(Fault(file=path.name, column="data", expected=expected, found=found, fix=AGAIN))
        root = roots[0]
        metadata = file.get(groups[root], "metadata")
        title, names = _text(file, metadata, "root name"), _names(_text(file, metadata, "dimension names"))
        role, rank = role_of(root, title, path.stem)
    return Sequence(path=path, root=root, role=role, rank=rank, names=names)


def _text(file: Hdf5, metadata: Any, name: str) -> str:
    """Value of a metadata field: a string dataset with one element, JSON or plain text, of any HDF5 string type."""
    item = file.get(metadata, name)
    if not isinstance(item, h5py.Dataset) or not 1 <= item.size <= 2**20:
        return ""
    return utf8(file.read(item).ravel()[0], file=file.shown_as, column=f"metadata/{name}").strip().strip('"')


def _names(text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def each(sequence: Sequence, *, features: bool = True) -> Iterator[tuple[str, CsdEntry]]:
    """Entries one video at a time, sorted; segment entries `video[i]` are concatenated per video.

    Args:
        features: if False, leave the features empty and check only shapes and intervals (frame files are large).

    Raises:
        DataError: all entries that are damaged or inconsistent, at the end.
    """
    faults = FaultCollector()
    width: int | None = None
    with opened(sequence.path, sequence.path.name, AGAIN) as file:
        data = file.get(file.get(file.root, sequence.root), "data")
        keys: dict[str, list[tuple[int | None, str]]] = {}
        for key in data:
            match = _SEGMENT_KEY.fullmatch(key)
            video, number = (match["video"], int(match["segment"])) if match else (key, None)
            keys.setdefault(video, []).append((number, key))
        if not keys:
            faults.add(sequence.fault("", None, "at least one video", "an empty group"))
        for video, numbered in sorted(keys.items()):
            entries: list[Any] = []
            for number, key in sorted(numbered, key=lambda n: -1 if n[0] is None else n[0]):
                entry = faults.attempt(_entry, file, sequence, key, file.get(data, key), features)
                if entry is None:
                    continue
                d = entry[2]
                width = d if width is None else width
                if width != d:
                    faults.add(sequence.fault(key, "features", f"{width} features, as in the previous entries", f"{d}"))
                entries.append((number, *entry[:2]))
            if len({n is None for n, _, _ in entries}) > 1:
                found = f"both '{video}' and its segments '{video}[i]'"
                faults.add(sequence.fault(video, None, "either the whole video or its segments", found))
            if not faults.faults:
                numbers, values, times = zip(*entries, strict=True)
                x, intervals, n_rows = np.concatenate(values), np.concatenate(times), [len(t) for t in times]
                segment = None if numbers[0] is None else np.repeat(np.array(numbers, dtype=np.int64), n_rows)
                yield video, CsdEntry(features=x, intervals=intervals, segment=segment)
    if (rest := len(faults.faults) - 10) > 0:
        faults.faults[10:] = [sequence.fault("", None, "entries without errors", f"errors in {rest} more entries")]
    faults.raise_if_any()


def _entry(
    file: Hdf5, sequence: Sequence, key: str, group: Any, features: bool
) -> tuple[NDArray[Any], NDArray[np.float64], int]:
    """Features, intervals and feature count of one entry; a DataError if they are not usable."""

    def require(holds: bool, dataset: str, expected: str, found: str, row: int | None = None) -> None:
        if not holds:
            raise DataError(sequence.fault(key, dataset, expected, found, row))

    x, t = (file.get(group, name) for name in ("features", "intervals"))
    for name, item in (("features", x), ("intervals", t)):
        require(isinstance(item, h5py.Dataset), name, "a dataset of that name", "none")
    require(t.ndim == 2 and t.shape[1] == 2, "intervals", "shape (T, 2)", f"shape {t.shape}")
    whole = x.ndim in (1, 2) and x.shape[0] == t.shape[0] and 0 not in x.shape[1:]
    require(whole, "features", f"{t.shape[0]} rows, one per interval", f"shape {x.shape}")
    require(t.dtype.kind in "fiu", "intervals", "numbers", f"{t.dtype}")
    intervals = file.read(t).astype(np.float64)
    words = x.dtype.kind in "SO"
    if not features:
        file.check(x)
    values = file.read(x) if features else np.empty((0, *x.shape[1:]), x.dtype)
    texts = [
        utf8(v, file=sequence.path.name, column=f"{sequence.root}/data/{key}/features", row=i + 1)
        for i, v in enumerate(values.ravel().tolist() if words else ())
    ]
    wrong = ~np.isfinite(intervals).all(axis=1) | (intervals[:, 1] < intervals[:, 0])
    for row in np.flatnonzero(wrong)[:1].tolist():
        require(False, "intervals", "finite times, start <= end", f"{intervals[row].tolist()}", row)
    d = 1 if x.ndim == 1 else x.shape[1]
    if words:
        return np.array(texts, dtype=object), intervals, d
    require(values.dtype.kind in "fiu", "features", "numbers or words", f"{values.dtype}")
    return values.reshape(-1, d).astype(np.float32, copy=False), intervals, d
