"""Imputation of missing calls on this machine, in place of the Michigan server: Beagle, or Beagle and minimac4.

The default of the pipeline is the training mode (`mrpipe.genotype_transform`). To impute instead, bring a phased
reference panel (1000 Genomes phase 3 in the target build) and run, once per set and before `mrpipe build`,

    python -m mrpipe.datasets.adni.genomic_impute set.bed panel.vcf.gz imputed/set --map gmap.gz

then point the option `genotypes` at the folder of the imputed sets. A set of another build is lifted first (`--chain`)
and is in the reference's build afterwards. SNPs whose alleles the reference does not hold keep their calls. As in the
paper only typed SNPs are kept: imputation fills missing calls, it adds no SNPs. Dosage r² and concordance of masked
calls are in benchmarks/genotypes.md.
Panel and tool see everyone in the set at once, evaluation participants included; labels they never see.
"""

from __future__ import annotations

import argparse
import gzip
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
from mrpipe.datasets.adni.genomic.plink import PlinkSet, bed_rows, calls, open_set, write_set
from mrpipe.datasets.adni.genomic.strand import align, allele_codes, complement, position_keys, read_reference
from mrpipe.datasets.adni.genomic.vcf import VcfGenotypes, read_vcf, write_vcf
from mrpipe.errors import DataError, Fault, MrpipeError, UsageError
from mrpipe.raw import UNREADABLE

TOOLS = ("beagle", "minimac4")


@dataclass(frozen=True)
class Imputed:
    """What was done: SNPs of the set, SNPs that the reference holds, missing calls before and after."""

    n_snps: int
    n_matched: int
    n_missing: int
    n_left: int


