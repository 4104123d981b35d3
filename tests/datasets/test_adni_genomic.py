"""The genotype path against plink and other libraries where they are installed, known positions, and brute force."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import mrpipe
from mrpipe import genotypes
from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni import genomic_lift as lift
from mrpipe.datasets.adni import genomic_plink as plink
from mrpipe.datasets.adni import genomic_qc as qc
from mrpipe.datasets.adni import genomic_strand as strand
from mrpipe.datasets.adni.genomic_merge import transpose_packed
from mrpipe.errors import DataError
from mrpipe.keyed import generator
from mrpipe.layout import truth_folder
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.stages.simulate import simulate
from mrpipe.transforms import fit

# No threshold and no frequency: the store's SNPs depend on nobody's genotypes.
BLIND = {"geno": 1.0, "hwe": 0.0, "maf": 0.0, "mind": 1.0, "frequency_check": False}
AUTOSOMES = tuple(str(c) for c in range(1, 23))


def random_calls(seed: int, n: int, p: int, missing: float = 0.05) -> NDArray[np.uint8]:
    """(n, p) copies with neighbours in LD; some SNPs without variance."""
    rng = generator(seed, "random calls")
    f = rng.uniform(0.02, 0.5, p)
    z = rng.standard_normal((2, n, p))
    for j in range(1, p):
        if j % 8:
            z[:, :, j] = 0.9 * z[:, :, j - 1] + np.sqrt(1 - 0.81) * z[:, :, j]
    calls = (np.argsort(np.argsort(z, axis=1), axis=1) < f * n).sum(axis=0).astype(np.uint8)
    calls[:, 3] = 0
    calls[rng.random((n, p)) < missing] = 3
    return calls


def write_random(prefix: Path, calls: NDArray[np.uint8], chromosome: NDArray[np.int64] | None = None) -> plink.PlinkSet:
    n, p = calls.shape
    chromosome = np.ones(p, dtype=np.int64) if chromosome is None else chromosome
    fam = pl.DataFrame(
        {
            "fid": ["0"] * n,
            "iid": [f"i{i}" for i in range(n)],
            "father": ["0"] * n,
            "mother": ["0"] * n,
            "sex": ["1"] * n,
        }
    )
    bim = pl.DataFrame(
        {
            "chrom": chromosome.astype(str),
            "id": [f"rs{j}" for j in range(p)],
            "pos": np.arange(p) * 1000 + 1000,
            "a1": ["A"] * p,
            "a2": ["G"] * p,
        }
    )
    plink.write_set(prefix, fam, bim, iter([plink.bed_rows(calls)]))
    return plink.open_set(prefix.with_name(prefix.name + ".bed"))


def require(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def run_plink(*arguments: object) -> None:
    program = require("plink1.9")
    subprocess.run([program, "--allow-no-sex", *map(str, arguments)], check=True, capture_output=True)


# --- PLINK files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 63, 64, 65])
def test_sets_round_trip_and_counts_are_those_of_the_matrix(n: int, tmp_path: Path) -> None:
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


def test_bed_reader_reads_the_same(tmp_path: Path) -> None:
    bed_reader = pytest.importorskip("bed_reader")
    calls = random_calls(0, 61, 200, 0.1)
    opened = write_random(tmp_path / "s", calls)
    theirs = bed_reader.open_bed(str(opened.bed), count_A1=True).read(dtype="int8")
    np.testing.assert_array_equal(np.where(theirs < 0, 3, theirs), plink.calls(opened))


@pytest.mark.parametrize("shape", [(4, 4), (9, 8), (61, 20), (5, 4096)])
def test_packed_transposition_is_a_transposition(shape: tuple[int, int]) -> None:
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
        (lambda p: p.with_suffix(".bim").unlink(), r"s\.bim: expected the \.bim beside s\.bed; found no such file"),
        (lambda p: p.write_bytes(b"\x00" + p.read_bytes()[1:]), r"expected a PLINK \.bed \(bytes 6c 1b\)"),
        (lambda p: p.write_bytes(b"\x6c\x1b\x00" + p.read_bytes()[3:]), "expected SNP-major order"),
        (lambda p: os.truncate(p, 20), r"bytes for 10 people and 30 SNPs; found 20 bytes"),
        (
            lambda p: p.with_suffix(".bim").write_text("".join(p.with_suffix(".bim").read_text().splitlines(True)[1:])),
            r"bytes for 10 people and 29 SNPs.*was the \.bim filtered alone\?",
        ),
        (
            lambda p: p.with_suffix(".fam").write_text("0 i0 0 0 1\n"),
            r"s\.fam, row 1: expected 6 columns .* found 5 columns",
        ),
        (
            lambda p: p.with_suffix(".bim").write_text(p.with_suffix(".bim").read_text().replace("\t3000\t", "\tx\t")),
            r"s\.bim, column 'position', row 3: expected a whole number; found 'x'",
        ),
        (lambda p: p.with_suffix(".fam").write_text(""), r"s\.fam: .*found an empty file"),
    ],
)
def test_a_damaged_or_mismatched_set_says_what_is_wrong(
    damage: Callable[[Path], None], expected: str, tmp_path: Path
) -> None:
    opened = write_random(tmp_path / "s", random_calls(0, 10, 30))
    damage(opened.bed)
    with pytest.raises(DataError) as error:
        plink.open_set(opened.bed)
    assert re.search(expected, str(error.value)), str(error.value)


# --- quality control ----------------------------------------------------------------------------------------------


def test_quality_control_keeps_what_plink_keeps(tmp_path: Path) -> None:
    require("plink1.9")
    calls = random_calls(4, 120, 600, 0.03)
    rng = generator(4, "damage")
    calls[:6, rng.random(600) < 0.5] = 3
    calls[:, 40:60][rng.random((120, 20)) < 0.1] = 3
    # Heterozygotes only: out of Hardy-Weinberg.
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


def test_exact_hardy_weinberg_against_the_sum_over_all_tables() -> None:
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
def test_pruning_keeps_the_snps_that_plink_keeps(
    settings: tuple[int, int, float], missing: float, tmp_path: Path
) -> None:
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
    # Something had to go, and not everything.
    assert 20 < len(kept) < 200


# --- lift-over ----------------------------------------------------------------------------------------------------

TOY_CHAIN = """chain 1000 chr1 247249719 + 99 1000 chr1 249250621 + 199 1110 1
301\t100\t110
500

