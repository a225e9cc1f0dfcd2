"""Random crops of pairs, the same place and orientation for both images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError, nearest
from morphogen.slides.recolouring import colour_map, glass_colour, on_white_glass, recoloured
from morphogen.stain.data import Pair
from morphogen.stain.pairs.geometry import read_aligned, scanned


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


def cells_seen(mask: Tensor, factor: int) -> Tensor:
    """(B, H, W) bool of pixels → (B, 1, H/factor, W/factor) float, 1 where all pixels of a cell were scanned."""
    return -torch.nn.functional.max_pool2d(-mask[:, None].float(), factor)


def _bytes(tensors: Sequence[Tensor | None]) -> int:
    return sum(each.nbytes for each in tensors if each is not None)


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
    balance_glass:
        Divide every H&E by the colour of its glass.
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
        balance_glass: bool = False,
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
        self.balance_glass, self.stain_jitter = balance_glass, stain_jitter
        self._masked = any(pair.mask is not None for pair in self.pairs)
        self._budget = int(memory_gib * 2**30)
        self._kept: OrderedDict[int, tuple[Tensor, Tensor, Tensor | None]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def images(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both whole images of a pair, aligned, ``(H, W, 3)`` uint8 or of the target's channels, and where the target
        was scanned ``(H, W)`` bool."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        a, b = read_aligned(self.pairs[index])
        if self.balance_glass:
            a = on_white_glass(a, glass_colour(a))
        mask = scanned(self.pairs[index])
        both = (
            torch.from_numpy(np.ascontiguousarray(a)),
            torch.from_numpy(np.ascontiguousarray(b)),
            None if mask is None else torch.from_numpy(np.ascontiguousarray(mask)),
        )
        self._bytes += _bytes(both)
        self._kept[index] = both
        while self._bytes > self._budget and self._kept:
            _, old = self._kept.popitem(last=False)
            self._bytes -= _bytes(old)
        return both

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        he, ihc, mask = self.images(self._items[index])
        top, left = (
            int(torch.randint(0, size - self.crop + 1, (), generator=generator)) for size in he.shape[:2]
        )
        turn = int(torch.randint(0, 8, (), generator=generator)) if self.orient else 0
        item = self._item(index, he, ihc, mask, top, left, turn)
        if self.stain_jitter:
            random = np.random.default_rng(int(torch.randint(0, 2**31, (), generator=generator)))
            changed = recoloured(item["he"].numpy(), colour_map(random, self.stain_jitter))
            item["he"] = torch.from_numpy(changed)
        return item

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        he, ihc, mask = self.images(self._items[index])
        top, left = ((size - self.crop) // 2 for size in he.shape[:2])
        return self._item(index, he, ihc, mask, top, left, 0)

    def _item(
        self, index: int, he: Tensor, ihc: Tensor, mask: Tensor | None, top: int, left: int, turn: int
    ) -> dict[str, Tensor]:
        place = slice(top, top + self.crop), slice(left, left + self.crop)
        seen: dict[str, Tensor] = {}
        if self._masked:  # of all items or of none: batches have one form
            full = torch.ones(self.crop, self.crop, dtype=torch.bool) if mask is None else mask[place]
            seen["mask"] = orient(full[..., None], turn)[..., 0].contiguous()
        return seen | {
            "he": orient(he[place], turn).contiguous(),
            "ihc": orient(ihc[place], turn).contiguous(),
            "label": torch.tensor(self.labels[self._items[index]]),
            "index": torch.tensor(index),
        }
