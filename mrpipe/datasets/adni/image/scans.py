"""Find T1 scans, and maps made from them, by their paths (IDA, BIDS, dcm2niix), and rank the series of participants.

Layouts and tables are described in docs/raw-formats.md.
"""

import csv
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.budget import MAX_JSON, load_json, read_small
from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms import values
from mrpipe.delimited import decode, head
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.forms import is_table
from mrpipe.raw import Column, read_csv
from mrpipe.reading import reading, refusal_of

PTID = re.compile(r"\d{3}_S_\d{4,5}", re.IGNORECASE)
_ID, _DAY, _END = r"(?P<ptid>\d{3}_S_\d{4,5})", r"(?:19|20)\d\d-?\d\d-?\d\d", r"\.(?:nii(?:\.gz)?|dcm)"
_FOLDER = rf"(?P<date>{_DAY})_\d\d_\d\d_\d\d\.\d+"
# Layouts of T1 scans: name → path relative to the export; the first that matches applies. Groups: ptid, or sub and ses
# of BIDS; date or time; image (ID); description. `_Br_`, which may be `_br_raw_` or absent, is not the acquisition.
LAYOUTS = {
    "IDA": rf"(?:.*/)?(?:{_FOLDER}/.*)?ADNI_{_ID}_MR_(?P<description>.+?)(?:_+br_(?:raw_)?\d{{14,17}}(?:_\d+)*"
    rf"|_(?P<time>{_DAY})\d{{6,9}})?(?:_S\d+)?_I(?P<image>\d+){_END}",
    "folders of IDA": rf"(?:.*/)?{_ID}/(?P<description>[^/]+)/{_FOLDER}/[IS](?P<image>\d+)/(?!ADNI_.*_PT_)[^/]+{_END}",
    "BIDS": r"(?!(?:.*/)?derivatives/)(?:.*/)?(?P<sub>sub-[a-z0-9]+)/(?:(?P<ses>ses-[a-z0-9]+)/)?anat/"
    rf"sub-(?:(?!desc-|space-)[^/])*_T1w{_END}",
    "PTID_date": rf"(?:.*/)?{_ID}_(?P<date>{_DAY})[^/]*/(?:\d{{3}}_S_[^/]*_)?(?P<description>T1)w?{_END}",
    "dcm2niix": rf"(?:.*/)?(?:ADNI_)?{_ID}_(?P<description>[^/]+?)_(?P<date>{_DAY})\d{{6}}(?:_[^/]*)?{_END}",
}
RAVENS = re.compile(rf"(?:.*/)?{_ID}_(?P<date>{_DAY})_(?P<description>T1)_[^/]*RAVENS_150[^/]*{_END}", re.IGNORECASE)
# Modulated grey matter of CAT12 and SPM is named after its scan.
MODULATED = re.compile(r"(?P<folder>(?:.*/)?)mwp1(?P<scan>[^/]+)", re.IGNORECASE)
_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in LAYOUTS.items()}
# What tables of BIDS tell of a folder or file: end of the name → columns of the key and the value.
_TABLES = {
    "participants.tsv": ("participant_id", "alternative_id_1"),
    "_sessions.tsv": ("session_id", "acq_time"),
    "_scans.tsv": ("filename", "acq_time"),
}
_T1 = re.compile(r"MP_?RAGE|(^|_)MPR(_|$)|F?SPGR|(^|_)MT1(_|$)")
_NOT_T1 = re.compile(r"LOCALI|SCOUT|CALIB|FIELD_MAP|MASK|HIPPOCAMP|(^|_)T2|FLAIR|(^|_)PD(_|$)|DTI|FMRI|(^|_)ASL")
_ACCELERATED = re.compile(r"ACCEL|GRAPPA|SENSE|(^|_)P2(_|$)")
_REPEAT = re.compile(r"REPEAT|(^|_)MPR_R(_|$)")
# Rank of a scan whose layout says that it is T1, but whose series is unknown: an original, and full by its name.
_UNNAMED = 6

SEARCH_COLUMNS = (
    Column(name="image_id", aliases=("Image Data ID", "Image ID", "IMAGEUID"), nullable=False),
    Column(name="subject", aliases=("Subject", "subject_id", "PTID"), nullable=False),
    Column(name="date", aliases=("Acq Date", "image_date", "Study Date"), required=False),
    Column(name="description", aliases=("image_description", "series_description"), required=False),
    Column(name="modality", required=False),
)
_SCAN: dict[str, Any] = {"ptid": pl.String, "rid": pl.Int64, "date": pl.Date, "rank": pl.Int32}
SCANS_SCHEMA = pl.Schema(_SCAN | dict.fromkeys(("image_id", "file", "description", "layout"), pl.String))


