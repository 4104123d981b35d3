"""Exports with the splits train, valid and test: all pickles, and feature files by clip."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.mosi.clips import clip_frame, parse_id, score_faults
from mrpipe.datasets.mosi.corpora import Corpus
from mrpipe.datasets.mosi.ragged import RaggedBlock, feature_names, unpad
from mrpipe.errors import DataError, Fault, FaultCollector, UsageError
from mrpipe.raw import utf8
from mrpipe.text.encoders import tokenise

MODES = {"train": "train", "test": "test", "valid": "valid", "val": "valid", "dev": "valid"}
PARTS = {"train": "train", "valid": "val", "test": "test"}
MODALITIES = ("text", "audio", "vision")
AGAIN = "Check that this is the published file, or download it again."
ANNOTATIONS = ("Negative", "Neutral", "Positive")
# Layout → its name, how it writes ids, and the encoder of its text vectors.
LAYOUTS = {
    "mmsa": ("MMSA", "video$_$clip", "BERT (MMSA)"),
    "multibench": ("MultiBench", "video[i], or rows of video, start, end", "GloVe (MultiBench)"),
    "mag": ("MAG-BERT", "video[i]", ""),
    "files": ("features by clip,", "video_clip", "text features by clip"),
}
# Chinese is written without spaces: each of its characters is a word, as in BERT.
_HAN = re.compile(r"[\u3400-\u9fff]|[^\u3400-\u9fff]+")


@dataclass(frozen=True, kw_only=True)
class ClipArrays:
    """Features of one modality in one split, read one clip at a time.

    Attributes:
        load: row → (T, d) steps or (d,) for one vector per clip, or None; and whether they contradict a stored length.
            Raises a DataError.
        files: name of the file of each clip, for error messages.
        padded: number of steps after padding; 0 if not padded.
    """

    load: Callable[[int], tuple[Any, bool]]
    files: Sequence[str]
    padded: int = 0

    def __len__(self) -> int:
        return len(self.files)


class SplitExport:
    """An opened export with the splits train, valid and test, which become the folds.

    Each split is a dictionary with `id`, `regression_labels` or `labels`, and any of `text`, `audio`, `vision`: arrays
    (N, steps, features) padded with zeros, or `ClipArrays`. `raw_text` has texts or lists of words. MMSA adds true
    lengths (`text_bert`, `audio_lengths`, `vision_lengths`) and `annotations`.

    Attributes:
        format: mmsa, multibench (also MulT), mag or files.
        release: name of the format.
        files: the files that are read.
        clips: ids, folds and scores with `clips.CLIPS_SCHEMA`.
        notes: notes for the manifest.
        unused: name of a file that is not read → the reason.

    Raises:
        DataError: all keys that are missing, not numeric, of the wrong size or inconsistent.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], corpus: Corpus, layout: str):
        self.path, self.corpus, self.format = path, corpus, layout
        self.release, self._id_form, self._encoder = LAYOUTS[layout]
        self.files: tuple[Path, ...] = (path,)
        self.unused: dict[str, str] = {}
        self.notes: list[str] = []
        self._parts: dict[str, dict[str, Any]] = {}
        self._widths: dict[str, int] = {}
        self._scans: dict[str, pl.DataFrame] = {}
        parts = [p for p in PARTS if isinstance(content.get(p), dict)]
        self.label_key = "regression_labels" if any("regression_labels" in content[p] for p in parts) else "labels"
        self._stored = tuple(m for m in MODALITIES if any(m in content[p] for p in parts))
        text = any("raw_text" in content[p] for p in parts)
        self.modalities = tuple(m for m in MODALITIES if m in self._stored or (m == "text" and text))
        faults = FaultCollector()
        for part in PARTS:
            value = content.get(part)
            if not isinstance(value, dict):
                found = f"keys {', '.join(map(str, content))}" if value is None else type(value).__name__
                faults.add(self.fault(part, None, "a dictionary", found))
                continue
            self._parts[part] = value = dict(value)
            self._check_part(part, value, faults)
        faults.raise_if_any()
        self.clips = self._read_clips(faults)
        faults.raise_if_any()

    def fault(self, part: str, key: str | None, expected: str, found: str, row: int | None = None) -> Fault:
        column = part if key is None else f"{part}/{key}"
        return Fault(file=self.path.name, column=column, row=row, expected=expected, found=found, fix=AGAIN)

    def _part_ids(self, part: str, value: Any, faults: FaultCollector) -> list[tuple[str, int]]:
        """Video and clip number of each row of a split; rows of (video, start, end) are numbered by their start."""
        texts = id_strings(value, self.path.name, f"{part}/id")
        rows = np.asarray(value, dtype=object)
        if rows.ndim > 1 and rows.size == 3 * len(rows):
            starts = rows.reshape(len(rows), -1)[:, 1].astype(np.float64)
            self.notes.append(f"{part}: the ids have no clip numbers; clips are numbered by start time")
            rank = pl.DataFrame({"video": texts, "start": starts}).select(pl.col("start").rank("ordinal").over("video"))
            clips = rank.to_series().cast(pl.Int64) - 1 + self.corpus.first_clip
            return list(zip(texts, clips.to_list(), strict=True))
        parsed = [parse_id(t, self.corpus) for t in texts]
        if None in parsed:
            bad = parsed.index(None)
            faults.add(self.fault(part, "id", f"ids like {self._id_form}", f"{texts[bad]!r}", row=bad + 1))
        return [p for p in parsed if p is not None]

    def _check_part(self, part: str, value: dict[str, Any], faults: FaultCollector) -> None:
        for key in ("id", self.label_key, *self._stored):
            if key not in value:
                faults.add(self.fault(part, key, "this key", f"keys {', '.join(sorted(map(str, value)))}"))
        if not self.modalities:
            faults.add(self.fault(part, None, "at least one of text, audio, vision", "none of them"))
        rows = {k: len(value[k]) for k in ("id", self.label_key) if k in value and np.ndim(value[k]) > 0}
        for key in (m for m in self._stored if m in value):
            x = value[key]
            if isinstance(x, np.ndarray) and x.ndim == 3 and x.dtype.kind in "fiu" and 0 not in x.shape[1:]:
                value[key] = x = self._padded(part, key, value, faults)
            if isinstance(x, ClipArrays):
                rows[key] = len(x)
            else:
                found = f"shape {x.shape}, dtype {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
                faults.add(self.fault(part, key, "numbers of shape (N, steps, features)", found))
        if len(set(rows.values())) > 1:
            found = ", ".join(f"{k} {n}" for k, n in rows.items())
            faults.add(self.fault(part, None, "the same number of rows in every key", found))

    def _padded(self, part: str, key: str, value: dict[str, Any], faults: FaultCollector) -> ClipArrays:
        """An array (N, T, d) padded with zeros, as `ClipArrays`; MMSA has true lengths."""
        x = value[key]
        width = self._widths.setdefault(key, x.shape[2])
        if width != x.shape[2]:
            faults.add(self.fault(part, key, f"{width} features, as in train", f"{x.shape[2]}"))
        lengths = value.get(f"{key}_lengths")
        if key == "text" and "text_bert" in value:
            # (N, 3, 50): token ids, attention mask, type ids. A text with only [CLS] and [SEP] has no words.
            lengths = np.asarray(value["text_bert"])[:, 1].sum(axis=1).astype(np.int64)
            lengths = np.where(lengths > 2, lengths, 0)
        if lengths is not None:
            lengths = np.asarray(lengths, dtype=np.int64).ravel()
            if len(lengths) != len(x) or (lengths > x.shape[1]).any():
                found = f"{len(lengths)} lengths, the largest {lengths.max(initial=0)}"
                faults.add(self.fault(part, f"{key}_lengths", f"{len(x)} lengths of at most {x.shape[1]}", found))

        def load(row: int) -> tuple[Any, bool]:
            return unpad(x[row], None if lengths is None else int(lengths[row]))

        return ClipArrays(load=load, files=[self.path.name] * len(x), padded=x.shape[1])

    def _read_clips(self, faults: FaultCollector) -> pl.DataFrame:
        read = (faults.attempt(self._part_clips, part, value, faults) for part, value in self._parts.items())
        frames = [frame for frame in read if frame is not None]
        if not frames:
            return pl.DataFrame()
        clips = pl.concat(frames)
        doubled = clips.filter(pl.col("sample_id").is_duplicated())
        if len(doubled):
            first = doubled.row(0, named=True)
            again = doubled.filter(pl.col("sample_id") == first["sample_id"]).row(1, named=True)
            place = f"{first['part']} row {first['row'] + 1}"
            found = f"{first['sample_id']} repeated ({len(doubled)} such rows), also in {place}"
            faults.add(self.fault(again["part"], "id", "unique ids", found, row=again["row"] + 1))
        shared = clips.group_by("subject_id", maintain_order=True).agg(pl.col("part").unique(maintain_order=True))
        shared = shared.filter(pl.col("part").list.len() > 1)
        if len(shared) and not len(doubled):
            video, names = shared.row(0)
            found = f"{video!r} in {' and '.join(names)} ({len(shared)} such videos)"
            faults.add(self.fault(names[1], "id", "each video in one split only", found))
        return clips.drop("part", "row")

    def _part_clips(self, part: str, value: dict[str, Any], faults: FaultCollector) -> pl.DataFrame:
        """Clips of one split with the columns `row` and `part`; a DataError if they cannot be read."""
        corpus, key = self.corpus, self.label_key
        try:
            table = np.asarray(value[key], dtype=np.float32).reshape(len(value[key]), -1)
        except (TypeError, ValueError) as error:
            raise DataError(self.fault(part, key, "numbers", str(error))) from error
        if table.shape[1] not in corpus.label_widths:
            found = f"shape {np.shape(value[key])}"
            raise DataError(self.fault(part, key, "one score per clip: (N,), (N, 1) or (N, 1, 1)", found))
        score, own = table[:, 0], FaultCollector()
        with own.collecting():
            ids = self._part_ids(part, value["id"], own)
            self._check_annotations(part, value, score, own)
        own.raise_if_any()
        frame = clip_frame(corpus, [v for v, _ in ids], [c for _, c in ids], score, [PARTS[part]] * len(ids))
        names = frame["sample_id"].to_list()
        faults.faults.extend(score_faults(self.path.name, f"{part}/{key}", corpus, score, names))
        return frame.with_columns(pl.lit(part).alias("part")).with_row_index("row")

    def _check_annotations(
        self, part: str, value: dict[str, Any], score: NDArray[np.float32], faults: FaultCollector
    ) -> None:
        """Compare MMSA's further forms of the label with the sign of the score."""
        if self.label_key == "labels" or not self.corpus.signed:
            return
        sign = np.sign(np.nan_to_num(score)).astype(int) + 1
        kinds = {"annotations": "sign", "classification_labels": "sign, 0 1 2"}
        for key, kind in ((k, kind) for k, kind in kinds.items() if k in value):
            given = classes = np.asarray(value[key]).ravel()
            if given.dtype.kind in "SUO":
                names = id_strings(given, self.path.name, f"{part}/{key}")
                classes = np.array([ANNOTATIONS.index(t) if t in ANNOTATIONS else -1 for t in names])
            if len(classes) != len(sign):
                faults.add(self.fault(part, key, f"{len(sign)} rows", f"{len(classes)}"))
            elif (classes != sign).any():
                row = int((classes != sign).argmax())
                found = f"{given[row]!r} for the score {score[row]} ({int((classes != sign).sum())} such rows)"
                faults.add(self.fault(part, key, f"the {kind} of regression_labels", found, row=row + 1))

    def has_words(self) -> bool:
        """Whether the text is words only, which an encoder has to turn into vectors."""
        return "text" not in self._stored

    def tokens(self) -> list[list[str]]:
        """Words of each clip in the order of `clips`."""
        if any("raw_text" not in p for p in self._parts.values()):
            raise UsageError(f"{self.path.name} contains word vectors but no words: use text_encoder=export")
        words = []
        for part, p in self._parts.items():
            if self.format == "mag":
                words += [[utf8(w, file=self.path.name, column=f"{part}/words") for w in t] for t in p["raw_text"]]
                continue
            for text in id_strings(p["raw_text"], self.path.name, f"{part}/raw_text"):
                words.append([w for token in tokenise(text) for w in _HAN.findall(token)])
        return words

    def text_source(self) -> tuple[str, str]:
        """File and column of the words."""
        return self.path.name, "raw_text"

    def text_vectors(self) -> RaggedBlock:
        """Word vectors of the export, or one vector per clip."""
        form = "vector" if self._scan("text")["vector"].all() else "steps"
        return replace(self.frames("text", form), kind="embedding", encoder=self._encoder)

    def form(self, modality: str, requested: str) -> str:
        """Form of audio or vision: vector, steps (as many as the text), raw or collapse; a UsageError for another."""
        stored, found = "raw", "is not aligned to words; use raw or collapse"
        if self._scan(modality)["vector"].all():
            stored, found = "vector", "has one vector per clip; use auto"
        elif "text" in self.modalities and self._aligned(modality):
            stored, found = "steps", "is aligned to words; use steps or collapse"
        if requested in ("steps", "raw") and requested != stored:
            raise UsageError(f"{modality}_form={requested}: {self.path.name} {found}")
        return "collapse" if requested == "collapse" and stored != "vector" else stored

    def _aligned(self, modality: str) -> bool:
        """Whether there is a step per word, by the shapes alone."""
        if self._parts["train"][modality].padded:
            return all("text" in p and p[modality].padded == p["text"].padded for p in self._parts.values())
        words = pl.Series([len(t) for t in self.tokens()]) if self.has_words() else self._scan("text")["n"]
        return bool(((self._scan(modality)["n"] == words) | ~self._scan(modality)["known"]).all())

    def steps(self, modality: str) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Number of steps, whether any value is observed, and whether a stored length is contradicted, each (N,)."""
        scan = self._scan(modality)
        return scan["n"].to_numpy(), scan["known"].to_numpy(), scan["contradicts"].to_numpy()

    def _scan(self, modality: str, keep: list[NDArray[np.float32]] | None = None) -> pl.DataFrame:
        """Read the clips one by one; the values (T, d) of each are appended to `keep`.

        Returns the columns of `steps`, and `vector`: whether the clip has one vector, or nothing.

        Raises:
            DataError: all clips whose features are damaged or not numbers of one width.
        """
        if keep is None and modality in self._scans:
            return self._scans[modality]
        faults, width, rows = FaultCollector(), 0, []
        for part, value in self._parts.items():
            arrays: ClipArrays = value[modality]
            for row in range(len(arrays)):
                try:
                    x, contradicts = arrays.load(row)
                except DataError as error:
                    faults.absorb(error)
                    continue
                x = np.empty((0, width), np.float32) if x is None else np.asarray(x)
                if x.dtype.kind not in "fiu" or x.ndim not in (1, 2) or (width and len(x) and x.shape[-1] != width):
                    expected = f"numbers of shape (steps, {width or 'features'}) or ({width or 'features'},)"
                    fault = self.fault(part, modality, expected, f"{x.dtype} of shape {x.shape}", row + 1)
                    faults.add(replace(fault, file=arrays.files[row]))
                    continue
                vector, x = x.ndim == 1 or not len(x), np.atleast_2d(x)
                width = width or x.shape[1]
                rows.append((len(x), bool((np.isfinite(x) & (x != 0)).any()), contradicts, vector))
                if keep is not None:
                    keep.append(x.astype(np.float32))
        faults.raise_if_any()
        self._scans[modality] = pl.DataFrame(rows, schema=["n", "known", "contradicts", "vector"], orient="row")
        return self._scans[modality]

    def frames(self, modality: str, form: str) -> RaggedBlock:
        """Features of one modality in a form that `form` returned, in the order of `clips`.

        Infinite values, and steps of zeros within a clip, were not observed and become NaN.
        """
        kept: list[NDArray[np.float32]] = []
        lengths = self._scan(modality, kept)["n"].to_numpy()
        width = max(x.shape[1] for x in kept)
        x = np.concatenate([x for x in kept if x.shape[1] == width])
        x[np.isinf(x)] = np.nan
        if form != "vector":
            x[(x == 0).all(axis=1)] = np.nan
        names = feature_names(modality, x.shape[1])
        block = RaggedBlock.of(self.clips, x, lengths, names=names, file=self.path.name, columns=(modality,))
        return block.collapsed() if form in ("vector", "collapse") else block


def id_strings(value: Any, file: str, column: str) -> list[str]:
    """Ids as str, from a list or array of str or UTF-8 bytes with shape (N,) or (N, k), whose first column has them."""
    rows = np.asarray(value, dtype=object)
    rows = rows.reshape(len(rows), -1)[:, 0] if rows.ndim > 1 else rows
    return [utf8(v, file=file, column=column, row=i + 1) for i, v in enumerate(rows.tolist())]
