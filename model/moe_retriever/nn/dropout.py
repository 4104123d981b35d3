"""Random numbers of training, from generators keyed by seed and epoch.

torch's global generator is not used, so a resumed run draws the same numbers without saving a generator state. On the
CPU, bits come from numpy's SFC64, because torch's `bernoulli_` is serial and about ten times slower.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mrpipe import keyed


class Noise:
    """The source of all random numbers of one run; `reset` starts a new named stream."""

    def __init__(self, seed: int):
        self.seed = seed
        self._device_generators: dict[torch.device, torch.Generator] = {}
        self.reset("start")

    def reset(self, *ids: object) -> None:
        """Start the stream (seed, ids...), independently of previous draws."""
        self._key = int(keyed.stream_key(self.seed, "\x1f".join(("noise", *map(str, ids)))))
        self._host = np.random.Generator(np.random.SFC64(self._key))
        self._device_generators.clear()

    def _on(self, device: torch.device) -> torch.Generator:
        if device not in self._device_generators:
            self._device_generators[device] = torch.Generator(device).manual_seed(self._key >> 1)
        return self._device_generators[device]

    def bits(self, shape: Sequence[int], p: float, device: torch.device) -> tuple[Tensor, float]:
        """Keep-mask (uint8), 1 with probability 1 − p, and the scale 1/(1 − p); on the CPU, p is exact to 1/65536."""
        if device.type != "cpu":
            mask = torch.empty(tuple(shape), device=device, dtype=torch.uint8)
            return mask.bernoulli_(1.0 - p, generator=self._on(device)), 1.0 / (1.0 - p)
        size = int(np.prod(shape))
        width = next(w for w in (1, 8, 16) if w == 16 or float(p * 2**w).is_integer())
        raw = self._host.bit_generator.random_raw((size * width + 63) // 64)
        if width == 1:
            keep = np.unpackbits(raw.view(np.uint8))[:size]
        else:
            lanes = raw.view(np.uint8 if width == 8 else np.uint16)[:size]
            keep = (lanes >= round(p * 2**width)).view(np.uint8)
        return torch.from_numpy(keep).view(tuple(shape)), 1.0 / (1.0 - round(p * 2**width) / 2**width)

    def keep(self, shape: Sequence[int], p: float, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Dropout mask: 0 with probability p, otherwise 1/(1 − p)."""
        bits, factor = self.bits(shape, p, device)
        return bits.to(dtype).mul_(factor)

    def normal(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal float32."""
        if device.type != "cpu":
            return torch.randn(tuple(shape), device=device, generator=self._on(device))
        return torch.from_numpy(self._host.standard_normal(tuple(shape), dtype=np.float32))


class Dropout(nn.Module):
    """Inverted dropout with random numbers from a `Noise`."""

    def __init__(self, p: float, noise: Noise):
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout rate must be in [0, 1), got {p}")
        self.p = p
        self._noise = noise

    def bits(self, shape: Sequence[int], device: torch.device) -> tuple[Tensor | None, float]:
        """Keep-mask (uint8) and the scale 1/(1 − p); None and 1 if all values are kept."""
        return self._noise.bits(shape, self.p, device) if self.training and self.p > 0 else (None, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        # The scale has no exact bfloat16 value.
        return x * self._noise.keep(x.shape, self.p, x.device, torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        return f"p={self.p}"
