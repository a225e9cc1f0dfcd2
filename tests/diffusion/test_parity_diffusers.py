"""diffusers' schedulers, where they are right: the same chains to 1e-5 from the same network and noise."""

import diffusers
import pytest
import torch

from morphogen.diffusion import (
    ItemNoise,
    Schedule,
    ddim,
    ddim_invert,
    ddpm,
    dpmpp_2m,
    euler,
    network_denoiser,
    timesteps,
)

PLAIN, ZERO_SNR = Schedule.scaled_linear(), Schedule.scaled_linear().zero_terminal_snr()
X = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
NOISE = ItemNoise(1, range(3), (4, 5, 6))
STABLE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def network(x, t):
    """Any smooth function of x and t."""
    return torch.tanh(0.7 * x) * torch.cos(t.view(-1, 1, 1, 1) / 400) + 0.1 * x


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4e-5 * float(theirs.abs().max()))


def run(scheduler, n, predict=network, noise=NOISE, x=X, **options):
    """The loop of a diffusers pipeline; ``noise`` replaces what the scheduler would draw."""
    scheduler.set_timesteps(n)
    original = diffusers.utils.torch_utils.randn_tensor
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    try:
        for step, t in enumerate(scheduler.timesteps):
            if hasattr(module, "randn_tensor"):
                module.randn_tensor = lambda *args, step=step, **kwargs: noise(step)
            told = t.float().expand(len(x))
            x = scheduler.step(predict(x, told), t, x, **options).prev_sample
    finally:
        if hasattr(module, "randn_tensor"):
            module.randn_tensor = original
    return x, [int(t) for t in scheduler.timesteps]


PREDICTIONS = {
    "epsilon": ("epsilon", PLAIN, False),
    "v": ("v_prediction", ZERO_SNR, True),
    "x0": ("sample", PLAIN, False),
}


@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("final", ["data", "first"])
def test_ddim(n, prediction, eta, final):
    name, schedule, zero = PREDICTIONS[prediction]
    scheduler = diffusers.DDIMScheduler(
        **STABLE,
        prediction_type=name,
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero,
        set_alpha_to_one=final == "data",
    )
    theirs, times = run(scheduler, n, eta=eta)
    assert times == timesteps(schedule, n)
    close(
        ddim(
            network_denoiser(network, schedule, prediction),
            X,
            times,
            schedule,
            eta=eta,
            noise=NOISE,
            final=final,
        ),
        theirs,
    )


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_timesteps(spacing):
    for n in (7, 10, 13, 50, 100):
        scheduler = diffusers.DDIMScheduler(
            **STABLE, timestep_spacing=spacing, steps_offset=int(spacing == "leading")
        )
        scheduler.set_timesteps(n)
        ours = timesteps(PLAIN, n, spacing, steps_offset=int(spacing == "leading"))
        assert ours == scheduler.timesteps.tolist()


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("n", [20, 250])
def test_ddpm(n, variance):
    # Leading, because with trailing times diffusers adds noise to the data itself after the last step.
    scheduler = diffusers.DDPMScheduler(
        **STABLE, clip_sample=False, variance_type=f"fixed_{variance}", timestep_spacing="leading"
    )
    theirs, times = run(scheduler, n)
    assert times == timesteps(PLAIN, n, "leading")
    close(ddpm(network_denoiser(network, PLAIN), X, times, PLAIN, variance=variance, noise=NOISE), theirs)


def test_ddpm_with_learned_variance():
    def double(x, t):
        return torch.cat([network(x, t), torch.sin(3 * x)], dim=1)

    scheduler = diffusers.DDPMScheduler(
        **STABLE, clip_sample=False, variance_type="learned_range", timestep_spacing="leading"
    )
    theirs, times = run(scheduler, 50, double)
    denoiser = network_denoiser(double, PLAIN, learned_variance=True)
    close(ddpm(denoiser, X, times, PLAIN, variance="learned", noise=NOISE), theirs)


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_ddim_inversion(n, prediction):
    """diffusers' inverse scheduler tells the network the time it goes to and converts at the level before, as ours."""
    name, schedule, zero = PREDICTIONS[prediction]
    scheduler = diffusers.DDIMInverseScheduler(
        **STABLE,
        prediction_type=name,
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero,
        set_alpha_to_one=False,
    )
    theirs, times = run(scheduler, n)
    assert times == timesteps(schedule, n)[::-1]
    close(ddim_invert(network_denoiser(network, schedule, prediction), X, times[::-1], schedule), theirs)


@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_dpmpp_2m(n, sde, prediction):
    name, _, _ = PREDICTIONS[prediction]
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **STABLE,
        prediction_type=name,
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    theirs, times = run(scheduler, n)
    assert times == timesteps(PLAIN, n)
    close(
        dpmpp_2m(network_denoiser(network, PLAIN, prediction), X, times, PLAIN, sde=sde, noise=NOISE), theirs
    )


def test_euler_on_a_flow():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    x, flow = X, Schedule.flow()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x))), t, x).prev_sample
    close(euler(network_denoiser(network, flow, "flow"), X, timesteps(flow, 10), flow), x)


@pytest.mark.parametrize("n", [13, 30])
def test_where_n_does_not_divide_T_ours_goes_to_the_real_next_time(n):
    """diffusers steps by T // n whatever the next entry of its list is, so its chain misses its own times."""
    scheduler = diffusers.DDIMScheduler(
        **STABLE, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs, times = run(scheduler, n, eta=0.0)
    ours = ddim(network_denoiser(network, PLAIN), X, times, PLAIN)
    assert float((ours - theirs).abs().max()) > 1e-3 * float(theirs.abs().max())
    x = X
    for t, after in zip(times, [*times[1:], None]):  # the formula, written out
        a, s = PLAIN.levels(t)
        b, r = (1.0, 0.0) if after is None else PLAIN.levels(after)
        eps = network(x, torch.full((3,), float(t)))
        x = b * (x - s * eps) / a + r * eps
    close(ours, x)
