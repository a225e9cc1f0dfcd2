"""The ``texture`` encoder: a description of stained tissue that needs no weights.

Colour deconvolution, multi-scale texture, edges, local entropy and blob (nucleus) statistics; see
:data:`TextureEncoder.names` for every number and ``docs/texture.md`` for what each family means. The
numbers do not change when a tile is rotated by a quarter turn or mirrored, and do not depend on the batch
that a tile is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.running.threads import over_threads
from morphogen.slides.encoders.sources import Loaded
from morphogen.slides.encoders.spec import EncoderSpec
from morphogen.slides.encoders.texture.nuclei import nuclei
from morphogen.slides.encoders.texture.planes import Planes, planes
from morphogen.slides.encoders.texture.statistics import (
    Family,
    amounts,
    bands,
    cooccurrence,
    edges,
    local_entropy,
    patterns,
    shares,
)
from morphogen.slides.encoders.texture.tokens import tokens as grid_tokens

FAMILIES: tuple[Callable[[Planes], Family], ...] = (
    amounts,
    shares,
    bands,
    patterns,
    cooccurrence,
    edges,
    local_entropy,
    nuclei,
)

#: The grid of ``tokens=True``: with the token of the whole tile 197 tokens, like a ViT with 16 px patches at 224 px.
GRID = (14, 14)
SMALLEST = 32
# Tiles at a time. Few on a CPU, so that the planes stay in its cache; memory is then independent of the batch.
_CHUNK = {"cpu": 8}
_CHUNK_ELSEWHERE = 64


class TextureEncoder:
    """Weight-free features of H&E or IHC tiles.

    ``TextureEncoder()(images)`` gives ``(N, D)`` float32 for uint8 ``(N, H, W, 3)``, array or tensor, on
    the tensor's device. ``TextureEncoder(tokens=(h, w))(images)`` gives ``(N, 1 + h·w, D)``: a token of the
    whole tile, then ``h × w`` cells row by row, each with its own (shorter) list of :attr:`names`.

    Filters and densities mean what their names say at 0.5 µm per pixel; tiles of any side from 32 px are
    taken as they are, at that scale, and are not resized.
    """

    def __init__(self, tokens: tuple[int, int] | None = None) -> None:
        if tokens is not None and (len(tokens) != 2 or min(tokens) < 1):
            raise ConfigError(
                f"the grid of tokens is (rows, columns), at least (1, 1), not {tokens}", where="tokens"
            )
        self.grid = (int(tokens[0]), int(tokens[1])) if tokens is not None else None

    @property
    def names(self) -> list[str]:
        """What every number is, ``family/…``, in the order of the last axis."""
        return list(_names(self.grid is not None))

    @property
    def spec(self) -> EncoderSpec:
        """Input, scale and width, as for every encoder."""
        return replace(SPEC, width=len(self.names))

    @torch.inference_mode()
    def __call__(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 ``(N, H, W, 3)`` → float32 ``(N, D)`` or ``(N, T, D)`` on the images' device."""
        x = torch.as_tensor(images)
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[-1] != 3:
            raise InputError(
                f"images must be uint8 (N, H, W, 3), not {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}",
                where="encoder 'texture'",
            )
        if min(x.shape[1:3]) < SMALLEST:
            raise InputError(
                f"tiles must be at least {SMALLEST} px wide and high, not {x.shape[2]} × {x.shape[1]}",
                where="encoder 'texture'",
            )
        if not len(x):
            shape = (
                (0, len(self.names))
                if self.grid is None
                else (0, 1 + self.grid[0] * self.grid[1], len(self.names))
            )
            return torch.zeros(shape, device=x.device)
        chunks = list(_chunks(x))
        if x.device.type == "cpu":
            return torch.cat(over_threads(self._encode, chunks))
        return torch.cat([self._encode(chunk) for chunk in chunks])

    def differentiable(self, images: Tensor) -> Tensor:
        """float32 ``(N, 3, H, W)`` in 0…255 → ``(N, D)`` with a gradient.

        The numbers are those of the images rounded to bytes, up to rounding; where they count or compare pixels the
        gradient is that of a soft stand-in (:mod:`morphogen.slides.encoders.texture.gradients`).
        """
        if self.grid is not None or min(images.shape[-2:]) < SMALLEST:
            raise InputError(
                f"gradients are of one vector per tile, of {SMALLEST} px or more", where="encoder 'texture'"
            )
        with torch.autocast(images.device.type, enabled=False):
            return self._encoded(images.float().permute(0, 2, 3, 1))

    @torch.inference_mode()
    def _encode(self, tiles: Tensor) -> Tensor:
        with torch.autocast(tiles.device.type, enabled=False):
            return self._encoded(tiles)

    def _encoded(self, tiles: Tensor) -> Tensor:
        # A lone tile goes in twice: sums over a single row are split otherwise, and would round otherwise.
        alone = len(tiles) == 1
        p = planes(torch.cat([tiles, tiles]) if alone else tiles)
        if self.grid is not None:
            values = grid_tokens(p, self.grid)[1]
        else:
            values = torch.cat([family(p)[1] for family in FAMILIES], dim=1)
        return values[:1] if alone else values


def _chunks(x: Tensor) -> Iterator[Tensor]:
    return iter(x.split(_CHUNK.get(x.device.type, _CHUNK_ELSEWHERE)))


@cache
def _names(tokens: bool) -> tuple[str, ...]:
    p = planes(torch.full((2, SMALLEST, SMALLEST, 3), 255, dtype=torch.uint8))
    if tokens:
        return tuple(grid_tokens(p, (1, 1))[0])
    return tuple(name for family in FAMILIES for name in family(p)[0])


WIDTH = 280
TOKEN_WIDTH = 57

#: What it is, readable without running it.
SPEC = EncoderSpec(
    name="texture",
    kind="texture",
    input_px=224,
    mpp=0.5,
    mean=None,
    std=None,
    width=WIDTH,
    tokens=True,
    licence="Apache-2.0",
    version="1",
    commercial=True,
    description="Weight-free colour, texture and nucleus statistics; rotation and reflection invariant",
)


def load(tokens: bool | tuple[int, int] = False) -> Loaded:
    """The encoder as :func:`morphogen.slides.encoders.registry.get_encoder` takes it: uint8 ``(N, 3, H, W)`` in."""
    grid = tokens if isinstance(tokens, tuple) else GRID if tokens else None
    encoder = TextureEncoder(grid)
    return Loaded(
        spec=encoder.spec,
        forward=lambda images: encoder(images.permute(0, 2, 3, 1)),
        prepare=lambda images: images,
        module=None,
        gradient=encoder.differentiable if encoder.grid is None else None,
    )
