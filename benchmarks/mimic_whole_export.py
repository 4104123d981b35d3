"""MIMIC-IV exports with the size of release 3.1 and notes of realistic length, as CSV.gz and as Parquet.

Patients, visits, and the values of measurements are those of `mrpipe simulate mimic`. This module adds patients without
an admission, diagnoses, procedures and titles up to the published counts, and text up to the length of real notes. The
two giant tables reuse one pool of drawn values, because their content does not matter for the cost of reading them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from isal import igzip

from mrpipe.datasets.mimic.options import MimicSimulation
from mrpipe.datasets.mimic.scan.prefetch import prefetch
from mrpipe.datasets.mimic.simulate import events, export, notes, patients, pools
from mrpipe.keyed import generator
from mrpipe.raw import sha256

COUNTS = {"patients": 364_627, "admissions": 546_028, "diagnoses": 6_364_488, "procedures": 859_655}
COUNTS |= {"labevents": 158_374_764, "chartevents": 432_997_491, "discharge": 331_793}
TITLES = {"diagnoses": ((9, 14_666), (10, 97_441)), "procedures": ((9, 3_881), (10, 82_542))}
ELIGIBLE, VISITS = 0.05, 1.70  # fraction of patients in the default cohort; simulated visits per patient
NOTE_BLOCK = 10_000
POOL = 2_000_000  # values drawn of each giant table


class _Pooled(events._Values):
    """Values of a giant table, drawn once."""

    def draw(self, patient: Any, rng: np.random.Generator) -> pl.DataFrame:
        if not hasattr(self, "_drawn"):
            self._drawn = super().draw(rng.integers(0, len(self._shared), POOL), rng)
        return self._drawn.slice(int(rng.integers(0, POOL - len(patient))), len(patient))


def _codes(table: pl.DataFrame, kind: str, people: patients.SimulatedPatients, n: int) -> pl.DataFrame:
    """The simulated codes, and codes of titles without a meaning up to n rows."""
    rng, missing = generator(0, "codes", kind), n - len(table)
    row = rng.integers(0, len(people.visits), max(0, missing))
    rows = people.visits[row].select("subject_id", "hadm_id", icd_version=pl.col("icd").cast(pl.Int32))
    rank = np.minimum(rng.zipf(1.3, len(rows)), 3_800)
    letter = pl.when(pl.col("icd_version") == 10).then(pl.lit("Z")).otherwise(pl.lit("9"))
    code = letter + pl.lit(pl.Series(rank + 100_000)).cast(pl.String).str.slice(1)
    more = rows.with_columns(icd_code=code, seq_num=pl.lit(40, pl.Int64) + pl.lit(pl.Series(rank)) % 30)
    if "chartdate" in table.columns:
        more = more.with_columns(chartdate=pl.date(2150, 1, 1))
    more = more.select(pl.col(c).cast(table.schema[c]) for c in table.columns)
    return pl.concat([table, more]).sort("subject_id", "hadm_id", "seq_num", maintain_order=True)


def _titles(simulated: pl.DataFrame, kind: str) -> pl.DataFrame:
    more = []
    for version, n in TITLES[kind]:
        code = ("Z" if version == 10 else "9") + pl.int_range(100_000, 100_000 + n).cast(pl.String).str.slice(1)
        title = pl.format("Other and unspecified disorder number {}, initial encounter", pl.int_range(n))
        more.append(pl.select(icd_code=code, icd_version=pl.lit(version, pl.Int64), long_title=title))
    return pl.concat([simulated, *more]).unique(["icd_code", "icd_version"], keep="first", maintain_order=True)


def _paragraphs(rng: np.random.Generator, n: int) -> pl.Series:
    """n paragraphs of 40 to 110 words with the frequencies of words of English, sentences and line breaks."""
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    p = 1 / np.arange(2, 28)
    spelt = ["".join(rng.choice(letters, size, p=p / p.sum())) for size in rng.integers(2, 11, 30_000)]
    words = np.array([*pools.PLAIN, *(str(v) for v in range(1, 400)), *spelt], dtype=object)
    rank = np.minimum(rng.zipf(1.15, (n, 110)) * 7 % 99_991, len(words) - 1)
    ends = rng.random((n, 110))
    texts = []
    for row, end, size in zip(rank, ends, rng.integers(40, 111, n), strict=True):
        marks = np.where(end < 0.07, ". ", np.where(end < 0.13, "\n", np.where(end < 0.16, ", ", " ")))
        texts.append("".join((words[row] + marks)[:size]) + ".\n")
    return pl.Series([*texts, ""])


def _discharge(people: patients.SimulatedPatients, o: MimicSimulation, n: int) -> Iterator[pl.DataFrame]:
    """n discharge summaries of about 10,000 characters: the simulated one with further text in four sections."""
    rng = generator(0, "long notes")
    chosen = np.sort(rng.permutation(len(people.visits))[:n])
    pool = _paragraphs(rng, 20_000)
    some = patients.SimulatedPatients(
        patients=people.patients.with_columns(has_notes=pl.lit(True)), visits=people.visits[chosen]
    )
    short = notes.discharge_table(some, o)
    headings = ("Pertinent Results", "Medications on Admission", "Discharge Medications", "Social History")
    for start in range(0, len(short), NOTE_BLOCK):
        block = short.slice(start, NOTE_BLOCK)
        parts = [block["text"]]
        for k in range(16):
            if k % 4 == 0:
                parts.append(pl.Series([f" \n{headings[k // 4]}:\n"]).new_from_index(0, len(block)))
            # The last paragraph is empty.
            drawn = np.where(rng.random(len(block)) < 0.8, rng.integers(0, len(pool) - 1, len(block)), len(pool) - 1)
            parts.append(pool.gather(drawn))
        text = pl.concat_str([pl.lit(s) for s in parts])
        yield block.with_columns(text=text)


class _Writer:
    """Writes a table in both forms, each block once."""

    def __init__(self, root: Path, forms: tuple[str, ...]):
        self.root, self.forms = root, forms

    def write(self, name: str, frames: Iterable[pl.DataFrame]) -> None:
        blocks = prefetch(iter(frames), depth=1)
        paths = {form: self.root / form / f"{name}.{form}" for form in self.forms}
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        gz = igzip.IGzipFile(paths["csv.gz"], "wb", compresslevel=1) if "csv.gz" in paths else None  # type: ignore[no-untyped-call]
        writer = None
        for number, block in enumerate(blocks):
            if gz:
                gz.write(block.write_csv(None, include_header=number == 0, datetime_format=export.TIMES[""]).encode())
            if "parquet" in paths:
                table = block.to_arrow(compat_level=pl.CompatLevel.oldest())
                writer = writer or pq.ParquetWriter(
                    paths["parquet"], table.schema, compression="zstd", compression_level=1
                )
                writer.write_table(table)
        for open_file in (gz, writer):
            if open_file is not None:
                open_file.close()


def make_exports(root: Path, scale: float, forms: tuple[str, ...] = ("csv.gz", "parquet")) -> None:
    """Write `root/csv.gz` and `root/parquet`; each with SHA256SUMS.txt, except that of Parquet, which has none."""
    count = {name: round(n * scale) for name, n in COUNTS.items()}
    o = MimicSimulation(
        n_patients=round(count["admissions"] / VISITS),
        n_chart_rows=count["chartevents"],
        n_lab_rows=count["labevents"],
        release="2.2",
        eligible=ELIGIBLE,
        n_rare_items=1000,
    )
    people = patients.draw_people(o)
    events._Values = _Pooled  # type: ignore[misc]
    writer = _Writer(root, forms)
    table = patients.patients_table(people, o)
    n = max(0, count["patients"] - len(table))
    outpatients = table.sample(n, with_replacement=True, seed=0).with_columns(
        subject_id=pl.lit(18_000_000) + pl.int_range(n, dtype=pl.Int64), dod=pl.lit(None, table.schema["dod"])
    )
    table = pl.concat([table, outpatients])
    writer.write("hosp/patients", [table[generator(0, "order").permutation(len(table))]])
    writer.write("hosp/admissions", [patients.admissions_table(people, o)])
    writer.write("icu/icustays", [patients.icustays_table(people, o)])
    codes = dict(zip(("diagnoses", "procedures"), patients.code_tables(people, o), strict=True))
    titles = {"diagnoses": (pools.DX9, pools.DX10), "procedures": (pools.PR9, pools.PR10)}
    for kind, simulated in codes.items():
        writer.write(f"hosp/{kind}_icd", [_codes(simulated, kind, people, count[kind])])
        writer.write(f"hosp/d_icd_{kind}", [_titles(export._titles(*titles[kind]), kind)])
    writer.write("hosp/d_labitems", [events.dictionary("labevents", o.n_rare_items)])
    writer.write("icu/d_items", [events.dictionary("chartevents", o.n_rare_items)])
    writer.write("note/discharge", _discharge(people, o, count["discharge"]))
    writer.write("hosp/labevents", events.event_blocks("labevents", people, o))
    writer.write("icu/chartevents", events.event_blocks("chartevents", people, o))
    if "csv.gz" in forms:
        place = root / "csv.gz"
        files = sorted(p for p in place.rglob("*.csv.gz"))
        sums = "".join(f"{sha256(p)} {p.relative_to(place).as_posix()}\n" for p in files)
        (place / "SHA256SUMS.txt").write_text(sums)
