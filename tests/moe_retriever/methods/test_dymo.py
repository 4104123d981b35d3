"""DyMo compared with a slow float64 reference; prototypes, rewards and selection by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retriever.data.load import Batch, Data
from moe_retriever.data.subsets import random_subsets
from moe_retriever.methods import dymo
from moe_retriever.methods.dymo import DyMo, references, reward
from moe_retriever.training.loop import make_optimiser, train_epoch
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic
from tests.moe_retriever.slow import observed, require_equal
from tests.moe_retriever.slow_parts import SlowParts, assert_company_and_order_do_not_matter

MASKS = synthetic.random_masks(40, 3, 4, p=0.4)


def made(masks: np.ndarray = MASKS, *, regression: bool = False, **options: object) -> tuple[DyMo, Data]:
    """A method whose positions matter from the start."""
    data = synthetic.make(masks, n_classes=3, regression=regression)
    method = synthetic.trained_on(data, synthetic.config("dymo", **{"dropout": 0.0, **options}))
    assert isinstance(method, DyMo)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in method.named_parameters():
            if name.endswith(("position_MPH", "class_H")):
                p.normal_(0, 0.5, generator=generator)
    return method, data


def draw(batch: Batch, i: int) -> np.ndarray:
    """Subset i of a step, drawn as documented."""
    return random_subsets(batch.observed, batch.keys, 0, f"dymo {i} {batch.stream}", "subset")


class SlowDyMo(SlowParts):
    """One sample at a time: transformers, prototypes by loops over samples, and the selection round by round."""

    def __init__(self, method: DyMo, data: Data, rows: np.ndarray):
        super().__init__(method, data)
        self.regression, self.spec = data.spec.regression, data.spec
        self.n_classes = 5 if self.regression else 3
        train = data.label[data.rows("train")]
        self.cuts = [float(np.quantile(train, q)) for q in (0.2, 0.4, 0.6, 0.8)]
        cells: dict[tuple[tuple[int, ...], int], list[Tensor]] = {}
        batch = data.batch(rows, "reference")
        for i in range(4):
            kept = draw(batch, i)
            for b, number in enumerate(rows):
                seen = tuple(np.flatnonzero(kept[b]).tolist())
                x = {m: self.token(int(number), m) for m in seen}
                cells.setdefault((seen, self.class_of(data.label[number])), []).append(self.features(x)[1].detach())
        of_class = [[f for (_, k), fs in cells.items() if k == c for f in fs] for c in range(self.n_classes)]
        self.centre = [torch.stack(fs).mean(0) for fs in of_class]
        far = [torch.stack([(1 - f @ c) ** 2 for f in fs]).mean() for fs, c in zip(of_class, self.centre, strict=True)]
        self.prototype, self.spread = {}, {}
        for (seen, c), fs in cells.items():
            p = (torch.stack(fs).sum(0) + self.centre[c]) / (len(fs) + 1)
            self.prototype[seen, c] = p
            self.spread[seen, c] = ((sum((1 - f @ p) ** 2 for f in fs) + far[c]) / (len(fs) + 1)).sqrt()
        self.far = [v.sqrt() for v in far]

    def class_of(self, label: float) -> int:
        """Class of a label, or bin of a target in its own unit."""
        return sum(label > cut for cut in self.cuts) if self.regression else int(label)

    def token(self, number: int, m: int) -> Tensor:
        z = self.encode(number, m)
        centred = z - z.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()

    def run(self, slots: dict[int, Tensor], name: str, n_layers: int, asked: list[int]) -> Tensor:
        """Learned token, tokens of the slots in use, and of `asked` slots, which no token attends to."""
        position = self.w(f"{name}.position_MPH")
        rows = [self.w(f"{name}.class_H")[None], *(slots[m] + position[m] for m in sorted(slots))]
        rows += [position[m] for m in asked]
        x = torch.cat(rows)
        keys = torch.arange(len(x)) < 1 + len(slots) * self.config.common.tokens
        for k in range(n_layers):
            x = self.block(x, f"{name}.blocks.{k}", keys)
        return x

    def features(self, slots: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        token = self.run(slots, "transformer", self.config.common.fusion_layers, [])[0]
        f = self.linear(token, "projection")
        return self.linear(token, "head"), f / (f @ f).sqrt()

    def recovered(self, slots: dict[int, Tensor], m: int) -> Tensor:
        frozen = {k: v.detach() for k, v in slots.items()}
        return self.run(frozen, "recovery", 1, [m])[-self.config.common.tokens :]

    def judged(self, slots: dict[int, Tensor]) -> tuple[float, float]:
        logits, f = self.features(slots)
        quality = torch.stack([f @ c / 0.1 for c in self.centre]).softmax(0).max()
        if self.regression:
            c = self.class_of(self.spec.center + self.spec.scale * float(logits[0]))
        else:
            c = int(logits.argmax())
        key = (tuple(sorted(slots)), c)
        distance = 1 - f @ self.prototype.get(key, self.centre[c])
        # A group without samples has the prototype and the spread of its class.
        return float(quality), math.erfc(float(distance / self.spread.get(key, self.far[c])) / math.sqrt(2))

    def predicted(self, number: int, seen: list[int]) -> tuple[Tensor, list[int]]:
        """Logits with the selected modalities, and these."""
        slots = {m: self.token(number, m) for m in seen}
        recovered = {m: self.recovered(slots, m) for m in range(self.n_modalities) if m not in seen}
        candidates = list(recovered)
        while candidates:
            q, p = self.judged(slots)
            gains = {}
            for m in candidates:
                q_m, p_m = self.judged({**slots, m: recovered[m]})
                factor = math.log(p) / math.log(p_m) if p_m < p else 1.0
                gains[m] = round((q_m * factor - q) / 1e-4) * 1e-4
            best = max(gains, key=lambda m: gains[m])
            if gains[best] <= 0:
                break
            slots[best] = recovered[best]
            candidates = [m for m in candidates if m != best and gains[m] >= 0]
        return self.features(slots)[0], sorted(slots)


@pytest.mark.parametrize("regression", [False, True])
def test_predictions_and_selections_equal_the_slow_reference(regression: bool) -> None:
    method, data = made(synthetic.random_masks(80, 3, 4, p=0.6), regression=regression, lr=1e-2)
    optimiser, rows = make_optimiser(method), np.arange(60)
    for epoch in range(0 if regression else 3):
        train_epoch(method, data, data.rows("train"), optimiser, epoch)
    slow = SlowDyMo(method.eval(), data, data.rows("train"))
    batch = data.batch(rows, "evaluation")
    with torch.no_grad():
        out = [slow.predicted(int(i), observed(batch, b)) for b, i in enumerate(rows)]
        found = method(batch).logits.double()
    torch.testing.assert_close(found, torch.stack([logits for logits, _ in out]), rtol=1e-4, atol=1e-5)
    added = [len(used) - len(observed(batch, b)) for b, (_, used) in enumerate(out)]
    left = [3 - len(used) for _, used in out]
    assert sum(a > 0 for a in added) > 2
    assert sum(n > 0 for n in left) > 2


@pytest.mark.parametrize("regression", [False, True])
def test_losses_and_gradients_equal_the_slow_reference(regression: bool) -> None:
    method, data = made(regression=regression, subsets=3, prototypes=0.5)
    slow = SlowDyMo(method.train(), data, data.rows("train"))
    batch = data.batch(np.arange(12), "epoch 7")
    logits: list[list[Tensor]] = []
    tasks, contrasts, errors = [], [], []
    for i in range(3):
        kept, step = draw(batch, i), []
        for b in range(12):
            number, seen = int(batch.index[b]), np.flatnonzero(kept[b]).tolist()
            slots = {m: slow.token(number, m) for m in seen}
            out, f = slow.features(slots)
            step.append(out)
            label = batch.label[b]
            tasks.append((out[0] - label) ** 2 if regression else F.cross_entropy(out, label))
            scores = torch.stack([f @ c / 0.1 for c in slow.centre])
            contrasts.append(F.cross_entropy(scores, torch.tensor(slow.class_of(float(data.label[number])))))
            for m in observed(batch, b):
                if m not in seen:
                    errors.append((slow.recovered(slots, m) - slow.token(number, m).detach()).pow(2).mean())
        logits.append(step)
    assert errors
    losses = {
        "subsets": sum(tasks[12:]) / 12,
        "prototypes": 0.5 * sum(contrasts) / 12,
        "recovery": sum(errors) / len(errors),
    }
    if not regression:
        require_equal(method, batch, slow, torch.stack(logits[0]), losses)
        return
    out = method(batch)
    assert set(out.losses) == set(losses)
    for name, value in losses.items():
        torch.testing.assert_close(out.losses[name].double(), value, rtol=1e-4, atol=1e-6, msg=name)
    (method.task_loss(out.logits, batch.label) + sum(out.losses.values())).backward()
    (sum(tasks[:12]) / 12 + sum(losses.values())).backward()
    slow.assert_same_gradients(method)


def test_a_negative_reward_discards_and_the_largest_positive_reward_adds() -> None:
    """Four modalities, one observed; quality per subset is a table, and no distance becomes less probable."""
    data = synthetic.make(np.eye(4, dtype=bool)[np.zeros(6, dtype=int)])
    method = synthetic.trained_on(data, synthetic.config("dymo"))
    assert isinstance(method, DyMo)
    quality = {
        (0,): 0.5,
        (0, 1): 0.6,  # added first
        (0, 2): 0.4,  # discarded for good, although it would help afterwards
        (0, 3): 0.5,  # no gain yet, and added in the second round
        (0, 1, 2): 0.99,
        (0, 1, 3): 0.7,
        (0, 1, 2, 3): 1.0,
    }
    tried = []

    def judged(x: Tensor, used: Tensor) -> Tensor:
        subsets = [tuple(row.nonzero().flatten().tolist()) for row in used]
        tried.extend(subsets)
        return torch.tensor([[quality[s] for s in subsets], [-1.0] * len(subsets)])

    method.judged = judged
    x, seen = torch.zeros(2, 4, 2, 16), torch.tensor([[True, False, False, False], [True] * 4])
    quality[0, 1, 2, 3] = 0.3
    assert method.selected(x, seen).tolist() == [[True, True, False, True], [True] * 4]
    assert set(tried) == {(0, 1, 2, 3), (0,), (0, 1), (0, 2), (0, 3), (0, 1, 3)}


def test_a_sample_without_positive_reward_keeps_its_modalities() -> None:
    data = synthetic.make(np.eye(3, dtype=bool)[np.zeros(6, dtype=int)])
    method = synthetic.trained_on(data, synthetic.config("dymo"))
    assert isinstance(method, DyMo)
    # Differences below the grid are no reward.
    method.judged = lambda x, used: torch.stack([0.5 + 1e-6 * used.sum(dim=1), used.sum(dim=1) * 0.0 - 1])
    seen = torch.tensor([[True, False, False]])
    assert method.selected(torch.zeros(1, 3, 2, 16), seen).tolist() == seen.tolist()


def test_the_reward_by_hand() -> None:
    """p falls from 0.5 to 0.25, so the factor is log 0.5 / log 0.25 = 1/2; if p rises, it is 1."""
    q, before = torch.tensor([0.9, 0.9]), torch.tensor([0.3, 0.3])
    log_p = torch.tensor([0.25, 0.5]).log()
    found = reward(q, log_p, before, torch.tensor([0.5, 0.25]).log())
    torch.testing.assert_close(found, torch.tensor([0.15, 0.6]))


def test_prototypes_by_hand() -> None:
    """Two unit features of class 0 in group 0, one of class 1 in group 1."""
    feature = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    group, label = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])
    centre, prototype, spread = references((2, 2), feature, group, label)
    half = [0.5, 0.5]
    assert centre.tolist() == [half, [0.0, 1.0]]
    # With the centre as a further sample, the mean is the same here; a group without samples has the centre.
    assert prototype.tolist() == [[half, [0.0, 1.0]], [half, [0.0, 1.0]]]
    # Each feature is at distance 1 − ½; that of class 1 is at distance 0.
    assert spread[:, 0].tolist() == pytest.approx([0.5, 0.5])
    assert spread[:, 1].tolist() == pytest.approx([1e-6, 1e-6])


def test_every_subset_has_its_own_group_up_to_four_modalities() -> None:
    for n in (4, 5):
        data = synthetic.make(synthetic.random_masks(20, n, 1))
        method = synthetic.trained_on(data, synthetic.config("dymo"))
        assert isinstance(method, DyMo)
        codes = torch.arange(1, 1 << n)
        groups = method._group((codes[:, None] >> torch.arange(n) & 1).bool())
        assert groups.tolist() == [c if n == 4 else c.bit_count() for c in codes.tolist()]
        assert int(groups.max()) < method.shape[0]


def test_bins_of_a_regression_are_quantiles_of_the_training_target() -> None:
    method, data = made(synthetic.random_masks(300, 2, 1), regression=True)
    train = data.batch(data.rows("train"), "x").label
    counts = torch.bincount(method._class(train), minlength=5)
    assert counts.tolist() == [36] * 5
    assert all(a < b for a, b in pairwise(method.edges.tolist()))


def test_recovery_does_not_train_the_encoders() -> None:
    method, data = made(np.ones((40, 3), dtype=bool))
    method.train()(data.batch(np.arange(8), "epoch 5")).losses["recovery"].backward()
    assert all(p.grad is None for p in (*method.encoders.parameters(), *method.transformer.parameters()))
    assert method.recovery is not None
    assert method.recovery.position_MPH.grad.abs().sum() > 0


def test_unused_modalities_have_no_influence_on_the_transformer() -> None:
    method, _ = made()
    used = torch.tensor([[True, False, True]])
    x = torch.randn(1, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 1] += 5.0
    assert torch.equal(method.eval().transformer(x, used)[0], method.transformer(other, used)[0])
    with torch.no_grad():
        before = method.transformer(x, used)[0]
        method.transformer.position_MPH[1] += 5.0
        assert torch.equal(method.transformer(x, used)[0], before)


def test_select_none_is_the_transformer_alone_and_all_uses_every_recovered_modality() -> None:
    alone, data = made(select="none")
    everything, _ = made(select="all")
    everything.load_state_dict(alone.state_dict(), strict=False)
    batch = data.batch(np.flatnonzero(data.observed.sum(axis=1) < 3), "x")
    seen = torch.from_numpy(batch.observed)
    slots = F.layer_norm(alone.eval().encode_slots(batch), (16,))
    assert torch.equal(alone(batch).logits, alone._features(slots, seen)[0])
    filled = torch.where(seen[:, :, None, None], slots, everything.eval().recovery(slots, seen)[1])
    assert torch.equal(everything(batch).logits, everything._features(filled, torch.ones_like(seen))[0])
    assert set(alone.train()(batch).losses) == {"subsets", "prototypes"}


def test_predictions_from_a_checkpoint_need_no_training_store() -> None:
    method, data = made()
    batch = data.batch(np.arange(30), "x")
    expected = method.eval()(batch).logits
    state = method.reference_state()
    assert sum(t.numel() * 4 for t in state["references"]) == method.reference_bytes()
    other = DyMo.create(data.spec, method.config)
    other.load_state_dict(method.state_dict())
    other.eval().load_reference(state)
    other.refresh()
    assert torch.equal(other(batch).logits, expected)


def test_predictions_do_not_depend_on_the_batch() -> None:
    method, data = made(synthetic.random_masks(60, 3, 2, p=0.5))
    assert_company_and_order_do_not_matter(method, data)


def test_prototypes_change_with_the_epoch_and_not_with_the_mode() -> None:
    method, _ = made(dropout=0.5)
    training = method.train().references()
    assert method.training
    assert training is method.references()
    method.refresh()
    evaluation = method.eval().references()
    assert all(torch.equal(a, b) for a, b in zip(training, evaluation, strict=True))
    assert method.references() is not training


def test_the_bank_limits_the_samples_of_the_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    method, _ = made(bank=7)
    sizes = []

    def spy(shape: tuple[int, int], *tensors: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(tensors[0]))
        return references(shape, *tensors)

    monkeypatch.setattr(dymo, "references", spy)
    method.references()
    assert sizes == [7 * 4]


def test_invalid_options_are_refused() -> None:
    for name, value, least in (("subsets", 0, 1), ("bank", -1, 0), ("prototypes", -1.0, 0)):
        with pytest.raises(UsageError, match=f"dymo: option {name}={value} must be at least {least}"):
            made(**{name: value})
