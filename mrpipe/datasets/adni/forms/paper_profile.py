"""Features of `profile=paper`: the columns and column types of the authors' preprocessing scripts.

As in the scripts, the most recently edited record is used and its gaps are filled from earlier records, codes and units
are not cleaned (−4, −1, 9999, lb mixed with kg), and a column is numeric if it has more than two distinct numbers.
Unlike the scripts, identifiers, dates, form metadata and years of onset are excluded, and imputation and scaling are
fitted on training samples only.
"""

from collections.abc import Sequence

import polars as pl

from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms import medications as drugs
from mrpipe.datasets.adni.forms.features import Feature, features
from mrpipe.datasets.adni.forms.rows import pick
from mrpipe.datasets.adni.tables import LoniTable

# Categorical columns with at least this many levels are dropped, as in the authors' scripts.
MAX_LEVELS = 1000
# Never features in any profile: identifiers, bookkeeping, row numbers, dates, and years of onset or diagnosis.
_NAMES = (
    "PTID SUBJECT_ID RID PHASE COLPROT ORIGPROT PROTOCOLID SITE SITEID ID VISCODE VISCODE2 VISDATE EXAMDATE VISIT "
    "USERDATE USERDATE2 UPDATE_STAMP DD_CRF_VERSION_LABEL LANGUAGE_CODE HAS_QC_ERROR RECNO CMEVNUM CMMEDID "
    "PTDOB PTDOBMM PTDOBYY PTRTYR CMBGN CMEND CMBGNYR_DRVD CMENDYR_DRVD APTESTDT RUNDATE BATCH SAMPLE_ID "
    "PTCOGBEG PTADDX PTADBEG STAMP ROW X ...1 INDEX COLUMN_1"
)
FORBIDDEN = frozenset(["", *_NAMES.split()])
LEAKS = ("PTCOGBEG", "PTADDX", "PTADBEG")


def is_forbidden(column: str) -> bool:
    """Whether a raw column may never become a feature; R and pandas write row numbers without a name."""
    name = column.upper()
    return name in FORBIDDEN or name.startswith((*LEAKS, "UNNAMED: ")) or "DATE" in name or name.endswith("_DRVD")


def paper_features(
    export: AdniExport, tables: Sequence[LoniTable], cohort: pl.DataFrame, policy: str, *, dementia_drugs: bool
) -> tuple[list[Feature], pl.DataFrame]:
    """Feature declarations and values, one row per participant. A column in several tables is read from the first."""
    out = cohort.select("rid")
    declared: list[Feature] = []
    for table in tables:
        frame, timed = export.as_written(table), export.timed(table)
        names = [c for c in frame.columns if c not in ("rid", "ptid") and not is_forbidden(c)]
        names = [n for n in names if n not in {f.name for f in declared}]
        if not dementia_drugs and "CMMED" in names:
            frame = frame.with_columns(pl.when(~drugs.is_dementia_drug("CMMED")).then(pl.col("CMMED")).alias("CMMED"))
        # `timed` has the same rows in the same order; both exclude the quality-control rows.
        keys = timed.select("rid", "month", "rank", "date", "when", "stamp", "row")
        keyed = pl.concat([keys, frame.select(names)], how="horizontal")
        values = pick(keyed, cohort, policy, names)
        for name in names:
            column, levels = _typed(values[name])
            if column is None:
                continue
            out = out.with_columns(column.alias(name))
            text = "value as in the export (profile=paper)"
            declared += features(export.shown(table), {name: name}, levels=levels, description=text)
    return declared, out


def _typed(column: pl.Series) -> tuple[pl.Series | None, tuple[str, ...]]:
    """Numbers, or positions in the sorted levels; None if the column is empty or has too many levels."""
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
