"""Find raw T1 scans in an IDA download (folders, file names, search CSV) and rank the series of each participant.

Folder layout, file names and search tables are described in docs/raw-formats.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.datasets.adni.forms import values
from mrpipe.delimited import UNREADABLE, head
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.forms import is_table
from mrpipe.raw import Column, read_csv

PTID = re.compile(r"\d{3}_S_\d{4,5}", re.IGNORECASE)
# ADNI_{PTID}_MR_{description}[_Br_{timestamp}]_S{series}_I{image}.nii; `_Br_` is `_br_raw_` or absent in some files.
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
    """RID of a PTID, its last field (unchanged if the participant changes site); null for other strings."""
    return pl.col(column).str.extract(r"(?i)^\d{3}_S_(\d{4,5})$").cast(pl.Int64)


def parse_date(column: str) -> pl.Expr:
    """Parse YYYYMMDD, D-Mon-YYYY or a date of the tables (`values.date`); null for other strings."""
    text = pl.col(column).str.strip_chars()
    return pl.coalesce(values.date(text), *(text.str.to_date(form, strict=False) for form in ("%Y%m%d", "%d-%b-%Y")))


def normalised(description: str) -> str:
    """Normalise a series description (`MPR; N3; Scaled`, `MPR__N3__Scaled`) to upper case with single underscores."""
    return re.sub(r"[^A-Z0-9]+", "_", description.upper()).strip("_")


def t1_rank(description: str) -> int | None:
    """Rank a T1 series by its description, 0 is best; None if it is not a T1 series.

    ADNI1: `…Scaled`, then its later rescale `Scaled_2`, then `N3m` or `N3`, then the original MP-RAGE or IR-SPGR. Later
    phases are distributed as originals only: full acquisitions rank before accelerated ones, and repeats after the
    first series of their kind.
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
    # Names of columns are ASCII in every encoding; the null bytes are those of UTF-16.
    try:
        header = head(path, 4096).replace(b"\0", b"").decode("latin-1").lower().split("\n", 1)[0]
    except UNREADABLE as error:
        return isinstance(error, PermissionError)  # `read_csv` reports it
    names = {h.strip(' "\r\n\xef\xbb\xbf\xfe\xff') for h in re.split(r"[,;\t]", header)}
    return bool(names & {"image data id", "image_id"}) and bool(names & {"subject", "subject_id"})


def search_tables(raw: Path) -> list[Path]:
    """Image tables of an export, recognised by header: IDA search or collection CSVs, `All_Images`, `Key_MRI`."""
    return sorted(p for p in raw.rglob("*") if is_table(p) and _is_search(p))


def _read_search(raw: Path, faults: FaultCollector) -> pl.DataFrame:
    """Subject, date, description and modality per image ID; the first search table with a value takes precedence."""
    frames = []
    for path in search_tables(raw):
        try:
            frame = read_csv(path, SEARCH_COLUMNS, shown_as=path.relative_to(raw).as_posix())
        except DataError as error:
            faults.absorb(error)
            continue
        # By file, as the order of day and month may differ between files.
        frames.append(frame.with_columns(parse_date(c) for c in frame.columns if c == "date"))
    names = [c.name for c in SEARCH_COLUMNS]
    empty = pl.DataFrame(schema=dict.fromkeys(names, pl.String) | {"date": pl.Date})
    table = pl.concat([empty, *frames], how="diagonal")
    table = table.with_columns(pl.col("image_id").str.replace(r"^[IiDd]?0*(\d)", "$1"))
    return table.group_by("image_id", maintain_order=True).agg(pl.col(names[1:]).drop_nulls().first())


def _file_row(raw: Path, path: Path) -> dict[str, Any] | None:
    """Parse the name and folders of a file; None if it has no participant or is a PET image."""
    parts = path.relative_to(raw).parts
    match = _FILE.fullmatch(path.name)
    folders = parts[:-1]
    ptid = match["ptid"] if match else next((p for p in folders if PTID.fullmatch(p)), None)
    # Files not named as in IDA are accepted only in its folder layout, because maps may be in a participant's folder.
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
        "image_id": str(int(match["image"] if match else images[-1])),
        "file": path.relative_to(raw).as_posix(),
        "format": "dcm" if path.suffix.lower() == ".dcm" else "nii",
    }


