"""Windows: any canvas is covered, agreeing windows leave no trace, and conditions reach the right window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.errors import ConfigError
from morphogen.diffusion import (
    CanvasNoise,
    Crop,
    Mixture,
    PerWindow,
    Prediction,
    Schedule,
    WindowLayout,
    ddim,
    ddpm,
    dpmpp_2m,
    feather,
    map_windows,
    shifted_windows,
    timesteps,
    windowed,
)

LINEAR = Schedule.linear()
sides = st.integers(1, 40)
unhurried = settings(max_examples=50, deadline=None)


@st.composite
def layouts(draw):
    window = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    stride = tuple(draw(st.integers(1, side)) for side in window)
    return WindowLayout((draw(sides), draw(sides)), window, stride)


@unhurried
@given(layouts())
def test_every_pixel_is_covered_and_no_window_leaves_the_canvas(layout):
    covered = torch.zeros(layout.size)
    for row, column in layout.positions:
        for start, size, side in zip((row, column), layout.size, layout.window):
            assert start >= 0 and (start + side <= size or start == 0)
        covered[row : row + layout.window[0], column : column + layout.window[1]] += 1
    assert float(covered.min()) >= 1
    assert len(set(layout.positions)) == len(layout)


@unhurried
@given(layouts(), st.sampled_from(["uniform", "feather"]), st.integers(1, 9), st.floats(-1e3, 1e3, width=32))
def test_windows_of_a_constant_field_leave_it_constant(layout, blend, batch, value):
    denoiser = windowed(lambda x, t: Prediction(torch.full_like(x, value), x), layout, blend, batch)
    x = torch.randn(2, 3, *layout.size, generator=torch.Generator().manual_seed(0))
    predicted = denoiser(x, 5)
    assert bool((predicted.x0 == value).all())
    assert torch.equal(predicted.eps, x)


@unhurried
@given(sides, sides, st.integers(1, 16), st.integers(1, 16), st.integers(0, 999), st.integers(1, 9))
def test_shifted_windows_predict_every_pixel_once(height, width, h, w, t, batch):
    seen = []

    def denoiser(x, t):
        seen.append(len(x))
        return Prediction(x + 1, x)

    x = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    predicted = shifted_windows(denoiser, (h, w), seed=1, batch=batch)(x, t)
    assert torch.equal(predicted.x0, x + 1) and torch.equal(predicted.eps, x)
    rows, columns = height // h + 2, width // w + 2
    assert sum(seen) <= rows * columns + batch


def test_the_shift_moves_from_step_to_step_but_not_from_run_to_run():
    def borders(seed, t):
        """Rows and columns at which a new window's cell begins: the windows number themselves."""
        count = iter(range(10_000))

        def denoiser(x, t):
            own = torch.tensor([float(next(count)) for _ in x]).view(-1, 1, 1, 1)
            return Prediction(own.expand_as(x), x)

        x0 = shifted_windows(denoiser, 16, seed, batch=1)(torch.zeros(1, 1, 64, 64), t).x0[0, 0]
        down, across = x0.diff(dim=0)[:, 0].nonzero(), x0.diff(dim=1)[0].nonzero()
        return tuple(down.flatten().tolist()), tuple(across.flatten().tolist())

    assert borders(0, 5) == borders(0, 5) != borders(1, 5)
    for axis in (0, 1):
        assert len({borders(0, t)[axis] for t in range(12)}) > 4
    assert any(rows != columns for rows, columns in (borders(0, t) for t in range(12)))


def weighted_mean(layout, values, profile):
    """The plain definition, in double precision: Σ w·v / Σ w."""
    total, weight = torch.zeros(2, *layout.size, dtype=torch.float64)
    for value, (row, column) in zip(values, layout.positions):
        area = (slice(row, row + layout.window[0]), slice(column, column + layout.window[1]))
        total[area] += profile * value
        weight[area] += profile
    return total / weight


