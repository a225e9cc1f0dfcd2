"""Slides: pyramids of several layers at the slide's own µm/px, the same bytes after a kill."""

import numpy as np
import pytest
from shapely import box

from morphogen.core.errors import OutputError
from morphogen.slides import PyramidWriter, open_slide
from morphogen.tasks import (
    Glass,
    Layer,
    PyramidJob,
    WindowConfig,
    plan_windows,
    pyramids,
    slide_facts,
    translate_slide,
)

from .conftest import Copier

LAYERS = [
    Layer("", lambda band: band.picture(), codec="deflate", facts={"made by": "a copy"}),
    Layer(
        "grey",
        lambda band: band.values(3).astype(np.uint8),
        channels=1,
        codec="deflate",
        background=0,
    ),
]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """520 × 600 px at 0.5 µm/px."""
    path = tmp_path_factory.mktemp("slide") / "tissue.ome.tif"
    image = np.random.default_rng(0).integers(40, 220, (600, 520, 3), dtype=np.uint8)
    with PyramidWriter(path, 520, 600, mpp=0.5, tile=256, codec="deflate") as writer:
        writer.write(image, 0)
    return path


def run(path, out, glass=True, **changes):
    model = Copier()
    with open_slide(path) as slide:
        plan = plan_windows(model, WindowConfig(window=128, overlap=32), slide.width, slide.height)
        around = Glass([box(100, 120, 300, 330)], slide.width, slide.height, 0.5) if glass else None
        job = PyramidJob(
            out,
            "tissue_copy",
            {"model": "copy", **slide_facts(slide, plan, around), **changes},
            LAYERS,
            slide.width,
            slide.height,
            mpp=0.5,
            borders=plan.borders(),
        )
        return translate_slide(model, slide, plan, job, glass=around)


def pixels(path):
    with open_slide(path, 0.5) as slide:
        return slide.read_region(0, 0, max(slide.width, slide.height), max(slide.width, slide.height))[
            : slide.height, : slide.width
        ]


def test_a_copy_of_a_slide_is_the_slide(slide, tmp_path):
    result = run(slide, tmp_path, glass=False)
    assert sorted(result.images) == ["", "grey"] and result.windows == 6 * 6
    assert result.images["grey"].name == "tissue_copy_grey.ome.tif"
    source = pixels(slide)
    np.testing.assert_array_equal(pixels(result.images[""]), source)
    grey = pixels(result.images["grey"])[..., 0].astype(int)
    assert np.abs(grey - source.mean(axis=2)).max() <= 1
    assert result.seams.worst < 1.2
    again = run(slide, tmp_path, glass=False)  # recognised
    assert again.windows == result.windows and again.seams == result.seams


def test_glass_stays_white_in_every_layer(slide, tmp_path):
    result = run(slide, tmp_path)
    assert 0 < result.windows < 36
    picture, grey = pixels(result.images[""]), pixels(result.images["grey"])[..., 0]
    np.testing.assert_array_equal(picture[130:320, 110:290], pixels(slide)[130:320, 110:290])
    assert (picture[:, 420:] == 255).all() and (grey[:, 420:] == 0).all()


def test_a_killed_run_goes_on_to_the_same_bytes(slide, tmp_path, monkeypatch):
    whole = run(slide, tmp_path / "whole")
    real, firsts = pyramids.make_bands, []

    def dies(*args, **options):
        for number, band in enumerate(real(*args, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield band

    monkeypatch.setattr(pyramids, "make_bands", dies)
    with pytest.raises(KeyboardInterrupt):
        run(slide, tmp_path / "part")
    assert not (tmp_path / "part" / "tissue_copy.ome.tif").exists()
    monkeypatch.setattr(pyramids, "make_bands", lambda *a, **o: firsts.append(o["first"]) or real(*a, **o))
    part = run(slide, tmp_path / "part")
    assert firsts == [3]
    for name, path in whole.images.items():
        assert part.images[name].read_bytes() == path.read_bytes()
    assert not list((tmp_path / "part").glob(".*"))  # nothing half-written is left


def test_the_result_of_another_job_is_not_overwritten(slide, tmp_path):
    before = run(slide, tmp_path).images[""].read_bytes()
    with pytest.raises(OutputError, match=r"the slide of another run \(model was copy, now other\)"):
        run(slide, tmp_path, model="other")
    assert (tmp_path / "tissue_copy.ome.tif").read_bytes() == before
