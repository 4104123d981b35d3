"""Imputation of missing calls with a phased reference panel."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.adni.genomic import lift as lift
from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.datasets.adni.genomic.strand import read_reference
from mrpipe.errors import DataError, UsageError
from mrpipe.genetics.packing import bed_rows
from mrpipe.genetics.vcf import Conversion
from mrpipe.keyed import generator
from tests.datasets.adni.plink_toy import random_calls, require, write_random


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["beagle", "minimac4"])
def test_masked_calls_are_imputed_accurately(tool: str, real_data_dir: Path, tmp_path: Path) -> None:
    """203 people of 1000 Genomes, a third of the common SNPs, 5 % of calls masked; panel of 300 other people."""
    from mrpipe.datasets.adni.genomic.impute import Imputer, impute_set
    from mrpipe.datasets.adni.genomic.vcf import open_vcf

    require(tool)
    require("beagle")
    folder = real_data_dir / "genotypes"
    target = open_vcf([folder / "chr20_1-4Mb_targets.vcf.gz"], tmp_path / "target", Conversion())
    everyone = plink.calls(target)
    f = everyone.mean(axis=0) / 2
    position = target.bim["pos"].to_numpy()
    once = ~target.bim["pos"].is_duplicated().to_numpy()
    typed = np.flatnonzero((np.minimum(f, 1 - f) >= 0.01) & once & (position < 1_400_000))[::3]
    # Restrict the reference to the same region, so that imputation takes seconds.
    panel = tmp_path / "panel.vcf.gz"
    with gzip.open(folder / "chr20_1-4Mb_reference_phased.vcf.gz", "rt") as source, gzip.open(panel, "wt") as out:
        out.writelines(line for line in source if line.startswith("#") or int(line.split("\t", 2)[1]) < 1_450_000)
    truth = everyone[:, typed]
    mask = generator(0, "mask").random(truth.shape) < 0.05
    rows = bed_rows(np.where(mask, 3, truth).astype(np.uint8))
    plink.write_set(tmp_path / "set", target.fam, target.bim[typed.tolist()], iter([rows]))
    imputer = Imputer(tool, folder / "chr20.b37.gmap.gz")
    done = impute_set(tmp_path / "set.bed", panel, tmp_path / "out", imputer)
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


def test_a_set_is_lifted_over_before_imputation(toy_chain: Path, tmp_path: Path) -> None:
    """Known positions of TOY_CHAIN (1-based): chr1 200 → 300; chr2 5 → chr7, strand reversed."""
    from mrpipe.datasets.adni.genomic.impute import lifted_set

    calls = random_calls(0, 8, 4)
    opened = write_random(tmp_path / "s", calls, np.array([1, 1, 2, 3]))
    bim = opened.bim.with_columns(pl.Series("pos", [200, 450, 5, 10]))
    plink.write_set(tmp_path / "s", opened.fam, bim, iter([bed_rows(calls)]))
    got, rows = lifted_set(plink.open_set(tmp_path / "s.bed"), lift.ChainFile(toy_chain))
    # 450 is in a gap of the first chain and covered by the third, which has a lower score; chr3 is in no chain.
    assert rows.tolist() == [0, 1, 2]
    known = [
        lift.ChainFile(toy_chain).lift(np.array([c]), np.array([p])) for c, p in (("1", 200), ("1", 450), ("2", 5))
    ]
    assert got.bim["pos"].to_list() == [int(k.position[0]) for k in known]
    assert got.bim["pos"][0] == 300
    assert got.bim["chrom"].to_list() == ["1", "1", "7"]
    assert got.bim.select("a1", "a2").rows() == [("A", "G"), ("A", "G"), ("T", "C")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_genetic_maps_are_converted_to_beagle_format(suffix: str, tmp_path: Path) -> None:
    from mrpipe.datasets.adni.genomic.impute import plink_map

    def written(name: str, text: str) -> Path:
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
        return path

    out = plink_map(written("three", "pos\tchr\tcM\n61795\t20\t0.1\n63231\t20\t0.2\n"), tmp_path / "out.map")
    assert out.read_text() == "20 . 0.1 61795\n20 . 0.2 63231\n"
    beagle = written("beagle", "20 . 0.1 61795\n20 . 0.2 63231\n")
    assert plink_map(beagle, tmp_path / "other.map") == beagle


def _broken(path: Path, text: str) -> Path:
    """Write a gzip file with 40 bytes in the middle overwritten."""
    data = bytearray(gzip.compress(text.encode()))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    return path


def test_errors_for_damaged_files_name_the_file(tmp_path: Path) -> None:
    from mrpipe.datasets.adni.genomic.impute import plink_map
    from mrpipe.datasets.adni.genomic.vcf import open_vcf

    pytest.importorskip("cyvcf2")
    words = generator(0, "damage").integers(0, 10**9, 400)
    table = "id chr position a0 a1 ALL\n" + "".join(f"rs{w} 1 {w} A G 0.2\n" for w in words)
    lines = "".join(f"##{w}\n" for w in words)
    for read, path in (
        (lambda p: read_reference(p, ["1"]), _broken(tmp_path / "a.legend.gz", table)),
        (lambda p: read_reference(p, ["1"]), _broken(tmp_path / "b.vcf.gz", lines + "#CHROM\n")),
        (lambda p: open_vcf([p], tmp_path / "c", Conversion()), _broken(tmp_path / "c.vcf.gz", lines + "#CHROM\n")),
        (lambda p: plink_map(p, tmp_path / "out"), _broken(tmp_path / "d.map.gz", "pos\tchr\tcM\n" + lines)),
        (lambda p: plink_map(p, tmp_path / "out"), tmp_path / "absent.map"),
    ):
        with pytest.raises(DataError, match=path.name):
            read(path)


def test_missing_calls_are_filled_from_the_imputed_vcf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the set, alleles are exchanged (SNP 1) and on the other strand (SNP 2); the panel lacks SNP 4."""
    from mrpipe.datasets.adni.genomic import impute as genomic_impute

    pytest.importorskip("cyvcf2")
    truth = random_calls(0, 40, 5, missing=0.0)
    truth[:, 3] = truth[:, 0]
    calls = np.where(generator(0, "mask").random(truth.shape) < 0.2, 3, truth).astype(np.uint8)
    opened = write_random(tmp_path / "s", calls)
    bim = opened.bim.with_columns(a1=pl.Series(["A", "G", "T", "A", "A"]), a2=pl.Series(["G", "A", "C", "G", "G"]))
    plink.write_set(tmp_path / "s", opened.fam, bim, iter([bed_rows(calls)]))
    rows = "".join(f"1\t{p}\t.\tG\tA\t.\t.\t.\n" for p in bim["pos"][:4])
    (tmp_path / "panel.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + rows)
    copies = truth.copy()
    copies[:, 1] = 2 - copies[:, 1]

    def beagle(self: object, target: Path, reference: Path, out: Path, *, impute: bool) -> Path:
        sites = pl.DataFrame({"chrom": "1", "pos": bim["pos"][:4], "id": ".", "ref": "G", "alt": "A"})
        genomic_impute.write_vcf(out.with_name("done.vcf.gz"), opened.fam["iid"].to_list(), sites, copies[:, :4])
        return out.with_name("done.vcf.gz")

    monkeypatch.setattr(genomic_impute.Imputer, "beagle", beagle)
    done = genomic_impute.impute_set(tmp_path / "s.bed", tmp_path / "panel.vcf", tmp_path / "out")
    after = plink.calls(plink.open_set(tmp_path / "out.bed"))
    np.testing.assert_array_equal(after[:, :4], truth[:, :4])
    np.testing.assert_array_equal(after[:, 4], calls[:, 4])
    assert (done.n_snps, done.n_matched, done.n_left) == (5, 4, (calls[:, 4] == 3).sum())


def test_a_set_cannot_overwrite_itself_and_is_written_atomically(tmp_path: Path) -> None:
    from mrpipe.datasets.adni.genomic.impute import impute_set

    calls = random_calls(0, 8, 4)
    write_random(tmp_path / "s", calls, np.array([1, 1, 2, 3]))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="another name"):
        impute_set(tmp_path / "s.bed", tmp_path / "panel.vcf.gz", tmp_path / "s")

    def stopped() -> Iterator[np.ndarray]:
        yield bed_rows(calls)
        raise KeyboardInterrupt

    opened = plink.open_set(tmp_path / "s.bed")
    with pytest.raises(KeyboardInterrupt):
        plink.write_set(tmp_path / "s", opened.fam.head(3), opened.bim.head(2), stopped())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_imputation_errors_for_a_missing_set_or_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mrpipe.datasets.adni.genomic import impute as genomic_impute

    assert genomic_impute.main([str(tmp_path / "no.bed"), "x.vcf.gz", str(tmp_path / "out")]) == 3
    assert "expected the .fam file of no.bed" in capsys.readouterr().err
    monkeypatch.setattr(genomic_impute.shutil, "which", lambda tool: None)
    with pytest.raises(genomic_impute.UsageError, match=r"requires 'beagle'.*apt-get install beagle"):
        genomic_impute.Imputer().beagle(tmp_path / "t.vcf.gz", tmp_path / "r.vcf.gz", tmp_path / "o")
