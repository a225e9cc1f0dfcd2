"""Tissue and tiles: where they are, how they are kept, what stays true when settings change or a run dies."""

from __future__ import annotations

import json
import os
import shutil

import geopandas as gpd
import numpy as np
import pytest
from shapely import Point, box

from morphogen.core.errors import ConfigError, InputError, OutputError, SlideError
from morphogen.slides import find_tissue, open_slide, tile_slide
from morphogen.slides.config import TileConfig
from morphogen.slides.store import read_attrs, read_store, shape_names, write_store
from morphogen.slides.tiles import read_tiles

# --- tissue ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["entropy", "otsu"])
def test_tissue_is_found_where_it_is(synthetic, method):
    tissue = find_tissue(open_slide(synthetic), method)
    wanted = Point(0, 0).buffer(1)
    wanted = gpd.GeoSeries([wanted]).scale(1600 * 0.35, 1200 * 0.35, origin=(0, 0)).translate(800, 600)[0]
    found = tissue.union_all()
    assert found.intersection(wanted).area / found.union(wanted).area > 0.85


def test_tissue_does_not_depend_on_the_pyramid(tmp_path, make_slide, make_tissue):
    image = make_tissue(1000, 1000, seed=3)
    deep = find_tissue(open_slide(make_slide(tmp_path / "deep.tif", image, levels=4))).union_all()
    flat = find_tissue(open_slide(make_slide(tmp_path / "flat.tif", image, levels=1))).union_all()
    assert deep.intersection(flat).area / deep.union(flat).area > 0.98


def test_a_blank_slide_has_no_tissue_and_no_tiles(blank, tmp_path):
    slide = open_slide(blank, out=tmp_path)
    assert len(find_tissue(slide)) == 0 and len(find_tissue(slide, "otsu")) == 0
    tiles, new = tile_slide(slide)
    assert len(tiles) == 0 and new
    again, new = tile_slide(open_slide(blank, out=tmp_path))
    assert len(again) == 0 and not new  # remembered, not searched again


def test_shading_is_no_tissue(tmp_path, make_slide):
    """Glass under uneven light, with camera noise."""
    noise = np.random.default_rng(5).normal(0, 2, (1200, 1600, 3))
    image = (243 + noise - np.linspace(0, 40, 1600)[None, :, None]).clip(0, 255).astype(np.uint8)
    slide = open_slide(make_slide(tmp_path / "glass.tif", image))
    assert len(find_tissue(slide)) == 0 and len(find_tissue(slide, "otsu")) == 0


def test_the_noise_of_bare_glass_is_no_tissue(shared):
    """A pale IHC image, a third of it glass with JPEG noise: the glass is left out, the tissue is not."""
    import cv2
    from shapely import contains_xy

    slide = open_slide(shared / "data" / "pairs" / "bci" / "valB" / "00345_test_0.png", mpp=0.5)
    image = slide.read_region(0, 0, slide.width, slide.height)
    y, x = np.mgrid[: slide.height : 8, : slide.width : 8]
    glass = cv2.medianBlur(image, 9).min(axis=2)[::8, ::8] > 244
    found = contains_xy(find_tissue(slide).union_all(), x, y)
    assert glass.mean() > 0.25
    assert found[glass].mean() < 0.15 and found[~glass].mean() > 0.6


def test_ihc_and_whole_slide_modes(shared, synthetic):
    """The entropy method takes brown and blue for tissue; ``all`` asks nothing."""
    ihc = open_slide(shared / "data" / "patches" / "skimage_ihc_colon.png", mpp=0.5)
    assert find_tissue(ihc).union_all().area > 0.7 * ihc.width * ihc.height
    assert find_tissue(open_slide(synthetic), "all").union_all().equals(box(0, 0, 1600, 1200))


# --- tiles -----------------------------------------------------------------------------------------------


