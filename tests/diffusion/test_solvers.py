"""Solvers against data whose denoiser is known exactly: their only error is their own."""

import math

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.diffusion import (
    ItemNoise,
    Mixture,
    Prediction,
    Schedule,
    SolverState,
    ddim,
    ddim_invert,
    ddpm,
    dpmpp_2m,
    dpmpp_3m,
    euler,
    heun,
    plms,
    time_at_log_snr,
    timesteps,
)

LINEAR, FLOW = Schedule.linear(), Schedule.flow()
ZERO_SNR = Schedule.scaled_linear().zero_terminal_snr()


def gaussian(mean=(0.5, -1.0), std=(0.7, 0.3)):
    return Mixture.gaussian(torch.tensor(mean).double(), torch.tensor(std).double())


def normals(n, *item):
    """Standard normals without sampling error in one dimension: the quantiles, the same for each element."""
    z = torch.special.ndtri((torch.arange(n).double() + 0.5) / n)
    return z.view(n, *(1,) * len(item)).expand(n, *item).clone()


def orders(solve, exact, steps=(40, 80, 160)):
    errors = [float((solve(n) - exact).abs().max()) for n in steps]
    return [math.log2(a / b) for a, b in zip(errors, errors[1:])]


def even(schedule, n, start=-7.0):
    """n times even in log-SNR from ``start`` down to the first level, so that steps shrink as 1/n everywhere."""
    levels = torch.linspace(start, schedule.log_snr(0), n, dtype=torch.float64)
    return [time_at_log_snr(schedule, level) for level in levels.tolist()]


# -- order of convergence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LINEAR, ZERO_SNR], ids=["linear", "zero snr"])
@pytest.mark.parametrize("solver, order", [(ddim, 1), (dpmpp_2m, 2), (plms, 2)])
def test_ode_solvers_converge_at_their_order(solver, order, schedule):
    x, data = normals(33, 2), gaussian()
    exact = data.transport(schedule, x, even(schedule, 2)[0], 0)
    solve = lambda n: solver(data.denoiser(schedule), x, even(schedule, n), schedule, final="first")  # noqa: E731
    assert orders(solve, exact) == pytest.approx([order] * 2, abs=0.25)


def test_a_solver_from_pure_noise_ends_where_the_flow_does():
    x, data = normals(33, 2), gaussian()
    exact = data.transport(ZERO_SNR, x, 999, 0)
    times = timesteps(ZERO_SNR, 200, "log_snr")
    for solver in (ddim, dpmpp_2m):
        out = solver(data.denoiser(ZERO_SNR), x, times, ZERO_SNR, final="first")
        torch.testing.assert_close(out, exact, rtol=0, atol=0.03 if solver is ddim else 0.003)


@pytest.mark.parametrize("solver, order", [(euler, 1), (heun, 2), (ddim, 1)])
def test_flow_solvers_converge_at_their_order(solver, order):
    x, data = normals(33, 2), gaussian()
    exact = data.to_data(FLOW, x, 1.0)
    solve = lambda n: solver(data.denoiser(FLOW), x, timesteps(FLOW, n), FLOW)  # noqa: E731
    assert orders(solve, exact) == pytest.approx([order] * 2, abs=0.1)


def linear_variance(solver, schedule, times, std=0.4, **options):
    """Exact variance of a solver's samples of N(0, std²), over the truth.

    The denoiser of a centred Gaussian is linear, so a sample is a weighted sum of the noises it was made from. Each row
    of the batch gets exactly one of them, set to 1: the rows end as the weights.
    """
    unit = torch.eye(len(times) + 1, dtype=torch.float64)[:, :, None]
    data = gaussian((0.0,), (std,))
    rows = solver(data.denoiser(schedule), unit[0], times, schedule, noise=lambda i: unit[i + 1], **options)
    return float((rows**2).sum()) / std**2


