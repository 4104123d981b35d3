"""Reading stores: `open_store(path)` gives lazy polars frames, numpy arrays and integrity checks.

Stores are plain Parquet and can be read without this module (see docs/store-format.md). It adds queries by modality
name, selection by split, transforms, restored array shapes and `verify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.genetics.packing import copies
from mrpipe.reading import read_frame, reading
from mrpipe.schema import Modality, Task
from mrpipe.store import masks
from mrpipe.store.content import describe
from mrpipe.store.integrity import hash_faults, other_faults, size_faults
from mrpipe.store.invariants import find_breaches
from mrpipe.store.layout import StoreLayout
from mrpipe.store.manifest import RESTORE, Manifest, differences, read_manifest
from mrpipe.store.splits import PARTS


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Rows of one modality as numpy arrays, sorted by sample_id.

    Attributes:
        modality: declaration of the modality.
        sample_id: (n,) strings.
        x: (n, *shape); for packed genotypes (n, bytes) uint8; for sequences (steps, d), the steps of all samples.
        offsets: sequences only, (n + 1,) int64; sample i has the steps offsets[i]:offsets[i + 1].
        time: irregular sequences only, (steps,) float32, in the unit of the modality.
    """

    modality: Modality
    sample_id: NDArray[np.str_]
    x: NDArray[Any]
    offsets: NDArray[np.int64] | None = None
    time: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, rows: NDArray[np.int64]) -> Arrays:
        """Select rows, in the given order; all rows in their own order are not copied."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        if self.offsets is None:
            return replace(self, sample_id=self.sample_id[rows], x=self.x[rows])
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        steps = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        time = None if self.time is None else self.time[steps]
        return replace(self, sample_id=self.sample_id[rows], x=self.x[steps], offsets=offsets, time=time)

    def means(self) -> NDArray[np.float32]:
        """Sequences only: (n, d) means of the known values over the steps; NaN if none is known."""
        assert self.offsets is not None
        known, starts = ~np.isnan(self.x), self.offsets[:-1]
        total = np.add.reduceat(np.where(known, self.x, 0), starts, axis=0, dtype=np.float64)
        count = np.add.reduceat(known, starts, axis=0, dtype=np.int64)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Features of n labelled samples, in order of sample_id.

    Attributes:
        x: (n, p) float32; NaN if a value is unknown or the sample lacks the modality. Categories are positions in
            `levels` of the dictionary; genotypes are copies of A1. A sequence has the mean and the maximum of each
            feature over its steps, and the logarithm of the number of steps.
        y: (n,) int64 class, or float64 target.
        groups: (n,) subject_id, for a cross-validation that keeps the samples of a subject together.
        names: p names, `modality.feature`; sample_id: (n,).
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64] | NDArray[np.float64]
    groups: NDArray[np.str_]
    names: tuple[str, ...]
    sample_id: NDArray[np.str_]


def _features(arrays: Arrays, names: list[str]) -> tuple[NDArray[np.float32], list[str]]:
    """Columns of one modality and their names."""
    if arrays.modality.encoding == "packed2":
        return copies(arrays.x, arrays.modality.size), names
    x = arrays.x.astype(np.float32)
    if arrays.offsets is None:
        return x, names
    steps = np.log(np.diff(arrays.offsets).astype(np.float32))[:, None]
    names = [*(f"{name} {statistic}" for statistic in ("mean", "maximum") for name in names), "log number of steps"]
    return np.concatenate([arrays.means(), np.fmax.reduceat(x, arrays.offsets[:-1]), steps], axis=1), names


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    """Values of a column, also of lists of lists, and bytes; not copied if the column is one chunk without nulls."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    while pa.types.is_nested(array.type):
        array = array.flatten()
    if pa.types.is_binary(array.type):
        offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset :]
        return np.frombuffer(array.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[len(array)]]
    result: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return result


