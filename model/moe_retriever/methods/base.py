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
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, Self, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_retriever.config import Config, O_co, OptionValue
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.encoders import build_encoders
from moe_retriever.nn.init import build

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Presets = Mapping[str, Mapping[str, OptionValue]]
# Tensors and plain values; each method knows the types of its own keys.
ReferenceState = Mapping[str, object]


@dataclass(frozen=True)
class NoOptions:
    """For methods without options of their own."""


class Support(Protocol):
    """Missing slots of a batch and how they were filled."""

    @property
    def target(self) -> Rows: ...

    def rates(self) -> dict[str, float]: ...


class SlotRouting(TypedDict):
    """Per missing slot: sample, observed modalities (Q, M), target, mean weight and share of visits (Q, E)."""

    sample: Rows
    observed: NDArray[np.bool_]
    target: Rows
    weight: NDArray[np.float32]
    share: NDArray[np.float32]


class ItemRouting(TypedDict):
    """Per item: observed modalities of its sample (I, M), whether it is a supporting one, visits (I, E)."""

    observed: NDArray[np.bool_]
    supporting: NDArray[np.bool_]
    visits: NDArray[np.int64]


class Diagnostics(TypedDict, total=False):
    """Detached extras of an output."""

    fused: Tensor
    support: Support
    routing: SlotRouting
    item_routing: ItemRouting


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
    diagnostics: Diagnostics = field(default_factory=lambda: Diagnostics())


class Method(nn.Module, Generic[O_co]):
    """Base of all methods.

    Class attributes:
        name: equals the module's name.
        summary, paper: one line each, for `--help`.
        citation: of the paper that proposed it, as a reference list has it; empty for a control.
        Options: frozen dataclass of `mrpipe.options.option` fields whose names differ from those of `Common`; also the
            type parameter: `class Mine(Method[MyOptions])`, so that mypy knows the type of `self.config.own`.
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
    Options: ClassVar[type[DataclassInstance]] = NoOptions
    presets: ClassVar[Presets] = {"paper": {}}
    space: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {}
    gradient: ClassVar[bool] = True
    encoded: ClassVar[bool] = True

    encoders: nn.ModuleList
    # Whether missing modalities are filled from other samples now (a warm-up may wait); None: the method never does so.
    retrieving: bool | None = None

    def __init__(self, spec: DataSpec, config: Config[O_co], noise: Noise):
        super().__init__()
        self.spec, self.config, self.noise = spec, config, noise

    @classmethod
    def create(cls, spec: DataSpec, config: Config[O_co]) -> Self:
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

    def fit(self, data: Data, train_rows: Rows, val_rows: Rows) -> dict[str, OptionValue | None]:
        """Methods without gradient steps: fit, choosing on validation; returns what was chosen, for the log."""
        raise TypeError(f"{self.name} is trained by gradient steps")

    def reference_bytes(self) -> int:
        """Size of what `reference_state` would return."""
        return 0

    def reference_state(self) -> ReferenceState:
        """What prediction on another store needs of the training samples: tensors and plain values, no ids."""
        return {}

    def load_reference(self, state: ReferenceState) -> None:
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


AnyMethod: TypeAlias = "Method[DataclassInstance]"
