"""The oracles themselves: their denoisers against brute-force integration, their samples against their moments."""

import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.diffusion import Mixture, Schedule

LINEAR, FLOW = Schedule.linear(), Schedule.flow()


@pytest.mark.parametrize("schedule, t", [(LINEAR, 5), (LINEAR, 300), (LINEAR, 999), (FLOW, 0.5)])
def test_the_denoiser_is_the_posterior_mean(schedule, t):
    """E[x0 | x] = ∫ x0 p(x0) N(x; alpha·x0, sigma²) dx0 / ∫ …, by quadrature."""
    weights, means, stds = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 0.8]), torch.tensor([0.2, 0.5])
    data = Mixture(weights, means[:, None], stds[:, None])
    alpha, sigma = schedule.levels(t)
    x0 = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    prior = (
        weights[:, None] / stds[:, None] * torch.exp(-0.5 * ((x0 - means[:, None]) / stds[:, None]) ** 2)
    ).sum(0)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    posterior = prior * torch.exp(-0.5 * ((x - alpha * x0) / sigma) ** 2)
    expected = (posterior * x0).sum(1) / posterior.sum(1)
    predicted = data.denoiser(schedule)(x, t)
    torch.testing.assert_close(predicted.x0[:, 0], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alpha * predicted.x0 + sigma * predicted.eps, x, rtol=1e-9, atol=1e-9)


def test_elements_of_a_joint_mixture_share_their_component():
    far = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])
    data = Mixture(torch.tensor([0.5, 0.5]), far, torch.full((2, 2), 0.5), joint=True)
    draws = data.sample(500, torch.Generator().manual_seed(0))
    assert bool((draws.sign().prod(1) == 1).all())
    # The first element says which component it is; an independent mixture would shrink the second one to 0.
    alpha = LINEAR.alpha(600)
    predicted = data.denoiser(LINEAR)(torch.tensor([[5.0 * alpha, 0.0]], dtype=torch.float64), 600)
    alone = Mixture(data.weights.flatten(), far, torch.full((2, 2), 0.5)).denoiser(LINEAR)
    assert float(predicted.x0[0, 1]) > 2.5
    assert abs(float(alone(torch.tensor([[5.0 * alpha, 0.0]], dtype=torch.float64), 600).x0[0, 1])) < 1e-9


@pytest.mark.parametrize("joint", [False, True])
def test_samples_have_the_stated_moments(joint):
    generator = torch.Generator().manual_seed(0)
    data = Mixture(
        torch.tensor([0.2, 0.5, 0.3]),
        torch.randn(3, 4, generator=generator),
        torch.rand(3, 4, generator=generator),
        joint=joint,
    )
    draws = data.sample(40_000, generator)
    torch.testing.assert_close(draws.mean(0), data.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(draws.var(0), data.variance, rtol=0.05, atol=0)


def test_zero_inflation():
    data = Mixture.zero_inflated(torch.tensor([0.9]), torch.tensor([2.0]), torch.tensor([0.1]), spike=0.0)
    draws = data.sample(5000, torch.Generator().manual_seed(0))
    assert float((draws == 0).double().mean()) == pytest.approx(0.9, abs=0.02)
    assert float(data.mean) == pytest.approx(0.2) and float(data.variance) == pytest.approx(0.1 * 4.01 - 0.04)


def test_one_time_per_item_and_single_precision():
    data = Mixture.zero_inflated(torch.tensor([0.5, 0.1]), torch.tensor([2.0, 1.0]), torch.tensor([0.1, 0.5]))
    denoiser = data.denoiser(LINEAR)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    together = denoiser(x, torch.tensor([0, 400, 999]))
    assert together.x0.dtype == torch.float32
    for i, t in enumerate((0, 400, 999)):
        exact = denoiser(x[i : i + 1].double(), t)
        torch.testing.assert_close(together.x0[i : i + 1].double(), exact.x0, rtol=1e-4, atol=1e-4)


def test_transport_keeps_the_quantiles():
    """The flow of a Gaussian moves each point to the same quantile of the marginal at the other time."""
    data = Mixture.gaussian(torch.tensor([0.4]).double(), torch.tensor([0.6]).double())
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for t in (0, 250, 999):
        alpha, sigma = LINEAR.levels(t)
        spread = ((alpha * 0.6) ** 2 + sigma**2) ** 0.5
        torch.testing.assert_close(data.to_data(LINEAR, alpha * 0.4 + spread * z, t), 0.4 + 0.6 * z)
    with pytest.raises(ConfigError, match="one Gaussian only"):
        Mixture(torch.tensor([0.5, 0.5]), torch.zeros(2, 1), torch.ones(2, 1)).to_data(LINEAR, z, 5)


def test_weights_must_fit_the_components():
    with pytest.raises(ConfigError, match="one weight per component"):
        Mixture(torch.ones(3) / 3, torch.zeros(2, 1), torch.ones(2, 1))