def test_tiles_lie_in_tissue_on_whole_pixels_inside_the_slide(synthetic, tmp_path):
    slide = open_slide(synthetic, out=tmp_path)
    config = TileConfig(tile_px=64, tile_mpp=0.73, min_tissue=0.6, overlap=16)
    tiles, _ = tile_slide(slide, config)
    side = round(64 * 0.73 / 0.5)
    assert len(tiles) > 50 and (tiles.boxes[:, 2:] == side).all()
    assert np.array_equal(tiles.boxes, np.rint(tiles.boxes))
    assert (tiles.boxes[:, :2] >= 0).all() and (tiles.boxes[:, :2] + side <= [1600, 1200]).all()
    tissue = read_store(slide).shapes["tissues"].union_all()
    shares = [box(x, y, x + w, y + h).intersection(tissue).area / w / h for x, y, w, h in tiles.boxes]
    assert min(shares) >= 0.6 - 1e-9
    steps = np.unique(np.diff(np.unique(tiles.boxes[:, 0])))
    assert (steps % round(48 * 0.73 / 0.5) == 0).all()
    covered = gpd.GeoSeries([box(x, y, x + w, y + h) for x, y, w, h in tiles.boxes]).union_all()
    assert covered.intersection(tissue).area > 0.85 * tissue.area


