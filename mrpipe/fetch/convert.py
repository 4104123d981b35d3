"""Conversion of downloaded files to the tables that `workflow/config/examples/tables/NAME.yaml` declares.

Archives are read in memory, member by member; nothing is written to a path that an archive names.
"""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from mrpipe.errors import DataError, Fault
from mrpipe.store.parquet import write_text

N_DIGITS = 2000
# ICU stays: variables at admission, variables with five statistics, and variables with their first and last value.
STATIC = ("Age", "Gender", "Height", "Weight")
FIVE = ("DiasABP", "GCS", "Glucose", "HR", "MAP", "NIDiasABP", "NIMAP", "NISysABP", "RespRate", "SaO2", "Temp")
TWO = (
    *("ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "FiO2", "HCO3", "HCT", "K"),
    *("Lactate", "Mg", "Na", "PaCO2", "PaO2", "Platelets", "SysABP", "TroponinI", "TroponinT", "WBC", "Weight", "pH"),
)
# Values outside these ranges are missing; so are negative values of other variables (−1 is unknown).
_POSITIVE = ("DiasABP", "HR", "MAP", "NIDiasABP", "NIMAP", "NISysABP", "RespRate", "SysABP")
RANGES: dict[str, tuple[float, float]] = dict.fromkeys(_POSITIVE, (1, 300))
RANGES |= {"Height": (100, 250), "Weight": (35, 299), "Temp": (25, 45), "pH": (6.5, 8), "PaCO2": (10, 500)}
LAST_HOURS = 40 * 60  # minutes: start of the last eight of 48 hours


def digits(folder: Path) -> None:
    """Whitespace-separated tables to CSV. They have no class: 200 rows of each digit follow each other."""
    for file in sorted(folder.glob("mfeat-???")):
        rows = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
        widths = {len(row) for row in rows}
        if len(rows) != N_DIGITS or len(widths) != 1:
            found = f"{len(rows)} lines, numbers of values: {sorted(widths)}"
            raise DataError(Fault(file=str(file), expected=f"{N_DIGITS} lines of equal length", found=found))
        lines = [*([*row, str(i * 10 // N_DIGITS)] for i, row in enumerate(rows))]
        header = [*(f"{file.name[-3:]}_{i}" for i in range(1, len(rows[0]) + 1)), "class"]
        write_text(file.with_suffix(".csv"), "\n".join(map(",".join, [header, *lines])) + "\n")


def icu_stays(folder: Path) -> None:
    """One text file per stay (Time, Parameter, Value) to one row per stay, with 120 columns.

    Of ventilation: minutes from the admission to the first record, from the first to the last, and whether the last is
    in the last eight hours. `UrineOutputSum` has the meaning of the widely used summary table: number of these records.
    """
    with tarfile.open(folder / "set-a.tar.gz") as archive:
        files = [archive.extractfile(m) for m in archive if m.isfile() and m.name.endswith(".txt")]
        text = b"\n".join([b"Time,Parameter,Value", *(file.read() for file in files if file is not None)])
    name, value, minute = pl.col("Parameter"), pl.col("Value"), pl.col("minute")
    hours, minutes = (pl.col("Time").str.split(":").list.get(i).cast(pl.Int64) for i in (0, 1))
    range_ = [{k: float(r[i]) for k, r in RANGES.items()} for i in (0, 1)]
    low, high = (name.replace_strict(of, default=rest) for of, rest in zip(range_, (0.0, 1e9), strict=True))
    rows = (
        pl.read_csv(io.BytesIO(text), infer_schema=False)
        .filter(name != "Parameter")
        .with_columns(value.cast(pl.Float64), (hours * 60 + minutes).alias("minute"))
        .with_columns(pl.when(name == "RecordID").then(value).forward_fill().cast(pl.Int64).alias("recordid"))
        .filter(value.is_between(low, high))
    )
    admission = (minute == 0) & name.is_in([*STATIC, "ICUType", "RecordID"])
    types = {"CCU": 1, "CSRU": 2, "SICU": 4}
    units = [(pl.col("ICUType") == i).cast(pl.Int64).alias(unit) for unit, i in types.items()]
    static, series = _wide(rows.filter(admission), {"": value.last()}).with_columns(units), rows.filter(~admission)
    two = {"_first": value.first(), "_last": value.last()}
    five = two | {"_lowest": value.min(), "_highest": value.max(), "_median": value.median()}
    ventilation = {"MechVentStartTime": minute.min(), "MechVentDuration": minute.max() - minute.min()}
    ventilation |= {"MechVentLast8Hour": (minute.max() >= LAST_HOURS).cast(pl.Int64), "UrineOutputSum": pl.len()}
    table = pl.read_csv(folder / "Outcomes-a.txt").rename({"RecordID": "recordid"})
    if sorted(static["recordid"]) != sorted(table["recordid"]):
        expected, found = f"the {len(table)} stays of Outcomes-a.txt", f"{len(static)} stays"
        raise DataError(Fault(file=str(folder / "set-a.tar.gz"), expected=expected, found=found))
    columns = [*table.columns, *STATIC, "CCU", "CSRU", "SICU", *(f"{v}{s}" for s in five for v in FIVE)]
    columns += [*(f"{v}{s}" for s in two for v in TWO), *ventilation]
    ventilated = series.filter(name == "MechVent").group_by("recordid").agg(**ventilation)
    for part in (static, _wide(series, five), ventilated):
        table = table.join(part, on="recordid", how="left")
    absent = [pl.lit(None, pl.Float64).alias(c) for c in columns if c not in table.columns]
    write_text(folder / "PhysionetChallenge2012-set-a.csv", table.with_columns(absent).select(columns).write_csv())


def _wide(rows: pl.DataFrame, statistics: dict[str, pl.Expr]) -> pl.DataFrame:
    """One row per stay; columns are named by parameter and statistic."""
    long = rows.group_by("recordid", "Parameter", maintain_order=True).agg(**statistics)
    long = long.unpivot(index=["recordid", "Parameter"], variable_name="statistic")
    named = long.with_columns(pl.col("Parameter") + pl.col("statistic"))
    return named.pivot("Parameter", index="recordid", values="value")


def convert(folder: Path, sources: Iterable[str], declaration: Path) -> None:
    """Convert a data set of tables and copy its declaration, unless that was done after the files were downloaded."""
    done = folder / "tables.yaml"
    if not done.is_file() or done.stat().st_mtime < max((folder / s).stat().st_mtime for s in sources):
        {"mfeat": digits, "physionet2012": icu_stays}[folder.name](folder)
        write_text(done, declaration.read_text(encoding="utf-8"))
