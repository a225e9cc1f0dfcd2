"""Canvases on disk: the same bits as in memory, bounded memory, and a run that survives kill -9."""

import math
import multiprocessing
import signal
import time

import numpy as np
import psutil
import pytest
import torch
import zarr

from morphogen.core.errors import ConfigError, InputError
from morphogen.diffusion import (
    CanvasNoise,
    CanvasStore,
    Crop,
    Mixture,
    Prediction,
    Schedule,
    SolverState,
    WindowLayout,
    ddim,
    ddim_invert,
    ddpm,
    dpmpp_2m,
    dpmpp_3m,
    euler,
    heun,
    load_state,
    map_windows,
    plms,
    resumable,
    save_state,
    shifted_windows,
    timesteps,
    windowed,
)

LINEAR, FLOW = Schedule.linear(), Schedule.flow()
SHAPE = (1, 3, 50, 71)


def oracle(schedule):
    return Mixture.gaussian(torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.6)).denoiser(schedule)


def zarr_store(folder, shape=SHAPE):
    def new(name):
        return zarr.open_array(
            folder / f"{name}.zarr", mode="a", shape=shape, dtype="f4", chunks=(1, 3, 16, 16)
        )

    return CanvasStore(shape, new, block=20)


STORES = {
    "memmap": lambda folder: CanvasStore.memmap(folder, SHAPE, block=20),
    "zarr": zarr_store,
    "memory": lambda folder: CanvasStore.memory(SHAPE, block=33),
}
RUNS = {
    "ddim": (ddim, LINEAR, {"eta": 0.5}),
    "ddpm": (ddpm, LINEAR, {}),
    "2m": (dpmpp_2m, LINEAR, None),
    "3m": (dpmpp_3m, LINEAR, None),
    "sde": (dpmpp_2m, LINEAR, {"sde": True}),
    "plms": (plms, LINEAR, None),
    "euler": (euler, FLOW, None),
    "heun": (heun, FLOW, None),
}


@pytest.mark.parametrize(
    "name, kind, windows",
    [(name, "memmap", "overlapping") for name in RUNS]
    + [("sde", "zarr", "overlapping"), ("sde", "memory", "overlapping"), ("ddim", "memmap", "shifted")],
)
def test_a_canvas_on_disk_has_the_bits_of_one_in_memory(tmp_path, name, kind, windows):
    solver, schedule, options = RUNS[name]
    if windows == "shifted":
        denoiser = shifted_windows(oracle(schedule), 16, seed=3)
    else:
        denoiser = windowed(oracle(schedule), WindowLayout(SHAPE[-2:], 16, 9))
    noise, times = CanvasNoise(0, SHAPE), timesteps(schedule, 4)
    store = STORES[kind](tmp_path)
    results = []
    for source in (noise, store.noise(noise)):
        extra = {} if options is None else {**options, "noise": source}
        results.append(solver(denoiser, source(-1), times, schedule, **extra))
    in_memory, canvas = results
    assert torch.equal(canvas.whole(), in_memory)
    assert torch.equal(canvas.read(slice(3, 40), slice(60, 99)), in_memory[..., 3:40, 60:])


@pytest.mark.parametrize("name", ["2m", "ddim", "plms"])
@pytest.mark.parametrize("windows", ["overlapping", "shifted"])
def test_eps_that_follows_from_x0_is_not_written(tmp_path, name, windows):
    """x0 has the bits it has when eps is blended, too; the disk holds one array less, and memory and disk agree."""
    solver, schedule, options = RUNS[name]
    noise, times = CanvasNoise(0, SHAPE), timesteps(schedule, 4)

    def made(given):
        if windows == "shifted":
            return shifted_windows(oracle(schedule), 16, seed=3, schedule=given)
        return windowed(oracle(schedule), WindowLayout(SHAPE[-2:], 16, 9), schedule=given)

    start = noise(-1)
    ours, both = (made(given)(start, times[1]) for given in (schedule, None))
    assert torch.equal(ours.x0, both.x0)
    torch.testing.assert_close(ours.eps, both.eps, rtol=1e-4, atol=1e-5)
    results, arrays = [], []
    for given in (schedule, None):
        store = CanvasStore.memmap(tmp_path / str(given is None), SHAPE, block=20)
        for source in (noise, store.noise(noise)):
            extra = {} if options is None else {**options, "noise": source}
            x = solver(made(given), source(-1), times, schedule, **extra)
            results.append(x if isinstance(x, torch.Tensor) else x.whole())
        arrays.append(len(list((tmp_path / str(given is None)).glob("*.npy"))))
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2], rtol=1e-4, atol=1e-4)
    if name == "2m":  # it asks for x0 alone
        assert torch.equal(results[0], results[2])
        assert arrays[0] == arrays[1] - 1


