"""The SDK's export: labels, words, audio and vision as .csd files, aligned here to the opinion segments.

Words belong to segments by their beginning. In the published files a segment's times run from the beginning of the
word *before* its first word to the beginning of its *last* word: 91 % of all segment ends are, to the microsecond, the
beginning of a word, and that word is the segment's last ("anyhow it was really | good"). Rule `onset`, start in (s, e],
therefore gives the published transcripts; rule `overlap` loses most last words and adds one of the segment before.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mrpipe.datasets.mosi.align import Index, beginning_after, means, overlapping
from mrpipe.datasets.mosi.formats.csd import CsdEntry, Sequence, load
from mrpipe.datasets.mosi.formats.sdk_files import SAME_TIME, SdkFiles
from mrpipe.datasets.mosi.ragged import RaggedBlock, feature_names
from mrpipe.errors import UsageError

PAUSE = "sp"


class SdkExport(SdkFiles):
    """The opened export: words and frames of each clip.

    Frames become word steps by default, because the words carry their own exact times; collapsed over the segment's
    times they would miss most of the last word.
    """

    format = "csd"

    # --- text --------------------------------------------------------------------------------------------------------

    @property
    def modalities(self) -> tuple[str, ...]:
        """Which modalities the export holds, in bit order."""
        text = "words" in self.chosen or "vectors" in self.chosen
        return (*(("text",) if text else ()), *(m for m in ("audio", "vision") if m in self.chosen))

    @cached_property
    def _timeline(self) -> tuple[str, dict[str, CsdEntry], dict[str, NDArray[np.bool_]]]:
        """The sequence that gives the words' times, and which of its rows are words: no pauses, no zero vectors."""
        sequence = self._text_sequence
        entries = load(sequence)
        if sequence.role == "words":
            keep = {v: e.features != PAUSE for v, e in entries.items()}
        else:
            keep = {v: (e.features != 0).any(axis=1) for v, e in entries.items()}
        return sequence.role, entries, keep

    @property
    def _text_sequence(self) -> Sequence:
        """What is read as text: word vectors where they are wanted and there, else words."""
        encoder, named = self.options.text_encoder, self.options.text_sequence
        words, vectors = self.chosen.get("words"), self.chosen.get("vectors")
        if named:
            sequence = self.named(named, [s for s in (words, vectors) if s], "text_sequence")
        else:
            sequence = {"export": vectors, "auto": vectors or words}.get(encoder, words)
        if sequence is None:
            what = "word vectors" if encoder == "export" else "words"
            raise UsageError(f"text_encoder={encoder}: the export holds no {what}")
        return sequence

    @cached_property
    def _word_pairs(self) -> dict[str, tuple[Index, Index]]:
        """For each video, pairs (segment, word) in time order; pauses are left out."""
        _, entries, keep = self._timeline
        pairs = {}
        for video, segments in self.segments.items():
            if video in entries:
                entry = entries[video]
                target, item = self._pairs(video, entry, segments, words=True)
                kept = keep[video][item]
                pairs[video] = target[kept], item[kept]
        return pairs

    def _pairs(self, video: str, entry: CsdEntry, segments: NDArray[np.float64], *, words: bool) -> tuple[Index, Index]:
        if entry.segment is not None:
            # Aligned by the SDK already: the key names the segment.
            row_of = np.full(max(self.rows[video].max(), entry.segment.max()) + 1, -1, dtype=np.int64)
            row_of[self.rows[video]] = np.arange(len(segments))
            target = row_of[entry.segment]
            order = np.lexsort((entry.intervals[:, 0], target))
            order = order[target[order] >= 0]
            return target[order], order
        if words and self.options.word_rule == "onset":
            return beginning_after(entry.intervals, segments)
        return overlapping(entry.intervals, segments)

    def tokens(self) -> list[list[str]]:
        """Words of each clip, in time order, pauses left out; clips in the order of `clips`."""
        _, entries, _ = self._timeline
        words: list[list[str]] = [[] for _ in range(len(self.clips))]
        for video, (target, item) in self._word_pairs.items():
            texts, first = entries[video].features[item].tolist(), self.first[video]
            bounds = np.searchsorted(target, np.arange(len(self.segments[video]) + 1)).tolist()
            for i, (a, b) in enumerate(pairwise(bounds)):
                words[first + i] = texts[a:b]
        return words

    @property
    def _ids(self) -> NDArray[np.str_]:
        return np.array(self.clips["sample_id"].to_list(), dtype=np.str_)

    def text_source(self) -> tuple[str, str]:
        """File and column of the words."""
        return self._text_sequence.path.name, f"{self._text_sequence.root}/data"

    def has_words(self) -> bool:
        """Whether the text is words, which an encoder turns into vectors."""
        return self._text_sequence.role == "words"

    def text_vectors(self) -> RaggedBlock:
        """The export's own word vectors of each clip."""
        _, entries, _ = self._timeline
        parts = [(self.first[v] + target, entries[v].features[item]) for v, (target, item) in self._word_pairs.items()]
        return self._block(self._text_sequence, parts, "text", kind="embedding", encoder=self._text_sequence.root)

    # --- audio and vision --------------------------------------------------------------------------------------------

    def frames(self, modality: str, form: str) -> RaggedBlock:
        """Audio or vision of each clip as `form` says (`MosiOptions.audio_form`)."""
        sequence = self.chosen["audio" if modality == "audio" else "vision"]
        entries = load(sequence)
        if self._is_utterance_level(sequence, entries):
            if form in ("steps", "raw"):
                raise UsageError(
                    f"{modality}_form={form}: {sequence.path.name} has one row a segment, no frames; use auto"
                )
            parts = [
                (self.first[v] + t, e.features[i])
                for v, e in entries.items()
                if v in self.segments
                for t, i in [self._rows_of(v, e)]
            ]
            return self._block(sequence, parts, modality).collapsed()
        if any(e.segment is not None for e in entries.values()):
            form = "raw" if form in ("auto", "steps") else form
        parts = []
        for video, entry in entries.items():
            if video not in self.segments:
                continue
            x = entry.features.copy()
            # A frame of zeros only is a failed measurement (no face, no voice), ±inf the logarithm of silence.
            x[(x == 0).all(axis=1)] = np.nan
            x[np.isinf(x)] = np.nan
            target, rows = self._frames_of(video, entry, x, form)
            parts.append((self.first[video] + target, rows))
        block = self._block(sequence, parts, modality)
        return block.collapsed() if form == "collapse" else block

    def _frames_of(
        self, video: str, entry: CsdEntry, x: NDArray[np.float32], form: str
    ) -> tuple[Index, NDArray[np.float32]]:
        segments = self.segments[video]
        if form in ("raw", "collapse"):
            target, item = self._pairs(video, entry, segments, words=False)
            return target, x[item]
        if "words" not in self.chosen and "vectors" not in self.chosen:
            raise UsageError("frames in word steps need the words of the export; use the form collapse or raw")
        _, words, _ = self._timeline
        target, item = self._word_pairs.get(video, (np.empty(0, np.int64), np.empty(0, np.int64)))
        # A clip without a word is one step, the whole segment.
        silent = np.setdiff1d(np.arange(len(segments)), target)
        times = np.concatenate([words[video].intervals[item] if len(item) else np.empty((0, 2)), segments[silent]])
        step_of = np.concatenate([target, silent])
        order = np.argsort(step_of, kind="stable")
        step, frame = overlapping(entry.intervals, times[order])
        return step_of[order], means(x, step, frame, len(order))

    def _rows_of(self, video: str, entry: CsdEntry) -> tuple[Index, Index]:
        if entry.segment is not None:
            return self._pairs(video, entry, self.segments[video], words=False)
        rows = np.arange(len(entry.intervals))
        return rows, rows

    def _is_utterance_level(self, sequence: Sequence, entries: dict[str, CsdEntry]) -> bool:
        """One row a segment: by its name, or because every video has the labels' rows and times."""
        if "utterance" in f"{sequence.root} {sequence.path.name}".lower():
            return True
        return all(
            (len(np.unique(e.segment)) == len(e.segment))
            if e.segment is not None
            else len(e.intervals) == len(self.segments[v])
            and bool((np.abs(e.intervals - self.segments[v]) < SAME_TIME).all())
            for v, e in entries.items()
            if v in self.segments
        )

    def _block(
        self,
        sequence: Sequence,
        parts: list[tuple[Index, NDArray[np.float32]]],
        prefix: str,
        *,
        kind: str = "numeric",
        encoder: str = "",
    ) -> RaggedBlock:
        """Runs of steps of all clips from (clip, step) pairs; `parts` come in the order of `clips`."""
        clip = np.concatenate([c for c, _ in parts]) if parts else np.empty(0, np.int64)
        values = np.concatenate([x for _, x in parts])
        values[np.isinf(values)] = np.nan
        offsets = np.concatenate([[0], np.cumsum(np.bincount(clip, minlength=len(self.clips)))]).astype(np.int64)
        d = values.shape[1]
        return RaggedBlock(
            sample_id=self._ids,
            values=values,
            offsets=offsets,
            names=feature_names(prefix, d, sequence.names),
            file=sequence.path.name,
            columns=(f"{sequence.root}/data",),
            kind=kind,
            encoder=encoder,
        )
