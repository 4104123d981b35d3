"""Modality note: one step a note, x = hashed term counts or an encoder's vector, time in days since the first visit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.mimic.codes import sequence_batch
from mrpipe.datasets.mimic.cohort import PAPER, visits_of
from mrpipe.datasets.mimic.note_text import clean, pieces
from mrpipe.datasets.mimic.options import MimicOptions, within
from mrpipe.datasets.mimic.scan.progress import say
from mrpipe.datasets.mimic.scan.scanner import TableScan
from mrpipe.datasets.mimic.tables import NOTES, PLACES, find_table, note_tables
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality
from mrpipe.text.encoders import Encoder, get_encoder, hashed_counts, tokenise

DESCRIPTION = "discharge summaries (and radiology reports) up to the index discharge, one step a note, days"
PIECE_WORDS = 180  # all-MiniLM-L6-v2 reads 256 word pieces
BATCH = 256
DAY = 86_400


def _admissible(frame: pl.DataFrame, kept: pl.DataFrame, options: MimicOptions, left_out: Counter[str]) -> pl.DataFrame:
    """Notes that may be seen: written up to the day of the index discharge, of visits that count.

    A note that names no visit (radiology of outpatients) counts by its day alone. Charttime of a discharge summary is
    a day without a clock time, so days are compared.
    """
    index = kept.group_by("subject_id").agg(
        pl.col("rank").first(), pl.col("admittime").min().alias("first"), pl.col("dischtime").last().alias("last")
    )
    frame = frame.join(index, on="subject_id", how="left", maintain_order="left")
    if options.leak_guard:
        late = pl.col("charttime").dt.date() > pl.col("last").dt.date()
        other = pl.col("hadm_id").is_not_null() & ~pl.col("hadm_id").is_in(kept["hadm_id"].implode())
        left_out["written after the prediction time"] += frame.filter(late).height
        left_out["of visits that do not count (terminal ones among them)"] += frame.filter(other & ~late).height
        frame = frame.filter(~late & ~other)
    return frame


def read_texts(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> Iterator[pl.DataFrame]:
    """Cleaned notes: `rank, note_id, days, note_seq, text`; prints what was left out, and why."""
    kept = visits_of(raw, samples, options)
    subjects = samples["sample_id"].cast(pl.Int64).to_numpy()
    left_out: Counter[str] = Counter()
    faults = FaultCollector()
    n_rows = 0
    for name in note_tables(raw, options):
        path = find_table(raw, PLACES[name], faults)
        faults.raise_if_any()
        assert path is not None
        scan = TableScan(path, NOTES[name], subjects, shown_as=within(raw, path))
        for frame in scan:
            frame = _admissible(frame, kept, options, left_out)
            only = options.note_sections if name == "discharge" else ()
            texts = [clean(t or "", guard=options.leak_guard, only=only, removed=left_out) for t in frame["text"]]
            days = (pl.col("charttime") - pl.col("first")).dt.total_milliseconds() / (1000 * DAY)
            seq = pl.col("note_seq") if "note_seq" in frame.columns else pl.lit(0, dtype=pl.Int32)
            frame = frame.select(
                "rank", "note_id", days.alias("days"), seq.alias("note_seq"), pl.Series("text", texts, pl.String)
            )
            left_out["without a word"] += frame.filter(pl.col("text") == "").height
            yield frame.filter(pl.col("text") != "")
        n_rows += scan.n_rows
    say(
        f"mimic note: {n_rows:,} notes read; left out: "
        + ("; ".join(f"{r} {n:,}" for r, n in sorted(left_out.items()) if n) or "none")
    )


class _Vectors:
    """Notes to vectors: hashed counts, or the mean of an encoder's vectors of a note's pieces."""

    def __init__(self, options: MimicOptions):
        self.counts = options.text_encoder == "counts"
        self._limit = options.note_pieces
        self._encoder: Encoder | None = None if self.counts else get_encoder(options.text_encoder)
        self.dim = options.note_features if self._encoder is None else self._encoder.dim
        self.name = f"hashed-counts-{self.dim}/1" if self._encoder is None else self._encoder.name

    def __call__(self, texts: list[str]) -> NDArray[Any]:
        if self._encoder is None:
            counts = hashed_counts([tokenise(t) for t in texts], self.dim)
            return np.minimum(counts, 65535).astype(np.uint16)
        cut = [pieces(t, PIECE_WORDS, self._limit) for t in texts]
        lengths = np.array([len(c) for c in cut])
        vectors = self._encoder.sentences([p for c in cut for p in c]).astype(np.float64)
        note = np.repeat(np.arange(len(texts)), lengths)
        known = ~np.isnan(vectors).any(axis=1)
        sums = np.zeros((len(texts), self.dim))
        np.add.at(sums, note[known], vectors[known])
        norm = np.linalg.norm(sums, axis=1, keepdims=True)
        # A note in which the encoder finds no word is observed and unknown: NaN, as the store wants it.
        return np.where(norm > 0, sums / np.maximum(norm, 1e-12), np.nan).astype(np.float32)


def read_notes(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> Features:
    """The notes of every patient, in order of time.

    Raises:
        DataError: the export has no notes, or none that may be seen.
    """
    options.validate()
    if not note_tables(raw, options):
        raise DataError(
            Fault(
                file="note/discharge.csv.gz",
                expected="notes (MIMIC-IV-Note is a project of its own)",
                found="none",
                fix="Get it from https://physionet.org/content/mimic-iv-note/, or build without the modality note.",
            )
        )
    encode = _Vectors(options)
    keys: list[pl.DataFrame] = []
    vectors: list[NDArray[Any]] = []
    for frame in read_texts(raw, samples, options):
        for block in frame.iter_slices(512):
            keys.append(block.drop("text"))
            vectors.append(encode(block["text"].to_list()))
    index = pl.concat(keys) if keys else pl.DataFrame()
    if index.is_empty():
        raise DataError(
            Fault(
                file="note/",
                expected="notes of the cohort's visits",
                found="none",
                fix="Are the notes of the same release? Is the leak guard too strict?",
            )
        )
    x = np.concatenate(vectors)
    index = index.with_row_index("row").sort("rank", "days", "note_seq", "note_id")
    index = index.unique("note_id", keep="first", maintain_order=True)
    present, lengths = np.unique(index["rank"].to_numpy(), return_counts=True)
    n_without = len(samples) - len(present)
    say(
        f"mimic note: {len(index):,} notes of {len(present):,} patients; {n_without:,} patients without notes, "
        f"{n_without / len(samples):.1%} [the paper: {PAPER['patients without notes']:,}, 1.2 %]"
    )
    modality = Modality(
        name="note",
        bit=1,
        kind="sequence",
        shape=(encode.dim,),
        irregular=True,
        time_unit="days since the first visit",
        encoder=encode.name,
        description=DESCRIPTION,
    )
    ids = samples["sample_id"].sort().to_numpy().astype(str)
    rows, days = index["row"].to_numpy(), index["days"].to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    def batches() -> Iterator[pa.RecordBatch]:
        for a in range(0, len(present), BATCH):
            b = min(a + BATCH, len(present))
            steps = slice(offsets[a], offsets[b])
            yield sequence_batch(
                modality, ids[present[a:b]].tolist(), x[rows[steps]].astype(np.float32), days[steps], lengths[a:b]
            )

    kind = "count" if encode.counts else "embedding"
    dictionary = (
        pl.DataFrame({"position": np.arange(encode.dim)})
        .select(
            pl.lit("note").alias("modality"),
            "position",
            pl.format("{}_{}", pl.lit(kind), "position").alias("name"),
            pl.lit("float32").alias("dtype"),
            pl.lit("").alias("unit"),
            pl.lit(kind).alias("kind"),
            pl.lit(None, dtype=pl.List(pl.String)).alias("levels"),
            pl.lit(encode.name).alias("description"),
            pl.lit(", ".join(note_tables(raw, options))).alias("source_file"),
            pl.lit("text").alias("source_column"),
            pl.lit(len(present)).alias("n_observed"),
            pl.lit(n_without).alias("n_missing"),
        )
        .cast(DICTIONARY_SCHEMA)
    )
    return Features(modality=modality, batches=batches(), dictionary=dictionary)


def note_texts(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """`sample_id, note_text` (list of cleaned notes, in order of time): only for a store that is asked to hold text."""
    ids = (
        samples.select("sample_id").sort("sample_id").with_row_index("rank").with_columns(pl.col("rank").cast(pl.Int32))
    )
    frames = list(read_texts(raw, samples, options)) if note_tables(raw, options) else []
    if not frames:
        return ids.select("sample_id", pl.lit(None, dtype=pl.List(pl.String)).alias("note_text"))
    texts = (
        pl.concat(frames)
        .sort("rank", "days", "note_seq", "note_id")
        .unique("note_id", keep="first", maintain_order=True)
    )
    grouped = texts.group_by("rank", maintain_order=True).agg(pl.col("text").alias("note_text"))
    return ids.join(grouped, on="rank", how="left").select("sample_id", "note_text")