def test_a_saved_state_keeps_its_history_on_disk(tmp_path):
    """PLMS remembers eps, which nobody has written: the state's file must not name arrays that are used again."""
    noise, times = CanvasNoise(0, SHAPE), timesteps(LINEAR, 8)
    denoiser = windowed(oracle(LINEAR), WindowLayout(SHAPE[-2:], 16, 9), schedule=LINEAR)
    expected = plms(denoiser, noise(-1), times, LINEAR)
    for stop in (3, 5):
        store = CanvasStore.memmap(tmp_path / str(stop), SHAPE, block=20)
        state = tmp_path / f"{stop}.pt"

        def dies(at, prediction, stop=stop):
            # The arrays of the step that is under way are written before the process ends.
            prediction.x0.store.save(prediction.x0 + 0.0)
            if at.step == stop:
                raise KeyboardInterrupt

        run = resumable(plms, state, every=2)
        with pytest.raises(KeyboardInterrupt):
            run(denoiser, store.noise(noise)(-1), times, LINEAR, callback=dies)
        again = CanvasStore.memmap(tmp_path / str(stop), SHAPE, block=20)
        assert torch.equal(run(denoiser, again.noise(noise)(-1), times, LINEAR).whole(), expected)


def test_inversion_on_disk(tmp_path):
    store = CanvasStore.memmap(tmp_path, SHAPE, block=20)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    denoiser = windowed(oracle(LINEAR), WindowLayout(SHAPE[-2:], 16, 9))
    expected = ddim_invert(denoiser, x, timesteps(LINEAR, 4), LINEAR, refine=2)
    assert torch.equal(
        ddim_invert(denoiser, store.save(x), timesteps(LINEAR, 4), LINEAR, refine=2).whole(), expected
    )


def test_learned_variance_on_disk(tmp_path):
    def denoiser(x, t):
        predicted = oracle(LINEAR)(x, t)
        return predicted._replace(variance_position=torch.tanh(x))

    noise, times = CanvasNoise(0, SHAPE), timesteps(LINEAR, 4)
    store = CanvasStore.memmap(tmp_path, SHAPE)
    denoiser = windowed(denoiser, WindowLayout(SHAPE[-2:], 16, 9))
    expected = ddpm(denoiser, noise(-1), times, LINEAR, variance="learned", noise=noise)
    canvas = ddpm(
        denoiser, store.noise(noise)(-1), times, LINEAR, variance="learned", noise=store.noise(noise)
    )
    torch.testing.assert_close(canvas.whole(), expected, rtol=1e-6, atol=1e-6)


def test_arithmetic_is_lazy_and_exact(tmp_path):
    store = CanvasStore.memmap(tmp_path, SHAPE, block=16)
    a, b = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    x, y = store.save(a), store.save(b)
    reads = []
    x._read = lambda region, inner=x._read: (reads.append(region), inner(region))[1]
    lazy = (2 * x - y / 4 + 1) * 3 + (1 - x)
    assert not reads
    assert torch.equal(lazy.whole(), (2 * a - b / 4 + 1) * 3 + (1 - a))
    assert torch.equal(store.save(lazy).whole(), lazy.whole())


