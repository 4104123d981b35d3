"""Pickles of MMSA (aligned_50.pkl, unaligned_50.pkl) and MultiBench (mosi_data.pkl, mosi_raw.pkl)."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.formats.padded import PaddedExport, id_strings
from mrpipe.errors import FaultCollector
from mrpipe.text.encoders import tokenise

ANNOTATIONS = ("Negative", "Neutral", "Positive")


class MmsaExport(PaddedExport):
    """An opened MMSA pickle.

    Ids are `video$_$clip`, labels (N,). `text` has BERT vectors of the words and of [CLS] and [SEP]; `raw_text` has the
    words.
    """

    format = "mmsa"
    label_key = "regression_labels"
    required = ("id", "regression_labels")
    id_form = "video$_$clip"

    def check_labels(
        self, part: str, value: dict[str, Any], score: NDArray[np.float32], faults: FaultCollector
    ) -> None:
        sign = np.sign(np.nan_to_num(score)).astype(int) + 1
        for key, kind in (("annotations", "sign"), ("classification_labels", "sign, 0 1 2")):
            if key not in value:
                continue
            given = np.asarray(value[key]).ravel()
            if given.dtype.kind in "SUO":
                names = id_strings(given, self.path.name, f"{part}/{key}")
                classes = np.array([{a: i for i, a in enumerate(ANNOTATIONS)}.get(t, -1) for t in names])
            else:
                classes = given.astype(int)
            if len(classes) != len(sign):
                faults.add(self.fault(part, key, f"{len(sign)} rows", f"{len(classes)}"))
            elif (classes != sign).any():
                row = int((classes != sign).argmax())
                found = f"{given[row]!r} for the score {score[row]} ({int((classes != sign).sum())} such rows)"
                faults.add(self.fault(part, key, f"the {kind} of regression_labels", found, row=row + 1))

    def step_counts(self, part: dict[str, Any], modality: str) -> NDArray[np.int64] | None:
        if modality == "text":
            if "text_bert" not in part:
                return None
            # (N, 3, 50): token ids, attention mask, type ids. A text with only [CLS] and [SEP] has no words.
            n = np.asarray(part["text_bert"])[:, 1].sum(axis=1).astype(np.int64)
            return np.where(n > 2, n, 0)
        lengths = part.get(f"{modality}_lengths")
        return None if lengths is None else np.asarray(lengths, dtype=np.int64).ravel()

    def words(self) -> list[list[str]] | None:
        if any("raw_text" not in p for p in self._parts.values()):
            return None
        return [
            tokenise(t)
            for part, p in self._parts.items()
            for t in id_strings(p["raw_text"], self.path.name, f"{part}/raw_text")
        ]


class MultiBenchExport(PaddedExport):
    """An opened MultiBench pickle: left-padded steps, labels (N, 1, 1).

    Ids are `video[i]` with i from 0, or rows (video, start, end), in which case clips are numbered by start time.
    """

    format = "multibench"
    label_key = "labels"
    required = ("id", "labels")
    id_form = "video[i], or rows of video, start, end"

    def unnumbered_ids(self, part: str, texts: list[str], value: Any) -> list[tuple[str, int]] | None:
        rows = np.asarray(value, dtype=object)
        if rows.ndim < 2 or rows.size != 3 * len(rows):
            return None
        try:
            starts = rows.reshape(len(rows), -1)[:, 1].astype(np.float64)
        except ValueError:
            return None
        self.notes.append(f"{part}: the ids have no clip numbers; clips are numbered by start time")
        rank = pl.DataFrame({"video": texts, "start": starts}).select(pl.col("start").rank("ordinal").over("video"))
        return list(zip(texts, rank.to_series().cast(pl.Int64).to_list(), strict=True))