@pytest.mark.parametrize(
    "solver, spacing, options",
    [
        (ddpm, "trailing", {}),
        (ddpm, "trailing", {"variance": "large"}),
        (ddim, "trailing", {"eta": 1.0}),
        (ddim, "trailing", {"eta": 0.5}),
        (dpmpp_2m, "log_snr", {"sde": True}),
    ],
    ids=["ddpm", "ddpm large", "ddim 1", "ddim 0.5", "sde"],
)
def test_stochastic_solvers_approach_the_right_variance(solver, spacing, options):
    coarse, fine, finer = (
        abs(linear_variance(solver, LINEAR, timesteps(LINEAR, n, spacing), **options) - 1)
        for n in (40, 160, 640)
    )
    assert fine < 0.7 * coarse and finer < 0.5 * fine + 3e-3
    assert finer < 0.05


def test_the_sde_solver_is_of_second_order_in_variance():
    start = even(LINEAR, 2)[0]
    spread = [math.sqrt((LINEAR.alpha(t) * 0.4) ** 2 + LINEAR.sigma(t) ** 2) / 0.4 for t in (start, 0)]
    errors = []
    for n in (40, 80, 160):
        # N(0, 1) instead of N(0, spread²) at the start changes the first row of weights alone, and by little.
        ratio = linear_variance(dpmpp_2m, LINEAR, even(LINEAR, n), sde=True, final="first")
        errors.append(abs(ratio - spread[1] ** 2))
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3


@pytest.mark.parametrize("schedule", [LINEAR, ZERO_SNR, FLOW], ids=["linear", "zero snr", "flow"])
@pytest.mark.parametrize("n", [1, 7, 10, 25])
def test_eta_one_is_the_ancestral_sampler(schedule, n):
    x, data = normals(9, 2), gaussian()
    noise = ItemNoise(0, range(9), (2,))
    arguments = (data.denoiser(schedule), x, timesteps(schedule, n), schedule)
    ours, ancestral = ddim(*arguments, eta=1.0, noise=noise), ddpm(*arguments, noise=noise)
    torch.testing.assert_close(ours, ancestral, rtol=1e-9, atol=1e-8)


# -- fast sampling of gene-like data ---------------------------------------------------------------------------


def genes(n=100):
    """Zero-inflated data with from no to 90 % zeros, and modes near and far."""
    generator = torch.Generator().manual_seed(7)
    u = torch.rand(3, n, generator=generator, dtype=torch.float64)
    return Mixture.zero_inflated(zero=0.9 * u[0], mean=0.5 + 2 * u[1], std=0.2 + 0.4 * u[2])


@pytest.mark.parametrize(
    "schedule", [LINEAR, ZERO_SNR, Schedule.cosine(), FLOW], ids=["linear", "zero", "cosine", "flow"]
)
def test_dpmpp_2m_keeps_every_genes_variance_in_20_evaluations(schedule):
    data = genes()
    x = dpmpp_2m(data.denoiser(schedule), normals(2001, 100), timesteps(schedule, 20, "log_snr"), schedule)
    ratio = x.var(0) / data.variance
    assert float((ratio - 1).abs().max()) < 0.04


def test_respaced_ddpm_does_not():
    data = genes()
    noise = ItemNoise(0, range(2000), (100,))
    x = ddpm(data.denoiser(LINEAR), noise(-1), timesteps(LINEAR, 20), LINEAR, noise=noise)
    ratio = x.var(0) / data.variance
    assert float(ratio.max()) < 0.96 and float(ratio.mean()) < 0.8


@pytest.mark.slow
def test_full_ddpm_reproduces_the_distribution():
    data = genes(20)
    noise = ItemNoise(0, range(4000), (20,))
    x = ddpm(data.denoiser(LINEAR), noise(-1), timesteps(LINEAR, 1000), LINEAR, noise=noise)
    assert float((x.var(0) / data.variance - 1).abs().max()) < 0.1
    assert float(((x.mean(0) - data.mean) / data.variance.sqrt()).abs().max()) < 0.06


