"""Small in-memory data sets, like those returned by `moe_retriever.data.load.load`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_retriever.config import Config, make_config
from moe_retriever.data.load import Data, DataSpec
from moe_retriever.data.tables import FeatureTable, GenotypeTable, ModalitySpec, PixelTable, SequenceTable, VectorTable
from moe_retriever.methods import get
from moe_retriever.methods.base import Method
from moe_retriever.nn.dropout import Noise
from mrpipe import keyed
from mrpipe.transforms.fit import Transforms
from mrpipe.transforms.genotypes import GenotypeTransform

CPU = torch.device("cpu")
SMALL = {
    "hidden": 16,
    "tokens": 2,
    "heads": 2,
    "encoder_hidden": 12,
    "fusion_ffn": 24,
    "cnn_width": 0.05,
    "image_outputs": 6,
    "batch_size": 8,
}
SMALL_RETRIEVER = {"n_experts": 3, "n_shared": 2, "expert_ffn": 20, "top_k": 2}
NOTHING_FITTED = Transforms("0" * 16, "standard", {}, {})


def random_masks(n: int, n_modalities: int, seed: int, p: float = 0.4) -> NDArray[np.bool_]:
    """(n, M) random masks with at least one modality per sample."""
    rng = np.random.default_rng(seed)
    observed = rng.random((n, n_modalities)) > p
    observed[np.arange(n), rng.integers(0, n_modalities, n)] = True
    return observed


def _table(
    kind: str, n: int, signal: NDArray[np.float64], rng: np.random.Generator
) -> tuple[FeatureTable, tuple[int, ...]]:
    """A table whose entries contain the signal, and the shape of one entry."""
    if kind == "vector":
        x = rng.normal(size=(n, 5)) + signal[:, None]
        return VectorTable(x.astype(np.float32), CPU), (5,)
    if kind == "sequence":
        lengths = rng.integers(1, 7, n)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        x = rng.normal(size=(offsets[-1], 3)) + np.repeat(signal, lengths)[:, None]
        return SequenceTable(x.astype(np.float32), offsets, CPU), (3,)
    if kind == "image":
        pixels = np.clip(rng.normal(128, 30, (n, 3, 9, 6)) + 25 * signal[:, None, None, None], 0, 255).astype(np.uint8)
        mean, sd = np.full(3, 128, np.float32), np.full(3, 40, np.float32)
        return PixelTable(pixels, mean, sd, CPU, per_channel=True), (3, 9, 6)
    if kind == "volume":
        voxels = (rng.normal(size=(n, 5, 6, 4)) + signal[:, None, None, None]).astype(np.float32)
        return PixelTable(voxels, np.zeros(1, np.float32), np.ones(1, np.float32), CPU, per_channel=False), (5, 6, 4)
    packed = rng.integers(0, 256, (n, 3)).astype(np.uint8)
    transform = GenotypeTransform(np.zeros(10, dtype=np.uint8), np.arange(10))
    return GenotypeTable(packed, transform, CPU), (10,)


def make(
    observed: NDArray[np.bool_],
    kinds: tuple[str, ...] | None = None,
    *,
    n_classes: int = 2,
    regression: bool = False,
    seed: int = 0,
    parts: tuple[float, float] = (0.6, 0.2),
    strength: float = 2.0,
) -> Data:
    """A data set with the given masks, a signal shared by labels and modalities, and consecutive splits.

    For a regression, the signal is the target in units of 10 from 50.
    """
    n, n_modalities = observed.shape
    kinds = kinds or ("vector",) * n_modalities
    rng = np.random.default_rng(seed)
    label = rng.integers(0, n_classes, n)
    signal = strength * (label - (n_classes - 1) / 2)
    if regression:
        signal = rng.normal(size=n)
    ids = np.array([f"s{i:05d}" for i in range(n)])
    row = np.where(observed, np.cumsum(observed, axis=0) - 1, -1)
    tables, specs = [], []
    for m, kind in enumerate(kinds):
        table, shape = _table(kind, int(observed[:, m].sum()), signal[observed[:, m]], rng)
        tables.append(table)
        specs.append(ModalitySpec(name=f"m{m}", kind=kind, shape=shape))
    edges = [round(parts[0] * n), round((parts[0] + parts[1]) * n)]
    target = 50 + 10 * signal
    known = target[: edges[0]]
    classes = tuple(f"c{c}" for c in range(n_classes))
    kind = {"classes": (), "center": known.mean(), "scale": known.std()} if regression else {"classes": classes}
    return Data(
        spec=DataSpec(modalities=tuple(specs), **kind),
        sample_id=ids,
        subject_id=ids,
        keys=keyed.id_keys(ids),
        observed=observed,
        row=row,
        label=target if regression else label.astype(np.int64),
        part=np.digitize(np.arange(n), edges).astype(np.int8),
        tables=tables,
        n_without={"train": 0, "val": 0, "test": 0, "none": 0},
        fitted=NOTHING_FITTED,
        device=CPU,
    )


def config(method: str = "moe_retriever", *, preset: str = "paper", seed: int = 0, **overrides: Any) -> Config:
    """A small configuration."""
    own = SMALL_RETRIEVER if method == "moe_retriever" else {}
    return make_config(get(method), preset=preset, seed=seed, overrides={**SMALL, **own, **overrides})


def trained_on(data: Data, cfg: Config) -> Method:
    """An untrained method that was prepared with the training samples."""
    method = get(cfg.method).create(data.spec, cfg)
    method.prepare(data, data.rows("train"))
    return method


def size_at_128(method: str, n_modalities: int, **overrides: Any) -> int:
    """Number of parameters without encoders for H = 128, P = 16 and three classes."""
    data = make(np.ones((4, n_modalities), dtype=bool), n_classes=3)
    cls = get(method)
    with torch.device("meta"):
        made = cls(data.spec, make_config(cls, preset="paper", seed=0, overrides=overrides), Noise(0))
    return sum(p.numel() for p in made.parameters())
