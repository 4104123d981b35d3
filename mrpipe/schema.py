"""Declarations of a dataset (options, modalities, tasks, splits) and the types that its readers return.

A dataset package defines one `Dataset` named `DATASET`. Stages, command line, workflow and contract tests use only this
object. See docs/add-a-dataset.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa

Kind = Literal["vector", "sequence", "image", "volume", "genotype"]
TaskKind = Literal["classification", "regression"]

_DICTIONARY: dict[str, Any] = {
    "modality": pl.String,
    "position": pl.Int32,
    "name": pl.String,
    "dtype": pl.String,
    "unit": pl.String,
    "kind": pl.String,
    "levels": pl.List(pl.String),
    "description": pl.String,
    "source_file": pl.String,
    "source_column": pl.String,
    "n_observed": pl.Int64,
    "n_missing": pl.Int64,
}
DICTIONARY_SCHEMA = pl.Schema(_DICTIONARY)
ATTRITION_SCHEMA = pl.Schema({"step": pl.Int32, "reason": pl.String, "n_before": pl.Int64, "n_after": pl.Int64})
# One row per attempt to read a sample's modality: `ok`, or `failed` with a reason (one constant text per failure type).
TRIED_SCHEMA = pl.Schema({"sample_id": pl.String, "attempt": pl.Int32, "status": pl.String, "reason": pl.String})
# Parquet metadata keys: the declaration of a modality in its table, of a task in its labels, of a split in its table.
MODALITY_KEY, TASK_KEY, SPLIT_KEY = "mrpipe.modality", "mrpipe.task", "mrpipe.split"


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality of a store.

    Attributes:
        name: name, valid as part of a column name; the file is `modalities/<name>.parquet`.
        bit: bit in `modality_mask`; bits are never reused.
        kind: vector (d,), sequence (T, d), image (C, H, W), volume (D, H, W) or genotype (p,).
        shape: shape of `x`; for a sequence, shape of one step, (d,).
        dtype: dtype of the elements: float32, float16 or uint8; packed2 genotypes are uint8.
        encoding: plain, or packed2 for genotypes with two bits per call.
        irregular: whether the steps of a sequence have times (column `time`).
        time_unit: unit of `time`.
        encoder: name and version of the model that computed the features, if any.
        description: one line for the data card.
    """

    name: str
    bit: int
    kind: Kind
    shape: tuple[int, ...]
    dtype: str = "float32"
    encoding: Literal["plain", "packed2"] = "plain"
    irregular: bool = False
    time_unit: str = ""
    encoder: str = ""
    description: str = ""

    @property
    def size(self) -> int:
        """Number of elements of `x` (of one step for a sequence)."""
        n = 1
        for s in self.shape:
            n *= s
        return n

    def arrow_schema(self) -> pa.Schema:
        """Schema of `modalities/<name>.parquet`."""
        if self.encoding == "packed2":
            return pa.schema([("sample_id", pa.string()), ("x", pa.binary())])
        element = pa.list_(pa.from_numpy_dtype(self.dtype), self.size)
        if self.kind != "sequence":
            return pa.schema([("sample_id", pa.string()), ("x", element)])
        fields = [("sample_id", pa.string()), ("x", pa.list_(element)), ("length", pa.int32())]
        if self.irregular:
            fields.append(("time", pa.list_(pa.float32())))
        return pa.schema(fields)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Modality:
        values: dict[str, Any] = json.loads(text)
        known = {f.name for f in dataclasses.fields(cls)}
        fields: dict[str, Any] = {k: tuple(v) if k == "shape" else v for k, v in values.items() if k in known}
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prediction task: `classification` (label: int8 class index) or `regression` (float32)."""

    name: str
    kind: TaskKind
    classes: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A named split scheme.

    Attributes:
        column: column of samples.parquet that contains train/val/test (null: sample not in the scheme).
        fractions: fractions of train, val and test if `column` is None; the split is grouped by subject.
        stratify: classification task by whose classes the split is stratified.
        description: one line for the data card.
    """

    column: str | None = None
    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)
    stratify: str | None = None
    description: str = ""


@dataclass(kw_only=True)
class Cohort:
    """Selected samples, their labels, and attrition.

    Attributes:
        samples: `sample_id`, `subject_id` (String, unique sample ids) and any further columns.
        labels: task name → frame (`sample_id`, `value`); samples without a label have no row.
        attrition: frame of `ATTRITION_SCHEMA`; each n_before equals the n_after of the previous step. The reason of
            step 0 describes the initial population, the other reasons describe the excluded samples.
    """

    samples: pl.DataFrame
    labels: dict[str, pl.DataFrame]
    attrition: pl.DataFrame


