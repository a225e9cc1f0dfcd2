"""Whole slides: a pyramid at the slide's own µm/px, the same bytes after a kill, glass left white."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from shapely import box

from morphogen.core.errors import OutputError, SlideError
from morphogen.slides import open_slide
from morphogen.slides.pyramid.writer import PyramidWriter
from morphogen.stain.config import ApplyConfig, SamplerConfig, WindowConfig
from morphogen.stain.predict import stain_slide

from .conftest import he_like

QUICK = ApplyConfig(
    sampler=SamplerConfig(solver="mean", steps=1), windows=WindowConfig(window=128, overlap=32, batch=4)
)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """520 × 600 px at 0.5 µm/px: tissue in the middle of glass."""
    path = tmp_path_factory.mktemp("slide") / "tissue.ome.tif"
    image = np.full((600, 520, 3), 245, np.uint8)
    image[150:450, 100:400] = he_like(np.random.default_rng(0), 300)
    with PyramidWriter(path, 520, 600, mpp=0.5, tile=256, codec="deflate") as writer:
        writer.write(image, 0)
    return path


def test_pyramid_at_the_slides_own_scale(tiny, slide, tmp_path):
    import openslide

    tiny.mpp = 0.5
    config = QUICK.replace(samples=2, sampler=SamplerConfig(solver="dpmpp_2m_sde", steps=2))
    out = stain_slide(tiny, slide, tmp_path, config)
    assert out.image.name == "tissue_IHC.ome.tif"
    opened = openslide.OpenSlide(str(out.image))
    assert opened.dimensions == (520, 600) and float(opened.properties["openslide.mpp-x"]) == pytest.approx(
        0.5
    )
    doubt = openslide.OpenSlide(str(out.uncertainty))
    assert doubt.dimensions == (520, 600)
    pixels = np.array(opened.read_region((0, 0), 0, (520, 600)))[..., :3]
    assert (pixels[:16] >= 250).all() and (pixels[-16:] >= 250).all()  # no tissue, no stain
    assert pixels[200:400, 150:350].mean() < 250
    assert out.windows and out.seams is not None and np.isfinite(out.seams.worst)
    again = stain_slide(tiny, slide, tmp_path, config)  # finished: recognised
    assert again.windows == out.windows and again.seams == out.seams


def test_slide_read_at_the_models_scale_is_written_at_its_own(copying, slide, tmp_path):
    import openslide

    copying.mpp = 1.0
    config = QUICK.replace(windows=WindowConfig(window=64, overlap=16))
    out = stain_slide(copying, slide, tmp_path, config)
    opened = openslide.OpenSlide(str(out.image))
    assert opened.dimensions == (520, 600) and float(opened.properties["openslide.mpp-x"]) == pytest.approx(
        0.5
    )
    source = openslide.OpenSlide(str(slide)).read_region((100, 150), 0, (300, 300))
    made = opened.read_region((100, 150), 0, (300, 300))
    a, b = (np.array(image)[..., :3].astype(float) for image in (source, made))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9


def test_the_stain_lies_over_the_slide_as_qupath_crops_it(copying, slide, tmp_path):
    """SCN and MRXS: the stained pyramid has the size of the bounds, and says where their corner is."""
    import openslide

    copying.mpp = 0.5
    opened = open_slide(slide)
    opened.bounds = (90, 140, 330, 320)
    out = stain_slide(copying, opened, tmp_path, QUICK)
    made = openslide.OpenSlide(str(out.image))
    assert made.dimensions == (330, 320) and out.facts["bounds"] == [90, 140, 330, 320]
    assert "90, 140 level-0 px" in made.properties["openslide.comment"]
    pixels = np.array(made.read_region((10, 10), 0, (300, 300)))[..., :3].astype(float)
    source = opened.read_region(100, 150, 300, 300)
    assert np.corrcoef(source.ravel(), pixels.ravel())[0, 1] > 0.9
    near = np.array(made.read_region((10, 10), 0, (40, 300)))[..., :3].mean()
    assert near < 235  # tissue reaches the left side of the crop: it was not shifted


def test_interrupted_run_resumes_to_the_same_bytes(tiny, slide, tmp_path, monkeypatch):
    import morphogen.tasks.pyramids as module

    config = QUICK.replace(
        samples=2,
        sampler=SamplerConfig(solver="dpmpp_2m_sde", steps=2),
        windows=QUICK.windows.replace(tissue_only=False),
    )
    whole = stain_slide(tiny, slide, tmp_path / "whole", config)
    real, count = module.make_bands, [0]

    def dies(*args, **options):
        for band in real(*args, **options):
            yield band
            count[0] += 1
            if count[0] == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "make_bands", dies)
    with pytest.raises(KeyboardInterrupt):
        stain_slide(tiny, slide, tmp_path / "part", config)
    monkeypatch.setattr(module, "make_bands", real)
    assert not (tmp_path / "part" / whole.image.name).exists()
    firsts = []
    monkeypatch.setattr(module, "make_bands", lambda *a, **o: firsts.append(o["first"]) or real(*a, **o))
    part = stain_slide(tiny, slide, tmp_path / "part", config)
    assert firsts == [3]
    assert part.image.read_bytes() == whole.image.read_bytes()
    assert part.uncertainty.read_bytes() == whole.uncertainty.read_bytes()
    assert part.seams.worst == pytest.approx(whole.seams.worst, rel=1e-6)
    assert not list((tmp_path / "part").glob(".*"))  # nothing half-written is left


def test_result_of_another_run_is_not_overwritten(tiny, slide, tmp_path):
    first = stain_slide(tiny, slide, tmp_path, QUICK)
    before = first.image.read_bytes()
    with pytest.raises(OutputError, match=r"the stained slide of another run \(apply.seed was 0, now 4\)"):
        stain_slide(tiny, slide, tmp_path, QUICK.replace(seed=4))
    assert first.image.read_bytes() == before


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_bytes(tiny, slide, tmp_path):
    """SIGKILL half-way, in a process of its own."""
    model = tiny.save_pretrained(tmp_path / "model")
    script = textwrap.dedent(
        """
        import os, sys
        import torch
        torch.set_num_threads(1)
        import morphogen.tasks.pyramids as module
        from morphogen.stain import StainTransfer, stain_slide
        from morphogen.stain.config import ApplyConfig, SamplerConfig, WindowConfig
        model, slide, out, kill = sys.argv[1:]
        if kill == "yes":
            real = module.make_bands
            def dies(*args, **options):
                for number, band in enumerate(real(*args, **options)):
                    if number == 2:
                        os.kill(os.getpid(), 9)
                    yield band
            module.make_bands = dies
        config = ApplyConfig(sampler=SamplerConfig(solver="mean", steps=1),
                             windows=WindowConfig(window=128, overlap=32, batch=4, tissue_only=False))
        stain_slide(StainTransfer.from_pretrained(model), slide, out, config)
        """
    )

    def run(out, kill):
        return subprocess.run(
            [sys.executable, "-c", script, str(model), str(slide), str(out), kill], capture_output=True
        ).returncode

    assert run(tmp_path / "part", "yes") == -9
    assert run(tmp_path / "part", "no") == 0
    config = QUICK.replace(windows=QUICK.windows.replace(tissue_only=False))
    whole = stain_slide(tiny, slide, tmp_path / "whole", config)
    assert (tmp_path / "part" / whole.image.name).read_bytes() == whole.image.read_bytes()


def test_blank_slide_is_white(tiny, tmp_path, caplog):
    path = tmp_path / "blank.ome.tif"
    with PyramidWriter(path, 300, 300, mpp=0.5, tile=256) as writer:
        writer.write(np.full((300, 300, 3), 245, np.uint8), 0)
    out = stain_slide(tiny, path, tmp_path / "out", QUICK)
    import openslide

    assert out.windows == 0 and "no tissue was found" in caplog.text
    assert (
        np.array(openslide.OpenSlide(str(out.image)).read_region((0, 0), 0, (300, 300)))[..., :3].min() == 255
    )


def test_slide_without_mpp_says_how_to_give_it(tiny, shared, tmp_path):
    path = shared / "data" / "wsi" / "tcga-cr-7395-01a-01-ts1.svs"
    with pytest.raises(SlideError, match="--mpp"):
        stain_slide(tiny, path, tmp_path, QUICK)


@pytest.mark.slow
def test_real_slide_region(tiny, shared, tmp_path):
    import openslide

    path = shared / "data" / "wsi" / "cmu-1-small-region.svs"
    out = stain_slide(tiny, path, tmp_path, QUICK)
    opened = openslide.OpenSlide(str(out.image))
    assert opened.dimensions == (2220, 2967) and float(opened.properties["openslide.mpp-x"]) == pytest.approx(
        0.499
    )
    assert out.seams.worst <= 1.03


def test_tinted_glass_has_no_seam(copying, tmp_path):
    """A model that paints glass as it finds it, on a slide with grey glass: no step where windows end."""
    image = np.full((1200, 1100, 3), 225, np.uint8)
    image[300:700, 200:600] = he_like(np.random.default_rng(0), 400)
    path = tmp_path / "tinted.ome.tif"
    with PyramidWriter(path, 1100, 1200, mpp=0.5, tile=256, codec="deflate") as writer:
        writer.write(image, 0)
    copying.mpp = 0.5
    config = ApplyConfig(
        sampler=SamplerConfig(solver="mean", steps=1), windows=WindowConfig(window=128, overlap=32, batch=4)
    )
    out = stain_slide(copying, path, tmp_path / "out", config, tissue=[box(200, 300, 600, 700)])
    assert 0 < out.windows < 80  # of 156
    assert out.seams.worst <= 1.03
