"""Modality note: each step is one note, x = hashed term counts or an embedding, time in days since the first visit."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.features import dictionary_of, record_batch
from mrpipe.datasets.mimic.cohort import PAPER, visits_of
from mrpipe.datasets.mimic.events import EXCLUDED, FAR_DAYS
from mrpipe.datasets.mimic.note_text import clean_all, pieces
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.tables import NOTES, PLACES, find_table, note_tables, scan_patients
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.schema import Features, Modality
from mrpipe.text.base import job_threads
from mrpipe.text.encoders import PREFIX, Precomputed, get_encoder, hashed_counts, tokenise

_LOG = logging.getLogger(__name__)
DESCRIPTION = "discharge summaries (and radiology reports) up to the index discharge, one step per note, days"
# Notes of a patient by time; the remaining columns order notes of one day.
ORDER = ["rank", "days", "storetime", "note_seq", "note_id"]
LOST = 0.2  # largest fraction of notes without a precomputed vector
PIECE_WORDS = 180  # all-MiniLM-L6-v2 reads 256 word pieces
BATCH = 256
DAY = 86_400


def _admissible(
    frame: pl.DataFrame, name: str, kept: pl.DataFrame, options: MimicOptions, removed: Counter[str]
) -> pl.DataFrame:
    """Drop notes that were charted or became available after the prediction time, and notes of excluded visits.

    A note becomes available at its storetime; with `summary_time=discharge`, a discharge summary signed within FAR_DAYS
    becomes available at the discharge of its visit. The charttime of summaries is the midnight before the discharge.
    """
    index = kept.group_by("subject_id").agg(
        pl.col("rank", "predicted", "earliest").first(), pl.col("admittime").min().alias("first")
    )
    visits = kept.select("subject_id", "hadm_id", "admittime", "dischtime")
    frame = frame.join(index, on="subject_id", how="left", maintain_order="left")
    frame = frame.join(visits, on=["subject_id", "hadm_id"], how="left", maintain_order="left")
    if "storetime" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, dtype=pl.Datetime("us")).alias("storetime"))
    far, chart, stored = pl.duration(days=FAR_DAYS), pl.col("charttime"), pl.coalesce("storetime", "charttime")
    available = stored
    if name == "discharge" and options.summary_time == "discharge":
        available = pl.when(stored <= pl.col("dischtime") + far).then("dischtime").otherwise(stored)
    reasons = {
        EXCLUDED[0]: pl.col("hadm_id").is_not_null() & pl.col("dischtime").is_null(),
        EXCLUDED[1]: (chart < pl.col("admittime") - far) | (chart > pl.col("dischtime") + far),
        EXCLUDED[2]: chart < pl.col("earliest"),
        EXCLUDED[3]: chart > pl.col("predicted"),
        EXCLUDED[4]: available > pl.col("predicted"),
    }
    for reason, condition in reasons.items():
        removed[reason] += len(frame) - len(frame := frame.filter(~condition.fill_null(False)))
    return frame


def read_texts(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> Iterator[pl.DataFrame]:
    """Cleaned notes: `note_id, text` and the columns of `ORDER`; prints the number of notes removed by reason."""
    kept = visits_of(raw, samples, options)
    subjects = samples["sample_id"].cast(pl.Int64).to_numpy()
    removed: Counter[str] = Counter()
    faults = FaultCollector()
    n_rows, odd = 0, ""
    for name in note_tables(raw, options):
        files = find_table(raw, PLACES[name], faults, options)
        faults.raise_if_any()
        assert files is not None
        scan = scan_patients(raw, files, NOTES[name], subjects)
        for frame in scan:
            frame = _admissible(frame, name, kept, options, removed)
            only = options.note_sections if name == "discharge" else ()
            texts = frame["text"].fill_null("").to_list()
            texts = clean_all(texts, job_threads(), guard=options.leak_guard, only=only, removed=removed)
            days = (pl.col("charttime") - pl.col("first")).dt.total_milliseconds() / (1000 * DAY)
            seq = pl.col("note_seq") if "note_seq" in frame.columns else pl.lit(0, dtype=pl.Int32)
            frame = frame.select(
                "rank",
                "note_id",
                days.alias("days"),
                "storetime",
                seq.alias("note_seq"),
                pl.Series("text", texts, pl.String),
            )
            removed["without words"] += frame.filter(pl.col("text") == "").height
            yield frame.filter(pl.col("text") != "")
        n_rows += scan.n_rows
        odd += scan.oddities()
    _LOG.info(
        f"mimic note: {n_rows:,} notes read{odd}; removed: "
        + ("; ".join(f"{r} {n:,}" for r, n in sorted(removed.items()) if n) or "none")
    )


class _Vectors:
    """Convert notes to vectors: hashed term counts, the normalised mean of their chunks' embeddings, or precomputed."""

    def __init__(self, options: MimicOptions):
        name = options.text_encoder
        self.counts, self._limit, self._features = name == "counts", options.note_pieces, options.note_features
        self._given = Precomputed(name) if name.startswith(PREFIX) else None
        self._encoder = None if self.counts or self._given else get_encoder(name)
        used = self._given or self._encoder
        self.name = used.name if used else f"hashed-counts-{self._features}/1"

    def __call__(self, notes: pl.DataFrame) -> tuple[pl.DataFrame, NDArray[Any]]:
        """The notes that have a vector, and the vectors (n, d)."""
        if not self._given:
            return notes, self._encode(notes["text"].to_list())
        notes = notes.filter([i in self._given.row for i in notes["note_id"]])
        return notes, self._given.take(notes["note_id"].to_list())

    def report(self, lost: int, n: int) -> None:
        """Report how many of n notes have no precomputed vector; an error above LOST."""
        if self._given:
            found = f"{lost:,} of {n:,} notes have no vector"
            _LOG.info(f"mimic note: {self._given.file}: {found} and are left out")
            if lost > LOST * n:
                fix = "Its ids are the note_id of the note tables."
                file = self._given.file
                raise DataError(Fault(file=file, column="id", expected="a vector per note", found=found, fix=fix))

    def _encode(self, texts: list[str]) -> NDArray[Any]:
        if self._encoder is None:
            counts = hashed_counts([tokenise(t) for t in texts], self._features)
            return np.minimum(counts, 65535).astype(np.uint16)
        cut = [pieces(t, PIECE_WORDS, self._limit) for t in texts]
        lengths = np.array([len(c) for c in cut])
        vectors = self._encoder.sentences([p for c in cut for p in c]).astype(np.float64)
        note = np.repeat(np.arange(len(texts)), lengths)
        known = ~np.isnan(vectors).any(axis=1)
        sums = np.zeros((len(texts), vectors.shape[1]))
        np.add.at(sums, note[known], vectors[known])
        norm = np.linalg.norm(sums, axis=1, keepdims=True)
        # A note without any word known to the encoder is observed but has no value, which the store represents as NaN.
        return np.where(norm > 0, sums / np.maximum(norm, 1e-12), np.nan).astype(np.float32)


