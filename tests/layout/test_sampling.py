"""Crops and style images: from the slide they should be of, balanced, and functions of the seed alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from morphogen.layout.config import DataConfig
from morphogen.layout.data import read_sources
from morphogen.layout.sampling.augment import flipped, random_affine, reach, warped
from morphogen.layout.sampling.crops import LayoutCrops, Places, SegmentationCrops
from morphogen.layout.sampling.styles import StyleSampler
from morphogen.layout.sources.arrays import in_memory
from morphogen.layout.sources.sheets import ImageSheet, tissue_cells
from morphogen.slides.recolouring import colour_map, recoloured


def numbered(patient: str, value: int, side: int = 64) -> ImageSheet:
    """A sheet whose every pixel tells whose it is."""
    image = np.full((side, side, 3), value, np.uint8)
    labels = np.zeros((side, side), np.uint8)
    labels[: side // 8] = 1
    return ImageSheet(f"s{value}", patient, None, lambda: image, lambda: labels)  # type: ignore[arg-type]


@pytest.fixture
def sheets():
    return [numbered("A", 10), numbered("A", 20), numbered("B", 110), numbered("B", 120)]


@pytest.mark.parametrize("sampling", ["none", "augmented", "nearby", "mp"])
def test_style_images_are_of_the_same_slide(sheets, sampling):
    config = DataConfig(crop=32, sampling=sampling, style_images=3 if sampling == "mp" else 1)
    sampler = StyleSampler(sheets, config)
    for seed in range(20):
        style = sampler(sheets[2], 8, 8, np.random.default_rng(seed))
        assert style.shape == (config.style_images, 32, 32, 3) and style.dtype == np.uint8
        values = set(np.unique(style).tolist())
        assert values <= {"none": {0}, "mp": {110, 120}}.get(sampling, {110})
        again = sampler(sheets[2], 8, 8, np.random.default_rng(seed))
        assert np.array_equal(style, again)


def test_nearby_is_near(sheets):
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3)).copy()
    sheet = ImageSheet("ramp", "R", None, lambda: ramp, None)  # type: ignore[arg-type]
    sampler = StyleSampler([sheet], DataConfig(crop=16, relative_distance=1.0))
    moved = [int(sampler(sheet, 90, 90, np.random.default_rng(k)).min()) - 90 for k in range(200)]
    assert min(moved) < -12 and max(moved) > 12 and min(moved) >= -16 and max(moved) <= 16


def test_tissue_cells_come_once_unless_there_are_too_few(sheets):
    image = np.full((96, 64, 3), 250, np.uint8)
    image[:32] = 120  # 2 of 6 cells hold tissue
    assert tissue_cells(image, 32).tolist() == [[0, 0], [0, 32]]
    sheet = ImageSheet("t", "T", None, lambda: image, None)  # type: ignore[arg-type]
    two = StyleSampler([sheet], DataConfig(crop=32, sampling="mp", style_images=2))
    chosen = [
        tuple(sorted(map(tuple, two.chosen("T", np.random.default_rng(k)).tolist()))) for k in range(10)
    ]
    assert set(chosen) == {((0, 0, 0), (0, 0, 32))}
    many = StyleSampler([sheet], DataConfig(crop=32, sampling="mp", style_images=10))
    assert many.of_patient("T", np.random.default_rng(0)).shape == (10, 32, 32, 3)
    assert len(tissue_cells(np.full((40, 40, 3), 255, np.uint8), 32)) == 4  # none is tissue: all are taken


def test_an_image_smaller_than_a_crop_is_mirrored():
    sheet = numbered("A", 10, side=20)
    assert sheet.image(0, 0, 32).shape == (32, 32, 3) and sheet.labels(0, 0, 32).shape == (32, 32)
    crops = LayoutCrops([sheet], [], DataConfig(crop=32), 2)
    assert crops[0]["image"].shape == (32, 32, 3)


def test_rare_classes_are_drawn_as_often_as_asked(sheets):
    places = Places(sheets, 16, 0.5, 3)
    random = np.random.default_rng(0)
    shown = []
    for _ in range(400):
        sheet, top, left = places.draw(random)
        shown.append(bool((sheet.labels(top, left, 16) == 1).any()))
        assert 0 <= top <= 48 and 0 <= left <= 48
    # anywhere: a crop of 16 touches the 8 rows of class 1 with top < 8, 8/49 of the draws
    assert abs(np.mean(shown) - (0.5 + 0.5 * 8 / 49)) < 0.07


def test_images_that_were_cut_out_by_class_are_taken_as_they_come(sheets):
    """Crops of 8 sheets, and the same crops as sheets: drawn from either, as much foreground comes."""
    config, random = DataConfig(crop=16), np.random.default_rng(0)
    places = Places(sheets, 16, 0.5, 2)
    cut = []
    for number in range(300):
        sheet, top, left = places.draw(random)
        labels = sheet.labels(top, left, 16)
        cut.append(in_memory(f"c{number}", "C", sheet.image(top, left, 16), labels, balanced=True))
    again = [replace(sheet, balanced=False) for sheet in cut]

    def foreground(real, synthetic):
        items = SegmentationCrops(real, synthetic, config, 2, ratio=1.0)
        return np.mean([float(items[k]["labels"].float().mean()) for k in range(400)])

    shown = foreground(sheets, [])
    assert foreground(sheets, cut) == pytest.approx(shown, rel=0.12)
    assert foreground(sheets, again) > 1.3 * shown


def test_items_are_functions_of_their_generator(found, data):
    crops = LayoutCrops(found.annotated, found.unannotated, data, 3)
    first, again, other = crops[5], crops[5], crops[6]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], other["image"])


def test_half_of_the_items_are_unannotated_and_tell_no_layout(found, data):
    crops = LayoutCrops(found.annotated, found.unannotated, data, 3)
    items = [crops[k] for k in range(60)]
    told = [bool(item["told"]) for item in items]
    assert 15 < sum(told) < 45
    assert all(not item["labels"].any() for item in items if not bool(item["told"]))
    only = LayoutCrops(found.annotated, found.unannotated, data.replace(ratios=(1.0, 0.0)), 3)
    assert all(bool(only[k]["told"]) for k in range(10))


def test_image_and_labels_are_flipped_together(found, data):
    crops = SegmentationCrops(found.annotated, (), data, 3)
    for k in range(10):
        item = crops[k]
        dark = item["image"].float().mean(2) < 150  # the tumour is darker than stroma and glass
        assert (dark == (item["labels"] == 2)).float().mean() > 0.97


def test_a_colour_change_is_shared_by_crop_and_style_images(sheets):
    config = DataConfig(crop=16, sampling="mp", stain_shift=0.3)
    crops = LayoutCrops(sheets[:1], [], config, 2)
    item = crops[3]
    assert torch.equal(item["image"].unique(dim=0)[0, 0], item["style"][0, 0, 0])
    assert not torch.equal(item["image"][0, 0], torch.tensor([10, 10, 10], dtype=torch.uint8))


def test_affine_layouts_keep_their_labels():
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, 8:24] = 5
    random = np.random.default_rng(0)
    for _ in range(10):
        made = warped(labels, random_affine(random, 32), labels=True)
        assert set(np.unique(made)) <= {0, 5}
    assert np.array_equal(warped(labels, np.eye(2, 3), labels=True), labels)
    scales = [np.sqrt(abs(np.linalg.det(random_affine(random, 32)[:, :2]))) for _ in range(200)]
    assert min(scales) > 0.7 and max(scales) < 1.3


def test_what_an_affine_map_brings_in_is_the_tissue_beside_the_crop():
    """Of a picture whose level is its column, any map gives the column that each pixel came from, corners included."""
    column = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    random = np.random.default_rng(0)
    for _ in range(10):
        matrix = random_affine(random, 32)
        beyond = reach(matrix, 32)
        window = column[100 - beyond : 132 + beyond, 100 - beyond : 132 + beyond]
        made = warped(window, matrix, beyond=beyond)
        y, x = np.mgrid[:32, :32]
        back = np.linalg.inv(matrix[:, :2]) @ np.stack([x - matrix[0, 2], y - matrix[1, 2]]).reshape(2, -1)
        assert np.abs(made.ravel() - (100 + back[0])).max() < 1.1  # rounded places and levels
    assert reach(np.eye(2, 3), 32) == 0


def test_recolouring_by_the_identity_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.abs(recoloured(image, np.eye(3, 4)).astype(int) - image).max() <= 1
    change = colour_map(np.random.default_rng(1), 0.2)
    assert np.abs(recoloured(image, change).astype(int) - image).mean() > 3
    a, b = flipped(np.random.default_rng(3), np.arange(4).reshape(2, 2), np.arange(4).reshape(2, 2))
    assert np.array_equal(a, b)


def test_a_batch_of_real_and_synthetic_by_ratio(sheets):
    real, synthetic = sheets[:2], sheets[2:]
    crops = SegmentationCrops(real, synthetic, DataConfig(crop=16), 2, ratio=0.8)
    share = np.mean([int(crops[k]["image"][0, 0, 0]) > 100 for k in range(200)])
    assert abs(share - 0.8) < 0.1


def test_two_sources_without_a_shared_table_are_refused(tissue, tmp_path, data):
    from .conftest import write_folder

    other = write_folder(tmp_path / "other", patients=(7,), images=1)
    (other / "labels.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    from morphogen.core.errors import InputError

    with pytest.raises(InputError, match="the sources have different classes"):
        read_sources([tissue, other], data)


def test_a_crop_and_its_style_images_lose_focus_together(found, data):
    sharp = LayoutCrops(found.annotated, found.unannotated, data, 3)
    soft = LayoutCrops(found.annotated, found.unannotated, data.replace(focus_shift=2.0), 3)

    def detail(images):
        return float((images[..., 1:, :].float() - images[..., :-1, :].float()).abs().mean())

    ratios = []
    for number in range(16):
        a, b = sharp[number], soft[number]
        assert torch.equal(a["labels"], b["labels"])
        ratios.append([detail(b[key]) / detail(a[key]) for key in ("image", "style")])
    ratios = np.array(ratios)
    assert np.corrcoef(ratios.T)[0, 1] > 0.9
    assert 4 <= (ratios[:, 0] < 0.97).sum() <= 12  # half of the draws
