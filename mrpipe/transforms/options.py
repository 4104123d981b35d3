"""How the transforms of a store are fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scale = Literal["standard", "minmax", "none"]
Impute = Literal["mean", "median"]


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """How transforms are fitted.

    Attributes:
        scale: numeric features: `standard` (mean 0, sd 1), `minmax` (to [-1, 1]) or `none`.
        impute: fill for unknown numeric values.
        clip: standardised values are clipped to ±clip (0: never), so that one wild reading cannot rule a network.
        svd_dim: components kept of TF-IDF counts.
        event_floor, event_cap: an item enters the vocabulary of events if this share of training samples has it; at
            most so many items do (the paper's matrix has 2,172 columns).
        event_step_hours, event_steps: measurements are averaged over steps of so many hours; the latest so many stay.
        ld_r2, ld_window, ld_step: pruning of genotypes whose dictionary says where the SNPs are (`chromosome:position`
            at the start of the description); squared correlation above which one SNP of a pair goes (0: no pruning),
            window and step in SNPs.
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