chain 900 chr2 242951149 + 0 100 chr7 159138663 - 1000 1100 2
100

chain 10 chr1 247249719 + 0 2000 chr1 249250621 + 50000 52000 3
2000
"""


@pytest.fixture
def toy_chain(tmp_path: Path) -> Path:
    path = tmp_path / "toy.chain.gz"
    path.write_bytes(gzip.compress(TOY_CHAIN.encode()))
    return path


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


@pytest.mark.real_data
def test_hapmap_prunes_and_passes_quality_control_as_in_plink(real_data_dir: Path, tmp_path: Path) -> None:
    require("plink1.9")
    prefix = real_data_dir / "genotypes" / "hapmap3_hg18"
    opened = plink.open_set(prefix.with_name("hapmap3_hg18.bed"))
    snps = np.flatnonzero(opened.bim["chrom"].is_in(AUTOSOMES).to_numpy())
    got = qc.quality_control(opened, snps, mind=0.1, geno=0.05, hwe=1e-6, maf=0.05)
    run_plink("--bfile", prefix, "--autosome", "--mind", 0.1, "--geno", 0.05, "--hwe", 1e-6, "--maf", 0.05,
              "--indep-pairwise", 50, 5, 0.02, "--make-bed", "--out", tmp_path / "t")  # fmt: skip
    assert plink.open_set(tmp_path / "t.bed").bim["id"].to_list() == opened.bim["id"].to_numpy()[got.snps].tolist()
    packed = genotypes.pack(plink.calls(opened, got.snps))
    kept = genotypes.ld_prune(packed, opened.bim["chrom"].to_numpy()[got.snps], genotypes.LdOptions(50, 5, 0.02))
    assert opened.bim["id"].to_numpy()[got.snps[kept]].tolist() == (tmp_path / "t.prune.in").read_text().split()


# --- strands ------------------------------------------------------------------------------------------------------


def reference_of(*rows: tuple[int, str, str, float]) -> strand.Reference:
    """Position, counted allele, other allele, frequency of the counted one."""
    key = np.array([10**9 + r[0] for r in rows])
    counted, other = (strand.allele_codes([r[k] for r in rows]) for k in (1, 2))
    return strand.Reference(key, counted, other, np.array([r[3] for r in rows]), np.array([f"rs{r[0]}" for r in rows]))


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


# --- the whole path -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated export with genotypes, and its store with every SNP in it."""
    folder = tmp_path_factory.mktemp("genomic")
    simulate(DATASET, folder / "raw", {"n_subjects": 160, "n_snps": 480, "images": False, "seed": 1})
    build(DATASET, folder / "raw", folder / "store", {"geno": 1.0, "hwe": 0.0, "maf": 0.0, "mind": 1.0})
    return folder


