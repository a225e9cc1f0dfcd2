"""SpatialData stores: sections out of them, predictions back into them, cells as units."""

from __future__ import annotations

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from morphogen.cli.main import main
from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.expression import (
    DataConfig,
    ExpressionConfig,
    PrepareConfig,
    load_section,
    prepare_sections,
    read_sections,
    train_model,
)
from morphogen.expression.data import facts
from morphogen.expression.sections.readers import find_sections
from morphogen.expression.stores.cells import pitched_neighbours
from morphogen.slides import crop_fields, get_encoder
from morphogen.slides.formats.spatial import open_image

from .spatial_stores import GENES, cells, hd_store, picture, spots, visium_store, xenium_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return {
        "visium": visium_store(root / "v" / "visium.zarr"),
        "hd": hd_store(root / "h" / "hd.zarr"),
        "xenium": xenium_store(root / "x" / "xenium.zarr"),
    }


def test_visium_lies_on_the_pixels_of_its_largest_picture(stores):
    section = read_sections(stores["visium"])[0]
    xy, grid = spots()
    f = facts(section)
    assert f.section == "visium" and f.image == str(stores["visium"] / "images" / "full")
    assert f.technology == "Visium" and f.pitch_um == 100 and abs(f.pitch_px - 48) < 0.1
    assert np.allclose(section.obsm["spatial"], xy, atol=1e-6) and abs(f.spot_diameter_px - 26) < 1e-6
    assert list(section.var_names) == GENES and (section.obs["array_row"] == grid[:, 0]).all()
    assert set(section.obs["region"]) == {"spots"} and list(section.obs["instance"]) == list(range(len(xy)))


def test_the_picture_of_a_store_is_read_like_a_slide(stores):
    slide = open_image(stores["visium"] / "images" / "full", mpp=1.0)
    assert (slide.width, slide.height) == (600, 480) and len(slide.level_shapes) == 2
    whole = picture().transpose(1, 2, 0)
    assert np.array_equal(slide.read_region(100, 50, 64, 48), whole[50:98, 100:164])
    assert (slide.read_region(-20, 0, 20, 20) == 255).all()
    field = crop_fields(slide, np.array([[300.0, 200.0]]), 64, 64)[0]
    assert np.array_equal(field, whole[168:232, 268:332])


def test_bins_of_every_size_are_sections_with_their_pitch(stores):
    sections = {facts(s).section: s for s in read_sections(stores["hd"])}
    assert set(sections) == {"hd_square_008um", "hd_square_016um"}
    f = facts(sections["hd_square_016um"])
    assert (f.technology, f.pitch_um, f.pitch_px, f.spot_diameter_px) == ("Visium HD", 16, 16, 16)
    only = find_sections(stores["hd"], DataConfig(table="square_016um"))
    assert [source.section for source in only] == ["hd"]


def test_transcripts_are_counted_in_cells(stores):
    """From polygons and from labels: the same cells, the same counts, without what is of low quality or a control."""
    shaped = read_sections(stores["xenium"], DataConfig(units="nuclei"))[0]
    centres, _ = cells()
    order = [int(name.removeprefix("cell")) for name in shaped.obs["instance"]]
    assert np.allclose(shaped.obsm["spatial"], centres[order], atol=0.1)
    assert list(shaped.var_names) == sorted(GENES) and facts(shaped).mpp == 1.0
    labelled = read_sections(stores["xenium"], DataConfig(units="mask"))[0]
    of_shape = pd.Series(np.asarray(shaped.X.sum(1)).ravel(), [i + 1 for i in order])
    of_label = pd.Series(np.asarray(labelled.X.sum(1)).ravel(), labelled.obs["instance"].to_numpy())
    assert abs(of_label.reindex(of_shape.index) / of_shape - 1).max() < 0.15  # a mask has corners
    every = read_sections(stores["xenium"], DataConfig(units="nuclei", quality=0))[0]
    assert every.X.sum() == shaped.X.sum() + len(centres)
    right = centres[order][:, 0] > 400
    rising, falling = shaped[:, GENES[:6]].X, shaped[:, GENES[6:]].X
    assert rising[right].sum() > 2 * falling[right].sum()


