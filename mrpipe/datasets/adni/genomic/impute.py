"""Impute the missing calls of a PLINK set locally with Beagle.

By default missing calls are filled with the mode over training participants (`mrpipe.transforms.genotypes`). To use
imputation instead, run this once per set before `mrpipe build`, with a phased reference panel such as 1000 Genomes
phase 3, and set the option `genotypes` to the folder of the results:

    python -m mrpipe.datasets.adni.genomic.impute set.bed panel.vcf.gz imputed/set --map plink.map

A set in another build is lifted over to the panel's build (`--chain`), and strands and alleles are aligned to the
panel. The result, `imputed/set.vcf.gz`, has the genotyped SNPs that are in the panel and no others. Imputation uses all
people of the set, including evaluation participants, but no labels. Accuracy is reported in benchmarks/genotypes.md.
"""

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrpipe.datasets.adni.genomic import strand
from mrpipe.datasets.adni.genomic.lift import ChainFile
from mrpipe.datasets.adni.genomic.plink import calls, open_set
from mrpipe.errors import DataError, Fault, MrpipeError, UsageError

# Genotypes by number of copies of A1 (3: not called), if A1 is ALT and if it is REF.
_GENOTYPES = np.array([["0/0", "0/1", "1/1", "./."], ["1/1", "0/1", "0/0", "./."]])


def write_target(bed: Path, reference: Path, out: Path, chain: Path | None = None) -> int:
    """Write the SNPs of a set that are in a reference as .vcf.gz, aligned to it; returns their number.

    Args:
        bed: the set, in the build of the reference unless `chain` is given.
        reference: VCF (.gz) or legend of one or more chromosomes.
        chain: chain file to the build of the reference.

    Raises:
        DataError: the set, the reference or the chain file is invalid, or set and reference share no SNP.
    """
    plink = open_set(bed)
    chromosome, position = plink.bim["chrom"].to_numpy().astype("U8"), plink.bim["pos"].to_numpy()
    a1, a2 = (strand.allele_codes(plink.bim[c]) for c in ("a1", "a2"))
    rows = np.arange(len(position))
    if chain is not None:
        lifted = ChainFile(chain).lift(chromosome, position)
        rows = np.flatnonzero(lifted.found)
        chromosome, position = lifted.chromosome[rows], lifted.position[rows]
        a1, a2 = (np.where(lifted.reversed, strand.complement(a), a)[rows] for a in (a1, a2))
    copies = calls(plink, rows)
    called = copies != 3
    with np.errstate(invalid="ignore"):
        frequency = np.where(called, copies, 0).sum(axis=0) / (2 * called.sum(axis=0))
    known = strand.read_reference(reference, sorted(set(chromosome.tolist())))
    key = strand.position_keys(chromosome, position)
    aligned = strand.align(key, a1, a2, frequency, known)
    # A VCF needs one SNP per position, sorted by position.
    at = np.flatnonzero(aligned.keep)
    at = at[np.unique(key[at], return_index=True)[1]]
    if not len(at):
        expected, fix = f"SNPs that are in {reference.name}", "Check that the set is in the build of the reference."
        raise DataError(Fault(file=bed.name, expected=expected, found="none", fix=fix))
    chromosome, position = strand.positions_of(key[at])
    head = ["##fileformat=VCFv4.2", *(f"##contig=<ID={c}>" for c in dict.fromkeys(chromosome.tolist()))]
    head.append('##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">')
    fixed = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")
    row = aligned.index[at]
    alleles = (strand.LETTERS[known.other[row]].tolist(), strand.LETTERS[known.counted[row]].tolist())
    sites = zip(chromosome, map(str, position), plink.bim["id"].gather(rows[at]), *alleles, strict=True)
    genotypes = _GENOTYPES[aligned.swap[at].astype(np.intp)[:, None], copies[:, at].T].tolist()
    with gzip.open(out, "wt", encoding="utf-8", compresslevel=1) as handle:
        handle.writelines(f"{line}\n" for line in (*head, "\t".join([*fixed, *plink.fam["iid"]])))
        for site, cells in zip(sites, genotypes, strict=True):
            handle.write("\t".join([*site, ".", "PASS", ".", "GT", *cells]) + "\n")
    return len(at)


def impute_set(
    bed: Path, reference: Path, out: Path, genetic_map: Path | None = None, chain: Path | None = None, threads: int = 1
) -> int:
    """Fill the missing calls of a PLINK set (see `write_target`) and write it as `out.vcf.gz`; returns its SNPs.

    Raises:
        DataError: see `write_target`, or Beagle fails.
        UsageError: Beagle is not installed.
    """
    if (tool := shutil.which("beagle")) is None:
        raise UsageError("imputation requires 'beagle', which is not on PATH (Debian: apt-get install beagle)")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        target, filled = Path(work, "target.vcf.gz"), Path(work, "filled")
        n_snps = write_target(bed, reference, target, chain)
        settings = {"gt": target.resolve(), "ref": reference.resolve(), "out": filled.resolve(), "impute": "false"}
        settings |= {"nthreads": threads} | ({"map": genetic_map.resolve()} if genetic_map else {})
        command = [tool, *(f"{k}={v}" for k, v in settings.items())]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, errors="backslashreplace", check=False)
        if done.returncode:
            found = f"{done.returncode}: {' / '.join((done.stderr or done.stdout).strip().splitlines()[-3:])}"
            raise DataError(Fault(file="beagle", expected="exit status 0", found=found))
        filled.with_name("filled.vcf.gz").replace(out.with_name(f"{out.name}.vcf.gz"))
    return n_snps


def main(argv: Sequence[str] | None = None) -> int:
    """Command line, `python -m mrpipe.datasets.adni.genomic.impute SET.bed PANEL.vcf.gz OUT`; returns the exit code."""
    program, as_written = "python -m mrpipe.datasets.adni.genomic.impute", argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=as_written)
    parser.add_argument("bed", type=Path, metavar="SET.bed", help="PLINK set; .bim and .fam are in the same folder")
    parser.add_argument("reference", type=Path, metavar="PANEL.vcf.gz", help="phased reference panel")
    parser.add_argument("out", type=Path, metavar="OUT", help="output prefix: writes OUT.vcf.gz")
    parser.add_argument("--map", type=Path, metavar="PATH", help="genetic map in PLINK format, as Beagle reads it")
    parser.add_argument("--chain", type=Path, metavar="PATH", help="chain file to the build of the panel")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    args = parser.parse_args(argv)
    try:
        n_snps = impute_set(args.bed, args.reference, args.out, args.map, args.chain, args.threads)
    except MrpipeError as error:
        print(f"imputation: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out}.vcf.gz: {n_snps} SNPs of the set that are in the panel, without missing calls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
