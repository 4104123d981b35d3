"""Logistic regression (of a number: ridge regression) on the concatenated features, the simplest multimodal model.

Sequences are represented by the mean, maximum and log number of their steps, images by their mean on a coarse grid,
and missing modalities by zeros with an indicator. The penalty is selected on the validation
samples or, if the split has none, by cross-validation on the training samples.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits
from torch import Tensor

from moe_retriever.config import OptionValue
from moe_retriever.data.load import Batch, Data, Labels
from moe_retriever.data.scores import Floats, Rules, selection_score
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import Output
from moe_retriever.methods.shared.tabular import TabularModel, pooled_features
from mrpipe import keyed
from mrpipe.options import BoundedOptions, option

FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class LogisticOptions(BoundedOptions):
    c: float = option(0.0, "inverse penalty C; 0: selected on validation from 1e-4 to 1", ge=0)
    trials: int = option(5, "values of C compared on validation; a search sets it to its number of trials", ge=1)
    max_iter: int = option(2000, "maximum number of L-BFGS iterations")

    def candidates(self) -> list[float]:
        """Values of C to compare: evenly spaced exponents; 0.01 if there is only one."""
        if self.c > 0 or self.trials == 1:
            return [self.c or 1e-2]
        return [float(f"{c:.3g}") for c in np.geomspace(1e-4, 1.0, self.trials)]


class Logistic(TabularModel[LogisticOptions]):
    name = "logistic"
    title = "logistic regression"
    summary = "logistic or ridge regression on concatenated features, with indicators of missing modalities (control)"
    gradient = False
    Options = LogisticOptions
    kept: ClassVar[tuple[str, ...]] = ("weight", "bias", "mean", "sd")

    @staticmethod
    def features(data: Data, index: Rows, observed: NDArray[np.bool_] | None = None) -> Tensor:
        """(n, f + M): `pooled_features` without NaN, then indicators of the observed modalities."""
        observed = data.observed[index] if observed is None else observed
        pooled = pooled_features(data, index, observed, gaps=False)
        return torch.cat([pooled, torch.from_numpy(observed).to(pooled)], dim=1)

    def fit(self, data: Data, train_rows: Rows, val_rows: Rows) -> dict[str, OptionValue | None]:
        x = self.features(data, train_rows).double()
        self.mean, sd = x.mean(0), x.std(0, unbiased=False)
        self.sd = torch.where(sd > 1e-8, sd, torch.ones_like(sd))
        x_train = ((x - self.mean) / self.sd).cpu().numpy()
        x_val = ((self.features(data, val_rows).double() - self.mean) / self.sd).cpu().numpy()
        y_train, y_val = data.label[train_rows], data.label[val_rows]
        metric = self.config.common.select_metric
        # A few samples cut from training are a poor basis for the penalty, so all training samples are used.
        crossed = data.n_cut > 0 or len(y_val) == 0
        scores: dict[float, tuple[float, float]] = {}
        for c in self.config.own.candidates():
            if crossed:
                folds = self._cross_validated(c, x_train, y_train, data.subject_id[train_rows])
                scores[c] = selection_score(metric, y_train, folds, Rules(self.spec.convention))
            else:
                scores[c] = self.validation_score(self._fitted(c, x_train, y_train), x_val, y_val)
        c = max(scores, key=lambda c: scores[c])
        self._keep(self._fitted(c, x_train, y_train))
        chosen: dict[str, OptionValue | None] = {"c": c, "trials": len(scores), "validation": self.noted(scores[c][0])}
        return chosen | {"folds": FOLDS} if crossed else chosen

    def _fitted(self, c: float, x: Floats, y: Labels) -> LogisticRegression | Ridge:
        # Beside half the sum of squared errors, as beside the sum of cross-entropies, the penalty is |w|² / (2C).
        model: LogisticRegression | Ridge = Ridge(alpha=1 / c)
        if not self.spec.regression:
            model = LogisticRegression(C=c, max_iter=self.config.own.max_iter, class_weight=self.sklearn_class_weight)
        # One thread, so that the result does not depend on the number of cores.
        with threadpool_limits(1):
            return model.fit(x, self.scaled(y))

    def _cross_validated(self, c: float, x: Floats, y: Labels, subject: NDArray[np.str_]) -> Floats:
        """Predictions, as of `scored`, of each sample by a model fitted without its fold; subjects are not divided."""
        held_out = np.zeros(len(y) if self.spec.regression else (len(y), self.spec.n_outputs))
        fold = keyed.bits(keyed.id_keys(subject), 0, "folds")[:, 0] % np.uint64(FOLDS)
        for number in np.unique(fold):
            train, held = fold != number, fold == number
            if len(np.unique(y[train])) > 1:
                held_out[held] = self.scored(self._fitted(c, x[train], y[train]), x[held])
        return held_out

    def _keep(self, model: LogisticRegression | Ridge) -> None:
        n_classes, device = self.spec.n_outputs, self.device
        if isinstance(model, Ridge):
            self.weight = torch.from_numpy(np.atleast_2d(model.coef_)).to(device)
            self.bias = torch.tensor([model.intercept_], dtype=torch.float64, device=device)
            return
        # Classes without training samples get a logit that is never the largest.
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
