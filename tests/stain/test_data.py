"""Pairs: layouts, checks in one report, crops that are the same for both images and fresh for each pair."""

import csv
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.core.seeds import generator
from morphogen.stain.data import Pair, find_pairs, pair_folders, splits_of, stains_of
from morphogen.stain.evaluate import real_stains
from morphogen.stain.pairs.checks import check_pairs, usable_pairs
from morphogen.stain.pairs.crops import PairDataset
from morphogen.stain.pairs.slides import slide_table
from morphogen.stain.targets.files import read_image
from morphogen.tasks.streams.turns import turned


def test_mist_and_bci_folders(make_pairs, tmp_path):
    root = make_pairs(3)
    found = find_pairs(root)
    assert [pair.name for pair in found.pairs] == ["p0", "p1", "p2"] and not found.alone
    assert found.pairs[0].he.parent.name == "trainA" and found.pairs[0].ihc.parent.name == "trainB"
    assert [pair.name for pair in find_pairs(root / "TrainValAB").pairs] == ["p0", "p1", "p2"]
    with pytest.raises(InputError, match="no valA with valB"):
        find_pairs(root, "val")
    with pytest.raises(InputError, match="unknown split 'vall'. Did you mean 'val'"):
        find_pairs(root, "vall")


def test_one_stain_per_folder_and_patients(make_pairs, tmp_path):
    root = make_pairs(2, stain="ER")
    make_pairs(1, stain="Ki67")
    (root / "ER" / "patients.csv").write_text("name,patient\np0.png,A\np1.png,B\n")
    found = find_pairs(root)
    assert [(pair.name, pair.stain, pair.patient) for pair in found.pairs] == [
        ("ER_p0", "ER", "A"),
        ("ER_p1", "ER", "B"),
        ("Ki67_p0", "Ki67", None),
    ]
    assert stains_of(found.pairs) == ("ER", "Ki67")
    assert [pair.unit for pair in found.pairs] == ["A", "B", "Ki67_p0"]


def test_table_of_pairs(make_pairs, tmp_path):
    root = make_pairs(2)
    base = root / "TrainValAB"
    path = tmp_path / "pairs.csv"
    files = [("p0", "HER2", "A", "train"), ("p1", "ER", "", "val"), ("gone", "ER", "", "val")]
    rows = [
        {
            "he": base / "trainA" / f"{name}.png",
            "ihc": base / "trainB" / f"{'p1' if name == 'gone' else name}.png",
            "stain": stain,
            "patient": patient,
            "split": split,
        }
        for name, stain, patient, split in files
    ]
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert [(pair.name, pair.stain) for pair in find_pairs(path, "train").pairs] == [("p0", "HER2")]
    val = find_pairs(path, "val")
    assert [pair.name for pair in val.pairs] == ["p1"] and "gone.png (missing)" in val.alone[0]
    with pytest.raises(InputError, match="no row has the split 'test', only train, val"):
        find_pairs(path, "test")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="needs the columns he and ihc, this one has a, b"):
        find_pairs(path)


def test_folders_of_two_names_pair_by_stem(make_pairs, tmp_path):
    base = make_pairs(2) / "TrainValAB"
    Image.open(base / "trainB" / "p0.png").save(base / "trainB" / "p0.jpg")
    with pytest.raises(InputError, match="'p0.png' and 'p0.jpg' have the same name"):
        pair_folders(base / "trainA", base / "trainB")
    with pytest.raises(InputError, match="are the same"):
        pair_folders(base / "trainA", base / "trainA")


def test_all_problems_are_in_one_report(make_pairs, tmp_path, caplog):
    root = make_pairs(9)
    a, b = (root / "TrainValAB" / f"train{side}" for side in "AB")
    (b / "p1.png").unlink()
    Image.open(a / "p2.png").resize((80, 64)).save(a / "p2.png")
    (a / "p3.png").write_bytes((a / "p3.png").read_bytes()[:300])
    rgba = np.dstack([np.array(Image.open(a / "p4.png")), np.full((64, 64), 128, np.uint8)])
    Image.fromarray(rgba).save(a / "p4.png")
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(b / "p5.png")
    for path in (a / "p6.png", b / "p6.png"):
        Image.open(path).crop((0, 0, 40, 40)).save(path)
    Image.open(b / "p7.png").convert("L").save(b / "p7.png")
    found = find_pairs(root)
    with pytest.raises(InputError) as error:
        usable_pairs(found, crop=64, where=root)
    text = str(error.value)
    assert "6 of 9 pairs cannot be used" in text and "--skip-bad" in text
    for part in (
        "1 without a partner", "1 of two sizes (p2: 80 × 64 and 64 × 64 px)", "cannot be read as an image", "p3.png",
        "2 where the image holds one channel that no target.yaml names", "p5.png", "p7.png",
        "smaller than the crop of 64 px (p6: 40 × 40 px)",
    ):  # fmt: skip
        assert part in error.value.what  # the printed sentence is cut in its middle
    assert "\n" not in text and len(text) <= 300
    with caplog.at_level(logging.WARNING):
        good, report = usable_pairs(found, crop=64, skip_bad=True)
    assert [pair.name for pair in good] == ["p0", "p4", "p8"] and report.skipped == 6
    assert "6 pairs are left out" in caplog.text


