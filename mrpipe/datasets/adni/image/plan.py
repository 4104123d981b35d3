"""Which map or scan gives which sample its image; what a check can say before the first hour of processing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.image.maps import Maps, find_mask, locate_maps, open_maps, open_mask
from mrpipe.datasets.adni.image.options import ImageOptions
from mrpipe.datasets.adni.image.scans import SCANS_SCHEMA, find_scans, ordered_scans, search_tables
from mrpipe.errors import Fault, FaultCollector, UsageError
from mrpipe.imaging.chain import require_imaging
from mrpipe.imaging.grid import VoxelGrid
from mrpipe.imaging.template import Template, mni_template, user_template

FETCH = "ida.loni.usc.edu: ADNI > Download > Image Collections (NIfTI), with the search CSV."


@dataclass(frozen=True)
class ImagePlan:
    """Scans in the order in which they are tried, for each sample.

    Attributes:
        maps: the precomputed maps, if there are any.
        map_scans, raw_scans: `sample_id, attempt` and what locates the scan; no sample is in both.
    """

    maps: Maps | None
    map_scans: pl.DataFrame
    raw_scans: pl.DataFrame


@dataclass(kw_only=True)
class ImageCheck:
    """What a check of the images found.

    Attributes:
        files: files that the inventory lists by name.
        groups: label → files that it lists as one entry, because their names are patient ids.
        notes: for the manifest.
    """

    files: list[Path] = field(default_factory=list)
    groups: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_images(raw: Path, samples: pl.DataFrame, options: ImageOptions) -> ImagePlan:
    """Choose scans for the samples of a cohort.

    A sample that has a map takes maps only, even if they all turn out to have failed: one cohort, one method where
    that is possible.

    Raises:
        DataError: maps, mask or search tables are at fault.
        UsageError: `nearest`, and the cohort has no such date column.
    """
    if options.image_scan == "nearest" and options.image_date_column not in samples.columns:
        raise UsageError(
            f"image_scan=nearest needs the cohort's column {options.image_date_column!r}; "
            f"it has {', '.join(samples.columns)}"
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
    """Template on the grid of the mask: of the maps, of the option, or of the MNI152 grey-matter prior.

    Raises:
        DataError: mask or template are at fault.
        MissingExtraError: nilearn's template is needed and not installed.
    """
    grid: VoxelGrid | None = maps.grid if maps else None
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
    """Whether an export holds any image: maps, or files that are T1 scans by name."""
    if options.image_route != "raw" and locate_maps(raw, options) is not None:
        return True
    return options.image_route != "maps" and len(find_scans(raw, FaultCollector())) > 0


def check_images(raw: Path, options: ImageOptions, faults: FaultCollector) -> ImageCheck:
    """Every fault of maps, mask and search tables, and which packages will be needed.

    A scan that cannot be read is no fault here: it costs that scan its image, and the scan table says why.

    Raises:
        MissingExtraError: raw scans are to be processed and a package of the chain is not installed.
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
                fix="Give the path with image_maps=...",
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
            found.notes.append(f"images: {undated} raw scans without a date are taken last")
        if dicom:
            found.notes.append(f"images: {dicom} series are DICOM only and give no image; convert them with dcm2niix")
        if maps is None and options.image_mask:
            open_mask(raw, find_mask(raw, options, None), options, faults)
        if options.image_template and not (raw / options.image_template).is_file():
            faults.add(
                Fault(
                    file=options.image_template, expected="the template that image_template names", found="no such file"
                )
            )
        if dicom < len(scans):
            require_imaging()
    elif options.image_route == "raw":
        faults.add(
            Fault(
                file=f"{raw.name}/ADNI",
                expected="T1 scans in IDA's layout (ADNI/{PTID}/…/I…/ADNI_….nii)",
                found="none",
                fix=f"{FETCH}",
            )
        )
    return found
