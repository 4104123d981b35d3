"""Write simulated LONI tables in three export generations, with the columns and defects of real exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.keyed import generator

LAYOUTS = ("old", "2024", "2025")
FILE_DATES = {"old": "12Jun2019", "2024": "09May2024", "2025": "15Nov2025"}
# Tables closed before ADNI3 lack the bookkeeping columns that were added later.
_CLOSED = frozenset({"MEDHIST", "APOERES", "ISOPROSTANE", "RESULTS"})
FREE_TEXT = ("DES", "COMM", "GENCOM", "MHCOMMEN", "CMDOSE", "OTHSPE")


@dataclass(frozen=True)
class Writer:
    """Writes the tables of an export in one layout."""

    out: Path
    layout: str
    seed: int

    def rng(self, purpose: str) -> np.random.Generator:
        return generator(self.seed, "adni tables", purpose)

    def name(self, table: str, *, dated: str | None = None) -> str:
        prefix = "All_Subjects_" if self.layout == "2025" and table.isupper() else ""
        return f"{prefix}{table}_{dated or FILE_DATES[self.layout]}.csv"

    def write(
        self,
        table: str,
        records: pl.DataFrame,
        items: Mapping[str, Sequence[Any]],
        *,
        date_column: str = "VISDATE",
        keys: Sequence[str] = ("PHASE", "PTID", "RID", "VISCODE", "VISCODE2", "DATE"),
        bookkeeping: bool = True,
        crlf: bool = False,
        file: str | None = None,
    ) -> None:
        """Write one table.

        Args:
            records: `ptid, rid, phase, site, viscode, viscode2, date`, one row each; dates are text, null is blank.
            items: columns specific to the table, in the order of real exports, as text; null is blank.
            keys: leading key columns of the table.
            bookkeeping: write ID, SITEID, USERDATE, … and update_stamp; otherwise only update_stamp.
        """
        n, rng = len(records), self.rng(f"{table} keys")
        old = self.layout == "old"
        day = [d if d else "2006-01-01" for d in records["date"].to_list()]
        stamp = [
            f"{date.fromisoformat(d) + timedelta(days=int(k))} 10:{int(m):02d}:00.0"
            for d, k, m in zip(day, rng.integers(5, 400, n), rng.integers(0, 60, n), strict=True)
        ]
        if "stamp" in records.columns:
            stamp = [given or drawn for given, drawn in zip(records["stamp"].to_list(), stamp, strict=True)]
        visit_date = "EXAMDATE" if old else date_column
        phase = records["phase"].to_list()
        key_values: dict[str, Sequence[Any]] = {
            "PHASE": phase,
            "PTID": records["ptid"].to_list(),
            "RID": records["rid"].cast(pl.String).to_list(),
            "VISCODE": records["viscode"].to_list(),
            "VISCODE2": records["viscode2"].to_list(),
            visit_date: records["date"].to_list(),
        }
        names = [visit_date if k == "DATE" else k for k in keys if not (old and k == "PTID")]
        lead = {k: key_values[k] for k in names}
        user: dict[str, Sequence[Any]] = {"USERDATE": day, "USERDATE2": [None] * n}
        record_id: dict[str, Sequence[Any]] = {
            "ID": [str(i + 1) for i in range(n)],
            "SITEID": [str(s % 90 + 1) for s in records["site"].to_list()],
        }
        form: dict[str, Sequence[Any]] = {}
        if self.layout == "2025" and table not in _CLOSED:
            late = [p in ("ADNI3", "ADNI4") for p in phase]
            form = {
                "DD_CRF_VERSION_LABEL": ["V1" if x else None for x in late],
                "LANGUAGE_CODE": ["EN" if x else None for x in late],
                "HAS_QC_ERROR": ["0" if x else None for x in late],
            }
        kept = {
            k: v
            for k, v in items.items()
            if old or table == "DXSUM" or not any(k.endswith(t) or k == t for t in FREE_TEXT)
        }
        columns: dict[str, Sequence[Any]]
        if not bookkeeping:
            columns = {**lead, **kept, "update_stamp": stamp}
        elif old:
            first = {"Phase": lead.pop("PHASE"), **record_id} if "PHASE" in lead else record_id
            middle = {k: lead.pop(k) for k in list(lead) if k != visit_date}
            columns = {**first, **middle, **user, **lead, **kept, "update_stamp": stamp}
        else:
            columns = {**lead, **kept, **record_id, **user, **form, "update_stamp": stamp}
            if table == "APOERES" and self.layout == "2024":
                columns = {("Phase" if k == "PHASE" else k): v for k, v in columns.items()}
        frame = pl.DataFrame({k: pl.Series(k, list(v), dtype=pl.String) for k, v in columns.items()}).fill_null("")
        text = frame.write_csv(quote_style="always", line_terminator="\r\n" if crlf else "\n")
        (self.out / (file or self.name(table))).write_bytes(text.encode("latin-1" if old else "utf-8"))


def texts(values: NDArray[Any]) -> list[str | None]:
    """Format numbers as in real exports: integers without a decimal point, NaN as blank."""
    out: list[str | None] = []
    for v in values.tolist():
        if v is None or v != v:
            out.append(None)
        else:
            out.append(str(int(v)) if float(v).is_integer() else f"{v:g}")
    return out


def with_missing(
    values: Sequence[str | None],
    rng: np.random.Generator,
    phase: Sequence[str],
    *,
    rate: float,
    minus_one: float = 0.0,
    anywhere: bool = False,
) -> list[str | None]:
    """Replace a fraction of values by missing codes: −4 or blank, and −1 in ADNI1 (in any phase if `anywhere`)."""
    u = rng.random(len(values))
    blank = rng.random(len(values)) < 0.3
    out = []
    for value, x, empty, p in zip(values, u, blank, phase, strict=True):
        if x < rate:
            out.append(None if empty else "-4")
        elif x < rate + minus_one and (anywhere or p == "ADNI1"):
            out.append("-1")
        else:
            out.append(value)
    return out


def duplicated(records: pl.DataFrame, rng: np.random.Generator, share: float) -> NDArray[np.int64]:
    """Row indices with a fraction of rows repeated, as if the visit was entered twice."""
    n = len(records)
    extra = np.flatnonzero(rng.random(n) < share)
    return np.sort(np.r_[np.arange(n), extra])


def blanked_dates(days: Sequence[date], rng: np.random.Generator, share: float) -> list[str | None]:
    """ISO dates with a fraction left blank."""
    gone = rng.random(len(days)) < share
    return [None if g else d.isoformat() for d, g in zip(days, gone, strict=True)]
