"""Genotypes from VCF files: imputation-server chunks, thresholds, people, and damaged files."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.genomic import check as genomic_check
from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.datasets.adni.genomic.inputs import find_sets
from mrpipe.datasets.adni.genomic.plink import open_vcf
from mrpipe.datasets.adni.genomic.reader import assemble, read_genomic
from mrpipe.datasets.adni.genomic.strand import position_keys
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError, FaultCollector, MissingExtraError
from mrpipe.genetics.packing import bed_rows, unpack_range
from mrpipe.genetics.vcf import Conversion
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from tests.stores import tables

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


def write_chunks(folder: Path, bed: Path, chromosomes: Sequence[int] = range(1, 23), **form: Any) -> None:
    """Write a PLINK set as one VCF per autosome, as an imputation server does."""
    opened = plink.open_set(bed)
    calls = plink.calls(opened)
    folder.mkdir(parents=True)
    for chromosome in map(str, chromosomes):
        at = np.flatnonzero((opened.bim["chrom"] == chromosome).to_numpy() & (opened.bim["a2"] != "0").to_numpy())
        if len(at):
            text = vcf_text(opened.bim[at.tolist()], calls[:, at], opened.fam["iid"].to_list(), **form)
            (folder / f"chr{chromosome}.dose.vcf.gz").write_bytes(gzip.compress(text.encode(), 1))


def toy(n: int = 5, p: int = 4, chromosome: str = "1") -> tuple[pl.DataFrame, NDArray[np.uint8], list[str]]:
    bim = pl.DataFrame({"chrom": [chromosome] * p, "id": [f"rs{j}" for j in range(p)]}).with_columns(
        pos=pl.int_range(pl.len(), dtype=pl.Int64) * 1000 + 1000, a1=pl.lit("A"), a2=pl.lit("G")
    )
    copies = np.array([[(i + j) % 3 for j in range(p)] for i in range(n)], dtype=np.uint8)
    return bim, copies, [ptid(i + 1) for i in range(n)]


def converted(tmp_path: Path, text: str, **settings: Any) -> tuple[plink.PlinkSet, str]:
    """The set of a VCF, converted in this process, which saves time, and the note."""
    (tmp_path / "x.vcf").write_text(text)
    conversion = Conversion(**settings)
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
    dropped = np.load(tmp_path / "out.npy") - position_keys(np.array(["1"]), np.array([0]))
    # One of the records at 600 is used.
    assert sorted(dropped.tolist()) == [300, 400, 500, 600, 800, 900]


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
            got = open_vcf([tmp_path / name], tmp_path / "set", Conversion(calls=calls))
            assert got.bim.equals(bim)
            np.testing.assert_array_equal(plink.calls(got), copies if calls else np.full_like(copies, 2))
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-28])
        with pytest.raises(DataError, match=rf"{name}: expected a complete file"):
            open_vcf([tmp_path / name], tmp_path / "set", Conversion())


# --- damaged files ------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[str], str], str]] = {
    "neither": (lambda t: t.replace("GT:DS:GP", "XT:XS:GP"), r"column 'FORMAT': expected GT or DS; found XT, XS, GP"),
    "later": (lambda t: t[: t.rindex("GT:DS")] + t[t.rindex("GT:DS") :].replace("GT", "XT"), r"row 4.*no GT"),
    "empty": (lambda t: t[: t.index("1\t1000")], r"column 'FORMAT'.*found no record"),
    "people": (lambda t: "\n".join("\t".join(r.split("\t")[:8]) for r in t.split("\n")), "VCF or BCF of people"),
    "sorted": (lambda t: t.replace("\t3000\t", "\t500\t"), r"row 3: expected positions in ascending.*500 after 2000"),
    "position": (lambda t: t.replace("\t3000\t", "\t30x0\t"), r"x\.vcf"),
    "columns": (lambda t: t[: t.rindex("\t")] + "\n", r"row 4: expected a record of a VCF.*Number of columns"),
    "cut": (lambda t: t[:-3], "expected a complete file"),
    "bytes": (lambda t: t.replace("0.98,", "0.\udce9,"), "row 1: expected a record"),
    "spaces": (lambda t: t[: t.index("1\t2000")] + t[t.index("1\t2000") :].replace("\t", " "), r"x\.vcf"),
    "contig": (lambda t: t.replace("1\t2000", "zz\tx2000"), r"x\.vcf: expected a valid VCF; found"),
    "dosage": (lambda t: t.replace("GT:DS", "XT:DS").replace("1.97", "2.4"), "row 1.*a DS that is not between 0 and 2"),
    "table": (lambda t: t[t.index("1\t1000") :], r"x\.vcf: expected a VCF or BCF"),
    "twice": (lambda t: t.replace(ptid(2), ptid(1)), r"x\.vcf: expected a VCF or BCF"),
    "id": (lambda t: t.replace("rs1", "rs\udce9"), r"row 2: expected valid calls; found an ID that is not UTF-8"),
    "iid": (lambda t: t.replace(ptid(1), "\udce9"), r"x\.vcf: expected a VCF or BCF of people, in UTF-8"),
    "format": (lambda t: t.replace("FORMAT", "FT"), r"x\.vcf: expected a VCF or BCF"),
    "snps": (lambda t: t.replace("\tG\tA\t", "\tGA\tA\t"), r"x\.vcf: expected biallelic SNPs"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*BAD])
def test_an_invalid_vcf_is_an_error_that_names_file_and_record(kind: str, tmp_path: Path) -> None:
    change, expected = BAD[kind]
    (tmp_path / "x.vcf").write_bytes(change(vcf_text(*toy())).encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=expected) as error:
        open_vcf([tmp_path / "x.vcf"], tmp_path / "set", Conversion())
    assert "_S_" not in str(error.value)


# --- sets of an export --------------------------------------------------------------------------------------------


def test_the_names_of_files_tell_the_sets(tmp_path: Path) -> None:
    for name in (
        "michigan/chr1.dose.vcf.gz",
        "michigan/chr22.dose.vcf.gz",
        "michigan/chrX.dose.vcf.gz",
        "more/ADNI3_chr1_final.vcf",
        "more/ADNI3_chr2_final.vcf",
        "more/GO2.chromosome_7.bcf",
        "more/all.vcf.bgz",
        "ADNI_GO_2_Forward_Bin.bed",
        "1000G.sites.vcf.gz",
        "panel.vcf.gz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_sets(tmp_path, AdniOptions(reference="panel.vcf.gz"))
    assert {name: len(files) for name, files in found} == {
        "ADNI_GO_2_Forward_Bin": 1,
        "ADNI3": 2,
        "GO2": 1,
        "all": 1,
        "michigan": 3,
    }
    assert found[0][0] == "ADNI_GO_2_Forward_Bin"


def checked(raw: Path, n: int = 9, **options: Any) -> tuple[str, str]:
    """Errors and notes of an export with VCF files."""
    faults = FaultCollector()
    rids = pl.Series(range(1, n + 1), dtype=pl.Int32)
    _, notes = genomic_check.check_genotypes(raw, AdniOptions(**options), rids, faults)
    return "\n".join(map(str, faults.faults)), "\n".join(notes)


def test_a_set_is_refused_if_its_files_contradict_each_other_or_the_tables(tmp_path: Path) -> None:
    first = vcf_text(*toy())
    second = vcf_text(*toy(chromosome="2"))
    build = "##contig=<ID={},length={}>\n"
    hg19, hg38 = (build.format("1", 249250621), build.format("chr1", 248956422))
    strangers = [t.replace("002_S", "NA") for t in (first, second)]
    exchanged = second.replace(ptid(1), "x").replace(ptid(2), ptid(1)).replace("x", ptid(2))
    beyond = first.replace("\t4000\t", "\t249250622\t")
    for name, texts, expected in (
        ("fine", (hg19 + first, second), ""),
        (
            "twice",
            (first, first),
            "g/chr2.vcf: expected one file per chromosome; found chromosome 1 also in g/chr1.vcf",
        ),
        ("order", (first, exchanged), "g/chr2.vcf: expected the 5 people of g/chr1.vcf"),
        ("builds", (hg19 + first, hg38 + second), "in one build; found g/chr1.vcf in hg19, g/chr2.vcf in hg38"),
        (
            "build",
            (hg38 + first, second),
            "g/chr1.vcf, column 'contig': expected positions in hg19; found hg38, by the",
        ),
        ("people", strangers, "column 'IID': expected PTIDs (SSS_S_RRRR) of participants in the tables; found 5 of 5"),
        ("position", (beyond, second), "g/chr1.vcf, column 'position': expected positions in hg19"),
    ):
        folder = tmp_path / name / "g"
        folder.mkdir(parents=True)
        for number, text in enumerate(texts, start=1):
            body = text[text.index("##fileformat") :]
            text = "##fileformat=VCFv4.2\n" + text.removesuffix(body) + body.split("\n", 1)[1]
            (folder / f"chr{number}.vcf").write_text(text)
        errors, notes = checked(folder.parent)
        assert expected in errors
        assert bool(errors) == bool(expected)
        assert name != "fine" or "genotypes: g (hg19, 5 people, 8 SNPs)\ng: 8 records" in notes


def test_people_may_have_doubled_and_numbered_ids(tmp_path: Path) -> None:
    bim, copies, people = toy(3)
    people = [f"0_{people[0]}", f"{people[1]}_{people[1]}", f"{people[2]} {people[2]}"]
    (tmp_path / "x.vcf").write_text(vcf_text(bim, copies, people))
    errors, notes = checked(tmp_path)
    assert not errors
    assert "not among them" not in notes


def test_reading_a_vcf_without_cyvcf2_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mrpipe\[genotypes\]'"):
        open_vcf([tmp_path / "x.vcf"], tmp_path / "x", Conversion())


def test_a_snp_below_the_thresholds_in_a_vcf_is_excluded_in_all_sets(tmp_path: Path) -> None:
    """With merge=union; the SNP at 2000 has a low R2 in the VCF."""
    bim, copies, people = toy(30)
    text = vcf_text(bim, copies, people).replace(
        "rs1\tG\tA\t.\tPASS\tAF=0.3;R2=0.95", "rs1\tG\tA\t.\tPASS\tAF=0.3;R2=0.5"
    )
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.vcf").write_text(text)
    fam = pl.DataFrame({"fid": "0", "iid": [ptid(i) for i in range(31, 61)], "father": "0", "mother": "0", "sex": "0"})
    plink.write_set(tmp_path / "raw" / "b", fam, bim, iter([bed_rows(copies)]))
    cohort = pl.DataFrame({"sample_id": [ptid(i) for i in range(1, 61)], "rid": range(1, 61)}).with_columns(
        phase=pl.lit("ADNI1")
    )
    options = {"merge": "union", "hwe": 0.0, "frequency_check": False}
    for r2, positions in ((0.8, [1000, 3000, 4000]), (0.0, [1000, 2000, 3000, 4000])):
        scratch = tmp_path / str(r2)
        scratch.mkdir()
        _, identity, *_ = assemble(tmp_path / "raw", cohort, AdniOptions(vcf_r2=r2, **options), scratch)
        assert (identity // 64 % 10**9).tolist() == positions


# --- the same data as PLINK sets ----------------------------------------------------------------------------------


def as_vcf(raw: Path, out: Path, names: Sequence[str], **form: Any) -> Path:
    """Copy an export, with sets replaced by folders of the same names with one VCF per chromosome."""
    shutil.copytree(raw, out)
    for name in names:
        write_chunks(out / "genetics" / name, out / "genetics" / f"{name}.bed", **form)
        for suffix in ("bed", "bim", "fam"):
            (out / "genetics" / f"{name}.{suffix}").unlink()
    return out


def test_vcf_chunks_give_the_store_of_the_plink_sets(tmp_path: Path) -> None:
    """One of the sets, which is in hg18, as an imputation server returns it."""
    simulate(DATASET, tmp_path / "raw", {"n_subjects": 60, "n_snps": 120, "images": False, "seed": 1})
    for path in (tmp_path / "raw" / "genetics").glob("ADNI_GO*"):
        path.unlink()
    as_vcf(tmp_path / "raw", tmp_path / "vcf", ["ADNI_cluster_01_forward_757LONI"], prefix="chr")
    options = {"maf": 0.0, "label": "baseline_dx"}
    for name in ("raw", "vcf"):
        build(DATASET, tmp_path / name, tmp_path / f"{name}.store", options, modalities=["genomic"])
    assert tables(tmp_path / "raw.store") == tables(tmp_path / "vcf.store")
