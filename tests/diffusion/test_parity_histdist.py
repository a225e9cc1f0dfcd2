"""HistDiST's published inversion and translation: our solvers around its tiny U-Net, read by diffusers alone."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel

from morphogen.diffusion import Schedule, ddim, ddim_invert, network_denoiser, timesteps

PLAIN = Schedule.scaled_linear()
ZERO_SNR = PLAIN.zero_terminal_snr()


@pytest.fixture(scope="module")
def histdist(tensors, shared):
    numbers = tensors("histdist_inference")
    unet = UNet2DConditionModel.from_pretrained(
        shared / "fixtures" / "histdist_inference" / "pipeline", subfolder="unet"
    ).eval()

    def network(x, t, image, tokens):
        return unet(torch.cat([x, image], dim=1), t, encoder_hidden_states=tokens).sample

    return network, numbers


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def standardised(x):
    return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)


MODES = {
    "v": (ZERO_SNR, "v", {"spacing": "trailing"}),
    "epsilon": (PLAIN, "epsilon", {"spacing": "leading", "steps_offset": 1}),
}


def invert(histdist, mode, **options):
    network, numbers = histdist
    schedule, prediction, spacing = MODES[mode]
    denoiser = network_denoiser(network, schedule, prediction)
    start = numbers["inversion_start"]
    return ddim_invert(
        denoiser,
        start,
        timesteps(schedule, 20, **spacing),
        schedule,
        condition={"image": torch.zeros_like(start), "tokens": numbers["text_he"]},
        **options,
    )


def translate(histdist, mode, start, **options):
    network, numbers = histdist
    schedule, prediction, spacing = MODES[mode]
    return ddim(
        network_denoiser(network, schedule, prediction),
        start,
        timesteps(schedule, 20, **spacing),
        schedule,
        final="first",
        condition={"image": numbers["he_image_embeds"], "tokens": numbers["vit_hidden"]},
        **options,
    )


def test_inversion(histdist):
    numbers = histdist[1]
    states = []
    inverted = invert(histdist, "v", callback=lambda state, _: states.append(state.x))
    close(inverted, numbers["latents_inverted_raw"])
    close(torch.stack(states), numbers["inv_traj"])
    close(standardised(inverted), numbers["latents_inverted"])


def test_inversion_standardised_at_every_step(histdist):
    close(invert(histdist, "v", after_step=standardised), histdist[1]["norm_steps_inverted"])


def test_translation_without_noise(histdist):
    numbers = histdist[1]
    states = []
    end = translate(
        histdist, "v", numbers["latents_inverted"], callback=lambda state, _: states.append(state.x)
    )
    close(end, numbers["v_eta0_final"])
    close(torch.stack(states), numbers["v_eta0_traj"])


def test_translation_with_the_cosine_eta(histdist):
    numbers = histdist[1]
    noises = next(value for name, value in numbers.items() if "noise" in name and value.shape[0] == 20)
    etas = []

    def eta(progress):
        etas.append(min(max(0.6 - 0.4 * math.cos(math.pi * progress), 0), 1))
        return etas[-1]

    states = []
    end = translate(
        histdist,
        "v",
        numbers["latents_inverted"],
        eta=eta,
        noise=lambda step: noises[step].view_as(numbers["v_cos20_final"]),
        callback=lambda state, _: states.append(state.x),
    )
    assert etas == pytest.approx(numbers["v_cos20_etas"].tolist(), rel=1e-12)
    close(states[0], numbers["v_cos20_step1"])
    close(end, numbers["v_cos20_final"])


def test_epsilon_mode(histdist):
    numbers = histdist[1]
    inverted = invert(histdist, "epsilon")
    close(inverted, numbers["eps_latents_inverted_raw"])
    states = []
    end = translate(
        histdist, "epsilon", numbers["eps_latents_inverted"], callback=lambda state, _: states.append(state.x)
    )
    close(states[0], numbers["eps_eta0_step1"])
    close(end, numbers["eps_eta0_final"])
