"""Training in lanes of a CPU: the gradients of the whole batch, the same bytes after a resume, and who is left out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from morphogen.core.errors import TrainingError
from morphogen.training import TrainingConfig, fit, run
from morphogen.training.lanes import WholeLoss, backward_in_lanes, counted, lanes_for, some, together

CONFIG = TrainingConfig(steps=12, batch_size=7, lr=0.01, log_every=3, save_every=5, clip_norm=0.5)
ALONE = SimpleNamespace(num_processes=1, scaler=None, device=torch.device("cpu"))


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def ends(toy):
    """A task whose run is cut in its ninth step."""

    class Cut(toy.Toy):
        def loss(self, model, batch, draws):
            if int(draws.positions[0]) // 7 == 8:
                raise KeyboardInterrupt
            return super().loss(model, batch, draws)

    return Cut()


@pytest.fixture
def enough_work(monkeypatch):
    monkeypatch.setattr(run, "ENOUGH", 0.0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_are_those_of_the_whole_batch(two_threads, count):
    """Of the mean square error of a line: 2 X' (X w − y) / n, whatever the lanes, added to what was there."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=generator), torch.randn(7, generator=generator)
    weight, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))
    weight.grad = torch.full((3,), 0.25)

    def loss(items, positions):
        error = (items["x"] @ weight - items["y"]) ** 2
        return {"loss": error, "place": positions.float(), "mean": error.mean()}

    figures = backward_in_lanes(loss, [weight, unused], {"x": x, "y": y}, torch.arange(7), count, 0.5)
    expected = 0.25 + 0.5 * 2 * x.T @ (x @ torch.ones(3) - y) / 7
    torch.testing.assert_close(weight.grad, expected)
    assert unused.grad is None
    assert figures["place"].tolist() == list(range(7))
    torch.testing.assert_close(figures["mean"], figures["loss"].mean())
    assert not figures["loss"].requires_grad


def test_a_run_in_lanes_trains_what_one_lane_trains(toy, tmp_path, two_threads, enough_work):
    threads: set[int] = set()

    class Watched(toy.Toy):
        def loss(self, model, batch, draws):
            threads.add(torch.get_num_threads())
            return super().loss(model, batch, draws)

    found = fit(Watched(), CONFIG, tmp_path / "lanes", device="cpu")
    assert threads == {1} and torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = fit(toy.Toy(), CONFIG, tmp_path / "alone", device="cpu")
    for name, value in alone.ema_state.items():
        torch.testing.assert_close(found.ema_state[name], value, rtol=1e-4, atol=1e-5)
    assert found.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-4)