def test_transcripts_are_counted_in_bins(stores):
    section = read_sections(stores["xenium"], DataConfig(bin_um=50))[0]
    f = facts(section)
    assert (f.pitch_um, f.mpp, f.spot_diameter_px) == (50, 1, 50) and f.technology == "bins"
    assert set(np.unique(section.obsm["spatial"] % 50)) == {25.0}
    assert section.X.sum() == read_sections(stores["xenium"], DataConfig(units="nuclei"))[0].X.sum()


def test_what_is_counted_is_said_on_the_command_line(stores, tmp_path, capsys):
    """A store without a table: the settings decide what its sections are, for the command as for Python."""
    line = ["expression", "prepare", stores["xenium"], "--out", tmp_path, "--data.bin_um", "120", "--json"]
    assert run(*line) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["section"], row["spots"]) == ("xenium", 20)
    tables = ["expression", "prepare", stores["hd"], "--out", tmp_path / "hd", "--data.table", "square_061um"]
    assert run(*tables) == 2 and "there is no table 'square_061um'" in capsys.readouterr().err


def test_prepared_from_a_store_and_skipped_when_it_is_there(stores, tmp_path):
    config = PrepareConfig(data=DataConfig(mpp=1.0, pitch_um=48))
    (path,) = prepare_sections(stores["visium"].parent, tmp_path, config)
    section = load_section(path)
    encoder = get_encoder("texture", device="cpu")
    field = crop_fields(open_image(facts(section).image, mpp=1.0), section.obsm["spatial"][:1], 112, 224)
    assert np.allclose(section.obsm["embedding"][0], encoder(field)[0].numpy(), atol=1e-4)
    stamp = path.stat().st_mtime_ns
    prepare_sections(stores["visium"].parent, tmp_path, config)
    assert path.stat().st_mtime_ns == stamp
    from PIL import Image

    hires = section.uns["spatial"]["visium"]["images"]["hires"]
    assert hires.shape == (480, 600, 3) and Image.fromarray(hires)


def test_what_a_store_lacks_is_said(stores, tmp_path):
    import spatialdata as sd

    xenium = stores["xenium"]
    cases = [
        (xenium, DataConfig(), "it has no table.*--data.bin_um 16"),
        (stores["visium"], DataConfig(bin_um=8), "no transcripts to count"),
        (stores["visium"], DataConfig(table="tabel"), "Did you mean 'table'"),
        (stores["visium"], DataConfig(image="ful"), "Did you mean 'full'"),
        (xenium, DataConfig(units="nucleus"), "Did you mean 'nuclei'"),
        (xenium, DataConfig(bin_um=8, points="dots"), "--data.points NAME"),
        (xenium, DataConfig(units="nuclei", quality=99), "none of .* transcripts"),
    ]
    blank = sd.read_zarr(stores["visium"])
    blind = sd.SpatialData(shapes={"spots": blank.shapes["spots"]}, tables={"table": blank.tables["table"]})
    blind.write(tmp_path / "blind.zarr")
    cases.append((tmp_path / "blind.zarr", DataConfig(), "it has no image, so there is no H&E"))
    grey = sd.SpatialData(
        images={"dapi": blank.images["dapi"]},
        shapes={"spots": blank.shapes["spots"]},
        tables={"table": blank["table"]},
    )
    grey.write(tmp_path / "grey.zarr")
    cases.append((tmp_path / "grey.zarr", DataConfig(), r"\(dapi\) are not in red, green and blue"))
    apart = sd.SpatialData(
        images={"full": blank.images["full"]},
        shapes={"spots": blank.shapes["spots"]},
        tables={"table": blank["table"]},
    )
    sd.transformations.remove_transformation(apart.shapes["spots"], "global")
    sd.transformations.set_transformation(apart.shapes["spots"], sd.transformations.Identity(), "elsewhere")
    apart.write(tmp_path / "apart.zarr")
    cases.append(
        (tmp_path / "apart.zarr", DataConfig(), "shares no coordinate system.*global against elsewhere")
    )
    for place, config, message in cases:
        with pytest.raises(InputError, match=message) as error:
            read_sections(place, config)
        assert len(str(error.value)) <= 300 and "\n" not in str(error.value)


# --- predictions back into them -------------------------------------------------------------------------------


