"""Validate a declared dataset: report all errors of the YAML and its tables at once, and note suspicious columns.

Legend: n samples, d features, C classes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe import keyed
from mrpipe.datasets.declared import config_path
from mrpipe.datasets.tables.cohort import assemble, read_tables, require_same_length
from mrpipe.datasets.tables.config import ModalityTable, Ref, TablesConfig, TablesOptions, matches
from mrpipe.datasets.tables.features import Parsed, TableFeature, hold, no_samples, parse
from mrpipe.datasets.tables.files import LISTED, RawTable, locate
from mrpipe.datasets.tables.joins import report_lost_rows, unused_rules
from mrpipe.datasets.tables.long import check_long
from mrpipe.datasets.tables.parser import PAGE, read_config
from mrpipe.datasets.tables.paths import PathColumn, check_paths
from mrpipe.errors import FaultCollector, cell, values_shown
from mrpipe.forms import is_table
from mrpipe.ids import alike
from mrpipe.raw import few
from mrpipe.schema import Checked, Cohort
from mrpipe.store.leaks import CORRELATION, THRESHOLD, feature_columns, find_leaks

# A numeric column with few distinct whole numbers may hold codes; one with nearly all distinct may hold ids.
FEW_CODES, ID_SHARE, ID_ROWS = 6, 0.95, 30
PERFECT_AUROC = 0.999
# Largest whole number up to which float32 is exact, and interquartile ranges beyond which values are far from others.
EXACT, FAR = 2**24, 10
# Most rows of a class, or of a regression, with which columns are tested against a label.
TESTED = 2**14
_COLUMN_NOTES = (
    "constant",
    "no values",
    "few distinct whole numbers, perhaps codes (kinds: categorical) rather than quantities",
    "numbers with leading zeros or exponents, perhaps codes (kinds: categorical)",
    "whole numbers beyond the precision of float32, perhaps dates or identifiers",
    "looks like an identifier",
    "values far from the others, perhaps codes for missing",
    "dates after the time of the prediction, which are not used",
)


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
    groups: dict[str, tuple[Path, ...]] = {}
    used: dict[str, set[str]] = {file: {*table.reserved(), *table.subgroups()} for file, table in tables.items()}
    for file, opened in tables.items():
        if opened.large:
            hold(opened, [m for m in config.modalities if m.file == file and not m.files and m.long is None])
    assembled = assemble(config, tables, faults, notes)
    samples = pl.DataFrame(schema={"sample_id": pl.String, "subject_id": pl.String, "row": pl.Int32})
    known = samples
    if assembled is not None:
        samples, known = assembled[0].samples, assembled[1]
    reported: list[pl.DataFrame] = []
    for modality in config.modalities:
        table = tables.get(modality.file)
        if table is None:
            continue
        if config.by_order and config.cohort_file in tables:
            require_same_length(table, tables[config.cohort_file], faults)
        refs: list[Ref] = [*modality.exclude, *(column for column, _ in modality.drop)]
        if (long := modality.long) is not None:
            refs += [r for r in (long.item, long.value, long.unit, long.time) if r is not None]
            observed[modality.name] = check_long(table, modality, samples, known, faults, notes)
        elif modality.files:
            found = check_paths(PathColumn(raw, table, modality, samples, faults), samples, known, faults, notes)
            observed[modality.name], groups[f"{modality.file}: files of {modality.name}"] = found
        else:
            parsed = parse(table, modality, samples, faults, checking=True)
            if parsed is not None:
                refs += [f.column for f in parsed.features]
                refs += [kind.since for _, kind in modality.kinds if kind.since is not None]
                if not any(parsed.rows is rows for rows in reported):
                    report_lost_rows(table, parsed.rows, known, faults, notes)
                reported.append(parsed.rows)
            if parsed is not None and assembled is not None:
                notes += _modality_notes(config, modality, table, parsed, assembled[0], faults, observed)
        used[modality.file] |= set(table.columns(refs, "", FaultCollector(), optional=True))
    notes += unused_rules(config, tables)
    faults.faults = list(dict.fromkeys(faults.faults))
    faults.raise_if_any()
    paths = [config_path(raw, options.config, PAGE), *(locate(raw, f)[0] for f in sorted(files))]
    return Checked(
        release=config.title or config.shown_as,
        files=tuple(paths),
        notes=tuple(dict.fromkeys(notes)),
        groups=groups,
        observed=observed,
        unused=_unused(raw, paths, {f: [c for c in t.header if c not in used[f]] for f, t in tables.items()}, config),
    )


def _unused(raw: Path, used: list[Path], columns: dict[str, list[str]], config: TablesConfig) -> dict[str, str]:
    """Columns that nothing refers to, and files that the YAML does not name."""
    unused = {}
    for file, names in columns.items():
        if names:
            shown = few([name or "''" for name in names], LISTED)
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
    observed[name] = parsed.samples
    if parsed.samples.is_empty():
        faults.add(no_samples(table, name, f"Does it use the ids of {config.cohort_file}?"))
        return []
    features, x = parsed.features, parsed.x
    counts = {kind: sum(f.kind == kind for f in features) for kind in ("numeric", "categorical")}
    texts = [f.column for f in features if f.kind == "embedding"]
    kinds = f"{counts['numeric']} numeric and {counts['categorical']} categorical features"
    kinds += f"; texts encoded by {modality.encoder}: {', '.join(texts)}" if texts else ""
    notes = [f"{name}: {len(x)} of {len(samples)} samples, {kinds}"]

    def note(columns: list[str], text: str) -> None:
        if columns:
            notes.append(f"{name}: {text}: {few(columns, LISTED)}")

    levels = [(f.name, f.levels) for f in features if f.levels is not None and not f.declared]
    inferred = [f"{name} ({few(seen, 6) if values_shown() else f'{len(seen)} values'})" for name, seen in levels]
    note(inferred, "treated as categorical; a code list under `kinds` would fix the levels")
    found: dict[str, list[str]] = {text: [] for text in _COLUMN_NOTES}
    for j, f in enumerate(features):
        for text, detail in _column_notes(f, x[:, j]):
            found[text].append(f"{f.name}{detail}")
    for text, columns in found.items():
        note(columns, text)
    note(
        [f"{f.name} ({pair})" for f in features if f.levels and (pair := alike(pl.Series(f.levels)))],
        "levels that are alike",
    )
    columns = [f.column for f in features]
    note([pattern for pattern, _ in modality.kinds if not any(matches(c, pattern) for c in columns)], "unused kinds")
    for label in config.labels:
        if label.name in cohort.labels:
            label_of, ids = cohort.labels[label.name], pl.DataFrame({"sample_id": parsed.samples})
            value = ids.join(label_of, on="sample_id", how="left", maintain_order="left")["value"]
            y = value.cast(pl.Float64).to_numpy()
            _label_notes(note, parsed, y, label.kind == "regression", f"label {label.name}")
    return notes


def _column_notes(feature: TableFeature, x: NDArray[Any]) -> Iterator[tuple[str, str]]:
    """Texts of `_COLUMN_NOTES` that apply to a column (n,), and what to add to its name."""
    constant, empty, few, coded, inexact, identifier, far, late = _COLUMN_NOTES
    known = np.sort(x[~np.isnan(x)])
    if (not len(known) or known[0] == known[-1]) and feature.kind != "embedding":
        yield (constant if len(known) else empty), ""
    if feature.late:
        yield late, f" ({feature.late} rows)"
    if feature.kind != "numeric" or not len(known):
        return
    if feature.coded:
        yield coded, ""
    # Of most columns, the first few values show that not all are whole.
    if all((part == np.round(part)).all() for part in (known[:1000], known[1000:])):
        distinct = known[np.r_[True, known[1:] != known[:-1]]]
        if 2 < len(distinct) <= FEW_CODES and not feature.declared:
            yield few, ""
        if abs(distinct).max() > EXACT:
            yield inexact, ""
        if len(known) >= ID_ROWS and len(distinct) >= ID_SHARE * len(known):
            yield identifier, ""
    place = (len(known) - 1) * np.array([0.25, 0.75])
    below, above = known[np.floor(place).astype(int)], known[np.ceil(place).astype(int)]
    low, high = below + place % 1 * (above.astype(np.float64) - below)
    least, most = low - FAR * (high - low), high + FAR * (high - low)
    if high > low and (known[0] < least or known[-1] > most):
        outside = known[(known < least) | (known > most)]
        furthest = outside[np.abs(outside - (low + high) / 2).argmax()]
        yield far, f" ({cell(float(furthest))}; {len(outside)} of {len(known)} values)"


def _label_notes(
    note: Callable[[list[str], str], None], parsed: Parsed, y: NDArray[np.float64], regression: bool, label: str
) -> None:
    """Note columns that nearly determine a label on their own."""
    rows = np.flatnonzero(~np.isnan(y))
    if len(rows) > TESTED:
        drawn = keyed.generator(0, "label notes").permutation(rows)
        groups = [drawn] if regression else [drawn[y[drawn] == k] for k in np.unique(y[drawn])]
        rows = np.sort(np.concatenate([group[:TESTED] for group in groups]))
    x, y = parsed.x if len(rows) == len(y) else parsed.x[rows], y[rows]
    classes = () if regression or not len(y) else tuple(map(str, range(int(y.max()) + 1)))
    found = find_leaks(feature_columns(x, [f.levels for f in parsed.features]), y, classes)

    def noted(rows: pl.DataFrame, text: str) -> None:
        strongest = rows.group_by("position", maintain_order=True).agg(pl.col("auroc").max()).sort("position")
        note([f"{parsed.features[j].name} ({strength:.3f})" for j, strength in strongest.iter_rows()], text)

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