@dataclass(kw_only=True)
class Features:
    """Output of a modality's reader.

    Attributes:
        modality: declaration with the shape and dtype of this export.
        batches: record batches in `modality.arrow_schema()`, sorted by sample_id, ids a subset of the cohort.
        dictionary: `DICTIONARY_SCHEMA` rows, or a function that returns them after `batches` is exhausted.
        tried: for modalities whose processing can fail (unreadable scans, poor recordings): function that returns all
            attempts after `batches` is exhausted, `TRIED_SCHEMA` plus columns of the reader, by sample and attempt.
            Samples without a successful attempt lack the modality; the attrition table counts the reasons.
    """

    modality: Modality
    batches: Iterable[pa.RecordBatch]
    dictionary: pl.DataFrame | Callable[[], pl.DataFrame]
    tried: Callable[[], pl.DataFrame] | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Result of a successful check.

    Attributes:
        release: release of the export.
        files: input files that the manifest lists by path.
        notes: notes for the manifest.
        groups: label → files that are listed as one entry, because their names or folders are patient ids.
        observed: modality → ids of the samples that will have it, as far as the check knows without reading all values
            (an upper bound); a modality that is absent here is unknown before `build`.
        unused: recognised files of the export that a build does not read → the reason, and how to use them.
        options: options with another value in the manifest: what `auto` stands for, and names instead of paths.
    """

    release: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    groups: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    observed: Mapping[str, pl.Series] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModalityReader:
    """Bit, description and reader of one modality.

    Attributes:
        bit: bit in `modality_mask`.
        description: one line for the data card.
        read: (raw, cohort samples, options) → Features; with `prepare`, (raw, cohort samples, options, part files).
        prepare: expensive work before `read`, split into independent parts (shards of subjects or scans):
            (raw, cohort samples, options, part, n_parts, out) writes part `part` of `n_parts` to the Parquet file
            `out`. The scratch folder `out.with_suffix("")` survives a kill, so that a part can be resumed.
        n_parts: options → number of parts.
        parts_of: name of the modality whose parts `read` gets, which are prepared once for both (instead of `prepare`).
        qc: (attempts returned by `Features.tried`, folder of the parts, output folder) writes the quality control,
            `qc.parquet` and `contact_sheet.png`, without subject ids, file names or dates.
    """

    bit: int
    description: str
    read: Callable[..., Features]
    prepare: Callable[[Path, pl.DataFrame, Any, int, int, Path], None] | None = None
    n_parts: Callable[[Any], int] = lambda options: 1
    parts_of: str = ""
    qc: Callable[[pl.DataFrame, Path, Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Declaration of a dataset.

    Attributes:
        name: name in the registry and of the folder.
        title, citation, licence, provider: for the data card and error messages (source of the export).
        options: frozen dataclass of reader options; every field has a default and `metadata={"help": ...}`.
        simulation: frozen dataclass of simulator options, including `seed`.
        modalities: name → reader.
        tasks: prediction tasks, the default task first.
        schemes: split schemes by name.
        check: (raw, options) → Checked; raises one DataError that lists all problems.
        cohort: (raw, options) → Cohort.
        simulate: (export folder, truth folder, simulation options) → None.
        modalities_of: (raw, options) → modalities present in this export; default: all.
        resolve: (raw, options) → declaration read from a file of the export, for datasets whose modalities, tasks and
            schemes vary by export. The fields of the unresolved dataset are then those of a simulated export.
        tiny: simulation settings of an export that builds in a second or two, for tests.
        notes: notes for the manifest of every store.
        people: whether samples are of people, so that shared pages round counts and do not print small ones.
        files: step (as in `mrpipe.options.option`) → patterns of the files of the export that it reads; default: all. A
            pattern matches paths in lower case; `!pattern` excludes, `pattern if option` depends on a true option.
    """

    name: str
    title: str
    citation: str
    licence: str
    provider: str
    options: type[Any]
    simulation: type[Any]
    modalities: Mapping[str, ModalityReader]
    tasks: tuple[Task, ...]
    schemes: Mapping[str, Scheme]
    check: Callable[[Path, Any], Checked]
    cohort: Callable[[Path, Any], Cohort]
    simulate: Callable[[Path, Path, Any], None]
    modalities_of: Callable[[Path, Any], tuple[str, ...]] | None = None
    resolve: Callable[[Path, Any], Dataset] | None = None
    default_scheme: str = "standard"
    tiny: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())
    people: bool = True
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def declared(self, raw: Path, options: Any) -> Dataset:
        """The dataset as declared by this export; the dataset itself if it has no `resolve`."""
        return self if self.resolve is None else self.resolve(raw, options)


class Attrition:
    """Builder of the attrition table: what was assessed, then one `step` per exclusion, with the reason for it."""

    def __init__(self, n_start: int, reason: str = "samples in the export"):
        self._rows: list[tuple[int, str, int, int]] = [(0, reason, n_start, n_start)]

    def step(self, reason: str, n_after: int) -> None:
        self._rows.append((len(self._rows), reason, self._rows[-1][3], n_after))

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame(self._rows, schema=ATTRITION_SCHEMA, orient="row")


def flow_lines(attrition: pl.DataFrame) -> list[str]:
    """The steps of an attrition table (`step, reason, n_before, n_after`) in the words of a CONSORT diagram."""
    return [
        f"excluded: {reason}, n = {before - after:,}; remaining {after:,}"
        if step
        else f"assessed: {reason}, n = {after:,}"
        for step, reason, before, after in attrition.select("step", "reason", "n_before", "n_after").iter_rows()
    ]
