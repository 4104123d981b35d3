"""Reader and simulator options of CMU-MOSI."""

from dataclasses import dataclass
from typing import ClassVar

from mrpipe.datasets.mosi.corpora import MOSI, Corpus
from mrpipe.options import option
from mrpipe.text.encoders import HELP

FORMS = ("auto", "steps", "collapse", "raw")
FORMATS = ("csd", "mmsa_aligned", "mmsa_unaligned", "multibench", "mult", "mag", "files")


@dataclass(frozen=True, kw_only=True)
class MosiOptions:
    corpus: ClassVar[Corpus] = MOSI
    STEPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "text_form text_features": ("text",),
        "audio_form": ("audio",),
        "vision_form": ("vision",),
        "text_encoder word_rule max_steps": ("text", "audio", "vision"),
        "max_frames": ("audio", "vision"),
    }

    file: str = option("", "pickle or label table to read if the export contains more than one")
    text_encoder: str = option(
        "auto",
        "how words become vectors. auto: the word vectors of the export (GloVe or BERT) if it has any, otherwise "
        f"minilm if it is installed, otherwise hashing; export: the word vectors of the export; {HELP}; the ids of "
        "precomputed vectors are the sample ids of the store, VIDEO_NUMBER",
    )
    text_form: str = option(
        "sequence",
        "sequence: one vector per word; sentence: one vector per clip; counts: hashed term counts per clip",
        choices=("sequence", "sentence", "counts"),
    )
    text_features: int = option(2048, "number of hashed terms for text_form=counts")
    audio_form: str = option(
        "auto",
        "steps: one step per word, the mean of the frames that overlap it; raw: one step per frame; collapse: one "
        "vector per clip, the mean of its frames; auto: the stored form for pickles, for .csd files already aligned to "
        "segments and for files with one vector per segment, otherwise steps, or raw without words",
        choices=FORMS,
    )
    vision_form: str = option("auto", "same choices as audio_form", choices=FORMS)
    text_sequence: str = option("", ".csd file or root group to read as text; default: chosen by text_encoder")
    audio_sequence: str = option("", ".csd file or root group to read as audio; default: COVAREP, else openSMILE")
    vision_sequence: str = option("", ".csd file or root group to read as vision; default: FACET, else OpenFace")
    word_rule: str = option(
        "onset",
        "which words belong to a segment of a .csd export. onset: words that begin after its start and no later than "
        "its end, which reproduces the published transcripts; overlap: words that overlap it in time "
        "(docs/raw-formats.md)",
        choices=("onset", "overlap"),
    )
    max_steps: int = option(50, "maximum number of word steps per clip; longer clips keep the last ones (0: no limit)")
    max_unmatched: float = option(
        0.2,
        "largest fraction of labelled videos or segments that the fold lists or a .csd file may lack; "
        "above it the check fails (1: no limit)",
    )
    max_frames: int = option(500, "maximum number of frames per clip; longer clips keep the last ones (0: no limit)")


@dataclass(frozen=True, kw_only=True)
class MosiSimulation:
    """Options of the CMU-MOSI simulator; the defaults write a small export with three modalities."""

    corpus: ClassVar[Corpus] = MOSI

    seed: int = option(0, "random seed")
    format: str = option(
        "",
        "format to write, by default the published one: .csd files (CMU-MultimodalSDK); a pickle of MMSA, MultiBench, "
        "MulT (not aligned) or MAG-BERT; files: features by clip with a table of labels",
        choices=("", *FORMATS),
    )
    n_videos: int = option(24, "number of videos (subjects); 93 in the published dataset")
    clips_per_video: float = option(12.5, "mean number of opinion segments per video; 23.6 in the published dataset")
    words_per_clip: float = option(12.5, "mean number of words per segment; 12.5 in the published dataset")
    frames_per_second: float = option(10.0, "audio and vision frames per second; 100 in COVAREP, 30 in FACET")
    utterance_audio: bool = option(
        False, "format=csd only: write openSMILE vectors per segment instead of COVAREP frames and vision"
    )
    shared: float = option(1.0, "sentiment weight of the latent factor shared by all modalities")
    private_text: float = option(1.4, "sentiment weight of the latent factor specific to text")
    private_audio: float = option(0.6, "sentiment weight of the latent factor specific to audio")
    private_vision: float = option(0.5, "sentiment weight of the latent factor specific to vision")
    label_noise: float = option(0.25, "standard deviation of the noise in the sentiment that no modality can explain")
    subject_share: float = option(0.2, "fraction of the variance of the shared factor that is between speakers")
    text_strength: float = option(3.0, "slope of the log odds of a positive word on its latent factor")
    audio_noise: float = option(0.6, "standard deviation of the noise on the latent factors in the audio features")
    vision_noise: float = option(0.7, "standard deviation of the noise on the latent factors in the vision features")
    infinite_audio: float = option(0.001, "fraction of audio values set to -inf, as occurs in the published files")
    oddities: bool = option(
        True, "include one segment of zero length and one too short to contain a word, as in the published data"
    )