@pytest.mark.parametrize("blend", ["uniform", "feather"])
@pytest.mark.parametrize(
    "size, window, stride", [((37, 50), (16, 12), (5, 7)), ((16, 90), 16, 4), ((33, 33), 16, 16)]
)
def test_blending_is_the_weighted_mean(blend, size, window, stride):
    layout = WindowLayout(size, window, stride)
    values = torch.arange(1.0, len(layout) + 1, dtype=torch.float64)
    ones = torch.ones(layout.window, dtype=torch.float64)
    profile = ones if blend == "uniform" else feather(layout.window[0])[:, None] * feather(layout.window[1])
    expected = weighted_mean(layout, values, profile)
    ours = map_windows(
        lambda x, value: x + value.view(-1, 1, 1, 1),
        torch.zeros(1, 1, *layout.size),
        layout,
        blend,
        batch=4,
        condition={"value": PerWindow(values.float())},
    )
    torch.testing.assert_close(ours[0, 0].double(), expected, rtol=1e-5, atol=1e-5)


def test_feathered_windows_show_no_border():
    """Where windows disagree, the feather hides it: a step across a border is a fraction of the disagreement."""
    layout = WindowLayout((64, 64), 32, 16)
    values = torch.rand(len(layout), generator=torch.Generator().manual_seed(0))
    steps = {}
    for blend in ("uniform", "feather"):
        field = map_windows(
            lambda x, value: x + value.view(-1, 1, 1, 1),
            torch.zeros(1, 1, 64, 64),
            layout,
            blend,
            condition={"value": PerWindow(values)},
        )
        steps[blend] = float(field.diff(dim=-1).abs().max())
    assert steps["feather"] < 0.5 * steps["uniform"]


def test_x_stays_what_its_prediction_says():
    layout, schedule = WindowLayout((30, 41), 16, 7), LINEAR
    x = torch.randn(1, 3, 30, 41, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = schedule.levels(700)

    def denoiser(x, t):  # windows disagree: each subtracts its own mean
        eps = x - x.mean((1, 2, 3), keepdim=True)
        return Prediction((x - sigma * eps) / alpha, eps)

    predicted = windowed(denoiser, layout)(x, 700)
    torch.testing.assert_close(alpha * predicted.x0 + sigma * predicted.eps, x, rtol=1e-6, atol=1e-6)


# -- same bits under any tiling --------------------------------------------------------------------------------

ORACLE = Mixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([-1.0, 1.5]).view(2, 1, 1, 1),
    torch.tensor([0.3, 0.5]).view(2, 1, 1, 1),
).denoiser(LINEAR)


@pytest.mark.parametrize(
    "solver, options", [(ddim, {"eta": 0.7}), (ddpm, {}), (dpmpp_2m, {}), (dpmpp_2m, {"sde": True})]
)
def test_tiling_and_batch_do_not_change_a_bit_with_an_oracle(solver, options):
    noise = CanvasNoise(4, (1, 3, 45, 67))
    times = timesteps(LINEAR, 6)
    options = options if solver is dpmpp_2m and not options else {**options, "noise": noise}
    results = [solver(ORACLE, noise(-1), times, LINEAR, **options)]
    for window, stride, blend, batch in (
        (16, 8, "feather", 3),
        ((12, 31), 5, "uniform", 8),
        (64, 64, "feather", 1),
    ):
        denoiser = windowed(ORACLE, WindowLayout((45, 67), window, stride), blend, batch)
        results.append(solver(denoiser, noise(-1), times, LINEAR, **options))
    results.append(solver(shifted_windows(ORACLE, 16, seed=0), noise(-1), times, LINEAR, **options))
    for other in results[1:]:
        assert torch.equal(other, results[0])


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(16, 3, 3, padding=1)
    ).eval()


def test_batches_of_windows_change_a_network_by_rounding_only():
    network = small_network()
    with torch.no_grad():
        denoiser = lambda x, t: Prediction(torch.tanh(network(x)), x)  # noqa: E731
        noise = CanvasNoise(4, (1, 3, 45, 67))
        layout, times = WindowLayout((45, 67), 16, 8), timesteps(LINEAR, 10)
        results = [
            ddim(windowed(denoiser, layout, batch=batch), noise(-1), times, LINEAR, eta=0.5, noise=noise)
            for batch in (1, 5, 64)
        ]
        torch.set_num_threads(2)
        in_lanes = windowed(denoiser, layout, batch=5, lanes=2)
        assert torch.equal(ddim(in_lanes, noise(-1), times, LINEAR, eta=0.5, noise=noise), results[1])
        moving = [shifted_windows(denoiser, 16, seed=0, batch=3, lanes=lanes) for lanes in (1, 2)]
        one, two = (ddim(each, noise(-1), times, LINEAR, eta=0.5, noise=noise) for each in moving)
        assert torch.equal(one, two)
        torch.set_num_threads(1)
    extent = float(results[0].max() - results[0].min())
    for other in results[1:]:
        assert float((other - results[0]).abs().max()) < 1e-4 * extent


