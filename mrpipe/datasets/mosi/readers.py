"""Readers of text, audio and vision; `MosiExport` hides the differences between the formats."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.export import MosiExport, open_export
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.datasets.mosi.ragged import RaggedBlock, feature_names
from mrpipe.errors import FaultCollector, UsageError
from mrpipe.raw import few, report_unmatched
from mrpipe.schema import Features
from mrpipe.text.encoders import PREFIX, Precomputed, get_encoder, hashed_counts, recorded

BITS = {"text": 0, "audio": 1, "vision": 2}
DESCRIPTIONS = {
    "text": "words of the clip",
    "audio": "acoustic features of the clip",
    "vision": "visual features of the speaker's face in the clip",
}


def read_text(raw: Path, cohort: pl.DataFrame, options: MosiOptions) -> Features:
    """Words of each clip as word vectors, a sentence vector or hashed term counts (`text_encoder`, `text_form`).

    Source: the TimestampedWords or word vector sequence of a .csd export, `text` or `raw_text` of a pickle. Clips
    without words have no row.
    """
    export = open_export(raw, options)
    if not _reads_vectors(export, options):
        block = _encoded(export, options)
    elif options.text_form == "sentence":
        block = export.text_vectors().collapsed()
    else:
        block = export.text_vectors().last_steps(options.max_steps)
    return block.features("text", BITS["text"], DESCRIPTIONS["text"], cohort)


@dataclass(frozen=True)
class FrameReader:
    """Reads acoustic or visual features of each clip in the form `audio_form` or `vision_form`.

    Source: a COVAREP or openSMILE sequence of a .csd export for audio, FACET or OpenFace for vision; the entry of that
    name of a pickle. Infinite values and all-zero frames become NaN; clips without an observed value have no row.
    """

    modality: str

    def __call__(self, raw: Path, cohort: pl.DataFrame, options: MosiOptions) -> Features:
        export, name = open_export(raw, options), self.modality
        if name not in export.modalities:
            raise UsageError(f"the export has no {name}; its modalities are {', '.join(export.modalities)}")
        stored = export.form(name, getattr(options, f"{name}_form"))
        limit = options.max_frames if stored == "raw" else options.max_steps
        block = export.frames(name, stored).last_steps(limit)
        return block.features(name, BITS[name], DESCRIPTIONS[name], cohort)


def _reads_vectors(export: MosiExport, options: MosiOptions) -> bool:
    """Whether the text is the word vectors of the export."""
    name = options.text_encoder
    if options.text_form == "counts" and name != "auto" and not name.startswith("hashing"):
        raise UsageError(f"text_form=counts takes no text encoder; remove text_encoder={name}")
    if options.text_form == "counts":
        return False
    if name == "export" and export.has_words():
        raise UsageError(f"text_encoder=export: {export.text_source()[0]} has words but no word vectors")
    return name in ("auto", "export") and not export.has_words()


def text_choice(export: MosiExport, options: MosiOptions) -> tuple[str, ...]:
    """Value of `text_encoder` for the manifest and, of an encoder, a note on it, as `recorded`."""
    if _reads_vectors(export, options) or options.text_form == "counts":
        return (options.text_encoder,)
    return recorded(options.text_encoder, ("auto", "export"))


def survey(export: MosiExport, options: MosiOptions) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
    """Clips that have each modality, (N,) in the order of `export.clips`, as far as shapes tell; and notes on losses.

    Raises:
        UsageError, MissingExtraError: an option requests what the export or the installation does not have.
    """
    observed, notes = {}, []
    ids = export.clips["sample_id"].to_list()

    def note(modality: str, clips: NDArray[np.bool_], what: str) -> None:
        if names := [ids[i] for i in np.flatnonzero(clips)]:
            notes.append(f"{modality}: {len(names)} of {len(ids)} clips {what}: {few(names)}")

    for modality in export.modalities:
        form = getattr(options, f"{modality}_form")
        form = form if modality == "text" else export.form(modality, form)
        if modality == "text" and options.text_encoder.startswith(PREFIX):
            vectors, faults = Precomputed(options.text_encoder), FaultCollector()
            report = partial(report_unmatched, file=vectors.file, notes=notes)
            lost, limit = "clips have no vector", options.max_unmatched
            report(set(ids), vectors.row.keys(), lost, faults=faults, limit=limit)
            report(vectors.row.keys(), set(ids), "vectors are of no clip")
            faults.raise_if_any()
            observed[modality] = np.array([i in vectors.row for i in ids], dtype=np.bool_)
            continue
        if modality == "text" and not _reads_vectors(export, options):
            n = np.array([len(t) for t in export.tokens()], dtype=np.int64)
            known = n > 0
        else:
            n, known, *contradicts = export.steps(modality)
            for wrong in contradicts:
                note(modality, wrong, "have nonzero steps beyond their stored length, which is ignored")
        option = {"raw": "max_frames", "steps": "max_steps", "sequence": "max_steps"}.get(form)
        if option and (limit := getattr(options, option)) > 0:
            most = f"up to {n.max(initial=0)}; the last {limit} are kept ({option})"
            note(modality, n > limit, f"have more than {limit} steps, {most}")
        note(modality, ~known, f"have no {'words' if modality == 'text' else 'frames, or only zeros'}, and lack it")
        observed[modality] = known
    return observed, notes


def _encoded(export: MosiExport, options: MosiOptions) -> RaggedBlock:
    ids = export.clips["sample_id"].to_list()
    offsets: NDArray[np.int64] | None = None
    kind, prefix = "embedding", "text"
    if options.text_encoder.startswith(PREFIX):
        vectors = Precomputed(options.text_encoder)
        ids = [i for i in ids if i in vectors.row]
        values, file, column, encoder_name = vectors.take(ids), vectors.file, "vector", vectors.name
    else:
        tokens, (file, column) = export.tokens(), export.text_source()
        if options.text_form == "sequence" and options.max_steps > 0:
            tokens = [t[-options.max_steps :] for t in tokens]
        ids = [i for i, t in zip(ids, tokens, strict=True) if t]
        words = [t for t in tokens if t]
        if options.text_form == "counts":
            values = hashed_counts(words, options.text_features)
            kind, prefix, encoder_name = "count", "term", f"hashed-counts-{options.text_features}/1"
        else:
            encoder = get_encoder(options.text_encoder)
            encoder_name = encoder.name
            if options.text_form == "sequence":
                values, offsets = encoder.words(words)
            else:
                values = encoder.sentences([" ".join(w) for w in words])
    source: dict[str, Any] = {"file": file, "columns": (column,), "kind": kind, "encoder": encoder_name}
    sample_id, names = np.array(ids, dtype=np.str_), feature_names(prefix, values.shape[1])
    return RaggedBlock(sample_id=sample_id, values=values, offsets=offsets, names=names, **source)
