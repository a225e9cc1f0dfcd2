"""Slides: what tiling + encoding costs beside decoding, where the time goes, and reading fields together."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from bench.harness import Row, compare
from morphogen.demo.simulator.simulator import TissueSimulator
from morphogen.slides import Encoder, crop_fields, encode_slide, get_encoder, open_slide, tile_slide
from morphogen.slides.config import EncodeConfig, TileConfig
from morphogen.slides.encode import Outcome
from morphogen.slides.pyramid import write_pyramid
from morphogen.slides.slide import Slide
from morphogen.slides.tiles import read_tiles

READERS = 2


class Nothing(torch.nn.Module):
    """An encoder that costs nothing: what is left is reading, moving and storing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, ::56, ::56].flatten(1)


def _slide(folder: Path, side: int) -> Path:
    """A JPEG pyramid of simulated tissue; one rendered block is repeated, which decoding does not notice."""
    block = TissueSimulator(seed=3).render(0, 0, 1024, 1024).he
    band = np.tile(block, (1, side // 1024, 1))
    bands = [band] * (side // 1024)
    return write_pyramid(folder / "bench.ome.tif", bands, side, side, mpp=0.5)


def _decode(path: Path, boxes: np.ndarray) -> None:
    """Plain OpenSlide reads of the same tiles, by as many threads."""
    import openslide

    with openslide.OpenSlide(str(path)) as slide, ThreadPoolExecutor(READERS) as pool:

        def read(box: np.ndarray) -> np.ndarray:
            x, y, w, h = (int(v) for v in box)
            return np.asarray(slide.read_region((x, y), 0, (w, h)).convert("RGB"))

        for _ in pool.map(read, boxes):
            pass


def _lazyslide(path: Path, store: Path) -> None:
    """LazySlide's feature extraction with the same encoder on the same tiles."""
    import lazyslide
    from wsidata import open_wsi

    network = Nothing()
    wsi = open_wsi(path, store=str(store))
    lazyslide.tl.feature_extraction(
        wsi,
        lambda x: network(x),
        model_name="nothing",
        transform=lambda image: torch.from_numpy(image).permute(2, 0, 1).float() / 255,
        pbar=False,
        batch_size=64,
        key_added="nothing_tiles",
        device="cpu",
    )


def run(quick: bool) -> list[Row]:
    """Ratios on one simulated slide of 4096 px (quick) or 12288 px."""
    side, pairs = (4096, 3) if quick else (12288, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = _slide(folder, side)
        slide = open_slide(path, out=folder / "a")
        tile_slide(slide, TileConfig(tissue="all"))
        boxes = read_tiles(slide).boxes
        rows = [_against_decoding(slide, path, boxes, pairs), _against_lazyslide(slide, path, folder, pairs)]
        rows += _shares(path, folder)
        rows.append(_fields(slide, pairs))
        return rows


def _encode(slide: Slide) -> Outcome:
    return encode_slide(
        slide, get_encoder(Nothing(), device="cpu"), EncodeConfig(readers=READERS), overwrite=True
    )


def _against_decoding(slide: Slide, path: Path, boxes: np.ndarray, pairs: int) -> Row:
    return compare(
        f"{len(boxes)} tiles: encode (free encoder, stored) over plain OpenSlide decoding",
        lambda: _encode(slide),
        lambda: _decode(path, boxes),
        pairs=pairs,
        inverse=True,
        goal="near 1 (what storing takes does not grow with the slide)",
        detail=f"{READERS} reading threads each",
    )


def _against_lazyslide(slide: Slide, path: Path, folder: Path, pairs: int) -> Row:
    store = folder / "lazy"
    store.mkdir()
    shutil.copytree(slide.store, store / slide.store.name)
    return compare(
        "the same against LazySlide's feature_extraction",
        lambda: _encode(slide),
        lambda: _lazyslide(path, store / slide.store.name),
        pairs=pairs,
        detail="ours also writes the store",
    )


def _shares(path: Path, folder: Path) -> list[Row]:
    """Tissue search, tiling, reading, encoding and storing, from nothing: `texture`, and an encoder that is free."""
    return [
        row
        for name, encoder in (
            ("texture", get_encoder("texture", device="cpu")),
            ("a free encoder", get_encoder(Nothing(), device="cpu")),
        )
        for row in _stages(open_slide(path, out=folder / name), encoder, name)
    ]


def _stages(slide: Slide, encoder: Encoder, name: str) -> list[Row]:
    outcome = encode_slide(slide, encoder, EncodeConfig(readers=READERS))
    total = sum(outcome.stages.values())
    rate = outcome.tiles / outcome.seconds
    rows = [Row(f"{name}: slide to features, from nothing", rate, "tiles/s", detail=f"{outcome.tiles} tiles")]
    names = {
        "tile": "tissue and tiles",
        "read": "waiting for pixels",
        "encode": "encoding",
        "store": "writing",
    }
    for stage, seconds in outcome.stages.items():
        rows.append(
            Row(
                f"{name}: share of time {names[stage]}",
                100 * seconds / total,
                "%",
                detail=f"{seconds:.2f} s",
            )
        )
    return rows


def _fields(slide: Slide, pairs: int) -> Row:
    """112 µm fields every 50 µm, as for dense spots: read by blocks, against one read each."""
    edge = np.arange(200, min(slide.width, 3000) - 200, 100)
    centres = np.stack(np.meshgrid(edge, edge), axis=-1).reshape(-1, 2)

    def one_by_one() -> None:
        for centre in centres:
            crop_fields(slide, centre[None])

    return compare(
        f"{len(centres)} overlapping fields: cropped together against one by one",
        lambda: crop_fields(slide, centres),
        one_by_one,
        pairs=pairs,
    )
