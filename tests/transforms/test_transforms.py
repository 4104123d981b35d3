"""Transforms: agreement with scikit-learn, fitting on training rows only, JSON round trip."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

import mrpipe
from mrpipe.errors import UsageError
from mrpipe.genetics.packing import unpack_range
from mrpipe.options import parse_options
from mrpipe.schema import Modality
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from mrpipe.store.reader import Arrays
from mrpipe.transforms.events import EventTransform, SummaryTransform, event_transform, levels_id
from mrpipe.transforms.features import Numeric, OneHot, TfidfSvd
from mrpipe.transforms.fit import PixelTransform, Transforms, fit
from mrpipe.transforms.options import TransformOptions
from tests import toy


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[float, mrpipe.Store]:
    """Two stores that differ only in the values of test samples (shifted by 0 and by 1000)."""
    folder = tmp_path_factory.mktemp("toy")
    simulate(toy.TOY, folder / "raw", {})
    result = {}
    with pytest.MonkeyPatch.context() as patch:
        toy.skip_code_of_dataset(patch)
        for shift in (0.0, 1000.0):
            path: Path = folder / f"store{shift}"
            build(toy.TOY, folder / "raw", path, {"shift_test": shift})
            result[shift] = mrpipe.open_store(path)
    return result


def test_fitted_values_do_not_depend_on_test_rows(stores: dict[float, mrpipe.Store]) -> None:
    for name in ("table", "series", "image", "genotype"):
        a, b = (stores[s].arrays(name, part="test").x for s in (0.0, 1000.0))
        assert not np.array_equal(a, b), "the test rows must differ"
        a, b = (stores[s].arrays(name, part="train").x for s in (0.0, 1000.0))
        np.testing.assert_array_equal(a, b)
    first, second = (fit(stores[s], "standard") for s in (0.0, 1000.0))
    assert first.to_json().replace(first.store_id, "") == second.to_json().replace(second.store_id, "")


def test_output_is_finite_and_unchanged_after_a_json_round_trip(stores: dict[float, mrpipe.Store]) -> None:
    store = stores[0.0]
    transforms = fit(store)
    again = Transforms.from_json(transforms.to_json())
    assert again.to_json() == transforms.to_json()
    for modality in store.modalities:
        arrays = transforms.apply(modality.name, store.arrays(modality.name))
        assert arrays.x.dtype == np.float32
        assert np.isfinite(arrays.x).all()
        assert arrays.x.shape[1:] == transforms.shapes[modality.name]
        np.testing.assert_array_equal(arrays.x, again.apply(modality.name, store.arrays(modality.name)).x)


def test_transform_of_a_sample_is_independent_of_other_samples(stores: dict[float, mrpipe.Store]) -> None:
    store = stores[0.0]
    transforms = fit(store)
    for modality in store.modalities:
        arrays = store.arrays(modality.name)
        whole = transforms.apply(modality.name, arrays).take(np.array([3]))
        alone = transforms.apply(modality.name, arrays.take(np.array([3])))
        np.testing.assert_allclose(whole.x, alone.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("impute", ["mean", "median"])
def test_standardisation_matches_scikit_learn(impute: str) -> None:
    x = np.random.default_rng(0).normal(3, 2, (200, 4)).astype(np.float32)
    x[::7, 1] = np.nan
    step = Numeric.fit(x, TransformOptions(impute=impute, clip=0))
    filled = SimpleImputer(strategy=impute).fit_transform(x.astype(np.float64))
    expected = StandardScaler().fit(x.astype(np.float64)).transform(filled)
    np.testing.assert_allclose(step.apply(x), expected, atol=1e-5)


def test_minmax_scales_to_minus_one_and_one() -> None:
    x = np.random.default_rng(0).exponential(2, (50, 3)).astype(np.float32)
    step = Numeric.fit(x, TransformOptions(scale="minmax"))
    np.testing.assert_allclose(step.apply(x), MinMaxScaler((-1, 1)).fit_transform(x), atol=1e-5)


def test_constant_and_never_observed_features_become_zero() -> None:
    x = np.full((10, 2), 4.0, dtype=np.float32)
    x[:, 1] = np.nan
    step = Numeric.fit(x, TransformOptions())
    np.testing.assert_array_equal(step.apply(x), np.zeros((10, 2)))
    np.testing.assert_array_equal(Numeric.fit(x, TransformOptions(impute="median")).fill, [4.0, 0.0])
    assert np.isfinite(step.apply(np.array([[1e30, 5.0]], dtype=np.float32))).all()


def test_one_hot_matches_scikit_learn_with_mode_imputation() -> None:
    x = np.array([[0, 1], [2, 1], [2, np.nan], [np.nan, 0], [1, 1]], dtype=np.float32)
    filled = SimpleImputer(strategy="most_frequent").fit_transform(x)
    expected = OneHotEncoder(sparse_output=False, categories=[[0, 1, 2], [0, 1]]).fit_transform(filled)
    found = OneHot.fit(x, [3, 2]).apply(x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_tfidf_and_svd_match_scikit_learn_up_to_sign_and_scale() -> None:
    x = np.random.default_rng(0).poisson(0.7, (80, 30)).astype(np.float32)
    step = TfidfSvd.fit(x, TransformOptions(svd_dim=5))
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(x)
    expected = TruncatedSVD(5, algorithm="arpack", random_state=0).fit_transform(weighted)
    got = step.apply(x)
    correlation = np.abs([np.corrcoef(got[:, j], expected[:, j])[0, 1] for j in range(4)])
    assert correlation.min() > 0.99
    np.testing.assert_allclose(got.std(axis=0), 1.0, atol=1e-4)


def test_missing_genotypes_become_the_training_mode(stores: dict[float, mrpipe.Store]) -> None:
    store = stores[0.0]
    transforms = fit(store)
    train = unpack_range(store.arrays("genotype", part="train").x, 0, toy.N_SNPS)
    mode = np.array([np.bincount(c[c < 3], minlength=3).argmax() for c in train.T])
    calls = unpack_range(store.arrays("genotype").x, 0, toy.N_SNPS)
    got = transforms.apply("genotype", store.arrays("genotype")).x
    np.testing.assert_array_equal(got, np.where(calls == 3, mode, calls) - 1.0)


def test_pixels_are_standardised_per_channel_over_training_images(stores: dict[float, mrpipe.Store]) -> None:
    train = stores[0.0].arrays("image", part="train")
    x = fit(stores[0.0]).apply("image", train).x
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, atol=1e-5)


def test_unknown_voxels_are_ignored_in_fitting_and_become_the_mean() -> None:
    modality = Modality(name="volume", bit=0, kind="volume", shape=(2, 3, 2))
    x = np.random.default_rng(0).normal(5, 2, (40, 2, 3, 2)).astype(np.float32)
    x[::3, 0, 1, 1] = np.nan
    arrays = Arrays(modality=modality, sample_id=np.array([f"s{i:02d}" for i in range(40)]), x=x)
    fitted = PixelTransform.fit(modality, [x[:9], x[9:]])
    np.testing.assert_allclose([fitted.mean[0], fitted.sd[0]], [np.nanmean(x), np.nanstd(x)], rtol=1e-5)
    got = fitted.apply(arrays).x
    np.testing.assert_array_equal(got == 0, np.isnan(x))


def test_default_options_leave_no_trace_in_the_json_and_others_do(stores: dict[float, mrpipe.Store]) -> None:
    usual, other = (fit(stores[0.0], options=TransformOptions(clip=clip)) for clip in (10.0, 2.0))
    assert usual.settings == {}
    assert "transforms" not in usual.to_json()
    assert other.settings == {"transforms": {"clip": 2.0}}
    assert Transforms.from_json(other.to_json()).options == other.options
    with pytest.raises(UsageError, match=r"^transforms: option clip=-2\.0 must be"):
        Transforms.from_json(other.to_json().replace('"transforms": {"clip": 2.0}', '"transforms": {"clip": -2.0}'))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("clip", "-1", "option clip=-1.0 must be a number of at least 0"),
        ("clip", "NaN", "option clip=nan must be a number"),
        ("scale", "robust", "option scale='robust' must be one of standard, minmax, none"),
        ("impute", "zero", "option impute='zero' must be one of mean, median"),
        ("svd_dim", "0", "option svd_dim=0 must be at least 1"),
        ("svd_dim", "2.5", "option svd_dim=2.5 must be int, not float"),
        ("svd_dim", "true", "option svd_dim=True must be int, not bool"),
        ("event_floor", "50", r"option event_floor=50.0 must be in \[0, 1\]"),
        ("event_step_hours", "0", "option event_step_hours=0.0 must be a positive number"),
        ("event_cap", "0", "option event_cap=0 must be at least 1"),
        ("event_steps", "0", "option event_steps=0 must be at least 1"),
        ("ld_r2", "1.5", r"option ld_r2=1.5 must be in \[0, 1\]"),
        ("ld_window", "1", "option ld_window=1 must be at least 2"),
        ("ld_step", "0", "option ld_step=0 must be at least 1"),
        ("median", "1", "unknown option 'median'; known options: clip, "),
    ],
)
def test_a_wrong_transform_option_is_a_usage_error(option: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^here: {message}"):
        parse_options(TransformOptions, {option: value}, context="here")


def test_every_transform_option_has_help() -> None:
    assert all(f.metadata["help"] for f in dataclasses.fields(TransformOptions))


def test_missing_transform_is_a_usage_error(stores: dict[float, mrpipe.Store]) -> None:
    transforms = fit(stores[0.0], modalities=["table"])
    with pytest.raises(UsageError, match="image"):
        transforms.apply("image", stores[0.0].arrays("image"))


def test_counts_of_a_summary_are_logarithmic_and_unknown_values_are_zero() -> None:
    names = ["a count", "a last", "b count", "b last"]
    dictionary = pl.DataFrame({"name": names, "kind": "summary"})
    x = np.array([[0, np.nan, 3, 1.0], [1, 5.0, 7, 3.0], [3, 9.0, 0, np.nan], [7, 1.0, 1, 2.0]], dtype=np.float32)
    modality = Modality(name="s", bit=0, kind="vector", shape=(4,))
    arrays = Arrays(modality=modality, sample_id=np.array(list("abcd")), x=x)
    transform = SummaryTransform.fit(arrays, dictionary, TransformOptions(clip=0.0))
    expected = x.astype(np.float64)
    expected[:, [0, 2]] = np.log1p(expected[:, [0, 2]])
    expected = (expected - np.nanmean(expected, axis=0)) / np.nanstd(expected, axis=0)
    np.testing.assert_allclose(transform.apply(arrays).x, np.nan_to_num(expected), rtol=1e-5, atol=1e-6)
    again = SummaryTransform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert again.apply(arrays).x.dtype == np.float32
    np.testing.assert_array_equal(again.apply(arrays).x, transform.apply(arrays).x)


def test_measurements_become_standardised_means_per_step_with_times_in_days() -> None:
    levels = ["p", "q"]
    dictionary = pl.DataFrame({"kind": ["event", "numeric"], "levels": [levels, None]})
    modality = Modality(
        name="e", bit=0, kind="sequence", shape=(2,), irregular=True, time_unit="hours", encoder=levels_id(levels)
    )
    x = np.array([[0, 1], [0, 3], [0, 5], [1, 7], [1, 9]], dtype=np.float32)
    time = np.array([1, 3, 13, 30, 6], dtype=np.float32)
    arrays = Arrays(modality=modality, sample_id=np.array(["a", "b"]), x=x, offsets=np.array([0, 4, 5]), time=time)
    options = TransformOptions(event_step_hours=12.0, event_floor=0.0, clip=0.0)
    fitted = EventTransform.fit(arrays, dictionary, options)
    as_lists = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(fitted).items()}
    stored = [json.loads(json.dumps(d)) for d in (fitted.to_dict(), {"kind": "events", **as_lists})]
    # Checkpoints of 0.1.0 contain lists.
    for transform in (fitted, *map(EventTransform.from_dict, stored)):
        assert [getattr(transform, k).dtype for k in ("vocabulary", "center")] == [np.int64, np.float32]
        out = transform.apply(arrays)
        assert out.x.tolist() == [[0, -1], [0, 1], [1, -1], [1, 1]]
        assert out.offsets.tolist() == [0, 3, 4]
        assert out.time.tolist() == [0.0, 0.5, 1.0, 0.0]
        assert out.x.dtype == out.time.dtype == np.float32


def test_a_modality_without_entries_in_the_dictionary_has_no_event_transform() -> None:
    assert event_transform(pl.DataFrame({"kind": ["summary"]})) is SummaryTransform
    assert event_transform(pl.DataFrame({"kind": ["numeric"]})) is None
    assert event_transform(pl.DataFrame(schema={"kind": pl.String})) is None


def test_the_identifier_of_levels_is_the_same_in_every_version() -> None:
    """Stores and fitted transforms contain it."""
    assert levels_id(["a", "b"]) == "levels-2-7e18f737311b"
