"""Mutations inside files that have a structure of their own: gzip, zip, Parquet, HDF5, pickles and .npy."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.fuzz.mutations import (
    CELLS,
    INTEGERS,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_tree,
    mutate_yaml,
)

Mutation = Callable[[random.Random, bytes], tuple[str, bytes]]


def mutate_gzip(rng: random.Random, data: bytes, inside: Mutation) -> tuple[str, bytes]:
    """Mutate the compressed bytes, or the content, or write the content as several members or with a wrong trailer."""
    choice = rng.random()
    content = gzip.decompress(data)
    if choice < 0.25:
        name, mutated = mutate_bytes(rng, data)
        return f"gzip {name}", mutated
    if choice < 0.35:
        at = rng.randrange(len(content) + 1)
        return "gzip members", gzip.compress(content[:at], mtime=0) + gzip.compress(content[at:], mtime=0)
    if choice < 0.45:
        return "gzip trailer", data[: -rng.choice((4, 8))] + rng.randbytes(rng.choice((4, 8)))
    if choice < 0.5:
        return "gzip not compressed", content
    name, mutated = inside(rng, content)
    return f"gzip: {name}", gzip.compress(mutated, mtime=0)


def mutate_zip(rng: random.Random, data: bytes, inside: Callable[[str], Mutation]) -> tuple[str, bytes]:
    """Mutate the archive's bytes, a member's content or name, or the list of members."""
    if rng.random() < 0.3:
        name, mutated = mutate_bytes(rng, data)
        return f"zip {name}", mutated
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(item, archive.read(item)) for item in archive.infolist()]
    at = rng.randrange(len(members))
    item, content = members[at]
    kind = rng.choice(("content", "content", "content", "name", "remove", "repeat", "empty"))
    name = item.filename
    if kind == "content":
        kind, content = inside(name)(rng, content)
    elif kind == "name":
        name = rng.choice((f"../{name}", f"/{name}", "", f"{name}\\x", name.upper(), "x" * 300, members[0][0].filename))
    entries = [(i.filename, c, i.compress_type) for i, c in members]
    entries[at] = (name, content, item.compress_type)
    if kind == "remove":
        del entries[at]
    elif kind == "repeat":
        entries.append(entries[at])
    elif kind == "empty":
        entries = []
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content, how in entries:
            archive.writestr(zipfile.ZipInfo(name), content, how)
    return f"zip: {kind}", out.getvalue()


_TYPES = (pa.string(), pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.binary(), pa.timestamp("ns"))
_TYPES += (pa.date32(), pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.decimal128(20, 3), pa.uint16())


def mutate_parquet(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Mutate the bytes of a Parquet file, or write it with a column, rows, types or metadata changed."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, data)
    table = pq.read_table(io.BytesIO(data))
    kind = rng.choice(("drop", "rename", "cast", "null", "constant", "rows", "order", "cells", "nested", "metadata"))
    if not table.num_columns or not table.num_rows:
        return mutate_bytes(rng, data)
    n = rng.randrange(table.num_columns)
    name, column = table.column_names[n], table.column(n).combine_chunks()
    if kind == "drop":
        table = table.remove_column(n)
    elif kind == "rename":
        names = list(table.column_names)
        names[n] = rng.choice((names[0], "", "x", f"{name} ", name.upper()))
        table = table.rename_columns(names)
    elif kind == "rows":
        rows = [rng.randrange(table.num_rows) for _ in range(rng.choice((0, 1, table.num_rows, table.num_rows + 1)))]
        table = table.take(pa.array(rows, pa.int64()))
    elif kind == "order":
        rows = list(range(table.num_rows))
        rng.shuffle(rows)
        table = table.take(pa.array(rows))
    elif kind == "metadata":
        changed = {k: mutate_bytes(rng, v)[1] for k, v in (table.schema.metadata or {}).items()}
        table = table.replace_schema_metadata(rng.choice((None, {}, changed, {b"mrpipe.modality": b"[]"})))
    else:
        table = table.set_column(n, name, _column(rng, column, kind))
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=rng.choice((1, 7, 100_000)), compression=rng.choice(("none", "zstd")))
    return f"parquet {kind}", out.getvalue()


def _column(rng: random.Random, column: Any, kind: str) -> Any:
    """A column of the same length with other values or another type."""
    length = len(column)
    if kind == "null":
        return pa.nulls(length, column.type)
    if kind == "nested":
        return pa.array([[None if i % 3 else 1.5] * (i % 4) for i in range(length)])
    if kind == "constant":
        return pa.array([rng.choice((None, "x", 1, -1, 1e300, float("nan"), b"\xff", True))] * length)
    if kind == "cast":
        try:
            return column.cast(rng.choice(_TYPES))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return pa.array([str(value) for value in column.to_pylist()])
    values = column.to_pylist()
    for _ in range(rng.choice((1, 3))):
        values[rng.randrange(length)] = values[rng.randrange(length)] if rng.random() < 0.4 else None
    if pa.types.is_string(column.type):
        values[rng.randrange(length)] = rng.choice(CELLS)
    return pa.array(values, column.type)


def mutate_hdf5(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Mutate the bytes of an HDF5 file, or replace, remove, link or resize one of its objects."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, data)
    content = io.BytesIO(data)
    with h5py.File(content, "r+") as handle:
        names: list[str] = []
        handle.visit(names.append)
        name = rng.choice(names)
        kind = rng.choice(("remove", "value", "value", "huge", "external", "loop", "rename", "group", "cells"))
        node = handle[name]
        if kind == "rename":
            handle.move(name, f"{name}{rng.choice(('x', '[0]', ' ', '.y'))}")
        elif kind == "cells" and isinstance(node, h5py.Dataset) and node.dtype.kind == "f" and node.size:
            flat = node[...].ravel()
            flat[rng.randrange(flat.size)] = rng.choice((np.nan, np.inf, -np.inf, 1e38, -1.0))
            node[...] = flat.reshape(node.shape)
        else:
            del handle[name]
            if kind == "value":
                handle[name] = rng.choice(_ARRAYS)
            elif kind == "huge":
                shape = rng.choice(((2**40,), (2**31, 8), (2**20, 2**20), (0, 2**50)))
                handle.create_dataset(
                    name, shape=shape, dtype=rng.choice(("f4", "S10", "i8")), chunks=(1,) * len(shape)
                )
            elif kind == "external":
                handle[name] = h5py.ExternalLink("/etc/passwd", "/")
            elif kind == "loop":
                handle[name] = h5py.SoftLink("/" + name.split("/")[0])
            elif kind == "group":
                handle.create_group(name)
    return f"hdf5 {kind}", content.getvalue()


_ARRAYS: tuple[Any, ...] = (np.zeros(0), np.zeros((3, 0)), np.float64(1), np.zeros((2, 3, 4)), np.full((3, 2), np.nan))
_ARRAYS += (
    np.array([b"x", b""]),
    np.arange(5),
    np.zeros((4, 1), np.complex64),
    np.ones(3, bool),
    np.zeros((1, 70_000)),
)
_ARRAYS += (
    np.array(["x"], dtype="S1"),
    np.array([2**62, -1]),
    np.zeros((2, 2), np.float16),
    np.array(1e38, np.float64),
)


def mutate_pickle(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Mutate the bytes of a trusted pickle of dictionaries and arrays, or replace one of its values."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, data)
    tree = pickle.loads(data)
    kind = rng.choice(("array", "array", "tree", "lengths"))
    if kind == "tree":
        kind, tree = mutate_tree(rng, tree)
    else:
        part = rng.choice(list(tree.values()))
        if isinstance(part, dict):
            key = rng.choice(list(part))
            part[key] = _array(rng, np.asarray(part[key])) if kind == "array" else part[key][:-1]
        elif part:
            at = rng.randrange(len(part))
            part[at] = rng.choice((None, (), part[at][:1], (part[at][0], None, "x"), ((), np.zeros(1), 1)))
    try:
        return f"pickle {kind}", pickle.dumps(tree, protocol=rng.randrange(6))
    except RecursionError:
        return mutate_bytes(rng, data)


def _array(rng: random.Random, array: Any) -> Any:
    """Another array: a special one, or the same values in another type or shape."""
    changed = (
        lambda: rng.choice(_ARRAYS),
        lambda: array.astype(object),
        lambda: array.astype("U"),
        lambda: array[..., None],
        lambda: array.reshape(-1),
        lambda: array[: len(array) // 2],
        lambda: array.tolist(),
        lambda: np.repeat(array[:1], len(array), axis=0),
        lambda: array.T,
        lambda: np.asfortranarray(array),
    )
    return rng.choice(changed)()


def mutate_npy(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Mutate the bytes of a .npy file, or its header: shape, type or order."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, data)
    array = np.load(io.BytesIO(data))
    if rng.random() < 0.4:
        out = io.BytesIO()
        np.save(out, np.asarray(_array(rng, array)), allow_pickle=True)
        return "npy array", out.getvalue()
    size = rng.choice(INTEGERS)
    shapes = (
        f"({size},)",
        f"({size}, {array.shape[-1]})",
        "()",
        f"({size}, {size}, {size})",
        "None",
        "(1.5,)",
        "(" * 90,
    )
    kinds = (array.dtype.str, "|O", "<f8", "|V0", "<U1000000", ">i2", "bool", "x", "<M8[ns]")
    header = (
        f"{{'descr': '{rng.choice(kinds)}', 'fortran_order': {rng.random() < 0.2}, 'shape': {rng.choice(shapes)}, }}\n"
    )
    return "npy header", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + array.tobytes()


def mutation_for(name: str) -> Mutation:
    """The mutation that fits a file of this name."""
    lower = name.lower()
    if lower.endswith((".gz", ".bgz")):
        inner = mutation_for(name.rpartition(".")[0])
        return lambda rng, data: mutate_gzip(rng, data, inner)
    if lower.endswith((".zip", ".xlsx", ".pt")):
        return lambda rng, data: mutate_zip(rng, data, mutation_for)
    for endings, mutation in _BY_ENDING.items():
        if lower.endswith(endings):
            return mutation
    return mutate_bytes


_BY_ENDING: dict[tuple[str, ...], Mutation] = {
    (".csv", ".tsv", ".txt", ".bim", ".fam", ".vcf", ".chain", ".legend", ".xml", ".py"): mutate_lines,
    (".json",): mutate_json,
    (".yaml", ".yml"): mutate_yaml,
    (".parquet",): mutate_parquet,
    (".csd", ".h5"): mutate_hdf5,
    (".pkl", ".pickle"): mutate_pickle,
    (".npy",): mutate_npy,
}
