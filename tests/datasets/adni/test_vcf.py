"""Genotypes from VCF files: imputation-server chunks, thresholds, people, and damaged files."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.datasets.adni.genomic.reader import read_genomic
from mrpipe.datasets.adni.genomic.strand import position_keys
from mrpipe.datasets.adni.genomic.vcf import VcfSettings, open_vcf
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError
from mrpipe.genetics.packing import unpack_range

pytest.importorskip("cyvcf2")
HG38_1 = "##contig=<ID=chr1,length=248956422>"
# What an imputation server declares; its contigs have no length.
SERVER = """##fileformat=VCFv4.2
##INFO=<ID=AF,Number=1,Type=Float,Description="">
##INFO=<ID=R2,Number=1,Type=Float,Description="">
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
##FORMAT=<ID=DS,Number=1,Type=Float,Description="">
##FORMAT=<ID=GP,Number=3,Type=Float,Description="">
"""
_GT = ("0|0", "0|1", "1|1", ".|.")


def ptid(i: int) -> str:
    return f"002_S_{i:04d}"


def vcf_text(
    bim: pl.DataFrame,
    copies: NDArray[np.uint8],
    people: Sequence[str],
    *,
    fields: str = "GT:DS:GP",
    info: str = "AF=0.3;R2=0.95",
    prefix: str = "",
    head: str = SERVER,
) -> str:
    """A VCF of SNPs `chrom, id, pos, a1, a2` and copies of A1 (people, SNPs), 3 if missing; ALT is A1."""
    cell = {
        "GT": _GT,
        "DS": ("0.02", "1.01", "1.97", "."),
        "GP": ("0.98,0.02,0", "0,0.99,0.01", "0,0.03,0.97", "."),
        "HDS": ("0,0", "0,1", "1,1", "."),
    }
    cells = [":".join(cell[f][k] for f in fields.split(":")) for k in range(4)]
    lines = [head + "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t" + "\t".join(people)]
    order = bim.select(pl.arg_sort_by("pos")).to_series()
    for j in order:
        chrom, name, pos, a1, a2 = bim.row(j)
        row = [prefix + chrom, str(pos), name, a2, a1.replace("0", "."), ".", "PASS", info, fields]
        lines.append("\t".join([*row, *(cells[c] for c in copies[:, j])]))
    return "\n".join(lines) + "\n"


def write_chunks(folder: Path, bed: Path, **form: Any) -> list[Path]:
    """Write a PLINK set as one VCF per autosome, as an imputation server does."""
    opened = plink.open_set(bed)
    calls = plink.calls(opened)
    folder.mkdir(parents=True)
    paths = []
    for chromosome in (str(c) for c in range(1, 23)):
        at = np.flatnonzero((opened.bim["chrom"] == chromosome).to_numpy() & (opened.bim["a2"] != "0").to_numpy())
        if len(at):
            path = folder / f"chr{chromosome}.dose.vcf.gz"
            text = vcf_text(opened.bim[at.tolist()], calls[:, at], opened.fam["iid"].to_list(), **form)
            path.write_bytes(gzip.compress(text.encode(), 1))
            paths.append(path)
    return paths


def toy(n: int = 5, p: int = 4, chromosome: str = "1") -> tuple[pl.DataFrame, NDArray[np.uint8], list[str]]:
    bim = pl.DataFrame({"chrom": [chromosome] * p, "id": [f"rs{j}" for j in range(p)]}).with_columns(
        pos=pl.int_range(pl.len(), dtype=pl.Int64) * 1000 + 1000, a1=pl.lit("A"), a2=pl.lit("G")
    )
    copies = np.array([[(i + j) % 3 for j in range(p)] for i in range(n)], dtype=np.uint8)
    return bim, copies, [ptid(i + 1) for i in range(n)]


def converted(tmp_path: Path, text: str, **settings: Any) -> tuple[plink.PlinkSet, str]:
    """The set of a VCF, converted in this process, which saves time, and the note."""
    from mrpipe.genetics.vcf import Conversion

    (tmp_path / "x.vcf").write_text(text)
    conversion = Conversion(**dataclasses.asdict(VcfSettings(**settings)))
    done = conversion.run([str(tmp_path / "x.vcf")], ["x.vcf"], str(tmp_path / "out"))
    return plink.open_set(tmp_path / "out.bed"), done["note"]


# --- calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", ["GT", "DS", "GT:DS:GP", "GT:HDS:GP:DS", "DS:GP"])
@pytest.mark.parametrize("field", ["GT", "DS"])
def test_calls_from_genotypes_and_from_dosages_agree(fields: str, field: str, tmp_path: Path) -> None:
    bim, copies, people = toy()
    copies[2, 1] = 3
    got, _ = converted(tmp_path, vcf_text(bim, copies, people, fields=fields), field=field)
    np.testing.assert_array_equal(plink.calls(got), copies)
    assert got.fam["iid"].to_list() == people
    assert got.bim.equals(bim)


@pytest.mark.parametrize(("dosage", "uncertainty", "call"), [
    ("0.1", 0.1, 0), ("0.11", 0.1, 3), ("0.89", 0.1, 3), ("0.9", 0.1, 1), ("1.5", 0.49, 3), ("1.51", 0.49, 2),
    ("2", 0.0, 2), ("1.999", 0.0, 3), (".", 0.5, 3), ("2.02", 0.1, 2),
])  # fmt: skip
def test_a_dosage_far_from_a_whole_number_is_a_missing_call(
    dosage: str, uncertainty: float, call: int, tmp_path: Path
) -> None:
    text = vcf_text(*toy(1, 1), fields="DS").replace("DS\t0.02", f"DS\t{dosage}")
    got, _ = converted(tmp_path, text, uncertainty=uncertainty)
    assert plink.calls(got).tolist() == [[call]]


def test_half_missing_and_haploid_calls(tmp_path: Path) -> None:
    """As plink2 reads them by default: half a call is missing, one allele counts twice."""
    text = vcf_text(*toy(4, 1), fields="GT")
    for old, new in (("0|0", "./1"), ("0|1", "1"), ("1|1", "0"), ("0|0", "1/0")):
        text = text.replace(f"\t{old}", f"\t{new}", 1)
    assert plink.calls(converted(tmp_path, text)[0])[:, 0].tolist() == [3, 2, 0, 1]


def test_only_biallelic_snps_of_good_quality_are_used(tmp_path: Path) -> None:
    def row(pos: int, ref: str, alt: str, info: str, name: str = ".") -> str:
        return f"chr1\t{pos}\t{name}\t{ref}\t{alt}\t.\tPASS\t{info}\tGT\t0|1\t1|1\t0|0\n"

    head = vcf_text(*toy(3, 0), fields="GT")
    rows = [
        row(100, "A", "G", "R2=0.9"),
        row(200, "A", "AT", "R2=0.9"),
        row(300, "A", "C", "R2=0.79"),
        row(400, "A", "C", "R2=0.9"),
        row(400, "A", "T", "R2=0.9"),
        row(500, "A", "C,T", "R2=0.9"),
        row(600, "A", "C", "R2=0.9"),
        row(600, "A", "T", "R2=0.1"),
        row(700, "a", "c", "."),
        row(800, "C", ".", "R2=0.9").replace("0|1\t1|1", "0|0\t0|0"),
        row(900, "C", "T", "R2=0.9").replace("0|1\t1|1\t0|0", "0|0\t0|1\t0|0"),
        row(900, "C", "T", "R2=0.9").replace("chr1", "chrX"),
    ]
    got, note = converted(tmp_path, head + "".join(rows), r2=0.8, maf=0.2)
    assert got.bim.select("chrom", "id", "pos", "a1", "a2").rows() == [
        ("1", "1:100:A:G", 100, "G", "A"),
        ("1", "1:600:A:C", 600, "C", "A"),
        ("1", "1:700:A:C", 700, "C", "A"),
        ("X", "X:900:C:T", 900, "T", "C"),
    ]
    assert note.startswith("12 records; not used: ")
    for part in (
        "1 not SNPs",
        "2 with R2 below 0.8",
        "3 at sites with several alternative alleles",
        "2 with a minor allele frequency below 0.2",
    ):
        assert part in note
    dropped = np.load(tmp_path / "out.npy")
    assert sorted(dropped - position_keys(np.array(["1"]), np.array([0]))[0]) == [300, 400, 500, 800, 900]


def test_duplicate_records_are_kept_and_resolved_by_their_calls(tmp_path: Path) -> None:
    """As in PLINK sets, the record with more calls is used."""
    bim, copies, people = toy(40, 2)
    bim, copies = bim[[0, 1, 1]], copies[:, [0, 1, 1]]
    copies[0, 1] = 3
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.vcf").write_text(vcf_text(bim, copies, people))
    cohort = pl.DataFrame({"sample_id": people, "rid": range(1, 41)}).with_columns(phase=pl.lit("ADNI1"))
    features = read_genomic(tmp_path / "raw", cohort, AdniOptions(maf=0.0, hwe=0.0, mind=1.0))
    packed = np.frombuffer(b"".join(next(iter(features.batches)).column("x").to_pylist()), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_range(packed.reshape(40, 1), 0, 2), copies[:, [0, 2]])


def test_bcf_and_bgzip_files_are_read(tmp_path: Path) -> None:
    import cyvcf2

    bim, copies, people = toy()
    text = vcf_text(bim, copies, people, head=SERVER + '##contig=<ID=1>\n##FILTER=<ID=PASS,Description="">\n')
    (tmp_path / "x.vcf").write_text(text)
    for name, mode in (("x.bcf", "wb"), ("x.vcf.gz", "wz")):
        source = cyvcf2.VCF(str(tmp_path / "x.vcf"))
        writer = cyvcf2.Writer(str(tmp_path / name), source, mode)
        for record in source:
            writer.write_record(record)
        writer.close()
        for calls in (True, False):
            got = open_vcf([tmp_path / name], tmp_path / "set", VcfSettings(calls=calls))
            assert got.bim.equals(bim)
            np.testing.assert_array_equal(plink.calls(got), copies if calls else np.full_like(copies, 2))
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-28])
        with pytest.raises(DataError, match=rf"{name}: expected a complete file"):
            open_vcf([tmp_path / name], tmp_path / "set", VcfSettings())


# --- damaged files ------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[str], str], str]] = {
    "neither": (lambda t: t.replace("GT:DS:GP", "XT:XS:GP"), r"column 'FORMAT': expected GT or DS; found XT, XS, GP"),
    "later": (lambda t: t[: t.rindex("GT:DS")] + t[t.rindex("GT:DS") :].replace("GT", "XT"), r"row 4.*no GT"),
    "empty": (lambda t: t[: t.index("1\t1000")], r"column 'FORMAT'.*found no record"),
    "people": (lambda t: "\n".join("\t".join(r.split("\t")[:8]) for r in t.split("\n")), "expected people; found none"),
    "sorted": (lambda t: t.replace("\t3000\t", "\t500\t"), r"row 3: expected positions in ascending.*500 after 2000"),
    "position": (lambda t: t.replace("\t3000\t", "\t30x0\t"), r"x\.vcf"),
    "columns": (lambda t: t[: t.rindex("\t")] + "\n", r"row 4: expected a record of a VCF.*Number of columns"),
    "cut": (lambda t: t[:-3], "expected a complete file"),
    "spaces": (lambda t: t[: t.index("1\t2000")] + t[t.index("1\t2000") :].replace("\t", " "), r"x\.vcf"),
    "contig": (lambda t: t.replace("1\t2000", "zz\tx2000"), r"x\.vcf: expected a valid VCF; found htslib ended"),
    "dosage": (lambda t: t.replace("GT:DS", "XT:DS").replace("1.97", "2.4"), "row 1.*a DS that is not between 0 and 2"),
    "table": (lambda t: t[t.index("1\t1000") :], r"x\.vcf: expected a VCF or BCF"),
    "twice": (lambda t: t.replace(ptid(2), ptid(1)), r"x\.vcf: expected a VCF or BCF"),
    "snps": (lambda t: t.replace("\tG\tA\t", "\tGA\tA\t"), r"x\.vcf: expected biallelic SNPs"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*BAD])
def test_an_invalid_vcf_is_an_error_that_names_file_and_record(kind: str, tmp_path: Path) -> None:
    change, expected = BAD[kind]
    (tmp_path / "x.vcf").write_text(change(vcf_text(*toy())))
    with pytest.raises(DataError, match=expected) as error:
        open_vcf([tmp_path / "x.vcf"], tmp_path / "set", VcfSettings())
    assert "_S_" not in str(error.value)
