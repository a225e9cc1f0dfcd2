"""The segmentation network: the published loss, training, ratios, images and slides of any size, QuPath's polygons."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from morphogen.core.errors import ConfigError, InputError, SlideError
from morphogen.layout.segmenter.apply import geojson, labelled, segment_images, segment_slide
from morphogen.layout.segmenter.batch import segment_sources
from morphogen.layout.segmenter.model import Segmenter, segmentation_loss
from morphogen.layout.segmenter.train import sweep, train_segmenter
from morphogen.layout.sources.slides import drawn, read_polygons
from morphogen.metrics.segmentation import confusion, mean_iou
from morphogen.nets.layout.config import SegmenterConfig
from morphogen.nets.layout.segmenters import InstanceNorm, build_segmenter
from morphogen.slides import open_slide
from morphogen.tasks import WindowConfig

from .conftest import NAMES, painted, small_segmenter


@pytest.mark.parametrize(("overlap", "name"), [(0, "seg_loss"), (1, "seg_loss_overlap1")])
def test_published_loss(tensors, overlap, name):
    numbers = tensors("stedm_unet")
    labels = (numbers["loss_labels"] > 0).long()
    found = segmentation_loss(numbers["loss_logits"], labels, overlap=overlap)
    torch.testing.assert_close(found["loss"], numbers[name], atol=1e-6, rtol=0)
    if not overlap:
        torch.testing.assert_close(found["ce"], numbers["seg_loss_ce"], atol=1e-6, rtol=0)
        torch.testing.assert_close(found["dice"], numbers["seg_loss_dice"], atol=1e-6, rtol=0)


def test_it_learns_and_labels_images_of_any_size(segmenter, found):
    sheet = found.test[0]
    made = labelled(segmenter, sheet.pixels)
    assert made.shape == (64, 64) and mean_iou(confusion(sheet.classes, made, 3)) > 0.5
    assert labelled(segmenter, sheet.pixels[:37, :51]).shape == (37, 51)


def test_saved_and_loaded(segmenter, tmp_path, found):
    segmenter.save_pretrained(tmp_path / "model")
    again = Segmenter.from_pretrained(tmp_path / "model")
    image = torch.from_numpy(found.test[0].pixels[None].copy())
    assert torch.equal(segmenter(image), again(image)) and again.config.classes == NAMES
    assert again.identity == segmenter.identity


def test_a_segmenter_saved_before_norms_could_be_chosen_has_batch_norms(segmenter, tmp_path):
    old = Segmenter.fresh(segmenter.config.network.replace(norm="batch"), NAMES, crop=32)
    folder = old.save_pretrained(tmp_path / "model")
    saved = json.loads((folder / "morphogen.json").read_text())
    del saved["config"]["network"]["norm"]
    (folder / "morphogen.json").write_text(json.dumps(saved))
    again = Segmenter.from_pretrained(folder)
    assert again.config.network.norm == "batch" and again.identity == old.identity


def test_a_stain_that_training_did_not_see(segmenter, found):
    """Paler by a half: instance norms take it out of the image."""
    sheet = found.test[0]
    pale = (255 - (255 - sheet.pixels.astype(int)) // 2).astype(np.uint8)
    made = labelled(segmenter, sheet.pixels), labelled(segmenter, pale)
    assert (made[0] == made[1]).mean() > 0.9


def test_instance_norms_are_those_of_torch_and_leave_the_layout_of_images():
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(5, affine=True), torch.nn.InstanceNorm2d(5, affine=True)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    images = (3 + 2 * torch.randn(2, 5, 6, 7)).to(memory_format=torch.channels_last)
    found = []
    for norm in (ours, theirs):
        given = images.clone().requires_grad_()
        made = norm(given)
        made.square().sum().backward()
        found.append((made.detach(), given.grad, norm.weight.grad, norm.bias.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)


def test_a_sweep_trains_one_for_every_share(tmp_path, found, data):
    config = small_segmenter(2, data, ratios=(0.0, 0.5))
    results = sweep(found.annotated, found.test, NAMES, config, tmp_path, device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ratio-0", "ratio-0.5"]
    assert [result.model.facts["synthetic_ratio"] for result in results.values()] == [0.0, 0.5]
    assert {result.run.step for result in results.values()} == {2}


def test_published_architecture_and_unknown_ones():
    network = build_segmenter(SegmenterConfig(architecture="Unet", encoder="mit_b0", classes=3), seed=0)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    with pytest.raises(ConfigError, match="Did you mean 'Unet'"):
        build_segmenter(SegmenterConfig(architecture="Unett"))
    with pytest.raises(ConfigError, match="does not build it"):
        build_segmenter(SegmenterConfig(architecture="Unet", encoder="nosuch"))


def test_a_crop_that_does_not_fit(tmp_path, found, data):
    with pytest.raises(ConfigError, match="a crop of 30 px"):
        config = small_segmenter(1, data.replace(crop=30))
        train_segmenter(found.annotated, NAMES, config, tmp_path, device="cpu")


def test_a_bad_image_is_told_and_the_rest_goes_on(segmenter, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for k in (1, 2):
        Image.fromarray(painted(k, 0)[0]).save(source / f"p{k}.png")
    (source / "bad.png").write_bytes(b"not an image")
    result = segment_images(segmenter, source, tmp_path / "out")
    assert result.done == ("p1", "p2") and list(result.failed) == ["bad"]
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "p1.png"))
    assert np.array_equal(mask, labelled(segmenter, painted(1, 0)[0]))
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["2"] == "tumour"


def test_images_of_one_window_go_through_the_network_together(segmenter, tmp_path, monkeypatch):
    source = tmp_path / "in"
    source.mkdir()
    for k in range(3):
        Image.fromarray(painted(k, 0)[0]).save(source / f"p{k}.png")
    make, sizes = Segmenter.make, []
    monkeypatch.setattr(
        Segmenter, "make", lambda self, images, *more: sizes.append(len(images)) or make(self, images, *more)
    )
    segment_images(segmenter, source, tmp_path / "out", format="zarr")
    assert sizes == [3]
    import zarr

    found = zarr.open_group(str(tmp_path / "out" / "masks" / "p1.ome.zarr"), mode="r")["0"][:]
    assert (found.squeeze() == labelled(segmenter, painted(1, 0)[0])).mean() > 0.99


# -- slides
# --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    """360 × 200 px of the painted tissue, 2 µm/px."""
    path = tmp_path_factory.mktemp("slide") / "S1.tif"
    image, _ = painted(1, 0, 200)
    tifffile.imwrite(
        path, np.concatenate([image, image[:, :160]], axis=1), tile=(64, 64), photometric="rgb",
        resolution=(5000, 5000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


def test_a_slide_becomes_a_mask_pyramid_and_polygons(segmenter, slide_file, tmp_path):
    with open_slide(slide_file) as slide:
        result = segment_slide(segmenter, slide, tmp_path, windows=WindowConfig(window=64, overlap=16))
        whole = labelled(segmenter, slide.read_region(0, 0, 360, 200), WindowConfig(window=64, overlap=16))
    mask = tifffile.imread(result.mask, level=0)
    assert mask.shape == (200, 360) and set(np.unique(mask)) <= {0, 1, 2}
    assert (mask == whole).mean() > 0.97  # the glass around the tissue is background
    polygons = read_polygons(result.polygons)
    assert len(polygons) == result.count and {polygon.label for polygon in polygons} <= {"stroma", "tumour"}
    again = drawn(polygons, NAMES, (0, 0, 360, 200), (200, 360))
    assert (again == mask).mean() > 0.95
    assert sum(result.shares.values()) == pytest.approx(1)
    kinds = {f["properties"]["objectType"] for f in json.loads(result.polygons.read_text())["features"]}
    assert kinds == {"annotation"}


def test_a_finished_slide_is_left_as_it_is(segmenter, slide_file, tmp_path, monkeypatch):
    windows = WindowConfig(window=64, overlap=16)
    with open_slide(slide_file) as slide:
        first = segment_slide(segmenter, slide, tmp_path, windows=windows)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        first.polygons.unlink()  # a disk that was full after the mask
        monkeypatch.setattr(Segmenter, "make", None)
        again = segment_slide(segmenter, slide, tmp_path, windows=windows.replace(batch=3))
    assert again == first and {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_mask_lies_over_the_slide_as_qupath_crops_it(segmenter, slide_file, tmp_path):
    """SCN and MRXS: mask and polygons count from the corner of OpenSlide's bounds, which the GeoJSON states."""
    windows = WindowConfig(window=64, overlap=16)
    with open_slide(slide_file) as slide:
        slide.bounds = (100, 40, 200, 150)
        result = segment_slide(segmenter, slide, tmp_path, windows=windows)
        inside = labelled(segmenter, slide.read_region(100, 40, 200, 150), windows)
    mask = tifffile.imread(result.mask, level=0)
    assert mask.shape == (150, 200) and (mask == inside).mean() > 0.95
    assert json.loads(result.polygons.read_text())["origin"] == [100, 40]
    again = drawn(read_polygons(result.polygons), NAMES, (0, 0, 200, 150), (150, 200))
    assert (again == mask).mean() > 0.95


