"""Genotypes of several PLINK sets in the store: alleles, merging, leakage between splits, and errors of an export."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.errors import DataError
from mrpipe.genetics import packing as genotypes
from mrpipe.genetics.packing import bed_rows
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.stages.simulate import simulate
from mrpipe.store.layout import truth_folder
from mrpipe.transforms.fit import fit
from tests.datasets.adni.adni_toy import faults_of

# Without thresholds and frequencies, the SNPs of the store do not depend on genotypes.
BLIND = {"geno": 1.0, "hwe": 0.0, "maf": 0.0, "mind": 1.0, "frequency_check": False}


# --- end to end ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated export with genotypes (`raw`), and a store with every SNP (`store`)."""
    folder = tmp_path_factory.mktemp("genomic")
    simulate(DATASET, folder / "raw", {"n_subjects": 160, "n_snps": 480, "images": False, "seed": 1})
    build(
        DATASET, folder / "raw", folder / "store", {"merge": "union", "geno": 1.0, "hwe": 0.0, "maf": 0.0, "mind": 1.0}
    )
    return folder


def test_stored_alleles_match_the_simulated_truth(built: Path) -> None:
    """The hg19 position, REF and ALT of each SNP are the true ones, and its allele frequency is plausible."""
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
    # SNPs that are not in the reference keep the alleles of the first chip that has them.
    assert same.mean() > 0.95
    assert (~same & ambiguous).sum() < 3
    order = np.array(list(zip(joined["chromosome"], joined["position"], strict=True)))
    assert (np.lexsort((order[:, 1], order[:, 0])) == np.arange(len(order))).all()
    counts = genotypes.call_counts(store.arrays("genomic").x, len(rows))
    frequency = (counts[1] + 2 * counts[2]) / (2 * counts[:3].sum(axis=0))
    close = np.abs(np.where(same, frequency - joined["frequency"].to_numpy(), 0.0))
    assert np.quantile(close, 0.99) < 0.25
    assert np.median(close) < 0.08


def test_a_participant_in_two_sets_has_one_record_in_the_store(built: Path) -> None:
    raw = built / "raw" / "genetics"
    people = [plink.open_set(p).fam["iid"].to_list() for p in sorted(raw.glob("*.bed"))]
    everyone = [i for s in people for i in s]
    assert len(everyone) == len(set(everyone)) + 2
    ids = mrpipe.open_store(built / "store").arrays("genomic").sample_id.tolist()
    assert len(ids) == len(set(ids))
    assert set(ids) <= set(everyone)
    description = mrpipe.open_store(built / "store").modalities[0].description
    assert "ADNI_cluster_01_forward_757LONI" in description


def test_union_adds_missing_calls_and_intersection_keeps_shared_snps(built: Path, tmp_path: Path) -> None:
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


def test_fitted_transforms_do_not_depend_on_evaluation_participants(built: Path, tmp_path: Path) -> None:
    """Changing the genotypes of evaluation participants in the .bed files does not change the fitted transform."""
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
        # Swapping the alleles preserves heterozygosity and changes every frequency and correlation.
        matrix[rows] = np.where(matrix[rows] == 3, 3, 2 - np.minimum(matrix[rows], 2))
        bed.write_bytes(plink.MAGIC + bed_rows(matrix).tobytes())
        changed += len(rows)
    assert changed > 5
    build(DATASET, raw, tmp_path / "store", BLIND)
    other = mrpipe.open_store(tmp_path / "store")
    names = [s.dictionary.filter(modality="genomic")["name"] for s in (store, other)]
    assert names[0].equals(names[1])
    after = fit(other, modalities=["genomic"])
    assert after.to_json().replace(other.store_id, store.store_id) == before
    assert not np.array_equal(store.arrays("genomic").x, other.arrays("genomic").x)


def test_fitted_transforms_depend_on_training_participants(built: Path) -> None:
    """Control for the test above: the transform does depend on training genotypes."""
    store = mrpipe.open_store(built / "store")
    train = store.arrays("genomic", part="train")
    rows = store.dictionary.filter(modality="genomic").sort("position")
    from mrpipe.transforms.genotypes import GenotypeTransform

    first = GenotypeTransform.fit(train, rows, genotypes.LdOptions())
    second = GenotypeTransform.fit(train.take(np.arange(len(train) // 2)), rows, genotypes.LdOptions())
    assert not np.array_equal(first.kept, second.kept)
    again = GenotypeTransform.from_dict(first.to_dict())
    np.testing.assert_array_equal(again.apply(train).x, first.apply(train).x)
    assert set(np.unique(first.apply(train).x)) <= {-1.0, 0.0, 1.0}
    # Packed genotypes select the same SNPs.
    packed = genotypes.take_snps(train.x, first.kept)
    calls = genotypes.unpack_range(packed, 0, len(first.kept))
    np.testing.assert_array_equal(np.where(calls == 3, first.mode, calls) - 1.0, first.apply(train).x)


# --- wrong builds -------------------------------------------------------------------------------------------------


@pytest.fixture
def export(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "raw", tmp_path / "raw"))


def test_error_for_a_missing_chain_file_gives_its_source(export: Path) -> None:
    next(export.rglob("*.chain.gz")).unlink()
    message = faults_of(export)
    assert "expected a chain file from hg18 to hg19 for ADNI_cluster_01_forward_757LONI" in message
    assert "goldenPath" in message


def test_a_chain_file_for_other_builds_is_rejected(export: Path) -> None:
    assert "expected a chain from hg38 to hg19; found hg18 to hg19" in faults_of(
        export, source_builds=("ADNI_cluster*=hg38", "*=hg19")
    )


def test_a_position_beyond_its_chromosome_reveals_the_wrong_build(export: Path) -> None:
    path = export / "genetics" / "ADNI_GO_2_Forward_Bin.bim"
    text = path.read_text().splitlines()
    fields = text[0].split("\t")
    assert fields[0] == "1"
    text[0] = "\t".join([*fields[:3], "249250622", *fields[4:]])
    path.write_text("\n".join(text) + "\n")
    assert "positions in hg19, where chromosome 1 ends at 249250621; found position 249250622" in faults_of(export)


def test_a_set_declared_in_the_wrong_build_is_rejected(export: Path, tmp_path: Path) -> None:
    check(DATASET, export, {"source_builds": ["*=hg19"]})
    with pytest.raises(
        DataError, match=r"ADNI_cluster_01_forward_757LONI\.bim.*expected the same positions as the reference"
    ):
        build(DATASET, export, tmp_path / "store", {"source_builds": ["*=hg19"]}, modalities=["genomic"])


def test_check_reports_a_truncated_bed(export: Path) -> None:
    bed = export / "genetics" / "ADNI3_PLINK_Final.bed"
    os.truncate(bed, bed.stat().st_size - 1)
    assert re.search(r"ADNI3_PLINK_Final\.bed: expected \d+ bytes for \d+ people and \d+ SNPs", faults_of(export))


def test_it_is_an_error_if_no_iid_is_a_ptid(export: Path, tmp_path: Path) -> None:
    for fam in (export / "genetics").glob("*.fam"):
        fam.write_text(fam.read_text().replace("_S_", "-"))
    with pytest.raises(DataError, match="IID must be the PTID"):
        build(DATASET, export, tmp_path / "store", {}, modalities=["genomic"])
