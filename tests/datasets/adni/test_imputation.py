"""Imputation of missing calls with a phased reference panel."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.adni.genomic import lift as lift
from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.datasets.adni.genomic.impute import impute_set, main, write_target
from mrpipe.datasets.adni.genomic.plink import open_vcf
from mrpipe.datasets.adni.genomic.strand import read_reference
from mrpipe.errors import DataError
from mrpipe.genetics.packing import bed_rows
from mrpipe.genetics.vcf import Conversion
from mrpipe.keyed import generator
from tests.datasets.adni.plink_toy import random_calls, require, write_random


@pytest.mark.real_data
@pytest.mark.slow
def test_masked_calls_are_imputed_accurately(real_data_dir: Path, tmp_path: Path) -> None:
    """203 people of 1000 Genomes, a third of the common SNPs, 5 % of calls masked; panel of 300 other people."""
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
    with gzip.open(folder / "chr20.b37.gmap.gz", "rt") as source:
        rows = [line.split() for line in source][1:]
    genetic_map = tmp_path / "plink.map"
    genetic_map.write_text("".join(f"{chromosome} . {cm} {position}\n" for position, chromosome, cm in rows))
    n_snps = impute_set(tmp_path / "set.bed", panel, tmp_path / "out", genetic_map)
    got = open_vcf([tmp_path / "out.vcf.gz"], tmp_path / "got", Conversion())
    assert got.fam["iid"].to_list() == target.fam["iid"].to_list()
    assert len(got.bim) == n_snps > 0.95 * len(typed)
    # Aligned to the panel, A1 may be the other allele of the target.
    bim = target.bim[typed.tolist()].with_row_index("i").join(got.bim.with_row_index("j"), on=["chrom", "pos"])
    i, swap = bim["i"].to_numpy(), (bim["a1"] != bim["a1_right"]).to_numpy()
    after = plink.calls(got)[:, bim["j"].to_numpy()]
    after, mask, truth = np.where(swap, 2 - after, after), mask[:, i], truth[:, i]
    assert (after != 3).all()
    np.testing.assert_array_equal(after[~mask], truth[~mask])
    filled = mask
    mode = np.array([np.bincount(c[c < 3], minlength=3).argmax() for c in np.where(mask, 3, truth).T])
    by_mode = np.broadcast_to(mode, truth.shape)
    concordance, r2 = (
        (after == truth)[filled].mean(),
        np.corrcoef(after[filled].astype(float), truth[filled])[0, 1] ** 2,
    )
    print(f"Beagle: concordance {concordance:.4f} (mode {(by_mode == truth)[filled].mean():.4f}), dosage r2 {r2:.3f}")
    assert concordance > 0.95 > (by_mode == truth)[filled].mean()
    assert r2 > 0.9


def variants(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt") as lines:
        return [line.split() for line in lines if not line.startswith("#")]


def panel_of(path: Path, *sites: tuple[str, int, str, str]) -> Path:
    rows = "".join(f"{c}\t{p}\t.\t{ref}\t{alt}\t.\t.\t.\n" for c, p, ref, alt in sites)
    path.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + rows)
    return path


def test_a_set_is_lifted_over_before_imputation(toy_chain: Path, tmp_path: Path) -> None:
    """Known positions of TOY_CHAIN (1-based): chr1 200 → 300; chr2 5 → chr7, strand reversed."""
    calls = random_calls(0, 8, 4)
    opened = write_random(tmp_path / "s", calls, np.array([1, 1, 2, 3]))
    bim = opened.bim.with_columns(pl.Series("pos", [200, 450, 5, 10]))
    plink.write_set(tmp_path / "s", opened.fam, bim, iter([bed_rows(calls)]))
    # 450 is in a gap of the first chain and covered by the third, which has a lower score; chr3 is in no chain.
    chain = lift.ChainFile(toy_chain)
    second, seventh = (chain.lift(np.array([c]), np.array([p])).position[0] for c, p in (("1", 450), ("2", 5)))
    sites = (("1", 300, "G", "A"), ("1", second, "G", "A"), ("7", seventh, "C", "T"), ("3", 10, "G", "A"))
    panel = panel_of(tmp_path / "panel.vcf", *sites)
    assert write_target(tmp_path / "s.bed", panel, tmp_path / "t.vcf.gz", toy_chain) == 3
    found = [(c, int(p), ref, alt) for c, p, _, ref, alt, *_ in variants(tmp_path / "t.vcf.gz")]
    assert found == [*sites[:3]]


def _broken(path: Path, text: str) -> Path:
    """Write a gzip file with 40 bytes in the middle overwritten."""
    data = bytearray(gzip.compress(text.encode()))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    return path


def test_errors_for_damaged_files_name_the_file(tmp_path: Path) -> None:
    pytest.importorskip("cyvcf2")
    words = generator(0, "damage").integers(0, 10**9, 400)
    table = "id chr position a0 a1 ALL\n" + "".join(f"rs{w} 1 {w} A G 0.2\n" for w in words)
    lines = "".join(f"##{w}\n" for w in words)
    for read, path in (
        (lambda p: read_reference(p, ["1"]), _broken(tmp_path / "a.legend.gz", table)),
        (lambda p: read_reference(p, ["1"]), _broken(tmp_path / "b.vcf.gz", lines + "#CHROM\n")),
        (lambda p: open_vcf([p], tmp_path / "c", Conversion()), _broken(tmp_path / "c.vcf.gz", lines + "#CHROM\n")),
    ):
        with pytest.raises(DataError, match=path.name):
            read(path)


def test_a_set_is_aligned_to_the_panel_and_its_calls_replaced_by_those_of_beagle(tmp_path: Path, monkeypatch) -> None:
    """In the set, alleles are exchanged (SNP 1) and on the other strand (SNP 2); the panel lacks SNP 4."""
    calls = random_calls(0, 40, 5, missing=0.2)
    calls[:, 3] = calls[:, 0]
    opened = write_random(tmp_path / "s", calls)
    bim = opened.bim.with_columns(a1=pl.Series(["A", "G", "T", "A", "A"]), a2=pl.Series(["G", "A", "C", "G", "G"]))
    plink.write_set(tmp_path / "s", opened.fam, bim, iter([bed_rows(calls)]))
    panel = panel_of(tmp_path / "panel.vcf", *(("1", p, "G", "A") for p in bim["pos"][:4]))
    # This Beagle copies its target, and reports its options.
    program = tmp_path / "bin" / "beagle"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/options\ncp "${{1#gt=}}" "${{3#out=}}.vcf.gz"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert main([str(tmp_path / "s.bed"), str(panel), str(tmp_path / "imputed" / "s"), "--threads", "2"]) == 0
    assert f"ref={panel} " in (tmp_path / "options").read_text()
    assert "impute=false nthreads=2" in (tmp_path / "options").read_text()
    assert [p.name for p in (tmp_path / "imputed").iterdir()] == ["s.vcf.gz"]
    copies = calls[:, :4].copy()
    copies[:, 1] = np.where(copies[:, 1] == 3, 3, 2 - copies[:, 1])
    rows = variants(tmp_path / "imputed" / "s.vcf.gz")
    assert [(int(r[1]), r[2], r[3], r[4]) for r in rows] == [
        (p, f"rs{j}", "G", "A") for j, p in enumerate(bim["pos"][:4])
    ]
    written = np.array(["0/0", "0/1", "1/1", "./."])[copies.T].tolist()
    assert [r[9:] for r in rows] == written


def test_a_set_is_replaced_as_a_whole(tmp_path: Path) -> None:
    calls = random_calls(0, 8, 4)
    write_random(tmp_path / "s", calls, np.array([1, 1, 2, 3]))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def stopped() -> Iterator[np.ndarray]:
        yield bed_rows(calls)
        raise KeyboardInterrupt

    opened = plink.open_set(tmp_path / "s.bed")
    with pytest.raises(KeyboardInterrupt):
        plink.write_set(tmp_path / "s", opened.fam.head(3), opened.bim.head(2), stopped())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_imputation_errors_for_a_missing_set_or_tool_and_for_a_failure(tmp_path: Path, monkeypatch, capsys) -> None:
    command = [str(tmp_path / "s.bed"), str(tmp_path / "panel.vcf"), str(tmp_path / "out")]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(command) == 2
    assert "requires 'beagle', which is not on PATH (Debian: apt-get install beagle)" in capsys.readouterr().err
    (tmp_path / "beagle").write_text("#!/bin/sh\necho no such map >&2\nexit 4\n")
    (tmp_path / "beagle").chmod(0o755)
    assert main(command) == 3
    assert "expected the .fam file of s.bed" in capsys.readouterr().err
    write_random(tmp_path / "s", random_calls(0, 8, 4))
    panel_of(tmp_path / "panel.vcf", ("1", 5, "G", "A"))
    assert main(command) == 3
    assert "expected SNPs that are in panel.vcf" in capsys.readouterr().err
    panel_of(tmp_path / "panel.vcf", ("1", 1000, "G", "A"))
    assert main(command) == 3
    assert "beagle: expected exit status 0; found 4: no such map" in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if p.is_dir() or p.name.startswith("out")]
