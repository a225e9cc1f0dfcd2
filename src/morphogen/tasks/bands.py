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
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from morphogen.core.progress import progress
from morphogen.core.running.transfers import one_behind
from morphogen.tasks.config import PLAIN_BATCH, WindowConfig
from morphogen.tasks.streams.batches import batch_for
from morphogen.tasks.streams.blending import Blending
from morphogen.tasks.streams.dealing import Dealt
from morphogen.tasks.streams.noise import ImageNoise
from morphogen.tasks.streams.pixels import Reader, array_reader
from morphogen.tasks.windows import WindowModel, WindowPlan, plan_windows, scale_between

_MANY = 64  # windows of one image from which their progress is shown


class Translator(WindowModel, Protocol):
    """What makes something of every window of an image.

    planes: number C of the planes it makes, e.g. 3 for one colour image.

    A method ``expect(batches)``, where it has one, is told how many calls of ``make`` an image needs. ``replicas``,
    where it has some, are the same translator on further devices: batches are dealt out to all in turn. ``lanes``,
    where it is above one, says how many batches it may be asked for at once.
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
        h, w), ``None`` where the noise was said to be without it. The planes may be on any device.
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
        import cv2

        planes = torch.from_numpy(self.planes[first : first + 3])
        colours = cv2.merge([plane.round().clamp_(0, 255).to(torch.uint8).numpy() for plane in planes])
        if not self.covered.all():
            colours[~self.covered] = 255
        if self.weights is None:
            return colours
        colours[self.weights == 0] = 255
        fading = (self.weights > 0) & (self.weights < 1)
        if fading.any():
            mixed = 255 + (colours[fading].astype(np.float32) - 255) * self.weights[fading][:, None]
            colours[fading] = np.rint(mixed).astype(np.uint8)
        return colours

    def channels(self, first: int, count: int) -> np.ndarray:
        """(h, width, count) float32: planes as they are; 0 where no window was and on glass."""
        return np.stack([self.values(plane) for plane in range(first, first + count)], axis=-1)

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
    A thread reads the pixels of the next batches meanwhile, and on a GPU a band is waited for only once the next is on
    its way. Memory: a few batches of windows and a few bands. A band
    depends on its own windows only, and those always go through the network in the same batches: bands are the same
    whatever ``first``.
    """
    blending = Blending(plan, model.planes)
    bands = plan.bands()
    rows = range(plan.rows_for(first)[0] if first < len(bands) else len(bands), len(bands))
    wants = {
        row: [c for c, x in enumerate(plan.columns) if wanted(x, plan.rows[row], plan.side)] for row in rows
    }
    batches = [(row, wants[row][at : at + batch]) for row in rows for at in range(0, len(wants[row]), batch)]

    dealt = Dealt([model, *getattr(model, "replicas", ())], plan, name, read)
    if expect := getattr(model, "expect", None):
        expect(len(batches))

    def made(planes: Iterator[Tensor]) -> Iterator[Callable[[], Band]]:
        for row in rows:
            for at in range(0, len(wants[row]), batch):
                columns = wants[row][at : at + batch]
                blending.add(row, columns, next(planes))
                advance(len(columns))
            values, covered = blending.take(row)
            if row >= first:
                yield partial(_band, bands[row][0], values, covered)

    with closing(dealt.planes(batches)) as planes:
        yield from one_behind(made(planes), getattr(model, "device", None))


def _band(top: int, values: Callable[[], np.ndarray], covered: np.ndarray) -> Band:
    return Band(top, values(), covered)


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
        batch = batch_for(windows, model, plan)
        for image, name in zip(images, names, strict=True):
            # A large image takes long: it has a bar of its own.
            shown = progress.bar(len(plan), f"{name}: windows") if len(plan) > _MANY else nullcontext(None)
            with shown as bar:
                advance = bar.advance if bar is not None else lambda n: None
                made = make_bands(model, plan, array_reader(image), name=name, batch=batch, advance=advance)
                yield joined(list(made))
        return
    region = [plan.region(0, 0)]
    noises = [noise for noise in (model.noise(plan, name) for name in names) if noise is not None]
    if noises:
        parts = [noise.over(region) for noise in noises]
        starts = [start for start in (noise.start(region) for noise in noises) if start is not None]
        planes = model.make(
            np.stack(images),
            lambda step: torch.cat([part(step) for part in parts]),
            torch.cat(starts) if starts else None,
        )
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
    most = PLAIN_BATCH if windows.batch == "auto" else windows.batch
    for name, size in sizes.items():
        single = len(plan_windows(model, windows, *size, scale_between(mpp, model.mpp))) == 1
        if group and (not single or sizes[group[0]] != size or len(group) == most):
            yield group
            group = []
        if single:
            group.append(name)
        else:
            yield [name]
    if group:
        yield group