def _require(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        raise UsageError(f"imputation needs the program {tool!r} (Debian: apt-get install {tool}; or from its authors)")
    return found


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise DataError(
            Fault(file=Path(command[0]).name, expected="exit status 0", found=f"{done.returncode}: {' / '.join(tail)}")
        )


def run_beagle(
    target: Path,
    reference: Path,
    out: Path,
    *,
    genetic_map: Path | None = None,
    threads: int = 1,
    seed: int = 0,
    impute: bool = True,
) -> Path:
    """Phase the target against the reference and, if asked for, impute; returns `<out>.vcf.gz`."""
    command = [
        _require("beagle"),
        f"gt={target.resolve()}",
        f"ref={reference.resolve()}",
        f"out={out.resolve()}",
        f"nthreads={threads}",
        f"seed={seed}",
        f"impute={'true' if impute else 'false'}",
    ]
    if genetic_map is not None:
        command.append(f"map={genetic_map.resolve()}")
    _run(command, out.parent)
    return out.with_name(out.name + ".vcf.gz")


def run_minimac4(phased: Path, reference: Path, out: Path, *, threads: int = 1) -> Path:
    """Impute a phased, indexed target with minimac4; returns `<out>.dose.vcf.gz`."""
    tool = _require("minimac4")
    _run([_require("tabix"), "-f", "-p", "vcf", str(phased.resolve())], out.parent)
    panel = out.with_name(out.name + ".msav")
    _run([tool, "--compress-reference", str(reference.resolve()), "-o", str(panel)], out.parent)
    dose = out.with_name(out.name + ".dose.vcf.gz")
    _run([tool, str(panel), str(phased.resolve()), "-o", str(dose), "-f", "GT,DS", "-t", str(threads)], out.parent)
    return dose


def plink_map(path: Path, out: Path) -> Path:
    """A genetic map in Beagle's form (chromosome, id, cM, position) from `pos chr cM`; others pass as they are.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as handle:
            header = handle.readline().lower().split()
        if header != ["pos", "chr", "cm"]:
            return path
        table = pl.read_csv(path, separator="\t", infer_schema=False)
    except (pl.exceptions.PolarsError, *UNREADABLE) as error:
        raise DataError(
            Fault(
                file=path.name,
                expected="a genetic map (Beagle's form, or pos, chr, cM)",
                found=f"unreadable data ({error})",
            )
        ) from error
    table.select(table.columns[1], pl.lit("."), table.columns[2], table.columns[0]).write_csv(
        out, separator=" ", include_header=False
    )
    return out


def impute_vcf(
    target: Path,
    reference: Path,
    work: Path,
    *,
    tool: str = "beagle",
    genetic_map: Path | None = None,
    threads: int = 1,
    seed: int = 0,
) -> VcfGenotypes:
    """Impute an unphased VCF against a phased one; genotypes and dosages at all of the reference's SNPs."""
    if tool not in TOOLS:
        raise UsageError(f"imputation tool {tool!r} is none of {', '.join(TOOLS)}")
    used = plink_map(genetic_map, work / "genetic.map") if genetic_map else None
    if tool == "beagle":
        return read_vcf(run_beagle(target, reference, work / "imputed", genetic_map=used, threads=threads, seed=seed))
    phased = run_beagle(target, reference, work / "phased", genetic_map=used, threads=threads, seed=seed, impute=False)
    return read_vcf(run_minimac4(phased, reference, work / "imputed", threads=threads))


def lifted_set(plink: PlinkSet, chain: ChainFile) -> tuple[PlinkSet, NDArray[np.int64]]:
    """A set with places and alleles of the chain's target build, and the .bed rows of its SNPs.

    SNPs without a place there are left out; where the strand turns, alleles become their complements.
    """
    got = chain.lift(plink.bim["chrom"].to_numpy().astype("U8"), plink.bim["pos"].to_numpy())
    rows = np.flatnonzero(got.found)
    letters = np.array(["A", "C", "G", "T", "0"])
    named = {}
    for column in ("a1", "a2"):
        codes = allele_codes(plink.bim[column])[rows]
        turned = got.reversed[rows] & (codes < len(letters))
        as_written = plink.bim[column].to_numpy().astype(np.str_)[rows]
        named[column] = np.where(turned, letters[np.where(turned, complement(codes), 0)], as_written)
    bim = plink.bim[rows.tolist()].with_columns(
        pl.Series("chrom", got.chromosome[rows].tolist()),
        pl.Series("pos", got.position[rows]),
        *(pl.Series(c, v.tolist()) for c, v in named.items()),
    )
    return replace(plink, bim=bim), rows


def impute_set(
    bed: Path,
    reference: Path,
    out: Path,
    *,
    tool: str = "beagle",
    genetic_map: Path | None = None,
    threads: int = 1,
    seed: int = 0,
    chain: Path | None = None,
) -> Imputed:
    """Fill the missing calls of a PLINK set and write it as `out.bed`, `.bim`, `.fam`; people and SNPs are unchanged,
    except that SNPs without a place in the reference's build are left out.

    Args:
        bed: the set, in the reference's build unless there is a chain.
        reference: phased VCF (.gz) of one or more chromosomes; SNPs elsewhere keep their calls.
        chain: chain file to the reference's build.

    Raises:
        DataError: the set or the reference is at fault, they share no SNP, or the tool fails.
        UsageError: the tool is not installed, or `out` is the set itself.
    """
    if out.with_name(f"{out.name}.bed").resolve() == bed.resolve():
        raise UsageError(f"{out} is the set that is imputed; give the result another name")
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
    # One SNP a place, in order of place, as a VCF wants them.
    at = np.flatnonzero(aligned.keep)
    at = at[np.unique(key[at], return_index=True)[1]]
    if not len(at):
        raise DataError(
            Fault(
                file=bed.name,
                expected=f"SNPs that {reference.name} holds",
                found="none",
                fix="Is the set in the reference's build?",
            )
        )
    letters = np.array(["A", "C", "G", "T"])
    rows = aligned.index[at]
    sites = pl.DataFrame(
        {
            "chrom": plink.bim["chrom"].to_numpy()[at],
            "pos": plink.bim["pos"].to_numpy()[at],
            "id": [f"s{i}" for i in at],
            "ref": letters[known.other[rows]],
            "alt": letters[known.counted[rows]],
        }
    )
    swap = aligned.swap[at]
    copies = np.where(swap[None, :] & (matrix[:, at] != 3), 2 - np.minimum(matrix[:, at], 2), matrix[:, at]).astype(
        np.uint8
    )
    with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as scratch:
        work = Path(scratch)
        # Names of people stay here: the tools get numbers.
        write_vcf(work / "target.vcf.gz", [f"p{i}" for i in range(plink.n_people)], sites, copies)
        result = impute_vcf(
            work / "target.vcf.gz", reference, work, tool=tool, genetic_map=genetic_map, threads=threads, seed=seed
        )
    place = position_keys(result.sites["chrom"], result.sites["pos"].to_numpy()) * 64
    place += allele_codes(result.sites["alt"]).astype(np.int64) * 8 + allele_codes(result.sites["ref"])
    wanted = known.key[rows] * 64 + known.counted[rows].astype(np.int64) * 8 + known.other[rows]
    order = np.argsort(place, kind="stable")
    found = np.minimum(np.searchsorted(place, wanted, sorter=order), len(place) - 1)
    column = order[found]
    held = place[column] == wanted
    filled = result.calls[:, column]
    filled = np.where(swap[None, :] & (filled != 3), 2 - np.minimum(filled, 2), filled)
    use = (matrix[:, at] == 3) & held[None, :]
    after = matrix.copy()
    after[:, at] = np.where(use, filled, matrix[:, at])
    write_set(out, plink.fam, plink.bim, iter([bed_rows(after)]))
    return Imputed(len(plink.bim), int(held.sum()), int((matrix == 3).sum()), int((after == 3).sum()))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m mrpipe.datasets.adni.genomic_impute SET.bed PANEL.vcf.gz OUT`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mrpipe.datasets.adni.genomic_impute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bed", type=Path, metavar="SET.bed", help="with its .bim and .fam beside it")
    parser.add_argument("reference", type=Path, metavar="PANEL.vcf.gz", help="phased reference panel")
    parser.add_argument("out", type=Path, metavar="OUT", help="writes OUT.bed, OUT.bim, OUT.fam")
    parser.add_argument("--tool", choices=TOOLS, default="beagle", help="Beagle, or minimac4 after phasing with Beagle")
    parser.add_argument("--map", type=Path, metavar="PATH", help="genetic map (Beagle's form, or pos, chr, cM)")
    parser.add_argument("--chain", type=Path, metavar="PATH", help="chain file to the panel's build")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = impute_set(
            args.bed,
            args.reference,
            args.out,
            tool=args.tool,
            genetic_map=args.map,
            threads=args.threads,
            seed=args.seed,
            chain=args.chain,
        )
    except MrpipeError as error:
        print(f"imputation: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"{args.out}: {done.n_snps} SNPs, {done.n_matched} of them in the panel; calls missing: {done.n_missing} "
        f"before, {done.n_left} after"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
