"""Assign maps and scans to samples, and validate the images before any scan is processed."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.image.maps import Maps, find_mask, locate_maps, open_maps, open_mask
from mrpipe.datasets.adni.image.scans import (
    SCANS_SCHEMA,
    beside,
    find_scans,
    images_below,
    masked,
    ordered_scans,
    rid_of,
    scan_of,
    search_tables,
)
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.delimited import line_of
from mrpipe.errors import Fault, FaultCollector
from mrpipe.imaging.chain import require_imaging
from mrpipe.imaging.grid import VoxelGrid
from mrpipe.imaging.template import Template, mni_template, user_template
from mrpipe.raw import ROW, Column, read_csv

REVIEW = "image_review.csv"
DROPPED = f"dropped in {REVIEW}"
LISTED = "Name it by image ID, by file, or by its line in ADNI_subj.txt."
REVIEW_COLUMNS = (
    Column(name="image_id", aliases=("Image Data ID", "file", "scan", "map"), nullable=False),
    Column(name="decision", nullable=False),
    Column(name="why", aliases=("reason", "comment", "note"), required=False),
)
REVIEW_SCHEMA = pl.Schema(dict.fromkeys(("image_id", "decision", "why"), pl.String))
# Path of an image that is not used → the reason; the first that matches applies.
_UNUSED = (
    (r"(^|/)(derivatives|caps|subjects)/|_(space|desc)-", "derived from scans; list grey-matter maps in maps.csv"),
    (r"(^|/)s?m?w?p\d|RAVENS", "not a map that is read; list grey-matter maps in maps.csv"),
    (r"(^|/)sub-", "of BIDS, but no T1w, or its PTID is neither in its name nor in participants.tsv"),
    ("", "no T1 scan by its name or path, or the path has no PTID (docs/raw-formats.md lists the layouts)"),
)
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
        rids: RIDs of the participants with a map or scan.
        unused: images that are not used → the reason.
    """

    files: list[Path] = field(default_factory=list)
    groups: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rids: set[int] = field(default_factory=set)
    unused: dict[str, str] = field(default_factory=dict)

    def observed(self, samples: pl.DataFrame) -> pl.Series:
        """IDs of the samples with a map or scan; adds a note on participants without a sample."""
        rids = samples.select("sample_id", rid_of("subject_id").alias("rid"))
        if strangers := self.rids - set(rids["rid"]):
            self.notes.append(f"images: {len(strangers)} of {len(self.rids)} participants with images have no sample")
        return rids.filter(pl.col("rid").is_in(self.rids))["sample_id"]


def read_review(raw: Path, scans: pl.DataFrame, maps: Maps | None, faults: FaultCollector) -> pl.DataFrame:
    """Decisions of a person on scans, from `image_review.csv`: `image_id, decision, why`; empty without the file.

    A scan is named by image ID (with or without I), by file, or, for a stack, by its line in `ADNI_subj.txt`.
    """
    paths = sorted(p for p in raw.rglob(REVIEW) if p.is_file())
    frames = [f.select("image_id", "file") for f in (scans, maps.scans if maps else scans)]
    named = {(k.lower(), i) for i, f in pl.concat(frames).iter_rows() for k in (i, f, Path(f).name)}
    # A name that several scans have (T1.nii) is none; their paths are.
    times = Counter(k for k, _ in named)
    known = {k: i for k, i in named if times[k] == 1}
    rows: dict[str, tuple[str, str, str | None]] = {}
    for path in paths:
        shown_as = path.relative_to(raw).as_posix()
        frame = faults.attempt(read_csv, path, REVIEW_COLUMNS, shown_as=shown_as, numbered=True)
        if frame is None:
            continue
        frame = frame if "why" in frame.columns else frame.with_columns(why=pl.lit(None, dtype=pl.String))
        for record, key, decision, why in frame.select(ROW, "image_id", "decision", "why").iter_rows():
            name, line = Path(key).name.lower(), line_of(path, record)
            image = known.get(key.lower()) or known.get(name) or known.get(re.sub(r"^[id]?0*(?=\d)", "", name))
            if image is None:
                found = "another value"
                faults.add(Fault(file=shown_as, line=line, expected="an image of the export", found=found, fix=LISTED))
            elif image in rows or decision.lower() not in ("keep", "drop"):
                found = "a second one" if image in rows else "another value"
                faults.add(Fault(file=shown_as, line=line, expected="one decision, keep or drop", found=found))
            else:
                rows[image] = (image, decision.lower(), why)
    return pl.DataFrame(list(rows.values()), schema=REVIEW_SCHEMA, orient="row")


def plan_images(raw: Path, samples: pl.DataFrame, options: AdniOptions) -> ImagePlan:
    """Select the scans of each sample of a cohort.

    A sample with a map never uses raw scans, even if its maps turn out to be invalid, so that as many samples as
    possible are processed by the same method.

    Raises:
        DataError: maps, mask or search tables are invalid.
    """
    faults = FaultCollector()
    maps = open_maps(raw, options, faults) if options.image_route != "raw" else None
    scans = find_scans(raw, faults) if options.image_route != "maps" else pl.DataFrame(schema=SCANS_SCHEMA)
    review = read_review(raw, scans, maps, faults)
    faults.raise_if_any()
    rule, tries = options.image_scan, options.image_tries
    listed = maps.scans if maps else pl.DataFrame(schema=SCANS_SCHEMA)
    mapped, scans = (s.join(review, on="image_id", how="left", maintain_order="left") for s in (listed, scans))
    map_scans = ordered_scans(mapped, samples, rule=rule, tries=tries)
    without = samples.join(map_scans, on="sample_id", how="anti")
    return ImagePlan(maps, map_scans, ordered_scans(scans, without, rule=rule, tries=tries))


