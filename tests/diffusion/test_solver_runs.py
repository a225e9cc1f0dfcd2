"""Solvers in use: the same noise under any batching, going on from a state, precision, what is refused."""

from concurrent.futures import ThreadPoolExecutor

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
    network_denoiser,
    plms,
    timesteps,
)

LINEAR, FLOW = Schedule.linear(), Schedule.flow()
ZERO_SNR = Schedule.scaled_linear().zero_terminal_snr()

SOLVERS = {
    "ddpm": (ddpm, LINEAR, {"noise": True}),
    "ddim": (ddim, LINEAR, {"eta": 0.5, "noise": True}),
    "invert": (ddim_invert, LINEAR, {"refine": 1}),
    "2m": (dpmpp_2m, LINEAR, {}),
    "3m": (dpmpp_3m, LINEAR, {}),
    "sde": (dpmpp_2m, LINEAR, {"sde": True, "noise": True}),
    "plms": (plms, LINEAR, {}),
    "euler": (euler, FLOW, {}),
    "heun": (heun, FLOW, {}),
}


# -- the same seed, the same samples ---------------------------------------------------------------------------


def sampled(keys, solver, denoiser, options):
    noise = ItemNoise(2, keys, (7,))
    options = {**options, "noise": noise} if options.get("noise") else options
    return solver(denoiser, noise(-1), timesteps(LINEAR, 6), LINEAR, **options)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "2m", "sde"])
def test_batches_order_and_workers_do_not_change_a_bit(name):
    solver, _, options = SOLVERS[name]
    u = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    denoiser = Mixture.zero_inflated(u[0], 1 + u[1], 0.2 + u[2]).denoiser(LINEAR)
    keys = [("spot", i) for i in range(23)]
    whole = sampled(keys, solver, denoiser, options)
    for size in (1, 4, 10):
        parts = [keys[i : i + size] for i in range(0, 23, size)]
        with ThreadPoolExecutor(3) as workers:
            done = workers.map(lambda part: sampled(part, solver, denoiser, options), parts)
            assert torch.equal(torch.cat(list(done)), whole)
    assert torch.equal(sampled(keys[::-1], solver, denoiser, options).flip(0), whole)


def test_batches_change_a_network_by_rounding_only():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(7, 64), torch.nn.SiLU(), torch.nn.Linear(64, 7))
    denoiser = network_denoiser(lambda x, t: layers(x), LINEAR, "v")
    keys = [("spot", i) for i in range(23)]
    whole = sampled(keys, dpmpp_2m, denoiser, {"sde": True, "noise": True})
    for size in (1, 4, 10):
        parts = [
            sampled(keys[i : i + size], dpmpp_2m, denoiser, {"sde": True, "noise": True})
            for i in range(0, 23, size)
        ]
        assert float((torch.cat(parts) - whole).abs().max()) < 1e-4 * float(whole.max() - whole.min())


# -- going on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_a_run_goes_on_from_any_state_to_the_same_bits(name):
    solver, schedule, options = SOLVERS[name]
    data = Mixture.zero_inflated(torch.tensor([0.3, 0.6]), torch.tensor([1.5, 0.8]), torch.tensor([0.4, 0.3]))
    noise = ItemNoise(5, range(16), (2,))
    if options.get("noise"):
        options = {**options, "noise": noise}
    states: list[SolverState] = []
    times = timesteps(schedule, 8)
    arguments = (data.denoiser(schedule), noise(-1), times, schedule)
    whole = solver(*arguments, callback=lambda state, _: states.append(state), **options)
    assert [state.step for state in states] == list(range(1, 9))
    for state in states:
        rest = solver(data.denoiser(schedule), state, times, schedule, **options)
        assert torch.equal(rest, whole)
    if name not in ("2m", "3m", "sde", "plms"):  # one-step methods need x alone
        assert torch.equal(
            solver(data.denoiser(schedule), states[2].x, times, schedule, start=3, **options), whole
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SOLVERS)
def test_x_keeps_its_shape_and_precision(name, dtype):
    solver, schedule, options = SOLVERS[name]
    options = {**options, "noise": lambda i: torch.zeros(2, 3, 4, 5)} if options.get("noise") else options
    x = torch.zeros(2, 3, 4, 5, dtype=dtype)
    out = solver(lambda x, t, **_: Prediction(x, x), x, timesteps(schedule, 3), schedule, **options)
    assert out.shape == x.shape and out.dtype == dtype


def test_conditions_reach_the_denoiser():
    def denoiser(x, t, shift):
        return Prediction(x * 0 + shift, x)

    for solver, schedule, _ in SOLVERS.values():
        if solver not in (ddpm, ddim_invert):
            out = solver(denoiser, torch.zeros(3), timesteps(schedule, 1), schedule, condition={"shift": 2.0})
            assert out.tolist() == [2, 2, 2] or solver in (plms, euler, heun)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d, x: ddpm(d, x, [999, 5], LINEAR), "adds noise"),
        (lambda d, x: ddpm(d, x, [999, 5], LINEAR, variance="tiny"), "unknown variance"),
        (lambda d, x: ddim(d, x, [5, 999], LINEAR), "falling"),
        (lambda d, x: ddim(d, x, [], LINEAR), "falling"),
        (lambda d, x: ddim(d, x, [1000], LINEAR), "outside"),
        (lambda d, x: ddim(d, x, [999], LINEAR, eta=1.5), "within"),
        (lambda d, x: ddim(d, x, [999], LINEAR, final="end"), "unknown final"),
        (lambda d, x: euler(d, x, [999], LINEAR), "follow a flow"),
        (lambda d, x: heun(d, x, [1.0, 0.0], FLOW), "no step to make"),
        (lambda d, x: plms(d, x, [999], ZERO_SNR), "pure noise"),
        (lambda d, x: ddim_invert(d, x, [5, 999], LINEAR), "falling"),
    ],
)
def test_what_cannot_be_solved_is_said(call, message):
    with pytest.raises(ConfigError, match=message):
        call(lambda x, t, **_: Prediction(x, x), torch.zeros(2, 3))
