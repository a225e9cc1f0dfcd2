"""Translation of images larger than a window: cut, made in batches, joined; in bands of rows, so that any size fits
in memory.

Windows overlap, and the noise of a window is cut from a noise field over the whole image, so that two windows see the
same noise where they overlap and agree on what they make of it. Results are blended by feathered weights at the
resolution of the source.

A room writes one small class that is a :class:`Translator`: what its model says of itself, the noise of an image, and
``make``, which turns a batch of windows into planes. :func:`make_bands` does the rest for whole slides,
:func:`make_images` for images in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from morphogen.core.progress import progress
from morphogen.core.seeds import seed_for
from morphogen.diffusion import CanvasNoise, feather
from morphogen.tasks.config import WindowConfig
from morphogen.tasks.windows import WindowModel, WindowPlan, plan_windows, scale_between

NOISE_BLOCK = (
    16  # latent cells; windows start at multiples of it where the stride is one, so no noise is drawn in vain
)

_MANY = 64  # windows of one image from which their progress is shown

Reader = Callable[[int, int, int, int], np.ndarray]
"""``read(x, y, size, model_size)``: the square of ``size`` source pixels at (x, y), which may overhang the
source, as (model_size, model_size, 3) uint8."""


class Translator(WindowModel, Protocol):
    """What makes something of every window of an image.

    planes: number C of the planes it makes, e.g. 3 for one colour image.
    """

    @property
    def planes(self) -> int: ...

    def noise(self, plan: WindowPlan, name: str) -> ImageNoise | None:
        """The noise over the image of that name; ``None`` for what draws none."""
        ...

    def make(
        self, images: np.ndarray, noise: Callable[[int], Tensor] | None, posterior_noise: Tensor | None
    ) -> Tensor:
        """(B, window, window, 3) uint8 → (B, C, window, window) planes; colours lie in 0…255.

        ``noise(step)`` is (B·K, channels, h, w), the K samples of a window in a row; ``posterior_noise`` (B, channels,
        h, w).
        """
        ...


@dataclass(frozen=True)
class Band:
    """Finished rows ``top`` … ``top + h`` of the source.

    planes: (C, h, width) float32. covered: (h, width) bool, where any window was. weights: (h, width) float32, share of
    the picture against the glass around it; ``None`` where nothing fades.
    """

    top: int
    planes: np.ndarray
    covered: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return self.planes.shape[1]

    def picture(self, first: int = 0) -> np.ndarray:
        """(h, width, 3) uint8: planes ``first`` … ``first + 2`` as colours; white where no window was and on glass."""
        values = np.clip(np.rint(self.planes[first : first + 3]), 0, 255)
        colours = np.where(self.covered[None], values, 255).astype(np.uint8).transpose(1, 2, 0)
        if self.weights is None:
            return np.ascontiguousarray(colours)
        mixed = 255 + (colours.astype(np.float32) - 255) * self.weights[..., None]
        return np.rint(mixed).astype(np.uint8)

    def values(self, plane: int) -> np.ndarray:
        """(h, width) float32: one plane; 0 where no window was and on glass."""
        values = np.where(self.covered, self.planes[plane], 0).astype(np.float32)
        return values if self.weights is None else values * self.weights


def joined(bands: Sequence[Band]) -> Band:
    """All bands of an image as one."""
    weights = [band.weights for band in bands if band.weights is not None]
    return Band(
        bands[0].top,
        np.concatenate([band.planes for band in bands], axis=1),
        np.concatenate([band.covered for band in bands]),
        np.concatenate(weights) if weights else None,
    )


# -- noise
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NegatedNoise:
    """A noise field with its sign turned."""

    field: CanvasNoise

    def __call__(self, step: int, region: tuple[slice, slice] | None = None) -> Tensor:
        return -self.field(step, region)


Field = CanvasNoise | NegatedNoise


class ImageNoise:
    """The K noise fields over an image and the noise of the autoencoder's posterior.

    All are a function of seed, purpose and name; antithetic ones come in pairs of a field and its negative (Hammersley
    and Morton, Proc. Camb. Phil. Soc. 52, 1956).

    Parameters
    ----------
    channels:
        Of a latent.
    purpose:
        Keeps the draws of different rooms apart.
    name:
        Of the image.
    samples:
        K.
    """

    def __init__(
        self,
        channels: int,
        plan: WindowPlan,
        *,
        seed: int,
        purpose: str,
        name: str,
        samples: int = 1,
        antithetic: bool = False,
    ) -> None:
        shape = (channels, *plan.canvas)
        self.fields: list[Field] = []
        for k in range(samples):
            if antithetic and k % 2:
                self.fields.append(NegatedNoise(cast("CanvasNoise", self.fields[-1])))
            else:
                self.fields.append(CanvasNoise(seed_for(seed, purpose, name, k), shape, block=NOISE_BLOCK))
        self.posterior = CanvasNoise(seed_for(seed, f"{purpose} posterior", name), shape, block=NOISE_BLOCK)

    def over(self, regions: Sequence[tuple[slice, slice]]) -> RegionNoise:
        """``noise(step)`` for a batch of windows at these latent cells."""
        return RegionNoise(self.fields, regions)

    def start(self, regions: Sequence[tuple[slice, slice]]) -> Tensor:
        """(B, channels, h, w) posterior noise for a batch of windows."""
        return torch.stack([self.posterior(-1, region) for region in regions])


class RegionNoise:
    """``noise(step)`` for a batch of windows × K samples: each window's part of the image's K noise
    fields.
    """

    def __init__(self, fields: Sequence[Field], regions: Sequence[tuple[slice, slice]]) -> None:
        self.fields, self.regions = fields, regions

    def __call__(self, step: int) -> Tensor:
        return torch.stack([field(step, region) for region in self.regions for field in self.fields])


# -- bands of one image
# --------------------------------------------------------------------------------------------


def make_bands(
    model: Translator,
    plan: WindowPlan,
    read: Reader,
    *,
    name: str,
    batch: int = 8,
    wanted: Callable[[int, int, int], bool] = lambda x, y, side: True,
    first: int = 0,
    advance: Callable[[int], Any] = lambda n: None,
) -> Iterator[Band]:
    """Translate an image and give its bands from number ``first`` on, top to bottom.

    ``wanted(x, y, side)`` says whether a window is made at all; ``advance(n)`` is told of every n windows done.
    Memory: one batch of windows and a few bands. A band depends on its own windows only, and those always go through
    the network in the same batches: bands are the same whatever ``first``.
    """
    noise = model.noise(plan, name)
    blend = _Blend(plan, model.planes)
    bands = plan.bands()
    rows = plan.rows_for(first) if first < len(bands) else []
    for row in range(rows[0] if rows else len(bands), len(bands)):
        columns = [c for c, x in enumerate(plan.columns) if wanted(x, plan.rows[row], plan.side)]
        for at in range(0, len(columns), batch):
            part = columns[at : at + batch]
            images = np.stack([read(plan.columns[c], plan.rows[row], plan.side, plan.window) for c in part])
            regions = [plan.region(row, c) for c in part]
            if noise is None:
                planes = model.make(images, None, None)
            else:
                planes = model.make(images, noise.over(regions), noise.start(regions))
            for index, column in enumerate(part):
                blend.add(row, column, _at_source(planes[index], plan.side))
            advance(len(part))
        values, covered = blend.take(row)
        if row >= first:
            yield Band(bands[row][0], values, covered)


def _at_source(planes: Tensor, side: int) -> np.ndarray:
    """(C, side, side) float32 of one window, at the scale of the source."""
    values = planes.float()
    if values.shape[-1] != side:
        down = values.shape[-1] > side
        values = torch.nn.functional.interpolate(
            values[None], size=(side, side), mode="bicubic", antialias=down, align_corners=False
        )[0]
    return values.cpu().numpy()


class _Blend:
    """Weighted sums of the windows of the rows that are not finished yet."""

    def __init__(self, plan: WindowPlan, channels: int) -> None:
        self.plan = plan
        profile = feather(plan.side).numpy().astype(np.float32)
        self.weight = profile[:, None] * profile[None]
        self.sums = np.zeros((channels, plan.side, plan.width), np.float32)
        self.weights = np.zeros((plan.side, plan.width), np.float32)

    def add(self, row: int, column: int, values: np.ndarray) -> None:
        """A window; its row must be the one that is being filled."""
        left = self.plan.columns[column]
        right = min(left + self.plan.side, self.plan.width)
        height = min(self.plan.side, self.plan.height - self.plan.rows[row])
        weight = self.weight[:height, : right - left]
        self.sums[:, :height, left:right] += weight * values[:, :height, : right - left]
        self.weights[:height, left:right] += weight

    def take(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Values (C, h, width) and where there are any (h, width), of the rows that no later window
        reaches.
        """
        top, bottom = self.plan.bands()[row]
        height = bottom - top
        weights = self.weights[:height]
        covered = weights > 0
        values = self.sums[:, :height] / np.where(covered, weights, 1)[None]
        for array in (self.sums, self.weights):
            rest = array[..., height:, :].copy()
            array[...] = 0
            array[..., : rest.shape[-2], :] = rest
        return values, covered


