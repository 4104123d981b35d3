"""MIMIC-IV: one-year mortality after discharge, from measurements, clinical notes, and ICD codes."""

from mrpipe.datasets.mimic import codes, labs, notes
from mrpipe.datasets.mimic.check import check_export
from mrpipe.datasets.mimic.cohort import TASK, build_cohort
from mrpipe.datasets.mimic.events import prepare_events
from mrpipe.datasets.mimic.options import MimicOptions, MimicSimulation
from mrpipe.datasets.mimic.simulate.export import simulate_export
from mrpipe.datasets.mimic.tables import PROVIDER, modalities_of
from mrpipe.schema import Dataset, ModalityReader, Scheme, Task

# Files that every step reads: the visits of the cohort depend on them.
_VISITS = ("*patients*", "*admissions*", "*icustays*", "*_icd*", "*sha256sums*")

DATASET = Dataset(
    name="mimic",
    title="MIMIC-IV: electronic health records of Beth Israel Deaconess Medical Center",
    citation=(
        "A. E. W. Johnson et al. MIMIC-IV, a freely accessible electronic health record dataset. "
        "Scientific Data 10, 2023; "
        "A. Johnson et al. MIMIC-IV-Note. PhysioNet, 2023"
    ),
    licence="PhysioNet Credentialed Health Data License 1.5.0 (the demo: Open Database License 1.0)",
    provider=PROVIDER,
    options=MimicOptions,
    simulation=MimicSimulation,
    modalities={
        "lab": ModalityReader(
            bit=0,
            description=labs.LAB,
            read=labs.read_lab,
            prepare=prepare_events,
            n_parts=lambda options: int(options.n_shards),
        ),
        "note": ModalityReader(bit=1, description=notes.DESCRIPTION, read=notes.read_notes),
        "code": ModalityReader(bit=2, description=codes.DESCRIPTION, read=codes.read_codes),
        "lab_summary": ModalityReader(bit=3, description=labs.SUMMARY, read=labs.read_summary, parts_of="lab"),
    },
    tasks=(
        Task(
            name=TASK,
            kind="classification",
            classes=("alive", "dead"),
            description="death within a year of the index discharge",
        ),
    ),
    schemes={
        "standard": Scheme(fractions=(0.70, 0.15, 0.15), stratify=TASK, description="70/15/15 by patient, stratified")
    },
    check=check_export,
    cohort=build_cohort,
    simulate=simulate_export,
    tiny={"n_patients": 220, "n_chart_rows": 6000, "n_lab_rows": 4000},
    modalities_of=modalities_of,
    files={
        "cohort": (*_VISITS, "*discharge* if store_text", "*radiology* if store_text"),
        **dict.fromkeys(
            ("lab", "lab_summary"), (*_VISITS, "*labevents*", "*chartevents*", "*d_labitems*", "*d_items*")
        ),
        "note": (*_VISITS, "*discharge*", "*radiology*"),
        "code": _VISITS,
    },
    notes=(
        "The paper reports 9,003 patients: 22.6 % died within a year, 108 (1.2 %) have no notes, 4 no diagnoses, 1,777 "
        "(19.7 %) no procedures; 94.216 % of the cells of its 2,172 measurement columns are empty. Its cohort filters "
        "are not public.",
        "Diagnoses are assigned at discharge: they are known at the prediction time, but not earlier.",
        "A blank date of death means that the patient was alive one year after the last discharge; later deaths are "
        "censored by the provider.",
        "lab and lab_summary are two representations of the same measurements: train on one of them.",
    ),
)
