"""Where training and samples begin: the fitted colour map, the regression, and jittered stain."""

import numpy as np
import torch
from PIL import Image

from morphogen.slides.formats.channels import read_channels
from morphogen.stain.config import DataConfig, TrainConfig
from morphogen.stain.data import find_pairs
from morphogen.stain.fitting.build import build_model
from morphogen.stain.pairs.crops import PairDataset
from morphogen.stain.recipes.colours import ColourPolynomial
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.files import read_image
from morphogen.stain.targets.values import intensities, spread
from morphogen.stain.train import train_model
from morphogen.training import TrainingConfig

from .conftest import TINY, he_like, lively

ONE_STEP = TrainingConfig(steps=1, batch_size=2, lr=1e-9, save_every=1, log_every=1)


def config(**model):
    return TrainConfig(data=DataConfig(crop=32), model=TINY.replace(**model), training=ONE_STEP)


def test_the_colour_map_is_where_training_begins(make_channels, tmp_path):
    """The untrained network with a fitted colour path gives what the map gives."""
    table = make_channels(2, "uint8", ".npy")
    settings = config(regression=True, colour_start=True)
    trained = train_model(find_pairs(table), settings, tmp_path / "run", where=table)
    pairs = [(np.array(Image.open(pair.he)), read_channels(pair.ihc)) for pair in find_pairs(table).pairs]
    fitted = ColourPolynomial(2)
    for he, values in pairs:
        seen = spread(torch.from_numpy(values).permute(2, 0, 1)[None], trained.model.config.target)
        fitted.add(he, seen[0].permute(1, 2, 0).double().numpy())
    made = trained.model(torch.from_numpy(pairs[0][0])[None], "mean").images[0].numpy()
    wanted = intensities(
        torch.from_numpy(fitted.values(pairs[0][0])).permute(2, 0, 1)[None], trained.model.config.target
    )
    np.testing.assert_allclose(made, wanted[0].permute(1, 2, 0).numpy(), atol=0.5)


def test_the_colour_map_of_pictures_of_any_size(make_pairs, tmp_path):
    """Whole pictures are fitted, of sides that are no multiples of the network's."""
    pairs = find_pairs(make_pairs(2, size=70))
    settings = config(regression=True, colour_start=True)
    trained = train_model(pairs, settings, tmp_path / "run")
    fitted = ColourPolynomial(3)
    for pair in pairs.pairs:
        fitted.add(read_image(pair.he), read_image(pair.ihc) / 127.5 - 1)
    he = read_image(pairs.pairs[0].he)[:64, :64]
    made = trained.model(torch.from_numpy(he.copy())[None], "mean").images[0].numpy()
    np.testing.assert_allclose(made, (fitted.values(he) + 1) * 127.5, atol=1)


def test_the_weight_of_the_mean_leads_from_the_regression_to_the_samples():
    target = TargetConfig(
        channels=("a",), dtype="uint8", transform="linear", full=(255.0,), threshold=(50.0,)
    )
    settings = TINY.replace(target=target, residual=True, residual_scale=0.3)
    model = lively(build_model(settings, crop=32, seed=1))
    model.mean = lively(
        build_model(settings.replace(residual=False, residual_scale=None, regression=True), crop=32)
    )
    images = torch.from_numpy(he_like(np.random.default_rng(0), 32))[None]
    none, half, all_of_it = (model(images, samples=2, mean_weight=weight).mean for weight in (0.0, 0.5, 1.0))
    torch.testing.assert_close(none, model.mean(images, "mean").images)
    torch.testing.assert_close(half, (none + all_of_it) / 2)
    assert (none - all_of_it).abs().max() > 0.1


def test_stain_is_jittered_in_training_crops_only(make_channels):
    pairs = find_pairs(make_channels()).pairs
    plain, jittered = (PairDataset(pairs, ("IHC",), crop=32, stain_jitter=size) for size in (0.0, 0.2))
    draws = [each.draw(0, torch.Generator().manual_seed(1)) for each in (plain, jittered)]
    assert torch.equal(draws[0]["ihc"], draws[1]["ihc"]) and not torch.equal(draws[0]["he"], draws[1]["he"])
    assert torch.equal(plain[0]["he"], jittered[0]["he"])
