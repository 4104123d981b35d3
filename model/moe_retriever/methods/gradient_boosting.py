"""Gradient-boosted trees on the concatenated features with native missing values, the control for tabular modalities.

All features of a missing modality are NaN, as are unknown values (instead of imputed ones); the trees learn the branch
of missing values at each split. Sequences are represented by the mean, maximum and log number of their steps, images by
their mean on a coarse grid.

scikit-learn fits the trees, which are stored as tensors, so that a checkpoint contains no code and predictions do not
need scikit-learn.

Legend: n samples, f features, T trees (of all rounds and classes), N nodes of the largest tree, C classes.
"""

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import sklearn
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits
from torch import Tensor

from moe_retriever.config import OptionValue
from moe_retriever.data.load import Batch, Data, Labels
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import Output
from moe_retriever.methods.shared.tabular import Features, TabularModel, pooled_features
from mrpipe import keyed
from mrpipe.errors import MrpipeError
from mrpipe.options import BoundedOptions, option

# Settings (learning rate, leaves, minimum samples per leaf, L2 penalty): four by hand, then a grid in random order.
CANDIDATES = [(0.1, 31, 20, 0.0), (0.1, 8, 20, 1.0), (0.05, 15, 10, 1.0), (0.05, 63, 40, 10.0)]
_GRID = sorted({*itertools.product((0.05, 0.1, 0.2), (8, 15, 31, 63), (10, 20, 40), (0.0, 1.0, 10.0))} - {*CANDIDATES})
CANDIDATES += [_GRID[i] for i in keyed.bits(keyed.id_keys(map(str, _GRID)), 0, "trees")[:, 0].argsort()]
Trees: TypeAlias = HistGradientBoostingClassifier | HistGradientBoostingRegressor
# Rounds between validations, and number of validations without improvement before training stops.
ROUNDS, PATIENCE = 10, 3


@dataclass(frozen=True, kw_only=True)
class GradientBoostingOptions(BoundedOptions):
    trials: int = option(2, "settings (learning rate, leaves, leaf size, L2 penalty) compared on validation", ge=1)
    setting: int = option(
        -1, "number of the only setting to use; −1: the best of the first `trials`", ge=-1, le=len(CANDIDATES) - 1
    )
    rounds: int = option(200, "maximum number of boosting rounds, with early stopping on validation", ge=1)


def grown_trees(model: Trees) -> tuple[list[list[NDArray[np.void]]], NDArray[np.float64]]:
    """Nodes of each tree by round and class, and the initial logits (K,).

    scikit-learn has no public access to them.

    Raises:
        MrpipeError: this version of scikit-learn stores them under other names.
    """
    try:
        stages = [[tree.nodes for tree in stage] for stage in model._predictors]
        return stages, np.asarray(model._baseline_prediction, dtype=np.float64).reshape(-1)
    except AttributeError as error:
        raise MrpipeError(
            f"gradient_boosting cannot read the trees of scikit-learn {sklearn.__version__} ({error}); "
            "version 1.9 is known to work"
        ) from error


