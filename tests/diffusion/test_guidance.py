"""Guidance: the textbook formula exactly, in one batch, only where asked."""

import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.diffusion import (
    Mixture,
    Prediction,
    Schedule,
    WindowLayout,
    column_guided,
    ddim,
    dpmpp_2m,
    from_x0_eps,
    gradient_guided,
    guided,
    network_denoiser,
    timesteps,
    windowed,
)
from morphogen.diffusion.guidance import anchored

LINEAR = Schedule.linear()
SHAPE = (2, 3, 4, 5)


def draw(seed, *shape):
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_label(x, t, label, **other):
    """Two exact denoisers in one: label 1 is N(1, 0.5²), label 0 is N(0, 1)."""
    label = label.view(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
    alpha, sigma = LINEAR.levels(t)
    mean, std = label, 1 - 0.5 * label
    eps = sigma * (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
    return Prediction((x - sigma * eps) / alpha, eps)


@pytest.mark.parametrize("t", [20, 500, 999])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_the_papers_formula(t, scale):
    x = draw(0)
    conditional = by_label(x, t, torch.ones(2))
    unconditional = by_label(x, t, torch.zeros(2))
    predicted = guided(by_label, {"label": torch.zeros(1)}, scale)(x, t, label=torch.ones(2))
    expected = unconditional.eps + scale * (conditional.eps - unconditional.eps)
    torch.testing.assert_close(predicted.eps, expected)
    w = scale - 1  # the other way papers write it
    torch.testing.assert_close(predicted.eps, (1 + w) * conditional.eps - w * unconditional.eps)
    alpha, sigma = LINEAR.levels(t)
    torch.testing.assert_close(alpha * predicted.x0 + sigma * predicted.eps, x)


def test_guided_sampling_of_gaussians_ends_where_the_powers_of_their_densities_do():
    """Near the data the guided score is that of p_c^s·p_u^(1−s): the mode of samples is the mode of that Gaussian."""
    scale, t = 2.0, 0
    precision = scale / 0.25 + (1 - scale) / 1.0
    mode = (scale * 1 / 0.25 + (1 - scale) * 0 / 1.0) / precision
    x = torch.full((1, 1, 1, 1), LINEAR.alpha(t) * mode, dtype=torch.float64)
    predicted = guided(by_label, {"label": torch.zeros(1)}, scale)(x, t, label=torch.ones(1))
    assert abs(float(predicted.eps)) < 1e-3


def test_both_halves_are_one_batch():
    batches = []

    def denoiser(x, t, label, style, flag):
        batches.append((x.shape[0], label.tolist(), style.shape, flag))
        return Prediction(x, x)

    guide = guided(denoiser, {"label": -1}, 2.0)
    guide(torch.zeros(SHAPE), 5, label=torch.tensor([3, 4]), style=torch.zeros(1, 7), flag="yes")
    assert batches == [(4, [3, 4, -1, -1], (4, 7), "yes")]


def test_times_per_item_are_doubled_too():
    x = draw(0)
    one = guided(by_label_per_item, {"label": torch.zeros(1)}, 2.0)(
        x, torch.tensor([3, 900]), label=torch.ones(2)
    )
    for i, t in enumerate((3, 900)):
        alone = guided(by_label, {"label": torch.zeros(1)}, 2.0)(x[i : i + 1], t, label=torch.ones(1))
        torch.testing.assert_close(one.eps[i : i + 1], alone.eps)


def by_label_per_item(x, t, label):
    parts = [by_label(x[i : i + 1], int(t[i]), label[i : i + 1]) for i in range(len(x))]
    return Prediction(torch.cat([p.x0 for p in parts]), torch.cat([p.eps for p in parts]))


def test_scale_one_and_times_outside_the_interval_cost_one_evaluation():
    sizes = []

    def denoiser(x, t, label):
        sizes.append(x.shape[0])
        return by_label(x, t, label)

    guided(denoiser, {"label": 0}, 1.0)(draw(0), 5, label=torch.ones(2))
    guide = guided(denoiser, {"label": 0}, 3.0, interval=(200, 800))
    for t in (100, 200, 800, 801):
        guide(draw(0), t, label=torch.ones(2))
    assert sizes == [2, 2, 4, 4, 2]


@pytest.mark.parametrize("of", ["epsilon", "v", "x0", "flow"])
def test_full_rescale_restores_the_conditional_standard_deviation(of):
    x, t = draw(0), 600
    levels = LINEAR.levels(t)
    guide = guided(by_label, {"label": 0}, 4.0, rescale=1.0, of=of, schedule=LINEAR)
    conditional, predicted = by_label(x, t, torch.ones(2)), guide(x, t, label=torch.ones(2))
    wanted, got = (from_x0_eps(of, p.x0, p.eps, *levels).flatten(1).std(1) for p in (conditional, predicted))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(levels[0] * predicted.x0 + levels[1] * predicted.eps, x)


def test_rescale_works_at_pure_noise():
    zero = Schedule.scaled_linear().zero_terminal_snr()
    denoiser = network_denoiser(lambda x, t, label: x * label.view(-1, 1, 1, 1), zero, "v")
    guide = guided(denoiser, {"label": 0.5}, 7.5, rescale=0.7, schedule=zero)
    predicted = guide(draw(0).float(), 999, label=torch.ones(2))
    assert torch.isfinite(predicted.x0).all() and torch.isfinite(predicted.eps).all()


def test_guidance_inside_windows_equals_guidance_of_the_whole():
    x = draw(1, 1, 3, 20, 33)
    guide = guided(by_label, {"label": 0}, 2.5)
    windows = windowed(guide, WindowLayout((20, 33), 8, 5))
    times = timesteps(LINEAR, 10)
    condition = {"label": torch.ones(1)}
    whole = ddim(guide, x, times, LINEAR, condition=condition)
    torch.testing.assert_close(ddim(windows, x, times, LINEAR, condition=condition), whole, rtol=0, atol=0)


def test_guidance_keeps_the_learned_variance_of_the_condition():
    denoiser = lambda x, t, label: Prediction(x, x, label.view(-1, 1, 1, 1).expand_as(x))  # noqa: E731
    predicted = guided(denoiser, {"label": 0.0}, 3.0)(draw(0), 5, label=torch.ones(2))
    assert torch.equal(predicted.log_variance, torch.ones(SHAPE))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: guided(by_label, {}, 2.0, rescale=2.0, schedule=LINEAR), "within"),
        (lambda: guided(by_label, {}, 2.0, rescale=0.5), "needs the schedule"),
        (lambda: guided(by_label, {"label": 0}, 2.0)(draw(0), 5), "needs the condition 'label'"),
        (lambda: guided(by_label, {"label": 0}, 2.0)(draw(0), 5, label="tumour"), "no unconditional half"),
        (
            lambda: guided(by_label, {"label": 0}, 2.0, interval=(0, 9))(
                draw(0), torch.tensor([1, 2]), label=torch.ones(2)
            ),
            "one time for the batch",
        ),
    ],
)
def test_what_cannot_be_guided_is_said(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_guidance_of_a_mixture_needs_no_network():
    """Unknown conditions are ignored by the oracles, so guidance between equal halves changes nothing."""
    oracle = Mixture.gaussian(torch.zeros(3, 4, 5), torch.ones(3, 4, 5)).denoiser(LINEAR)
    x = draw(0)
    predicted = guided(oracle, {"label": 0}, 5.0)(x, 400, label=torch.ones(2))
    torch.testing.assert_close(predicted.eps, oracle(x, 400).eps, rtol=1e-12, atol=1e-12)


# -- published numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_stedm_guidance(tensors, scale):
    numbers = tensors("stedm_unet")
    schedule = Schedule.scaled_linear(0.0015, 0.0205)
    times = timesteps(schedule, 128, "strided")
    index, t = numbers["ddim128_index"].tolist()
    position = times.index(t)
    assert position == len(times) - 1 - index

    def denoiser(x, t, style):
        eps = torch.cat([numbers["g_eps_c"], numbers["g_eps_u"]])
        alpha, sigma = schedule.levels(t)
        return Prediction((x - sigma * eps) / alpha, eps)

    guide = column_guided(denoiser, {"style": -2.0}, scale, schedule)
    seen = []
    ddim(
        guide,
        numbers["g_x"],
        times,
        schedule,
        condition={"style": torch.ones(2, 4)},
        callback=lambda state, prediction: seen.append((state.x, prediction)),
        start=position,
    )
    x_next, predicted = seen[0]
    for ours, name in ((predicted.eps, "eps"), (predicted.x0, "x0"), (x_next, "xprev")):
        torch.testing.assert_close(ours, numbers[f"guided_{name}_s{scale}"], rtol=1e-5, atol=1e-5, msg=name)


def linear_distance(x0, wanted):
    """How far the mean of an item lies above what is wanted."""
    return (x0.flatten(1).mean(1) - wanted).abs()


def test_a_linear_measure_is_met_in_one_step_and_the_prediction_stays_consistent():
    denoiser = gradient_guided(by_label, linear_distance, LINEAR)
    x, labels = draw(0), torch.tensor([0, 1])
    wanted = by_label(x, 700, labels).x0.flatten(1).mean(1) + torch.tensor([0.3, -0.2]).double()
    found = denoiser(x, 700, label=labels, wanted=wanted)
    assert torch.allclose(found.x0.flatten(1).mean(1), wanted, atol=1e-9)
    alpha, sigma = LINEAR.levels(700)
    assert torch.allclose(alpha * found.x0 + sigma * found.eps, x, atol=1e-9)
    half = gradient_guided(by_label, linear_distance, LINEAR, rate=0.5)(x, 700, label=labels, wanted=wanted)
    plain = by_label(x, 700, labels)
    assert torch.allclose(half.x0, (plain.x0 + found.x0) / 2, atol=1e-9)


def test_gradient_guidance_goes_no_further_than_the_noise_and_acts_in_its_interval_alone():
    x, labels, wanted = draw(0), torch.tensor([0, 1]), torch.tensor([500.0, -500.0], dtype=torch.float64)
    denoiser = gradient_guided(by_label, linear_distance, LINEAR, steps=2, interval=(100, 500))
    for t, moves in ((50, False), (300, True), (900, False)):
        step = denoiser(x, t, label=labels, wanted=wanted).x0 - by_label(x, t, labels).x0
        sigma = float(LINEAR.levels(t)[1])
        assert torch.allclose(step.flatten(1).square().mean(1).sqrt(), torch.tensor(sigma * moves).double())


def test_the_gradient_is_taken_in_the_coordinates_asked_for():
    """With one channel 10 times as large a part of the picture, steps in x would nearly all lie in it."""
    scale = torch.tensor([10.0, 1, 1], dtype=torch.float64).view(3, 1, 1)
    x, labels, wanted = draw(0), torch.tensor([0, 1]), torch.tensor([0.02, 0.03], dtype=torch.float64)

    def shown(picture, aim):
        return (picture.flatten(1).mean(1) - aim).abs()

    space = (lambda z: z * scale, lambda picture: picture / scale)
    found = gradient_guided(by_label, shown, LINEAR, space=space, rate=0.01)
    moved = scale * (by_label(x, 700, labels).x0 - found(x, 700, label=labels, wanted=wanted).x0)
    assert torch.allclose(moved, moved[:, :1, :1, :1].expand_as(moved), atol=1e-9) and moved.abs().min() > 0


@pytest.mark.parametrize("solver", [ddim, dpmpp_2m])
def test_an_anchored_model_changes_what_its_conditions_differ_in_and_keeps_the_rest(solver):
    """Gaussians that differ in their mean alone: the map of the deterministic flow between them is the shift, whatever
    the data and however wrong the spread that the model has of them."""
    known, noise = 3 * draw(0), draw(1)

    def poor(x, t, mean):
        item = torch.full(SHAPE[1:], mean), torch.full(SHAPE[1:], 0.3)
        return Mixture.gaussian(*item).denoiser(LINEAR)(x, t)

    def made(mean, steps, strength=1.0):
        times = [t for t in timesteps(LINEAR, steps, "trailing") if t < strength * LINEAR.T]
        begin = LINEAR.add_noise(known, noise, times[0])
        denoiser = anchored(poor, poor, known, noise, LINEAR, {"mean": 1.0})
        return solver(denoiser, begin, times, LINEAR, condition={"mean": mean}) - known

    for steps in (2, 7):
        assert made(1.0, steps).abs().max() < 1e-9  # however few the steps, and however poor the model
    whole, part = made(-0.5, 300), made(-0.5, 300, strength=0.3)
    assert whole.mean() == pytest.approx(-1.5, abs=0.02) and whole.std() < 1e-9
    assert -1.4 < part.mean() < -0.1 and part.std() < 1e-9  # begun late, less is changed
