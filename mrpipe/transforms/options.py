"""Options of the transforms of a store."""

import math
from dataclasses import dataclass

from mrpipe.errors import UsageError
from mrpipe.options import option

SCALES = ("standard", "minmax", "none")
IMPUTATIONS = ("mean", "median")


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """How `mrpipe.transforms.fit.fit` fits transforms: `--transform key=value`, or `transforms` in the workflow.

    Raises:
        UsageError: a value out of range.
    """

    scale: str = option(
        "standard",
        "scaling of numeric features and embeddings: mean 0 and sd 1, training range to [-1, 1], or none",
        choices=SCALES,
    )
    impute: str = option("mean", "training statistic that replaces unknown numeric values", choices=IMPUTATIONS)
    clip: float = option(
        10.0, "largest absolute value of features, events and event summaries that were standardised; 0: no clipping"
    )
    svd_dim: int = option(128, "SVD components to which TF-IDF counts are reduced")
    event_floor: float = option(0.005, "smallest share of training samples with an item of the event vocabulary")
    event_cap: int = option(2172, "largest event vocabulary; the most frequent items are kept (the paper has 2,172)")
    event_step_hours: float = option(
        24.0, "time step of measurements in hours; the values of an item within a step are averaged"
    )
    event_steps: int = option(50, "most recent time steps kept per sample of measurements")
    ld_r2: float = option(
        0.1, "LD pruning of genotypes with known positions: r² above which one SNP of a pair is removed; 0: no pruning"
    )
    ld_window: int = option(50, "window of LD pruning, in SNPs")
    ld_step: int = option(5, "step between windows of LD pruning, in SNPs")

    def __post_init__(self) -> None:
        valid = {
            "scale": (self.scale in SCALES, f"one of {', '.join(SCALES)}"),
            "impute": (self.impute in IMPUTATIONS, f"one of {', '.join(IMPUTATIONS)}"),
            "clip": (0 <= self.clip < math.inf, "a number of at least 0"),
            "svd_dim": (self.svd_dim >= 1, "at least 1"),
            "event_floor": (0 <= self.event_floor <= 1, "in [0, 1]"),
            "event_cap": (self.event_cap >= 1, "at least 1"),
            "event_step_hours": (0 < self.event_step_hours < math.inf, "a positive number"),
            "event_steps": (self.event_steps >= 1, "at least 1"),
            "ld_r2": (0 <= self.ld_r2 <= 1, "in [0, 1]"),
            "ld_window": (self.ld_window >= 2, "at least 2"),
            "ld_step": (self.ld_step >= 1, "at least 1"),
        }
        for name, (right, expected) in valid.items():
            if not right:
                raise UsageError(f"option {name}={getattr(self, name)!r} must be {expected}")
