"""Pickles of MultiBench, mosi_data.pkl and mosi_raw.pkl (docs/raw-formats.md): left-padded steps, labels (N, 1, 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from mrpipe.datasets.mosi.clips import parse_id
from mrpipe.datasets.mosi.formats.padded import PaddedExport, id_strings
from mrpipe.errors import FaultCollector


class MultiBenchExport(PaddedExport):
    """An opened MultiBench pickle.

    Ids are `video[i]` with i from 0, or rows (video, start, end), in which case clips are numbered by start time.
    """

    format = "multibench"
    label_key = "labels"
    required = ("id", "labels")
    aligned = True

    def part_ids(self, part: str, value: Any, faults: FaultCollector) -> list[tuple[str, int]]:
        texts = id_strings(value)
        parsed = [parse_id(t) for t in texts]
        if all(p is not None for p in parsed):
            return [p for p in parsed if p is not None]
        rows = np.asarray(value, dtype=object)
        try:
            starts = (
                rows.reshape(len(rows), -1)[:, 1].astype(np.float64)
                if rows.ndim > 1 and rows.size == 3 * len(rows)
                else None
            )
        except ValueError:
            starts = None
        if starts is None:
            bad = next(i for i, p in enumerate(parsed) if p is None)
            expected = "ids like video[i], or rows of video, start, end"
            faults.add(self.fault(part, "id", expected, f"{texts[bad]!r}", row=bad + 1))
            return []
        self.notes.append(f"{part}: the ids have no clip numbers; clips are numbered by start time")
        rank = pl.DataFrame({"video": texts, "start": starts}).select(pl.col("start").rank("ordinal").over("video"))
        return list(zip(texts, rank.to_series().cast(pl.Int64).to_list(), strict=True))