TINY = {
    "network": {"width": 16, "depth": 1, "heads": 2, "genes_per_token": 2, "condition_heads": 4},
    "training": {"steps": 3, "batch_size": 16, "warmup_steps": 0, "validate_every": 3, "save_every": 3},
}


@pytest.fixture(scope="module")
def trained(stores, tmp_path_factory):
    """A model of the spots of the Visium store, and the prepared section."""
    root = tmp_path_factory.mktemp("trained")
    config = PrepareConfig(data=DataConfig(mpp=1.0, pitch_um=48))
    (path,) = prepare_sections(stores["visium"].parent, root / "prepared", config)
    recipe = ExpressionConfig(recipe="stem", panel={"size": 8, "highly_variable": 12}, **TINY)
    train_model([load_section(path)], recipe, root / "run", device="cpu")
    return root / "run" / "model", path


def test_predictions_go_back_to_the_shapes_they_came_from(trained, stores, tmp_path):
    import spatialdata as sd

    store = tmp_path / "visium.zarr"
    shutil.copytree(stores["visium"], store)
    before = sd.read_zarr(store)
    model, section = trained
    options = ["--samples", "2", "--device", "cpu", "--store", str(store)]
    assert (
        run("expression", "predict", section, "--model", model, "--out", tmp_path / "map.h5ad", *options) == 0
    )
    data = sd.read_zarr(store)
    table, result = data.tables["prediction"], ad.read_h5ad(tmp_path / "map.h5ad")
    assert table.uns["spatialdata_attrs"]["region"] in ("spots", ["spots"])
    assert np.allclose(table.X, result.layers["pred_mean"]) and np.allclose(
        table.layers["pred_std"], result.layers["pred_std"]
    )
    matched = sd.match_table_to_element(data, "spots", "prediction")
    assert len(matched) == len(data.shapes["spots"]) == table.n_obs
    assert set(data.images) == set(before.images) and np.array_equal(
        data["table"].X.toarray(), before["table"].X.toarray()
    )
    # A second time it replaces its own table, and a section of the store is still the one it was.
    assert (
        run("expression", "predict", section, "--model", model, "--out", tmp_path / "map.h5ad", *options) == 0
    )
    assert [facts(s).section for s in read_sections(store)] == ["visium"]
    plotted(data, "spots", "prediction", table.var_names[0], "full", tmp_path / "plot.png")


