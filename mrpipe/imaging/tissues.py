"""Tissue segmentation of a brain: k-means, and one step of a Markov random field with Gaussian classes.

The field is that of Zhang, Brady & Smith (IEEE Trans. Med. Imaging 20:45-57, 2001). `benchmarks/imaging.md` compares
the method with Atropos, also on atrophy.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

# `WEIGHT`: log odds that a neighbourhood of one tissue adds to this tissue. The classes are those of converged k-means,
# not of a fitted mixture: as grey matter shrinks, its class in a mixture widens over the borders and hides the loss.
BINS, MEANS_STEPS, WEIGHT = 256, 100, np.float32(3.5)


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
    classes = np.arange(3)[:, None]
    labels = (np.arange(BINS) * 3 // BINS == classes) * 1.0
    for _ in range(MEANS_STEPS):
        mass = labels * counts
        means = mass @ np.arange(BINS) / np.maximum(mass.sum(axis=1), 1e-9)
        labels = (np.abs(np.arange(BINS) - means[:, None]).argmin(axis=0) == classes) * 1.0
    mass = labels * counts
    joint = (_densities(mass) * mass.sum(axis=1, keepdims=True) / len(brain)).astype(np.float32)
    out = np.zeros((3, *values.shape), dtype=np.float32)
    field = out[:, *box]
    field[:, mask] = labels[:, bins]
    neighbours = np.stack([uniform_filter(f, 3, mode="constant")[mask] for f in field])
    p = joint[:, bins] * np.exp(WEIGHT * neighbours)
    field[:, mask] = p / p.sum(axis=0)
    return out
