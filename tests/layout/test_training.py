"""The model: what is trained and moves, what it says of its inputs, saving and loading, the published sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError, InputError
from morphogen.layout.config import ModelConfig, TrainConfig
from morphogen.layout.model import LayoutDiffusion, LayoutSampler, borders
from morphogen.layout.train import LayoutTask, build_model, train_model
from morphogen.nets.first_stages import ComponentFirstStage, PixelFirstStage
from morphogen.training import Draws

from .conftest import NAMES, small_training

CROPS = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batch_of(found, data, n=4):
    from morphogen.layout.sampling.crops import LayoutCrops

    crops = LayoutCrops(found.annotated, found.unannotated, data, 3)
    items = [crops[k] for k in range(n)]
    return crops, {key: torch.stack([item[key] for item in items]) for key in items[0]}


def test_what_is_unset_is_what_the_page_measured():
    """The preset of the small sizes; another style sampling is taken alone, and STEDM's own size is as published."""
    shown = ("sampling", "style_images", "stain_shift", "focus_shift")

    def data(**given):
        values = TrainConfig.load(overrides=given).data.to_dict()
        return tuple(values[key] for key in shown)

    assert data() == data(**{"data.sampling": "mp"}) == ("mp", 2, 0.2, 1.0)
    assert data(**{"data.style_images": 4, "data.stain_shift": 0.0}) == ("mp", 4, 0.0, 1.0)
    assert data(**{"data.sampling": "nearby"}) == data(size="paper") == ("nearby", 1, 0.0, 0.0)


@pytest.mark.parametrize("aggregator", ["attention", "mean", "max", "linear"])
def test_every_parameter_of_the_style_encoder_is_trained_and_moves(tmp_path, found, data, aggregator):
    """STEDM's code leaves encoder and aggregator out of its optimiser."""
    style = {"aggregator": aggregator, "images": 2}
    config = small_training(1, data).replace(network={"style": style})
    before = build_model(config, NAMES, crops=CROPS).network.state_dict()
    model = train_model(found, config, tmp_path / "one", device="cpu").model
    still = [n for n, v in model.network.named_parameters() if torch.equal(before[n], v)]
    assert not [name for name in still if name.startswith(("style.", "mapper."))], still
    config = small_training(4, data).replace(network={"style": style})
    after = train_model(found, config, tmp_path / "four", device="cpu").model.network
    still = [n for n, v in after.named_parameters() if torch.equal(before[n], v)]
    assert not [name for name in still if "to_k.bias" not in name], still  # a key's bias has no gradient


def test_a_frozen_style_encoder_stays_where_it_is(tmp_path, found, data):
    config = small_training(2, data).replace(train_style=False)
    before = build_model(config, NAMES, crops=CROPS).network.style.state_dict()
    after = train_model(found, config, tmp_path, device="cpu").model.network.style.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_first_stage_is_not_trained(found, data):
    crops, batch = batch_of(found, data)
    config = small_training(1, data)
    model = build_model(config, NAMES, crops=CROPS)
    task = LayoutTask(model, crops, config)
    inside = {id(parameter) for parameter in task.model.parameters()}
    assert not any(id(parameter) in inside for parameter in model.first_stage.parameters())


def test_what_is_diffused_are_components_of_the_training_crops_or_pixels(trained, found, data):
    crops, batch = batch_of(found, data, 16)
    model = trained.model
    latents = model.first_stage.latents(model.pixels(batch["image"]))
    assert isinstance(model.first_stage, ComponentFirstStage) and 0.8 < float(latents.std()) < 1.2
    back = model.first_stage.images(latents)
    assert float((back - model.pixels(batch["image"])).abs().max()) < 1e-4
    pixels = build_model(small_training(1, data).replace(first_stage="pixels"), NAMES)
    assert isinstance(pixels.first_stage, PixelFirstStage) and pixels.config.network.detail
    with pytest.raises(ConfigError, match="a detail head reads blocks of pixels"):
        build_model(small_training(1, data).replace(network={"detail": 8}), NAMES, crops=CROPS)


