"""The published HistDiST pipeline through ``StainTransfer.from_pretrained``: its numbers, in and out."""

import json

import pytest
import torch

from morphogen.core.errors import CheckpointError
from morphogen.diffusion import ddim_invert
from morphogen.diffusion.sampler import eta_function, spaced
from morphogen.stain import StainTransfer
from morphogen.stain.config import SamplerConfig
from morphogen.stain.recipes.sampling import invert


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "fixtures" / "histdist_inference"


@pytest.fixture(scope="module")
def model(folder):
    return StainTransfer.from_pretrained(folder / "pipeline", encoder=folder / "vit")


@pytest.fixture(scope="module")
def numbers(tensors):
    return tensors("histdist_inference")


def near(found, expected, relative=1e-4):
    """Within ``relative`` of the largest magnitude."""
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * float(expected.abs().max()))


REFERENCE_20 = SamplerConfig.reference().replace(steps=20, inversion_steps=20)


def stain(model, numbers, sampler, **options):
    images = numbers["image_uint8"].permute(0, 2, 3, 1)
    noises = numbers["step_noises"]
    return model(
        images,
        sampler,
        noise=lambda step: noises[step],
        posterior_noise=numbers["posterior_noise"],
        **options,
    )


def test_schedule_and_timesteps(model, numbers):
    near(model.schedule.alpha_bar.float(), numbers["alphas_cumprod_zero_snr"], 5e-6)
    assert float(model.schedule.alpha_bar[-1]) == 0
    for n in (20, 100):
        times = spaced(model.schedule, n)
        assert times == numbers[f"timesteps_trailing_{n}"].tolist()
        assert times[::-1] == numbers[f"inverse_timesteps_trailing_{n}"].tolist()


def test_components(model, numbers):
    images = numbers["image_uint8"].permute(0, 2, 3, 1)
    with torch.no_grad():
        out = model.network.latent(numbers["unet_x"], numbers["unet_t"], numbers["unet_ctx"])
        encoded = model.first_stage.encode(model.pixels(images))
    near(out, numbers["unet_out"], 1e-5)
    near(encoded.mode(), numbers["he_image_embeds"], 1e-5)
    near(
        model.first_stage.scaling * encoded.sample(numbers["posterior_noise"]),
        numbers["inversion_start"],
        1e-5,
    )
    near(model.network.null, numbers["text_he"], 1e-5)
    near(model.tokens(images), numbers["vit_hidden"], 1e-5)


def test_inversion_raw_standardised_and_at_every_step(model, numbers):
    times = spaced(model.schedule, 20)
    start, condition = numbers["inversion_start"], model.generation_condition(1)
    path = []
    with torch.no_grad():
        ddim_invert(
            model.denoiser(), start, times, model.schedule, condition=condition,
            callback=lambda state, _: path.append(state.x),
        )  # fmt: skip
        near(torch.stack(path), numbers["inv_traj"])
        for when, key in (
            ("never", "latents_inverted_raw"),
            ("end", "latents_inverted"),
            ("steps", "norm_steps_inverted"),
        ):
            found = invert(model.denoiser(), start, times, model.schedule, when=when, condition=condition)
            near(found, numbers[key])


def test_reference_translation_without_noise(model, numbers):
    out = stain(model, numbers, REFERENCE_20.replace(eta="0"))
    near(out.latents[:, 0], numbers["v_eta0_final"])
    decoded = model.decode(out.latents[:, 0]).permute(0, 2, 3, 1)
    torch.testing.assert_close(decoded, numbers["v_eta0_decoded_float_nhwc"], rtol=0, atol=1e-4)
    assert int((out.images.int() - numbers["v_eta0_decoded_uint8"].int()).abs().max()) <= 1


def test_reference_translation_with_the_cosine_eta_and_its_noises(model, numbers):
    eta = eta_function("cosine")
    found = torch.tensor([eta(i / 19) for i in range(20)], dtype=torch.float64)
    torch.testing.assert_close(found, numbers["v_cos20_etas"])
    out = stain(model, numbers, REFERENCE_20)
    near(out.latents[:, 0], numbers["v_cos20_final"])
    assert int((out.images.int() - numbers["v_cos20_decoded_uint8"].int()).abs().max()) <= 1


