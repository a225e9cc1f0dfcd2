"""Colours of H&E: glass, polynomials, pictures of channels; and models of before, which are what they were."""

import numpy as np
import torch

from morphogen.slides.recolouring import glass_colour, on_white_glass
from morphogen.stain import StainTransfer, stain_image
from morphogen.stain.config import (
    ApplyConfig,
)
from morphogen.stain.fitting.build import build_model
from morphogen.stain.recipes.colours import ColourPolynomial, polynomial_terms, terms
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.values import as_picture

from .conftest import TINY, he_like


def test_models_of_before_are_what_they_were():
    """The identity is part of every result: the settings that are new must not change it."""
    from morphogen.demo.workspace import stain_model

    model = StainTransfer.from_pretrained(stain_model())
    assert model.identity == "340d01fe55e0ce46912b0dbf726220db7a1b82cbf23790fd08a232f8ce3e6f45"
    later = {
        "target",
        "balance",
        "colour_start",
        "colour_degree",
        "see_mean",
        "noise_shares",
        "residual_knots",
        "normalise",
        "image_effects",
    }
    assert not later & set(model.config.identity())
    new = build_model(TINY.replace(residual=True), crop=64, seed=3)
    with torch.no_grad():  # weights that are drawn differ in their last digit between processors
        for part in filter(None, new.components().values()):
            for value in part.state_dict().values():
                value.copy_((torch.arange(value.numel()) % 7).reshape(value.shape) / 8)
    assert new.identity == "e955440a20b81b64a27c4dc13e304206ea5e391c8d4236c4c7e609ef9f7af563"
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    made = stain_image(model, image, ApplyConfig(samples=2)).sample[::32, ::32]
    before = [
        [[189, 176, 192], [177, 144, 163], [148, 126, 153]],
        [[236, 231, 241], [180, 166, 188], [165, 146, 166]],
        [[205, 190, 212], [161, 131, 157], [230, 210, 227]],
    ]
    assert np.abs(made.astype(int) - before).max() <= 1  # the same bytes on one machine


def test_glass_is_made_white_and_white_paper_is_no_glass():
    he = he_like(np.random.default_rng(0), 64)
    he[:20] = 255
    light = (he * np.array([0.6, 0.62, 0.7])).astype(np.uint8)
    light[:3] = 255  # beyond the scan
    found = glass_colour(light)
    np.testing.assert_allclose(found, [153, 158, 178], atol=2)
    made = on_white_glass(light, found)
    assert np.abs(made[3:].astype(int) - he[3:]).max() <= 3
    assert glass_colour(np.full((8, 8, 3), 255, np.uint8)) == (255.0, 255.0, 255.0)


def test_channels_can_be_looked_at():
    target = TargetConfig(
        channels=("a", "b"), full=(100.0, 100.0), transform="linear", colours=("#ff0000", "#0000ff")
    )
    values = np.zeros((1, 3, 2), np.float32)
    values[0, 1], values[0, 2] = (100, 0), (50, 200)
    assert as_picture(values, target).tolist() == [[[0, 0, 0], [255, 0, 0], [128, 0, 255]]]


def test_polynomials_of_colour():
    """Of degree 2 the terms and their order are those of models saved before there were others."""
    density = torch.rand(1, 3, 2, 2)
    r, g, b = density.unbind(1)
    before = [torch.ones_like(r), r, g, b, r * r, r * g, r * b, g * g, g * b, b * b]
    torch.testing.assert_close(polynomial_terms(density, 2)[0], torch.cat(before), rtol=0, atol=0)
    assert len(terms(3)) == 20
    torch.testing.assert_close(polynomial_terms(density, 3)[0, -1], b[0] ** 3)
    he = he_like(np.random.default_rng(0), 32)
    red = (255 - he[..., :1].astype(np.float64)) / 255
    errors = []
    for degree in (1, 2, 3):
        fitted = ColourPolynomial(1, degree)
        fitted.add(he, red**3, stride=1)
        errors.append(np.abs(fitted.values(he) - red**3).mean())
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