def find_scans(raw: Path, faults: FaultCollector) -> pl.DataFrame:
    """Find every T1 series of an export: `SCANS_SCHEMA`, one row per image ID, sorted by image ID.

    Acquisition date and description are taken from a search table, or from the path if no table lists the image. Series
    available only as DICOM rank after all NIfTI series. The research group in search tables is not read, because it is
    a diagnosis.
    """
    files = sorted(p for p in raw.rglob("*") if p.name.lower().endswith((".nii", ".nii.gz", ".dcm")) and p.is_file())
    rows = [row for path in files if (row := _file_row(raw, path)) is not None]
    if not rows:
        return pl.DataFrame(schema=SCANS_SCHEMA)
    found = pl.DataFrame(rows, schema_overrides=dict.fromkeys(rows[0], pl.String)).sort(
        "image_id", pl.col("format") == "dcm", "file"
    )
    owners = found.group_by("image_id").agg(pl.col("ptid").n_unique().alias("n")).filter(pl.col("n") > 1)
    if len(owners):
        text = f"{len(owners)} images in the folders of several, e.g. image {owners['image_id'].sort()[0]}"
        faults.add(Fault(file="raw scans", expected="each image in the folder of one participant", found=text))
    found = found.unique("image_id", keep="first", maintain_order=True)
    joined = found.join(_read_search(raw, faults), on="image_id", how="left")
    strangers = joined.filter(pl.col("subject").str.to_uppercase() != pl.col("ptid"))
    for row in strangers.head(20).iter_rows(named=True):
        expected, fix = "the folder of the subject given in the search table", "Download the image again."
        file = f"image {row['image_id']}"
        faults.add(Fault(file=file, column="Subject", expected=expected, found="that of another subject", fix=fix))
    other = pl.col("modality").is_not_null() & ~pl.col("modality").str.to_uppercase().is_in(["MRI", "MR"])
    scans = joined.filter(~other).with_columns(
        pl.coalesce("date", parse_date("path_date")).alias("date"),
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
    """Select the scans to try for each sample, in order.

    Scans are sorted by `rule`: earliest, latest, or nearest to `date_column` (ties: the earlier scan; samples without
    that date: the earliest). Undated scans are last. On the same day, the lower `rank` is first, then the lower image
    ID. Participants are matched by RID, because the site in a PTID can change.

    Args:
        scans: `rid`, `date`, `rank`, `image_id` and any further columns.
        samples: `sample_id`, `subject_id` and optionally `date_column`.
        tries: maximum number of scans per sample, not counting those with `decision` drop (optional column).

    Returns:
        The selected rows of `scans` with `sample_id` and `attempt` (from 0), sorted by both.
    """
    keyed = samples.select(
        "sample_id",
        rid_of("subject_id").alias("rid"),
        (pl.col(date_column).cast(pl.Date) if date_column in samples.columns else pl.lit(None, dtype=pl.Date)).alias(
            "__at"
        ),
    )
    joined = keyed.filter(pl.col("rid").is_not_null()).join(scans, on="rid", how="inner")
    day = pl.col("date").to_physical()
    if rule == "nearest":
        order = pl.coalesce((day - pl.col("__at").to_physical()).abs(), day)
    else:
        order = -day if rule == "latest" else day
    ordered = joined.with_columns(order.alias("__order")).sort(
        "sample_id", "__order", "date", "rank", pl.col("image_id").str.zfill(20), nulls_last=True, maintain_order=True
    )
    ordered = ordered.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("sample_id").alias("attempt"))
    tried = pl.col("decision").ne_missing("drop") if "decision" in scans.columns else pl.lit(value=True)
    return ordered.filter(tried.cast(pl.Int32).cum_sum().over("sample_id") <= tries).drop("__at", "__order")