def test_arrays_are_used_again(tmp_path):
    store = CanvasStore.memmap(tmp_path, SHAPE)
    noise = store.noise(CanvasNoise(0, SHAPE))
    denoiser = windowed(oracle(LINEAR), WindowLayout(SHAPE[-2:], 16, 9))
    dpmpp_2m(denoiser, noise(-1), timesteps(LINEAR, 12), LINEAR, sde=True, noise=noise)
    assert len(list(tmp_path.glob("*.npy"))) <= 7


def test_crops_may_live_on_disk_and_results_go_there(tmp_path):
    latent, pixels = (
        CanvasStore.memmap(tmp_path / "a", SHAPE),
        CanvasStore.memmap(tmp_path / "b", (1, 3, 100, 142)),
    )
    field = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    layout = WindowLayout(SHAPE[-2:], 16, 9)

    def enlarge(x, other):
        assert torch.equal(x, other)
        return torch.nn.functional.interpolate(x, scale_factor=2)

    condition = {"other": Crop(latent.save(field))}
    written = map_windows(enlarge, latent.save(field), layout, scale=2, into=pixels, condition=condition)
    assert torch.equal(written.whole(), torch.nn.functional.interpolate(field, scale_factor=2))


def test_what_does_not_fit_a_store_is_said(tmp_path):
    store = CanvasStore.memmap(tmp_path, SHAPE)
    with pytest.raises(ConfigError, match="does not fit"):
        store.save(torch.zeros(1, 3, 5, 5))
    with pytest.raises(ConfigError, match="does not fit"):
        store.noise(CanvasNoise(0, (1, 3, 5, 5)))
    store.save(torch.zeros(SHAPE))
    with pytest.raises(InputError, match="another folder"):
        CanvasStore.memmap(tmp_path, (1, 3, 5, 5)).empty()


class Recorded:
    """An array that remembers the largest part that was asked for."""

    largest = 0

    def __init__(self, shape):
        self.data, self.shape = np.zeros(shape, np.float32), shape

    def __getitem__(self, key):
        Recorded.largest = max(Recorded.largest, self.data[key].size)
        return self.data[key]

    def __setitem__(self, key, value):
        Recorded.largest = max(Recorded.largest, value.size)
        self.data[key] = value


def test_no_more_is_read_or_written_at_once_than_a_block_or_a_batch_of_windows(monkeypatch):
    shape = (1, 3, 200, 300)
    store = CanvasStore(shape, lambda name: Recorded(shape), block=40)
    noise, drawn = CanvasNoise(0, shape), []
    original = CanvasNoise._area
    monkeypatch.setattr(
        CanvasNoise, "_area", lambda *a: (lambda out: (drawn.append(out.size), out)[1])(original(*a))
    )
    windows = windowed(oracle(LINEAR), WindowLayout(shape[-2:], 32, 16), batch=4)
    fields = store.noise(noise)
    dpmpp_2m(windows, fields(-1), timesteps(LINEAR, 3), LINEAR, sde=True, noise=fields)
    batch = 3 * 32 * (32 + 3 * 16)
    assert 0 < Recorded.largest <= max(batch, 3 * 40 * 40)
    assert 0 < max(drawn) <= 3 * 40 * 40


@pytest.mark.slow
def test_memory_does_not_grow_with_the_canvas(tmp_path):
    """A canvas of 201 MB has six arrays of that size on disk; what memory takes is some windows and blocks of them."""
    shape = (1, 3, 4096, 4096)
    process, peak = psutil.Process(), []
    exact = oracle(LINEAR)

    def denoiser(x, t):
        peak.append(process.memory_info().rss)
        return exact(x, t)

    def sample(size, folder):
        store = CanvasStore.memmap(folder, (*shape[:2], size, size), block=256)
        noise = store.noise(CanvasNoise(0, store.shape))
        windows = windowed(denoiser, WindowLayout((size, size), 256, 224), batch=4)
        ddim(windows, noise(-1), timesteps(LINEAR, 2), LINEAR, eta=0.5, noise=noise)

    sample(600, tmp_path / "warm-up")
    before = peak[-1]
    sample(shape[-1], tmp_path / "large")
    assert max(peak) - before < math.prod(shape) * 4


