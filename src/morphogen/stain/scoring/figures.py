"""Pictures a pathologist reads: H&E, predicted, real, both DAB maps, uncertainty, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from morphogen.core.files import writable_folder
from morphogen.slides.colour import dab_density
from morphogen.stain.data import Pair
from morphogen.stain.pairs.geometry import fitted, read_aligned
from morphogen.stain.scoring.channels import ChannelMethod, Made, fitting
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.values import as_picture
from morphogen.tasks.folders import save_png

STRONGEST = 1.0  # DAB optical density drawn darkest
DOUBTFUL = 0.4  # SD of DAB optical density drawn brightest
GAP = 8


def dab_picture(density: np.ndarray, strongest: float = STRONGEST) -> np.ndarray:
    """A DAB map (H, W) as brown on white, (H, W, 3) uint8: the colour that this much DAB alone would have."""
    from morphogen.slides.colour import reconstruct

    amounts = np.zeros((1, 3, *density.shape), np.float32)
    amounts[0, 1] = np.clip(density, 0, strongest)
    return reconstruct(amounts, "hdab", dtype="uint8")[0].permute(1, 2, 0).contiguous().numpy()


def uncertainty_picture(uncertainty: np.ndarray, most: float = DOUBTFUL) -> np.ndarray:
    """An uncertainty map (H, W), DAB optical density, in the magma colours up to ``most``; (H, W, 3)
    uint8.
    """
    from matplotlib import colormaps

    colours = colormaps["magma"](np.clip(uncertainty / most, 0, 1))[..., :3]
    return (colours * 255).round().astype(np.uint8)


def density_of(image: np.ndarray) -> np.ndarray:
    """(H, W) DAB optical density of an image (H, W, 3) uint8."""
    return dab_density(np.array(image), layout="nhwc")[0].numpy()


def panel(
    he: np.ndarray, predicted: np.ndarray, real: np.ndarray, uncertainty: np.ndarray | None = None
) -> np.ndarray:
    """One row: H&E | predicted | real | predicted DAB | real DAB | uncertainty; (H, W', 3) uint8."""
    pictures = [he, predicted, real, dab_picture(density_of(predicted)), dab_picture(density_of(real))]
    if uncertainty is not None:
        pictures.append(uncertainty_picture(uncertainty))
    return in_a_row(pictures)


def in_a_row(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) of one height side by side, with white between them."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (picture, gap)][:-1]
    return np.concatenate(row, axis=1)


def channel_panel(he: np.ndarray, real: np.ndarray, made: Made, target: TargetConfig) -> np.ndarray:
    """One row: H&E | one sample | real | mean (or what was made) | uncertainty; (H, W', 3) uint8."""
    if target.full is None:  # nobody said: what the real image shows
        most = np.asarray(real, np.float64).reshape(-1, target.width).max(axis=0)
        target = target.replace(full=tuple(float(each) or 1.0 for each in most))
    sample = made.image if made.samples is None else made.samples[0]
    pictures = [
        he,
        *(as_picture(each, target) for each in (sample.astype(np.float32), real.astype(np.float32))),
    ]
    mean = made.image if made.samples is None else made.samples.mean(axis=0)
    pictures.append(as_picture(mean.astype(np.float32), target))
    if made.uncertainty is not None:
        full = np.asarray(target.full if target.full is not None else (1.0,) * target.width)
        pictures.append(uncertainty_picture((made.uncertainty / full).max(axis=2), DOUBTFUL))
    return in_a_row(pictures)


def save_channel_panels(folder: Path | str, pairs: Sequence[Pair], method: ChannelMethod) -> list[Path]:
    """``<name>.png`` for each pair of channels; returns the files."""
    folder, files = writable_folder(folder), []
    for pair in pairs:
        he, real = read_aligned(pair)
        path = folder / f"{pair.name}.png"
        save_png(path, channel_panel(he, real, fitting(method(pair, he), real.shape, pair), pair.target))
        files.append(path)
    return files


def save_panels(
    folder: Path | str,
    pairs: Sequence[Pair],
    predicted: Callable[[Pair, np.ndarray], np.ndarray],
    uncertainty: Callable[[Pair], np.ndarray | None],
) -> list[Path]:
    """``<name>.png`` for each pair; returns the files."""
    folder, files = writable_folder(folder), []
    for pair in pairs:
        he, real = read_aligned(pair)
        size, doubt = (real.shape[0], real.shape[1]), uncertainty(pair)
        image = fitted(pair, predicted(pair, he), size)
        doubt = None if doubt is None else fitted(pair, doubt, size, "uncertainty")
        path = folder / f"{pair.name}.png"
        save_png(path, panel(he, image, real, doubt))
        files.append(path)
    return files