def rid_of(column: str) -> pl.Expr:
    """RID of a PTID, its last field (unchanged if the participant changes site); null for other strings."""
    return pl.col(column).str.extract(r"(?i)^\d{3}_S_(\d{4,5})$").cast(pl.Int64)


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
    kinds = (r"SCALED$", r"SCALED_2$", r"(^|_)N3M?(_|$)")
    plain = 4 if _ACCELERATED.search(words) else 3
    rank = next((i for i, kind in enumerate(kinds) if re.search(kind, words)), plain)
    return 2 * rank + bool(_REPEAT.search(words))


def _is_search(path: Path) -> bool:
    # Names of columns are ASCII in every encoding; the null bytes are those of UTF-16.
    try:
        header = head(path, 4096).replace(b"\0", b"").decode("latin-1").lower().split("\n", 1)[0]
    except Exception as error:  # damaged bytes can raise any exception
        return refusal_of(error) is not None  # `read_csv` reports it
    names = {h.strip(' "\r\n\xef\xbb\xbf\xfe\xff') for h in re.split(r"[,;\t]", header)}
    return bool(names & {"image data id", "image_id"}) and bool(names & {"subject", "subject_id"})


def search_tables(raw: Path) -> list[Path]:
    """Image tables of an export, recognised by header: IDA search or collection CSVs, `All_Images`, `Key_MRI`."""
    return sorted(p for p in raw.rglob("*") if is_table(p) and _is_search(p))


def _read_search(raw: Path, faults: FaultCollector) -> pl.DataFrame:
    """Subject, date, description and modality per image ID; the first search table with a value takes precedence."""
    frames = []
    for path in search_tables(raw):
        frame = faults.attempt(read_csv, path, SEARCH_COLUMNS, shown_as=path.relative_to(raw).as_posix())
        if frame is None:
            continue
        # By file, as the order of day and month may differ between files.
        frames.append(frame.with_columns(values.date(c) for c in frame.columns if c == "date"))
    names = [c.name for c in SEARCH_COLUMNS]
    empty = pl.DataFrame(schema=dict.fromkeys(names, pl.String) | {"date": pl.Date})
    table = pl.concat([empty, *frames], how="diagonal")
    table = table.with_columns(pl.col("image_id").str.replace(r"^[IiDd]?0*(\d)", "$1"))
    return table.group_by("image_id", maintain_order=True).agg(pl.col(names[1:]).drop_nulls().first())


def _bids_tables(raw: Path, faults: FaultCollector) -> dict[str, str]:
    """PTID of subject folders, and dates of session folders and scans, by path relative to the export."""
    found: dict[str, str] = {}
    for path in _bids_files(raw):
        key, value = next(c for end, c in _TABLES.items() if path.name.lower().endswith(end))
        shown_as, folder = masked(path.relative_to(raw)), path.parent.relative_to(raw)
        rows: list[dict[str, str]] = []
        with faults.collecting(), reading(shown_as, "a table of BIDS"):  # the format is fixed: UTF-8, with tabs
            lines = decode(read_small(path, shown_as), shown_as=shown_as).splitlines()
            rows = list(csv.DictReader(lines, delimiter="\t", restkey=""))
        if rows and key not in rows[0]:
            expected, columns = "this column, and tabs between columns", f"columns {', '.join(rows[0])}"
            faults.add(Fault(file=shown_as, column=key, expected=expected, found=columns))
            continue
        known = ((row[key], row.get(value) or row.get("examination_date")) for row in rows)
        found |= {(folder / name).as_posix(): text for name, text in known if name and text and text != "n/a"}
    return found


def _bids_files(raw: Path) -> list[Path]:
    return sorted(p for p in raw.rglob("*.tsv") if p.name.lower().endswith((*_TABLES,)))


def masked(path: Path) -> str:
    """A path without the digits of PTIDs."""
    return re.sub(r"\d{3}_?S_?\d{4,5}", "SSS_S_RRRR", path.as_posix(), flags=re.IGNORECASE)


def _sidecar(raw: Path, path: Path, faults: FaultCollector) -> dict[str, Any]:
    """The JSON file that dcm2niix writes beside an image; empty if there is none."""
    beside = path.with_name(re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE) + ".json")
    if not beside.is_file():
        return {}
    shown_as = masked(beside.relative_to(raw))
    content = faults.attempt(lambda: load_json(read_small(beside, shown_as, MAX_JSON), shown_as))
    return content if isinstance(content, dict) else {}