def test_the_store_holds_the_true_alleles_on_one_strand(built: Path) -> None:
    """Of each SNP: hg19 place, REF and ALT of the truth, and calls that agree between chips and with the .bed."""
    store = mrpipe.open_store(built / "store")
    rows = store.dictionary.filter(modality="genomic").sort("position")
    truth = pl.read_parquet(truth_folder(built / "raw") / "snps.parquet")
    part = rows["description"].str.extract_groups(r"^(\d+):(\d+):([ACGT]):([ACGT]) hg19$").struct.unnest()
    found = pl.DataFrame(
        {
            "id": rows["source_column"],
            "chromosome": part["1"].cast(pl.Int64),
            "position": part["2"].cast(pl.Int64),
            "ref": part["3"],
            "alt": part["4"],
        }
    )
    joined = found.join(truth, on="id", suffix="_true")
    assert len(joined) == len(found) > 300
    assert (joined["chromosome"] == joined["chromosome_true"]).all()
    assert (joined["position"] == joined["position_true"]).all()
    ambiguous = (joined["ref"] + joined["alt"]).is_in(["AT", "TA", "CG", "GC"])
    same = (joined["ref"] == joined["ref_true"]) & (joined["alt"] == joined["alt_true"])
    # What the reference lacks keeps the alleles of the first chip that has it.
    assert same.mean() > 0.95
    assert (~same & ambiguous).sum() < 3
    order = np.array(list(zip(joined["chromosome"], joined["position"], strict=True)))
    assert (np.lexsort((order[:, 1], order[:, 0])) == np.arange(len(order))).all()
    counts = genotypes.call_counts(store.arrays("genomic").x, len(rows))
    frequency = (counts[1] + 2 * counts[2]) / (2 * counts[:3].sum(axis=0))
    close = np.abs(np.where(same, frequency - joined["frequency"].to_numpy(), 0.0))
    assert np.quantile(close, 0.99) < 0.25
    assert np.median(close) < 0.08


def test_a_person_in_two_sets_is_once_in_the_store_with_one_record(built: Path) -> None:
    raw = built / "raw" / "genetics"
    people = [plink.open_set(p).fam["iid"].to_list() for p in sorted(raw.glob("*.bed"))]
    everyone = [i for s in people for i in s]
    assert len(everyone) == len(set(everyone)) + 2
    ids = mrpipe.open_store(built / "store").arrays("genomic").sample_id.tolist()
    assert len(ids) == len(set(ids))
    assert set(ids) <= set(everyone)
    description = mrpipe.open_store(built / "store").modalities[0].description
    assert "ADNI_cluster_01_forward_757LONI" in description


