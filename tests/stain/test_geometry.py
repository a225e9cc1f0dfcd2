"""Maps between the images of a pair: what is cut shows the same tissue, and nothing from outside either image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.stain.config import EvaluateConfig
from morphogen.stain.data import FoundPairs, Pair, find_pairs
from morphogen.stain.evaluate import evaluate_methods
from morphogen.stain.pairs.checks import check_pairs
from morphogen.stain.pairs.crops import PairDataset
from morphogen.stain.pairs.geometry import align, cut, pair_map, read_aligned, shared_box, shared_side
from morphogen.stain.registration.shift import joined

from .conftest import he_like

NOWHERE = Pair("a", Path("a"), Path("b"))


def rotation(degrees, tx=0.0, ty=0.0):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (c, -s, tx, s, c, ty)


def ramp(height, width):
    """Channels hold the x and y of each pixel's centre."""
    ys, xs = np.mgrid[:height, :width] + 0.5
    return np.stack([xs, ys, xs], axis=-1).astype(np.float32)


@pytest.mark.parametrize("shift", [(0, 0), (3, -6), (-5, 8)])
def test_a_shift_cuts_to_what_both_images_share(shift):
    dy, dx = shift
    scene = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    he, ihc = scene[10:50, 10:60], scene[10 - dy : 50 - dy, 10 - dx : 60 - dx]
    a, b = align(replace(NOWHERE, shift=shift), he, ihc)
    np.testing.assert_array_equal(a, b)
    assert a.shape == (40 - abs(dy), 50 - abs(dx), 3)


@pytest.mark.parametrize(
    "affine", [rotation(9, 6, -4), rotation(-14, -9, 21), (1.1, 0.05, 3, -0.04, 0.95, 2)]
)
def test_the_ihc_is_drawn_where_the_map_says(affine):
    pair = replace(NOWHERE, affine=affine, shift=(3, -7))  # (dy, dx), after the map
    he, ihc = ramp(120, 150), ramp(120, 150)
    a, b = align(pair, he, ihc)
    matrix = np.array(affine).reshape(2, 3) + [[0, 0, -7], [0, 0, 3]]
    expected = a[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    inner = (slice(2, -2), slice(2, -2))
    assert a.shape == b.shape and min(a.shape[:2]) > 60
    assert np.abs(b[..., :2] - expected)[inner].max() < 0.05
    assert expected.min() > 0 and (expected < [150, 120]).all()  # nothing is made up at the border
    rows, columns = shared_box(pair, (120, 150))
    np.testing.assert_array_equal(a, he[rows, columns])  # the H&E is not resampled
    np.testing.assert_array_equal(cut(pair, he), a)


def test_the_box_is_the_largest_there_is():
    pair = replace(NOWHERE, affine=rotation(10, 10, -8))
    rows, columns = shared_box(pair, (160, 200))
    matrix = pair_map(pair)
    corners = [(t, b, left, r) for t in range(0, 160, 8) for b in range(t + 8, 161, 8)
               for left in range(0, 200, 8) for r in range(left + 8, 201, 8)]  # fmt: skip
    t, b, left, r = np.array(corners).T
    inside = np.ones(len(t), bool)
    for x in (left, r):
        for y in (t, b):
            u, v = matrix[:, :2] @ np.array([x, y]) + matrix[:, 2:]
            inside &= (u >= 0) & (u <= 200) & (v >= 0) & (v <= 160)
    best = ((b - t) * (r - left))[inside].max()
    assert (rows.stop - rows.start) * (columns.stop - columns.start) == best


def test_maps_are_joined_as_they_follow_each_other():
    first, then = (np.array(rotation(*numbers)).reshape(2, 3) for numbers in ((7, 12, -3), (-4, 2, 5)))
    corner = (8.0, 16.0)
    both = np.array(joined(first, then, corner)).reshape(2, 3)
    position = np.array([40.0, 70.0])
    within = then[:, :2] @ (position - corner) + then[:, 2]
    expected = first[:, :2] @ (within + corner) + first[:, 2]
    np.testing.assert_allclose(both[:, :2] @ position + both[:, 2], expected, atol=1e-4)


@pytest.fixture
def turned(tmp_path):
    """A table with one pair whose IHC is the H&E's scene turned by 8 degrees."""
    import cv2

    scene = he_like(np.random.default_rng(3), 224, pink=False)
    matrix = np.array(rotation(8, 6, -10)).reshape(2, 3)
    Image.fromarray(scene).save(tmp_path / "he.png")
    indices = matrix.copy()
    indices[:, 2] += indices[:, :2] @ [0.5, 0.5] - 0.5
    Image.fromarray(cv2.warpAffine(scene, indices, (224, 224), flags=cv2.INTER_CUBIC)).save(
        tmp_path / "ihc.png"
    )
    numbers = " ".join(str(value) for value in matrix.ravel())
    (tmp_path / "pairs.csv").write_text(f"he,ihc,affine\nhe.png,ihc.png,{numbers}\n")
    return tmp_path / "pairs.csv"


def test_a_registered_pair_is_trained_and_scored_where_both_show_the_same(turned):
    (pair,) = find_pairs(turned).pairs
    a, b = read_aligned(pair)
    assert min(a.shape[:2]) == shared_side(pair) >= 150
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97
    crop = PairDataset([pair], ["IHC"], crop=64)[0]
    assert np.corrcoef(crop["he"].ravel().numpy(), crop["ihc"].ravel().numpy())[0, 1] > 0.97
    whole = np.array(Image.open(pair.he))
    quick = EvaluateConfig(tile=16, resamples=200)
    (found,) = evaluate_methods([pair], {"whole images": lambda pair, he: whole}, quick)
    assert found.scores.intervals["ssim"].value > 0.9


def test_pairs_that_share_too_little_are_reported(turned):
    (pair,) = find_pairs(turned).pairs
    for far in (replace(pair, affine=rotation(0, 400, 0)), replace(pair, affine=None, shift=(0, -300))):
        assert shared_side(far) == 0
        assert "that share nothing" in check_pairs(FoundPairs([far], []), crop=64).bad
    assert "smaller than the crop of 200 px" in check_pairs(FoundPairs([pair], []), crop=200).bad


@pytest.mark.parametrize("cell", ["1 0 0 0 1", "1 0 0 0 1 nan", "one"])
def test_a_bad_map_is_refused(turned, cell):
    turned.write_text(f"he,ihc,affine\nhe.png,ihc.png,{cell}\n")
    with pytest.raises(InputError, match=f"line 2: '{cell}' are not six numbers"):
        find_pairs(turned)
    turned.write_text("he,ihc,shift_x,shift_y\nhe.png,ihc.png,1.5,0\n")
    with pytest.raises(InputError, match="line 2, column .shift_x.: 1.5 is not a whole number"):
        find_pairs(turned)
