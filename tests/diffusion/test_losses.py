"""Losses: zero for a perfect network, equal under equal weights, and a true variational bound."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from morphogen.core.errors import ConfigError
from morphogen.diffusion import Schedule, from_x0_eps, to_x0_eps
from morphogen.diffusion.losses import (
    Posterior,
    diffusion_loss,
    discretised_log_likelihood,
    min_snr_weight,
    v_weight,
    variational_bound,
    wiener_error,
)

VP, FLOW = Schedule.linear(), Schedule.flow()


def batch(n=6, *item, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, *(item or (3, 5)), generator=generator)


@pytest.mark.parametrize(
    "schedule, kind", [(VP, "epsilon"), (VP, "x0"), (VP, "v"), (VP, "flow"), (FLOW, "flow"), (FLOW, "v")]
)
def test_a_perfect_network_has_no_loss(schedule, kind):
    x0, noise = batch()
    t = schedule.random_times(6, torch.Generator().manual_seed(1))
    target = from_x0_eps(kind, x0, noise, *schedule.levels_like(t, x0))
    terms = diffusion_loss(lambda x, t: target, x0, t, noise, schedule, prediction=kind)
    assert terms["loss"].shape == (6,) and float(terms["loss"].max()) == 0
    off = diffusion_loss(lambda x, t: target + 2, x0, t, noise, schedule, prediction=kind)
    torch.testing.assert_close(off["loss"], torch.full((6,), 4.0))
    off = diffusion_loss(lambda x, t: target - 2, x0, t, noise, schedule, prediction=kind, kind="l1")
    torch.testing.assert_close(off["l1"], torch.full((6,), 2.0))


@pytest.mark.parametrize(
    "schedule, kinds", [(VP, ("epsilon", "v", "x0", "flow")), (FLOW, ("v", "x0", "flow"))]
)
def test_min_snr_weighs_the_same_mistake_the_same_whatever_is_predicted(schedule, kinds):
    """The weights of Hang et al. are one weight min(SNR, γ) on x0, written for each prediction type."""
    x0, noise = batch()
    t = torch.tensor([2, 100, 300, 500, 700, 950]) if schedule is VP else torch.linspace(0.05, 0.95, 6)
    alpha, sigma = schedule.levels_like(t, x0)
    x_t = alpha * x0 + sigma * noise
    wrong_x0 = x0 + 0.3
    wrong_eps = (x_t - alpha * wrong_x0) / sigma
    expected = 0.09 * torch.exp(schedule.log_snr(t)).clamp(max=5)
    for kind in kinds:
        output = from_x0_eps(kind, wrong_x0, wrong_eps, alpha, sigma)
        terms = diffusion_loss(
            lambda x, t, o=output: o, x0, t, noise, schedule, prediction=kind, weight="min_snr"
        )
        torch.testing.assert_close(terms["loss"], expected, rtol=2e-3, atol=1e-6, msg=kind)


def test_min_snr_weights_are_the_papers():
    t = torch.arange(0, 1000, 37)
    snr = torch.exp(VP.log_snr(t))
    capped = snr.clamp(max=5)
    for kind, expected in (("x0", capped), ("epsilon", capped / snr), ("v", capped / (snr + 1))):
        torch.testing.assert_close(min_snr_weight(VP, t, kind), expected, rtol=1e-4, atol=0)


def test_min_snr_is_finite_at_pure_noise():
    zero = Schedule.scaled_linear().zero_terminal_snr()
    for kind in ("v", "x0"):
        assert float(min_snr_weight(zero, torch.tensor([999]), kind)) == 0
    assert torch.isfinite(min_snr_weight(zero, torch.arange(1000), "v")).all()


def test_the_bound_is_the_kl_of_two_gaussians_in_bits():
    x0, noise = batch()
    x0, noise = x0.double(), noise.double()
    t = torch.tensor([1, 5, 100, 400, 900, 999])
    x_t = VP.add_noise(x0, noise, t)
    guess, position = x0 + 0.1, 0.3 * noise.tanh()
    bits = variational_bound(VP, x0, x_t, t, guess, position)
    posterior = Posterior.of(VP, t, x0)
    truth = Normal(posterior.mean(x0, x_t), torch.exp(0.5 * posterior.log_small))
    ours = Normal(posterior.mean(guess, x_t), torch.exp(0.5 * posterior.log_variance(position)))
    expected = kl_divergence(truth, ours).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(bits, expected, rtol=1e-6, atol=1e-9)


def test_the_last_step_is_a_gaussian_likelihood_by_default():
    x0, noise = batch(2)
    x0, noise = x0.double(), noise.double()
    t = torch.zeros(2, dtype=torch.long)
    x_t = VP.add_noise(x0, noise, t)
    posterior = Posterior.of(VP, t, x0)
    position = torch.zeros_like(x0)
    scale = torch.exp(0.5 * posterior.log_variance(position))
    expected = -Normal(x0 + 0.01, scale).log_prob(x0).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(variational_bound(VP, x0, x_t, t, x0 + 0.01, position), expected)


def test_discretised_probabilities_of_all_256_values_sum_to_one():
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, log_variance in ((0.1, -4.0), (-0.97, -3.0), (0.3, 1.0)):
        log_p = discretised_log_likelihood(values, torch.tensor(mean), torch.tensor(log_variance))
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_the_bound_trains_the_variance_and_not_the_mean():
    x0, noise = batch(4, 2, 5)
    mean = torch.zeros_like(x0, requires_grad=True)
    position = torch.zeros_like(x0, requires_grad=True)
    t = torch.tensor([0, 10, 500, 999])
    terms = diffusion_loss(
        lambda x, t: torch.cat([mean, position], dim=1), x0, t, noise, VP, learned_variance=True
    )
    torch.testing.assert_close(terms["loss"], terms["mse"] + terms["vb"])
    terms["vb"].sum().backward()
    assert mean.grad is None or float(mean.grad.abs().max()) == 0
    assert float(position.grad.abs().min()) > 0


def test_conditions_reach_the_network():
    x0, noise = batch(2)
    network = lambda x, t, shift: noise + shift  # noqa: E731
    terms = diffusion_loss(network, x0, torch.tensor([5, 9]), noise, VP, condition={"shift": 3.0})
    torch.testing.assert_close(terms["mse"], torch.full((2,), 9.0))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"schedule": Schedule.scaled_linear().zero_terminal_snr()}, "pure noise"),
        ({"kind": "huber"}, "unknown loss"),
        ({"kind": "l1", "weight": "min_snr"}, "no weight"),
        ({"schedule": FLOW, "prediction": "flow", "learned_variance": True}, "no variance to learn"),
        ({"learned_variance": True, "vlb": "exact"}, "unknown likelihood"),
    ],
)
def test_contradictions_are_refused(options, message):
    x0, noise = batch(2)
    options = {"schedule": VP, **options}
    t = options["schedule"].random_times(2, torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=message):
        diffusion_loss(lambda x, t: torch.cat([x, x], 1), x0, t, noise, **options)


def test_to_and_from_are_inverse_under_autocast_dtypes():
    x0, noise = batch()
    alpha, sigma = VP.levels_like(torch.tensor([10] * 6), x0.bfloat16())
    assert alpha.dtype == torch.bfloat16
    x = alpha * x0.bfloat16() + sigma * noise.bfloat16()
    assert to_x0_eps("v", x, x, alpha, sigma)[0].dtype == torch.bfloat16


def test_an_error_in_x0_counts_as_that_in_v():
    x0, noise = batch()
    t = torch.tensor([1, 200, 400, 600, 800, 999])
    alpha, sigma = VP.levels_like(t, x0)
    x_t, guess = alpha * x0 + sigma * noise, x0 + 0.3
    v = diffusion_loss(lambda x, _: (alpha * x - guess) / sigma, x0, t, noise, VP, prediction="v")["loss"]
    as_x0 = diffusion_loss(lambda x, _: guess, x0, t, noise, VP, prediction="x0")["loss"]
    torch.testing.assert_close((x0 + 0.3), alpha * x_t - sigma * ((alpha * x_t - guess) / sigma))
    torch.testing.assert_close(as_x0 * v_weight(VP, t, 1e9), v, rtol=1e-4, atol=0)
    assert float(v_weight(VP, t, 5.0).max()) == 5.0


def test_the_best_linear_estimate_loses_one_at_every_noise_and_in_every_channel():
    variance = torch.tensor([9.0, 1.0, 0.04])[:, None, None]
    generator = torch.Generator().manual_seed(0)
    for t in (20, 300, 600, 900):
        times = torch.full((64,), t)
        x0, noise = torch.randn(2, 64, 3, 24, 24, generator=generator)
        x0 = x0 * variance.sqrt()
        alpha, sigma = VP.levels_like(times, x0)

        def best(x, _, alpha=alpha, sigma=sigma):
            return alpha * variance / (alpha**2 * variance + sigma**2) * x

        terms = diffusion_loss(
            best, x0, times, noise, VP, prediction="x0", weight="wiener", variance=variance
        )
        assert abs(float(terms["loss"].mean()) - 1) < 0.03
        errors = (best(alpha * x0 + sigma * noise, None) - x0).square().mean((0, 2, 3))
        torch.testing.assert_close(
            errors, wiener_error(variance, alpha[0], sigma[0]).flatten(), rtol=0.05, atol=0
        )


def test_weights_that_do_not_fit_are_told():
    x0, noise = batch()
    t = torch.full((6,), 10)
    one = torch.ones(())
    for options, said in [
        ({"prediction": "v", "weight": "wiener", "variance": one}, "'wiener' is for x0, not for v"),
        ({"prediction": "x0", "weight": "wiener"}, "belong together"),
        ({"prediction": "x0", "variance": one}, "belong together"),
        (
            {"prediction": "x0", "weight": "wiener", "variance": one, "kind": "l1"},
            "no weight 'wiener' for l1",
        ),
    ]:
        with pytest.raises(ConfigError, match=said):
            diffusion_loss(lambda x, _: x, x0, t, noise, VP, **options)
