"""Lift-over and strand alignment, compared with known positions, pyliftover and a reference panel."""

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
    # 401 is in a gap of the best chain and covered by a chain with a lower score.
    assert got.found.tolist() == [True] * 7 + [False]
    assert got.position[:7].tolist() == [200, 500, 50401, 611, 51500, 159138663 - 1000, 159138663 - 1099]
    assert got.chromosome[:7].tolist() == ["1", "1", "1", "1", "1", "7", "7"]
    assert got.reversed[:7].tolist() == [False] * 5 + [True] * 2


def test_lift_over_agrees_with_pyliftover(toy_chain: Path) -> None:
    pyliftover = pytest.importorskip("pyliftover")
    theirs = pyliftover.LiftOver(str(toy_chain))
    chromosome, position = np.repeat(["1", "2"], 1100), np.tile(np.arange(1, 1101), 2)
    got = lift.ChainFile(toy_chain).lift(chromosome, position)
    for i in range(len(position)):
        answers = theirs.convert_coordinate(f"chr{chromosome[i]}", int(position[i]) - 1)
        ours = (
            (f"chr{got.chromosome[i]}", int(got.position[i]) - 1, "-" if got.reversed[i] else "+")
            if got.found[i]
            else None
        )
        assert ours == (tuple(answers[0][:3]) if answers else None)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("999 1000", "999 1x00", "line 1: expected the numbers of a chain"),
        ("249250621", "99999999999999999999999", "line 1: expected the numbers of a chain"),
        ("301\t100\t110", "301\t-100\t110", "line 2: expected the numbers of a chain"),
        ("301\t100\t110", "301\t100", "line 2: expected the numbers of a chain"),
        ("159138663", "63", "line 5: expected the numbers of a chain"),
        ("+ 99 1000", "+ -1 1000", "line 1: expected the numbers of a chain"),
        ("chr7", "chr\u00e9", "line 5: expected text in ASCII; found byte 0xc3"),
    ],
)
def test_an_invalid_chain_file_is_rejected(old: str, new: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.chain"
    text = TOY_CHAIN.replace("+ 99 1000", "+ 999 1000") if old == "999 1000" else TOY_CHAIN
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=expected):
        lift.ChainFile(path)


@pytest.mark.parametrize("keep", [10, 100, 150, 200])
def test_a_truncated_chain_file_is_rejected(keep: int, tmp_path: Path) -> None:
    plain = tmp_path / "cut.chain"
    plain.write_text(TOY_CHAIN[:keep])
    with pytest.raises(DataError, match="chain"):
        lift.ChainFile(plain)
    packed = tmp_path / "cut.chain.gz"
    packed.write_bytes(gzip.compress(TOY_CHAIN.encode())[: keep // 2])
    with pytest.raises(DataError, match="complete chain file"):
        lift.ChainFile(packed)


@pytest.mark.real_data
def test_hapmap_is_lifted_over_to_the_positions_of_the_reference(real_data_dir: Path) -> None:
    """Lift HapMap3 (957 people, 14,389 SNPs) from hg18 and compare positions with 1000 Genomes (chr20)."""
    folder = real_data_dir / "genotypes"
    opened = plink.open_set(folder / "hapmap3_hg18.bed")
    assert (opened.n_people, len(opened.bim)) == (957, 14389)
    chain = lift.ChainFile(folder / "NCBI36_to_GRCh37.chain.gz")
    assert chain.builds() == ("hg18", "hg19")
    got = chain.lift(opened.bim["chrom"].to_numpy().astype(str), opened.bim["pos"].to_numpy())
    assert int(got.found.sum()) == 14338
    reference = strand.read_reference(folder / "chr20_1-4Mb_reference_phased.vcf.gz", AUTOSOMES)
    known = dict(zip(reference.name.tolist(), reference.key.tolist(), strict=True))
    key = strand.position_keys(got.chromosome, got.position)
    shared = [(known[i], int(k)) for i, k, f in zip(opened.bim["id"], key, got.found, strict=True) if f and i in known]
    assert len(shared) >= 20
    assert all(a == b for a, b in shared)


# --- strands ------------------------------------------------------------------------------------------------------


def reference_of(*rows: tuple[int, str, str, float]) -> strand.KnownSnps:
    """Reference of rows (position, counted allele, other allele, frequency of the counted allele)."""
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
def test_strand_and_counted_allele_follow_the_reference(
    a1: str, a2: str, f: float, keep: bool, swap: bool, turned: bool, reason: str
) -> None:
    reference = reference_of((5, "A", "G", 0.15))
    got = strand.align(reference.key, strand.allele_codes([a1]), strand.allele_codes([a2]), np.array([f]), reference)
    assert (bool(got.keep[0]), str(got.reason[0])) == (keep, reason)
    if keep:
        assert (bool(got.swap[0]), bool(got.turned[0])) == (swap, turned)


@pytest.mark.parametrize(
    ("f", "f_reference", "reason"),
    [
        (0.2, 0.25, ""),
        (0.45, 0.35, ""),
        # A SNP of the other strand, which is not flipped.
        (0.8, 0.25, "ambiguous strand"),
        (0.55, 0.38, "ambiguous strand"),
        # The frequency of the reference decides, not that of the set.
        (0.25, 0.45, "ambiguous strand"),
        (0.2, np.nan, "ambiguous strand"),
        (np.nan, 0.2, "ambiguous strand"),
        (0.05, 0.3, "frequency differs"),
    ],
)
def test_ambiguous_snps_are_never_flipped(f: float, f_reference: float, reason: str) -> None:
    reference = reference_of((5, "A", "T", f_reference))
    got = strand.align(reference.key, strand.allele_codes(["A"]), strand.allele_codes(["T"]), np.array([f]), reference)
    assert (bool(got.turned[0]), str(got.reason[0]), bool(got.keep[0])) == (False, reason, not reason)
    exchanged = strand.align(
        reference.key, strand.allele_codes(["T"]), strand.allele_codes(["A"]), np.array([1 - f]), reference
    )
    assert (str(exchanged.reason[0]), bool(exchanged.swap[0])) == (reason, True)


def test_ambiguous_snps_are_dropped_if_frequencies_are_not_used() -> None:
    reference = reference_of((5, "A", "T", 0.2), (9, "A", "G", 0.1))
    codes = strand.allele_codes(["A", "A"]), strand.allele_codes(["T", "G"])
    got = strand.align(reference.key, *codes, np.array([0.2, 0.9]), reference, use_frequency=False)
    assert got.keep.tolist() == [False, True]
    assert got.reason.tolist() == ["ambiguous strand", ""]


@pytest.mark.parametrize(("n_people", "keep"), [(5, True), (100, False)])
def test_frequencies_of_few_people_may_differ_by_chance(n_people: int, keep: bool) -> None:
    reference = reference_of((5, "A", "G", 0.3))
    codes = strand.allele_codes(["A"]), strand.allele_codes(["G"])
    got = strand.align(reference.key, *codes, np.array([0.55]), reference, n_people=n_people)
    assert bool(got.keep[0]) == keep


def test_multiallelic_sites_are_matched_row_by_row() -> None:
    reference = reference_of((5, "C", "G", 0.1), (5, "A", "G", 0.3))
    got = strand.align(
        np.array([10**9 + 5]), strand.allele_codes(["A"]), strand.allele_codes(["G"]), np.array([0.3]), reference
    )
    assert got.keep.all()
    assert got.index.tolist() == [1]
