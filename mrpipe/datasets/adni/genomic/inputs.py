"""Locate and validate the genotype inputs: PLINK sets and their builds, chain file, reference panel."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.files import shown
from mrpipe.datasets.adni.genomic.lift import LENGTHS, ChainFile, chromosome_length
from mrpipe.datasets.adni.genomic.plink import PlinkSet, open_set, open_vcf
from mrpipe.datasets.adni.genomic.strand import KnownSnps
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError
from mrpipe.forms import recognise
from mrpipe.genetics.vcf import Conversion

MENU = "Download > Genetic Data > ADNI GWAS (PLINK sets)"
CHAIN_SOURCE = "UCSC's goldenPath (hg18/liftOver/hg18ToHg19.over.chain.gz) or Ensembl's assembly_mapping"
# PLINK sets released by ADNI, in the order of the phases. Other sets follow, sorted by name.
KNOWN_SETS = (
    "ADNI_cluster_01_forward_757LONI",
    "ADNI_GO_2_Forward_Bin",
    "ADNI_GO2_GWAS_2nd_orig_BIN",
    "ADNI3_PLINK_Final",
    "ADNI3_PLINK_FINAL_2nd",
)

_ENDING = re.compile(r"\.(?:bed|vcf|vcf\.b?gz|bcf)$", re.IGNORECASE)
_CHUNK = re.compile(r"(?<![a-z0-9])chr(om|omosome)?[._-]?(\d{1,2}|x|y|mt?)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class GenomicInputs:
    """The opened inputs.

    Attributes:
        sets: PLINK sets in order of precedence.
        builds: genome build of each set.
        chain: chain file, None if every set is already in the target build.
        reference: path of the reference panel, None if there is none.
    """

    sets: tuple[PlinkSet, ...]
    builds: tuple[str, ...]
    chain: ChainFile | None
    reference: Path | None
    files: tuple[Path, ...]


def find_sets(raw: Path, options: AdniOptions) -> list[tuple[str, list[Path]]]:
    """Names and files of the sets: a .bed, or VCF files that differ in the chromosome only; ADNI's sets first."""
    folder = raw / options.genotypes
    sets: dict[tuple[Path, str], tuple[str, list[Path]]] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not (ending := _ENDING.search(path.name)) or not path.is_file():
            continue
        name, pattern = path.name[: ending.start()], path.name
        if ending[0].lower() != ".bed":
            if path == raw / options.reference or "sites" in name:
                continue
            if chunk := _CHUNK.search(name):
                pattern = f"{name[: chunk.start()]}*{name[chunk.end() :]}{ending[0]}"
                name = name[: chunk.start()].strip("._- ") or path.parent.name
        sets.setdefault((path.parent, pattern), (name, []))[1].append(path)
    order = {name.lower(): i for i, name in enumerate(KNOWN_SETS)}
    return sorted(sets.values(), key=lambda s: (order.get(s[0].lower(), len(order)), s[0], s[1]))


# IID of a participant: PTID, possibly after a number or the same PTID (as converted from VCF), in any case or padding.
_IID = r"^(?:(.+)_)?(\d{1,3}[_-]?S[_-]?\d{1,5})$"


def rids_of(fam: pl.DataFrame) -> pl.Series:
    """RID of each person of a .fam (Int32), null if neither IID nor FID is a PTID.

    Recognised are PTIDs (SSS_S_RRRR) in any case and padding, after a number (0_SSS_S_RRRR) or doubled.
    """

    def rid(column: str) -> pl.Expr:
        parts = pl.col(column).str.to_uppercase().str.extract_groups(_IID).struct
        prefix, ptid = parts.field("1"), parts.field("2")
        known = prefix.is_null() | prefix.str.contains(r"^\d+$") | (prefix == ptid)
        return pl.when(known).then(ptid.str.extract(r"(\d+)$").cast(pl.Int32))

    return fam.select(rid=pl.coalesce(rid("iid"), rid("fid")))["rid"]


def source_build(name: str, patterns: Sequence[str]) -> str | None:
    """Genome build of a set, from the first matching `pattern=build`; None if no pattern matches."""
    for pattern in patterns:
        glob, equals, build = pattern.partition("=")
        if not equals or build not in LENGTHS:
            raise UsageError(f"option source_builds: expected pattern=build ({', '.join(LENGTHS)}), got {pattern!r}")
        if fnmatch(name.lower(), glob.lower()):
            return build
    return None


