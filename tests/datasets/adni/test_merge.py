"""Merging of PLINK sets: strands, SNPs that reveal the set, people in the .fam files, and inputs that contradict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic import check as genomic_check
from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.datasets.adni.genomic.inputs import rids_of
from mrpipe.datasets.adni.genomic.merge import merged_rows, missing_calls
from mrpipe.datasets.adni.genomic.reader import assemble, read_genomic
from mrpipe.datasets.adni.genomic.strand import read_reference
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError, FaultCollector
from mrpipe.genetics.packing import bed_rows, pack, unpack_range
from mrpipe.keyed import generator

# Without thresholds, the SNPs of the store depend on alleles and frequencies only.
OPEN = {"mind": 1.0, "geno": 1.0, "hwe": 0.0, "maf": 0.0}
OTHER_STRAND = str.maketrans("ACGT", "TGCA")
PAIRS = ("AG", "CT", "AC", "GT", "AT", "CG")


def ptid(rid: int) -> str:
    return f"002_S_{rid:04d}"


def write_set(
    raw: Path, name: str, people: Sequence[int], copies: NDArray[Any], alleles: Sequence[str], positions: Sequence[int]
) -> None:
    """Write a set of chromosome 1: copies (people, SNPs) of the first of two alleles; names follow the position."""
    raw.mkdir(exist_ok=True)
    fam = pl.DataFrame({"fid": "0", "iid": [ptid(i) for i in people], "father": "0", "mother": "0", "sex": "1"})
    bim = pl.DataFrame(
        {"chrom": "1", "id": [f"rs{p}" for p in positions], "pos": positions, "a1": [a[0] for a in alleles]}
    ).with_columns(pl.Series("a2", [a[1] for a in alleles]))
    plink.write_set(raw / name, fam, bim, iter([bed_rows(copies.astype(np.uint8))]))


def write_legend(raw: Path, alleles: Sequence[str], positions: Sequence[int], frequency: Sequence[float]) -> Path:
    """Write a reference with the frequencies of the first of two alleles."""
    rows = [f"rs{p} 1 {p} {a[1]} {a[0]} {f}" for p, a, f in zip(positions, alleles, frequency, strict=True)]
    path = raw / "all.legend"
    path.write_text("\n".join(["id chr position a0 a1 ALL", *rows]) + "\n")
    return path


def draw(seed: int, n: int, frequency: NDArray[np.float64]) -> NDArray[np.int64]:
    return generator(seed, "copies").binomial(2, frequency, (n, len(frequency)))


def cohort_of(rids: Sequence[int]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": [ptid(i) for i in rids], "rid": list(rids)}).with_columns(phase=pl.lit("ADNI1"))


def merge(raw: Path, rids: Sequence[int], **options: Any) -> tuple[list[int], list[NDArray[np.uint8]]]:
    """Positions of the merged SNPs, and of each set all its calls of the counted alleles (people, SNPs)."""
    _, identity, panels, _ = assemble(raw, cohort_of(rids), AdniOptions(**{**OPEN, **options}), raw)
    calls = []
    for p in panels:
        everyone = np.arange(p.plink.n_people)
        rows = merged_rows([dataclasses.replace(p, people=everyone, target=everyone)], len(everyone), len(identity))
        calls.append(unpack_range(rows, 0, len(identity)))
    return (identity // 64 % 10**9).tolist(), calls


# --- strands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [True, False])
def test_people_in_two_sets_do_not_become_discordant_by_merging(reference: bool, tmp_path: Path) -> None:
    """A quarter of the SNPs of the second set is on the other strand, including A/T and C/G SNPs."""
    n, p = 120, 600
    rng = generator(0, "strands")
    frequency = rng.uniform(0.05, 0.95, p)
    copies = draw(1, n, frequency)
    alleles = [PAIRS[k] for k in rng.integers(0, len(PAIRS), p)]
    positions = [1000 * (j + 1) for j in range(p)]
    turned = rng.random(p) < 0.25
    swapped = rng.random(p) < 0.5
    raw = tmp_path / "raw"
    write_set(raw, "a", range(1, n + 1), copies, alleles, positions)
    second = [a.translate(OTHER_STRAND) if t else a for a, t in zip(alleles, turned, strict=True)]
    second = [a[::-1] if s else a for a, s in zip(second, swapped, strict=True)]
    write_set(raw, "b", range(1, n + 1), np.where(swapped, 2 - copies, copies), second, positions)
    if reference:
        write_legend(raw, alleles, positions, frequency.tolist())
    kept, (a, b) = merge(raw, range(1, n + 1))
    np.testing.assert_array_equal(a, b)
    ambiguous = [positions[j] for j, x in enumerate(alleles) if x in ("AT", "CG")]
    clear = [positions[j] for j, x in enumerate(alleles) if x not in ("AT", "CG")]
    assert len(set(kept) & set(clear)) > 0.95 * len(clear)
    assert len(set(kept) & set(ambiguous)) > 50 if reference else set(kept).isdisjoint(ambiguous)


def test_ambiguous_snps_of_a_single_set_need_no_reference(tmp_path: Path) -> None:
    write_set(tmp_path / "raw", "a", [1, 2, 3], draw(0, 3, np.full(2, 0.5)), ["AT", "AG"], [1000, 2000])
    assert merge(tmp_path / "raw", [1, 2, 3])[0] == [1000, 2000]


# --- SNPs that reveal the set -------------------------------------------------------------------------------------


def test_a_snp_excluded_in_one_set_is_excluded_in_all(tmp_path: Path) -> None:
    """One SNP each: fine; missing calls in one set; other alleles; no call in one set; only in one set; rare in b."""
    alleles, positions = ["AG"] * 6, [1000, 2000, 3000, 4000, 5000, 6000]
    a, b = draw(1, 60, np.full(6, 0.5)), draw(2, 60, np.full(6, 0.5))
    b[:20, 1] = 3
    b[:, 3] = 3
    b[:, 5] = 0
    raw = tmp_path / "raw"
    write_set(raw, "a", range(1, 61), a, alleles, positions)
    others = ["AG", "AG", "AC", "00", "AG"]
    write_set(raw, "b", range(61, 121), b[:, [0, 1, 2, 3, 5]], others, [1000, 2000, 3000, 4000, 6000])
    settings = {"geno": 0.05, "maf": 0.05, "frequency_check": False}
    everyone = range(1, 121)
    # The minor allele of the last SNP is frequent over both sets.
    assert merge(raw, everyone, merge="union", **settings)[0] == [1000, 5000, 6000]
    assert merge(raw, everyone, **settings)[0] == [1000, 6000]
    assert merge(raw, everyone, **{**settings, "maf": 0.3})[0] == [1000]


def test_a_snp_that_cannot_be_lifted_over_is_excluded_by_its_name(toy_chain: Path, tmp_path: Path) -> None:
    """In TOY_CHAIN, position 1500 of chromosome 1 lifts over, and position 5000 does not."""
    raw = tmp_path / "raw"
    copies = draw(1, 30, np.full(2, 0.5))
    write_set(raw, "old", range(1, 31), copies, ["AG", "AG"], [1500, 5000])
    write_set(raw, "new", range(31, 61), copies, ["AG", "AG"], [51500, 70000])
    bim = raw / "new.bim"
    bim.write_text(bim.read_text().replace("rs51500", "rs1500").replace("rs70000", "rs5000"))
    settings = {"merge": "union", "source_builds": ("old=hg18", "*=hg19"), "chain": str(toy_chain)}
    assert merge(raw, range(1, 61), **settings)[0] == [51500]


def test_the_description_reports_missing_calls_and_warns_if_they_reveal_the_set(tmp_path: Path) -> None:
    alleles, positions = ["AG"] * 40, [1000 * (j + 1) for j in range(40)]
    raw = tmp_path / "raw"
    frequency = np.full(40, 0.5)
    write_set(raw, "a", range(1, 61), draw(1, 60, frequency), alleles, positions)
    write_set(raw, "b", range(61, 121), draw(2, 60, frequency[:30]), alleles[:30], positions[:30])
    cohort = cohort_of(range(1, 121))
    union, shared = (
        read_genomic(raw, cohort, AdniOptions(**OPEN, merge=m)).modality.description for m in ("union", "intersection")
    )
    assert "Missing calls: a 0.0%, b 25.0%, ADNI1 12.5%" in union
    assert "WARNING: missing calls identify the set" in union
    assert "(AUROC 1.00); use merge=intersection" in union
    assert "Missing calls: a 0.0%, b 0.0%" in shared
    assert "WARNING" not in shared


def test_a_single_missing_snp_reveals_the_set(tmp_path: Path) -> None:
    """The rate of missing calls per person is the same in both sets, but the missing SNPs differ."""
    raw = tmp_path / "raw"
    calls = draw(1, 80, np.full(9, 0.5)).astype(np.uint8)
    calls[:40, 0] = calls[40:, 8] = 3
    for name, people in (("a", range(40)), ("b", range(40, 80))):
        write_set(raw, name, people, calls[: len(people)], ["AG"] * 9, [1000 * (j + 1) for j in range(9)])
    _, _, panels, _ = assemble(raw, cohort_of(range(80)), AdniOptions(**OPEN), raw)
    phase = np.repeat(["ADNI1", "ADNI2"], 40)
    assert "(AUROC 1.00)" in missing_calls(pack(calls), 9, panels, phase, "union")
    calls[:] = 1
    assert "WARNING" not in missing_calls(pack(calls), 9, panels, phase, "union")


# --- reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["frequencies", "nothing"])
def test_frequencies_of_the_other_allele_are_an_error(exchange: str, tmp_path: Path) -> None:
    p = 200
    frequency = generator(0, "f").uniform(0.05, 0.45, p)
    alleles, positions = ["AG"] * p, [1000 * (j + 1) for j in range(p)]
    write_set(tmp_path / "raw", "a", range(1, 101), draw(1, 100, frequency), alleles, positions)
    theirs = 1 - frequency if exchange == "frequencies" else frequency
    write_legend(tmp_path / "raw", alleles, positions, theirs.tolist())
    if exchange == "nothing":
        assert len(merge(tmp_path / "raw", range(1, 101))[0]) == p
        return
    with pytest.raises(DataError, match=r"a\.bim.*frequencies of the reference.*those of the other allele"):
        merge(tmp_path / "raw", range(1, 101))


def test_of_contradictory_duplicates_in_the_reference_the_first_counts(tmp_path: Path) -> None:
    copies = draw(1, 200, np.array([0.2, 0.2]))
    write_set(tmp_path / "raw", "a", range(1, 201), copies, ["AG", "AG"], [1000, 2000])
    write_legend(tmp_path / "raw", ["AG", "AG", "AG"], [1000, 1000, 2000], [0.7, 0.2, 0.2])
    assert merge(tmp_path / "raw", range(1, 201))[0] == [2000]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("rs2 1 2000 G A 1.5", r"all\.legend, column 'frequency', line 3: expected a number from 0 to 1"),
        ("rs2 1 2000 G A nine", r"all\.legend, column 'frequency', line 3"),
        ("rs2 1 2x G A 0.5", r"all\.legend, column 'position', line 3: expected a whole number"),
        ("rs2 1 20000000000 G A 0.5", r"all\.legend, column 'position', line 3: expected a whole number"),
    ],
)
def test_invalid_positions_and_frequencies_of_the_reference_are_errors(row: str, expected: str, tmp_path: Path) -> None:
    path = write_legend(tmp_path, ["AG"], [1000], [0.5])
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(DataError, match=expected):
        read_reference(path, ["1"])


def test_a_reference_without_snps_of_the_requested_chromosomes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SNPs .* on the requested chromosomes"):
        read_reference(write_legend(tmp_path, ["AG"], [1000], [0.5]), ["2"])


# --- people -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fid", "iid", "rid"),
    [
        ("1", "014_S_0520", 520),
        ("0", "014_s_0520", 520),
        ("0", "0_014_S_0520", 520),
        ("0", "17_014_S_0520", 520),
        ("0", "014_S_0520_014_S_0520", 520),
        ("0", "014_S_0520_014_S_0521", None),
        ("014_S_0520", "1", 520),
        ("0", "14-S-520", 520),
        ("0", "014_S_10520", 10520),
        ("0", "520", None),
        ("0", "014_S_0520é", None),
        ("0", "NA19916", None),
    ],
)
def test_recognised_forms_of_ids(fid: str, iid: str, rid: int | None) -> None:
    assert rids_of(pl.DataFrame({"fid": [fid], "iid": [iid]})).to_list() == [rid]


def checked(raw: Path, known: Sequence[int], **options: Any) -> tuple[str, list[str]]:
    """Errors and notes."""
    faults = FaultCollector()
    rids = pl.Series(list(known), dtype=pl.Int32)
    _, notes = genomic_check.check_genotypes(raw, AdniOptions(**options), rids, faults)
    return "\n".join(map(str, faults.faults)), notes


def small(raw: Path, name: str, people: Sequence[int], alleles: str = "AG") -> Path:
    write_set(raw, name, people, draw(1, len(people), np.full(2, 0.5)), [alleles] * 2, [1000, 2000])
    return raw / f"{name}.fam"


def test_people_unknown_to_the_tables_are_reported_without_their_ids(tmp_path: Path) -> None:
    fam = small(tmp_path / "raw", "a", range(1, 11))
    assert not any("not among them" in n for n in checked(tmp_path / "raw", range(1, 11))[1])
    errors, notes = checked(tmp_path / "raw", range(2, 11))
    assert not errors
    assert any("1 of 10 people are not among them, most of them with IDs of the form '999_S_9999'" in n for n in notes)
    fam.write_text(fam.read_text().replace("002_S_", "smith"))
    errors, _ = checked(tmp_path / "raw", range(1, 11))
    assert "a.fam, column 'IID': expected PTIDs" in errors
    assert "10 of 10 people are not among them, most of them with IDs of the form 's" in errors
    assert "smith" not in errors


def test_people_in_several_sets_are_counted(tmp_path: Path) -> None:
    small(tmp_path / "raw", "a", [1, 2, 3, 4, 5])
    fam = small(tmp_path / "raw", "b", [4, 5, 6, 7])
    fam.write_text(fam.read_text().replace(ptid(7), f"0_{ptid(6)}"))
    _, notes = checked(tmp_path / "raw", range(1, 8))
    assert "2 people are in a and b; the record with the most calls is used" in notes
    assert "b.fam: 2 records of people with several records; the record with the most calls is used" in notes


def test_sets_of_single_chromosomes_are_an_error(tmp_path: Path) -> None:
    small(tmp_path / "raw", "chr1", [1, 2, 3])
    bim = small(tmp_path / "raw", "chr2", [1, 2, 3]).with_suffix(".bim")
    bim.write_text(bim.read_text().replace("1\trs", "2\trs"))
    assert "3 people in both, with SNPs of different chromosomes" in checked(tmp_path / "raw", [1, 2, 3])[0]


def test_files_of_people_and_snps_are_decoded_strictly(tmp_path: Path) -> None:
    fam = small(tmp_path / "raw", "a", [1, 2, 3])
    lines = fam.read_bytes().splitlines()
    fam.write_bytes(b"\n".join([lines[0], lines[1].replace(b"S", b"\xe9"), lines[2]]) + b"\n")
    with pytest.raises(DataError, match=r"a\.fam, line 2: expected text in UTF-8; found byte 0xe9"):
        plink.open_set(fam.with_suffix(".bed"))
    fam.write_text("\ufeff" + "\r\n".join(line.decode() for line in lines) + "\r\n", newline="")
    assert plink.open_set(fam.with_suffix(".bed")).fam["iid"].to_list() == [ptid(i) for i in (1, 2, 3)]


# --- other inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alleles", "coding"), [("12", "alleles 1, 2, 3 and 4"), ("AB", "alleles A and B")])
def test_other_codings_of_alleles_are_named(alleles: str, coding: str, tmp_path: Path) -> None:
    small(tmp_path / "raw", "a", [1, 2], alleles)
    errors, _ = checked(tmp_path / "raw", [1, 2])
    assert f"a.bim, column 'a1': expected alleles A, C, G and T; found {coding}" in errors


def test_the_error_for_other_formats_gives_their_conversion(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "g").mkdir(parents=True)
    for name in ("x.pgen", "x.psam", "y.ped", "y.map", "photos.ped.txt", "z.bed.gz", "u.bgen", "v.gen.gz"):
        (raw / "g" / name).touch()
    assert checked(raw, [1]) == ("", [])
    errors, _ = checked(raw, [1], genotypes="g")
    assert "g: expected PLINK sets (.bed, .bim, .fam) or VCF; found none" in errors
    for command in ("--pfile NAME", "--pedmap NAME", "--bgen NAME.bgen ref-first", "--gen NAME.gen"):
        assert f"plink2 {command}" in errors
    assert errors.count("--make-bed --out NAME") == 4
    assert "gunzip NAME.bed.gz" in errors


def test_notes_on_the_reference_and_on_shared_snps(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    small(raw, "a", [1, 2])
    small(raw, "b", [3, 4])
    bim = raw / "b.bim"
    bim.write_text(bim.read_text().replace("rs2000", "rs2001").replace("\t2000\t", "\t2001\t"))
    notes = checked(raw, range(1, 5), merge="union")[1]
    assert any("no reference panel" in n and "A/T and C/G SNPs of several sets are excluded" in n for n in notes)
    assert any(
        "1 of 3 SNPs are in every PLINK set; with merge=union, missing calls identify the set" in n for n in notes
    )
    write_legend(raw, ["AG"], [1000], [float("nan")]).write_text("id chr position a0 a1\nrs1000 1 1000 G A\n")
    notes = checked(raw, range(1, 5))[1]
    assert any("all.legend: no SNP on chromosomes 2, 3" in n for n in notes)
    assert any("all.legend: no allele frequencies" in n for n in notes)
    assert not any("missing calls" in n for n in notes)
