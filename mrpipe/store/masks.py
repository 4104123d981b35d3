"""Modality-availability bitmasks: packing, unpacking, conversion from and to names, queries.

Bit i of a mask belongs to the modality with `bit` i. Masks are uint16, so a store has at most 16 modalities.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from mrpipe.errors import UsageError

MAX_MODALITIES = 16
MASK_DTYPE = np.uint16


def pack(observed: NDArray[np.bool_], bits: Sequence[int] | None = None) -> NDArray[np.uint16]:
    """Pack a boolean matrix (n, M) into masks (n,); column j sets bit `bits[j]` (default: j)."""
    n_modalities = observed.shape[1]
    bits = range(n_modalities) if bits is None else bits
    if len(bits) != n_modalities or any(not 0 <= b < MAX_MODALITIES for b in bits):
        raise ValueError(f"{n_modalities} columns require as many bits in 0..{MAX_MODALITIES - 1}, got {list(bits)}")
    weights = np.array([1 << b for b in bits], dtype=MASK_DTYPE)
    packed: NDArray[np.uint16] = (observed.astype(MASK_DTYPE) * weights).sum(axis=1, dtype=MASK_DTYPE)
    return packed


def unpack(masks: ArrayLike, bits: int | Sequence[int]) -> NDArray[np.bool_]:
    """Unpack masks (n,) to a boolean matrix (n, M); `bits` is M or the bit of each column."""
    columns = np.array(range(bits) if isinstance(bits, int) else bits, dtype=MASK_DTYPE)
    observed: NDArray[np.bool_] = (np.asarray(masks, dtype=MASK_DTYPE)[:, None] >> columns[None, :]) & 1 == 1
    return observed


def codes(observed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`pack` as int64, which indexes and takes part in arithmetic; `unpack` is the inverse."""
    return pack(observed).astype(np.int64)


def to_mask(names: Sequence[str], bits: Mapping[str, int]) -> int:

    unknown = [n for n in names if n not in bits]
    if unknown:
        raise UsageError(f"unknown modalities {', '.join(unknown)}; this store has {', '.join(bits)}")
    return sum(1 << bits[n] for n in set(names))


def to_names(mask: int, bits: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the modalities of a mask, in bit order."""
    return tuple(n for n, b in sorted(bits.items(), key=lambda item: item[1]) if mask >> b & 1)


def combination_name(names: Iterable[str]) -> str:
    """Name of a combination of modalities: theirs, joined by +."""
    return "+".join(names)


def name_parts(combination: str) -> list[str]:
    """The inverse of `combination_name`."""
    return combination.split("+")


def pattern_counts(masks: ArrayLike) -> dict[int, int]:
    """Number of samples per modality combination, most frequent first (ties by mask)."""
    values, counts = np.unique(np.asarray(masks, dtype=MASK_DTYPE), return_counts=True)
    order = sorted(zip(counts.tolist(), values.tolist(), strict=True), key=lambda cv: (-cv[0], cv[1]))
    return {mask: count for count, mask in order}


def expression(where: str, bits: Mapping[str, int], column: str = "modality_mask") -> pl.Expr:
    """Convert a query over modality names to a polars expression on the mask column.

    Operators: `&` (and), `|` (or), `~` (not) and parentheses, e.g. ``"image & genomic & ~biospecimen"``.
    """
    try:
        tree = ast.parse(where, mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"cannot parse the modality query {where!r}: {error.msg}") from error

    def build(node: ast.expr) -> pl.Expr:
        match node:
            case ast.Name(id=name):
                return (pl.col(column) & pl.lit(to_mask([name], bits), dtype=pl.UInt16)) != 0
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                return build(left) & build(right)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return build(left) | build(right)
            case ast.UnaryOp(op=ast.Invert() | ast.Not(), operand=operand):
                return ~build(operand)
            case ast.BoolOp(op=operator, values=values):
                parts = [build(v) for v in values]
                return pl.all_horizontal(parts) if isinstance(operator, ast.And) else pl.any_horizontal(parts)
        raise UsageError(f"the modality query {where!r} may contain only modality names, &, |, ~ and parentheses")

    return build(tree)
