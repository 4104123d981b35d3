"""Simulated CMU-MOSI exports from a latent factor model with a known Bayes-optimal prediction.

Each clip has independent standard normal factors: one shared by all modalities (and partly by all clips of a speaker),
and one specific to each modality. Its sentiment is a weighted sum of the factors plus noise, cut at the quantiles that
give the published proportions of negative, neutral and positive clips. Sentiment words are drawn from two pairs of word
lists, with log odds proportional to the shared and to the text factor. The frames of a clip are noisy readings of the
shared factor and of the factor of their modality.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit, log_expit, ndtr, ndtri, softmax

from mrpipe import keyed
from mrpipe.datasets.mosi.options import MosiSimulation
from mrpipe.datasets.mosi.simulate import formats as simulate_formats
from mrpipe.datasets.mosi.simulate.vocabulary import LISTS
from mrpipe.errors import UsageError
from mrpipe.experiment.truth import subsets, write_best
from mrpipe.store.parquet import write_frame

NEGATIVE_SHARE, POSITIVE_SHARE = 1023 / 2199, 1080 / 2199
TRAIN_SHARE, VALID_SHARE = 52 / 93, 10 / 93
PAUSE_SHARE = 0.194  # pauses per word
GAP_SHARE = 0.23  # fraction of segments followed by words outside any segment
SENTIMENT_WORDS = 0.25  # fraction of the words of a segment from each of the two pairs of lists
BASE = 5  # directions in which frames vary: shared factor, factor of the modality, three directions of noise
SHORTEST_WORD = 0.15  # seconds
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Latent:
    """The n clips, sorted by video, before anything is said.

    Attributes:
        videos, folds: (V,) names of the videos and their folds (train, valid or test).
        clip_video, clip_number: (n,) index of the video, and number of the clip in its video.
        factors: name (shared, text, audio, vision) → (n,) values.
        sentiment: (n,).
        odd: (n,) mask of clips without words.
    """

    videos: list[str]
    folds: list[str]
    clip_video: Ints
    clip_number: Ints
    factors: dict[str, Floats]
    sentiment: Floats
    odd: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class World(Latent):
    """The simulated reviews: the clips and w tokens (words and pauses), both sorted by video and time.

    Attributes:
        scores: (n,) float32, 31 values in the range of the corpus; neutral is exactly 0.
        segments: (n, 2) start and end in seconds, from the beginning of the previous word to that of the last word.
        words, times: (w,) texts and (w, 2) start and end in seconds of the tokens.
        token_video, token_clip: (w,) video and clip of the tokens (-1: outside any segment).
        base: modality → (n, BASE) readings of the clips.
    """

    scores: NDArray[np.float32]
    segments: Floats
    words: NDArray[np.object_]
    times: Floats
    token_video: Ints
    token_clip: Ints
    base: dict[str, Floats]


def simulate(export: Path, truth: Path, options: MosiSimulation) -> None:
    """Write an export in `options.format` to `export`, and `truth.parquet` and `best.parquet` to `truth`.

    `truth.parquet` has `sample_id`, `sentiment`, the factors, `odd` (segments without words), and `p_positive_<a>_<b>`
    for each set of modalities: the probability under the generating model that a clip that is not neutral is positive,
    given these modalities. Audio and vision enter through the exact posterior of their readings, words through
    quadrature over the shared and the text factor. On average, no method can do better from single clips; averaging
    frames per word and -inf values lose a little of this information.

    Raises:
        UsageError: an option out of range, or a combination of options that does not exist.
    """
    if options.n_videos < 3:
        raise UsageError("n_videos must be at least 3, one per fold")
    options = dataclasses.replace(options, format=options.format or options.corpus.published)
    if options.utterance_audio and options.format not in ("csd", "files"):
        raise UsageError("utterance_audio requires format=csd or files; the pickles contain sequences")
    world, word_counts = _speech(options, _clips(options))
    simulate_formats.write(export, world, options)
    frame = _truth(options, world, word_counts)
    write_frame(truth / "truth.parquet", frame)
    classes = options.corpus.tasks[0][0].classes
    best = {names: frame["p_positive_" + "_".join(names)].to_numpy() for names in subsets(_modalities(options))}
    two_classes = {names: np.stack([1 - p, p], axis=1) for names, p in best.items()}
    write_best(truth, "polarity", classes, frame["sample_id"].to_list(), two_classes)


def _clips(options: MosiSimulation) -> Latent:
    """Draw the factors of the clips, with the video and number of each clip, the videos and their folds."""
    names = [f"{options.seed}/{i}" for i in range(options.n_videos)]
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
    codes = keyed.bits(keyed.id_keys(names), options.seed, "mosi/video", 11) % np.uint64(64)
    videos = sorted("".join(row) for row in letters[codes])
    order = np.argsort(keyed.uniform(keyed.id_keys(videos), options.seed, "mosi/fold")[:, 0])
    n_train = max(1, min(round(TRAIN_SHARE * len(videos)), len(videos) - 2))
    n_valid = max(1, min(round(VALID_SHARE * len(videos)), len(videos) - n_train - 1))
    folds = np.full(len(videos), "test", dtype=object)
    folds[order[:n_train]] = "train"
    folds[order[n_train : n_train + n_valid]] = "valid"

    rng = keyed.generator(options.seed, "mosi/clips")
    n_clips = np.maximum(rng.poisson(options.clips_per_video, len(videos)), 3)
    clip_video = np.repeat(np.arange(len(videos)), n_clips)
    clip_number = np.arange(len(clip_video)) - np.repeat(np.cumsum(n_clips) - n_clips, n_clips)
    clip_number += options.corpus.first_clip
    n = len(clip_video)
    share = min(max(options.subject_share, 0.0), 1.0)
    speaker = rng.standard_normal(len(videos))[clip_video]
    factors = {"shared": np.sqrt(share) * speaker + np.sqrt(1 - share) * rng.standard_normal(n)}
    factors |= {m: rng.standard_normal(n) for m in ("text", "audio", "vision")}
    sentiment = options.label_noise * rng.standard_normal(n)
    for name, weight in _weights(options).items():
        sentiment = sentiment + weight * factors[name]
    odd = np.zeros(n, dtype=bool)
    if options.oddities:
        odd[list(_odd_clips(clip_video))] = True
    clips: dict[str, Any] = {"clip_video": clip_video, "clip_number": clip_number, "videos": videos}
    return Latent(factors=factors, sentiment=sentiment, odd=odd, folds=folds.tolist(), **clips)


def _weights(options: MosiSimulation) -> dict[str, float]:
    private = {m: float(getattr(options, f"private_{m}")) for m in ("text", "audio", "vision")}
    return {"shared": options.shared, **private}


def _odd_clips(clip_video: Ints) -> tuple[int, int]:
    """A clip of zero length and one that ends before a word begins, like 44 of 2WGyTLYerpo and 1 of VCslbP0mgZI.

    They are the middle one of the first video, and the first one of the second.
    """
    first = int((clip_video == 0).sum())
    return first // 2, first


def _scores(options: MosiSimulation, sentiment: Floats) -> NDArray[np.float32]:
    """Round the sentiment to scores: published proportions of the signs, then 15 equally frequent steps per sign."""
    u = ndtr(sentiment / _spread(options))
    negative = -np.ceil((NEGATIVE_SHARE - u) / NEGATIVE_SHARE * 15)
    positive = np.ceil((u - (1 - POSITIVE_SHARE)) / POSITIVE_SHARE * 15)
    steps = np.where(u < NEGATIVE_SHARE, negative, np.where(u > 1 - POSITIVE_SHARE, positive, 0.0))
    return (np.clip(steps, -15, 15) / 15 * options.corpus.limit).astype(np.float32)


def _spread(options: MosiSimulation) -> float:
    return float(np.sqrt(sum(w**2 for w in _weights(options).values()) + options.label_noise**2))


def _speech(options: MosiSimulation, latent: Latent) -> tuple[World, Ints]:
    """Draw the words, their times and the segments; also returns the words per clip and word list, (n, 5)."""
    rng = keyed.generator(options.seed, "mosi/speech")
    clip_video, n, n_videos = latent.clip_video, len(latent.clip_video), len(latent.videos)
    n_words = np.maximum(1, np.round(np.exp(rng.normal(np.log(0.81 * options.words_per_clip), 0.65, n)))).astype(int)
    n_words = np.where(latent.odd, 0, np.minimum(n_words, 110))
    gaps = np.where(rng.uniform(size=n) < GAP_SHARE, rng.integers(1, 6, n), 0)
    # A video is some words, then its clips, some of them followed by words outside any segment, and final words.
    unit_length = np.concatenate([rng.integers(3, 9, n_videos), n_words, gaps, np.full(n_videos, 2)])
    unit_video = np.concatenate([np.arange(n_videos), clip_video, clip_video, np.arange(n_videos)])
    unit_clip = np.concatenate([np.full(n_videos, -1), np.arange(n), np.full(n, -1), np.full(n_videos, -1)])
    place = 2 * (latent.clip_number - options.corpus.first_clip) + 1
    place = np.concatenate([np.zeros(n_videos), place, place + 1, np.full(n_videos, 1e9)])
    order = np.lexsort((place, unit_video))
    video = np.repeat(unit_video[order], unit_length[order])
    clip = np.repeat(unit_clip[order], unit_length[order])

    kind = rng.choice(3, size=len(clip), p=[1 - 2 * SENTIMENT_WORDS, SENTIMENT_WORDS, SENTIMENT_WORDS])
    kind = np.where(clip < 0, 0, kind)
    factor = np.where(kind == 1, latent.factors["shared"][clip], latent.factors["text"][clip])
    positive = rng.uniform(size=len(clip)) < expit(options.text_strength * factor)
    which = np.where(kind == 0, 0, 2 * kind - 1 + positive)
    size = np.array([len(words) for words in LISTS])
    within = np.floor(rng.uniform(size=len(clip)) * size[which]).astype(int)
    table = np.full((len(LISTS), size.max()), "", dtype=object)
    for i, words in enumerate(LISTS):
        table[i, : len(words)] = words
    counts = np.zeros((n, len(LISTS)), dtype=np.int64)
    np.add.at(counts, (clip[clip >= 0], which[clip >= 0]), 1)

    # Words and the pauses after some of them follow each other without gaps, starting at 0.5 s.
    pause = rng.uniform(size=len(clip)) < PAUSE_SHARE
    word_row = np.arange(len(clip)) + np.cumsum(pause) - pause
    w = len(clip) + int(pause.sum())
    is_word = np.zeros(w, dtype=bool)
    is_word[word_row] = True
    source = np.cumsum(is_word) - 1
    duration = np.where(is_word, SHORTEST_WORD, 0.1) + rng.gamma(2.0, np.where(is_word, 0.08, 0.15), w)
    token_video = video[source]
    end = np.cumsum(duration)
    first = np.concatenate([[True], np.diff(token_video) > 0])
    shift = np.repeat((end - duration)[first] - 0.5, np.bincount(token_video, minlength=n_videos))
    times = np.stack([end - duration - shift, end - shift], axis=1)
    spoken = np.full(w, "sp", dtype=object)
    spoken[word_row] = table[which, within]

    # Position of each clip among the words of its video, whether or not it has words itself.
    clip_unit = np.argsort(order)[n_videos : n_videos + n]
    first_word = (np.cumsum(unit_length[order]) - unit_length[order])[clip_unit]
    start = times[word_row[first_word - 1], 0]
    stop = times[word_row[first_word + np.maximum(n_words, 1) - 1], 0]
    stop = np.where(latent.odd, start, stop)
    if options.oddities:
        stop[_odd_clips(clip_video)[1]] += 0.6 * SHORTEST_WORD
    world = World(
        **vars(latent),
        scores=_scores(options, latent.sentiment),
        segments=np.stack([start, stop], axis=1),
        words=spoken,
        times=times,
        token_video=token_video,
        token_clip=clip[source],
        base={m: _readings(options, latent, m) for m in ("audio", "vision")},
    )
    return world, counts


def _readings(options: MosiSimulation, latent: Latent, modality: str) -> Floats:
    """Clip-level readings of a modality, (n, BASE): shared factor and factor of the modality with noise, then noise."""
    rng = keyed.generator(options.seed, "mosi/readings", modality)
    noise = {"audio": options.audio_noise, "vision": options.vision_noise}[modality]
    base = rng.standard_normal((len(latent.sentiment), BASE))
    base[:, 0] = latent.factors["shared"] + noise * base[:, 0]
    base[:, 1] = latent.factors[modality] + noise * base[:, 1]
    return base


def _modalities(options: MosiSimulation) -> tuple[str, ...]:
    return ("text", "audio") if options.utterance_audio else ("text", "audio", "vision")


def _truth(options: MosiSimulation, world: World, counts: Ints) -> pl.DataFrame:
    names = [world.videos[v] for v in world.clip_video]
    columns: dict[str, object] = {
        "sample_id": [f"{v}_{c}" for v, c in zip(names, world.clip_number, strict=True)],
        "sentiment": world.sentiment,
        **{f"factor_{k}": v for k, v in world.factors.items()},
        "odd": world.odd,
    }
    for subset in subsets(_modalities(options)):
        columns["p_positive_" + "_".join(subset)] = p_positive(options, world.odd, world.base, counts, subset)
    return pl.DataFrame(columns).sort("sample_id")


def p_positive(
    options: MosiSimulation, odd: NDArray[np.bool_], base: dict[str, Floats], counts: Ints, subset: tuple[str, ...]
) -> Floats:
    """P(score > 0 | modalities in `subset`), (n,); also given score != 0 if neutral clips have no label.

    Given the readings and the words, the factors are independent. The shared factor, and the text factor if `subset`
    includes text, are integrated on a grid; the rest of the sentiment is Gaussian with a closed-form mean and variance.
    """
    weights, neutral_is_out = _weights(options), "non-positive" not in options.corpus.tasks[0][0].classes
    grid = np.linspace(-5.0, 5.0, 61)
    n = len(odd)
    log_shared = np.tile(-0.5 * grid**2, (n, 1))
    text_grid, log_text = np.zeros(1), np.zeros((n, 1))
    mean, variance = np.zeros(n), np.full(n, options.label_noise**2)
    for modality, noise in (("audio", options.audio_noise), ("vision", options.vision_noise)):
        # An odd segment has no frames, but it has an utterance-level row.
        seen = np.full(n, modality in subset) & (~odd | (options.utterance_audio and modality == "audio"))
        precision = 1.0 / max(noise, 1e-6) ** 2
        log_shared -= np.where(seen[:, None], 0.5 * precision * (grid - base[modality][:, :1]) ** 2, 0.0)
        gain = precision / (1.0 + precision)
        mean += np.where(seen, weights[modality] * gain * base[modality][:, 1], 0.0)
        variance += weights[modality] ** 2 * np.where(seen, 1.0 - gain, 1.0)
    if "text" in subset:
        up, down = log_expit(options.text_strength * grid), log_expit(-options.text_strength * grid)
        log_shared += counts[:, 1:2] * down + counts[:, 2:3] * up
        text_grid, log_text = grid, -0.5 * grid**2 + counts[:, 3:4] * down + counts[:, 4:5] * up
    else:
        variance += weights["text"] ** 2
    shared, text = softmax(log_shared, axis=1), softmax(log_text, axis=1)
    low, high = _spread(options) * ndtri(NEGATIVE_SHARE), _spread(options) * ndtri(1 - POSITIVE_SHARE)
    value = weights["shared"] * grid[:, None] + weights["text"] * text_grid[None, :]
    p = np.empty(n)
    for start in range(0, n, 128):
        rows = slice(start, start + 128)
        centre = mean[rows, None, None] + value
        sd = np.sqrt(np.maximum(variance[rows], 1e-12))[:, None, None]
        positive = np.einsum("ns,nst,nt->n", shared[rows], ndtr((centre - high) / sd), text[rows])
        negative = np.einsum("ns,nst,nt->n", shared[rows], ndtr((low - centre) / sd), text[rows])
        p[rows] = positive / (positive + negative) if neutral_is_out else positive
    return p
