"""Read and write VCF files for imputation: biallelic SNPs only, plain or .gz."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic.plink import plain_chromosome
from mrpipe.delimited import UNREADABLE
from mrpipe.errors import DataError, Fault
from mrpipe.genetics.packing import MISSING

_FIXED = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")
_GENOTYPES = np.array(["0/0", "0/1", "1/1", "./."])


@dataclass(frozen=True)
class VcfGenotypes:
    """Genotypes of a VCF.

    Attributes:
        samples: (n,) sample IDs.
        sites: `chrom, pos, id, ref, alt, info`, one row per SNP.
        calls: (n, S) uint8, copies of ALT, 3 if not called.
        dosages: (n, S) float32 from the DS field, NaN if missing; None if the file has no DS.
    """

    samples: tuple[str, ...]
    sites: pl.DataFrame
    calls: NDArray[np.uint8]
    dosages: NDArray[np.float32] | None


def write_vcf(path: Path, samples: Sequence[str], sites: pl.DataFrame, calls: NDArray[np.uint8]) -> None:
    """Write unphased genotypes as .vcf.gz: sorted sites `chrom, pos, id, ref, alt` and calls (n, S), copies of ALT."""
    columns = [pl.Series(s, _GENOTYPES[calls[i]]) for i, s in enumerate(samples)]
    constants = {"QUAL": ".", "FILTER": "PASS", "INFO": ".", "FORMAT": "GT"}
    fixed = sites.select(**dict(zip(_FIXED, ("chrom", "pos", "id", "ref", "alt"), strict=False)))
    fixed = fixed.with_columns(pl.lit(v).alias(k) for k, v in constants.items())
    head = "##fileformat=VCFv4.2\n"
    head += "".join(f"##contig=<ID={c}>\n" for c in sites["chrom"].unique(maintain_order=True))
    head += '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    body = fixed.hstack(columns).write_csv(separator="\t", quote_style="never")
    with (
        path.open("wb") as handle,
        gzip.GzipFile(filename="", mode="wb", fileobj=handle, mtime=0, compresslevel=1) as packed,
    ):
        packed.write((head + body).encode())


def read_vcf(path: Path) -> VcfGenotypes:
    """Read the biallelic SNPs of a VCF with their phased or unphased genotypes.

    Raises:
        DataError: the file is unreadable, not a VCF, or GT is not the first FORMAT field.
    """
    try:
        skip = 0
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as handle:
            while handle.readline().startswith("##"):
                skip += 1
        frame = pl.read_csv(path, separator="\t", skip_rows=skip, infer_schema=False, quote_char=None)
        if tuple(frame.columns[:9]) != _FIXED or not frame["FORMAT"].str.starts_with("GT").all() or frame.width < 10:
            found = "another table"
            raise DataError(Fault(file=path.name, expected="a VCF with genotypes (GT first in FORMAT)", found=found))
        frame = frame.filter(pl.col("REF").str.contains("^[ACGT]$") & pl.col("ALT").str.contains("^[ACGT]$"))
        sites = frame.select("#CHROM", "POS", "ID", "REF", "ALT", "INFO").rename(lambda c: c.strip("#").lower())
        sites = sites.with_columns(plain_chromosome(pl.col("chrom")), pl.col("pos").cast(pl.Int64))
    except (pl.exceptions.PolarsError, *UNREADABLE) as error:
        found, fix = str(error).splitlines()[0], "The file is damaged or truncated."
        raise DataError(Fault(file=path.name, expected="a complete VCF", found=found, fix=fix)) from error
    samples = frame.columns[9:]
    codes = {"0/0": 0, "0/1": 1, "1/0": 1, "1/1": 2}
    called = frame.select(
        pl.col(s)
        .str.slice(0, 3)
        .str.replace("|", "/", literal=True)
        .replace_strict(codes, default=MISSING, return_dtype=pl.UInt8)
        for s in samples
    )
    dosages = None
    formats = frame["FORMAT"].unique()
    if len(formats) == 1 and "DS" in (keys := formats[0].split(":")):
        at = keys.index("DS")
        ds = frame.select(
            pl.col(s).str.split(":").list.get(at, null_on_oob=True).cast(pl.Float32, strict=False) for s in samples
        )
        dosages = np.ascontiguousarray(ds.to_numpy().T)
    return VcfGenotypes(tuple(samples), sites, np.ascontiguousarray(called.to_numpy().T), dosages)
