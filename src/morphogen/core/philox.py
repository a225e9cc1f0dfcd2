"""NumPy's normals from Philox on any device, without a look at the host.

:mod:`~morphogen.diffusion.noise` draws with NumPy on the CPU. A GPU that waited for those numbers and their copy would
idle, so the same numbers are made here with torch operations alone: the bits of Philox 4×64-10 (Salmon et al., SC 2011)
in wrapping 64-bit integers, and the ziggurat of 256 layers (Marsaglia and Tsang, J. Stat. Softw. 5(8), 2000) that turns
them into normals. Integers are equal to the bit; values differ by the rounding of the device's exp and log alone.

A ziggurat rejects, so that the place of a number in its stream depends on what came before. All positions are
therefore tried at once; afterwards those are kept that a draw begins at, found by doubling steps from the first.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_LAYERS, _R, _AREA = 256, 3.6541528853610088, 0.00492867323399  # edge of the tail; area of a layer
_BITS = 23  # of a float's mantissa
_TAIL = 6  # tries in the tail: 3 of 10,000 draws come there, and few of them need a second try


def philox(counters: Tensor, key: tuple[int, int]) -> Tensor:
    """(…, 4) int64 counters → (…, 4) int64, the bits of the unsigned 64-bit words."""
    a, b, c, d = counters.unbind(-1)
    low, high = (_signed(part) for part in key)
    for number in range(_ROUNDS):
        if number:
            low, high = _signed(low + _WEYL[0]), _signed(high + _WEYL[1])
        h0, l0 = _product(a, _MULTIPLIERS[0])
        h1, l1 = _product(c, _MULTIPLIERS[1])
        a, b, c, d = h1 ^ b ^ low, l1, h0 ^ d ^ high, l0
    return torch.stack([a, b, c, d], dim=-1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _product(x: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Upper and lower 64 bits of the unsigned product."""
    xl, xh = x & _LOW, (x >> 32) & _LOW
    cl, ch = constant & _LOW, constant >> 32
    low = xl * cl
    middle = xh * cl + ((low >> 32) & _LOW)
    other = xl * ch + (middle & _LOW)
    return xh * ch + ((middle >> 32) & _LOW) + ((other >> 32) & _LOW), x * _signed(constant)


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Layers of the ziggurat: limits of sure acceptance, widths per unit, heights."""
    x = np.empty(_LAYERS + 1)
    x[_LAYERS], x[_LAYERS - 1], x[0] = _AREA / math.exp(-0.5 * _R * _R), _R, 0.0
    for i in range(_LAYERS - 2, 0, -1):
        x[i] = math.sqrt(-2 * math.log(_AREA / x[i + 1] + math.exp(-0.5 * x[i + 1] ** 2)))
    # Layer 0 is the base with the tail; layer i > 0 lies between x[i − 1] and x[i].
    inner = np.concatenate([[x[_LAYERS - 1]], x[: _LAYERS - 1]])
    outer = np.concatenate([[x[_LAYERS]], x[1:_LAYERS]])
    limits = torch.from_numpy((inner / outer * 2.0**_BITS).astype(np.int64))
    widths = torch.from_numpy((outer / 2.0**_BITS).astype(np.float32))
    heights = torch.from_numpy(np.exp(-0.5 * outer**2).astype(np.float32))
    heights[0] = 1.0
    return limits.to(device), widths.to(device), heights.to(device)


def standard_normals(key: tuple[int, int], counters: Tensor, count: int) -> Tensor:
    """(n, 4) int64 counters → (n, count) float32: what ``Generator(Philox(key=key, counter=row))`` of NumPy gives for
    each row by ``standard_normal(count, dtype=float32)``, on the counters' device.

    >>> both = standard_normals((7, 0), torch.tensor([[0, 1, 2, 3]]), 5)
    >>> own = np.random.Generator(np.random.Philox(key=7, counter=[0, 1, 2, 3]))
    >>> bool(np.abs(both[0].numpy() - own.standard_normal(5, dtype=np.float32)).max() < 1e-6)
    True
    """
    words = _words(key, counters, count + count // 32 + 64)
    values, used, given = _tries(words)
    begun = _begun(used)
    chosen = begun & given
    rank = chosen.cumsum(1) - 1
    place = torch.where(chosen & (rank < count), rank, count)
    out = values.new_zeros(len(values), count + 1)  # the last column takes what is not wanted
    return out.scatter_(1, place, values)[:, :count]


def _words(key: tuple[int, int], counters: Tensor, least: int) -> Tensor:
    """(n, at least ``least``) int64 in [0, 2³²): the streams as 32-bit words, the lower half of each 64 bits first."""
    blocks = -(-least // 8)
    # NumPy counts on before it draws: the first block is that of the next counter.
    number = torch.arange(1, blocks + 1, device=counters.device)
    each = counters[:, None].expand(-1, blocks, -1).clone()
    each[..., 0] += number
    wide = philox(each, key)
    return torch.stack([wide & _LOW, (wide >> 32) & _LOW], dim=-1).flatten(1)


def _tries(words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a draw that begins at each word (n, T): its value, how many words it uses, and whether it gives a value."""
    limits, widths, heights = _tables(words.device)
    layer, negative, size = words & 255, (words >> 8) & 1, (words >> 9) & ((1 << _BITS) - 1)
    x = size.float() * widths[layer]
    sure = size < limits[layer]
    unit = (words >> 8).float() * 2.0**-24
    # Between the layer's rectangle and the curve: accepted by height, else the draw begins anew behind both words.
    upper = heights[(layer - 1).clamp_min(0)] - heights[layer]
    below = upper * _later(unit, 1) + heights[layer] < torch.exp(-0.5 * x.double() * x.double())
    # The tail (Marsaglia 1964): pairs of words until one is accepted.
    drop = -torch.log1p(-unit)
    over = drop * (1 / _R)
    accepted = 2 * _later(drop, 1) > over * over
    tail, tries = torch.zeros_like(x), torch.zeros_like(words)
    open_ = torch.ones_like(sure)
    for number in range(_TAIL):
        won = open_ & _later(accepted, 1 + 2 * number)
        tail = torch.where(won, _R + _later(over, 1 + 2 * number), tail)
        tries += open_.long()
        open_ = open_ & ~won
    beyond = (layer == 0) & ~sure
    value = torch.where(beyond, tail, x)
    # In the tail the sign is another bit of the word.
    sign = torch.where(beyond, (size >> 8) & 1, negative)
    used = torch.where(sure, 1, torch.where(beyond, 1 + 2 * tries, 2))
    return torch.where(sign > 0, -value, value), used, sure | beyond | below


def _later(values: Tensor, by: int) -> Tensor:
    """Values ``by`` words further on; zero behind the end."""
    return torch.nn.functional.pad(values[:, by:], (0, by))


def _begun(used: Tensor) -> Tensor:
    """(n, T) bool: where draws begin when the first begins at 0 and each uses so many words."""
    rows, length = used.shape
    there = torch.arange(length, device=used.device) + used
    jump = torch.nn.functional.pad(there.clamp_max(length), (0, 1), value=length)
    begun = torch.zeros(rows, length + 1, dtype=torch.int32, device=used.device)
    begun[:, 0] = 1
    for _ in range(length.bit_length()):
        # What is reached so far, and what is reached from there by a jump of the present length.
        begun = begun.scatter_reduce(1, jump, begun, "amax")
        jump = jump.gather(1, jump)
    return begun[:, :length] > 0
