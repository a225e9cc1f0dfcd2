"""A tiny model, and tiles of coloured noise whose embedding is their colour."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from morphogen.tissue import ModelConfig, TileTable, new_model


@pytest.fixture(scope="session")
def tiny():
    """A model with fresh weights whose last layers are not zero, so that every part of it shows."""
    import torch

    model = new_model(ModelConfig.of("tiny", embeddings={"patch": 5}, encoder="texture"), tile_px=32, mpp=1.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def coloured_tiles(count: int = 12, px: int = 32, groups: int = 3) -> TileTable:
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 215, (count, 3))
    images = np.clip(colours[:, None, None] + generator.normal(0, 12, (count, px, px, 3)), 0, 255).astype(
        np.uint8
    )
    features = np.concatenate([colours / 128.0, np.ones((count, 1)), colours[:, :1] ** 2 / 1e4], 1).astype(
        np.float32
    )
    return TileTable(
        names=[f"tile{i}" for i in range(count)],
        groups=[f"slide{i % groups}" for i in range(count)],
        features={"patch": features},
        read=lambda rows: images[np.asarray(rows, int)],
        tile_px=px,
        mpp=1.0,
        facts={"encoder": "texture"},
    )


@pytest.fixture
def tiles() -> TileTable:
    return coloured_tiles()


def write_tile(path, colour=(200, 120, 170), px: int = 32):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(path.name.encode())).integers(-20, 20, (px, px, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


@contextmanager
def watched(model, dies_at: int | None = None):
    """The sizes of the batches that the network is asked for; the run is interrupted at call number ``dies_at``."""
    seen, forward = [], model.network.forward

    def watching(x, t, *, context):
        seen.append(len(x))
        if len(seen) == dies_at:
            raise KeyboardInterrupt
        return forward(x, t, context=context)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.network, "forward", watching)
        yield seen