def read_notes(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> Features:
    """Notes of each patient in order of time, from charttime and text of note/discharge and note/radiology.

    Raises:
        DataError: the export has no notes, or the leak guard removes all of them.
    """
    options.validate()
    if not note_tables(raw, options):
        expected = "notes (MIMIC-IV-Note is a separate project)"
        fix = "Download it from https://physionet.org/content/mimic-iv-note/ or build without the modality note."
        raise DataError(Fault(file="note/discharge.csv.gz", expected=expected, found="none", fix=fix))
    encode = _Vectors(options)
    keys: list[pl.DataFrame] = []
    # The vectors of all notes of MIMIC-IV take 1.4 GB.
    spilled, x = tempfile.TemporaryFile(), np.empty((0, 0), np.float32)  # noqa: SIM115
    n_texts = 0
    for frame in read_texts(raw, samples, options):
        for block in frame.iter_slices(512):
            kept, x = encode(block)
            keys.append(kept.drop("text"))
            x.tofile(spilled)
            n_texts += len(block)
    encode.report(n_texts - sum(map(len, keys)), n_texts)
    index = pl.concat(keys) if keys else pl.DataFrame()
    if index.is_empty():
        expected, fix = "notes of visits in the cohort", "Check that the notes are of the same release."
        raise DataError(Fault(file="note/", expected=expected, found="none", fix=fix))
    spilled.flush()
    x = np.memmap(spilled, x.dtype, "r", shape=(len(index), x.shape[1]))
    index = index.with_row_index("row").sort(ORDER)
    index = index.unique("note_id", keep="first", maintain_order=True)
    present, lengths = np.unique(index["rank"].to_numpy(), return_counts=True)
    n_without = len(samples) - len(present)
    _LOG.info(
        f"mimic note: {len(index):,} notes of {len(present):,} patients; {n_without:,} patients without notes, "
        f"{n_without / len(samples):.1%} [paper: {PAPER['patients without notes']:,}, 1.2 %]"
    )
    modality = Modality(
        name="note",
        bit=1,
        kind="sequence",
        shape=(x.shape[1],),
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
            yield record_batch(modality, ids[present[a:b]].tolist(), x[rows[steps]], lengths[a:b], days[steps])

    kind = "count" if encode.counts else "embedding"
    columns = {"name": [f"{kind}_{i}" for i in range(x.shape[1])], "kind": kind, "source_column": "text"}
    columns["description"], tables = encode.name, ", ".join(note_tables(raw, options))
    dictionary = dictionary_of("note", tables, columns, len(present), len(samples))
    return Features(modality=modality, batches=batches(), dictionary=dictionary)


def note_texts(raw: Path, samples: pl.DataFrame, options: MimicOptions) -> pl.DataFrame:
    """`sample_id, note_text` (list of cleaned notes in order of time), for stores built with `store_text`."""
    ids = (
        samples.select("sample_id").sort("sample_id").with_row_index("rank").with_columns(pl.col("rank").cast(pl.Int32))
    )
    frames = list(read_texts(raw, samples, options)) if note_tables(raw, options) else []
    if not frames:
        return ids.select("sample_id", pl.lit(None, dtype=pl.List(pl.String)).alias("note_text"))
    texts = pl.concat(frames).sort(ORDER).unique("note_id", keep="first", maintain_order=True)
    grouped = texts.group_by("rank", maintain_order=True).agg(pl.col("text").alias("note_text"))
    return ids.join(grouped, on="rank", how="left").select("sample_id", "note_text")
