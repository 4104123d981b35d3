"""Validate a declared dataset: report all errors of the YAML and its tables at once, and note suspicious columns.

Legend: n samples, d features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.tables.cohort import assemble, read_tables, require_same_length
from mrpipe.datasets.tables.config import ModalityTable, TablesConfig, TablesOptions, matches
from mrpipe.datasets.tables.features import Parsed, no_samples, parse, reserved_columns
from mrpipe.datasets.tables.files import LISTED, RawTable, locate
from mrpipe.datasets.tables.joins import report_lost_rows, unused_rules
from mrpipe.datasets.tables.parser import config_path, read_config
from mrpipe.errors import FaultCollector
from mrpipe.forms import is_table
from mrpipe.ids import alike
from mrpipe.schema import Checked, Cohort
from mrpipe.store.leaks import CORRELATION, THRESHOLD, feature_columns, find_leaks

# A numeric column with few distinct whole numbers may hold codes; one with nearly all distinct may hold ids.
FEW_CODES, ID_SHARE, ID_ROWS = 6, 0.95, 30
PERFECT_AUROC = 0.999


# Largest whole number up to which float32 is exact, and texts that are numbers but may be codes.
EXACT, _CODED = 2**24, r"^-?0[0-9]+$|^[0-9]+[eE][0-9]+$"


def check_export(raw: Path, options: TablesOptions) -> Checked:
    """Read the YAML and all tables that it names.

    Raises:
        DataError: reports all errors together.
    """
    config, faults = read_config(raw, options), FaultCollector()
    files = config.cohort_files | {m.file for m in config.modalities}
    tables, config = read_tables(raw, config, files, faults)
    notes = [note for table in tables.values() for note in table.notes]
    observed: dict[str, pl.Series] = {}
    used: dict[str, set[str]] = {file: reserved_columns(table, config) for file, table in tables.items()}
    assembled = assemble(config, tables, faults, notes)
    for modality in config.modalities:
        table = tables.get(modality.file)
        if table is None:
            continue
        parsed = parse(table, config, modality, faults)
        if config.by_order and config.cohort_file in tables:
            require_same_length(table, tables[config.cohort_file], faults)
        refs = (*modality.exclude, *(column for column, _ in modality.drop))
        used[modality.file] |= set(table.columns(refs, "", FaultCollector(), optional=True))
        if parsed is not None:
            used[modality.file] |= set(parsed.columns)
        if parsed is not None and assembled is not None:
            report_lost_rows(table, parsed.rows, assembled[1], config, faults, notes)
            notes += _modality_notes(config, modality, table, parsed, assembled[0], faults, observed)
    notes += unused_rules(config, tables)
    faults.faults = list(dict.fromkeys(faults.faults))
    faults.raise_if_any()
    paths = [config_path(raw, options), *(locate(raw, f)[0] for f in sorted(files))]
    return Checked(
        release=config.title or config.shown_as,
        files=tuple(paths),
        notes=tuple(dict.fromkeys(notes)),
        observed=observed,
        unused=_unused(raw, paths, {f: [c for c in t.header if c not in used[f]] for f, t in tables.items()}, config),
    )


def _unused(raw: Path, used: list[Path], columns: dict[str, list[str]], config: TablesConfig) -> dict[str, str]:
    """Columns that nothing refers to, and files that the YAML does not name."""
    unused = {}
    for file, names in columns.items():
        if names:
            shown = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
            unused[f"{file}: {shown}"] = "columns of no modality; add them to the `columns` of one"
    for path in sorted(raw.rglob("*")):
        name = path.relative_to(raw).as_posix()
        if len(unused) < LISTED and path.is_file() and path not in used:
            instead = next((f for f in columns if path.stem == Path(f).name), None)
            if instead or is_table(path):
                unused[name] = f"{instead} is read" if instead else f"{config.shown_as} does not name it"
    return unused


def _modality_notes(
    config: TablesConfig,
    modality: ModalityTable,
    table: RawTable,
    parsed: Parsed,
    cohort: Cohort,
    faults: FaultCollector,
    observed: dict[str, pl.Series],
) -> list[str]:
    """Notes on a modality to read before training on it; adds its sample ids to `observed`."""
    name, samples = modality.name, cohort.samples
    joined = table.to_samples(parsed.rows.with_row_index("place"), samples)
    observed[name] = joined["sample_id"]
    if joined.is_empty():
        faults.add(no_samples(table, name, f"Does it use the ids of {config.cohort_file}?"))
        return []
    d = len(parsed.columns)
    n_categorical = sum(names is not None for names in parsed.levels)
    kinds = f"{d - n_categorical} numeric and {n_categorical} categorical features"
    notes = [f"{name}: {len(joined)} of {len(samples)} samples, {kinds}"]
    x = parsed.x[joined["place"].to_numpy()]

    def note(columns: list[str], text: str) -> None:
        if columns:
            more = f" and {len(columns) - LISTED} more" if len(columns) > LISTED else ""
            notes.append(f"{name}: {text}: {', '.join(columns[:LISTED])}{more}")

    inferred = [
        f"{c} ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})"
        for c, names, declared in zip(parsed.columns, parsed.levels, parsed.declared, strict=True)
        if names is not None and not declared
    ]
    note(inferred, "treated as categorical; a code list under `kinds` would fix the levels")
    numeric = [j for j in range(d) if parsed.levels[j] is None]
    distinct = [np.unique(x[~np.isnan(x[:, j]), j]) for j in range(d)]
    whole = [bool(len(v)) and bool((v == np.round(v)).all()) for v in distinct]
    columns = parsed.columns
    note(
        [columns[j] for j in numeric if whole[j] and 2 < len(distinct[j]) <= FEW_CODES and not parsed.declared[j]],
        "few distinct whole numbers, perhaps codes (kinds: categorical) rather than quantities",
    )
    coded = [columns[j] for j in numeric if table.frame[columns[j]].str.contains(_CODED).any()]
    note(coded, "numbers with leading zeros or exponents, perhaps codes (kinds: categorical)")
    inexact = [columns[j] for j in numeric if whole[j] and abs(distinct[j]).max() > EXACT]
    note(inexact, "whole numbers beyond the precision of float32, perhaps dates or identifiers")
    categorical = [(c, names) for c, names in zip(columns, parsed.levels, strict=True) if names is not None]
    note([f"{c} ({pair})" for c, names in categorical if (pair := alike(pl.Series(names)))], "levels that are alike")
    note([pattern for pattern, _ in modality.kinds if not any(matches(c, pattern) for c in columns)], "unused kinds")
    note([columns[j] for j in range(d) if len(distinct[j]) == 0], "no values")
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
    """Note columns that nearly determine a label on their own."""
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    classes = () if regression or not len(y) else tuple(map(str, range(int(y.max()) + 1)))
    found = find_leaks(feature_columns(x, parsed.levels), y, classes)

    def noted(rows: pl.DataFrame, text: str) -> None:
        strongest = rows.group_by("position", maintain_order=True).agg(pl.col("auroc").max()).sort("position")
        note([f"{columns[j]} ({strength:.3f})" for j, strength in strongest.iter_rows()], text)

    gaps, same = pl.col("what") == "known", pl.col("what") == "rank correlation"
    perfect = pl.col("auroc").max().over("position") >= PERFECT_AUROC
    above = f"(one-vs-rest AUROC > {THRESHOLD})"
    noted(found.filter(same), f"nearly identical to the {label} (rank correlation > {CORRELATION})")
    values = found.filter(~gaps & ~same)
    noted(
        values.filter(perfect), f"nearly perfect predictors of {label}; are they known before it? (one-vs-rest AUROC)"
    )
    noted(values.filter(~perfect), f"strong single predictors of {label} {above}")
    noted(found.filter(gaps), f"missingness predicts {label} {above}")
