"""Validate an ADNI export (tables, PLINK sets, chain file, reference, images) and report all errors at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import polars as pl

from mrpipe.datasets.adni.cohort import build_cohort
from mrpipe.datasets.adni.export import AdniExport, table_files
from mrpipe.datasets.adni.forms.biospecimen import apoe_alleles, biospecimen_features, requested
from mrpipe.datasets.adni.forms.clinical import clinical_features
from mrpipe.datasets.adni.forms.medications import is_dementia_drug
from mrpipe.datasets.adni.genomic.check import check_genotypes
from mrpipe.datasets.adni.genomic.inputs import find_sets, rids_of, shown
from mrpipe.datasets.adni.image.plan import check_images, has_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import (
    ADNIMERGE,
    BATEMAN,
    BIOSPECIMEN,
    CLINICAL,
    DXSUM,
    ISOPROSTANE,
    NFL,
    RECCMEDS,
    REGISTRY,
    ROSTER,
)
from mrpipe.errors import DataError, FaultCollector
from mrpipe.schema import Checked

T = TypeVar("T")
_OPTIONAL = {
    BATEMAN: ("plasma Aβ42/40", "plasma_abeta=true"),
    NFL: ("plasma neurofilament light", "plasma_nfl=true"),
    ISOPROSTANE: ("urine isoprostanes", "isoprostane=true"),
    ADNIMERGE: ("an alternative source of diagnoses", "label_source=adnimerge"),
    REGISTRY: ("visit dates that other tables lack", ""),
}


def present_modalities(raw: Path, options: AdniOptions) -> tuple[str, ...]:
    """Modalities that can be built: clinical and biospecimen always, genomic and image if their files are present."""
    present = ["clinical", "biospecimen"]
    if options.genotypes or find_sets(raw, options):
        present.append("genomic")
    if has_images(raw, options):
        present.append("image")
    order = ("image", "genomic", "clinical", "biospecimen")
    return tuple(m for m in order if m in present)


def check_export(raw: Path, options: AdniOptions) -> Checked:
    """Read every table, .bim, .fam and image header that a build needs.

    Raises:
        DataError: lists every error found, not only the first.
    """
    faults = FaultCollector()
    export = AdniExport(raw)
    label_table = ADNIMERGE if options.label_source == "adnimerge" else DXSUM
    required = [label_table, *CLINICAL, *BIOSPECIMEN, *requested(options)]
    files: list[Path] = []
    for table in (*required, *(t for t in (DXSUM, ADNIMERGE, ROSTER, REGISTRY) if t not in required)):
        path = None
        try:
            path = export.path(table)
            frame = export.table(table)
        except DataError as error:
            faults.absorb(error)
            continue
        if frame is None and table in required:
            faults.add(table.absent())
        if path is not None:
            files.append(path)
    _attempt(faults, lambda: apoe_alleles(export))
    samples = _attempt(faults, lambda: build_cohort(raw, options, export).samples)
    observed = (None if samples is None else _attempt(faults, lambda: _observed(samples, export, options))) or {}
    notes = list(dict.fromkeys([*export.notes, *_notes(export, options)]))
    modalities = present_modalities(raw, options)
    people = _attempt(faults, lambda: export.require(label_table)["rid"].unique())
    inputs, found = check_genotypes(raw, options, people, faults)
    notes += found
    files += inputs.files if inputs else ()
    images = check_images(raw, options, faults)
    files += images.files
    faults.raise_if_any()
    if "image" in modalities and samples is not None:
        observed["image"] = images.observed(samples)
    notes += images.notes
    if inputs is not None and samples is not None:
        genotyped = pl.concat([rids_of(s.fam) for s in inputs.sets]).unique()
        observed["genomic"] = samples.filter(pl.col("rid").is_in(genotyped.implode()))["sample_id"]
    return Checked(
        release=f"LONI {export.layout()} layout",
        files=tuple(sorted(set(files))),
        notes=tuple(notes),
        groups=images.groups,
        observed=observed,
        unused=_unused(raw, export, files),
    )


def _attempt(faults: FaultCollector, step: Callable[[], T]) -> T | None:
    """Result of a step, or None after adding its errors; an invalid table is an error of each step that reads it."""
    try:
        return step()
    except DataError as error:
        faults.faults += [f for f in error.faults if f not in faults.faults]
        return None


def _observed(samples: pl.DataFrame, export: AdniExport, options: AdniOptions) -> dict[str, pl.Series]:
    """Samples with clinical and biospecimen features; notes what the joins of the tables lose.

    Raises:
        DataError: a value is invalid.
    """
    observed = {}
    for name, build in (("clinical", clinical_features), ("biospecimen", biospecimen_features)):
        declared, frame = build(export, samples, options)
        known = frame.filter(pl.any_horizontal(pl.exclude("rid").is_not_null()))
        observed[name] = samples.join(known, on="rid", how="semi")["sample_id"]
        empty = [f.name for f in declared if frame[f.name].null_count() == len(frame)]
        if empty:
            export.notes.append(f"{name}: {len(empty)} features are unknown for every sample: {', '.join(empty)}")
    people = export.require(ADNIMERGE if options.label_source == "adnimerge" else DXSUM)["rid"].unique().to_list()
    for table in (*CLINICAL, *BIOSPECIMEN, *requested(options)):
        rids = export.require(table)["rid"].unique()
        n, foreign = int(samples["rid"].is_in(rids.to_list()).sum()), int((~rids.is_in(people)).sum())
        if n < len(samples) or foreign:
            found = f"{export.shown(table)}: records of {n} of {len(samples)} samples"
            strangers = f"; {foreign} of its {len(rids)} participants have no diagnosis" if foreign else ""
            export.notes.append(found + strangers)
    if not options.dementia_drugs and not export.require(RECCMEDS).select(is_dementia_drug("CMMED").any()).item():
        export.notes.append(f"{export.shown(RECCMEDS)} names no dementia drug, so that dementia_drugs has no effect")
    return observed


def _notes(export: AdniExport, options: AdniOptions) -> list[str]:
    """Optional tables that are absent, and settings of `profile=paper` that are not those of the paper."""
    absent = [f"{t.name} ({content})" for t, (content, _) in _OPTIONAL.items() if export.path(t) is None]
    notes = [f"absent optional tables: {', '.join(absent)}"] if absent else []
    if options.profile == "paper":
        differ = [_OPTIONAL[t][1] for t in (BATEMAN, ISOPROSTANE) if t not in requested(options)]
        differ += ["image_scan=latest"] if options.image_scan != "latest" else []
        also = f" The paper also has {', '.join(differ)}." if differ else ""
        notes.append(
            "profile=paper applies to clinical and biospecimen features. Not reproduced: segmentation with MUSE and "
            f"imputation with the Michigan server; imputation and scaling use training samples only.{also}"
        )
    return notes


def _unused(raw: Path, export: AdniExport, files: list[Path]) -> dict[str, str]:
    """CSV files of the export that are not read → the reason, and how to use them."""
    reasons = dict.fromkeys(table_files(raw), "not a table that mrpipe reads")
    for table in (*_OPTIONAL, DXSUM, ROSTER, *CLINICAL, *BIOSPECIMEN):
        for path in itertools.chain(*export.files(table)):
            reasons[path] = f"{export.shown(table)} is read for {table.name}; to read this file, remove that one"
            if path == export.path(table):
                reasons[path] = "{}; add it with {}".format(*_OPTIONAL.get(table, ("", "")))
    return {shown(raw, path): reason for path, reason in reasons.items() if path not in files}
