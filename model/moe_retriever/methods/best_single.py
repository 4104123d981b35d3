"""Best single modality: one model per modality, of which the best on validation is used for predictions.

All models are trained together without shared weights. Each validation selects the best modality of the epoch, so the
selected epoch is the best epoch of the best modality. Samples that lack it get the best constant prediction: the class
frequencies of the training samples, or the mean of their target.
"""

import torch
from torch import Tensor

from moe_retriever.config import Config
from moe_retriever.data.load import Batch, Data, DataSpec, Labels
from moe_retriever.data.scores import Rules, selection_score
from moe_retriever.data.tables import Rows
from moe_retriever.methods.base import NoOptions, Output
from moe_retriever.methods.shared.unimodal import UnimodalHeads
from moe_retriever.nn.dropout import Noise


class BestSingle(UnimodalHeads[NoOptions]):
    name = "best_single"
    title = "best single modality"
    summary = "the single modality with the best validation score; a constant if it is missing (control)"

    chosen: Tensor

    def __init__(self, spec: DataSpec, config: Config[NoOptions], noise: Noise):
        super().__init__(spec, config, noise)
        self.register_buffer("chosen", torch.zeros((), dtype=torch.long))
        self._validation: tuple[Data, Rows] | None = None
        self._stale = False

    def prepare(self, data: Data, train_rows: Rows) -> None:
        super().prepare(data, train_rows)
        val = data.rows("val")
        self._validation = (data, val if len(val) else train_rows)

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        self._stale = True

    def _answer(self, logits_BMC: Tensor, observed_BM: Tensor, m: int) -> Tensor:
        """(B, C) logits of modality m; the constant prediction for samples that lack it."""
        return torch.where(observed_BM[:, m, None], logits_BMC[:, m], self.constant.to(logits_BMC.dtype))

    @torch.no_grad()
    def _choose(self) -> None:
        """Select the modality with the best validation score (`select_metric`), the first if tied."""
        assert self._validation is not None
        data, rows = self._validation
        size = self.config.common.eval_batch_size
        parts = [self.unimodal_logits(data.batch(rows[i : i + size], "evaluation")) for i in range(0, len(rows), size)]
        logits, observed = (torch.cat(p) for p in zip(*parts, strict=True))
        scores = [self._score(self._answer(logits, observed, m), data.label[rows]) for m in range(logits.shape[1])]
        self.chosen.fill_(max(range(len(scores)), key=lambda m: scores[m]))

    def _score(self, logits: Tensor, label: Labels) -> tuple[float, float]:
        if not logits.isfinite().all():
            return float("-inf"), float("-inf")
        scored = self.spec.scored(logits.float().cpu().numpy())
        return selection_score(self.config.common.select_metric, label, scored, Rules(self.spec.convention))

    def forward(self, batch: Batch, *, draw: int = 0, detail: bool = False) -> Output:
        if not self.training and self._stale:
            # The weights have changed since the last selection.
            self._choose()
            self._stale = False
        logits, observed = self.unimodal_logits(batch)
        # A tensor as index of `index_select` stays on the device.
        chosen = self.chosen.view(1)
        answer = self._answer(logits.index_select(1, chosen), observed.index_select(1, chosen), 0)
        if not self.training:
            return Output(answer)
        # Each head is trained with its own loss; the loss of the detached prediction is only logged.
        losses = self.unimodal_losses(logits, batch)
        return Output(answer.detach(), {f"loss_{name}": losses[m] for m, name in enumerate(self.spec.names)})