# -- conditions ------------------------------------------------------------------------------------------------


def test_every_window_gets_its_own_condition_and_its_own_part_of_the_canvas():
    layout = WindowLayout((20, 30), (8, 10), (6, 7))
    canvas = torch.arange(600.0).view(1, 1, 20, 30)
    table = torch.arange(float(len(layout)))
    seen = {}

    def denoiser(x, t, own, part, of_place, shared, name):
        assert torch.equal(x, part) and shared.shape == (len(x), 2) and name == "he"
        assert torch.equal(of_place[:, 0] * 30 + of_place[:, 1], x[:, 0, 0, 0])
        seen.update(zip(own.tolist(), x[:, 0, 0, 0].tolist()))
        return Prediction(x, x)

    condition = {
        "own": PerWindow(table),
        "part": Crop(canvas),
        "of_place": PerWindow(lambda places: torch.tensor(places)),
        "shared": torch.zeros(1, 2),
        "name": "he",
    }
    windowed(denoiser, layout, batch=4)(canvas, 5, **condition)
    assert seen == {float(i): float(canvas[0, 0, r, c]) for i, (r, c) in enumerate(layout.positions)}
    del condition["own"]
    shifted_windows(lambda x, t, **c: denoiser(x, t, own=torch.zeros(len(x)), **c), (8, 10), 0)(
        canvas, 5, **condition
    )


