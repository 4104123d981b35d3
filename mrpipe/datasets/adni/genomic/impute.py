"""Impute the missing calls of a PLINK set locally with Beagle, or with Beagle and minimac4.

By default missing calls are filled with the mode over training participants (`mrpipe.transforms.genotypes`). To use
imputation instead, run this once per set before `mrpipe build`, with a phased reference panel such as 1000 Genomes
phase 3, and set the option `genotypes` to the folder of the imputed sets:

    python -m mrpipe.datasets.adni.genomic.impute set.bed panel.vcf.gz imputed/set --map gmap.gz

A set in another build is lifted over to the panel's build (`--chain`). As in the paper, only genotyped SNPs are kept:
missing calls are filled, no SNPs are added, and SNPs that do not match the panel keep their calls. Imputation uses all
people of the set, including evaluation participants, but no labels. Accuracy is reported in benchmarks/genotypes.md.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic.lift import ChainFile
from mrpipe.datasets.adni.genomic.plink import PlinkSet, calls, open_set, write_set
from mrpipe.datasets.adni.genomic.strand import LETTERS, align, allele_codes, complement, position_keys, read_reference
from mrpipe.datasets.adni.genomic.vcf import open_vcf, write_vcf
from mrpipe.delimited import head
from mrpipe.errors import DataError, Fault, MrpipeError, UsageError
from mrpipe.forms import plain_source
from mrpipe.genetics.packing import bed_rows
from mrpipe.genetics.vcf import Conversion
from mrpipe.reading import reading

TOOLS = ("beagle", "minimac4")


@dataclass(frozen=True)
class Imputed:
    """Counts: SNPs of the set, SNPs found in the reference, missing calls before and after imputation."""

    n_snps: int
    n_matched: int
    n_missing: int
    n_left: int


def _require(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        raise UsageError(f"imputation requires {tool!r}, which is not on PATH (Debian: apt-get install {tool})")
    return found


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="backslashreplace", check=False)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        found = f"{done.returncode}: {' / '.join(tail)}"
        raise DataError(Fault(file=Path(command[0]).name, expected="exit status 0", found=found))


def plink_map(path: Path, out: Path) -> Path:
    """Convert a genetic map with columns `pos chr cM` to Beagle's format; return maps in other formats unchanged.

    Raises:
        DataError: the file is missing or damaged.
    """
    with reading(path.name, "a genetic map (Beagle format, or columns pos, chr, cM)"):
        header = head(path).split(b"\n")[0].decode().lower().split()
        if header != ["pos", "chr", "cm"]:
            return path
        table = pl.read_csv(plain_source(path, path.name), separator="\t", infer_schema=False)
    table = table.select(table.columns[1], pl.lit("."), table.columns[2], table.columns[0])
    table.write_csv(out, separator=" ", include_header=False)
    return out


@dataclass(frozen=True)
class Imputer:
    """A tool for imputation and its settings: `tool` (of TOOLS), genetic map, threads, and random seed of Beagle."""

    tool: str = "beagle"
    genetic_map: Path | None = None
    threads: int = 1
    seed: int = 0

    def beagle(self, target: Path, reference: Path, out: Path, *, impute: bool = True) -> Path:
        """Phase the target against the reference and optionally impute it; returns `<out>.vcf.gz`."""
        settings = {"gt": target.resolve(), "ref": reference.resolve(), "out": out.resolve(), "seed": self.seed}
        settings |= {"nthreads": self.threads, "impute": str(impute).lower()}
        if self.genetic_map is not None:
            settings["map"] = plink_map(self.genetic_map, out.with_name("genetic.map")).resolve()
        _run([_require("beagle"), *(f"{k}={v}" for k, v in settings.items())], out.parent)
        return out.with_name(out.name + ".vcf.gz")

    def minimac4(self, phased: Path, reference: Path, out: Path) -> Path:
        """Impute a phased, indexed target; returns `<out>.dose.vcf.gz`."""
        tool = _require("minimac4")
        _run([_require("tabix"), "-f", "-p", "vcf", str(phased.resolve())], out.parent)
        panel, dose = out.with_name(out.name + ".msav"), out.with_name(out.name + ".dose.vcf.gz")
        _run([tool, "--compress-reference", str(reference.resolve()), "-o", str(panel)], out.parent)
        threads = ["-f", "GT,DS", "-t", str(self.threads)]
        _run([tool, str(panel), str(phased.resolve()), "-o", str(dose), *threads], out.parent)
        return dose

    def run(self, target: Path, reference: Path, work: Path) -> PlinkSet:
        """Impute an unphased VCF from a phased reference; returns the biallelic SNPs of both, with A1 = ALT."""
        if self.tool not in TOOLS:
            raise UsageError(f"unknown imputation tool {self.tool!r}; choose from {', '.join(TOOLS)}")
        done = self.beagle(target, reference, work / "beagle", impute=self.tool == "beagle")
        if self.tool == "minimac4":
            done = self.minimac4(done, reference, work / "imputed")
        return open_vcf([done], work / "filled", Conversion())


def _swapped(copies: NDArray[np.uint8], swap: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Copies (people, SNPs) of the other allele where `swap`; 3 remains missing."""
    return np.where(swap & (copies != 3), 2 - np.minimum(copies, 2), copies).astype(np.uint8)