def test_a_loss_of_whole_batches_while_the_network_goes_in_lanes(toy, tmp_path, two_threads, enough_work):
    sizes: set[int] = set()
    inside: set[tuple[int, int]] = set()

    class Whole(toy.Toy):
        whole_batches = True

        def loss(self, model, batch, draws):
            sizes.add(len(draws))
            return super().loss(model, batch, draws)

    task = Whole()
    task.model.register_forward_hook(
        lambda module, inputs, answer: inside.add((len(answer), torch.get_num_threads()))
    )
    found = fit(task, CONFIG, tmp_path / "lanes", device="cpu")
    assert sizes == {7} and inside >= {(3, 1), (4, 1)}
    torch.set_num_threads(1)
    alone = fit(Whole(), CONFIG, tmp_path / "alone", device="cpu")
    for name, value in alone.ema_state.items():
        torch.testing.assert_close(found.ema_state[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_gradients_of_a_loss_of_the_whole_batch(two_threads, count):
    """Of the square of the batch's sum, s² with s = Σ x w: 2 s Σ x for the weights, 2 s w for the inputs."""
    x = torch.arange(14.0).reshape(7, 2).requires_grad_()
    model = nn.Linear(2, 1, bias=False)
    model.unused = nn.Parameter(torch.ones(1))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    whole = WholeLoss(model, count)
    total = whole(x).sum()
    assert total.item() == -56  # 42 − 2 · 49
    (total**2).backward()
    assert model.weight.grad.tolist() == [[-112 * 42.0, -112 * 49.0]] and model.unused.grad is None
    assert x.grad.tolist() == [[-112.0, 224.0]] * 7
    assert whole.in_features == 2


def test_lanes_compute_in_the_precision_of_the_caller(two_threads):
    model = nn.Linear(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert WholeLoss(model, 2)(torch.ones(4, 2)).dtype == torch.bfloat16
    assert WholeLoss(model, 2)(torch.ones(4, 2)).dtype == torch.float32


def test_a_run_in_lanes_goes_on_to_the_same_bytes(toy, tmp_path, two_threads, enough_work):
    whole = fit(toy.Toy(), CONFIG, tmp_path / "whole", device="cpu")

    with pytest.raises(KeyboardInterrupt):
        fit(ends(toy), CONFIG, tmp_path / "cut", device="cpu")
    again = fit(toy.Toy(), CONFIG, tmp_path / "cut", device="cpu")
    assert all(torch.equal(again.ema_state[name], value) for name, value in whole.ema_state.items())


def test_steps_of_short_operations_take_one_thread(toy, tmp_path, two_threads):
    seen: list[tuple[int, int]] = []

    class Watched(toy.Toy):
        def loss(self, model, batch, draws):
            seen.append((len(draws), torch.get_num_threads()))
            return super().loss(model, batch, draws)

    found = fit(Watched(), CONFIG, tmp_path / "lanes", device="cpu")
    assert set(seen) == {(7, 1)} and torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = fit(toy.Toy(), CONFIG, tmp_path / "alone", device="cpu")  # counting changes no bit
    assert all(torch.equal(found.ema_state[name], value) for name, value in alone.ema_state.items())


def test_a_run_that_goes_on_is_computed_as_it_was(toy, tmp_path, two_threads, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        fit(ends(toy), CONFIG, tmp_path, device="cpu")
    monkeypatch.setattr(run, "counted", None)  # what its operations do is known
    fit(toy.Toy(), CONFIG, tmp_path, device="cpu")


def test_work_is_counted():
    """2 · 10 · 20 · 30 floating-point operations in a product, and none in an addition."""
    x, y = torch.ones(10, 20), torch.ones(20, 30)
    value, megaflops = counted(lambda: x @ y + 1.0)
    assert value.eq(21).all() and megaflops == pytest.approx(0.012 / 2)


def test_the_item_behind_a_nan_is_named_from_a_lane(toy, tmp_path, two_threads, enough_work):
    with pytest.raises(TrainingError, match="NaN at step .*, dataset item 5"):
        fit(toy.Toy(bad=5), CONFIG, tmp_path, device="cpu")


class StochasticDepth(nn.Module):
    p = 0.1


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.Sequential(StochasticDepth()),
    ],
)
def test_networks_whose_items_hang_together_or_that_drop_have_one_lane(model, two_threads):
    assert lanes_for(model, ALONE, 8) == 1
    assert lanes_for(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), nn.GroupNorm(1, 2)), ALONE, 8) == 2


def test_a_network_of_diffusers_is_looked_at_without_its_warnings(two_threads, recwarn):
    from diffusers import UNet2DModel

    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    given = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "add_attention": False}
    assert lanes_for(UNet2DModel(sample_size=8, **kinds, **given), ALONE, 8) == 2
    assert lanes_for(UNet2DModel(sample_size=8, dropout=0.1, **kinds, **given), ALONE, 8) == 1
    assert not [each for each in recwarn if "config" in str(each.message)]


def test_when_there_are_no_lanes(two_threads):
    model = nn.Linear(2, 2)
    assert lanes_for(model, ALONE, 3) == 1  # too few items
    assert lanes_for(model, SimpleNamespace(**{**vars(ALONE), "num_processes": 2}), 8) == 1
    assert lanes_for(model, SimpleNamespace(**{**vars(ALONE), "device": torch.device("meta")}), 8) == 1
    torch.set_num_threads(1)
    assert lanes_for(model, ALONE, 8) == 1
    torch.set_num_threads(2)
    model.compile()
    assert lanes_for(model, ALONE, 8) == 1


def test_parts_of_a_batch_and_back():
    items = {"x": torch.arange(5), "deep": {"names": ["a", "b", "c", "d", "e"]}, "all": torch.ones(2, 2)}
    part = some(items, range(1, 3), 5)
    assert part["x"].tolist() == [1, 2] and part["deep"]["names"] == ["b", "c"] and len(part["all"]) == 2
    whole = together([{"a": torch.tensor(1.0)}, {"a": torch.tensor(4.0)}], [2, 1])
    assert whole["a"].item() == pytest.approx(2.0)
