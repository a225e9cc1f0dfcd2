"""Seeds are pure functions of names; devices and precisions are said, not guessed."""

import pytest
import torch

from morphogen.core.devices import (
    CALLS,
    STEPS,
    autocast,
    chosen_precision,
    compiling_pays,
    resolve_device,
    torch_dtype,
)
from morphogen.core.errors import ConfigError
from morphogen.core.progress import progress
from morphogen.core.seeds import generator, numpy_generator, seed_for


def test_seeds_are_stable_across_runs():
    assert seed_for(0, "noise", 3) == 4415186688696084113
    assert seed_for("a", "b") != seed_for("ab") != seed_for("a", ("b",))
    assert seed_for(1) != seed_for("1")
    assert 0 <= seed_for("x") < 2**63


def test_generators_repeat():
    assert torch.equal(
        torch.randn(4, generator=generator(1, "x")), torch.randn(4, generator=generator(1, "x"))
    )
    assert (numpy_generator(1).random(3) == numpy_generator(1).random(3)).all()


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="Did you mean 'cuda'"):
        resolve_device("cudaa")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            resolve_device("cuda")


def test_precision():
    assert torch_dtype("bf16") is torch.bfloat16
    with pytest.raises(ConfigError, match="unknown precision 'bf15'"):
        torch_dtype("bf15")
    layer, x = torch.nn.Linear(4, 4), torch.zeros(1, 4)
    with autocast("cpu", "bf16"):
        assert layer(x).dtype is torch.bfloat16
    with autocast("cpu", "fp32"):
        assert layer(x).dtype is torch.float32


@pytest.mark.parametrize("multiplies", [True, False])
def test_precision_of_itself_is_reduced_on_gpus_that_multiply_in_it_alone(monkeypatch, multiplies):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: multiplies)
    expected = "bf16" if multiplies else "fp32"
    assert chosen_precision("auto", "cuda:1") == expected
    assert chosen_precision("auto", "cpu") == chosen_precision("auto", "mps") == "fp32"
    assert chosen_precision("fp16", "cuda") == "fp16" and chosen_precision("fp32", "cuda") == "fp32"
    with pytest.raises(ConfigError, match="unknown precision 'atuo'.*Did you mean 'auto'"):
        chosen_precision("atuo", "cuda")
    layer, x = torch.nn.Linear(4, 4), torch.zeros(1, 4)
    with autocast("cpu", "auto"):
        assert layer(x).dtype is torch.float32


def test_compiling_pays_on_a_gpu_with_enough_ahead(monkeypatch):
    monkeypatch.setattr("morphogen.core.devices._has_compiler", lambda: True)
    assert compiling_pays("cuda", CALLS) and not compiling_pays("cuda", CALLS - 1)
    assert compiling_pays("cuda:3", STEPS, training=True)
    assert not compiling_pays("cuda", STEPS - 1, training=True)
    assert not compiling_pays("cpu", 1e12) and not compiling_pays("mps", 1e12)
    monkeypatch.setattr("morphogen.core.devices._has_compiler", lambda: False)
    assert not compiling_pays("cuda", 1e12)


def test_progress_yields_everything():
    assert list(progress(range(5), what="spots")) == list(range(5))
    with progress.bar(3, "tiles") as bar:
        bar.advance(3)
        bar.note(loss=0.5)
