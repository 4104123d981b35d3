"""Common base of scikit-learn models: concatenated features, and checkpoints that contain only tensors.

Legend: n samples, M modalities, f features, C classes.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_retriever.config import Config, O_co
from moe_retriever.data.load import Data, DataSpec, Labels
from moe_retriever.data.scores import Rules, selection_score
from moe_retriever.data.tables import Rows, VectorTable
from moe_retriever.methods.base import Method
from moe_retriever.nn.dropout import Noise


def pooled_features(data: Data, index: Rows, observed: NDArray[np.bool_] | None = None, *, gaps: bool) -> Tensor:
    """(n, f) float32: concatenated pooled features of all modalities.

    Args:
        observed: (n, M) modalities to use; default: all observed modalities.
        gaps: whether missing modalities and unknown values are NaN; otherwise zeros and imputed values.
    """
    observed = data.observed[index] if observed is None else observed
    parts = []
    for m, table in enumerate(data.tables):
        places = np.flatnonzero(observed[:, m])
        rows = data.row[index[places], m]
        some = table.with_gaps(rows) if gaps and isinstance(table, VectorTable) else table.pooled(rows)
        full = some.new_full((len(index), some.shape[1]), float("nan") if gaps else 0.0)
        full[torch.from_numpy(places).to(some.device)] = some
        parts.append(full)
    return torch.cat(parts, dim=1)


Features = NDArray[np.float32] | NDArray[np.float64]


class Classifier(Protocol):
    classes_: NDArray[np.int64]

    def predict_proba(self, x: Features, /) -> NDArray[np.float64]: ...


class Regressor(Protocol):
    def predict(self, x: Features, /) -> NDArray[np.float64]: ...


class TabularModel(Method[O_co]):
    """A model fitted by scikit-learn and stored as tensors.

    Class attributes:
        kept: names of the tensors that `fit` creates, whose sizes are not known before.
    """

    encoded = False
    kept: ClassVar[tuple[str, ...]]

    def __init__(self, spec: DataSpec, config: Config[O_co], noise: Noise):
        super().__init__(spec, config, noise)
        for name in self.kept:
            self.register_buffer(name, torch.zeros(0))

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> object:
        for name in self.kept:
            setattr(self, name, torch.empty_like(state_dict[name], device=self.device))
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def sklearn_class_weight(self) -> str | None:
        """The option `class_weight` in scikit-learn's terms."""
        return None if self.config.common.class_weight == "none" else "balanced"

    def scaled(self, y: Labels) -> Labels:
        """Labels (n,) to fit: classes, or targets in units of `DataSpec.scale` from `DataSpec.center`."""
        return (y.astype(np.float64) - self.spec.center) / self.spec.scale if self.spec.regression else y

    def validation_score(self, model: Classifier | Regressor, x: Features, y: Labels) -> tuple[float, float]:
        """Selection score of a fitted model on validation samples, and the score that decides ties."""
        return selection_score(self.config.common.select_metric, y, self.scored(model, x), Rules(self.spec.convention))

    def scored(self, model: Classifier | Regressor, x: Features) -> NDArray[np.float64]:
        """(n, C) probabilities, or (n,) values; scikit-learn has no column for classes without training samples."""
        if self.spec.regression:
            return self.spec.center + self.spec.scale * cast(Regressor, model).predict(x)
        model = cast(Classifier, model)
        probability = np.zeros((len(x), self.spec.n_outputs))
        probability[:, model.classes_] = model.predict_proba(x)
        return probability

    @staticmethod
    def noted(value: float) -> float | None:
        """A validation score as recorded in the results, None if undefined."""
        return value if math.isfinite(value) else None
