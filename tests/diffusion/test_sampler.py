"""The one sampler: each choice of solver is that solver, presets are data, guidance and windows compose."""

from functools import partial

import pytest
import torch

from morphogen.core.errors import ConfigError, InputError
from morphogen.diffusion import (
    CanvasNoise,
    ItemNoise,
    Mixture,
    Prediction,
    SamplerConfig,
    Schedule,
    WindowLayout,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_3m,
    euler,
    expectation,
    guided,
    heun,
    plms,
    resumable,
    sample,
    timesteps,
    windowed,
)
from morphogen.diffusion.predictions import from_x0_eps, to_x0_eps
from morphogen.diffusion.sampler import eta_function

VP, ZERO, FLOW = Schedule.linear(), Schedule.cosine().zero_terminal_snr(), Schedule.flow()
DATA = Mixture.zero_inflated(torch.tensor([0.3, 0.6]), torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.2]))
NOISE = ItemNoise(3, range(5), (2,))


@pytest.mark.parametrize(
    ("choice", "schedule", "expected"),
    [
        (
            {"solver": "ddim", "eta": "cosine", "final": "first"},
            ZERO,
            partial(ddim, eta=eta_function("cosine"), noise=NOISE, final="first"),
        ),
        ({"solver": "ddpm"}, VP, partial(ddpm, noise=NOISE)),
        ({"solver": "ddpm", "variance": "large"}, VP, partial(ddpm, noise=NOISE, variance="large")),
        ({"solver": "dpmpp_2m"}, VP, dpmpp_2m),
        ({"solver": "dpmpp_3m"}, VP, dpmpp_3m),
        ({"solver": "dpmpp_2m_sde"}, VP, partial(dpmpp_2m, sde=True, noise=NOISE)),
        ({"solver": "plms"}, VP, plms),
        ({"solver": "euler"}, FLOW, euler),
        ({"solver": "heun"}, FLOW, heun),
    ],
)
def test_sample_is_the_solver_it_names_to_the_bit(choice, schedule, expected):
    denoiser = DATA.denoiser(schedule)
    found = sample(denoiser, NOISE(-1), schedule, SamplerConfig(steps=6, **choice), noise=NOISE)
    assert torch.equal(found, expected(denoiser, NOISE(-1), timesteps(schedule, 6), schedule))


@pytest.mark.parametrize(
    ("choice", "schedule"),
    [
        ({"solver": "mean"}, ZERO),
        ({"solver": "ddim"}, VP),
        ({"solver": "plms"}, VP),
        ({"solver": "heun"}, FLOW),
        ({"solver": "ddpm", "spacing": "strided", "steps": 128}, VP),
    ],
)
def test_evaluations_are_counted_as_they_happen(choice, schedule):
    calls = []

    def counting(x, t, /, **condition):
        calls.append(t)
        return DATA.denoiser(schedule)(x, t, **condition)

    config = SamplerConfig(**{"steps": 7, **choice})
    sample(counting, NOISE(-1), schedule, config, noise=NOISE)
    assert config.evaluations(schedule) == len(calls)


def test_the_mean_is_that_of_the_data():
    found = sample(DATA.denoiser(ZERO), torch.zeros(1, 2), ZERO, SamplerConfig.mean())
    torch.testing.assert_close(found[0], DATA.mean.float(), rtol=0, atol=1e-5)
    assert torch.equal(found, expectation(DATA.denoiser(ZERO), torch.zeros(1, 2), ZERO))


def test_model_spacing_follows_the_schedule():
    config = SamplerConfig(steps=10, spacing="model")
    assert config.times(ZERO) == timesteps(ZERO, 10, "trailing")
    assert config.times(VP) == timesteps(VP, 10, "leading", steps_offset=1)
    assert config.replace(steps_offset=0).times(VP) == timesteps(VP, 10, "leading")


def test_presets_are_data_and_rooms_have_their_own():
    class Room(SamplerConfig):
        PRESETS = {**SamplerConfig.PRESETS, "quick": {"solver": "ddim", "steps": 3}}

    assert Room.named("quick").steps == 3 and Room.of("mean").solver == "mean"
    assert Room.of(SamplerConfig(steps=4)).steps == 4
    assert SamplerConfig.reference().evaluations(VP) == 1000
    with pytest.raises(ConfigError, match="did you mean 'fast'|fast"):
        SamplerConfig.named("fastt")


