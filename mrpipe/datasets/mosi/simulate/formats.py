"""Write simulated reviews in each format that is read, with the quirks of the published files."""

import io
import json
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe import keyed
from mrpipe.datasets.mosi.align import means
from mrpipe.datasets.mosi.formats.sdk import SdkExport
from mrpipe.datasets.mosi.options import MosiOptions, MosiSimulation
from mrpipe.store.parquet import replacing, write_text
from mrpipe.text.encoders import get_encoder

if TYPE_CHECKING:
    from mrpipe.datasets.mosi.simulate.export import World

AUDIO_DIM, VISION_DIM, UTTERANCE_DIM = 74, 35, 73  # COVAREP, FACET 4.2, openSMILE
MMSA_DIMS = {"audio": 5, "vision": 20}
MMSA_FRAMES = {"audio": 375, "vision": 500}
STEPS = 50
FRAME_NOISE = 0.5  # standard deviation of frames around the reading of their clip
FAILED_FRAMES = 0.01  # fraction of vision frames without a face, which are all zero
PARTS = ("train", "valid", "test")
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def write(export: Path, world: "World", options: MosiSimulation) -> None:
    """Write the export; other formats contain the same words and frames as the .csd files, as the SDK aligns them."""
    if options.format == "csd":
        _write_csd(export, world, options, infinite=options.infinite_audio)
        return
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        _write_csd(raw, world, options, infinite=0.0)
        reading = type("Reading", (MosiOptions,), {"corpus": options.corpus})(text_encoder="hashing", max_steps=0)
        sdk = SdkExport(raw, sorted(raw.glob("*.csd")), reading)
        if options.format == "files":
            _write_files(export, sdk, options)
            return
        content, name = PICKLES[options.format](sdk, options)
    with replacing(export / name) as path, path.open("wb") as handle:
        pickle.dump(content, handle, protocol=4)


def _write_csd(export: Path, world: "World", options: MosiSimulation, *, infinite: float) -> None:
    n_videos = len(world.videos)
    folds = {part: [v for v, f in zip(world.videos, world.folds, strict=True) if f == part] for part in PARTS}
    lines = [f"standard_{part}_fold={videos!r}\n" for part, videos in folds.items()]
    corpus = options.corpus
    prefix = f"CMU_{corpus.name.upper()}"
    write_text(export / corpus.fold_file, "\n".join(lines))
    clip_runs = _runs(world.clip_video, n_videos)
    scores, segments = np.tile(world.scores[:, None], max(corpus.label_widths)), world.segments.astype(np.float32)
    labels = {v: (scores[run], segments[run]) for v, run in zip(world.videos, clip_runs, strict=True)}
    single = corpus.label_widths == (1,)
    name, root = ("Opinion_Labels", "Opinion Segment Labels") if single else ("Labels", "All Labels")
    _write_sequence(export / f"{prefix}_{name}.csd", root, labels, ["sentiment score"])
    spoken = zip(world.videos, _runs(world.token_video, n_videos), strict=True)
    words = {v: (world.words[run].astype(np.bytes_)[:, None], world.times[run]) for v, run in spoken}
    root = f"{prefix}_TimestampedWords"
    _write_sequence(export / f"{root}.csd", root, words, ["word"])
    if options.utterance_audio:
        x = _columns(keyed.generator(options.seed, "mosi/utterance"), world.base["audio"], UTTERANCE_DIM)
        _set_infinite(x, infinite, options.seed)
        rows = {v: (x[run], world.segments[run]) for v, run in zip(world.videos, clip_runs, strict=True)}
        root = f"{prefix}_openSMILE_utterance"
        _write_sequence(export / f"{root}.csd", root, rows, [f"opensmile_{i}" for i in range(UTTERANCE_DIM)])
        return
    for modality, root, d in (
        ("audio", f"{prefix}_COVAREP", AUDIO_DIM),
        ("vision", f"{prefix}_Visual_Facet_42", VISION_DIM),
    ):
        video, times, x = _frames(world, options, modality, d)
        if modality == "audio":
            _set_infinite(x, infinite, options.seed)
        frames = {v: (x[r], times[r]) for v, r in zip(world.videos, _runs(video, n_videos), strict=True)}
        _write_sequence(export / f"{root}.csd", root, frames, [f"{modality}_{i}" for i in range(d)])


