"""The genotype reader on real data: HapMap3 in hg18 with its chain file, combined with simulated tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.datasets.adni.genomic.lift import LENGTHS
from mrpipe.genetics.packing import call_counts, unpack_at
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.stages.simulate import simulate
from mrpipe.transforms.fit import fit
from tests.datasets.adni.test_vcf import write_chunks
from tests.stores import tables

pytestmark = pytest.mark.real_data
OPTIONS: Mapping[str, Any] = {"label": "baseline_dx", "source_builds": ["*=hg18"]}


@pytest.fixture(scope="module")
def export(real_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated tables, and HapMap3 with the IDs of simulated participants. The .bed is a symbolic link."""
    raw = tmp_path_factory.mktemp("hapmap") / "raw"
    simulate(DATASET, raw, {"n_subjects": 960, "n_snps": 48, "images": False})
    source, folder = real_data_dir / "genotypes", raw / "genetics"
    for path in folder.iterdir():
        path.unlink()
    ids = pl.read_parquet(raw.with_name("raw.truth") / "truth.parquet")["sample_id"].to_list()
    for suffix in ("bed", "bim"):
        (folder / f"HapMap3.{suffix}").symlink_to(source / f"hapmap3_hg18.{suffix}")
    people = [line.split() for line in (source / "hapmap3_hg18.fam").read_text().splitlines()]
    renamed = [" ".join([p[0], iid, *p[2:]]) for p, iid in zip(people, ids, strict=False)]
    (folder / "HapMap3.fam").write_text("\n".join(renamed) + "\n")
    (folder / "NCBI36_to_GRCh37.chain.gz").symlink_to(source / "NCBI36_to_GRCh37.chain.gz")
    return raw


def test_hapmap_is_lifted_over_and_stored_without_changing_calls(export: Path, tmp_path: Path) -> None:
    build(DATASET, export, tmp_path / "store", OPTIONS, modalities=["genomic", "clinical"])
    store = mrpipe.open_store(tmp_path / "store")
    store.verify(deep=True)
    hapmap = plink.open_set(export / "genetics" / "HapMap3.bed")
    rows = store.dictionary.filter(modality="genomic").sort("position")
    # Autosomal SNPs out of 14,389 that can be lifted over and pass quality control in a multi-ethnic sample.
    assert 5_000 < len(rows) < 14_389
    site = rows["description"].str.extract_groups(r"^(\w+):(\d+):(\w):(\w) hg19$").struct.unnest()
    chromosome, position = site["1"].cast(pl.Int64).to_numpy(), site["2"].cast(pl.Int64).to_numpy()
    assert (position <= np.array(LENGTHS["hg19"])[chromosome - 1]).all()
    assert (np.diff(chromosome * 10**9 + position) > 0).all()
    old = dict(hapmap.bim.select("id", "pos").iter_rows())
    names = rows["source_column"].to_list()
    moved = np.array([old[n] for n in names]) != position
    # Nearly every position differs between hg18 and hg19.
    assert moved.mean() > 0.98
    # Every stored call is the call of the same person in the .bed, in copies of the counted allele.
    arrays = store.arrays("genomic")
    at = np.arange(0, len(rows), 97)
    index = dict(zip(hapmap.bim["id"].to_list(), range(len(hapmap.bim)), strict=True))
    source = np.array([index[names[j]] for j in at])
    order = np.argsort(source)
    person = {iid: i for i, iid in enumerate(hapmap.fam["iid"].to_list())}
    copies = plink.calls(hapmap, source[order])[[person[s] for s in arrays.sample_id.tolist()]]
    a1 = hapmap.bim["a1"].to_numpy()[source[order]]
    counted = site["4"].to_numpy()[at[order]]
    expected = np.where((a1 == counted)[None, :] | (copies == 3), copies, 2 - np.minimum(copies, 2))
    np.testing.assert_array_equal(unpack_at(arrays.x, at[order]), expected)
    assert call_counts(arrays.x, len(rows))[3].sum() < 0.02 * arrays.x.shape[0] * len(rows)
    transform = fit(store, modalities=["genomic"])
    x = transform.apply("genomic", store.arrays("genomic")).x
    assert set(np.unique(x)) <= {-1.0, 0.0, 1.0}
    assert 1_000 < x.shape[1] < len(rows)


def test_hapmap_declared_as_hg19_is_rejected_by_check(export: Path) -> None:
    from mrpipe.errors import DataError

    with pytest.raises(DataError, match=r"HapMap3\.bim.*positions in hg19"):
        check(DATASET, export, {"source_builds": ["*=hg19"]})


@pytest.mark.slow
def test_hapmap_as_vcf_chunks_gives_the_same_store(export: Path, tmp_path: Path) -> None:
    """Chromosomes 20 to 22 as an imputation server returns them, with the same calls in GT and as dosages."""
    pytest.importorskip("cyvcf2")
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in export.glob("*.csv"):
        (raw / path.name).symlink_to(path)
    write_chunks(raw / "HapMap3", export / "genetics" / "HapMap3.bed", range(20, 23), fields="GT:DS", prefix="chr")
    (raw / "hg18.chain.gz").symlink_to(export / "genetics" / "NCBI36_to_GRCh37.chain.gz")
    options = {**OPTIONS, "chromosomes": ["20", "21", "22"]}

    def built(folder: Path, name: str, **more: Any) -> mrpipe.Store:
        build(DATASET, folder, tmp_path / name, {**options, **more}, modalities=["genomic"])
        return mrpipe.open_store(tmp_path / name)

    plinks = built(export, "plink")
    assert tables(plinks) == tables(built(raw, "gt")) == tables(built(raw, "ds", vcf_calls="DS"))
    # SNPs with less than half of maf are dropped early: the counts in the description of the modality differ.
    one, other = built(export, "common", maf=0.2), built(raw, "common_vcf", maf=0.2)
    assert len(one.dictionary) < len(plinks.dictionary)
    assert one.dictionary.equals(other.dictionary)
    np.testing.assert_array_equal(one.arrays("genomic").x, other.arrays("genomic").x)
