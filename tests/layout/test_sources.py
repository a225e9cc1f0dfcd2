"""Where labels come from: label maps, palettes, colours, instances, polygons, flowers; and what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.layout.config import DataConfig
from morphogen.layout.data import check_classes, read_source, read_sources
from morphogen.layout.sources.folders import flowers_folder, image_folder
from morphogen.layout.sources.masks import classes_in, guessed, read_mask
from morphogen.layout.sources.sheets import Classes
from morphogen.layout.sources.slides import drawn, read_polygons

from .conftest import NAMES, painted, write_folder


def test_a_folder_with_its_table_and_patients(tissue, found):
    assert found.classes.names == NAMES
    assert {sheet.patient for sheet in found.annotated} == {"P1", "P2"}
    assert {sheet.patient for sheet in found.unannotated} == {"P3"}
    assert {sheet.patient for sheet in found.test} == {"P4"}
    image, labels = painted(1, 0)
    sheet = next(each for each in found.annotated if each.name == "p1_0")
    assert np.array_equal(sheet.image(0, 0, 64), image) and np.array_equal(sheet.labels(0, 0, 64), labels)
    assert sheet.present == (0, 1, 2)


def test_masks_of_unannotated_patients_are_not_looked_at(tmp_path, data):
    root = write_folder(tmp_path / "set")
    (root / "masks" / "p3_0.png").write_bytes(b"no image at all")
    found = read_sources([root], data)
    assert all(sheet.image(0, 0, 32).shape == (32, 32, 3) for sheet in found.unannotated)


def test_a_record_is_of_contents_and_of_no_mask_that_is_not_used(tmp_path, data):
    """Of equal size, so that nothing but the bytes tells: masks of annotated patients, images of all."""
    root = write_folder(tmp_path / "set")
    seen = [read_sources([root], data).identity()]
    for file, part in (("masks/p1_0", "annotated"), ("images/p3_0", "unannotated"), ("masks/p3_0", None)):
        pixels = np.asarray(Image.open(root / f"{file}.png")).copy()
        pixels[:] = pixels[::-1]
        Image.fromarray(pixels).save(root / f"{file}.png")
        seen.append(read_sources([root], data).identity())
        before, after = seen[-2:]
        assert {key for key in after if after[key] != before[key]} == ({part} if part else set())


def test_kept_classes_are_numbered_in_their_order_and_the_rest_is_background(tissue, data):
    found = read_sources([tissue], data.replace(classes=("tumour",)))
    assert found.classes.names == ("background", "tumour")
    sheet = found.annotated[0]
    truth = read_mask(tissue / "masks" / f"{sheet.name}.png")
    assert np.array_equal(sheet.labels(0, 0, 64), (truth == 2).astype(np.uint8))


def test_palette_colours_instances_and_suffixes(tmp_path):
    _, labels = painted(1, 0, 16)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
    palette.putdata(labels.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_mask(tmp_path / "palette.png"), labels)

    colours = {(0, 0, 0): 0, (200, 0, 0): 1, (0, 0, 200): 2}
    Image.fromarray(np.array(list(colours), np.uint8)[labels]).save(tmp_path / "colour.png")
    table = Classes(NAMES, {}, colours)
    assert np.array_equal(classes_in(read_mask(tmp_path / "colour.png"), table), labels)

    instances = np.arange(16 * 16, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(instances).save(tmp_path / "instances.png")
    classes = guessed([tmp_path / "instances.png"])
    assert classes.instances
    assert np.array_equal(classes_in(read_mask(tmp_path / "instances.png"), classes), instances > 0)


def test_images_and_masks_side_by_side(tmp_path):
    image, labels = painted(1, 0, 32)
    Image.fromarray(image).save(tmp_path / "A1_img.png")
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(tmp_path / "A1_mask.png")
    sheets, classes = image_folder(tmp_path)
    assert classes.names == ("background", "foreground")
    assert np.array_equal(sheets[0].labels(0, 0, 32), labels > 0)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("size", lambda p: Image.new("L", (10, 12)).save(p), r"its mask has 10 × 12 px, the image 64 × 64"),
        ("values", lambda p: Image.new("L", (64, 64), 7).save(p), r"values that are no label: 7 \(4096 px\)"),
        ("jpeg", lambda p: Image.new("L", (64, 64)).save(p, format="JPEG"), "this mask is a JPEG"),
    ],
)
def test_a_bad_mask_is_named(tmp_path, data, name, harm, said):
    root = write_folder(tmp_path / name, patients=(1, 2, 4), images=1)
    harm(root / "masks" / "p1_0.png")
    found = read_sources([root], data)
    with pytest.raises(InputError, match=said) as error:
        _ = [sheet.present for sheet in found.annotated]
    assert "p1_0" in str(error.value) and len(str(error.value)) < 300


def test_a_class_that_nobody_shows(tmp_path, data, caplog):
    root = write_folder(tmp_path / "set", patients=(1, 2, 4), images=1)
    names = {**dict(enumerate(NAMES)), 9: "vessel"}
    (root / "labels.json").write_text(json.dumps({str(k): v for k, v in names.items()}))
    found = read_sources([root], data)
    assert check_classes(found) == ["vessel"]
    assert "the class vessel: it cannot be learned" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": ("P9",)}, "there is no patient 'P9'"),
        ({"annotated": ("P1",), "test": ("P1",)}, "patient P1 is annotated and in the test"),
        ({"classes": ("bone",)}, "there is no class 'bone'"),
        ({"patient": "(x"}, "no regular expression|names no patient"),
        ({"patient": "p(x)?"}, "finds no patient in 'p1_0'"),
    ],
)
def test_splits_and_classes_that_cannot_be(tissue, data, changes, said, tmp_path):
    root = tissue
    if "patient" in changes:
        root = write_folder(tmp_path / "set", patients=(1, 2, 4), images=1)
        (root / "patients.csv").unlink()
    with pytest.raises(InputError, match=said):
        read_sources([root], data.replace(**changes))


def test_class_train_samples_keeps_images_per_class_and_the_rest_lends_its_style(tissue, data):
    found = read_sources([tissue], data.replace(annotated=(), class_train_samples=1))
    assert [sheet.name for sheet in found.annotated] == ["p1_0"]  # the first by name shows both classes
    assert len(found.unannotated) == 5


# -- slides
# --------------------------------------------------------------------------------------------------------


def square(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(label, *rings):
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": {"objectType": "annotation", "classification": {"name": label}},
    }


@pytest.fixture
def slide(tmp_path):
    """A slide of 200 × 120 px, which is not square, with a tumour that has a hole and a small vessel on top."""
    pixels = np.full((120, 200, 3), 240, np.uint8)
    pixels[20:100, 30:150] = (180, 90, 160)
    Image.fromarray(pixels).save(tmp_path / "S1.tif")
    features = [
        feature("vessel", square(40, 30, 60, 40)),
        feature("tumour", square(30, 20, 150, 100), square(80, 50, 100, 70)),
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [1, 2]},
            "properties": {"name": "x"},
        },
    ]
    (tmp_path / "S1.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return tmp_path / "S1.tif"


def test_polygons_of_a_slide_that_is_not_square(slide):
    sheets, classes = read_source(slide, DataConfig(crop=32))
    (sheet,) = sheets
    assert classes.names == ("background", "tumour", "vessel")
    assert sheet.size == (120, 200)
    wanted = np.zeros((120, 200), np.uint8)
    wanted[20:100, 30:150] = 1
    wanted[50:70, 80:100] = 0
    wanted[30:40, 40:60] = 2  # the smaller one lies on top
    for top, left in ((0, 0), (88, 0), (0, 136), (88, 168), (40, 70)):
        found = sheet.labels(top, left, 32)
        truth = np.zeros((32, 32), np.uint8)
        part = wanted[top : top + 32, left : left + 32]
        truth[: part.shape[0], : part.shape[1]] = part
        assert (found != truth).mean() < 0.05, (top, left)
        assert np.array_equal(found[4:-4, 4:-4] == 2, truth[4:-4, 4:-4] == 2) or 2 not in truth
    assert set(sheet.present) == {0, 1, 2}
    cells = sheet.tissue(32)
    assert len(cells) and (cells <= (88, 168)).all()


def test_polygons_count_from_the_corner_of_the_bounds(slide, monkeypatch):
    """As QuPath draws them on SCN and MRXS."""
    from morphogen.slides.formats import opening

    real = opening.open_reader
    (sheet,), _ = read_source(slide, DataConfig(crop=32))
    whole = sheet.slide
    monkeypatch.setattr(
        "morphogen.slides.slide.open_reader", lambda path: replace(real(path), bounds=(20, 10, 150, 100))
    )
    (bounded,), _ = read_source(slide, DataConfig(crop=32))
    assert bounded.size == (100, 150)
    assert np.array_equal(bounded.image(5, 7, 32), whole.read_region(27, 15, 32, 32))
    assert np.array_equal(bounded.labels(5, 7, 32), sheet.labels(5, 7, 32))


def test_windows_beside_a_slide_are_white_and_background(slide):
    (sheet,), _ = read_source(slide, DataConfig(crop=32))
    assert (sheet.image(300, 300, 32) == 255).all()
    assert not sheet.labels(300, 300, 32).any()


def test_a_slide_without_polygons_lends_its_style(slide, tmp_path, data, caplog):
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "S2.tif")
    (tmp_path / "S2.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    found = read_sources([tmp_path], DataConfig(crop=32))
    assert [sheet.name for sheet in found.annotated] == ["S1"]
    assert [sheet.name for sheet in found.unannotated] == ["S2"]
    assert "S2.geojson holds no polygon with a class" in caplog.text


def test_moved_polygons_make_another_record(slide):
    (before,), _ = read_source(slide, DataConfig(crop=32))
    table = slide.with_suffix(".geojson")
    table.write_text(table.read_text().replace("[80, 50]", "[81, 50]"))
    (after,), _ = read_source(slide, DataConfig(crop=32))
    assert before.identity() != after.identity()
    assert before.identity(labels=False) == after.identity(labels=False)


def test_geojson_that_is_none(tmp_path):
    for text in ("{", "3", '{"features": 4}'):
        (tmp_path / "x.geojson").write_text(text)
        with pytest.raises(InputError, match="not GeoJSON"):
            read_polygons(tmp_path / "x.geojson")
    bad = feature("tumour", [["a", 1], [2, 3], [4, 5]])
    (tmp_path / "x.geojson").write_text(json.dumps({"features": [bad]}))
    with pytest.raises(InputError, match="not rings of x, y pairs"):
        read_polygons(tmp_path / "x.geojson")


def test_labels_at_another_resolution(slide):
    polygons = read_polygons(slide.with_suffix(".geojson"))
    half = drawn(polygons, ("background", "tumour", "vessel"), (0, 0, 200, 120), (60, 100))
    assert abs(float((half == 1).mean()) - (80 * 120 - 400 - 200) / 24000) < 0.01


# -- flowers
# -------------------------------------------------------------------------------------------------------


def test_the_flowers_convention(tmp_path):
    from scipy.io import savemat

    for folder in ("imgs", "segs"):
        (tmp_path / folder).mkdir()
    for number in (1, 2, 3):
        image, labels = painted(number, 0, 32)
        Image.fromarray(image).save(tmp_path / "imgs" / f"image_{number:05d}.jpg")
        mask = np.where(labels[..., None] == 0, np.uint8([0, 0, 254]), image)
        Image.fromarray(mask).save(tmp_path / "segs" / f"segmim_{number:05d}.jpg", quality=100, subsampling=0)
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[3, 1, 3]])})
    savemat(tmp_path / "setid.mat", {"trnid": [[1, 2]], "valid": [[2]], "tstid": [[3]]})
    sheets, classes = flowers_folder(tmp_path)
    assert classes.names == ("background", "flower")
    assert [(sheet.name, sheet.kind) for sheet in sheets] == [("image_00001", "2"), ("image_00002", "0")]
    truth = painted(1, 0, 32)[1] > 0
    assert (sheets[0].labels(0, 0, 32) == truth).mean() > 0.95
    kept = read_sources([tmp_path], DataConfig(crop=32, class_train_samples=1))
    assert len(kept.annotated) == 2  # one of each of two classes
    savemat(tmp_path / "setid.mat", {"trnid": [[1, 9]], "valid": [[2]], "tstid": [[3]]})
    with pytest.raises(InputError, match="trnid names images 1 to 9, imagelabels.mat has 3"):
        flowers_folder(tmp_path)
    whole = (tmp_path / "imagelabels.mat").read_bytes()
    for harmed in (whole[:150], b"", b"x" * 300, whole.replace(b"labels", b"others")):
        (tmp_path / "imagelabels.mat").write_bytes(harmed)
        with pytest.raises(InputError, match="this is no file of the flowers data set"):
            flowers_folder(tmp_path)


def test_simulated_tissue_of_different_laboratories(tmp_path):
    from morphogen.demo.writers.folders import write_segmentation

    root = write_segmentation(tmp_path / "sim", 2, 48, patients=2, mpp=2.0, laboratories=True)
    plain = write_segmentation(tmp_path / "plain", 2, 48, patients=2, mpp=2.0)
    found = read_sources([root], DataConfig(crop=32, classes=("tumour",)))
    assert found.classes.names == ("background", "tumour")
    far, near = (
        np.stack([sheet.pixels.reshape(-1, 3).mean(0) for sheet in read_source(each, DataConfig())[0]])
        for each in (root, plain)
    )
    assert np.ptp(far, axis=0).sum() != pytest.approx(np.ptp(near, axis=0).sum())
