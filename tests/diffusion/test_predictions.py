"""Predictions: every type says the same about x0 and eps, and impossible ones are refused."""

import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.diffusion import Schedule, clipped, from_x0_eps, network_denoiser, to_x0_eps

VP, FLOW, ZERO = Schedule.linear(), Schedule.flow(), Schedule.scaled_linear().zero_terminal_snr()
KINDS = ("epsilon", "x0", "v", "flow")


def draws(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("schedule, times", [(VP, (0, 321.5, 999)), (FLOW, (0.01, 0.5, 0.99))])
@pytest.mark.parametrize("kind", KINDS)
def test_each_type_gives_back_what_it_was_made_of(schedule, times, kind):
    x0, eps = draws(2, 3, 4)
    for t in times:
        alpha, sigma = schedule.levels(t)
        output = from_x0_eps(kind, x0, eps, alpha, sigma)
        back = to_x0_eps(kind, output, alpha * x0 + sigma * eps, alpha, sigma)
        torch.testing.assert_close(back, (x0, eps), rtol=1e-9, atol=1e-9)


def test_v_is_the_papers_formula():
    x0, eps = draws(4)
    alpha, sigma = VP.levels(300)
    assert torch.equal(from_x0_eps("v", x0, eps, alpha, sigma), alpha * eps - sigma * x0)


@pytest.mark.parametrize("kind", ["v", "x0", "flow"])
def test_pure_noise_is_no_problem_for_types_that_know_the_data(kind):
    x0, _ = draws(1, 5)
    x = draws(1, 5)[1]
    for schedule, t in ((ZERO, 999), (FLOW, 1.0)):
        alpha, sigma = schedule.levels(t)
        assert (alpha, sigma) == (0, 1)
        output = from_x0_eps(kind, x0, x, alpha, sigma)
        predicted = network_denoiser(lambda x, t, out=output: out, schedule, kind)(x, t)
        torch.testing.assert_close(tuple(predicted[:2]), (x0, x))


@pytest.mark.parametrize("schedule", [ZERO, FLOW])
def test_an_epsilon_model_cannot_start_from_pure_noise(schedule):
    with pytest.raises(ConfigError, match="epsilon-model cannot start from pure noise.*Use v or x0"):
        network_denoiser(lambda x, t: x, schedule, "epsilon")


def test_unknown_type_names_the_near_one():
    with pytest.raises(ConfigError, match="Did you mean 'epsilon'"):
        network_denoiser(lambda x, t: x, VP, "epsilo")


def test_one_time_per_item_is_the_same_as_one_by_one():
    x = draws(3, 2, 4)[0].float()
    denoiser = network_denoiser(lambda x, t: torch.tanh(x) * t.view(-1, 1, 1) / 1000, VP, "v")
    together = denoiser(x, torch.tensor([3, 500, 998]))
    for i, t in enumerate((3, 500, 998)):
        alone = denoiser(x[i : i + 1], t)
        torch.testing.assert_close(together.x0[i : i + 1], alone.x0)
        torch.testing.assert_close(together.eps[i : i + 1], alone.eps)


def test_the_network_gets_float_times_and_conditions():
    seen = {}

    def network(x, t, label, scale=1.0):
        seen.update(t=t, label=label, scale=scale)
        return x

    denoiser = network_denoiser(network, VP)
    denoiser(torch.zeros(2, 3), 17, label="a", scale=2.0)
    assert seen["t"].dtype == torch.float32 and seen["t"].tolist() == [17, 17]
    assert (seen["label"], seen["scale"]) == ("a", 2.0)
    denoiser(torch.zeros(2, 3), 17, network_time=27, label="a")
    assert seen["t"].tolist() == [27, 27]


def test_the_told_time_does_not_change_the_level():
    x = draws(2, 3)[0]
    plain = network_denoiser(lambda x, t: torch.ones_like(x), VP)(x, 100)
    told = network_denoiser(lambda x, t: torch.ones_like(x), VP)(x, 100, network_time=500)
    assert torch.equal(plain.x0, told.x0)


@pytest.mark.parametrize("shape, output", [((2, 3, 4), (2, 6, 4)), ((2, 7), (2, 2, 7))])
def test_learned_variance_is_the_second_half_of_the_output(shape, output):
    out = torch.arange(float(torch.tensor(output).prod())).view(output)
    predicted = network_denoiser(lambda x, t: out, VP, learned_variance=True)(torch.zeros(shape), 5)
    half = out.shape[1] // 2
    assert torch.equal(predicted.eps, out[:, :half].reshape(shape))
    assert torch.equal(predicted.log_variance, out[:, half:].reshape(shape))


def test_learned_variance_with_single_channels_is_an_error():
    with pytest.raises(ConfigError, match="twice the channels"):
        network_denoiser(lambda x, t: x, VP, learned_variance=True)(torch.zeros(2, 3, 4), 5)


def test_low_precision_stays_inside_the_network():
    linear = torch.nn.Linear(8, 8)
    seen = []

    def network(x, t):
        seen.append(linear(x).dtype)
        return linear(x)

    predicted = network_denoiser(network, VP, precision="bf16")(torch.randn(2, 8), 5)
    assert seen == [torch.bfloat16] and predicted.x0.dtype == predicted.eps.dtype == torch.float32


@pytest.mark.parametrize("schedule, t", [(VP, 700), (FLOW, 0.7)])
def test_clipping_keeps_x_and_the_range(schedule, t):
    x = 3 * draws(2, 50)[0]
    denoiser = clipped(network_denoiser(lambda x, t: x, schedule, "v"), schedule, -0.5, 0.5)
    predicted = denoiser(x, t)
    alpha, sigma = schedule.levels(t)
    assert float(predicted.x0.abs().max()) == 0.5
    torch.testing.assert_close(alpha * predicted.x0 + sigma * predicted.eps, x)


def test_an_x0_model_is_not_asked_about_clean_data():
    with pytest.raises(ConfigError, match="noise of clean data"):
        network_denoiser(lambda x, t: x, FLOW, "x0")(torch.zeros(1, 2), 0.0)
