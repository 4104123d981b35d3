"""Align the SNPs of several chips to the strand and the counted allele of a reference panel.

The rules are those of Rayner's HRC-1000G-check-bim. Alleles that match only as complements are flipped. A/T and C/G
SNPs are never flipped, because their alleles do not show the strand: they are dropped if their minor allele frequency
in the reference is unknown or exceeds 0.4, or if the other strand fits better. SNPs whose alleles do not match, or
whose frequency differs from that of the reference by more than 0.2, are dropped.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic.plink import plain_chromosome
from mrpipe.delimited import require_lines
from mrpipe.errors import DataError, Fault
from mrpipe.forms import open_binary, plain_source
from mrpipe.genetics.chromosomes import ORDER, POSITION_LIMIT
from mrpipe.reading import reading

AMBIGUOUS_MAF = 0.4
MAX_DIFFERENCE = 0.2
# A 0, C 1, G 2, T 3, so that 3 − x is the complement; 4 is PLINK's `0` (monomorphic SNP), 5 anything else.
NO_ALLELE, OTHER_ALLELE = 4, 5
LETTERS = np.array(["A", "C", "G", "T", "0"])


def allele_codes(alleles: Sequence[str] | NDArray[np.str_] | pl.Series) -> NDArray[np.int8]:
    """Encode alleles as int8."""
    series = pl.Series(alleles, dtype=pl.String)
    codes = {"A": 0, "C": 1, "G": 2, "T": 3, "0": NO_ALLELE, ".": NO_ALLELE}
    return np.asarray(series.replace_strict(codes, default=OTHER_ALLELE, return_dtype=pl.Int8).to_numpy())


def complement(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    return np.where(codes < NO_ALLELE, 3 - codes, codes).astype(np.int8)


def position_keys(chromosome: pl.Series | NDArray[np.str_], position: NDArray[np.int64]) -> NDArray[np.int64]:
    """Encode chromosome and position as one int64 that sorts by both."""
    number = pl.Series(chromosome, dtype=pl.String).replace_strict(ORDER, default=99, return_dtype=pl.Int64).to_numpy()
    return np.asarray(number * POSITION_LIMIT + position, dtype=np.int64)


def positions_of(keys: NDArray[np.int64]) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Chromosomes and positions of `position_keys`."""
    return np.array(["", *ORDER, *[""] * 73])[keys // POSITION_LIMIT], keys % POSITION_LIMIT


@dataclass(frozen=True)
class KnownSnps:
    """Known SNPs, sorted by position.

    Attributes:
        key: (r,) from `position_keys`.
        counted, other: (r,) allele codes; `counted` is the allele counted in the store (ALT of the reference).
        frequency: (r,) frequency of `counted`, NaN if unknown.
        name: (r,) SNP IDs.
    """

    key: NDArray[np.int64]
    counted: NDArray[np.int8]
    other: NDArray[np.int8]
    frequency: NDArray[np.float64]
    name: NDArray[np.str_]

    @classmethod
    def empty(cls) -> Self:
        none = np.zeros(0, dtype=np.int8)
        return cls(np.zeros(0, dtype=np.int64), none, none, np.zeros(0), np.zeros(0, dtype="U1"))

    def extended(self, other: Self) -> Self:
        parts = [np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)]
        order = np.argsort(parts[0], kind="stable")
        return type(self)(*(p[order] for p in parts))


def read_reference(path: Path, chromosomes: Sequence[str], *, shown_as: str | None = None) -> KnownSnps:
    """Read a 1000 Genomes or HRC legend (`id chr position a0 a1 … ALL`) or the sites of a VCF, plain or .gz.

    Only biallelic SNPs of the requested chromosomes are returned.

    Raises:
        DataError: the file is unreadable or in neither format, a position or frequency is invalid, or no SNP is left.
    """
    shown_as = shown_as or path.name
    skip = 0
    with reading(shown_as, "a legend or a VCF"):
        require_lines(path, shown_as)
        with io.TextIOWrapper(open_binary(path, shown_as), encoding="utf-8") as handle:
            while (first := handle.readline()).startswith("##"):
                skip += 1
    header = first.rstrip("\n").lstrip("#").split()
    is_vcf = first.startswith("#CHROM")
    aliases = {"chrom": ("CHROM", "CHR"), "position": ("POS", "POSITION"), "id": ("ID",), "other": ("REF", "A0")}
    aliases |= {"counted": ("ALT", "A1"), "frequency": ("INFO" if is_vcf else "ALL", "ALT_FREQ", "AF")}
    place = {k: i for k, names in aliases.items() for n in names[::-1] for i, h in enumerate(header) if h.upper() == n}
    if missing := [k for k in aliases if k not in place and k not in ("frequency", "id")]:
        expected, found = "a legend (id chr position a0 a1 … ALL) or a VCF", f"columns {', '.join(header[:12])}"
        fix = "A legend without a chr column covers one chromosome: concatenate all chromosomes and add chr."
        raise DataError(Fault(file=shown_as, column=missing[0], expected=expected, found=found, fix=fix))
    used = sorted(place, key=lambda k: place[k])
    with reading(shown_as, "a complete table"):
        # Skip the comment lines of a VCF and do not parse its genotypes.
        separator, columns = "\t" if "\t" in first else " ", [place[k] for k in used]
        form: dict[str, Any] = {"separator": separator, "infer_schema": False, "quote_char": None}
        frame = pl.read_csv(plain_source(path, shown_as), skip_rows=skip, columns=columns, **form)
    frame.columns = used
    frame = frame.with_row_index("line", offset=skip + 2).with_columns(
        plain_chromosome(pl.col("chrom")),
        pl.col("other", "counted").str.to_uppercase(),
        *(pl.lit(None, pl.String).alias(k) for k in ("id", "frequency") if k not in place),
    )
    snp = pl.all_horizontal(pl.col("other", "counted").str.contains("^[ACGT]$"))
    frame = frame.filter(snp & pl.col("chrom").is_in(list(chromosomes)))
    text = pl.col("frequency").str.extract(r"(?:^|;)AF=([^;]*)") if is_vcf else pl.col("frequency")
    position, frequency = pl.col("position").cast(pl.Int64, strict=False), text.cast(pl.Float64, strict=False)
    unknown = text.is_null() | text.is_in([".", "NA", ""])
    for name, valid, expected in (
        ("position", position.is_between(1, POSITION_LIMIT - 1), f"a whole number below {POSITION_LIMIT}"),
        ("frequency", unknown | frequency.is_between(0, 1), "a number from 0 to 1"),
    ):
        wrong = frame.filter(~valid.fill_null(False))["line"]
        if len(wrong):
            found = f"another value in {len(wrong)} rows"
            raise DataError(Fault(file=shown_as, column=name, line=int(wrong[0]), expected=expected, found=found))
    if frame.is_empty():
        expected = "SNPs (A, C, G, T) on the requested chromosomes"
        raise DataError(Fault(file=shown_as, expected=expected, found="no such SNP"))
    frame = frame.with_columns(position, frequency.fill_null(float("nan")))
    key = position_keys(frame["chrom"], frame["position"].to_numpy())
    order = np.argsort(key, kind="stable")
    counted, other = (allele_codes(frame[name])[order] for name in ("counted", "other"))
    # 1000 Genomes legends name SNPs `rs123:1000:A:G`.
    ids = frame["id"].fill_null(".").str.split(":").list.first().to_numpy().astype(np.str_)[order]
    return KnownSnps(key[order], counted, other, frame["frequency"].to_numpy()[order], ids)


