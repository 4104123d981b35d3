"""`store.matrix()`: values, names and groups, and its use with scikit-learn."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from mrpipe import Store, open_store
from mrpipe.errors import UsageError
from mrpipe.genetics.packing import unpack_range
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from tests import toy

CHOSEN = ("table", "series", "genotype")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        toy.skip_code_of_dataset(patch)
        simulate(toy.TOY, root / "raw", {})
        build(toy.TOY, root / "raw", root / "store", {})
    return open_store(root / "store")


def test_values_are_those_of_the_store_and_nan_elsewhere(store: Store) -> None:
    m = store.matrix(CHOSEN)
    assert m.x.shape == (len(m.y), len(m.names)) == (len(m.sample_id), 7 + 5 + toy.N_SNPS)
    assert m.x.dtype == np.float32
    assert m.names[:2] == ("table.table0", "table.table1")
    assert m.names[7:12] == (
        *(f"series.series{i} {s}" for s in ("mean", "maximum") for i in (0, 1)),
        "series.log number of steps",
    )
    labels, subjects = dict(store.labels().collect().iter_rows()), store.samples().select("sample_id", "subject_id")
    assert m.sample_id.tolist() == sorted(
        labels.keys() & set(store.samples("table | series | genotype").collect()["sample_id"])
    )
    assert m.y.tolist() == [labels[i] for i in m.sample_id]
    assert m.groups.tolist() == [dict(subjects.collect().iter_rows())[i] for i in m.sample_id]
    first = 0
    for name, width in zip(CHOSEN, (7, 5, toy.N_SNPS), strict=True):
        block, arrays = m.x[:, first : first + width], store.arrays(name)
        first += width
        row = {s: i for i, s in enumerate(arrays.sample_id.tolist())}
        for sample, got in zip(m.sample_id.tolist(), block, strict=True):
            if sample not in row:
                assert np.isnan(got).all()
                continue
            i = row[sample]
            if name == "series":
                steps = arrays.x[arrays.offsets[i] : arrays.offsets[i + 1]]
                known = [c[~np.isnan(c)] for c in steps.T]
                mean, largest = [[f(c) if len(c) else np.nan for c in known] for f in (np.mean, np.max)]
                np.testing.assert_allclose(got, [*mean, *largest, np.log(len(steps))], rtol=1e-6)
            elif name == "genotype":
                calls = unpack_range(arrays.x[[i]], 0, toy.N_SNPS)[0].astype(float)
                np.testing.assert_array_equal(got, np.where(calls == 3, np.nan, calls))
            else:
                np.testing.assert_array_equal(got, arrays.x[i])


def test_parts_and_tasks(store: Store) -> None:
    split = dict(store.split("uniform").collect().iter_rows())
    m = store.matrix("table", part="test", split="uniform", task="score")
    assert {split[i] for i in m.sample_id} == {"test"}
    score = store.labels("score").filter(pl.col("sample_id").is_in(m.sample_id.tolist())).sort("sample_id").collect()
    assert m.y.dtype == np.float64
    assert m.y.tolist() == score["value"].to_list()
    np.testing.assert_array_equal(store.matrix("table", part="all").x, store.matrix(["table"]).x)


def test_cross_validated_predictions_with_scikit_learn(store: Store) -> None:
    m = store.matrix(CHOSEN)
    model = make_pipeline(SimpleImputer(keep_empty_features=True), LogisticRegression(max_iter=50))
    predicted = cross_val_predict(model, m.x, m.y, groups=m.groups, cv=GroupKFold(3), method="predict_proba")
    assert predicted.shape == (len(m.y), 2)
    assert np.isfinite(predicted).all()


def test_modalities_without_a_matrix_and_unknown_names_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match=r"image; modalities that have: table, series, genotype"):
        store.matrix()
    with pytest.raises(UsageError, match="no modality 'smell'"):
        store.matrix(["smell"])
    with pytest.raises(UsageError, match="no modality is chosen"):
        store.matrix([])
    with pytest.raises(UsageError, match="no part 'dev'; a split has train"):
        store.matrix(["table"], part="dev")
    with pytest.raises(UsageError, match="no split 'weekly'"):
        store.matrix(["table"], split="weekly")
