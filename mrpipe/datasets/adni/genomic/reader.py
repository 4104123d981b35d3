"""Modality `genomic`: merge the PLINK sets of several ADNI phases into one packed genotype per participant.

Each set passes quality control, lift-over to the target build, and alignment of strand and counted allele to the
reference. Duplicate SNPs and people are then resolved and the sets merged (intersection or union). A SNP that is
excluded in one set is excluded in all, because its missing calls would identify the set. The store keeps every SNP that
passes; LD pruning and imputation are fitted on training participants (`mrpipe.transforms.genotypes`).
"""

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic import strand
from mrpipe.datasets.adni.genomic.inputs import GenomicInputs, open_inputs, require_consistent, rids_of
from mrpipe.datasets.adni.genomic.merge import Panel, batches, merged_rows, missing_calls
from mrpipe.datasets.adni.genomic.plink import RECODE, PlinkSet
from mrpipe.datasets.adni.genomic.qc import QualityControl, quality_control
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.features import dictionary_of
from mrpipe.errors import DataError, Fault
from mrpipe.genetics.packing import call_counts
from mrpipe.schema import TRIED_SCHEMA, Features, Modality

BIT = 1
DESCRIPTION = "genotypes at the SNPs of all chips that pass quality control, copies of the counted allele"
# Two records of one participant must agree at least at this fraction of SNPs.
MIN_CONCORDANCE = 0.9
TOO_FEW_CALLS = "too many missing calls in every PLINK set (mind)"
DISCORDANT = f"records of the participant agree at fewer than {MIN_CONCORDANCE:.0%} of the SNPs"


@dataclass(frozen=True)
class PreparedSet:
    """A set after quality control, lift-over and alignment.

    Attributes:
        n_considered: number of SNPs before quality control.
        snp: (k,) rows of the .bed.
        identity: (k,) ascending: position, counted and other allele encoded as one integer.
        swap: (k,) whether the counted allele is the set's A2.
        called: (k,) number of people with a call.
        copies: (k,) copies of the counted allele of these people.
        excluded: positions (`position_keys`) at which a SNP of the set was excluded.
        unplaced: rs numbers of SNPs without a position in the target build.
    """

    plink: PlinkSet
    qc: QualityControl
    n_considered: int
    snp: NDArray[np.int64]
    identity: NDArray[np.int64]
    swap: NDArray[np.bool_]
    called: NDArray[np.int64]
    copies: NDArray[np.float64]
    excluded: NDArray[np.int64]
    unplaced: pl.Series


def identity_of(key: NDArray[np.int64], counted: NDArray[np.int8], other: NDArray[np.int8]) -> NDArray[np.int64]:
    return key * 64 + counted.astype(np.int64) * 8 + other.astype(np.int64)