def _runs(group: NDArray[np.int64], n: int) -> list[slice]:
    bounds = np.searchsorted(group, np.arange(n + 1))
    return [slice(a, b) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def _frames(world: "World", options: MosiSimulation, modality: str, d: int) -> tuple[Ints, NDArray[np.float64], Floats]:
    """Frames of all videos: video (F,), start and end in seconds (F, 2), features (F, d)."""
    rng = keyed.generator(options.seed, "mosi/frames", modality)
    last = np.append(np.flatnonzero(np.diff(world.token_video)), len(world.token_video) - 1)
    n_frames = np.floor(world.times[last, 1] * options.frames_per_second).astype(np.int64)
    video = np.repeat(np.arange(len(n_frames)), n_frames)
    k = np.arange(len(video)) - np.repeat(np.cumsum(n_frames) - n_frames, n_frames)
    times = np.stack([k, k + 1], axis=1) / options.frames_per_second
    # Find the token at the middle of each frame; for the search, videos are concatenated in time.
    length = world.times[:, 1].max() + 1.0
    token = np.searchsorted(world.token_video * length + world.times[:, 0], video * length + times.mean(axis=1)) - 1
    clip = world.token_clip[np.maximum(token, 0)]
    base = rng.standard_normal((len(video), world.base[modality].shape[1])).astype(np.float64) * FRAME_NOISE
    # Centre the frame noise within each clip, so that the mean of its frames is the reading of the clip.
    inside = clip >= 0
    order = np.flatnonzero(inside)[np.argsort(clip[inside], kind="stable")]
    base[inside] -= means(base.astype(np.float32), clip[order], order, len(world.clip_video))[clip[inside]]
    base[inside] += world.base[modality][clip[inside]]
    x = _columns(rng, base, d)
    if modality == "vision":
        x[rng.uniform(size=len(x)) < FAILED_FRAMES] = 0.0
    return video, times, x


def _columns(rng: np.random.Generator, base: NDArray[np.float64], d: int) -> Floats:
    """Features (F, d) of arbitrary scale: a rotation of the directions in `base`, then noisy mixtures of them."""
    k = base.shape[1]
    rotation = np.linalg.qr(rng.standard_normal((k, k)))[0]
    mixture = rng.standard_normal((k, d - k)) / np.sqrt(k)
    x = np.concatenate([base @ rotation, base @ mixture + 0.3 * rng.standard_normal((len(base), d - k))], axis=1)
    return np.asarray(x * np.exp(rng.normal(0.0, 1.0, d)) + rng.normal(0.0, 3.0, d), dtype=np.float32)


def _set_infinite(x: Floats, share: float, seed: int) -> None:
    """Set a fraction of the values to -inf, as occurs in the log features of the published audio."""
    if share > 0:
        rng = keyed.generator(seed, "mosi/infinite")
        x[rng.uniform(size=x.shape) < share] = -np.inf


def _write_sequence(path: Path, root: str, entries: dict[str, tuple[Any, Any]], names: list[str]) -> None:
    """Write a computational sequence as the SDK does, without time stamps, so that equal content gives equal bytes."""
    metadata = {
        "root name": root,
        "computational sequence description": "simulated, no real person or review",
        "dimension names": names,
        "computational sequence version": "1.0",
        "alignment compatible": "true",
        "dataset name": "-".join(path.name.split("_")[:2]),
        "dataset version": "1.0",
        "creator": "mrpipe",
        **dict.fromkeys(("contact", "featureset bib citation", "dataset bib citation", "uuid", "md5"), ""),
    }
    with replacing(path) as temporary, h5py.File(temporary, "w") as handle:
        group = handle.create_group(f"{root}/data")
        for key, (features, intervals) in entries.items():
            entry = group.create_group(key)
            entry.create_dataset("features", data=features, track_times=False)
            entry.create_dataset("intervals", data=intervals, track_times=False)
        fields = handle.create_group(f"{root}/metadata")
        for name, value in metadata.items():
            fields.create_dataset(name, data=np.array([json.dumps(value)], dtype=np.bytes_), track_times=False)


def _mmsa(sdk: SdkExport, options: MosiSimulation) -> tuple[dict[str, Any], str]:
    """MMSA: words between [CLS] and [SEP], padded with zeros; unaligned audio and vision are frames with lengths."""
    aligned = options.format == "mmsa_aligned"
    tokens = sdk.tokens()
    marked = [["[CLS]", *words[: STEPS - 2], "[SEP]"] for words in tokens]
    values, offsets = get_encoder("hashing-768").words(marked)
    n_pieces = np.diff(offsets)
    ids = _padded(_piece_ids(marked)[:, None], offsets, STEPS)[:, :, 0]
    mask = (np.arange(STEPS) < n_pieces[:, None]).astype(np.float32)
    content: dict[str, Any] = {
        "raw_text": np.array([" ".join(words).upper() for words in tokens], dtype=object),
        "text": _padded(values, offsets, STEPS),
        "text_bert": np.stack([ids, mask, np.zeros_like(mask)], axis=1).astype(np.float32),
    }
    for modality, d in MMSA_DIMS.items():
        block = sdk.frames(modality, "steps" if aligned else "raw")
        assert block.offsets is not None
        x = np.nan_to_num(block.values[:, :d])
        # Aligned steps lie between [CLS] and [SEP].
        width, marks = (STEPS, 1) if aligned else (MMSA_FRAMES[modality], 0)
        lengths = np.minimum(block.lengths(), width - 2 * marks)
        content[modality] = _padded(x, block.offsets, width, before=marks, lengths=lengths)
        if not aligned:
            content[f"{modality}_lengths"] = lengths
    _spoil(content["audio"], options)
    score = sdk.clips["score"].to_numpy()
    sign = np.sign(score).astype(np.int64) + 1
    content["id"] = np.array(_ids(sdk, "{0}$_${1}"), dtype=object)
    content["annotations"] = np.array(["Negative", "Neutral", "Positive"], dtype=object)[sign]
    content["classification_labels"] = sign.astype(np.float32)
    content["regression_labels"] = score.astype(np.float32)
    return _by_part(content, sdk), f"{options.format.removeprefix('mmsa_')}_50.pkl"


def _multibench(sdk: SdkExport, options: MosiSimulation) -> tuple[dict[str, Any], str]:
    """MultiBench: the last 50 steps, left-padded with zeros; labels (N, 1, 1). MulT: also frames, ids with times."""
    aligned = options.format == "multibench"
    values, offsets = get_encoder("hashing-300").words([words[-STEPS:] for words in sdk.tokens()])
    content: dict[str, Any] = {"text": _padded(values, offsets, STEPS, before=STEPS - np.diff(offsets))}
    for modality in ("audio", "vision"):
        width = STEPS if aligned else MMSA_FRAMES[modality]
        block = sdk.frames(modality, "steps" if aligned else "raw").last_steps(width)
        assert block.offsets is not None
        x, before = np.nan_to_num(block.values), width - block.lengths()
        content[modality] = _padded(x, block.offsets, width, before=before)
    _spoil(content["audio"], options)
    content["labels"] = sdk.clips["score"].to_numpy().astype(np.float32)[:, None, None]
    content["id"] = np.array(_ids(sdk, "{0}[{2}]" if aligned else "{0} {3} {4}"))
    if not aligned:
        content["id"] = np.array([text.encode().split() for text in content["id"].tolist()])
    return _by_part(content, sdk), "mosi_raw.pkl" if aligned else f"{options.corpus.name}_data_noalign.pkl"


def _mag(sdk: SdkExport, options: MosiSimulation) -> tuple[dict[str, Any], str]:
    """MAG-BERT: lists of ((words, visual, acoustic), label (1, 1), segment); clips without words are left out."""
    arrays = {m: _by_clip(sdk, m, "steps", options) for m in ("vision", "audio")}
    labels = sdk.clips["score"].to_numpy().astype(np.float32)[:, None, None]
    rows = zip(sdk.tokens(), arrays["vision"], arrays["audio"], labels, _ids(sdk, "{0}[{2}]"), strict=True)
    lists: dict[str, list[Any]] = {"train": [], "dev": [], "test": []}
    for fold, (words, visual, acoustic, label, segment) in zip(sdk.clips["fold"], rows, strict=True):
        if words:
            lists["dev" if fold == "val" else fold].append(((words, visual, acoustic), label, segment))
    return lists, f"{options.corpus.name}.pkl"


PICKLES = {"mmsa_aligned": _mmsa, "mmsa_unaligned": _mmsa, "multibench": _multibench, "mult": _multibench, "mag": _mag}


def _ids(sdk: SdkExport, form: str) -> list[str]:
    """Ids of the clips from a format of video, clip, clip from 0, start and end."""
    first = sdk.options.corpus.first_clip
    rows = sdk.clips.select("sample_id", "clip", "start", "end").iter_rows()
    return [form.format(name.rpartition("_")[0], clip, clip - first, *times) for name, clip, *times in rows]


def _by_clip(sdk: SdkExport, modality: str, form: str, options: MosiSimulation) -> list[Floats]:
    """Features of each clip, (T, d); missing values are 0, as in the published files."""
    block = sdk.frames(modality, form)
    x = np.nan_to_num(block.values)
    _set_infinite(x, options.infinite_audio if modality == "audio" else 0.0, options.seed)
    return [x[i] for i in range(len(x))] if block.offsets is None else np.split(x, block.offsets[1:-1])


def _write_files(export: Path, sdk: SdkExport, options: MosiSimulation) -> None:
    """A folder of .npy files per modality, and label.csv; clips without frames have no file."""
    frame = sdk.clips.select(
        pl.Series("video_id", _ids(sdk, "{0}")),
        pl.col("clip").alias("clip_id"),
        pl.Series("text", [" ".join(words) for words in sdk.tokens()]),
        pl.col("score").alias("label"),
        pl.col("fold").replace({"val": "valid"}).alias("mode"),
    )
    write_text(export / "label.csv", frame.write_csv())
    for modality in sdk.modalities[1:]:
        form = "vector" if options.utterance_audio else "raw"
        for name, x in zip(sdk.clips["sample_id"], _by_clip(sdk, modality, form, options), strict=True):
            if len(x):
                data = io.BytesIO()
                np.save(data, x)
                with replacing(export / modality / f"{name}.npy") as path:
                    path.write_bytes(data.getvalue())


def _by_part(content: dict[str, Any], sdk: SdkExport) -> dict[str, dict[str, Any]]:
    fold = sdk.clips["fold"].to_numpy()
    rows = {part: np.flatnonzero(fold == {"valid": "val"}.get(part, part)) for part in PARTS}
    return {part: {k: v[r] for k, v in content.items()} for part, r in rows.items()}


def _spoil(audio: Floats, options: MosiSimulation) -> None:
    """Set a fraction of the values outside the padding to -inf."""
    filled = np.flatnonzero((audio != 0).any(axis=2).ravel())
    steps = audio.reshape(-1, audio.shape[2])
    x = steps[filled]
    _set_infinite(x, options.infinite_audio, options.seed)
    steps[filled] = x


def _piece_ids(marked: list[list[str]]) -> NDArray[np.float32]:
    """A fixed token id per word, in the range of BERT; 101 is [CLS] and 102 is [SEP]."""
    flat = [w for words in marked for w in words]
    ids = (keyed.id_keys(flat) % np.uint64(28000) + np.uint64(2000)).astype(np.float32)
    text = np.array(flat, dtype=object)
    return np.where(text == "[CLS]", 101, np.where(text == "[SEP]", 102, ids)).astype(np.float32)


def _padded(
    values: Floats, offsets: Ints, width: int, *, before: Ints | int = 0, lengths: Ints | None = None
) -> Floats:
    """Pad sequences to (N, width, d): the first `lengths` steps from position `before` on, zeros elsewhere."""
    lengths = np.diff(offsets) if lengths is None else lengths
    clip = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    x = np.zeros((len(lengths), width, values.shape[1]), dtype=np.float32)
    x[clip, np.broadcast_to(before, lengths.shape)[clip] + step] = values[offsets[:-1][clip] + step]
    return x
