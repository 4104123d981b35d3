"""Samples, prediction times, labels and split of a MEDS dataset, and its check."""

from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.budget import MAX_JSON, load_json, read_small
from mrpipe.datasets.declared import config_path
from mrpipe.datasets.meds.config import PAGE, Codes, MedsConfig, MedsLabel, MedsOptions, read_config
from mrpipe.datasets.meds.shards import ABOUT, CODES, EVENT, SPLITS, TIME, files_of, read, require, run, scan, titles
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.reading import reading
from mrpipe.schema import Attrition, Checked, Cohort, flow_lines
from mrpipe.store.splits import PART_ALIASES

DEATH = Codes(("MEDS_DEATH",))
LABEL_FILE = {"subject_id": pl.Int64, "prediction_time": TIME, "boolean_value?": pl.Boolean}
LABEL_FILE |= {"integer_value?": pl.Int64, "float_value?": pl.Float32, "categorical_value?": pl.String}
_LONG_ID = pl.format("{}_{}", "subject_id", pl.col("prediction_time").dt.strftime("%Y%m%dT%H%M%S%.f"))


class Timeline:
    """The events that samples and labels are made of, in memory, and the last event of every subject."""

    def __init__(self, raw: Path, config: MedsConfig):
        rules = [codes for place, codes in config.rules.items() if not place.startswith("modalities.")]
        events = scan(raw, "data", EVENT)
        chosen = pl.any_horizontal(c.chosen() for c in (DEATH, *rules)) & pl.col("time").is_not_null()
        self._events = run(events.filter(chosen).select("subject_id", "time", "code"), "data/").sort("time")
        last = events.group_by("subject_id").agg(pl.col("time").max().alias("last"))
        self.last = run(last.drop_nulls("subject_id"), "data/")

    def times(self, codes: Codes, name: str) -> pl.DataFrame:
        """`subject_id` and the time of each event with these codes as column `name`, by time."""
        chosen = self._events.filter(codes.chosen())
        return chosen.select("subject_id", pl.col("time").alias(name)).unique(maintain_order=True)

    def following(self, frame: pl.DataFrame, on: str, codes: Codes, name: str, *, at: bool = False) -> pl.DataFrame:
        """Add the time of the subject's first event after the time in column `on` (with `at`, also at it)."""
        events = self.times(codes, name).with_columns(pl.col(name).alias("next"))
        how: dict[str, Any] = {"left_on": on, "right_on": "next", "by": "subject_id", "strategy": "forward"}
        joined = frame.sort(on).join_asof(events, **how, allow_exact_matches=at, check_sortedness=False)
        return joined.drop("next", strict=False)


def _of_events(config: MedsConfig, known: Timeline) -> tuple[pl.DataFrame, Attrition]:
    """`subject_id, prediction_time, sample_id` of the samples that events define, and the attrition."""
    s, time = config.samples, pl.col("prediction_time")
    frame = known.times(s.event, "begin")
    flow = Attrition(len(frame), "events that define a sample")

    def narrow(condition: pl.Expr, reason: str) -> None:
        nonlocal frame
        frame = frame.filter(condition)
        flow.step(reason, len(frame))

    if s.end.prefixes:
        frame = known.following(frame, "begin", s.end, "end", at=True)
        narrow(pl.col("end").is_not_null(), "no end of the stay")
    at = pl.col("end") if s.at is None else pl.col("begin") + pl.duration(seconds=s.at)
    frame = frame.with_columns(at.alias("prediction_time"))
    if s.end.prefixes and s.at is not None:
        narrow(time < pl.col("end"), "end of the stay before the prediction time")
    frame = frame.join(known.times(DEATH, "death").group_by("subject_id").min(), on="subject_id", how="left")
    narrow((pl.col("death") > time).fill_null(True), "death before the prediction time")
    key = ["subject_id"] if s.which != "all" else ["subject_id", "prediction_time"]
    frame = frame.sort("subject_id", "prediction_time", descending=[False, s.which == "last"])
    frame = frame.unique(key, keep="first", maintain_order=True)
    flow.step("repeated prediction time" if s.which == "all" else f"not the {s.which} event of the subject", len(frame))
    sample_id = _LONG_ID if s.which == "all" else pl.col("subject_id").cast(pl.String)
    return frame.select("subject_id", "prediction_time", sample_id.alias("sample_id")), flow


def _of_file(raw: Path, config: MedsConfig, known: Timeline) -> tuple[pl.DataFrame, Attrition]:
    """The rows of the label file with their ids, and the attrition."""
    file, used = config.samples.file, {label.column for label in config.labels}
    frame = read(raw, file, {c.removesuffix("?") if c[:-1] in used else c: kind for c, kind in LABEL_FILE.items()})
    unknown = ~pl.col("subject_id").is_in(known.last["subject_id"].implode())
    repeated = pl.struct("subject_id", "prediction_time").is_duplicated()
    require(frame, file, "subject_id", unknown, "subjects of data/")
    require(frame, file, "prediction_time", repeated, "one row per subject and prediction time")
    return frame.with_columns(_LONG_ID.alias("sample_id")), Attrition(len(frame), f"rows of {file}")


