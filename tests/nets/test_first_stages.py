"""First stages: one contract over KL, VQ and pixels; published numbers; folders."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from morphogen.checkpoints import load_compvis_first_stage, load_ldm
from morphogen.core.errors import CheckpointError, InputError
from morphogen.nets import (
    ComponentFirstStage,
    KLFirstStage,
    PixelFirstStage,
    VQFirstStage,
    load_first_stage,
)


def close(ours, reference, atol=3e-5, rtol=1e-4):
    torch.testing.assert_close(ours, reference, atol=atol * float(reference.abs().max()), rtol=rtol)


def blocks(levels: int) -> dict:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (8,) * levels,
        "norm_num_groups": 4,
    }


def stages() -> dict:
    torch.manual_seed(0)
    return {
        "kl": KLFirstStage(AutoencoderKL(**blocks(3), latent_channels=4, scaling_factor=0.5)).eval(),
        "vq": VQFirstStage(
            VQModel(**blocks(2), latent_channels=3, num_vq_embeddings=9, scaling_factor=2.0)
        ).eval(),
        "pixel": PixelFirstStage(4),
        "components": ComponentFirstStage.fit(torch.rand(9, 3, 16, 16) * 2 - 1, channels=20),
    }


@pytest.mark.parametrize("name", ["kl", "vq", "pixel", "components"])
@torch.no_grad()
def test_contract(name, tmp_path):
    stage = stages()[name]
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    encoded = stage.encode(images)
    assert encoded.mode().shape == (2, stage.channels, 16 // stage.factor, 24 // stage.factor)
    torch.testing.assert_close(stage.latents(images), stage.scaling * encoded.mode())
    latents = stage.latents(images, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(latents, stage.latents(images, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(stage.images(latents), stage.decode(latents / stage.scaling))
    assert stage.images(latents).shape == images.shape
    stage.save_pretrained(tmp_path / "stage")
    again = load_first_stage(tmp_path / "stage")
    assert type(again) is type(stage) and again.scaling == stage.scaling and again.factor == stage.factor
    assert torch.equal(again.latents(images), stage.latents(images))


@torch.no_grad()
def test_a_kl_sample_is_mean_plus_std_times_noise():
    stage = stages()["kl"]
    encoded = stage.encode(torch.rand(1, 3, 16, 16))
    noise = torch.randn(encoded.mean.shape)
    torch.testing.assert_close(encoded.sample(noise), encoded.mean + encoded.std * noise)
    with pytest.raises(InputError, match="noise= or generator="):
        encoded.sample()


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_pixels_come_back_exactly(factor):
    stage = PixelFirstStage(factor)
    images = torch.rand(2, 3, 16, 24)
    assert torch.equal(stage.images(stage.latents(images)), images)
    assert stage.latents(images).shape == (2, 3 * factor**2, 16 // factor, 24 // factor)


def test_sides_that_do_not_fit_are_named():
    with pytest.raises(
        InputError, match="an image of 18 × 16 px has sides that are no multiples of 4. Crop or pad"
    ):
        stages()["pixel"].latents(torch.zeros(1, 3, 16, 18))
    with pytest.raises(InputError, match=r"images must be \(B,3,H,W\)"):
        stages()["pixel"].latents(torch.zeros(3, 16, 16))


@torch.no_grad()
def test_vq_gives_the_published_numbers(shared, tensors):
    T, folder = tensors("ldm_unet"), shared / "fixtures" / "ldm_unet"
    stage = load_ldm(folder / "checkpoint.ckpt", heads=1).first_stage
    assert (stage.factor, stage.channels, stage.scaling) == (4, 3, 1.0)
    close(stage.latents(T["image"]), T["vq_encode_prequant"])
    close(stage.images(T["latent"]), T["vq_decode"])
    assert torch.equal(stage.codes(T["latent"]).flatten(), T["vq_indices"])
    quantised = stage.autoencoder.quantize.embedding(stage.codes(T["latent"])).permute(0, 3, 1, 2)
    close(quantised, T["vq_quantized"])
    alone = load_compvis_first_stage(folder / "vq_first_stage.ckpt")
    assert (alone.factor, alone.channels) == (2, 3)
    close(alone.latents(T["image"]), T["vq2_encode_prequant"])
    close(alone.images(T["latent"]), T["vq2_decode"])


@torch.no_grad()
def test_kl_gives_the_published_numbers(shared, tensors):
    T = tensors("histdist_inference")
    stage = load_first_stage(shared / "fixtures" / "histdist_inference" / "pipeline" / "vae")
    images = T["image_uint8"].float() / 127.5 - 1
    encoded = stage.encode(images)
    close(encoded.mode(), T["he_image_embeds"], atol=1e-5)
    close(2 * encoded.std.log(), T["vae_moments_logvar"], atol=1e-5)
    close(stage.latents(images, noise=T["posterior_noise"]), T["inversion_start"], atol=1e-5)
    close(stage.decode(encoded.mean), T["vae_decode_of_mean"], atol=1e-5)


def test_a_foreign_component_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    with pytest.raises(CheckpointError, match="names the class 'AutoencoderDC', not one of AutoencoderKL"):
        load_first_stage(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_components_of_blocks(whitening, tmp_path):
    """Against numpy: leading eigenvectors of the blocks' covariance, each divided by its SD to a power."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.randn(40, 3, 6, 6, generator=generator), 24, mode="bilinear"
    )
    images = (0.3 * smooth + 0.02 * torch.randn(40, 3, 24, 24, generator=generator)).clamp(-1, 1)
    stage = ComponentFirstStage.fit(images, factor=4, channels=10, whitening=whitening)
    blocks = torch.nn.functional.pixel_unshuffle(images, 4).permute(0, 2, 3, 1).reshape(-1, 48).double()
    expected = torch.linalg.eigvalsh(torch.cov(blocks.T)).flip(0)[:10]
    latents = stage.encode(images).mode().permute(1, 0, 2, 3).reshape(10, -1).double()
    covariance = torch.cov(latents)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    variance = expected ** (1 - whitening)
    torch.testing.assert_close(covariance.diag(), variance / variance.mean(), atol=1e-3, rtol=1e-3)
    lost = (stage.decode(stage.encode(images).mode()) - images).square().mean()
    rest = (torch.cov(blocks.T).trace() - expected.sum()) / 48
    assert lost == pytest.approx(float(rest), rel=1e-2)  # what is left out is what the other components hold
    whole = ComponentFirstStage.fit(images, factor=4, channels=48, whitening=whitening)
    torch.testing.assert_close(whole.decode(whole.encode(images).mode()), images, atol=1e-4, rtol=0)


def test_components_that_do_not_fit_are_refused(tmp_path):
    images = torch.rand(9, 3, 16, 16)
    with pytest.raises(InputError, match="1 to 48 components, not 49"):
        ComponentFirstStage.fit(images, factor=4, channels=49)
    with pytest.raises(InputError, match="16 blocks are too few"):
        ComponentFirstStage.fit(images[:1], factor=4)
    ComponentFirstStage.fit(images, channels=5).save_pretrained(tmp_path)
    (tmp_path / "components.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="components do not load"):
        load_first_stage(tmp_path)
