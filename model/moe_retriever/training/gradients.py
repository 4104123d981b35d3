"""Cosine similarity of gradients between pairs of modalities (Figure 5 of the paper).

The paper (appendix A.6) computes "the derivative of the loss with respect to each modality" and compares pairs by
cosine similarity: high values indicate synergy, low values conflict. It does not specify the derivative, so two
definitions are recorded:

"tokens" follows the sentence literally: for each sample i with modalities a and b, the cosine of ∂ℓ_i/∂Z_ia and
∂ℓ_i/∂Z_ib, averaged over samples, where ℓ_i is the cross-entropy and Z_im (P × H) the encoder output of modality m.

"shared" measures conflict in optimisation: the cosine of g_a and g_b, where g_m is the gradient of the mean
cross-entropy over the samples with modality m, all other modalities hidden (a retriever then fills them), with respect
to all weights outside the encoders, which the modalities share. A weight that only one of the two uses counts as zero
for the other, so a method without shared weights has similarity 0.

Both are computed without dropout and gate noise, on the same samples in every epoch.

Legend: B samples, M modalities, P tokens, H hidden dimension, S shared weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from moe_retriever.data.load import Data
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import AnyMethod

NAME = "gradients.parquet"
GradientRow = dict[str, int | float | str | None]
SCHEMA = pl.Schema(
    {"epoch": pl.Int32, **dict.fromkeys(("kind", "first", "second"), pl.String)}
    | {"n": pl.Int32, "cosine": pl.Float64, "sd": pl.Float64}
)


def keyed_rows(data: Data, rows: Rows, n: int, seed: int) -> Rows:
    """At most `n` of the rows with two or more modalities, in increasing order; drawn by the sample keys."""
    return data.drawn(rows[data.observed[rows].sum(axis=1) > 1], n, seed, "gradient rows")


def gradient_similarity(method: AnyMethod, data: Data, rows: Rows, epoch: int) -> list[GradientRow]:
    """Similarities of all pairs of modalities on samples of `data`, as rows of `SCHEMA`.

    `n` is the number of samples used (for "shared": samples with at least one of the two modalities). Pairs without
    samples are omitted, and a method without encoders has no rows. The cosine is null if a gradient is zero. `sd` is
    the standard deviation over samples, null for "shared". Needs memory for M · S numbers. Weights, gradients, batch
    statistics and random streams of the method are left unchanged.
    """
    if not method.encoded:
        return []
    method.eval()
    method.refresh()
    found = [*_of_tokens(method, data, rows), *_of_shared_weights(method, data, rows)]
    method.refresh()
    return [{"epoch": epoch, **row} for row in found]


def frame(rows: list[GradientRow]) -> pl.DataFrame:
    """Table of the rows that `gradient_similarity` returned in all epochs."""
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _blocks(method: AnyMethod, rows: Rows) -> Iterator[Rows]:
    size = method.config.common.eval_batch_size
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@contextmanager
def _outputs_of(encoders: nn.ModuleList) -> Iterator[list[list[Tensor]]]:
    """Collect each encoder's outputs that require gradients; outputs for the retrieval bank do not."""
    outputs: list[list[Tensor]] = [[] for _ in encoders]

    def collect(m: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            if output.requires_grad:
                outputs[m].append(output)

        return hook

    handles = [encoder.register_forward_hook(collect(m)) for m, encoder in enumerate(encoders)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _of_tokens(method: AnyMethod, data: Data, rows: Rows) -> Iterator[GradientRow]:
    pairs = list(combinations(range(len(data.spec.names)), 2))
    cosines: dict[tuple[int, int], list[Tensor]] = {pair: [] for pair in pairs}
    for index in _blocks(method, rows):
        batch = data.batch(index, "gradients")
        with _outputs_of(method.encoders) as outputs:
            # Samples are independent in evaluation mode, so the gradient of the sum has each sample's own gradient.
            loss = method.task_loss(method(batch).logits, batch.label, reduction="sum")
        used = [m for m, out in enumerate(outputs) if out]
        flat = [out for m in used for out in outputs[m]]
        gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        of_sample: dict[int, Tensor] = {}
        for m in used:
            parts = [torch.zeros_like(o) if g is None else g for o, g in zip(outputs[m], gradients, strict=False)]
            places = torch.from_numpy(batch.table_rows(m)[0])
            # On the CPU, because not every device supports float64.
            gradient = torch.cat(parts).flatten(1).cpu().double()
            of_sample[m] = gradient.new_zeros(len(batch), gradient.shape[1]).index_copy(0, places, gradient)
        for a, b in pairs:
            both = np.flatnonzero(batch.observed[:, a] & batch.observed[:, b])
            if a in of_sample and b in of_sample and len(both):
                at = torch.from_numpy(both)
                cosines[a, b].append(_cosine(of_sample[a][at], of_sample[b][at]))
    for (a, b), parts in cosines.items():
        if parts:
            values = torch.cat(parts)
            known = values[~values.isnan()]
            sd = float(known.std()) if len(known) > 1 else float("nan")
            yield _row(data, "tokens", a, b, len(values), float(known.mean()), sd)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine similarity along the last dimension; NaN if a vector is zero."""
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def _of_shared_weights(method: AnyMethod, data: Data, rows: Rows) -> Iterator[GradientRow]:
    of_encoders = {id(p) for p in method.encoders.parameters()}
    weights = [p for p in method.parameters() if p.requires_grad and id(p) not in of_encoders]
    n_modalities = len(data.spec.names)
    having = [rows[data.observed[rows, m]] for m in range(n_modalities)]
    gradients = [
        _through_one(method, data, having[m], m, weights) if len(having[m]) else None for m in range(n_modalities)
    ]
    for a, b in combinations(range(n_modalities), 2):
        x, y = gradients[a], gradients[b]
        if x is not None and y is not None:
            n = len(np.union1d(having[a], having[b]))
            yield _row(data, "shared", a, b, n, float(_cosine(x, y)), float("nan"))


def _through_one(method: AnyMethod, data: Data, rows: Rows, m: int, weights: list[nn.Parameter]) -> Tensor:
    """(S,) float32 gradient of the mean loss over `rows` with all modalities except m hidden."""
    total = [torch.zeros_like(w) for w in weights]
    for index in _blocks(method, rows):
        batch = data.batch(index, "gradients")
        alone = np.zeros_like(batch.observed)
        alone[:, m] = True
        batch = replace(batch, observed=alone, hidden=batch.observed & ~alone)
        loss = method.task_loss(method(batch).logits, batch.label, reduction="sum") / len(rows)
        for sum_, part in zip(total, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if part is not None:
                sum_ += part
    return torch.cat([t.flatten() for t in total])


def _row(data: Data, kind: str, a: int, b: int, n: int, cosine: float, sd: float) -> GradientRow:
    names = data.spec.names
    known = {k: None if np.isnan(v) else v for k, v in (("cosine", cosine), ("sd", sd))}
    return {"kind": kind, "first": names[a], "second": names[b], "n": n, **known}
