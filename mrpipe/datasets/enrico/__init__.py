"""Enrico: 1,460 mobile UI screens in 20 design topics, each with a screenshot and a semantic wireframe."""

from mrpipe.datasets.enrico import modalities
from mrpipe.datasets.enrico.cohort import build_cohort, check_export
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.enrico.simulate.export import EnricoSimulation, simulate_export
from mrpipe.datasets.enrico.tables import PROVIDER, TOPICS
from mrpipe.schema import Dataset, ModalityReader, Scheme, Task

DATASET = Dataset(
    name="enrico",
    title="Enrico: topic modelling of mobile UI designs",
    citation=(
        "L. A. Leiva, A. Hota, A. Oulasvirta. Enrico: A High-quality Dataset for Topic Modeling of Mobile UI Designs. "
        "Proc. MobileHCI Adjunct, 2020"
    ),
    licence="MIT",
    provider=PROVIDER,
    options=EnricoOptions,
    simulation=EnricoSimulation,
    modalities={
        "screenshot": ModalityReader(bit=0, description=modalities.SCREENSHOT, read=modalities.read_screenshots),
        "wireframe": ModalityReader(bit=1, description=modalities.WIREFRAME, read=modalities.read_wireframes),
    },
    tasks=(
        Task(name="topic", kind="classification", classes=TOPICS, description="design topic of the screen, 20 classes"),
    ),
    schemes={
        "standard": Scheme(
            column="fold",
            description="MultiBench's split: two screens left out, random.Random(42), 65/15/20 (947/219/292)",
        ),
        "uniform": Scheme(fractions=(0.70, 0.15, 0.15), stratify="topic", description="70/15/15, stratified by topic"),
    },
    check=check_export,
    cohort=build_cohort,
    simulate=simulate_export,
    people=False,
    files={"screenshot": ("*screenshots*",), "wireframe": ("*wireframes*", "*hierarchies*")},
    tiny={"n_screens": 40, "scale": 0.25, "zipped": True},
    notes=(
        "Each screen is its own subject. Some apps have several screens (app_id, where the metadata names it); the "
        "standard split does not keep them together.",
        "With the published table, the validation set of the standard split has no calculator or maps screens.",
        "By default, landscape screens are squeezed into the portrait shape, as in MultiBench.",
    ),
)
