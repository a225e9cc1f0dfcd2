"""Schedules: the papers' formulas, exact at integers, smooth between, and the same numbers as published code."""

import math

import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.diffusion import Schedule
from morphogen.diffusion.losses import posterior_table

SCHEDULES = {
    "linear": Schedule.linear(),
    "stable diffusion": Schedule.scaled_linear(),
    "cosine": Schedule.cosine(),
    "zero snr": Schedule.scaled_linear().zero_terminal_snr(),
    "flow": Schedule.flow(),
}


def test_linear_is_the_running_product_of_one_minus_beta():
    schedule = Schedule.linear(T=50, beta_start=1e-3, beta_end=0.1)
    product = 1.0
    for t in range(50):
        beta = 1e-3 + (0.1 - 1e-3) * t / 49
        product *= 1 - beta
        assert schedule.alpha(t) ** 2 == pytest.approx(product, rel=1e-12)
        assert float(schedule.betas[t]) == pytest.approx(beta, rel=1e-10)


def test_cosine_follows_its_formula_until_beta_is_capped():
    schedule = Schedule.cosine()

    def f(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 10, 500, 990):
        assert float(schedule.alpha_bar[t]) == pytest.approx(f((t + 1) / 1000) / f(0), rel=1e-9)
    assert float(schedule.betas.max()) == pytest.approx(0.999)


def test_zero_terminal_snr_keeps_the_first_level_and_empties_the_last():
    before = Schedule.scaled_linear()
    after = before.zero_terminal_snr()
    assert float(before.alpha_bar[-1]) == pytest.approx(0.00466, abs=5e-6)
    assert float(after.alpha_bar[0]) == pytest.approx(float(before.alpha_bar[0]), rel=1e-12)
    assert float(after.alpha_bar[0]) == pytest.approx(0.99915, abs=5e-6)
    assert float(after.alpha_bar[-1]) == 0 and after.zero_snr and not before.zero_snr
    assert after.log_snr(999) == -math.inf


def test_flow_is_a_straight_line_from_data_to_noise():
    flow = Schedule.flow()
    assert (flow.alpha(0.25), flow.sigma(0.25)) == (0.75, 0.25)
    assert flow.log_snr(0.5) == 0 and flow.log_snr(0) == math.inf and flow.log_snr(1) == -math.inf
    with pytest.raises(ConfigError, match="no table"):
        _ = flow.alpha_bar


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_exact_at_integers_and_fall_between(name):
    schedule = SCHEDULES[name]
    times = torch.linspace(float(schedule.first), float(schedule.last), 5001, dtype=torch.float64)
    alpha, sigma = schedule.levels(times)
    assert bool((alpha[1:] < alpha[:-1]).all()) and bool((sigma[1:] > sigma[:-1]).all())
    if schedule.kind == "vp":
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-14)
        whole = torch.arange(schedule.T)
        assert torch.equal(schedule.levels(whole.double())[0], schedule.alpha_bar.sqrt())
        assert torch.equal(schedule.levels(whole)[0], schedule.alpha_bar.sqrt().float())
        assert schedule.alpha(7) == schedule.alpha(7.0) == math.sqrt(float(schedule.alpha_bar[7]))


def test_between_integers_the_log_snr_is_linear():
    schedule = Schedule.linear()
    assert schedule.log_snr(400.25) == pytest.approx(
        0.75 * schedule.log_snr(400) + 0.25 * schedule.log_snr(401), rel=1e-12
    )


def test_numbers_and_tensors_say_the_same():
    schedule = Schedule.cosine()
    numbers = [schedule.levels(t) for t in (0, 3.7, 998.99, 999)]
    alpha, sigma = schedule.levels(torch.tensor([0, 3.7, 998.99, 999], dtype=torch.float64))
    assert [(a, s) for a, s in zip(alpha.tolist(), sigma.tolist())] == numbers


def test_add_noise_takes_one_time_per_item():
    schedule = Schedule.linear()
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, 5, generator=generator)
    x = schedule.add_noise(x0, eps, torch.tensor([0, 500, 999]))
    for i, t in enumerate((0, 500, 999)):
        torch.testing.assert_close(x[i], schedule.alpha(t) * x0[i] + schedule.sigma(t) * eps[i])


