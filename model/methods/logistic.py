"""Logistic regression on the transformed features, concatenated: the simplest model that sees all modalities.

A sequence enters as mean, maximum and log length of its steps, an image as its mean on a coarse grid; an absent
modality as zeros with an indicator. The penalty is chosen on validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss
from threadpoolctl import threadpool_limits
from torch import Tensor

from model.config import Config
from model.data import Batch, Data, DataSpec
from model.inputs import Rows
from model.methods.base import Method, Output
from model.noise import Noise
from mrpipe.schema import option

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, kw_only=True)
class LogisticOptions:
    """Options of the logistic regression."""

    c: float = option(0.0, "inverse penalty C; 0: chosen on validation among 1e-4 … 1")
    max_iter: int = option(2000, "largest number of L-BFGS iterations")


class Logistic(Method):
    """Multinomial logistic regression (scikit-learn) with an L2 penalty."""

    name = "logistic"
    summary = "logistic regression on the concatenated features, zero and indicator for an absent modality (control)"
    Options = LogisticOptions
    gradient = False
    encoded = False

    def __init__(self, spec: DataSpec, config: Config, noise: Noise):
        super().__init__(spec, config, noise)
        for name in ("weight", "bias", "mean", "sd"):
            self.register_buffer(name, torch.zeros(0))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # The number of features is known only after fitting.
        for name in ("weight", "bias", "mean", "sd"):
            setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def features(data: Data, index: Rows, observed: NDArray[np.bool_] | None = None) -> Tensor:
        """(n, f): pooled features of what is observed (by default all that the data have), then an indicator each."""
        observed = data.observed[index] if observed is None else observed
        parts = []
        for m, table in enumerate(data.tables):
            places = np.flatnonzero(observed[:, m])
            rows = data.row[index[places], m]
            some = table.pooled(rows)
            full = some.new_zeros(len(index), some.shape[1])
            full[torch.from_numpy(places).to(some.device)] = some
            parts.append(full)
        indicators = torch.from_numpy(observed.astype(np.float32)).to(parts[0].device)
        return torch.cat([*parts, indicators], dim=1)

    def fit(self, data: Data, train_rows: Rows, val_rows: Rows) -> dict[str, Any]:
        x = self.features(data, train_rows).double()
        self.mean, sd = x.mean(0), x.std(0, unbiased=False)
        self.sd = torch.where(sd > 1e-8, sd, torch.ones_like(sd))
        x_train = ((x - self.mean) / self.sd).cpu().numpy()
        x_val = ((self.features(data, val_rows).double() - self.mean) / self.sd).cpu().numpy()
        y_train, y_val = data.label[train_rows], data.label[val_rows]
        own = self.config.own
        weight = None if self.config.common.class_weight == "none" else "balanced"
        best: tuple[float, float, LogisticRegression] | None = None
        for c in (own.c,) if own.c > 0 else GRID:
            model = LogisticRegression(C=c, max_iter=own.max_iter, class_weight=weight)
            # One thread: the same bytes on any number of cores.
            with threadpool_limits(1):
                model.fit(x_train, y_train)
                score = self._score(model, x_val, y_val) if len(y_val) else 0.0
            if best is None or score > best[0]:
                best = (score, c, model)
        assert best is not None
        self._keep(best[2])
        return {"C": best[1], "validation": best[0]}

    def _score(self, model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> float:
        """The validation score that the options name; what is not a decision's score falls back on the loss."""
        match self.config.common.select_metric:
            case "accuracy":
                return float(accuracy_score(y, model.predict(x)))
            case "macro_f1":
                return float(f1_score(y, model.predict(x), average="macro", zero_division=0))
        return -float(log_loss(y, model.predict_proba(x), labels=model.classes_))

    def _keep(self, model: LogisticRegression) -> None:
        n_classes, device = self.spec.n_classes, self.device
        # A class without a training sample gets a logit that never wins.
        weight = torch.zeros(n_classes, len(model.coef_[0]), dtype=torch.float64)
        bias = torch.full((n_classes,), -30.0, dtype=torch.float64)
        coefficients, intercepts = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(model.classes_) == 2:
            coefficients = torch.cat([-coefficients, coefficients]) / 2
            intercepts = torch.cat([-intercepts, intercepts]) / 2
        weight[model.classes_], bias[model.classes_] = coefficients, intercepts
        self.weight, self.bias = weight.to(device), bias.to(device)

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        x = self.features(batch.data, batch.index, batch.observed).double()
        return Output((((x - self.mean) / self.sd) @ self.weight.T + self.bias).float())