def open_template(raw: Path, options: AdniOptions, maps: Maps | None) -> Template:
    """Open the template on the grid of the mask: that of the maps, of `image_mask`, or of the MNI152 grey-matter prior.

    Raises:
        DataError: mask or template is invalid.
        MissingExtraError: the template of nilearn is required and nilearn is not installed.
    """
    grid: VoxelGrid | None = maps.grid if maps else None
    if grid is None and options.image_mask:
        faults = FaultCollector()
        grid = open_mask(raw, find_mask(raw, options, None), options, faults)
        faults.raise_if_any()
    if not options.image_template:
        return mni_template(grid)
    if grid is None:
        grid = mni_template().grid
    path = raw / options.image_template
    return user_template(path, path.name, grid)


def has_images(raw: Path, options: AdniOptions) -> bool:
    """Whether the export contains maps, or files that are T1 scans by name."""
    if options.image_route != "raw" and locate_maps(raw, options) is not None:
        return True
    return options.image_route != "maps" and len(find_scans(raw, FaultCollector())) > 0


def check_images(raw: Path, options: AdniOptions, faults: FaultCollector) -> ImageCheck:
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
            below = sorted(p for p in maps.folder.rglob("*.nii*") if p.is_file() and p not in maps.files)
            members = (p for p in below if maps.source.lower().endswith(".csv") or scan_of(p.name))
            found.groups[f"{masked(maps.folder.relative_to(raw))}/*.nii.gz"] = tuple(members)
    elif options.image_route == "maps" and len(faults.faults) == before:
        expected, fix = "stacked maps, maps.csv, or a folder of RAVENS maps", "Set --set image_maps=PATH."
        faults.add(Fault(file=f"{raw.name}/ADNI_G.npy", expected=expected, found="none of them", fix=fix))
    scans = find_scans(raw, faults) if options.image_route != "maps" else pl.DataFrame(schema=SCANS_SCHEMA)
    found.rids = {*scans["rid"].to_list(), *(maps.scans["rid"].to_list() if maps is not None else ())}
    if len(faults.faults) == before:
        review = read_review(raw, scans, maps, faults)
        found.files += sorted(raw.rglob(REVIEW))
        if len(review):
            dropped = int((review["decision"] == "drop").sum())
            found.notes.append(f"images: {REVIEW} drops {dropped} and accepts {len(review) - dropped} scans")
    taken = {raw / options.image_mask, *found.files, *(raw / f for f in scans["file"])}
    taken |= {p for group in found.groups.values() for p in group}
    reasons: dict[str, list[str]] = {}
    for path in images_below(raw):
        if path not in taken and path.suffix.lower() != ".dcm":  # `mrpipe check` names the conversion of DICOM
            file = path.relative_to(raw)
            reason = next(r for pattern, r in _UNUSED if re.search(pattern, file.as_posix(), re.IGNORECASE))
            reasons.setdefault(reason, []).append(masked(file))
    found.unused = {f"{len(paths)} images (e.g. {paths[0]})": reason for reason, paths in reasons.items()}
    if options.image_route == "maps":
        return found
    if len(scans):
        kinds = scans["layout"].value_counts(sort=True).iter_rows()
        days = scans.group_by("rid", "date").len().filter(pl.col("len") > 1).height
        several = f"; on {days} days, participants have several, of which the best series is used" if days else ""
        found.notes.append(f"images: raw T1 scans by layout: {', '.join(f'{k} {n}' for k, n in kinds)}{several}")
        if files := beside(raw, scans):
            found.groups["tables and sidecars of scans"] = files
        by_top: dict[str, list[Path]] = {}
        for file in scans["file"]:
            top, _, rest = masked(Path(file)).partition("/")
            by_top.setdefault(f"{top}/**/*.nii" if rest else "*.nii", []).append(raw / file)
        found.groups |= {label: tuple(sorted(files)) for label, files in by_top.items()}
        found.files += search_tables(raw)
        undated = int(scans["date"].null_count())
        dicom = int(scans["file"].str.to_lowercase().str.ends_with(".dcm").sum())
        if undated:
            found.notes.append(f"images: {undated} raw scans without a date are used only if there is no other")
        if dicom:
            found.notes.append(f"images: {dicom} series are DICOM only and are not read; convert them with dcm2niix")
        if maps is None and options.image_mask:
            open_mask(raw, find_mask(raw, options, None), options, faults)
        if options.image_template and not (raw / options.image_template).is_file():
            expected = "a template at the path in image_template"
            faults.add(Fault(file=options.image_template, expected=expected, found="no such file"))
        if dicom < len(scans):
            require_imaging()
    elif options.image_route == "raw":
        expected, fix = "T1 scans in the layout of IDA (ADNI/{PTID}/…/I…/ADNI_….nii) or BIDS", f"Download from {FETCH}"
        faults.add(Fault(file=f"{raw.name}/ADNI", expected=expected, found="none", fix=fix))
    return found
