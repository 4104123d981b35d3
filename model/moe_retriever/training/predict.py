"""Predictions of a method, with or without labels. Predictions are independent across samples of the evaluated split.

Legend: n samples, C classes, S draws, E experts.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from moe_retriever.data.load import Data, DataSpec, Labels
from moe_retriever.data.scores import Rules, score
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import AnyMethod, SlotRouting, Support
from mrpipe.errors import MrpipeError


@dataclass(frozen=True)
class Predictions:
    """Predictions of a method for some samples. A slot is one missing modality of one sample.

    Attributes:
        rows: (n,) indices of the samples in the data.
        logits: (n, C), mean over the draws.
        spec: specification of the method.
        draw_std: (n,) standard deviation, over draws, of the predicted class's probability or of the predicted value;
            None for a single draw.
        routing: per missing modality and observed combination: number of slots, mean weight (E,), mean share of
            visits (E,).
        support: number of slots, and the share that used each fallback of the retrieval.
        fused: (n, D) embedding before the head, if the method provides it and `detail` was requested.
    """

    rows: Rows
    logits: NDArray[np.float32]
    spec: DataSpec
    draw_std: NDArray[np.float64] | None
    routing: pl.DataFrame | None = None
    support: dict[str, float] = field(default_factory=dict)
    fused: NDArray[np.float32] | None = None

    @property
    def scored(self) -> NDArray[np.float64]:
        """(n, C) probabilities, or (n,) values of a regression; a MrpipeError if one of them is not finite."""
        if not np.isfinite(self.logits).all():
            raise MrpipeError("some predictions are not finite numbers: the run's weights or the inputs are damaged")
        return self.spec.scored(self.logits)


# Per missing modality, observed combination and expert: mean gate weight of the tokens, and share of their visits.
ROUTING_SCHEMA = {"target": pl.String, "combination": pl.String, "n_slots": pl.Int64, "expert": pl.Int32}
ROUTING_SCHEMA |= {"pool": pl.String, "weight": pl.Float64, "share": pl.Float64}


class _RoutingSums:
    """Sums of routing statistics over batches, per missing modality and observed combination."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], tuple[int, NDArray[np.float64], NDArray[np.float64]]] = {}

    def add(self, data: Data, routing: SlotRouting) -> None:
        combination = np.array(data.combination(routing["observed"]))
        for target in np.unique(routing["target"]).tolist():
            for name in np.unique(combination[routing["target"] == target]).tolist():
                chosen = (routing["target"] == target) & (combination == name)
                n, weight, share = self._sums.get((target, name), (0, np.zeros(()), np.zeros(())))
                weight = weight + routing["weight"][chosen].sum(axis=0, dtype=np.float64)
                share = share + routing["share"][chosen].sum(axis=0, dtype=np.float64)
                self._sums[target, name] = n + int(chosen.sum()), weight, share

    def frame(self, method: AnyMethod) -> pl.DataFrame | None:
        if not self._sums:
            return None
        names = method.spec.names
        rows = []
        for (target, combination), (n, weight, share) in sorted(self._sums.items()):
            for e, pool in enumerate(method.expert_pools(len(weight))):
                rows.append((names[target], combination, n, e, pool, weight[e] / n, share[e] / n))
        return pl.DataFrame(rows, schema=ROUTING_SCHEMA, orient="row")


