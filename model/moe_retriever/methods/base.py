"""What every method is: a module that turns a batch into logits and named losses.

To add a method, put one file into this folder: a subclass of `Method` with `name`, `summary`, `paper`, its `Options`
and `forward`. It becomes a choice of `--method`, is trained, evaluated and reported like all others, and starts with
the same encoders.

Legend: B samples, M modalities, P tokens, H hidden, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.encoders import build_encoders
from moe_retriever.nn.init import build


@dataclass(frozen=True)
class NoOptions:
    """For methods without options of their own."""


@dataclass(frozen=True)
class Output:
    """What a method says about a batch.

    Attributes:
        logits: (B, C).
        losses: terms to add to the cross-entropy, already weighted; each is logged under its name.
        diagnostics: detached extras, only where `detail` was asked for.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)


class Method(nn.Module):
    """Base of all methods.

    Class attributes:
        name: equals the module's name.
        summary, paper: one line each, for `--help`.
        citation: of the paper that proposed it, as a reference list has it; empty for a control.
        Options: frozen dataclass of `mrpipe.schema.option` fields whose names differ from those of `Common`.
        presets: named overrides; "paper" is the default.
        gradient: trained by gradient steps; otherwise `fit` is called once.
        space: candidates of options of its own that `search` tries beside the common ones.
        encoded: uses the shared encoders, found in `self.encoders` (one a modality) once the method is made.

    A method must not keep anything of a batch. What it remembers of the *training* samples it takes in `prepare`, and
    drops in `refresh` what depends on weights.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    Options: ClassVar[type] = NoOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}
    space: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    gradient: ClassVar[bool] = True
    encoded: ClassVar[bool] = True

    encoders: nn.ModuleList
    # Whether missing modalities are filled from other samples now (a warm-up may wait); None: the method never does so.
    retrieving: bool | None = None

    def __init__(self, spec: DataSpec, config: Config, noise: Noise):
        super().__init__()
        self.spec, self.config, self.noise = spec, config, noise

    @classmethod
    def create(cls, spec: DataSpec, config: Config) -> Self:
        """Make the method with initial weights keyed by the seed; encoders are the same for all methods."""
        noise = Noise(config.seed)
        method = build(lambda: cls(spec, config, noise), config.seed, "method")
        if cls.encoded:
            method.encoders = build_encoders(spec.modalities, config.common, config.seed, noise)
        return method

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        """Logits and losses of a batch; the prediction of a sample must not depend on the others.

        Args:
            draw: number of the random draw, for methods that draw at evaluation (see `n_draws`).
            detail: fill `Output.diagnostics`.
        """

    @property
    def n_draws(self) -> int:
        """Draws whose logits are averaged in an evaluation."""
        return 1

    @property
    def selectable(self) -> bool:
        """Whether the present epoch may be the one that is kept; False in a warm-up."""
        return True

    def prepare(self, data: Data, train_rows: Rows) -> None:
        """Take what the method needs of the training samples; called once before training or evaluation."""

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        """Called before each training epoch (0-based)."""

    def arrange(self, data: Data, rows: Rows) -> Rows:
        """The training samples of this epoch in the order of the batches, from their shuffled order; for curricula."""
        return rows

    def refresh(self) -> None:
        """Drop everything that was computed with former weights; called whenever they may have changed."""

    def fit(self, data: Data, train_rows: Rows, val_rows: Rows) -> dict[str, Any]:
        """Methods without gradient steps: fit, choosing on validation; returns what was chosen, for the log."""
        raise TypeError(f"{self.name} is trained by gradient steps")

    def reference_bytes(self) -> int:
        """Size of what `reference_state` would return."""
        return 0

    def reference_state(self) -> dict[str, Any]:
        """What prediction on another store needs of the training samples: tensors and plain values, no ids."""
        return {}

    def load_reference(self, state: Mapping[str, Any]) -> None:
        """The inverse of `reference_state`; replaces `prepare` where the training store is not at hand."""

    def expert_pools(self, n_experts: int) -> list[str]:
        """Name of the pool of each expert, for methods that report routing."""
        return ["shared"] * n_experts

    # Parts that methods share.

    def encode(self, batch: Batch, m: int) -> Tensor:
        """Tokens (n, P, H) of modality m for the batch's samples that have it, in their order."""
        return self.encoders[m](batch.data.tables[m].gather(batch.table_rows(m)[1]))

    def encode_slots(self, batch: Batch) -> Tensor:
        """Tokens (B, M, P, H) of all observed slots; zeros where a modality is not observed."""
        c = self.config.common
        slots = []
        for m in range(len(self.encoders)):
            slot = torch.zeros(len(batch), c.tokens, c.hidden, device=self.device)
            places = batch.table_rows(m)[0]
            if len(places):
                tokens = self.encode(batch, m)
                slot = slot.to(tokens.dtype).index_copy(0, torch.from_numpy(places).to(self.device), tokens)
            slots.append(slot)
        return torch.stack(slots, dim=1)