def test_style_and_layout_reach_the_loss_and_unannotated_items_tell_no_layout(found, data):
    crops, batch = batch_of(found, data)
    config = small_training(1, data)
    model = build_model(config, NAMES, crops=CROPS)
    torch.nn.init.normal_(model.network.unet.unet.conv_out.weight, std=0.1)
    torch.nn.init.normal_(model.network.unet.style_block.conv2.weight, std=0.1)
    task = LayoutTask(model, crops, config)
    positions = torch.arange(4)

    def loss(**changes):
        return task.loss(model.network, {**batch, **changes}, Draws(0, positions))["loss"]

    with torch.no_grad():
        plain = loss(told=torch.ones(4, dtype=torch.bool))
        assert not torch.allclose(plain, loss(told=torch.zeros(4, dtype=torch.bool)))
        assert not torch.allclose(
            plain, loss(style=255 - batch["style"], told=torch.ones(4, dtype=torch.bool))
        )
        silent = torch.zeros(4, dtype=torch.bool)
        other = torch.full_like(batch["labels"], 2)
        assert torch.equal(loss(told=silent), loss(told=silent, labels=other))


def test_errors_by_channel_are_in_units_of_the_linear_estimate(found, data, tmp_path, monkeypatch):
    from morphogen.layout import train
    from morphogen.layout.config import ObjectiveConfig
    from morphogen.layout.sampling.crops import LayoutCrops

    tasks = []
    monkeypatch.setattr(train, "LayoutTask", lambda *given: tasks.append(LayoutTask(*given)) or tasks[-1])
    config = small_training(1, data).replace(objective=ObjectiveConfig(by_channel=True))
    made = train_model(found, config, tmp_path, device="cpu").model
    (task,) = tasks
    crops = LayoutCrops(found.annotated, found.unannotated, data, 3)
    images = torch.stack([crops[k]["image"] for k in range(256)])
    expected = made.first_stage.latents(made.pixels(images)).var(dim=(0, 2, 3))
    assert expected.shape == (48,)
    torch.testing.assert_close(task.variance.flatten(), expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ConfigError, match="by_channel is for networks that predict x0"):
        config.replace(objective=ObjectiveConfig(by_channel=True, loss="l1"))


def test_saved_and_loaded_it_makes_the_same_images(trained, tmp_path):
    again = LayoutDiffusion.from_pretrained(trained.folder)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[:, 8:24, 8:24] = 2
    style = torch.randint(
        0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = trained.model(labels, style, seed=3)
    assert images.shape == (2, 32, 32, 3) and images.dtype == torch.uint8
    assert torch.equal(images, again(labels, style, seed=3))
    assert again.identity == trained.model.identity and again.facts["data"]["style_images"] == 2


def test_an_image_depends_on_its_key_and_not_on_its_batch(trained):
    labels = torch.zeros(3, 32, 32, dtype=torch.long)
    style = torch.full((3, 2, 32, 32, 3), 128, dtype=torch.uint8)
    together = trained.model(labels, style, seed=1, keys=["a", "b", "c"])
    alone = trained.model(labels[:1], style[:1], seed=1, keys=["b"])
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(together[0], together[1])
    from_noise = LayoutSampler.fast().replace(strength=1.0)
    assert 2 * from_noise.evaluations(trained.model.schedule) <= 26


def test_style_vectors_may_be_given_and_no_style_is_the_null(trained):
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    style = torch.full((1, 2, 32, 32, 3), 60, dtype=torch.uint8)
    vector = trained.model.styles(style)
    assert torch.equal(trained.model(labels, style), trained.model(labels, vector))
    null = trained.model.network.null_style(1, 32).detach()
    assert torch.equal(trained.model(labels, None), trained.model(labels, null))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            torch.full((1, 32, 32), 3),
            r"the layout shows class 3, the model has 3 \(background, stroma, tumour\)",
        ),
        (torch.zeros(1, 30, 32, dtype=torch.long), "32 × 30 px do not fit the network"),
    ],
)
def test_layouts_that_do_not_fit(trained, labels, said):
    with pytest.raises(InputError, match=said):
        trained.model(labels, None)


