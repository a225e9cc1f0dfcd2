"""Batches of windows made by one translator, on a CPU several beside one another, or dealt out to the same translator
on several devices."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from morphogen.core.running.pipeline import ahead
from morphogen.core.running.threads import in_lanes, lanes
from morphogen.core.running.transfers import sent
from morphogen.tasks.streams.pixels import Reader, read_windows
from morphogen.tasks.windows import WindowPlan

Place = tuple[int, list[int]]
"""Row of a batch of windows, and its columns."""


class Dealt:
    """The planes of batches of windows of one image, in their order, on the device of the first of ``translators``.

    Every device, and every lane of a CPU (``translator.lanes``), has a thread and the noise of the image. Which of
    them makes a batch does not matter to its planes where the devices compute alike.
    """

    def __init__(self, translators: Sequence[Any], plan: WindowPlan, name: str, read: Reader) -> None:
        self.devices = len(translators)
        if self.devices == 1:
            # lanes() counts no more than one within a lane, as where a folder of images is shared out.
            translators = [translators[0]] * min(getattr(translators[0], "lanes", 1), lanes())
        self.translators, self.plan, self.read = translators, plan, read
        self.noises = [each.noise(plan, name) for each in translators]
        self._locks = [Lock() for _ in translators]

    def planes(self, places: Sequence[Place]) -> Generator[Tensor, None, None]:
        """(n, C, window, window) of each batch. Pixels are read ahead."""
        count = min(len(self.translators), len(places)) if self.devices == 1 else self.devices
        with closing(ahead(self._images, places, depth=2 + count)) as images:
            if count < 2:
                for place, pixels in zip(places, images, strict=True):
                    yield self._make(0, place, pixels)
                return
            batches = zip(range(len(places)), places, images, strict=True)
            if self.devices == 1:
                with closing(in_lanes(self._on_its_device, batches, count)) as made:
                    yield from made
                return
            first = self.translators[0].device
            with closing(ahead(self._on_its_device, batches, threads=count, depth=2 * count)) as made:
                for planes in made:
                    yield sent(planes, first)

    def _on_its_device(self, batch: tuple[int, Place, np.ndarray]) -> Tensor:
        number, place, pixels = batch
        which = number % len(self.translators)
        with self._locks[which]:
            return self._make(which, place, pixels)

    def _images(self, place: Place) -> np.ndarray:
        row, columns = place
        plan = self.plan
        corners = [(plan.columns[column], plan.rows[row]) for column in columns]
        return read_windows(self.read, corners, plan.side, plan.window)

    def _make(self, which: int, place: Place, images: np.ndarray) -> Tensor:
        translator, noise = self.translators[which], self.noises[which]
        if noise is None:
            planes: Tensor = translator.make(images, None, None)
            return planes
        row, columns = place
        regions = [self.plan.region(row, column) for column in columns]
        planes = translator.make(images, noise.over(regions), noise.start(regions))
        return planes
