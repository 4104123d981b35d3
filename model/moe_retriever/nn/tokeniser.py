"""Conversion of one vector per entry into the tokens of a modality."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Tokeniser(nn.Module):
    """(n, d) → (n, P, H): split into P equal chunks (padded with zeros) and apply one linear map to each chunk.

    As in the authors' released code. Tokens, which are also kept for retrieval, are float32 in every precision.
    """

    def __init__(self, d: int, n_tokens: int, hidden: int):
        super().__init__()
        self.n_tokens = n_tokens
        self.chunk = math.ceil(d / n_tokens)
        self.linear = nn.Linear(self.chunk, hidden)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.chunk * self.n_tokens - x.shape[1]
        x = F.pad(x, (0, padding)) if padding else x
        return self.linear(x.reshape(-1, self.n_tokens, self.chunk)).to(self.linear.weight.dtype)
