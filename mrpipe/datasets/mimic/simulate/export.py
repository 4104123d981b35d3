"""Simulated MIMIC-IV exports with the files, columns, codes and data errors of the provider and a known ground truth.

Each patient has four independent latent factors: one shared by all modalities, and one each specific to measurements,
notes and codes. The log odds of death within a year of the index discharge are linear in all four factors, so that each
modality adds information. The ground truth has the factors and this probability, which is the best prediction given the
factors, and so an upper bound on predictions from the noisy export.
"""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from isal import igzip
from numpy.typing import NDArray

from mrpipe.datasets.mimic.options import MimicSimulation
from mrpipe.datasets.mimic.scan.prefetch import prefetch
from mrpipe.datasets.mimic.simulate import patients, pools
from mrpipe.datasets.mimic.simulate.events import dictionary, event_blocks
from mrpipe.datasets.mimic.simulate.notes import discharge_table, radiology_table
from mrpipe.experiment.truth import write_best
from mrpipe.keyed import generator
from mrpipe.raw import sha256
from mrpipe.store.parquet import write_frame, write_text

TIMES = {"": "%Y-%m-%d %H:%M:%S", "bigquery": "%Y-%m-%dT%H:%M:%S", "database": "%Y-%m-%d %H:%M:%S.000000+00"}
# Columns that releases before 2.2 do not have.
PROVIDER_COLUMNS = ("admit_provider_id", "order_provider_id", "caregiver_id")


def _titles(nine: pools.Codes, ten: pools.Codes) -> pl.DataFrame:
    rows = [(c[0], 9, c[1]) for c in nine] + [(c[0], 10, c[1]) for c in ten]
    return pl.DataFrame(rows, schema=["icd_code", "icd_version", "long_title"], orient="row")


def _write(raw: Path, name: str, frames: Iterable[pl.DataFrame], o: MimicSimulation) -> None:
    """Write one table in the form `o.form`; a thread makes the blocks while this one writes them."""
    blocks = prefetch(_arranged(name, frames, o))
    path = raw / (name.upper() if o.form == "database" else name)
    (path if o.form == "shards" else path.parent).mkdir(parents=True, exist_ok=True)
    if o.form == "parquet":
        pl.concat(blocks, how="vertical_relaxed").write_parquet(path.with_suffix(".parquet"))
    elif o.form == "shards":
        for i, block in enumerate(blocks):
            block.write_parquet(path / f"part-{i}.parquet")
    elif o.form == "bigquery":
        for i, block in enumerate(blocks):
            _write_csv(path.with_name(f"{path.name}_{i:012}.csv.gz"), [block], o)
    else:
        _write_csv(path.with_suffix(".csv.gz" if o.form == "csv.gz" else ".csv"), blocks, o)


def _write_csv(path: Path, blocks: Iterable[pl.DataFrame], o: MimicSimulation) -> None:
    with path.open("wb") as file:
        # No file name or time in the header, so that equal exports have equal bytes.
        named = {"compresslevel": 1, "fileobj": file, "mtime": 0}
        with igzip.IGzipFile("", "wb", **named) if path.suffix == ".gz" else file as target:  # type: ignore[no-untyped-call]
            target.writelines(prefetch(_csv(blocks, o)))


def _csv(blocks: Iterable[pl.DataFrame], o: MimicSimulation) -> Iterator[bytes]:
    """Text of the blocks of a table, as the program `o.form` writes it."""
    for number, block in enumerate(blocks):
        if o.form == "pandas":
            ids = [c for c in block.columns if c.endswith("_id") and block[c].dtype.is_integer()]
            block = block.with_columns(pl.col(ids).cast(pl.Float64), pl.col(pl.Date).cast(pl.Datetime("us")))
            block = block.with_row_index("")
        out, null = io.BytesIO(), "\\N" if o.form == "database" else ""
        block.write_csv(out, include_header=number == 0, datetime_format=TIMES.get(o.form, TIMES[""]), null_value=null)
        yield out.getvalue()


def _arranged(name: str, frames: Iterable[pl.DataFrame], o: MimicSimulation) -> Iterator[pl.DataFrame]:
    """Blocks of a table with the columns of the release, in the order of the option `shuffle_columns`."""
    order: list[str] | None = None
    for frame in frames:
        if o.release == "2.0":
            frame = frame.drop([c for c in PROVIDER_COLUMNS if c in frame.columns])
        if o.shuffle_columns:
            order = order or generator(o.seed, "mimic columns", name).permutation(sorted(frame.columns)).tolist()
            frame = frame.select(order)
        yield frame


def simulate_export(raw: Path, truth: Path, options: MimicSimulation) -> None:
    """Write hosp/, icu/, note/ and SHA256SUMS.txt to `raw`; truth.parquet, best.parquet and model.json to `truth`.

    Raises:
        UsageError: an option out of range.
    """
    options.validate()
    o = options
    people = patients.draw_people(o)
    diagnoses, procedures = patients.code_tables(people, o)
    order = generator(o.seed, "mimic order").permutation(len(people.patients))
    tables: dict[str, Iterable[pl.DataFrame]] = {
        # The provider's patients and admissions are unordered.
        "hosp/patients": [patients.patients_table(people, o)[order]],
        "hosp/admissions": [
            patients.admissions_table(people, o)[
                generator(o.seed, "mimic order of admissions").permutation(len(people.visits))
            ]
        ],
        "hosp/diagnoses_icd": [diagnoses],
        "hosp/procedures_icd": [procedures],
        "hosp/d_icd_diagnoses": [_titles(pools.DX9, pools.DX10)],
        "hosp/d_icd_procedures": [_titles(pools.PR9, pools.PR10)],
        "hosp/d_labitems": [dictionary("labevents", o.n_rare_items)],
        "icu/d_items": [dictionary("chartevents", o.n_rare_items)],
        "icu/icustays": [patients.icustays_table(people, o)],
        "hosp/labevents": event_blocks("labevents", people, o),
        "icu/chartevents": event_blocks("chartevents", people, o),
    }
    if o.notes:
        tables["note/discharge"] = [discharge_table(people, o)]
        tables["note/radiology"] = [radiology_table(people, o)]
    for name, frames in tables.items():
        _write(raw, name, frames, o)
    files = sorted(p for p in raw.rglob("*") if p.is_file())
    sums = [f"{sha256(p)} {p.relative_to(raw).as_posix()}\n" for p in files]
    write_text(raw / "SHA256SUMS.txt", "".join(sums))
    p = people.patients
    frame = p.select(
        pl.col("subject_id").cast(pl.String).alias("sample_id"),
        pl.Series("kind", np.array(patients.KINDS)[p["kind"].to_numpy()]),
        *patients.FACTORS,
        pl.col("probability"),
        pl.col("dies").cast(pl.Int8).alias("label"),
        "has_notes",
        "has_procedures",
    )
    write_frame(truth / "truth.parquet", frame.sort("sample_id"))
    p_death = frame["probability"].to_numpy()
    best: dict[tuple[str, ...], NDArray[np.float64]] = {(): np.stack([1 - p_death, p_death], axis=1)}
    write_best(truth, "mortality", ("alive", "dead"), frame["sample_id"].to_list(), best)
    model = {
        "label": "P(dead within a year of the index discharge) = sigmoid(b + strength · sum of the four factors)",
        "probability": "of a predictor that sees the factors; the export shows them through noise",
        "factors": list(patients.FACTORS),
        "strength": o.strength,
        "in the cohort": "kind = eligible",
    }
    write_text(truth / "model.json", json.dumps(model, indent=1, ensure_ascii=False) + "\n")
