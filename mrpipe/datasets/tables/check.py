"""Check of a declared dataset: every fault of the YAML and of all its tables at once; kinds proposed, columns doubted.

Legend: n samples, d features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from mrpipe.datasets.tables.cohort import assemble, read_tables, require_same_length
from mrpipe.datasets.tables.config import ModalityTable, TablesConfig, TablesOptions, config_path, read_config
from mrpipe.datasets.tables.features import Parsed, parse
from mrpipe.datasets.tables.files import ID, ROW, RawTable, locate
from mrpipe.errors import Fault, FaultCollector
from mrpipe.schema import Checked, Cohort

LISTED = 12
# A numeric column with so few whole numbers may be a code; one with so many different whole numbers may be an id.
FEW_CODES, ID_SHARE, ID_ROWS = 6, 0.95, 30
SUSPICIOUS_AUROC, PERFECT_AUROC, SUSPICIOUS_CORRELATION = 0.95, 0.999, 0.99
SMALLEST_SIDE, BIN_ROWS, FEWEST_BINS, MOST_BINS = 10, 50, 4, 20


def check_export(raw: Path, options: TablesOptions) -> Checked:
    """Read the YAML and every table that it names.

    Raises:
        DataError: with every fault.
    """
    config, faults = read_config(raw, options), FaultCollector()
    files = {config.people, *(t.file for t in config.modalities), *(label.file for label in config.labels)}
    files |= {config.split.file} if config.split else set()
    tables = read_tables(raw, sorted(files), faults)
    cohort = assemble(config, tables, faults)
    notes: list[str] = []
    for modality in config.modalities:
        table = tables.get(modality.file)
        if table is None:
            continue
        parsed = parse(table, config, modality, faults)
        if config.by_order and config.people in tables:
            require_same_length(table, tables[config.people], faults)
        if parsed is not None and cohort is not None:
            notes += _modality_notes(config, modality, table, parsed, cohort, faults)
    faults.raise_if_any()
    paths = [config_path(raw, options), *(locate(raw, f) for f in sorted(files))]
    return Checked(release=config.title or config.shown_as, files=tuple(paths), notes=tuple(notes))


def _modality_notes(
    config: TablesConfig,
    modality: ModalityTable,
    table: RawTable,
    parsed: Parsed,
    cohort: Cohort,
    faults: FaultCollector,
) -> list[str]:
    """What a user should know of a modality before training on it."""
    name, samples = modality.name, cohort.samples
    rows = parsed.rows.with_row_index("place")
    key = {"left_on": ROW, "right_on": "row"} if config.by_order else {"left_on": ID, "right_on": "sample_id"}
    joined = rows.with_columns(pl.col(ROW).cast(pl.Int32)).join(samples, how="inner", coalesce=False, **key)  # type: ignore[arg-type]
    if joined.is_empty():
        faults.add(
            Fault(
                file=table.shown_as,
                expected=f"a value of {name} for at least one sample",
                found="none",
                fix=f"Are its ids those of {config.people}?",
            )
        )
        return []
    d = len(parsed.columns)
    n_categorical = sum(names is not None for names in parsed.levels)
    kinds = f"{d - n_categorical} numeric and {n_categorical} categorical features"
    notes = [f"{name}: {len(joined)} of {len(samples)} samples, {kinds}"]
    strangers = len(rows) - len(joined)
    if strangers:
        notes.append(
            f"{name}: {strangers} rows of {table.shown_as} belong to no sample of {config.people} and are not read"
        )
    x = parsed.x[joined["place"].to_numpy()]

    def note(columns: list[str], text: str) -> None:
        if columns:
            more = f" and {len(columns) - LISTED} more" if len(columns) > LISTED else ""
            notes.append(f"{name}: {text}: {', '.join(columns[:LISTED])}{more}")

    inferred = [
        f"{c} ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})"
        for c, names, told in zip(parsed.columns, parsed.levels, parsed.declared, strict=True)
        if names is not None and not told
    ]
    note(inferred, "taken as categorical; a code list under `kinds` would fix the levels")
    numeric = [j for j in range(d) if parsed.levels[j] is None]
    distinct = [np.unique(x[~np.isnan(x[:, j]), j]) for j in range(d)]
    whole = [bool(len(v)) and bool((v == np.round(v)).all()) for v in distinct]
    columns = parsed.columns
    note(
        [columns[j] for j in numeric if whole[j] and 2 < len(distinct[j]) <= FEW_CODES and not parsed.declared[j]],
        "few whole numbers, perhaps codes (kinds: categorical) rather than quantities",
    )
    note([columns[j] for j in range(d) if len(distinct[j]) == 0], "never known")
    note([columns[j] for j in range(d) if len(distinct[j]) == 1], "constant")
    note([columns[j] for j in numeric if whole[j] and _identifies(distinct[j], x[:, j])], "looks like an identifier")
    for label in config.labels:
        if label.name in cohort.labels:
            value = joined.select("sample_id").join(
                cohort.labels[label.name], on="sample_id", how="left", maintain_order="left"
            )
            y = value["value"].cast(pl.Float64).to_numpy()
            _label_notes(note, columns, parsed, x, y, label.kind == "regression", f"label {label.name}")
    return notes


def _identifies(distinct: NDArray[np.float64], x: NDArray[np.float64]) -> bool:
    known = int((~np.isnan(x)).sum())
    return known >= ID_ROWS and len(distinct) >= ID_SHARE * known


def _label_notes(
    note: Callable[[list[str], str], None],
    columns: list[str],
    parsed: Parsed,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    regression: bool,
    label: str,
) -> None:
    """Columns that alone come too close to a label."""
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    if regression:
        strength = np.array([abs(_spearman(x[:, j], y)) for j in range(x.shape[1])])
        note(
            [columns[j] for j in np.flatnonzero(strength > SUSPICIOUS_CORRELATION)],
            f"nearly the {label} itself (rank correlation > 0.99)",
        )
        return
    strength = np.array([single_auroc(_scored(x[:, j], y, parsed.levels[j]), y) for j in range(x.shape[1])])
    gaps = np.array([single_auroc(np.isnan(x[:, j]).astype(np.float64)[:, None], y) for j in range(x.shape[1])])

    def shown(j: int, value: NDArray[np.float64]) -> str:
        return f"{columns[j]} ({value[j]:.3f})"

    perfect = strength >= PERFECT_AUROC
    note(
        [shown(j, strength) for j in np.flatnonzero(perfect)],
        f"nearly perfect predictors of {label}, known only with it? (AUROC of one class)",
    )
    note(
        [shown(j, strength) for j in np.flatnonzero((strength > SUSPICIOUS_AUROC) & ~perfect)],
        f"strong alone for {label} (AUROC of one class > 0.95)",
    )
    note(
        [shown(j, gaps) for j in np.flatnonzero(gaps > SUSPICIOUS_AUROC)],
        f"missing or not says the {label} (AUROC of one class > 0.95)",
    )


def _scored(x: NDArray[np.float64], y: NDArray[np.float64], levels: tuple[str, ...] | None) -> NDArray[np.float64]:
    """(n, 1) of a numeric column, (n, levels) indicators of a categorical one; NaN where unknown."""
    if levels is None:
        return x[:, None]
    indicators = (x[:, None] == np.arange(len(levels))[None, :]).astype(np.float64)
    return np.where(np.isnan(x)[:, None], np.nan, indicators)


def single_auroc(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Largest one-vs-rest AUROC that any column of x (n, k) reaches alone, over the rows where it is known.

    By its order, in either direction; and, from 200 rows on, by up to 20 bins of equal size with the class's share in
    each as the score, so that a code such as −1 for "survived" among days is found. 0.5 where no class has 10 samples
    on either side.
    """
    best = 0.5
    for column in x.T:
        known = ~np.isnan(column)
        ranks = rankdata(column[known])
        _, labels = np.unique(y[known], return_inverse=True)
        n = np.bincount(labels)
        counted = np.minimum(n, len(labels) - n) >= SMALLEST_SIDE
        if not counted.any():
            continue
        n, m = n[counted], len(labels) - n[counted]
        area = (np.bincount(labels, ranks)[counted] - n * (n + 1) / 2) / (n * m)
        best = max(best, float(np.maximum(area, 1 - area).max()))
        # Equal values have one rank, so a bin never parts them.
        n_bins = min(len(ranks) // BIN_ROWS, MOST_BINS)
        if n_bins < FEWEST_BINS:
            continue
        bins = np.minimum((ranks * n_bins / len(ranks)).astype(np.int64), n_bins - 1)
        table = np.zeros((n_bins, len(counted)))
        np.add.at(table, (bins, labels), 1.0)
        positive = table[:, counted]
        negative = table.sum(axis=1, keepdims=True) - positive
        order = np.argsort(positive / np.maximum(positive + negative, 1), axis=0, kind="stable")
        positive, negative = (np.take_along_axis(t, order, axis=0) for t in (positive, negative))
        below = np.cumsum(negative, axis=0) - negative
        best = max(best, float(((positive * (below + negative / 2)).sum(axis=0) / (n * m)).max()))
    return best


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    known = ~np.isnan(x)
    a, b = rankdata(x[known]), rankdata(y[known])
    if known.sum() < 3 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
