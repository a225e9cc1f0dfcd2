"""Optical density and stain separation: closed forms, scikit-image, blank tiles, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.color as reference
import torch

from morphogen.core.errors import InputError
from morphogen.slides.colour import (
    dab_density,
    deconvolve,
    estimate_stains,
    optical_density,
    reconstruct,
    stain_matrix,
)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 20, 17, 3), dtype=np.uint8)


def test_optical_density_is_minus_log10_of_transmitted_light() -> None:
    image = torch.tensor([255, 128, 1, 0], dtype=torch.uint8).reshape(1, 2, 2, 1).expand(1, 2, 2, 3)
    density = optical_density(image)[0, 0].flatten()
    expected = -np.log10(np.array([1.0, 128 / 255, 1 / 255, 1 / 255]))
    np.testing.assert_allclose(density, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("stains", "conversion"), [("hed", reference.hed_from_rgb), ("hdab", reference.hdx_from_rgb)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_deconvolution_equals_scikit_image(images, stains, conversion, dtype) -> None:
    x = images if dtype is np.uint8 else (images / 255).astype(dtype)
    ours = deconvolve(x, stains, unit="skimage").permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, reference.separate_stains(x, conversion), atol=1e-5)
    if stains == "hed":
        np.testing.assert_allclose(ours, reference.rgb2hed(x), atol=1e-5)


def test_reconstruction_equals_scikit_image() -> None:
    amounts = np.random.default_rng(1).uniform(0, 0.2, (2, 9, 8, 3))
    ours = reconstruct(torch.as_tensor(amounts).permute(0, 3, 1, 2), "hed", unit="skimage")
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1), reference.hed2rgb(amounts), atol=1e-5)


def test_layouts_and_arrays_agree(images) -> None:
    nhwc = deconvolve(images)
    nchw = deconvolve(torch.as_tensor(images).permute(0, 3, 1, 2))
    single = deconvolve(images[1])
    assert torch.equal(nhwc, nchw)
    torch.testing.assert_close(single[0], nhwc[1])
    assert nhwc.shape == (3, 3, 20, 17) and nhwc.dtype == torch.float32


@pytest.mark.parametrize("stains", ["hed", "he", "hdab"])
def test_separation_then_reconstruction_gives_the_image_back(images, stains) -> None:
    back = reconstruct(deconvolve(images, stains, clamp=False), stains, dtype="uint8")
    difference = back.permute(0, 2, 3, 1).int() - torch.as_tensor(images).int()
    assert int(difference.abs().max()) <= 1  # 0 counts as 1 in optical density


def test_od_unit_is_six_times_scikit_images(images) -> None:
    x = np.maximum(images, 1)
    torch.testing.assert_close(deconvolve(x), deconvolve(x, unit="skimage") * 6, rtol=1e-4, atol=1e-5)


def test_known_dab_amount_is_found() -> None:
    amounts = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    amounts[:, 0], amounts[:, 1] = 0.3, 0.8
    found = dab_density(reconstruct(amounts, "hdab"))
    torch.testing.assert_close(found, torch.full_like(found, 0.8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stains", ["hed", "he", "hdab"])
def test_blank_tiles_have_no_stain_and_default_vectors(stains) -> None:
    white = torch.full((2, 16, 16, 3), 255, dtype=torch.uint8)
    assert torch.count_nonzero(deconvolve(white, stains)) == 0
    if stains != "hed":
        fixed = stain_matrix(stains)
        torch.testing.assert_close(
            estimate_stains(white, stains=stains), fixed / fixed.norm(dim=1, keepdim=True)
        )


def _stained(pair: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    amounts = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    amounts[:, :2] = torch.rand(1, 2, 64, 64, generator=generator, dtype=torch.float64) ** 3 * 1.2
    amounts[:, 0, :20] = 0.0
    amounts[:, 1, -20:] = 0.0
    return reconstruct(amounts, pair)


@pytest.mark.parametrize(
    ("stains", "pair"),
    [
        ("he", [[0.55, 0.78, 0.30], [0.12, 0.95, 0.28]]),
        ("hdab", [[0.70, 0.62, 0.35], [0.30, 0.55, 0.78]]),
    ],
)
def test_macenko_finds_the_vectors_that_made_the_image(stains, pair) -> None:
    truth = torch.tensor(pair, dtype=torch.float64)
    truth = truth / truth.norm(dim=1, keepdim=True)
    image = _stained(truth)
    found = estimate_stains(image, stains=stains)
    cosine = (found[:2] * truth).sum(1)
    assert float(cosine.min()) > 0.9995
    # and the amounts under the estimate are nearer the truth than under the fixed vectors
    amount = deconvolve(image, truth)[:, :2]
    error_estimated = (deconvolve(image, found)[:, :2] - amount).abs().mean()
    error_fixed = (deconvolve(image, stains)[:, :2] - amount).abs().mean()
    assert error_estimated < 0.3 * error_fixed


def test_estimates_per_image_are_those_of_each_image() -> None:
    a = _stained(torch.tensor([[0.55, 0.78, 0.30], [0.12, 0.95, 0.28]], dtype=torch.float64))
    b = _stained(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], dtype=torch.float64), seed=1)
    both = estimate_stains(torch.cat([a, b]), per_image=True)
    torch.testing.assert_close(both[0], estimate_stains(a))
    torch.testing.assert_close(both[1], estimate_stains(b))
    amounts = deconvolve(torch.cat([a, b]), both)
    torch.testing.assert_close(amounts[1], deconvolve(b, both[1])[0])


def test_one_stain_only_falls_back_to_fixed_vectors() -> None:
    amounts = torch.zeros(1, 3, 32, 32)
    amounts[:, 0] = torch.linspace(0.1, 1.0, 1024).reshape(32, 32)
    fixed = stain_matrix("he")
    torch.testing.assert_close(
        estimate_stains(reconstruct(amounts, "he")), fixed / fixed.norm(dim=1, keepdim=True)
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: deconvolve(np.zeros((1, 4, 4, 3), np.uint8), "hde"), "hed"),
        (lambda: deconvolve(np.zeros((1, 4, 4, 4), np.uint8)), "three colour channels"),
        (lambda: deconvolve(np.zeros((1, 4, 4, 3), np.uint16)), "uint16"),
        (lambda: deconvolve(np.zeros((4, 4), np.uint8)), "shape"),
        (lambda: deconvolve(np.zeros((1, 4, 4, 3), np.uint8), [[1, 0, 0], [1, 0, 0]]), "alike"),
        (lambda: deconvolve(np.zeros((1, 4, 4, 3), np.uint8), unit="scimage"), "skimage"),
        (lambda: deconvolve(np.zeros((2, 4, 4, 3), np.uint8), np.eye(3)[None].repeat(3, 0)), "2 images"),
        (lambda: estimate_stains(np.zeros((1, 4, 4, 3), np.uint8), alpha=60), "alpha"),
    ],
)
def test_bad_input_is_named(call, words) -> None:
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.gpu
def test_gpu_gives_the_same(images) -> None:
    torch.testing.assert_close(deconvolve(torch.as_tensor(images).cuda()).cpu(), deconvolve(images))