def test_a_crop_that_does_not_fit_the_network_is_refused_before_training(tmp_path, found, data):
    with pytest.raises(ConfigError, match="a crop of 30 px does not fit"):
        train_model(found, small_training(1, data.replace(crop=30)), tmp_path, device="cpu")


def test_distance_to_the_border():
    labels = torch.zeros(1, 32, 64, dtype=torch.long)
    labels[:, :, 32:] = 1
    found = borders(labels, reach=16.0)
    assert found.shape == (1, 1, 32, 64)
    assert float(found[0, 0, 5, 31]) == 0 and float(found[0, 0, 5, 39]) == pytest.approx(7 / 16, abs=0.02)
    assert float(borders(torch.zeros(1, 8, 8)).min()) == 1


def test_sizes():
    counted = {}
    for size in ("tiny", "small", "base", "paper"):
        from morphogen.nets.layout.network import LayoutNetwork

        config = ModelConfig.sized(size, NAMES)
        with torch.device("meta"):
            network = LayoutNetwork(config.network)
        counted[size] = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert counted["tiny"] < 1 and 2 < counted["small"] < 8 and 30 < counted["base"] < 90
    assert 260 < counted["paper"] < 275  # the U-Net's 234.6 M, Swin's 28 M and what is ours


def test_paper_needs_weights_to_start_from(data):
    with pytest.raises(ConfigError, match="size 'paper' starts from weights"):
        build_model(small_training(1, data).replace(size="paper"), NAMES)


# -- the published sampler
# ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared):
    return LayoutDiffusion.from_pretrained(shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt", crop=32)


@pytest.mark.parametrize(("scale", "name"), [(1.5, "sample_cfg"), (1.0, "sample_nocfg")])
def test_published_samples(published, tensors, scale, name):
    numbers = tensors("stedm_unet")
    config = LayoutSampler.reference().replace(guidance_scale=scale)
    assert config.times(published.schedule) == numbers["ddim128_timesteps_used"].tolist()
    condition = {"layout": numbers["get_input_c_concat"], "style": numbers["get_input_style"]}
    with torch.no_grad():
        made = published.sampled(numbers["x_T"], condition, config)
    bound = 2e-5 * float(numbers[name].abs().max())
    torch.testing.assert_close(made, numbers[name], atol=bound, rtol=0)
    if scale != 1:
        images = published.first_stage.images(numbers[name]).clamp(-1, 1)
        torch.testing.assert_close(images, numbers["decoded_sample_cfg"], atol=2e-5, rtol=0)


def test_published_images_from_layout_and_style_images(published, tensors):
    """From label maps and style images to uint8, as the published code gives them."""
    numbers = tensors("stedm_unet")
    labels = (numbers["seg_labels"] > 0).long()
    made = published(
        labels, published.network.styles(numbers["style_imgs"]), "reference", noise=lambda k: numbers["x_T"]
    )
    wanted = numbers["decoded_uint8"].int()
    assert (made.int() - wanted).abs().max() <= 1  # a value at the edge of two grey levels
    assert (made.int() == wanted).float().mean() > 0.99


def test_saved_published_model_is_a_model_of_ours(published, tmp_path, tensors):
    published.save_pretrained(tmp_path / "model")
    again = LayoutDiffusion.from_pretrained(tmp_path / "model")
    numbers = tensors("stedm_unet")
    with torch.no_grad():
        a, b = (m.network.styles(numbers["style_imgs"]) for m in (published, again))
    assert torch.equal(a, b) and again.config.sampling == "mp"
    assert np.isclose(again.config.beta_end, 0.0205)
