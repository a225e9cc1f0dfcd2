"""Slides that were scanned in part: coordinates are those of the whole canvas, QuPath's count from the bounds."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from morphogen.slides import crop_fields, open_slide, tile_slide
from morphogen.slides.config import TileConfig
from morphogen.slides.formats import opening
from morphogen.slides.info import slide_info
from morphogen.slides.tissue import tissue_of

BOUNDS = (203, 101, 900, 700)


@pytest.fixture
def bounded(synthetic, monkeypatch):
    """The synthetic slide of 1600 × 1200 px as if OpenSlide gave bounds for it, as it does for SCN and MRXS."""
    real = opening.open_reader
    monkeypatch.setattr(
        "morphogen.slides.slide.open_reader", lambda path: replace(real(path), bounds=BOUNDS), raising=True
    )
    return synthetic


def test_pixels_within_the_bounds_are_those_of_the_whole(bounded):
    whole = open_slide(bounded)
    cut = whole.within_bounds()
    assert slide_info(whole)["bounds"] == list(BOUNDS) and (whole.width, whole.height) == (1600, 1200)
    assert (cut.width, cut.height, cut.mpp) == (900, 700, 0.5) and cut.within_bounds() is cut
    assert np.array_equal(cut.read_region(10, 20, 300, 200), whole.read_region(213, 121, 300, 200))
    for mpp in (0.7, 1.0, 2.0, 3.3):  # from level 0 and from coarser ones
        part = cut.read_region(40, 60, 90, 70, mpp=mpp), whole.read_region(243, 161, 90, 70, mpp=mpp)
        assert np.array_equal(*part)
    centres = np.array([[300.0, 250.5], [5.0, 5.0]])
    fields = crop_fields(cut, centres, 60.0, 64), crop_fields(whole, centres + BOUNDS[:2], 60.0, 64)
    assert np.array_equal(*fields)
    assert np.abs(cut.overview(4).astype(int) - whole.read_box(*BOUNDS, 225, 175)).max() <= 1
    again = pickle.loads(pickle.dumps(cut))
    assert np.array_equal(again.read_region(10, 20, 30, 20), cut.read_region(10, 20, 30, 20))


def test_stored_tissue_is_given_in_pixels_of_the_cut_slide(bounded, tmp_path):
    whole = open_slide(bounded, out=tmp_path)
    tile_slide(whole, TileConfig(tile_px=64))
    stored = tissue_of(whole).geometry
    cut = whole.within_bounds()
    assert cut.origin == BOUNDS[:2] and whole.origin == (0, 0) and len(stored)
    assert np.allclose(tissue_of(cut).geometry.total_bounds, stored.total_bounds - np.tile(BOUNDS[:2], 2))


def test_a_slide_without_bounds_is_itself(synthetic):
    slide = open_slide(synthetic)
    assert slide.bounds == (0, 0, 1600, 1200) and slide.within_bounds() is slide


@pytest.mark.parametrize(
    "given, found",
    [
        (("203", "101", "900", "700"), BOUNDS),
        (("203", "101", "1500", "700"), None),  # beyond the image
        (("-1", "101", "900", "700"), None),
        (("a", "101", "900", "700"), None),
        ((), None),
    ],
)
def test_bounds_as_openslide_gives_them(given, found):
    raw = {
        f"openslide.bounds-{key}": value
        for key, value in zip(("x", "y", "width", "height"), given, strict=False)
    }
    assert opening._bounds(raw, (1200, 1600)) == found


def test_a_region_for_a_twin_counts_from_the_bounds(bounded):
    """As its coordinates are read off in QuPath."""
    import torch

    from morphogen.tissue.canvases.sources import grid_of_region

    seen = []

    def encoder(tiles):
        seen.append(np.asarray(tiles))
        return torch.zeros(len(tiles), 3)

    model = SimpleNamespace(mpp=0.5, tile_px=64)
    grid = grid_of_region(model, bounded, encoder, region=(8, 16, 128, 64))
    assert grid.patch.shape == (1, 2, 3)
    whole = open_slide(bounded)
    for tile, left in zip(seen[0], (8, 72)):
        assert np.array_equal(tile, whole.read_region(BOUNDS[0] + left, BOUNDS[1] + 16, 64, 64))
