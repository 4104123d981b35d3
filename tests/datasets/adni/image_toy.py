"""Helpers of the tests of images: settings of the simulation, participants and their samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from mrpipe.datasets.adni.simulate.image import ImageSimulation


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
