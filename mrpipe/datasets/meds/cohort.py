"""Samples, prediction times, labels and split of a MEDS dataset."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.meds.config import Codes, MedsConfig, MedsLabel, MedsOptions, read_config
from mrpipe.datasets.meds.shards import EVENT, SPLITS, TIME, read, run, scan
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.schema import Attrition, Cohort
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
        return (
            self._events.filter(codes.chosen())
            .select("subject_id", pl.col("time").alias(name))
            .unique(maintain_order=True)
        )

    def following(self, frame: pl.DataFrame, on: str, codes: Codes, name: str, *, at: bool = False) -> pl.DataFrame:
        """Add the time of the subject's first event after the time in column `on` (with `at`, also at it)."""
        events = self.times(codes, name).with_columns(pl.col(name).alias("next"))
        how = {"by": "subject_id", "strategy": "forward", "allow_exact_matches": at, "check_sortedness": False}
        joined = frame.sort(on).join_asof(events.sort("next"), left_on=on, right_on="next", **how)
        return joined.drop("next", strict=False)


def _of_events(config: MedsConfig, known: Timeline) -> tuple[pl.DataFrame, Attrition]:
    """`subject_id, prediction_time, sample_id` of the samples that events define, and the attrition."""
    s, time = config.samples, pl.col("prediction_time")
    frame = known.times(s.event, "begin")
    flow = Attrition(len(frame), "events of samples.event")

    def narrow(condition: pl.Expr, reason: str) -> None:
        nonlocal frame
        frame = frame.filter(condition)
        flow.step(reason, len(frame))

    if s.end.prefixes:
        frame = known.following(frame, "begin", s.end, "end", at=True)
        narrow(pl.col("end").is_not_null(), "the stay has no end")
    at = pl.col("end") if s.at is None else pl.col("begin") + pl.duration(seconds=s.at)
    frame = frame.with_columns(at.alias("prediction_time"))
    if s.end.prefixes and s.at is not None:
        narrow(time < pl.col("end"), "the stay ends before the prediction time")
    frame = frame.join(known.times(DEATH, "death").group_by("subject_id").min(), on="subject_id", how="left")
    narrow((pl.col("death") > time).fill_null(True), "death before the prediction time")
    key = ["subject_id"] if s.which != "all" else ["subject_id", "prediction_time"]
    keep = "last" if s.which == "last" else "first"
    frame = frame.sort("subject_id", "prediction_time").unique(key, keep=keep, maintain_order=True)
    flow.step("repeated prediction time" if s.which == "all" else f"not the {s.which} of the subject", len(frame))
    sample_id = _LONG_ID if s.which == "all" else pl.col("subject_id").cast(pl.String)
    return frame.select("subject_id", "prediction_time", sample_id.alias("sample_id")), flow


def _of_file(raw: Path, config: MedsConfig, known: Timeline) -> tuple[pl.DataFrame, Attrition]:
    """The rows of the label file with their ids, and the attrition."""
    file, frame = config.samples.file, read(raw, config.samples.file, LABEL_FILE)
    unknown = ~pl.col("subject_id").is_in(known.last["subject_id"].implode())
    repeated = pl.struct("subject_id", "prediction_time").is_duplicated()
    require(frame, file, "subject_id", unknown, "subjects of data/")
    require(frame, file, "prediction_time", repeated, "one row per subject and prediction time")
    return frame.with_columns(_LONG_ID.alias("sample_id")), Attrition(len(frame), f"rows of {file}")


def require(frame: pl.DataFrame, file: str, column: str, wrong: pl.Expr, expected: str) -> None:
    """Raise a DataError if a condition holds for any row."""
    rows = frame.select(wrong.alias("wrong"))["wrong"].arg_true()
    if len(rows):
        raise DataError(
            Fault(file=file, column=column, row=rows[0] + 1, expected=expected, found=f"{len(rows)} other rows")
        )


def _value(label: MedsLabel, file: str, samples: pl.DataFrame, known: Timeline) -> pl.DataFrame:
    """`sample_id, value` of the samples that have the label."""
    if label.column:
        value, dtype = pl.col(label.column), pl.Int8 if label.kind == "classification" else pl.Float32
        if label.classes and label.column != "boolean_value":
            text = pl.col(label.column).cast(pl.String)
            require(samples, file, label.column, ~text.is_in(label.classes), f"one of {', '.join(label.classes)}")
            value = text.replace_strict(label.classes, range(len(label.classes)), default=None)
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
        value, dtype = pl.when(happened).then(1).when(~unknown.fill_null(False)).then(0), pl.Int8
    return samples.select("sample_id", value.cast(dtype).alias("value")).drop_nulls().sort("sample_id")


def assemble(raw: Path, config: MedsConfig, known: Timeline) -> Cohort:
    """Samples `sample_id, subject_id, prediction_time` (and `split`), labels and attrition.

    Raises:
        DataError: an invalid label file or split, or no sample left.
    """
    samples, flow = _of_file(raw, config, known) if config.samples.file else _of_events(config, known)
    columns = ["sample_id", "subject_id", "prediction_time"]
    if samples.is_empty():
        lost = "; ".join(f"{reason}: {n} left" for _, reason, _, n in flow.frame().iter_rows())
        raise DataError(Fault(file=config.shown_as, column="samples", expected="at least one sample", found=lost))
    labels = {label.name: _value(label, config.samples.file, samples, known) for label in config.labels}
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
