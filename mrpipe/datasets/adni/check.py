"""Validate an ADNI export (tables, PLINK sets, chain file, reference, images) and report all errors at once."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni import tables as loni
from mrpipe.datasets.adni.cohort import build_cohort, diagnoses, label_table
from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.files import shown
from mrpipe.datasets.adni.forms import biospecimen, clinical
from mrpipe.datasets.adni.forms.medications import is_dementia_drug
from mrpipe.datasets.adni.genomic.check import check_genotypes
from mrpipe.datasets.adni.genomic.inputs import find_sets, rids_of
from mrpipe.datasets.adni.image.plan import check_images, has_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.schema import Checked

_OPTIONAL = {
    **{table: (content, f"{option}=true") for table, (option, content, _) in biospecimen.OPTIONAL.items()},
    loni.INITHEALTH: ("medical history of ADNI3 and 4", "profile=corrected"),
    loni.ADNIMERGE: ("an alternative source of diagnoses and demographics", "label_source=adnimerge"),
    loni.REGISTRY: ("visit dates that other tables lack", ""),
}
# Values of other options in the paper and in the authors' code.
_PAPER = {"image_scan": "latest", "dementia_drugs": True, "merge": "union"}
_BUILDERS = {
    "clinical": (clinical.clinical_tables, clinical.clinical_features),
    "biospecimen": (biospecimen.biospecimen_tables, biospecimen.biospecimen_features),
}


def present_modalities(raw: Path, options: AdniOptions) -> tuple[str, ...]:
    """Modalities that can be built: those with one of their tables, or with genotypes or images."""
    present = ["genomic"] if options.genotypes or find_sets(raw, options) else []
    if has_images(raw, options):
        present.append("image")
    export = AdniExport(raw)
    for name, (tables, _) in _BUILDERS.items():
        with contextlib.suppress(DataError):  # reported by `check_export`
            present += [name] if tables(export, options) else []
    return tuple(m for m in ("image", "genomic", "clinical", "biospecimen") if m in present)


def check_export(raw: Path, options: AdniOptions) -> Checked:
    """Read every table, .bim, .fam and image header that a build needs.

    Raises:
        DataError: lists every error found, not only the first.
    """
    faults = FaultCollector()
    export = AdniExport(raw)
    labels = faults.attempt(lambda: label_table(export, options.label_source)) or loni.DXSUM
    required = [labels, *biospecimen.requested(options)]
    files: list[Path] = []
    for table in dict.fromkeys((*required, *loni.PEOPLE)):
        before = len(faults.faults)
        path, frame = faults.attempt(export.path, table), faults.attempt(export.table, table)
        if len(faults.faults) > before:
            continue
        if frame is None and table in required:
            faults.add(table.absent())
        if path is not None:
            files.append(path)
    faults.attempt(lambda: export.path(loni.APOERES) and biospecimen.apoe_alleles(export))
    samples = faults.attempt(lambda: build_cohort(raw, options, export).samples)
    observed = (None if samples is None else faults.attempt(lambda: _observed(samples, export, options))) or {}
    described = faults.attempt(lambda: _notes(export, options)) or []
    notes = list(dict.fromkeys([*export.notes, *described]))
    modalities = present_modalities(raw, options)
    people = faults.attempt(lambda: export.require(labels)["rid"].unique())
    inputs, found = check_genotypes(raw, options, people, faults)
    notes += found
    files += inputs.files if inputs else ()
    images = check_images(raw, options, faults)
    files += images.files
    if not modalities and not faults.faults:
        expected, fix = "tables of a modality, genotypes or images", "Add, for example, PTDEMOG or APOERES."
        faults.add(Fault(file=raw.name, expected=expected, found="none of them beside the diagnoses", fix=fix))
    # An invalid table is an error of each step that reads it.
    faults.faults = list(dict.fromkeys(faults.faults))
    faults.raise_if_any()
    if "image" in modalities and samples is not None:
        observed["image"] = images.observed(samples)
    notes += images.notes
    if inputs is not None and samples is not None:
        genotyped = pl.concat([rids_of(s.fam) for s in inputs.sets]).unique()
        observed["genomic"] = samples.filter(pl.col("rid").is_in(genotyped.implode()))["sample_id"]
    release, groups = f"LONI {export.layout()} layout", images.groups
    read, unused = tuple(sorted(set(files))), _unused(raw, export, files) | images.unused
    return Checked(release=release, files=read, notes=tuple(notes), groups=groups, observed=observed, unused=unused)


def _observed(samples: pl.DataFrame, export: AdniExport, options: AdniOptions) -> dict[str, pl.Series]:
    """Samples with clinical and biospecimen features; notes what the joins of the tables lose.

    Raises:
        DataError: a value is invalid.
    """
    observed = {}
    people = export.require(label_table(export, options.label_source))["rid"].unique().to_list()
    for name, (tables, build) in _BUILDERS.items():
        if not (present := tables(export, options)):
            continue
        declared, frame = build(export, samples, options)
        known = frame.filter(pl.any_horizontal(pl.exclude("rid").is_not_null()))
        observed[name] = samples.join(known, on="rid", how="semi")["sample_id"]
        empty = [f.name for f in declared if frame[f.name].null_count() == len(frame)]
        if empty:
            export.notes.append(f"{name}: {len(empty)} features are unknown for every sample: {', '.join(empty)}")
        for table in present:
            rids = export.require(table)["rid"].unique()
            n, foreign = int(samples["rid"].is_in(rids.to_list()).sum()), int((~rids.is_in(people)).sum())
            if n < len(samples) or foreign:
                found = f"{export.shown(table)}: records of {n} of {len(samples)} samples"
                strangers = f"; {foreign} of its {len(rids)} participants have no diagnosis" if foreign else ""
                export.notes.append(found + strangers)
    drugs = export.table(loni.RECCMEDS)
    if not options.dementia_drugs and drugs is not None and not drugs.select(is_dementia_drug("CMMED").any()).item():
        file = export.shown(loni.RECCMEDS)
        export.notes.append(f"{file} names no dementia drug, so that dementia_drugs has no effect")
    return observed


def _notes(export: AdniExport, options: AdniOptions) -> list[str]:
    """Tables that are absent, sources of the labels, and what `profile=paper` lacks of the paper."""

    merged = options.profile != "paper"
    lost = [t for t in (*loni.CLINICAL, *loni.BIOSPECIMEN) if export.path(t, merged=merged) is None]
    menus = ", ".join(f"{t.name} ({t.menu})" for t in lost)
    notes = [f"absent tables, whose features the store lacks: {menus}"] if lost else []
    for table in (loni.PTDEMOG, loni.APOERES):
        if table not in lost and export.path(table, merged=False) is None:
            notes.append(f"absent table {table.name}: what {export.shown(table)} has of it is read")
    absent = [f"{t.name} ({content})" for t, (content, _) in _OPTIONAL.items() if export.path(t) is None]
    notes += [f"absent optional tables: {', '.join(absent)}"] if absent else []
    notes += _label_notes(export, options)
    if options.profile == "paper":
        differ = [_OPTIONAL[t][1] for t in (loni.BATEMAN, loni.ISOPROSTANE) if t not in biospecimen.requested(options)]
        differ += [f"{k}={str(v).lower()}" for k, v in _PAPER.items() if getattr(options, k) != v]
        also = f" The paper also has {', '.join(differ)}." if differ else ""
        notes.append(
            "profile=paper applies to clinical and biospecimen features. Not reproduced: segmentation with MUSE and "
            "imputation with the Michigan server; imputation and scaling use training samples only (scale=minmax gives "
            f"the range of the paper).{also}"
        )
    return notes


def _label_notes(export: AdniExport, options: AdniOptions) -> Iterator[str]:
    """Notes on labels from ADNIMERGE, and on differences of DXSUM and ADNIMERGE."""
    labels = label_table(export, options.label_source)
    if labels is loni.ADNIMERGE and options.label == "stable_dx" and options.blank_diagnosis == "exclude":
        yield (
            f"{export.shown(loni.ADNIMERGE)} lists visits without a diagnostic form, too, which exclude their "
            "participants under label=stable_dx; blank_diagnosis=ignore ignores these visits"
        )
    if export.path(loni.DXSUM) is None or export.path(loni.ADNIMERGE) is None:
        return
    try:
        a, b = (
            diagnoses(export, source).filter(pl.col("dx").is_not_null()).group_by("rid", "month").last()
            for source in ("dxsum", "adnimerge")
        )
    except DataError as error:
        yield f"DXSUM and ADNIMERGE cannot be compared: {error}"
        return
    both = a.join(b, on=["rid", "month"])
    n = both.filter(pl.col("dx") != pl.col("dx_right")).height
    yield (
        f"{export.shown(loni.DXSUM)} and {export.shown(loni.ADNIMERGE)} differ in the diagnosis of {n} of the "
        f"{len(both)} visits in both; {export.shown(labels)} is used"
    )


def _unused(raw: Path, export: AdniExport, files: list[Path]) -> dict[str, str]:
    """Tables of the export that are not read → the reason, and how to use them."""
    reasons = {
        p: "an archive: unpack it" if p.suffix.lower() == ".zip" else "not a table that mrpipe reads"
        for p in export.listing
    }
    for table in dict.fromkeys((*_OPTIONAL, *loni.PEOPLE)):
        for path in itertools.chain(*export.files(table)):
            reasons[path] = f"{export.shown(table)} is read for {table.name}; to read this file, remove that one"
            if path == export.path(table):
                reasons[path] = "{}; add it with {}".format(*_OPTIONAL.get(table, ("", "")))
    return {shown(raw, path): reason for path, reason in reasons.items() if path not in files}
