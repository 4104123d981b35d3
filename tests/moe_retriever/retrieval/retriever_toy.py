"""MoE-Retriever on a small data set with missing modalities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moe_retriever.data.load import Data
from moe_retriever.methods.moe_retriever import MoERetriever
from moe_retriever.retrieval.retriever import SlotItems
from tests.moe_retriever import synthetic

MASKS = synthetic.random_masks(60, 3, 4, p=0.45)


def made(
    masks: np.ndarray = MASKS, kinds: tuple[str, ...] | None = None, **options: object
) -> tuple[MoERetriever, Data]:
    data = synthetic.make(masks, kinds)
    method = synthetic.trained_on(data, synthetic.config(dropout=0.0, **options))
    assert isinstance(method, MoERetriever)
    return method, data


def retriever_case(method: MoERetriever, data: Data) -> tuple[SlotItems, Tensor]:
    batch = data.batch(data.rows("train"), "x")
    _, items = method._plan(batch, 0)
    shape = (len(items), method.config.common.tokens, method.config.common.hidden)
    return items, torch.randn(shape, generator=torch.Generator().manual_seed(0))
