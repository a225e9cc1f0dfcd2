"""Sample pickles of the published code, as tiles and features.

The large samples hold 4 × 4 tiles column by column, while the published sampler reads its grid row by row: its demo
draws the region transposed. Here ``grid[row, column] = feature[4·column + row]``, so that every cell has the vector of
the tile that lies there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphogen.checkpoints.arrays import read_pickled_arrays
from morphogen.core.errors import InputError
from morphogen.core.files import Manifest, atomic_path, writable_folder
from morphogen.core.writing.locks import locks_folder
from morphogen.slides.exchange.tileset import write_h5
from morphogen.tissue.canvases.grid import EmbeddingGrid


@locks_folder()
def import_sample_file(path: Path | str, out: Path | str, *, trust: bool = False) -> int:
    """Write the samples of a pickle to ``out``; how many there were.

    Patches: ``images/*.png`` and ``features.h5`` (``feat_20x``). Large images: ``images/*.png`` and one grid per image,
    ``grids/*.npz``, for ``morphogen tissue canvas --grid``. Raises :class:`InputError` without ``trust``, and for a
    pickle that holds anything but arrays.
    """
    if not trust:
        raise InputError(
            "this is a pickle, which can run code when it is read carelessly",
            where=path,
            fix="Add --trust to read it with a reader that imports nothing",
        )
    samples = read_pickled_arrays(path)
    if not isinstance(samples, list) or not samples or not all(isinstance(each, dict) for each in samples):
        raise InputError("is not a list of samples", where=path)
    out = writable_folder(out)
    images = writable_folder(out / "images")
    large = "img_20x_large" in samples[0]
    features = []
    for number, sample in enumerate(samples):
        feature = _array(sample, "feat_20x", path, number)
        image = _array(sample, "img_20x_large" if large else "image", path, number)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"image {number} is {image.dtype} {image.shape}, not uint8 (H, W, 3)", where=path
            )
        _save(image, images / f"{number:05d}.png")
        if large:
            grid = EmbeddingGrid(transposed_grid(feature, path), facts={"from": Path(path).name})
            grid.save(writable_folder(out / "grids") / f"{number:05d}.npz")
        else:
            features.append(np.asarray(feature, np.float32).ravel())
    if features:
        write_h5(out / "features.h5", {"feat_20x": (np.stack(features), {})})
    Manifest.write(out, kind="imported samples", samples=len(samples), large=large)
    return len(samples)


def transposed_grid(features: np.ndarray, where: object = None) -> np.ndarray:
    """(16, D) tiles column by column → (4, 4, D) with ``grid[row, column] = features[4·column + row]``."""
    side = round(len(features) ** 0.5)
    if features.ndim != 2 or side * side != len(features):
        raise InputError(f"features have shape {features.shape}, not those of a square of tiles", where=where)
    return np.asarray(features, np.float32).reshape(side, side, -1).transpose(1, 0, 2).copy()


def _array(sample: dict[str, Any], key: str, path: Path | str, number: int) -> np.ndarray:
    value = sample.get(key)
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"sample {number} has no array '{key}' (it has {', '.join(map(str, sample))})", where=path
        )
    return value


def _save(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
