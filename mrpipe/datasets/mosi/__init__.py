"""CMU-MOSI: 2,199 opinion segments of 93 video reviews with text, audio and vision (Zadeh et al., 2016)."""

from collections.abc import Callable

from mrpipe.datasets.mosi.cohort import check, cohort, modalities_of
from mrpipe.datasets.mosi.corpora import MOSI, Corpus
from mrpipe.datasets.mosi.options import MosiOptions, MosiSimulation
from mrpipe.datasets.mosi.readers import BITS, DESCRIPTIONS, FrameReader, read_text
from mrpipe.datasets.mosi.simulate.export import simulate
from mrpipe.schema import Dataset, Features, ModalityReader, Scheme

# Files of sound and of pictures by their published names, or in folders of features by clip.
_NO_SOUND = ("!*covarep*.csd", "!*coavarep*.csd", "!*opensmile*.csd", "!audio/*.npy", "!acoustic/*.npy")
_NO_PICTURES = ("!*facet*.csd", "!*openface*.csd", "!vision/*.npy", "!visual/*.npy", "!video/*.npy")


def declare(corpus: Corpus) -> Dataset:
    readers: dict[str, Callable[..., Features]] = {"text": read_text}
    readers |= {"audio": FrameReader("audio"), "vision": FrameReader("vision")}
    return Dataset(
        **{k: getattr(corpus, k) for k in ("name", "title", "citation", "licence", "provider", "notes")},
        options=type("Options", (MosiOptions,), {"corpus": corpus}),
        simulation=type("Simulation", (MosiSimulation,), {"corpus": corpus}),
        modalities={m: ModalityReader(bit=BITS[m], description=DESCRIPTIONS[m], read=r) for m, r in readers.items()},
        tasks=tuple(task for task, _ in corpus.tasks),
        schemes={
            "standard": Scheme(column="fold", description=corpus.folds),
            "uniform": Scheme(stratify="polarity", description="70 / 15 / 15 by subject, stratified by polarity"),
        },
        check=check,
        cohort=cohort,
        simulate=simulate,
        modalities_of=modalities_of,
        people=False,
        files={
            **dict.fromkeys(("cohort", "text"), ("*", *_NO_SOUND, *_NO_PICTURES)),
            "audio": ("*", *_NO_PICTURES),
            "vision": ("*", *_NO_SOUND),
        },
        tiny={"n_videos": 12, "clips_per_video": 6.0},
    )


DATASET = declare(MOSI)