@dataclass(frozen=True)
class Aligned:
    """Result of the alignment, one entry per SNP.

    Attributes:
        keep: whether the SNP is kept.
        swap: whether the counted allele is A2.
        turned: whether the set's alleles are on the other strand.
        index: row in the reference, −1 if its position or alleles are not there.
        reason: why the SNP is dropped, "" if kept.
    """

    keep: NDArray[np.bool_]
    swap: NDArray[np.bool_]
    turned: NDArray[np.bool_]
    index: NDArray[np.int64]
    reason: NDArray[np.str_]


def palindromic(a1: NDArray[np.int8], a2: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Whether the alleles are A/T or C/G, which are the same on both strands."""
    return np.asarray((a1 < NO_ALLELE) & (a1 + a2 == 3))


def align(
    key: NDArray[np.int64],
    a1: NDArray[np.int8],
    a2: NDArray[np.int8],
    frequency: NDArray[np.float64],
    reference: KnownSnps,
    *,
    use_frequency: bool = True,
    n_people: int | None = None,
) -> Aligned:
    """Align SNPs (position key, alleles, frequency of A1) to the strand and counted allele of the reference.

    Args:
        use_frequency: if false, A/T and C/G SNPs are dropped and frequencies are not compared.
        n_people: size of the set; in small sets, frequencies may differ by three standard errors.
    """
    n = len(key)
    keep, swap, turned = (np.zeros(n, dtype=np.bool_) for _ in range(3))
    index = np.full(n, -1, dtype=np.int64)
    reason = np.full(n, "not in the reference", dtype="U32")
    first = np.searchsorted(reference.key, key, side="left")
    last = np.searchsorted(reference.key, key, side="right")
    # Multiallelic sites are several biallelic rows of the reference; the first one with the alleles of the set counts.
    for attempt in range(int((last - first).max(initial=0))):
        rows = np.flatnonzero((index < 0) & (first + attempt < last))
        r = first[rows] + attempt
        c, o = reference.counted[r], reference.other[r]
        f_ref = reference.frequency[r] if use_frequency else np.full(len(r), np.nan)
        x1, x2, f = a1[rows], a2[rows], frequency[rows]
        # A monomorphic SNP takes its second allele from the reference.
        lone = x1 == NO_ALLELE
        same = np.where(lone, (x2 == c) | (x2 == o), ((x1 == c) & (x2 == o)) | ((x1 == o) & (x2 == c)))
        y1, y2 = complement(x1), complement(x2)
        flipped = np.where(lone, (y2 == c) | (y2 == o), ((y1 == c) & (y2 == o)) | ((y1 == o) & (y2 == c)))
        turn = flipped & ~same
        a1_counted = np.where(turn, np.where(lone, y2 == o, y1 == c), np.where(lone, x2 == o, x1 == c))
        f_counted = np.where(a1_counted, f, 1 - f)
        difference = np.abs(f_counted - f_ref)
        # Comparisons with an unknown frequency are false.
        clear = (np.minimum(f_ref, 1 - f_ref) <= AMBIGUOUS_MAF) & (difference <= np.abs(1 - f_counted - f_ref))
        ambiguous = palindromic(c, o)
        error = np.sqrt(f_ref * (1 - f_ref) / (2 * n_people)) if n_people else np.zeros(len(rows))
        off = difference > np.where(ambiguous, MAX_DIFFERENCE, np.maximum(3 * error, MAX_DIFFERENCE))
        match = same | flipped
        reasons = ["other alleles", "ambiguous strand", "frequency differs"]
        why = np.select([~match, ambiguous & ~clear, off], reasons, "")
        reason[rows] = why
        keep[rows] = why == ""
        index[rows] = np.where(match, r, -1)
        swap[rows], turned[rows] = match & ~a1_counted, match & turn
    return Aligned(keep, swap, turned, index, reason)