def test_random_times_cover_the_schedule_and_follow_the_generator():
    for schedule in (Schedule.linear(), Schedule.flow()):
        draws = [schedule.random_times(4000, torch.Generator().manual_seed(1)) for _ in range(2)]
        assert torch.equal(*draws)
        assert float(draws[0].min()) >= schedule.first and float(draws[0].max()) <= schedule.last
        middle = float(draws[0].double().mean())
        assert middle == pytest.approx((schedule.first + schedule.last) / 2, rel=0.05)


def test_network_time_is_one_number_per_item():
    x = torch.zeros(3, 2)
    assert Schedule.linear().network_time(17, x).tolist() == [17, 17, 17]
    assert Schedule.flow().network_time(0.5, x).tolist() == [500, 500, 500]
    assert Schedule.linear().network_time(torch.tensor([1, 2, 3]), x).tolist() == [1, 2, 3]


@pytest.mark.parametrize("t", [-1, 1000, 999.5, float("nan")])
def test_times_outside_the_schedule_are_refused(t):
    with pytest.raises(ConfigError, match="outside"):
        Schedule.linear().levels(t)


def test_a_rising_table_is_refused():
    with pytest.raises(ConfigError, match="fall"):
        Schedule("vp", torch.tensor([0.5, 0.7]))


# -- published numbers -----------------------------------------------------------------------------------------


def test_stem_schedules_and_posterior(tensors):
    numbers = tensors("stem_diffusion")
    full = Schedule.linear()
    for prefix, schedule in (
        ("full", full),
        ("ddim25", Schedule("vp", full.alpha_bar[numbers["ddim25_timestep_map"]])),
        ("resp20", Schedule("vp", full.alpha_bar[numbers["resp20_timestep_map"]])),
    ):
        x0_weight, x_weight, log_small, _ = posterior_table(schedule)
        for name, ours in (
            ("betas", schedule.betas),
            ("alphas_cumprod", schedule.alpha_bar),
            ("posterior_mean_coef1", x0_weight),
            ("posterior_mean_coef2", x_weight),
            ("posterior_log_variance_clipped", log_small),
        ):
            torch.testing.assert_close(ours, numbers[f"{prefix}_{name}"], rtol=1e-10, atol=1e-14, msg=name)
        variance = log_small.exp()
        torch.testing.assert_close(
            variance[1:], numbers[f"{prefix}_posterior_variance"][1:], rtol=1e-10, atol=0
        )


def test_histdist_schedules(tensors):
    numbers = tensors("histdist_inference")
    plain = Schedule.scaled_linear()
    zero = plain.zero_terminal_snr()
    for schedule, name in ((plain, "alphas_cumprod_sd15"), (zero, "alphas_cumprod_zero_snr")):
        torch.testing.assert_close(schedule.alpha_bar.float(), numbers[name], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(plain.betas.float(), numbers["betas_sd15"], rtol=1e-5, atol=0)
    torch.testing.assert_close(zero.betas.float(), numbers["betas_zero_snr"], rtol=2e-4, atol=1e-6)
    for name in ("final_alpha_cumprod_zero_snr", "inverse_initial_alpha_cumprod"):
        assert float(numbers[name]) == pytest.approx(zero.alpha(0) ** 2, rel=1e-6)


def test_stedm_and_large_image_schedules(tensors):
    stedm = Schedule.scaled_linear(0.0015, 0.0205)
    numbers = tensors("stedm_unet")
    torch.testing.assert_close(stedm.alpha_bar.float(), numbers["sched_alphas_cumprod"], rtol=1e-5, atol=0)
    torch.testing.assert_close(stedm.betas.float(), numbers["sched_betas"], rtol=1e-5, atol=0)
    large = Schedule.scaled_linear(0.0015, 0.0195)
    torch.testing.assert_close(
        large.alpha_bar.float(), tensors("large_image")["alphabar_float32"], rtol=1e-4, atol=0
    )
