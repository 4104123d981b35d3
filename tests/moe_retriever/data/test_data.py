"""Loading a store into tensors: rows, masks, views, transforms, and errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from moe_retriever.data.load import load
from moe_retriever.data.tables import GenotypeTable, PixelTable, SequenceTable, VectorTable
from mrpipe import Store, open_store
from mrpipe.errors import DataError, UsageError
from mrpipe.experiment.missingness import MASK_KEY, Missingness, read_masks, write_masks
from mrpipe.genetics.packing import unpack_range
from mrpipe.schema import Modality
from mrpipe.store.parquet import read_metadata, write_frame
from mrpipe.transforms.fit import fit
from tests import toy


def test_batches_contain_the_transformed_rows_of_the_store(store: Store) -> None:
    """Compared sample by sample."""
    data = load(store)
    assert [type(t) for t in data.tables] == [VectorTable, SequenceTable, PixelTable, GenotypeTable]
    transforms = fit(store, modalities=["table", "series", "image"])
    for m, name in enumerate(data.spec.names):
        arrays = store.arrays(name)
        of_store = {s: i for i, s in enumerate(arrays.sample_id.tolist())}
        seen = np.flatnonzero(data.observed[:, m])
        assert sorted(of_store) == data.sample_id[seen].tolist()
        entry = data.tables[m].gather(data.row[seen, m])
        if name == "series":
            assert data.spec.modalities[m].shape == (3,)
            continue
        if name == "genotype":
            calls = unpack_range(arrays.x, 0, toy.N_SNPS)
            assert entry.values().shape == calls.shape
            continue
        expected = transforms.apply(name, arrays).x
        np.testing.assert_allclose(entry.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_irregular_sequences_get_the_time_since_the_previous_step(store: Store) -> None:
    data = load(store, modalities=["series"])
    arrays = store.arrays("series")
    table = data.tables[0]
    assert isinstance(table, SequenceTable)
    for row in range(5):
        steps = slice(int(arrays.offsets[row]), int(arrays.offsets[row + 1]))
        elapsed = np.diff(arrays.time[steps], prepend=arrays.time[steps][0])
        np.testing.assert_allclose(table.x[steps, -1], np.log1p(elapsed), rtol=1e-6)


def test_labels_splits_and_keys_match_the_samples(store: Store) -> None:
    data = load(store)
    labels = dict(store.labels().collect().iter_rows())
    parts = dict(store.split().collect().iter_rows())
    for i, sample in enumerate(data.sample_id.tolist()):
        assert data.label[i] == labels.get(sample, -1)
        assert ["train", "val", "test"][data.part[i]] == parts[sample]
    for part in ("train", "val", "test"):
        rows = data.rows(part)
        assert (data.label[rows] >= 0).all()
        assert (np.diff(rows) > 0).all()


def test_samples_without_any_modality_of_the_view_are_removed_and_counted(store: Store) -> None:
    data = load(store, modalities=["image", "table"])
    assert data.spec.names == ("table", "image")
    have = store.samples("table | image").collect()
    assert data.sample_id.tolist() == sorted(have["sample_id"])
    assert sum(data.n_without.values()) == store.manifest.n_samples - len(have)
    gone = store.samples("~table & ~image").join(store.split(), on="sample_id").collect()
    assert data.n_without["train"] == (gone["split"] == "train").sum()


def test_a_mask_file_removes_modalities_completely(store: Store, mask_file: Path) -> None:
    data, whole = load(store, mask_file=mask_file), load(store)
    frame = read_masks(mask_file)[0]
    wanted = dict(frame.iter_rows())
    bits = [store.bits[n] for n in data.spec.names]
    for i, sample in enumerate(data.sample_id.tolist()):
        assert data.observed[i].tolist() == [bool(wanted[sample] >> b & 1) for b in bits]
    assert data.observed.sum() < whole.observed.sum()
    # Hidden rows are not loaded into memory.
    for m, table in enumerate(data.tables):
        assert len(table) == data.observed[:, m].sum()


def test_noise_and_dropped_steps_are_applied_at_load(store: Store, tmp_path: Path) -> None:
    for mechanism in ("gaussian", "timestep_drop"):
        write_masks(store, Missingness(mechanism=mechanism, p=0.5), tmp_path / "m.parquet")
        noisy, plain = load(store, mask_file=tmp_path / "m.parquet"), load(store)
        rows = np.arange(5)
        if mechanism == "gaussian":
            for m in (0, 2):
                difference = noisy.tables[m].gather(rows) - plain.tables[m].gather(rows)
                assert 0.1 < float(difference.std()) < 1.0
        else:
            assert len(noisy.tables[1].x) < len(plain.tables[1].x)
            assert torch.equal(noisy.tables[0].gather(rows), plain.tables[0].gather(rows))


def test_transforms_are_fitted_without_evaluation_rows(toy_stores: Path) -> None:
    plain, shifted = (load(open_store(toy_stores / name)) for name in ("plain", "shifted"))
    assert plain.fitted.fitted.keys() == shifted.fitted.fitted.keys()
    a, b = plain.fitted.to_json(), shifted.fitted.to_json()
    ids = [open_store(toy_stores / n).store_id for n in ("plain", "shifted")]
    assert ids[0] != ids[1]
    assert a.replace(*ids) == b
    test = plain.rows("test")
    seen = test[plain.observed[test, 0]]
    before, after = (d.tables[0].gather(d.row[seen, 0]) for d in (plain, shifted))
    assert not torch.allclose(before, after)


def test_hiding_is_keyed_by_sample_and_keeps_at_least_one_modality(store: Store) -> None:
    data = load(store)
    rows = np.arange(len(data))
    batch = data.batch(rows, "epoch 1", hide=0.6, seed=4)
    assert batch.observed.any(axis=1).all()
    assert (batch.observed | batch.hidden == data.observed).all()
    alone = data.batch(rows[[7]], "epoch 1", hide=0.6, seed=4)
    assert (alone.observed[0] == batch.observed[7]).all()
    assert (data.batch(rows, "epoch 2", hide=0.6, seed=4).observed != batch.observed).any()
    # The requested rate, among the modalities that can be hidden.
    several = data.observed.sum(axis=1) > 1
    rate = batch.hidden[several].sum() / data.observed[several].sum()
    assert 0.25 < rate < 0.6


def test_a_regression_is_scaled_by_its_training_samples(store: Store) -> None:
    """The target is kept in its unit; batches are standardised, and unlabelled samples are in no split."""
    data = load(store, task="score")
    frame = store.samples().select("sample_id").join(store.labels("score"), on="sample_id", how="left").collect()
    value = dict(frame.select("sample_id", "value").iter_rows())
    np.testing.assert_array_equal(data.label, [np.nan if value[i] is None else value[i] for i in data.sample_id])
    train = data.rows("train")
    assert data.spec.regression
    assert data.spec.n_outputs == 1
    assert (data.spec.center, data.spec.scale) == (data.label[train].mean(), data.label[train].std())
    batch = data.batch(train, "x")
    assert (float(batch.label.mean()), float(batch.label.std(correction=0))) == pytest.approx((0, 1), abs=1e-6)
    changed = replace(data, label=data.label.copy())
    changed.label[data.rows("test")] = 1e6
    assert torch.equal(changed.batch(train, "x").label, batch.label)


def test_invalid_names_and_mask_files_are_rejected(
    store: Store, toy_stores: Path, mask_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no modality 'sound'; this store has table, series, image, genotype"):
        load(store, modalities=["table", "sound"])
    with pytest.raises(DataError, match=r"masks of store .*found those of other data"):
        load(open_store(toy_stores / "shifted"), mask_file=mask_file)
    with pytest.raises(DataError, match="a mask file"):
        load(store, mask_file=tmp_path / "absent.parquet")
    with pytest.raises(DataError, match="a mask file of `mrpipe mask`"):
        load(store, mask_file=store.path / "samples.parquet")


def test_damaged_mask_files_are_rejected(store: Store, mask_file: Path, tmp_path: Path) -> None:
    good, settings = pl.read_parquet(mask_file), read_metadata(mask_file)
    damaged = [
        (good, {MASK_KEY: settings[MASK_KEY][:-5]}),
        (good, {MASK_KEY: "{}"}),
        (good, {MASK_KEY: settings[MASK_KEY].replace('"p": 0.3', '"p": 3.0')}),
        (pl.concat([good, good.head(1)]), settings),
        (good.with_columns(pl.col("modality_mask").cast(pl.Int64)), settings),
        (good.drop("modality_mask"), settings),
    ]
    for frame, metadata in damaged:
        write_frame(tmp_path / "m.parquet", frame, metadata=metadata)
        with pytest.raises(DataError, match="a mask file"):
            load(store, mask_file=tmp_path / "m.parquet")
    content = mask_file.read_bytes()
    (tmp_path / "m.parquet").write_bytes(content.replace(b'"mechanism', b'"mech\xffnism'))
    with pytest.raises(DataError, match="a mask file"):
        load(store, mask_file=tmp_path / "m.parquet")


def test_an_observed_sequence_without_steps_is_rejected() -> None:
    from moe_retriever.data.tables import sequence_table
    from mrpipe.store.reader import Arrays

    arrays = Arrays(
        modality=Modality(name="series", bit=0, kind="sequence", shape=(2,)),
        sample_id=np.array(["a", "b"]),
        x=np.zeros((3, 2), np.float32),
        offsets=np.array([0, 3, 3]),
    )
    with pytest.raises(DataError, match=r"series\.parquet, column 'length', row 2: expected at least one step"):
        sequence_table(arrays, torch.device("cpu"))
