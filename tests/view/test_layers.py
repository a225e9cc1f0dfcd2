"""Tiles are what the file holds, values are those of the table, and all lies where it belongs."""

from __future__ import annotations

import io
import json

import anndata as ad
import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError, SlideError
from morphogen.slides import open_slide
from morphogen.slides.pyramid import write_pyramid
from morphogen.view import open_view
from morphogen.view.config import ViewConfig
from morphogen.view.layers.display import STAINS, lookup, stain_density
from morphogen.view.layers.images import open_image
from morphogen.view.layers.outlines import OutlineLayer
from morphogen.view.layers.spots import SpotLayer

from .conftest import GENES, HEIGHT, MPP, WIDTH, write_genes


def decoded(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def test_tiles_of_the_full_resolution_are_the_slides_own_pixels(results):
    layer = open_image(results / "slide.ome.tif", "slide", tile=256)
    slide = open_slide(results / "slide.ome.tif")
    last = layer.levels - 1
    for column, row in ((0, 0), (2, 1), (5, 4)):  # the last one is cut by the border
        w, h = min(256, WIDTH - column * 256), min(256, HEIGHT - row * 256)
        region = slide.read_region(column * 256, row * 256, w, h)
        assert np.array_equal(layer.pixels(last, column, row), region)
        shown = decoded(layer.tile_bytes("colour", last, column, row)).astype(int)
        assert shown.shape == region.shape
        assert np.abs(shown - region).mean() < 2  # JPEG


def test_levels_halve_and_join_to_the_whole(results):
    layer = open_image(results / "slide.ome.tif", "slide", tile=256)
    assert [layer.level_size(k) for k in range(layer.levels)] == [
        (188, 138),
        (375, 275),
        (750, 550),
        (1500, 1100),
    ]
    middle = np.block([[[layer.pixels(1, column, row)] for column in range(2)] for row in range(2)])
    assert middle.shape == (275, 375, 3)
    exact = open_slide(results / "slide.ome.tif").read_box(0, 0, WIDTH, HEIGHT, 375, 275)
    assert np.abs(middle.astype(int) - exact).max() <= 1


@pytest.mark.parametrize("place", [(4, 0, 0), (3, 6, 0), (3, 0, 5), (0, 1, 0)])
def test_tiles_that_are_not_there_are_refused(results, place):
    with pytest.raises(InputError, match="there is no"):
        open_image(results / "slide.ome.tif", "slide", tile=256).pixels(*place)


def test_uncertainty_is_shown_through_a_map_between_its_limits_and_read_as_it_is(results):
    layer = open_image(results / "slide_uncertainty.ome.tif", "u", tile=256)
    assert layer.grey and layer.modes[0] == "magma" and layer.notes["unit"].startswith("SD of DAB")
    assert layer.limits == (0.0, 99.0)
    tile = decoded(layer.tile_bytes("viridis", layer.levels - 1, 2, 0))
    wanted = lookup("viridis")[np.round((np.arange(512, 768) * 100 // WIDTH) / 99 * 255).astype(int)]
    assert np.array_equal(tile[0], wanted)
    assert layer.value(1490.4, 3) == {"value": 99}
    assert layer.value(-1, 0) == {} == layer.value(0, HEIGHT)


def test_classes_are_never_averaged(results):
    layer = open_image(results / "slide_mask.ome.tif", "m", tile=256)
    assert layer.classes == ["background", "tumour", "stroma"] and layer.modes == ["classes"]
    for level in range(layer.levels):
        assert set(np.unique(layer.pixels(level, 0, 0))) <= {0, 1, 2}
    assert layer.value(450, 350) == {"class": "stroma"}
    assert [each["name"] for each in layer.described()["classes"]] == layer.classes


def test_deep_grey_images_keep_their_numbers(tmp_path):
    values = np.arange(300 * 200, dtype=np.uint16).reshape(200, 300) % 5001
    Image.fromarray(values).save(tmp_path / "u.png")
    layer = open_image(tmp_path / "u.png", "u", tile=128)
    assert layer.value(5, 7) == {"value": int(values[7, 5])}
    assert np.array_equal(layer.pixels(layer.levels - 1, 1, 1), values[128:200, 128:256])
    assert 4900 < layer.limits[1] <= 5000


@pytest.mark.parametrize("stain", sorted(STAINS))
def test_stain_densities_are_those_of_the_package(stain):
    from morphogen.slides.colour import deconvolve

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    name, channel, _ = STAINS[stain]
    wanted = deconvolve(pixels[None], name)[0, channel].numpy().clip(0)
    assert np.allclose(stain_density(pixels, stain), wanted, atol=2e-3)


def test_stains_are_shown_alone(results):
    layer = open_image(results / "slide.ome.tif", "slide", tile=256)
    pixel = layer.value(10, 10, "haematoxylin")
    assert pixel["rgb"] == open_slide(results / "slide.ome.tif").read_region(10, 10, 1, 1)[0, 0].tolist()
    assert 0 <= pixel["density"] < 1
    shown = decoded(layer.tile_bytes("DAB", layer.levels - 1, 0, 0)).astype(int)
    assert shown[..., 0].mean() > shown[..., 1].mean() > shown[..., 2].mean()  # brown on white


def test_a_large_reduction_reads_little(tmp_path):
    """A slide with one level: its coarse tiles come from the picture of the whole, not from all pixels again."""
    rows = np.zeros((64, 9000, 3), np.uint8) + 200
    write_pyramid(tmp_path / "s.tif", (rows for _ in range(60)), 9000, 3840, mpp=0.5)
    layer = open_image(tmp_path / "s.tif", "s", tile=256)
    asked = []
    read = layer.slide.read_box
    layer.slide.level_downsamples = [1.0]
    layer.slide.read_box = lambda *box: asked.append(box) or read(*box)  # type: ignore[method-assign]
    assert layer.pixels(0, 0, 0).mean() == pytest.approx(200, abs=1)
    assert not asked


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_values_are_those_of_the_table(tmp_path, kind):
    table = write_genes(tmp_path / "g.h5ad", kind=kind)
    layer = SpotLayer("g", tmp_path / "g.h5ad")
    assert layer.genes == GENES
    assert list(layer.quantities.values()) == ["measured", "predicted mean", "uncertainty (SD)"]
    for gene in range(4):
        assert np.array_equal(layer.values(0, gene), table.to_df().iloc[:, gene].to_numpy())
        assert np.array_equal(layer.values(1, gene), table.layers["pred_mean"][:, gene])
    assert layer.described()["labels"] == [{"name": "cluster", "categories": ["a", "b"]}]
    assert layer.label_values(0)[:3].tolist() == [0, 1, 0]
    assert layer.square and layer.diameter == pytest.approx(120)
    for wrong in ((3, 0), (0, 4)):
        with pytest.raises(InputError, match="no quantity"):
            layer.values(*wrong)


def test_spots_count_from_the_corner_of_the_bounds(tmp_path):
    table = write_genes(tmp_path / "g.h5ad")
    table.uns["morphogen"]["section"] |= {"origin_x": 10.0, "origin_y": 20.0, "spot_diameter_px": 55.0}
    table.write_h5ad(tmp_path / "g.h5ad")
    layer = SpotLayer("g", tmp_path / "g.h5ad")
    assert layer.points[0].tolist() == [50, 40] and layer.diameter == 55 and not layer.square


def test_predictions_without_measurements_do_not_show_a_copy_as_measured(tmp_path):
    table = write_genes(tmp_path / "g.h5ad")
    table.uns["morphogen"]["prediction"] = {"X": "a copy of the predicted mean; nothing was measured here"}
    table.write_h5ad(tmp_path / "g.h5ad")
    assert "measured" not in SpotLayer("g", tmp_path / "g.h5ad").quantities.values()


def test_tables_bring_their_picture_where_no_image_is_named(tmp_path):
    table = write_genes(tmp_path / "g.h5ad")
    image = np.full((110, 150, 3), 0.5, np.float32)
    library = {
        "images": {"hires": image},
        "scalefactors": {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 80.0},
    }
    table.uns["spatial"] = {"S": library}
    table.write_h5ad(tmp_path / "g.h5ad")
    view = open_view([tmp_path / "g.h5ad"])
    assert view.size == (150, 110) and view.mpp == pytest.approx(MPP / 0.1)
    assert view.places == [(1.0, 0.0, 0.0), (pytest.approx(0.1), 0.0, 0.0)]
    assert view.image(0).whole()[0, 0].tolist() == [127, 127, 127]


def test_layers_are_laid_over_the_first_image(results, tmp_path):
    half = np.full((HEIGHT // 2, WIDTH // 2, 3), 120, np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    write_pyramid(tmp_path / "crop.tif", [half[:200, :300]], 300, 200, mpp=1.0)
    table = write_genes(tmp_path / "g.h5ad")
    table.uns["morphogen"]["section"]["mpp"] = 1.0
    table.write_h5ad(tmp_path / "g.h5ad")
    named = [results / "slide.ome.tif", tmp_path / "half.png", tmp_path / "crop.tif", tmp_path / "g.h5ad"]
    view = open_view(named)
    assert [place[0] for place in view.places] == [
        1.0,
        pytest.approx(2.0),
        pytest.approx(2.0),
        pytest.approx(2.0),
    ]


def test_outlines_keep_class_name_and_numbers(results):
    layer = OutlineLayer("cells", results / "cells.geojson")
    (feature,) = layer.features
    assert feature["rings"] == [[100, 100, 300, 100, 300, 250, 100, 250, 100, 100]]
    assert feature["values"] == {"area": 30000.0} and feature["class"].startswith("<img")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1, 2]",
        '{"type": "x"}',
        '{"features": [{"geometry": {"type": "Polygon", "coordinates": 5}}]}',
        '{"features": [{"geometry": {"type": []}}]}',
    ],
)
def test_broken_outlines_are_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(InputError) as said:
        OutlineLayer("a", tmp_path / "a.geojson")
    assert "a.geojson" in str(said.value) and len(str(said.value)) <= 300


def test_what_cannot_be_opened_is_left_out_and_named(results, tmp_path, caplog):
    (tmp_path / "bad.png").write_bytes(b"no image")
    view = open_view([results / "slide.ome.tif", tmp_path / "bad.png"])
    assert len(view.layers) == 1 and len(view.failed) == 1 and "bad.png" in view.failed[0]
    with pytest.raises(SlideError):
        open_view([tmp_path / "bad.png"])
    with pytest.raises(InputError, match="no such file"):
        open_view([tmp_path / "none.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        open_view([tmp_path / "empty"])


def test_a_folder_is_what_it_holds_and_names_are_told_apart(results, tmp_path):
    view = open_view([results], ViewConfig(tile=256))
    assert [layer.kind for layer in view.layers] == ["image"] * 4 + ["spots", "outlines"]
    other = tmp_path / "slide.ome.tif"
    other.write_bytes((results / "slide.ome.tif").read_bytes())
    names = [layer.name for layer in open_view([results / "slide.ome.tif", other]).layers]
    assert len(set(names)) == 2 and all(name.endswith("slide.ome.tif") for name in names)


def test_a_table_without_places_is_refused(tmp_path):
    ad.AnnData(np.ones((3, 2), np.float32)).write_h5ad(tmp_path / "t.h5ad")
    with pytest.raises(InputError, match="obsm"):
        SpotLayer("t", tmp_path / "t.h5ad")


def test_the_description_is_plain(results):
    described = open_view([results]).described()
    assert json.loads(json.dumps(described)) == described
    assert described["width"] == WIDTH and described["mpp"] == MPP
