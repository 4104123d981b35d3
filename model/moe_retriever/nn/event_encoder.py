"""Encoder of sparse events that avoids dense tensors.

The input of the recurrent network for a step is Σ_items (W_v[item] · z + W_m[item]) + W_t · Δt + b. This equals a
linear layer on the concatenated values, observation mask and elapsed time of the step (2 V + 1 features), but its cost
depends only on the number of items in the step.

Legend: S total steps of all rows, V items of the vocabulary, P tokens, H hidden dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from moe_retriever.data.event_table import EventBatch
from moe_retriever.nn.init import Fill, constant, normal
from moe_retriever.nn.kernels.recurrent import last_state
from moe_retriever.nn.tokeniser import Tokeniser


class EventEmbedding(nn.Module):
    """(S steps of events) → (S, H): linear layer over values, mask and elapsed time, summed over the observed items."""

    def __init__(self, n_items: int, hidden: int):
        super().__init__()
        self.of_value = nn.Parameter(torch.empty(n_items, hidden))
        self.of_mask = nn.Parameter(torch.empty(n_items, hidden))
        self.of_time = nn.Parameter(torch.empty(hidden))
        self.bias = nn.Parameter(torch.empty(hidden))

    def initial(self, name: str) -> Fill:
        # A step has tens of items, not thousands, which determines the scale of the sum.
        return constant(0.0) if name == "bias" else normal(0.1)

    def forward(self, x: EventBatch) -> Tensor:
        values = F.embedding_bag(x.item, self.of_value, x.starts, mode="sum", per_sample_weights=x.value)
        present = F.embedding_bag(x.item, self.of_mask, x.starts, mode="sum")
        return values + present + x.elapsed[:, None] * self.of_time + self.bias


class EventRecurrent(nn.Module):
    """Event embedding, then GRU or LSTM over the steps; the last state is converted to tokens."""

    def __init__(self, n_items: int, rnn: nn.RNNBase, n_tokens: int, hidden: int):
        super().__init__()
        self.embedding = EventEmbedding(n_items, rnn.input_size)
        self.rnn = rnn
        self.tokens = Tokeniser(rnn.hidden_size, n_tokens, hidden)

    def forward(self, x: EventBatch) -> Tensor:
        packed = PackedSequence(self.embedding(x), x.batch_sizes, x.order, x.inverse)
        return self.tokens(last_state(self.rnn, packed))