def _one(raw: Path, option: str, patterns: Sequence[str], kind: str, faults: FaultCollector) -> Path | None:
    """The file given by an option, or the only match in the export. A missing or ambiguous file adds an error."""
    if option:
        path = raw / option
        if not path.is_file():
            faults.add(Fault(file=shown(raw, path), expected=kind, found="no such file"))
            return None
        return path
    found = sorted({p for pattern in patterns for p in raw.rglob(pattern) if p.is_file()})
    if len(found) > 1:
        names, fix = ", ".join(shown(raw, p) for p in found), "Set the intended one in the options."
        faults.add(Fault(file=raw.name, expected=f"one {kind}", found=names, fix=fix))
        return None
    return found[0] if found else None


def _positions_fit(plink: PlinkSet, build: str, file: str) -> Fault | None:
    """Return an error if the header, or a position beyond the end of its chromosome, indicates another build."""
    fix = "Set the build of this set with the option source_builds."
    if plink.build not in (None, build):
        found = f"{plink.build}, by the lengths of its chromosomes"
        return Fault(file=file, column="contig", expected=f"positions in {build}", found=found, fix=fix)
    for chromosome, position in plink.bim.group_by("chrom").agg(pl.col("pos").max()).sort("chrom").iter_rows():
        length = chromosome_length(build, chromosome)
        if length is not None and position > length:
            expected = f"positions in {build}, where chromosome {chromosome} ends at {length}"
            found = f"position {position}"
            return Fault(file=file, column="position", expected=expected, found=found, fix=fix)
    return None


def _alleles_are_nucleotides(plink: PlinkSet, file: str) -> Fault | None:
    """Return an error if a tenth of the SNPs has alleles of another coding."""
    for letters, coding, fix in (
        ("1234", "1, 2, 3 and 4", "Recode them: plink --bfile NAME --alleleACGT --make-bed --out NEW."),
        ("B", "A and B (Illumina)", "They name probes: recode them with plink --update-alleles FILE of the chip."),
    ):
        share = plink.bim.select(pl.any_horizontal(pl.col("a1", "a2").is_in(list(letters)))).to_series().mean()
        if isinstance(share, float) and share > 0.1:
            found = f"alleles {coding} in {share:.0%} of the SNPs"
            return Fault(file=file, column="a1", expected="alleles A, C, G and T", found=found, fix=fix)
    return None