class GradientBoosting(TabularModel[GradientBoostingOptions]):
    name = "gradient_boosting"
    title = "gradient-boosted trees"
    summary = "gradient-boosted trees on the concatenated features, with native missing values (control)"
    gradient = False
    Options = GradientBoostingOptions
    kept = ("feature", "threshold", "left", "right", "missing_left", "value", "tree_class", "baseline")

    @staticmethod
    def features(data: Data, index: Rows, observed: NDArray[np.bool_] | None = None) -> Tensor:
        """(n, f) float32 features with NaN for missing values."""
        return pooled_features(data, index, observed, gaps=True)

    def fit(self, data: Data, train_rows: Rows, val_rows: Rows) -> dict[str, OptionValue | None]:
        x, y = self.features(data, train_rows).cpu().numpy(), data.label[train_rows]
        # scikit-learn 1.9 cannot bin a column without values; a constant column is never split.
        x[:, np.isnan(x).all(axis=0)] = 0.0
        x_val, y_val = self.features(data, val_rows).cpu().numpy(), data.label[val_rows]
        own, grown = self.config.own, []
        last = min(own.trials, len(CANDIDATES)) if len(y_val) else 1
        for setting in (own.setting,) if own.setting >= 0 else range(last):
            # One thread, so that the result does not depend on the number of cores.
            with threadpool_limits(1):
                grown.append((*self._grow(CANDIDATES[setting], x, y, x_val, y_val), setting))
        model, value, rounds, setting = max(grown, key=lambda g: g[1])
        self._keep(model, rounds)
        names = ("learning_rate", "leaves", "smallest_leaf", "penalty")
        chosen = {"setting": setting, **dict(zip(names, CANDIDATES[setting], strict=True)), "rounds": rounds}
        return {**chosen, "trials": len(grown), "validation": self.noted(value[0]) if len(y_val) else None}

    def _grow(
        self, candidate: tuple[float, int, int, float], x: Features, y: Labels, x_val: Features, y_val: Labels
    ) -> tuple[Trees, tuple[float, float], int]:
        """Train with early stopping; return the model, its best validation score and the number of rounds."""
        rate, leaves, smallest, penalty = candidate
        settings = {"learning_rate": rate, "max_leaf_nodes": leaves, "min_samples_leaf": smallest}
        settings |= {"l2_regularization": penalty, "early_stopping": False, "warm_start": True, "random_state": 0}
        model: Trees = HistGradientBoostingRegressor(**settings)
        if not self.spec.regression:
            model = HistGradientBoostingClassifier(**settings, class_weight=self.sklearn_class_weight)
        best, at = (-np.inf, -np.inf), 0
        for rounds in range(min(ROUNDS, self.config.own.rounds), self.config.own.rounds + 1, ROUNDS):
            model.set_params(max_iter=rounds).fit(x, self.scaled(y))
            value = self.validation_score(model, x_val, y_val) if len(y_val) else (float(rounds), 0.0)
            if at == 0 or value > best:
                best, at = value, rounds
            elif rounds - at >= PATIENCE * ROUNDS:
                break
        return model, best, at

    def _keep(self, model: Trees, rounds: int) -> None:
        """Convert the trees of the first rounds to tensors."""
        stages, start_values = grown_trees(model)
        trees = [(nodes, k) for stage in stages[:rounds] for k, nodes in enumerate(stage)]
        # For two classes, there is one tree per round for the logit of the second class.
        known = np.zeros(1, np.int64) if isinstance(model, HistGradientBoostingRegressor) else model.classes_
        classes = known[1:] if len(known) == 2 else known
        size = max(len(nodes) for nodes, _ in trees)

        def stacked(field: str, dtype: type[np.bool_ | np.int64 | np.float64]) -> Tensor:
            out = np.zeros((len(trees), size), dtype=dtype)
            for t, (nodes, _) in enumerate(trees):
                out[t, : len(nodes)] = nodes[field]
            return torch.from_numpy(out).to(self.device)

        leaf = stacked("is_leaf", np.bool_)
        own = torch.arange(size, device=self.device).expand(len(trees), -1)
        # A leaf is its own successor, so that all samples take the same number of steps.
        self.left = torch.where(leaf, own, stacked("left", np.int64))
        self.right = torch.where(leaf, own, stacked("right", np.int64))
        self.feature, self.threshold = stacked("feature_idx", np.int64), stacked("num_threshold", np.float64)
        self.missing_left, self.value = stacked("missing_go_to_left", np.bool_), stacked("value", np.float64)
        self.tree_class = torch.tensor([int(classes[k]) for _, k in trees], device=self.device)
        # Classes without training samples get a logit that is never the largest.
        baseline = torch.full((self.spec.n_outputs,), -30.0, dtype=torch.float64, device=self.device)
        baseline[self.on_device(np.asarray(known, dtype=np.int64))] = 0.0
        start = self.on_device(start_values)
        baseline[self.on_device(np.asarray(classes, dtype=np.int64))] = start
        self.baseline = baseline

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        x = self.features(batch.data, batch.index, batch.observed).double()
        tree = torch.arange(len(self.tree_class), device=x.device)
        node = torch.zeros(len(x), len(tree), dtype=torch.long, device=x.device)
        for _ in range(self.left.shape[1]):
            value = x.gather(1, self.feature[tree, node])
            to_left = torch.where(value.isnan(), self.missing_left[tree, node], value <= self.threshold[tree, node])
            following = torch.where(to_left, self.left[tree, node], self.right[tree, node])
            if torch.equal(following, node):
                break
            node = following
        one_hot = F.one_hot(self.tree_class, self.spec.n_outputs).double()
        return Output((self.baseline + self.value[tree, node] @ one_hot).float())
