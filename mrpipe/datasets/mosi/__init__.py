"""CMU-MOSI: 2,199 opinion segments of 93 video reviews with text, audio and vision (Zadeh et al., 2016)."""

from __future__ import annotations

from mrpipe.datasets.mosi.check import check, modalities_of
from mrpipe.datasets.mosi.cohort import SCHEMES, TASKS, cohort
from mrpipe.datasets.mosi.options import MosiOptions, MosiSimulation
from mrpipe.datasets.mosi.readers import BITS, DESCRIPTIONS, read_audio, read_text, read_vision
from mrpipe.datasets.mosi.simulate.export import simulate
from mrpipe.schema import Dataset, ModalityReader

DATASET = Dataset(
    name="mosi",
    title="CMU-MOSI",
    citation=(
        "Zadeh, A., Zellers, R., Pincus, E., Morency, L.-P. (2016). Multimodal sentiment intensity analysis in videos: "
        "facial gestures and verbal messages. IEEE Intelligent Systems 31(6), 82-88."
    ),
    licence="academic dataset without a stated licence; cite the paper",
    provider="CMU-MultimodalSDK (github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK), MMSA or MultiBench",
    options=MosiOptions,
    simulation=MosiSimulation,
    modalities={
        "text": ModalityReader(bit=BITS["text"], description=DESCRIPTIONS["text"], read=read_text),
        "audio": ModalityReader(bit=BITS["audio"], description=DESCRIPTIONS["audio"], read=read_audio),
        "vision": ModalityReader(bit=BITS["vision"], description=DESCRIPTIONS["vision"], read=read_vision),
    },
    tasks=TASKS,
    schemes=SCHEMES,
    check=check,
    cohort=cohort,
    simulate=simulate,
    modalities_of=modalities_of,
    tiny={"n_videos": 12, "clips_per_video": 6.0},
    notes=(
        "Each sample is one opinion segment with id `<video>_<clip>`, clips numbered from 1; the subject is the video.",
        "A word belongs to the segment in which it begins; pauses (`sp`) are removed. Two published segments contain "
        "no word, one of them with zero length (2WGyTLYerpo, clip 44); both lack the text modality.",
        "Neutral clips (score exactly 0) have no label for the task `polarity`.",
    ),
)
