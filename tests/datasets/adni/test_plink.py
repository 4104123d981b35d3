"""PLINK files, quality control and LD pruning, compared with plink, bed-reader, closed forms and brute force."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.datasets.adni.genomic import qc as qc
from mrpipe.datasets.adni.genomic.inputs import find_sets
from mrpipe.datasets.adni.genomic.merge import transpose_packed
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError
from mrpipe.genetics import packing as genotypes
from mrpipe.keyed import generator
from tests.datasets.adni.plink_toy import AUTOSOMES, random_calls, require, run_plink, write_random

# --- PLINK files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 63, 64, 65])
def test_sets_round_trip_and_counts_match_the_matrix(n: int, tmp_path: Path) -> None:
    calls = random_calls(n, max(n, 1), 37, 0.2)
    opened = write_random(tmp_path / "s", calls)
    np.testing.assert_array_equal(plink.calls(opened), calls)
    chosen = generator(n, "people").random(n) < 0.7
    counts = plink.snp_counts(opened, chosen)
    for row, code in enumerate((2, 1, 0, 3)):
        np.testing.assert_array_equal(counts[row], (calls[chosen] == code).sum(axis=0))
    np.testing.assert_array_equal(plink.missing_per_person(opened), (calls == 3).sum(axis=1))
    some = np.flatnonzero(generator(n, "snps").random(37) < 0.4)
    np.testing.assert_array_equal(plink.calls(opened, some), calls[:, some])


def test_names_of_a_set_in_upper_case(tmp_path: Path) -> None:
    calls = random_calls(0, 10, 30)
    opened = write_random(tmp_path / "s", calls)
    for path in opened.files:
        path.rename(path.with_suffix(path.suffix.upper()))
    ((name, (bed,)),) = find_sets(tmp_path, AdniOptions())
    np.testing.assert_array_equal(plink.calls(plink.open_set(bed)), calls)
    assert name == "s"
    assert all(p.is_file() for p in plink.open_set(bed).files)


def test_calls_agree_with_bed_reader(tmp_path: Path) -> None:
    bed_reader = pytest.importorskip("bed_reader")
    calls = random_calls(0, 61, 200, 0.1)
    opened = write_random(tmp_path / "s", calls)
    theirs = bed_reader.open_bed(str(opened.bed), count_A1=True).read(dtype="int8")
    np.testing.assert_array_equal(np.where(theirs < 0, 3, theirs), plink.calls(opened))


@pytest.mark.parametrize("shape", [(4, 4), (9, 8), (61, 20), (5, 4096)])
def test_packed_transposition(shape: tuple[int, int]) -> None:
    n, p = shape
    calls = generator(1, "transpose", str(shape)).integers(0, 4, (n, p)).astype(np.uint8)
    by_snp = genotypes.pack(np.ascontiguousarray(calls.T))
    np.testing.assert_array_equal(transpose_packed(by_snp)[:n], genotypes.pack(calls))


def test_repacking_and_counts_of_the_store_encoding() -> None:
    calls = random_calls(2, 300, 101, 0.1)
    packed = genotypes.pack(calls)
    np.testing.assert_array_equal(genotypes.unpack_range(packed, 0, 101), calls)
    np.testing.assert_array_equal(genotypes.unpack_range(packed, 6, 43), calls[:, 6:43])
    kept = np.array([5, 0, 99, 100, 7])
    np.testing.assert_array_equal(genotypes.take_snps(packed, kept, block=4), genotypes.pack(calls[:, kept]))
    for n in (0, 1, 4, 98, 101):
        np.testing.assert_array_equal(genotypes.take_snps(packed, np.arange(n)), genotypes.pack(calls[:, :n]))
    mode = generator(3, "mode").integers(0, 3, 101).astype(np.uint8)
    filled = genotypes.fill_missing(packed.copy(), genotypes.pack(mode[None, :])[0])
    np.testing.assert_array_equal(
        genotypes.unpack_range(filled, 0, 101), np.where(calls == genotypes.MISSING, mode, calls)
    )
    counts = genotypes.call_counts(packed, 101, block=3)
    for code in range(4):
        np.testing.assert_array_equal(counts[code], (calls == code).sum(axis=0))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: p.with_suffix(".bim").unlink(), r"s\.bim: expected the \.bim file of s\.bed; found no such file"),
        (lambda p: p.write_bytes(b"\x00" + p.read_bytes()[1:]), r"expected a PLINK \.bed \(bytes 6c 1b\)"),
        (lambda p: p.write_bytes(b"\x6c\x1b\x00" + p.read_bytes()[3:]), "expected SNP-major order"),
        (lambda p: os.truncate(p, 20), r"bytes for 10 people and 30 SNPs; found 20 bytes"),
        (
            lambda p: p.with_suffix(".bim").write_text("".join(p.with_suffix(".bim").read_text().splitlines(True)[1:])),
            r"bytes for 10 people and 29 SNPs.*a \.bim that was filtered without its \.bed",
        ),
        (
            lambda p: p.with_suffix(".fam").write_text("0 i0 0 0 1\n"),
            r"s\.fam, line 1: expected 6 columns .* found 5 columns",
        ),
        (
            lambda p: p.with_suffix(".bim").write_text(p.with_suffix(".bim").read_text().replace("\t3000\t", "\tx\t")),
            r"s\.bim, column 'position', line 3: expected a whole number below 1000000000; found text of 1 characters",
        ),
        (lambda p: p.with_suffix(".fam").write_text(""), r"s\.fam: .*found an empty file"),
    ],
)
def test_errors_for_damaged_or_mismatched_sets(damage: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    opened = write_random(tmp_path / "s", random_calls(0, 10, 30))
    damage(opened.bed)
    with pytest.raises(DataError) as error:
        plink.open_set(opened.bed)
    assert re.search(expected, str(error.value)), str(error.value)


# --- quality control ----------------------------------------------------------------------------------------------


def test_quality_control_agrees_with_plink(tmp_path: Path) -> None:
    require("plink1.9")
    calls = random_calls(4, 120, 600, 0.03)
    rng = generator(4, "damage")
    calls[:6, rng.random(600) < 0.5] = 3
    calls[:, 40:60][rng.random((120, 20)) < 0.1] = 3
    # Only heterozygotes: violates Hardy-Weinberg equilibrium.
    calls[:, 100:110] = 1
    opened = write_random(tmp_path / "s", calls)
    got = qc.quality_control(opened, np.arange(600), mind=0.1, geno=0.05, hwe=1e-6, maf=0.05)
    run_plink(
        "--bfile",
        tmp_path / "s",
        "--mind",
        0.1,
        "--geno",
        0.05,
        "--hwe",
        1e-6,
        "--maf",
        0.05,
        "--make-bed",
        "--out",
        tmp_path / "t",
    )
    theirs = plink.open_set(tmp_path / "t.bed")
    assert theirs.bim["id"].to_list() == [f"rs{j}" for j in got.snps]
    assert theirs.fam["iid"].to_list() == [f"i{i}" for i in np.flatnonzero(got.people)]
    assert 0 < len(got.snps) < 560
    assert int(got.people.sum()) < 120


def test_exact_hardy_weinberg_against_enumeration() -> None:
    from math import comb, factorial

    def direct(het: int, a: int, b: int) -> float:
        n, na = het + a + b, 2 * a + het
        weight = {}
        for h in range(na % 2, min(na, 2 * n - na) + 1, 2):
            aa = (na - h) // 2
            weight[h] = 2**h * factorial(n) // (factorial(aa) * factorial(h) * factorial(n - aa - h)) / comb(2 * n, na)
        total = sum(weight.values())
        return sum(w for w in weight.values() if w <= weight[het] * (1 + 1e-9)) / total

    rng = generator(5, "hwe")
    het, hom1, hom2 = rng.integers(0, 30, (3, 200))
    got = qc.exact_hwe(het, hom1, hom2)
    expected = [direct(int(h), int(a), int(b)) for h, a, b in zip(het, hom1, hom2, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-9)


# --- LD pruning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.04])
@pytest.mark.parametrize("settings", [(50, 5, 0.1), (50, 5, 0.5), (13, 13, 0.2), (30, 1, 0.3), (5, 2, 0.05)])
def test_pruning_agrees_with_plink(settings: tuple[int, int, float], missing: float, tmp_path: Path) -> None:
    require("plink1.9")
    calls = random_calls(6, 150, 900, missing)
    chromosome = np.repeat([1, 2, 5], [400, 333, 167])
    write_random(tmp_path / "s", calls, chromosome)
    run_plink("--bfile", tmp_path / "s", "--indep-pairwise", *settings, "--out", tmp_path / "t")
    kept = genotypes.ld_prune(genotypes.pack(calls), chromosome, genotypes.LdOptions(*settings))
    assert [f"rs{j}" for j in kept] == (tmp_path / "t.prune.in").read_text().split()


@pytest.mark.parametrize("seed", range(4))
def test_pruning_leaves_no_pair_above_the_threshold_in_any_window(seed: int) -> None:
    calls = random_calls(seed, 90, 260, 0.03)
    chromosome = np.repeat(["1", "2"], [150, 110])
    options = genotypes.LdOptions(20, 4, 0.2)
    kept = genotypes.ld_prune(genotypes.pack(calls), chromosome, options)
    assert 3 not in kept
    x = np.where(calls == 3, np.nan, calls.astype(float))
    for first, last in ((0, 150), (150, 260)):
        for start in range(first, last, options.step):
            inside = [j for j in kept if start <= j < min(start + options.window, last)]
            for a, i in enumerate(inside):
                for j in inside[a + 1 :]:
                    both = ~np.isnan(x[:, i]) & ~np.isnan(x[:, j])
                    r = np.corrcoef(x[both, i], x[both, j])[0, 1]
                    assert not r * r > options.r2 * (1 + 1e-9)
    # Some SNPs are pruned, but not all.
    assert 20 < len(kept) < 200


@pytest.mark.real_data
def test_quality_control_and_pruning_of_hapmap_agree_with_plink(real_data_dir: Path, tmp_path: Path) -> None:
    require("plink1.9")
    prefix = real_data_dir / "genotypes" / "hapmap3_hg18"
    opened = plink.open_set(prefix.with_name("hapmap3_hg18.bed"))
    snps = np.flatnonzero(opened.bim["chrom"].is_in(AUTOSOMES).to_numpy())
    got = qc.quality_control(opened, snps, mind=0.1, geno=0.05, hwe=1e-6, maf=0.05)
    run_plink(
        "--bfile",
        prefix,
        "--autosome",
        "--mind",
        0.1,
        "--geno",
        0.05,
        "--hwe",
        1e-6,
        "--maf",
        0.05,
        "--indep-pairwise",
        50,
        5,
        0.02,
        "--make-bed",
        "--out",
        tmp_path / "t",
    )
    assert plink.open_set(tmp_path / "t.bed").bim["id"].to_list() == opened.bim["id"].to_numpy()[got.snps].tolist()
    packed = genotypes.pack(plink.calls(opened, got.snps))
    kept = genotypes.ld_prune(packed, opened.bim["chrom"].to_numpy()[got.snps], genotypes.LdOptions(50, 5, 0.02))
    assert opened.bim["id"].to_numpy()[got.snps[kept]].tolist() == (tmp_path / "t.prune.in").read_text().split()