def _first_of(values: NDArray[np.int64], preference: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of one entry per distinct value, in their order: the lowest preference, ties resolved to the first."""
    order = np.lexsort((np.arange(len(values)), preference, values))
    return np.asarray(order[np.diff(values[order], prepend=-1) != 0])


def prepare_set(
    plink: PlinkSet, build: str, inputs: GenomicInputs, known: strand.KnownSnps, options: AdniOptions
) -> tuple[PreparedSet, strand.KnownSnps]:
    """Apply quality control, lift-over, alignment and removal of duplicate SNPs to one set.

    Returns the prepared set and `known` extended by SNPs that were not in it.
    """
    bim = plink.bim
    a1, a2 = strand.allele_codes(bim["a1"]), strand.allele_codes(bim["a2"])
    placed = bim["chrom"].is_in(list(options.chromosomes)).to_numpy() & (bim["pos"].to_numpy() > 0)
    considered = np.flatnonzero(placed & (a1 < strand.OTHER_ALLELE) & (a2 < strand.NO_ALLELE))
    # Minor alleles are counted over all sets after merging.
    qc = quality_control(plink, considered, mind=options.mind, geno=options.geno, hwe=options.hwe, maf=0.0)
    n_people = int(qc.people.sum())
    # Without alleles (0 0), nobody has a call.
    snp = np.flatnonzero(placed & (a1 < strand.OTHER_ALLELE) & (a2 < strand.OTHER_ALLELE))
    chromosome, position = bim["chrom"].to_numpy().astype("U8")[snp], bim["pos"].to_numpy()[snp]
    a1, a2, ids = a1[snp], a2[snp], bim["id"].to_numpy().astype(np.str_)[snp]
    passed = np.isin(snp, qc.snps, assume_unique=True)
    found, dropped = np.ones(len(snp), dtype=np.bool_), plink.dropped
    if build != options.target_build:
        assert inputs.chain is not None
        lifted = inputs.chain.lift(chromosome, position)
        found = lifted.found & np.isin(lifted.chromosome, options.chromosomes)
        a1, a2 = (np.where(lifted.reversed, strand.complement(a), a) for a in (a1, a2))
        chromosome, position = lifted.chromosome, lifted.position
        moved = inputs.chain.lift(*strand.positions_of(dropped))
        dropped = strand.position_keys(moved.chromosome, moved.position)[moved.found]
    unplaced = pl.Series(ids[~found].tolist(), dtype=pl.String)
    present = strand.position_keys(chromosome[found], position[found])
    frequency, missing = qc.frequency[found[passed]], qc.missing[found[passed]]
    key, chosen = present[passed[found]], found & passed
    snp, a1, a2, ids = snp[chosen], a1[chosen], a2[chosen], ids[chosen]
    aligned = strand.align(key, a1, a2, frequency, known, use_frequency=options.frequency_check, n_people=n_people)
    f_counted = np.where(aligned.swap, 1 - frequency, frequency)
    require_consistent(plink.table("bim"), ids, key, f_counted, known, aligned.index)
    absent = (aligned.reason == "not in the reference") & (a1 != strand.NO_ALLELE)
    new = np.flatnonzero(absent & (inputs.reference is None or options.off_reference == "keep"))
    kept = np.flatnonzero(aligned.keep)
    at = aligned.index[kept]
    old = identity_of(known.key[at], known.counted[at], known.other[at])
    identity = np.concatenate([old, identity_of(key[new], a1[new], a2[new])])
    rows = np.concatenate([kept, new])
    one = _first_of(identity // 64, missing[rows])
    identity, rows = identity[one], rows[one]
    first = _first_of(key[new], missing[new])
    # The strand of A/T and C/G SNPs of this set is unknown, so that they cannot be compared with those of other sets.
    f_new = np.where(strand.palindromic(a1[new], a2[new]), np.nan, frequency[new])
    added = strand.KnownSnps(key[new][first], a1[new][first], a2[new][first], f_new[first], ids[new][first])
    prepared = PreparedSet(
        # Only the SNP names of the .bim are needed from here on.
        plink=replace(plink, bim=bim.select("id")),
        qc=qc,
        n_considered=len(considered),
        snp=snp[rows],
        identity=identity,
        swap=aligned.swap[rows],
        called=n_people - missing[rows],
        copies=np.rint(2 * (n_people - missing[rows]) * f_counted[rows]),
        excluded=np.setdiff1d(np.concatenate([present, dropped]), identity // 64),
        unplaced=unplaced.filter(unplaced.str.starts_with("rs")),
    )
    return prepared, known.extended(added)


def merged_identities(sets: list[PreparedSet], options: AdniOptions) -> NDArray[np.int64]:
    """SNPs of the store, sorted by position, without those that a set excludes or has with other alleles."""
    every = np.concatenate([s.identity for s in sets])
    identity, index, n_sets = np.unique(every, return_inverse=True, return_counts=True)
    unplaced = pl.concat([s.unplaced for s in sets])
    by_name = [s.identity[s.plink.bim["id"].gather(s.snp).is_in(unplaced.implode()).to_numpy()] for s in sets]
    key = identity // 64
    excluded = np.isin(key, np.concatenate([*(s.excluded for s in sets), *(i // 64 for i in by_name)]))
    again = np.diff(key, prepend=-1, append=-1) == 0
    keep = ~excluded & ~again[1:] & ~again[:-1]
    if options.merge == "intersection":
        keep &= n_sets == len(sets)
    copies, called = (np.bincount(index, np.concatenate([getattr(s, k) for s in sets])) for k in ("copies", "called"))
    minor = np.minimum(copies, 2 * called - copies)
    keep &= (minor >= options.maf * 2 * called) & ((minor > 0) | (options.maf <= 0))
    return np.asarray(identity[keep], dtype=np.int64)


def _codes(plink: PlinkSet, person: int, rows: NDArray[np.int64], swap: NDArray[np.bool_]) -> NDArray[np.uint8]:
    order = np.argsort(rows, kind="stable")
    byte = np.empty(len(rows), dtype=np.uint8)
    byte[order] = plink.read(rows[order])[:, person // 4]
    recoded = RECODE[swap.astype(np.intp), byte]
    return np.asarray((recoded >> (2 * (person % 4))) & 3, dtype=np.uint8)


def concordance(a: Panel, person_a: int, b: Panel, person_b: int) -> float:
    """Fraction of equal calls of two records over SNPs called in both; 1 if there are none."""
    shared = np.flatnonzero((a.row >= 0) & (b.row >= 0))[:20000]
    first, second = (_codes(p.plink, i, p.row[shared], p.swap[shared]) for p, i in ((a, person_a), (b, person_b)))
    both = (first != 3) & (second != 3)
    return float((first == second)[both].mean()) if both.any() else 1.0


def choose_people(
    panels: list[Panel], sets: list[PreparedSet], rids: list[int]
) -> tuple[list[tuple[int, int] | None], dict[int, str]]:
    """Choose one record per participant; if a participant is in several sets, the record with the most calls.

    Returns:
        Per participant the pair (set, row in its .fam) or None; and by RID the reason why a participant with genotypes
        is excluded.
    """
    every = []
    for s, (panel, prepared) in enumerate(zip(panels, sets, strict=True)):
        called = (panel.row >= 0).sum() * (1 - prepared.qc.missing_of / max(prepared.n_considered, 1))
        people = {"rid": rids_of(prepared.plink.fam), "kept": prepared.qc.people, "called": called}
        every.append(pl.DataFrame(people).with_row_index("person").with_columns(set=pl.lit(s)))
    records = pl.concat(every).filter(pl.col("rid").is_in(rids))
    places: dict[int, list[tuple[int, int]]] = {}
    best_first = records.filter("kept").sort(-pl.col("called"), "set", "person")
    for rid, s, person in best_first.select("rid", "set", "person").iter_rows():
        places.setdefault(rid, []).append((s, person))
    excluded = dict.fromkeys(set(records["rid"]) - places.keys(), TOO_FEW_CALLS)
    for rid, [(a, i), *others] in places.items():
        if any(concordance(panels[a], i, panels[b], j) < MIN_CONCORDANCE for b, j in others):
            excluded[rid] = DISCORDANT
    return [None if r in excluded or r not in places else places[r][0] for r in rids], excluded


def assemble(
    raw: Path, cohort: pl.DataFrame, options: AdniOptions, scratch: Path
) -> tuple[list[PreparedSet], NDArray[np.int64], list[Panel], pl.DataFrame]:
    """Run every step before calls are read; VCF files are converted in the folder `scratch`.

    Returns:
        Prepared sets, SNPs of the store, panels with their people, outcome per participant (`TRIED_SCHEMA`).
    """
    inputs = open_inputs(raw, options, scratch)
    panel = inputs.reference
    known = strand.read_reference(panel, options.chromosomes) if panel else strand.KnownSnps.empty()
    sets: list[PreparedSet] = []
    for plink, build in zip(inputs.sets, inputs.builds, strict=True):
        prepared, known = prepare_set(plink, build, inputs, known, options)
        sets.append(prepared)
    identity = merged_identities(sets, options)
    if not len(identity):
        fix = "Check thresholds, builds and the reference. If the sets share no SNP, use merge=union."
        expected = "SNPs that pass quality control"
        raise DataError(Fault(file="all PLINK sets", expected=expected, found="none", fix=fix))
    panels = []
    for s in sets:
        at = np.searchsorted(s.identity, identity)
        held = np.append(s.identity, -1)[at] == identity
        row, swap = np.where(held, np.append(s.snp, -1)[at], -1), held & np.append(s.swap, False)[at]
        none = np.zeros(0, dtype=np.int64)
        panels.append(Panel(s.plink, row, swap, none, none))
    people = cohort.sort("sample_id")
    chosen, excluded = choose_people(panels, sets, people["rid"].to_list())
    if not any(c is not None for c in chosen):
        expected, fix = "PTIDs of participants in the cohort", "IID must be the PTID (SSS_S_RRRR)."
        raise DataError(Fault(file="the .fam files", column="IID", expected=expected, found="none in any set", fix=fix))
    outcome = [
        (sid, 0, "ok" if c else "failed", None if c else excluded[rid])
        for sid, rid, c in zip(people["sample_id"], people["rid"], chosen, strict=True)
        if c or rid in excluded
    ]
    tried = pl.DataFrame(outcome, schema=TRIED_SCHEMA, orient="row")
    places = np.array([c for c in chosen if c is not None], dtype=np.int64)
    chosen_of = [np.flatnonzero(places[:, 0] == s) for s in range(len(panels))]
    panels = [Panel(p.plink, p.row, p.swap, places[at, 1], at) for p, at in zip(panels, chosen_of, strict=True)]
    return sets, identity, panels, tried


def _dictionary(
    identity: NDArray[np.int64], sets: list[PreparedSet], panels: list[Panel], packed: NDArray[np.uint8], build: str
) -> pl.DataFrame:
    counted, other = identity // 8 % 8, identity % 8
    chromosome, position = strand.positions_of(identity // 64)
    names = np.full(len(identity), "", dtype=object)
    for s, panel in reversed(list(zip(sets, panels, strict=True))):
        held = panel.row >= 0
        names[held] = s.plink.bim["id"].to_numpy()[panel.row[held]]
    missing = call_counts(packed, len(identity))[3]
    held_by = [pl.when(pl.Series(p.row >= 0)).then(pl.lit(p.plink.name)) for p in panels]
    alleles = {"counted": strand.LETTERS[counted], "other": strand.LETTERS[other]}
    snps = pl.DataFrame({"name": names.tolist(), "chrom": chromosome, "pos": position, **alleles})
    texts = snps.select(
        pl.col("name") + "_" + pl.col("counted"),
        description=pl.format("{}:{}:{}:{} " + build, "chrom", "pos", "other", "counted"),
        source_file=pl.concat_str(held_by, separator=", ", ignore_nulls=True),
        source_column="name",
    )
    columns = texts.to_dict() | {"dtype": "uint8", "unit": "copies", "kind": "genotype"}
    return dictionary_of("genomic", "", columns, len(packed) - missing, len(packed))


def read_genomic(raw: Path, cohort: pl.DataFrame, options: AdniOptions) -> Features:
    """Read packed genotypes for every participant of the cohort who is in a PLINK set.

    Genotype modality: copies (0, 1, 2) of the counted allele, 3 if missing, two bits per call (`packed2`), shape
    (n_snps,). Sources: PLINK sets and VCF files; participants are matched by the RID in the IID (a PTID).

    Raises:
        DataError: damaged or inconsistent sets, a missing or wrong chain file, or a set in an unexpected build.
    """
    with tempfile.TemporaryDirectory(prefix="mrpipe-genotypes-") as scratch:
        sets, identity, panels, tried = assemble(raw, cohort, options, Path(scratch))
        ids = tried.filter(status="ok").select("sample_id")
        kept = ids.join(cohort, on="sample_id", how="left", maintain_order="left")
        packed = merged_rows(panels, len(kept), len(identity))
    counts = [f"{s.plink.name}: {s.plink.n_people} people, {s.n_considered} → {len(s.identity)} SNPs" for s in sets]
    text = f"{DESCRIPTION} ({options.merge}, {options.target_build}; {'; '.join(counts)}). "
    text += missing_calls(packed, len(identity), panels, kept["phase"].to_numpy().astype(str), options.merge)
    stored: dict[str, Any] = {"kind": "genotype", "shape": (len(identity),), "dtype": "uint8", "encoding": "packed2"}
    modality = Modality(name="genomic", bit=BIT, description=text, **stored)
    rows = batches(kept["sample_id"].to_list(), packed, modality.arrow_schema())
    dictionary = partial(_dictionary, identity, sets, panels, packed, options.target_build)
    return Features(modality=modality, batches=rows, dictionary=dictionary, tried=lambda: tried)
