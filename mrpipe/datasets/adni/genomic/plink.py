"""Read PLINK sets (.bim, .fam, .bed) and VCF files, count calls on packed bits, and write small sets.

Only the requested blocks of a .bed are in memory. It has one row per SNP and four people per byte, lowest bits first:
00 two copies of A1, 01 not called, 10 one copy, 11 no copy.
"""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.budget import in_child
from mrpipe.datasets.adni.genomic.lift import build_of
from mrpipe.delimited import decode
from mrpipe.errors import DataError, Fault, FaultCollector, MissingExtraError, cell
from mrpipe.genetics.chromosomes import ALIASES, POSITION_LIMIT
from mrpipe.genetics.packing import byte_table, pack, unpack_range
from mrpipe.genetics.vcf import DAMAGED, Conversion
from mrpipe.reading import reading
from mrpipe.store.parquet import replacing

MAGIC = b"\x6c\x1b\x01"
BLOCK_SNPS = 4096


def _whitespace_table(path: Path, names: Sequence[str], faults: FaultCollector, shown_as: str) -> pl.DataFrame | None:
    """Read whitespace-separated columns as strings. None, and an error, if a line has the wrong number of columns."""
    text = faults.attempt(decode, path.read_bytes(), shown_as=shown_as, encoding="utf-8")
    if text is None:
        return None
    lines = pl.DataFrame({"line": text.removeprefix("\ufeff").rstrip().split("\n") if text.strip() else []})
    parts = lines.select(p=pl.col("line").cast(pl.String).str.extract_all(r"\S+")).with_row_index("row", offset=1)
    wrong = parts.filter(pl.col("p").list.len() != len(names))
    if len(wrong) or parts.is_empty():
        expected = f"{len(names)} columns ({', '.join(names)})"
        found, line = (f"{len(wrong['p'][0])} columns", int(wrong["row"][0])) if len(wrong) else ("an empty file", None)
        fix = "The file is damaged or truncated. Download it again."
        faults.add(Fault(file=shown_as, line=line, expected=expected, found=found, fix=fix))
        return None
    return parts.select(pl.col("p").list.get(i).alias(n) for i, n in enumerate(names))


def plain_chromosome(column: pl.Expr) -> pl.Expr:
    """Normalise chromosome names as `plain_name`."""
    return column.str.replace(r"^(?i)chr", "").str.to_uppercase().replace(ALIASES)