@torch.no_grad()
def predict(
    method: AnyMethod,
    data: Data,
    rows: Rows,
    *,
    draws: int | None = None,
    detail: bool = False,
    same_weights: bool = False,
) -> Predictions:
    """Predict samples; the result does not depend on how they are batched or ordered.

    Args:
        draws: number of draws to average; default: from the method's options.
        detail: whether to collect routing, fallback rates and fused embeddings.
        same_weights: whether the weights are unchanged since the previous prediction, so that its embeddings of the
            retrieval bank can be reused.
    """
    method.eval()
    if not same_weights:
        method.refresh()
    n_draws = draws or method.n_draws
    size = method.config.common.eval_batch_size
    routing, slots, fused = _RoutingSums(), [], []
    # Outputs stay on the device until the end, so that the host prepares batches while a GPU computes.
    outputs = [[torch.zeros(0, method.spec.n_outputs, device=method.device)] for _ in range(n_draws)]
    for start in range(0, len(rows), size):
        batch = data.batch(rows[start : start + size], "evaluation")
        for draw in range(n_draws):
            out = method(batch, draw=draw, detail=detail and draw == 0)
            outputs[draw].append(out.logits.float())
            if "routing" in out.diagnostics:
                routing.add(data, out.diagnostics["routing"])
            if "support" in out.diagnostics:
                slots.append(out.diagnostics["support"])
            if "fused" in out.diagnostics:
                fused.append(out.diagnostics["fused"].float().cpu().numpy())
    logits = torch.stack([torch.cat(parts) for parts in outputs]).cpu().numpy()
    mean = logits.mean(axis=0)
    spread = None
    if n_draws > 1 and len(rows):
        scored = np.stack([method.spec.scored(of_draw) for of_draw in logits])
        if not method.spec.regression:
            scored = scored[:, np.arange(len(rows)), mean.argmax(axis=1)]
        spread = scored.std(axis=0, ddof=1)
    embedding = np.concatenate(fused) if fused else None
    return Predictions(rows, mean, method.spec, spread, routing.frame(method), _fallbacks(slots), embedding)


def _fallbacks(slots: list[Support]) -> dict[str, float]:
    counts = np.array([len(s.target) for s in slots], dtype=np.float64)
    if counts.sum() == 0:
        return {}
    rates = [s.rates() for s in slots]
    mean = {k: float(np.dot([r[k] for r in rates], counts) / counts.sum()) for k in rates[0]}
    return {"missing_slots": float(counts.sum()), **mean}


def validate(method: AnyMethod, data: Data, rows: Rows) -> dict[str, float]:
    """Loss, number of predicted classes, if any, and metrics of labelled samples; NaN loss if a logit is not finite."""
    found = predict(method, data, rows)
    if not np.isfinite(found.logits).all():
        return {"loss": float("nan")}
    label = data.batch(rows, "evaluation").label.cpu()
    loss = method.task_loss(torch.from_numpy(found.logits), label).item()
    values = score(data.label[rows], found.scored, Rules(data.spec.convention))
    if not data.spec.regression:
        values["n_predicted"] = float(len(np.unique(found.logits.argmax(axis=1))))
    return {"loss": loss, **{k: float("nan") if v is None else v for k, v in values.items()}}


def prediction_frame(data: Data, found: Predictions) -> pl.DataFrame:
    """One row per sample; the label is null if unknown.

    Columns: `sample_id, subject_id, split, modalities, label, predicted, p_<class>…`; for a regression, label and
    prediction are Float64, and there are no classes.
    """
    rows, scored, spec = found.rows, found.scored, data.spec
    parts = np.array(["train", "val", "test", None], dtype=object)
    columns: dict[str, pl.Series | NDArray[np.str_] | Labels | list[str]] = {
        "sample_id": data.sample_id[rows],
        "subject_id": data.subject_id[rows],
        "split": pl.Series([parts[p] for p in data.part[rows]], dtype=pl.String),
        "modalities": data.combination(data.observed[rows]),
    }
    if spec.regression:
        columns |= {"label": pl.Series(data.label[rows]).fill_nan(None), "predicted": scored}
    else:
        classes = np.array(spec.classes)
        label = pl.Series([classes[v] if v >= 0 else None for v in data.label[rows]], dtype=pl.String)
        columns |= {"label": label, "predicted": classes[scored.argmax(axis=1)]}
        columns |= {f"p_{name}": scored[:, i] for i, name in enumerate(spec.classes)}
    if found.draw_std is not None:
        columns["draw_std"] = found.draw_std
    return pl.DataFrame(columns)
