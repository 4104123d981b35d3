"""Lift-over and strands: known positions, the libraries, and a reference."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from mrpipe.datasets.adni.genomic import lift as lift
from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.datasets.adni.genomic import strand as strand
from mrpipe.errors import DataError
from tests.datasets.adni.plink_toy import AUTOSOMES, TOY_CHAIN


def test_lift_over_of_known_positions(toy_chain: Path) -> None:
    chain = lift.ChainFile(toy_chain)
    assert chain.builds() == ("hg18", "hg19")
    chromosome = np.array(["1", "1", "1", "1", "1", "2", "2", "9"])
    position = np.array([100, 400, 401, 501, 1500, 1, 100, 5])
    got = chain.lift(chromosome, position)
    # 401 lies in the gap of the best chain; a worse chain still covers it.
    assert got.found.tolist() == [True] * 7 + [False]
    assert got.position[:7].tolist() == [200, 500, 50401, 611, 51500, 159138663 - 1000, 159138663 - 1099]
    assert got.chromosome[:7].tolist() == ["1", "1", "1", "1", "1", "7", "7"]
    assert got.reversed[:7].tolist() == [False] * 5 + [True] * 2


def test_lift_over_is_that_of_the_libraries(toy_chain: Path) -> None:
    pyliftover = pytest.importorskip("pyliftover")
    theirs = pyliftover.LiftOver(str(toy_chain))
    chromosome, position = np.repeat(["1", "2"], 1100), np.tile(np.arange(1, 1101), 2)
    got = lift.ChainFile(toy_chain).lift(chromosome, position)
    for i in range(len(position)):
        answers = theirs.convert_coordinate(f"chr{chromosome[i]}", int(position[i]) - 1)
        mine = (
            (f"chr{got.chromosome[i]}", int(got.position[i]) - 1, "-" if got.reversed[i] else "+")
            if got.found[i]
            else None
        )
        assert mine == (tuple(answers[0][:3]) if answers else None)


@pytest.mark.parametrize("keep", [10, 100, 150, 200])
def test_a_chain_file_that_is_cut_short_is_refused(keep: int, tmp_path: Path) -> None:
    plain = tmp_path / "cut.chain"
    plain.write_text(TOY_CHAIN[:keep])
    with pytest.raises(DataError, match="chain"):
        lift.ChainFile(plain)
    packed = tmp_path / "cut.chain.gz"
    packed.write_bytes(gzip.compress(TOY_CHAIN.encode())[: keep // 2])
    with pytest.raises(DataError, match="complete chain file"):
        lift.ChainFile(packed)


@pytest.mark.real_data
def test_hapmap_lifts_to_the_places_that_the_reference_knows(real_data_dir: Path) -> None:
    """HapMap3 (957 people, 14,389 SNPs) from hg18; places of rs numbers in the 1000 Genomes reference of chr20."""
    folder = real_data_dir / "genotypes"
    opened = plink.open_set(folder / "hapmap3_hg18.bed")
    assert (opened.n_people, len(opened.bim)) == (957, 14389)
    chain = lift.ChainFile(folder / "NCBI36_to_GRCh37.chain.gz")
    assert chain.builds() == ("hg18", "hg19")
    got = chain.lift(opened.bim["chrom"].to_numpy().astype(str), opened.bim["pos"].to_numpy())
    assert int(got.found.sum()) == 14338
    reference = strand.read_reference(folder / "chr20_1-4Mb_reference_phased.vcf.gz", AUTOSOMES)
    place = dict(zip(reference.name.tolist(), reference.key.tolist(), strict=True))
    key = strand.position_keys(got.chromosome, got.position)
    shared = [(place[i], int(k)) for i, k, f in zip(opened.bim["id"], key, got.found, strict=True) if f and i in place]
    assert len(shared) >= 20
    assert all(a == b for a, b in shared)


# --- strands ------------------------------------------------------------------------------------------------------


def reference_of(*rows: tuple[int, str, str, float]) -> strand.KnownSnps:
    """Position, counted allele, other allele, frequency of the counted one."""
    key = np.array([10**9 + r[0] for r in rows])
    counted, other = (strand.allele_codes([r[k] for r in rows]) for k in (1, 2))
    return strand.KnownSnps(key, counted, other, np.array([r[3] for r in rows]), np.array([f"rs{r[0]}" for r in rows]))


@pytest.mark.parametrize(
    ("a1", "a2", "f", "keep", "swap", "turned", "reason"),
    [
        ("A", "G", 0.2, True, False, False, ""),
        ("G", "A", 0.8, True, True, False, ""),
        ("T", "C", 0.2, True, False, True, ""),
        ("C", "T", 0.8, True, True, True, ""),
        ("A", "C", 0.2, False, False, False, "other alleles"),
        ("A", "G", 0.6, False, False, False, "frequency differs"),
        ("0", "G", 0.0, True, False, False, ""),
        ("0", "C", 0.0, True, False, True, ""),
    ],
)
def test_strand_and_counted_allele_against_a_reference(
    a1: str, a2: str, f: float, keep: bool, swap: bool, turned: bool, reason: str
) -> None:
    reference = reference_of((5, "A", "G", 0.15))
    got = strand.align(reference.key, strand.allele_codes([a1]), strand.allele_codes([a2]), np.array([f]), reference)
    assert (bool(got.keep[0]), str(got.reason[0])) == (keep, reason)
    if keep:
        assert (bool(got.swap[0]), bool(got.turned[0])) == (swap, turned)


@pytest.mark.parametrize(
    ("f", "f_reference", "turned", "swap", "keep"),
    [
        (0.2, 0.25, False, False, True),
        (0.8, 0.25, True, True, True),
        (0.45, 0.45, False, False, False),
        (0.2, np.nan, False, False, False),
    ],
)
def test_ambiguous_snps_are_placed_by_frequency_or_dropped(
    f: float, f_reference: float, turned: bool, swap: bool, keep: bool
) -> None:
    """A/T: counted A on this strand; turned, the set's A is the other strand's T."""
    reference = reference_of((5, "A", "T", f_reference))
    got = strand.align(reference.key, strand.allele_codes(["A"]), strand.allele_codes(["T"]), np.array([f]), reference)
    assert bool(got.keep[0]) == keep
    if keep:
        assert (bool(got.turned[0]), bool(got.swap[0])) == (turned, swap)


def test_without_frequencies_ambiguous_snps_are_dropped_and_no_frequency_counts() -> None:
    reference = reference_of((5, "A", "T", 0.2), (9, "A", "G", 0.1))
    codes = strand.allele_codes(["A", "A"]), strand.allele_codes(["T", "G"])
    got = strand.align(reference.key, *codes, np.array([0.2, 0.9]), reference, use_frequency=False)
    assert got.keep.tolist() == [False, True]
    assert got.reason.tolist() == ["ambiguous strand", ""]


def test_multiallelic_places_are_tried_row_by_row() -> None:
    reference = reference_of((5, "C", "G", 0.1), (5, "A", "G", 0.3))
    got = strand.align(
        np.array([10**9 + 5]), strand.allele_codes(["A"]), strand.allele_codes(["G"]), np.array([0.3]), reference
    )
    assert got.keep.all()
    assert got.index.tolist() == [1]
