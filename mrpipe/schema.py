"""What a dataset declares: options, modalities, tasks, raw tables; and what its readers return.

A dataset package holds one `Dataset` named `DATASET`. Everything the stages, the command line, the workflow and the
contract tests know of a dataset, they know from it.
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
# One row an attempt at a sample's modality: `ok`, or `failed` with a reason that is one text for each kind of failure.
TRIED_SCHEMA = pl.Schema({"sample_id": pl.String, "attempt": pl.Int32, "status": pl.String, "reason": pl.String})
# Key of the Parquet metadata in which a modality table carries its declaration.
MODALITY_KEY = "mrpipe.modality"


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality of a store.

    Attributes:
        name: column-safe name; its file is `modalities/<name>.parquet`.
        bit: bit in `modality_mask`; appended, never reused.
        kind: vector (d,), sequence (T, d), image (C, H, W), volume (D, H, W) or genotype (p,).
        shape: shape of one `x`; for a sequence the shape of one step, (d,).
        dtype: dtype of an element: float32, float16, uint8; packed2 genotypes are uint8.
        encoding: plain, or packed2 for genotypes at two bits a call.
        irregular: a sequence whose steps carry a `time` list (unit in `time_unit`).
        encoder: name and version of the model that made the features, where one did.
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
        """Number of elements of one `x` (of one step for a sequence)."""
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
    """One label: `classification` (int8 class index) or `regression` (float32)."""

    name: str
    kind: TaskKind
    classes: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A named split.

    Attributes:
        column: a column of samples.parquet that already holds train/val/test (null: not part of the scheme).
        fractions: train, val, test; used when `column` is None: grouped by subject and stratified by `stratify`.
        stratify: task (classification) whose classes are kept in proportion.
        description: one line for the data card.
    """

    column: str | None = None
    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)
    stratify: str | None = None
    description: str = ""


@dataclass(kw_only=True)
class Cohort:
    """Who is in, with which label, and why the others are not.

    Attributes:
        samples: `sample_id`, `subject_id` (String, unique sample ids) and any further columns.
        labels: task name → frame (`sample_id`, `value`); samples without a label have no row.
        attrition: `ATTRITION_SCHEMA`; each n_before equals the n_after of the step before. The reason of step 0 says
            who is counted, every other one what is true of those who are left out.
    """

    samples: pl.DataFrame
    labels: dict[str, pl.DataFrame]
    attrition: pl.DataFrame


@dataclass(kw_only=True)
class Features:
    """What one modality's reader returns.

    Attributes:
        modality: the declaration, with the shape and dtype that this export gave.
        batches: record batches in `modality.arrow_schema()`, sorted by sample_id, ids a subset of the cohort.
        dictionary: `DICTIONARY_SCHEMA` rows, or a function that gives them once `batches` is exhausted.
        tried: for modalities that can fail on a sample (a scan, a record of poor quality): every attempt, once
            `batches` is exhausted; `TRIED_SCHEMA` and columns of the reader's own, sorted by sample and attempt. A
            sample whose attempts all failed lacks the modality, and the attrition table counts the reasons.
    """

    modality: Modality
    batches: Iterable[pa.RecordBatch]
    dictionary: pl.DataFrame | Callable[[], pl.DataFrame]
    tried: Callable[[], pl.DataFrame] | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A check that found no fault: which release, and the files that will be read.

    Attributes:
        files: files that the manifest lists by their path.
        notes: for the manifest.
        groups: label → files that it lists as one entry, because their names or folders are patient ids.
    """

    release: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    groups: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModalityReader:
    """Bit, description and reader of one modality.

    Attributes:
        read: (raw, cohort samples, options) → Features; with `prepare`, (raw, cohort samples, options, part files).
        prepare: expensive work cut into independent parts before `read` (shards of subjects, of scans):
            (raw, cohort samples, options, part, n_parts, out) writes the Parquet file `out`, which holds part
            `part` of `n_parts`. The folder `out.with_suffix("")` is the part's own scratch and survives a kill, so
            that a part can go on where it stopped.
        n_parts: options → number of parts.
        qc: (attempts as `Features.tried` gave them, folder of the parts, folder out) writes quality control of what
            was tried, `qc.parquet` and `contact_sheet.png`, without subject, file or date.
    """

    bit: int
    description: str
    read: Callable[..., Features]
    prepare: Callable[[Path, pl.DataFrame, Any, int, int, Path], None] | None = None
    n_parts: Callable[[Any], int] = lambda options: 1
    qc: Callable[[pl.DataFrame, Path, Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset on the spine.

    Attributes:
        name: registry name, folder name.
        title, citation, licence, provider: for the data card and for errors (where the export comes from).
        options: frozen dataclass of reader options, every field with a default and `metadata={"help": ...}`.
        simulation: frozen dataclass of simulator options, `seed` among them.
        modalities: name → reader.
        tasks: the labels.
        schemes: named splits.
        check: (raw, options) → Checked; raises one DataError with every fault.
        cohort: (raw, options) → Cohort.
        simulate: (export folder, truth folder, simulation options) → None.
        tiny: simulation settings of an export that builds in a second or two, for tests.
        modalities_of: which modalities this export holds (an export may lack some); default all.
        resolve: (raw, options) → the dataset as a file of the export declares it, where modalities, tasks and schemes
            are not known before; reads that file only. The fields here are then those of a simulated export.
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

    def declared(self, raw: Path, options: Any) -> Dataset:
        """The dataset as this export declares it: itself, unless it has `resolve`."""
        return self if self.resolve is None else self.resolve(raw, options)


class Attrition:
    """Cohort flow: start with n, then one `step` per exclusion, with what is true of those who go."""

    def __init__(self, n_start: int, reason: str = "in the export"):
        self._rows: list[tuple[int, str, int, int]] = [(0, reason, n_start, n_start)]

    def step(self, reason: str, n_after: int) -> None:
        self._rows.append((len(self._rows), reason, self._rows[-1][3], n_after))

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame(self._rows, schema=ATTRITION_SCHEMA, orient="row")