def lifted_set(plink: PlinkSet, chain: ChainFile) -> tuple[PlinkSet, NDArray[np.int64]]:
    """Lift over a set to the target build of a chain file; returns the set and the .bed rows of its SNPs.

    SNPs that cannot be lifted over are dropped. Alleles are complemented where the strand is reversed.
    """
    got = chain.lift(plink.bim["chrom"].to_numpy().astype("U8"), plink.bim["pos"].to_numpy())
    rows = np.flatnonzero(got.found)
    named = {"chrom": got.chromosome[rows]}
    for column in ("a1", "a2"):
        codes = allele_codes(plink.bim[column])[rows]
        turned = got.reversed[rows] & (codes < len(LETTERS))
        as_written = plink.bim[column].to_numpy().astype(np.str_)[rows]
        named[column] = np.where(turned, LETTERS[np.where(turned, complement(codes), 0)], as_written)
    texts = (pl.Series(c, v.tolist()) for c, v in named.items())
    bim = plink.bim[rows.tolist()].with_columns(pl.Series("pos", got.position[rows]), *texts)
    return replace(plink, bim=bim), rows


def impute_set(
    bed: Path, reference: Path, out: Path, imputer: Imputer = Imputer(), *, chain: Path | None = None
) -> Imputed:
    """Fill the missing calls of a PLINK set and write it as `out.bed`, `out.bim` and `out.fam`.

    People and SNPs are unchanged, except that SNPs that cannot be lifted over are dropped.

    Args:
        bed: the set, in the build of the reference unless `chain` is given.
        reference: phased VCF (.gz) of one or more chromosomes; SNPs on other chromosomes keep their calls.
        chain: chain file to the build of the reference.

    Raises:
        DataError: the set or the reference is invalid, they share no SNP, or the tool fails.
        UsageError: the tool is not installed, or `out` is the input set.
    """
    if out.with_name(f"{out.name}.bed").resolve() == bed.resolve():
        raise UsageError(f"{out} is the input set; choose another name for the output")
    plink = open_set(bed)
    matrix = calls(plink)
    if chain is not None:
        plink, rows_of_bed = lifted_set(plink, ChainFile(chain))
        matrix = matrix[:, rows_of_bed]
    known = read_reference(reference, sorted(set(plink.bim["chrom"].to_list())))
    key = position_keys(plink.bim["chrom"], plink.bim["pos"].to_numpy())
    called = matrix != 3
    with np.errstate(invalid="ignore"):
        frequency = np.where(called, matrix, 0).sum(axis=0) / (2 * called.sum(axis=0))
    aligned = align(key, allele_codes(plink.bim["a1"]), allele_codes(plink.bim["a2"]), frequency, known)
    # A VCF needs one SNP per position, sorted by position.
    at = np.flatnonzero(aligned.keep)
    at = at[np.unique(key[at], return_index=True)[1]]
    if not len(at):
        expected, fix = f"SNPs that are in {reference.name}", "Check that the set is in the build of the reference."
        raise DataError(Fault(file=bed.name, expected=expected, found="none", fix=fix))
    rows = aligned.index[at]
    alleles = {"ref": LETTERS[known.other[rows]], "alt": LETTERS[known.counted[rows]]}
    places = {name: plink.bim[name].to_numpy()[at] for name in ("chrom", "pos")}
    sites = pl.DataFrame({**places, "id": [f"s{i}" for i in at], **alleles})
    swap = aligned.swap[at]
    with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as scratch:
        work = Path(scratch)
        # The tools receive numbers instead of participant IDs.
        target, copies = work / "target.vcf.gz", _swapped(matrix[:, at], swap)
        write_vcf(target, [f"p{i}" for i in range(plink.n_people)], sites, copies)
        result = imputer.run(target, reference, work)
        keys = [*places, *alleles]
        made = result.bim.rename({"a1": "alt", "a2": "ref"}).with_row_index("column").unique(keys, keep="first")
        column = sites.join(made, on=keys, how="left", maintain_order="left")["column"]
        filled = calls(result)[:, column.drop_nulls().to_numpy()]
    held = column.is_not_null().to_numpy()
    at, swap = at[held], swap[held]
    after = matrix.copy()
    after[:, at] = np.where(matrix[:, at] == 3, _swapped(filled, swap), matrix[:, at])
    write_set(out, plink.fam, plink.bim, iter([bed_rows(after)]))
    return Imputed(len(plink.bim), int(held.sum()), int((matrix == 3).sum()), int((after == 3).sum()))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line, `python -m mrpipe.datasets.adni.genomic.impute SET.bed PANEL.vcf.gz OUT`; returns the exit code."""
    program, as_written = "python -m mrpipe.datasets.adni.genomic.impute", argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=as_written)
    parser.add_argument("bed", type=Path, metavar="SET.bed", help="PLINK set; .bim and .fam are in the same folder")
    parser.add_argument("reference", type=Path, metavar="PANEL.vcf.gz", help="phased reference panel")
    parser.add_argument("out", type=Path, metavar="OUT", help="output prefix: writes OUT.bed, OUT.bim and OUT.fam")
    parser.add_argument("--tool", choices=TOOLS, default="beagle", help="Beagle, or minimac4 after phasing with Beagle")
    parser.add_argument("--map", type=Path, metavar="PATH", help="genetic map (Beagle format, or columns pos, chr, cM)")
    parser.add_argument("--chain", type=Path, metavar="PATH", help="chain file to the build of the panel")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parser.add_argument("--seed", type=int, default=0, help="random seed of Beagle")
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        imputer = Imputer(args.tool, args.map, args.threads, args.seed)
        done = impute_set(args.bed, args.reference, args.out, imputer, chain=args.chain)
    except MrpipeError as error:
        print(f"imputation: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"{args.out}: {done.n_snps} SNPs, {done.n_matched} of them in the panel; missing calls: {done.n_missing} "
        f"before, {done.n_left} after imputation"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
