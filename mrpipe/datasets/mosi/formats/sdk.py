"""A .csd export: the files that are read, checked for consistency, and their contents aligned to opinion segments.

Words are assigned to segments by their onset. In the published files, the times of a segment run from the beginning of
the word *before* its first word to the beginning of its *last* word: 91 % of all segment ends coincide, to the
microsecond, with the beginning of a word, which is the last word of the segment ("anyhow it was really | good").
`word_rule=onset` (onset in (start, end]) therefore reproduces the published transcripts, whereas `overlap` loses most
last words and adds a word of the previous segment.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.align import Index, beginning_after, means, overlapping
from mrpipe.datasets.mosi.clips import clip_frame, read_folds, score_faults
from mrpipe.datasets.mosi.formats.csd import AGAIN, CsdEntry, Sequence, each, inspect
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.datasets.mosi.ragged import RaggedBlock, feature_names
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError
from mrpipe.raw import report_unmatched

PAUSE = "sp"
SAME_TIME = 0.1  # maximum difference, in seconds, between the times of an utterance-level row and of its segment


class SdkExport:
    """An opened .csd export: its files and fold lists, and words and frames of each clip.

    By default frames are averaged per word, because word times are exact; the times of a segment exclude most of its
    last word.

    Attributes:
        files: the files that are read.
        clips: ids, folds, times and scores with `clips.CLIPS_SCHEMA`.
        segments, rows: video → start and end in seconds (n, 2), and numbers from 0 (n,), of its segments.
        first: video → row of its first clip in `clips`.
        notes: notes for the manifest.
        unused: name of a sequence that is not read → the reason, and how to read it.

    Raises:
        DataError: all errors in the labels, the folds and the structure of the other files.
    """

    def __init__(self, raw: Path, paths: list[Path], options: MosiOptions):
        faults = FaultCollector()
        self.notes: list[str] = []
        self.unused: dict[str, str] = {}
        self.options = options
        sequences = [s for path in paths if (s := faults.attempt(inspect, path)) is not None]
        self.chosen = self._choose(sequences, options, faults)
        fold_path, folds = read_folds(raw, options.corpus, faults)
        labels = self.chosen.get("labels")
        if labels is None:
            expected = "the labels, e.g. CMU_MOSI_Opinion_Labels.csd: segments and their scores"
            found = ", ".join(p.name for p in paths)
            if not any("label" in p.name.lower() for p in paths if faults.faults):
                faults.add(Fault(file="CMU_MOSI_Opinion_Labels.csd", expected=expected, found=found, fix=AGAIN))
        self.files = tuple(sorted([s.path for s in self.chosen.values()] + ([fold_path] if fold_path else [])))
        self.clips = pl.DataFrame()
        self.segments: dict[str, NDArray[np.float64]] = {}
        self.rows: dict[str, Index] = {}
        self.first: dict[str, int] = {}
        if labels is not None:
            faults.attempt(self._read_labels, labels, folds, faults)
        for role in ("words", "vectors", "audio", "vision"):
            if role in self.chosen and self.segments:
                faults.attempt(self._check_sequence, self.chosen[role], faults)
        if labels is not None and not set(self.chosen) - {"labels"}:
            expected = "words, audio or vision in addition to the labels"
            faults.add(Fault(file="CMU_MOSI_TimestampedWords.csd", expected=expected, found="labels only", fix=AGAIN))
        faults.raise_if_any()

    def _choose(self, sequences: list[Sequence], options: MosiOptions, faults: FaultCollector) -> dict[str, Sequence]:
        chosen: dict[str, Sequence] = {}
        requested = {"audio": options.audio_sequence, "vision": options.vision_sequence}
        text = self.named(options.text_sequence, sequences, "text_sequence")
        for role in ("labels", "words", "vectors", "audio", "vision"):
            candidates = sorted((s for s in sequences if s.role == role), key=lambda s: (s.rank, s.path.name))
            best = [s.path.name for s in candidates if s.rank == candidates[0].rank]
            named = self.named(requested.get(role, ""), sequences, f"{role}_sequence")
            if text is not None and role == text.role:
                named = text
            if named is None and len(best) > 1:
                fix = f"Remove the others, or select one with --set {role}_sequence=FILE."
                faults.add(Fault(file=best[0], expected=f"one file of {role}", found=", ".join(best), fix=fix))
            if named is not None or candidates:
                chosen[role] = named or candidates[0]
            others = [s.path.name for s in candidates if s != chosen[role]]
            how = f"--set {role if role in requested else 'text'}_sequence=FILE selects another"
            if others:
                why = "as requested" if named is not None else "the preferred release"
                self.notes.append(f"{role}: {chosen[role].path.name} is read, {why}, and not {', '.join(others)}")
            for name in others:
                self.unused[name] = f"{chosen[role].path.name} is read for {role}" + f"; {how}" * (role != "labels")
        for s in sequences:
            if s.role == "other" and s not in chosen.values():
                how = "--set audio_sequence or vision_sequence=FILE reads it"
                self.unused[s.path.name] = f"the sequence {s.root!r} is unknown; {how}"
        if text is not None and text.role not in ("words", "vectors"):
            raise UsageError(f"text_sequence={options.text_sequence!r} is a sequence of {text.role}, not of words")
        return chosen

    @staticmethod
    def named(name: str, sequences: list[Sequence], option: str) -> Sequence | None:
        if not name:
            return None
        for s in sequences:
            if name in (s.path.name, s.path.stem, s.root):
                return s
        known = ", ".join(s.path.name for s in sequences) or "none"
        raise UsageError(f"{option}={name!r}: no such sequence in the export; its sequences are {known}")

    def _read_labels(self, labels: Sequence, folds: dict[str, str], faults: FaultCollector) -> None:
        entries, corpus = dict(each(labels)), self.options.corpus
        widths = corpus.label_widths
        bad = [e for e in entries.values() if e.features.dtype == object or e.features.shape[1] not in widths]
        if bad:
            expected = f"one score per segment, or {max(widths)} labels" if len(widths) > 1 else "one score per segment"
            raise DataError(labels.fault("*", "features", expected, f"shape {bad[0].features.shape}"))
        rows = {v: np.arange(len(e.intervals)) if e.segment is None else e.segment for v, e in entries.items()}
        self.rows = rows
        video = [v for v, r in rows.items() for _ in range(len(r))]
        segments = np.concatenate([e.intervals for e in entries.values()])
        score = np.concatenate([e.features[:, 0] for e in entries.values()])
        # Row i of a video is the i-th clip; an aligned file may lack rows, so its keys give the numbers.
        clip = np.concatenate(list(rows.values())) + corpus.first_clip
        fold = [folds.get(v) for v in video]
        self.clips = clip_frame(corpus, video, clip, score, fold, segments[:, 0], segments[:, 1])
        ids = self.clips["sample_id"].to_list()
        column = f"{labels.root}/data/*/features"
        faults.faults.extend(score_faults(labels.path.name, column, corpus, score, ids, rows=False))
        doubled = self.clips.filter(pl.col("sample_id").is_duplicated())["sample_id"].to_list()
        if doubled:
            faults.add(labels.fault("", None, "one label per segment", f"{doubled[0]} repeated"))
        self.segments = {v: e.intervals for v, e in entries.items()}
        counts = [0, *np.cumsum([len(r) for r in rows.values()]).tolist()]
        self.first = dict(zip(rows, counts, strict=False))
        if folds and not set(folds) & set(rows):
            found = "no labelled video in any list"
            faults.add(Fault(file=corpus.fold_file, expected="videos in the export", found=found))
        elif folds:
            self._report(corpus.fold_file, set(rows), set(folds), "videos", faults)
        empty = self.clips.filter(pl.col("end") <= pl.col("start"))
        if len(empty):
            self.notes.append(f"segments of zero length, without words and frames: {len(empty)}")

    def _report(self, file: str, labelled: set[str], present: set[str], what: str, faults: FaultCollector) -> None:
        """Report labelled videos or segments that a file lacks, and those that it has without labels."""
        limit = self.options.max_unmatched
        absent = f"labelled {what} are absent"
        report_unmatched(labelled, present, absent, file=file, notes=self.notes, faults=faults, limit=limit)
        report_unmatched(present, labelled, f"{what} have no labels", file=file, notes=self.notes)

    def _check_sequence(self, sequence: Sequence, faults: FaultCollector) -> None:
        """Check the structure of a sequence, its videos, and the rows of an utterance-level sequence."""
        utterances = "utterance" in f"{sequence.root} {sequence.path.name}".lower()
        numbers: dict[str, Index | None] = {}
        for video, entry in each(sequence, features=sequence.role == "words"):
            numbers[video] = None if entry.segment is None else np.unique(entry.segment)
            if utterances and sequence.role in ("audio", "vision") and video in self.segments and entry.segment is None:
                self._require_one_row_per_segment(sequence, video, entry, faults)
        if not set(self.segments) & set(numbers):
            raise DataError(sequence.fault("", None, "the videos in the labels", "none of them"))
        if all(n is None for n in numbers.values()):
            self._report(sequence.path.name, set(self.segments), set(numbers), "videos", faults)
        else:
            present = {f"{v}[{i}]" for v, n in numbers.items() for i in ([] if n is None else n)}
            labelled = {f"{v}[{i}]" for v, r in self.rows.items() for i in r}
            self._report(sequence.path.name, labelled, present, "segments", faults)

    def _require_one_row_per_segment(
        self, sequence: Sequence, video: str, entry: CsdEntry, faults: FaultCollector
    ) -> None:
        segments = self.segments[video]
        if len(entry.intervals) != len(segments):
            expected, found = f"{len(segments)} rows, one per segment", f"{len(entry.intervals)} rows"
            faults.add(sequence.fault(video, "features", expected, found))
        elif (np.abs(entry.intervals - segments) > SAME_TIME).any():
            row = int((np.abs(entry.intervals - segments) > SAME_TIME).any(axis=1).argmax())
            expected, found = f"the segment {segments[row].tolist()}", f"{entry.intervals[row].tolist()}"
            faults.add(sequence.fault(video, "intervals", expected, found, row))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in the export, in bit order."""
        text = "words" in self.chosen or "vectors" in self.chosen
        return (*(("text",) if text else ()), *(m for m in ("audio", "vision") if m in self.chosen))

    @cached_property
    def _words(self) -> dict[str, CsdEntry]:
        """Entries of the sequence with the word times."""
        return dict(each(self._text_sequence))

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
        """Pairs (segment, word) of each video in time order, without pauses and zero vectors."""
        pairs = {}
        for video, segments in self.segments.items():
            if (entry := self._words.get(video)) is not None:
                target, item = self._pairs(video, entry, segments, words=True)
                x = entry.features[item]
                kept = x != PAUSE if self.has_words() else (x != 0).any(axis=1)
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
        words: list[list[str]] = [[] for _ in range(len(self.clips))]
        for video, (target, item) in self._word_pairs.items():
            clips = (self.first[video] + target).tolist()
            for clip, word in zip(clips, self._words[video].features[item].tolist(), strict=True):
                words[clip].append(word)
        return words

    def text_source(self) -> tuple[str, str]:
        """File and column of the text."""
        return self._text_sequence.path.name, f"{self._text_sequence.root}/data"

    def has_words(self) -> bool:
        """Whether the text is words, which an encoder has to turn into vectors."""
        return self._text_sequence.role == "words"

    def text_vectors(self) -> RaggedBlock:
        """Word vectors of the export, one sequence per clip."""
        pairs = self._word_pairs.items()
        parts = [(self.first[v] + target, self._words[v].features[item]) for v, (target, item) in pairs]
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
        text = "text" in self.modalities
        utterances, segments = self._level(modality)
        if utterances:
            stored, found = "vector", "one row per segment, no frames; use auto"
        elif any(s is not None for s in segments.values()):
            # Aligned to segments by the SDK; also to words if each segment has as many rows as the text.
            words = self._words if text else {}
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
        target, item = self._word_pairs.get(video, (np.empty(0, np.int64), np.empty(0, np.int64)))
        # A clip without words becomes one step that covers the whole segment.
        silent = np.setdiff1d(np.arange(len(segments)), target)
        times = np.concatenate(
            [self._words[video].intervals[item] if len(item) else np.empty((0, 2)), segments[silent]]
        )
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