def test_truncated_jpeg_is_found(make_pairs):
    root = make_pairs(1, size=256, suffix=".jpg")
    path = root / "TrainValAB" / "trainA" / "p0.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert check_pairs(find_pairs(root)).bad == {"where the file cannot be read as an image": [str(path)]}


def test_transparent_pixels_are_white(make_pairs):
    path = make_pairs(1) / "TrainValAB" / "trainA" / "p0.png"
    plain = read_image(path)
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, :32] = 255
    Image.fromarray(np.dstack([plain, alpha])).save(path)
    read = read_image(path)
    np.testing.assert_array_equal(read[:, :32], plain[:, :32])
    assert (read[:, 32:] == 255).all()


def test_opaque_alpha_is_dropped(make_pairs):
    root = make_pairs(1)
    path = root / "TrainValAB" / "trainA" / "p0.png"
    plain = read_image(path)
    Image.open(path).convert("RGBA").save(path)
    assert check_pairs(find_pairs(root)).skipped == 0
    np.testing.assert_array_equal(read_image(path), plain)


def test_swapped_pair_is_warned_about(make_pairs, caplog):
    root = make_pairs(3)
    a, b = (root / "TrainValAB" / f"train{side}" / "p1.png" for side in "AB")
    he, ihc = a.read_bytes(), b.read_bytes()
    a.write_bytes(ihc)
    b.write_bytes(he)
    with caplog.at_level(logging.WARNING):
        good, report = usable_pairs(find_pairs(root))
    assert len(good) == 3
    assert "1 of 3 pairs look swapped" in caplog.text and "p1" in report.warnings[0]


def test_real_pairs_are_told_apart_by_their_stains(shared):

    pairs = [*find_pairs(shared / "data/pairs/bci", "val").pairs]
    for folder, he, ihc in (("mist_er", "he.jpg", "er.jpg"), ("restained_ki67", "HE.png", "IHC.png")):
        base = shared / "data/pairs" / folder
        pairs.append(Pair(folder, base / he, base / ihc))
    from morphogen.stain.data import FoundPairs

    assert not check_pairs(FoundPairs(pairs, [])).warnings
    swapped = [Pair(p.name, p.ihc, p.he) for p in pairs]
    assert (
        f"{len(pairs)} of {len(pairs)} pairs look swapped" in check_pairs(FoundPairs(swapped, [])).warnings[0]
    )


def test_crops_are_the_same_for_both_images_and_fresh_for_each_draw(make_pairs, tmp_path):
    root = make_pairs(2, size=96)
    for k in range(2):  # both images the same: then any difference of place or turn shows
        for side in "AB":
            image = np.random.default_rng(k).integers(0, 256, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "TrainValAB" / f"train{side}" / f"p{k}.png")
    dataset = PairDataset(find_pairs(root).pairs, ["IHC"], crop=32)
    seen = set()
    for k in range(20):
        item = dataset.draw(k % 2, generator("draw", k))
        assert torch.equal(item["he"], item["ihc"]) and item["he"].shape == (32, 32, 3)
        seen.add(item["he"].numpy().tobytes())
    assert len(seen) == 20
    again = dataset.draw(0, generator("draw", 0))
    assert again["he"].numpy().tobytes() in seen
    assert torch.equal(dataset[0]["he"], dataset[0]["he"])


