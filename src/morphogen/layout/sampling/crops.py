"""Training items: crops of annotated and of unannotated sheets with their style images, drawn by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError
from morphogen.core.running.pipeline import ahead
from morphogen.core.running.threads import cpu_cores
from morphogen.layout.config import DataConfig
from morphogen.layout.sampling.augment import blurred, flipped
from morphogen.layout.sampling.styles import StyleSampler
from morphogen.layout.sources.sheets import Sheet
from morphogen.slides.recolouring import colour_map, recoloured


def numpy_of(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator that goes on from a torch one."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))


class Places:
    """Draws (sheet, top, left) of crops, balanced over classes.

    With probability ``balance`` a foreground class is drawn, then a sheet that shows it, then one of its pixels, which
    lies in the crop at a uniform place; otherwise a sheet, then a place anywhere on it. Every step is uniform.

    Sheets that were cut out by class when they were made (synthetic images) are taken as they come: drawn by class once
    more they would show more foreground than the crops of the others.
    """

    def __init__(self, sheets: Sequence[Sheet], crop: int, balance: float, classes: int) -> None:
        self.sheets, self.crop = list(sheets), crop
        self.balance = 0.0 if all(sheet.balanced for sheet in self.sheets) else balance
        self.showing = {
            label: shown
            for label in range(1, classes)
            if (shown := [sheet for sheet in self.sheets if label in sheet.present])
        }

    def draw(self, random: np.random.Generator) -> tuple[Sheet, int, int]:
        """A sheet and the corner of a crop on it."""
        if self.showing and random.random() < self.balance:
            label = list(self.showing)[random.integers(len(self.showing))]
            sheet = self.showing[label][random.integers(len(self.showing[label]))]
            places = sheet.places(label)
            row, column = places[random.integers(len(places))] - random.integers(0, self.crop, 2)
        else:
            sheet = self.sheets[random.integers(len(self.sheets))]
            free = [max(1, size - self.crop + 1) for size in sheet.size]
            row, column = (random.integers(size) for size in free)
        height, width = sheet.size
        return (
            sheet,
            int(np.clip(row, 0, max(0, height - self.crop))),
            int(np.clip(column, 0, max(0, width - self.crop))),
        )


def read_all(sheets: Sequence[Sheet]) -> None:
    """Have the pixels and labels of sheets that are images in memory, by all cores."""
    for _ in ahead(lambda sheet: (sheet.size, sheet.present), sheets, threads=cpu_cores()):
        pass


class LayoutCrops(Dataset):
    """Items ``image`` (H,W,3) uint8, ``labels`` (H,W) int64, ``told`` (whether the labels count), ``style``
    (n,H,W,3) uint8.

    Its length is that of an epoch in name only: every item is a fresh draw from the generator it is given.
    """

    def __init__(
        self,
        annotated: Sequence[Sheet],
        unannotated: Sequence[Sheet],
        config: DataConfig,
        classes: int,
        length: int = 1_000_000,
    ) -> None:
        self.config, self.length = config, length
        self.annotated = Places(annotated, config.crop, config.balance, classes)
        self.unannotated = _Patients(unannotated, config.crop)
        self.styles = StyleSampler([*annotated, *unannotated], config)
        with_labels, without = config.ratios
        self.share = with_labels / (with_labels + (without if unannotated else 0.0)) if with_labels else 0.0
        if not self.share and not unannotated:
            raise InputError("there are no unannotated images to train on", where="data.ratios")

    def __len__(self) -> int:
        return self.length

    def prepare(self, device: torch.device) -> None:
        """Read all images, so that worker processes which start after this share them."""
        read_all([*self.annotated.sheets, *(s for group in self.unannotated.groups.values() for s in group)])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.draw(index, torch.Generator().manual_seed(index))

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A fresh item; ``index`` says nothing, the generator all."""
        random = numpy_of(generator)
        told = random.random() < self.share
        side = self.config.crop
        sheet, top, left = (self.annotated if told else self.unannotated).draw(random)
        image = sheet.image(top, left, side)
        labels = sheet.labels(top, left, side) if told else np.zeros((side, side), np.uint8)
        style = self.styles(sheet, top, left, random)
        image, labels = flipped(random, image, labels)
        if self.config.stain_shift:
            change = colour_map(random, self.config.stain_shift)
            image, style = recoloured(image, change), recoloured(style, change)
        if self.config.focus_shift and random.random() < 0.5:
            sigma = random.uniform(0, self.config.focus_shift)
            image, style = blurred(image, sigma), np.stack([blurred(each, sigma) for each in style])
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "labels": torch.from_numpy(labels.astype(np.int64)),
            "told": torch.tensor(told),
            "style": torch.from_numpy(np.ascontiguousarray(style)),
        }


class _Patients:
    """Draws crops of unannotated sheets: a patient, then a sheet, then a tissue cell moved a little."""

    def __init__(self, sheets: Sequence[Sheet], crop: int) -> None:
        self.crop = crop
        self.groups: dict[str, list[Sheet]] = {}
        for sheet in sheets:
            self.groups.setdefault(sheet.patient, []).append(sheet)
        self.names = sorted(self.groups)

    def draw(self, random: np.random.Generator) -> tuple[Sheet, int, int]:
        group = self.groups[self.names[random.integers(len(self.names))]]
        sheet = group[random.integers(len(group))]
        cells = sheet.tissue(self.crop)
        corner = cells[random.integers(len(cells))] + random.integers(-self.crop // 2, self.crop // 2 + 1, 2)
        row, column = (int(np.clip(at, 0, max(0, size - self.crop))) for at, size in zip(corner, sheet.size))
        return sheet, row, column


class SegmentationCrops(Dataset):
    """Items ``image`` (H,W,3) uint8 and ``labels`` (H,W) int64 for a segmentation network: crops of real sheets and, in
    a share ``ratio`` of the draws, of synthetic ones."""

    def __init__(
        self,
        real: Sequence[Sheet],
        synthetic: Sequence[Sheet],
        config: DataConfig,
        classes: int,
        *,
        ratio: float = 0.5,
        stain_augment: float = 0.0,
        length: int = 1_000_000,
    ) -> None:
        self.config, self.length, self.stain_augment = config, length, stain_augment
        self.real = Places(real, config.crop, config.balance, classes) if real else None
        self.synthetic = Places(synthetic, config.crop, config.balance, classes) if synthetic else None
        if self.real is None and self.synthetic is None:
            raise InputError("there are no labelled images to train on")
        self.ratio = 1.0 if self.real is None else 0.0 if self.synthetic is None else ratio

    def __len__(self) -> int:
        return self.length

    def prepare(self, device: torch.device) -> None:
        """As :meth:`LayoutCrops.prepare`."""
        read_all([sheet for places in (self.real, self.synthetic) if places for sheet in places.sheets])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.draw(index, torch.Generator().manual_seed(index))

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Any]:
        """A fresh item; ``index`` says nothing, the generator all."""
        random = numpy_of(generator)
        places = self.synthetic if random.random() < self.ratio else self.real
        assert places is not None
        sheet, top, left = places.draw(random)
        side = self.config.crop
        image, labels = flipped(random, sheet.image(top, left, side), sheet.labels(top, left, side))
        if self.stain_augment:
            image = recoloured(image, colour_map(random, self.stain_augment))
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }
