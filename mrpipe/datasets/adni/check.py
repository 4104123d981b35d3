"""Validate an ADNI export (tables, PLINK sets, chain file, reference, images) and report all errors at once."""

from __future__ import annotations

from pathlib import Path

from mrpipe.datasets.adni.cohort import build_cohort
from mrpipe.datasets.adni.export import AdniExport, diagnoses
from mrpipe.datasets.adni.forms.biospecimen import apoe_alleles
from mrpipe.datasets.adni.genomic.inputs import find_beds, open_inputs, shown
from mrpipe.datasets.adni.genomic.strand import read_reference
from mrpipe.datasets.adni.image.plan import check_images, has_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import (
    ADNIMERGE,
    APOERES,
    BATEMAN,
    BIOSPECIMEN,
    CLINICAL,
    DXSUM,
    ISOPROSTANE,
    NFL,
    REGISTRY,
    ROSTER,
)
from mrpipe.errors import DataError, FaultCollector
from mrpipe.raw import sha256
from mrpipe.schema import Checked


def present_modalities(raw: Path, options: AdniOptions) -> tuple[str, ...]:
    """Modalities that can be built: clinical and biospecimen always, genomic and image if their files are present."""
    present = ["clinical", "biospecimen"]
    if options.genotypes or find_beds(raw, options):
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
    required = [label_table, *CLINICAL, *BIOSPECIMEN]
    required += [
        t
        for t, on in ((BATEMAN, options.plasma_abeta), (NFL, options.plasma_nfl), (ISOPROSTANE, options.isoprostane))
        if on
    ]
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
    if not faults.faults:
        try:
            diagnoses(export, options.label_source)
            apoe = export.path(APOERES)
            assert apoe is not None
            apoe_alleles(export.require(APOERES), shown(raw, apoe))
        except DataError as error:
            faults.absorb(error)
    notes = list(export.notes)
    groups: dict[str, tuple[Path, ...]] = {}
    modalities = present_modalities(raw, options)
    if "genomic" in modalities:
        try:
            inputs = open_inputs(raw, options)
            files += inputs.files
            sizes = ", ".join(
                f"{s.name} ({b}, {s.n_people} people, {len(s.bim)} SNPs)"
                for s, b in zip(inputs.sets, inputs.builds, strict=True)
            )
            notes.append(f"PLINK sets: {sizes}")
            if inputs.reference is not None:
                read_reference(inputs.reference, options.chromosomes, shown_as=shown(raw, inputs.reference))
            notes += [
                f"{kind} outside the export folder: {p.name}, SHA-256 {sha256(p)[:16]}"
                for kind, p in (
                    ("reference", inputs.reference),
                    ("chain file", Path(options.chain) if options.chain else None),
                )
                if p is not None and p.is_absolute() and not p.is_relative_to(raw)
            ]
        except DataError as error:
            faults.absorb(error)
    images = check_images(raw, options, faults)
    files += images.files
    groups = images.groups
    faults.raise_if_any()
    samples = build_cohort(raw, options).samples
    observed = {"image": images.observed(samples)} if "image" in modalities else {}
    notes += images.notes
    return Checked(
        release=f"LONI {export.layout()} layout",
        files=tuple(sorted(set(files))),
        notes=tuple(notes),
        groups=groups,
        observed=observed,
    )