@pytest.mark.parametrize("mpp, side", [(0.499, 224), (0.25, 448), (0.2525, 444), (0.5045, 222), (0.73, 153)])
def test_a_tile_of_112_um_whatever_the_slide(synthetic, tmp_path, mpp, side):
    """Also when the slide is a little coarser than the tiles, which LazySlide alone refuses."""
    tiles, _ = tile_slide(open_slide(synthetic, mpp=mpp, out=tmp_path), TileConfig(tissue="all"))
    assert (tiles.boxes[:, 2:] == side).all() and len(tiles) == (1600 // side) * (1200 // side)


def test_lazyslide_and_wsidata_read_the_store(synthetic, tmp_path):
    from wsidata import open_wsi

    slide = open_slide(synthetic, mpp=0.5045, out=tmp_path)
    tiles, _ = tile_slide(slide)
    wsi = open_wsi(synthetic, store=str(tmp_path))
    spec = wsi.tile_spec("tiles")
    assert (spec.width, spec.base_width, spec.ops_width) == (224, 222, 222)
    assert wsi.properties.mpp == 0.5045
    first = next(wsi.iter.tile_images("tiles"))
    assert first.image.shape == (224, 224, 3)
    bounds = wsi.shapes["tiles"].bounds.to_numpy()
    assert np.array_equal(bounds[:, :2], tiles.boxes[:, :2])


def test_the_given_micrometres_are_remembered(real, tmp_path):
    tile_slide(open_slide(real["cyto"], mpp=0.25, out=tmp_path), TileConfig(tissue="all", tile_px=512))
    again = open_slide(real["cyto"], out=tmp_path)
    assert again.mpp == 0.25 and again.mpp_source == "store"


def test_other_settings_need_overwrite_and_take_the_features_along(synthetic, tmp_path):
    import anndata

    slide = open_slide(synthetic, out=tmp_path)
    tiles, new = tile_slide(slide)
    assert new and not tile_slide(slide)[1]
    write_store(slide, tables={"old_tiles": anndata.AnnData(np.zeros((len(tiles), 2), np.float32))})
    with pytest.raises(OutputError, match=r"made with other settings \(tile_px\)"):
        tile_slide(slide, TileConfig(tile_px=128))
    with pytest.raises(OutputError, match="slide_mpp"):
        tile_slide(open_slide(synthetic, mpp=0.25, out=tmp_path))
    fewer, new = tile_slide(slide, TileConfig(tile_px=448), overwrite=True)
    assert new and len(fewer) < len(tiles)
    assert list(read_store(open_slide(synthetic, out=tmp_path)).tables) == []


def test_tissue_drawn_by_hand_is_used(synthetic, tmp_path):
    from spatialdata.models import ShapesModel

    slide = open_slide(synthetic, out=tmp_path)
    drawn = gpd.GeoDataFrame({"tissue_id": [7]}, geometry=[box(600, 400, 1048, 848)])
    write_store(slide, shapes={"tissues": ShapesModel.parse(drawn)})
    tiles, _ = tile_slide(slide)
    assert sorted(map(tuple, tiles.boxes[:, :2])) == [(600, 400), (600, 624), (824, 400), (824, 624)]
    assert set(tiles.tissue_id) == {7}
    assert read_store(slide).shapes["tissues"].geometry.iloc[0].equals(box(600, 400, 1048, 848))


def test_nonsense_is_refused(synthetic, tmp_path, real):
    slide = open_slide(synthetic, out=tmp_path)
    with pytest.raises(InputError, match="overlap of 224 px leaves nothing"):
        tile_slide(slide, TileConfig(overlap=224))
    with pytest.raises(ConfigError, match="min_tissue"):
        TileConfig(min_tissue=1.5)
    with pytest.raises(SlideError, match="--mpp"):
        tile_slide(open_slide(real["tcga"], out=tmp_path))
    with pytest.raises(InputError, match="slide tile"):
        read_tiles(open_slide(real["cmu"], out=tmp_path))
    tiles, _ = tile_slide(slide, TileConfig(tile_px=2000, tissue="all"))  # larger than the slide
    assert len(tiles) == 0


# --- the store -------------------------------------------------------------------------------------------


def _files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_failed_write_leaves_the_store_as_it_was(synthetic, tmp_path, monkeypatch):
    import anndata
    import spatialdata

    slide = open_slide(synthetic, out=tmp_path)
    tiles, _ = tile_slide(slide)
    before = _files(slide.store)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    table = anndata.AnnData(np.zeros((len(tiles), 2), np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(spatialdata.SpatialData, "write_attrs", full)
        with pytest.raises(OutputError, match="the disk is full"):
            write_store(slide, tables={"new": table}, shapes={"tiles": read_store(slide).shapes["tiles"]})
    assert _files(slide.store) == before
    assert [p.name for p in tmp_path.iterdir()] == [slide.store.name]  # nothing half-written is left
    write_store(slide, tables={"new": table})
    after = _files(slide.store)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"zarr.json"}  # elements that did not change were not rewritten


def test_a_clone_without_hard_links_is_the_same(synthetic, tmp_path, monkeypatch):
    slide = open_slide(synthetic, out=tmp_path)
    tiles, _ = tile_slide(slide)

    def refuse(*_):
        raise OSError("not supported here")

    monkeypatch.setattr(os, "link", refuse)
    write_store(slide, attrs={"note": {"a": 1}})
    assert read_attrs(slide.store)["note"] == {"a": 1}
    assert np.array_equal(read_tiles(open_slide(synthetic, out=tmp_path)).boxes, tiles.boxes)


def test_dropping_an_element_leaves_a_readable_store(synthetic, tmp_path):
    import spatialdata

    slide = open_slide(synthetic, out=tmp_path)
    tile_slide(slide)
    write_store(slide, drop=["tissues"])
    assert shape_names(slide.store) == ["tiles"]
    assert list(spatialdata.read_zarr(slide.store).shapes) == ["tiles"]


def test_an_unwritable_place(synthetic, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a file of this name|part of this path"):
        tile_slide(open_slide(synthetic, out=tmp_path / "file"))
    shutil.rmtree(tmp_path / "file", ignore_errors=True)


def test_a_store_of_the_right_shape_is_json_first(synthetic, tmp_path):
    """µm/px is read from the store's attributes alone, so opening a slide does not load its results."""
    slide = open_slide(synthetic, mpp=0.4, out=tmp_path)
    tile_slide(slide)
    attrs = json.loads((slide.store / "zarr.json").read_text())["attributes"]
    assert attrs["slide_properties"]["mpp"] == 0.4
    shutil.rmtree(slide.store / "shapes")
    assert open_slide(synthetic, out=tmp_path).mpp == 0.4
