"""Raw to features, one function a modality; the formats differ behind `MosiExport`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.export import MosiExport, open_export
from mrpipe.datasets.mosi.formats.sdk import SdkExport
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.datasets.mosi.ragged import RaggedBlock, feature_names
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
    """The words of a clip as vectors (`text_encoder`, `text_form`); a clip without a word has no row."""
    export = open_export(raw, options)
    block = _text_block(export, options)
    return block.features("text", BITS["text"], DESCRIPTIONS["text"], cohort)


def read_audio(raw: Path, cohort: pl.DataFrame, options: MosiOptions) -> Features:
    """Audio as `audio_form` says; ±inf is NaN, an all-zero frame was not observed; no frame, no row."""
    return _read_frames("audio", options.audio_form, raw, cohort, options)


def read_vision(raw: Path, cohort: pl.DataFrame, options: MosiOptions) -> Features:
    """Vision, as audio."""
    return _read_frames("vision", options.vision_form, raw, cohort, options)


def _text_block(export: MosiExport, options: MosiOptions) -> RaggedBlock:
    own = _own_vectors(export, options)
    if own is None:
        tokens, file, column = _tokens(export, options)
        return _encoded(export, tokens, file, column, options)
    if options.text_form == "counts":
        raise UsageError("text_form=counts needs words; this export holds vectors of them (text_encoder=export)")
    own = own.last_steps(options.max_steps)
    return own.collapsed() if options.text_form == "sentence" else own


def _own_vectors(export: MosiExport, options: MosiOptions) -> RaggedBlock | None:
    """The export's word vectors, if they are wanted and there."""
    if options.text_encoder not in ("auto", "export") or options.text_form == "counts":
        return None
    if isinstance(export, SdkExport):
        return None if export.has_words() else export.text_vectors()
    encoder = "BERT (MMSA)" if export.format == "mmsa" else "GloVe (MultiBench)"
    return replace(export.sequences("text"), kind="embedding", encoder=encoder)


def _tokens(export: MosiExport, options: MosiOptions) -> tuple[list[list[str]], str, str]:
    """Words of each clip in the order of `export.clips`, for a sequence at most `max_steps`; file and column."""
    if isinstance(export, SdkExport):
        if not export.has_words():
            raise UsageError("the export holds word vectors but no words: use text_encoder=export")
        tokens = export.tokens()
        file, column = export.text_source()
    else:
        words = export.words()
        if words is None:
            raise UsageError(f"{export.path.name} holds no words, only their vectors: use text_encoder=export")
        tokens, file, column = words, export.path.name, "raw_text"
    if options.text_form == "sequence" and options.max_steps > 0:
        tokens = [t[-options.max_steps :] for t in tokens]
    return tokens, file, column


def _encoded(export: MosiExport, tokens: list[list[str]], file: str, column: str, options: MosiOptions) -> RaggedBlock:
    ids = np.array(export.clips["sample_id"].to_list(), dtype=np.str_)
    said = np.flatnonzero([len(t) > 0 for t in tokens])
    words = [tokens[i] for i in said.tolist()]
    name = "hashing" if options.text_encoder == "auto" else options.text_encoder
    offsets: NDArray[np.int64] | None = None
    if options.text_form == "counts":
        if not name.startswith("hashing"):
            raise UsageError(f"text_form=counts needs no encoder; text_encoder={name} is set")
        values = hashed_counts(words, options.text_features)
        kind, prefix, encoder_name = "count", "term", f"hashed-counts-{options.text_features}/1"
    else:
        encoder: Encoder = get_encoder(name)
        kind, prefix, encoder_name = "embedding", "text", encoder.name
        if options.text_form == "sequence":
            values, offsets = encoder.words(words)
        else:
            values = encoder.sentences([" ".join(w) for w in words])
    return RaggedBlock(
        sample_id=ids[said],
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
        raise UsageError(f"this export holds no {modality}; it holds {', '.join(export.modalities)}")
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
