"""Samples of the published latent diffusion code, from its checkpoint through our loaders, solvers and windows."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen.checkpoints import load_ldm
from morphogen.diffusion import (
    PerWindow,
    WindowLayout,
    ddim,
    guided,
    map_windows,
    network_denoiser,
    plms,
    timesteps,
    windowed,
)


def close(ours, reference, tolerance):
    torch.testing.assert_close(ours, reference, atol=tolerance * float(reference.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def model(shared):
    network, stage, embedder, info = load_ldm(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", heads=1)
    schedule = info.schedule()
    return network_denoiser(network, schedule), schedule, stage, embedder


@pytest.mark.parametrize("guidance", ["cfg", "nocfg"])
@pytest.mark.parametrize("solver", [ddim, plms])
def test_patches_are_the_published_ones(model, tensors, solver, guidance):
    denoiser, schedule, stage, embedder = model
    T = tensors("ldm_sampling")
    condition = embedder(patch=T["emb_patch"]).detach()
    if guidance == "cfg":
        denoiser = guided(denoiser, {"context": embedder.null().detach()}, 3.0)
    times = timesteps(schedule, 50, "strided")
    name = f"{solver.__name__}_{guidance}"
    assert times == T[f"{name}_timesteps"].tolist()
    steps = {}
    end = solver(
        denoiser,
        T["x_T"],
        times,
        schedule,
        final="first",
        condition={"context": condition},
        callback=lambda state, prediction: steps.__setitem__(state.step, state.x.clone()),
    )
    for step in (1, 5):
        if f"{name}_step{step}" in T:
            close(steps[step], T[f"{name}_step{step}"], 1e-5)
    close(end, T[name], 1e-5)
    if name == "ddim_cfg":
        close(stage.images(end), T["decoded_ddim_cfg"], 3e-5)


def test_noisy_ddim_is_the_published_one(model, tensors):
    denoiser, schedule, _, embedder = model
    T = tensors("ldm_sampling")
    denoiser = guided(denoiser, {"context": embedder.null().detach()}, 3.0)
    condition = {"context": embedder(patch=T["emb_patch"]).detach()}
    times = timesteps(schedule, 10, "strided")
    noise = T["ddim_noises"]
    end = ddim(
        denoiser,
        T["x_T"],
        times,
        schedule,
        eta=1.0,
        noise=lambda step: noise[step],
        final="first",
        condition=condition,
    )
    close(end, T["ddim_eta1"], 1e-5)


def canvas_denoiser(model, T):
    """Windows of 16 at stride 8 over a 64 × 64 latent, at guidance 4; the network is told t + 1, as published."""
    null = T["uncond_windows"][:1]

    def told_one_more(x, t, **condition):
        return model[0](x, t, network_time=t + 1, **condition)

    return windowed(
        guided(told_one_more, {"context": null}, 4.0), WindowLayout((64, 64), 16, 8), "uniform", batch=49
    )


def test_the_first_steps_of_a_large_image_are_the_published_ones(model, tensors):
    T, schedule = tensors("large_image"), model[1]
    condition = {"context": PerWindow(T["cond_windows"])}
    seen = []

    class Enough(Exception):
        pass

    def look(state, prediction):
        seen.append((state.x.clone(), prediction.x0.clone(), prediction.eps.clone()))
        if len(seen) == 2:
            raise Enough

    with pytest.raises(Enough):
        ddim(
            canvas_denoiser(model, T),
            T["x_init"],
            list(range(999, 0, -20)),
            schedule,
            condition=condition,
            callback=look,
        )
    close(seen[0][0], T["ddim0_x_before_step1"], 1e-5)
    for step in (0, 1):
        close(seen[step][1], T[f"ddim0_x0_pred_{step}"], 5e-5)
        torch.testing.assert_close(seen[step][2], T[f"ddim0_eps_{step}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("stride", [pytest.param(20, marks=pytest.mark.slow), 100])
def test_large_images_are_the_published_ones(model, tensors, stride):
    """The noisy run takes its variance from the single-step β although it strides."""
    T, schedule = tensors("large_image"), model[1]
    times = list(range(999, 0, -stride))
    assert [t + 1 for t in times] == T["t_range_ddim0" if stride == 20 else "t_range_stride100"].tolist()
    settings = {}
    if stride == 100:
        bar, betas = schedule.alpha_bar, schedule.betas
        etas = []
        for t, after in zip(times, [*times[1:], None]):
            previous = 1.0 if after is None else float(bar[after])
            ratio = float(betas[t]) / (1 - float(bar[t]) / previous)
            etas.append(math.sqrt(ratio) if after is not None else 0.0)
        settings = {"eta": etas, "noise": lambda step: T["z_noises_ddim1"][step]}
    end = ddim(
        canvas_denoiser(model, T),
        T["x_init"],
        times,
        schedule,
        condition={"context": PerWindow(T["cond_windows"])},
        **settings,
    )
    close(end, T["final_ddim0" if stride == 20 else "final_ddim1_stride100"], 5e-5)


def test_large_images_decode_as_published(model, tensors):
    stage = model[2]
    T = tensors("large_image")
    layout = WindowLayout((64, 64), 16, 8)
    with torch.no_grad():
        image = map_windows(stage.images, T["latent"], layout, "feather", batch=7, width=0.8, scale=4)
    middle = image[:, :, 64:192, 64:192]
    torch.testing.assert_close(middle, T["vis_float_crop"], atol=1e-4, rtol=0)
