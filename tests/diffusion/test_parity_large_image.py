"""The published canvas sampler from the inside: blended x0 and re-derived eps at single steps, and where it starts.

Whole runs and samples of single patches are in tests/checkpoints/test_sampling.py.
"""

import pytest
import torch

from morphogen.checkpoints import load_ldm
from morphogen.diffusion import PerWindow, WindowLayout, ddim, guided, network_denoiser, timesteps, windowed


@pytest.fixture(scope="module")
def canvas(tensors, shared):
    numbers = tensors("large_image")
    network, _, _, info = load_ldm(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", heads=1)
    schedule = info.schedule()
    denoiser = network_denoiser(network, schedule)

    def told_one_more(x, t, **condition):  # the published sampler counts its times from 1
        return denoiser(x, t, network_time=t + 1, **condition)

    guide = guided(told_one_more, {"context": numbers["uncond_windows"][:1]}, 4.0)
    layout = WindowLayout((64, 64), 16, 8)
    assert layout.positions == [tuple(each) for each in numbers["window_positions"].tolist()]
    return windowed(guide, layout, "uniform", batch=49), schedule, numbers


def test_the_start_keeps_a_trace_of_signal(canvas):
    _, schedule, numbers = canvas
    x = schedule.add_noise(numbers["panorama_latent"], numbers["init_epsilon"], 999)
    torch.testing.assert_close(x, numbers["x_init"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [(0, 1), pytest.param((0, 1, 25, 49), marks=pytest.mark.slow)])
def test_blended_predictions_at_single_steps(canvas, steps):
    denoiser, schedule, numbers = canvas
    seen = {}

    def keep(state, prediction):
        seen[state.step - 1] = prediction
        if state.step == 1:
            torch.testing.assert_close(state.x, numbers["ddim0_x_before_step1"], rtol=0, atol=1e-4)

    ddim(
        denoiser,
        numbers["x_init"],
        timesteps(schedule, 50)[: steps[-1] + 2],  # the steps before the last are those of the whole run
        schedule,
        condition={"context": PerWindow(numbers["cond_windows"])},
        callback=keep,
    )
    for step in steps:
        x0, eps = numbers[f"ddim0_x0_pred_{step}"], numbers[f"ddim0_eps_{step}"]
        torch.testing.assert_close(seen[step].x0, x0, rtol=0, atol=5e-5 * float(x0.abs().max()))
        torch.testing.assert_close(seen[step].eps, eps, rtol=0, atol=3e-3 if step == 49 else 1e-4)
