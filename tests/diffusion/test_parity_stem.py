"""Stem's published diffusion code: losses, posteriors and chains, with its network loaded from its checkpoint."""

import pytest
import torch

from morphogen.checkpoints import load_stem
from morphogen.diffusion import Schedule, clipped, ddim, ddim_invert, ddpm, network_denoiser, respaced
from morphogen.diffusion.losses import Posterior, diffusion_loss
from morphogen.diffusion.predictions import split_variance

SCHEDULE = Schedule.linear()


@pytest.fixture(scope="module")
def stem(published, shared):
    description, numbers = published("stem_diffusion")
    heads = description["config"]["num_heads"]
    network = load_stem(shared / "fixtures" / "stem_forward" / "0000003.pt", heads=heads)
    # The published arrays have an axis of one channel that ours have not.
    flat = {name: value.squeeze(-2) if value.ndim > 2 else value for name, value in numbers.items()}
    return network, flat


def close(ours, theirs, rtol=0.0, atol=2e-5):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol * float(theirs.abs().max()))


def test_losses(stem):
    network, numbers = stem
    torch.testing.assert_close(
        SCHEDULE.add_noise(numbers["x0"], numbers["noise"], numbers["t"]),
        numbers["x_t"],
        rtol=1e-6,
        atol=1e-6,
    )
    with torch.no_grad():
        terms = diffusion_loss(
            network,
            numbers["x0"],
            numbers["t"],
            numbers["noise"],
            SCHEDULE,
            learned_variance=True,
            vlb="discretised",
            condition={"condition": numbers["y"]},
        )
    assert 0 in numbers["t"]  # the likelihood term is among them
    for ours, theirs in (("mse", "loss_mse"), ("vb", "loss_vb"), ("loss", "loss_total")):
        close(terms[ours], numbers[theirs], rtol=1e-4)


def test_continuous_likelihood_differs_from_the_discretised_one_at_t_0_only(stem):
    network, numbers = stem
    terms = [
        diffusion_loss(
            network,
            numbers["x0"],
            numbers["t"],
            numbers["noise"],
            SCHEDULE,
            learned_variance=True,
            vlb=vlb,
            condition={"condition": numbers["y"]},
        )["vb"]
        for vlb in ("continuous", "discretised")
    ]
    assert torch.equal(~torch.isclose(*terms), numbers["t"] == 0)


@pytest.mark.parametrize("clip", ["noclip", "clip"])
def test_posterior_of_the_full_process(stem, clip):
    network, numbers = stem
    denoiser = network_denoiser(network, SCHEDULE, learned_variance=True)
    if clip == "clip":
        denoiser = clipped(denoiser, SCHEDULE)
    with torch.no_grad():
        predicted = denoiser(numbers["pmv_x"], numbers["pmv_t"], condition=numbers["y"])
    posterior = Posterior.of(SCHEDULE, numbers["pmv_t"], predicted.x0)
    log_variance = posterior.log_variance(predicted.log_variance)
    close(predicted.x0, numbers[f"pmv_{clip}_pred_xstart"], rtol=1e-4)
    close(posterior.mean(predicted.x0, numbers["pmv_x"]), numbers[f"pmv_{clip}_mean"], rtol=1e-4)
    close(log_variance, numbers[f"pmv_{clip}_log_variance"], rtol=1e-4)
    close(log_variance.exp(), numbers[f"pmv_{clip}_variance"], rtol=1e-4)


def test_posterior_of_a_respaced_process(stem):
    """The network is told the original time; the posterior is that of the 20-step process."""
    network, numbers = stem
    times = torch.tensor(respaced(SCHEDULE, "20")[::-1])
    index = numbers["pmv_t"].clamp(max=19)
    told = times[index]
    with torch.no_grad():
        output = network(numbers["pmv_x"], told.float(), condition=numbers["y"])
    eps, position = split_variance(output, numbers["pmv_x"])
    alpha, sigma = SCHEDULE.levels_like(told, eps)
    x0 = (numbers["pmv_x"] - sigma * eps) / alpha
    posterior = Posterior.of(Schedule("vp", SCHEDULE.alpha_bar[times]), index, eps)
    close(x0, numbers["pmv20_pred_xstart"], rtol=1e-4)
    close(posterior.mean(x0, numbers["pmv_x"]), numbers["pmv20_mean"], rtol=1e-4)
    close(posterior.log_variance(position), numbers["pmv20_log_variance"], rtol=1e-4)


def test_ancestral_chain_of_20_steps_with_learned_variance(stem):
    network, numbers = stem
    states = []
    end = ddpm(
        network_denoiser(network, SCHEDULE, learned_variance=True),
        numbers["z_T"],
        respaced(SCHEDULE, "20"),
        SCHEDULE,
        variance="learned",
        noise=lambda step: numbers["step_noises_20"][step],
        condition={"condition": numbers["y"]},
        callback=lambda state, _: states.append(state.x),
    )
    close(end, numbers["ddpm20_final"])
    close(torch.stack(states), numbers["ddpm20_traj"])


@pytest.mark.parametrize("clip", ["noclip", "clip"])
def test_ddim_chain_of_25_steps(stem, clip):
    network, numbers = stem
    denoiser = network_denoiser(network, SCHEDULE, learned_variance=True)
    states = []
    end = ddim(
        clipped(denoiser, SCHEDULE) if clip == "clip" else denoiser,
        numbers["z_T"],
        respaced(SCHEDULE, "ddim25"),
        SCHEDULE,
        condition={"condition": numbers["y"]},
        callback=lambda state, _: states.append(state.x),
    )
    close(end, numbers[f"ddim25_{clip}_final"], atol=5e-5)  # other processors sum in another order
    close(torch.stack(states), numbers[f"ddim25_{clip}_traj"], atol=5e-5)


def test_one_step_of_reverse_ddim(stem):
    """The published reverse step reads and tells t = 100 and goes to 101."""
    network, numbers = stem
    denoiser = network_denoiser(network, SCHEDULE, learned_variance=True)

    def told_its_level(x, t, *, network_time, **condition):
        return denoiser(x, t, **condition)

    end = ddim_invert(
        told_its_level, numbers["pmv_x"], [101, 100], SCHEDULE, condition={"condition": numbers["y"]}, start=1
    )
    close(end, numbers["ddim_reverse_t100"])
