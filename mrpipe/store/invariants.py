"""Invariants of every store: masks, row indices and modality tables agree, and no sample lacks all modalities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mrpipe.errors import Fault, FaultCollector
from mrpipe.schema import MODALITY_KEY, Modality
from mrpipe.store import masks
from mrpipe.store.layout import StoreLayout
from mrpipe.store.parquet import read_metadata
from mrpipe.store.splits import PARTS


def _breach(file: str, expected: str, found: str, column: str | None = None, row: int | None = None) -> Fault:
    return Fault(file=file, column=column, row=row, expected=expected, found=found, fix="Build the store again.")


def _modality_breaches(root: Path, samples: pl.DataFrame, path: Path, faults: FaultCollector) -> Modality:
    modality = Modality.from_json(read_metadata(path)[MODALITY_KEY])
    name = path.relative_to(root).as_posix()
    schema = pq.read_schema(path).remove_metadata()
    if not schema.equals(modality.arrow_schema()):
        faults.add(_breach(name, f"columns {modality.arrow_schema()}", f"{schema}"))
    column = f"row_{modality.name}"
    if samples.schema.get(column) != pl.Int32:
        faults.add(_breach("samples.parquet", "an int32 column", f"{samples.schema.get(column)}", column))
        return modality
    ids = pl.read_parquet(path, columns=["sample_id"])["sample_id"]
    indexed = samples.filter(pl.col(column).is_not_null()).select("sample_id", "modality_mask", column)
    bit = (samples["modality_mask"].to_numpy() >> np.uint16(modality.bit)) & 1 == 1
    wrong = bit != samples[column].is_not_null().to_numpy()
    if wrong.any():
        row = int(wrong.argmax()) + 1
        faults.add(
            _breach(
                "samples.parquet",
                f"bit {modality.bit} set exactly where {column} is not null",
                f"{int(wrong.sum())} samples for which this does not hold",
                "modality_mask",
                row,
            )
        )
    rows = indexed[column].to_numpy()
    if len(rows) != len(ids) or not np.array_equal(rows, np.arange(len(ids))):
        faults.add(
            _breach(
                "samples.parquet",
                f"row numbers 0..{len(ids) - 1} of {name}, in order",
                f"{len(rows)} other row numbers",
                column,
            )
        )
    elif not indexed["sample_id"].equals(ids):
        faults.add(_breach(name, "the sample ids that samples.parquet points to", "other ids", "sample_id"))
    return modality


def find_breaches(root: Path) -> list[Fault]:
    """All violations of the store's invariants; empty for an intact store."""
    faults, paths = FaultCollector(), StoreLayout(root)
    samples = pl.read_parquet(paths.samples)
    ids = samples["sample_id"]
    if samples.schema["modality_mask"] != pl.UInt16:
        faults.add(_breach("samples.parquet", "uint16", str(samples.schema["modality_mask"]), "modality_mask"))
    if not ids.is_sorted() or ids.is_duplicated().any() or ids.null_count():
        faults.add(_breach("samples.parquet", "unique ids in ascending order", "unsorted or repeated ids", "sample_id"))
    empty = samples["modality_mask"] == 0
    if empty.any():
        faults.add(
            _breach(
                "samples.parquet",
                "at least one modality per sample",
                f"{int(empty.sum())} samples without a modality",
                "modality_mask",
                int(empty.arg_max() or 0) + 1,
            )
        )
    tables = sorted((root / "modalities").glob("*.parquet"))
    declared = [_modality_breaches(root, samples, path, faults) for path in tables]
    known = masks.MASK_DTYPE(sum(1 << m.bit for m in declared))
    stray = samples["modality_mask"].to_numpy() & ~known != 0
    if stray.any() or len({m.bit for m in declared}) != len(declared):
        faults.add(
            _breach(
                "samples.parquet",
                "one declared bit per modality",
                f"{int(stray.sum())} samples with undeclared bits",
                "modality_mask",
            )
        )
    known_names = [m.name for m in declared]
    dictionary = pl.read_parquet(paths.dictionary)
    for name in dictionary["modality"].unique().sort():
        if name not in known_names:
            faults.add(_breach("dictionary.parquet", "features of this store's modalities", f"{name!r}", "modality"))
    for name in known_names:
        rows = dictionary.filter(modality=name)["position"]
        if rows.len() == 0 or not np.array_equal(rows.to_numpy(), np.arange(rows.len())):
            faults.add(
                _breach("dictionary.parquet", f"positions 0.. of {name}, in order", f"{rows.len()} rows", "position")
            )
    for path in sorted((root / "labels").glob("*.parquet")) + sorted((root / "splits").glob("*.parquet")):
        frame, name = pl.read_parquet(path), path.relative_to(root).as_posix()
        unknown = int((~frame["sample_id"].is_in(ids.implode())).sum())
        if unknown or frame["sample_id"].is_duplicated().any() or not frame["sample_id"].is_sorted():
            faults.add(
                _breach(
                    name,
                    "unique ids of this store in ascending order",
                    f"{unknown} unknown ids, or unsorted or repeated ids",
                    "sample_id",
                )
            )
        if "split" in frame.columns and not frame["split"].is_in(PARTS).all():
            faults.add(_breach(name, f"{', '.join(PARTS)}", "other values", "split"))
    attrition = pl.read_parquet(paths.attrition)
    if "modality" not in attrition.columns:
        attrition = attrition.with_columns(pl.lit(None, pl.String).alias("modality"))
    for name in [None, *attrition["modality"].drop_nulls().unique().sort()]:
        flow = attrition.filter(pl.col("modality").eq_missing(pl.lit(name)))
        column = "sample_id" if name is None else f"row_{name}"
        left = samples[column].count() if column in samples.columns else -1
        chained = flow["n_before"][1:].equals(flow["n_after"][:-1].rename("n_before"))
        if flow.is_empty() or not chained or flow["n_after"][-1] != left:
            expected = f"consistent counts that end with {left} {f'rows of {name}' if name else 'samples'}"
            faults.add(_breach("attrition.parquet", expected, "other counts", "n_after"))
    return faults.faults


def value_breaches(root: Path, modality: Modality, path: Path, *, batch_rows: int = 256) -> list[Fault]:
    """Check the values of a modality: no infinities, no nulls instead of NaN, correct sequence lengths."""
    faults, name = FaultCollector(), path.relative_to(root).as_posix()
    row = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=batch_rows):
        x = batch.column("x")
        values = x
        while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        if x.null_count or (values.null_count and modality.encoding == "plain"):
            faults.add(_breach(name, "no nulls in x (unknown values are NaN)", "nulls", "x", row + 1))
        if pa.types.is_floating(values.type) and np.isinf(values.to_numpy(zero_copy_only=False)).any():
            faults.add(_breach(name, "finite values or NaN", "infinities", "x", row + 1))
        if modality.kind == "sequence":
            lengths = x.value_lengths().to_numpy(zero_copy_only=False)
            if not np.array_equal(lengths, batch.column("length").to_numpy()) or (lengths == 0).any():
                faults.add(_breach(name, "length = number of steps, at least 1", "other lengths", "length", row + 1))
        if faults.faults:
            break
        row += batch.num_rows
    return faults.faults
