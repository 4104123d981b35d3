"""`StoreDataset` and `StreamedStore`: equal to the project's own tensors, for every kind of modality."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch.nn.utils.rnn import pad_packed_sequence
from torch.utils.data import DataLoader, Subset

from moe_retriever import StoreDataset, StreamedStore
from moe_retriever.data.dataset import DenseBatch
from moe_retriever.data.load import Data, load
from mrpipe import Store, open_store
from mrpipe.errors import DataError, UsageError
from mrpipe.experiment.missingness import Missingness, write_masks
from mrpipe.genetics.packing import unpack_range
from mrpipe.schema import Features, Modality, ModalityReader
from mrpipe.stages import seal as seal_module
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from mrpipe.store import parquet
from mrpipe.transforms.events import levels_id
from mrpipe.transforms.fit import fit
from mrpipe.transforms.options import TransformOptions
from tests import toy

LEVELS = ["pulse", "sodium", "never"]
SEQUENCES = ("series", "labs")


def read_labs(raw: Path, cohort: pl.DataFrame, options: toy.Options) -> Features:
    """Events of two items, some with an unknown value, at two to six times."""
    ids = cohort["sample_id"].filter(pl.Series(toy._observed(cohort["sample_id"], "labs"))).to_list()
    modality = Modality(
        name="labs", bit=6, kind="sequence", shape=(2,), irregular=True, time_unit="hours", encoder=levels_id(LEVELS)
    )
    lengths = np.array([2 + int(i[1:]) % 5 for i in ids])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rng = np.random.default_rng(3)
    x = np.column_stack([rng.integers(0, 2, offsets[-1]), rng.normal(80, 9, offsets[-1])])
    x[::13, 1] = np.nan
    time = np.concatenate([np.sort(rng.uniform(0, 90, n)) for n in lengths]).astype(np.float32)
    columns = {"length": pa.array(lengths, pa.int32()), "time": pa.ListArray.from_arrays(offsets, pa.array(time))}
    batches = toy._batches(modality, ids, pa.ListArray.from_arrays(offsets, toy._fixed(x, modality)), **columns)
    dictionary = toy._dictionary("labs", ["event", "numeric"], len(ids), {0: LEVELS})
    return Features(modality=modality, batches=batches, dictionary=dictionary)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every kind of modality, in several row groups."""
    root = tmp_path_factory.mktemp("dataset")
    labs = ModalityReader(bit=6, description="events", read=read_labs)
    dataset = dataclasses.replace(toy.TOY, modalities={**toy.TOY.modalities, "labs": labs})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal_module, "dataset_module", lambda name: "mrpipe.stages.build")
        patch.setattr(parquet, "ROW_GROUP_BYTES", 700)
        simulate(dataset, root / "raw", {"n": 200})
        build(dataset, root / "raw", root / "store", {})
    made = open_store(root / "store")
    assert all(len(made.row_group_starts(m.name)) > 2 for m in made.modalities)
    return made


