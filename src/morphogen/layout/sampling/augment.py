"""Random geometry, as functions of a generator."""

from __future__ import annotations

import math

import cv2
import numpy as np

from morphogen.tasks.streams.turns import turn_of, turned


def flipped(random: np.random.Generator, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays mirrored together: left–right and top–bottom, each with probability ½."""
    turn = random_flip(random)
    return tuple(turned(array, turn) for array in arrays)


def random_flip(random: np.random.Generator) -> int:
    """Mirrored left–right and top–bottom, each with probability ½: the number of a turn."""
    across, along = random.random(2) < 0.5
    return turn_of(along, across)


def random_affine(random: np.random.Generator, side: int) -> np.ndarray:
    """STEDM's affine as a 2×3 matrix about the middle of a square of ``side`` px: scale 0.8–1.2, shift 10 %, turn
    ±360°, shear ±20° per axis."""
    scale = random.uniform(0.8, 1.2)
    angle = math.radians(random.uniform(-360, 360))
    shear = np.tan(np.radians(random.uniform(-20, 20, 2)))
    shift = random.uniform(-0.1, 0.1, 2) * side
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = scale * turn @ np.array([[1.0, shear[0]], [shear[1], 1.0]])
    middle = (side - 1) / 2
    offset = middle - matrix @ np.array([middle, middle]) + shift
    return np.concatenate([matrix, offset[:, None]], axis=1)


def reach(matrix: np.ndarray, side: int) -> int:
    """Pixels beyond a square of ``side`` px that an affine map about it brings in."""
    inverse = cv2.invertAffineTransform(matrix)
    corners = np.array([(x, y, 1.0) for x in (0, side - 1) for y in (0, side - 1)]) @ inverse.T
    return max(0, math.ceil(max(-corners.min(), corners.max() - (side - 1))))


def warped(array: np.ndarray, matrix: np.ndarray, labels: bool = False, beyond: int = 0) -> np.ndarray:
    """A square image or label map under an affine map, mirrored beyond its edges; labels keep their values.

    beyond: pixels of ``array`` on every side of the square that is mapped (:func:`reach`), so that tissue comes in at
    the corners and no mirror image of it.
    """
    side = array.shape[0] - 2 * beyond
    how = cv2.INTER_NEAREST if labels else cv2.INTER_LINEAR
    moved = matrix.copy()
    moved[:, 2] -= matrix[:, :2] @ (beyond, beyond)
    return cv2.warpAffine(
        np.ascontiguousarray(array), moved, (side, side), flags=how, borderMode=cv2.BORDER_REFLECT_101
    )


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W, 3) uint8 out of focus by a Gaussian of ``sigma`` px."""
    if sigma < 0.1:
        return image
    return cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
