"""Tissue segmentation of a brain: a mixture of three Gaussian distributions with a Markov random field.

The method is that of Zhang, Brady & Smith (IEEE Trans. Med. Imaging 20:45-57, 2001) with mean-field updates of all
voxels at once. `benchmarks/imaging.md` compares it with Atropos.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

# `WEIGHT`: log odds that a neighbourhood of one tissue adds to this tissue. Both loops stop early on purpose: voxels
# between two tissues are not Gaussian, and converged fits move the borders of grey matter.
BINS, FIT_STEPS, FIELD_STEPS, WEIGHT = 256, 20, 4, np.float32(2)


def _densities(mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """Densities (3, BINS) of Gaussian classes with the moments of histograms (3, BINS), one per class."""
    bins, n = np.arange(BINS), np.maximum(mass.sum(axis=1, keepdims=True), 1e-9)
    offset = bins - mass @ bins[:, None] / n
    # Half a bin is the least standard deviation: a class may be empty or a single value.
    spread = np.maximum(np.sqrt((mass * offset**2).sum(axis=1, keepdims=True) / n), 0.5)
    return np.asarray(np.exp(-0.5 * (offset / spread) ** 2) / spread + 1e-12, dtype=np.float64)


def tissue_probabilities(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Probabilities (3, I, J, K) of fluid, grey and white matter: the sum is 1 inside the brain and 0 outside.

    `values` are the intensities (I, J, K) of a T1 image, `inside` is its brain mask (I, J, K), which is not empty.
    """
    box = tuple(slice(max(int(c.min()) - 1, 0), int(c.max()) + 2) for c in np.nonzero(inside))
    mask, brain = inside[box], values[box][inside[box]]
    # A few bright voxels (vessels, fat) would otherwise become a class, and grey matter would merge with fluid.
    low, high = (float(q) for q in np.percentile(brain, (0.5, 99.5)))
    bins = np.clip((brain - low) * (BINS / max(high - low, 1e-9)), 0, BINS - 1).astype(np.uint8)
    counts = np.bincount(bins, minlength=BINS)
    posterior = (np.arange(BINS) * 3 // BINS == np.arange(3)[:, None]) * 1.0
    for _ in range(FIT_STEPS):
        mass = posterior * counts
        density = _densities(mass)
        posterior = density * mass.sum(axis=1, keepdims=True)
        posterior /= posterior.sum(axis=0)
    p = posterior.astype(np.float32)[:, bins]
    out = np.zeros((3, *values.shape), dtype=np.float32)
    field = out[:, *box]
    for _ in range(FIELD_STEPS):
        field[:, mask] = p
        neighbours = np.stack([uniform_filter(f, 3, mode="constant")[mask] for f in field])
        p = density.astype(np.float32)[:, bins] * np.exp(WEIGHT * neighbours)
        p /= p.sum(axis=0)
        density = _densities(np.stack([np.bincount(bins, weights=tissue, minlength=BINS) for tissue in p]))
    field[:, mask] = p
    return out
