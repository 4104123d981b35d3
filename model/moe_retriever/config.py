"""Options of a run as frozen dataclasses; unknown keys are errors.

A run has two groups of options: `Common`, shared by all methods (encoders, fusion, training), and those of the method
(`Options` of its class). The names of the groups are disjoint, so `--set key=value` needs no prefix. Presets of a
method are named overrides of both groups.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypedDict, TypeVar

from moe_retriever.metrics import METRIC, names_of
from mrpipe.errors import UsageError, did_you_mean
from mrpipe.options import BoundedOptions, option, parse_options

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from moe_retriever.methods.base import AnyMethod

OptionValue = bool | int | float | str
# Limit of a training whose number of epochs is not given.
EPOCHS, MIN_UPDATES = 100, 2000
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
class Common(BoundedOptions):
    """Options of all methods."""

    # Representation
    hidden: int = option(128, "dimension H of a token", ge=1)
    tokens: int = option(16, "tokens P per modality; 1 represents each modality by one vector", ge=1)
    dropout: float = option(0.5, "dropout rate of attention outputs, feed-forward layers and experts", ge=0, lt=1)
    # Encoders (the paper's appendix A.2 has hidden size 256)
    encoder_hidden: int = option(256, "hidden size of MLP, GRU and LSTM, and output size of the 3-D CNN", ge=1)
    vector_encoder: str = option("mlp", "encoder of vectors", choices=("mlp", "linear"))
    sequence_encoder: str = option("gru", "encoder of sequences", choices=("gru", "lstm"))
    image_encoder: str = option("vgg11", "encoder of images", choices=("vgg11", "vgg11_bn"))
    image_outputs: int = option(16, "output size of VGG11 (the paper's hidden size of 16 for images)", ge=1)
    image_dropout: float = option(0.5, "dropout inside VGG11's classifier", ge=0, lt=1)
    image_downsample: int = option(1, "average-pooling factor for images and volumes before the CNN; 1: none", ge=1)
    image_weights: str = option("", "file of VGG11 weights with torchvision's names; empty: random initial weights")
    image_freeze: bool = option(False, "do not train VGG11's convolutions")
    cnn_width: float = option(1.0, "relative width of the 2-D and 3-D CNNs; 1 as published, 1/8 is fast on a CPU", gt=0)
    # Fusion transformer
    heads: int = option(4, "attention heads", ge=1)
    fusion_layers: int = option(1, "layers of the fusion transformer", ge=1)
    fusion_ffn: int = option(256, "hidden size of the fusion transformer's feed-forward layers", ge=1)
    fusion_block: str = option("pre-ln", "block of the transformer; code: as released", choices=("pre-ln", "code"))
    fusion_experts: int = option(0, "experts per feed-forward layer of the fusion transformer; 0: dense layers")
    fusion_top_k: int = option(4, "experts per token if fusion_experts > 0")
    # Training
    lr: float = option(1e-4, "learning rate of Adam", gt=0)
    weight_decay: float = option(0.0, "weight decay of Adam")
    batch_size: int = option(32, "batch size in training", ge=1)
    eval_batch_size: int = option(256, "batch size in evaluation", ge=1)
    epochs: int = option(0, f"maximum number of epochs; 0: {EPOCHS}, or as many as {MIN_UPDATES} updates need", ge=0)
    patience: int = option(
        20, f"epochs without a better score until the stop, per {EPOCHS} if epochs=0; 0: never", ge=0
    )
    select_metric: str = option(
        "auto",
        "validation metric for early stopping and model selection; auto: AUROC, or MAE for a regression (the paper "
        "uses macro_f1, and accuracy for MOSI and ENRICO); ties are resolved in favour of the lower loss",
        choices=("auto", *METRIC, "loss"),
    )
    class_weight: str = option("none", "class weights of the cross-entropy", choices=("none", "balanced"))
    clip: float = option(0.0, "maximum gradient norm; 0: no clipping")
    precision: str = option("auto", "matrix products; auto: bfloat16 on GPUs", choices=("auto", "float32", "bfloat16"))
    drop_modalities: float = option(0.0, "rate of hiding observed modalities in training (one is kept)", ge=0, lt=1)
    gradient_rows: int = option(0, "training samples for gradient similarities of modalities per epoch; 0: none", ge=0)
    checkpoint_every: int = option(1, "epochs between checkpoints for resuming an interrupted run", ge=1)
    # Evaluation (`EVALUATION`)
    calibration: str = option("none", "fit a temperature on validation samples", choices=("none", "temperature"))
    decision_threshold: str = option(
        "0.5",
        "probability from which the second of two classes is predicted (for sensitivity, "
        "specificity and predictive values); youden, sensitivity=0.9 and specificity=0.9 use validation samples",
    )
    subgroups: str = option("", "columns of samples.parquet with metrics by value, e.g. 'sex age=40,65' (with cuts)")
    bank_mb: float = option(256.0, "maximum size in MB of the retrieval bank, in the checkpoint and in memory")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_threshold(self.decision_threshold)
        parse_subgroups(self.subgroups)
        if self.hidden % self.heads:
            raise UsageError(f"option hidden={self.hidden} must be a multiple of heads={self.heads}")
        if self.fusion_experts and self.fusion_top_k > self.fusion_experts:
            raise UsageError(f"option fusion_top_k={self.fusion_top_k} exceeds fusion_experts={self.fusion_experts}")


# Options that the training does not use.
EVALUATION = ("calibration", "decision_threshold", "subgroups")


@dataclass(frozen=True)
class Config(Generic[O_co]):
    """All options of one run.

    Attributes:
        method, preset: names; the overrides of the preset are already applied to `common` and `own`.
        common: options of all methods.
        own: options of the method.
        seed: seed of initial weights, batches, dropout and retrieval.
    """

    method: str
    preset: str
    common: Common
    own: O_co
    seed: int = 0

    def to_dict(self) -> ConfigRecord:
        """Convert to plain values, for config.json and the checkpoint."""
        return {
            "method": self.method,
            "preset": self.preset,
            "seed": self.seed,
            "common": dataclasses.asdict(self.common),
            "options": dataclasses.asdict(self.own),
        }

    def for_samples(self, n: int) -> "Config[O_co]":
        """The configuration for n training samples: `epochs=0` is resolved, and `patience` grows in proportion."""
        c = self.common
        if c.epochs:
            return self
        epochs = max(EPOCHS, math.ceil(MIN_UPDATES / math.ceil(n / c.batch_size)))
        patience = math.ceil(c.patience * epochs / EPOCHS)
        return dataclasses.replace(self, common=dataclasses.replace(c, epochs=epochs, patience=patience))

    def for_task(self, kinds: tuple[str, ...]) -> "Config[O_co]":
        """The configuration for a task of these kinds (`Metric.kinds`): `select_metric=auto` is resolved.

        Raises:
            UsageError: an option does not apply to this kind of task.
        """
        metric, known = self.common.select_metric, (*names_of(kinds), "loss")
        metric = {True: "mae", False: "auroc"}["regression" in kinds] if metric == "auto" else metric
        if metric not in known:
            said = f"option select_metric={metric} is undefined for this {kinds[0]}"
            raise UsageError(f"{said}; choose one of {', '.join(known)}")
        of_classes = dict.fromkeys(("calibration", "class_weight"), "classification")
        for name, kind in (of_classes | {"decision_threshold": "binary"}).items():
            if (value := getattr(self.common, name)) != getattr(Common, name) and kind not in kinds:
                raise UsageError(f"option {name}={value} needs a {kind} task")
        return dataclasses.replace(self, common=dataclasses.replace(self.common, select_metric=metric))

    @classmethod
    def from_dict(cls, value: ConfigRecord, method: "type[AnyMethod]") -> "AnyConfig":
        """The inverse of `to_dict`; a UsageError for invalid values."""
        common = parse_options(Common, value["common"], context="common")
        own = parse_options(method.Options, value["options"], context=value["method"])
        return Config(value["method"], value["preset"], common, own, value["seed"])


AnyConfig: TypeAlias = "Config[DataclassInstance]"


def first_epochs(value: float, n_epochs: int) -> int:
    """Length of an initial phase: a number of epochs, or a fraction of `n_epochs` (of 20 if there are more)."""
    return int(value) if value >= 1 else math.floor(value * min(n_epochs or 20, 20))


def make_config(method: "type[AnyMethod]", *, preset: str, seed: int, overrides: Mapping[str, object]) -> AnyConfig:
    """Apply the preset, then the overrides, to the defaults.

    Raises:
        UsageError: unknown preset or option, or an invalid value.
    """
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
        # A number is accepted for a text option, e.g. `n_intra=4`.
        if isinstance(getattr(fields(), key), str) and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        values[groups[key]][key] = value
    common = parse_options(Common, values["common"], context="common")
    own = parse_options(method.Options, values["own"], context=method.name)
    return Config(method.name, preset, common, own, seed)


def parse_threshold(text: str) -> tuple[str, float]:
    """A decision threshold as rule (fixed, youden, sensitivity, specificity) and value; a UsageError otherwise."""
    match = re.fullmatch(r"(youden)|((sensitivity|specificity)=)?(0?\.\d+|1(\.0*)?)", text)
    if match is None:
        raise UsageError(f"threshold {text}: expected a probability, youden, sensitivity=0.9 or specificity=0.9")
    return match[1] or match[3] or "fixed", float(match[4] or 0.5)


def parse_subgroups(text: str) -> dict[str, tuple[float, ...]]:
    """Columns of samples.parquet and their cuts, if any, as in `sex age=40,65`; a UsageError for other texts."""
    found = {}
    for word in text.split():
        column, separator, cuts = word.partition("=")
        if not re.fullmatch(r"(-?\d+(\.\d+)?(,(?=.)|$))+" if separator else "", cuts):
            raise UsageError(f"option subgroups={text}: the cuts of {column} must be numbers, as in age=40,65")
        found[column] = tuple(sorted(float(cut) for cut in cuts.split(",") if cut))
    return found
