"""Fused embeddings of samples that lack a modality, before and after retrieval (Figure 6 of the paper).

Before retrieval, the missing modality is masked out of the fusion, as in the warm-up; after it, the retrieved
embedding takes its place. Everything else, including the weights, is unchanged.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from moe_retriever.data.load import Data
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import Method
from moe_retriever.training.predict import predict
from mrpipe.errors import UsageError
from mrpipe.store.masks import combination_name, name_parts

MOST_SAMPLES = 2000
FEWEST_SAMPLES = 10
STAGES = ("before", "after")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Embeddings:
    """Fused embeddings (n, D) of samples with one modality combination, at both stages, and their labels (n,)."""

    combination: str
    missing: tuple[str, ...]
    before: Floats
    after: Floats
    label: NDArray[np.int64]
    classes: tuple[str, ...]


def choose(data: Data, rows: Rows, combination: str | None, seed: int) -> tuple[Rows, str]:
    """Choose at most 2000 samples of one modality combination, drawn by their keys.

    By default, the most frequent combination among those with the fewest missing modalities.

    Raises:
        UsageError: no sample lacks a modality, or too few samples have the combination.
    """
    names = np.array(data.combination(data.observed[rows]))
    lacking = (~data.observed[rows]).sum(axis=1)
    if combination is None:
        if not (lacking > 0).any():
            raise UsageError("no sample of this split lacks a modality, so there is nothing to retrieve")
        found, counts = np.unique(names[lacking == lacking[lacking > 0].min()], return_counts=True)
        combination = str(found[counts.argmax()])
    wanted = combination_name(n for n in data.spec.names if n in name_parts(combination))
    chosen = rows[names == wanted]
    if len(chosen) < FEWEST_SAMPLES or wanted == combination_name(data.spec.names):
        known = ", ".join(f"{n} ({(names == n).sum()})" for n in np.unique(names[lacking > 0]))
        raise UsageError(
            f"{len(chosen)} samples have exactly {combination}; choose a combination that lacks a modality and has at "
            f"least {FEWEST_SAMPLES} samples; available: {known or 'none'}"
        )
    return data.drawn(chosen, MOST_SAMPLES, seed, "embedding rows"), wanted


def before_and_after(method: Method, data: Data, rows: Rows, combination: str) -> Embeddings:
    """Fused embeddings of `rows` without and with retrieval; afterwards, retrieval is enabled in the method.

    Raises:
        UsageError: the method does not retrieve, or the task is a regression.
    """
    if data.spec.regression:
        raise UsageError("embeddings are compared by class, and a regression has none")
    if method.retrieving is None:
        raise UsageError(f"{method.name} does not retrieve, so there is nothing to compare")
    stages = []
    for retrieving in (False, True):
        method.retrieving = retrieving
        fused = predict(method, data, rows, draws=1, detail=True).fused
        assert fused is not None
        stages.append(fused.astype(np.float64))
    missing = tuple(n for n in data.spec.names if n not in name_parts(combination))
    return Embeddings(combination, missing, stages[0], stages[1], data.label[rows].astype(np.int64), data.spec.classes)


def tsne(embeddings: Embeddings) -> pl.DataFrame:
    """Separate t-SNE of each stage: `stage, x, y, label`, sorted by position so that the order reveals no ids.

    Uses scikit-learn with PCA initialisation, random state 0, and perplexity 30 or a third of the samples if smaller.
    """
    n = len(embeddings.label)
    frames = []
    for stage in STAGES:
        model = TSNE(2, init="pca", random_state=0, perplexity=min(30.0, (n - 1) / 3))
        # One thread, so that the result does not depend on the number of cores.
        with threadpool_limits(1):
            at = model.fit_transform(getattr(embeddings, stage).astype(np.float32))
        label = [embeddings.classes[v] for v in embeddings.label]
        frame = pl.DataFrame({"x": at[:, 0].astype(np.float64), "y": at[:, 1].astype(np.float64), "label": label})
        frames.append(frame.sort("x", "y").insert_column(0, pl.lit(stage).alias("stage")))
    return pl.concat(frames)


def closeness(embeddings: Embeddings) -> pl.DataFrame:
    """Closeness of samples of the same class in the full embedding (not in the t-SNE plane).

    Columns: `stage, label` ("all": every pair of samples with the same label), `n`, `cosine` (mean cosine similarity of
    two different samples of the class), `silhouette` (Euclidean, by label; only for "all", null for a single class).
    """
    rows: list[tuple[str, str, int, float | None, float | None]] = []
    label = embeddings.label
    for stage in STAGES:
        x = getattr(embeddings, stage)
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        total, pairs = 0.0, 0
        for c, name in enumerate(embeddings.classes):
            mine = unit[label == c]
            n_pairs = len(mine) * (len(mine) - 1)
            # The sum over ordered pairs of different samples is |Σ u|² − n.
            similar = float((mine.sum(axis=0) ** 2).sum() - (mine**2).sum())
            rows.append((stage, name, len(mine), similar / n_pairs if n_pairs else None, None))
            total, pairs = total + similar, pairs + n_pairs
        silhouette = float(silhouette_score(x, label)) if 1 < len(np.unique(label)) < len(label) else None
        rows.append((stage, "all", len(label), total / pairs if pairs else None, silhouette))
    schema = {"stage": pl.String, "label": pl.String, "n": pl.Int64, "cosine": pl.Float64, "silhouette": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
