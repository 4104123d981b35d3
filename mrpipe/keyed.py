"""Random numbers keyed by (seed, id, purpose): independent of order and number of cores.

Global generators are not used. A draw is the SplitMix64 finaliser (Steele et al., 2014) of a BLAKE2b hash of id and
purpose; it does not depend on `PYTHONHASHSEED`, numpy's version or other ids.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def id_keys(ids: Iterable[str]) -> NDArray[np.uint64]:
    """64-bit keys of ids, shape (n,)."""
    hashes = (hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.array([int.from_bytes(h, "little") for h in hashes], dtype=np.uint64)


def stream_key(seed: int, purpose: str) -> np.uint64:
    """64-bit key of a stream of draws; streams of different purposes are independent under the same seed."""
    digest = hashlib.blake2b(f"{seed}\x1f{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def bits(keys: NDArray[np.uint64], seed: int, purpose: str, n_draws: int = 1) -> NDArray[np.uint64]:
    """Uniform 64-bit integers, shape (n, n_draws), for `keys` of shape (n,)."""
    base = _mix(keys ^ stream_key(seed, purpose))
    with np.errstate(over="ignore"):
        counter = np.arange(n_draws, dtype=np.uint64) * _GOLDEN
        return _mix(base[:, None] + counter[None, :])


def uniform(keys: NDArray[np.uint64], seed: int, purpose: str, n_draws: int = 1) -> NDArray[np.float64]:
    """Uniform floats in [0, 1), shape (n, n_draws)."""
    u: NDArray[np.float64] = (bits(keys, seed, purpose, n_draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return u


def normal(keys: NDArray[np.uint64], seed: int, purpose: str, n_draws: int = 1) -> NDArray[np.float64]:
    """Standard normal floats by Box-Muller, shape (n, n_draws)."""
    u = uniform(keys, seed, purpose, 2 * n_draws)
    radius = np.sqrt(-2.0 * np.log1p(-u[:, :n_draws]))
    z: NDArray[np.float64] = radius * np.cos(2.0 * np.pi * u[:, n_draws:])
    return z


def generator(seed: int, purpose: str, *ids: str) -> np.random.Generator:
    """A numpy generator keyed by (seed, purpose, ids...); for simulators and fits, too slow for per-sample loops."""
    digest = hashlib.blake2b("\x1f".join((str(seed), purpose, *ids)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
