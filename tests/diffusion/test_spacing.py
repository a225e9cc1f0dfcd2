"""Timesteps: the spacings of the papers, strictly falling, and the published lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.errors import ConfigError
from morphogen.diffusion import Schedule, respaced, time_at_log_snr, timesteps

LINEAR = Schedule.linear()


def test_trailing_starts_at_the_last_step():
    times = timesteps(LINEAR, 100)
    assert times[:3] == [999, 989, 979] and times[-1] == 9 and len(times) == 100


def test_leading_and_its_offset():
    assert timesteps(LINEAR, 100, "leading")[:2] == [990, 980]
    assert timesteps(LINEAR, 100, "leading", steps_offset=1)[-1] == 1


def test_linspace_has_both_ends():
    times = timesteps(LINEAR, 20, "linspace")
    assert times[0] == 999 and times[-1] == 0 and len(times) == 20


def test_strided_may_hold_more_than_asked():
    assert [len(timesteps(LINEAR, n, "strided")) for n in (20, 30, 50, 128, 200)] == [20, 31, 50, 143, 200]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 1000),
    st.sampled_from(["trailing", "leading", "linspace", "strided", "log_snr", "log_snr_few"]),
)
def test_every_spacing_falls_strictly_within_the_schedule(n, spacing):
    times = timesteps(LINEAR, n, spacing)
    assert all(a > b for a, b in zip(times, times[1:]))
    assert times[0] <= 999 and times[-1] >= 0
    assert len(times) == n or spacing == "strided"
    if not spacing.startswith("log_snr"):
        assert all(isinstance(t, int) for t in times)


@pytest.mark.parametrize(
    "schedule", [LINEAR, Schedule.cosine(), Schedule.scaled_linear().zero_terminal_snr(), Schedule.flow()]
)
@pytest.mark.parametrize("n", [1, 2, 11, 20])
def test_log_snr_is_uniform_and_starts_where_x_starts(schedule, n):
    times = timesteps(schedule, n, "log_snr")
    assert len(times) == n and times[0] == schedule.last
    levels = [schedule.log_snr(t) for t in times]
    inner = levels[1:] if levels[0] < -8 else levels
    assert max(inner, default=0) <= 8 + 1e-6
    gaps = [b - a for a, b in zip(inner, inner[1:])]
    assert not gaps or max(gaps) - min(gaps) < 1e-6


def test_time_at_log_snr_inverts_the_schedule():
    for schedule in (LINEAR, Schedule.scaled_linear().zero_terminal_snr(), Schedule.flow()):
        for level in (-15.0, -9.0, -1.3, 0.0, 2.5, 6.9):
            assert schedule.log_snr(time_at_log_snr(schedule, level)) == pytest.approx(
                max(level, schedule.log_snr(schedule.last)), abs=1e-6
            )


def test_flow_times_are_even():
    assert timesteps(Schedule.flow(), 4) == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: timesteps(LINEAR, 10, "trailling"), "Did you mean 'trailing'"),
        (lambda: timesteps(LINEAR, 0), "at least one"),
        (lambda: timesteps(LINEAR, 1001), "more than"),
        (lambda: timesteps(LINEAR, 10, steps_offset=1), "belongs to the leading"),
        (lambda: timesteps(LINEAR, 100, "leading", steps_offset=20), "past the last"),
        (lambda: timesteps(Schedule.flow(), 10, "leading"), "integer times"),
        (lambda: respaced(LINEAR, "ddim333"), "no integer stride"),
        (lambda: respaced(LINEAR, "ten"), "not a number of steps"),
        (lambda: respaced(LINEAR, "600,600"), "do not fit"),
    ],
)
def test_what_cannot_be_spaced_is_said(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_respacing_by_sections():
    times = respaced(LINEAR, "2,3")
    assert times == [999, 750, 500, 499, 0]


# -- published numbers -----------------------------------------------------------------------------------------


def test_stem_respacing(tensors):
    numbers = tensors("stem_diffusion")
    assert respaced(LINEAR, "ddim25")[::-1] == numbers["ddim25_timestep_map"].tolist()
    assert respaced(LINEAR, "20")[::-1] == numbers["resp20_timestep_map"].tolist()
    assert respaced(LINEAR, 1000)[::-1] == numbers["full_timestep_map"].tolist()


def test_latent_diffusion_timesteps(tensors):
    numbers = tensors("ldm_sampling")
    for n in (20, 30, 50, 128, 200):
        assert timesteps(LINEAR, n, "strided")[::-1] == numbers[f"make_ddim_timesteps_{n}"].tolist()
    assert timesteps(LINEAR, 128, "strided") == tensors("stedm_unet")["ddim128_timesteps_used"].tolist()
    # The canvas sampler counts its times from 1.
    large = tensors("large_image")
    assert [t + 1 for t in timesteps(LINEAR, 50)] == large["t_range_ddim0"].tolist()
    assert [t + 1 for t in timesteps(LINEAR, 10)] == large["t_range_stride100"].tolist()


def test_histdist_timesteps(tensors):
    numbers = tensors("histdist_inference")
    for n in (100, 20, 13):
        assert timesteps(LINEAR, n) == numbers[f"timesteps_trailing_{n}"].tolist()
        assert timesteps(LINEAR, n)[::-1] == numbers[f"inverse_timesteps_trailing_{n}"].tolist()
    for n in (100, 20):
        times = timesteps(LINEAR, n, "leading", steps_offset=1)
        assert times == numbers[f"timesteps_leading_{n}"].tolist()
        assert times[::-1] == numbers[f"inverse_timesteps_leading_{n}"].tolist()
    assert torch.equal(torch.tensor(timesteps(LINEAR, 20)), numbers["timesteps_translation"])