def test_union_has_missing_calls_and_intersection_the_shared_snps(built: Path, tmp_path: Path) -> None:
    options = {"geno": 1.0, "hwe": 0.0, "maf": 0.0, "mind": 1.0}
    build(DATASET, built / "raw", tmp_path / "shared", {**options, "merge": "intersection"})
    union, shared = mrpipe.open_store(built / "store"), mrpipe.open_store(tmp_path / "shared")
    names = [set(s.dictionary.filter(modality="genomic")["source_column"]) for s in (union, shared)]
    assert names[1] < names[0]
    counts = [
        genotypes.call_counts(s.arrays("genomic").x, len(n))[3].sum() / (len(n) * len(s.arrays("genomic")))
        for s, n in zip((union, shared), names, strict=True)
    ]
    assert counts[0] > 0.2
    assert counts[1] < 0.03


def test_evaluation_subjects_move_nothing_that_is_fitted(built: Path, tmp_path: Path) -> None:
    """Canary through the whole path: other genotypes of evaluation subjects, from the .bed on; the same transform."""
    build(DATASET, built / "raw", tmp_path / "before", BLIND)
    store = mrpipe.open_store(tmp_path / "before")
    before = fit(store, modalities=["genomic"]).to_json()
    held_out = set(store.split().filter(pl.col("split") != "train").collect()["sample_id"])
    raw = Path(shutil.copytree(built / "raw", tmp_path / "raw"))
    shutil.copytree(truth_folder(built / "raw"), truth_folder(raw))
    changed = 0
    for bed in sorted((raw / "genetics").glob("*.bed")):
        opened = plink.open_set(bed)
        matrix = plink.calls(opened)
        rows = np.flatnonzero([i in held_out for i in opened.fam["iid"]])
        # Reversing copies keeps who is heterozygous and moves every frequency and correlation.
        matrix[rows] = np.where(matrix[rows] == 3, 3, 2 - np.minimum(matrix[rows], 2))
        bed.write_bytes(plink.MAGIC + plink.bed_rows(matrix).tobytes())
        changed += len(rows)
    assert changed > 5
    build(DATASET, raw, tmp_path / "store", BLIND)
    other = mrpipe.open_store(tmp_path / "store")
    names = [s.dictionary.filter(modality="genomic")["name"] for s in (store, other)]
    assert names[0].equals(names[1])
    after = fit(other, modalities=["genomic"])
    assert after.to_json().replace(other.store_id, store.store_id) == before
    assert not np.array_equal(store.arrays("genomic").x, other.arrays("genomic").x)