@dataclass(frozen=True)
class PlinkSet:
    """A PLINK set: its name, .bed path, people (.fam) and SNPs (.bim).

    Attributes:
        fam: `fid, iid, father, mother, sex`.
        bim: `chrom` (1 … 22, X, Y, XY, MT), `id`, `pos` (Int64), `a1`, `a2`.
        vcf: converted VCF files (`open_vcf`), with `note` on records that are not used.
        dropped: positions (`position_keys`) of SNPs of these files that are not in the set.
        build: genome build, if the files name it.
    """

    name: str
    bed: Path
    fam: pl.DataFrame
    bim: pl.DataFrame
    vcf: tuple[Path, ...] = ()
    note: str = ""
    dropped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    build: str | None = None

    @property
    def n_people(self) -> int:
        return len(self.fam)

    @property
    def n_bytes(self) -> int:
        return -(-self.n_people // 4)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.vcf or (self.bed, _member(self.bed, "bim"), _member(self.bed, "fam"))

    def table(self, suffix: str) -> str:
        """Name of the file with the people (fam) or the SNPs (bim), for errors and notes."""
        return self.vcf[0].name if self.vcf else f"{self.name}.{suffix}"

    def read(self, snps: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Packed calls of SNPs in ascending order, uint8 (k, bytes); read instead of mapped to keep memory bounded."""
        if not len(snps):
            return np.zeros((0, self.n_bytes), dtype=np.uint8)
        span = int(snps[-1] - snps[0]) + 1
        if span <= 4 * len(snps) + BLOCK_SNPS:
            count, offset = span * self.n_bytes, 3 + int(snps[0]) * self.n_bytes
            block = np.fromfile(self.bed, dtype=np.uint8, count=count, offset=offset).reshape(span, self.n_bytes)
            return block if span == len(snps) else block[snps - snps[0]]
        mapped = np.memmap(self.bed, dtype=np.uint8, mode="r", offset=3, shape=(len(self.bim), self.n_bytes))
        return np.asarray(mapped[snps])

    def blocks(self, snps: NDArray[np.int64] | None = None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Iterate over SNP indices (ascending) and packed rows, at most BLOCK_SNPS SNPs at a time."""
        chosen = np.arange(len(self.bim)) if snps is None else snps
        for start in range(0, len(chosen), BLOCK_SNPS):
            block = chosen[start : start + BLOCK_SNPS]
            yield block, self.read(block)


def _member(bed: Path, suffix: str) -> Path:
    return bed.with_suffix(f".{suffix.upper() if bed.suffix.isupper() else suffix}")


def open_set(bed: Path, *, shown_as: str | None = None) -> PlinkSet:
    """Read .bim and .fam and check that the .bed matches them.

    Raises:
        DataError: a file is missing or damaged, the .bed is individual-major, or the numbers of people or SNPs differ.
    """
    shown = shown_as or bed.name
    faults = FaultCollector()
    tables: dict[str, pl.DataFrame | None] = {}
    columns = {"fam": ("fid", "iid", "father", "mother", "sex", "phenotype")}
    columns |= {"bim": ("chrom", "id", "cm", "pos", "a1", "a2")}
    for suffix, names in columns.items():
        path, name = _member(bed, suffix), _member(Path(shown), suffix).as_posix()
        if not path.is_file():
            fix = "A PLINK set consists of a .bed, a .bim and a .fam file with the same name."
            faults.add(Fault(file=name, expected=f"the .{suffix} file of {bed.name}", found="no such file", fix=fix))
        else:
            with reading(name, f"a whole .{suffix} file"):
                tables[suffix] = _whitespace_table(path, names, faults, name)
    faults.raise_if_any()
    fam, bim = tables["fam"], tables["bim"]
    assert fam is not None
    assert bim is not None
    chrom, pos = plain_chromosome(pl.col("chrom")).alias("chrom"), pl.col("pos").cast(pl.Int64, strict=False)
    typed = bim.select(chrom, "id", pos, pl.col("a1", "a2").str.to_uppercase())
    wrong = typed.with_row_index("row", offset=1).filter(pl.col("pos").is_null() | (pl.col("pos") >= POSITION_LIMIT))
    if len(wrong):
        row, name = int(wrong["row"][0]), _member(Path(shown), "bim").as_posix()
        expected = f"a whole number below {POSITION_LIMIT}"
        faults.add(Fault(file=name, column="position", line=row, expected=expected, found=cell(bim["pos"][row - 1])))
    with bed.open("rb") as handle:
        head = handle.read(3)
    n_bytes = 3 + len(bim) * -(-len(fam) // 4)
    size = bed.stat().st_size
    if head[:2] != MAGIC[:2]:
        expected, found = "a PLINK .bed (bytes 6c 1b)", f"bytes {head[:2].hex(' ') or 'none'}"
        fix = "The file is damaged or not a .bed file. Download it again."
        faults.add(Fault(file=shown, expected=expected, found=found, fix=fix))
    elif head[2:] != MAGIC[2:]:
        expected, fix = "SNP-major order (third byte 01)", "Convert it with plink --make-bed."
        faults.add(Fault(file=shown, expected=expected, found=head[2:].hex() or "nothing", fix=fix))
    elif size != n_bytes:
        expected = f"{n_bytes} bytes for {len(fam)} people and {len(bim)} SNPs"
        fix = "The download is truncated, or the .bim or .fam belongs to another .bed (for example, a .bim that was "
        fix += "filtered without its .bed)."
        faults.add(Fault(file=shown, expected=expected, found=f"{size} bytes", fix=fix))
    faults.raise_if_any()
    return PlinkSet(bed.stem, bed, fam.select("fid", "iid", "father", "mother", "sex"), typed)


def open_vcf(files: Sequence[Path], prefix: Path, conversion: Conversion, names: Sequence[str] = ()) -> PlinkSet:
    """Convert the biallelic SNPs of VCF or BCF files to a PLINK set: one file, or files of different chromosomes.

    A1 is ALT. Sites with several ALT, in one record or in several, and SNPs below the thresholds are left out.

    Args:
        prefix: path of the .bed, .bim and .fam without the ending; its name is that of the set.
        names: names of the files in errors; default: without folder.

    Raises:
        DataError: a file is damaged or not sorted, or lacks GT and DS; or the files differ in people or genome build.
        MissingExtraError: cyvcf2 is not installed.
    """
    if importlib.util.find_spec("cyvcf2") is None:
        raise MissingExtraError("cyvcf2", "genotypes", "reading VCF and BCF files")
    names = list(names or (f.name for f in files))
    job: dict[str, Any] = {"files": [str(f) for f in files], "names": names, "prefix": str(prefix)}
    job["settings"] = asdict(conversion)
    stored = sum(f.stat().st_size for f in files)
    fault = Fault(file=", ".join(names), expected="a valid VCF", found="", fix=DAMAGED)
    result = json.loads(in_child("mrpipe.genetics.vcf", job, stored, fault))
    builds = {b: name for name, pairs in zip(names, result["lengths"], strict=True) if (b := build_of(pairs))}
    if len(builds) > 1:
        found = ", ".join(f"{name} in {build}" for build, name in builds.items())
        raise DataError(Fault(file=names[0], column="contig", expected="files in one build", found=found))
    plink = open_set(prefix.with_name(f"{prefix.name}.bed"))
    dropped = np.load(prefix.with_name(f"{prefix.name}.npy"))
    origin = {"vcf": tuple(files), "note": result["note"], "build": next(iter(builds), None)}
    return replace(plink, dropped=dropped, **origin)


def _words(block: NDArray[np.uint8]) -> NDArray[np.uint64]:
    padded = np.zeros((len(block), -(-block.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : block.shape[1]] = block
    return np.asarray(padded.view(np.uint64))


def snp_counts(plink: PlinkSet, people: NDArray[np.bool_], snps: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Number of chosen people with two, one and no copies of A1, and without a call, per SNP: int64 (4, SNPs)."""
    # The lower bit of each chosen person's call, in the 64-bit words of a row.
    mask = _words(pack(people[None, :].astype(np.uint8), pad=0))[0]
    total = int(people.sum())
    parts = []
    for _, block in plink.blocks(snps):
        words = _words(block)
        low, high = words & mask, (words >> np.uint64(1)) & mask
        none = np.bitwise_count(low & high).sum(axis=1, dtype=np.int64)
        one = np.bitwise_count(high & ~low).sum(axis=1, dtype=np.int64)
        missing = np.bitwise_count(low & ~high).sum(axis=1, dtype=np.int64)
        parts.append(np.stack([total - none - one - missing, one, none, missing]))
    return np.concatenate(parts, axis=1) if parts else np.zeros((4, 0), dtype=np.int64)


def missing_per_person(plink: PlinkSet, snps: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Number of missing calls per person over the given SNPs, int64 (people,)."""
    total = np.zeros((plink.n_bytes, 4), dtype=np.int64)
    for _, block in plink.blocks(snps):
        missing = block & ~(block >> 1) & np.uint8(0x55)
        for k in range(4):
            total[:, k] += ((missing >> np.uint8(2 * k)) & np.uint8(1)).sum(axis=0, dtype=np.int64)
    return total.ravel()[: plink.n_people]


# From .bed codes to packed copies of A1 (row 0) or A2 (row 1), 3 if not called.
RECODE = np.stack([byte_table(2, 3, 1, 0), byte_table(0, 3, 1, 2)])


def calls(plink: PlinkSet, snps: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
    """Unpack to copies of A1, uint8 (people, SNPs), 3 if not called; for small sets and tests."""
    parts = [unpack_range(RECODE[0][block], 0, plink.n_people) for _, block in plink.blocks(snps)]
    matrix = np.concatenate(parts) if parts else np.zeros((0, plink.n_people), dtype=np.uint8)
    return np.ascontiguousarray(matrix.T)


def write_set(prefix: Path, fam: pl.DataFrame, bim: pl.DataFrame, rows: Iterator[NDArray[np.uint8]]) -> None:
    """Write a set from frames as in `PlinkSet` and blocks of .bed rows; files are replaced atomically, .bed last."""
    people = fam.select("fid", "iid", "father", "mother", "sex", pl.lit("-9").alias("phenotype"))
    snps = bim.select("chrom", "id", pl.lit("0").alias("cm"), "pos", "a1", "a2")
    bed_path, bim_path, fam_path = (prefix.with_name(f"{prefix.name}.{s}") for s in ("bed", "bim", "fam"))
    with replacing(bed_path) as new_bed, replacing(bim_path) as new_bim, replacing(fam_path) as new_fam:
        people.write_csv(new_fam, include_header=False, separator=" ")
        snps.write_csv(new_bim, include_header=False, separator="\t")
        with new_bed.open("wb") as handle:
            handle.write(MAGIC)
            for block in rows:
                handle.write(np.ascontiguousarray(block).tobytes())
