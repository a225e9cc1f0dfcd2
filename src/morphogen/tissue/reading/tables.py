"""Tables of embeddings: AnnData files whose rows are tiles with images of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, nearest
from morphogen.core.reading.text import clean
from morphogen.core.writing.h5ad import open_h5ad
from morphogen.slides.images import read_image
from morphogen.tissue.config import DataConfig
from morphogen.tissue.reading.images import codecs, group_of, joined
from morphogen.tissue.reading.table import TileTable

_COLUMNS = ("path", "image", "file")


def read_tables(paths: Sequence[Path], config: DataConfig) -> TileTable:
    """Tiles of ``.h5ad`` tables.

    ``X`` (N, D) holds the embeddings, ``obs["path"]`` (or ``image``, ``file``) the tile's image relative to the table;
    ``obs["patient"]``, ``obs["slide"]`` and ``obs["label"]`` are used where they are there; ``uns["encoder"]`` names
    the encoder of the embeddings.
    """
    parts = [_read(path, config) for path in paths]
    named = sorted({name for part in parts if (name := part.facts["encoder"]) is not None})
    if len(named) > 1:
        raise InputError(
            f"embeddings of '{named[0]}' and of '{named[1]}' cannot be one set",
            where=paths[0],
            fix="Encode all with one encoder",
        )
    return joined(parts, {"encoder": named[0] if named else None, "layout": "h5ad"})


def _read(path: Path, config: DataConfig) -> TileTable:
    table = open_h5ad(path)
    column = next((name for name in _COLUMNS if name in table.obs), None)
    if column is None:
        raise InputError(
            f"its obs has no column 'path' with the tiles' images.{nearest('path', table.obs)}",
            where=path,
            fix="Add it, relative to the table",
        )
    files = [path.parent / str(each) for each in table.obs[column]]
    missing = [each for each in files if not each.is_file()]
    if missing:
        raise InputError(f"{len(missing)} of its {len(files)} images are not there", where=missing[0])
    values = table.X if isinstance(table.X, np.ndarray) else table.X.toarray()
    group = next((name for name in (config.group, "slide", "patient") if name in table.obs), None)
    px = config.tile_px

    def read(indices: Sequence[int]) -> np.ndarray:
        images = [read_image(files[i]) for i in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape[:2] != (px, px):
                raise InputError(
                    f"is {image.shape[1]} × {image.shape[0]} px, not {px} × {px}",
                    where=files[index],
                    fix="Set data.tile_px to the tiles' side",
                )
        return np.stack(images)

    return TileTable(
        names=[str(each) for each in table.obs_names],
        groups=[str(each) for each in table.obs[group]]
        if group
        else [group_of(each, config.group) for each in files],
        features={"patch": np.asarray(values, dtype=np.float32)},
        read=read,
        tile_px=px,
        mpp=config.tile_mpp,
        labels=[str(each) for each in table.obs["label"]] if "label" in table.obs else [],
        facts={"encoder": _encoder(table.uns), **codecs(files)},
    )


def _encoder(uns: Mapping[str, Any]) -> str | None:
    """The encoder that a table says its embeddings are of."""
    named = uns.get("encoder")
    return clean(named) if isinstance(named, str) and named.strip() else None
