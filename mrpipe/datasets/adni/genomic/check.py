"""Check of the genotype inputs, and of the joins of their people with the participants."""

import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.files import shown
from mrpipe.datasets.adni.genomic.inputs import GenomicInputs, find_sets, open_inputs, rids_of
from mrpipe.datasets.adni.genomic.strand import read_reference
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.genetics.chromosomes import POSITION_LIMIT
from mrpipe.raw import sha256

# Fraction of people of a .fam who may be unknown to the tables of the export.
MAX_LOST = 0.2


def _joins(inputs: GenomicInputs, known: pl.Series) -> Iterator[Fault | str]:
    """Errors and notes about people of the .fam files: unknown to the tables (RIDs `known`), repeated, shared."""
    for plink in inputs.sets:
        name, rids = plink.table("fam"), rids_of(plink.fam)
        unknown = ~rids.is_in(known.implode()).fill_null(value=False)
        # IDs are not quoted, only their form.
        form = plink.fam["iid"].str.replace_all(r"\d", "9").str.replace_all(r"[\p{L}--[Ss]]", "A")
        found = f"{int(unknown.sum())} of {len(rids)} people are not among them"
        if unknown.any():
            found += f", most of them with IDs of the form {form.filter(unknown).mode().sort()[0]!r}"
        if unknown.sum() > MAX_LOST * len(rids):
            fix = "IID must be the PTID; replace other IDs, such as RIDs, with plink --update-ids."
            expected = "PTIDs (SSS_S_RRRR) of participants in the tables"
            yield Fault(file=name, column="IID", expected=expected, found=found, fix=fix)
        elif unknown.any():
            yield f"{name}: of the participants in the tables, {found}"
        if n := int(rids.drop_nulls().is_duplicated().sum()):
            yield f"{name}: {n} records of people with several records; the record with the most calls is used"
    for a, b in combinations(inputs.sets, 2):
        first, second = (rids_of(s.fam).drop_nulls().unique() for s in (a, b))
        shared = int(first.is_in(second.implode()).sum())
        if 2 * shared > min(len(first), len(second)) and set(a.bim["chrom"]).isdisjoint(b.bim["chrom"]):
            found = f"{shared} people in both, with SNPs of different chromosomes"
            fix = "Concatenate the chromosomes of a chip to one set with plink --merge-list."
            yield Fault(file=f"{a.name}.bed, {b.name}.bed", expected="sets of different people", found=found, fix=fix)
        elif shared:
            yield f"{shared} people are in {a.name} and {b.name}; the record with the most calls is used"


def _content(inputs: GenomicInputs, options: AdniOptions, raw: Path) -> Iterator[str]:
    """Notes about sets, SNPs that they share, and the reference."""
    built = zip(inputs.sets, inputs.builds, strict=True)
    sizes = (f"{s.name} ({b}, {s.n_people} people, {len(s.bim)} SNPs)" for s, b in built)
    yield f"genotypes: {', '.join(sizes)}"
    yield from (f"{s.name}: {s.note}" for s in inputs.sets if s.note)
    if len(inputs.sets) > 1:
        times = pl.concat([s.bim["id"].unique() for s in inputs.sets]).value_counts(name="n")["n"]
        shared = int((times == len(inputs.sets)).sum())
        text = f"{shared} of {len(times)} SNPs are in every PLINK set"
        if options.merge == "union" and shared < len(times):
            text += "; with merge=union, missing calls identify the set, and thereby the phase, of a participant"
        yield text
    if inputs.reference is None:
        yield "no reference panel: strands and alleles follow the first PLINK set, frequencies are not verified" + (
            ", and A/T and C/G SNPs of several sets are excluded" if len(inputs.sets) > 1 else ""
        )
        return
    name = shown(raw, inputs.reference)
    reference = read_reference(inputs.reference, options.chromosomes, shown_as=name)
    covered = set((reference.key // POSITION_LIMIT).tolist())
    if absent := [c for c in options.chromosomes if c.isdecimal() and int(c) not in covered]:
        yield f"{name}: no SNP on chromosomes {', '.join(absent)}"
    if not (reference.frequency >= 0).any():
        yield f"{name}: no allele frequencies, so that A/T and C/G SNPs are excluded and frequencies are not verified"


def check_genotypes(
    raw: Path, options: AdniOptions, known: pl.Series | None, faults: FaultCollector
) -> tuple[GenomicInputs | None, list[str]]:
    """Check the genotype inputs; returns them (None after an error), and notes.

    Args:
        known: RIDs in the tables of the export; None if these are invalid.
        faults: receives the errors.
    """
    notes: list[str] = []
    if not (options.genotypes or find_sets(raw, options)):
        return None, notes
    try:
        with tempfile.TemporaryDirectory(prefix="mrpipe-genotypes-") as scratch:
            inputs = open_inputs(raw, options, Path(scratch), calls=False)
        notes += _content(inputs, options, raw)
    except DataError as error:
        faults.absorb(error)
        return None, notes
    for found in _joins(inputs, known) if known is not None else ():
        faults.add(found) if isinstance(found, Fault) else notes.append(found)
    chain = Path(options.chain) if options.chain else None
    for kind, path in (("reference", inputs.reference), ("chain file", chain)):
        if path is not None and path.is_absolute() and not path.is_relative_to(raw):
            notes.append(f"{kind} outside the export folder: {path.name}, SHA-256 {sha256(path)[:16]}")
    return inputs, notes
