"""Merge sets of real genotypes: discordance of people genotyped twice, and how well the set can be told from the store.

    python benchmarks/merging.py --data DIR        # HapMap3 (hg18), its chain file, and 1000 Genomes chr20

Three experiments, each with and without a reference of allele frequencies:

* `1000G`: the people who are both in HapMap3 (hg18) and in 1000 Genomes (hg19, chr20 1-4 Mb).
* `lifted`: HapMap3 and its lifted copy with 0.84 % wrong calls and 10 % of the SNPs on the other strand. One set has
  people of European and Asian ancestry, the other of African ancestry; 100 people are in both.
* `chips`: HapMap3 people divided at random into three sets. Each chip lacks a quarter of the SNPs and has its own
  strands and rates of missing calls (`equal`: 0.5 % everywhere). A logistic regression predicts the set (five-fold
  cross-validation, stratified), from indicators of missing calls, and from calls imputed by the most frequent call.

Results: benchmarks/genotypes.md.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.datasets.adni.genomic.lift import ChainFile
from mrpipe.datasets.adni.genomic.merge import merged_rows
from mrpipe.datasets.adni.genomic.plink import calls, open_set, open_vcf, write_set
from mrpipe.datasets.adni.genomic.reader import assemble
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.genetics.packing import bed_rows, unpack_range
from mrpipe.genetics.vcf import Conversion
from mrpipe.keyed import generator

ERRORS, FLIPPED = 0.0084, 0.10
_OTHER_STRAND = str.maketrans("ACGT", "TGCA")


def write(raw, name, people, bim, copies):
    """Write a PLINK set of numbered people (PTIDs) to the export."""
    fam = pl.DataFrame(
        {"fid": "0", "iid": [f"002_S_{i:04d}" for i in people], "father": "0", "mother": "0", "sex": "1"}
    )
    write_set(raw / name, fam, bim, iter([bed_rows(np.ascontiguousarray(copies, dtype=np.uint8))]))


def flip(bim, which):
    """Write the SNPs `which` with the alleles of the other strand."""
    return bim.with_columns(
        pl.when(pl.Series(which))
        .then(pl.Series([a.translate(_OTHER_STRAND) for a in bim[c]]))
        .otherwise(pl.col(c))
        .alias(c)
        for c in ("a1", "a2")
    )


def palindromic(a1, a2):
    return np.array([x + y in ("AT", "TA", "CG", "GC") for x, y in zip(a1, a2, strict=True)])


def write_legend(path, bim, frequency):
    """Write a reference: a1 of the set is the alternative allele with this frequency."""
    frame = bim.select(
        "id", pl.col("chrom").alias("chr"), pl.col("pos").alias("position"), pl.col("a2").alias("a0"), "a1"
    )
    path.write_text(frame.with_columns(pl.Series("ALL", frequency)).write_csv(separator=" "))


def frequency_of(copies):
    called = copies != 3
    return np.where(called, copies, 0).sum(axis=0) / np.maximum(2 * called.sum(axis=0), 1)


def merged(raw, n_people, **options):
    """Merge the sets of an export: alleles of the SNPs, per set all its calls (people, SNPs), people, merged calls."""
    cohort = pl.DataFrame({"sample_id": [f"002_S_{i:04d}" for i in range(n_people)], "rid": range(n_people)})
    cohort = cohort.with_columns(pl.lit("ADNI1").alias("phase"))
    sets, identity, panels, tried = assemble(raw, cohort, AdniOptions(**options), raw)
    alleles = [np.array(list("ACGT"))[identity // by % 8] for by in (8, 1)]
    each = []
    for p in panels:
        n = p.plink.n_people
        rows = merged_rows([replace(p, people=np.arange(n), target=np.arange(n))], n, len(identity))
        each.append((p.plink.fam["iid"].str.slice(6).cast(pl.Int64).to_numpy(), unpack_range(rows, 0, len(identity))))
    n_kept = int((tried["status"] == "ok").sum())
    store = unpack_range(merged_rows(panels, n_kept, len(identity)), 0, len(identity))
    origin = np.zeros(n_kept, dtype=np.int64)
    for s, p in enumerate(panels):
        origin[p.target] = s
    return alleles, each, store, origin, sets


def discordance(first, second, people):
    """Per SNP: number of compared and of different calls of the same people in two sets (ids, calls)."""
    (ids_a, a), (ids_b, b) = first, second
    a, b = (x[[ids.tolist().index(i) for i in people]] for ids, x in ((ids_a, a), (ids_b, b)))
    both = (a != 3) & (b != 3)
    return both.sum(axis=0), ((a != b) & both).sum(axis=0)


def show_discordance(what, compared, different, ambiguous):
    def rate(rows):
        n = int(compared[rows].sum())
        return f"{different[rows].sum() / n:7.2%} of {n:>8,} calls" if n else "       none       "

    shared = compared > 0
    print(
        f"  {what:34s} all {rate(shared)}; A/T, C/G {rate(shared & ambiguous)} ({int((shared & ambiguous).sum())} SNPs)"
    )


def raw_discordance(bim_a, a, bim_b, b, ids_a, ids_b, people, what):
    """Discordance before merging: SNPs matched by position (same build), alleles as written or complemented."""
    left = bim_a.with_row_index("i").join(bim_b.with_row_index("j"), on=["chrom", "pos"], suffix="_b")
    same = pl.concat_str("a1", "a2") == pl.concat_str("a1_b", "a2_b")
    swap = pl.concat_str("a1", "a2") == pl.concat_str("a2_b", "a1_b")
    comp = [pl.col(c).str.replace_many(list("ACGT"), list("TGCA")) for c in ("a1_b", "a2_b")]
    same_c = pl.concat_str("a1", "a2") == pl.concat_str(*comp)
    swap_c = pl.concat_str("a1", "a2") == pl.concat_str(*comp[::-1])
    left = left.with_columns(
        (~same & (swap | (~same_c & swap_c))).alias("swap"), (same | swap | same_c | swap_c).alias("ok")
    )
    left = left.filter("ok")
    a, b = a[:, left["i"].to_numpy()], b[:, left["j"].to_numpy()].copy()
    turn = left["swap"].to_numpy()[None, :] & (b != 3)
    b = np.where(turn, 2 - np.minimum(b, 2), b)
    show_discordance(what, *discordance((ids_a, a), (ids_b, b), people), palindromic(left["a1"], left["a2"]))


def lifted_bim(plink, chain):
    """The SNPs of a set that can be lifted over, in the target build of a chain file, and their rows in the .bed."""
    got = chain.lift(plink.bim["chrom"].to_numpy().astype("U8"), plink.bim["pos"].to_numpy())
    rows = np.flatnonzero(got.found)
    letters = pl.col("a1", "a2")
    complement = letters.replace(dict(zip("ACGT", "TGCA", strict=True)))
    bim = plink.bim[rows.tolist()].with_columns(
        pl.Series("chrom", got.chromosome[rows].tolist()),
        pl.Series("pos", got.position[rows]),
        pl.when(pl.Series(got.reversed[rows])).then(complement).otherwise(letters),
    )
    return bim, rows


def hapmap(data):
    plink = open_set(data / "hapmap3_hg18.bed")
    chain = ChainFile(data / "NCBI36_to_GRCh37.chain.gz")
    bim, rows = lifted_bim(plink, chain)
    table = pl.read_csv(data / "hapmap3_populations.txt", separator="\t", infer_schema=False)
    of = dict(table.select("IID", "population").iter_rows())
    population = np.array([of.get(i, "") for i in plink.fam["iid"]])
    return plink, bim, rows, calls(plink), population


def same_people_in_1000_genomes(data, h):
    plink, bim19, rows, copies, _ = h
    folder = tempfile.TemporaryDirectory()
    kgp = open_vcf([data / "chr20_1-4Mb_targets.vcf.gz"], Path(folder.name) / "kgp", Conversion())
    once = ~kgp.bim["pos"].is_duplicated().to_numpy()
    sites, theirs = kgp.bim.filter(pl.Series(once)), calls(kgp, np.flatnonzero(once))
    known = {i: k for k, i in enumerate(plink.fam["iid"])}
    theirs_ids = np.array([known.get(i, 5000 + k) for k, i in enumerate(kgp.fam["iid"])])
    people = [i for i in theirs_ids if i < 5000]
    print(f"1000G: {len(people)} people in both sets")
    raw_discordance(bim19, copies[:, rows], sites, theirs, np.arange(len(copies)), theirs_ids, people, "before merging")
    for reference in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder)
            write(raw, "a_hapmap", range(len(copies)), plink.bim, copies)
            write(raw, "b_kgp", theirs_ids, sites, theirs)
            (raw / "x.chain.gz").symlink_to(data / "NCBI36_to_GRCh37.chain.gz")
            if reference:
                (raw / "chr20.sites.vcf.gz").symlink_to(data / "chr20_1-4Mb_reference_phased.vcf.gz")
            alleles, each, *_ = merged(
                raw, len(copies), source_builds=("a_*=hg18", "*=hg19"), chromosomes=("20",), mind=1.0
            )
            what = "merged, " + ("reference 1000 Genomes" if reference else "no reference")
            show_discordance(what, *discordance(each[0], each[1], people), palindromic(*alleles))


def lifted_copy(data, h):
    plink, bim19, rows, copies, population = h
    rng = generator(0, "lifted copy")
    african = np.isin(population, ["ASW", "LWK", "MKK", "YRI"])
    both = rng.choice(len(copies), 100, replace=False)
    in_a, in_b = (np.flatnonzero(x | np.isin(np.arange(len(copies)), both)) for x in (~african, african))
    copy = copies[:, rows].copy()
    wrong = (rng.random(copy.shape) < ERRORS) & (copy != 3)
    copy[wrong] = (copy[wrong] + rng.integers(1, 3, int(wrong.sum()))) % 3
    turned = rng.random(len(bim19)) < FLIPPED
    print("lifted: HapMap3 against its lifted copy, 100 people in both sets")
    a, b = copies[in_a], copy[in_b]
    raw_discordance(bim19, a[:, rows], flip(bim19, turned), b, in_a, in_b, both, "before merging")
    for reference in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder)
            write(raw, "a_hg18", in_a, plink.bim, a)
            write(raw, "b_hg19", in_b, flip(bim19, turned), b)
            (raw / "x.chain.gz").symlink_to(data / "NCBI36_to_GRCh37.chain.gz")
            if reference:
                write_legend(raw / "all.legend", bim19, frequency_of(copies[:, rows]))
            alleles, each, *_ = merged(raw, len(copies), source_builds=("a_*=hg18", "*=hg19"), hwe=0.0)
            what = "merged, " + ("reference, all populations" if reference else "no reference")
            show_discordance(what, *discordance(each[0], each[1], both), palindromic(*alleles))


def predicts_set(x, origin):
    """Accuracy of an L2 logistic regression for the set, five-fold cross-validated.

    The rows are rotated to their principal axes, which leaves the fit unchanged and makes it fast.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    x = x.astype(np.float32) - x.mean(axis=0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    scale = max(float(s[0]), 1e-12) / np.sqrt(len(x))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    best = [
        cross_val_score(LogisticRegression(C=c, max_iter=2000), u * s / scale, origin, cv=folds).mean()
        for c in (0.01, 1.0)
    ]
    return max(best)


def chips(data, h):
    _, bim19, rows, copies, _ = h
    autosomal = bim19["chrom"].is_in([str(c) for c in range(1, 23)]).to_numpy()
    bim, x = bim19.filter(pl.Series(autosomal)), copies[:, rows[autosomal]]
    n, p = x.shape
    for seed, own in ((0, True), (1, True), (0, False)):
        rng = generator(seed, "chips")
        home = rng.permutation(
            np.repeat([0, 1, 2], [round(0.4 * n), round(0.35 * n), n - round(0.4 * n) - round(0.35 * n)])
        )
        for reference in (True, False) if own else (True,):
            with tempfile.TemporaryDirectory() as folder:
                raw = Path(folder)
                for s in range(3):
                    rng_s = generator(seed, "chip", str(s))
                    held = rng_s.random(p) < 0.75
                    # Most SNPs are called well, a few badly on this chip only.
                    rate = np.where(rng_s.random(p) < 0.05, rng_s.beta(2, 38, p), rng_s.beta(1, 199, p))
                    rate = rate if own else np.full(p, 0.005)
                    copy = np.where(rng_s.random((int((home == s).sum()), p)) < rate, 3, x[home == s])
                    write(
                        raw,
                        f"chip{s}",
                        np.flatnonzero(home == s),
                        flip(bim, rng_s.random(p) < FLIPPED).filter(pl.Series(held)),
                        copy[:, held],
                    )
                if reference:
                    write_legend(raw / "all.legend", bim, frequency_of(x))
                for merge in ("union", "intersection"):
                    _, _, store, origin, _ = merged(raw, n, merge=merge, hwe=0.0)
                    mode = np.array([np.bincount(c[c < 3], minlength=3).argmax() for c in store.T])
                    gaps = predicts_set(store == 3, origin)
                    filled = predicts_set(np.where(store == 3, mode, store), origin)
                    share = np.bincount(origin).max() / len(origin)
                    print(
                        f"  chips, seed {seed}, {'own' if own else 'equal'} missing rates, "
                        f"{'reference' if reference else 'no reference':12s} {merge:12s} "
                        f"{store.shape[1]:6d} SNPs, "
                        f"call rate {(store != 3).mean():.2%}; set from gaps {gaps:.1%}, from genotypes {filled:.1%} "
                        f"(majority {share:.1%})",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    h = hapmap(data)
    same_people_in_1000_genomes(data, h)
    lifted_copy(data, h)
    chips(data, h)


if __name__ == "__main__":
    main()
