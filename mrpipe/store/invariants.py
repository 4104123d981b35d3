"""Invariants of every store: masks, row indices and modality tables agree, and no sample lacks all modalities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrpipe.errors import Fault
from mrpipe.schema import MODALITY_KEY, Modality, Task
from mrpipe.store import masks
from mrpipe.store.layout import StoreLayout
from mrpipe.store.parquet import read_metadata
from mrpipe.store.splits import PARTS, n_divided

_SAMPLES = {"sample_id": pl.String, "subject_id": pl.String, "modality_mask": pl.UInt16}


class _Breaches:
    """Violations found so far; `file` is relative to the store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[Fault] = []

    def add(self, path: Path, expected: str, found: str, column: str | None = None, row: int | None = None) -> None:
        file, fix = path.relative_to(self.root).as_posix(), "Build the store again."
        self.faults.append(Fault(file=file, column=column, row=row, expected=expected, found=found, fix=fix))


def _modality_breaches(samples: pl.DataFrame, path: Path, breaches: _Breaches) -> Modality:
    modality = Modality.from_json(read_metadata(path)[MODALITY_KEY])
    table = StoreLayout(breaches.root).samples
    schema = pq.read_schema(path).remove_metadata()
    if not schema.equals(modality.arrow_schema()):
        breaches.add(path, f"columns {modality.arrow_schema()}", f"{schema}")
    column = f"row_{modality.name}"
    if samples.schema.get(column) != pl.Int32:
        breaches.add(table, "an int32 column", f"{samples.schema.get(column)}", column)
        return modality
    ids = pl.read_parquet(path, columns=["sample_id"])["sample_id"]
    indexed = samples.filter(pl.col(column).is_not_null()).select("sample_id", "modality_mask", column)
    bit = (samples["modality_mask"].to_numpy() >> np.uint16(modality.bit)) & 1 == 1
    wrong = bit != samples[column].is_not_null().to_numpy()
    if wrong.any():
        expected = f"bit {modality.bit} set exactly where {column} is not null"
        found = f"{int(wrong.sum())} samples for which this does not hold"
        breaches.add(table, expected, found, "modality_mask", int(wrong.argmax()) + 1)
    rows = indexed[column].to_numpy()
    if len(rows) != len(ids) or not np.array_equal(rows, np.arange(len(ids))):
        expected = f"row numbers 0..{len(ids) - 1} of modalities/{path.name}, in order"
        breaches.add(table, expected, f"{len(rows)} other row numbers", column)
    elif not indexed["sample_id"].equals(ids):
        breaches.add(path, "the sample ids that samples.parquet points to", "other ids", "sample_id")
    return modality


def find_breaches(root: Path, tasks: Sequence[Task] = (), *, deep: bool = False) -> list[Fault]:
    """All violations of the store's invariants; empty for an intact store.

    Args:
        tasks: declared tasks, whose labels are checked against their classes.
        deep: also scan all values of the modalities.
    """
    breaches, paths = _Breaches(root), StoreLayout(root)
    samples = pl.read_parquet(paths.samples)
    for column, dtype in _SAMPLES.items():
        if samples.schema.get(column) != dtype or samples[column].null_count():
            breaches.add(paths.samples, f"{dtype}, without nulls", str(samples.schema.get(column)), column)
    if breaches.faults:
        return breaches.faults
    ids, empty = samples["sample_id"], samples["modality_mask"] == 0
    if not ids.is_sorted() or ids.is_duplicated().any():
        breaches.add(paths.samples, "unique ids in ascending order", "unsorted or repeated ids", "sample_id")
    if empty.any():
        found, row = f"{int(empty.sum())} samples without a modality", int(empty.arg_max() or 0) + 1
        breaches.add(paths.samples, "at least one modality per sample", found, "modality_mask", row)
    declared = [_modality_breaches(samples, path, breaches) for path in sorted((root / "modalities").glob("*.parquet"))]
    known = masks.MASK_DTYPE(sum({1 << m.bit for m in declared}))
    stray = samples["modality_mask"].to_numpy() & ~known != 0
    if stray.any() or len({m.bit for m in declared}) != len(declared):
        found = f"{int(stray.sum())} samples with undeclared bits"
        breaches.add(paths.samples, "one declared bit per modality", found, "modality_mask")
    known_names = [m.name for m in declared]
    dictionary = pl.read_parquet(paths.dictionary)
    for name in dictionary["modality"].unique().sort():
        if name not in known_names:
            breaches.add(paths.dictionary, "features of this store's modalities", f"{name!r}", "modality")
    for name in known_names:
        rows = dictionary.filter(modality=name)["position"]
        if rows.len() == 0 or not np.array_equal(rows.to_numpy(), np.arange(rows.len())):
            breaches.add(paths.dictionary, f"positions 0.. of {name}, in order", f"{rows.len()} rows", "position")
    for path in sorted((root / "labels").glob("*.parquet")) + sorted((root / "splits").glob("*.parquet")):
        frame = pl.read_parquet(path)
        unknown = int((~frame["sample_id"].is_in(ids.implode())).sum())
        if unknown or frame["sample_id"].is_duplicated().any() or not frame["sample_id"].is_sorted():
            found = f"{unknown} unknown ids, or unsorted or repeated ids"
            breaches.add(path, "unique ids of this store in ascending order", found, "sample_id")
        if "split" in frame.columns:
            _split_breaches(samples, frame, path, breaches)
    for task in tasks:
        _label_breaches(task, paths.labels(task.name), breaches)
    attrition = pl.read_parquet(paths.attrition)
    for name in [None, *attrition["modality"].drop_nulls().unique().sort()]:
        flow = attrition.filter(pl.col("modality").eq_missing(pl.lit(name)))
        column = "sample_id" if name is None else f"row_{name}"
        left = samples[column].count() if column in samples.columns else -1
        chained = flow["n_before"][1:].equals(flow["n_after"][:-1])
        if flow.is_empty() or not chained or flow["n_after"][-1] != left:
            expected = f"consistent counts that end with {left} {f'rows of {name}' if name else 'samples'}"
            breaches.add(paths.attrition, expected, "other counts", "n_after")
    for modality in declared if deep else ():
        _value_breaches(modality, paths.modality(modality.name), breaches)
    return breaches.faults