def test_a_bad_slide_among_several_is_told_and_the_rest_goes_on(segmenter, slide_file, tmp_path):
    import shutil

    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slide_file, folder / "good.tif")
    (folder / "bad.tif").write_bytes(b"II*\x00" + bytes(40))
    Image.fromarray(painted(1, 0)[0]).save(tmp_path / "p1.png")
    windows = WindowConfig(window=64, overlap=16)
    result = segment_sources(segmenter, [folder, tmp_path / "p1.png"], tmp_path / "out", windows=windows)
    assert list(result.slides) == ["good.tif"] and list(result.failed) == ["bad.tif"]
    assert result.images[0].done == ("p1",) and "bad.tif" in "\n".join(result.lines())
    with pytest.raises(SlideError):
        segment_sources(segmenter, [folder / "bad.tif"], tmp_path / "one")
    with pytest.raises(InputError, match="no such file"):
        segment_sources(segmenter, [tmp_path / "nothing"], tmp_path / "none")


def test_a_killed_slide_goes_on_to_the_same_bytes(segmenter, slide_file, tmp_path, monkeypatch):
    windows = WindowConfig(window=32, overlap=8)
    with open_slide(slide_file) as slide:
        first = segment_slide(segmenter, slide, tmp_path / "whole", windows=windows)
        make, calls = Segmenter.make, []

        def dies(self, *arguments):
            calls.append(1)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return make(self, *arguments)

        monkeypatch.setattr(Segmenter, "make", dies)
        with pytest.raises(KeyboardInterrupt):
            segment_slide(segmenter, slide, tmp_path / "killed", windows=windows)
        monkeypatch.setattr(Segmenter, "make", make)
        second = segment_slide(segmenter, slide, tmp_path / "killed", windows=windows)
    assert first.mask.read_bytes() == second.mask.read_bytes()
    assert first.polygons.read_bytes() == second.polygons.read_bytes()