def by_condition(x, t, /, **condition):
    value = condition["c"].expand(len(x))[:, None, None, None]
    x0 = value + 0.1 * x
    alpha, sigma = VP.levels_like(t, x)
    return Prediction(x0, (x - alpha * x0) / sigma)


def test_guidance_acts_inside_the_windows():
    layout = WindowLayout((12, 12), 8, 4)
    noise = CanvasNoise(0, (1, 1, 12, 12))
    given, null = {"c": torch.ones(1)}, {"c": 0.0}
    config = SamplerConfig(solver="ddim", steps=4, guidance_scale=3.0, guidance_rescale=0.5)
    found = sample(
        by_condition,
        noise(-1),
        VP,
        config,
        condition=given,
        null_condition=null,
        around=lambda inner: windowed(inner, layout),
    )
    guide = windowed(guided(by_condition, null, 3.0, None, 0.5, schedule=VP), layout)
    assert torch.equal(found, ddim(guide, noise(-1), timesteps(VP, 4), VP, condition=given))
    plain = sample(by_condition, noise(-1), VP, config.replace(guidance_scale=1.0), condition=given)
    assert float((found - plain).abs().max()) > 0.1
    with pytest.raises(ConfigError, match="without its condition"):
        sample(by_condition, noise(-1), VP, config, condition=given)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"solver": "ddim", "eta": 0.0}, {"solver": "ddim", "eta": 1.0}),
        ({"solver": "ddim", "eta": "cosine"}, {"solver": "ddim", "eta": "linear"}),
        ({"solver": "ddim"}, {"solver": "ddim", "final": "first"}),
        ({"solver": "dpmpp_2m"}, {"solver": "dpmpp_2m_sde"}),
        ({"solver": "ddim"}, {"solver": "plms"}),
        ({"solver": "ddpm"}, {"solver": "ddpm", "variance": "large"}),
    ],
)
def test_a_state_of_other_options_is_refused(tmp_path, earlier, later):
    arguments = (DATA.denoiser(VP), NOISE(-1), VP)
    file = tmp_path / "state.pt"
    first = sample(*arguments, SamplerConfig(steps=4, **earlier), noise=NOISE, state=file)
    assert torch.equal(sample(*arguments, SamplerConfig(steps=4, **earlier), noise=NOISE, state=file), first)
    with pytest.raises(InputError, match="another job"):
        sample(*arguments, SamplerConfig(steps=4, **later), noise=NOISE, state=file)


def test_a_state_of_another_schedule_or_seed_is_refused(tmp_path):
    config, file = SamplerConfig(solver="ddpm", steps=4), tmp_path / "state.pt"
    sample(DATA.denoiser(VP), NOISE(-1), VP, config, noise=NOISE, state=file)
    for schedule, noise in ((Schedule.cosine(), NOISE), (VP, ItemNoise(4, range(5), (2,)))):
        with pytest.raises(InputError, match="another job"):
            sample(DATA.denoiser(schedule), NOISE(-1), schedule, config, noise=noise, state=file)


def test_a_partial_of_a_solver_resumes_and_is_told_from_another(tmp_path):
    """A run stopped in its middle goes on to the bytes of one that was not."""
    times, file = timesteps(VP, 6), tmp_path / "state.pt"

    class Stop(Exception):
        pass

    def stopping(state, prediction):
        if state.step == 3:
            raise Stop

    run = resumable(partial(dpmpp_2m, sde=True), file)
    with pytest.raises(Stop):
        run(DATA.denoiser(VP), NOISE(-1), times, VP, noise=NOISE, callback=stopping)
    whole = dpmpp_2m(DATA.denoiser(VP), NOISE(-1), times, VP, sde=True, noise=NOISE)
    assert torch.equal(run(DATA.denoiser(VP), NOISE(-1), times, VP, noise=NOISE), whole)
    with pytest.raises(InputError, match="another job"):
        resumable(partial(dpmpp_2m, sde=False), file)(DATA.denoiser(VP), NOISE(-1), times, VP, noise=NOISE)


def test_unknown_kinds_are_errors_and_not_flows():
    x = torch.zeros(1, 2)
    for call in (
        lambda: Schedule("vpp"),  # type: ignore[arg-type]
        lambda: to_x0_eps("velocity", x, x, 0.5, 0.5),
        lambda: from_x0_eps("velocity", x, x, 0.5, 0.5),
    ):
        with pytest.raises(ConfigError, match="unknown"):
            call()