def plotted(data, shapes, table, gene, image, path):
    """What spatialdata-plot draws of it, unedited."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401
    from PIL import Image

    chain = data.pl.render_images(image).pl.render_shapes(shapes, color=gene, table_name=table)
    chain.pl.show(coordinate_systems="global", save=str(path), dpi=60)
    plt.close("all")
    drawn = np.asarray(Image.open(path).convert("RGB"))
    assert drawn.std() > 20 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 200


def test_cells_of_a_store_of_a_mask_and_of_geojson_are_the_same(trained, stores, tmp_path):
    import spatialdata as sd
    from PIL import Image

    model, _ = trained
    store = tmp_path / "xenium.zarr"
    shutil.copytree(stores["xenium"], store)
    one = ["--model", model, "--samples", "0", "--device", "cpu"]
    out = ["--out", tmp_path / "a.h5ad", "--geojson", tmp_path / "a.geojson", "--store", store]
    assert run("expression", "predict", store, "--cells", "nuclei", *one, *out) == 0
    result = ad.read_h5ad(tmp_path / "a.h5ad")
    assert result.n_obs == 80 and list(result.obs_names)[:2] == ["cell0", "cell1"]
    centres, radii = cells()
    assert np.allclose(result.obsm["spatial"], centres, atol=0.1)
    features = read_json(tmp_path / "a.geojson")["features"]
    assert (
        features[3]["properties"]["name"] == "cell3" and len(features[3]["geometry"]["coordinates"][0]) > 20
    )
    data = sd.read_zarr(store)
    table, gene = data.tables["prediction"], result.var_names[0]
    outlines = data.shapes["prediction_spots"]
    assert np.allclose(outlines.geometry.area, np.pi * radii**2, rtol=0.02)
    assert np.allclose(table[:, gene].X.ravel(), result.layers["pred_mean"][:, 0])
    plotted(data, "prediction_spots", "prediction", gene, "he", tmp_path / "plot.png")

    mask = np.asarray(data.labels["mask"].data).astype(np.uint16)
    Image.fromarray(picture().transpose(1, 2, 0)).save(tmp_path / "he.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for cells_file, name in ((tmp_path / "mask.png", "b"), (tmp_path / "a.geojson", "c")):
        line = ["--cells", cells_file, "--mpp", "1", *one, "--out", tmp_path / f"{name}.h5ad"]
        assert run("expression", "predict", tmp_path / "he.png", *line) == 0
        other = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        assert np.allclose(other.layers["pred_mean"], result.layers["pred_mean"], atol=0.05)


def test_a_slide_gets_a_store_of_its_own(trained, tmp_path):
    import spatialdata as sd
    from PIL import Image

    Image.fromarray(picture().transpose(1, 2, 0)).save(tmp_path / "he.png")
    line = ["--model", trained[0], "--mpp", "1", "--samples", "0", "--device", "cpu"]
    out = [
        "--out",
        tmp_path / "map.h5ad",
        "--store",
        tmp_path / "he.zarr",
        "--table",
        "genes",
        "--tissue",
        "all",
    ]
    assert run("expression", "predict", tmp_path / "he.png", *line, *out) == 0
    data = sd.read_zarr(tmp_path / "he.zarr")
    assert set(data.images) == {"he"} and set(data.tables) == {"genes"}
    plotted(data, "genes_spots", "genes", data["genes"].var_names[0], "he", tmp_path / "plot.png")


def test_neighbours_of_cells_lie_at_the_pitch_of_training():
    coords = np.stack(np.meshgrid(np.arange(0, 200, 10.0), np.arange(0, 200, 10.0)), axis=-1).reshape(-1, 2)
    near = pitched_neighbours(coords, 9, 50.0)
    middle = int(np.flatnonzero((coords == (100, 100)).all(axis=1))[0])
    away = coords[near[middle]] - coords[middle]
    assert near[middle, 0] == middle and set(map(tuple, np.abs(away))) == {(0, 0), (50, 0), (0, 50), (50, 50)}
    corner = int(np.flatnonzero((coords == (0, 0)).all(axis=1))[0])
    assert (near[corner] == -1).sum() == 5  # nothing lies beyond the border


def test_what_is_wrong_with_cells_and_stores(trained, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(picture().transpose(1, 2, 0)).save(tmp_path / "he.png")
    Image.fromarray(np.ones((480, 480), np.uint16)).save(tmp_path / "square.png")
    (tmp_path / "no.geojson").write_text("{")
    (tmp_path / "empty.geojson").write_text('{"features": []}')
    far = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [9999, 5]}}
    (tmp_path / "far.geojson").write_text(json.dumps({"features": [far]}))
    (tmp_path / "bad.geojson").write_text(
        json.dumps({"features": [{"geometry": {"type": "Polygon", "coordinates": [[["a", 1]]]}}]})
    )
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr" / "x").write_text("mine")
    one = [
        "expression",
        "predict",
        tmp_path / "he.png",
        "--model",
        trained[0],
        "--mpp",
        "1",
        "--samples",
        "0",
    ]
    one += ["--tissue", "all", "--device", "cpu", "--out", tmp_path / "out.h5ad"]
    for option, message in (
        (["--cells", tmp_path / "no.geojson"], "this is not GeoJSON"),
        (["--cells", tmp_path / "empty.geojson"], "no cells in it"),
        (["--cells", tmp_path / "far.geojson"], "lie outside the image"),
        (["--cells", tmp_path / "bad.geojson"], "feature 1 cannot be read"),
        (["--cells", tmp_path / "square.png"], "not of the shape of the image"),
        (["--cells", "nuclei"], "cells come as .geojson"),
        (["--store", tmp_path / "other.zarr"], "something else here"),
        (["--store", tmp_path / "new.zarr", "--table", "a b"], "cannot be called 'a b'"),
    ):
        assert run(*one, *option) == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said
    assert (tmp_path / "other.zarr" / "x").read_text() == "mine"


def run(*line) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in line])
    return int(end.value.code or 0)
