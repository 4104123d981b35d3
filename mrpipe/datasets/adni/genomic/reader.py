"""Modality `genomic`: PLINK sets of several releases → one packed genotype a participant (raw-formats A.8).

Per set: quality control, lift-over to the target build, strand and counted allele after the reference; then duplicates
of SNPs and people, union or intersection. The store keeps every SNP that passes; LD pruning and the filling of missing
calls are transforms that are fitted on training subjects (`mrpipe.genotype_transform`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic.inputs import GenomicInputs, open_inputs, require_same_build
from mrpipe.datasets.adni.genomic.merge import Panel, batches, merged_rows
from mrpipe.datasets.adni.genomic.plink import RECODE, PlinkSet
from mrpipe.datasets.adni.genomic.qc import QualityControl, quality_control
from mrpipe.datasets.adni.genomic.strand import (
    NO_ALLELE,
    OTHER_ALLELE,
    KnownSnps,
    align,
    allele_codes,
    complement,
    position_keys,
    read_reference,
)
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError, Fault
from mrpipe.genetics.packing import call_counts
from mrpipe.schema import DICTIONARY_SCHEMA, TRIED_SCHEMA, Features, Modality

BIT = 1
DESCRIPTION = "genotypes at the SNPs of all chips that pass quality control, copies of the counted allele"
LETTERS = np.array(["A", "C", "G", "T"])
# Two people of one IID whose calls agree at fewer SNPs are not one person.
MIN_CONCORDANCE = 0.9
TOO_FEW_CALLS = "too many calls of the person are missing in every set (mind)"
DISCORDANT = f"two records of the participant agree at fewer than {MIN_CONCORDANCE:.0%} of the SNPs"
PTID_PARTS = r"^\d{3}_S_(\d{4,5})$"


@dataclass
class Flow:
    """What became of the sets: rows of (set, step, people, SNPs)."""

    rows: list[tuple[str, str, int, int]] = field(default_factory=list)

    def add(self, name: str, step: str, people: int, snps: int) -> None:
        self.rows.append((name, step, people, snps))

    def frame(self) -> pl.DataFrame:
        schema = {"set": pl.String, "step": pl.String, "people": pl.Int64, "snps": pl.Int64}
        return pl.DataFrame(self.rows, schema=schema, orient="row")

    def summary(self) -> str:
        """One line: people and SNPs of each set at the beginning and at the end."""
        first: dict[str, tuple[int, int]] = {}
        for name, _, people, snps in self.rows:
            first.setdefault(name, (people, snps))
        last = {name: (p, s) for name, _, p, s in self.rows}
        return "; ".join(f"{n}: {first[n][0]} people, {first[n][1]} → {last[n][1]} SNPs" for n in first)


@dataclass(frozen=True)
class PreparedSet:
    """One set after its own steps: which rows of its .bed, what they are called in the store, who.

    Attributes:
        snp: (k,) rows of the .bed.
        identity: (k,) place, counted and other allele in one integer; rises with place.
        swap: (k,) the counted allele is the set's A2.
        missing: (k,) people without a call.
    """

    plink: PlinkSet
    qc: QualityControl
    snp: NDArray[np.int64]
    identity: NDArray[np.int64]
    swap: NDArray[np.bool_]
    missing: NDArray[np.int64]


def identity_of(key: NDArray[np.int64], counted: NDArray[np.int8], other: NDArray[np.int8]) -> NDArray[np.int64]:
    return key * 64 + counted.astype(np.int64) * 8 + other.astype(np.int64)


def _first_of(values: NDArray[np.int64], preference: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of one entry for each distinct value: the one with the least preference, the first at a tie."""
    order = np.lexsort((np.arange(len(values)), preference, values))
    ordered = values[order]
    return np.sort(order[np.r_[True, ordered[1:] != ordered[:-1]]]) if len(values) else order


