"""Check of a MEDS dataset: all files, the samples and labels, and what each rule of the YAML selects."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.meds.cohort import Timeline, assemble
from mrpipe.datasets.meds.config import MedsOptions, read_config
from mrpipe.datasets.meds.shards import ABOUT, CODES, EVENT, SPLITS, about, files_of, run, scan, titles
from mrpipe.datasets.tables.parser import config_path
from mrpipe.errors import Fault, FaultCollector
from mrpipe.schema import Checked


def check_export(raw: Path, options: MedsOptions) -> Checked:
    """Read the codes and times of all events, the metadata, and the label file.

    Raises:
        DataError: an invalid declaration or file, or a modality without any event.
    """
    config, notes, faults = read_config(raw, options), [], FaultCollector()
    known = Timeline(raw, config)
    samples = assemble(raw, config, known).samples
    events = scan(raw, "data", EVENT)
    counts = run(events.group_by("code").agg(pl.len(), pl.col("time").null_count().alias("static")), "data/")
    for place, rule in config.rules.items():
        for prefix in (*rule.prefixes, *rule.exclude):
            if not counts["code"].str.starts_with(prefix).any():
                notes.append(f"{config.shown_as}, {place}: no code begins with {prefix!r}")
    observed = {}
    for m in config.modalities:
        found = counts.filter(m.codes.chosen())
        if found.is_empty():
            place, prefixes = f"modalities.{m.name}.codes", ", ".join(m.codes.prefixes)
            faults.add(Fault(file=config.shown_as, column=place, expected="codes of the data", found=prefixes))
            continue
        first = (
            events.filter(m.codes.chosen())
            .group_by("subject_id")
            .agg(pl.when(pl.col("time").null_count() == 0).then(pl.col("time").min()).alias("first"))
        )
        subjects = run(first, "data/").with_columns(pl.col("subject_id").cast(pl.String))
        inside = (pl.col("first") <= pl.col("prediction_time")).fill_null(m.form in ("summary", "counts"))
        observed[m.name] = samples.join(subjects, on="subject_id").filter(inside)["sample_id"]
        notes.append(f"{m.name}: {int(found['len'].sum()):,} events of {len(found)} codes, in all subjects")
        if m.form in ("values", "codes") and (n := int(found["static"].sum())):
            notes.append(f"{m.name}: {n} static events are left out, as a sequence has no place for them")
    titles(raw, [])
    for name, loss in {
        CODES: "the dictionary has no titles",
        SPLITS: "no scheme standard",
        ABOUT: "no release",
    }.items():
        if not (raw / name).is_file():
            notes.append(f"{name} is missing: {loss}")
    if "split" in samples.columns and (n := samples["split"].null_count()):
        notes.append(f"{SPLITS}: {n} of {len(samples)} samples are of subjects in no split")
    faults.raise_if_any()
    about_it = about(raw)
    release = " ".join(str(about_it[k]) for k in ("dataset_name", "dataset_version") if about_it.get(k)) or "unknown"
    files = [config_path(raw, options), *files_of(raw, "data"), *(raw / n for n in (CODES, SPLITS, ABOUT))]
    files += files_of(raw, config.samples.file) if config.samples.file else []
    return Checked(release=release, files=tuple(f for f in files if f.is_file()), notes=tuple(notes), observed=observed)
