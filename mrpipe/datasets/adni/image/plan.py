"""Assign maps and scans to samples, and validate the images before any scan is processed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.image.maps import Maps, find_mask, locate_maps, open_maps, open_mask
from mrpipe.datasets.adni.image.options import ImageOptions
from mrpipe.datasets.adni.image.scans import SCANS_SCHEMA, find_scans, ordered_scans, search_tables
from mrpipe.errors import Fault, FaultCollector, UsageError
from mrpipe.imaging.chain import require_imaging
from mrpipe.imaging.grid import Grid
from mrpipe.imaging.template import Template, mni_template, user_template

FETCH = "ida.loni.usc.edu: ADNI > Download > Image Collections (NIfTI), with the search CSV."


@dataclass(frozen=True)
class ImagePlan:
    """The scans to try for each sample, in order.

    Attributes:
        maps: precomputed maps, None if there are none.
        map_scans, raw_scans: `sample_id`, `attempt` and the columns of the scan; a sample is in at most one of them.
    """

    maps: Maps | None
    map_scans: pl.DataFrame
    raw_scans: pl.DataFrame


@dataclass(kw_only=True)
class ImageCheck:
    """Result of the image check.

    Attributes:
        files: files that the inventory lists by name.
        groups: label → files that the inventory lists as one entry, because their names contain participant IDs.
        notes: notes for the manifest.
    """

    files: list[Path] = field(default_factory=list)
    groups: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_images(raw: Path, samples: pl.DataFrame, options: ImageOptions) -> ImagePlan:
    """Select the scans of each sample of a cohort.

    A sample with a map never uses raw scans, even if its maps turn out to be invalid, so that as many samples as
    possible are processed by the same method.

    Raises:
        DataError: maps, mask or search tables are invalid.
        UsageError: `image_scan=nearest` and the samples table has no column `image_date_column`.
    """
    if options.image_scan == "nearest" and options.image_date_column not in samples.columns:
        raise UsageError(
            f"image_scan=nearest: the samples table has no column {options.image_date_column!r}; "
            f"columns: {', '.join(samples.columns)}"
        )
    faults = FaultCollector()
    maps = open_maps(raw, options, faults) if options.image_route != "raw" else None
    scans = find_scans(raw, faults) if options.image_route != "maps" else pl.DataFrame(schema=SCANS_SCHEMA)
    faults.raise_if_any()
    choice = {"rule": options.image_scan, "date_column": options.image_date_column, "tries": options.image_tries}
    empty = pl.DataFrame(schema=SCANS_SCHEMA)
    map_scans = ordered_scans(maps.scans if maps else empty, samples, **choice)  # type: ignore[arg-type]
    without = samples.join(map_scans, on="sample_id", how="anti")
    return ImagePlan(maps, map_scans, ordered_scans(scans, without, **choice))  # type: ignore[arg-type]


def open_template(raw: Path, options: ImageOptions, maps: Maps | None) -> Template:
    """Open the template on the grid of the mask: that of the maps, of `image_mask`, or of the MNI152 grey-matter prior.

    Raises:
        DataError: mask or template is invalid.
        MissingExtraError: the template of nilearn is required and nilearn is not installed.
    """
    grid: Grid | None = maps.grid if maps else None
    if grid is None and options.image_mask:
        faults = FaultCollector()
        grid = open_mask(raw, find_mask(raw, options, None), options, faults)
        faults.raise_if_any()
    if not options.image_template:
        return mni_template(gm_threshold=options.image_gm_threshold, grid=grid)
    if grid is None:
        grid = mni_template(gm_threshold=options.image_gm_threshold).grid
    path = raw / options.image_template
    return user_template(path, path.name, grid)


def has_images(raw: Path, options: ImageOptions) -> bool:
    """Whether the export contains maps, or files that are T1 scans by name."""
    if options.image_route != "raw" and locate_maps(raw, options) is not None:
        return True
    return options.image_route != "maps" and len(find_scans(raw, FaultCollector())) > 0


def check_images(raw: Path, options: ImageOptions, faults: FaultCollector) -> ImageCheck:
    """Validate maps, mask, template and search tables, and check that the required packages are installed.

    Unreadable scans are not errors here; they are recorded as failed when they are processed.

    Raises:
        MissingExtraError: there are raw scans to process and a package of the imaging chain is not installed.
    """
    found = ImageCheck()
    before = len(faults.faults)
    maps = open_maps(raw, options, faults) if options.image_route != "raw" else None
    if maps is not None:
        found.files += maps.files
        found.notes += maps.notes
        if maps.folder is not None:
            listed = {*maps.files}
            members = tuple(sorted(p for p in maps.folder.rglob("*.nii*") if p.is_file() and p not in listed))
            found.groups[f"{maps.folder.relative_to(raw).as_posix()}/*.nii.gz"] = members
    elif options.image_route == "maps" and len(faults.faults) == before:
        faults.add(
            Fault(
                file=f"{raw.name}/ADNI_G.npy",
                expected="stacked maps, maps.csv, or a folder of RAVENS maps",
                found="none of them",
                fix="Set the path with --set image_maps=PATH.",
            )
        )
    if options.image_route == "maps":
        return found
    scans = find_scans(raw, faults)
    if len(scans):
        by_top: dict[str, list[Path]] = {}
        for file in scans["file"]:
            top, _, rest = file.partition("/")
            by_top.setdefault(f"{top}/**/*.nii" if rest else "*.nii", []).append(raw / file)
        found.groups |= {label: tuple(sorted(files)) for label, files in by_top.items()}
        found.files += search_tables(raw)
        undated, dicom = (
            int(scans["date"].null_count()),
            int(scans["file"].str.to_lowercase().str.ends_with(".dcm").sum()),
        )
        if undated:
            found.notes.append(f"images: {undated} raw scans without a date are used only if there is no other")
        if dicom:
            found.notes.append(f"images: {dicom} series are DICOM only and are not read; convert them with dcm2niix")
        if maps is None and options.image_mask:
            open_mask(raw, find_mask(raw, options, None), options, faults)
        if options.image_template and not (raw / options.image_template).is_file():
            faults.add(
                Fault(
                    file=options.image_template,
                    expected="a template at the path in image_template",
                    found="no such file",
                )
            )
        if dicom < len(scans):
            require_imaging()
    elif options.image_route == "raw":
        faults.add(
            Fault(
                file=f"{raw.name}/ADNI",
                expected="T1 scans in the folder layout of IDA (ADNI/{PTID}/…/I…/ADNI_….nii)",
                found="none",
                fix=f"Download them from {FETCH}",
            )
        )
    return found
