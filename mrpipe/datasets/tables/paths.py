"""Columns of paths: an image or an array of each sample. Legend: n samples, C channels, T steps, d values.

Arrays of one shape become vectors; arrays (T, d) of different T become sequences, with the shape (0, d) here.
"""

import math
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.budget import read_small
from mrpipe.datasets.arrays import read_array
from mrpipe.datasets.features import from_files
from mrpipe.datasets.images import decode, image_modality, image_size, to_array
from mrpipe.datasets.tables.config import ModalityTable
from mrpipe.datasets.tables.features import no_samples, rows_of
from mrpipe.datasets.tables.files import ROW, RawTable
from mrpipe.datasets.tables.joins import report_lost_rows
from mrpipe.datasets.tables.texts import known_text
from mrpipe.errors import DataError, Fault, FaultCollector, shape
from mrpipe.schema import Features, Kind, Modality


class PathColumn:
    """The files of a modality: `sample_id`, `path` and `__row` of the samples that have one (n), by `sample_id`.

    `paths` has each path once, with its first row; `rows` are `__sample_id` and `__row` of the table.
    """

    def __init__(self, raw: Path, table: RawTable, of: ModalityTable, samples: pl.DataFrame, faults: FaultCollector):
        self.raw, self.table, self.of, self.image = raw, table, of, of.files == "image"
        self.rows, _ = rows_of(table, of, faults)
        self.column = table.column(of.columns[0], f"modalities.{of.name}.columns", faults)
        text = known_text(self.column, table.config.missing + of.missing) if self.column else pl.lit(None, pl.String)
        path = text.str.replace_all("\\", "/", literal=True).alias("path")
        cells = table.read([self.column] if self.column else []).select(ROW, path).drop_nulls()
        joined = table.to_samples(self.rows, samples).join(cells, on=ROW)
        self.files = joined.select("sample_id", "path", ROW).sort("sample_id")
        self.paths = self.files.unique("path", keep="first", maintain_order=True)
        self.shape = of.shape or self._common_shape()

    def _common_shape(self) -> tuple[int, ...]:
        """The shape of most arrays; (0, d) if some of these differ in T alone."""
        shapes: Counter[tuple[int, ...]] = Counter()
        for path in self.paths["path"]:
            # Damaged files are reported when they are read.
            with suppress(DataError):
                shapes[np.shape(read_array(self.raw / path, path))] += 1
        common = max(shapes, key=lambda s: (shapes[s], s), default=())
        if len(common) == 2 and any(len(s) == 2 and s[0] not in (0, common[0]) and s[1] == common[1] for s in shapes):
            return (0, common[1])
        return common

    def read(self, path: str, row: int, *, header: bool = False) -> Any:
        """The image (C, H, W) or the array of a file; of the header of an image, its size (H, W).

        Raises:
            DataError: for any problem, with the line of the path in the table.
        """
        place, inside = self.raw / path, not Path(path).is_absolute() and ".." not in Path(path).parts
        try:
            if not inside or not os.path.isfile(place):
                found = "no such file" if inside else "another place"
                raise DataError(Fault(file=path, expected="a file in the export folder, relative to it", found=found))
            if not self.image:
                return _array(place, path, self.shape)
            if header:
                return image_size(read_small(place, path), path)[::-1]
            image = decode(read_small(place, path), path)
            return to_array(image.convert("L") if self.shape[0] == 1 else image, self.shape[1:])
        except DataError as error:
            fault, rows = error.faults[0], pl.Series([row])
            found = f"{shape(path)}: {fault.found.replace(path, shape(path))}"
            located = self.table.fault(fault.expected, found, fault.fix, column=self.column, rows=rows)
            raise DataError(located) from error


def _array(path: Path, shown_as: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array; another shape, and values that are not finite numbers, are a DataError."""
    array = np.asarray(read_array(path, shown_as))
    expected, found = f"an array of shape {_shown(shape)}", f"shape {_shown(array.shape)}"
    if array.dtype.kind not in "biuf" or not array.size:
        expected, found = "an array of numbers", f"{array.size} values of type {array.dtype}"
    elif array.ndim == len(shape) and all(n in (0, m) for n, m in zip(shape, array.shape, strict=True)):
        with np.errstate(over="ignore"):
            x: NDArray[np.float32] = array.astype(np.float32)
        if not (n_unknown := x.size - np.isfinite(x).sum()):
            return x
        expected, found = "finite numbers, or an empty cell", f"{n_unknown} of {x.size} NaN or infinite"
    raise DataError(Fault(file=shown_as, expected=expected, found=found))


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) if n else "any" for n in shape)


def check_paths(
    column: PathColumn, samples: pl.DataFrame, known: pl.DataFrame, faults: FaultCollector, notes: list[str]
) -> tuple[pl.Series, tuple[Path, ...]]:
    """Read all arrays, and the headers of images; returns the ids of the samples with a file, and the files."""
    table, name, sizes, broken = column.table, column.of.name, set[tuple[int, ...]](), list[DataError]()
    report_lost_rows(table, column.rows, known, faults, notes)
    if column.files.is_empty() and column.column and len(samples):
        faults.add(no_samples(table, name, ""))
    for _, path, row in column.paths.iter_rows():
        try:
            found = column.read(path, row, header=True)
            sizes.add(found if column.image else found.shape)
        except DataError as error:
            broken.append(error)
    faults.absorb_some(broken, table.shown_as)
    if sizes:
        extent = " to ".join(dict.fromkeys(_shown(s) for s in (min(sizes), max(sizes))))
        about = f"{len(column.paths)} {column.of.files}s of {extent}"
        notes.append(f"{name}: {len(column.files)} of {len(samples)} samples, {about}")
    return column.files["sample_id"], tuple(column.raw / path for path in column.paths["path"])


def read_paths(raw: Path, table: RawTable, of: ModalityTable, bit: int, samples: pl.DataFrame) -> Features:
    """The images or arrays of the samples; a damaged one is a DataError when its batch is read."""
    faults = FaultCollector()
    column = PathColumn(raw, table, of, samples, faults)
    faults.raise_if_any()
    if column.files.is_empty():
        raise DataError(no_samples(table, of.name, ""))
    places, shape = {sample_id: place for sample_id, *place in column.files.iter_rows()}, column.shape
    if column.image:
        modality, columns = image_modality(of.name, bit, of.description, shape)
    else:
        kind: Kind = "sequence" if 0 in shape else "vector"
        step = shape[1:] if 0 in shape else shape
        size, about = (math.prod(step),), f"element of arrays of shape {_shown(shape)}"
        modality = Modality(name=of.name, bit=bit, kind=kind, shape=size, description=of.description)
        names = [f"{column.column}[{','.join(map(str, i))}]" for i in np.ndindex(step)]
        columns = {"name": names, "kind": "numeric", "description": about}
    columns["source_column"] = column.column
    return from_files(modality, list(places), lambda i: column.read(*places[i]), table.shown_as, columns)
