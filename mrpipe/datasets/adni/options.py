"""Options of the ADNI reader: labels and rows, features, genotypes; the images' own options are inherited."""

from __future__ import annotations

from dataclasses import dataclass

from mrpipe.datasets.adni.image.options import ImageOptions
from mrpipe.options import option

LABEL_POLICIES = ("stable_dx", "baseline_dx", "latest_dx")
ROW_POLICIES = ("profile", "baseline", "latest_update", "latest_before_dx")


@dataclass(frozen=True)
class AdniOptions(ImageOptions):
    """How a LONI export becomes samples and features; paths are absolute or relative to the export."""

    label: str = option(
        "stable_dx",
        "whose diagnosis is the label: subjects whose diagnosis never changes (the authors' rule), the diagnosis at "
        "baseline, or the latest one",
        choices=LABEL_POLICIES,
    )
    blank_diagnosis: str = option(
        "exclude",
        "stable_dx and a visit without diagnosis: exclude the subject (as the authors) or ignore the visit",
        choices=("exclude", "ignore"),
    )
    label_source: str = option(
        "dxsum", "table of the diagnoses: DXSUM, or DX of ADNIMERGE", choices=("dxsum", "adnimerge")
    )
    profile: str = option(
        "corrected",
        "corrected: declared features, codes and units; paper: the authors' columns and typing, without identifiers, "
        "dates, form metadata and onset years",
        choices=("corrected", "paper"),
    )
    rows: str = option(
        "profile",
        "which records of a subject count: of the baseline visit, the latest edited, or the latest up to the visit of "
        "the label; profile: baseline for corrected, latest_update for paper",
        choices=ROW_POLICIES,
    )
    dementia_drugs: bool = option(
        False, "keep cholinesterase inhibitors and memantine among the medications; they name the diagnosis"
    )
    plasma_abeta: bool = option(False, "read batemanlab (plasma Abeta42/40, mass spectrometry) into biospecimen")
    plasma_nfl: bool = option(False, "read Blennow's plasma NfL into biospecimen")
    isoprostane: bool = option(False, "read ISOPROSTANE (urine) into biospecimen")

    genotypes: str = option("", "folder of the PLINK sets (.bed, .bim, .fam); empty: found in the export")
    source_builds: tuple[str, ...] = option(
        ("ADNI_cluster_01_forward_757LONI*=hg18", "*=hg19"),
        "genome build of each PLINK set as pattern=build; the first pattern that matches the set's name counts",
    )
    target_build: str = option("hg19", "build that all sets are brought to", choices=("hg18", "hg19", "hg38"))
    chain: str = option("", "chain file (plain or .gz) to the target build; empty: the one in the export")
    reference: str = option(
        "",
        "strands and allele frequencies: 1000 Genomes legend or VCF (plain or .gz); empty: the one in the export, "
        "or the first set",
    )
    frequency_check: bool = option(
        True,
        "place A/T and C/G SNPs by allele frequency and drop SNPs whose frequency is far from the reference; without, "
        "A/T and C/G SNPs are dropped and, with the thresholds off, no genotype decides which SNPs are in the store",
    )
    off_reference: str = option("keep", "SNPs that the reference does not hold", choices=("keep", "drop"))
    chromosomes: tuple[str, ...] = option(tuple(str(c) for c in range(1, 23)), "chromosomes that are read")
    mind: float = option(0.1, "people with a higher share of missing calls in a set are left out of it")
    geno: float = option(0.05, "SNPs with a higher share of missing calls in a set are left out of it")
    maf: float = option(0.01, "SNPs with a lower minor allele frequency in a set are left out of it")
    hwe: float = option(1e-6, "SNPs with a lower exact Hardy-Weinberg p value in a set are left out of it; 0: none")
    merge: str = option(
        "union",
        "SNPs of all sets (calls of a set that lacks one are missing), or only those in every set",
        choices=("union", "intersection"),
    )
