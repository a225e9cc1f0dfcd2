"""Random draws that belong to an item, not to a batch.

Every item that a run ever sees has a *position*: 0 for the first item of the first batch, and so on through all
epochs. The draws for an item are a hash of (seed, position, counter), computed for all items at once. So noise and
timesteps of an item are the same on one process or on sixteen, with any accumulation and after any resume, and there
is no generator state to save.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from morphogen.core.errors import ConfigError
from morphogen.core.running.transfers import sent
from morphogen.core.seeds import seed_for

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_CHUNK = 1 << 15  # words hashed at a time on the CPU, so that the passes over them stay in cache


class Draws:
    """Streams of random numbers, one per item of a batch.

    Successive calls continue the streams, so the numbers depend on the order of the calls in the loss and on nothing
    else. All methods take the shape of ONE item and return a leading batch dimension, on :attr:`device`.

    Parameters
    ----------
    seed:
        Seed of the run.
    positions:
        (B,) int64, position of each item in the order of the run.
    device:
        Where the numbers are wanted; the integers behind them are the same on every device.
    """

    def __init__(self, seed: int, positions: torch.Tensor, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.positions = positions
        keys = sent(positions, self.device, torch.int64) * _signed(_GOLDEN)
        self._keys = _mix(_mix(keys) ^ _signed(seed_for(seed, "draws") * 2 + 1))
        self._used = 0

    def __len__(self) -> int:
        return len(self._keys)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal (B, *shape), float32 (Box and Muller 1958; the largest value possible is 6.8)."""
        count = math.prod(shape)
        half = (count + 1) // 2
        out = torch.empty(len(self), 2 * half, device=self.device)
        for a, b, words in self._words(half):
            radius = _unit(words >> 32).log_().mul_(-2).sqrt_()
            angle = _unit(words).mul_(2 * math.pi)
            torch.mul(angle.cos(), radius, out=out[:, a:b])
            torch.mul(angle.sin_(), radius, out=out[:, half + a : half + b])
        return out[:, :count].reshape(len(self), *shape)

    def normal_like(self, x: torch.Tensor) -> torch.Tensor:
        """Standard normal shaped like ``x``, whose first dimension must be the batch."""
        if x.shape[0] != len(self):
            raise ConfigError(
                f"draws for {len(self)} items were asked for {x.shape[0]}", where="Draws.normal_like"
            )
        return self.normal(*x.shape[1:]).to(x.dtype)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform on [0, 1), (B, *shape), float32."""
        return (
            (self._flat(shape) >> 40).bitwise_and_((1 << 24) - 1).float().mul_(2.0**-24).reshape(-1, *shape)
        )

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Integers 0 … high − 1, (B, *shape), int64; ``high`` ≤ 2³¹."""
        if not 0 < high <= 1 << 31:
            raise ConfigError(f"cannot draw integers below {high}", where="Draws.integers")
        return ((self._flat(shape) >> 32).bitwise_and_(0xFFFFFFFF).mul_(high) >> 32).reshape(-1, *shape)

    def bernoulli(self, p: float | torch.Tensor, *shape: int) -> torch.Tensor:
        """True with probability ``p`` (a number, or a tensor that broadcasts to (B, *shape)); bool."""
        return self.uniform(*shape) < p

    def _flat(self, shape: tuple[int, ...]) -> torch.Tensor:
        count = math.prod(shape)
        out = torch.empty(len(self), count, dtype=torch.int64, device=self.device)
        for a, b, words in self._words(count):
            out[:, a:b] = words
        return out

    def _words(self, count: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield (a, b, (B, b − a) int64 hash words) over ``count`` words per item."""
        start, self._used = self._used, self._used + count
        width = count if self.device.type != "cpu" else max(256, _CHUNK // max(1, len(self)))
        for a in range(0, count, max(1, width)):
            b = min(count, a + width)
            # The counter is hashed once for all items; xor with a hashed key and a second hash keep streams apart.
            counter = torch.arange(start + a, start + b, device=self.device) * _signed(_GOLDEN)
            yield a, b, _mix(_mix(counter)[None] ^ self._keys[:, None])


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(z: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), in place on int64 with wrapping products."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        # int64 shifts drag the sign along; the mask makes them logical.
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            z.mul_(_signed(factor))
    return z


def _unit(words: torch.Tensor) -> torch.Tensor:
    """The low 32 bits as float32 in (0, 1]; never 0, so that its logarithm is finite."""
    return (words & 0xFFFFFFFF).float().add_(0.5).mul_(2.0**-32)
