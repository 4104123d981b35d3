"""A small in-memory dataset with every kind of modality, from which the tests of the core build stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from mrpipe import keyed
from mrpipe.options import option
from mrpipe.schema import Attrition, Checked, Cohort, Dataset, Features, Modality, ModalityReader, Scheme, Task
from mrpipe.stages import cohort, seal
from mrpipe.stages.check import write_check
from mrpipe.stages.ingest import ingest
from mrpipe.stages.samples import assemble_samples
from mrpipe.stages.split import make_split

N_SNPS = 21


@dataclass(frozen=True)
class Options:
    shift_test: float = option(0.0, "added to every value of samples whose id ends in 6 or 7 (the test samples)")
    order_seed: int = option(0, "seed that shuffles the raw rows; the store must not depend on it")


@dataclass(frozen=True)
class Simulation:
    seed: int = option(0, "seed")
    n: int = option(60, "number of samples")


def _ids(n: int) -> list[str]:
    return [f"s{i:04d}" for i in range(n)]


def _observed(ids: pl.Series, name: str) -> np.ndarray:
    return keyed.uniform(keyed.id_keys(ids), 0, f"toy {name}")[:, 0] < 0.5


def _shift(ids: np.ndarray, options: Options) -> np.ndarray:
    return np.where([i.endswith(("6", "7")) for i in ids], options.shift_test, 0.0)


def _dictionary(name: str, kinds: list[str], n: int, levels: dict[int, list[str]] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "modality": name,
            "position": range(len(kinds)),
            "name": [f"{name}{i}" for i in range(len(kinds))],
            "dtype": "float32",
            "unit": "",
            "kind": kinds,
            "levels": [(levels or {}).get(i) for i in range(len(kinds))],
            "description": "",
            "source_file": "toy.csv",
            "source_column": "x",
            "n_observed": n,
            "n_missing": 0,
        },
        schema_overrides={"levels": pl.List(pl.String)},
    )


def _batches(modality: Modality, ids: list[str], x: pa.Array, **more: pa.Array) -> Iterator[pa.RecordBatch]:
    batch = pa.RecordBatch.from_arrays([pa.array(ids, pa.string()), x, *more.values()], schema=modality.arrow_schema())
    yield batch.slice(0, 7)
    yield batch.slice(7)


def _fixed(values: np.ndarray, modality: Modality) -> pa.Array:
    flat = pa.array(values.astype(modality.dtype).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(flat.type, modality.size))


def read_table(raw: Path, cohort: pl.DataFrame, options: Options) -> Features:
    """Vector: two numeric features (one with unknown values), one categorical with three levels, four counts."""
    ids = cohort["sample_id"].filter(pl.Series(_observed(cohort["sample_id"], "table"))).to_list()
    rng = np.random.default_rng(1)
    full = np.column_stack(
        [rng.normal(5, 2, 4000), rng.exponential(1, 4000), rng.integers(0, 3, 4000), rng.poisson(1.0, (4000, 4))]
    )
    full[::5, 1] = np.nan
    full[::9, 2] = np.nan
    x = full[[int(i[1:]) for i in ids]]
    x[:, :2] += _shift(np.array(ids), options)[:, None]
    modality = Modality(name="table", bit=0, kind="vector", shape=(7,), description="a table")
    kinds = ["numeric", "numeric", "categorical", *["count"] * 4]
    dictionary = _dictionary("table", kinds, len(ids), {2: ["low", "mid", "high"]})
    return Features(modality=modality, batches=_batches(modality, ids, _fixed(x, modality)), dictionary=dictionary)


def read_series(raw: Path, cohort: pl.DataFrame, options: Options) -> Features:
    """Irregular sequence of 1 to 6 steps with two features."""
    ids = cohort["sample_id"].filter(pl.Series(_observed(cohort["sample_id"], "series"))).to_list()
    modality = Modality(name="series", bit=1, kind="sequence", shape=(2,), irregular=True, time_unit="h")
    lengths = np.array([1 + int(i[1:]) % 6 for i in ids])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = np.concatenate(
        [np.random.default_rng(int(i[1:])).normal(3, 2, (k, 2)) for i, k in zip(ids, lengths, strict=True)]
    )
    values += np.repeat(_shift(np.array(ids), options), lengths)[:, None]
    values[::11, 0] = np.nan
    x = pa.ListArray.from_arrays(offsets, _fixed(values, modality))
    time = pa.ListArray.from_arrays(offsets, pa.array(np.arange(offsets[-1]), pa.float32()))
    batches = _batches(modality, ids, x, length=pa.array(lengths, pa.int32()), time=time)
    return Features(modality=modality, batches=batches, dictionary=_dictionary("series", ["numeric"] * 2, len(ids)))


def read_image(raw: Path, cohort: pl.DataFrame, options: Options) -> Features:
    """Image with three channels, 4 × 5."""
    ids = cohort["sample_id"].filter(pl.Series(_observed(cohort["sample_id"], "image"))).to_list()
    modality = Modality(name="image", bit=2, kind="image", shape=(3, 4, 5), dtype="uint8")
    pixels = np.stack([np.random.default_rng(int(i[1:])).integers(0, 256, (3, 4, 5)) for i in ids])
    pixels = np.where(_shift(np.array(ids), options)[:, None, None, None] != 0, 255, pixels)
    return Features(
        modality=modality,
        batches=_batches(modality, ids, _fixed(pixels, modality)),
        dictionary=lambda: _dictionary("image", ["pixel"] * 3, len(ids)),
    )


def genotype_calls(ids: list[str]) -> np.ndarray:
    """(n, N_SNPS) copies of A1, 3 = missing call."""
    return np.stack([np.random.default_rng(int(i[1:]) + 99).choice(4, N_SNPS, p=[0.5, 0.3, 0.1, 0.1]) for i in ids])


def read_genotype(raw: Path, cohort: pl.DataFrame, options: Options) -> Features:
    """Packed genotypes."""
    ids = cohort["sample_id"].filter(pl.Series(_observed(cohort["sample_id"], "genotype"))).to_list()
    modality = Modality(name="genotype", bit=5, kind="genotype", shape=(N_SNPS,), dtype="uint8", encoding="packed2")
    calls = genotype_calls(ids)
    calls[_shift(np.array(ids), options) != 0] = 2
    padded = np.pad(calls, ((0, 0), (0, -N_SNPS % 4)), constant_values=3).reshape(len(ids), -1, 4).astype(np.uint8)
    packed = (padded << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(axis=2).astype(np.uint8)
    x = pa.array([row.tobytes() for row in packed], pa.binary())
    return Features(
        modality=modality,
        batches=_batches(modality, ids, x),
        dictionary=_dictionary("genotype", ["genotype"] * N_SNPS, len(ids)),
    )


def build_cohort(raw: Path, options: Options) -> Cohort:
    n = int((raw / "toy.csv").read_text())
    ids = pl.Series(_ids(n)).sample(fraction=1.0, shuffle=True, seed=options.order_seed)
    samples = pl.DataFrame({"sample_id": ids}).with_columns(
        subject_id="p" + (pl.col("sample_id").str.slice(1).cast(pl.Int32) // 2).cast(pl.String),
        fold=pl.when(pl.col("sample_id").str.ends_with("7"))
        .then(pl.lit("test"))
        .when(pl.col("sample_id").str.ends_with("6"))
        .then(pl.lit("test"))
        .when(pl.col("sample_id").str.contains("[45]$"))
        .then(pl.lit("val"))
        .otherwise(pl.lit("train")),
    )
    value = pl.col("sample_id").str.slice(1).cast(pl.Int32)
    label = samples.select("sample_id", (value % 3).alias("value")).filter(pl.col("value") < 2)
    score = samples.select("sample_id", (value / 7).alias("value"))
    attrition = Attrition(n + 3)
    attrition.step("no label form", n)
    return Cohort(samples=samples, labels={"outcome": label, "score": score}, attrition=attrition.frame())


def _simulate(out: Path, truth: Path, settings: Simulation) -> None:
    (out / "toy.csv").write_text(str(settings.n))


TOY = Dataset(
    name="toy",
    title="Toy",
    citation="none",
    licence="none",
    provider="tests/toy.py",
    options=Options,
    simulation=Simulation,
    modalities={
        "table": ModalityReader(bit=0, description="vector", read=read_table),
        "series": ModalityReader(bit=1, description="sequence", read=read_series),
        "image": ModalityReader(bit=2, description="image", read=read_image),
        "genotype": ModalityReader(bit=5, description="genotype", read=read_genotype),
    },
    tasks=(Task(name="outcome", kind="classification", classes=("no", "yes")), Task(name="score", kind="regression")),
    schemes={
        "standard": Scheme(column="fold", description="by the last digit"),
        "uniform": Scheme(stratify="outcome", description="70/15/15"),
    },
    check=lambda raw, options: Checked(release="toy-1", files=(raw / "toy.csv",)),
    cohort=build_cohort,
    simulate=_simulate,
)


def staged(raw: Path, work: Path) -> Path:
    """A work folder with all steps up to `seal`; returns it."""
    write_check(TOY, raw, work, {})
    cohort.build_cohort(TOY, raw, work, {})
    for name in TOY.modalities:
        ingest(TOY, name, raw, work, {})
    assemble_samples(TOY, work, list(TOY.modalities))
    for scheme in TOY.schemes:
        make_split(TOY, work, scheme)
    return work


def options_with(**changes: object) -> dict[str, object]:
    """Settings for `build`: defaults with changes."""
    return dataclasses.asdict(Options(**changes))  # type: ignore[arg-type]


def skip_code_of_dataset(patch: pytest.MonkeyPatch) -> None:
    """Let `seal` hash only the stages, because the toy dataset is not registered."""
    patch.setattr(seal, "dataset_module", lambda name: "mrpipe.stages.build")
