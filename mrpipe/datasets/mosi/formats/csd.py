"""Computational sequences (.csd): the CMU-MultimodalSDK's HDF5 files, read without the SDK.

A file holds one root group, named after the sequence; below it `data/{video}` or, once aligned, `data/{video[i]}` with
i counting from 0, each with `features` (T, d) and `intervals` (T, 2) in seconds, and `metadata` (raw-formats.md D.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from mrpipe.errors import DataError, Fault, FaultCollector

SIGNATURE = b"\x89HDF\r\n\x1a\n"
AGAIN = "Download the file again; the CMU-MultimodalSDK's folder for CMU-MOSI has it."
Role = Literal["labels", "words", "vectors", "audio", "vision", "other"]

# Name fragments (letters and digits only, lower case) of the published sequences, the preferred one of a role first.
KNOWN: tuple[tuple[str, Role], ...] = (
    ("opinionsegmentlabels", "labels"),
    ("opinionlabels", "labels"),
    ("wordvectors", "vectors"),
    ("glove", "vectors"),
    ("modifiedtimestampedwords", "words"),
    ("timestampedwords", "words"),
    ("covarep", "audio"),
    ("opensmileis09", "audio"),
    ("opensmileeb10", "audio"),
    ("opensmile", "audio"),
    ("facet42", "vision"),
    ("facet41", "vision"),
    ("facet", "vision"),
    ("openface2", "vision"),
    ("openface1", "vision"),
    ("openface", "vision"),
)
_SEGMENT_KEY = re.compile(r"(?P<video>.+)\[(?P<segment>\d+)\]")


@dataclass(frozen=True, kw_only=True)
class CsdEntry:
    """One video of a sequence: features (T, d) float32 or (T,) str, intervals (T, 2) float64, rows sorted as stored.

    `segment` (T,) is set when the file is aligned to segments already: the 0-based row of the segment in the labels.
    """

    features: NDArray[Any]
    intervals: NDArray[np.float64]
    segment: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A .csd file: what it is (`role`), how much it is preferred among its kind (`rank`, low first), its features."""

    path: Path
    root: str
    role: Role
    rank: int
    names: tuple[str, ...]

    def key(self, entry: str) -> str:
        """Path of an entry inside the file, for errors and the dictionary."""
        return f"{self.root}/data/{entry}"


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The open file; whatever HDF5 says about a damaged one becomes a DataError."""
    try:
        with h5py.File(path, "r") as handle:
            yield handle
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            Fault(file=path.name, expected="a complete HDF5 file", found=f"unreadable data ({reason})", fix=AGAIN)
        ) from error


def is_hdf5(path: Path) -> bool:
    """Whether a file begins with the HDF5 signature."""
    with path.open("rb") as handle:
        return handle.read(len(SIGNATURE)) == SIGNATURE


def role_of(*names: str) -> tuple[Role, int]:
    """What a sequence is, from its root group, its metadata or its file name, whichever is known first."""
    for name in names:
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        for rank, (fragment, role) in enumerate(KNOWN):
            if fragment in plain:
                return role, rank
    return "other", len(KNOWN)


def inspect(path: Path) -> Sequence:
    """Root group, role and feature names of a .csd file; reads no data.

    Raises:
        DataError: damaged, or without exactly one root group that holds a group `data`.
    """
    with _opened(path) as handle:
        groups = [k for k in handle if isinstance(handle[k], h5py.Group)]
        roots = [k for k in groups if isinstance(handle[k].get("data"), h5py.Group)]
        if len(roots) != 1:
            raise DataError(
                Fault(
                    file=path.name,
                    column="data",
                    expected="one root group that holds the group 'data'",
                    found=f"{len(roots)} such groups among the root groups {', '.join(groups) or '(none)'}",
                    fix="Is this a computational sequence of the CMU-MultimodalSDK? " + AGAIN,
                )
            )
        root = roots[0]
        metadata = handle[root].get("metadata")
        title = ""
        names: tuple[str, ...] = ()
        if isinstance(metadata, h5py.Group):
            title = _text(metadata.get("root name"))
            names = _names(_text(metadata.get("dimension names")))
        role, rank = role_of(root, title, path.stem)
    return Sequence(path=path, root=root, role=role, rank=rank, names=names)


def _text(item: Any) -> str:
    """A metadata field: a string dataset of one element, JSON or plain, of whatever HDF5 string type."""
    if not isinstance(item, h5py.Dataset):
        return ""
    value = np.asarray(item[()]).ravel()
    if not len(value):
        return ""
    text = value[0].decode("utf-8", "replace") if isinstance(value[0], bytes) else str(value[0])
    return text.strip().strip('"')


def _names(text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def load(sequence: Sequence, *, features: bool = True) -> dict[str, CsdEntry]:
    """Entries by video, videos sorted; entries `video[i]` are joined to one a video.

    Args:
        features: without, `features` are empty and only shapes and intervals are checked (frame files are large).

    Raises:
        DataError: every entry that is damaged or does not fit together.
    """
    faults = FaultCollector()
    parts: dict[str, list[tuple[int | None, NDArray[Any], NDArray[np.float64]]]] = {}
    width: int | None = None
    with _opened(sequence.path) as handle:
        data = handle[sequence.root]["data"]
        for key in sorted(data):
            entry = _entry(sequence, key, data[key], features, faults)
            if entry is None:
                continue
            d = entry[2]
            if width is not None and d != width:
                faults.add(_fault(sequence, key, "features", f"{width} features, as in the entries before", f"{d}"))
            width = d if width is None else width
            match = _SEGMENT_KEY.fullmatch(key)
            video, number = (match["video"], int(match["segment"])) if match else (key, None)
            parts.setdefault(video, []).append((number, entry[0], entry[1]))
    if not parts and not faults.faults:
        faults.add(_fault(sequence, "", None, "at least one video", "an empty group"))
    for video, entries in parts.items():
        if len({n is None for n, _, _ in entries}) > 1:
            found = f"both '{video}' and entries of its segments, '{video}[i]'"
            faults.add(_fault(sequence, video, None, "the whole video or its segments", found))
    _raise_short(faults, sequence)
    return {video: _joined(entries) for video, entries in sorted(parts.items())}


def _joined(entries: list[tuple[int | None, NDArray[Any], NDArray[np.float64]]]) -> CsdEntry:
    entries = sorted(entries, key=lambda e: -1 if e[0] is None else e[0])
    numbers = [n for n, _, _ in entries]
    segment = None
    if numbers[0] is not None:
        segment = np.repeat(np.array(numbers, dtype=np.int64), [len(i) for _, _, i in entries])
    return CsdEntry(
        features=np.concatenate([f for _, f, _ in entries]),
        intervals=np.concatenate([i for _, _, i in entries]),
        segment=segment,
    )


def _entry(
    sequence: Sequence, key: str, group: Any, features: bool, faults: FaultCollector
) -> tuple[NDArray[Any], NDArray[np.float64], int] | None:
    """Features, intervals and number of features of one entry; None and a fault when they cannot be used."""
    found: dict[str, Any] = {
        n: group.get(n) if isinstance(group, h5py.Group) else None for n in ("features", "intervals")
    }
    for name, item in found.items():
        if not isinstance(item, h5py.Dataset):
            faults.add(_fault(sequence, key, name, "a dataset", "none of that name"))
            return None
    x, t = found["features"], found["intervals"]
    if t.ndim != 2 or t.shape[1] != 2:
        faults.add(_fault(sequence, key, "intervals", "shape (T, 2)", f"shape {t.shape}"))
        return None
    if x.ndim not in (1, 2) or x.shape[0] != t.shape[0]:
        faults.add(_fault(sequence, key, "features", f"{t.shape[0]} rows, as many as intervals", f"shape {x.shape}"))
        return None
    try:
        intervals = np.asarray(t[()], dtype=np.float64)
        words = x.dtype.kind in "SOU"
        values = np.asarray(x[()] if features else np.empty((0, *x.shape[1:]), x.dtype))
    except (OSError, RuntimeError) as error:
        faults.add(_fault(sequence, key, None, "readable data", f"damaged data ({str(error).splitlines()[0]})"))
        return None
    if not np.isfinite(intervals).all() or (intervals[:, 1] < intervals[:, 0]).any():
        row = int(np.argmax(~np.isfinite(intervals).all(axis=1) | (intervals[:, 1] < intervals[:, 0])))
        faults.add(_fault(sequence, key, "intervals", "finite times, start <= end", f"{intervals[row].tolist()}", row))
        return None
    d = 1 if x.ndim == 1 else x.shape[1]
    if words:
        texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.ravel().tolist()]
        return np.array(texts, dtype=object), intervals, d
    if values.dtype.kind not in "fiu":
        faults.add(_fault(sequence, key, "features", "numbers or words", f"{values.dtype}"))
        return None
    return values.reshape(-1, d).astype(np.float32, copy=False), intervals, d


def _fault(
    sequence: Sequence, key: str, dataset: str | None, expected: str, found: str, row: int | None = None
) -> Fault:
    column = "/".join(p for p in (sequence.root, "data", key, dataset) if p)
    number = None if row is None else row + 1
    return Fault(file=sequence.path.name, column=column, row=number, expected=expected, found=found, fix=AGAIN)


def _raise_short(faults: FaultCollector, sequence: Sequence, limit: int = 10) -> None:
    """Raise the faults; of a file with hundreds of them the first ten and their number say enough."""
    if len(faults.faults) > limit:
        rest = len(faults.faults) - limit
        faults.faults = faults.faults[:limit]
        faults.add(_fault(sequence, "", None, "entries without fault", f"{rest} more entries at fault"))
    faults.raise_if_any()
