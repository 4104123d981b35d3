"""Write simulated LONI tables in three export generations, with the columns and defects of real exports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.simulate.people import SimulatedParticipants, visit_codes
from mrpipe.keyed import generator

LAYOUTS = ("old", "2024", "2025")
FILE_DATES = {"old": "12Jun2019", "2024": "09May2024", "2025": "15Nov2025"}
# Tables closed before ADNI3 lack the bookkeeping columns that were added later.
_CLOSED = frozenset({"MEDHIST", "APOERES", "ISOPROSTANE"})
# Ends of the names of columns with free text.
FREE_TEXT = ("DES", "COMM", "GENCOM", "MHCOMMEN", "CMDOSE", "OTHSPE")
# Columns of a table: text or numbers, one value per row or the same value for all rows; null and "" are blank.
Items = Mapping[str, Sequence[Any] | NDArray[Any] | pl.Series | str | None]


@dataclass(frozen=True)
class Writer:
    """Writes the tables of an export in one layout."""

    out: Path
    layout: str
    seed: int

    def rng(self, purpose: str) -> np.random.Generator:
        return generator(self.seed, "adni tables", purpose)

    def path(self, table: str) -> Path:
        prefix = "All_Subjects_" if self.layout == "2025" and table.isupper() else ""
        return self.out / f"{prefix}{table}_{FILE_DATES[self.layout]}.csv"

    def write(
        self,
        table: str,
        records: pl.DataFrame,
        items: Items,
        *,
        date_column: str = "VISDATE",
        keys: Sequence[str] = ("PHASE", "PTID", "RID", "VISCODE", "VISCODE2", "DATE"),
        bookkeeping: bool = True,
    ) -> None:
        """Write one table.

        Args:
            records: `ptid, rid, phase, site, viscode, viscode2, date`, one row each; dates are text, null is blank.
            items: columns specific to the table, in the order of real exports.
            keys: leading key columns of the table.
            bookkeeping: write ID, SITEID, USERDATE, … and update_stamp; otherwise only update_stamp.
        """
        n, rng, old = len(records), self.rng(f"{table} keys"), self.layout == "old"
        day = records["date"].fill_null("2006-01-01")
        days, minutes = rng.integers(5, 400, n).tolist(), rng.integers(0, 60, n).tolist()
        edits = zip(day, days, minutes, strict=True)
        stamp = [f"{date.fromisoformat(d) + timedelta(days=k)} 10:{m:02d}:00.0" for d, k, m in edits]
        visit_date = "EXAMDATE" if old else date_column
        names = {k: visit_date if k == "DATE" else k for k in keys if not (old and k == "PTID")}
        lead: dict[str, Any] = {name: records[k.lower()] for k, name in names.items()}
        user = {"USERDATE": day, "USERDATE2": None}
        record_id = {"ID": range(1, n + 1), "SITEID": records["site"] % 90 + 1}
        kept = {k: v for k, v in items.items() if old or table == "DXSUM" or not k.endswith(FREE_TEXT)}
        columns: dict[str, Any]
        if not bookkeeping:
            columns = {**lead, **kept}
        elif old:
            first = {"Phase": lead.pop("PHASE")} if "PHASE" in lead else {}
            visit = {visit_date: lead.pop(visit_date)} if visit_date in lead else {}
            columns = {**first, **record_id, **lead, **user, **visit, **kept}
        else:
            columns = {**lead, **kept, **record_id, **user}
        if self.layout == "2025" and bookkeeping and table not in _CLOSED:
            late = records["phase"].is_in(["ADNI3", "ADNI4"])
            form = {"DD_CRF_VERSION_LABEL": "V1", "LANGUAGE_CODE": "EN", "HAS_QC_ERROR": "0"}
            columns |= {k: [value if x else None for x in late] for k, value in form.items()}
        if table == "APOERES" and self.layout == "2024":
            columns = {("Phase" if k == "PHASE" else k): v for k, v in columns.items()}
        # As lists, because polars does not convert arrays of objects to text.
        columns = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in columns.items()}
        frame = pl.DataFrame({**columns, "update_stamp": stamp}).cast(pl.String).fill_null("")
        self.path(table).write_bytes(frame.write_csv(quote_style="always").encode("latin-1" if old else "utf-8"))


def key_columns(
    people: SimulatedParticipants,
    rows: NDArray[np.int64] | None = None,
    months: NDArray[np.int64] | int = 0,
    *,
    screening: bool = False,
) -> pl.DataFrame:
    """Key columns of one record per row of `subjects`, `months` after baseline or at screening two weeks earlier."""
    s = people.subjects if rows is None else people.subjects[rows]
    later = np.broadcast_to(months, len(s)).tolist()
    codes = [visit_codes(p, m, screening=screening) for p, m in zip(s["phase"], later, strict=True)]
    days = [d + timedelta(days=30 * m - 14 * screening) for d, m in zip(s["start"], later, strict=True)]
    frame: pl.DataFrame = s.select("ptid", "rid", "phase", "site").with_columns(
        viscode=pl.Series([a for a, _ in codes], dtype=pl.String),
        viscode2=pl.Series([b for _, b in codes], dtype=pl.String),
        day=pl.Series(days, dtype=pl.Date),
        date=pl.Series(days, dtype=pl.Date).cast(pl.String),
    )
    return frame


def dated(frame: pl.DataFrame, rng: np.random.Generator, share: float) -> pl.DataFrame:
    """Set `date` to `day` as text, with a fraction left blank."""
    known = pl.Series(rng.random(len(frame)) >= share)
    return frame.with_columns(date=pl.when(known).then(pl.col("day").cast(pl.String)))


def texts(values: NDArray[Any]) -> list[str | None]:
    """Format numbers as in real exports: integers without a decimal point, NaN as blank."""
    return [None if v != v else str(int(v)) if float(v).is_integer() else f"{v:g}" for v in values.tolist()]


def with_missing(
    values: Sequence[str | None] | NDArray[Any],
    rng: np.random.Generator,
    phase: pl.Series,
    *,
    rate: float,
    minus_one: float = 0.0,
    anywhere: bool = False,
) -> list[str | None]:
    """Replace a fraction of values by missing codes: −4 or blank, and −1 in ADNI1 (in any phase if `anywhere`)."""
    u, blank = rng.random(len(values)), rng.random(len(values)) < 0.3
    out = np.array(values, dtype=object)
    out[(u < rate + minus_one) & (anywhere | (phase == "ADNI1").to_numpy())] = "-1"
    out[u < rate] = "-4"
    out[(u < rate) & blank] = None
    return list(out)


def duplicated(records: pl.DataFrame, rng: np.random.Generator, share: float) -> pl.DataFrame:
    """The records with a fraction of rows repeated, as if the visit was entered twice."""
    n = len(records)
    return records[np.sort(np.r_[np.arange(n), np.flatnonzero(rng.random(n) < share)])]
