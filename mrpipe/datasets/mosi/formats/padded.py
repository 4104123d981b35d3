"""Base of the two pickle formats: three splits of padded arrays, checked together and unpadded on reading."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.clips import clip_frame, parse_id, score_faults
from mrpipe.datasets.mosi.ragged import RaggedBlock, bounds, feature_names, unpad
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError
from mrpipe.raw import read_pickle, utf8

PARTS = {"train": "train", "valid": "val", "test": "test"}
AGAIN = "Check that this is the published file, or download it again."


@lru_cache(maxsize=1)
def _cached(path: Path, mtime_ns: int, size: int) -> Any:
    return read_pickle(path)


def load_pickle(path: Path) -> Any:
    """Content of a pickle; the last one is cached, because check, cohort and all modalities read the same file."""
    stat = path.stat()
    return _cached(path, stat.st_mtime_ns, stat.st_size)


class PaddedExport:
    """An opened pickle with the splits train, valid and test, which become the folds.

    Subclasses define how ids and labels are stored.

    Attributes:
        files: the pickle.
        clips: ids, folds and scores with `clips.CLIPS_SCHEMA`.
        notes: notes for the manifest.

    Raises:
        DataError: all keys that are missing, not numeric, of the wrong size or inconsistent.
    """

    format = ""
    label_key = ""
    required: tuple[str, ...] = ()
    id_form = ""

    def __init__(self, path: Path, content: dict[str, Any]):
        self.path = path
        self.files = (path,)
        self.notes: list[str] = []
        self._parts: dict[str, dict[str, Any]] = {}
        parts = [p for p in PARTS if isinstance(content.get(p), dict)]
        self.modalities = tuple(m for m in ("text", "audio", "vision") if any(m in content[p] for p in parts))
        faults = FaultCollector()
        for part in PARTS:
            value = content.get(part)
            if not isinstance(value, dict):
                found = f"keys {', '.join(map(str, content))}" if value is None else type(value).__name__
                faults.add(self.fault(part, None, "a dictionary", found))
                continue
            self._parts[part] = value
            self._check_part(part, value, faults)
        faults.raise_if_any()
        self.clips = self._read_clips(faults)
        faults.raise_if_any()

    def fault(self, part: str, key: str | None, expected: str, found: str, row: int | None = None) -> Fault:
        column = part if key is None else f"{part}/{key}"
        return Fault(file=self.path.name, column=column, row=row, expected=expected, found=found, fix=AGAIN)

    # --- defined by subclasses ---------------------------------------------------------------------------------------

    def unnumbered_ids(self, part: str, texts: list[str], value: Any) -> list[tuple[str, int]] | None:
        """Video and clip number (from 1) of rows whose ids have no clip number; None if the ids are invalid."""
        return None

    def check_labels(
        self, part: str, value: dict[str, Any], score: NDArray[np.float32], faults: FaultCollector
    ) -> None:
        """Check further label keys for consistency; by default there are none."""
        return

    def step_counts(self, part: dict[str, Any], modality: str) -> NDArray[np.int64] | None:
        """True lengths (N,) int64, or None if the export does not have them."""
        return None

    # --- checks ------------------------------------------------------------------------------------------------------

    def _part_ids(self, part: str, value: Any, faults: FaultCollector) -> list[tuple[str, int]]:
        """Video and clip number (from 1) of each row of a split."""
        texts = id_strings(value, self.path.name, f"{part}/id")
        parsed = [parse_id(t) for t in texts]
        if None not in parsed:
            return [p for p in parsed if p is not None]
        ids = self.unnumbered_ids(part, texts, value)
        if ids is None:
            bad = parsed.index(None)
            faults.add(self.fault(part, "id", f"ids like {self.id_form}", f"{texts[bad]!r}", row=bad + 1))
        return ids or []

    def _check_part(self, part: str, value: dict[str, Any], faults: FaultCollector) -> None:
        present = {m: value[m] for m in ("text", "audio", "vision") if m in value}
        for key in (*self.required, *self.modalities):
            if key not in value:
                faults.add(self.fault(part, key, "this key", f"keys {', '.join(sorted(map(str, value)))}"))
        if not present:
            faults.add(self.fault(part, None, "at least one of text, audio, vision", "none of them"))
        rows: dict[str, int] = {}
        for key, x in present.items():
            array = np.asarray(x) if isinstance(x, np.ndarray) else None
            if array is None or array.ndim != 3 or array.dtype.kind not in "fiu" or 0 in array.shape[1:]:
                found = type(x).__name__ if array is None else f"shape {array.shape}, dtype {array.dtype}"
                faults.add(self.fault(part, key, "numbers of shape (N, steps, features)", found))
            else:
                rows[key] = len(array)
                reference = self._parts["train"].get(key) if "train" in self._parts else None
                if isinstance(reference, np.ndarray) and reference.ndim == 3 and reference.shape[2] != array.shape[2]:
                    expected = f"{reference.shape[2]} features, as in train"
                    faults.add(self.fault(part, key, expected, f"{array.shape[2]}"))
        rows |= {k: len(value[k]) for k in self.required if k in value and np.ndim(value[k]) > 0}
        if len(set(rows.values())) > 1:
            found = ", ".join(f"{k} {n}" for k, n in rows.items())
            faults.add(self.fault(part, None, "the same number of rows in every key", found))

    def _read_clips(self, faults: FaultCollector) -> pl.DataFrame:
        frames = []
        for part, value in self._parts.items():
            try:
                score = np.asarray(value[self.label_key], dtype=np.float32).reshape(len(value[self.label_key]), -1)
            except (TypeError, ValueError) as error:
                faults.add(self.fault(part, self.label_key, "numbers", str(error)))
                continue
            if score.shape[1] != 1:
                found = f"shape {np.shape(value[self.label_key])}"
                faults.add(self.fault(part, self.label_key, "one score per clip: (N,), (N, 1) or (N, 1, 1)", found))
                continue
            before = len(faults.faults)
            try:
                ids = self._part_ids(part, value["id"], faults)
                self.check_labels(part, value, score[:, 0], faults)
            except DataError as error:
                faults.absorb(error)
            if len(faults.faults) > before:
                continue
            frame = clip_frame([v for v, _ in ids], [c for _, c in ids], score[:, 0], [PARTS[part]] * len(ids))
            names = frame["sample_id"].to_list()
            column = f"{part}/{self.label_key}"
            for fault in score_faults(self.path.name, column, score[:, 0], names):
                faults.add(fault)
            for modality in ("audio", "vision", "text"):
                lengths = self.step_counts(value, modality) if modality in value else None
                if lengths is not None and (len(lengths) != len(ids) or (lengths > value[modality].shape[1]).any()):
                    expected = f"{len(ids)} lengths of at most {value[modality].shape[1]}"
                    found = f"{len(lengths)} lengths, the largest {lengths.max(initial=0)}"
                    faults.add(self.fault(part, f"{modality}_lengths", expected, found))
            frames.append(frame.with_columns(pl.lit(part).alias("part")).with_row_index("row"))
        if not frames:
            return pl.DataFrame()
        clips = pl.concat(frames)
        doubled = clips.filter(pl.col("sample_id").is_duplicated())
        if len(doubled):
            first = doubled.row(0, named=True)
            again = doubled.filter(pl.col("sample_id") == first["sample_id"]).row(1, named=True)
            place = f"{first['part']} row {first['row'] + 1}"
            found = f"{first['sample_id']} repeated ({len(doubled)} such rows), also in {place}"
            faults.add(self.fault(again["part"], "id", "unique ids", found, row=again["row"] + 1))
        shared = clips.group_by("subject_id", maintain_order=True).agg(pl.col("part").unique(maintain_order=True))
        shared = shared.filter(pl.col("part").list.len() > 1)
        if len(shared) and not len(doubled):
            video, names = shared.row(0)
            found = f"{video!r} in {' and '.join(names)} ({len(shared)} such videos)"
            faults.add(self.fault(names[1], "id", "each video in one split only", found))
        return clips.drop("part", "row")

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def ids(self) -> NDArray[np.str_]:
        return np.array(self.clips["sample_id"].to_list(), dtype=np.str_)

    def form(self, modality: str, requested: str) -> str:
        """Form of audio or vision: steps (as many as the text has words), raw or collapse; a UsageError for another."""
        aligned = all("text" in p and p[modality].shape[1] == p["text"].shape[1] for p in self._parts.values())
        stored = "steps" if aligned else "raw"
        if requested in ("steps", "raw") and requested != stored:
            found = "is aligned to words" if aligned else "is not aligned to words"
            raise UsageError(f"{modality}_form={requested}: {self.path.name} {found}; use {stored} or collapse")
        return "collapse" if requested == "collapse" else stored

    def steps(self, modality: str) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Number of steps, whether any value is observed, and whether a stored length is contradicted, each (N,)."""
        columns = []
        for part in self._parts.values():
            x = part[modality]
            first, stop, contradicts = bounds(x, self.step_counts(part, modality))
            columns.append((stop - first, (stop > first) & (np.isfinite(x) & (x != 0)).any(axis=(1, 2)), contradicts))
        n, known, contradicts = (np.concatenate(c) for c in zip(*columns, strict=True))
        return n, known, contradicts

    def sequences(self, modality: str) -> RaggedBlock:
        """Sequences of one modality without padding (`ragged.unpad`), in the order of `clips`."""
        values, lengths = [], []
        for part in self._parts.values():
            v, offsets = unpad(part[modality], self.step_counts(part, modality))
            values.append(v)
            lengths.append(np.diff(offsets))
        x = np.concatenate(values)
        return RaggedBlock(
            sample_id=self.ids,
            values=x,
            offsets=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64),
            names=feature_names(modality, x.shape[1]),
            file=self.path.name,
            columns=(modality,),
        )

    def words(self) -> list[list[str]] | None:
        """Words of each clip, or None if the export has no text."""
        return None


def id_strings(value: Any, file: str, column: str) -> list[str]:
    """Ids as str, from a list or array of str or UTF-8 bytes with shape (N,) or (N, k), whose first column has them."""
    rows = np.asarray(value, dtype=object)
    rows = rows.reshape(len(rows), -1)[:, 0] if rows.ndim > 1 else rows
    return [utf8(v, file=file, column=column, row=i + 1) for i, v in enumerate(rows.tolist())]
