"""Row policies: which records of a participant are used, and how they are combined."""

from collections.abc import Sequence

import polars as pl

from mrpipe.datasets.adni.export import TOLERANCE
from mrpipe.datasets.adni.options import AdniOptions

# By date, then visit code; among records of the same visit, the last edit takes precedence.
ORDER = ("rid", "when", "month", "rank", "stamp", "row")


def row_policy(options: AdniOptions) -> str:
    """The row policy to apply: `rows`, or the default of the profile."""
    if options.rows != "profile":
        return options.rows
    return "baseline" if options.profile == "corrected" else "latest_update"


def eligible(frame: pl.DataFrame, cohort: pl.DataFrame, policy: str) -> pl.DataFrame:
    """Select the records that a policy uses, sorted so that later records take precedence.

    Args:
        frame: a table from `AdniExport.timed` (`rid, month, rank, date, when, stamp, row`, fields).
        cohort: `rid`, and `visit_month` and `visit_date` of the visit that provides the label.
        policy:
            baseline: visits up to month 0, screening before baseline;
            latest_before_dx: visits up to and including the label visit, by date (by month if the date is unknown);
            latest_update: all records, sorted by their last edit.
    """
    frame = frame.join(cohort.select("rid", "visit_month", "visit_date"), on="rid", how="inner")
    order: Sequence[str] = ORDER
    if policy == "baseline":
        frame = frame.filter(pl.col("month") <= 0)
    elif policy == "latest_before_dx":
        by_date = pl.col("date") <= pl.col("visit_date")
        by_month = pl.col("month") <= pl.col("visit_month")
        # A date before the label visit does not count if the visit code is of a later visit.
        agrees = (pl.col("month") <= pl.col("visit_month") + TOLERANCE).fill_null(True)
        frame = frame.filter(pl.coalesce(by_date, by_month) & agrees)
    else:
        order = ("rid", "stamp", "row")
    # Unknown dates and stamps are sorted first, so that they never override a dated record.
    return frame.sort(order, nulls_last=False)


def latest(frame: pl.DataFrame, fields: Sequence[str], *, whole: bool = False) -> pl.DataFrame:
    """Reduce to one row per participant: the last known value of each field, possibly from different records.

    Args:
        whole: take all fields from the last record that has any of them, so that values stay consistent.
    """
    if whole:
        filled = frame.filter(pl.any_horizontal(pl.col(fields).is_not_null()))
        return filled.group_by("rid", maintain_order=True).agg(pl.col(f).last() for f in fields)
    return frame.group_by("rid", maintain_order=True).agg(pl.col(f).drop_nulls().last() for f in fields)


def pick(
    frame: pl.DataFrame,
    cohort: pl.DataFrame,
    policy: str,
    fields: Sequence[str],
    *,
    static: bool = False,
    whole: bool = False,
) -> pl.DataFrame:
    """Values of the fields for each participant of the cohort, one row per `rid`, null where unknown.

    Args:
        static: the fields do not change over time (sex, birth, APOE); where the policy's records lack a value, use
            the others, of which the last edit takes precedence.
        whole: take all fields from one record (see `latest`).
    """
    chosen = latest(eligible(frame, cohort, policy), fields, whole=whole)
    if static:
        other = latest(eligible(frame, cohort, "latest_update"), fields)
        chosen = other.update(chosen, on="rid", how="full")
    return cohort.select("rid").join(chosen, on="rid", how="left", maintain_order="left")