# -- states ----------------------------------------------------------------------------------------------------


def test_a_state_survives_its_file(tmp_path):
    state = SolverState(3, torch.randn(2, 5), (torch.randn(2, 5), torch.randn(2, 5)))
    save_state(tmp_path / "state.pt", state, "job")
    back = load_state(tmp_path / "state.pt", "job")
    assert back.step == 3 and torch.equal(back.x, state.x)
    assert all(torch.equal(a, b) for a, b in zip(back.history, state.history))
    with pytest.raises(InputError, match="another job"):
        load_state(tmp_path / "state.pt", "other")
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:200])
    with pytest.raises(InputError, match="not the state"):
        load_state(tmp_path / "state.pt", "job")


def test_a_finished_run_returns_at_once_and_another_job_is_refused(tmp_path):
    x, times = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), timesteps(LINEAR, 5)
    calls = []

    def denoiser(x, t):
        calls.append(t)
        return Prediction(0.5 * x, x)

    run = resumable(dpmpp_2m, tmp_path / "state.pt", job="seed 0")
    first = run(denoiser, x, times, LINEAR)
    assert torch.equal(run(denoiser, x, times, LINEAR), first) and len(calls) == 5
    assert torch.equal(first, dpmpp_2m(denoiser, x, times, LINEAR))
    with pytest.raises(InputError, match="another job"):
        resumable(dpmpp_2m, tmp_path / "state.pt", job="seed 1")(denoiser, x, times, LINEAR)
    with pytest.raises(InputError, match="another job"):
        run(denoiser, x, timesteps(LINEAR, 6), LINEAR)


def _job(folder, storage, every, delay, started):
    exact = Mixture(
        torch.tensor([0.3, 0.7]),
        torch.tensor([-1.0, 1.5]).view(2, 1, 1, 1),
        torch.tensor([0.3, 0.5]).view(2, 1, 1, 1),
    ).denoiser(LINEAR)

    def slow(x, t):
        time.sleep(delay)
        return exact(x, t)

    shape = (1, 3, 40, 50)
    noise = CanvasNoise(7, shape)
    denoiser = windowed(slow, WindowLayout((40, 50), 16, 9), batch=4)
    if storage == "disk":
        noise = CanvasStore.memmap(folder / "arrays", shape, block=16).noise(noise)
    x = resumable(dpmpp_2m, folder / "state.pt", every=every)(
        denoiser,
        noise(-1),
        timesteps(LINEAR, 8),
        LINEAR,
        sde=True,
        noise=noise,
        callback=lambda state, prediction: started.put(state.step),
    )
    torch.save(x if storage == "memory" else x.whole(), folder / "result.pt")


@pytest.mark.parametrize("storage, every", [("memory", 1), ("disk", 1), ("disk", 3)])
def test_killed_in_the_middle_and_resumed_gives_the_same_bits(tmp_path, storage, every):
    fork = multiprocessing.get_context("fork")

    def start(name, delay):
        (tmp_path / name).mkdir(exist_ok=True)
        steps = fork.SimpleQueue()
        process = fork.Process(target=_job, args=(tmp_path / name, storage, every, delay, steps))
        process.start()
        return process, steps

    straight, _ = start("straight", 0.0)
    straight.join(120)
    broken, steps = start("broken", 0.1)
    while steps.get() < 5:
        pass
    time.sleep(0.15)  # within the sixth step, which takes six batches of windows
    broken.kill()
    broken.join()
    assert broken.exitcode == -signal.SIGKILL and not (tmp_path / "broken" / "result.pt").exists()
    resumed, steps = start("broken", 0.0)
    assert steps.get() in ((6, 7) if every == 1 else (4,))
    resumed.join(120)
    assert straight.exitcode == resumed.exitcode == 0
    a, b = (torch.load(tmp_path / name / "result.pt", weights_only=True) for name in ("straight", "broken"))
    assert torch.equal(a, b) and bool(torch.isfinite(a).all())
