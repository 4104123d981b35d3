"""The `paper` profile: the authors' columns and their typing (raw-formats A.5), from tables as written.

Kept of theirs: the latest edited record with holes filled from others, codes and units as written (−4, −1, 9999, lb
beside kg), numeric where a column has more than two distinct numbers, categorical otherwise. Not kept: identifiers,
dates, form metadata and onset years as features, statistics of all rows (transforms are fitted on training rows), and
the faults that make their scripts stop.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms import medications as drugs
from mrpipe.datasets.adni.forms.features import Feature
from mrpipe.datasets.adni.forms.rows import eligible, latest
from mrpipe.datasets.adni.tables import LoniTable

# The authors drop categorical columns with this many levels or more.
MAX_LEVELS = 1000
# What is never a feature, whatever the profile: identifiers, bookkeeping, dates, and years of onset or diagnosis.
_NAMES = (
    "PTID SUBJECT_ID RID PHASE COLPROT ORIGPROT PROTOCOLID SITE SITEID ID VISCODE VISCODE2 VISDATE EXAMDATE VISIT "
    "USERDATE USERDATE2 UPDATE_STAMP DD_CRF_VERSION_LABEL LANGUAGE_CODE HAS_QC_ERROR RECNO CMEVNUM CMMEDID "
    "PTDOB PTDOBMM PTDOBYY PTRTYR CMBGN CMEND CMBGNYR_DRVD CMENDYR_DRVD APTESTDT RUNDATE BATCH SAMPLE_ID "
    "PTCOGBEG PTADDX PTADBEG STAMP ROW"
)
FORBIDDEN = frozenset(_NAMES.split())
LEAKS = ("PTCOGBEG", "PTADDX", "PTADBEG")


def is_forbidden(column: str) -> bool:
    """Whether a raw column may never become a feature."""
    name = column.upper()
    return name in FORBIDDEN or name.startswith(LEAKS) or "DATE" in name or name.endswith("_DRVD")


def paper_features(
    export: AdniExport, tables: Sequence[LoniTable], cohort: pl.DataFrame, policy: str, *, dementia_drugs: bool
) -> tuple[list[Feature], pl.DataFrame]:
    """Declared features and values; of columns that several tables share the first table's counts."""
    out = cohort.select("rid")
    declared: list[Feature] = []
    for table in tables:
        frame = export.as_written(table)
        path = export.path(table)
        timed = export.timed(table)
        if frame is None or path is None or timed is None:
            continue
        names = [c for c in frame.columns if c not in ("rid", "ptid") and not is_forbidden(c)]
        names = [n for n in names if n not in {f.name for f in declared}]
        if not dementia_drugs and "CMMED" in names:
            kept = pl.when(~drugs.is_dementia_drug("CMMED")).then(pl.col("CMMED")).alias("CMMED")
            frame = frame.with_columns(kept)
        # `timed` has the same rows in the same order, without the quality-control ones that both leave out.
        keyed = pl.concat(
            [timed.select("rid", "month", "rank", "date", "stamp", "row"), frame.select(names)], how="horizontal"
        )
        chosen = latest(eligible(keyed, cohort, policy), names)
        values = cohort.select("rid").join(chosen, on="rid", how="left", maintain_order="left")
        for name in names:
            column, levels = _typed(values[name])
            if column is None:
                continue
            out = out.with_columns(column.alias(name))
            declared.append(
                Feature(
                    name=name,
                    source_file=path.name,
                    source_column=name,
                    levels=levels,
                    description="as written (profile=paper)",
                )
            )
    return declared, out


def _typed(column: pl.Series) -> tuple[pl.Series | None, tuple[str, ...]]:
    """Numbers, or positions among the sorted levels; None for a column without values or with too many levels."""
    known = column.drop_nulls()
    if known.is_empty():
        return None, ()
    numbers = column.cast(pl.Float64, strict=False)
    if numbers.null_count() == column.null_count() and known.n_unique() > 2:
        return numbers, ()
    levels = tuple(sorted(set(known.to_list())))
    if len(levels) >= MAX_LEVELS:
        return None, ()
    index = {level: i for i, level in enumerate(levels)}
    return column.replace_strict(index, default=None, return_dtype=pl.Int32), levels
