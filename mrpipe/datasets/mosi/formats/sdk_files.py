"""Which .csd files of the SDK's export are read, and whether they fit together: labels, folds, sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.align import Index
from mrpipe.datasets.mosi.clips import clip_frame, read_folds, score_faults
from mrpipe.datasets.mosi.formats.csd import AGAIN, CsdEntry, Role, Sequence, inspect, load
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError

SAME_TIME = 0.1  # seconds by which the times of an utterance-level row may differ from its segment's


class SdkFiles:
    """A folder of .csd files and the fold lists.

    Raises:
        DataError: every fault of labels, folds, and the structure of the other files.
    """

    def __init__(self, raw: Path, paths: list[Path], options: MosiOptions):
        faults = FaultCollector()
        self.notes: list[str] = []
        self.options = options
        sequences = []
        for path in paths:
            try:
                sequences.append(inspect(path))
            except DataError as error:
                faults.absorb(error)
        self.chosen = self._choose(sequences, options, faults)
        fold_path, folds = read_folds(raw, faults)
        labels = self.chosen.get("labels")
        if labels is None:
            expected = "CMU_MOSI_Opinion_Labels.csd, the opinion segments and their scores"
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
                try:
                    self._check_sequence(self.chosen[role])
                except DataError as error:
                    faults.absorb(error)
        if labels is not None and not set(self.chosen) - {"labels"}:
            expected = "words, audio or vision beside the labels"
            faults.add(Fault(file="CMU_MOSI_TimestampedWords.csd", expected=expected, found="labels only", fix=AGAIN))
        faults.raise_if_any()

    # --- which files, which clips ------------------------------------------------------------------------------------

    def _choose(self, sequences: list[Sequence], options: MosiOptions, faults: FaultCollector) -> dict[Role, Sequence]:
        chosen: dict[Role, Sequence] = {}
        wanted = {"audio": options.audio_sequence, "vision": options.vision_sequence}
        text = self.named(options.text_sequence, sequences, "text_sequence")
        for role in ("labels", "words", "vectors", "audio", "vision"):
            candidates = sorted((s for s in sequences if s.role == role), key=lambda s: (s.rank, s.path.name))
            named = self.named(wanted.get(role, ""), sequences, f"{role}_sequence")
            if text is not None and role == text.role:
                named = text
            if named is not None:
                chosen[role] = named
            elif candidates:
                if len(candidates) > 1 and candidates[0].rank == candidates[1].rank:
                    found = ", ".join(s.path.name for s in candidates if s.rank == candidates[0].rank)
                    fix = f"Remove the others, or name one with --set {role}_sequence=FILE."
                    faults.add(
                        Fault(file=candidates[0].path.name, expected=f"one file of {role}", found=found, fix=fix)
                    )
                chosen[role] = candidates[0]
            used = chosen.get(role)
            self.notes += [
                f"{s.path.name} ({role}) was not read: {used.path.name} was" for s in candidates if s != used and used
            ]
        self.notes += [
            f"{s.path.name}: unknown sequence {s.root!r}, not read"
            for s in sequences
            if s.role == "other" and s not in chosen.values()
        ]
        if text is not None and text.role not in ("words", "vectors"):
            raise UsageError(f"text_sequence={options.text_sequence!r} names a sequence of {text.role}, not of words")
        return chosen

    @staticmethod
    def named(name: str, sequences: list[Sequence], option: str) -> Sequence | None:
        if not name:
            return None
        for s in sequences:
            if name in (s.path.name, s.path.stem, s.root):
                return s
        known = ", ".join(s.path.name for s in sequences) or "none"
        raise UsageError(f"{option}={name!r}: no such sequence in the export; it holds {known}")

    def _read_labels(self, labels: Sequence, folds: dict[str, str], faults: FaultCollector) -> None:
        try:
            entries = load(labels)
        except DataError as error:
            faults.absorb(error)
            return
        if any(e.features.dtype == object or e.features.shape[1] != 1 for e in entries.values()):
            shape = next(
                e.features.shape for e in entries.values() if e.features.dtype == object or e.features.shape[1] != 1
            )
            faults.add(
                Fault(
                    file=labels.path.name,
                    column=f"{labels.root}/data/*/features",
                    expected="one score a segment",
                    found=f"shape {shape}",
                    fix=AGAIN,
                )
            )
            return
        rows = {v: np.arange(len(e.intervals)) if e.segment is None else e.segment for v, e in entries.items()}
        self.rows = rows
        video = [v for v, r in rows.items() for _ in range(len(r))]
        segments = np.concatenate([e.intervals for e in entries.values()])
        score = np.concatenate([e.features[:, 0] for e in entries.values()])
        # Row i of a video is clip i + 1; an aligned file may lack rows, its keys say which.
        clip = np.concatenate(list(rows.values())) + 1
        self.clips = clip_frame(video, clip, score, [folds.get(v) for v in video], segments[:, 0], segments[:, 1])
        ids = self.clips["sample_id"].to_list()
        for fault in score_faults(labels.path.name, f"{labels.root}/data/*/features", score, ids):
            faults.add(fault)
        doubled = self.clips.filter(pl.col("sample_id").is_duplicated())["sample_id"].to_list()
        if doubled:
            faults.add(
                Fault(
                    file=labels.path.name,
                    column=f"{labels.root}/data",
                    expected="one label a segment",
                    found=f"{doubled[0]} more than once",
                    fix=AGAIN,
                )
            )
        self.segments = {v: e.intervals for v, e in entries.items()}
        counts = [0, *np.cumsum([len(r) for r in rows.values()]).tolist()]
        self.first = dict(zip(rows, counts, strict=False))
        if folds and not set(folds) & set(rows):
            found = "none of the labelled videos in any list"
            faults.add(Fault(file="cmu_mosi_std_folds.py", expected="the videos of this export", found=found))
        if unlabelled := sorted(set(folds) - set(rows)):
            self.notes.append(f"videos of the fold lists without labels in this export: {len(unlabelled)}")
        empty = self.clips.filter(pl.col("end") <= pl.col("start"))
        if len(empty):
            self.notes.append(f"segments of zero length, which hold no word and no frame: {len(empty)}")

    def _check_sequence(self, sequence: Sequence) -> None:
        """Structure of a sequence, its videos, and one row a segment where it is utterance-level."""
        entries = load(sequence, features=False)
        missing = sorted(set(self.segments) - set(entries))
        foreign = sorted(set(entries) - set(self.segments))
        if len(missing) == len(self.segments):
            raise DataError(
                Fault(
                    file=sequence.path.name,
                    column=f"{sequence.root}/data",
                    expected="the videos of the labels",
                    found="none of them",
                    fix="Do the files belong to the same data set?",
                )
            )
        for videos, what in ((missing, "labelled videos that are not in it"), (foreign, "videos without labels")):
            if videos:
                self.notes.append(f"{sequence.path.name}: {what}: {len(videos)}")
        if sequence.role in ("audio", "vision") and "utterance" in f"{sequence.root} {sequence.path.name}".lower():
            self._require_one_row_a_segment(sequence, entries)

    def _require_one_row_a_segment(self, sequence: Sequence, entries: dict[str, CsdEntry]) -> None:
        faults = FaultCollector()
        for video, entry in entries.items():
            segments = self.segments.get(video)
            if segments is None or entry.segment is not None:
                continue
            column = f"{sequence.key(video)}/features"
            if len(entry.intervals) != len(segments):
                found = f"{len(entry.intervals)} rows"
                faults.add(
                    Fault(
                        file=sequence.path.name,
                        column=column,
                        expected=f"{len(segments)} rows, one a segment",
                        found=found,
                        fix=AGAIN,
                    )
                )
            elif (np.abs(entry.intervals - segments) > SAME_TIME).any():
                row = int((np.abs(entry.intervals - segments) > SAME_TIME).any(axis=1).argmax())
                faults.add(
                    Fault(
                        file=sequence.path.name,
                        column=f"{sequence.key(video)}/intervals",
                        row=row + 1,
                        expected=f"the times of the segment, {segments[row].tolist()}",
                        found=f"{entry.intervals[row].tolist()}",
                        fix=AGAIN,
                    )
                )
        faults.raise_if_any()
