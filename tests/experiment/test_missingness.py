"""Simulated missingness: keyed draws, stated rates, and only observed modalities hidden."""

from __future__ import annotations

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
    AT_LOAD,
    MECHANISMS,
    Missingness,
    _content,
    corrupt,
    draw_masks,
    non_default,
    read_masks,
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
    frame, read, store_id = read_masks(tmp_path / "m.parquet")
    assert (read, store_id) == (settings, store.store_id)
    assert sum(counts.values()) == len(frame) == store.manifest.n_samples
    with pytest.raises(DataError, match="mask file"):
        read_masks(store.path / "samples.parquet")


@pytest.mark.parametrize("mechanism", AT_LOAD)
@pytest.mark.parametrize("name", ["table", "series"])
def test_corruption_is_independent_of_other_samples(store: mrpipe.Store, mechanism: str, name: str) -> None:
    settings = Missingness(mechanism=mechanism, p=0.5)
    arrays = store.arrays(name, transform=fit(store))
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