# -- images in memory
# ----------------------------------------------------------------------------------------------


def make_images(
    model: Translator,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    windows: WindowConfig,
    *,
    mpp: float | None = None,
) -> Iterator[Band]:
    """Translate images of one size (H, W, 3) uint8, one :class:`Band` of all its rows for each.

    Images that are one window each go through the network together. ``mpp`` is the µm/px of the images, where it is
    known. A name decides the noise: the same image of the same name gives the same result, alone or among others.
    """
    height, width = images[0].shape[:2]
    plan = plan_windows(model, windows, width, height, scale_between(mpp, model.mpp))
    if not plan.whole:
        for image, name in zip(images, names, strict=True):
            # A large image takes long: it has a bar of its own.
            shown = progress.bar(len(plan), f"{name}: windows") if len(plan) > _MANY else nullcontext(None)
            with shown as bar:
                advance = bar.advance if bar is not None else lambda n: None
                made = make_bands(
                    model, plan, array_reader(image), name=name, batch=windows.batch, advance=advance
                )
                yield joined(list(made))
        return
    region = [plan.region(0, 0)]
    noises = [noise for noise in (model.noise(plan, name) for name in names) if noise is not None]
    if noises:
        parts = [noise.over(region) for noise in noises]
        start = torch.cat([noise.start(region) for noise in noises])
        planes = model.make(np.stack(images), lambda step: torch.cat([part(step) for part in parts]), start)
    else:
        planes = model.make(np.stack(images), None, None)
    covered = np.ones((height, width), bool)
    for values in planes.float().cpu().numpy():
        yield Band(0, values, covered)


