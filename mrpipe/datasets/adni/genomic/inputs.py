"""Locate and validate the genotype inputs: PLINK sets and their builds, chain file, reference panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic.lift import LENGTHS, ChainFile, chromosome_length
from mrpipe.datasets.adni.genomic.plink import PlinkSet, open_set
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError

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


def resolve(raw: Path, path: str) -> Path:
    """Resolve a path option: absolute, or relative to the export folder."""
    return Path(path) if Path(path).is_absolute() else raw / path


def find_beds(raw: Path, options: AdniOptions) -> list[Path]:
    """The .bed files, ADNI's released sets first."""
    folder = resolve(raw, options.genotypes) if options.genotypes else raw
    order = {name.lower(): i for i, name in enumerate(KNOWN_SETS)}
    return sorted(folder.rglob("*.bed"), key=lambda p: (order.get(p.stem.lower(), len(order)), p.stem, str(p)))


def shown(raw: Path, path: Path) -> str:
    return path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.name


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
        path = resolve(raw, option)
        if not path.is_file():
            faults.add(Fault(file=shown(raw, path), expected=kind, found="no such file"))
            return None
        return path
    found = sorted({p for pattern in patterns for p in raw.rglob(pattern) if p.is_file()})
    if len(found) > 1:
        names = ", ".join(shown(raw, p) for p in found)
        faults.add(
            Fault(file=raw.name, expected=f"one {kind}", found=names, fix="Set the intended one in the options.")
        )
        return None
    return found[0] if found else None


def _positions_fit(plink: PlinkSet, build: str, name: str) -> Fault | None:
    """Return an error if a position is beyond the end of its chromosome, which indicates another build."""
    longest = plink.bim.group_by("chrom").agg(pl.col("pos").max()).sort("chrom")
    for chromosome, position in longest.iter_rows():
        length = chromosome_length(build, chromosome)
        if length is not None and position > length:
            return Fault(
                file=f"{name}.bim",
                column="position",
                expected=f"positions in {build}, where chromosome {chromosome} ends at {length}",
                found=f"position {position}",
                fix="Set the build of this set with the option source_builds.",
            )
    return None


def open_inputs(raw: Path, options: AdniOptions) -> GenomicInputs:
    """Open every set and the chain file and check that they are consistent.

    Raises:
        DataError: lists all errors, such as damaged sets, a missing or wrong chain file, or positions in another build.
    """
    faults = FaultCollector()
    beds = find_beds(raw, options)
    if not beds:
        faults.add(
            Fault(
                file=options.genotypes or raw.name,
                expected="PLINK sets (.bed, .bim, .fam)",
                found="none",
                fix=f"Download them from LONI: {MENU}.",
            )
        )
    sets: list[PlinkSet] = []
    builds: list[str] = []
    for bed in beds:
        try:
            plink = open_set(bed, shown_as=shown(raw, bed))
        except DataError as error:
            faults.absorb(error)
            continue
        build = source_build(plink.name, options.source_builds)
        if build is None:
            faults.add(
                Fault(file=shown(raw, bed), expected="a genome build in source_builds", found="no matching pattern")
            )
            continue
        faults.add(_positions_fit(plink, build, shown(raw, bed).removesuffix(".bed")))
        sets.append(plink)
        builds.append(build)
    names = [p.stem for p in beds]
    for name in sorted({n for n in names if names.count(n) > 1}):
        faults.add(
            Fault(file=f"{name}.bed", expected="one set with this name", found="several", fix="Remove the copies.")
        )
    other = sorted({b for b in builds if b != options.target_build})
    chain_path = (
        _one(raw, options.chain, ("*.chain", "*.chain.gz"), "chain file", faults) if other or options.chain else None
    )
    chain = None
    if chain_path is not None:
        try:
            chain = ChainFile(chain_path, shown_as=shown(raw, chain_path))
        except DataError as error:
            faults.absorb(error)
    elif other and not faults.faults:
        names_to_lift = ", ".join(p.name for p, b in zip(sets, builds, strict=True) if b != options.target_build)
        faults.add(
            Fault(
                file=raw.name,
                expected=f"a chain file from {other[0]} to {options.target_build} for {names_to_lift}",
                found="none",
                fix=f"Download it from {CHAIN_SOURCE} into the export, or set the option chain.",
            )
        )
    if chain is not None and other:
        required = (other[0], options.target_build)
        if len(other) > 1:
            faults.add(
                Fault(
                    file=chain.shown_as,
                    expected="one build other than the target build",
                    found=", ".join(other),
                    fix="Lift over the remaining sets beforehand.",
                )
            )
        elif any(b is not None and b != r for b, r in zip(chain.builds(), required, strict=True)):
            found = " to ".join(b or "unknown" for b in chain.builds())
            faults.add(
                Fault(
                    file=chain.shown_as,
                    expected=f"a chain from {required[0]} to {required[1]}",
                    found=f"{found} (by chromosome lengths)",
                    fix=f"Use {required[0]}To{required[1].capitalize()} from {CHAIN_SOURCE}, or correct source_builds.",
                )
            )
    reference = _one(
        raw, options.reference, ("*.legend", "*.legend.gz", "*sites*.vcf", "*sites*.vcf.gz"), "reference", faults
    )
    faults.raise_if_any()
    inside = [f for s in sets for f in s.files]
    inside += [p for p in (chain_path, reference) if p is not None and p.is_relative_to(raw)]
    files = tuple(p for p in inside if p.is_relative_to(raw))
    return GenomicInputs(tuple(sets), tuple(builds), chain, reference, files)


def require_same_build(
    name: str,
    ids: NDArray[np.str_],
    key: NDArray[np.int64],
    known_ids: NDArray[np.str_],
    known_key: NDArray[np.int64],
    source: str,
    *,
    least: int = 50,
    agree: float = 0.5,
) -> tuple[int, int]:
    """Check that rs numbers shared by two tables have the same positions; returns (number shared, number that agree).

    Raises:
        DataError: at least `least` rs numbers are shared and fewer than a fraction `agree` of them agree, so one of
            the tables is in another build.
    """
    a = pl.DataFrame({"id": ids, "key": key}).filter(pl.col("id").str.starts_with("rs")).unique("id", keep="none")
    b = pl.DataFrame({"id": known_ids, "known": known_key}).unique("id", keep="none")
    joined = a.join(b, on="id", how="inner")
    same = int((joined["key"] == joined["known"]).sum())
    if len(joined) >= least and same < agree * len(joined):
        raise DataError(
            Fault(
                file=f"{name}.bim",
                column="position",
                expected=f"the same positions as {source} for shared rs numbers",
                found=f"{same} of {len(joined)} agree",
                fix="Check source_builds for this set and the build of the reference panel.",
            )
        )
    return len(joined), same
