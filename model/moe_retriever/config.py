"""The options of a run: frozen dataclasses, an unknown key is an error that names it.

A run has two groups of options: `Common`, the same for every method (data, encoders, fusion, training), and the
method's own (`Options` of its class). No name stands in both, so `--set key=value` needs no prefix. A method's presets
are named overrides of either group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypedDict, TypeVar

from mrpipe.errors import UsageError, did_you_mean
from mrpipe.options import option, parse_options

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from moe_retriever.methods.base import AnyMethod

OptionValue = bool | int | float | str
# The `Options` of a method.
O_co = TypeVar("O_co", bound="DataclassInstance", covariant=True)


class ConfigRecord(TypedDict):
    """A configuration as plain values."""

    method: str
    preset: str
    seed: int
    common: dict[str, OptionValue]
    options: dict[str, OptionValue]


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every method has."""

    # Representation
    hidden: int = option(128, "width H of a token")
    tokens: int = option(16, "tokens P per modality (A1); 1 makes every modality one vector")
    dropout: float = option(0.5, "dropout rate of attention outputs, feed-forward layers and experts")
    # Encoders (paper, appendix A.2: hidden 256)
    encoder_hidden: int = option(256, "hidden size of MLP, GRU, LSTM and of the 3-D CNN's output")
    vector_encoder: str = option("mlp", "encoder of vectors", choices=("mlp", "linear"))
    sequence_encoder: str = option("gru", "encoder of sequences", choices=("gru", "lstm"))
    image_encoder: str = option("vgg11", "encoder of images", choices=("vgg11", "vgg11_bn"))
    image_outputs: int = option(16, "outputs of VGG11's last layer (raw-formats C.4: the paper's 'hidden 16')")
    image_dropout: float = option(0.5, "dropout inside VGG11's classifier")
    image_downsample: int = option(1, "average-pool images and volumes by this factor before the CNN; 1 keeps them")
    image_weights: str = option("", "local file of VGG11 weights under torchvision's names; empty: random start")
    image_freeze: bool = option(False, "keep VGG11's convolutions as they start")
    cnn_width: float = option(1.0, "width of 2-D and 3-D CNNs relative to the published ones; 1/8 is quick on a CPU")
    # Fusion transformer
    heads: int = option(4, "attention heads")
    fusion_layers: int = option(1, "layers of the fusion transformer")
    fusion_ffn: int = option(256, "hidden size of its feed-forward part")
    fusion_block: str = option("pre-ln", "residual form of its blocks", choices=("pre-ln", "code"))
    fusion_experts: int = option(0, "experts of a sparse feed-forward part; 0: dense")
    fusion_top_k: int = option(4, "experts a token visits in a sparse feed-forward part")
    # Training
    lr: float = option(1e-4, "learning rate of Adam")
    weight_decay: float = option(0.0, "weight decay of Adam")
    batch_size: int = option(32, "samples a step")
    eval_batch_size: int = option(256, "samples a step without gradients")
    epochs: int = option(20, "longest training, in epochs")
    patience: int = option(10, "epochs without a better validation score before training ends; 0: never")
    select_metric: str = option(
        "macro_f1",
        "validation score that picks the epoch (accuracy for MOSI and ENRICO, as published)",
        choices=("macro_f1", "accuracy", "balanced_accuracy", "auroc", "loss"),
    )
    class_weight: str = option("none", "weights of the cross-entropy", choices=("none", "balanced"))
    clip: float = option(0.0, "largest norm of the gradient; 0: no clipping")
    drop_modalities: float = option(0.0, "in training, hide each observed modality with this rate, never the last one")
    gradient_rows: int = option(
        0, "training samples on which each epoch compares the modalities' gradients (Figure 5); 0: none"
    )
    checkpoint_every: int = option(1, "epochs between two points from which an interrupted run continues")
    bank_mb: float = option(
        256.0, "largest support bank (MB) that a checkpoint carries for `predict`, and that predictions keep in memory"
    )


@dataclass(frozen=True)
class Config(Generic[O_co]):
    """All options of one run.

    Attributes:
        method, preset: names; the preset's overrides are already in the two groups.
        common: options that every method has.
        own: the method's `Options`.
        seed: seed of initial weights, batches, dropout and retrieval.
    """

    method: str
    preset: str
    common: Common
    own: O_co
    seed: int = 0

    def to_dict(self) -> ConfigRecord:
        """Plain values, for config.json and the checkpoint."""
        return {
            "method": self.method,
            "preset": self.preset,
            "seed": self.seed,
            "common": dataclasses.asdict(self.common),
            "options": dataclasses.asdict(self.own),
        }

    @classmethod
    def from_dict(cls, value: ConfigRecord, method: type[AnyMethod]) -> AnyConfig:
        """The inverse of `to_dict`."""
        common = parse_options(Common, value["common"], context="common")
        own = parse_options(method.Options, value["options"], context=value["method"])
        return Config(value["method"], value["preset"], common, own, value["seed"])


AnyConfig: TypeAlias = "Config[DataclassInstance]"


def make_config(method: type[AnyMethod], *, preset: str, seed: int, overrides: Mapping[str, object]) -> AnyConfig:
    """Defaults, then the preset, then the overrides; unknown names are usage errors."""
    if preset not in method.presets:
        raise UsageError(f"{method.name} has no preset {preset!r}; it has {', '.join(method.presets)}")
    groups = {f.name: "common" for f in dataclasses.fields(Common)}
    groups |= {f.name: "own" for f in dataclasses.fields(method.Options)}
    values: dict[str, dict[str, object]] = {"common": {}, "own": {}}
    for key, value in {**method.presets[preset], **overrides}.items():
        if key not in groups:
            hint = did_you_mean(key, groups, otherwise=f"`mrpipe methods {method.name}` lists them.")
            raise UsageError(f"{method.name} has no option {key!r}. {hint}")
        fields = Common if groups[key] == "common" else method.Options
        # `n_intra=4` reads as a number; an option of text takes it as written.
        if isinstance(getattr(fields(), key), str) and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        values[groups[key]][key] = value
    common = parse_options(Common, values["common"], context="common")
    own = parse_options(method.Options, values["own"], context=method.name)
    _check(common)
    return Config(method.name, preset, common, own, seed)


def _check(c: Common) -> None:
    """Ranges and combinations that would otherwise fail deep inside a run."""
    positive = (
        "hidden",
        "tokens",
        "heads",
        "batch_size",
        "eval_batch_size",
        "epochs",
        "lr",
        "cnn_width",
        "encoder_hidden",
        "image_outputs",
        "image_downsample",
        "fusion_ffn",
        "fusion_layers",
        "checkpoint_every",
    )
    for name in positive:
        if getattr(c, name) <= 0:
            raise UsageError(f"option {name}={getattr(c, name)} must be positive")
    if c.gradient_rows < 0:
        raise UsageError(f"option gradient_rows={c.gradient_rows} must not be negative")
    for name in ("dropout", "image_dropout", "drop_modalities"):
        if not 0 <= getattr(c, name) < 1:
            raise UsageError(f"option {name}={getattr(c, name)} must lie in [0, 1)")
    if c.hidden % c.heads:
        raise UsageError(f"option hidden={c.hidden} must be a multiple of heads={c.heads}")
    if c.fusion_experts and c.fusion_top_k > c.fusion_experts:
        raise UsageError(f"option fusion_top_k={c.fusion_top_k} exceeds fusion_experts={c.fusion_experts}")
