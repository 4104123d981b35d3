"""Base class of the methods: modules that map a batch to logits and named losses.

To add a method, add one file to this folder with a subclass of `Method` that defines `name`, `summary`, `paper`,
`Options` and `forward`. It is then available as `--method`, is trained, evaluated and reported like the other methods,
and starts from the same encoder weights. See docs/add-a-method.md.

Legend: B samples, M modalities, P tokens, H hidden dimension, C classes.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, Self, TypeAlias, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from moe_retriever.config import EPOCHS, Config, O_co, OptionValue, first_epochs
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.device import HostArray, autocast, to_device
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.encoders import build_encoders
from moe_retriever.nn.init import build
from mrpipe.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Presets = Mapping[str, Mapping[str, OptionValue]]
# Tensors and plain values, with keys defined by each method.
ReferenceState = Mapping[str, object]


@dataclass(frozen=True)
class NoOptions:
    """Options of methods without specific options."""


class Support(Protocol):
    """Supporting samples of the missing slots of a batch."""

    @property
    def target(self) -> Rows: ...

    def rates(self) -> dict[str, float]: ...


class SlotRouting(TypedDict):
    """Per missing slot: sample, observed modalities (Q, M), missing modality, mean weight and visit share (Q, E)."""

    sample: Rows
    observed: NDArray[np.bool_]
    target: Rows
    weight: NDArray[np.float32]
    share: NDArray[np.float32]


class ItemRouting(TypedDict):
    """Per item: observed modalities of its sample (I, M), whether that is a supporting sample, expert visits (I, E)."""

    observed: NDArray[np.bool_]
    supporting: NDArray[np.bool_]
    visits: NDArray[np.int64]


class Diagnostics(TypedDict, total=False):
    """Detached additional outputs."""

    fused: Tensor
    support: Support
    routing: SlotRouting
    item_routing: ItemRouting


@dataclass(frozen=True)
class Output:
    """Output of a method for a batch.

    Attributes:
        logits: (B, C); for a regression (B, 1), the target in units of `DataSpec.scale` from `DataSpec.center`.
        losses: weighted terms to add to the loss of the task, logged under their names.
        diagnostics: detached additional outputs, only if `detail` is requested.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: Diagnostics = field(default_factory=lambda: Diagnostics())


