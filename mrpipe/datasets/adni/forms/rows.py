"""Which of a participant's records count: the row policies, one implementation for every table."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mrpipe.datasets.adni.options import AdniOptions


def row_policy(options: AdniOptions) -> str:
    """The row policy in force: the profile's own unless one is named."""
    if options.rows != "profile":
        return options.rows
    return "baseline" if options.profile == "corrected" else "latest_update"


def eligible(frame: pl.DataFrame, cohort: pl.DataFrame, policy: str) -> pl.DataFrame:
    """The records that a policy looks at, in the order in which a later one replaces an earlier one.

    Args:
        frame: a table of `Export.timed` (`rid, month, rank, date, stamp, row`, fields).
        cohort: `rid`, `visit_month` and `visit_date`: of the visit that the label is read from.
        policy:
            baseline: visits of month 0 or before (screening, baseline), screening first;
            latest_before_dx: visits up to and including the label's, by date (by month where a date is unknown);
            latest_update: all records in order of their last edit.
    """
    frame = frame.join(cohort.select("rid", "visit_month", "visit_date"), on="rid", how="inner")
    order = ["rid", "month", "rank", "date", "stamp", "row"]
    if policy == "baseline":
        frame = frame.filter(pl.col("month") <= 0)
    elif policy == "latest_before_dx":
        by_date = pl.col("date") <= pl.col("visit_date")
        by_month = pl.col("month") <= pl.col("visit_month")
        frame = frame.filter(pl.coalesce(by_date, by_month))
    else:
        order = ["rid", "stamp", "row"]
    # Unknown months and stamps come first: they never replace a record whose place is known.
    return frame.sort(order, nulls_last=False)


def latest(frame: pl.DataFrame, fields: Sequence[str], *, whole: bool = False) -> pl.DataFrame:
    """One row a participant: each field's last known value, so that a hole is filled from the records before.

    Args:
        whole: the last record with any of the fields instead, as it is: values that belong together stay together.
    """
    if whole:
        some = frame.filter(pl.any_horizontal(pl.col(fields).is_not_null()))
        return some.group_by("rid", maintain_order=True).agg(pl.col(f).last() for f in fields)
    return frame.group_by("rid", maintain_order=True).agg(pl.col(f).drop_nulls().last() for f in fields)


def pick(
    frame: pl.DataFrame | None,
    cohort: pl.DataFrame,
    policy: str,
    fields: Sequence[str],
    *,
    static: bool = False,
    whole: bool = False,
) -> pl.DataFrame:
    """The fields of each participant of the cohort under a policy, joined to `rid` (null where nothing is known).

    Args:
        static: the fields do not change over a life (sex, birth, APOE): every record counts, the last edited first.
        whole: take one record as it is (`latest`).
    """
    people = cohort.select("rid")
    if frame is None:
        return people.with_columns(pl.lit(None).alias(f) for f in fields)
    chosen = latest(eligible(frame, cohort, "latest_update" if static else policy), fields, whole=whole)
    return people.join(chosen, on="rid", how="left", maintain_order="left")
