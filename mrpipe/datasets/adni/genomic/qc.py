"""Quality control of one PLINK set, equivalent to plink's --mind, --geno, --hwe and --maf in this order.

These filters assess the genotyping chip, so they use everyone in the set and no labels. The reader applies the minor
allele frequency to all sets together. Pruning and imputation are fitted on training participants
(`mrpipe.transforms.genotypes`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from mrpipe.datasets.adni.genomic.plink import PlinkSet, missing_per_person, snp_counts

_HAPLOID = ("X", "Y", "MT")


@dataclass(frozen=True)
class QualityControl:
    """Result of quality control.

    Attributes:
        people: (people,) whether each person is kept.
        snps: rows of the kept SNPs in the .bim, ascending.
        frequency: (len(snps),) frequency of A1 among the kept people.
        missing: (len(snps),) number of kept people without a call.
        missing_of: (people,) number of missing calls per person over all SNPs that entered quality control.
    """

    people: NDArray[np.bool_]
    snps: NDArray[np.int64]
    frequency: NDArray[np.float64]
    missing: NDArray[np.int64]
    missing_of: NDArray[np.int64]


def exact_hwe(het: NDArray[np.int64], hom1: NDArray[np.int64], hom2: NDArray[np.int64]) -> NDArray[np.float64]:
    """P-values of the exact Hardy-Weinberg test (Wigginton, Cutler and Abecasis 2005), as in plink --hardy.

    Given the allele counts, the p-value is the total probability of all heterozygote counts that are at most as likely
    as the observed one.
    """
    if not len(het):
        return np.ones(0)
    counts = np.stack([het, np.minimum(hom1, hom2), np.maximum(hom1, hom2)])
    triples, inverse = np.unique(counts, axis=1, return_inverse=True)
    p_values = np.ones(triples.shape[1])
    for chunk in np.split(np.arange(triples.shape[1]), range(2048, triples.shape[1], 2048)):
        h, rare, common = triples[:, chunk]
        n, n_rare = h + rare + common, 2 * rare + h
        # The heterozygote count has the same parity as the count of the rarer allele.
        k = np.arange(0, int(n_rare.max(initial=0)) + 1, 2)[None, :] + (n_rare % 2)[:, None]
        possible = k <= n_rare[:, None]
        kk = np.where(possible, k, (n_rare % 2)[:, None])
        r = (n_rare[:, None] - kk) // 2
        c = n[:, None] - kk - r
        log_p = kk * np.log(2.0) - gammaln(kk + 1.0) - gammaln(r + 1.0) - gammaln(c + 1.0)
        log_p = np.where(possible, log_p, -np.inf)
        log_p -= log_p.max(axis=1, keepdims=True)
        p = np.exp(log_p)
        observed = np.take_along_axis(p, ((h - n_rare % 2) // 2)[:, None], axis=1)
        p_values[chunk] = (p * (p <= observed * (1 + 1e-9))).sum(axis=1) / p.sum(axis=1)
    return np.minimum(p_values[inverse.ravel()], 1.0)


def _hwe_fails(counts: NDArray[np.int64], threshold: float) -> NDArray[np.bool_]:
    """Whether each SNP fails the exact test. The exact sum is skipped where χ² already rules out a failure."""
    two, one, none = counts[:3].astype(np.float64)
    n = np.maximum(two + one + none, 1.0)
    p = (2 * two + one) / (2 * n)
    expected = np.stack([n * p * p, 2 * n * p * (1 - p), n * (1 - p) ** 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        chi2 = np.nansum((counts[:3] - expected) ** 2 / expected, axis=0)
    # With at least five expected per cell and χ² below 10 (p = 0.0016), no exact p-value is near 1e-6.
    open_case = ~((chi2 < 10) & (expected.min(axis=0) >= 5)) if threshold < 1e-4 else np.ones(len(chi2), dtype=np.bool_)
    fails: NDArray[np.bool_] = np.zeros(len(chi2), dtype=np.bool_)
    rows = np.flatnonzero(open_case)
    fails[rows] = exact_hwe(counts[1, rows], counts[0, rows], counts[2, rows]) < threshold
    return fails


def quality_control(
    plink: PlinkSet, snps: NDArray[np.int64], *, mind: float, geno: float, hwe: float, maf: float
) -> QualityControl:
    """Filter people by missing calls, then SNPs by missing calls, Hardy-Weinberg test and minor allele frequency.

    Args:
        snps: rows of the .bim to consider (requested chromosomes, alleles A, C, G, T).
    """
    missing = missing_per_person(plink, snps)
    people = missing <= mind * max(len(snps), 1)
    counts = snp_counts(plink, people, snps)
    n_people = max(int(people.sum()), 1)
    called = counts[:3].sum(axis=0)
    keep = counts[3] <= geno * n_people
    if hwe > 0:
        haploid = np.isin(plink.bim["chrom"].to_numpy()[snps], _HAPLOID)
        rows = np.flatnonzero(keep & ~haploid)
        keep[rows] &= ~_hwe_fails(counts[:, rows], hwe)
    with np.errstate(invalid="ignore"):
        frequency = (2 * counts[0] + counts[1]) / (2 * called)
    minor = np.minimum(frequency, 1 - frequency)
    keep &= (minor >= maf) & (minor > 0) if maf > 0 else called > 0
    return QualityControl(people, snps[keep], frequency[keep], counts[3, keep], missing)
