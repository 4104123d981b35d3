"""MEDS: any dataset of the Medical Event Data Standard; a YAML declares samples, labels, modalities (docs/meds.md)."""

import dataclasses
from pathlib import Path

from mrpipe.datasets.declared import declare
from mrpipe.datasets.meds.cohort import build_cohort, check_export
from mrpipe.datasets.meds.config import MedsConfig, MedsOptions, parse_meds, read_config
from mrpipe.datasets.meds.features import MedsReader
from mrpipe.datasets.meds.shards import ABOUT, CODES, SPLITS
from mrpipe.datasets.meds.simulate import YAML, MedsSimulation, simulate_export
from mrpipe.schema import Dataset, ModalityReader, Scheme


def _declared(config: MedsConfig, *, split: bool) -> Dataset:
    modalities = {}
    for r in (MedsReader(m, bit) for bit, m in enumerate(config.modalities)):
        reader = ModalityReader(bit=r.bit, description=r.description, read=r, prepare=r.prepare)
        modalities[r.modality.name] = reader
    standard = Scheme(column="split", description=f"column split of {SPLITS}") if split else None
    files = {"cohort": ("*", f"!{CODES}", f"!{ABOUT}"), **dict.fromkeys(modalities, ("*", f"!{SPLITS}", f"!{ABOUT}"))}
    base = dataclasses.replace(_BASE, files=files)
    return declare(base, tuple(label.task for label in config.labels), modalities, standard)


def resolve(raw: Path, options: MedsOptions) -> Dataset:
    """The dataset declared by the YAML of an export; no other file is opened."""
    return _declared(read_config(raw, options), split=(raw / SPLITS).is_file())


_BASE = Dataset(
    name="meds",
    title="A dataset of the Medical Event Data Standard (MEDS)",
    citation="that of the dataset; MEDS: https://github.com/Medical-Event-Data-Standard",
    licence="that of the dataset",
    provider="your own export, described by a YAML file (docs/meds.md)",
    options=MedsOptions,
    simulation=MedsSimulation,
    modalities={},
    tasks=(),
    schemes={},
    check=check_export,
    cohort=build_cohort,
    simulate=simulate_export,
    tiny={"n_subjects": 120},
    resolve=resolve,
)
# Before an export is known: modalities, tasks and schemes of the simulator's YAML.
DATASET = _declared(parse_meds(YAML, "meds.yaml"), split=True)