def test_epsilon_variant(folder, numbers):
    model = StainTransfer.from_pretrained(folder / "pipeline", encoder=folder / "vit", prediction="epsilon")
    times = spaced(model.schedule, 20)
    assert times == numbers["eps_timesteps_translation"].tolist()
    assert times[::-1] == numbers["eps_timesteps_inversion"].tolist()
    start, condition = numbers["inversion_start"], model.generation_condition(1)
    with torch.no_grad():
        raw = invert(model.denoiser(), start, times, model.schedule, when="never", condition=condition)
    near(raw, numbers["eps_latents_inverted_raw"])
    out = stain(model, numbers, REFERENCE_20.replace(eta="0"))
    near(out.latents[:, 0], numbers["eps_eta0_final"])


@pytest.mark.parametrize(
    ("what", "key"),
    [
        ("no normalisation of the inverted latent", {"standardise": "never"}),
        ("another eta", {"eta": "linear"}),
    ],
)
def test_the_recipe_matters(model, numbers, what, key):
    right = stain(model, numbers, REFERENCE_20).latents
    wrong = stain(model, numbers, REFERENCE_20.replace(**key)).latents
    assert float((right - wrong).abs().max()) > 0.1, what


def test_saved_folder_gives_the_same_numbers_and_opens_as_a_diffusers_pipeline(
    model, folder, numbers, tmp_path
):
    saved = model.save_pretrained(tmp_path / "model")
    again = StainTransfer.from_pretrained(saved, encoder=folder / "vit")
    assert again.config == model.config and again.crop == 512 and again.mpp == pytest.approx(0.4661)
    sampler = REFERENCE_20.replace(steps=5, inversion_steps=5)
    first, second = (stain(each, numbers, sampler).latents for each in (model, again))
    assert torch.equal(first, second)

    from diffusers import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline

    pipeline = DiffusionPipeline.from_pretrained(saved, local_files_only=True)
    assert isinstance(pipeline, StableDiffusionInstructPix2PixPipeline)
    scheduler = pipeline.scheduler
    near(scheduler.alphas_cumprod, numbers["alphas_cumprod_zero_snr"], 5e-6)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == numbers["timesteps_trailing_20"].tolist()
    with torch.no_grad():
        text = pipeline.text_encoder(numbers["input_ids_he"]).last_hidden_state
        out = pipeline.unet(numbers["unet_x"], numbers["unet_t"], numbers["unet_ctx"]).sample
    near(text, numbers["text_he"], 1e-5)
    near(out, numbers["unet_out"], 1e-5)


def test_a_model_around_a_regression_does_not_pass_for_a_diffusers_pipeline(folder, numbers, tmp_path):
    """diffusers would leave the regression out and paint what it leaves over."""
    model, mean = (
        StainTransfer.from_pretrained(folder / "pipeline", encoder=folder / "vit") for _ in range(2)
    )
    model.config = model.config.replace(residual=True, residual_scale=0.5)
    mean.config = mean.config.replace(regression=True)
    with torch.no_grad():
        mean.network.latent.unet.conv_out.bias += 0.1
    model.mean = mean
    saved = model.save_pretrained(tmp_path / "model")
    assert not (saved / "model_index.json").exists()
    again = StainTransfer.from_pretrained(saved, encoder=folder / "vit")
    first, second = (stain(each, numbers, REFERENCE_20).latents for each in (model, again))
    assert torch.equal(first, second)
    # Both train on, the regression too, in the latents of the autoencoder.
    assert again.mean.first_stage is again.first_stage and again.mean.config.regression


def test_noise_start_needs_no_inversion(model, numbers):
    out = model(numbers["image_uint8"].permute(0, 2, 3, 1), "fast", samples=3, seed=4)
    assert out.samples.shape == (1, 3, 64, 64, 3) and out.uncertainty.shape == (1, 64, 64)
    assert float(out.uncertainty.mean()) > 0
    again = model(numbers["image_uint8"].permute(0, 2, 3, 1), "fast", samples=3, seed=4)
    assert torch.equal(out.samples, again.samples)
    other = model(numbers["image_uint8"].permute(0, 2, 3, 1), "fast", samples=3, seed=5)
    assert not torch.equal(out.samples, other.samples)


def test_folders_that_are_no_stain_model_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="neither morphogen.json nor model_index.json"):
        StainTransfer.from_pretrained(folder / "vit")
    broken = tmp_path / "pipeline"
    broken.mkdir()
    (broken / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(CheckpointError, match="component 'unet' is missing"):
        StainTransfer.from_pretrained(broken)
