"""Images larger than a window: cut, stained in batches, joined; in bands of rows, so that any size fits in
memory.

Windows overlap, and the noise of a window is cut from a noise field over the whole image, so that two
windows see the same noise where they overlap and agree on what they make of it. Results are blended by
feathered weights at the resolution of the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.seeds import seed_for
from morphogen.diffusion import CanvasNoise, WindowLayout, feather
from morphogen.stain.config import ApplyConfig
from morphogen.stain.model import StainOutput, StainTransfer

NOISE_BLOCK = (
    16  # latent cells; windows start at multiples of it where the stride is one, so no noise is drawn in vain
)
SAME_SCALE = 0.10  # relative difference of µm/px up to which a source is taken as it is

Reader = Callable[[int, int, int, int], np.ndarray]
"""``read(x, y, size, model_size)``: the square of ``size`` source pixels at (x, y), which may overhang the
source, as (model_size, model_size, 3) uint8."""


@dataclass(frozen=True)
class Band:
    """Finished rows ``top`` … ``top + h`` of the source.

    sample, mean: (h, width, 3) uint8; uncertainty: (h, width) float32, DAB optical density; samples:
    (K, h, width, 3) uint8 where they were asked for. White and 0 where no window was.
    """

    top: int
    sample: np.ndarray
    mean: np.ndarray
    uncertainty: np.ndarray
    samples: np.ndarray | None = None


class WindowPlan:
    """Where the windows of one image lie.

    Parameters
    ----------
    width, height:
        Size of the source in pixels.
    ratio:
        Source pixels per model pixel.
    window, overlap:
        In model pixels, multiples of ``cell``.
    cell:
        Model pixels per latent cell.

    Attributes
    ----------
    rows, columns:
        First source row of each row of windows, first source column of each column.
    side:
        Side of a window in source pixels.
    """

    def __init__(
        self, width: int, height: int, window: int, overlap: int, *, ratio: float = 1.0, cell: int = 1
    ) -> None:
        self.width, self.height, self.window, self.ratio, self.cell = width, height, window, ratio, cell
        model = tuple(math.ceil(math.ceil(size / ratio) / cell) * cell for size in (height, width))
        layout = WindowLayout(
            (model[0] // cell, model[1] // cell), window // cell, max(1, (window - overlap) // cell)
        )
        self.cells = layout.starts
        self.canvas = max(model[0], window) // cell, max(model[1], window) // cell
        self.side = round(window * ratio)
        self.rows, self.columns = (
            [round(start * cell * ratio) for start in starts] for starts in layout.starts
        )

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def bands(self) -> list[tuple[int, int]]:
        """(top, bottom) of the rows that are finished after each row of windows."""
        edges = [*self.rows, self.height]
        return [(edges[i], edges[i + 1]) for i in range(len(self.rows))]

    def borders(self) -> tuple[list[int], list[int]]:
        """Columns and rows at which a window begins or ends, within the image: for the seam score."""
        return tuple(  # type: ignore[return-value]
            sorted({p for start in starts for p in (start, start + self.side) if 0 < p < size})
            for starts, size in ((self.columns, self.width), (self.rows, self.height))
        )

    def rows_for(self, band: int) -> list[int]:
        """Rows of windows that a band is made of."""
        top, bottom = self.bands()[band]
        return [i for i, start in enumerate(self.rows) if start < bottom and start + self.side > top]


def plan_windows(
    model: StainTransfer, config: ApplyConfig, width: int, height: int, ratio: float = 1.0
) -> WindowPlan:
    """The plan for an image of ``width`` × ``height`` source pixels with ``ratio`` source pixels per model
    pixel.
    """
    multiple, cell = model.multiple, model.first_stage.factor
    window = config.windows.window or model.crop
    if window % multiple:
        raise ConfigError(
            f"a window of {window} px does not fit this network",
            where="windows.window",
            fix=f"Use a multiple of {multiple}",
        )
    overlap = config.windows.overlap
    if overlap is None:
        overlap = window // 4
    overlap = overlap // cell * cell
    if overlap >= window:
        raise ConfigError(
            f"an overlap of {overlap} px leaves nothing of a window of {window} px", where="windows.overlap"
        )
    # An image smaller than the window is seen by a window of its own size (rounded up), not by a mostly
    # mirrored one.
    least = max(multiple, math.ceil(min(width, height) / ratio / multiple) * multiple)
    window = min(window, least)
    overlap = min(overlap, window // 2 // cell * cell)
    return WindowPlan(width, height, window, overlap, ratio=ratio, cell=cell)


def scale_between(source_mpp: float | None, model_mpp: float | None) -> float:
    """Source pixels per model pixel; 1 where either is unknown or the two are within 10 %."""
    if source_mpp is None or model_mpp is None:
        return 1.0
    ratio = model_mpp / source_mpp
    return 1.0 if abs(ratio - 1) <= SAME_SCALE else ratio


class RegionNoise:
    """``noise(step)`` for a batch of windows × K samples: each window's part of the image's K noise
    fields.
    """

    def __init__(self, fields: Sequence[Field], regions: Sequence[tuple[slice, slice]]) -> None:
        self.fields, self.regions = fields, regions

    def __call__(self, step: int) -> Tensor:
        return torch.stack([field(step, region) for region in self.regions for field in self.fields])


@dataclass(frozen=True)
class Opposite:
    """A noise field with its sign turned."""

    field: CanvasNoise

    def __call__(self, step: int, region: tuple[slice, slice] | None = None) -> Tensor:
        return -self.field(step, region)


Field = CanvasNoise | Opposite


def noise_fields(model: StainTransfer, plan: WindowPlan, config: ApplyConfig, name: str) -> list[Field]:
    """The K noise fields of an image, a function of the seed and its name; antithetic ones in pairs of a field and
    its opposite (Hammersley and Morton, Proc. Camb. Phil. Soc. 52, 1956)."""
    shape = (model.network.channels, *plan.canvas)
    fields: list[Field] = []
    for k in range(config.samples):
        if config.antithetic and k % 2:
            fields.append(Opposite(cast("CanvasNoise", fields[-1])))
        else:
            fields.append(CanvasNoise(seed_for(config.seed, "stain", name, k), shape, block=NOISE_BLOCK))
    return fields


def posterior_field(model: StainTransfer, plan: WindowPlan, config: ApplyConfig, name: str) -> CanvasNoise:
    """The noise of the autoencoder's posterior over an image, for inversions."""
    shape = (model.network.channels, *plan.canvas)
    return CanvasNoise(seed_for(config.seed, "stain posterior", name), shape, block=NOISE_BLOCK)