def _split_breaches(samples: pl.DataFrame, split: pl.DataFrame, path: Path, breaches: _Breaches) -> None:
    if split["split"].null_count() or not split["split"].is_in(PARTS).all():
        breaches.add(path, ", ".join(PARTS), "other values", "split")
    if not (split["split"] == "train").any():
        breaches.add(path, "training samples", "none", "split")
    if several := n_divided(samples, split):
        breaches.add(path, "every subject in one part", f"{several} subjects in several parts", "split")


def _label_breaches(task: Task, path: Path, breaches: _Breaches) -> None:
    value, n = pl.read_parquet(path)["value"], len(task.classes)
    whole = task.kind == "classification"
    expected = f"int8, 0 to {n - 1}" if whole else "float32, finite"
    if value.dtype != (pl.Int8 if whole else pl.Float32):
        breaches.add(path, expected, str(value.dtype), "value")
    elif wrong := len(value) - int((value.is_between(0, n - 1) if whole else value.is_finite()).sum()):
        breaches.add(path, expected, f"{wrong} other values", "value")


def _value_breaches(modality: Modality, path: Path, breaches: _Breaches) -> None:
    """Check the values of a modality: no infinities, no nulls instead of NaN, correct sequence lengths and times."""
    row, before = 1, len(breaches.faults)
    rows = 2**18 // modality.size if modality.kind == "vector" else 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=min(max(rows, 256), 4096)):
        x = batch.column("x")
        values = x
        while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        if x.null_count or (values.null_count and modality.encoding == "plain"):
            breaches.add(path, "no nulls in x (unknown values are NaN)", "nulls", "x", row)
        if pa.types.is_floating(values.type) and np.isinf(values.to_numpy(zero_copy_only=False)).any():
            breaches.add(path, "finite values or NaN", "infinities", "x", row)
        if modality.encoding == "packed2":
            n_bytes = -(-modality.size // 4)
            if any(size != n_bytes for size in pc.unique(pc.binary_length(x)).to_pylist()):
                breaches.add(path, f"{n_bytes} bytes per sample", "other lengths", "x", row)
        if modality.kind == "sequence":
            lengths = x.value_lengths().to_numpy(zero_copy_only=False)
            if not np.array_equal(lengths, batch.column("length").to_numpy()) or (lengths == 0).any():
                breaches.add(path, "length = number of steps, at least 1", "other lengths", "length", row)
            time = batch.column("time") if modality.irregular else None
            if time is not None and not (
                time.value_lengths().equals(x.value_lengths()) and np.isfinite(time.flatten()).all()
            ):
                breaches.add(path, "one finite time per step", "other times", "time", row)
        if len(breaches.faults) > before:
            break
        row += batch.num_rows