def _value(label: MedsLabel, file: str, samples: pl.DataFrame, known: Timeline) -> pl.DataFrame:
    """`sample_id, value` of the samples that have the label."""
    if label.column:
        value, classes = pl.col(label.column), label.task.classes
        if label.column == "float_value":
            require(samples, file, label.column, ~value.is_finite(), "finite numbers")
        if classes and label.column != "boolean_value":
            text = value.cast(pl.String)
            require(samples, file, label.column, ~text.is_in(classes), f"one of {', '.join(classes)}")
            value = text.replace_strict(classes, range(len(classes)), default=None)
    else:
        samples = known.following(samples, "prediction_time", label.event, "event")
        samples = known.following(samples, "prediction_time", label.until, "until")
        samples = samples.join(known.last, on="subject_id", how="left")
        within = pl.lit(None, TIME)
        if label.within is not None:
            within = pl.col("prediction_time") + pl.duration(seconds=label.within)
        limit = pl.min_horizontal(within, "until")
        unknown = pl.lit(bool(label.until.prefixes)) & pl.col("until").is_null()
        unknown |= pl.lit(label.follow_up) & (pl.col("last") < limit)
        happened = (pl.col("event") <= limit).fill_null(pl.col("event").is_not_null())
        value = pl.when(happened).then(1).when(~unknown.fill_null(False)).then(0)
    dtype = pl.Int8 if label.task.kind == "classification" else pl.Float32
    return samples.select("sample_id", value.cast(dtype).alias("value")).drop_nulls().sort("sample_id")


def assemble(raw: Path, config: MedsConfig, known: Timeline) -> Cohort:
    """Samples `sample_id, subject_id, prediction_time` (and `split`), labels and attrition.

    Raises:
        DataError: an invalid label file or split, or no sample left.
    """
    samples, flow = _of_file(raw, config, known) if config.samples.file else _of_events(config, known)
    if samples.is_empty():
        lost = "; ".join(flow_lines(flow.frame()))
        raise DataError(Fault(file=config.shown_as, column="samples", expected="at least one sample", found=lost))
    labels = {label.task.name: _value(label, config.samples.file, samples, known) for label in config.labels}
    columns = ["sample_id", "subject_id", "prediction_time"]
    if (raw / SPLITS).is_file():
        table, columns = read(raw, SPLITS, {"subject_id": pl.Int64, "split": pl.String}), [*columns, "split"]
        part = pl.col("split").str.to_lowercase().replace_strict(PART_ALIASES, default=None, return_dtype=pl.String)
        require(table, SPLITS, "subject_id", pl.col("subject_id").is_duplicated(), "each subject once")
        require(table, SPLITS, "split", part.is_null(), f"one of {', '.join(PART_ALIASES)}")
        samples = samples.join(table.with_columns(part), on="subject_id", how="left")
    samples = samples.select(columns).with_columns(pl.col("subject_id").cast(pl.String)).sort("sample_id")
    return Cohort(samples=samples, labels=labels, attrition=flow.frame())


def build_cohort(raw: Path, options: MedsOptions) -> Cohort:
    """Samples, labels and attrition, as the YAML declares them; see `assemble`."""
    config = read_config(raw, options)
    return assemble(raw, config, Timeline(raw, config))


def check_export(raw: Path, options: MedsOptions) -> Checked:
    """Read the codes and times of all events, the metadata, and the label file.

    Raises:
        DataError: an invalid declaration or file, or a modality without any event.
    """
    config, notes, faults = read_config(raw, options), list[str](), FaultCollector()
    samples = assemble(raw, config, Timeline(raw, config)).samples
    events = scan(raw, "data", EVENT)
    static, first = pl.col("time").null_count().alias("static"), pl.col("time").min().alias("first")
    counts = run(events.group_by("code").agg(pl.len(), static), "data/")
    for column, n in run(events.select("subject_id", "code").null_count(), "data/").row(0, named=True).items():
        if n:
            faults.add(Fault(file="data/", column=column, expected="a value in every row", found=f"{n} nulls"))
    for place, rule in config.rules.items():
        for prefix in (*rule.prefixes, *rule.exclude):
            if not counts["code"].str.starts_with(prefix).any():
                notes.append(f"{config.shown_as}, {place}: no code begins with {prefix!r}")
    observed = {}
    for m in config.modalities:
        found, timed = counts.filter(m.codes.chosen()), m.form in ("values", "codes")
        if found.is_empty():
            place, shown = f"modalities.{m.name}.codes", ", ".join(m.codes.prefixes)
            faults.add(Fault(file=config.shown_as, column=place, expected="codes of the data", found=shown))
        notes.append(f"{m.name}: {found['len'].sum():,} events of {len(found)} codes in the data")
        if timed and (n := found["static"].sum()):
            notes.append(f"{m.name}: {n} static events are left out, since a sequence has no place for them")
        begins = run(events.filter(m.codes.chosen()).group_by("subject_id").agg(static, first), "data/")
        begins = samples.join(begins.with_columns(pl.col("subject_id").cast(pl.String)), on="subject_id")
        has = (pl.col("first") <= pl.col("prediction_time")).fill_null(False) | ((pl.col("static") > 0) & (not timed))
        observed[m.name] = begins.filter(has)["sample_id"]
    titles(raw, [])
    faults.raise_if_any()
    with reading(ABOUT, "a JSON object"):
        about = dict(load_json(read_small(raw / ABOUT, ABOUT, MAX_JSON), ABOUT)) if (raw / ABOUT).is_file() else {}
    for name, loss in {CODES: "codes have no titles", SPLITS: "no scheme standard", ABOUT: "no release"}.items():
        notes += [] if (raw / name).is_file() else [f"{name} is missing: {loss}"]
    if "split" in samples.columns and (n := samples["split"].null_count()):
        notes.append(f"{SPLITS}: {n} of {len(samples)} samples are of subjects in no split")
    places = ("data", CODES, SPLITS, ABOUT, *([config.samples.file] if config.samples.file else []))
    release = " ".join(str(about[k]) for k in ("dataset_name", "dataset_version") if k in about) or "unknown"
    files = (config_path(raw, options.config, PAGE), *(f for place in places for f in files_of(raw, place)))
    return Checked(release=release, files=files, notes=tuple(notes), observed=observed)