def test_several_canvases_at_once():
    layout = WindowLayout((20, 30), 8, 6)
    x = torch.randn(3, 2, 20, 30, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([1.0, 2.0, 3.0])
    table = torch.arange(float(len(layout)))

    def denoiser(x, t, label, place):
        return Prediction(x * label.view(-1, 1, 1, 1) + place.view(-1, 1, 1, 1), x)

    together = windowed(denoiser, layout, batch=4)(x, 5, label=label, place=PerWindow(table))
    for i in range(3):
        alone = windowed(denoiser, layout, batch=4)(
            x[i : i + 1], 5, label=label[i : i + 1], place=PerWindow(table)
        )
        assert torch.equal(together.x0[i : i + 1], alone.x0)


@pytest.mark.parametrize("total, batch", [(169, 8), (7, 3), (5, 5), (4, 9), (1, 1), (11, 10)])
def test_the_network_sees_batches_of_one_size(total, batch):
    sizes = []

    def denoiser(x, t):
        sizes.append(len(x))
        return Prediction(x, x)

    windowed(denoiser, WindowLayout((4, 4 * total), 4, 4), batch=batch)(torch.zeros(1, 1, 4, 4 * total), 5)
    assert len(set(sizes)) == 1 and sizes[0] <= batch and sum(sizes) - total < len(sizes)


def test_a_canvas_smaller_than_the_window_is_mirrored_into_it():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    seen = []
    windowed(lambda x, t: (seen.append(x), Prediction(x, x))[1], WindowLayout((2, 3), (5, 4), 1))(x, 5)
    assert seen[0][0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [0, 1, 2, 2], [0, 1, 2, 2]]


def test_decoding_in_windows_equals_decoding_the_whole():
    latent = torch.randn(1, 4, 19, 26, generator=torch.Generator().manual_seed(0))
    decode = lambda z: torch.nn.functional.interpolate(z[:, :3], scale_factor=4)  # noqa: E731
    layout = WindowLayout((19, 26), 8, 5)
    assert torch.equal(map_windows(decode, latent, layout, scale=4), decode(latent))


def test_the_published_decoding_weight_is_a_feather(tensors):
    numbers = tensors("large_image")
    for name, width in (("gaussian_kernel", 0.8), ("gaussian_kernel_default64", 1.0)):
        weight = feather(64, width)[:, None] * feather(64, width)
        weight = (weight / weight.max()).float()  # a common factor drops out of the blend
        torch.testing.assert_close(weight, numbers[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: WindowLayout((10, 10), 4, 5), "leaves gaps"),
        (lambda: WindowLayout((10, 0), 4, 2), "at least 1"),
        (lambda: windowed(ORACLE, WindowLayout((9, 9), 4, 2), "linear"), "unknown blend"),
        (lambda: windowed(ORACLE, WindowLayout((9, 9), 4, 2), width=0), "positive"),
        (lambda: windowed(ORACLE, WindowLayout((9, 9), 4, 2))(torch.zeros(1, 3, 9, 8), 5), "layout is for"),
        (
            lambda: windowed(ORACLE, WindowLayout((9, 9), 4, 2), batch=0)(torch.zeros(1, 3, 9, 9), 5),
            "at least one",
        ),
        (lambda: shifted_windows(ORACLE, 4, 0)(torch.zeros(1, 3, 9, 9), torch.tensor([5])), "one time"),
        (
            lambda: shifted_windows(ORACLE, 4, 0)(torch.zeros(1, 3, 9, 9), 5, c=PerWindow(torch.zeros(9))),
            "move from step to step",
        ),
        (
            lambda: windowed(ORACLE, WindowLayout((9, 9), 4, 2))(
                torch.zeros(1, 3, 9, 9), 5, c=PerWindow(torch.zeros(3))
            ),
            "3 rows for 16 windows",
        ),
        (
            lambda: windowed(ORACLE, WindowLayout((9, 9), 4, 2))(
                torch.zeros(1, 3, 9, 9), 5, c=Crop(torch.zeros(1, 1, 8, 9))
            ),
            "not the size of the canvas",
        ),
        (
            lambda: map_windows(lambda x: x[..., :2], torch.zeros(1, 3, 9, 9), WindowLayout((9, 9), 4, 2)),
            "expected back",
        ),
    ],
)
def test_what_cannot_be_windowed_is_said(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@unhurried
@given(layouts(), st.integers(1, 9), st.integers(0, 2**31), st.booleans())
def test_settled_windows_are_not_asked_for(layout, batch, seed, moving):
    """Where windows are settled with what the denoiser would say, the result is the same and fewer are seen."""
    schedule = Schedule.cosine()
    x = torch.randn(1, 2, *layout.size, generator=torch.Generator().manual_seed(0))
    chosen = np.random.default_rng(seed)
    left, seen = [], []

    def settled(position):
        if chosen.random() < 0.5:
            return torch.full((2, *layout.window), 0.5)
        left.append(position)
        return None

    def denoiser(x, t):
        seen.append(len(x))
        return Prediction(torch.full_like(x, 0.5), x)

    def make(**options):
        if moving:
            return shifted_windows(denoiser, layout.window, 1, batch, schedule=schedule, **options)
        return windowed(denoiser, layout, "feather", batch, schedule=schedule, **options)

    plain = make()(x, 300)
    seen.clear()
    predicted = make(settled=settled)(x, 300)
    assert torch.equal(predicted.x0, plain.x0) and torch.equal(predicted.eps, plain.eps)
    assert bool(seen) == bool(left) and len(left) <= sum(seen) < len(left) + max(seen, default=1)


def test_what_is_settled_stands_where_its_window_does():
    schedule, x = Schedule.cosine(), torch.zeros(1, 1, 4, 16)
    known = {(0, 4): 1.0, (0, 12): 2.0}

    def settled(position):
        return torch.full((1, 4, 4), known[position]) if position in known else None

    layout = WindowLayout((4, 16), 4, 4)
    for batch in (1, 2, 8):
        denoiser = windowed(
            lambda x, t: Prediction(x - 1, x), layout, "uniform", batch, schedule=schedule, settled=settled
        )
        assert denoiser(x, 5).x0[0, 0, 0].tolist() == [-1.0] * 4 + [1.0] * 4 + [-1.0] * 4 + [2.0] * 4
    with pytest.raises(ConfigError, match="schedule"):
        windowed(lambda x, t: Prediction(x, x), layout, settled=settled)