# -- inversion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LINEAR, ZERO_SNR], ids=["linear", "zero snr"])
@pytest.mark.parametrize("std", [0.5, 1.0])
def test_inverting_and_sampling_returns_the_start(schedule, std):
    data = gaussian((0.2,), (std,))
    start = data.mean + std * normals(33, 1)
    denoiser, times = data.denoiser(schedule), timesteps(schedule, 100)

    def missed(times, refine):
        noise = ddim_invert(denoiser, start, times, schedule, refine=refine)
        return float((ddim(denoiser, noise, times, schedule, final="first") - start).abs().max())

    assert missed(times, refine=2) < 1e-4
    # Without corrections the recipe is of first order: half the steps, twice the miss.
    plain = [missed(timesteps(schedule, n), 0) for n in (50, 100)]
    assert plain[0] / plain[1] == pytest.approx(2, abs=0.3)


def test_inversion_of_a_flow():
    data = gaussian()
    start = data.mean + data.variance.sqrt() * normals(33, 2)
    denoiser, times = data.denoiser(FLOW), timesteps(FLOW, 100)
    noise = ddim_invert(denoiser, start, times, FLOW, refine=4)
    assert float((euler(denoiser, noise, times, FLOW) - start).abs().max()) < 1e-4


def test_inversion_tells_the_network_where_it_goes_and_converts_where_it_is():
    """The recipe of HistDiST: times upwards; the level is the entry before, the schedule's first one at the start."""
    seen = []

    def denoiser(x, t, network_time=None):
        seen.append((t, network_time))
        return Prediction(x, x)

    times = timesteps(ZERO_SNR, 4)
    ddim_invert(denoiser, torch.zeros(1), times, ZERO_SNR)
    assert seen == [(0, 249), (249, 499), (499, 749), (749, 999)]


def test_after_step_is_applied_at_every_step():
    data = gaussian()
    out = ddim_invert(
        data.denoiser(ZERO_SNR),
        normals(5, 2),
        timesteps(ZERO_SNR, 10),
        ZERO_SNR,
        after_step=lambda x: x / x.std(),
    )
    assert float(out.std()) == pytest.approx(1)


# -- ends ------------------------------------------------------------------------------------------------------


def test_the_last_step_to_data_returns_x0_and_to_the_first_level_its_noise():
    data = gaussian()
    x = normals(9, 2)
    last = []
    keep = lambda state, prediction: last.append(prediction)  # noqa: E731
    for solver in (ddpm, ddim, dpmpp_2m, dpmpp_3m, plms):
        options = {"noise": lambda i: torch.zeros_like(x)} if solver is ddpm else {}
        out = solver(data.denoiser(LINEAR), x, timesteps(LINEAR, 10), LINEAR, callback=keep, **options)
        if solver is not plms:
            torch.testing.assert_close(out, last[-1].x0, rtol=1e-9, atol=1e-12)
    out = ddim(data.denoiser(LINEAR), x, timesteps(LINEAR, 10), LINEAR, final="first", callback=keep)
    alpha, sigma = LINEAR.levels(0)
    torch.testing.assert_close(out, alpha * last[-1].x0 + sigma * last[-1].eps)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_a_step_from_the_first_level_to_itself_changes_nothing(variance):
    def denoiser(x, t):
        return data.denoiser(LINEAR)(x, t)._replace(variance_position=torch.zeros_like(x))

    data, x = gaussian(), normals(9, 2)
    noise = ItemNoise(0, range(9), (2,))
    ours = ddpm(denoiser, x, [500, 0], LINEAR, variance=variance, noise=noise, final="first")
    # The same ends: (500 → 0) alone.
    other = ddpm(denoiser, x, [500], LINEAR, variance=variance, noise=noise, final="first")
    torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-9)