class Method(nn.Module, Generic[O_co]):
    """Base class of all methods.

    Class attributes:
        name: equals the module's name.
        title: displayed name in tables and figures; by default the name, with spaces for underscores.
        summary, paper: one line each, for `--help`; summaries of controls end in "(control)".
        citation: reference of the original paper, or its key in report/references.json; empty for a control.
        Options: frozen dataclass of `mrpipe.options.option` fields whose names differ from those of `Common`; also the
            type parameter: `class Mine(Method[MyOptions])`, so that mypy knows the type of `self.config.own`.
        presets: named overrides; "paper" is the default.
        gradient: whether the method is trained with gradient steps; otherwise `fit` is called once.
        space: candidates for options of the method in a hyper-parameter search, in addition to the common ones.
        encoded: whether the method uses the shared encoders, which `create` assigns to `self.encoders`.

    A method must not keep state of a batch. It receives the *training* samples in `prepare`, and must discard in
    `refresh` everything that depends on weights.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    Options: ClassVar["type[DataclassInstance]"] = NoOptions
    presets: ClassVar[Presets] = {"paper": {}}
    space: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {}
    gradient: ClassVar[bool] = True
    encoded: ClassVar[bool] = True

    encoders: nn.ModuleList
    # Length of the opening, whose epochs early stopping does not select (see `first_epochs`), and whether it lasts.
    opening: float = 0.0
    in_opening: bool = False
    # Whether missing modalities are currently retrieved (False during a warm-up); None if the method does not retrieve.
    retrieving: bool | None = None

    def __init__(self, spec: DataSpec, config: Config[O_co], noise: Noise):
        super().__init__()
        self.spec, self.config, self.options, self.noise = spec, config, config.own, noise

    @classmethod
    def create(cls, spec: DataSpec, config: Config[O_co]) -> Self:
        """Create the method with initial weights that depend on the seed; encoder weights are equal for all methods."""
        noise, config = Noise(config.seed), config.for_task(spec.kinds)
        method = build(lambda: cls(spec, config, noise), config.seed, "method")
        if cls.encoded:
            method.encoders = build_encoders(spec.modalities, config.common, config.seed, noise)
        return method

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    def __call__(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        """`forward` in the precision of the run."""
        with autocast(self.config.common.precision, self.device):
            out: Output = super().__call__(batch, draw=draw, detail=detail)
        return out

    @abstractmethod
    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        """Logits and losses of a batch; the prediction of a sample must not depend on the others.

        Args:
            draw: index of the random draw, for stochastic methods (see `n_draws`).
            detail: whether to fill `Output.diagnostics`.
        """

    @property
    def n_draws(self) -> int:
        """Number of draws whose logits are averaged in an evaluation."""
        return 1

    @property
    def selectable(self) -> bool:
        """Whether the current epoch can be selected by early stopping."""
        return not self.in_opening

    def open_with(self, name: str, value: float, lacking: str) -> None:
        """Make the epochs that an option counts the opening; a UsageError if no others remain."""
        self.opening, epochs = value, self.config.common.epochs
        if first_epochs(value, epochs) >= (epochs or EPOCHS):
            raise UsageError(f"{name}={value} leaves no epochs {lacking} (epochs={epochs})")

    def prepare(self, data: Data, train_rows: Rows) -> None:
        """Receive the training samples; called once before training or evaluation."""

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        """Called before each training epoch (0-based)."""
        self.in_opening = epoch < first_epochs(self.opening, n_epochs)

    def arrange(self, data: Data, rows: Rows) -> Rows:
        """Reorder the shuffled training samples of an epoch, for curricula."""
        return rows

    def refresh(self) -> None:
        """Discard everything computed from the weights; called whenever they may have changed."""

    def fit(self, data: Data, train_rows: Rows, val_rows: Rows) -> dict[str, OptionValue | None]:
        """Fit a method without gradient steps, and return the options selected on the validation samples."""
        raise TypeError(f"{self.name} is trained with gradient steps")

    def reference_bytes(self) -> int:
        """Size of the result of `reference_state` in bytes."""
        return sum(value.nbytes for value in tree_leaves(self.reference_state()) if isinstance(value, Tensor))

    def reference_state(self) -> ReferenceState:
        """Information about the training samples for predictions on another store: tensors and plain values, no ids."""
        return {}

    def load_reference(self, state: ReferenceState) -> None:
        """The inverse of `reference_state`; replaces `prepare` if the training store is not available."""

    def expert_pools(self, n_experts: int) -> list[str]:
        """Pool of each expert, for methods that report routing."""
        return ["shared"] * n_experts

    def task_loss(self, logits: Tensor, label: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Loss of outputs (n, C) for labels (n,): cross-entropy, or the squared error of a regression's single output.

        Args:
            weight: (C,) class weights.
            reduction: mean (weighted by class), sum, or none for (n,).
        """
        if self.spec.regression:
            return F.mse_loss(logits.float().squeeze(1), label, reduction=reduction)
        return F.cross_entropy(logits.float(), label, weight=weight, reduction=reduction)

    def on_device(self, values: HostArray) -> Tensor:
        """An array as a tensor on the device of the method."""
        return to_device(values, self.device)

    def encode(self, batch: Batch, m: int) -> Tensor:
        """Tokens (n, P, H) of modality m for the samples of the batch that have it, in batch order."""
        return self.encoders[m](batch.data.tables[m].gather(batch.table_rows(m)[1]))

    def encode_slots(self, batch: Batch) -> Tensor:
        """Tokens (B, M, P, H) of all observed modalities; zeros for the others."""
        c = self.config.common
        slots = []
        for m in range(len(self.encoders)):
            slot = torch.zeros(len(batch), c.tokens, c.hidden, device=self.device)
            places = batch.table_rows(m)[0]
            if len(places):
                tokens = self.encode(batch, m)
                slot = slot.to(tokens.dtype).index_copy(0, self.on_device(places), tokens)
            slots.append(slot)
        return torch.stack(slots, dim=1)


AnyMethod: TypeAlias = "Method[DataclassInstance]"