def together(
    model: WindowModel, sizes: dict[str, tuple[int, int]], windows: WindowConfig, *, mpp: float | None = None
) -> Iterator[list[str]]:
    """Names of images that go through :func:`make_images` together: runs of equal (width, height) of one window each,
    up to a batch.

    The groups depend on the list alone, so that a run that goes on makes the same batches.
    """
    group: list[str] = []
    for name, size in sizes.items():
        single = len(plan_windows(model, windows, *size, scale_between(mpp, model.mpp))) == 1
        if group and (not single or sizes[group[0]] != size or len(group) == windows.batch):
            yield group
            group = []
        if single:
            group.append(name)
        else:
            yield [name]
    if group:
        yield group


def array_reader(image: np.ndarray) -> Reader:
    """A reader of an image in memory (H, W, 3), mirrored where a window overhangs it."""
    height, width = image.shape[:2]

    def read(x: int, y: int, side: int, model_side: int) -> np.ndarray:
        rows = _mirrored(np.arange(y, y + side), height)
        columns = _mirrored(np.arange(x, x + side), width)
        part = np.ascontiguousarray(image[rows[:, None], columns[None]])
        if side != model_side:
            from morphogen.slides.resample import resample

            part = resample(part, (0, 0, side, side), model_side, model_side)
        return part

    return read


def _mirrored(positions: np.ndarray, size: int) -> np.ndarray:
    around = positions % (2 * size)
    return np.where(around < size, around, 2 * size - 1 - around)
