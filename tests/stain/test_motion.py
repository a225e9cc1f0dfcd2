"""Rigid and affine registration: known maps, landmarks on serial sections, and no match where there is none."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from morphogen.cli.main import main
from morphogen.core.errors import ConfigError, InputError
from morphogen.core.running.spread import Spread
from morphogen.slides.pyramid.writer import PyramidWriter
from morphogen.stain.config import DataConfig, TrainConfig
from morphogen.stain.data import Pair, find_pairs
from morphogen.stain.fitting.chosen import prepared
from morphogen.stain.pairs.geometry import read_aligned
from morphogen.stain.pairs.slides import slide_table
from morphogen.stain.registration import table as registered
from morphogen.stain.registration.motion import MAX_TURN, estimate_motion
from morphogen.stain.registration.shift import register_pair
from morphogen.stain.registration.table import register_slides, register_table
from morphogen.stain.targets.files import read_image

from .conftest import he_like
from .test_geometry import rotation

CIMA = {  # fixed, moving, their landmarks
    "lesion": ("cima_lesion/Izd2-29-041-w35_HE", "cima_lesion/Izd2-29-041-w35_proSPC", ".csv", 1),
    "kidney": ("cima_rat_kidney/Rat-Kidney_HE", "cima_rat_kidney/Rat-Kidney_PanCytokeratin", ".csv", 1),
    **{
        stain: ("cima_lesion3/29-041-Izd2-w35-He-les3", f"cima_lesion3/29-041-Izd2-w35-{stain}-les3",
                "_landmarks_scale50pc.csv", 10)
        for stain in ("CD31-3", "Cc10-5", "Ki67-7", "proSPC-4")
    },
}  # fmt: skip


def turned_pair(degrees, tx, ty, size=320):
    """H&E, IHC of the same nuclei turned, and the map between them."""
    import cv2

    he, ihc = (he_like(np.random.default_rng(11), size, pink) for pink in (True, False))
    matrix = np.array(rotation(degrees)).reshape(2, 3)
    middle = np.array([size / 2, size / 2])
    matrix[:, 2] = middle - matrix[:, :2] @ middle + [tx, ty]
    indices = matrix.copy()
    indices[:, 2] += indices[:, :2] @ [0.5, 0.5] - 0.5
    return he, cv2.warpAffine(ihc, indices, (size, size), borderValue=(245, 245, 245)), matrix


def error(found, truth, size=320):
    """Largest distance in px between two maps over the middle half."""
    at = np.array([(x, y) for x in (size / 4, 3 * size / 4) for y in (size / 4, 3 * size / 4)])
    return float(np.linalg.norm(at @ (found - truth)[:, :2].T + (found - truth)[:, 2], axis=1).max())


@pytest.mark.parametrize(("degrees", "tx", "ty"), [(0, 0, 0), (11, 14, -25), (-7.3, -40.5, 12.25)])
@pytest.mark.parametrize("motion", ["rigid", "affine"])
def test_a_known_motion_between_stains_is_found(degrees, tx, ty, motion):
    he, ihc, truth = turned_pair(degrees, tx, ty)
    found = estimate_motion(he, ihc, motion)
    assert found.sure and found.score > 0.4
    assert error(found.matrix, truth) < 1.5
    assert found.turn == pytest.approx(degrees, abs=0.5)


def landmarks(path, factor):
    with open(path, newline="") as file:
        return np.array([[float(value) for value in row[-2:]] for row in list(csv.reader(file))[1:]]) / factor


@pytest.mark.parametrize("name", CIMA)
def test_serial_sections_are_registered_as_well_as_by_landmarks(name, shared):
    """CIMA sections with landmarks: a fit to the landmarks themselves is the best an affine map can do."""
    fixed, moving, suffix, factor = CIMA[name]
    base = shared / "data/pairs"
    a, b = (landmarks(base / (file + suffix), factor) for file in (fixed, moving))
    a, b = a[: len(b)], b[: len(a)]
    found = estimate_motion(*(read_image(base / f"{file}.jpg") for file in (fixed, moving)), "affine")

    def median(matrix):
        return float(np.median(np.linalg.norm(a @ matrix[:, :2].T + matrix[:, 2] - b, axis=1)))

    best = np.linalg.lstsq(np.column_stack([a, np.ones(len(a))]), b, rcond=None)[0].T
    assert found.sure and median(np.eye(2, 3)) > 15
    assert median(found.matrix) < 1.1 * median(best) + 0.5


def test_the_table_keeps_what_else_is_known_of_pairs(tmp_path):
    """Masks, nuclei and groups of the pairs that are registered."""
    he, ihc, _ = turned_pair(3, 5, 2)
    for name, image in (("he", he), ("ihc", ihc), ("seen", np.full(he.shape[:2], 255, np.uint8))):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    Image.fromarray(np.zeros(he.shape[:2], np.uint8)).save(tmp_path / "cells.png")
    (tmp_path / "pairs.csv").write_text(
        "name,he,ihc,group,mask,nuclei\na,he.png,ihc.png,array 1,seen.png,cells.png\n"
        "b,he.png,ihc.png,array 2,,\n"
    )
    out = tmp_path / "elsewhere/registered.csv"
    register_table(tmp_path / "pairs.csv", out)
    given, found = (find_pairs(path).pairs for path in (tmp_path / "pairs.csv", out))
    for a, b in zip(given, found, strict=True):
        assert (a.group, a.name) == (b.group, b.name) and b.affine is not None
        for own, other in ((a.mask, b.mask), (a.nuclei, b.nuclei)):
            assert own is other is None or own.resolve() == other.resolve()


def test_tissue_of_other_patients_does_not_match(shared):
    base = shared / "data/pairs"
    bci = [base / "bci" / f"val{side}" / f"{name}.png" for side, name in
           (("A", "00345_test_0"), ("B", "00820_test_2+"), ("B", "00901_test_1+"))]  # fmt: skip
    he = read_image(bci[0])
    for other in bci[1:]:
        found = estimate_motion(he, read_image(other))
        assert not found.sure and found.score < 0.15
    # Two pairs of BCI are neighbouring sections that share no structure.
    assert not register_pair(Pair("a", bci[1].parent.parent / "valA" / bci[1].name, bci[1])).sure


def test_the_table_holds_what_was_found(tmp_path, capsys):
    he, ihc, truth = turned_pair(9, 12, -6)
    (tmp_path / "in").mkdir()
    Image.fromarray(he).save(tmp_path / "in/he.png")
    Image.fromarray(ihc).save(tmp_path / "in/ihc.png")
    Image.fromarray(he_like(np.random.default_rng(77), 320, False)).save(tmp_path / "in/other.png")
    (tmp_path / "in/pairs.csv").write_text(
        "name,he,ihc,stain,patient,split\na,he.png,ihc.png,ER,P1,train\nb,he.png,other.png,ER,P2,val\n"
    )
    out = tmp_path / "out/registered.csv"
    with pytest.raises(SystemExit) as status:
        main(["stain", "register", str(tmp_path / "in/pairs.csv"), "--out", str(out)])
    assert status.value.code in (0, None)
    said = capsys.readouterr().out
    assert "1 of 2 pairs registered" in said and "left as they were: b" in said
    (pair,), (other,) = find_pairs(out, "train").pairs, find_pairs(out, "val").pairs
    assert (pair.stain, pair.patient) == ("ER", "P1") and other.affine is None
    assert error(np.array(pair.affine).reshape(2, 3), truth) < 1.5
    a, b = read_aligned(pair)
    assert np.corrcoef(*(image.astype(float).mean(-1).ravel() for image in (a, b)))[0, 1] > 0.5
    # Registered again, there is next to nothing left to find, and the two maps are joined.
    again = register_table(out, tmp_path / "again.csv")
    assert again.unsure == ["b"]
    (pair,) = find_pairs(tmp_path / "again.csv", "train").pairs
    assert error(np.array(pair.affine).reshape(2, 3), truth) < 1.5
    spread = tmp_path / "out/spread.csv"
    register_table(tmp_path / "in/pairs.csv", spread, spread=Spread(workers=1, retries=0))
    assert spread.read_bytes() == out.read_bytes()
    dropped = register_table(tmp_path / "in/pairs.csv", tmp_path / "dropped.csv", drop_unmatched=True)
    assert (dropped.pairs, dropped.unsure) == (1, ["b"])
    assert "group" not in out.read_text() and "mask" not in out.read_text()
    (tmp_path / "in/none.csv").write_text("he,ihc\nhe.png,other.png\n")
    with pytest.raises(InputError, match="no pair matches"):
        register_table(tmp_path / "in/none.csv", tmp_path / "none.csv", drop_unmatched=True)
    with pytest.raises(InputError, match="overwrite the one it is made from"):
        register_table(out, out)
    with pytest.raises(InputError, match="is a CSV file"):
        register_table(out, tmp_path / "table.txt")


def test_no_split_is_left_out_in_silence(tmp_path):
    he, ihc, _ = turned_pair(4, 2, 3)
    for folder, image in (("trainA", he), ("trainB", ihc), ("valA", he)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "data" / folder / "p.png")
    with pytest.raises(InputError, match="valB: there is no such folder"):
        register_table(tmp_path / "data", tmp_path / "out.csv")
    table = tmp_path / "data/pairs.csv"
    for splits, message in (
        (("train", "vall"), "unknown split 'vall'"),
        (("train", ""), "some rows have no split"),
    ):
        rows = [f"{k},trainA/p.png,trainB/p.png,{split}" for k, split in enumerate(splits)]
        table.write_text("\n".join(["name,he,ihc,split", *rows]) + "\n")
        with pytest.raises(InputError, match=message):
            register_table(table, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    Image.fromarray(he[:80, :80]).save(tmp_path / "data/small.png")
    table.write_text("name,he,ihc\ntiny,small.png,small.png\n")
    with pytest.raises(InputError, match="tiny: images of 80 × 80 px are too small"):
        register_table(table, tmp_path / "out.csv")


def test_training_registers_pairs(tmp_path):
    he, ihc, truth = turned_pair(-6, 8, 4)
    for side, image in (("A", he), ("B", ihc)):
        (tmp_path / f"train{side}").mkdir()
        Image.fromarray(image).save(tmp_path / f"train{side}/p.png")
    config = TrainConfig()
    config = config.replace(data=config.data.replace(crop=64, register_pairs="rigid"))
    (pair,), skipped = prepared(find_pairs(tmp_path), config)
    assert skipped == 0 and error(np.array(pair.affine).reshape(2, 3), truth) < 1.5
    too_large = config.replace(data=config.data.replace(crop=312))
    assert prepared(find_pairs(tmp_path), too_large)[0][0].affine is None


def test_a_switch_of_older_models_is_understood():
    assert DataConfig(**json.loads('{"register_pairs": true}')).register_pairs == "shift"
    assert DataConfig(**json.loads('{"register_pairs": false}')).register_pairs == "none"


@pytest.mark.parametrize("coarse", ["he", "ihc"])
def test_whole_slides_are_registered_at_their_own_resolution(tmp_path, monkeypatch, coarse):
    """One slide has another µm/px and the IHC is turned: the map is between pixels of the two level 0."""
    images = dict(zip(("he", "ihc"), turned_pair(10, 16, -20, size=480)[:2], strict=True))
    truth = turned_pair(10, 16, -20, size=480)[2]
    images[coarse] = np.array(Image.fromarray(images[coarse]).resize((240, 240), Image.Resampling.BOX))
    for name, image in images.items():
        with PyramidWriter(
            tmp_path / f"{name}.ome.tif", *image.shape[1::-1], mpp=240 / len(image), tile=64, codec="deflate"
        ) as writer:
            writer.write(image, 0)
    (tmp_path / "slides.csv").write_text("he,ihc,stain\nhe.ome.tif,ihc.ome.tif,ER\n")
    (pair,) = slide_table(tmp_path / "slides.csv")
    moved, score, sure = register_slides(pair)
    assert sure and score > 0.3
    # In pixels of level 0: of the H&E's, and to the IHC's.
    expected = truth / 2 if coarse == "ihc" else np.column_stack([truth[:, :2] * 2, truth[:, 2]])
    assert error(moved.affine, expected, len(images["he"])) < 2.5
    table = register_table(tmp_path / "slides.csv", tmp_path / "registered.csv")
    (written,) = slide_table(table.path)
    np.testing.assert_allclose(written.affine, moved.affine, rtol=1e-4)
    with pytest.raises(InputError, match="rigid or affine"):
        register_table(tmp_path / "slides.csv", tmp_path / "shifted.csv", "shift")
    # Killed at its last pair, it goes on there.
    other = images["he"].copy()
    other[0, 0] = 0  # a copy of a slide would be known by its contents
    with PyramidWriter(
        tmp_path / "second.ome.tif", *other.shape[1::-1], mpp=240 / len(other), tile=64, codec="deflate"
    ) as writer:
        writer.write(other, 0)
    with open(tmp_path / "slides.csv", "a") as file:
        file.write("second.ome.tif,ihc.ome.tif,ER\n")
    looked: list[str] = []

    def watched(pair, motion):
        looked.append(pair.he.name)
        if looked == ["he.ome.tif", "second.ome.tif"]:
            raise KeyboardInterrupt
        return register_slides(pair, motion)

    monkeypatch.setattr(registered, "register_slides", watched)
    with pytest.raises(KeyboardInterrupt):
        register_table(tmp_path / "slides.csv", tmp_path / "two.csv", workers=1)
    register_table(tmp_path / "slides.csv", tmp_path / "two.csv", workers=1)
    assert looked == ["he.ome.tif", "second.ome.tif", "second.ome.tif"]
    rows = (tmp_path / "two.csv").read_text().splitlines()
    assert (
        rows[1]
        == (tmp_path / "registered.csv").read_text().splitlines()[1]
        == rows[2].replace("second", "he")
    )


def test_images_too_small_to_match_are_refused():
    with pytest.raises(InputError, match="80 × 90 px are too small to be registered"):
        estimate_motion(np.zeros((90, 80, 3), np.uint8), np.zeros((90, 80, 3), np.uint8))
    blank = np.full((128, 128, 3), 250, np.uint8)
    assert not estimate_motion(blank, blank).sure
    assert MAX_TURN < 45


def many_pairs(folder, n=4):
    for kind in ("A", "B"):
        (folder / f"train{kind}").mkdir(parents=True)
    for i in range(n):
        he, ihc, _ = turned_pair(20 + i, 8, -5)
        Image.fromarray(he).save(folder / f"trainA/{i}.png")
        Image.fromarray(ihc).save(folder / f"trainB/{i}.png")
    return folder


def test_a_killed_registration_goes_on(tmp_path, monkeypatch):
    """What was found before the kill is not looked for again; the table is that of a run without one."""
    from morphogen.stain.registration import shift as registration

    data, whole = many_pairs(tmp_path / "data"), tmp_path / "whole.csv"
    register_table(data, whole, workers=1)
    seen, real = [], registration.register_pair

    def watched(pair, *args):
        seen.append(pair.name)
        if len(seen) == 3 and stop:
            raise KeyboardInterrupt
        return real(pair, *args)

    monkeypatch.setattr(registration, "register_pair", watched)
    stop, out = True, tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        register_table(data, out, workers=1)
    assert not out.exists()
    stop, seen[:] = False, []
    register_table(data, out, workers=1)
    assert seen == ["2", "3"] and out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.csv", "whole.csv"]
    # Another motion, or another file of the same name, is looked at again.
    stop, seen[:] = True, []
    with pytest.raises(KeyboardInterrupt):
        register_table(data, out, workers=1)
    stop, seen[:] = False, []
    Image.fromarray(turned_pair(50, 4, 4)[1]).save(data / "trainB/0.png")
    register_table(data, out, workers=1)
    assert seen == ["0", "2", "3"]


def test_workers_change_nothing_about_the_table(tmp_path):
    data = many_pairs(tmp_path / "data")
    tables = [register_table(data, tmp_path / f"{n}.csv", workers=n).path.read_bytes() for n in (1, 3)]
    assert tables[0] == tables[1]
    with pytest.raises(ConfigError, match="0 workers"):
        register_table(data, tmp_path / "none.csv", workers=0)
    (data / "trainB/1.png").write_bytes(b"no image")
    with pytest.raises(InputError):
        register_table(data, tmp_path / "bad.csv", workers=3)