def _file_row(raw: Path, path: Path, named: str, bids: dict[str, str], faults: FaultCollector) -> dict[str, Any] | None:
    """What path, BIDS tables and sidecar tell about a file; None if it has no participant or no known layout.

    Args:
        named: path, relative to the export, of the scan; that of the file itself, unless it is a map.
    """
    layout, match = next(((n, m) for n, p in _PATTERNS.items() if (m := p.fullmatch(named))), ("sidecar", None))
    match = match or RAVENS.fullmatch(named)
    row: dict[str, Any] = {k: v for k, v in match.groupdict().items() if v} if match else {}
    if "sub" in row:
        folder = named[: named.lower().index("/anat/")]
        subject = folder.removesuffix(f"/{row.get('ses', '')}")
        label = re.fullmatch(r"sub-(?:ADNI)?(\d{3})S(\d{4,5})", row["sub"], re.IGNORECASE)
        ptids = {f"{label[1]}_S_{label[2]}"} if label else set()
        ptids |= {bids[subject].upper()} if subject in bids else set()
        if len(ptids) > 1:
            expected, found = "the PTID in the name of the folder", "another one"
            faults.add(Fault(file="participants.tsv", column="alternative_id_1", expected=expected, found=found))
        session = re.fullmatch(rf"ses-(?:(?P<date>{_DAY})|M(?P<month>\d+)|(?P<first>bl|sc))", row.get("ses", ""), re.I)
        row |= {"ptid": min(ptids)} if ptids and PTID.fullmatch(min(ptids)) else {}
        row |= {k: v for k, v in session.groupdict().items() if v} if session else {}
        row |= {"date": time} if (time := bids.get(named) or bids.get(folder)) else {}
    if not {"ptid", "date", "description"} <= row.keys() and path.suffix.lower() != ".dcm":
        known = _sidecar(raw, path, faults)
        ptid = str(known.get("PatientID", ""))
        told = {"ptid": ptid if PTID.fullmatch(ptid) else None, "date": known.get("AcquisitionDateTime")}
        told["description"] = known.get("SeriesDescription") or known.get("ProtocolName")
        row = {k: str(v) for k, v in told.items() if v} | row
    if "ptid" not in row or (match is None and "description" not in row):
        return None
    return {
        "layout": layout,
        "ptid": row["ptid"].upper(),
        "path_date": row.get("date") or row.get("time"),
        "month": int(row["month"]) if "month" in row else 0 if "first" in row else None,
        "path_description": row.get("description"),
        "image_id": str(int(row["image"])) if "image" in row else named.replace("/", "__")[-200:],
        "file": path.relative_to(raw).as_posix(),
        "format": "dcm" if path.suffix.lower() == ".dcm" else "nii",
    }


def beside(raw: Path, scans: pl.DataFrame) -> tuple[Path, ...]:
    """Tables of BIDS and sidecars of scans."""
    sidecars = (p for folder in {(raw / f).parent for f in scans["file"]} for p in folder.glob("*.json"))
    return tuple(sorted({*sidecars, *_bids_files(raw)}))


def images_below(raw: Path) -> list[Path]:
    """Files of an export that are images of a kind that `find_scans` knows."""
    return sorted(p for p in raw.rglob("*") if p.name.lower().endswith((".nii", ".nii.gz", ".dcm")) and p.is_file())


def scan_of(file: str) -> str | None:
    """Path of the scan that a map was made from, as its name tells; None if it is no map."""
    if match := MODULATED.fullmatch(file):
        return match["folder"].removesuffix("mri/") + match["scan"]
    return file if RAVENS.fullmatch(file) else None


