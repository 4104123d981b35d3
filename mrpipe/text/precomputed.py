"""Vectors that were computed elsewhere: a Parquet file with the columns `id` and `vector`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl

from mrpipe.budget import require_parquet
from mrpipe.errors import DataError, Fault
from mrpipe.raw import sha256
from mrpipe.reading import reading
from mrpipe.text.base import Floats

PREFIX = "precomputed:"
FIX = "polars writes such a file: pl.DataFrame({'id': ids, 'vector': vectors}).write_parquet(FILE)."


class Precomputed:
    """Vectors by id, of clips or notes.

    Attributes:
        file: name of the file.
        name: name for the manifest, with the hash of the file.
        row: id → position of its vector.

    Raises:
        DataError: the file cannot be read, an id is absent or repeated, or vectors differ in length or are not finite.
    """

    def __init__(self, option: str):
        path = Path(option.removeprefix(PREFIX)).expanduser()
        self.file, fault = path.name, partial(Fault, file=path.name, fix=FIX)
        with reading(path.name, "a Parquet file with the columns id and vector", FIX):
            require_parquet(path, path.name)
            table = pl.read_parquet(path, columns=["id", "vector"])
            ids, vectors = table["id"].cast(pl.String), table["vector"].cast(pl.List(pl.Float32))
        lengths = vectors.list.len().fill_null(0)
        dim = int(lengths.max() or 0)  # type: ignore[arg-type]
        finite = vectors.list.eval(pl.element().is_finite().fill_null(False)).list.all().fill_null(True)
        for column, expected, right, what in (
            ("id", "an id that no earlier row has", ids.is_not_null() & ids.is_first_distinct(), "none, or the same"),
            ("vector", f"{dim or 'some'} numbers, as in other rows", (lengths == dim) & (lengths > 0), lengths),
            ("vector", "finite numbers", finite, "others"),
        ):
            if not right.all():
                row = int(right.arg_min() or 0)
                found = what if isinstance(what, str) else str(what[row])
                raise DataError(fault(column=column, row=row + 1, expected=expected, found=found))
        self.name = f"precomputed/{sha256(path)[:16]}"
        self.row = {i: row for row, i in enumerate(ids)}
        self._x: Floats = vectors.explode().to_numpy().reshape(len(ids), dim)

    def take(self, ids: Sequence[str]) -> Floats:
        """Vectors (n, d) of ids that the file has."""
        x: Floats = self._x[[self.row[i] for i in ids]]
        return x