def test_one_step_from_pure_noise_is_the_mean():
    data = gaussian()
    for solver, schedule in (
        (ddim, ZERO_SNR),
        (dpmpp_2m, ZERO_SNR),
        (dpmpp_3m, ZERO_SNR),
        (euler, FLOW),
        (heun, FLOW),
    ):
        out = solver(data.denoiser(schedule), normals(9, 2), timesteps(schedule, 1), schedule)
        torch.testing.assert_close(out, data.mean.expand(9, 2))


def test_heun_needs_two_evaluations_a_step_but_one_in_the_last():
    calls = []

    def denoiser(x, t):
        calls.append(t)
        return Prediction(x, x)

    heun(denoiser, torch.zeros(1), timesteps(FLOW, 4), FLOW)
    assert calls == [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]


def test_learned_variance_lies_between_small_and_large():
    data = gaussian()
    x, noise = normals(9, 2), ItemNoise(0, range(9), (2,))
    plain = data.denoiser(LINEAR)
    times = timesteps(LINEAR, 10)

    def sample(position=None, variance="learned"):
        def denoiser(x, t):
            predicted = plain(x, t)
            log_variance = None if position is None else torch.full_like(x, position)
            return predicted._replace(variance_position=log_variance)

        return ddpm(denoiser, x, times, LINEAR, variance=variance, noise=noise)

    torch.testing.assert_close(sample(-1.0), sample(variance="small"))
    torch.testing.assert_close(sample(1.0), sample(variance="large"))
    with pytest.raises(ConfigError, match="no learned variance"):
        sample()


def test_eta_as_a_function_of_progress_or_a_list():
    data = gaussian()
    x, noise, times = normals(9, 2), ItemNoise(0, range(9), (2,)), timesteps(LINEAR, 5)
    seen = []

    def eta(progress):
        seen.append(progress)
        return 0.6 - 0.4 * math.cos(math.pi * progress)

    a = ddim(data.denoiser(LINEAR), x, times, LINEAR, eta=eta, noise=noise)
    assert seen == [0, 0.25, 0.5, 0.75, 1] and eta(0) == pytest.approx(0.2) and eta(1) == pytest.approx(1)
    b = ddim(data.denoiser(LINEAR), x, times, LINEAR, eta=[eta(i / 4) for i in range(5)], noise=noise)
    assert torch.equal(a, b)


def test_weights_of_a_step_are_the_integrals_of_polynomials():
    """Against quadrature, over long and short steps; and x0 that is a parabola in λ is followed exactly."""
    from morphogen.diffusion.multistep import step_weights

    nodes, ends = np.polynomial.legendre.leggauss(40), (1e-3, 0.05, 0.11, 1.5)
    for h in ends:
        levels = [0.3, 0.3 - 0.8 * h, 0.3 - 2.1 * h]
        weights = step_weights(levels, 0.3 + h)
        places = 0.3 + h * (nodes[0] + 1) / 2
        for power in range(3):
            exact = float((nodes[1] * np.exp(places - 0.3 - h) * places**power).sum() * h / 2)
            found = sum(w * level**power for w, level in zip(weights, levels, strict=True))
            assert found == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("schedule", [LINEAR, ZERO_SNR], ids=["linear", "zero snr"])
def test_the_third_order_is_reached_from_a_true_start(schedule):
    """From the true x and the true x0 of two earlier times on: steps of lower order begin a run otherwise."""
    data = gaussian()
    x, denoiser = normals(33, 2), data.denoiser(schedule)

    def solve(n):
        times = even(schedule, n)
        there = [data.transport(schedule, x, times[0], t) for t in times[:3]]
        history = tuple(denoiser(value, t).x0 for value, t in zip(there[1::-1], times[1::-1], strict=True))
        return dpmpp_3m(denoiser, SolverState(2, there[2], history), times, schedule, final="first")

    exact = data.transport(schedule, x, even(schedule, 2)[0], 0)
    assert min(orders(solve, exact, (80, 160, 320))) > 2.8
