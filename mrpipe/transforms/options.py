"""Options for fitting the transforms of a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scale = Literal["standard", "minmax", "none"]
Impute = Literal["mean", "median"]


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """Options for fitting transforms.

    Attributes:
        scale: scaling of numeric features: `standard` (mean 0, sd 1), `minmax` (to [-1, 1]) or `none`.
        impute: statistic of the training values that replaces unknown numeric values.
        clip: limit of standardised values (±clip; 0: no limit), so that outliers cannot dominate a network.
        svd_dim: number of SVD components of TF-IDF counts.
        event_floor: minimum share of training samples that must have an item for it to enter the vocabulary.
        event_cap: maximum size of the vocabulary (the paper's matrix has 2,172 columns).
        event_step_hours: length in hours of the time steps over which measurements are averaged.
        event_steps: maximum number of time steps per sample; the latest are kept.
        ld_r2: squared correlation above which one SNP of a pair is removed (0: no pruning). Applies only if each SNP's
            dictionary description starts with its position (`chromosome:position`).
        ld_window, ld_step: window and step of the pruning, in SNPs.
    """

    scale: Scale = "standard"
    impute: Impute = "mean"
    clip: float = 10.0
    svd_dim: int = 128
    event_floor: float = 0.005
    event_cap: int = 2172
    event_step_hours: float = 24.0
    event_steps: int = 50
    ld_r2: float = 0.1
    ld_window: int = 50
    ld_step: int = 5
