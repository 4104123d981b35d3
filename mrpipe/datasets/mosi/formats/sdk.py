"""Words, audio and vision of a .csd export, aligned to the opinion segments.

Words are assigned to segments by their onset. In the published files, the times of a segment run from the beginning of
the word *before* its first word to the beginning of its *last* word: 91 % of all segment ends coincide, to the
microsecond, with the beginning of a word, which is the last word of the segment ("anyhow it was really | good").
`word_rule=onset` (onset in (start, end]) therefore reproduces the published transcripts, whereas `overlap` loses most
last words and adds a word of the previous segment.
"""

from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mrpipe.datasets.mosi.align import Index, beginning_after, means, overlapping
from mrpipe.datasets.mosi.formats.csd import CsdEntry, Sequence, each, load
from mrpipe.datasets.mosi.formats.sdk_files import SAME_TIME, SdkFiles
from mrpipe.datasets.mosi.ragged import RaggedBlock, feature_names
from mrpipe.errors import UsageError

PAUSE = "sp"


class SdkExport(SdkFiles):
    """An opened .csd export: words and frames of each clip.

    By default frames are averaged per word, because word times are exact; the times of a segment exclude most of its
    last word.
    """

    format = "csd"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in the export, in bit order."""
        text = "words" in self.chosen or "vectors" in self.chosen
        return (*(("text",) if text else ()), *(m for m in ("audio", "vision") if m in self.chosen))

    @cached_property
    def _timeline(self) -> tuple[str, dict[str, CsdEntry], dict[str, NDArray[np.bool_]]]:
        """Role and entries of the sequence with the word times, and masks of its words (no pauses, no zero vectors)."""
        sequence = self._text_sequence
        entries = load(sequence)
        if sequence.role == "words":
            keep = {v: e.features != PAUSE for v, e in entries.items()}
        else:
            keep = {v: (e.features != 0).any(axis=1) for v, e in entries.items()}
        return sequence.role, entries, keep

    @property
    def _text_sequence(self) -> Sequence:
        """Sequence read as text: word vectors if requested and present, otherwise words."""
        encoder, named = self.options.text_encoder, self.options.text_sequence
        words, vectors = self.chosen.get("words"), self.chosen.get("vectors")
        if named:
            sequence = self.named(named, [s for s in (words, vectors) if s], "text_sequence")
        else:
            sequence = {"export": vectors, "auto": vectors or words}.get(encoder, words)
        if sequence is None:
            missing = "word vectors" if encoder == "export" else "words"
            raise UsageError(f"text_encoder={encoder}: the export has no {missing}")
        return sequence

    @cached_property
    def _word_pairs(self) -> dict[str, tuple[Index, Index]]:
        """Pairs (segment, word) of each video in time order, without pauses."""
        _, entries, keep = self._timeline
        pairs = {}
        for video, segments in self.segments.items():
            if video in entries:
                target, item = self._pairs(video, entries[video], segments, words=True)
                kept = keep[video][item]
                pairs[video] = target[kept], item[kept]
        return pairs

    def _pairs(self, video: str, entry: CsdEntry, segments: NDArray[np.float64], *, words: bool) -> tuple[Index, Index]:
        if entry.segment is not None:
            # Already aligned by the SDK: the key contains the segment.
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
        """Words of each clip in time order, without pauses; clips in the order of `clips`."""
        if not self.has_words():
            raise UsageError("the export contains word vectors but no words: use text_encoder=export")
        _, entries, _ = self._timeline
        words: list[list[str]] = [[] for _ in range(len(self.clips))]
        for video, (target, item) in self._word_pairs.items():
            texts, first = entries[video].features[item].tolist(), self.first[video]
            bounds = np.searchsorted(target, np.arange(len(self.segments[video]) + 1)).tolist()
            for i, (a, b) in enumerate(pairwise(bounds)):
                words[first + i] = texts[a:b]
        return words

    def text_source(self) -> tuple[str, str]:
        """File and column of the text."""
        return self._text_sequence.path.name, f"{self._text_sequence.root}/data"

    def has_words(self) -> bool:
        """Whether the text is words, which an encoder has to turn into vectors."""
        return self._text_sequence.role == "words"

    def text_vectors(self) -> RaggedBlock:
        """Word vectors of the export, one sequence per clip."""
        _, entries, _ = self._timeline
        parts = [(self.first[v] + target, entries[v].features[item]) for v, (target, item) in self._word_pairs.items()]
        block = self._block(self._text_sequence, parts, "text")
        return replace(block, kind="embedding", encoder=self._text_sequence.root)

    def frames(self, modality: str, form: str) -> RaggedBlock:
        """Audio or vision of each clip in a form that `form` returned."""
        sequence = self.chosen[modality]
        parts = []
        for video, entry in each(sequence):
            if video not in self.segments:
                continue
            x = entry.features
            if form != "vector":
                # All-zero frames are failed measurements (no face, no voice); -inf is the logarithm of zero.
                x[(x == 0).all(axis=1)] = np.nan
                x[np.isinf(x)] = np.nan
            target, rows = self._frames_of(video, entry, x, form)
            parts.append((self.first[video] + target, rows))
        block = self._block(sequence, parts, modality)
        return block.collapsed() if form in ("vector", "collapse") else block

    def form(self, modality: str, requested: str) -> str:
        """Form of audio or vision: vector (one per segment), steps (one per word), raw or collapse, or a UsageError."""
        sequence, stored, found = self.chosen[modality], "steps", ""
        text = "words" in self.chosen or "vectors" in self.chosen
        utterances, segments = self._level(modality)
        if utterances:
            stored, found = "vector", "one row per segment, no frames; use auto"
        elif any(s is not None for s in segments.values()):
            # Aligned to segments by the SDK; also to words if each segment has as many rows as the text.
            words = self._timeline[1] if text else {}
            rows = {v: None if e.segment is None else e.segment.tolist() for v, e in words.items()}
            if any(s is None or s.tolist() != rows.get(v) for v, s in segments.items()):
                stored, found = "raw", "frames by segment, not by word; use raw or collapse"
        elif not text:
            stored, found = "raw", "frames, and no words to average them by; use raw or collapse"
        if (requested == "steps" and found) or (requested == "raw" and stored == "vector"):
            raise UsageError(f"{modality}_form={requested}: {sequence.path.name} has {found}")
        return stored if requested == "auto" or stored == "vector" else requested

    def steps(self, modality: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Number of words or frames of each clip, and whether there are any, (n,); no features are read."""
        n = np.zeros(len(self.clips), dtype=np.int64)
        if modality == "text":
            targets = ((v, target) for v, (target, _) in self._word_pairs.items())
        else:
            vector, _ = self._level(modality)
            entries = each(self.chosen[modality], features=False)
            targets = ((v, self._items(v, e, vector=vector)[0]) for v, e in entries if v in self.segments)
        for video, target in targets:
            np.add.at(n, self.first[video] + target, 1)
        return n, n > 0

    def _frames_of(
        self, video: str, entry: CsdEntry, x: NDArray[np.float32], form: str
    ) -> tuple[Index, NDArray[np.float32]]:
        segments = self.segments[video]
        # The rows of a file that the SDK has aligned to words and segments are the steps.
        if form != "steps" or entry.segment is not None:
            target, item = self._items(video, entry, vector=form == "vector")
            return target, x[item]
        _, words, _ = self._timeline
        target, item = self._word_pairs.get(video, (np.empty(0, np.int64), np.empty(0, np.int64)))
        # A clip without words becomes one step that covers the whole segment.
        silent = np.setdiff1d(np.arange(len(segments)), target)
        times = np.concatenate([words[video].intervals[item] if len(item) else np.empty((0, 2)), segments[silent]])
        step_of = np.concatenate([target, silent])
        order = np.argsort(step_of, kind="stable")
        step, frame = overlapping(entry.intervals, times[order])
        return step_of[order], means(x, step, frame, len(order))

    def _items(self, video: str, entry: CsdEntry, *, vector: bool) -> tuple[Index, Index]:
        """Pairs (segment, row) of audio or vision; row i of an utterance-level file is segment i."""
        if vector and entry.segment is None:
            rows = np.arange(len(entry.intervals))
            return rows, rows
        return self._pairs(video, entry, self.segments[video], words=False)

    def _level(self, modality: str) -> tuple[bool, dict[str, Index | None]]:
        """Whether there is one row per segment, by the name of the file or because rows and times match the labels;
        and video → segment of each row, None if the file is not aligned to segments."""
        sequence = self.chosen[modality]
        utterances, segments = True, {}
        for video, e in each(sequence, features=False):
            segments[video] = e.segment
            if utterances and video in self.segments:
                own = self.segments[video]
                same = len(e.intervals) == len(own) and bool((np.abs(e.intervals - own) < SAME_TIME).all())
                utterances = same if e.segment is None else len(np.unique(e.segment)) == len(e.segment)
        return utterances or "utterance" in f"{sequence.root} {sequence.path.name}".lower(), segments

    def _block(self, sequence: Sequence, parts: list[tuple[Index, NDArray[np.float32]]], prefix: str) -> RaggedBlock:
        """Block of sequences from pairs (clip of each step, steps), which are in the order of `clips`."""
        clip = np.concatenate([c for c, _ in parts]) if parts else np.empty(0, np.int64)
        values = np.concatenate([x for _, x in parts])
        values[np.isinf(values)] = np.nan
        n, columns = np.bincount(clip, minlength=len(self.clips)), (f"{sequence.root}/data",)
        names = feature_names(prefix, values.shape[1], sequence.names)
        return RaggedBlock.of(self.clips, values, n, names=names, file=sequence.path.name, columns=columns)
