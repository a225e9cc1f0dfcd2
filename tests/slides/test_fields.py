"""Fields around centres, the eight orientations, windows over tissue."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import torch
from shapely import Point, box, union_all

from morphogen.core.errors import InputError, SlideError
from morphogen.slides import crop_fields, dihedral, open_slide, read_boxes, tissue_windows


def test_a_field_is_what_reading_its_square_gives(synthetic):
    slide = open_slide(synthetic)
    centres = np.random.default_rng(0).uniform([100, 100], [1500, 1100], (40, 2))
    fields = crop_fields(slide, centres, field_um=56, px=64)
    assert fields.shape == (40, 64, 64, 3) and fields.dtype == np.uint8
    for (x, y), field in zip(centres, fields, strict=True):
        assert np.array_equal(field, slide.read_box(x - 56, y - 56, 112, 112, 64, 64))


def test_fields_do_not_depend_on_their_company(synthetic):
    """Order, batch and threads change nothing, to the byte."""
    slide = open_slide(synthetic)
    centres = np.random.default_rng(1).uniform(0, 1200, (60, 2))
    together = crop_fields(slide, centres, 112, 96)
    order = np.random.default_rng(2).permutation(60)
    assert np.array_equal(crop_fields(slide, centres[order], 112, 96), together[order])
    assert np.array_equal(crop_fields(slide, centres[7:8], 112, 96)[0], together[7])
    assert np.array_equal(crop_fields(slide, centres, 112, 96, threads=3), together)


def test_the_field_is_physical(tmp_path, make_slide, make_tissue):
    """112 µm are 224 px at 0.5 µm/px and 448 px at 0.25 µm/px; field_px needs no µm/px."""
    image = make_tissue(800, 900)
    fine = make_slide(tmp_path / "fine.tif", image, mpp=0.25, levels=1)
    field = crop_fields(open_slide(fine), [[450, 400]], 112, 448)[0]
    assert np.array_equal(field, image[400 - 224 : 400 + 224, 450 - 224 : 450 + 224])
    unknown = open_slide(make_slide(tmp_path / "unknown.tif", image, mpp=None, levels=1))
    assert np.array_equal(crop_fields(unknown, [[450, 400]], px=448, field_px=448)[0], field)
    with pytest.raises(SlideError, match="--mpp"):
        crop_fields(unknown, [[450, 400]])


def test_beyond_the_border_is_white(synthetic):
    field = crop_fields(open_slide(synthetic), [[0, 0]], 100, 200)[0]
    assert (field[:100] == 255).all() and (field[:, :100] == 255).all() and field[100:, 100:].mean() < 254


def test_nothing_asked_and_nonsense_asked(synthetic):
    slide = open_slide(synthetic)
    assert crop_fields(slide, np.zeros((0, 2)), orientations=8).shape == (0, 8, 224, 224, 3)
    with pytest.raises(InputError, match="centre 1 is not a number"):
        crop_fields(slide, [[1, 2], [np.nan, 3]])
    with pytest.raises(InputError, match="orientations must be 1 or 8"):
        crop_fields(slide, [[1, 2]], orientations=4)


def test_dihedral_is_the_group_of_the_square_identity_first():
    image = np.random.default_rng(0).integers(0, 255, (3, 6, 6, 3), dtype=np.uint8)
    eight = dihedral(image)
    assert eight.shape == (3, 8, 6, 6, 3)
    assert np.array_equal(eight[:, 0], image)
    assert np.array_equal(eight[:, 1], np.rot90(image, 1, axes=(1, 2)))
    assert np.array_equal(eight[:, 4], image[:, :, ::-1])
    assert len({e.tobytes() for e in eight[0]}) == 8
    closed = {e.tobytes() for e in eight[0]}
    for e in eight[0]:  # turning or mirroring any of them gives one of them
        assert {f.tobytes() for f in dihedral(e)} == closed
    tensor = dihedral(torch.from_numpy(image))
    assert np.array_equal(tensor.numpy(), eight)
    with pytest.raises(InputError, match="must be square"):
        dihedral(image[:, :5])


def test_orientations_of_fields_are_dihedral_of_them(synthetic):
    slide = open_slide(synthetic)
    centres = [[500, 500], [900, 620]]
    eight = crop_fields(slide, centres, 40, 32, orientations=8)
    assert np.array_equal(eight, dihedral(crop_fields(slide, centres, 40, 32)))


# --- windows ---------------------------------------------------------------------------------------------


def _circle(x: float, y: float, radius: float) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"tissue_id": [0]}, geometry=[Point(x, y).buffer(radius)])


@pytest.mark.parametrize(
    "mpp, px, stride", [(None, 256, 200), (0.5, 128, 128), (1.3, 96, 64), (0.37, 300, 120)]
)
def test_windows_cover_all_tissue_and_stay_inside(synthetic, mpp, px, stride):
    slide = open_slide(synthetic)
    tissue = _circle(1450, 1100, 300).clip(box(0, 0, 1600, 1200))
    windows = tissue_windows(slide, px, mpp=mpp, stride=stride, tissues=tissue)
    squares = [box(x, y, x + w, y + h) for x, y, w, h in windows.boxes]
    assert tissue.geometry[0].difference(union_all(squares).buffer(1.5)).area < 1e-6
    assert (windows.xy >= 0).all()
    assert (windows.out_xy[:, 0] + px <= windows.canvas[0]).all() and (
        windows.out_xy[:, 1] + px <= windows.canvas[1]
    ).all()
    assert np.array_equal(windows.xy, windows.out_xy * windows.scale)  # level-0 positions are exact
    assert all(square.intersects(tissue.geometry[0]) for square in squares)
    inner = np.unique(windows.out_xy[:, 0])
    assert set(np.diff(inner)[:-1]) <= {stride}


def test_windows_by_share_of_tissue_and_with_gaps(synthetic):
    slide = open_slide(synthetic)
    tissue = _circle(800, 600, 400)
    half = tissue_windows(slide, 100, stride=150, min_tissue=0.5, tissues=tissue)
    every = tissue_windows(slide, 100, stride=150, tissues=tissue)
    assert 0 < len(half) < len(every)
    shares = [
        box(x, y, x + w, y + h).intersection(tissue.geometry[0]).area / (w * h) for x, y, w, h in half.boxes
    ]
    assert min(shares) >= 0.5 - 1e-9
    assert set(np.unique(half.out_xy % 150)) == {0}
    assert len(tissue_windows(slide, 100, tissues=tissue.iloc[:0])) == 0


def test_windows_are_read_as_boxes(synthetic):
    slide = open_slide(synthetic)
    windows = tissue_windows(slide, 64, mpp=2.0, stride=48)
    images = read_boxes(slide, windows.boxes, windows.px)
    assert len(images) == len(windows) > 10
    x, y = windows.xy[3]
    assert np.array_equal(images[3], slide.read_region(x, y, 64, 64, mpp=2.0))