def test_one_slide_on_two_devices_is_that_of_one(segmenter, slide_file, tmp_path, monkeypatch):
    """Simulated: ``--gpus`` names devices by ``MORPHOGEN_DEVICES``, here twice the CPU. Each makes half."""
    from morphogen.core.devices import TOGETHER

    folder = segmenter.save_pretrained(tmp_path / "model")
    make, told = Segmenter.make, []
    monkeypatch.setattr(Segmenter, "make", lambda self, *images: told.append(id(self)) or make(self, *images))
    windows, made = WindowConfig(window=32, overlap=8, batch=2), {}
    for devices in ("cpu", "cpu,cpu"):
        monkeypatch.setenv(TOGETHER, devices)
        (slide,) = segment_sources(folder, [slide_file], tmp_path / devices, windows=windows).slides.values()
        made[devices] = slide.mask.read_bytes(), slide.polygons.read_bytes()
        shares = [told.count(each) for each in set(told)]
        assert len(shares) == len(devices.split(",")) and max(shares) - min(shares) <= len(shares)
        told.clear()
    assert made["cpu"] == made["cpu,cpu"]


def test_coarser_levels_of_a_mask_hold_classes_and_no_means():
    from morphogen.slides.pyramid.halving import halved

    quad = np.array([[0, 0, 3, 1], [0, 2, 3, 3], [1, 2, 2, 0], [3, 0, 0, 2]], np.uint16)[..., None]
    assert halved(quad, labels=True)[..., 0].tolist() == [[0, 3], [1, 2]]
    assert halved(quad)[..., 0].tolist() == [[1, 3], [2, 1]]


def test_polygons_have_holes_and_small_ones_are_left_out():
    labels = np.zeros((40, 40), np.uint8)
    labels[5:30, 5:30] = 1
    labels[12:20, 12:20] = 0
    labels[35, 35] = 1
    found = geojson(labels, ("background", "tumour"), 4.0, 10.0)
    (feature,) = found["features"]
    outer, hole = (np.array(ring) for ring in feature["geometry"]["coordinates"])
    assert np.array_equal(outer[0], outer[-1]) and outer.min() >= 20 and outer.max() <= 120
    assert hole.min() >= 40 and hole.max() <= 84
    assert feature["properties"]["classification"]["name"] == "tumour"


def test_label_maps_of_two_sources_do_not_come_to_lie_in_one_folder(tmp_path, segmenter):
    for name in ("a", "b"):
        (tmp_path / name / "images").mkdir(parents=True)
        Image.fromarray(painted(1, 0)[0]).save(tmp_path / name / "images" / "p.png")
    folders = [tmp_path / name / "images" for name in ("a", "b")]
    for sources in (folders, [folders[0], folders[1] / "p.png"]):  # files lie in images/, too
        with pytest.raises(InputError, match="the label maps of 2 sources would lie in it"):
            segment_sources(segmenter, sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
