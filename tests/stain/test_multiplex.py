"""Five simulated channels from pairs to a slide that other programs open."""

import numpy as np
import pytest
import tifffile

from morphogen.demo.simulator.simulator import TissueSimulator
from morphogen.demo.simulator.styles import Region
from morphogen.demo.writers.multiplex import CHANNELS, COLOURS, multiplex, write_multiplex
from morphogen.demo.writers.slides import write_slide
from morphogen.stain import stain_slide
from morphogen.stain.config import ApplyConfig, DataConfig, SamplerConfig, TrainConfig
from morphogen.stain.data import find_pairs
from morphogen.stain.train import train_model
from morphogen.tasks.config import WindowConfig
from morphogen.training import TrainingConfig

from .conftest import TINY


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """The stained slide of a model of five channels."""
    root = tmp_path_factory.mktemp("multiplex")
    table = write_multiplex(root / "pairs", 1, 128, patients=2, mpp=2.0)
    assert write_multiplex(root / "pairs", 1, 128, patients=2, mpp=2.0) == table
    settings = TrainConfig(
        data=DataConfig(crop=32, mpp=2.0),
        model=TINY.replace(regression=True, colour_start=True, colour_degree=3),
        training=TrainingConfig(steps=2, batch_size=2, save_every=2),
    )
    model = train_model(find_pairs(table), settings, root / "run").model
    source = write_slide(root / "slide.ome.tif", 200, 150, simulator=TissueSimulator(0, mpp=2.0))
    apply = ApplyConfig(sampler=SamplerConfig.mean(), windows=WindowConfig(window=64, overlap=16))
    return stain_slide(model, source, root / "stained", apply).image


def test_channels_are_what_was_simulated():
    he, channels = multiplex(0, "P1", 0, 0, 96, 64, mpp=1.0)
    plain = TissueSimulator(0, patient="P1", mpp=1.0, target="her2").render(0, 0, 96, 64, ihc=False)
    np.testing.assert_array_equal(he, plain.he)
    dark = channels.min()
    assert channels.shape == (64, 96, 5) and channels.dtype == np.uint16
    np.testing.assert_array_equal(channels[..., 0] > dark, plain.instances > 0)
    np.testing.assert_array_equal(channels[..., 4] > dark, plain.regions == Region.STROMA)
    np.testing.assert_allclose((channels[..., 3].astype(float) - dark) / 20_000, plain.dab_od, atol=1e-4)


def test_tifffile_reads_names_colours_and_levels(slide):
    with tifffile.TiffFile(slide) as file:
        series = file.series[0]
        assert (series.axes, series.shape, series.dtype) == ("CYX", (5, 150, 200), np.uint16)
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [each["Name"] for each in image["Channel"]] == list(CHANNELS)
        wanted = [int(f"{colour[1:]}ff", 16) for colour in COLOURS]
        assert [int(each["Color"]) % 2**32 for each in image["Channel"]] == wanted
        assert image["PhysicalSizeX"] == 2.0 and series.asarray().std(axis=(1, 2)).min() > 0


def test_openslide_shows_the_first_channel(slide):
    """It knows no channels: it opens the file as a plain pyramid of the first."""
    openslide = pytest.importorskip("openslide")
    assert openslide.OpenSlide.detect_format(slide) == "generic-tiff"
    with openslide.OpenSlide(slide) as opened:
        assert opened.dimensions == (200, 150)


def test_bioio_reads_it(slide):
    bioio = pytest.importorskip("bioio")
    pytest.importorskip("bioio_ome_tiff")
    image = bioio.BioImage(slide)
    assert image.channel_names == list(CHANNELS) and image.dims.C == 5
    with tifffile.TiffFile(slide) as file:
        np.testing.assert_array_equal(image.get_image_data("CYX"), file.series[0].asarray())
