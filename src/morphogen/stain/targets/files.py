"""Target images and masks on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError
from morphogen.slides.formats.channels import read_channels
from morphogen.slides.images import decode, read_raw
from morphogen.stain.targets.config import TargetConfig

STATED = "target.yaml"
GREY = "is grey, not RGB"

_FULL = 99.9  # percentile
_BINS = 4096  # of the histogram of Otsu's threshold


def stated_target(root: Path | str) -> TargetConfig | None:
    """What ``target.yaml`` beside the pairs says the target is; ``None`` where there is none."""
    root = Path(root)
    path = (root if root.is_dir() else root.parent) / STATED
    return TargetConfig.load(path) if path.is_file() else None


def read_image(path: Path | str) -> np.ndarray:
    """A picture in colour as (H, W, 3) uint8 RGB: :func:`morphogen.slides.images.read_image`.

    :class:`InputError` for what cannot be read, and for a grey image, which is no picture of a stain.
    """
    picture = decode(path)
    if not picture.colour:
        raise InputError(f"the image {GREY}", where=path, fix="Save it as 8-bit RGB, or leave it out")
    return picture.pixels


def read_target(path: Path | str, target: TargetConfig) -> np.ndarray:
    """(H, W, 3) uint8 of a picture in colour, or (H, W, C) samples of named channels as they are."""
    if target.colour:
        return read_image(path)
    return read_channels(path, target.channels)


def read_made(path: Path | str, target: TargetConfig) -> np.ndarray:
    """What was made of a target and written: a picture, or intensities (H, W, C) float32."""
    made = read_target(path, target)
    return (
        made if target.colour or made.dtype.kind == "f" else made.astype(np.float32) * np.float32(target.step)
    )


def read_mask(path: Path | str) -> np.ndarray:
    """(H, W) bool: where a mask says that the target was scanned, any value but 0."""
    if Path(path).suffix.lower() == ".png":
        values = read_raw(path)
        return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)
    return np.asarray((read_channels(path) != 0).any(axis=2))


def read_labels(path: Path | str) -> np.ndarray:
    """(H, W) int64: which nucleus a pixel is of, 0 for none; a PNG, TIFF or NPY of one channel of whole numbers."""
    values = read_raw(path) if Path(path).suffix.lower() == ".png" else read_channels(path)
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or not (values.dtype.kind in "ui" or np.array_equal(values, np.round(values))):
        raise InputError(
            "an image of nuclei holds one channel of whole numbers, 0 where there is no nucleus", where=path
        )
    return values.astype(np.int64)


def measured(target: TargetConfig, values: Sequence[np.ndarray]) -> TargetConfig:
    """``target`` with type, ``full`` and ``threshold`` taken from samples (N, C) of training images where they are not
    given."""
    dtype = target.dtype or values[0].dtype.name
    pixels = np.concatenate([each[::4] for each in values]).astype(np.float64)
    if not len(pixels):
        raise InputError(
            "nothing of the training targets was scanned, say their masks", fix="Give pairs that show some"
        )
    full = target.full or tuple(
        float(f"{value:.6g}") if value > 0 else 1.0 for value in np.percentile(pixels, _FULL, axis=0)
    )
    threshold = target.threshold or tuple(float(f"{otsu(column):.6g}") for column in pixels.T)
    return target.replace(dtype=dtype, full=full, threshold=threshold)


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold; above the largest value where all are one."""
    from skimage.filters import threshold_otsu

    if not np.ptp(values):
        return float(values.max(initial=0)) + 1
    return float(threshold_otsu(values, nbins=_BINS))
