"""Select the .csd files of an export and check that labels, folds and sequences are consistent."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.align import Index
from mrpipe.datasets.mosi.clips import clip_frame, read_folds, score_faults
from mrpipe.datasets.mosi.formats.csd import AGAIN, CsdEntry, Sequence, each, inspect, load
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError
from mrpipe.raw import report_unmatched

SAME_TIME = 0.1  # maximum difference, in seconds, between the times of an utterance-level row and of its segment


class SdkFiles:
    """The .csd files and fold lists of an export.

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
            self._read_labels(labels, folds, faults)
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
            named = self.named(requested.get(role, ""), sequences, f"{role}_sequence")
            if text is not None and role == text.role:
                named = text
            if named is not None:
                chosen[role] = named
            elif candidates:
                if len(candidates) > 1 and candidates[0].rank == candidates[1].rank:
                    found = ", ".join(s.path.name for s in candidates if s.rank == candidates[0].rank)
                    fix = f"Remove the others, or select one with --set {role}_sequence=FILE."
                    file = candidates[0].path.name
                    faults.add(Fault(file=file, expected=f"one file of {role}", found=found, fix=fix))
                chosen[role] = candidates[0]
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
        entries = faults.attempt(load, labels)
        if entries is None:
            return
        corpus = self.options.corpus
        widths = corpus.label_widths
        bad = [e for e in entries.values() if e.features.dtype == object or e.features.shape[1] not in widths]
        if bad:
            expected = f"one score per segment, or {max(widths)} labels" if len(widths) > 1 else "one score per segment"
            faults.add(labels.fault("*", "features", expected, f"shape {bad[0].features.shape}"))
            return
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
