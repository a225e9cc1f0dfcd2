"""SpatialData stores: sections out of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from morphogen.core.errors import InputError
from morphogen.expression import DataConfig, PrepareConfig, load_section, prepare_sections, read_sections
from morphogen.expression.data import facts
from morphogen.expression.sections.readers import find_sections
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
