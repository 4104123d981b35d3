"""Options of the readers and of the simulator of CMU-MOSI."""

from __future__ import annotations

from dataclasses import dataclass

from mrpipe.options import option

FORMS = ("auto", "steps", "collapse", "raw")
FORMATS = ("csd", "mmsa_aligned", "mmsa_unaligned", "multibench")


@dataclass(frozen=True, kw_only=True)
class MosiOptions:
    """How an export is read."""

    file: str = option("", "name of the pickle to read, where the export holds several of them")
    text_encoder: str = option(
        "auto",
        "auto: the export's own vectors where it has them (GloVe, BERT), else hashing; export: those or an error; "
        "hashing or hashing-<dim>: hashed words, no model; minilm: all-MiniLM-L6-v2, needs the extra 'text'",
    )
    text_form: str = option(
        "sequence",
        "sequence: one vector a word; sentence: one vector a clip; counts: hashed term counts a clip",
        choices=("sequence", "sentence", "counts"),
    )
    text_features: int = option(2048, "number of hashed terms of text_form=counts")
    audio_form: str = option(
        "auto",
        "steps: one step a word, the mean of the frames that overlap it; collapse: one vector a clip; raw: the frames; "
        "auto: a vector where the export has one a clip, the steps of a pickle as they are, else steps",
        choices=FORMS,
    )
    vision_form: str = option("auto", "as audio_form", choices=FORMS)
    text_sequence: str = option("", "file or root group of the .csd to read as text, where the default is not wanted")
    audio_sequence: str = option("", "as text_sequence, for audio")
    vision_sequence: str = option("", "as text_sequence, for vision")
    word_rule: str = option(
        "onset",
        "which words are a segment's. onset: those that begin after its start and no later than its end, which gives "
        "the published transcripts; overlap: those that share time with it",
        choices=("onset", "overlap"),
    )
    max_steps: int = option(50, "at most this many word steps a clip, the last ones; 0: no limit")
    max_frames: int = option(500, "at most this many raw frames a clip, the last ones; 0: no limit")


@dataclass(frozen=True, kw_only=True)
class MosiSimulation:
    """What the simulator writes; the defaults make a small export of three modalities."""

    seed: int = option(0, "seed of all draws")
    format: str = option("csd", "which published format to write", choices=FORMATS)
    n_videos: int = option(24, "videos; the real data set has 93")
    clips_per_video: float = option(12.5, "mean number of opinion segments a video; 23.6 in the real data set")
    words_per_clip: float = option(12.5, "mean number of words a segment; as in the real data set")
    frames_per_second: float = option(10.0, "audio and vision frames a second; COVAREP has 100, FACET 30")
    utterance_audio: bool = option(False, "csd: audio as one openSMILE vector a segment instead of COVAREP frames")
    shared: float = option(1.0, "weight in the sentiment of the factor that all modalities carry")
    private_text: float = option(1.4, "weight in the sentiment of the factor that only the text carries")
    private_audio: float = option(0.6, "weight in the sentiment of the factor that only the audio carries")
    private_vision: float = option(0.5, "weight in the sentiment of the factor that only the vision carries")
    label_noise: float = option(0.25, "standard deviation of what no modality knows of the sentiment")
    subject_share: float = option(0.2, "share of the shared factor's variance that lies between speakers")
    text_strength: float = option(3.0, "slope of the log-odds of a positive word on its factor")
    audio_noise: float = option(0.6, "standard deviation of the noise on the factors that the audio carries")
    vision_noise: float = option(0.7, "standard deviation of the noise on the factors that the vision carries")
    infinite_audio: float = option(0.001, "share of audio values that are -inf")
    oddities: bool = option(
        True, "one segment of zero length and one that is shorter than its word, both without words"
    )