def _read_arrays(path: Path, modality: Modality, group: int | None) -> Arrays:
    """All rows of a table, or those of one row group; values of one row group at most are in memory twice."""
    with pq.ParquetFile(path, memory_map=True) as file:
        groups = [g for g in range(file.num_row_groups) if group in (None, g) and file.metadata.row_group(g).num_rows]

        def read(name: str, n: int, *shape: int) -> NDArray[Any]:
            whole, done = np.empty((0, *shape), dtype=modality.dtype), 0
            for g in groups:
                part = _flat(file.read_row_group(g, columns=[name])[name]).reshape(-1, *shape)
                if len(part) == n:
                    return part
                whole = whole if done else np.empty((n, *shape), dtype=part.dtype)
                whole[done : done + len(part)] = part
                done += len(part)
            return whole

        ids = _flat(file.read_row_groups(groups, columns=["sample_id"])["sample_id"]).astype(np.str_)
        if modality.kind != "sequence":
            shape = (-(-modality.size // 4),) if modality.encoding == "packed2" else modality.shape
            return Arrays(modality=modality, sample_id=ids, x=read("x", len(ids), *shape))
        lengths = _flat(file.read_row_groups(groups, columns=["length"])["length"]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        time = read("time", int(offsets[-1])) if modality.irregular else None
        x = read("x", int(offsets[-1]), modality.size)
        return Arrays(modality=modality, sample_id=ids, x=x, offsets=offsets, time=time)


class Store:
    """A sealed store, opened for reading; created by `open_store`."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self._paths = StoreLayout(path)
        self.modalities: tuple[Modality, ...] = self.manifest.declared_modalities()
        self.tasks: tuple[Task, ...] = self.manifest.declared_tasks()
        _raise(size_faults(path, self.manifest))

    def __repr__(self) -> str:
        m = self.manifest
        names = masks.combination_name(x.name for x in self.modalities)
        return f"Store({m.dataset} {m.store_id}: {m.n_samples} samples, {names}, {m.origin})"

    @property
    def store_id(self) -> str:
        return self.manifest.store_id

    @property
    def bits(self) -> dict[str, int]:
        """Bits of `modality_mask` by modality name."""
        return {m.name: m.bit for m in self.modalities}

    @property
    def schemes(self) -> tuple[str, ...]:
        return tuple(s["scheme"] for s in self.manifest.splits)

    def _modality(self, name: str) -> Modality:
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise UsageError(f"no modality {name!r}; this store has {', '.join(self.bits)}")

    def choose(self, names: Sequence[str] | None = None) -> tuple[Modality, ...]:
        """Modalities by name, at least one, in bit order; default: all."""
        names = [names] if isinstance(names, str) else tuple(self.bits) if names is None else names
        if not (chosen := [self._modality(name) for name in names]):
            raise UsageError(f"no modality is chosen; this store has {', '.join(self.bits)}")
        return tuple(m for m in self.modalities if m in chosen)

    def task(self, name: str | None = None) -> Task:
        """A task by name, or the default task."""
        for task in self.tasks:
            if name in (None, task.name):
                return task
        raise UsageError(f"no task {name!r}; this store has {', '.join(t.name for t in self.tasks)}")

    def samples(self, where: str | None = None) -> pl.LazyFrame:
        """Samples as a lazy frame; `where` is a query such as ``"image & ~genomic"`` (see `masks.expression`)."""
        frame = pl.scan_parquet(self._paths.samples)
        return frame if where is None else frame.filter(masks.expression(where, self.bits))

    def modality(self, name: str) -> pl.LazyFrame:

        return pl.scan_parquet(self._paths.modality(self._modality(name).name))

    def labels(self, task: str | None = None) -> pl.LazyFrame:
        """Labels `sample_id, value` of a task as a lazy frame; samples without a label have no row."""
        return pl.scan_parquet(self._paths.labels(self.task(task).name))

    def split(self, scheme: str | None = None, part: str | None = None) -> pl.LazyFrame:
        """`sample_id, split` of a scheme, or of a part of it; None or `default`: the store's default scheme."""
        if part not in (None, *PARTS):
            raise UsageError(f"no part {part!r}; a split has {', '.join(PARTS)}")
        if scheme is None or (scheme == "default" and scheme not in self.schemes):
            scheme = self.manifest.default_scheme
        if scheme not in self.schemes:
            raise UsageError(f"no split {scheme!r}; this store has {', '.join(self.schemes)}")
        frame = pl.scan_parquet(self._paths.split(scheme))
        return frame if part is None else frame.filter(split=part)

    @property
    def dictionary(self) -> pl.DataFrame:
        """Data dictionary, one row per feature."""
        return read_frame(self._paths.dictionary, fix=RESTORE)

    @property
    def attrition(self) -> pl.DataFrame:
        """Cohort flow: `step, reason, n_before, n_after`."""
        return read_frame(self._paths.attrition, fix=RESTORE).filter(pl.col("modality").is_null()).drop("modality")

    @property
    def losses(self) -> pl.DataFrame:
        """Samples that lost a single modality, by reason: `modality, step, reason, n_before, n_after`."""
        frame = read_frame(self._paths.attrition, fix=RESTORE).filter(pl.col("modality").is_not_null())
        return frame.select("modality", pl.exclude("modality"))

    def patterns(self) -> pl.DataFrame:
        """Number of samples per combination: `modalities` (joined by +), `modality_mask`, `n`."""
        value = self.samples().select("modality_mask").collect()["modality_mask"].to_numpy()
        counts = masks.pattern_counts(value).items()
        rows = [(masks.combination_name(masks.to_names(m, self.bits)), m, n) for m, n in counts]
        schema = {"modalities": pl.String, "modality_mask": pl.UInt16, "n": pl.Int64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def arrays(self, name: str, *, split: str | None = None, part: str | None = None) -> Arrays:
        """One modality as numpy arrays; not copied if dtype and layout allow.

        Args:
            split, part: restrict the samples to this scheme (`default` or, with `part`, None: default scheme) and part.

        Raises:
            DataError: another store took the place of this one after it was opened.
        """
        arrays = self.row_group(name, None)
        return arrays if part is None and split is None else arrays.take(self.rows(name, split, part))

    def row_group(self, name: str, number: int | None) -> Arrays:
        """One row group of a modality's table, or all rows; see `row_group_starts`."""
        arrays = _read_arrays(self._paths.modality(name), self._modality(name), number)
        if (found := read_manifest(self.path).store_id) != self.store_id:
            fix = "Another process replaced the store while it was read. Run the command again."
            raise DataError(Fault(file=str(self.path), expected=f"store {self.store_id}", found=found, fix=fix))
        return arrays

    def row_group_starts(self, name: str) -> NDArray[np.int64]:
        """First row of each row group of a modality's table, and the number of rows, (G + 1,)."""
        meta = pq.read_metadata(self._paths.modality(name))
        return np.cumsum([0, *(meta.row_group(g).num_rows for g in range(meta.num_row_groups))], dtype=np.int64)

    def rows(
        self, name: str, split: str | None, part: str | None = None, without: Sequence[str] = ()
    ) -> NDArray[np.int64]:
        """Rows of a modality's table whose samples are in a part of a split, or in the split, and not in `without`."""
        chosen = self.split(split, part).filter(~pl.col("sample_id").is_in(without))
        rows = self.samples().join(chosen, on="sample_id", how="semi").select(f"row_{name}").drop_nulls()
        return np.sort(rows.collect()[f"row_{name}"].to_numpy()).astype(np.int64)

    def matrix(
        self,
        modalities: Sequence[str] | None = None,
        part: str | None = None,
        split: str | None = None,
        task: str | None = None,
    ) -> Matrix:
        """Labelled samples with one of the modalities (default: all) in a part of the scheme `split` (default: all).

        Raises:
            UsageError: unknown names, modalities of another kind, or no samples.
        """
        dictionary, task_kind = self.dictionary, self.task(task).kind
        events = set(dictionary.filter(position=0, kind="event")["modality"])
        usable = [m.name for m in self.modalities if m.kind not in ("image", "volume") and m.name not in events]
        chosen = [m.name for m in self.choose(modalities)]
        if wrong := [name for name in chosen if name not in usable]:
            able = ", ".join(usable) or "none"
            raise UsageError(
                f"images, volumes and events have no matrix: {', '.join(wrong)}; modalities that have: {able}"
            )
        samples = self.samples().filter(pl.any_horizontal(pl.col(f"row_{name}").is_not_null() for name in chosen))
        samples = samples.join(self.labels(task), on="sample_id")
        part = None if part == "all" else part
        if part is not None or split is not None:
            samples = samples.join(self.split(split, part), on="sample_id", how="semi")
        frame = samples.sort("sample_id").collect()
        if frame.is_empty():
            raise UsageError(f"no labelled samples with {' or '.join(chosen)} in {part or 'the store'}")
        blocks, names = [], list[str]()
        for name in chosen:
            row, own = frame[f"row_{name}"], dictionary.filter(modality=name).sort("position")["name"].to_list()
            values, own = _features(self.arrays(name).take(row.drop_nulls().to_numpy().astype(np.int64)), own)
            blocks.append(np.full((len(frame), len(own)), np.nan, dtype=np.float32))
            blocks[-1][row.is_not_null().to_numpy()] = values
            names += [f"{name}.{column}" for column in own]
        return Matrix(
            x=np.concatenate(blocks, axis=1),
            y=frame["value"].cast(pl.Int64 if task_kind == "classification" else pl.Float64).to_numpy(),
            groups=frame["subject_id"].to_numpy().astype(np.str_),
            names=tuple(names),
            sample_id=frame["sample_id"].to_numpy().astype(np.str_),
        )

    def verify(self, *, deep: bool = False) -> None:
        """Verify the integrity of the store.

        Checks that the folder holds the declared files only, that the manifest agrees with what they contain, and that
        masks, row indices and tables are consistent.

        Args:
            deep: also check the hash of every file and scan all values.

        Raises:
            DataError: lists all problems.
        """
        root, manifest = self.path, self.manifest
        hashes = hash_faults(root, manifest, remember=False) if deep else ()
        _raise([*other_faults(root, manifest), *hashes])
        stated = {entry["file"]: entry["sha256"] for entry in manifest.files}
        with reading(root, "readable tables", RESTORE):
            content = describe(root, self.bits, [t.name for t in self.tasks], self.schemes, stated)
            breaches = find_breaches(root, self.tasks, deep=deep)
        for known, found in zip(manifest.modalities, content["modalities"], strict=True):
            found.pop("" if "dictionary_sha256" in known else "dictionary_sha256", None)  # not in an older store
        place = str(self._paths.manifest)
        for key, value in content.items():
            for column, actual, found in differences(getattr(manifest, key), value, key):
                expected = f"{actual}, as in the files"
                breaches.append(Fault(file=place, column=column, expected=expected, found=found, fix=RESTORE))
        _raise(breaches)


def _raise(faults: Iterable[Fault]) -> None:
    if found := list(faults):
        raise DataError(found)


def open_store(path: str | Path) -> Store:
    """Open a sealed store; checks its manifest and the sizes of its files (`Store.verify` checks their content)."""
    return Store(Path(path))


def open_verified(path: str | Path) -> Store:
    """Open a sealed store and check the hashes of its files, once per user and change of a file.

    Raises:
        DataError: names each file that was changed after sealing.
    """
    store = open_store(path)
    _raise(hash_faults(store.path, store.manifest, remember=True))
    return store
