"""On a GPU: the same samples as on the CPU, from loops that never wait for it."""

import pytest
import torch

from morphogen.diffusion import (
    CanvasNoise,
    CanvasStore,
    Crop,
    ItemNoise,
    PerWindow,
    Schedule,
    WindowLayout,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_3m,
    guided,
    heun,
    losses,
    network_denoiser,
    timesteps,
    windowed,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
VP, FLOW = Schedule.scaled_linear().zero_terminal_snr(), Schedule.flow()


def network(x, t, label, place=None, part=None):
    out = torch.tanh(x) + label.view(-1, *(1,) * (x.ndim - 1)) * torch.cos(t / 300).view(
        -1, *(1,) * (x.ndim - 1)
    )
    if place is not None:
        out = out + 0.1 * place.view(-1, 1, 1, 1) + 0.1 * part
    return out


RUNS = {
    "ddpm": (ddpm, VP, "trailing", {"noise": True}),
    "ddim": (ddim, VP, "trailing", {"eta": 0.5, "noise": True}),
    "2m": (dpmpp_2m, VP, "log_snr", {}),
    "3m": (dpmpp_3m, VP, "log_snr_few", {}),
    "sde": (dpmpp_2m, VP, "log_snr", {"sde": True, "noise": True}),
    "heun": (heun, FLOW, "trailing", {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_items_agree_with_the_cpu_and_nothing_waits(name):
    solver, schedule, spacing, options = RUNS[name]
    noise = ItemNoise(0, range(8), (200,))
    options = {**options, "noise": noise} if options.get("noise") else options
    times = timesteps(schedule, 12, spacing)
    denoiser = guided(network_denoiser(network, schedule, "v"), {"label": 0.0}, 2.0)

    def sample(device):
        condition = {"label": torch.ones(8, device=device)}
        return solver(denoiser, noise(-1).to(device), times, schedule, condition=condition, **options)

    expected = sample("cpu")
    sample("cuda")  # kernels are loaded
    start, condition = noise(-1).cuda(), {"label": torch.ones(8, device="cuda")}
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = solver(denoiser, start, times, schedule, condition=condition, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_windows_agree_with_the_cpu_and_nothing_waits():
    noise, layout = CanvasNoise(0, (1, 3, 90, 110)), WindowLayout((90, 110), 32, 20)
    denoiser = windowed(guided(network_denoiser(network, VP, "v"), {"label": 0.0}, 2.0), layout, batch=8)
    times = timesteps(VP, 6)

    def conditions(device):
        return {
            "label": torch.ones(1, device=device),
            "place": PerWindow(torch.linspace(0, 1, len(layout), device=device)),
            "part": Crop(noise(7).to(device)),
        }

    expected = ddim(denoiser, noise(-1), times, VP, condition=conditions("cpu"))
    start, condition = noise(-1).cuda(), conditions("cuda")
    ddim(denoiser, start, times[:1], VP, condition=condition)  # the blend's weights are on the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = ddim(denoiser, start, times, VP, condition=condition)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_a_canvas_in_main_memory_is_computed_on_the_device():
    shape, times = (1, 3, 90, 110), timesteps(VP, 4)
    noise, layout = CanvasNoise(0, shape), WindowLayout((90, 110), 32, 20)
    denoiser = windowed(network_denoiser(network, VP, "v"), layout)
    store = CanvasStore.memory(shape, device="cuda", block=64)
    condition = {"label": torch.ones(1, device="cuda")}
    on_disk = ddim(denoiser, store.noise(noise)(-1), times, VP, condition=condition)
    expected = ddim(denoiser, noise(-1).cuda(), times, VP, condition=condition)
    torch.testing.assert_close(on_disk.whole(), expected, rtol=1e-5, atol=1e-5)


def test_losses_never_wait():
    x0, noise = torch.randn(2, 8, 200, device="cuda")
    t, condition = (
        VP.random_times(8, torch.Generator().manual_seed(0), "cuda"),
        {"label": torch.ones(8, device="cuda")},
    )
    arguments = (network, x0, t, noise, VP)
    losses.diffusion_loss(*arguments, prediction="v", weight="min_snr", condition=condition)
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = losses.diffusion_loss(*arguments, prediction="v", weight="min_snr", condition=condition)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(terms["loss"]).all()
