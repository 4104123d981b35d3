"""Raw T1 scans as IDA delivers them: archive layout, file names, search CSV; which files are T1, and which is best.

Source: raw-formats A.7 (archive layout, file grammar, search and 2025 tables, ADNI1's order of preference).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Column, read_csv

PTID = re.compile(r"\d{3}_S_\d{4,5}")
# ADNI_{PTID}_MR_{description}[_Br_{timestamp}]_S{series}_I{image}.nii; `_br_raw_` and no `_Br_` circulate as well.
_FILE = re.compile(
    r"ADNI_(?P<ptid>\d{3}_S_\d{4,5})_(?P<modality>MR|PT)_(?P<description>.+?)(?:_+br_(?:raw_)?\d{14,17}(?:_\d+)*)?"
    r"_S(?P<series>\d+)_I(?P<image>\d+)\.(?P<format>nii(?:\.gz)?|dcm)",
    re.IGNORECASE,
)
_DATE_FOLDER = re.compile(r"(\d{4}-\d{2}-\d{2})_\d{2}_\d{2}_\d{2}\.\d+")
_IMAGE_FOLDER = re.compile(r"[IS](\d+)")
_T1 = re.compile(r"MP_?RAGE|(^|_)MPR(_|$)|F?SPGR|(^|_)MT1(_|$)")
_NOT_T1 = re.compile(r"LOCALI|SCOUT|CALIB|FIELD_MAP|MASK|HIPPOCAMP|(^|_)T2|FLAIR|(^|_)PD(_|$)|DTI|FMRI|(^|_)ASL")
_ACCELERATED = re.compile(r"ACCEL|GRAPPA|SENSE|(^|_)P2(_|$)")
_REPEAT = re.compile(r"REPEAT|(^|_)MPR_R(_|$)")

SEARCH_COLUMNS = (
    Column(name="image_id", aliases=("Image Data ID", "Image ID", "IMAGEUID"), nullable=False),
    Column(name="subject", aliases=("Subject", "subject_id", "PTID"), nullable=False),
    Column(name="date", aliases=("Acq Date", "image_date", "Study Date"), required=False),
    Column(name="description", aliases=("image_description", "series_description"), required=False),
    Column(name="modality", required=False),
)
SCANS_SCHEMA = pl.Schema(
    {
        "ptid": pl.String,
        "rid": pl.Int64,
        "date": pl.Date,
        "rank": pl.Int32,
        "image_id": pl.String,
        "file": pl.String,
        "description": pl.String,
    }
)


def rid_of(column: str) -> pl.Expr:
    """Roster id of a PTID: its last field. A participant who changed site keeps it; null for other strings."""
    return pl.col(column).str.extract(r"^\d{3}_S_(\d{4,5})$").cast(pl.Int64)


def parse_date(column: str) -> pl.Expr:
    """Date of an ISO, compact, or US-style (M/D/YYYY, M/D/YY) string; null for anything else."""
    text = pl.col(column).str.strip_chars()
    patterns = (
        (r"^(\d{4}-\d{2}-\d{2})(?:[ T_].*)?$", "%Y-%m-%d"),
        (r"^(\d{8})$", "%Y%m%d"),
        (r"^(\d{1,2}/\d{1,2}/\d{4})$", "%m/%d/%Y"),
        (r"^(\d{1,2}/\d{1,2}/\d{2})$", "%m/%d/%y"),
        (r"^(\d{1,2}-[A-Za-z]{3}-\d{4})$", "%d-%b-%Y"),
    )
    return pl.coalesce(text.str.extract(pattern).str.to_date(form, strict=False) for pattern, form in patterns)


def normalised(description: str) -> str:
    """`MPR; GradWarp; N3; Scaled` and `MPR__GradWarp__N3__Scaled` alike: upper case, one underscore between words."""
    return re.sub(r"[^A-Z0-9]+", "_", description.upper()).strip("_")


def t1_rank(description: str) -> int | None:
    """How good a T1 series is, 0 best; None for anything that is no T1.

    ADNI1 (A.7): `…Scaled`, then its later rescale `Scaled_2`, then `N3m` or `N3`, then the original MP-RAGE or
    IR-SPGR. Later phases come as originals: full acquisitions before accelerated ones. A repeat stands behind its
    first series.
    """
    words = normalised(description)
    if not _T1.search(words) or _NOT_T1.search(words):
        return None
    if words.endswith("SCALED"):
        rank = 0
    elif words.endswith("SCALED_2"):
        rank = 1
    elif re.search(r"(^|_)N3M?(_|$)", words):
        rank = 2
    else:
        rank = 4 if _ACCELERATED.search(words) else 3
    return 2 * rank + bool(_REPEAT.search(words))


def _is_search(path: Path) -> bool:
    with path.open("rb") as handle:
        header = handle.readline(4096).decode("utf-8", errors="replace").replace('"', "").lower()
    names = {h.strip() for h in header.split(",")}
    return bool(names & {"image data id", "image_id"}) and bool(names & {"subject", "subject_id"})


def search_tables(raw: Path) -> list[Path]:
    """IDA search or collection CSVs and the 2025 tables (`All_Images`, `Key_MRI`) of an export, known by header."""
    return sorted(p for p in raw.rglob("*.csv") if p.is_file() and _is_search(p))


def _read_search(raw: Path, faults: FaultCollector) -> pl.DataFrame:
    """Image id → subject, date, description, modality, from all search tables; the first that has a value wins."""
    frames = []
    for path in search_tables(raw):
        try:
            frames.append(read_csv(path, SEARCH_COLUMNS, shown_as=path.relative_to(raw).as_posix()))
        except DataError as error:
            faults.absorb(error)
    names = [c.name for c in SEARCH_COLUMNS]
    empty = pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    table = pl.concat([empty, *frames], how="diagonal")
    table = table.with_columns(pl.col("image_id").str.strip_prefix("I").str.strip_prefix("D"))
    return table.group_by("image_id", maintain_order=True).agg(pl.col(names[1:]).drop_nulls().first())


def _file_row(raw: Path, path: Path) -> dict[str, Any] | None:
    """What name and folders of one file say; None if it belongs to no subject or is a PET image."""
    parts = path.relative_to(raw).parts
    match = _FILE.fullmatch(path.name)
    folders = parts[:-1]
    ptid = match["ptid"] if match else next((p for p in folders if PTID.fullmatch(p)), None)
    # A template-space map may lie in a subject's folder too; without the grammar, the archive's layout is required.
    dates = [m[1] for p in folders if (m := _DATE_FOLDER.fullmatch(p))]
    images = [m[1] for p in folders if (m := _IMAGE_FOLDER.fullmatch(p))]
    if ptid is None or (match is None and not (dates and images)) or (match and match["modality"].upper() == "PT"):
        return None
    dated = next((i for i, p in enumerate(folders) if _DATE_FOLDER.fullmatch(p)), None)
    description = match["description"] if match else folders[dated - 1] if dated else None
    return {
        "ptid": ptid.upper(),
        "path_date": dates[-1] if dates else None,
        "path_description": description,
        "image_id": match["image"] if match else images[-1],
        "file": path.relative_to(raw).as_posix(),
        "format": "dcm" if path.suffix.lower() == ".dcm" else "nii",
    }


def find_scans(raw: Path, faults: FaultCollector) -> pl.DataFrame:
    """Every T1 series of an export, `SCANS_SCHEMA`, one row an image id, sorted by image id.

    Where a search table knows the image, its acquisition date and description count; else what the path says. A
    series that is only there as DICOM is listed behind all NIfTI ones. The research group of the search table is not
    read: it is a label.
    """
    files = sorted(p for p in raw.rglob("*") if p.name.lower().endswith((".nii", ".nii.gz", ".dcm")) and p.is_file())
    rows = [row for path in files if (row := _file_row(raw, path)) is not None]
    if not rows:
        return pl.DataFrame(schema=SCANS_SCHEMA)
    found = pl.DataFrame(rows, schema_overrides=dict.fromkeys(rows[0], pl.String)).sort(
        "image_id", pl.col("format") == "dcm", "file"
    )
    found = found.unique("image_id", keep="first", maintain_order=True)
    joined = found.join(_read_search(raw, faults), on="image_id", how="left")
    strangers = joined.filter(pl.col("subject").str.to_uppercase() != pl.col("ptid"))
    for row in strangers.head(20).iter_rows(named=True):
        faults.add(
            Fault(
                file=row["file"],
                column="Subject",
                expected=f"image {row['image_id']} of the subject that the search table names",
                found="a path that names another subject",
                fix="Download the image again; its folder or the search table is wrong.",
            )
        )
    other = pl.col("modality").is_not_null() & ~pl.col("modality").str.to_uppercase().is_in(["MRI", "MR"])
    scans = joined.filter(~other).with_columns(
        pl.coalesce(parse_date("date"), parse_date("path_date")).alias("date"),
        pl.coalesce("description", "path_description").fill_null("").alias("description"),
        rid_of("ptid").alias("rid"),
    )
    ranks = pl.Series("rank", [t1_rank(d) for d in scans["description"]], dtype=pl.Int32)
    scans = scans.with_columns(ranks + 100 * (scans["format"] == "dcm").cast(pl.Int32)).filter(
        pl.col("rank").is_not_null()
    )
    return scans.select(pl.col(c).cast(t) for c, t in SCANS_SCHEMA.items()).sort("image_id")


def ordered_scans(
    scans: pl.DataFrame, samples: pl.DataFrame, *, rule: str, date_column: str, tries: int
) -> pl.DataFrame:
    """Which scans are tried for which sample, in which order.

    By `rule`: the earliest, the latest, or the date nearest to `date_column` of the sample (ties: the earlier; a
    sample without that date: the earliest). Scans without a date come last. Within a day the better `rank` wins, then
    the lower image id. Subjects are matched by roster id, because the site in a PTID can change.

    Args:
        scans: `rid`, `date`, `rank`, `image_id` and any further columns.
        samples: the cohort, `sample_id`, `subject_id` and possibly `date_column`.

    Returns:
        The rows of `scans` with `sample_id` and `attempt` (0 is tried first, below `tries`), sorted by both.
    """
    wanted = samples.select(
        "sample_id",
        rid_of("subject_id").alias("rid"),
        (pl.col(date_column).cast(pl.Date) if date_column in samples.columns else pl.lit(None, dtype=pl.Date)).alias(
            "__at"
        ),
    )
    joined = wanted.filter(pl.col("rid").is_not_null()).join(scans, on="rid", how="inner")
    day = pl.col("date").to_physical()
    if rule == "nearest":
        order = pl.coalesce((day - pl.col("__at").to_physical()).abs(), day)
    else:
        order = -day if rule == "latest" else day
    ordered = joined.with_columns(order.alias("__order")).sort(
        "sample_id", "__order", "date", "rank", pl.col("image_id").str.zfill(20), nulls_last=True, maintain_order=True
    )
    ordered = ordered.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("sample_id").alias("attempt"))
    return ordered.filter(pl.col("attempt") < tries).drop("__at", "__order")
