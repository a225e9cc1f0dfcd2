"""Random crops of pairs, the same place and orientation for both images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError, nearest
from morphogen.stain.data import Pair
from morphogen.stain.pairs.geometry import read_aligned


def orient(image: Tensor, index: int) -> Tensor:
    """One of the 8 orientations of ``(H, W, C)``: ``index & 3`` quarter turns after a mirror when ``index &
    4``.
    """
    if index & 4:
        image = image.flip(1)
    return torch.rot90(image, index & 3, (0, 1))


def balanced(labels: Sequence[int]) -> list[int]:
    """Positions of ``labels`` so that each label comes as often as the most frequent one; the rarer in turns."""
    groups: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    most = max(map(len, groups.values()), default=0)
    return [group[k % len(group)] for group in groups.values() for k in range(most)]


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
        Decoded images kept, the last used first to stay.
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
    ) -> None:
        self.pairs, self.crop, self.orient = list(pairs), crop, orient
        unknown = sorted({pair.stain for pair in pairs} - set(stains))
        if unknown:
            raise InputError(
                f"pairs of stain '{unknown[0]}', but the model knows {', '.join(stains)}.{nearest(unknown[0], stains)}"
            )
        self.labels = [list(stains).index(pair.stain) for pair in pairs]
        self._items = balanced(self.labels) if balance else list(range(len(self.pairs)))
        self._budget = int(memory_gib * 2**30)
        self._kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def images(self, index: int) -> tuple[Tensor, Tensor]:
        """Both whole images ``(H, W, 3)`` uint8 of a pair, aligned."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        a, b = read_aligned(self.pairs[index])
        both = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
        self._bytes += both[0].numel() * 2
        self._kept[index] = both
        while self._bytes > self._budget and self._kept:
            _, old = self._kept.popitem(last=False)
            self._bytes -= old[0].numel() * 2
        return both

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        he, ihc = self.images(self._items[index])
        top, left = (
            int(torch.randint(0, size - self.crop + 1, (), generator=generator)) for size in he.shape[:2]
        )
        turn = int(torch.randint(0, 8, (), generator=generator)) if self.orient else 0
        return self._item(index, he, ihc, top, left, turn)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        he, ihc = self.images(self._items[index])
        top, left = ((size - self.crop) // 2 for size in he.shape[:2])
        return self._item(index, he, ihc, top, left, 0)

    def _item(self, index: int, he: Tensor, ihc: Tensor, top: int, left: int, turn: int) -> dict[str, Tensor]:
        place = slice(top, top + self.crop), slice(left, left + self.crop)
        return {
            "he": orient(he[place], turn).contiguous(),
            "ihc": orient(ihc[place], turn).contiguous(),
            "label": torch.tensor(self.labels[self._items[index]]),
            "index": torch.tensor(index),
        }
