"""The event encoder compared with a dense linear layer, independence of the batch, and corrupted events."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from moe_retriever.config import Common
from moe_retriever.data.event_table import EventTable, corrupt_events
from moe_retriever.data.tables import ModalitySpec
from moe_retriever.nn.dropout import Noise
from moe_retriever.nn.encoders import EventRecurrent, build_encoders
from mrpipe.experiment.missingness import Missingness
from mrpipe.schema import Modality
from mrpipe.store.reader import Arrays
from tests.transforms.dense import dense_steps

CPU = torch.device("cpu")
V = 12


def events(n: int = 9, seed: int = 0) -> Arrays:
    """Sparse events of n rows with 1 to 5 steps of 1 to V items."""
    rng = np.random.default_rng(seed)
    items, values, times, counts = [], [], [], []
    for _ in range(n):
        day, total = 0, 0
        for _ in range(rng.integers(1, 6)):
            day += int(rng.integers(1, 30))
            chosen = np.sort(rng.choice(V, rng.integers(1, V + 1), replace=False))
            items.append(chosen)
            values.append(rng.normal(size=len(chosen)))
            times.append(np.full(len(chosen), day))
            total += len(chosen)
        counts.append(total)
    x = np.stack([np.concatenate(items), np.concatenate(values)], axis=1).astype(np.float32)
    modality = Modality(name="lab", bit=0, kind="sequence", shape=(2,), irregular=True)
    ids = np.array([f"s{i:03d}" for i in range(n)])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Arrays(modality=modality, sample_id=ids, x=x, offsets=offsets, time=np.concatenate(times).astype(np.float32))


def encoder(name: str) -> EventRecurrent:
    common = Common(hidden=8, tokens=3, heads=2, encoder_hidden=10, sequence_encoder=name)
    spec = ModalitySpec(name="lab", kind="events", shape=(V,))
    made = build_encoders((spec,), common, 0, Noise(0))[0]
    assert isinstance(made, EventRecurrent)
    return made


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_it_equals_a_dense_linear_layer_over_values_mask_and_elapsed_time(name: str) -> None:
    arrays, made = events(), encoder(name)
    rows = np.array([4, 0, 7, 2, 8])
    sparse = made(EventTable(arrays, V, CPU).gather(rows))

    dense, offsets, time = dense_steps(arrays, V)
    elapsed = np.diff(time, prepend=np.float32(0))
    elapsed[offsets[:-1]] = 0.0
    dense = np.concatenate([dense, np.log1p(elapsed)[:, None]], axis=1).astype(np.float32)
    linear = nn.Linear(2 * V + 1, 10)
    weight = torch.cat([made.embedding.of_value, made.embedding.of_mask, made.embedding.of_time[None]])
    sequences = [torch.from_numpy(dense[offsets[r] : offsets[r + 1]]) for r in rows]
    inner = [nn.functional.linear(s, weight.T, made.embedding.bias) for s in sequences]
    last = made.rnn(pack_sequence(inner, enforce_sorted=False))[1]
    state = last[0] if isinstance(last, tuple) else last
    torch.testing.assert_close(sparse, made.tokens(state[-1]), rtol=1e-4, atol=1e-5)
    assert linear.in_features == dense.shape[1]

    # The gradients equal those of the dense layer as well.
    found = torch.autograd.grad(sparse.square().sum(), made.embedding.of_value)[0]
    expected = torch.autograd.grad(made.tokens(state[-1]).square().sum(), made.embedding.of_value)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_encoding_of_a_row_does_not_depend_on_the_batch() -> None:
    table, made = EventTable(events(), V, CPU), encoder("lstm")
    together = made(table.gather(np.arange(len(table))))
    for row in range(len(table)):
        torch.testing.assert_close(made(table.gather(np.array([row])))[0], together[row], rtol=1e-4, atol=1e-6)


def test_pooled_features_are_means_and_shares() -> None:
    arrays = events()
    pooled = EventTable(arrays, V, CPU).pooled(np.array([3, 1]))
    dense, offsets, _ = dense_steps(arrays, V)
    for found, row in zip(pooled, (3, 1), strict=True):
        block = dense[offsets[row] : offsets[row + 1]]
        count = block[:, V:].sum(axis=0)
        np.testing.assert_allclose(found[:V], block[:, :V].sum(axis=0) / np.maximum(count, 1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[V:], count / len(block), rtol=1e-6)


def cells(arrays: Arrays) -> dict[tuple[str, float], list[tuple[float, float]]]:
    """(sample, time of the step) → events."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    samples = np.repeat(arrays.sample_id, np.diff(arrays.offsets))
    for sample, time, event in zip(samples.tolist(), arrays.time.tolist(), arrays.x.tolist(), strict=True):
        found.setdefault((sample, time), []).append(tuple(event))
    return found


def test_a_dropped_step_loses_all_events_and_at_least_one_step_is_kept() -> None:
    """The drop rate does not depend on the number of items of a step."""
    arrays = events(300)
    after = corrupt_events(arrays, Missingness(mechanism="timestep_drop", p=0.5))
    before, left = cells(arrays), cells(after)
    assert all(before[key] == found for key, found in left.items())
    assert {sample for sample, _ in left} == set(arrays.sample_id.tolist())
    steps = np.array([sum(s == sample for s, _ in before) for sample in arrays.sample_id.tolist()])
    # The requested rate, corrected for the step kept in rows that would lose all steps.
    expected = (0.5 * steps + 0.5**steps).sum()
    assert len(left) == pytest.approx(expected, abs=4 * np.sqrt(0.25 * steps.sum()))
    some = arrays.take(np.array([7, 2]))
    alone = cells(corrupt_events(some, Missingness(mechanism="timestep_drop", p=0.5)))
    assert alone == {key: found for key, found in left.items() if key[0] in ("s007", "s002")}


def test_noise_changes_only_the_values_of_events() -> None:
    arrays = events(50)
    noisy = corrupt_events(arrays, Missingness(mechanism="gaussian", p=0.5))
    assert (noisy.x[:, 0] == arrays.x[:, 0]).all()
    assert (noisy.x[:, 1] - arrays.x[:, 1]).std() == pytest.approx(0.5, rel=0.1)
    assert corrupt_events(arrays, Missingness(mechanism="mcar", p=0.5)) is arrays
