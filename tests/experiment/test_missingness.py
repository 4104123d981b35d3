"""Simulated missingness: keyed draws, stated rates, and only observed modalities hidden."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

import mrpipe
from mrpipe.cli.main import command_parser
from mrpipe.cli.pipeline import COMMANDS
from mrpipe.errors import DataError, UsageError
from mrpipe.experiment.missingness import (
    ALL,
    AT_LOAD,
    MECHANISMS,
    Missingness,
    _content,
    _kept_at_marginal_rate,
    corrupt,
    draw_masks,
    masked_data,
    non_default,
    p_text,
    parse_p,
    read_masks,
    read_realised,
    write_masks,
)
from mrpipe.genetics.packing import unpack_range
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from mrpipe.store import masks
from mrpipe.transforms.fit import fit
from tests import toy


def test_the_command_and_the_schema_have_the_defaults_of_the_settings(project: Path) -> None:
    defaults = Missingness()
    arguments = command_parser("mask", COMMANDS["mask"]).parse_args(["STORE", "--out", "OUT"])
    assert (arguments.mechanism, arguments.p, arguments.seed) == (defaults.mechanism, defaults.p, defaults.seed)
    assert arguments.rate == defaults.rate
    assert (arguments.strength, arguments.blocks) == (defaults.strength, defaults.n_blocks)
    schema = yaml.safe_load((project / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8"))
    settings = schema["$defs"]["experiment"]["properties"]["missingness"]["properties"]
    for name, declared in settings.items():
        assert declared.get("default", getattr(defaults, name)) == getattr(defaults, name), name
    assert non_default({"mechanism": "mcar", "p": 0.1, "strength": 0.8, "n_blocks": 5}) == {"n_blocks": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mrpipe.Store:
    folder = tmp_path_factory.mktemp("toy")
    simulate(toy.TOY, folder / "raw", {"n": 3000})
    with pytest.MonkeyPatch.context() as patch:
        toy.skip_code_of_dataset(patch)
        build(toy.TOY, folder / "raw", folder / "store", {})
    return mrpipe.open_store(folder / "store")


def both(store: mrpipe.Store, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    """Observed modalities before and after masking, (n, M) each."""
    frame = draw_masks(store, Missingness(**settings))  # type: ignore[arg-type]
    bits = [m.bit for m in store.modalities]
    samples = store.samples().collect()
    assert frame["sample_id"].equals(samples["sample_id"])
    return masks.unpack(samples["modality_mask"], bits), masks.unpack(frame["modality_mask"], bits)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_only_observed_modalities_are_hidden_and_one_remains(store: mrpipe.Store, mechanism: str) -> None:
    before, after = both(store, mechanism=mechanism, p=0.5)
    assert not (after & ~before).any()
    assert after.any(axis=1).all()
    if mechanism in AT_LOAD:
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("mechanism", ["mcar", "mnar_label", "mnar_value"])
@pytest.mark.parametrize("p", [0.1, 0.3])
def test_rate_without_redrawing_is_p(store: mrpipe.Store, mechanism: str, p: float) -> None:
    before, after = both(store, mechanism=mechanism, p=p, redraw=False)
    rate = 1 - after.sum() / before.sum()
    assert abs(rate - p) < 0.025


def test_redrawing_gives_the_conditional_distribution(store: mrpipe.Store) -> None:
    """Two modalities, p = 0.3, at least one remains: both 53.8 %, one 46.2 % (0.49 / 0.91 and 0.42 / 0.91)."""
    before, after = both(store, p=0.3, modalities=("table", "image"))
    pair = before[:, 0] & before[:, 2]
    kept = after[pair].sum(axis=1)
    assert set(np.unique(kept)) == {1, 2}
    assert abs((kept == 2).mean() - 0.538) < 0.06


def test_samples_can_lose_all_modalities_without_redrawing(store: mrpipe.Store) -> None:
    _, after = both(store, p=0.5, redraw=False)
    assert (~after.any(axis=1)).any()


def test_subset_of_modalities_is_hidden_for_the_same_samples(store: mrpipe.Store) -> None:
    _, whole = both(store, p=0.3, redraw=False)
    _, view = both(store, p=0.3, redraw=False, modalities=("table", "image"))
    np.testing.assert_array_equal(whole[:, [0, 2]], view[:, [0, 2]])
    assert not view[:, [1, 3]].any()


def test_draw_is_determined_by_the_seed(store: mrpipe.Store) -> None:
    first = draw_masks(store, Missingness(seed=1))
    assert first.equals(draw_masks(store, Missingness(seed=1)))
    assert not first.equals(draw_masks(store, Missingness(seed=2)))


def test_mnar_label_hides_more_in_later_classes(store: mrpipe.Store) -> None:
    before, after = both(store, mechanism="mnar_label", p=0.3, redraw=False, strength=0.8)
    value = store.samples().join(store.labels(), on="sample_id", how="left").sort("sample_id").collect()["value"]
    rates = [1 - after[v].sum() / before[v].sum() for v in ((value == c).fill_null(False).to_numpy() for c in (0, 1))]
    assert rates[1] - rates[0] > 0.1


def test_mnar_value_hides_more_large_values(store: mrpipe.Store) -> None:
    before, after = both(store, mechanism="mnar_value", p=0.3, redraw=False)
    content = store.arrays("image").x.mean(axis=(1, 2, 3), dtype=float)
    hidden = (before & ~after)[before[:, 2], 2]
    assert hidden[content > np.median(content)].mean() - hidden[content <= np.median(content)].mean() > 0.1


def test_mean_value_of_genotypes_counts_copies(store: mrpipe.Store) -> None:
    arrays = store.arrays("genotype")
    calls = unpack_range(arrays.x, 0, toy.N_SNPS)
    np.testing.assert_allclose(_content(arrays), np.where(calls == 3, 0, calls).mean(axis=1))


def test_subjects_of_a_block_lose_a_modality_together(store: mrpipe.Store) -> None:
    before, after = both(store, mechanism="block", p=0.4, redraw=False, n_blocks=10)
    subjects = store.samples().collect()["subject_id"].to_numpy()
    hidden = before & ~after
    for column in range(before.shape[1]):
        frame = pl.DataFrame({"s": subjects[before[:, column]], "hidden": hidden[before[:, column], column]})
        assert frame.group_by("s").agg(pl.col("hidden").n_unique())["hidden"].max() == 1


def test_mask_file_contains_its_settings_and_store(store: mrpipe.Store, tmp_path: Path) -> None:
    settings = Missingness(p=0.2, seed=3, modalities=("table", "image"))
    counts = write_masks(store, settings, tmp_path / "m.parquet")
    frame, read, drawn_from = read_masks(tmp_path / "m.parquet")
    assert (read, drawn_from) == (settings, masked_data(store, settings))
    assert masked_data(store, Missingness(modalities=("table",))) != drawn_from
    assert sum(counts.values()) == len(frame) == store.manifest.n_samples
    with pytest.raises(DataError, match="mask file"):
        read_masks(store.path / "samples.parquet")


@pytest.mark.parametrize("mechanism", AT_LOAD)
@pytest.mark.parametrize("name", ["table", "series"])
def test_corruption_is_independent_of_other_samples(store: mrpipe.Store, mechanism: str, name: str) -> None:
    settings = Missingness(mechanism=mechanism, p=0.5)
    arrays = fit(store).apply(name, store.arrays(name))
    rows = np.array([7, 2, 11])
    whole, alone = corrupt(arrays, settings).take(rows), corrupt(arrays.take(rows), settings)
    np.testing.assert_array_equal(whole.x, alone.x)
    if whole.offsets is not None:
        np.testing.assert_array_equal(whole.offsets, alone.offsets)


def test_gaussian_noise_has_the_stated_standard_deviation(store: mrpipe.Store) -> None:
    arrays = store.arrays("series", transform=fit(store))
    noise = corrupt(arrays, Missingness(mechanism="gaussian", p=0.5)).x - arrays.x
    assert abs(noise.std() - 0.5) < 0.02
    assert abs(noise.mean()) < 0.02


def test_timestep_drop_keeps_at_least_one_step_and_the_order(store: mrpipe.Store) -> None:
    arrays = store.arrays("series", transform=fit(store))
    after = corrupt(arrays, Missingness(mechanism="timestep_drop", p=0.9))
    assert (np.diff(after.offsets) >= 1).all()
    assert after.time is not None
    starts = after.offsets[1:-1]
    rising = np.diff(after.time) > 0
    rising[starts - 1] = True
    assert rising.all()
    light = corrupt(arrays, Missingness(mechanism="timestep_drop", p=0.3))
    assert 0.2 < 1 - len(light.x) / len(arrays.x) < 0.3


@pytest.mark.parametrize("wrong", [{"mechanism": "magic"}, {"p": 1.0}, {"p": -0.1}, {"strength": 2.0}])
def test_invalid_settings_are_usage_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Missingness(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({}, "da8cd71ae9c5cb36"),
        ({"p": 0.5, "seed": 3, "modalities": ("table", "image")}, "3148da021d409502"),
        ({"mechanism": "mnar_label"}, "326cc323a2df874f"),
        ({"mechanism": "mnar_value", "redraw": False}, "3dd645b70c15efeb"),
        ({"mechanism": "block", "p": 0.4, "n_blocks": 10}, "e4b3980f6bbe0aad"),
    ],
)
def test_masks_of_older_settings_are_unchanged(store: mrpipe.Store, settings: dict[str, object], digest: str) -> None:
    """Digests from the version that had no marginal rate and no rate per modality."""
    frame = draw_masks(store, Missingness(**settings))  # type: ignore[arg-type]
    content = "".join(frame["sample_id"]).encode() + frame["modality_mask"].to_numpy().tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def conditional_distribution(p: list[float]) -> dict[tuple[bool, ...], float]:
    """Kept modalities → probability, by enumeration, for the independent drops whose marginal rate is p."""
    n, low, high = len(p), 1e-12, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if 1 - math.prod(1 - middle * (1 - v) for v in p) > middle:
            low = middle
        else:
            high = middle
    q = [1 - high * (1 - v) for v in p]
    odds = {
        kept: math.prod(1 - a if k else a for k, a in zip(kept, q, strict=True))
        for kept in itertools.product((False, True), repeat=n)
        if any(kept)
    }
    return {kept: value / sum(odds.values()) for kept, value in odds.items()}


@pytest.mark.parametrize("p", [[0.3, 0.3], [0.5, 0.5], [0.6, 0.1, 0.9], [0.4, 0.0, 0.7, 0.5], [0.2, 0.8]])
def test_marginal_rate_is_p_and_the_draw_is_conditional_independence(p: list[float]) -> None:
    n = 80_000
    u = np.random.default_rng(0).random((n, len(p)))
    observed = np.ones((n, len(p)), dtype=bool)
    kept = _kept_at_marginal_rate(np.tile(p, (n, 1)), observed, u)
    assert kept.any(axis=1).all()
    # Five standard errors.
    np.testing.assert_allclose((~kept).mean(axis=0), p, atol=5 * 0.5 / math.sqrt(n))
    if sum(p) < len(p) - 1 - 1e-6:
        for pattern, expected in conditional_distribution(p).items():
            share = (kept == pattern).all(axis=1).mean()
            assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n) + 1e-6, pattern
    else:
        assert (kept.sum(axis=1) == 1).all()


def test_marginal_rate_holds_for_each_number_of_observed_modalities() -> None:
    n, p = 60_000, np.array([0.25, 0.4, 0.1])
    rng = np.random.default_rng(1)
    observed = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=bool)[rng.integers(0, 4, n)]
    kept = _kept_at_marginal_rate(np.tile(p, (n, 1)), observed, rng.random((n, 3)))
    assert not (kept & ~observed).any()
    for count in (2, 3):
        rows = observed.sum(axis=1) == count
        for m in range(3):
            seen = rows & observed[:, m]
            assert abs((~kept[seen, m]).mean() - p[m]) < 5 * 0.5 / math.sqrt(seen.sum())
    np.testing.assert_array_equal(kept[observed.sum(axis=1) == 1], observed[observed.sum(axis=1) == 1])


def test_marginal_rate_above_the_bound_is_a_usage_error(store: mrpipe.Store) -> None:
    for p, modalities in ((0.6, ("table", "image")), ({"table": 0.9, "image": 0.2}, ("table", "image"))):
        with pytest.raises(UsageError, match=r"p is at most 0.5 on average over 2 modalities"):
            draw_masks(store, Missingness(p=p, rate="marginal", modalities=modalities))
    for wrong in ({"mechanism": "block"}, {"mechanism": "gaussian"}, {"redraw": False}):
        with pytest.raises(UsageError, match="rate=marginal requires"):
            Missingness(rate="marginal", **wrong)  # type: ignore[arg-type]


def test_realised_rate_is_recorded_by_modality_and_part(store: mrpipe.Store, tmp_path: Path) -> None:
    """Two modalities and p = 0.3: 23 % of the slots of samples with both are hidden, 0 % of the others."""
    settings = Missingness(p=0.3, modalities=("table", "image"))
    write_masks(store, settings, tmp_path / "m.parquet")
    realised = read_realised(tmp_path / "m.parquet")
    before, after = both(store, p=0.3, modalities=("table", "image"))
    before, after = before[:, [0, 2]], after[:, [0, 2]]
    assert realised[ALL] == pytest.approx((before & ~after).sum() / before.sum(), abs=1e-6)
    pair = before.all(axis=1)
    rate = 1 - after[pair].mean()
    assert abs(rate - (0.3 - 0.3**2) / (1 - 0.3**2)) < 5 * 0.5 / math.sqrt(2 * pair.sum())
    for m, name in enumerate(("table", "image")):
        assert realised[name] == pytest.approx(1 - after[before[:, m], m].mean(), abs=1e-6)
    samples = store.samples().join(store.split(), on="sample_id", how="left").sort("sample_id").collect()
    test = (samples["split"] == "test").fill_null(value=False).to_numpy()
    scheme = store.manifest.default_scheme
    assert realised[f"{scheme}: test"] == pytest.approx(1 - (after & before)[test].sum() / before[test].sum(), abs=1e-6)
    write_masks(store, Missingness(mechanism="gaussian", p=0.5), tmp_path / "noise.parquet")
    assert read_realised(tmp_path / "noise.parquet") == {}


@pytest.mark.parametrize("mechanism", ["mcar", "mnar_label", "mnar_value"])
@pytest.mark.parametrize("rate", ["nominal", "marginal"])
def test_each_modality_can_have_its_own_rate(store: mrpipe.Store, mechanism: str, rate: str, tmp_path: Path) -> None:
    p = {"table": 0.4, "image": 0.1}
    redraw = rate == "marginal"
    settings = Missingness(p=p, mechanism=mechanism, rate=rate, redraw=redraw, strength=0.2)
    before, after = both(store, p=p, mechanism=mechanism, rate=rate, redraw=redraw, strength=0.2)
    several = before.sum(axis=1) > 1 if redraw else np.ones(len(before), dtype=bool)
    for m, name in enumerate(m.name for m in store.modalities):
        seen = several & before[:, m]
        assert abs((~after[seen, m]).mean() - p.get(name, 0.0)) < 5 * 0.5 / math.sqrt(seen.sum())
        if name not in p:
            assert after[seen, m].all()
    write_masks(store, settings, tmp_path / "m.parquet")
    assert read_masks(tmp_path / "m.parquet")[1] == settings


def test_rates_per_modality_are_parsed_and_checked(store: mrpipe.Store) -> None:
    assert parse_p("0.3") == 0.3
    assert parse_p("audio=0.5,text=0.1") == {"audio": 0.5, "text": 0.1}
    assert parse_p(p_text({"audio": 0.5, "text": 0.1})) == {"audio": 0.5, "text": 0.1}
    with pytest.raises(UsageError, match="unknown modalities txet"):
        draw_masks(store, Missingness(p={"txet": 0.1}))
    with pytest.raises(UsageError, match="p must be in"):
        Missingness(p={"audio": 1.0})
    arrays = store.arrays("series", transform=fit(store))
    assert corrupt(arrays, Missingness(mechanism="gaussian", p={"table": 0.5})) is arrays
