"""Helpers of the tests of images: settings of the simulation, participants and their samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.datasets.adni import DATASET as ADNI
from mrpipe.datasets.adni.image.plan import check_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.simulate.image import ImageSimulation
from mrpipe.errors import FaultCollector
from mrpipe.schema import Attrition, Checked, Cohort, Dataset, Scheme, Task


@dataclasses.dataclass(frozen=True)
class Simulation(ImageSimulation):
    seed: int = 0


def subjects(n: int = 24) -> pl.DataFrame:
    """Participants of simulated maps."""
    return pl.DataFrame(
        {
            "subject_id": [f"{i % 7 + 2:03d}_S_{37 * i + 11:04d}" for i in range(n)],
            "diagnosis": [("CN", "MCI", "Dementia")[i % 3] for i in range(n)],
            "latent": np.linspace(-1, 1, n),
        }
    )


def cohort(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(sample_id="subject_id", subject_id="subject_id").sort("sample_id")


def toy_dataset(frame: pl.DataFrame) -> Dataset:
    """A dataset that has only the modality `image`."""

    def make_cohort(raw: Path, options: AdniOptions) -> Cohort:
        samples = cohort(frame)
        classes = frame.select(
            sample_id="subject_id",
            value=pl.col("diagnosis").replace_strict({"CN": 0, "MCI": 1, "Dementia": 2}, return_dtype=pl.Int8),
        )
        return Cohort(samples=samples, labels={"dx": classes}, attrition=Attrition(len(samples)).frame())

    def check(raw: Path, options: AdniOptions) -> Checked:
        faults = FaultCollector()
        found = check_images(raw, options, faults)
        faults.raise_if_any()
        return Checked(release="test", files=tuple(found.files), notes=tuple(found.notes), groups=found.groups)

    return Dataset(
        name="adni",
        title="t",
        citation="c",
        licence="l",
        provider="p",
        options=AdniOptions,
        simulation=Simulation,
        modalities={"image": ADNI.modalities["image"]},
        tasks=(Task(name="dx", kind="classification", classes=("CN", "MCI", "AD")),),
        schemes={"standard": Scheme(stratify="dx")},
        check=check,
        cohort=make_cohort,
        simulate=lambda *a: None,
    )