def prepare_set(
    plink: PlinkSet, build: str, inputs: GenomicInputs, known: KnownSnps, options: AdniOptions, flow: Flow
) -> tuple[PreparedSet, KnownSnps]:
    """Quality control, lift-over, alignment and removal of repeated SNPs of one set; and `known` with its new SNPs."""
    name, bim = plink.name, plink.bim
    flow.add(name, "in the set", plink.n_people, len(bim))
    a1, a2 = allele_codes(bim["a1"]), allele_codes(bim["a2"])
    readable = (a1 < OTHER_ALLELE) & (a2 < NO_ALLELE) & (bim["pos"].to_numpy() > 0)
    considered = np.flatnonzero(readable & bim["chrom"].is_in(list(options.chromosomes)).to_numpy())
    qc = quality_control(plink, considered, mind=options.mind, geno=options.geno, hwe=options.hwe, maf=options.maf)
    for step, people, snps in qc.steps:
        flow.add(name, step, people, snps)
    n_people = int(qc.people.sum())
    snp, frequency, missing = qc.snps, qc.frequency, qc.missing
    chromosome, position = bim["chrom"].to_numpy().astype("U8")[snp], bim["pos"].to_numpy()[snp]
    a1, a2, ids = a1[snp], a2[snp], bim["id"].to_numpy().astype(np.str_)[snp]
    if build != options.target_build:
        assert inputs.chain is not None
        lifted = inputs.chain.lift(chromosome, position)
        ok = lifted.found & np.isin(lifted.chromosome, options.chromosomes)
        a1, a2 = np.where(lifted.reversed, complement(a1), a1), np.where(lifted.reversed, complement(a2), a2)
        snp, frequency, missing, a1, a2, ids = snp[ok], frequency[ok], missing[ok], a1[ok], a2[ok], ids[ok]
        chromosome, position = lifted.chromosome[ok], lifted.position[ok]
        flow.add(name, f"lifted {build} to {options.target_build}", n_people, len(snp))
    key = position_keys(chromosome, position)
    if len(known.key):
        require_same_build(name, ids, key, known.name, known.key, "the reference and the sets before")
    aligned = align(key, a1, a2, frequency, known, use_frequency=options.frequency_check)
    absent = (aligned.reason == "not in the reference") & (a1 != NO_ALLELE)
    new = np.flatnonzero(absent & (inputs.reference is None or options.off_reference == "keep"))
    kept = np.flatnonzero(aligned.keep)
    for reason in ("other alleles", "ambiguous strand", "frequency differs"):
        if n := int((aligned.reason == reason).sum()):
            flow.add(name, f"left out: {reason}", n_people, n)
    flow.add(name, "turned to the other strand", n_people, int((aligned.turned & aligned.keep).sum()))
    at = aligned.index[kept]
    identity = np.concatenate(
        [identity_of(known.key[at], known.counted[at], known.other[at]), identity_of(key[new], a1[new], a2[new])]
    )
    rows = np.concatenate([kept, new])
    swap = np.concatenate([aligned.swap[kept], np.zeros(len(new), dtype=np.bool_)])
    one = _first_of(identity // 64, missing[rows])
    identity, rows, swap = identity[one], rows[one], swap[one]
    flow.add(name, "aligned, one SNP a place", n_people, len(rows))
    own = _first_of(key[new], missing[new])
    added = KnownSnps(key[new][own], a1[new][own], a2[new][own], frequency[new][own], ids[new][own])
    # Of the .bim only the names are needed from here on.
    slim = replace(plink, bim=bim.select("id"))
    prepared = PreparedSet(slim, qc, snp[rows], identity, swap, missing[rows])
    return prepared, known.extended(added)


def merged_identities(sets: list[PreparedSet], merge: str) -> NDArray[np.int64]:
    """The store's SNPs in order of place, of all sets or of every set; at one place the alleles that most sets have."""
    identity, n_sets = np.unique(np.concatenate([s.identity for s in sets]), return_counts=True)
    if merge == "intersection":
        return np.asarray(identity[n_sets == len(sets)], dtype=np.int64)
    merged: NDArray[np.int64] = identity[_first_of(identity // 64, -n_sets)]
    return merged


def _codes(plink: PlinkSet, person: int, rows: NDArray[np.int64], swap: NDArray[np.bool_]) -> NDArray[np.uint8]:
    order = np.argsort(rows, kind="stable")
    byte = np.empty(len(rows), dtype=np.uint8)
    byte[order] = plink.read(rows[order])[:, person // 4]
    recoded = RECODE[swap.astype(np.intp), byte]
    return np.asarray((recoded >> (2 * (person % 4))) & 3, dtype=np.uint8)


def concordance(a: Panel, person_a: int, b: Panel, person_b: int) -> float:
    """Share of equal calls of two records at SNPs that both call; 1 where they share none."""
    shared = np.flatnonzero((a.row >= 0) & (b.row >= 0))[:20000]
    first, second = (_codes(p.plink, i, p.row[shared], p.swap[shared]) for p, i in ((a, person_a), (b, person_b)))
    both = (first != 3) & (second != 3)
    return float((first == second)[both].mean()) if both.any() else 1.0


def choose_people(
    panels: list[Panel], sets: list[PreparedSet], rids: list[int]
) -> tuple[list[tuple[int, int] | None], int, dict[int, str]]:
    """For each participant the set and the person there: of several the one with the most calls.

    Returns them, the number of participants in several sets, and for those whose genotypes are in a set and cannot be
    used the reason.
    """
    calls_of: dict[int, list[tuple[float, int, int]]] = {}
    wanted = set(rids)
    left_out: dict[int, str] = {}
    for s, (panel, prepared) in enumerate(zip(panels, sets, strict=True)):
        iid = prepared.plink.fam["iid"].str.to_uppercase()
        in_set = iid.str.extract(PTID_PARTS).cast(pl.Int32, strict=False).to_list()
        n_considered = max(prepared.qc.steps[0][2], 1)
        n_here = int((panel.row >= 0).sum())
        for person, number in enumerate(in_set):
            if number in wanted and not prepared.qc.people[person]:
                left_out[int(number)] = TOO_FEW_CALLS
            elif number in wanted:
                n_called = n_here * (1 - float(prepared.qc.missing_of[person]) / n_considered)
                calls_of.setdefault(int(number), []).append((-n_called, s, person))
    chosen: list[tuple[int, int] | None] = []
    repeated = 0
    for rid in rids:
        copies = sorted(calls_of.get(rid, []))
        place = (copies[0][1], copies[0][2]) if copies else None
        if len(copies) > 1:
            repeated += 1
            assert place is not None
            for _, s, person in copies[1:]:
                if concordance(panels[place[0]], place[1], panels[s], person) < MIN_CONCORDANCE:
                    left_out[rid] = DISCORDANT
                    place = None
                    break
        chosen.append(place)
    return chosen, repeated, {r: why for r, why in left_out.items() if r not in calls_of or why == DISCORDANT}


def assemble(
    raw: Path, cohort: pl.DataFrame, options: AdniOptions
) -> tuple[list[PreparedSet], NDArray[np.int64], list[Panel], pl.DataFrame, Flow]:
    """Everything up to the reading of the calls: sets, the store's SNPs, panels with their people, who is in a set and
    can be used (`TRIED_SCHEMA`), flow.
    """
    inputs = open_inputs(raw, options)
    flow = Flow()
    known = read_reference(inputs.reference, options.chromosomes) if inputs.reference else KnownSnps.empty()
    sets: list[PreparedSet] = []
    for plink, build in zip(inputs.sets, inputs.builds, strict=True):
        prepared, known = prepare_set(plink, build, inputs, known, options, flow)
        sets.append(prepared)
    identity = merged_identities(sets, options.merge)
    if not len(identity):
        raise DataError(
            Fault(
                file="the PLINK sets together",
                expected="SNPs that pass quality control",
                found="none",
                fix="Are thresholds, builds and the reference right? The sets may share no SNP (merge=union).",
            )
        )
    panels = []
    for s in sets:
        order = np.argsort(s.identity, kind="stable")
        at = np.searchsorted(s.identity, identity, sorter=order)
        at = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(identity), dtype=np.int64)
        held = s.identity[at] == identity if len(order) else np.zeros(len(identity), dtype=np.bool_)
        row = np.where(held, s.snp[at] if len(order) else -1, -1)
        swap = held & s.swap[at] if len(order) else held
        none = np.zeros(0, dtype=np.int64)
        panels.append(Panel(s.plink, row, swap, none, none))
    people = cohort.sort("sample_id")
    chosen, repeated, left_out = choose_people(panels, sets, people["rid"].to_list())
    if not any(c is not None for c in chosen):
        raise DataError(
            Fault(
                file="the .fam files",
                column="IID",
                expected="PTIDs of participants of the cohort",
                found="none in any set",
                fix="IID must be the PTID (SSS_S_RRRR).",
            )
        )
    outcome = [
        (sid, 0, "ok" if c else "failed", None if c else left_out[rid])
        for sid, rid, c in zip(people["sample_id"], people["rid"], chosen, strict=True)
        if c or rid in left_out
    ]
    tried = pl.DataFrame(outcome, schema=TRIED_SCHEMA, orient="row")
    places = np.array([c for c in chosen if c is not None], dtype=np.int64)
    panels = [
        Panel(p.plink, p.row, p.swap, places[places[:, 0] == s, 1], np.flatnonzero(places[:, 0] == s))
        for s, p in enumerate(panels)
    ]
    flow.add(
        "store",
        f"{options.merge} of {len(sets)} sets; {repeated} people in several, {len(left_out)} left out",
        len(places),
        len(identity),
    )
    return sets, identity, panels, tried, flow


def _dictionary(
    identity: NDArray[np.int64], sets: list[PreparedSet], panels: list[Panel], packed: NDArray[np.uint8], build: str
) -> pl.DataFrame:
    key, counted, other = identity // 64, identity // 8 % 8, identity % 8
    names = np.full(len(identity), "", dtype=object)
    for s, panel in reversed(list(zip(sets, panels, strict=True))):
        held = panel.row >= 0
        names[held] = s.plink.bim["id"].to_numpy()[panel.row[held]]
    chromosomes = np.array(["", *(str(c) for c in range(1, 23)), "X", "Y", "XY", "MT"])
    missing = call_counts(packed, len(identity))[3]
    held_by = [pl.when(pl.Series(p.row >= 0)).then(pl.lit(p.plink.name + ".bed")) for p in panels]
    return (
        pl.DataFrame(
            {
                "name": pl.Series(names.tolist(), dtype=pl.String),
                "chrom": chromosomes[key // 10**9],
                "pos": key % 10**9,
                "counted": LETTERS[counted],
                "other": LETTERS[other],
                "n_missing": missing,
            }
        )
        .select(
            pl.lit("genomic").alias("modality"),
            pl.int_range(pl.len(), dtype=pl.Int32).alias("position"),
            (pl.col("name") + "_" + pl.col("counted")).alias("name"),
            pl.lit("uint8").alias("dtype"),
            pl.lit("copies").alias("unit"),
            pl.lit("genotype").alias("kind"),
            pl.lit(None, pl.List(pl.String)).alias("levels"),
            pl.format("{}:{}:{}:{} " + build, "chrom", "pos", "other", "counted").alias("description"),
            pl.concat_str(held_by, separator=", ", ignore_nulls=True).alias("source_file"),
            pl.col("name").alias("source_column"),
            (len(packed) - pl.col("n_missing")).cast(pl.Int64).alias("n_observed"),
            pl.col("n_missing").cast(pl.Int64),
        )
        .cast(DICTIONARY_SCHEMA)
    )


def read_genomic(raw: Path, cohort: pl.DataFrame, options: AdniOptions) -> Features:
    """Packed genotypes of the cohort's participants who are in a set; a missing call is 3.

    Raises:
        DataError: damaged or mismatched sets, a missing or wrong chain file, a set of another build than said.
    """
    sets, identity, panels, tried, flow = assemble(raw, cohort, options)
    sample_ids = tried.filter(status="ok")["sample_id"].to_list()
    packed = merged_rows(panels, len(sample_ids), len(identity))
    modality = Modality(
        name="genomic",
        bit=BIT,
        kind="genotype",
        shape=(len(identity),),
        dtype="uint8",
        encoding="packed2",
        description=f"{DESCRIPTION} ({options.merge}, {options.target_build}; {flow.summary()})",
    )
    return Features(
        modality=modality,
        batches=batches(sample_ids, packed, modality.arrow_schema()),
        dictionary=lambda: _dictionary(identity, sets, panels, packed, options.target_build),
        tried=lambda: tried,
    )
