"""Simulated inputs of the sizes of ADNI and MIMIC-IV, for this project's methods and for the authors' loop alike.

Values are noise, genotypes follow allele frequencies, masks follow the patterns of performance.md §1. Both sides get
the same numbers: ours as tables of the rows that exist (genotypes packed), the peer as dense float32 arrays.

Legend: N samples, M modalities, p SNPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moe_retriever.data.load import Data, DataSpec
from moe_retriever.data.tables import FeatureTable, GenotypeTable, ModalitySpec, PixelTable, VectorTable
from mrpipe import keyed
from mrpipe.genetics.packing import pack
from mrpipe.transforms.fit import Transforms
from mrpipe.transforms.genotypes import GenotypeTransform

# Six combinations, all with clinical data, the full one the most frequent; the shares are assumed.
ADNI_MASKS = {"BCGI": 0.50, "BCI": 0.16, "BCG": 0.10, "BC": 0.08, "CI": 0.08, "CGI": 0.08}
VOLUME = (91, 109, 91)
# A box of 39 % of those voxels, as the grey-matter mask has.
BOX = (67, 83, 64)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One simulated data set.

    Attributes:
        modalities: name → (kind, shape of an entry).
        n: samples; 70 % train, 15 % validation, 15 % test.
        masks: combination of the names' first letters → share; None: every modality is missing at 30 %.
    """

    name: str
    modalities: dict[str, tuple[str, tuple[int, ...]]]
    n: int
    masks: dict[str, float] | None
    n_classes: int


def adni(n_snps: int, n: int, *, volume: tuple[int, ...] | None = None) -> Shape:
    """Genotypes, clinical data and biospecimens; with `volume` images as well."""
    modalities: dict[str, tuple[str, tuple[int, ...]]] = {} if volume is None else {"I": ("volume", volume)}
    modalities |= {"G": ("genotype", (n_snps,)), "C": ("vector", (304,)), "B": ("vector", (16,))}
    name = f"ADNI, {n_snps:,} SNPs" + ("" if volume is None else " and images")
    return Shape(name=name, modalities=modalities, n=n, masks=ADNI_MASKS, n_classes=3)


def mimic(n: int) -> Shape:
    """Laboratory values, note embeddings and codes, 30 % of each missing."""
    modalities = {"L": ("vector", (2172,)), "N": ("vector", (768,)), "C": ("vector", (1000,))}
    return Shape(name="MIMIC", modalities=modalities, n=n, masks=None, n_classes=2)


def _observed(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    names = list(shape.modalities)
    if shape.masks is None:
        observed = rng.random((shape.n, len(names))) > 0.3
        observed[np.arange(shape.n), rng.integers(0, len(names), shape.n)] |= ~observed.any(axis=1)
        return observed
    combinations = np.array([[name in letters for name in names] for letters in shape.masks])
    return combinations[rng.choice(len(combinations), shape.n, p=list(shape.masks.values()))]


def genotypes(n: int, n_snps: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(n, p) copies of A1 by allele frequency, 0.5 % not called (3)."""
    frequency = rng.beta(1, 3, n_snps) * 0.5
    calls = np.empty((n, n_snps), dtype=np.uint8)
    for start in range(0, n, 64):
        u = rng.random((2, *calls[start : start + 64].shape), dtype=np.float32)
        calls[start : start + 64] = (u < frequency).sum(axis=0, dtype=np.uint8)
        calls[start : start + 64][rng.random(u.shape[1:], dtype=np.float32) < 0.005] = 3
    return calls


@dataclass(frozen=True)
class Both:
    """One data set for both sides: ours, and the peer's dense arrays with −2 where a modality is absent."""

    shape: Shape
    data: Data
    arrays: list[NDArray[np.float32]]


def _dense(values: NDArray[np.float32], having: NDArray[np.bool_]) -> NDArray[np.float32]:
    out = np.full((len(having), *values.shape[1:]), -2.0, dtype=np.float32)
    out[having] = values
    return out


def _in_full_grid(volumes: NDArray[np.float32], grid: Sequence[int]) -> NDArray[np.float32]:
    """Volumes of a box in the middle of the whole grid, 0 outside."""
    out = np.zeros((len(volumes), *grid), dtype=np.float32)
    start = [(g - s) // 2 for g, s in zip(grid, volumes.shape[1:], strict=True)]
    at = tuple(slice(a, a + s) for a, s in zip(start, volumes.shape[1:], strict=True))
    out[(slice(None), *at)] = volumes
    return out


def make(shape: Shape, device: torch.device, *, grid: Sequence[int] = VOLUME, seed: int = 0) -> Both:
    """Draw a data set."""
    rng = np.random.default_rng(seed)
    observed = _observed(shape, rng)
    tables: list[FeatureTable] = []
    specs, arrays = [], []
    for m, (name, (kind, size)) in enumerate(shape.modalities.items()):
        having = observed[:, m]
        n = int(having.sum())
        table: FeatureTable
        if kind == "genotype":
            calls = genotypes(n, size[0], rng)
            mode = np.zeros(size[0], dtype=np.uint8)
            table = GenotypeTable(pack(calls), GenotypeTransform(mode, np.arange(size[0])), device)
            values = np.where(calls == 3, 0, calls).astype(np.float32) - 1
        elif kind == "volume":
            voxels = rng.random((n, *size), dtype=np.float32)
            table = PixelTable(voxels, np.zeros(1, np.float32), np.ones(1, np.float32), device, per_channel=False)
            values = _in_full_grid(voxels, grid)
        else:
            values = rng.standard_normal((n, *size), dtype=np.float32)
            table = VectorTable(values, device)
        tables.append(table)
        arrays.append(_dense(values, having))
        specs.append(ModalitySpec(name=name, kind=kind, shape=size))
    ids = np.array([f"s{i:05d}" for i in range(shape.n)])
    edges = [round(0.7 * shape.n), round(0.85 * shape.n)]
    data = Data(
        spec=DataSpec(modalities=tuple(specs), classes=tuple(f"c{c}" for c in range(shape.n_classes))),
        sample_id=ids,
        subject_id=ids,
        keys=keyed.id_keys(ids),
        observed=observed,
        row=np.where(observed, np.cumsum(observed, axis=0) - 1, -1),
        label=rng.integers(0, shape.n_classes, shape.n),
        part=np.digitize(np.arange(shape.n), edges).astype(np.int8),
        tables=tables,
        n_without={"train": 0, "val": 0, "test": 0, "none": 0},
        fitted=Transforms("0" * 16, "standard", {}, {}),
        device=device,
    )
    return Both(shape, data, arrays)
