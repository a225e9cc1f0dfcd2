"""The same loop on a CUDA device: precision, compilation, resume."""

from __future__ import annotations

import pytest
import torch

from morphogen.training import Draws, TrainingConfig, fit, read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CONFIG = TrainingConfig(steps=30, batch_size=7, lr=0.01, log_every=5, save_every=10, accumulation=2)


def largest_difference(a: dict, b: dict) -> float:
    return max((a[name].cpu() - b[name].cpu()).abs().max().item() for name in a)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-3),
        ({"precision": "bf16"}, 5e-2),
        ({"precision": "fp16"}, 5e-2),
        ({"precision": "bf16", "compile": True}, 5e-2),
    ],
)
def test_trains_nearly_what_the_cpu_trains(toy, tmp_path, options, tolerance):
    cpu = fit(toy.Toy(), CONFIG, tmp_path / "cpu", device="cpu")
    gpu = fit(toy.Toy(), CONFIG, tmp_path / "gpu", device="cuda", **options)
    assert largest_difference(cpu.ema_state, gpu.ema_state) < tolerance
    assert all(value.device.type == "cpu" for value in gpu.ema_state.values())
    assert read_metrics(tmp_path / "gpu")[-1]["gpu_gib"] > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resume_goes_on_where_it_was(toy, tmp_path, precision):
    whole = fit(toy.Toy(dropout=0.2), CONFIG, tmp_path / "whole", device="cuda", precision=precision)
    half = CONFIG.replace(steps=20)
    fit(toy.Toy(dropout=0.2), half, tmp_path / "halved", device="cuda", precision=precision)
    result = fit(toy.Toy(dropout=0.2), CONFIG, tmp_path / "halved", device="cuda", precision=precision)
    assert largest_difference(whole.ema_state, result.ema_state) < 1e-5


def test_draws_are_those_of_the_cpu():
    cpu, gpu = (Draws(0, torch.arange(9), device) for device in ("cpu", "cuda"))
    assert torch.equal(cpu.integers(1000, 50), gpu.integers(1000, 50).cpu())
    assert torch.equal(cpu.uniform(50), gpu.uniform(50).cpu())
    assert torch.allclose(cpu.normal(5000), gpu.normal(5000).cpu(), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_gpu(toy, tmp_path, precision):
    """Between two lines of the log nothing is asked of the GPU: torch raises where something is."""
    from morphogen.training.loop import _batches, own_randomness, update
    from morphogen.training.run import Run
    from morphogen.training.start import start_accelerator

    device = torch.device("cuda")
    with own_randomness(device):
        accelerator = start_accelerator(CONFIG, tmp_path, device=device, precision=precision)
        run = Run(toy.Toy(), CONFIG, tmp_path, accelerator, precision=precision, resume=False)
        batches = _batches(run, 0, 8)
        run.model.train()
        update(run, 0, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(1, 8):
                update(run, step, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