def open_inputs(raw: Path, options: AdniOptions, scratch: Path, *, calls: bool = True) -> GenomicInputs:
    """Open every set and the chain file and check that they are consistent.

    Args:
        scratch: folder for converted VCF files; it must exist as long as calls are read.
        calls: convert the calls of VCF files.

    Raises:
        DataError: lists all errors, such as damaged sets, a missing or wrong chain file, or positions in another build.
    """
    faults = FaultCollector()
    found_sets = find_sets(raw, options)
    if not found_sets:
        where, folder = options.genotypes or raw.name, raw / options.genotypes
        forms = {f.advice for p in folder.rglob("*") if (f := recognise(p)) and "genotypes" in f.name}
        fix = " ".join([*sorted(forms), f"Download them from LONI: {MENU}."])
        faults.add(Fault(file=where, expected="PLINK sets (.bed, .bim, .fam) or VCF", found="none", fix=fix))
    sets: list[PlinkSet] = []
    builds: list[str] = []
    # `maf` applies to all sets together.
    conversion = Conversion(options.vcf_r2, options.maf / 2, options.vcf_calls, options.vcf_uncertainty, calls)
    for number, (name, paths) in enumerate(found_sets):
        names = [shown(raw, p) for p in paths]
        try:
            if paths[0].suffix.lower() == ".bed":
                plink = open_set(paths[0], shown_as=names[0])
            else:
                (scratch / str(number)).mkdir()
                plink = open_vcf(paths, scratch / str(number) / name, conversion, names)
        except DataError as error:
            faults.absorb(error)
            continue
        build = source_build(plink.name, options.source_builds)
        if build is None:
            faults.add(Fault(file=names[0], expected="a genome build in source_builds", found="no matching pattern"))
            continue
        file = re.sub(r"(?i)\.bed$", ".bim", names[0])
        faults.add(_positions_fit(plink, build, file))
        faults.add(_alleles_are_nucleotides(plink, file))
        sets.append(plink)
        builds.append(build)
    names = [name for name, _ in found_sets]
    for name in sorted({n for n in names if names.count(n) > 1}):
        fix = "Remove the copies."
        faults.add(Fault(file=name, expected="one set with this name", found="several", fix=fix))
    other = sorted({b for b in builds if b != options.target_build})
    lifted = bool(other or options.chain)
    chain_path = _one(raw, options.chain, ("*.chain", "*.chain.gz"), "chain file", faults) if lifted else None
    chain = None if chain_path is None else faults.attempt(ChainFile, chain_path, shown_as=shown(raw, chain_path))
    if chain_path is None and other and not faults.faults:
        lift = ", ".join(p.name for p, b in zip(sets, builds, strict=True) if b != options.target_build)
        expected = f"a chain file from {other[0]} to {options.target_build} for {lift}"
        fix = f"Download it from {CHAIN_SOURCE} into the export, or set the option chain."
        faults.add(Fault(file=raw.name, expected=expected, found="none", fix=fix))
    if chain is not None and other:
        required = (other[0], options.target_build)
        if len(other) > 1:
            expected, fix = "one build other than the target build", "Lift over the remaining sets beforehand."
            faults.add(Fault(file=chain.shown_as, expected=expected, found=", ".join(other), fix=fix))
        elif any(b is not None and b != r for b, r in zip(chain.builds(), required, strict=True)):
            found = f"{' to '.join(b or 'unknown' for b in chain.builds())} (by chromosome lengths)"
            fix = f"Use {required[0]}To{required[1].capitalize()} from {CHAIN_SOURCE}, or correct source_builds."
            expected = f"a chain from {required[0]} to {required[1]}"
            faults.add(Fault(file=chain.shown_as, expected=expected, found=found, fix=fix))
    patterns = ("*.legend", "*.legend.gz", "*sites*.vcf", "*sites*.vcf.gz")
    reference = _one(raw, options.reference, patterns, "reference", faults)
    faults.raise_if_any()
    inside = [f for s in sets for f in s.files]
    inside += [p for p in (chain_path, reference) if p is not None and p.is_relative_to(raw)]
    files = tuple(p for p in inside if p.is_relative_to(raw))
    return GenomicInputs(tuple(sets), tuple(builds), chain, reference, files)


def require_consistent(
    file: str,
    ids: NDArray[np.str_],
    key: NDArray[np.int64],
    frequency: NDArray[np.float64],
    known: KnownSnps,
    index: NDArray[np.int64],
) -> None:
    """Check that the positions and allele frequencies of a set resemble those of the reference or preceding sets.

    Args:
        ids, key, frequency: (n,) names, positions (`position_keys`) and frequencies of the counted alleles of the set.
        index: (n,) rows in `known`, −1 if absent.

    Raises:
        DataError: of at least 50 shared SNPs, fewer than half of the rs numbers have the same position, so that one of
            the tables is in another build, or the frequencies are on average closer to those of the other allele.
    """
    a = pl.DataFrame({"id": ids, "key": key}).filter(pl.col("id").str.starts_with("rs")).unique("id", keep="none")
    b = pl.DataFrame({"id": known.name, "known": known.key}).unique("id", keep="none")
    joined = a.join(b, on="id", how="inner")
    same = int((joined["key"] == joined["known"]).sum())
    if len(joined) >= 50 and same < 0.5 * len(joined):
        expected = "the same positions as the reference and the preceding sets for shared rs numbers"
        found = f"{same} of {len(joined)} agree"
        fix = "Check source_builds for this set and the build of the reference."
        raise DataError(Fault(file=file, column="position", expected=expected, found=found, fix=fix))
    theirs = np.append(known.frequency, np.nan)[index]
    f, theirs = frequency[np.isfinite(theirs)], theirs[np.isfinite(theirs)]
    if len(f) >= 50 and np.abs(f - theirs).mean() > np.abs(1 - f - theirs).mean():
        expected = "alleles with about the frequencies of the reference and the preceding sets"
        found = f"on average those of the other allele ({len(f)} SNPs)"
        fix = "The reference gives the frequency of REF, or its alleles or those of the set are exchanged."
        raise DataError(Fault(file=file, column="a1", expected=expected, found=found, fix=fix))