@pytest.fixture(scope="module", params=["mcar", "timestep_drop", "gaussian"])
def mask(store: Store, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "m.parquet"
    write_masks(store, Missingness(mechanism=request.param, p=0.3), path)
    return path


def equal(a: DenseBatch, b: DenseBatch, *, tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for field, value in a.items():
        torch.testing.assert_close(value, b[field], rtol=tolerance, atol=tolerance, equal_nan=True)


def own(data: Data, batch: DenseBatch, part_rows: np.ndarray) -> None:
    """The batch holds the tensors that `data` gives the project's encoders."""
    reference = data.batch(part_rows[batch["index"].numpy()], "x")
    assert torch.equal(batch["observed"], torch.from_numpy(reference.observed))
    torch.testing.assert_close(
        (batch["label"] - data.spec.center) / data.spec.scale, reference.label, check_dtype=False
    )
    for m, name in enumerate(data.spec.names):
        places, rows = reference.table_rows(m)
        values, table = batch[f"{name}.values"], data.tables[m]
        absent = torch.from_numpy(~reference.observed[:, m])
        assert not values[absent].any()
        if not len(places):
            assert values.shape[1:] == (1, 3) if name == "series" else values.ndim > 1
            continue
        if name in SEQUENCES:
            assert not batch[f"{name}.lengths"][absent].any()
        got = values[torch.from_numpy(places)]
        if name == "series":
            expected, lengths = pad_packed_sequence(table.gather(rows), batch_first=True)
            assert torch.equal(batch[f"{name}.lengths"][places], lengths)
            assert torch.equal(got, expected)
            # The last column follows from the times.
            inside = torch.arange(got.shape[1])[None, :] < lengths[:, None]
            elapsed = torch.diff(batch[f"{name}.times"][places], dim=1, prepend=batch[f"{name}.times"][places, :1])
            torch.testing.assert_close(got[..., -1][inside], elapsed.clamp_min(0).log1p()[inside])
        elif name == "labs":
            for i, row in enumerate(rows):
                alone = table.gather(np.array([row]))
                n = int(batch[f"{name}.lengths"][places[i]])
                assert torch.equal(got[i, :n], alone.value)
                assert torch.equal(batch[f"{name}.items"][places[i], :n], alone.item)
                new = torch.diff(batch[f"{name}.times"][places[i], :n], prepend=torch.tensor([-1.0])) != 0
                assert torch.equal(torch.nonzero(new)[:, 0], alone.starts)
        else:
            encoded = table.gather(rows)
            assert torch.equal(got, encoded.values() if name == "genotype" else encoded)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_batches_equal_the_tensors_of_the_project(store: Store, mask: Path, part: str) -> None:
    data = load(store, mask_file=mask)
    dataset = StoreDataset(store.path, part=part, mask=mask, transform="train")
    rows = data.rows(part)
    assert dataset.ids.tolist() == data.sample_id[rows].tolist()
    assert dataset.subjects.tolist() == data.subject_id[rows].tolist()
    assert dataset.spec == data.spec
    assert dataset.fitted.to_json() == data.fitted.to_json()
    loader = DataLoader(dataset, batch_size=7, collate_fn=dataset.collate, shuffle=True, generator=torch.Generator())
    seen = []
    for batch in loader:
        own(data, batch, rows)
        seen += batch["index"].tolist()
    assert sorted(seen) == list(range(len(dataset))) != seen


def test_a_regression_has_its_target_in_its_own_unit(store: Store) -> None:
    data, dataset = load(store, task="score"), StoreDataset(store, part="test", task="score")
    batch = dataset.collate([dataset[i] for i in range(9)])
    own(data, batch, data.rows("test"))
    assert batch["label"].dtype == torch.float32
    np.testing.assert_allclose(batch["label"], data.label[data.rows("test")][:9], rtol=1e-6)
    assert dataset.classes == ()


@pytest.mark.parametrize("transform", ["train", None])
def test_samples_collate_to_the_batch_that_is_fetched_at_once(store: Store, transform: str | None) -> None:
    dataset = StoreDataset(store, transform=transform)
    (at_once,) = dataset.__getitems__([3, 0, 11, 5])
    equal(dataset.collate([dataset[i] for i in (3, 0, 11, 5)]), at_once)
    equal(next(iter(DataLoader(Subset(dataset, [3, 0, 11, 5]), 4, collate_fn=dataset.collate))), at_once)
    without = np.flatnonzero(~dataset.data.observed[:, 1])[:3].tolist()
    equal(dataset.collate([dataset[i] for i in without]), dataset.__getitems__(without)[0])
    equal(dataset[-1], dataset[len(dataset) - 1])
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert dataset[3]["series.values"].shape[1] == max(dataset[3]["series.lengths"], 1)


def test_without_a_transform_values_are_those_of_the_store(store: Store) -> None:
    dataset = StoreDataset(store, part="all", transform=None)
    assert dataset.ids.tolist() == store.samples().collect()["sample_id"].to_list()
    assert set(np.unique(dataset.data.label)) == {-1, 0, 1}
    (batch,) = dataset.__getitems__(range(len(dataset)))
    kinds = {m.name: (m.kind, m.shape) for m in dataset.spec.modalities}
    assert kinds["labs"] == ("events", (3,))
    assert kinds["series"] == ("sequence", (2,))
    for m, name in enumerate(dataset.spec.names):
        arrays, got = store.arrays(name), batch[f"{name}.values"][batch["observed"][:, m]]
        if name in SEQUENCES:
            lengths = batch[f"{name}.lengths"][batch["observed"][:, m]]
            inside = torch.arange(got.shape[1])[None, :] < lengths[:, None]
            expected = arrays.x[:, 1] if name == "labs" else arrays.x
            times = batch[f"{name}.times"][batch["observed"][:, m]][inside]
            np.testing.assert_array_equal(times, arrays.time)
            got = got[inside]
            if name == "labs":
                np.testing.assert_array_equal(batch["labs.items"][batch["observed"][:, m]][inside], arrays.x[:, 0])
        elif name == "genotype":
            calls = unpack_range(arrays.x, 0, toy.N_SNPS).astype(np.float32)
            expected = np.where(calls == 3, np.nan, calls)
        else:
            expected = arrays.x
        np.testing.assert_array_equal(got, expected)
    assert batch["table.values"].isnan().any()


def test_transforms_are_fitted_on_training_samples_or_given(store: Store, tmp_path: Path) -> None:
    test = StoreDataset(store, part="test")
    assert test.fitted.to_json() == fit(store).to_json()
    other = StoreDataset(store, part="test", transform=TransformOptions(clip=0.5))
    assert other.__getitems__([0, 1, 2])[0]["table.values"][:, :2].abs().max() <= 0.5
    equal(StoreDataset(store, part="test", transform=other.fitted)[0], other[0])
    write_masks(store, Missingness(mechanism="gaussian", p=0.3), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="requires a transform"):
        StoreDataset(store, mask=tmp_path / "m.parquet", transform=None)


@pytest.mark.parametrize("loader", [StoreDataset, StreamedStore])
def test_wrong_arguments_are_refused(store: Store, loader: type[StoreDataset]) -> None:
    for wrong in ("test", True, False, {"scale": "minmax"}, ["train"], "{" * 99):
        with pytest.raises(UsageError, match=r"transform=.{2,50}: expected 'train', None"):
            loader(store, transform=wrong)
    for part in ("dev", "", ["train"]):
        with pytest.raises(UsageError, match=r"no part .*; a split has train, val, test"):
            loader(store, part=part)
    with pytest.raises(UsageError, match="no modality is chosen; this store has table"):
        loader(store, modalities=[])
    with pytest.raises(UsageError, match="no transform was fitted for 'series'; fitted: table"):
        loader(store, transform=StoreDataset(store, modalities="table").fitted)
    with pytest.raises(TypeError, match="slice"):
        StoreDataset(store)[:3]


def test_values_as_stored_need_no_transforms_of_another_store(store: Store, toy_stores: Path) -> None:
    stored = StoreDataset(toy_stores / "plain", transform=None).fitted
    equal(StoreDataset(store, transform=stored)[0], StoreDataset(store, transform=None)[0])


def test_a_store_with_other_features_is_refused(store: Store, toy_stores: Path) -> None:
    """The other store has the features of four modalities, so they can be transformed; with labs, they cannot."""
    shared = ["table", "series", "image", "genotype"]
    train = StoreDataset(store, part="train", modalities=shared)
    moved = StoreDataset(toy_stores / "plain", part="test", modalities=shared, transform=train.fitted)
    assert moved.fitted is train.fitted
    with pytest.raises(DataError, match="labs"):
        StoreDataset(toy_stores / "plain", part="test", transform=StoreDataset(store).fitted)


def test_workers_return_the_same_batches(store: Store, mask: Path, request: pytest.FixtureRequest) -> None:
    # A spawned worker starts slowly: with one mechanism, and forks with the others.
    start = "spawn" if "mcar" in request.node.name else "fork"
    dataset = StoreDataset(store, part="train", mask=mask)
    one = DataLoader(dataset, batch_size=16, collate_fn=dataset.collate)
    two = DataLoader(dataset, 16, collate_fn=dataset.collate, num_workers=2, multiprocessing_context=start)
    pairs = list(zip(one, two, strict=True))
    assert len(pairs) > 2
    for a, b in pairs:
        equal(a, b)


def test_a_dataset_can_be_pickled(store: Store) -> None:
    for dataset in (StoreDataset(store, part="val"), StreamedStore(store, part="val").shuffle()):
        copy = pickle.loads(pickle.dumps(dataset))
        equal(next(iter(copy)), next(iter(dataset)))


def all_batches(stream: StreamedStore, workers: int = 0) -> Iterator[DenseBatch]:
    yield from DataLoader(stream, batch_size=8, collate_fn=stream.collate, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transform", ["train", None])
def test_a_stream_has_each_sample_once_and_equals_the_dataset(
    store: Store, transform: str | None, workers: int, tmp_path: Path
) -> None:
    write_masks(store, Missingness(p=0.3), tmp_path / "m.parquet")
    chosen = {"part": "train", "mask": tmp_path / "m.parquet", "transform": transform}
    dataset, stream = StoreDataset(store, **chosen), StreamedStore(store, **chosen).shuffle(seed=1, buffer=20)
    orders = []
    for epoch in (0, 1, 1):
        stream.set_epoch(epoch)
        orders.append([])
        for batch in all_batches(stream, workers):
            orders[-1] += batch["index"].tolist()
            equal(batch, dataset.__getitems__(batch["index"].tolist())[0], tolerance=1e-6)
        assert sorted(orders[-1]) == list(range(len(dataset)))
    assert orders[0] != orders[1] == orders[2]
    assert orders[0] != sorted(orders[0])


def test_a_stream_without_shuffling_is_in_order(store: Store) -> None:
    stream = StreamedStore(store, part="test")
    assert [int(s["index"]) for s in stream] == list(range(len(stream.ids)))
    with pytest.raises(UsageError, match="buffer=0"):
        stream.shuffle(buffer=0)


def test_all_rows_are_those_of_the_row_groups(store: Store) -> None:
    for m in store.modalities:
        whole, n = store.arrays(m.name), len(store.row_group_starts(m.name)) - 1
        parts = [store.row_group(m.name, g) for g in range(n)]
        for field in ("sample_id", "x", "time"):
            if getattr(whole, field) is not None:
                np.testing.assert_array_equal(getattr(whole, field), np.concatenate([getattr(p, field) for p in parts]))
        if whole.offsets is not None:
            assert np.diff(whole.offsets).tolist() == [k for p in parts for k in np.diff(p.offsets).tolist()]


def test_a_stream_reads_row_groups_of_the_largest_modality_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrpipe.store import reader

    read: list[tuple[str, int | None]] = []
    original = reader._read_arrays

    def counted(path: Path, modality: Modality, group: int | None):
        read.append((modality.name, group))
        return original(path, modality, group)

    stream = StreamedStore(store, transform=None).shuffle()
    monkeypatch.setattr(reader, "_read_arrays", counted)
    n_groups = {m.name: len(store.row_group_starts(m.name)) - 1 for m in store.modalities}
    largest = max(n_groups, key=lambda name: n_groups[name])
    assert sum(1 for _ in stream) == len(stream.ids)
    assert sorted(g for name, g in read if name == largest) == list(range(n_groups[largest]))
    assert len(read) <= sum(n_groups.values()) + (len(n_groups) - 1) * n_groups[largest]


def test_samples_do_not_keep_their_row_group_in_memory(store: Store) -> None:
    for sample in StreamedStore(store, part="val"):
        for x in sample.values():
            assert x.untyped_storage().nbytes() <= x.nbytes + 16


def test_importing_the_package_does_not_load_torch(project: Path) -> None:
    program = "import sys, moe_retriever; print('torch' in sys.modules); moe_retriever.StoreDataset\n"
    program += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=project / "model", capture_output=True, text=True)
    assert done.stdout == "False\nTrue\n", done.stderr
