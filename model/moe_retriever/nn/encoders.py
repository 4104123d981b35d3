"""Modality encoders, registered by kind of input; each maps n observed entries to tokens (n, P, H).

Encoders process observed entries only, so neither they nor batch statistics see placeholder values.

Legend: n entries, P tokens, H hidden dimension, d features, T steps, S steps of all entries, C channels.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from moe_retriever.config import Common
from moe_retriever.data.event_table import EventBatch
from moe_retriever.data.tables import Genotypes, ModalitySpec
from moe_retriever.nn.dropout import Dropout, Noise
from moe_retriever.nn.init import BATCH_NORMS, Fill, build, constant, normal
from moe_retriever.nn.kernels.recurrent import last_state
from mrpipe.errors import DataError, Fault
from mrpipe.reading import reading


class Tokeniser(nn.Module):
    """(n, d) → (n, P, H): split into P equal chunks (padded with zeros) and apply one linear map to each chunk.

    As in the authors' released code. Tokens, which are also kept for retrieval, are float32 in every precision.
    """

    def __init__(self, d: int, n_tokens: int, hidden: int):
        super().__init__()
        self.n_tokens = n_tokens
        self.chunk = math.ceil(d / n_tokens)
        self.linear = nn.Linear(self.chunk, hidden)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.chunk * self.n_tokens - x.shape[1]
        x = F.pad(x, (0, padding)) if padding else x
        return self.linear(x.reshape(-1, self.n_tokens, self.chunk)).to(self.linear.weight.dtype)


class GenotypeTokeniser(Tokeniser):
    """Tokeniser of packed genotypes, which are decoded at the padded width."""

    def forward(self, x: Genotypes) -> Tensor:  # type: ignore[override]
        return super().forward(x.values(self.chunk * self.n_tokens))


class VectorMLP(nn.Module):
    """Linear d → hidden, ReLU, then tokens (the paper's appendix A.2: MLP with hidden size 256)."""

    def __init__(self, d: int, encoder_hidden: int, n_tokens: int, hidden: int):
        super().__init__()
        self.inner = nn.Linear(d, encoder_hidden)
        self.tokens = Tokeniser(encoder_hidden, n_tokens, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(F.relu(self.inner(x)))


class Recurrent(nn.Module):
    """GRU or LSTM over the steps of each sequence; the state after the last step is converted to tokens.

    The input is packed, so states depend neither on padding nor on the lengths of other sequences.
    """

    def __init__(self, rnn: nn.RNNBase, n_tokens: int, hidden: int):
        super().__init__()
        self.rnn = rnn
        self.tokens = Tokeniser(rnn.hidden_size, n_tokens, hidden)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.tokens(last_state(self.rnn, x))


class EventEmbedding(nn.Module):
    """(S steps of events) → (S, H) without dense tensors: Σ_items (W_v[item] · z + W_m[item]) + W_t · Δt + b.

    This equals a linear layer on the concatenated values, observation mask and elapsed time of a step (2 V + 1 features
    for a vocabulary of V items), but its cost depends only on the number of items in the step.
    """

    def __init__(self, n_items: int, hidden: int):
        super().__init__()
        self.of_value = nn.Parameter(torch.empty(n_items, hidden))
        self.of_mask = nn.Parameter(torch.empty(n_items, hidden))
        self.of_time = nn.Parameter(torch.empty(hidden))
        self.bias = nn.Parameter(torch.empty(hidden))

    def initial(self, name: str) -> Fill:
        # A step has tens of items, not thousands, which determines the scale of the sum.
        return constant(0.0) if name == "bias" else normal(0.1)

    def forward(self, x: EventBatch) -> Tensor:
        values = F.embedding_bag(x.item, self.of_value, x.starts, mode="sum", per_sample_weights=x.value)
        present = F.embedding_bag(x.item, self.of_mask, x.starts, mode="sum")
        return values + present + x.elapsed[:, None] * self.of_time + self.bias


class EventRecurrent(nn.Module):
    """Event embedding, then GRU or LSTM over the steps; the last state is converted to tokens."""

    def __init__(self, n_items: int, rnn: nn.RNNBase, n_tokens: int, hidden: int):
        super().__init__()
        self.embedding = EventEmbedding(n_items, rnn.input_size)
        self.rnn = rnn
        self.tokens = Tokeniser(rnn.hidden_size, n_tokens, hidden)

    def forward(self, x: EventBatch) -> Tensor:
        packed = PackedSequence(self.embedding(x), x.batch_sizes, x.order, x.inverse)
        return self.tokens(last_state(self.rnn, packed))


class _Pool(nn.MaxPool2d):
    """2 × 2 max-pooling that does not pool sides of length 1, so that small images are supported."""

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(min(2, s) for s in x.shape[-2:])
        return x if size == (1, 1) else F.max_pool2d(x, size, size)


_VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class VGG11(nn.Module):
    """VGG11 (Simonyan and Zisserman 2015, configuration A), with the layer names of torchvision's model.

    With `width=1`, three channels and 1000 outputs, it has 132,863,336 parameters (132,868,840 with batch norm) like
    torchvision's model and can load its weight files.

    Args:
        n_outputs: size of the last layer.
        width: factor of all channel counts.
        dropout: rate of both dropout layers of the classifier.
    """

    def __init__(self, *, channels: int, n_outputs: int, width: float, batch_norm: bool, dropout: float, noise: Noise):
        super().__init__()
        layers: list[nn.Module] = []
        for size in _VGG11:
            if size == "M":
                layers.append(_Pool(2))
                continue
            n = max(8, round(int(size) * width))
            layers.append(nn.Conv2d(channels, n, 3, padding=1))
            layers += [nn.BatchNorm2d(n), nn.ReLU(inplace=True)] if batch_norm else [nn.ReLU(inplace=True)]
            channels = n
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        wide = max(8, round(4096 * width))
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, wide),
            nn.ReLU(inplace=True),
            Dropout(dropout, noise),
            nn.Linear(wide, wide),
            nn.ReLU(inplace=True),
            Dropout(dropout, noise),
            nn.Linear(wide, n_outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class ImageEncoder(nn.Module):
    """VGG11, then tokens. With `freeze`, the convolutions and their batch statistics are not updated."""

    def __init__(self, spec: ModalitySpec, c: Common, noise: Noise):
        super().__init__()
        self.downsample = c.image_downsample
        self.freeze = c.image_freeze
        self.cnn = VGG11(
            channels=spec.shape[0],
            n_outputs=c.image_outputs,
            width=c.cnn_width,
            batch_norm=c.image_encoder == "vgg11_bn",
            dropout=c.image_dropout,
            noise=noise,
        )
        self.tokens = Tokeniser(c.image_outputs, c.tokens, c.hidden)
        self.cnn.features.requires_grad_(not self.freeze)

    def train(self, mode: bool = True) -> "ImageEncoder":
        super().train(mode)
        if self.freeze:
            self.cnn.features.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample > 1:
            x = F.avg_pool2d(x, self.downsample, ceil_mode=True)
        return self.tokens(self.cnn(x))

    def load_weights(self, path: str) -> None:
        """Load a torchvision state dict; a last layer of a different size keeps its initial weights.

        Raises:
            DataError: the file is not a state dict, or names or shapes differ.
        """
        fix = "Use a state dict of torchvision's vgg11 or vgg11_bn (option image_encoder), with cnn_width=1."
        with reading(path, "a torch state dict", fix):
            weights = torch.load(Path(path), map_location="cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
            found = f"a {type(weights).__name__} of something else"
            raise DataError(Fault(file=path, expected="a torch state dict", found=found, fix=fix))
        own = self.cnn.state_dict()
        differing = {k for k in own if k in weights and weights[k].shape != own[k].shape}
        last = {k for k in differing if k.startswith("classifier.6.")}
        wrong = sorted(k for k in (set(own) ^ set(weights) | differing) - last if not k.endswith("num_batches_tracked"))
        if wrong:
            expected, found = "the layers of this VGG11", f"{len(wrong)} missing, unknown or differently shaped layers"
            raise DataError(Fault(file=path, column=wrong[0], expected=expected, found=found, fix=fix))
        self.cnn.load_state_dict({k: own[k] if k in last else v for k, v in weights.items() if k in own}, strict=False)


class CNN3D(nn.Module):
    """Six 3 × 3 × 3 convolutions (32, 32, 64, 64, 128, 128) with max-pooling by 2, 3 and 4, then one linear layer.

    With 91 × 109 × 91 voxels and 128 outputs, it has 1.448 M parameters and needs 93.1 GFLOPs, like the authors' model.
    Pooling windows are limited to the remaining size of the volume.
    """

    def __init__(self, shape: tuple[int, ...], n_outputs: int, width: float):
        super().__init__()
        sizes = list(shape)
        layers: list[nn.Module] = []
        channels = 1
        for n, pool in ((32, 2), (64, 3), (128, 4)):
            wide = max(4, round(n * width))
            kernel = tuple(min(pool, s) for s in sizes)
            for n_in in (channels, wide):
                layers += [nn.Conv3d(n_in, wide, 3, padding=1), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool3d(kernel))
            channels, sizes = wide, [s // k for s, k in zip(sizes, kernel, strict=True)]
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(channels * math.prod(sizes), n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x.unsqueeze(1).contiguous(memory_format=torch.channels_last_3d)).flatten(1))


class VolumeEncoder(nn.Module):
    """3-D CNN, then tokens."""

    def __init__(self, spec: ModalitySpec, c: Common):
        super().__init__()
        self.downsample = c.image_downsample
        shape = tuple(-(-s // self.downsample) for s in spec.shape)
        self.cnn = CNN3D(shape, c.encoder_hidden, c.cnn_width)
        self.tokens = Tokeniser(c.encoder_hidden, c.tokens, c.hidden)

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample > 1:
            x = F.avg_pool3d(x, self.downsample, ceil_mode=True)
        return self.tokens(self.cnn(x))


Factory = Callable[[ModalitySpec, Common, Noise], nn.Module]


def _vector(m: ModalitySpec, c: Common, noise: Noise) -> nn.Module:
    if c.vector_encoder == "linear":
        return Tokeniser(m.shape[0], c.tokens, c.hidden)
    return VectorMLP(m.shape[0], c.encoder_hidden, c.tokens, c.hidden)


def _rnn(c: Common, d: int) -> nn.RNNBase:
    return nn.LSTM(d, c.encoder_hidden) if c.sequence_encoder == "lstm" else nn.GRU(d, c.encoder_hidden)


# Kind of modality → factory.
ENCODERS: dict[str, Factory] = {
    "vector": _vector,
    "genotype": lambda m, c, noise: GenotypeTokeniser(m.shape[0], c.tokens, c.hidden),
    "sequence": lambda m, c, noise: Recurrent(_rnn(c, m.shape[0]), c.tokens, c.hidden),
    "events": lambda m, c, noise: EventRecurrent(m.shape[0], _rnn(c, c.encoder_hidden), c.tokens, c.hidden),
    "image": ImageEncoder,
    "volume": lambda m, c, noise: VolumeEncoder(m, c),
}


def build_encoders(modalities: tuple[ModalitySpec, ...], c: Common, seed: int, noise: Noise) -> nn.ModuleList:
    """One encoder per modality, in order; their weights are equal for all methods with the same seed and options."""
    encoders = nn.ModuleList()
    for spec in modalities:
        encoder = build(partial(ENCODERS[spec.kind], spec, c, noise), seed, f"encoder {spec.name}")
        if isinstance(encoder, ImageEncoder) and c.image_weights:
            encoder.load_weights(c.image_weights)
        encoders.append(encoder)
    return encoders


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a module has batch norm, so that entries encoded together depend on each other in training."""
    return any(isinstance(m, BATCH_NORMS) for m in module.modules())


def is_random(module: nn.Module) -> bool:
    """Whether the output of a module differs between training and evaluation mode."""
    return has_batch_norm(module) or any(isinstance(m, Dropout) and m.p > 0 for m in module.modules())


@contextmanager
def frozen_batch_norm(module: nn.Module) -> Iterator[None]:
    """Context in which batch-norm layers use their running statistics without updating them."""
    layers = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
