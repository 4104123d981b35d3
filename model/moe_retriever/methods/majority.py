"""Majority class: predicts the class frequencies of the training samples, or the mean of a regression's target.

This is the baseline of every table: published accuracies of 77.37 (MIMIC) and 42.23 (MOSI) are those of constant
predictions.
"""

import torch
from torch import Tensor

from moe_retriever.config import Config, OptionValue
from moe_retriever.data.load import Batch, Data, DataSpec
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import Method, NoOptions, Output
from moe_retriever.nn.dropout import Noise


class Majority(Method[NoOptions]):
    name = "majority"
    title = "majority class"
    summary = "the most frequent class, or the mean target, of the training samples (control)"
    gradient = False
    encoded = False

    constant: Tensor

    def __init__(self, spec: DataSpec, config: Config[NoOptions], noise: Noise):
        super().__init__(spec, config, noise)
        self.register_buffer("constant", torch.zeros(spec.n_outputs))

    def fit(self, data: Data, train_rows: Rows, val_rows: Rows) -> dict[str, OptionValue | None]:
        self.constant = data.constant(train_rows)
        if self.spec.regression:
            return {"mean": self.spec.center}
        return {"majority": self.spec.classes[int(self.constant.argmax())]}

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        return Output(self.constant.expand(len(batch), -1))