def test_all_eight_orientations_come(make_pairs):
    dataset = PairDataset(find_pairs(make_pairs(1, size=32)).pairs, ["IHC"], crop=32)
    whole = dataset.images(0)[0]
    ways = {turned(whole.numpy(), k).tobytes() for k in range(8)}
    assert len(ways) == 8
    drawn = {dataset.draw(0, generator(k))["he"].numpy().tobytes() for k in range(100)}
    assert drawn == ways


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_a_batch_holds_what_its_places_say(make_pairs, jitter):
    """Against slices, mirrors and quarter turns of the whole images; cut on the device as on the host."""
    pairs = find_pairs(make_pairs(3, size=80)).pairs
    here, there = (PairDataset(pairs, ["IHC"], crop=32, stain_jitter=jitter) for _ in range(2))
    places = [here.place(k % 3, generator("batch", k)) for k in range(12)]
    batch = here.finish(here.cut(places))
    for row, place in enumerate(places):
        for name, image in zip(("he", "ihc"), here.images(place.index)[:2]):
            crop = image[place.top : place.top + 32, place.left : place.left + 32]
            crop = torch.rot90(crop.flip(1) if place.turn & 4 else crop, place.turn & 3, (0, 1))
            same = torch.equal(batch[name][row], crop)
            assert same == (name == "ihc" or not jitter)
        assert int(batch["index"][row]) == place.index
        for name, value in here.draw(row % 3, generator("batch", row)).items():
            assert torch.equal(batch[name][row], value)
    if not jitter:
        there._held.move(torch.device("cpu"))
        assert there.resident and "he" not in there.cut(places)
        found = there.finish(there.cut(places))
        assert found.keys() == batch.keys() and all(torch.equal(found[k], batch[k]) for k in batch)


def test_balanced_stains_are_drawn_as_often(make_pairs):
    """Five pairs of one stain, two of another: five items each, none of a pair lost; images are kept once."""
    pairs = find_pairs(make_pairs(7)).pairs
    pairs = [replace(pair, stain="ER" if k < 5 else "HER2") for k, pair in enumerate(pairs)]
    plain = PairDataset(pairs, ["HER2", "ER"], crop=32)
    dataset = PairDataset(pairs, ["HER2", "ER"], crop=32, balance=True)
    assert len(plain) == 7 and len(dataset) == 10
    items = [dataset[k] for k in range(10)]
    assert [int(item["label"]) for item in items] == [1] * 5 + [0] * 5
    middles = [item["he"].numpy().tobytes() for item in items]
    assert len(set(middles)) == 7 and sorted(map(middles.count, set(middles))) == [1] * 5 + [2, 3]
    assert set(middles) == {plain[k]["he"].numpy().tobytes() for k in range(7)}
    assert len(dataset._held) == 7


def test_images_beyond_the_memory_limit_are_read_again(make_pairs):
    pairs = find_pairs(make_pairs(3)).pairs
    dataset = PairDataset(pairs, ["IHC"], crop=32, memory_gib=64 * 64 * 3 * 2 * 2 / 2**30)  # two pairs
    for k in (0, 1, 2, 0):
        dataset.images(k)
    assert len(dataset._held) == 2 and dataset._held.bytes == 64 * 64 * 3 * 2 * 2
    dataset.prepare(torch.device("cpu"))
    assert len(dataset._held) == 2 and not dataset.resident


# --- tables and layouts as they are in the world ---------------------------------------------------------------


def images(folder, names, colour=(200, 150, 180)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), colour).save(folder / name)


def test_bci_as_published(tmp_path):
    for kind in ("HE", "IHC"):
        images(tmp_path / kind / "train", ["00001_train_1+.png", "00002_train_3+.png"])
        images(tmp_path / kind / "test", ["00003_test_0.png"])
    assert splits_of(tmp_path) == ("train", "test")
    found = find_pairs(tmp_path)
    assert [pair.name for pair in found.pairs] == ["00001_train_1+", "00002_train_3+"] and not found.alone
    assert found.pairs[0].he.parts[-3:-1] == ("HE", "train") and found.pairs[0].ihc.parts[-3] == "IHC"
    assert real_stains(tmp_path, "test", None, tmp_path)[0].pairs[0].name == "00003_test_0"


def test_images_side_by_side_are_told_apart_from_none(tmp_path):
    """pix2pix's aligned layout holds H&E and IHC in one image; what to do is said."""
    images(tmp_path / "val", ["p1.png", "p2.png"])
    for read in (lambda: find_pairs(tmp_path, "val"), lambda: real_stains(tmp_path, "val", None, tmp_path)):
        with pytest.raises(
            InputError, match=r"/val: the images lie in one folder.*H&E into valA, the IHC into valB"
        ):
            read()
    with pytest.raises(InputError, match="there is no trainA"):
        find_pairs(tmp_path, "train")


