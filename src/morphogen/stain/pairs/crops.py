"""Random crops of pairs, the same place and orientation for both images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError, nearest
from morphogen.slides.recolouring import Normalise, colour_map, normalised, recoloured
from morphogen.stain.data import Pair
from morphogen.stain.pairs.geometry import read_aligned, scanned, shared_size
from morphogen.tasks.streams.held import HeldImages
from morphogen.tasks.streams.turns import TURNS, turned_batch


def balanced(labels: Sequence[int]) -> list[int]:
    """Positions of ``labels`` so that each label comes as often as the most frequent one; the rarer in turns."""
    groups: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    most = max(map(len, groups.values()), default=0)
    return [group[k % len(group)] for group in groups.values() for k in range(most)]


def cells_seen(mask: Tensor, factor: int) -> Tensor:
    """(B, H, W) bool of pixels → (B, 1, H/factor, W/factor) float, 1 where all pixels of a cell were scanned."""
    return -torch.nn.functional.max_pool2d(-mask[:, None].float(), factor)


@dataclass(frozen=True)
class Place:
    """Where an item is cut in the images of its pair, how it is turned, and the seed of its change of stain."""

    index: int
    top: int
    left: int
    turn: int = 0
    jitter: int | None = None


LAYERS = ("he", "ihc", "mask")


class PairDataset(Dataset):
    """Random crops of pairs, the same place and orientation for both images of a pair.

    ``draw(i, generator)`` cuts pair ``i`` where the generator says; ``[i]`` cuts its middle, unturned. An
    item is ``{"he": (crop, crop, 3) uint8, "ihc": likewise, "label": int64 stain index, "index": int64}``.

    Parameters
    ----------
    pairs:
        Checked pairs (:func:`morphogen.stain.pairs.checks.check_pairs`).
    stains:
        Label order.
    crop, orient:
        See :class:`~morphogen.stain.config.DataConfig`.
    memory_gib:
        Decoded images kept (:class:`~morphogen.tasks.streams.held.HeldImages`).
    normalise:
        What every H&E is set to (:func:`morphogen.slides.recolouring.normaliser`).
    stain_jitter:
        See :class:`~morphogen.stain.config.DataConfig`.
    balance:
        Every stain has as many items: pairs of rarer stains come several times, each time to be cut elsewhere.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        stains: Sequence[str],
        *,
        crop: int = 256,
        orient: bool = True,
        memory_gib: float = 2.0,
        balance: bool = False,
        normalise: Normalise = "none",
        stain_jitter: float = 0.0,
    ) -> None:
        self.pairs, self.crop, self.orient = list(pairs), crop, orient
        unknown = sorted({pair.stain for pair in pairs} - set(stains))
        if unknown:
            raise InputError(
                f"pairs of stain '{unknown[0]}', but the model knows {', '.join(stains)}.{nearest(unknown[0], stains)}"
            )
        self.labels = [list(stains).index(pair.stain) for pair in pairs]
        self._items = balanced(self.labels) if balance else list(range(len(self.pairs)))
        self.normalise, self.stain_jitter = normalise, stain_jitter
        self._masked = any(pair.mask is not None for pair in self.pairs)
        self._held = HeldImages(self._read, len(self.pairs), memory_gib)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def numbers(self) -> list[int]:
        """Which pair every item is cut from."""
        return list(self._items)

    @property
    def resident(self) -> bool:
        """Whether the images lie on the device."""
        return self._held.resident

    def prepare(self, device: torch.device) -> None:
        """See :class:`morphogen.training.Task`. Stains are changed on the host."""
        self._held.prepare(device, resident=not self.stain_jitter)

    def _read(self, index: int) -> list[np.ndarray]:
        """H&E, target and, of all or of none, where the target was scanned: batches have one form."""
        he, target = read_aligned(self.pairs[index])
        he = normalised(he, self.normalise)
        if not self._masked:
            return [he, target]
        mask = scanned(self.pairs[index])
        return [he, target, np.ones(he.shape[:2], bool) if mask is None else mask]

    def images(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both whole images of a pair, aligned, ``(H, W, 3)`` uint8 or of the target's channels, and where the target
        was scanned ``(H, W)`` bool."""
        layers = self._held[index]
        return layers[0], layers[1], None if self.pairs[index].mask is None else layers[2]

    def _size(self, index: int) -> tuple[int, int]:
        return self._held.size(index) or shared_size(self.pairs[index])

    def place(self, index: int, generator: torch.Generator) -> Place:
        """Where an item is cut, and how it is turned and stained."""
        top, left = (
            int(torch.randint(0, size - self.crop + 1, (), generator=generator))
            for size in self._size(self._items[index])
        )
        turn = int(torch.randint(0, TURNS, (), generator=generator)) if self.orient else 0
        jitter = int(torch.randint(0, 2**31, (), generator=generator)) if self.stain_jitter else None
        return Place(index, top, left, turn, jitter)

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self._one(self.place(index, generator))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        top, left = ((size - self.crop) // 2 for size in self._size(self._items[index]))
        return self._one(Place(index, top, left))

    def _one(self, place: Place) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.finish(self.cut([place])).items()}

    def cut(self, places: Sequence[Place]) -> dict[str, Tensor]:
        """The batch of some places, not turned yet; their numbers alone where the images lie on the device."""
        pairs = [self._items[place.index] for place in places]
        found = {
            "label": torch.tensor([self.labels[pair] for pair in pairs]),
            "index": torch.tensor([place.index for place in places]),
        }
        rows = np.array(
            [[pair, place.top, place.left, place.turn] for pair, place in zip(pairs, places, strict=True)]
        )
        if self.resident:
            return {"place": torch.from_numpy(rows), **found}
        layers = self._held.cut(rows, self.crop)
        for he, place in zip(layers[0].numpy(), places, strict=True):
            if place.jitter is not None:
                random = np.random.default_rng(place.jitter)
                he[...] = recoloured(he, colour_map(random, self.stain_jitter))
        return {**dict(zip(LAYERS, layers)), "turn": torch.from_numpy(rows[:, 3].copy()), **found}

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The items of this class, turned, on the device of the batch."""
        rest = {name: batch[name] for name in ("label", "index")}
        if "place" in batch:
            layers = self._held.cut_there(batch["place"], self.crop)
            return {**dict(zip(LAYERS, layers)), **rest}
        return {name: turned_batch(batch[name], batch["turn"]) for name in LAYERS if name in batch} | rest