def stain_windows(
    model: StainTransfer,
    images: np.ndarray,
    config: ApplyConfig,
    noise: Callable[[int], Tensor],
    posterior_noise: Tensor,
    *,
    precision: str,
) -> StainOutput:
    """One batch of windows (B, window, window, 3) uint8 through the model."""
    return model(
        torch.from_numpy(images),
        config.sampler,
        stain=config.stain,
        samples=config.samples,
        noise=noise,
        posterior_noise=posterior_noise,
        precision=precision,
    )


def stain_bands(
    model: StainTransfer,
    plan: WindowPlan,
    read: Reader,
    config: ApplyConfig,
    *,
    name: str,
    wanted: Callable[[int, int, int], bool] = lambda x, y, side: True,
    first: int = 0,
    keep_samples: bool = False,
    precision: str = "fp32",
    advance: Callable[[int], Any] = lambda n: None,
) -> Iterator[Band]:
    """Stain an image and give its bands from number ``first`` on, top to bottom.

    ``wanted(x, y, side)`` says whether a window is stained at all; ``advance(n)`` is told of every n
    windows done. Memory: one batch of windows and a few bands. A band depends on its own windows only, and
    those always go through the network in the same batches: bands are the same whatever ``first``.
    """
    fields = noise_fields(model, plan, config, name)
    posterior = posterior_field(model, plan, config, name)
    samples = config.samples if keep_samples else 0
    blend = _Blend(plan, channels=7 + 3 * samples)
    bands = plan.bands()
    rows = plan.rows_for(first) if first < len(bands) else []
    for row in range(rows[0] if rows else len(bands), len(bands)):
        columns = [c for c, x in enumerate(plan.columns) if wanted(x, plan.rows[row], plan.side)]
        for at in range(0, len(columns), config.windows.batch):
            batch = columns[at : at + config.windows.batch]
            images = np.stack([read(plan.columns[c], plan.rows[row], plan.side, plan.window) for c in batch])
            regions = [_region(plan, row, c) for c in batch]
            start = torch.stack([posterior(-1, region) for region in regions])
            out = stain_windows(
                model, images, config, RegionNoise(fields, regions), start, precision=precision
            )
            for index, column in enumerate(batch):
                blend.add(row, column, _stack(out, index, plan.side, samples))
            advance(len(batch))
        done = blend.take(row)
        if row >= first:
            yield _band(bands[row][0], done, samples)


def _region(plan: WindowPlan, row: int, column: int) -> tuple[slice, slice]:
    size = plan.window // plan.cell
    top, left = plan.cells[0][row], plan.cells[1][column]
    return slice(top, top + size), slice(left, left + size)


def _stack(out: StainOutput, index: int, side: int, samples: int) -> np.ndarray:
    """(C, side, side) float32 of one window: first sample, mean, uncertainty, and all samples where they
    are kept.
    """
    parts = [out.samples[index, 0], out.mean[index], *out.samples[index, :samples]]
    colours = torch.cat([part.permute(2, 0, 1) for part in parts]).float()
    values = torch.cat([colours[:6], out.uncertainty[index][None], colours[6:]])
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


def _band(top: int, done: tuple[np.ndarray, np.ndarray], samples: int) -> Band:
    values, covered = done
    colours = np.where(covered[None], np.clip(np.rint(np.delete(values, 6, axis=0)), 0, 255), 255).astype(
        np.uint8
    )
    planes = colours.reshape(-1, 3, *covered.shape).transpose(0, 2, 3, 1)
    kept = np.ascontiguousarray(planes[2:]) if samples else None
    return Band(
        top,
        np.ascontiguousarray(planes[0]),
        np.ascontiguousarray(planes[1]),
        np.where(covered, values[6], 0).astype(np.float32),
        kept,
    )


def array_reader(image: np.ndarray) -> Reader:
    """A reader of an image in memory (H, W, 3), mirrored where a window overhangs it."""
    height, width = image.shape[:2]

    def read(x: int, y: int, side: int, model_side: int) -> np.ndarray:
        rows = _mirrored(np.arange(y, y + side), height)
        columns = _mirrored(np.arange(x, x + side), width)
        part = image[rows][:, columns]
        if side != model_side:
            from morphogen.slides.resample import resample

            part = resample(part, (0, 0, side, side), model_side, model_side)
        return part

    return read


def _mirrored(positions: np.ndarray, size: int) -> np.ndarray:
    around = positions % (2 * size)
    return np.where(around < size, around, 2 * size - 1 - around)
