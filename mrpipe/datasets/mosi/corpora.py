"""The corpora that this reader reads, and all differences between them: ids, range of the scores, folds and tasks."""

from dataclasses import dataclass

import polars as pl

from mrpipe.schema import Task

SCORE = pl.col("score")
CITE = "academic dataset without a stated licence; cite the paper"
SDK = "CMU-MultimodalSDK (github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK), MMSA or MultiBench"


def _task(name: str, classes: str, value: pl.Expr, description: str) -> tuple[Task, pl.Expr]:
    return Task(name=name, kind="classification", classes=tuple(classes.split()), description=description), value


def _bins(*edges: float) -> pl.Expr:
    """Number of edges below the score: bins that include their upper edge."""
    return pl.sum_horizontal((pl.lit(e, pl.Float32) < SCORE).cast(pl.Int8) for e in edges)


# The metrics of the field (MMSA, MulT, MAG-BERT) as tasks, for scores in [-3, 3] and, for CH-SIMS, in [-1, 1].
CMU_TASKS = (
    _task(
        "polarity",
        "negative positive",
        pl.when(SCORE != 0).then(SCORE > 0),
        "sign of the score; neutral clips (score 0) have no label (Acc-2, non-zero)",
    ),
    (
        Task(name="score", kind="regression", description="sentiment, -3 (very negative) to 3; mean of annotators"),
        SCORE,
    ),
    _task(
        "sentiment7",
        "-3 -2 -1 0 1 2 3",
        SCORE.cast(pl.Float64).round(mode="half_to_even") + 3,
        "score rounded to an integer, halves to the even one (Acc-7)",
    ),
    _task("sentiment3", "negative neutral positive", SCORE.sign() + 1, "sign of the score, 0 is neutral"),
    _task("nonnegative", "negative non-negative", SCORE >= 0, "whether the score is at least 0 (Acc-2, with zero)"),
)
SIMS_TASKS = (
    _task("polarity", "non-positive positive", SCORE > 0, "whether the score is above 0 (Acc-2)"),
    (Task(name="score", kind="regression", description="sentiment, -1 (negative) to 1; mean of annotators"), SCORE),
    _task("sentiment3", "negative neutral positive", _bins(-0.1, 0.1), "score in bins at -0.1 and 0.1 (Acc-3)"),
    _task("sentiment5", "-2 -1 0 1 2", _bins(-0.7, -0.1, 0.1, 0.7), "score in bins at -0.7, -0.1, 0.1, 0.7 (Acc-5)"),
)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus; the defaults are those of CMU-MOSI.

    Attributes:
        name, title, citation, licence, provider: as in `schema.Dataset`.
        folds: description of the published split.
        tasks: prediction tasks with their values as expressions of the score; null is no label.
        notes: notes for the manifest.
        published: format of the published files, which the simulator writes by default.
        limit: scores are in [-limit, limit].
        label_widths: permitted numbers of labels per clip; the first is the sentiment.
        first_clip: number of the clip that the SDK calls `video[0]`.
        split_by_video: the published folds keep the clips of a video together; otherwise the clip is the subject.
        signed: MMSA's annotations of the clips are the sign of the score.
    """

    name: str
    title: str
    citation: str
    licence: str = CITE
    provider: str = SDK
    folds: str
    tasks: tuple[tuple[Task, pl.Expr], ...] = CMU_TASKS
    notes: tuple[str, ...]
    published: str = "csd"
    limit: float = 3.0
    label_widths: tuple[int, ...] = (1,)
    first_clip: int = 1
    split_by_video: bool = True
    signed: bool = True

    @property
    def fold_file(self) -> str:
        """Name of the SDK's file with the standard folds."""
        return f"cmu_{self.name}_std_folds.py"


NEUTRAL = "Neutral clips (score exactly 0) have no label for the task `polarity`."
MOSI = Corpus(
    name="mosi",
    title="CMU-MOSI",
    citation=(
        "Zadeh, A., Zellers, R., Pincus, E., Morency, L.-P. (2016). Multimodal sentiment intensity analysis in videos: "
        "facial gestures and verbal messages. IEEE Intelligent Systems 31(6), 82-88."
    ),
    folds="the SDK's lists of videos: 1,284 / 229 / 686 clips",
    notes=(
        "Each sample is one opinion segment with id `<video>_<clip>`, clips numbered from 1; the subject is the video.",
        "A word belongs to the segment in which it begins; pauses (`sp`) are removed. Two published segments contain "
        "no word, one of them with zero length (2WGyTLYerpo, clip 44); both lack the text modality.",
        NEUTRAL,
    ),
)
MOSEI = Corpus(
    name="mosei",
    title="CMU-MOSEI",
    citation=(
        "Zadeh, A., Liang, P. P., Poria, S., Cambria, E., Morency, L.-P. (2018). Multimodal language analysis in the "
        "wild: CMU-MOSEI dataset and interpretable dynamic fusion graph. ACL 2018, 2236-2246."
    ),
    folds="the SDK's lists of videos: 16,326 / 1,871 / 4,659 clips in MMSA's files",
    notes=(
        "Each sample is one segment with id `<video>_<clip>`; the subject is the video. The clip is the number in the "
        "file: the row of the video in the SDK's labels, from 0 and not in order of time, or MMSA's clip.",
        "The score is the first of the seven labels of the SDK; the labels of six emotions are not read.",
        NEUTRAL,
    ),
    label_widths=(1, 7),
    first_clip=0,
)
CH_SIMS = Corpus(
    name="ch_sims",
    title="CH-SIMS",
    citation=(
        "Yu, W., Xu, H., Meng, F., Zhu, Y., Ma, Y., Wu, J., Zou, J., Yang, K. (2020). CH-SIMS: a Chinese multimodal "
        "sentiment analysis dataset with fine-grained annotation of modality. ACL 2020, 3718-3727."
    ),
    licence="research use; see the repository of MMSA",
    provider="MMSA (github.com/thuiar/MMSA)",
    folds="the published split by clip: 1,368 / 456 / 457 clips",
    tasks=SIMS_TASKS,
    notes=(
        "Each sample is one clip with id `<video>_<clip>`. The published split puts clips of one video into several "
        "parts; therefore the clip is the subject, and training clips have the speakers of test clips.",
        "The score is the label of all modalities together; the labels of single modalities are not read.",
    ),
    published="mmsa_unaligned",
    limit=1.0,
    split_by_video=False,
    signed=False,
)