def test_patients_of_names_with_dots(tmp_path, caplog):
    names = [f"TCGA-A{i}-01Z.4E5F{i}" for i in range(4)]
    for kind in ("valA", "valB"):
        images(tmp_path / kind, [f"{name}.png" for name in names])
        (tmp_path / kind / "._x.png").write_bytes(b"mac")
        (tmp_path / kind / "Thumbs.db").write_bytes(b"win")
    table = tmp_path / "patients.csv"
    for ending in ("", ".png"):
        rows = "".join(f"{name}{ending};{'P1 ' if i < 2 else ' P2'}\n" for i, name in enumerate(names))
        table.write_text(f"\ufeffName;Patient\n{rows}", encoding="utf-8")
        assert [pair.patient for pair in find_pairs(tmp_path, "val").pairs] == ["P1", "P1", "P2", "P2"]
    table.write_text(f"name,patient\n{names[0]},P1\n")
    assert [pair.patient for pair in find_pairs(tmp_path, "val").pairs] == ["P1", None, None, None]
    assert f"3 of 4 images have no patient, the first is '{names[1]}'" in caplog.text
    table.write_text("name,patient\nother,P1\n")
    with pytest.raises(InputError, match="none of the 4 images has a patient in it"):
        find_pairs(tmp_path, "val")


def test_groups_of_folders_and_tables(tmp_path, caplog):
    names = ["a", "b", "c"]
    for kind in ("valA", "valB"):
        images(tmp_path / kind, [f"{name}.png" for name in names])
    known = tmp_path / "patients.csv"
    known.write_text("name,group,patient\na.png,array 1,P\nb.png,array 1,P\nc.png,array 2,Q\n")
    found = find_pairs(tmp_path, "val").pairs
    assert [(pair.group, pair.patient) for pair in found] == [("array 1", "P")] * 2 + [("array 2", "Q")]
    assert [pair.unit for pair in found] == ["P", "P", "Q"]  # intervals stay over patients
    known.write_text("name,group\na,1\nb,1\n")
    found = find_pairs(tmp_path, "val").pairs
    assert [(pair.group, pair.patient) for pair in found] == [("1", None)] * 2 + [(None, None)]
    assert "1 of 3 images have no group, the first is 'c'" in caplog.text
    known.write_text("name,scanner\na,1\n")
    with pytest.raises(InputError, match="no column is called patient or group"):
        find_pairs(tmp_path, "val")
    table = tmp_path / "pairs.csv"
    table.write_text("he,ihc,group\nvalA/a.png,valB/a.png,X\nvalA/b.png,valB/b.png,\n")
    assert [pair.group for pair in find_pairs(table).pairs] == ["X", None]


@pytest.mark.parametrize(
    "text",
    [
        "he,ihc,patient,split,shift_x\nA/a.png,B/a.png,P1,val,2\nA/b.png,B/b.png,,val,\n",
        "HE;IHC;Patient;Split;Shift X\nA/a.png;B/a.png; P1 ;Val;2.0\nA/b.png;B/b.png;NA;validation;NaN\n",
        "\the\tihc\tpatient\tsplit\tshift_x\n0\tA\\a.png\tB\\a.png\tP1\tval\t2\n1\tA/b.png\tB/b.png\t\tval\t\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_pairs_as_they_are_saved(tmp_path, text, encoding):
    for kind in "AB":
        images(tmp_path / kind, ["a.png", "b.png"])
    path = tmp_path / "pairs.csv"
    path.write_text(text, encoding=encoding)
    first, second = find_pairs(path, "val").pairs
    assert (first.name, first.patient, first.shift) == ("a", "P1", (0, 2))
    assert (second.name, second.patient, second.shift) == ("b", None, (0, 0))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("he,ihc,patient\na,b\n", "line 2: the row has 2 cells where the header names 3 columns"),
        ("he,ihc,affine\na,b,1,0,0,0,1,0\n", "line 2: the row has 8 cells where the header names 3 columns"),
        ("he,ihc,split\na,b,vall\n", "unknown split 'vall'. Did you mean 'val'"),
        ("he;ihc;he_mpp\nx.svs;y.svs;0,5\n", "column 'he_mpp': '0,5' has a decimal comma. Write 0.5"),
        ("he,ihc,he_mpp\nx.svs,y.svs,20x\n", "column 'he_mpp': '20x' is a magnification"),
        ("he,ihc\n,b\n", "line 2: the column 'he' is empty"),
    ],
)
def test_tables_of_pairs_that_need_a_guess(tmp_path, text, sentence):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        slide_table(path)
        find_pairs(path, "val")
    assert sentence in str(caught.value)


def test_units_of_slide_pairs(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("he,ihc,he_mpp,ihc_mpp\nx.svs,y.svs,0.5um,250 nm\nz.svs,y.svs,NA,\n")
    assert [(p.he_mpp, p.ihc_mpp) for p in slide_table(path)] == [(0.5, 0.25), (None, None)]
