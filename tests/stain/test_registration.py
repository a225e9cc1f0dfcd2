"""Registration: a known shift is found across stains; no shift is made up where images do not match."""

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.stain.registration.shift import estimate_shift
from morphogen.stain.targets.files import read_image

from .conftest import he_like


@pytest.mark.parametrize("shift", [(0, 0), (7, -11), (-12, 3)])
def test_known_shift_between_stains_is_found(shift):
    he, ihc = (he_like(np.random.default_rng(5), 256, pink) for pink in (True, False))
    dy, dx = shift
    moved = np.roll(ihc, (dy, dx), axis=(0, 1))
    found = estimate_shift(he, moved, max_shift=16)
    assert (found.dy, found.dx, found.sure) == (dy, dx, True)


def test_different_tissue_gives_no_shift():
    he, ihc = (he_like(np.random.default_rng(k), 256, k == 0) for k in (0, 1))
    found = estimate_shift(he, ihc, max_shift=16)
    assert (found.dy, found.dx, found.sure) == (0, 0, False)


def test_restained_section_is_registered_and_serial_sections_are_not(shared):
    base = shared / "data/pairs"
    found = estimate_shift(
        read_image(base / "restained_ki67/HE.png"), read_image(base / "restained_ki67/IHC.png")
    )
    assert found.sure and abs(found.dy + 2) <= 1 and 6 <= found.dx <= 10
    name = "00820_test_2+.png"
    assert not estimate_shift(read_image(base / "bci/valA" / name), read_image(base / "bci/valB" / name)).sure


def test_images_that_cannot_be_compared_are_refused():
    for side in (100, 128, 143):  # of a quadrant of the last nothing would be left but 7 px
        small = np.zeros((side, side, 3), np.uint8)
        with pytest.raises(InputError, match="too small for shifts up to 32 px"):
            estimate_shift(small, small)
    assert not estimate_shift(np.zeros((144, 144, 3), np.uint8), np.zeros((144, 144, 3), np.uint8)).sure
    with pytest.raises(InputError, match="shifts up to 0 px are none"):
        estimate_shift(np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200, 3), np.uint8), max_shift=0)
    with pytest.raises(InputError, match="one size"):
        estimate_shift(np.zeros((200, 200, 3), np.uint8), np.zeros((200, 210, 3), np.uint8))
