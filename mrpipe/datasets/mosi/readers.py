"""Readers of text, audio and vision; `Export` hides the differences between the formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.export import Export, open_export
from mrpipe.datasets.mosi.formats.sdk import SdkExport
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.datasets.mosi.ragged import Block, feature_names
from mrpipe.errors import UsageError
from mrpipe.schema import Features
from mrpipe.text.encoders import Encoder, get_encoder, hashed_counts

BITS = {"text": 0, "audio": 1, "vision": 2}
DESCRIPTIONS = {
    "text": "what is said in the clip",
    "audio": "how it is said: acoustic features of the clip",
    "vision": "the speaker's face: visual features of the clip",
}


def read_text(raw: Path, cohort: pl.DataFrame, options: MosiOptions) -> Features:
    """Words of each clip as word vectors, a sentence vector or hashed term counts (`text_encoder`, `text_form`).

    Source: the TimestampedWords or word vector sequence of a .csd export, `text` or `raw_text` of a pickle. Clips
    without words have no row.
    """
    export = open_export(raw, options)
    block = _text_block(export, options)
    return block.features("text", BITS["text"], DESCRIPTIONS["text"], cohort)


def read_audio(raw: Path, cohort: pl.DataFrame, options: MosiOptions) -> Features:
    """Acoustic features of each clip in the form `audio_form`.

    Source: a COVAREP or openSMILE sequence of a .csd export, `audio` of a pickle. Infinite values and all-zero frames
    become NaN; clips without an observed value have no row.
    """
    return _read_frames("audio", options.audio_form, raw, cohort, options)


def read_vision(raw: Path, cohort: pl.DataFrame, options: MosiOptions) -> Features:
    """Visual features of each clip in the form `vision_form`: FACET or OpenFace of a .csd export, `vision` of a pickle.

    Missing values are handled as in `read_audio`.
    """
    return _read_frames("vision", options.vision_form, raw, cohort, options)


def _text_block(export: Export, options: MosiOptions) -> Block:
    vectors = _export_vectors(export, options)
    if vectors is None:
        tokens, file, column = _tokens(export, options)
        return _encoded(export, tokens, file, column, options)
    vectors = vectors.last_steps(options.max_steps)
    return vectors.collapsed() if options.text_form == "sentence" else vectors


def _export_vectors(export: Export, options: MosiOptions) -> Block | None:
    """Word vectors of the export, or None if words are to be encoded instead."""
    if options.text_encoder not in ("auto", "export") or options.text_form == "counts":
        return None
    if isinstance(export, SdkExport):
        return None if export.has_words() else export.text_vectors()
    encoder = "BERT (MMSA)" if export.format == "mmsa" else "GloVe (MultiBench)"
    return replace(export.sequences("text"), kind="embedding", encoder=encoder)


def _tokens(export: Export, options: MosiOptions) -> tuple[list[list[str]], str, str]:
    """Words of each clip in the order of `export.clips` (at most `max_steps` for sequences), with file and column."""
    if isinstance(export, SdkExport):
        if not export.has_words():
            raise UsageError("the export contains word vectors but no words: use text_encoder=export")
        tokens = export.tokens()
        file, column = export.text_source()
    else:
        words = export.words()
        if words is None:
            raise UsageError(f"{export.path.name} contains word vectors but no words: use text_encoder=export")
        tokens, file, column = words, export.path.name, "raw_text"
    if options.text_form == "sequence" and options.max_steps > 0:
        tokens = [t[-options.max_steps :] for t in tokens]
    return tokens, file, column


def _encoded(export: Export, tokens: list[list[str]], file: str, column: str, options: MosiOptions) -> Block:
    ids = np.array(export.clips["sample_id"].to_list(), dtype=np.str_)
    nonempty = np.flatnonzero([len(t) > 0 for t in tokens])
    words = [tokens[i] for i in nonempty.tolist()]
    name = "hashing" if options.text_encoder == "auto" else options.text_encoder
    offsets: NDArray[np.int64] | None = None
    if options.text_form == "counts":
        if not name.startswith("hashing"):
            raise UsageError(f"text_form=counts takes no text encoder; remove text_encoder={name}")
        values = hashed_counts(words, options.text_features)
        kind, prefix, encoder_name = "count", "term", f"hashed-counts-{options.text_features}/1"
    else:
        encoder: Encoder = get_encoder(name)
        kind, prefix, encoder_name = "embedding", "text", encoder.name
        if options.text_form == "sequence":
            values, offsets = encoder.words(words)
        else:
            values = encoder.sentences([" ".join(w) for w in words])
    return Block(
        sample_id=ids[nonempty],
        values=values,
        offsets=offsets,
        names=feature_names(prefix, values.shape[1]),
        file=file,
        columns=(column,),
        kind=kind,
        encoder=encoder_name,
    )


def _read_frames(modality: str, form: str, raw: Path, cohort: pl.DataFrame, options: MosiOptions) -> Features:
    export = open_export(raw, options)
    if modality not in export.modalities:
        raise UsageError(f"the export has no {modality}; its modalities are {', '.join(export.modalities)}")
    if isinstance(export, SdkExport):
        block = export.frames(modality, form)
        limit = options.max_frames if form == "raw" else options.max_steps
    else:
        if form == "steps" and not export.aligned:
            raise UsageError(f"{modality}_form=steps: {export.path.name} is not aligned to words; use raw or collapse")
        block = export.sequences(modality)
        if form == "collapse":
            block = block.collapsed()
        limit = options.max_steps if export.aligned else options.max_frames
    return block.last_steps(limit).features(modality, BITS[modality], DESCRIPTIONS[modality], cohort)
