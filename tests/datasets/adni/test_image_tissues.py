"""Segmentation of brain tissues on simulated volumes; requires no imaging library."""

import numpy as np
import pytest

from mrpipe.imaging.tissues import tissue_probabilities

MEANS = np.array([300.0, 600.0, 900.0])


def simulated(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Nested balls of fluid, grey and white matter with noise: intensities, and tissues (0 outside, 1, 2, 3)."""
    rng = np.random.Generator(np.random.PCG64(0))
    radius = np.linalg.norm(np.indices((48, 44, 40)) - np.array([24, 22, 20])[:, None, None, None], axis=0)
    tissues = (radius < 18).astype(int) + (radius < 15.5) + (radius < 12)
    values = np.where(tissues > 0, MEANS[tissues - 1] + noise * rng.standard_normal(tissues.shape), 5000.0)
    return values.astype(np.float32), tissues


def test_tissues_are_recovered_and_probabilities_sum_to_1_inside_the_mask() -> None:
    values, tissues = simulated(80.0)
    inside = tissues > 0
    p = tissue_probabilities(values, inside)
    assert p.dtype == np.float32
    assert p.shape == (3, *values.shape)
    np.testing.assert_allclose(p.sum(axis=0)[inside], 1.0, atol=1e-5)
    assert (p[:, ~inside] == 0).all()
    assert ((p.argmax(axis=0) + 1) == tissues)[inside].mean() > 0.97
    assert p.tobytes() == tissue_probabilities(values.copy(), inside).tobytes()


def test_the_neighbourhood_corrects_noise_that_intensities_alone_cannot() -> None:
    values, tissues = simulated(130.0)
    inside = tissues > 0
    nearest = np.abs(values[None] - MEANS[:, None, None, None]).argmin(axis=0) + 1
    by_field = tissue_probabilities(values, inside).argmax(axis=0) + 1
    assert (by_field != tissues)[inside].mean() < 0.6 * (nearest != tissues)[inside].mean()


def test_a_few_bright_voxels_do_not_become_a_class() -> None:
    values, tissues = simulated(80.0)
    inside = tissues > 0
    values[20:24, 20:24, 20:24] *= 8
    p = tissue_probabilities(values, inside)
    assert ((p.argmax(axis=0) + 1) == tissues)[inside].mean() > 0.96


@pytest.mark.parametrize("shift", [0.0, -2000.0])
@pytest.mark.parametrize("factor", [1.0, 1e-4, 37.0])
def test_the_intensity_scale_has_no_effect(factor: float, shift: float) -> None:
    values, tissues = simulated(80.0)
    expected = tissue_probabilities(values, tissues > 0)
    np.testing.assert_allclose(tissue_probabilities(values * factor + shift * factor, tissues > 0), expected, atol=0.1)


@pytest.mark.parametrize("levels", [1, 2])
def test_scans_with_fewer_intensities_than_tissues_have_finite_probabilities(levels: int) -> None:
    values = (np.indices((12, 12, 12)).sum(axis=0) % levels).astype(np.float32)
    inside = np.zeros(values.shape, dtype=bool)
    inside[0:6, 2:12, 3:9] = True
    p = tissue_probabilities(values, inside)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(axis=0), inside, atol=1e-5)