def find_scans(raw: Path, faults: FaultCollector, *, maps: bool = False) -> pl.DataFrame:
    """Find every T1 series of an export: `SCANS_SCHEMA`, one row per image ID (or file without one), sorted by it.

    Acquisition date and description are taken from a search table, or from the path if no table lists the image, or
    from the tables or the sidecar of BIDS, or from the visit of a session. Series available only as DICOM rank after
    all NIfTI series. The research group in search tables is not read, because it is a diagnosis.

    Args:
        maps: find maps (RAVENS, or mwp1 of CAT12 and SPM) instead of scans.
    """
    files = images_below(raw)
    bids = _bids_tables(raw, faults)
    rows = []
    for path in files:
        file = path.relative_to(raw).as_posix()
        named = scan_of(file)
        row = _file_row(raw, path, named or file, bids, faults) if (named is not None) is maps else None
        rows += [row] if row else []
    if not rows:
        return pl.DataFrame(schema=SCANS_SCHEMA)
    types = dict.fromkeys(rows[0], pl.String) | {"month": pl.Int32}
    found = pl.DataFrame(rows, schema=types).sort("image_id", pl.col("format") == "dcm", "file")
    owners = found.group_by("image_id").agg(pl.col("ptid").n_unique().alias("n")).filter(pl.col("n") > 1)
    if len(owners):
        text = f"{len(owners)} images in the folders of several, e.g. image {owners['image_id'].sort()[0]}"
        faults.add(Fault(file="raw scans", expected="each image in the folder of one participant", found=text))
    found = found.unique("image_id", keep="first", maintain_order=True)
    joined = found.join(_read_search(raw, faults), on="image_id", how="left")
    if len(strangers := joined.filter(pl.col("subject").str.to_uppercase() != pl.col("ptid"))):
        found_in = f"{len(strangers)} images in folders of others, e.g. image {strangers['image_id'][0]}"
        expected, fix = "the folder of the subject given in the search table", "Download these images again."
        faults.add(Fault(file="raw scans", column="Subject", expected=expected, found=found_in, fix=fix))
    other = pl.col("modality").is_not_null() & ~pl.col("modality").str.to_uppercase().is_in(["MRI", "MR"])
    scans = joined.filter(~other).with_columns(
        pl.coalesce("date", values.date("path_date")).alias("date"),
        pl.coalesce("description", "path_description").fill_null("").alias("description"),
        rid_of("ptid").alias("rid"),
    )
    if scans.select((pl.col("date").is_null() & pl.col("month").is_not_null()).any()).item():
        scans = _dated(scans, raw)
    ranks = [t1_rank(d) for d in scans["description"]]
    for i, (layout, file) in enumerate(scans.select("layout", "file").iter_rows()):
        # Layouts of T1 scans alone.
        if ranks[i] is None and (maps or layout in ("BIDS", "PTID_date")):
            ranks[i] = _UNNAMED + 2 * bool(_ACCELERATED.search(normalised(Path(file).name)))
    late = 100 * (scans["format"] == "dcm").cast(pl.Int32)
    scans = scans.with_columns(pl.Series("rank", ranks, dtype=pl.Int32) + late).drop_nulls("rank")
    return scans.select(pl.col(c).cast(t) for c, t in SCANS_SCHEMA.items()).sort("image_id")


def _dated(scans: pl.DataFrame, raw: Path) -> pl.DataFrame:
    """Fill dates of sessions (`month` since baseline) from the visits in the tables, or their distance to baseline."""
    export = AdniExport(raw)
    with suppress(DataError):  # reported with the tables
        visits = export.visits.select(pl.col("rid").cast(pl.Int64), "month", pl.col("date").alias("visit"))
        scans = scans.join(visits, on=["rid", "month"], how="left", maintain_order="left")
        scans = scans.join(export.baselines.cast({"rid": pl.Int64}), on="rid", how="left", maintain_order="left")
        later = pl.col("date0").dt.offset_by(pl.format("{}mo", "month"))
        scans = scans.with_columns(pl.coalesce("date", "visit", later).alias("date"))
    return scans


def ordered_scans(scans: pl.DataFrame, samples: pl.DataFrame, *, rule: str, tries: int) -> pl.DataFrame:
    """Select the scans to try for each sample, in order.

    Scans are sorted by `rule`: earliest, latest, or nearest to `visit_date` (ties: the earlier scan; samples without
    that date: the earliest). Undated scans are last. On the same day, the lower `rank` is first, then the lower image
    ID. Participants are matched by RID, because the site in a PTID can change.

    Args:
        scans: `rid`, `date`, `rank`, `image_id` and any further columns.
        samples: `sample_id`, `subject_id` and optionally `visit_date`.
        tries: maximum number of scans per sample, not counting those with `decision` drop (optional column).

    Returns:
        The selected rows of `scans` with `sample_id` and `attempt` (from 0), sorted by both.
    """
    at = pl.col("visit_date") if "visit_date" in samples.columns else pl.lit(None)
    keyed = samples.select("sample_id", rid_of("subject_id").alias("rid"), at.cast(pl.Date).alias("__at"))
    joined = keyed.filter(pl.col("rid").is_not_null()).join(scans, on="rid", how="inner")
    day = pl.col("date").to_physical()
    if rule == "nearest":
        order = pl.coalesce((day - pl.col("__at").to_physical()).abs(), day)
    else:
        order = -day if rule == "latest" else day
    keys = ("sample_id", "__order", "date", "rank", pl.col("image_id").str.zfill(20))
    ordered = joined.with_columns(order.alias("__order")).sort(*keys, nulls_last=True, maintain_order=True)
    ordered = ordered.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("sample_id").alias("attempt"))
    tried = pl.col("decision").ne_missing("drop") if "decision" in scans.columns else pl.lit(value=True)
    return ordered.filter(tried.cast(pl.Int32).cum_sum().over("sample_id") <= tries).drop("__at", "__order")