def test_training_subjects_do_move_it(built: Path) -> None:
    """The canary can fail: the transform depends on training genotypes."""
    store = mrpipe.open_store(built / "store")
    train = store.arrays("genomic", part="train")
    rows = store.dictionary.filter(modality="genomic").sort("position")
    from mrpipe.genotype_transform import GenotypeTransform

    first = GenotypeTransform.fit(train, rows, genotypes.LdOptions())
    second = GenotypeTransform.fit(train.take(np.arange(len(train) // 2)), rows, genotypes.LdOptions())
    assert not np.array_equal(first.kept, second.kept)
    again = GenotypeTransform.from_dict(first.to_dict())
    np.testing.assert_array_equal(again.apply(train).x, first.apply(train).x)
    assert set(np.unique(first.apply(train).x)) <= {-1.0, 0.0, 1.0}
    # Packed consumers take the same SNPs.
    packed = genotypes.take_snps(train.x, first.kept)
    calls = genotypes.unpack_range(packed, 0, len(first.kept))
    np.testing.assert_array_equal(np.where(calls == 3, first.mode, calls) - 1.0, first.apply(train).x)


# --- wrong builds -------------------------------------------------------------------------------------------------


@pytest.fixture
def export(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "raw", tmp_path / "raw"))


def fault_of(raw: Path, **settings: object) -> str:
    with pytest.raises(DataError) as error:
        check(DATASET, raw, settings)
    return str(error.value)


def test_a_missing_chain_file_is_named_with_its_source(export: Path) -> None:
    next(export.rglob("*.chain.gz")).unlink()
    message = fault_of(export)
    assert "expected a chain file hg18 to hg19 for ADNI_cluster_01_forward_757LONI" in message
    assert "goldenPath" in message


def test_a_chain_of_other_builds_is_refused(export: Path) -> None:
    assert "expected a chain from hg38 to hg19; found hg18 to hg19" in fault_of(
        export, source_builds=("ADNI_cluster*=hg38", "*=hg19")
    )


def test_a_position_beyond_its_chromosome_shows_the_wrong_build(export: Path) -> None:
    path = export / "genetics" / "ADNI_GO_2_Forward_Bin.bim"
    text = path.read_text().splitlines()
    fields = text[0].split("\t")
    assert fields[0] == "1"
    text[0] = "\t".join([*fields[:3], "249250622", *fields[4:]])
    path.write_text("\n".join(text) + "\n")
    assert "positions of hg19, in which chromosome 1 ends at 249250621; found position 249250622" in fault_of(export)


def test_a_set_declared_in_the_wrong_build_does_not_pass_silently(export: Path, tmp_path: Path) -> None:
    check(DATASET, export, {"source_builds": ["*=hg19"]})
    with pytest.raises(
        DataError, match=r"ADNI_cluster_01_forward_757LONI\.bim.*expected the positions of the reference"
    ):
        build(DATASET, export, tmp_path / "store", {"source_builds": ["*=hg19"]}, modalities=["genomic"])


def test_the_check_names_a_truncated_bed(export: Path) -> None:
    bed = export / "genetics" / "ADNI3_PLINK_Final.bed"
    os.truncate(bed, bed.stat().st_size - 1)
    assert re.search(r"ADNI3_PLINK_Final\.bed: expected \d+ bytes for \d+ people and \d+ SNPs", fault_of(export))


def test_people_without_a_ptid_are_nobody_and_none_at_all_is_a_fault(export: Path, tmp_path: Path) -> None:
    for fam in (export / "genetics").glob("*.fam"):
        fam.write_text(fam.read_text().replace("_S_", "-"))
    with pytest.raises(DataError, match="IID must be the PTID"):
        build(DATASET, export, tmp_path / "store", {}, modalities=["genomic"])


# --- imputation ---------------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["beagle", "minimac4"])
def test_masked_calls_come_back(tool: str, real_data_dir: Path, tmp_path: Path) -> None:
    """203 people of 1000 Genomes, a third of the common SNPs typed, 5 % of the calls masked; 300 phased others."""
    from mrpipe.datasets.adni.genomic_impute import impute_set
    from mrpipe.datasets.adni.genomic_vcf import read_vcf

    require(tool)
    require("beagle")
    folder = real_data_dir / "genotypes"
    target = read_vcf(folder / "chr20_1-4Mb_targets.vcf.gz")
    f = target.calls.mean(axis=0) / 2
    place = target.sites["pos"].to_numpy()
    once = ~target.sites["pos"].is_duplicated().to_numpy()
    typed = np.flatnonzero((np.minimum(f, 1 - f) >= 0.01) & once & (place < 1_400_000))[::3]
    # The reference is cut to the same stretch, so that the tool is done in seconds.
    panel = tmp_path / "panel.vcf.gz"
    with gzip.open(folder / "chr20_1-4Mb_reference_phased.vcf.gz", "rt") as source, gzip.open(panel, "wt") as out:
        out.writelines(line for line in source if line.startswith("#") or int(line.split("\t", 2)[1]) < 1_450_000)
    truth = target.calls[:, typed]
    mask = generator(0, "mask").random(truth.shape) < 0.05
    fam = pl.DataFrame({"fid": ["0"] * len(truth), "iid": list(target.samples), "father": ["0"] * len(truth),
                        "mother": ["0"] * len(truth), "sex": ["1"] * len(truth)})  # fmt: skip
    sites = target.sites[typed.tolist()]
    bim = sites.select("chrom", "id", "pos", pl.col("alt").alias("a1"), pl.col("ref").alias("a2"))
    plink.write_set(tmp_path / "set", fam, bim, iter([plink.bed_rows(np.where(mask, 3, truth).astype(np.uint8))]))
    done = impute_set(
        tmp_path / "set.bed", panel, tmp_path / "out", tool=tool, genetic_map=folder / "chr20.b37.gmap.gz"
    )
    after = plink.calls(plink.open_set(tmp_path / "out.bed"))
    np.testing.assert_array_equal(after[~mask], truth[~mask])
    filled = mask & (after != 3)
    assert done.n_left == int((after == 3).sum()) < 0.05 * mask.sum()
    mode = np.array([np.bincount(c[c < 3], minlength=3).argmax() for c in np.where(mask, 3, truth).T])
    by_mode = np.broadcast_to(mode, truth.shape)
    concordance, r2 = (
        (after == truth)[filled].mean(),
        np.corrcoef(after[filled].astype(float), truth[filled])[0, 1] ** 2,
    )
    print(f"{tool}: concordance {concordance:.4f} (mode {(by_mode == truth)[filled].mean():.4f}), dosage r2 {r2:.3f}")
    assert concordance > 0.95 > (by_mode == truth)[filled].mean()
    assert r2 > 0.9


def test_a_set_is_lifted_before_it_is_imputed(toy_chain: Path, tmp_path: Path) -> None:
    """Known positions of TOY_CHAIN: 1-based 200 → 300 on chr1; chr2 5 → chr7, strand turned."""
    from mrpipe.datasets.adni.genomic_impute import lifted_set

    calls = random_calls(0, 8, 4)
    opened = write_random(tmp_path / "s", calls, np.array([1, 1, 2, 3]))
    bim = opened.bim.with_columns(pl.Series("pos", [200, 450, 5, 10]))
    plink.write_set(tmp_path / "s", opened.fam, bim, iter([plink.bed_rows(calls)]))
    got, rows = lifted_set(plink.open_set(tmp_path / "s.bed"), lift.ChainFile(toy_chain))
    # 450 lies in the gap of the first chain, and the third, worse one holds it; chr3 is in none.
    assert rows.tolist() == [0, 1, 2]
    known = [
        lift.ChainFile(toy_chain).lift(np.array([c]), np.array([p])) for c, p in (("1", 200), ("1", 450), ("2", 5))
    ]
    assert got.bim["pos"].to_list() == [int(k.position[0]) for k in known]
    assert got.bim["pos"][0] == 300
    assert got.bim["chrom"].to_list() == ["1", "1", "7"]
    assert got.bim.select("a1", "a2").rows() == [("A", "G"), ("A", "G"), ("T", "C")]


def test_imputation_without_its_tool_or_set_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mrpipe.datasets.adni import genomic_impute

    assert genomic_impute.main([str(tmp_path / "no.bed"), "x.vcf.gz", str(tmp_path / "out")]) == 3
    assert "expected the .fam beside no.bed" in capsys.readouterr().err
    monkeypatch.setattr(genomic_impute.shutil, "which", lambda tool: None)
    with pytest.raises(genomic_impute.UsageError, match=r"needs the program 'beagle'.*apt-get install beagle"):
        genomic_impute.run_beagle(tmp_path / "t.vcf.gz", tmp_path / "r.vcf.gz", tmp_path / "o")
